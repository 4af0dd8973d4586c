"""Random search: the control that every other searcher must beat at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from glora.errors import whole
from glora.searchers.operators import Pool
from glora.searchers.trials import Candidate, Trial

__all__ = ["RandomSearch", "RandomSettings"]

GROUP = 50  # as many as a generation of the paper's evolution


@dataclass(frozen=True)
class RandomSettings:
    """The settings of `random`.

    Attributes:
        candidates: Number of genotypes; the default is as many as the paper's evolution scores.
    """

    candidates: int = 1_050

    def __post_init__(self) -> None:
        whole(self.candidates, "candidates", least=1)


class RandomSearch:
    """Random genotypes within the budget, none twice, in groups: the later ones race against what is known by then.

    Args:
        pool: Where genomes and randomness come from.
        settings: See `RandomSettings`.
    """

    Settings: ClassVar = RandomSettings
    elite = 10  # the best few may be scored again

    def __init__(self, pool: Pool, settings: RandomSettings) -> None:
        self.pool = pool
        self.left = settings.candidates

    def ask(self) -> list[Candidate]:
        """The next group, smaller at the end or when the space has fewer; empty when there is none."""
        asked: list[Candidate] = []
        while len(asked) < min(GROUP, self.left) and (fresh := self.pool.draw()):
            asked.append(Candidate(*fresh))
        self.left -= len(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing is learned."""
