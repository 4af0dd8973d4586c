"""Racing: candidates are scored on growing pieces of the examples and leave when they cannot win any more."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

from glora.errors import ConfigError, whole, within
from glora.genotype import Genotype
from glora.searchers.measure import Job, Measure
from glora.searchers.trials import Score

__all__ = ["Outcome", "Race", "Racing", "leaves", "mean_score"]


GROWTH = 150  # of the number of examples seen, in per cent
KNOWN = 10  # of the best so far, by which the examples are ordered
RULE = "examples by spread"  # races by another rule do not go on


class Outcome(NamedTuple):
    """What came out for one candidate."""

    number: int
    score: Score
    seconds: float
    seen: float = 1.0


@dataclass(frozen=True)
class Racing:
    """How a race goes.

    Attributes:
        examples: Number of examples that the score function knows.
        level: In (0, 0.5]: how easily a candidate leaves. The larger, the cheaper. While the examples are shuffled it
            is the level of a one-sided test; once they are ordered it sets the width of a margin, see `leaves`.
        first: Number of examples of the first piece; with every further one half as many again are seen.
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
                "level=0 is not allowed.", allowed="A number above 0: at 0 nobody leaves; switch racing off."
            )

    def pieces(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """The examples' indices, cut into pieces."""
        ends = [0, min(self.first, self.examples)]
        while ends[-1] < self.examples:
            ends.append(min(GROWTH * ends[-1] // 100, self.examples))
        return [tuple(order[begin:end]) for begin, end in pairwise(ends)]


class Race:
    """Scores generation after generation; the best so far run along.

    After every piece each candidate is compared with the `elite`-th best of all that is still in, on the examples
    seen so far, and leaves when the test says that it is behind. Who is still in at the end has seen every example.
    The candidates of a generation share their pieces. In the first the examples are shuffled; as soon as enough
    candidates have seen all, those come first on which the best of these differ most: on most examples good candidates
    agree, and a few decide.

    Args:
        racing: How the race goes.
        elite: Number of best candidates that matter.
        seed: Shuffles the examples.
    """

    def __init__(self, racing: Racing, elite: int, seed: int) -> None:
        self.racing = racing
        self.elite = elite
        self.rng = random.Random(f"race {seed}")
        self.best: list[dict[int, float]] = []  # of the best that have seen every example, the value of each
        self.spread: dict[int, float] | None = None  # variance of each example over these; None: not known yet

    def run(self, genotypes: Mapping[int, Genotype], measure: Measure) -> Iterator[Outcome]:
        """The outcome of every candidate, as soon as it has left or has seen every example."""
        rows: dict[int, dict[int, float]] = {number: {} for number in genotypes}
        seconds = dict.fromkeys(genotypes, 0.0)
        for piece, indices in enumerate(self.racing.pieces(self._order())):
            for done in measure([Job(number, genotypes[number], piece, indices) for number in rows]):
                assert isinstance(done.found, list)
                rows[done.job.number].update(zip(indices, done.found, strict=True))
                seconds[done.job.number] += done.seconds
            for number in self._leaving(rows):
                seen = rows.pop(number).values()
                yield Outcome(number, mean_score(seen), seconds[number], len(seen) / self.racing.examples)
        yield from (Outcome(number, mean_score(row.values()), seconds[number]) for number, row in rows.items())
        ranked = sorted([*self.best, *rows.values()], key=lambda row: _mean(row.values()), reverse=True)
        self.best = ranked[: max(self.elite, KNOWN)]

    def _order(self) -> list[int]:
        """The examples, those first on which the best differ most; shuffled where that is not known."""
        examples = self.rng.sample(range(self.racing.examples), self.racing.examples)
        known = [row for row in self.best[:KNOWN] if math.isfinite(_mean(row.values()))]
        self.spread = None
        if len(known) >= KNOWN:
            spread = {index: _variance([row[index] for row in known]) for index in examples}
            examples.sort(key=lambda index: -spread[index])
            self.spread = spread
        return examples

    def _leaving(self, rows: Mapping[int, dict[int, float]]) -> list[int]:
        """Who leaves: nobody when all examples are seen, or when there is room for all."""
        seen = list(next(iter(rows.values()), ()))
        best = self.best[: self.elite]
        if len(seen) in (0, self.racing.examples) or len(best) + len(rows) < self.elite:
            return []
        runners = {number: [row[index] for index in seen] for number, row in rows.items()}
        field = [*([row[index] for index in seen] for row in best), *runners.values()]
        mark = sorted(field, key=_mean, reverse=True)[self.elite - 1]
        unseen = None
        if self.spread is not None:
            unseen = math.fsum(self.spread[index] for index in self.spread.keys() - set(seen))
        return [number for number, row in runners.items() if leaves(row, mark, self.racing, unseen)]


def leaves(row: Sequence[float], mark: Sequence[float], racing: Racing, unseen: float | None = None) -> bool:
    """Whether the candidate is too far behind the mark for the examples not seen to give it back.

    Where the examples seen are a random part of all, by a one-sided paired test: the standard error of the mean
    difference is corrected for that part (Cochran, "Sampling Techniques", 3rd edition, 1977, Eq. 2.20), and is 0 where
    all are seen. Where they are those that good candidates differ on most, nothing is extrapolated from them, and the
    others are given a margin, z times the root of `unseen`. That is a heuristic and no test: the candidate is not one
    of those that the variances are of, and its examples are not independent (measured: docs/background/racing.md).

    Args:
        row: The candidate's values on the examples seen so far, at least 2.
        mark: The values on the same examples of the one to reach.
        racing: Level of the test and number of all examples.
        unseen: Variance of the sum over the examples not seen; None where the examples seen are a random part.
    """
    if math.isinf(_mean(row)):
        return math.isfinite(_mean(mark))
    gaps = [theirs - mine for mine, theirs in zip(row, mark, strict=True)]
    gap, error = mean_score(gaps)
    if unseen is None:
        error *= math.sqrt(1 - len(row) / racing.examples)
    else:
        error = math.sqrt(unseen) / len(row)
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
    """Exactly rounded, so that no order of the pieces changes it."""
    return math.fsum(values) / len(values)
