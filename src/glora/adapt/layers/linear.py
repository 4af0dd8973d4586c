"""Layers with features last: `nn.Linear`, whose weight already is the `(o, i)` matrix, and transformers' `Conv1D`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora.adapt.layers.view import View
from glora.genotype import LayerConfig, Site

__all__ = ["Conv1D", "Linear"]


class Linear(View):
    """`nn.Linear`: `(n, ..., i)` to `(n, ..., o)`."""

    kind = "linear"
    new_bias = True
    called = True
    last = True

    def __init__(self, layer: nn.Linear) -> None:
        self.site = Site("linear", layer.out_features, layer.in_features, layer.bias is not None)

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def builds(self, config: LayerConfig, is_matrix: bool) -> bool:
        return config.A.kind == "lora" and not is_matrix

    def spread(self, layer: Any, numbers: Tensor, y: Tensor) -> Tensor:
        return numbers if numbers.dim() == 1 else numbers.reshape(numbers.shape[0], *[1] * (y.dim() - 2), -1)

    def total(self, layer: Any, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))

    def narrow(self, layer: Any, x: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        z = F.linear(x, up.to(x.dtype))
        return z if mask is None else z * self.spread(layer, mask.to(z.dtype), z)

    def widened(self, y: Tensor, z: Tensor, down: Tensor) -> Tensor:
        z, down = z.to(y.dtype), down.to(y.dtype)
        flat = torch.addmm(y.reshape(-1, y.shape[-1]), z.reshape(-1, z.shape[-1]), down.T)
        return flat.view(y.shape)

    def stretched(self, x: Tensor, a: Tensor) -> Tensor:
        return (x * (1 + self.spread(None, a, x))).to(x.dtype)

    def mixed(self, x: Tensor, down: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        z = self.narrow(None, x, up, mask)
        with torch.autocast(x.device.type, enabled=False):  # x keeps its type
            return self.widened(x, z, down)


class Conv1D(Linear):
    """transformers' `Conv1D`, a Linear whose weight is stored as `(i, o)`."""

    def __init__(self, layer: Any) -> None:
        i, o = layer.weight.shape
        self.site = Site("linear", o, i, layer.bias is not None)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.T.contiguous()

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return y.view(*x.shape[:-1], -1)
