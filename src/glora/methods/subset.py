"""Methods that train a subset of the model's own parameters: the head alone, or everything."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from glora.adapt.statistics import freeze_statistics

__all__ = ["Full", "LinearProbe", "TunedSubset"]


class TunedSubset:
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

    def before_step(self, rng: random.Random, places: Sequence[int], of: int, done: float) -> None:
        """Nothing to choose."""

    def parameters(self) -> list[nn.Parameter]:
        return self._trained

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self._trained if id(parameter) not in self._head)

    def state(self) -> dict[str, Tensor]:
        trained = {id(p) for p in self._trained}
        named = {name: p.detach() for name, p in self.model.named_parameters() if id(p) in trained}
        return {**named, **dict(self.model.named_buffers())}

    def merge(self) -> nn.Module:
        for hook in self._hooks:
            hook.remove()
        return self.model


@dataclass(frozen=True)
class LinearProbe:
    """Only the head is trained."""

    lr: float = 3e-2

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedSubset:
        """The model with a trainable head."""
        trained = [parameter for name in head for parameter in model.get_submodule(name).parameters()]
        return TunedSubset(model, trained, head)


@dataclass(frozen=True)
class Full:
    """Every parameter is trained. It needs a far smaller learning rate than the adapters."""

    lr: float = 1e-4

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedSubset:
        """The whole model trainable."""
        return TunedSubset(model, list(model.parameters()), head, keep_statistics=False)
