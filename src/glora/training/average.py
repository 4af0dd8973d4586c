"""The mean of what is trained over the last part of a training, newer steps counting more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Average"]

NAME = "average"


class Average:
    """An exponential moving average of parameters, begun as a plain mean (Polyak averaging).

    After the k-th of n averaged steps a parameter's mean moves towards its value by max(1 / k, 2 / (n + 1)): as far as
    the plain mean of k values would, and in the end with the weights of a moving average of span n. Buffers, such as
    the statistics of BatchNorm, are none of it.

    Args:
        parameters: What is averaged.
        share: Of the training's steps, at its end; 0: nothing is averaged.

    Attributes:
        seen: Steps averaged so far.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        self.parameters = parameters
        self.share = share
        self.seen = 0
        self._mean: list[Tensor] = []

    def step(self, step: int, steps: int) -> None:
        """Takes the parameters in as they are after a step.

        Args:
            step: Which, from 0.
            steps: Of the whole training.
        """
        n = round(self.share * steps)
        if step < steps - n:
            return
        self.seen += 1
        if self.seen == 1:
            self._mean = [parameter.detach().clone() for parameter in self.parameters]
            return
        share = max(1 / self.seen, 2 / (n + 1))
        torch._foreach_lerp_(self._mean, [parameter.detach() for parameter in self.parameters], share)

    @torch.no_grad()
    def swap(self) -> None:
        """Mean and parameters change places; nothing happens where nothing was averaged."""
        for parameter, mean in zip(self.parameters, self._mean, strict=bool(self._mean)):
            kept = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(kept)

    def forget(self) -> None:
        """The training begins anew."""
        self.seen, self._mean = 0, []

    def state(self) -> dict[str, Tensor]:
        """What a later process needs to go on."""
        return {f"{NAME}.{place}": mean for place, mean in enumerate(self._mean)}

    def restore(self, tensors: Mapping[str, Tensor], seen: int) -> None:
        """Takes over what `state` gave, and how many steps it had seen."""
        self.seen = seen
        self._mean = [
            tensors[f"{NAME}.{place}"].to(parameter.device, copy=True)
            for place, parameter in enumerate(self.parameters)
            if seen
        ]
