"""Operators on genomes (draw, mutate, cross, repair into a budget) and the sampler that searchers build on.

A genome is a tuple of option indices, one per gene; `costs[gene][option]` are the trainable numbers of an option.
Nothing here knows a genotype or a model.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from glora.errors import BudgetError

__all__ = ["Budget", "Genome", "GenomeSampler", "crossover", "mutate", "random_genome", "repair", "wheels"]

Genome = tuple[int, ...]
Costs = Sequence[Sequence[int]]
Wheel = tuple[float, ...]  # a roulette wheel: cumulative probabilities of a gene's options, without the last 1

STEEPEST = 50.0  # a tilt at which every gene takes its cheapest option: counts are whole numbers
KICKS = 16  # tries of a repair; random steps come before each but the first, twice as many every time
PROBES = 10_000  # genes repaired before a narrow budget counts as impossible
REDRAWS = 1_000  # refused random genomes in a row, after which rejection gives up or the space counts as exhausted
ENUMERABLE = 100_000  # a space of at most this many genotypes is listed when random draws find nothing new
IMMENSE = 10**12  # genomes: as many as anybody asks for can be drawn


def random_genome(wheels: Sequence[Wheel], rng: random.Random) -> Genome:
    """A genome drawn gene by gene, each from its wheel."""
    draw = rng.random
    return tuple([bisect(wheel, draw()) for wheel in wheels])


def mutate(genome: Genome, wheels: Sequence[Wheel], probability: float, rng: random.Random) -> Genome:
    """The genome with every gene drawn anew with the given probability; a new draw may give the old option."""
    draw = rng.random
    genes = zip(genome, wheels, strict=True)
    return tuple([bisect(wheel, draw()) if draw() < probability else gene for gene, wheel in genes])


def crossover(first: Genome, second: Genome, rng: random.Random) -> Genome:
    """The child of two genomes: every gene from one of them, by a fair coin."""
    draw = rng.random
    return tuple([a if draw() < 0.5 else b for a, b in zip(first, second, strict=True)])


class Budget:
    """How many trainable numbers a genome may have.

    Args:
        costs: Trainable numbers of every option of every gene.
        budget: Most trainable numbers; None for no limit.
        min_budget: Fewest trainable numbers.

    Attributes:
        low, high: The fewest and the most that are allowed.
        smallest, largest: The fewest and the most that any genome of the space has.

    Raises:
        BudgetError: No genome keeps the budget; the message has the smallest and largest possible count.
    """

    def __init__(self, costs: Costs, budget: int | None = None, min_budget: int = 0) -> None:
        self.costs = costs
        self.smallest = sum(map(min, costs))
        self.largest = sum(map(max, costs))
        self.low = min_budget
        self.high = self.largest if budget is None else budget
        if self.high < self.smallest:
            raise self.error(f"budget={self.high:,} is below the smallest genotype.")
        if budget is not None and min_budget > budget:
            raise self.error(f"min_budget={min_budget:,} is above budget={budget:,}.")
        if self.low > self.largest:
            raise self.error(f"min_budget={self.low:,} is above the largest genotype.")
        if self.distance(self.smallest) and self.distance(self.largest):
            rng, near = random.Random(0), wheels(self)  # between two counts there may be no genome at all
            if not any(repair(random_genome(near, rng), self, rng) for _ in range(2 + PROBES // len(costs))):
                raise self.error(f"No genotype was found with between {self.low:,} and {self.high:,} numbers.")

    def count(self, genome: Sequence[int]) -> int:
        """Trainable numbers of the genome."""
        return sum([options[gene] for options, gene in zip(self.costs, genome, strict=True)])

    def distance(self, count: int) -> int:
        """How far the count is outside the budget; 0 inside."""
        return max(self.low - count, count - self.high, 0)

    def error(self, cause: str) -> BudgetError:
        """A BudgetError with the smallest and the largest possible count."""
        return BudgetError(
            cause,
            allowed=f"The smallest genotype has {self.smallest:,} trainable numbers, the largest {self.largest:,}.",
            remedy="Change budget or min_budget, or what the space offers: ranks, variant, targets.",
        )


def wheels(budget: Budget) -> list[Wheel]:
    """For every gene, the roulette wheel that draws its option: uniform where the mean count then keeps the budget.

    Otherwise an option of cost c has a probability proportional to exp(-tilt c), with the tilt that puts the mean
    count on the nearest edge of the budget. Of all distributions with this mean it has the largest entropy, and it is
    nearly the distribution of uniform genomes that are drawn until one keeps the budget.
    """
    tables = Counter(map(tuple, budget.costs))

    def mean(tilt: float) -> float:
        return sum(
            genes * chance * cost
            for options, genes in tables.items()
            for chance, cost in zip(_chances(options, tilt), options, strict=True)
        )

    tilt, uniform = 0.0, mean(0.0)
    if not budget.low <= uniform <= budget.high:
        edge = budget.high if uniform > budget.high else budget.low
        below, above = -STEEPEST, STEEPEST
        for _ in range(60):
            tilt = (below + above) / 2
            below, above = (tilt, above) if mean(tilt) > edge else (below, tilt)
    known = {options: tuple(itertools.accumulate(_chances(options, tilt)))[:-1] for options in tables}
    return [known[tuple(options)] for options in budget.costs]


def _chances(options: Sequence[int], tilt: float) -> list[float]:
    """Probabilities proportional to exp(-tilt cost)."""
    lightest = min(tilt * cost for cost in options)
    weights = [math.exp(lightest - tilt * cost) for cost in options]
    return [weight / sum(weights) for weight in weights]


def repair(genome: Genome, budget: Budget, rng: random.Random) -> tuple[Genome, int] | None:
    """The genome changed until it keeps the budget, and its count; None when no way was found.

    Random genes take random options that bring the count nearer, one at a time, until it fits. Then every changed
    gene that can take its old option again does, so that as much as possible is kept.

    Args:
        genome: Any genome of the space; one that keeps the budget comes back as it is.
        budget: The allowed counts.
        rng: Where the randomness comes from.
    """
    genes, count = list(genome), budget.count(genome)
    moved: dict[int, None] = {}
    for kick in range(KICKS):
        for _ in range(min(2**kick, len(genes)) if kick else 0):  # out of a dead end before a narrow budget
            gene = rng.randrange(len(genes))
            old, new = genes[gene], rng.randrange(len(budget.costs[gene]))
            count += budget.costs[gene][new] - budget.costs[gene][old]
            genes[gene], moved[gene] = new, None
        count = _approach(genes, count, budget, moved, rng)
        if not budget.distance(count):
            break
    if budget.distance(count):
        return None
    for gene in moved:
        back = count + budget.costs[gene][genome[gene]] - budget.costs[gene][genes[gene]]
        if not budget.distance(back):
            genes[gene], count = genome[gene], back
    return tuple(genes), count


def _approach(genes: list[int], count: int, budget: Budget, moved: dict[int, None], rng: random.Random) -> int:
    """Changes random genes in place, each so that the count comes nearer to the budget; returns the new count.

    It ends when the budget is kept or no gene can bring the count nearer. Every change gains at least the mean of what
    all genes together must gain, so that genes are not changed for a few numbers each.
    """
    draw, before = rng.random, -1
    while count != before:
        before, free = count, list(range(len(genes)))
        while free and (far := budget.distance(count)):
            place = int(draw() * len(free))
            gene = free[place]
            options = budget.costs[gene]
            rest, reach = count - options[genes[gene]], far - max(1, far // len(genes))
            nearer = [option for option, cost in enumerate(options) if budget.distance(rest + cost) <= reach]
            if nearer:
                genes[gene] = nearer[int(draw() * len(nearer))]
                count = rest + options[genes[gene]]
                moved[gene] = None
            else:
                free[place] = free[-1]
                free.pop()
    return count


class GenomeSampler:
    """Gives every searcher its genomes: legal ones, none twice.

    Args:
        costs: Trainable numbers of every option of every gene.
        budget: Most trainable numbers; None for no limit.
        min_budget: Fewest trainable numbers.
        rng: Where the randomness comes from.
        legalize: `"repair"` draws options with probabilities that suit the budget and changes a genome that is still
            outside; `"reject"` draws options uniformly and refuses a genome that is outside.

    Attributes:
        wheels: The probabilities that genes are drawn with, for mutations too.
        seen: All genomes given so far.

    Raises:
        BudgetError: No genome keeps the budget.
    """

    def __init__(
        self,
        costs: Costs,
        budget: int | None,
        min_budget: int,
        rng: random.Random,
        *,
        legalize: Literal["repair", "reject"] = "repair",
    ) -> None:
        self.budget = Budget(costs, budget, min_budget)
        self.rng = rng
        self.legalize = legalize
        self._budget_wheels = wheels(self.budget)
        self.wheels = wheels(Budget(costs)) if legalize == "reject" else self._budget_wheels
        self.seen: set[Genome] = set()
        self._remaining: list[tuple[Genome, int]] | None = None  # of a small space, once it is listed

    def accept(self, genome: Genome) -> tuple[Genome, int] | None:
        """The genome in its legal form and its count, now marked as seen; None when refused or seen before."""
        if self.legalize == "repair":
            return self._unseen(repair(genome, self.budget, self.rng))
        count = self.budget.count(genome)
        return None if self.budget.distance(count) else self._unseen((genome, count))

    def sample(self) -> tuple[Genome, int] | None:
        """A random legal genome not seen before and its count; None when there is none left.

        Under `reject`, after 1,000 refusals, it is drawn as under `repair`: the authors' loop would not end.
        """
        for _ in range(REDRAWS if self._remaining is None else 0):
            if fresh := self.accept(random_genome(self.wheels, self.rng)):
                return fresh
        if self._size <= ENUMERABLE:
            return self._listed()
        for _ in range(REDRAWS if self.legalize == "reject" else 0):
            if fresh := self._unseen(repair(random_genome(self._budget_wheels, self.rng), self.budget, self.rng)):
                return fresh
        return None

    def can_sample(self, n: int) -> bool:
        """Whether `n` more genomes can be drawn. It draws them, except in a very large space, where it is certain."""
        return self._size > IMMENSE or all(self.sample() for _ in range(n))

    @property
    def _size(self) -> int:
        return math.prod(map(len, self.budget.costs))

    def _listed(self) -> tuple[Genome, int] | None:
        """The next legal genome of a small space, listed once and shuffled."""
        if self._remaining is None:
            every = itertools.product(*map(range, map(len, self.budget.costs)))
            counted = [(genome, self.budget.count(genome)) for genome in every]
            self._remaining = [pair for pair in counted if not self.budget.distance(pair[1])]
            self.rng.shuffle(self._remaining)
        while self._remaining:
            if fresh := self._unseen(self._remaining.pop()):
                return fresh
        return None

    def _unseen(self, legal: tuple[Genome, int] | None) -> tuple[Genome, int] | None:
        """The same, now marked as seen; None when it was seen before."""
        if legal is None or legal[0] in self.seen:
            return None
        self.seen.add(legal[0])
        return legal
