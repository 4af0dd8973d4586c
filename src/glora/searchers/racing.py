"""Racing: candidates are scored on growing pieces of the examples and eliminated when they cannot win any more."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, NamedTuple

from glora.errors import ConfigError, whole, within
from glora.searchers.jobs import Job, RunJobs
from glora.searchers.trials import Score

__all__ = ["Race", "Raced", "Racing", "is_eliminated", "mean_score"]

GROWTH = 150  # per cent: the examples seen after a piece, of those seen before it
ORDERED_BY = 10  # candidates, the best so far, whose differences order the examples
RULE = "examples by spread"  # written in journals: a race by another rule does not go on


class Raced(NamedTuple):
    """A candidate's score: on the share of the examples that it has seen, which is 1 unless it was eliminated."""

    number: int
    score: Score
    seconds: float
    seen: float = 1.0


@dataclass(frozen=True)
class Racing:
    """How candidates race.

    Attributes:
        examples: Number of examples that the score function knows.
        level: In (0, 0.5]: how easily a candidate is eliminated; the larger, the cheaper. While the examples are
            shuffled it is the level of a one-sided test. Once they are ordered it sets the width of a margin, see
            `is_eliminated`.
        first: Number of examples of the first piece; every further piece adds half as many as were seen before.
    """

    examples: int
    level: float = 0.05
    first: int = 10

    def __post_init__(self) -> None:
        whole(self.examples, "examples", least=1)
        whole(self.first, "first", least=2)  # a test needs a spread
        within(self.level, "level", 0, 0.5)
        if not self.level:
            raise ConfigError(
                "level=0 is not allowed.",
                allowed="A number above 0: at 0 no candidate is eliminated.",
                remedy="Switch racing off instead.",
            )

    def pieces(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """The examples' indices, cut into pieces."""
        ends = [0, min(self.first, self.examples)]
        while ends[-1] < self.examples:
            ends.append(min(GROWTH * ends[-1] // 100, self.examples))
        return [tuple(order[begin:end]) for begin, end in pairwise(ends)]


class Race:
    """Scores one generation after another; the best candidates of earlier ones are compared with, but not scored again.

    After every piece each candidate is compared, on the examples seen so far, with the `top_k`-th best of all that are
    not eliminated, and is eliminated when it is too far behind. The others see every example. All candidates of a
    generation see the same pieces. At first the examples are shuffled. As soon as enough candidates have seen all of
    them, those come first on which the best candidates differ most: good candidates agree on most examples, and a few
    decide.

    Args:
        racing: How candidates race.
        top_k: Number of best candidates that must not be lost.
        seed: Shuffles the examples.
    """

    def __init__(self, racing: Racing, top_k: int, seed: int) -> None:
        self.racing = racing
        self.top_k = top_k
        self.rng = random.Random(f"race {seed}")
        self.best: list[dict[int, float]] = []  # example -> value, of the best that have seen every example
        self.spread: dict[int, float] | None = None  # example -> variance over these; None while they are too few

    def run(self, genotypes: Mapping[int, Any], run_jobs: RunJobs) -> Iterator[Raced]:
        """The score of every candidate, as soon as it is eliminated or has seen every example."""
        values: dict[int, dict[int, float]] = {number: {} for number in genotypes}  # of those not eliminated
        seconds = dict.fromkeys(genotypes, 0.0)
        for piece, indices in enumerate(self.racing.pieces(self._order())):
            for job, found, took in run_jobs([Job(number, genotypes[number], piece, indices) for number in values]):
                assert isinstance(found, list)
                values[job.number].update(zip(indices, found, strict=True))
                seconds[job.number] += took
            for number in self._eliminated(values):
                seen = values.pop(number).values()
                yield Raced(number, mean_score(seen), seconds[number], len(seen) / self.racing.examples)
        yield from (Raced(number, mean_score(row.values()), seconds[number]) for number, row in values.items())
        ranked = sorted([*self.best, *values.values()], key=lambda row: _mean(row.values()), reverse=True)
        self.best = ranked[: max(self.top_k, ORDERED_BY)]

    def _order(self) -> list[int]:
        """The examples, those first on which the best differ most; shuffled where that is not known."""
        examples = self.rng.sample(range(self.racing.examples), self.racing.examples)
        known = [row for row in self.best[:ORDERED_BY] if math.isfinite(_mean(row.values()))]
        self.spread = None
        if len(known) >= ORDERED_BY:
            spread = {index: _variance([row[index] for row in known]) for index in examples}
            examples.sort(key=lambda index: -spread[index])
            self.spread = spread
        return examples

    def _eliminated(self, values: Mapping[int, dict[int, float]]) -> list[int]:
        """The numbers of those that are too far behind; none once all examples are seen, or when all are needed."""
        seen = list(next(iter(values.values()), ()))
        best = self.best[: self.top_k]
        if len(seen) in (0, self.racing.examples) or len(best) + len(values) < self.top_k:
            return []
        racers = {number: [row[index] for index in seen] for number, row in values.items()}
        everyone = [*([row[index] for index in seen] for row in best), *racers.values()]
        last_needed = sorted(everyone, key=_mean, reverse=True)[self.top_k - 1]
        unseen = None
        if self.spread is not None:
            unseen = math.fsum(self.spread[index] for index in self.spread.keys() - set(seen))
        return [number for number, row in racers.items() if is_eliminated(row, last_needed, self.racing, unseen)]


def is_eliminated(values: Sequence[float], rival: Sequence[float], racing: Racing, unseen: float | None = None) -> bool:
    """Whether a candidate is so far behind its rival that the examples not seen cannot be expected to make up for it.

    Where the examples seen are a random part of all, this is a one-sided paired test. The standard error of the mean
    difference is corrected for the share that was seen (Cochran, "Sampling Techniques", 3rd edition, 1977, Eq. 2.20):
    it is 0 once all are seen. Where the examples seen are those on which good candidates differ most, nothing is
    extrapolated from them: the examples not seen get a margin, z times the root of `unseen`. That is a heuristic and
    no test, since the candidate is not one of those that the variances come from and its examples are not
    independent. `docs/background/racing.md` measures what is lost by it.

    Args:
        values: The candidate's values on the examples seen so far, at least 2.
        rival: The values on the same examples of the candidate that it must reach.
        racing: Level of the test and number of all examples.
        unseen: Variance of the sum over the examples not seen; None where the examples seen are a random part.
    """
    if math.isinf(_mean(values)):
        return math.isfinite(_mean(rival))
    gaps = [theirs - own for own, theirs in zip(values, rival, strict=True)]
    gap, error = mean_score(gaps)
    if unseen is None:
        error *= math.sqrt(1 - len(values) / racing.examples)
    else:
        error = math.sqrt(unseen) / len(values)
    return gap > NormalDist().inv_cdf(1 - racing.level) * error


def mean_score(values: Collection[float]) -> Score:
    """The mean of the values with its standard error; the worst score when one is not finite."""
    n, mean = len(values), _mean(values)
    if n < 2 or math.isinf(mean):
        return Score(mean)
    return Score(mean, math.sqrt(_variance(values) / n))


def _variance(values: Collection[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _mean(values: Collection[float]) -> float:
    """The mean, exactly rounded: it does not depend on the order of the pieces."""
    return math.fsum(values) / len(values)
