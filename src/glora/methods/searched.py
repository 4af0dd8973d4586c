"""Named numbers that several genotypes share: what NOAH and PFT have in common with each other and not with GLoRA."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from glora.adapt.adapter_format import Numbers, read_method, write_numbers
from glora.adapt.head import head_of
from glora.errors import AdapterFileError
from glora.genes import GeneSpace, Option, PlainGenotype
from glora.methods.method import Method, Polish
from glora.methods.numbers import TunedNumbers

__all__ = ["Searched", "TunedShared"]


class Searched(Method):
    """The base of methods whose supernet plays a genotype drawn uniformly at every step, and whose winner is retrained.

    The file of a winner has its genotype among the method's settings, and no numbers but its own.
    """

    least: ClassVar[float] = 0.0  # as the authors, who limit the numbers from above alone

    genotype: dict[str, dict[str, Option]] | None = Field(
        None, description="Train this genotype alone and search nothing: row -> column -> option, as in winner.json."
    )

    def load(self, model: nn.Module, path: str | Path, *, base_fingerprint: str | None = None) -> TunedNumbers:
        found = read_method(path)
        one = found.method.get("genotype")
        method = self if self.genotype is not None or one is None else self.alone(one)
        tuned = method.apply(model, head=found.head_modules, seed=0)
        assert isinstance(tuned, TunedNumbers)
        tuned.load(path, base_fingerprint=base_fingerprint)
        return tuned

    def alone(self, genotype: Mapping[str, Mapping[str, Option]]) -> Searched:
        """The same settings with one genotype."""
        try:
            return self.model_validate({**self.model_dump(), "genotype": dict(genotype)})
        except (TypeError, ValueError) as error:
            raise AdapterFileError(f"The genotype of the file is damaged: {error}.", remedy="Copy it again.") from error

    @property
    def polish(self) -> Polish:
        """The winner is trained anew, from the pretrained weights."""
        return Polish("base", 0.0 if self.genotype is not None else 1.0, 1.0)


class TunedShared(TunedNumbers):
    """A supernet of named numbers: several genotypes read parts of them; or one genotype of it, alone.

    A subclass says what a genotype changes (`play`), which part of every number it reads (`part`), and how all that it
    adds to the base is made stronger (`strengthen`).

    Args:
        method: The settings.
        model: The model as it is played.
        numbers: Name -> parameter trained and counted; of one genotype its own alone.
        head: Names of the modules trained whole.
        genes: The space.
    """

    def __init__(
        self,
        method: Searched,
        model: nn.Module,
        numbers: Mapping[str, nn.Parameter],
        head: Sequence[str],
        genes: GeneSpace,
    ) -> None:
        super().__init__(method, model, numbers, head)
        self.settings = method
        self.genes = genes
        self.activate(genes.largest if method.genotype is None else PlainGenotype(method.genotype))

    @abstractmethod
    def play(self, genotype: PlainGenotype) -> None:
        """Makes the model play a genotype of the space."""

    @abstractmethod
    def part(self, name: str, value: Tensor, genotype: PlainGenotype) -> Tensor | None:
        """What the genotype reads of a number of the supernet, as a view; None: nothing."""

    @abstractmethod
    def strengthen(self, factor: float) -> None: ...

    @property
    def space(self) -> GeneSpace | None:
        return self.genes if self.settings.genotype is None and self.genes.size > 1 else None

    @property
    def summary(self) -> str:
        if self.space is None:
            return super().summary
        low, high = self.genes.count(self.genes.smallest), self.genes.count(self.genes.largest)
        what = f"{len(self.genes.rows)} {self.genes.row}s"
        return f"{what}: 10^{self.genes.log10_size:.1f} genotypes of {low:,} to {high:,} trainable numbers"

    def before_step(self, rng: random.Random, positions: Sequence[int], batch_size: int, done: float) -> None:
        if self.space is not None:  # one genotype a batch, drawn uniformly, as the authors do
            self.activate(self.genes.sample(rng))

    @property
    def playing(self) -> list[Any]:
        return [self.active] if self.space is not None else []

    def count(self) -> int:
        return self.genes.count(self.active)

    def activate(self, genotype: Mapping[str, Mapping[str, Option]]) -> None:
        self.genes.encode(genotype)  # raises SpaceError where it is not of the space
        self.active = genotype if isinstance(genotype, PlainGenotype) else PlainGenotype(genotype)
        self.play(self.active)

    @contextmanager
    def hold(self, genotype: PlainGenotype) -> Iterator[nn.Module]:
        before = self.active
        self.activate(genotype)
        try:
            yield self.model
        finally:
            self.activate(before)

    def parts(self) -> dict[str, Tensor]:
        """The numbers that the active genotype reads, by name, as views."""
        every = {name: self.part(name, value.detach(), self.active) for name, value in self.numbers.items()}
        return {name: value for name, value in every.items() if value is not None}

    def save_winner(self, path: str | Path, info: Mapping[str, Any], *, base_fingerprint: str | None = None) -> None:
        if self.space is None:
            self.save(path, info, base_fingerprint=base_fingerprint)
            return
        method = self.settings.alone(self.active.to_json())
        write_numbers(
            path,
            Numbers(
                method.model_dump(mode="json"),
                self.parts(),
                head_of(self.model, self.head),
                {},
                self.head,
                base_fingerprint or self.base_fingerprint(),
                dict(info),
            ),
        )

    @torch.no_grad()
    def alone(self, model: nn.Module) -> TunedShared:
        one = self.settings.alone(self.active.to_json()).apply(model, head=self.head, seed=0)
        assert isinstance(one, TunedShared)
        mine = self.parts()
        assert mine.keys() == one.numbers.keys()
        one.restore({**mine, **head_of(self.model, self.head)})
        return one

    def snapshot(self, *, cpu: bool = False) -> dict[str, Tensor]:
        every = {**self.numbers, **head_of(self.model, self.head)}
        copies = {name: value.detach().clone() for name, value in every.items()}
        return {name: value.cpu() for name, value in copies.items()} if cpu else copies

    @torch.no_grad()
    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        for name, value in {**self.numbers, **head_of(self.model, self.head)}.items():
            value.copy_(snapshot[name])
