"""Texts that go on as they should: the mean negative log-likelihood of the tokens to be learned, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glora.tasks.likelihood import TokenLosses, token_losses
from glora.tasks.objective import Batch, Metric, Objective, Targets

__all__ = ["Language", "perplexity"]


class Language(Objective):
    """Text. Outputs are `TokenLosses`, targets the tokens to be learned `(n, t)`, `IGNORED` elsewhere.

    A row's values are means over its tokens. Rows count by their tokens, so that the loss of a training step, and of a
    split, is the mean over all of its tokens; the standard error is that of rows, whose tokens are not independent.
    """

    metrics = (
        Metric("loss", False, ".3f"),
        Metric("perplexity", False, ".2f", per_example=False),
        Metric("token_accuracy", True, "percent"),
    )

    name: Literal["language"] = "language"

    def encode(self, targets: Targets) -> Tensor:
        """Zeros: what is to be predicted is in the texts."""
        return torch.zeros(len(targets.rows), dtype=torch.int64)

    @property
    def outputs(self) -> None:
        return None

    @property
    def summary(self) -> str:
        return "text"

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> TokenLosses:
        return token_losses(model, batch.inputs, batch.targets)

    def losses(self, output: TokenLosses, batch: Batch) -> Tensor:
        return output.means(output.losses)

    def values(self, output: TokenLosses, batch: Batch) -> dict[str, Tensor]:
        return {
            "loss": self.losses(output, batch),
            "token_accuracy": output.means(output.right.float()),
            "tokens": output.counts,
        }

    def reduce(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Perplexity: e to the mean loss of all tokens."""
        losses, tokens = values["loss"].double(), values["tokens"].double()
        return {"perplexity": torch.exp((losses * tokens).sum() / tokens.sum()).item()}

    def distance(self, a: TokenLosses, b: TokenLosses) -> None:
        return None

    def predictions(self, output: TokenLosses) -> list[dict[str, Any]]:
        """How well the model expects each text: its loss, perplexity and learned tokens."""
        rows = zip(output.means(output.losses).tolist(), output.counts.tolist(), strict=True)
        return [{"loss": loss, "perplexity": perplexity(loss), "tokens": tokens} for loss, tokens in rows]


def perplexity(loss: float) -> float:
    """e to a mean loss."""
    return math.exp(min(loss, 700.0))  # e to more is no float
