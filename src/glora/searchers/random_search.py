"""Random search: the control that every other searcher must beat at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from glora.errors import whole
from glora.searchers.operators import Pool
from glora.searchers.trials import Candidate, Trial

__all__ = ["RandomSearch", "RandomSettings"]


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
    """Random genotypes within the budget, none twice, all asked at once.

    Args:
        pool: Where genomes and randomness come from.
        settings: See `RandomSettings`.
    """

    Settings: ClassVar = RandomSettings
    elite = 1

    def __init__(self, pool: Pool, settings: RandomSettings) -> None:
        self.pool = pool
        self.left = settings.candidates

    def ask(self) -> list[Candidate]:
        """All candidates, fewer when the space has fewer; empty the second time."""
        asked: list[Candidate] = []
        while len(asked) < self.left and (fresh := self.pool.draw()):
            asked.append(Candidate(*fresh))
        self.left = 0
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing is learned."""
