"""The nouns of a search: what is asked for, how it scored, what was found; and what a searcher is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from glora.genotype import Genotype
from glora.space import BoundSpace

__all__ = ["Candidate", "Origin", "Score", "SearchResult", "Searcher", "Trial", "pareto_front"]

Origin = Literal["random", "mutation", "crossover"]


class Score(NamedTuple):
    """How good a genotype is: higher is better; NaN counts as the worst.

    Attributes:
        value: Such as an accuracy in [0, 1], or a negative loss.
        standard_error: Of the value, in its unit.
    """

    value: float
    standard_error: float = 0.0


class Candidate(NamedTuple):
    """What a searcher asks for.

    Attributes:
        genome: The index of every support tensor's choice among its options.
        parameters: Trainable numbers.
        origin: How it was made.
        parent: Number of the trial it was made from; None for a random one.
    """

    genome: tuple[int, ...]
    parameters: int
    origin: Origin = "random"
    parent: int | None = None


@dataclass(frozen=True)
class Trial:
    """One scored genotype.

    Attributes:
        number: Its place in the order of asking, from 0.
        genome: The index of every support tensor's choice among its options.
        parameters: Trainable numbers, without the head.
        score: Its score, on the examples it has seen.
        generation: The ask it came from, from 0.
        origin: `"random"`, `"mutation"` or `"crossover"`.
        parent: Number of the trial it was made from, or None.
        space: The space that the genome belongs to.
        seconds: Time that its score took.
        seen: Share of the examples it was scored on; below 1 it has left a race.
    """

    number: int
    genome: tuple[int, ...] = field(repr=False)
    parameters: int
    score: Score
    generation: int
    origin: Origin
    parent: int | None
    space: BoundSpace = field(repr=False, compare=False)
    seconds: float = field(default=0.0, compare=False)
    seen: float = 1.0

    @property
    def genotype(self) -> Genotype:
        """Site name -> LayerConfig; decoded on every call, since a large search has many."""
        return self.space.decode(self.genome)

    @property
    def rank(self) -> tuple[bool, float, int, int]:
        """The sort key that puts the best first: ties go to the smaller genotype, then to the older.

        What has left a race is behind all that was scored on every example.
        """
        return self.seen < 1, -self.score.value, self.parameters, self.number


class Searcher(Protocol):
    """Asks for the genomes of the next generation and is told their scores.

    It is built as `cls(pool, cls.Settings(...))`; `Settings` is a frozen dataclass that checks itself. The same
    generator in the pool and the same scores give the same asks.

    Attributes:
        elite: Number of best trials that it looks at; None when others matter too, so that none may leave a race.
    """

    Settings: ClassVar[type[Any]]
    elite: int | None

    def ask(self) -> list[Candidate]:
        """The next generation, none seen before; empty when the search is done."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take in the trials of all that was asked last."""
        ...


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: The trial with the highest score; ties go to the smaller genotype, then to the older.
        trials: Every trial, in the order of asking.
        front: The trials that no other beats in both score and trainable numbers, smallest first.
    """

    best: Trial
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]


def pareto_front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials that no other beats in both score and trainable numbers, smallest first; of equals the oldest.

    A trial that diverged or has left a race is never among them.
    """
    front, best = list[Trial](), -math.inf
    for trial in sorted(trials, key=lambda trial: (trial.parameters, *trial.rank)):
        if trial.seen == 1 and trial.score.value > best:
            front.append(trial)
            best = trial.score.value
    return tuple(front)
