"""Random search and its settings: the control that every other searcher must beat at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from glora.searchers.operators import GenomeSampler
from glora.searchers.searcher import Candidate, SearcherSettings
from glora.searchers.trials import Trial

__all__ = ["RandomSearch", "RandomSettings"]

GENERATION = 50  # as many as in a generation of the paper's evolution


class RandomSettings(SearcherSettings):
    """The settings of `random`; by default it scores as many genotypes as the paper's evolution."""

    races: ClassVar[bool] = True

    name: Literal["random"] = "random"
    candidates: int = Field(1_050, ge=1, description="Genotypes scored at most.")


class RandomSearch:
    """Random genotypes within the budget, none twice.

    They come in generations only because of racing: later ones race against the best of the earlier ones.

    Args:
        sampler: Gives legal genomes.
        settings: See `RandomSettings`.
    """

    Settings: ClassVar = RandomSettings
    top_k = 10  # nothing is learned, but the best few may be scored again after the search

    def __init__(self, sampler: GenomeSampler, settings: RandomSettings) -> None:
        self.sampler = sampler
        self.left = settings.candidates

    def ask(self) -> list[Candidate]:
        """The next generation, smaller when fewer genotypes are left; empty when there is none."""
        asked: list[Candidate] = []
        while len(asked) < min(GENERATION, self.left) and (fresh := self.sampler.sample()):
            asked.append(Candidate(*fresh))
        self.left -= len(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing is learned."""
