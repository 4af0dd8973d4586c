"""NSGA-II and its settings: one search for the whole front of score against trainable numbers.

"Deb" below is Deb, Pratap, Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II",
IEEE Transactions on Evolutionary Computation 6(2), 2002.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from glora.searchers.operators import GenomeSampler, crossover, mutate
from glora.searchers.searcher import Candidate, SearcherSettings, small_generation
from glora.searchers.trials import Trial

__all__ = ["NSGA2", "NSGA2Settings", "crowding_distances", "nondominated_fronts"]

Point = tuple[float, float]  # two objectives, smaller is better

CROSSOVER = 0.9  # probability that a child has two parents: Deb's simulations
TRIES = 10  # per child wanted


class NSGA2Settings(SearcherSettings):
    """The settings of `nsga2`; by default as many genotypes are scored as by `evolution`: 50 + 20 * 50 = 1,050."""

    name: Literal["nsga2"] = "nsga2"
    population: int = Field(50, ge=1, description="Survivors of a generation, and children per generation.")
    generations: int = Field(20, ge=0, description="Generations after the first, random one.")
    mutation_probability: float | None = Field(
        None, ge=0, le=1, description="Of drawing each gene anew; 1 / (genes with a choice) if not given."
    )
    legalize: Literal["repair", "reject"] = Field(
        "repair", description="How a budget is kept: 'repair' moves genotypes into it, 'reject' refuses them."
    )

    @property
    def candidates(self) -> int:
        """How many genotypes are scored at most."""
        return self.population * (1 + self.generations)

    def shaped(self, most: int) -> NSGA2Settings:
        """Smaller generations, so that there are several."""
        return self.model_copy(update={"population": small_generation(self.population, self.candidates, most)})


class _Member(NamedTuple):
    """A survivor and its place in the crowded-comparison order (Deb, Sec. III-C): the smaller key is better."""

    trial: Trial
    rank: int
    crowding: float

    @property
    def key(self) -> tuple[int, float]:
        return self.rank, -self.crowding


class NSGA2:
    """The best front of score against trainable numbers survives; its children come from crowded tournaments.

    The budget is not an objective: the sampler keeps every child inside it, so that constrained domination is not
    needed.

    Departures from Deb: the first generation has the smallest and the largest genotype beside random ones, whose
    sizes are all much alike in a large space; no genotype is scored twice (a child seen before is made again, and
    random genotypes fill the generation up); of trials with equal objectives all but one have crowding distance 0,
    so that ties crowd nothing out; a diverged trial (score -inf) never survives.

    Args:
        sampler: Gives legal genomes and randomness.
        settings: See `NSGA2Settings`.

    Source: Deb, Sec. III.
    """

    Settings: ClassVar = NSGA2Settings
    top_k = None  # a low score may be the best of its size

    def __init__(self, sampler: GenomeSampler, settings: NSGA2Settings) -> None:
        self.sampler = sampler
        self.settings = settings
        choices = sum(len(options) > 1 for options in sampler.budget.costs)
        given = settings.mutation_probability
        self.mutation_probability = 1 / max(1, choices) if given is None else given
        self.members: list[_Member] = []
        self.generation = 0

    def ask(self) -> list[Candidate]:
        """The next generation; empty after the last, or when every legal genotype was scored."""
        asked = list[Candidate]()
        if self.generation > self.settings.generations:
            return asked
        wanted = self.settings.population
        for candidate in self._children(TRIES * wanted) if self.members else self._extremes():
            asked.append(candidate)
            if len(asked) == wanted:
                break
        while len(asked) < wanted and (fresh := self.sampler.sample()):
            asked.append(Candidate(*fresh))
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """The best of parents and children together survive (Deb, Sec. III-D: elitist, mu + lambda)."""
        self.members = _survivors([*(member.trial for member in self.members), *trials], self.settings.population)
        self.generation += 1

    def _extremes(self) -> Iterator[Candidate]:
        """The smallest and the largest genotype, in their legal forms."""
        for end in (min, max):
            genome = tuple([options.index(end(options)) for options in self.sampler.budget.costs])
            if fresh := self.sampler.accept(genome):
                yield Candidate(*fresh)

    def _children(self, tries: int) -> Iterator[Candidate]:
        """Tournament, crossover, mutation (Deb, Sec. III-D); a try that makes a genome seen before gives no child."""
        for _ in range(tries):
            parent = self._tournament()
            genome = parent.genome
            crossed = self.sampler.rng.random() < CROSSOVER
            if crossed:
                genome = crossover(genome, self._tournament().genome, self.sampler.rng)
            genome = mutate(genome, self.sampler.wheels, self.mutation_probability, self.sampler.rng)
            if fresh := self.sampler.accept(genome):
                yield Candidate(*fresh, "crossover" if crossed else "mutation", parent.number)

    def _tournament(self) -> Trial:
        """Of two random members the better in the crowded-comparison order (Deb, Sec. III-C and III-D)."""
        first, second = self.sampler.rng.choice(self.members), self.sampler.rng.choice(self.members)
        return min(first, second, key=lambda member: member.key).trial


def nondominated_fronts(points: Sequence[Point]) -> list[list[int]]:
    """The indices of the first front, which no other point dominates, of the second, once the first is gone, ...

    A point dominates another when it is no worse in both objectives and better in one.

    Args:
        points: Two objectives each, smaller is better.

    Source: fronts as in Deb, Sec. III-A, by the two-objective sweep of M. T. Jensen, "Reducing the run-time
        complexity of multiobjective EAs", IEEE Transactions on Evolutionary Computation 7(5), 2003.
    """
    fronts: list[list[int]] = []
    least: list[float] = []  # of every front the least second objective so far; it never falls from front to front
    for index in sorted(range(len(points)), key=points.__getitem__):
        # All before are no worse in the first objective: a front dominates when it is no worse in the second either.
        place = bisect_right(least, points[index][1])
        if place and points[fronts[place - 1][-1]] == points[index]:
            place -= 1  # equal points do not dominate each other
        if place == len(fronts):
            fronts.append([])
            least.append(math.inf)
        fronts[place].append(index)
        least[place] = points[index][1]
    return fronts


def crowding_distances(points: Sequence[Point]) -> list[float]:
    """How far apart the neighbours of every point of a front are: the more, the lonelier; inf at both ends.

    Args:
        points: One front; of equal points the first is measured and the others get 0.

    Source: Deb, Sec. III-B, "crowding-distance-assignment".
    """
    distances = [0.0] * len(points)
    firsts = list({point: index for index, point in reversed(list(enumerate(points)))}.values())
    for objective in (0, 1):
        order = sorted(firsts, key=lambda index: points[index][objective])  # I = sort(I, m)
        values = [points[index][objective] for index in order]
        distances[order[0]] = distances[order[-1]] = math.inf  # I[1] = I[l] = infinity
        span = values[-1] - values[0]  # f_m^max - f_m^min
        if 0 < span < math.inf:
            for place in range(1, len(order) - 1):  # I[i] += (I[i+1].m - I[i-1].m) / span
                distances[order[place]] += (values[place + 1] - values[place - 1]) / span
    return distances


def _survivors(trials: Iterable[Trial], wanted: int) -> list[_Member]:
    """The best trials: whole fronts while they fit, of the next one the loneliest (Deb, Sec. III-D, main loop)."""
    able = [trial for trial in trials if trial.score.value > -math.inf]
    points = [(-trial.score.value, float(trial.parameters)) for trial in able]
    kept: list[_Member] = []
    for rank, front in enumerate(nondominated_fronts(points)):
        distances = crowding_distances([points[index] for index in front])
        members = [_Member(able[index], rank, distance) for index, distance in zip(front, distances, strict=True)]
        if len(kept) + len(members) > wanted:
            members.sort(key=lambda member: (member.key, member.trial.number))
        kept += members[: wanted - len(kept)]
        if len(kept) == wanted:
            break
    return kept
