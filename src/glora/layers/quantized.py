"""Linears whose frozen weight is quantised in a tensor of its own, as torchao does: `dequantize()` gives the floats.

The weight stays as it is: the layer's own kernel multiplies with it. It is made floating-point only for an
elementwise LoRA A, for whoever reads `layer.weight`, and in a merge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from glora.layers.linear import Linear
from glora.layers.view import View

__all__ = ["Quantized", "is_quantized", "plain_parts"]


def is_quantized(value: Any) -> bool:
    """Whether a tensor holds quantised numbers behind the looks of a floating-point one."""
    kind: Any = type(value)
    return is_traceable_wrapper_subclass(value) and getattr(kind, "dequantize", None) is not Tensor.dequantize


def quantizes_input(value: Any) -> bool:
    """Whether a quantised weight quantises what it is multiplied with, too: no gradient passes such a layer."""
    _, settings = value.__tensor_flatten__()
    return any(of is not None for name, of in settings.items() if name.startswith("act"))


def plain_parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors inside a tensor by their names; itself where it is plain."""
    if not is_traceable_wrapper_subclass(value):
        yield name, value
        return
    for inner in value.__tensor_flatten__()[0]:
        yield from plain_parts(f"{name}.{inner}", getattr(value, inner))


class Quantized(Linear):
    """`nn.Linear` with a weight-only quantised weight."""

    quantized = True

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        weight = layer._parameters.get("weight")
        return {"": cls(layer)} if is_quantized(weight) and not quantizes_input(weight) else {}

    def matrix(self, weight: Any) -> Tensor:
        floats: Tensor = weight.dequantize() if is_quantized(weight) else weight
        return floats

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_quantized(weight):
            return F.linear(x, weight, bias)
        base = layer.parametrizations.weight.original
        y = F.linear(x, base, bias)  # its own kernel, so that a fresh adapter changes no bit
        return y + F.linear(x, weight - self.matrix(base)).to(y.dtype)

    def widened(self, y: Tensor, z: Tensor, down: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):  # which some kernels do not follow
            return super().widened(y, z, down)

    def times(self, weight: Tensor, column: Tensor) -> Tensor:
        with torch.autocast(column.device.type, enabled=False):
            return F.linear(column.to(weight.dtype).unsqueeze(0), weight).squeeze(0).to(column.dtype)
