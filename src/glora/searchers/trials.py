"""What a search produces: trials with their scores, the best of them, and the front of score against size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from glora import registry
from glora.searchers.space import Space

__all__ = ["Origin", "Score", "SearchResult", "Trial", "pareto_front"]

Origin = Literal["random", "mutation", "crossover"]


class Score(NamedTuple):
    """How good a genotype is: higher is better; NaN counts as the worst.

    Attributes:
        value: Such as an accuracy in [0, 1], or a negative loss.
        standard_error: Of the value, in its unit.
    """

    value: float
    standard_error: float = 0.0


@dataclass(frozen=True)
class Trial:
    """One scored genotype.

    Attributes:
        number: Its place in the order of asking, from 0.
        genome: The option index of every gene.
        parameters: Trainable numbers, without the head.
        score: Its score, on the examples it has seen.
        generation: The generation it was asked in, from 0.
        origin: `"random"`, `"mutation"` or `"crossover"`.
        parent: Number of the trial it was made from, or None.
        space: The space that the genome belongs to.
        seconds: Time that its score took.
        seen: Share of the examples it was scored on, in (0, 1]; below 1 it was eliminated from a race.
    """

    number: int
    genome: tuple[int, ...] = field(repr=False)
    parameters: int
    score: Score
    generation: int
    origin: Origin
    parent: int | None
    space: Space = field(repr=False, compare=False)
    seconds: float = field(default=0.0, compare=False)
    seen: float = 1.0

    @property
    def genotype(self) -> Any:
        """What the score function was called with; decoded on every call, since a large search has many trials."""
        return self.space.decode(self.genome)

    @property
    def rank(self) -> tuple[bool, float, int, int]:
        """The sort key that puts the best first: ties go to the smaller genotype, then to the older.

        A trial that was eliminated from a race comes after all that were scored on every example.
        """
        return self.seen < 1, -self.score.value, self.parameters, self.number


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: The trial with the highest score; ties go to the smaller genotype, then to the older.
        trials: Every trial, in the order of asking.
        front: The trials that no other beats in both score and trainable numbers, smallest first.
        finished: Whether the search came to its end; False after its time limit.
    """

    best: Trial
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    finished: bool = True

    def to_pandas(self) -> Any:
        """A DataFrame with a row per trial, in the order of asking; see `glora.searchers.frame.trials_frame`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return registry.load("glora.searchers.frame:trials_frame")(self.trials, self.front)


def pareto_front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials that no other beats in both score and trainable numbers, smallest first; of equals the oldest.

    Trials that diverged or were eliminated from a race are left out.
    """
    front, best = list[Trial](), -math.inf
    for trial in sorted(trials, key=lambda trial: (trial.parameters, *trial.rank)):
        if trial.seen == 1 and trial.score.value > best:
            front.append(trial)
            best = trial.score.value
    return tuple(front)
