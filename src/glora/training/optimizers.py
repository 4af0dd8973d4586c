"""What moves the numbers: one function an optimizer, one line each in `OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

__all__ = ["OPTIMIZERS", "adamw", "sgd"]

MOMENTUM = 0.9


def adamw(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay (arXiv 1711.05101), betas 0.9 and 0.999."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def sgd(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Gradient descent with momentum 0.9; weight decay is a part of the gradient."""
    return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)


OPTIMIZERS: Mapping[str, Callable[[Sequence[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "sgd": sgd,
}
