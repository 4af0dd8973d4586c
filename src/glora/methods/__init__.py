"""A Method turns a backbone into something trainable (Tuned). GLoRA is one, every baseline is another."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from torch import Tensor, nn

from glora.registry import lookup

__all__ = ["METHODS", "Method", "Tuned", "get_method", "settings_of"]

METHODS: dict[str, str] = {
    "glora": "glora.methods.glora:GLoRA",  # the supernet
    "lora": "glora.methods.glora:LoRA",
    "bitfit": "glora.methods.glora:BitFit",
    "linear": "glora.methods.subset:LinearProbe",
    "full": "glora.methods.subset:Full",
}


class Tuned(Protocol):
    """A backbone made trainable.

    Attributes:
        model: The module whose forward is trained and evaluated.
        head: Names of the modules that are trained whole and not counted.
    """

    model: nn.Module
    head: tuple[str, ...]

    def before_step(self, rng: random.Random, places: Sequence[int], of: int, done: float) -> None:
        """Called before every training step, on every process with an equal generator.

        Args:
            rng: What is drawn comes from it, and is the same on every process.
            places: Which samples of the step's batch this process takes, in their order.
            of: Samples of the step's batch, over all processes.
            done: Share of the steps that are done, from 0 to below 1.
        """

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer owns."""

    def count(self) -> int:
        """Trainable numbers in use, without the head."""

    def state(self) -> dict[str, Tensor]:
        """All that training may change, by name: the tensors themselves, for a file."""

    def merge(self) -> nn.Module:
        """The plain model with what was learned folded in."""


class Method(Protocol):
    """Settings of one method; `apply` makes a backbone trainable.

    Attributes:
        lr: The learning rate that the method is trained with unless told otherwise.
    """

    lr: float

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> Tuned:
        """The model made trainable in place, the modules `head` trained whole."""


def settings_of(name: str) -> tuple[str, ...]:
    """The names of a method's own settings.

    Raises:
        UnknownNameError: There is no such method.
    """
    return tuple(item.name for item in fields(_kind(name)))


def get_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of this name with its settings.

    Raises:
        UnknownNameError: There is no such method.
    """
    method: Method = _kind(name)(**settings)
    return method


def _kind(name: str) -> Any:
    return lookup(METHODS, name, kind="method", remedy="List them with `glora ls methods`.")
