"""What a searcher is: it asks for candidates, is told how they scored, and brings a model of its settings.

To add a searcher, write one file with a class like `glora.searchers.evolution.Evolution` and its settings, and add one
line to `glora.searchers.table.SEARCHERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from typing_extensions import Self

from glora.searchers.trials import Origin, Trial
from glora.settings import Settings

__all__ = ["Candidate", "Searcher", "SearcherSettings", "small_generation"]

GENERATIONS = 5  # a search that learns from its scores has at least so many, the first included


def small_generation(population: int, candidates: int, most: int) -> int:
    """The size of a generation where at most so many are scored: the population, or less, so that there are several.

    Args:
        population: Genotypes of a generation.
        candidates: How many are scored in all, where nothing limits them.
        most: How many may be.
    """
    return population if candidates <= most else max(1, min(population, most // GENERATIONS))


class Candidate(NamedTuple):
    """A genome that a searcher wants scored.

    Attributes:
        genome: The option index of every gene.
        parameters: Trainable numbers, without the head.
        origin: How the genome was made.
        parent: Number of the trial it was made from; None for a random one.
    """

    genome: tuple[int, ...]
    parameters: int
    origin: Origin = "random"
    parent: int | None = None


class SearcherSettings(Settings, strict=True):
    """The base of every searcher's settings. Values must have the right type: `"50"` and True are no whole numbers.

    A subclass has a field `name`, a Literal with the searcher's name in the table; a description for every other
    field; and `candidates`, a field or a property: how many genotypes are scored at most. A setting `legalize` says
    how a budget is kept, see `glora.searchers.operators.GenomeSampler`; without it, it is kept by repair.
    """

    races: ClassVar[bool] = False  # whether candidates race where the user does not say

    if TYPE_CHECKING:

        @property
        def candidates(self) -> int: ...

    def shaped(self, most: int) -> Self:
        """Settings that suit a search of at most so many full scores: with generations that are small enough for it."""
        return self

    def resolved(self) -> dict[str, Any]:
        """The values in force by name, without `name`. A journal keeps them and refuses to go on with others."""
        return self.model_dump(exclude={"name"})


class Searcher(Protocol):
    """Chooses what is scored, a generation at a time. It never sees a model.

    It is built as `cls(sampler, cls.Settings(...))` with a `glora.searchers.operators.GenomeSampler`, which holds the
    random generator and keeps the budget. The same seed and the same scores must give the same candidates: a search
    that was killed is replayed from its journal.

    Attributes:
        top_k: Number of best trials that decide what is asked next, so that all others may be eliminated from a race;
            None when other trials matter too.
    """

    Settings: ClassVar[type[Any]]
    top_k: int | None

    def ask(self) -> list[Candidate]:
        """The next generation, no genome twice in a search; empty when the search is done."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take in the trials of all candidates of the last `ask`."""
        ...
