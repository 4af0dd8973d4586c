"""Any number of labels per example: binary cross-entropy, mean average precision, micro-averaged F1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from glora.errors import DataError, did_you_mean, listed
from glora.tasks.objective import Batch, Examples, Metric, Objective, Targets

__all__ = ["MultiLabel", "average_precision"]

BITS = {"0", "1", "0.0", "1.0"}
TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no", ""}


class MultiLabel(Objective):
    """Labels that are there or not. Outputs are logits `(n, labels)`, targets 0 and 1 `(n, labels)`.

    The data has one column of labels, `beach|sunset`, or a column of 0 and 1 for every label.
    """

    metrics = (
        Metric("map", True, "percent", per_example=False),
        Metric("f1", True, "percent", per_example=False),
        Metric("loss", False, ".3f"),
    )

    name: Literal["multilabel"] = "multilabel"
    labels: tuple[str, ...] = Field((), description="Names of the labels, in the order of the outputs; the data's.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Probability from which a label counts as predicted.")
    separator: str = Field("|", min_length=1, description="What stands between the labels of a single column.")

    def named(self, targets: Targets) -> MultiLabel:
        if self.labels:
            return self
        labels = targets.columns
        if len(labels) == 1 and not all(str(row[0]).strip() in BITS for row in targets.rows):
            labels = tuple(sorted({label for row in targets.rows for label in self._split(row[0])}))
        if not labels:
            raise DataError("No example has a label.", allowed=f"Labels are separated by {self.separator!r}.")
        return self.model_copy(update={"labels": labels})

    def _split(self, text: Any) -> list[str]:
        return [label.strip() for label in str(text).split(self.separator) if label.strip()]

    def encode(self, targets: Targets) -> Tensor:
        if len(targets.columns) == 1 and targets.columns != self.labels:
            return self._encode_names(targets)
        rows = targets.ordered(self.labels)
        found = [[self._bit(value, targets, row) for value in values] for row, values in enumerate(rows)]
        return torch.tensor(found, dtype=torch.float32).reshape(len(found), len(self.labels))

    def _encode_names(self, targets: Targets) -> Tensor:
        index = {label: place for place, label in enumerate(self.labels)}
        encoded = torch.zeros(len(targets.rows), len(index))
        for row, (text,) in enumerate(targets.rows):
            for label in self._split(text):
                if label not in index:
                    raise DataError(
                        f"{targets.where(row)} has the label {label!r}.",
                        allowed=f"Allowed: {listed(index, n=20)}.",
                        remedy=did_you_mean(label, index),
                    )
                encoded[row, index[label]] = 1
        return encoded

    @staticmethod
    def _bit(value: Any, targets: Targets, row: int) -> float:
        text = str(value).strip().lower()
        if text in TRUE:
            return 1.0
        if text in FALSE:
            return 0.0
        raise DataError(f"{targets.where(row)} has {value!r} for a label.", allowed="Allowed: 0 and 1.")

    @property
    def outputs(self) -> int:
        return len(self.labels)

    @property
    def summary(self) -> str:
        return f"{len(self.labels)} labels"

    def chance(self, train: Examples) -> float:
        """The mean entropy of each label's frequency."""
        frequencies = train.targets.double().mean(0).tolist()
        mixed = [p for p in frequencies if 0 < p < 1]
        entropy = -math.fsum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in mixed)
        return entropy / len(frequencies) or math.log(2)

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, batch.targets, reduction="none").mean(-1)

    def values(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.losses(output, batch), "output": output, "target": batch.targets}

    def reduce(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean average precision over the labels that occur, and F1 over all decisions together."""
        scores, targets = values["output"].double(), values["target"] > 0.5
        precisions = [average_precision(scores[:, k], targets[:, k]) for k in range(len(self.labels))]
        known = [each for each in precisions if each is not None]
        predicted = scores >= math.log(self.threshold / (1 - self.threshold))
        right = float((predicted & targets).sum())
        wrong = float((predicted ^ targets).sum())
        f1 = 2 * right / (2 * right + wrong) if right + wrong else 0.0
        return {"map": math.fsum(known) / len(known) if known else math.nan, "f1": f1}

    def tempered(self, output: Tensor, t: float) -> Tensor:
        return output / t

    def predictions(self, output: Tensor) -> list[dict[str, Any]]:
        rows = []
        for chances in output.sigmoid().tolist():
            probabilities = dict(zip(self.labels, chances, strict=True))
            chosen = [label for label, chance in probabilities.items() if chance >= self.threshold]
            rows.append({"labels": chosen, "probabilities": probabilities})
        return rows


def average_precision(scores: Tensor, targets: Tensor) -> float | None:
    """The mean of the precisions at each positive, ranked by score; None without a positive.

    Examples of equal score count together, so that their order does not matter.

    Args:
        scores: `(n,)`, higher is surer.
        targets: `(n,)` bool.
    """
    positives = int(targets.sum())
    if not positives:
        return None
    order = torch.argsort(scores, descending=True, stable=True)
    ranked, hits = scores[order], targets[order].double()
    last = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])  # of each run of equal scores
    found = hits.cumsum(0)[last]
    precision = found / (torch.arange(1, len(hits) + 1)[last])
    gained = torch.diff(found, prepend=torch.zeros(1, dtype=found.dtype))
    return float((precision * gained).sum() / positives)
