"""Methods that train a subset of the model's own parameters: the head alone, or everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.adapt.statistics import freeze_statistics
from glora.errors import AdapterFileError, listed
from glora.methods.method import Method, Tuned

__all__ = ["Full", "LinearProbe", "Subset", "TunedSubset"]


class TunedSubset(Tuned):
    """A model of which some own parameters are trained in place.

    Args:
        model: The model; everything else is frozen.
        trained: The parameters trained.
        head: Names of the head's modules, not counted.
        keep_statistics: Running statistics outside the head stay as they are.
    """

    def __init__(
        self, model: nn.Module, trained: Sequence[nn.Parameter], head: Sequence[str], *, keep_statistics: bool = True
    ) -> None:
        self.model = model
        self.head = tuple(head)
        self._hooks = freeze_statistics(model, head) if keep_statistics else []
        self._trained = list(trained)
        self._head = {id(p) for name in head for p in model.get_submodule(name).parameters()}
        model.requires_grad_(False)
        for parameter in self._trained:
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        return self._trained

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self._trained if id(parameter) not in self._head)

    def _state(self) -> dict[str, Tensor]:
        trained = {id(p) for p in self._trained}
        named = {name: p.detach() for name, p in self.model.named_parameters() if id(p) in trained}
        return {**named, **dict(self.model.named_buffers())}

    def save(self, path: str | Path, info: Mapping[str, Any], *, base_fingerprint: str | None = None) -> None:
        save_tensors(path, self._state(), {"info": dict(info)})

    def load(self, path: str | Path, *, base_fingerprint: str | None = None) -> None:
        _fill(self._state(), path)

    def merged(self) -> nn.Module:
        for hook in self._hooks:
            hook.remove()
        return self.model


def _fill(own: Mapping[str, Tensor], path: str | Path) -> None:
    """Copies the tensors of a file into those of the same names.

    Raises:
        AdapterFileError: The file is damaged, or has other names or shapes.
    """
    tensors, _ = read_tensors(path)
    odd = [name for name, value in tensors.items() if name not in own or own[name].shape != value.shape]
    if odd:
        raise AdapterFileError(
            f"{path} is of another model: {listed(odd)} do not fit.", remedy="Build the base it was trained on."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


class Subset(Method):
    """The base of methods that train some of the model's own parameters; their `apply` returns a `TunedSubset`."""

    def load(self, model: nn.Module, path: str | Path, *, base_fingerprint: str | None = None) -> TunedSubset:
        """The model with the trained tensors of a file in place; which ones they are, the file says."""
        own = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
        _fill(own | dict(model.named_buffers()), path)
        return TunedSubset(model, [], (), keep_statistics=False)


class LinearProbe(Subset):
    """Only the head is trained."""

    lr = 3e-2

    name: Literal["linear"] = "linear"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedSubset:
        trained = [parameter for name in head for parameter in model.get_submodule(name).parameters()]
        return TunedSubset(model, trained, head)


class Full(Subset):
    """Every parameter is trained. It needs a far smaller learning rate than the adapters."""

    lr = 1e-4

    name: Literal["full"] = "full"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedSubset:
        return TunedSubset(model, list(model.parameters()), head, keep_statistics=False)
