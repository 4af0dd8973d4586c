"""Which weights score which images: in the plain split one supernet, with folds each what it did not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from glora.adapted import Adapted
from glora.checkpoint import load_supernet
from glora.data import ImageSet
from glora.data.known import Known
from glora.genotype import Genotype
from glora.runfolder import RunFolder
from glora.scoring import Recipe, score_of, values_of
from glora.searchers import Score
from glora.sheet import joined
from glora.state import AdapterState
from glora.supernet import Supernet
from glora.train import Evaluation, evaluate

__all__ = ["FoldRecipe", "FoldScorer", "Part", "StoredSupernet", "copied", "load_parts", "on_cpu"]


class StoredSupernet(Supernet):
    """One of several supernets on the same base: its numbers are put in place whenever it is held.

    Args:
        adapted: The adapted model that all of them share.
        state: The numbers of this one.
    """

    def __init__(self, adapted: Adapted, state: AdapterState) -> None:
        super().__init__(adapted)
        self.state = state

    def put(self) -> None:
        """Its numbers are those of the adapted model."""
        self.adapted.load_state(self.state)

    @contextmanager
    def hold(self, genotype: Genotype) -> Iterator[nn.Module]:
        self.put()
        with self.adapted.hold(genotype) as model:
            yield model


class Part(NamedTuple):
    """Images and the supernet that scores them."""

    supernet: Supernet
    images: ImageSet


def copied(adapted: Adapted) -> AdapterState:
    """All numbers of the supernet, its head and running statistics as they are now."""
    return _each(adapted.state(whole=True), torch.clone)


def on_cpu(state: AdapterState) -> AdapterState:
    """The same numbers where any other process can read them."""
    return _each(state, Tensor.cpu)


def _each(state: AdapterState, change: Callable[[Tensor], Tensor]) -> AdapterState:
    tensors, head, statistics = (
        {name: change(value) for name, value in part.items()} for part in (state.tensors, state.head, state.statistics)
    )
    return replace(state, tensors=tensors, head=head, statistics=statistics)


def load_parts(adapted: Adapted, known: Known, folder: RunFolder) -> tuple[tuple[Part, ...], StoredSupernet]:
    """The parts of val with the supernets that score them, and the supernet whose weights the winner plays.

    Its numbers are in place afterwards.

    Raises:
        RunError: A supernet is not trained yet.
        AdapterFileError: A file is damaged, or of another base.
    """
    folders = [folder.fold(place) for place in range(len(known.folds))]
    for each in (*folders, folder):
        each.need(each.supernet, f"glora train --out {folder.path}")
    stored: list[StoredSupernet] = []
    for each in (*folders, folder):
        load_supernet(adapted, each.supernet)
        stored.append(StoredSupernet(adapted, copied(adapted)))
    scoring: list[Supernet] = [*stored[:-1]] or [Supernet(adapted)]
    return tuple(map(Part, scoring, known.scoring)), stored[-1]


class FoldScorer:
    """Scores a genotype on all parts of val together, each part by its own supernet.

    Args:
        parts: The images and their supernets.
        fitness: `"loss"` (the score is its negative) or `"accuracy"`.
        accelerator: Device, precision and processes.
        batch_size: Images per forward pass.
    """

    def __init__(self, parts: Sequence[Part], *, fitness: str, accelerator: Accelerator, batch_size: int) -> None:
        self.parts = tuple(parts)
        self.fitness = fitness
        self.accelerator = accelerator
        self.batch_size = batch_size

    def __call__(self, genotype: Genotype, indices: Sequence[int] | None = None) -> Score | list[float]:
        """The genotype's score with its standard error, higher is better; for some images one value each.

        The images are numbered part after part.
        """
        if indices is None:
            return score_of(self.evaluation(genotype), self.fitness)
        values: dict[int, float] = {}
        start = 0
        for part in self.parts:
            mine = [index for index in indices if start <= index < start + len(part.images)]
            if mine:
                found = self.on(part, genotype, [index - start for index in mine])
                values |= dict(zip(mine, values_of(found, self.fitness), strict=True))
            start += len(part.images)
        return [values[index] for index in indices]

    def evaluation(self, genotype: Genotype) -> Evaluation:
        """What the genotype does on every image of val, part after part."""
        return joined(self.on(part, genotype) for part in self.parts)

    def on(self, part: Part, genotype: Genotype, indices: Sequence[int] | None = None) -> Evaluation:
        """What the genotype does on the images of one part, or on some of them."""
        how: dict[str, Any] = {"accelerator": self.accelerator, "batch_size": self.batch_size, "indices": indices}
        with part.supernet.hold(genotype) as model:
            return evaluate(model, part.images, **how)


@dataclass(frozen=True)
class FoldRecipe:
    """How a worker makes a `FoldScorer` of its own.

    Attributes:
        recipe: How it makes the network.
        states: The numbers of each fold's supernet.
        scoring: The images that each scores.
    """

    recipe: Recipe
    states: tuple[AdapterState, ...]
    scoring: tuple[ImageSet, ...]

    def build(self) -> FoldScorer:
        """The scorer, in this process; what a fold changes is its own, the base is shared."""
        one = self.recipe.build()
        adapted = one.supernet.adapted
        for tensor in (*adapted.parameters(), *adapted.model.buffers()):
            tensor.data = tensor.data.clone()
        stored = [StoredSupernet(adapted, state) for state in self.states]
        how: dict[str, Any] = {"fitness": one.fitness, "accelerator": one.accelerator, "batch_size": one.batch_size}
        return FoldScorer(tuple(map(Part, stored, self.scoring)), **how)
