"""The weight-entangled supernet: sample a subnet for a step, hold one for scoring; several on one base."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from glora.adapted import Adapted
from glora.genotype import Genotype
from glora.state import AdapterState

__all__ = ["StoredSupernet", "Supernet", "copied", "on_cpu"]


class Supernet:
    """An adapted model of which every training step plays one genotype, drawn uniformly.

    Args:
        adapted: The adapted model; all genotypes of its space share its numbers.

    Source: arXiv 2306.07967, Sec. 2.3.
    """

    def __init__(self, adapted: Adapted) -> None:
        self.adapted = adapted

    def sample(self, rng: random.Random) -> Genotype:
        """Draws a genotype for the next step and activates it; equal generators give equal steps."""
        genotype = self.adapted.sample(rng)
        self.adapted.activate(genotype)
        return genotype

    def hold(self, genotype: Genotype) -> AbstractContextManager[nn.Module]:
        """Within it the model plays the genotype with its effective weights built once."""
        return self.adapted.hold(genotype)


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
