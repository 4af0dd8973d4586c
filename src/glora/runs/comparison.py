"""What a winner is compared with: random genotypes within its budget, the largest subnet, itself trained alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glora.report.outcome import Row
from glora.runs.scoring import score_of
from glora.runs.sheet import Genome, Sheet, Splits, ahead, curse, joined, mean
from glora.searchers import new_searcher
from glora.space import BoundSpace
from glora.tasks.evaluation import Evaluation

__all__ = ["Contender", "best_again", "compared", "controls", "random_genomes"]

APART = 1_000_003  # between the seeds of a search and of its controls: the random searcher's would be the same


@dataclass(frozen=True)
class Contender:
    """A row of the comparison.

    Attributes:
        parameters: Trainable numbers, without the head; of several genotypes their mean.
        splits: What it does on each split.
        genotypes: Of how many genotypes it is the mean or the best.
        genome: Its genome, where it is one genotype of the supernet.
        alike: Whether it is calibrated as the genotypes of the supernet are: losses can be compared.
    """

    parameters: float
    splits: Splits
    genotypes: int = 1
    genome: Genome | None = None
    alike: bool = True


def random_genomes(space: BoundSpace, n: int, *, budget: int | None, min_budget: int, seed: int) -> dict[Genome, int]:
    """Up to `n` different random genomes within the budget, drawn as the `random` searcher draws, and their counts."""
    if n == 0:
        return {}
    searcher = new_searcher(
        space,
        searcher="random",
        budget=budget,
        min_budget=min_budget,
        seed=seed + APART,
        settings={"candidates": n},
    )
    groups = iter(searcher.ask, [])
    return {each.genome: each.parameters for group in groups for each in group}


def best_again(sizes: Mapping[Genome, int], sheet: Sheet, *, fitness: str) -> Genome:
    """The best on val and set-aside images together, every image counting once; ties go to the smaller, the earlier."""
    return min(sizes, key=lambda genome: (-_value(joined(sheet(genome).values()), fitness), sizes[genome]))


def controls(
    space: BoundSpace, sheet: Sheet, sizes: Mapping[Genome, int], *, fitness: str, rescore: int
) -> dict[str, Contender]:
    """The controls that cost no training: mean and best of the random genotypes, and the largest subnet.

    The best of the random genotypes is chosen as a winner is: the best few on val, then scored again.
    """
    found: dict[str, Contender] = {}
    if sizes:
        every = [sheet(genome) for genome in sizes]
        splits = {split: mean([each[split] for each in every]) for split in every[0]}
        found["random_mean"] = Contender(sum(sizes.values()) / len(sizes), splits, len(sizes))
        order = sorted(sizes, key=lambda genome: (-_value(sheet(genome)["val"], fitness), sizes[genome]))
        first = {genome: sizes[genome] for genome in order[: max(1, rescore)]}
        best = best_again(first, sheet, fitness=fitness)
        found["random_best"] = Contender(sizes[best], sheet(best), len(sizes), best)
    largest = space.encode(space.largest)
    found["largest"] = Contender(space.count(space.largest), sheet(largest), genome=largest)
    return found


def compared(winner: Contender, others: Mapping[str, Contender]) -> dict[str, Row]:
    """A row for the winner and each control: metrics of every split, and how far the winner is ahead there."""
    own = _row(winner)
    rows: dict[str, Row] = {"winner": own | curse(own)}
    for name, other in others.items():
        row = _row(other)
        if name == "unpolished":  # its weights were those that val chose
            row |= curse(row)
        for split in (split for split in other.splits if split in winner.splits):
            row |= ahead(winner.splits[split], other.splits[split], split)
        if other.alike != winner.alike:
            row["by_accuracy"] = 1.0
        rows[name] = row
    return rows


def _row(contender: Contender) -> dict[str, float | None]:
    row: dict[str, float | None] = {
        "parameters": float(contender.parameters),
        "genotypes": float(contender.genotypes),
    }
    for split, found in contender.splits.items():
        row |= found.metrics(split)
    return row


def _value(found: Evaluation, fitness: str) -> float:
    value = score_of(found, fitness).value
    return -math.inf if math.isnan(value) else value
