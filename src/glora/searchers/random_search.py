"""Random search: the control that every other searcher must beat at equal cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from glora.errors import ConfigError
from glora.searchers import Candidate, Trial
from glora.searchers.operators import Pool
from glora.space import BoundSpace

__all__ = ["RandomSearch", "RandomSettings"]


@dataclass(frozen=True)
class RandomSettings:
    """The settings of `random`.

    Attributes:
        candidates: Number of genotypes; the default is as many as the paper's evolution scores.
    """

    candidates: int = 1_050

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, int) or self.candidates < 1:
            raise ConfigError(f"candidates={self.candidates!r} is not allowed.", allowed="A whole number >= 1.")


class RandomSearch:
    """Genotypes drawn uniformly, repaired into the budget, none twice, all asked at once.

    Args:
        space: The search space.
        budget: Most trainable numbers; None for no limit.
        min_budget: Fewest trainable numbers.
        settings: See `RandomSettings`.
        rng: Where the randomness comes from.

    Raises:
        BudgetError: No genotype keeps the budget.
    """

    Settings: ClassVar = RandomSettings

    def __init__(
        self, space: BoundSpace, *, budget: int | None, min_budget: int, settings: RandomSettings, rng: random.Random
    ) -> None:
        self.left = settings.candidates
        self.pool = Pool(space.costs, budget, min_budget, rng)

    def ask(self) -> list[Candidate]:
        """All candidates, fewer when the space has fewer; empty the second time."""
        asked: list[Candidate] = []
        while len(asked) < self.left and (fresh := self.pool.draw()):
            asked.append(Candidate(*fresh))
        self.left = 0
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing is learned."""
