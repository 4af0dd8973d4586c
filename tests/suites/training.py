"""What the tests of training share: three kinds of images that can be told apart, and a trainer on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from glora.config import TrainSettings
from glora.methods.method import get_method
from glora.tasks.augment import Augmentation
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objectives.classify import Classify
from glora.training.trainer import Progress, Trainer

MIXED = Augmentation("light", mixup=0.8, cutmix=1.0)
CLASSES = Classify(classes=("dark", "light", "half"))


def toy_images(n: int = 30) -> ImageSet:
    """Three kinds of 8 x 8 images that can be told apart: dark, light, and half of each."""
    rng = np.random.default_rng(3)
    items, labels = [], []
    for number in range(n):
        label = number % 3
        level = np.full((8, 8, 3), (60, 190, 60)[label])
        if label == 2:
            level[:, 4:] = 190
        items.append((level + rng.normal(0, 12, (8, 8, 3))).clip(0, 255).astype(np.uint8))
        labels.append(label)
    return ImageSet(items, labels, preprocess=Preprocess((8, 8)))


def adapted(model: Any, seed: int = 0, sampling: str = "batch", largest: float = 0) -> Any:
    """The supernet on a model with a `head`."""
    settings = {"ranks": (4, 2), "sampling": sampling, "largest": largest}
    return get_method("glora", settings).apply(model, head=("head",), seed=seed)


def make_trainer(
    tuned: Any, images: ImageSet | None = None, *, seed: int = 0, lr: float = 5e-3, **settings: Any
) -> Trainer:
    """A trainer of three epochs of four steps on the CPU."""
    return Trainer(
        tuned,
        images or toy_images(),
        CLASSES,
        TrainSettings(**{"epochs": 3, "batch_size": 8, **settings}),
        lr=lr,
        seed=seed,
        accelerator=Accelerator(cpu=True),
    )


def run(trainer: Trainer) -> list[Progress]:
    """The whole training; where it was after each epoch."""
    return list(trainer.run())


def values(tuned: Any) -> list[Tensor]:
    """A copy of what the optimizer owns."""
    return [parameter.detach().clone() for parameter in tuned.parameters()]


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def first_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Gets, when the trainer runs, the gradients of its first step."""
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        if not found:
            every = {f"gradient {k}": p.grad for k, p in enumerate(trainer.parameters)}
            found.update({name: grad.clone() for name, grad in every.items() if grad is not None})

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    return found
