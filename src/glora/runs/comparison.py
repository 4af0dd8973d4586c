"""What a winner is compared with: random genotypes within its budget, the largest subnet, itself trained alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glora.errors import RunError
from glora.files import append_jsonl, plain_json, read_jsonl
from glora.genes import GenotypeSpace
from glora.report.outcome import Row
from glora.searchers import new_searcher
from glora.tasks.evaluation import Evaluation, ahead, joined, mean, selection_bias
from glora.tasks.objective import Objective

__all__ = ["Contender", "ExampleValues", "Genome", "best_again", "compare", "controls", "random_genomes"]

APART = 1_000_003  # between the seeds of a search and of its controls: the random searcher's would be the same

Genome = tuple[int, ...]
Splits = Mapping[str, Evaluation]  # "val", "aside", "test"


class ExampleValues:
    """The evaluations of genotypes on each split, kept in a file: every genotype is measured once.

    Args:
        path: An append-only file with a line per genotype; a kill loses at most one.
        header: What the values depend on, plain data; a file with another header is begun anew.
        objective: What the values are made of.
        measure: Genome -> its evaluation on each split.
        weights: Split -> how much each of its examples counts, `(n,)`; one that is not there: all the same. The file
            has none: they are the data's.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        objective: Objective,
        measure: Callable[[Genome], Splits],
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.path = path
        self.header = plain_json(header)
        self.objective = objective
        self.measure = measure
        self.weights = weights or {}
        try:  # what is damaged is measured again, with all that comes with it
            records = read_jsonl(path)
            mine = records[1:] if records[:1] == [self.header] else []
            self._found = {tuple(map(int, record["genome"])): self._read(record) for record in mine}
        except (RunError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            self._found = {}

    def __contains__(self, genome: object) -> bool:
        return genome in self._found

    def __call__(self, genome: Genome) -> Splits:
        """The genotype's evaluation on each split, from the file or made now."""
        if genome in self._found:
            return self._found[genome]
        if not self._found:
            self.path.unlink(missing_ok=True)
            append_jsonl(self.path, self.header)
        start = time.perf_counter()
        found = self._found[genome] = dict(self.measure(genome))
        record = {"genome": list(genome), "seconds": round(time.perf_counter() - start, 6)}
        splits = {
            split: {name: _rounded(each.tolist()) for name, each in e.values.items()} for split, e in found.items()
        }
        append_jsonl(self.path, record | {"splits": splits})
        return found

    def _read(self, record: Mapping[str, Any]) -> dict[str, Evaluation]:
        return {
            split: Evaluation(
                self.objective,
                {name: torch.tensor(_nan(value)) for name, value in values.items()},
                weights=self.weights.get(split),
            )
            for split, values in record["splits"].items()
        }


def _rounded(value: Any) -> Any:
    """Nine digits give a float32 back."""
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, list):
        return [_nan(each) for each in value]
    return math.nan if value is None else value


@dataclass(frozen=True)
class Contender:
    """A row of the comparison.

    Attributes:
        parameters: Trainable numbers, without the head; of several genotypes their mean.
        splits: What it does on each split.
        genotypes: Of how many genotypes it is the mean or the best.
        genome: Its genome, where it is one genotype of the supernet.
        calibrated: Whether it is calibrated as the genotypes of the supernet are: losses can be compared.
    """

    parameters: float
    splits: Splits
    genotypes: int = 1
    genome: Genome | None = None
    calibrated: bool = True


def random_genomes(
    space: GenotypeSpace, n: int, *, budget: int | None, min_budget: int, seed: int
) -> dict[Genome, int]:
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


def best_again(sizes: Mapping[Genome, int], values: ExampleValues, *, fitness: str) -> Genome:
    """The best on val and set-aside examples together, each counting once; ties go to the smaller, then the earlier."""
    return min(sizes, key=lambda genome: (-_score(joined(values(genome).values()), fitness), sizes[genome]))


def controls(
    space: GenotypeSpace, values: ExampleValues, sizes: Mapping[Genome, int], *, fitness: str, rescore: int
) -> dict[str, Contender]:
    """The controls that cost no training: mean and best of the random genotypes, and the largest subnet.

    The best of the random genotypes is chosen as a winner is: the best few on val, then scored again.
    """
    found: dict[str, Contender] = {}
    if sizes:
        every = [values(genome) for genome in sizes]
        splits = {split: mean([each[split] for each in every]) for split in every[0]}
        found["random_mean"] = Contender(sum(sizes.values()) / len(sizes), splits, len(sizes))
        order = sorted(sizes, key=lambda genome: (-_score(values(genome)["val"], fitness), sizes[genome]))
        first = {genome: sizes[genome] for genome in order[: max(1, rescore)]}
        best = best_again(first, values, fitness=fitness)
        found["random_best"] = Contender(sizes[best], values(best), len(sizes), best)
    largest = space.encode(space.largest)
    found["largest"] = Contender(space.count(space.largest), values(largest), genome=largest)
    return found


def compare(winner: Contender, others: Mapping[str, Contender], objective: Objective) -> dict[str, Row]:
    """A row for the winner and each control: metrics of every split, and how far the winner is ahead there."""
    own = _row(winner)
    rows: dict[str, Row] = {"winner": own | selection_bias(own, objective)}
    for name, other in others.items():
        row = _row(other)
        if name in ("unpolished", "before_final"):  # its weights were those that val chose
            row |= selection_bias(row, objective)
        for split in (split for split in other.splits if split in winner.splits):
            row |= ahead(winner.splits[split], other.splits[split], split)
        if other.calibrated != winner.calibrated:
            row["uncalibrated"] = 1.0
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


def _score(found: Evaluation, fitness: str) -> float:
    score, _ = found.score(fitness)
    return -math.inf if math.isnan(score) else score
