"""Convolutions and transposed convolutions over one, two or three axes: `(n, c, ...)` to `(n, o, ...)`.

Every output sees the c / groups channels of its group at the positions of the kernel: these are the `i` inputs of a row
of the `(o, i)` matrix, channel by channel. A matrix-product A mixes the c / groups channels alike at every position and
in every group: a 1x1 convolution of the input, which merges exactly, padding or not.

C is a constant per output channel, `W_flat c`: what the weight gives for one constant patch c of its i inputs, the same
at every position. It is not the input shifted by a constant per channel: with zero padding the kernel would see zeros
beyond the border instead of the constant, and the outputs there would differ.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora.adapt.layers.view import View
from glora.genotype import LayerConfig, Site

__all__ = ["Conv", "ConvTranspose"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Conv(View):
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` with every padding mode."""

    kind = "conv"
    new_bias = True

    def __init__(self, layer: Any) -> None:
        self.axes: int = layer.weight.dim() - 2
        self.size: tuple[int, ...] = tuple(layer.weight.shape[2:])
        self.groups: int = layer.groups
        self.site = self._site(layer.weight.shape, layer.bias is not None)
        self.positions = (math.prod(layer.stride), 1)  # of the input and of the output per position of the kernel
        own = getattr(nn, f"Conv{self.axes}d")._conv_forward
        self.called = getattr(type(layer), "_conv_forward", own) is own  # a subclass's own reads the weight its way

    def _site(self, shape: torch.Size, bias: bool) -> Site:
        o, mixed = shape[:2]
        return Site("conv", o, mixed * math.prod(self.size), bias, mixed=mixed)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        weight = self._kernel(matrix)
        if weight.stride() == like.stride():
            return weight
        return torch.empty_like(like).copy_(weight)  # in another order of memory other kernels give other bits

    def _kernel(self, matrix: Tensor) -> Tensor:
        """Rows, as many for every group, `(groups * m, i)`, in the shape of a weight with m outputs per group."""
        return matrix.reshape(len(matrix), -1, *self.size)

    def tells_apart(self, x: Tensor, samples: int) -> bool:
        return x.dim() == 2 + self.axes and super().tells_apart(x, samples)

    def builds(self, config: LayerConfig, is_matrix: bool) -> bool:
        """Whether the effective weight is the cheaper way, by multiply-adds at every position that the kernel visits.

        Building it costs a gradient of its size, `o i`. The factored way costs three times its forward (for itself,
        for the gradient of the input, for that of the factors). What does not grow with the positions is left out.
        """
        if config.A.kind == "lora" and not is_matrix:
            return True
        o, i, g = self.site.out_features, self.site.in_features, self.groups
        inputs, outputs = g * self.site.mixed * self.positions[0], o * self.positions[1]
        forward = 0
        if config.A.kind == "lora":
            forward += 2 * config.A.rank * inputs
        elif config.A.kind != "none":
            forward += inputs if is_matrix else outputs
        if config.B.kind == "lora":
            forward += config.B.rank * (g * i + outputs)
        elif config.B.kind != "none":
            forward += inputs + g * math.prod(self.size) + outputs
        return 3 * forward > o * i

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = layer._conv_forward(x, weight, bias)
        return y

    def spread(self, layer: Any, numbers: Tensor, y: Tensor) -> Tensor:
        return numbers.reshape(*numbers.shape, *[1] * self.axes)

    def total(self, layer: Any, x: Tensor) -> Tensor:
        channels, dtype = -1 - self.axes, torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            groups = x.reshape(*x.shape[:channels], self.groups, -1, *x.shape[-self.axes :])
            sums = groups.sum(channels, dtype=dtype)
            y = self.plain(layer, sums, torch.ones(self.groups, 1, *self.size, dtype=dtype, device=x.device), None)
        return y if self.groups == 1 else y.repeat_interleave(self.site.out_features // self.groups, channels)

    def narrow(self, layer: Any, x: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = up.to(x.dtype).repeat(self.groups, 1)
        return self._masked(self.plain(layer, x, self._kernel(rows), None), mask)

    def _masked(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return z if mask is None else z * self.spread(None, mask.to(z.dtype).repeat(1, self.groups), z)

    def widened(self, y: Tensor, z: Tensor, down: Tensor) -> Tensor:
        return y + self._pointwise(z.to(y.dtype), down)

    def _pointwise(self, x: Tensor, rows: Tensor) -> Tensor:
        return CONVOLUTIONS[self.axes](x, self.spread(None, rows.to(x.dtype), x), groups=self.groups)

    def stretched(self, x: Tensor, a: Tensor) -> Tensor:
        every = a if a.shape[-1] == 1 else a.repeat(*[1] * (a.dim() - 1), self.groups)
        return (x * (1 + self.spread(None, every, x))).to(x.dtype)

    def mixed(self, x: Tensor, down: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        z = self._masked(self._pointwise(x, up.repeat(self.groups, 1)), mask)
        return self.widened(x, z, down.repeat(self.groups, 1))


class ConvTranspose(Conv):
    """`nn.ConvTranspose1d`, `nn.ConvTranspose2d`, `nn.ConvTranspose3d`: the weight is stored as `(c, o / groups, ...)`.

    Called with an `output_size` the layer plays through its effective weight.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.positions, self.called = self.positions[::-1], True

    def _site(self, shape: torch.Size, bias: bool) -> Site:
        mixed, o = shape[0] // self.groups, shape[1] * self.groups
        return Site("conv", o, mixed * math.prod(self.size), bias, mixed=mixed)

    def matrix(self, weight: Tensor) -> Tensor:
        groups = weight.reshape(self.groups, -1, *weight.shape[1:])  # (g, c / g, o / g, ...)
        return groups.transpose(1, 2).flatten(0, 1).flatten(1)

    def _kernel(self, matrix: Tensor) -> Tensor:
        groups = matrix.reshape(self.groups, -1, self.site.mixed, *self.size)
        return groups.transpose(1, 2).flatten(0, 1)

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        how = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return TRANSPOSED[self.axes](x, weight, bias, *how)
