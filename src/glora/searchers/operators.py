"""Genomes from genomes: draw, mutate, cross, repair. Integers only, no genotype and no model.

A genome has five genes per site, each the index of an option; `costs[gene][option]` are its trainable numbers.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Literal

from glora.errors import BudgetError

__all__ = ["Genome", "Pool", "Window", "crossover", "mutate", "random_genome", "repair"]

Genome = tuple[int, ...]
Costs = Sequence[Sequence[int]]
GeneMoves = tuple[tuple[tuple[int, int], ...], ...]  # option -> the cheaper (or costlier) options and the change
Moves = list[GeneMoves]

ROUNDS = 40  # of walks down and up before a repair gives up
PROBES = 100  # repairs tried before a narrow window counts as empty
REDRAWS = 1_000  # legal random genomes met in a row that were all seen: the space is counted as exhausted
ENUMERABLE = 100_000  # a space of at most this many genotypes is listed rather than guessed


def random_genome(sizes: Sequence[int], rng: random.Random) -> Genome:
    """A genome drawn uniformly, every gene on its own.

    Args:
        sizes: Number of options per gene.
        rng: Where the randomness comes from.
    """
    draw = rng.random
    return tuple([int(draw() * size) for size in sizes])


def mutate(genome: Genome, sizes: Sequence[int], probability: float, rng: random.Random) -> Genome:
    """The genome with every gene drawn anew with the given probability; a new draw may give the old option.

    Args:
        genome: The parent.
        sizes: Number of options per gene.
        probability: Of drawing a gene anew, in [0, 1].
        rng: Where the randomness comes from.
    """
    if probability <= 0:
        return genome
    genes, draw = list(genome), rng.random
    scale = 1 / math.log1p(-probability) if probability < 1 else 0.0
    gene = -1
    while True:
        gene += 1 + int(math.log1p(-draw()) * scale)  # the genes kept in between are geometrically distributed
        if gene >= len(genes):
            return tuple(genes)
        genes[gene] = int(draw() * sizes[gene])


def crossover(first: Genome, second: Genome, rng: random.Random) -> Genome:
    """The child of two genomes: every gene from one of them, by a fair coin."""
    coins = f"{rng.getrandbits(len(first)):0{len(first)}b}"
    return tuple([a if coin == "1" else b for a, b, coin in zip(first, second, coins, strict=True)])


class Window:
    """The counts that are allowed, and for every gene the options that lead down or up.

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
        known = {options: _moves(options) for options in set(map(tuple, costs))}
        self.cheaper: Moves = [known[tuple(options)][0] for options in costs]
        self.costlier: Moves = [known[tuple(options)][1] for options in costs]
        self._probe()

    def count(self, genome: Sequence[int]) -> int:
        """Trainable numbers of the genome."""
        return sum([options[gene] for options, gene in zip(self.costs, genome, strict=True)])

    def error(self, cause: str) -> BudgetError:
        """A BudgetError with the smallest and the largest possible count."""
        return BudgetError(
            cause,
            allowed=f"The smallest genotype has {self.smallest:,} trainable numbers, the largest {self.largest:,}.",
            remedy="Change budget or min_budget, or the ranks, variant or targets of the space.",
        )

    def _probe(self) -> None:
        if self.low <= self.largest <= self.high or self.low <= self.smallest <= self.high:
            return
        rng, sizes = random.Random(0), list(map(len, self.costs))
        if not any(repair(random_genome(sizes, rng), self, rng) for _ in range(PROBES)):
            raise self.error(f"No genotype was found with between {self.low:,} and {self.high:,} trainable numbers.")


def _moves(options: tuple[int, ...]) -> tuple[GeneMoves, GeneMoves]:
    """For every option the cheaper and the costlier ones, each with the change in numbers."""
    every = list(enumerate(options))
    down = tuple(tuple((new, old - cost) for new, cost in every if cost < old) for old in options)
    up = tuple(tuple((new, cost - old) for new, cost in every if cost > old) for old in options)
    return down, up


