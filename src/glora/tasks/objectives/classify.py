"""One of several classes: cross-entropy and accuracy; and what all objectives with classes share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from glora.errors import DataError, did_you_mean, listed
from glora.tasks.objective import Batch, Examples, Metric, Objective, Targets

__all__ = ["Classes", "Classify"]


class Classes(Objective):
    """What is the same however the scores of the classes come about. Outputs are logits `(n, classes)`."""

    metrics = (Metric("accuracy", True, "percent", proportion=True), Metric("loss", False, ".3f"))

    of_training = frozenset({"smoothing"})

    classes: tuple[str, ...] = Field((), description="Names of the classes, in the order of the outputs; the data's.")
    smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing: the share of a training target that is spread over all classes."
    )

    def named(self, targets: Targets) -> Self:
        every = targets.single(self.name)
        if empty := [row for row, value in enumerate(every) if value is None or not str(value).strip()]:
            raise DataError(f"{targets.where(empty[0])} has no class.", remedy="Fill it, or leave the example out.")
        values = set(every)
        found = [targets.names[value] if targets.names else str(value) for value in values]
        if len(found) < 2:
            raise DataError(
                f"There is only one class, {listed(map(repr, found))}.",
                allowed="A classifier needs at least two classes.",
            )
        classes = self.classes or targets.names or tuple(sorted(found, key=_order))
        return self.model_copy(update={"classes": classes})

    def encode(self, targets: Targets) -> Tensor:
        index = {name: place for place, name in enumerate(self.classes)}
        found = []
        for row, value in enumerate(targets.single(self.name)):
            name = targets.names[value] if targets.names else str(value)
            if name not in index:
                raise DataError(
                    f"{targets.where(row)} has {f'the class {name!r}' if name.strip() else 'no class'}.",
                    allowed=f"Allowed: {listed(index, n=20)}.",
                    remedy=did_you_mean(name, index),
                )
            found.append(index[name])
        return torch.tensor(found, dtype=torch.int64)

    def strata(self, encoded: Tensor) -> list[int]:
        strata: list[int] = encoded.tolist()
        return strata

    @property
    def strata_names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def summary(self) -> str:
        return f"{len(self.classes)} classes"

    def chance(self, train: Examples) -> float:
        """The entropy of the classes' shares."""
        shares = [count / len(train) for count in Counter(train.targets.tolist()).values()]
        return -sum(share * math.log(share) for share in shares) or math.log(2)

    def right(self, batch: Batch) -> Tensor:
        """The index of every example's class, `(n,)`."""
        found: Tensor = batch.targets
        return found

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, self.right(batch), reduction="none")

    def _trained(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, self.right(batch), reduction="none", label_smoothing=self.smoothing)

    def values(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": (output.argmax(-1) == self.right(batch)).float(), "loss": self.losses(output, batch)}

    def told(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`target` and `prediction`, as places in `classes`, and the `probability` of what is predicted."""
        probability, prediction = output.softmax(-1).max(-1)
        return {"target": self.right(batch), "prediction": prediction, "probability": probability}

    def among(self, output: Tensor, outputs: Sequence[int]) -> Tensor:
        """All other classes have no chance: targets and predictions keep their numbers."""
        places = torch.tensor(list(outputs), device=output.device)
        chosen = torch.full_like(output, -torch.inf)
        chosen[:, places] = output[:, places]
        return chosen

    def predictions(self, output: Tensor) -> list[dict[str, Any]]:
        rows = []
        for chances in output.softmax(-1).tolist():
            best = max(range(len(chances)), key=chances.__getitem__)
            probabilities = dict(zip(self.classes, chances, strict=True))
            rows.append({"class": self.classes[best], "probability": chances[best], "probabilities": probabilities})
        return rows


class Classify(Classes):
    """One class per example. Outputs are logits `(n, classes)`, targets indices of classes `(n,)`."""

    name: Literal["classify"] = "classify"

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def tempered(self, output: Tensor, t: float) -> Tensor:
        return output / t


def _order(name: str) -> tuple[bool, int, str]:
    """Whole numbers by their size, then names by their letters."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
