"""Methods of an adapted model that would be wrong while it is adapted: they do what is meant, or say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from glora.adapt import attach
from glora.adapt.float_head import rounded
from glora.adapt.wrappers import PARTS
from glora.errors import StateError, listed

__all__ = ["GuardedMethods", "need_places", "plain_state"]


class Playing(Protocol):
    """What is needed of `Adapted`."""

    @property
    def playing(self) -> str | tuple[str, ...]: ...


class GuardedMethods:
    """Replaces methods that transformers' models have, until `remove`.

    `save_pretrained` writes the plain model as it plays, which every loader reads; an adapter is `save_adapter`'s.
    `resize_token_embeddings` is refused: it would put a layer in the place of one that is adapted, or change the base.

    Args:
        model: The adapted model.
        adapted: What plays.
    """

    def __init__(self, model: nn.Module, adapted: Playing) -> None:
        self._model = model
        self._adapted = adapted
        self._own = {name: getattr(self, name) for name in METHODS if hasattr(model, name)}
        model.__dict__.update(self._own)

    def remove(self) -> None:
        """Gives the model its own methods back."""
        for name in self._own:
            if getattr(self._model.__dict__.get(name), "__self__", None) is self:
                del self._model.__dict__[name]

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> Any:
        """Writes the merged weights, without merging.

        Raises:
            StateError: Several genotypes or adapters play.
        """
        model: Any = self._model
        if not isinstance(self._adapted.playing, str):
            raise StateError("Several adapters play: save_pretrained can write one model.", remedy="Switch to one.")
        return type(model).save_pretrained(
            model, save_directory, *args, **{**options, "state_dict": plain_state(model)}
        )

    def resize_token_embeddings(self, *_: Any, **__: Any) -> NoReturn:
        """Raises StateError: nothing is changed."""
        raise StateError(
            "The embeddings of an adapted model cannot be resized: the base would be another.",
            remedy="Detach, resize, then inject again.",
        )


METHODS = ("save_pretrained", "resize_token_embeddings")


@torch.no_grad()
def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the merged model would have, of a model that plays one genotype and stays as it is.

    Raises:
        StateError: It plays several.
    """
    layers = {name: layer for name, layer in model.named_modules() if attach.is_attached(layer)}
    if any(len(adapter.plays) > 1 for layer in layers.values() for adapter in attach.adapters_of(layer).values()):
        raise StateError("One genotype per sample is active.", remedy="Activate the one genotype to write.")
    shared: dict[nn.Parameter, Tensor] = {}
    played = {name: attach.effective(layer, shared=shared) for name, layer in layers.items()}
    heads = rounded(model)
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        layer, _, rest = key.partition("parametrizations.")
        name, _, kind = rest.partition(".")
        values = played.get(layer.rstrip("."), {})
        if name not in values:
            found[key] = heads.get(key, value)
        elif kind == "original" and (one := values[name]) is not None:
            found[f"{layer}{name}"] = one
    return found


def need_places(model: nn.Module, layers: Mapping[str, nn.Module], action: str) -> None:
    """Raises StateError where another module is in an adapted layer's place, which would not play its adapter."""
    lost = []
    for name, layer in layers.items():
        try:
            now = model.get_submodule(name)
        except AttributeError:
            lost.append(name)
            continue
        while inner := next((now._modules[part] for part in PARTS if part in now._modules), None):
            now = inner
        if now is not layer:
            lost.append(name)
    if lost:
        raise StateError(
            f"Another module is in the place of {listed(lost)} since it was adapted: {action} is not possible.",
            remedy="Put the adapted layer back, or change the model before inject.",
        )
