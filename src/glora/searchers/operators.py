"""Genomes from genomes: draw, mutate, cross, repair. Integers only, no genotype and no model.

A genome has five genes per site, each the index of an option; `costs[gene][option]` are its trainable numbers.
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

__all__ = ["Genome", "Pool", "Window", "crossover", "mutate", "random_genome", "repair", "wheels"]

Genome = tuple[int, ...]
Costs = Sequence[Sequence[int]]
Wheel = tuple[float, ...]  # of a gene: the cumulative probabilities of its options, without the last, which is 1

STEEPEST = 50.0  # a tilt at which every gene takes its cheapest option: counts are whole numbers
KICKS = 16  # tries of a repair; before each one random steps, twice as many as the last time
PROBES = 10_000  # genes repaired before a narrow window counts as empty
REDRAWS = 1_000  # refused random genomes in a row: rejection gives up, or the space counts as exhausted
ENUMERABLE = 100_000  # a space of at most this many genotypes is listed rather than guessed
IMMENSE = 10**12


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


class Window:
    """The counts that are allowed.

    Args:
        costs: Trainable numbers of every option of every gene.
        budget: Most trainable numbers; None for no limit.
        min_budget: Fewest trainable numbers.

    Raises:
        BudgetError: No genome has so many or so few; the message has the smallest and largest possible count.
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
            rng, near = random.Random(0), wheels(self)  # a narrow window may have no genome at all
            if not any(repair(random_genome(near, rng), self, rng) for _ in range(2 + PROBES // len(costs))):
                raise self.error(f"No genotype was found with between {self.low:,} and {self.high:,} numbers.")

    def count(self, genome: Sequence[int]) -> int:
        """Trainable numbers of the genome."""
        return sum([options[gene] for options, gene in zip(self.costs, genome, strict=True)])

    def distance(self, count: int) -> int:
        """How far the count is outside of what is allowed; 0 inside."""
        return max(self.low - count, count - self.high, 0)

    def error(self, cause: str) -> BudgetError:
        """A BudgetError with the smallest and the largest possible count."""
        return BudgetError(
            cause,
            allowed=f"The smallest genotype has {self.smallest:,} trainable numbers, the largest {self.largest:,}.",
            remedy="Change budget or min_budget, or the ranks, variant or targets of the space.",
        )


def wheels(window: Window) -> list[Wheel]:
    """For every gene the wheel it is drawn from: a uniform one where uniform genomes have the right mean count.

    Otherwise an option of cost c has a probability proportional to exp(-tilt c), with the tilt at which the mean
    count is the window's nearest edge: of all distributions with this mean the one of the largest entropy, and
    nearly that of uniform genomes drawn until one is in the window.
    """
    tables = Counter(map(tuple, window.costs))

    def mean(tilt: float) -> float:
        return sum(
            genes * chance * cost
            for options, genes in tables.items()
            for chance, cost in zip(_chances(options, tilt), options, strict=True)
        )

    tilt, uniform = 0.0, mean(0.0)
    if not window.low <= uniform <= window.high:
        edge = window.high if uniform > window.high else window.low
        below, above = -STEEPEST, STEEPEST
        for _ in range(60):
            tilt = (below + above) / 2
            below, above = (tilt, above) if mean(tilt) > edge else (below, tilt)
    known = {options: tuple(itertools.accumulate(_chances(options, tilt)))[:-1] for options in tables}
    return [known[tuple(options)] for options in window.costs]


def _chances(options: Sequence[int], tilt: float) -> list[float]:
    """Probabilities proportional to exp(-tilt cost)."""
    lightest = min(tilt * cost for cost in options)
    weights = [math.exp(lightest - tilt * cost) for cost in options]
    return [weight / sum(weights) for weight in weights]


def repair(genome: Genome, window: Window, rng: random.Random) -> tuple[Genome, int] | None:
    """The genome moved into the window, and its count; None when no way was found.

    Random genes move to random options that bring the count nearer, one at a time, until it fits. Then every moved
    gene that can go back within the window does, so that as much as possible is kept.

    Args:
        genome: Any genome of the space; one inside the window comes back as it is.
        window: The allowed counts.
        rng: Where the randomness comes from.
    """
    genes, count = list(genome), window.count(genome)
    moved: dict[int, None] = {}
    for kick in range(KICKS):
        for _ in range(min(2**kick, len(genes)) if kick else 0):  # out of a dead end before a narrow window
            gene = rng.randrange(len(genes))
            old, new = genes[gene], rng.randrange(len(window.costs[gene]))
            count += window.costs[gene][new] - window.costs[gene][old]
            genes[gene], moved[gene] = new, None
        count = _approach(genes, count, window, moved, rng)
        if not window.distance(count):
            break
    if window.distance(count):
        return None
    for gene in moved:
        back = count + window.costs[gene][genome[gene]] - window.costs[gene][genes[gene]]
        if not window.distance(back):
            genes[gene], count = genome[gene], back
    return tuple(genes), count


def _approach(genes: list[int], count: int, window: Window, moved: dict[int, None], rng: random.Random) -> int:
    """The count after moving random genes in place, each nearer to the window, until it is inside or none can.

    A move gains at least the mean of what all genes together must gain, so that cheap choices are not spent in vain.
    """
    draw, before = rng.random, -1
    while count != before:
        before, free = count, list(range(len(genes)))
        while free and (far := window.distance(count)):
            place = int(draw() * len(free))
            gene = free[place]
            options = window.costs[gene]
            rest, reach = count - options[genes[gene]], far - max(1, far // len(genes))
            nearer = [option for option, cost in enumerate(options) if window.distance(rest + cost) <= reach]
            if nearer:
                genes[gene] = nearer[int(draw() * len(nearer))]
                count = rest + options[genes[gene]]
                moved[gene] = None
            else:
                free[place] = free[-1]
                free.pop()
    return count


class Pool:
    """Legal genomes, none twice: what every searcher draws its candidates from.

    Args:
        costs: Trainable numbers of every option of every gene.
        budget: Most trainable numbers; None for no limit.
        min_budget: Fewest trainable numbers.
        rng: Where the randomness comes from.
        legalize: `"repair"` draws genes that suit the window and moves what is still outside into it; `"reject"`
            draws them uniformly and refuses what is outside.

    Raises:
        BudgetError: No genome is in the window.
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
        self.window = Window(costs, budget, min_budget)
        self.rng = rng
        self.legalize = legalize
        self.near = wheels(self.window)
        self.wheels = wheels(Window(costs)) if legalize == "reject" else self.near
        self.seen: set[Genome] = set()
        self._rest: list[tuple[Genome, int]] | None = None

    def admit(self, genome: Genome) -> tuple[Genome, int] | None:
        """The genome in its legal form and its count, now marked as seen; None when refused or seen before."""
        if self.legalize == "repair":
            return self._unseen(repair(genome, self.window, self.rng))
        count = self.window.count(genome)
        return None if self.window.distance(count) else self._unseen((genome, count))

    def draw(self) -> tuple[Genome, int] | None:
        """A random legal genome not seen before and its count; None when there is none left.

        Under `reject`, after 1,000 refusals, it is drawn as under `repair`: the authors' loop would not end.
        """
        for _ in range(REDRAWS if self._rest is None else 0):
            if fresh := self.admit(random_genome(self.wheels, self.rng)):
                return fresh
        if self._size <= ENUMERABLE:
            return self._listed()
        for _ in range(REDRAWS if self.legalize == "reject" else 0):
            if fresh := self._unseen(repair(random_genome(self.near, self.rng), self.window, self.rng)):
                return fresh
        return None

    def has(self, n: int) -> bool:
        """Whether so many more can be drawn; in a very large space they are not, and it counts as having them."""
        return self._size > IMMENSE or all(self.draw() for _ in range(n))

    @property
    def _size(self) -> int:
        return math.prod(map(len, self.window.costs))

    def _listed(self) -> tuple[Genome, int] | None:
        """The next legal genome of a small space, listed once and shuffled."""
        if self._rest is None:
            every = itertools.product(*map(range, map(len, self.window.costs)))
            counted = [(genome, self.window.count(genome)) for genome in every]
            self._rest = [pair for pair in counted if not self.window.distance(pair[1])]
            self.rng.shuffle(self._rest)
        while self._rest:
            if fresh := self._unseen(self._rest.pop()):
                return fresh
        return None

    def _unseen(self, legal: tuple[Genome, int] | None) -> tuple[Genome, int] | None:
        if legal is None or legal[0] in self.seen:
            return None
        self.seen.add(legal[0])
        return legal
