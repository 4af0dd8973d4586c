"""Questions with several choices, answered by the likelihood that a language model gives to each."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from glora.errors import DataError
from glora.tasks.likelihood import choice_scores
from glora.tasks.objective import Batch, Metric, Objective, Targets

__all__ = ["Choose", "Normalise", "normalised"]

Normalise = Literal["none", "characters"]


class Choose(Objective):
    """One of several choices. Outputs are log-likelihoods of the choices `(n, c)`, targets `Choices`.

    Where a question has fewer than c choices the others have minus infinity. `acc` is the share of questions whose
    likeliest choice is the right one, `acc_norm` the same for the log-likelihood per character, as lm-eval has both
    (`multiple_choice`). The loss is the cross-entropy of the choices, with their log-likelihoods as logits.
    """

    metrics = (
        Metric("acc", True, "percent", proportion=True),
        Metric("acc_norm", True, "percent", proportion=True),
        Metric("loss", False, ".3f"),
    )

    name: Literal["choose"] = "choose"
    normalise: Normalise = Field(
        "none", description="What the loss compares: log-likelihoods of the choices, or these per character."
    )

    def encode(self, targets: Targets) -> Tensor:
        """The number of the right choice of each question, `(n,)`, from 0."""
        found = targets.single(self.name)
        for row, value in enumerate(found):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise DataError(
                    f"{targets.where(row)} has {value!r} for its answer.",
                    allowed="The number of the right choice, from 0.",
                )
        return torch.tensor(found, dtype=torch.int64)

    @property
    def outputs(self) -> None:
        return None

    @property
    def summary(self) -> str:
        return "one of several choices"

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> Tensor:
        return choice_scores(model, batch, train=train)

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        scores = normalised(output, batch.targets.sizes, self.normalise)
        return F.cross_entropy(scores, batch.targets.answer, reduction="none")

    def values(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        answer, sizes = batch.targets.answer, batch.targets.sizes
        per_character = normalised(output.double(), sizes, "characters")  # as lm-eval divides: in float64
        return {
            "acc": (output.argmax(-1) == answer).float(),
            "acc_norm": (per_character.argmax(-1) == answer).float(),
            "loss": self.losses(output, batch),
        }

    def told(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`target` and `prediction`, as places among the choices, and the `probability` of what is predicted."""
        probability, prediction = output.softmax(-1).max(-1)
        return {"target": batch.targets.answer, "prediction": prediction, "probability": probability}

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The squared distance of the log-likelihoods of the choices that there are."""
        a, b = (each.masked_fill(each.isinf(), 0) for each in (a, b))
        return (a - b).square().sum(-1)

    def predictions(self, output: Tensor) -> list[dict[str, Any]]:
        """The number of the likeliest choice of each question, from 0, and how likely each is beside the others."""
        rows = output.softmax(-1).tolist()
        best = output.argmax(-1).tolist()
        return [{"choice": k, "probability": row[k], "probabilities": row} for k, row in zip(best, rows, strict=True)]


def normalised(scores: Tensor, sizes: Tensor, how: Normalise) -> Tensor:
    """Log-likelihoods of choices `(n, c)` as they are, or each divided by the choice's characters, `(n, c)`."""
    return scores if how == "none" else scores / sizes.clamp(min=1)
