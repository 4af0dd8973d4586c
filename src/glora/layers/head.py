"""Which modules of a model are its head, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glora.errors import StateError, TargetError, listed, nearest
from glora.layers.places import is_inside

__all__ = ["find_head", "fits_head", "head_of", "show_head"]

HEAD_NAMES = ("head", "fc", "classifier", "heads", "score", "lm_head", "qa_outputs")


def find_head(model: nn.Module, head: str | Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """The names of the modules trained whole, and what to say about them.

    Raises:
        TargetError: A name is no module of the model.
    """
    if head is None:
        return (), []
    if head == "auto":
        names = _automatic_head(model)
        if tied := [name for name in names if _is_tied(model, name)]:
            note = f"The head {listed(tied)} shares its weight with another layer and is not trained whole."
            return tuple(name for name in names if name not in tied), [note]
        return names, [] if names else ["No head was found to be trained whole; name its modules with head=."]
    modules = dict(model.named_modules())
    names = (head,) if isinstance(head, str) else tuple(head)
    for name in names:
        if name not in modules or not name:
            near = nearest(name, modules)
            raise TargetError(
                f"{type(model).__name__} has no module {name!r} to be the head.",
                allowed="Allowed: 'auto', module names, or None.",
                remedy=f"Near: {listed(near)}." if near else "",
            )
    return names, []


def _automatic_head(model: Any) -> tuple[str, ...]:
    """timm's classifier, transformers' output embeddings, or a child with a head's usual name."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    names = config.get("classifier") if isinstance(config, Mapping) else None
    if names is None and hasattr(model, "get_output_embeddings"):
        output = model.get_output_embeddings()
        names = tuple(name for name, module in model.named_modules() if output is not None and module is output) or None
    if names is None:
        children = dict(model.named_children())
        names = tuple(name for name in HEAD_NAMES if name in children)[:1]
    names = (names,) if isinstance(names, str) else tuple(names)
    modules = dict(model.named_modules())
    return tuple(name for name in names if name in modules and list(modules[name].parameters()))


def _is_tied(model: nn.Module, head: str) -> bool:
    """Whether a parameter of the head is also a parameter of a module outside it."""
    inside = {id(parameter) for parameter in model.get_submodule(head).parameters()}
    outside = (module for name, module in model.named_modules() if not is_inside(name, (head,)))
    return any(id(parameter) in inside for module in outside for parameter in module._parameters.values())


def head_of(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The head's parameters and persistent buffers, by their names in the model."""
    return {
        f"{name}.{key}" if name else key: value
        for name in head
        for key, value in model.get_submodule(name).state_dict(keep_vars=True).items()
    }


def fits_head(model: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the head can show a value: one of its own shape, or a Linear's of another width."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    shape = getattr(module, leaf).shape
    return shape == value.shape or (isinstance(module, nn.Linear) and shape[1:] == value.shape[1:])


def show_head(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Writes values into the model's head; a Linear head of another width takes the new shape.

    Raises:
        StateError: A value has another shape and its module is no Linear; nothing is written then.
    """
    if odd := [name for name, value in values.items() if not fits_head(model, name, value)]:
        raise StateError(f"The head's {listed(odd)} has another shape.", allowed="Only a Linear's width may differ.")
    with torch.no_grad():
        for name, value in values.items():
            owner, _, leaf = name.rpartition(".")
            module: Any = model.get_submodule(owner)
            current = getattr(module, leaf)
            if current.shape == value.shape:
                current.copy_(value)
            else:
                current.data = value.detach().clone().to(current)
                current.grad = None
                module.out_features = value.shape[0]
