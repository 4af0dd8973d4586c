"""The state of a training that was best on val, and when to stop looking for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Best"]

NAME = "best"


class Best:
    """Keeps a copy of the numbers after the epoch with the lowest val loss.

    Args:
        patience: Epochs without a better one after which the training is over.

    Attributes:
        loss: The lowest val loss so far. epoch: Epochs done when it was seen; 0: none was.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.loss = math.inf
        self.epoch = 0
        self._kept: list[Tensor] = []

    def see(self, epoch: int, loss: float, values: Sequence[Tensor]) -> None:
        """Looks at the numbers after an epoch; those of a loss that is no number are never the best."""
        if loss < self.loss:
            self.loss, self.epoch = loss, epoch
            self._kept = [value.detach().clone() for value in values]

    def over(self, epoch: int, began: int = 0) -> bool:
        """Whether the epochs since the best one, or since the training began anew, are as many as the patience."""
        return epoch - max(self.epoch, began) >= self.patience

    @torch.no_grad()
    def put(self, values: Sequence[Tensor]) -> None:
        """The numbers are those of the best epoch; as they are where there is none."""
        for value, kept in zip(values, self._kept, strict=bool(self._kept)):
            value.copy_(kept)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a later process needs to go on."""
        tensors = {f"{NAME}.{place}": value for place, value in enumerate(self._kept)}
        return tensors, {"loss": self.loss, "epoch": self.epoch} if self._kept else {}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], values: Sequence[Tensor]) -> None:
        """Takes over what `state` gave."""
        if meta:
            self.loss, self.epoch = float(meta["loss"]), int(meta["epoch"])
            self._kept = [tensors[f"{NAME}.{place}"].to(value.device, copy=True) for place, value in enumerate(values)]
