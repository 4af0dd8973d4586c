"""A Tuned whose trained numbers are named tensors: counted, and saved and loaded strictly in the adapter format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glora.adapt.adapter_format import Numbers, fingerprint, read_numbers, write_numbers
from glora.adapt.float_head import FloatHead
from glora.adapt.float_numbers import FloatNumbers, low_types
from glora.adapt.head import alike, fits_head, head_of, show_head
from glora.adapt.statistics import BaseBuffers, freeze_statistics, statistics_of
from glora.errors import AdapterFileError, listed
from glora.methods.method import Method, Tuned

__all__ = ["TunedNumbers"]


class TunedNumbers(Tuned):
    """A model of which some named parameters are trained: its own, or those of modules that a method has added.

    Everything else is frozen, but the head. What they do to the model is the subclass's.

    Args:
        method: The settings, which travel with the file.
        model: The model as it is played.
        numbers: Name -> parameter trained and counted. A parameter of the model has its name there.
        head: Names of the modules trained whole.
        statistics: Train running statistics outside the head and save them; otherwise they stay as they are.

    Raises:
        AdapterFileError: In `load`, where the file is of another method, other settings or another base.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        numbers: Mapping[str, nn.Parameter],
        head: Sequence[str],
        *,
        statistics: bool = False,
    ) -> None:
        self.method = method
        self.model = model
        self.numbers = dict(numbers)
        self.head = tuple(head)
        self.statistics = statistics
        types = low_types(self.parameters())
        frozen: list[Any] = [] if statistics else freeze_statistics(model, head)
        rounded_head, rounded = FloatHead(model, head), FloatNumbers(model, types, head)
        self._hooks = [*frozen, BaseBuffers(model, head), rounded, rounded_head]
        self.notes = (*self.notes, *rounded.notes)
        model.requires_grad_(False)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        own = {id(parameter) for parameter in self.numbers.values()}
        heads = (p for name in self.head for p in self.model.get_submodule(name).parameters())
        return [*self.numbers.values(), *(p for p in heads if id(p) not in own)]

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.numbers.values())

    def save(self, path: str | Path, info: Mapping[str, Any], *, base_fingerprint: str | None = None) -> None:
        write_numbers(
            path,
            Numbers(
                self.method.model_dump(mode="json"),
                {name: parameter.detach() for name, parameter in self.numbers.items()},
                head_of(self.model, self.head),
                self._statistics(),
                self.head,
                base_fingerprint or self.base_fingerprint(),
                dict(info),
            ),
        )

    def base_fingerprint(self) -> str:
        """The hash of all that the file does not hold."""
        return fingerprint(self.model, (*self.head, *self.numbers, *self._statistics()))

    def load(self, path: str | Path, *, base_fingerprint: str | None = None) -> None:
        found = read_numbers(path)
        self._check(path, found, base_fingerprint)
        with torch.no_grad():
            for name, value in found.tensors.items():
                self.numbers[name].copy_(value)
            for name, value in self._statistics().items():
                value.copy_(found.statistics[name])
        show_head(self.model, found.head)

    def merged(self) -> nn.Module:
        for hook in self._hooks:
            hook.remove()
        self.model.requires_grad_(True)
        return self.model

    def _statistics(self) -> dict[str, Tensor]:
        return statistics_of(self.model, self.head) if self.statistics else {}

    def _check(self, path: str | Path, found: Numbers, base_fingerprint: str | None) -> None:
        """Raises AdapterFileError unless the file fits this model and method."""
        own = self.method.model_dump(mode="json")
        if differing := sorted(key for key in {*own, *found.method} if own.get(key) != found.method.get(key)):
            there = listed(f"{key}={found.method.get(key)!r}" for key in differing)
            raise AdapterFileError(
                f"{path} is of other settings: {there}.",
                allowed=f"Here: {', '.join(f'{key}={own.get(key)!r}' for key in differing)}.",
                remedy="Load it with glora.load_adapter, which takes the file's own settings.",
            )
        mine: dict[str, Tensor] = {**self.numbers, **self._statistics()}
        theirs = found.tensors | found.statistics
        odd = sorted(mine.keys() ^ theirs.keys()) + [
            name
            for name in mine.keys() & theirs.keys()
            if mine[name].shape != theirs[name].shape or not alike(mine[name].dtype, theirs[name].dtype)
        ]
        heads = set(head_of(self.model, self.head)) ^ set(found.head)
        heads |= {
            name for name in found.head if name not in heads and not fits_head(self.model, name, found.head[name])
        }
        if odd or heads:
            raise AdapterFileError(
                f"{path} is of another model: {listed([*odd, *sorted(heads)])} do not fit.",
                remedy="Build the base it was trained on.",
            )
        if (base_fingerprint or self.base_fingerprint()) != found.base:
            raise AdapterFileError(
                f"{path} was trained on another base: the weights of this {type(self.model).__name__} differ.",
                allowed="Architecture, pretrained weights, input size and dtype must be those of its training.",
                remedy="Build the base it was trained on.",
            )
