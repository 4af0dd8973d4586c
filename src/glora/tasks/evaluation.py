"""What a model does on images, example by example; it knows images, nothing of methods."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from glora.tasks.task import ImageSet

__all__ = ["Evaluation", "evaluate", "predictions"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model does on images, example by example.

    Attributes:
        losses: Cross-entropy per example, `(n,)`.
        right: Whether the top prediction is right, `(n,)` bool; a mean over several models has fractions.
    """

    losses: Tensor
    right: Tensor

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.losses.double().mean().item()

    @property
    def loss_standard_error(self) -> float:
        """Standard error of the mean cross-entropy."""
        n = len(self.losses)
        return self.losses.double().std().item() / math.sqrt(n) if n > 1 else 0.0

    @property
    def accuracy(self) -> float:
        """Fraction right."""
        return self.right.double().mean().item()

    @property
    def accuracy_standard_error(self) -> float:
        """Standard error of the accuracy; of one model the binomial sqrt(p (1 - p) / n)."""
        return self.right.double().std(correction=0).item() / math.sqrt(len(self.right))

    def metrics(self, split: str) -> dict[str, float | None]:
        """The numbers of a Result: `test_accuracy`, `test_loss`, their standard errors, `test_images`."""
        return {
            f"{split}_accuracy": self.accuracy,
            f"{split}_accuracy_standard_error": self.accuracy_standard_error,
            f"{split}_loss": self.loss,
            f"{split}_loss_standard_error": self.loss_standard_error,
            f"{split}_images": float(len(self.losses)),
        }


@torch.no_grad()
def predictions(
    model: nn.Module,
    images: ImageSet,
    *,
    accelerator: Accelerator,
    batch_size: int,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's logits `(b, classes)`, in float32, and the labels `(b,)`, batch by batch; it is left in eval mode.

    Args:
        model: Images `(b, 3, h, w)` to logits `(b, classes)`.
        images: Prepared images.
        accelerator: Device and precision; every process evaluates all images, without waiting for another.
        batch_size: Images per forward pass.
        indices: Which images, in which order; None for all.
    """
    model.eval()
    chosen = range(len(images)) if indices is None else indices
    for first in range(0, len(chosen), batch_size):
        x, y = images.batch(chosen[first : first + batch_size])
        with accelerator.autocast():
            logits = model(x.to(accelerator.device)).float()
        yield logits, y.to(accelerator.device)


@torch.no_grad()
def evaluate(model: nn.Module, images: ImageSet, **how: Any) -> Evaluation:
    """The model's losses and hits on the images, in their order; the arguments are those of `predictions`."""
    found = [
        torch.stack([F.cross_entropy(logits, y, reduction="none"), (logits.argmax(-1) == y).float()])
        for logits, y in predictions(model, images, **how)
    ]
    losses, right = torch.cat(found, dim=1).cpu()
    return Evaluation(losses, right > 0)
