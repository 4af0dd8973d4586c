"""How the learning rate goes over a training: one function a schedule, one line each in `SCHEDULES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["SCHEDULES", "Place", "cosine", "paper"]

START, FLOOR, WARMUP = 1e-6, 1e-5, 10  # of `paper`: its first rate, its last, and its epochs of warm-up


@dataclass(frozen=True)
class Place:
    """Where a step is in a training.

    Attributes:
        step: Steps before it, of `steps`. steps_per_epoch: Steps of an epoch. epochs: Of the whole training.
        warmup: Share of the steps with a rising rate, where the schedule asks for it.
    """

    step: int
    steps_per_epoch: int
    epochs: int
    warmup: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.epochs


def cosine(lr: float, at: Place) -> float:
    """The rate of a step: linear up over the warm-up, then half a cosine down to 0."""
    warmup = round(at.warmup * at.steps)
    if at.step < warmup:
        return lr * (at.step + 1) / (warmup + 1)
    return lr * 0.5 * (1 + math.cos(math.pi * (at.step - warmup) / max(1, at.steps - warmup)))


def paper(lr: float, at: Place) -> float:
    """The rate of an epoch as the published codes of GLoRA, NOAH, FacT and RepAdapter have it.

    They set it once after each epoch, so that epoch e (from 0) runs at f(max(e - 1, 0)):
    f(t) = 1e-6 + t (lr - 1e-6) / 10 for t < 10, else 1e-5 + (lr - 1e-5) (1 + cos(pi t / epochs)) / 2.
    The first two epochs run at 1e-6, and the cosine is not shifted by the warm-up. A rate below 1e-6 or 1e-5 is its
    own start or floor.
    """
    t = max(at.step // at.steps_per_epoch - 1, 0)
    if t < WARMUP:
        start = min(START, lr)
        return start + t * (lr - start) / WARMUP
    floor = min(FLOOR, lr)
    return floor + (lr - floor) * 0.5 * (1 + math.cos(math.pi * t / at.epochs))


SCHEDULES: Mapping[str, Callable[[float, Place], float]] = {"cosine": cosine, "paper": paper}
