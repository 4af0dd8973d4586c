"""What a classifier does on test, class by class: accuracy, confusions, calibration, the worst errors (no torch)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from glora.report.examples import ByExample

__all__ = ["Bin", "ClassRow", "Classified", "classified"]

BINS = 10


@dataclass(frozen=True)
class ClassRow:
    """One class: how many test examples it has, how many are right, and what the others are taken for most often."""

    name: str
    examples: int
    right: int
    taken_for: str

    @property
    def accuracy(self) -> float | None:
        """The share that is right; None where there is no example."""
        return self.right / self.examples if self.examples else None

    @property
    def error(self) -> float:
        """Its binomial standard error."""
        share = self.accuracy or 0.0
        return math.sqrt(share * (1 - share) / self.examples) if self.examples else 0.0


@dataclass(frozen=True)
class Bin:
    """The examples whose prediction has a probability in one range: how many, its mean, and the share that is right."""

    examples: int
    confidence: float
    accuracy: float

    @property
    def error(self) -> float:
        """The standard error of the share."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.examples)


@dataclass(frozen=True)
class Classified:
    """What is known of every class.

    Attributes:
        names: The classes.
        confusion: `confusion[target][prediction]` is how many test examples.
        rows: A row a class.
        bins: The ranges of probability that have examples, from the least sure.
    """

    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    rows: tuple[ClassRow, ...]
    bins: tuple[Bin, ...]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: the mean distance of confidence and accuracy, by examples.

        Source: Guo et al., arXiv 1706.04599, Equation 3.
        """
        total = sum(each.examples for each in self.bins)
        return sum(each.examples * abs(each.confidence - each.accuracy) for each in self.bins) / max(1, total)

    @property
    def confused(self) -> list[tuple[str, str, int]]:
        """Class, what it is taken for, how often; the most frequent first."""
        pairs = [
            (self.names[target], self.names[taken], count)
            for target, row in enumerate(self.confusion)
            for taken, count in enumerate(row)
            if count and taken != target
        ]
        return sorted(pairs, key=lambda pair: -pair[2])


def classified(examples: ByExample | None) -> Classified | None:
    """The record of a classifier class by class; None of another model, or of a run that did not keep it."""
    if examples is None or not examples.classes or not {"target", "prediction", "probability"} <= examples.told.keys():
        return None
    names = examples.classes
    targets, predictions = ([int(each or 0) for each in examples.told[name]] for name in ("target", "prediction"))
    counts = Counter(zip(targets, predictions, strict=True))
    confusion = tuple(tuple(counts[target, taken] for taken in range(len(names))) for target in range(len(names)))
    rows = tuple(_row(place, confusion[place], names) for place in range(len(names)))
    right = [target == prediction for target, prediction in zip(targets, predictions, strict=True)]
    return Classified(names, confusion, rows, _bins(examples.told["probability"], right))


def _row(place: int, counts: Sequence[int], names: Sequence[str]) -> ClassRow:
    others = [(count, -k) for k, count in enumerate(counts) if k != place and count]
    taken = f"{names[-max(others)[1]]} ({max(others)[0]:,})" if others else ""
    return ClassRow(names[place], sum(counts), counts[place], taken)


def _bins(probabilities: Sequence[float | None], right: Sequence[bool]) -> tuple[Bin, ...]:
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for probability, correct in zip(probabilities, right, strict=True):
        if probability is not None:
            inside[min(BINS - 1, int(probability * BINS))].append((probability, correct))
    return tuple(
        Bin(len(each), math.fsum(p for p, _ in each) / len(each), sum(c for _, c in each) / len(each))
        for each in inside
        if each
    )