def repair(genome: Genome, window: Window, rng: random.Random) -> tuple[Genome, int] | None:
    """The genome moved into the window, and its count; None when no way was found.

    Random genes move to random cheaper (or costlier) options, one at a time, until the count fits. Then every
    moved gene that can go back within the window does, so that as much as possible is kept.

    Args:
        genome: Any genome of the space; one inside the window comes back as it is.
        window: The allowed counts.
        rng: Where the randomness comes from.
    """
    count, width = window.count(genome), window.high - window.low
    if window.low <= count <= window.high:
        return genome, count
    genes = list(genome)
    moved: dict[int, None] = {}
    for _ in range(ROUNDS):
        if count > window.high:
            count = window.high + _walk(genes, count - window.high, width, window.cheaper, moved, rng)
        elif count < window.low:
            count = window.low - _walk(genes, window.low - count, width, window.costlier, moved, rng)
        else:
            break
    if not window.low <= count <= window.high:
        return None
    low, high = window.low - count, window.high - count  # what the count may still change by
    for gene in moved:
        options, old = window.costs[gene], genome[gene]
        change = options[old] - options[genes[gene]]
        if low <= change <= high:
            genes[gene] = old
            count, low, high = count + change, low - change, high - change
    return tuple(genes), count


def _walk(genes: list[int], excess: int, width: int, moves: Moves, moved: dict[int, None], rng: random.Random) -> int:
    """What is left of the excess (0 or less: inside) after moving random genes in place, one at a time.

    A move that would leave the window on its other side is made only when no other is left, and once.
    """
    draw = rng.random
    free = [gene for gene, option in enumerate(genes) if moves[gene][option]]
    left = len(free)
    past: list[tuple[int, int, int]] = []
    while left and excess > 0:
        place = draw() * left
        slot = int(place)
        gene = free[slot]
        options = moves[gene][genes[gene]]
        new, change = options[int((place - slot) * len(options))]  # the fraction is a second random number
        if change > excess + width:
            inside = [option for option in options if option[1] <= excess + width]
            if not inside:
                past.append((gene, new, change))
                left -= 1
                free[slot] = free[left]
                continue
            new, change = inside[int(draw() * len(inside))]
        genes[gene] = new
        excess -= change
        moved[gene] = None
        if not moves[gene][new]:
            left -= 1
            free[slot] = free[left]
    if past and excess > 0:
        gene, new, change = past[int(draw() * len(past))]
        genes[gene] = new
        excess -= change
        moved[gene] = None
    return excess


class Pool:
    """Legal genomes, none twice: what every searcher draws its candidates from.

    Args:
        costs: Trainable numbers of every option of every gene.
        budget: Most trainable numbers; None for no limit.
        min_budget: Fewest trainable numbers.
        rng: Where the randomness comes from.
        legalize: `"repair"` moves a genome that is out of the window into it; `"reject"` refuses it.

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
        self.sizes = list(map(len, costs))
        self.rng = rng
        self.legalize = legalize
        self.seen: set[Genome] = set()

    def admit(self, genome: Genome) -> tuple[Genome, int] | None:
        """The genome in its legal form and its count, now marked as seen; None when refused or seen before."""
        if self.legalize == "reject":
            count = self.window.count(genome)
            legal = (genome, count) if self.window.low <= count <= self.window.high else None
        else:
            legal = repair(genome, self.window, self.rng)
        return self._unseen(legal)

    def draw(self) -> tuple[Genome, int] | None:
        """A random legal genome not seen before and its count; None when there is none left.

        A genome is drawn uniformly, then repaired. Under `reject` it is drawn again, and after 1,000 refusals
        repaired: the authors' loop would not end.
        """
        for attempt in range(2 * REDRAWS):
            genome = random_genome(self.sizes, self.rng)
            if attempt < REDRAWS:
                fresh = self.admit(genome)
            else:
                fresh = self._unseen(repair(genome, self.window, self.rng))
            if fresh:
                return fresh
            if attempt >= REDRAWS // 10 and self._enumerable:
                return self._listed()
        return None

    @property
    def _enumerable(self) -> bool:
        return math.prod(self.sizes) <= ENUMERABLE

    def _listed(self) -> tuple[Genome, int] | None:
        left = [
            (genome, count)
            for genome in itertools.product(*map(range, self.sizes))
            if self.window.low <= (count := self.window.count(genome)) <= self.window.high and genome not in self.seen
        ]
        return self._unseen(self.rng.choice(left)) if left else None

    def _unseen(self, legal: tuple[Genome, int] | None) -> tuple[Genome, int] | None:
        if legal is None or legal[0] in self.seen:
            return None
        self.seen.add(legal[0])
        return legal
