"""Linears with a weight-only quantised weight: torchao's, a tensor that can `dequantize()`, and bitsandbytes' layers.

The weight stays as it is: the layer's own kernel multiplies with it. It is made floating-point only for an
elementwise LoRA A, for whoever reads `layer.weight`, and in a merge.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from glora.adapt.layers.linear import Linear
from glora.adapt.layers.view import View

__all__ = ["AnyLinear", "Linear4bit", "Linear8bitLt", "Quantized", "is_quantized", "plain_parts"]


def is_quantized(value: Any) -> bool:
    """Whether a parameter holds quantised numbers: a tensor that can `dequantize()`, or packed by bitsandbytes."""
    kind: Any = type(value)
    if kind.__module__.startswith("bitsandbytes."):
        return not value.is_floating_point()
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
    last = False

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        weight = layer._parameters.get("weight")
        return {"": cls(layer)} if is_quantized(weight) and not quantizes_input(weight) else {}

    def matrix(self, weight: Any) -> Tensor:
        floats: Tensor = weight.dequantize() if is_quantized(weight) else weight
        return floats

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_quantized(weight):
            return self.kernel(layer, x, weight, bias)
        base = layer.parametrizations.weight.original
        y = self.kernel(layer, x, base, bias)  # so that a fresh adapter changes no bit
        change = weight - self.matrix(base)
        return y + F.linear(x, change.to(x.dtype)).to(y.dtype)

    def kernel(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The plain layer's product with a quantised weight."""
        return F.linear(x, weight, bias)

    def times(self, weight: Tensor, column: Tensor) -> Tensor:
        if column.dtype == torch.float64:  # for a bias that is kept: no kernel's rounding
            return self.matrix(weight).to(column.dtype) @ column
        with torch.autocast(column.device.type, enabled=False):
            return F.linear(column.to(weight.dtype).unsqueeze(0), weight).squeeze(0).to(column.dtype)


class AnyLinear(Linear):
    """The row of `nn.Linear`, whose weight is plain or quantised."""

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        return (Linear if "weight" in floats else Quantized).of(layer, floats)


class Packed(Quantized):
    """A bitsandbytes layer. Its own code reads the packed `weight`, which therefore always shows the frozen bytes."""

    packed = True

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.state = getattr(layer, "state", None)

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        own = type(layer).__module__.startswith("bitsandbytes.")  # a subclass's own forward would bypass the adapter
        return {"": cls(layer)} if own and cls.ready(layer._parameters["weight"]) else {}

    @staticmethod
    @abstractmethod
    def ready(weight: Any) -> bool:
        """Whether the weight is quantised already."""

    def times(self, weight: Tensor, column: Tensor) -> Tensor:
        return self.matrix(weight).to(column.dtype) @ column


class Linear4bit(Packed):
    """bitsandbytes' `Linear4bit`: NF4 and FP4.

    On some CPUs the plain layer packs its weight anew, with rounding, at its first forward in eval mode. The adapted
    layer does not; one that is packed so already is not adapted.
    """

    @staticmethod
    def ready(weight: Any) -> bool:
        state = weight.quant_state
        return state is not None and not getattr(state, "packing_format_for_cpu", False)

    def matrix(self, weight: Any) -> Tensor:
        if not is_quantized(weight):
            return super().matrix(weight)
        floats: Tensor = _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
        return floats

    def kernel(self, layer: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        if not layer.compute_type_is_set:
            layer.set_compute_type(x)
            layer.compute_type_is_set = True
        inner = x.to(layer.compute_dtype or x.dtype)
        bias = None if bias is None else bias.to(inner.dtype)
        y: Tensor = _bitsandbytes().matmul_4bit(inner, weight, bias=bias, quant_state=weight.quant_state)
        return y.to(x.dtype)


class Linear8bitLt(Packed):
    """bitsandbytes' `Linear8bitLt` without 16-bit weights; its kernel for evaluation quantises its input, too."""

    @staticmethod
    def ready(weight: Any) -> bool:
        return not weight.is_floating_point()

    def matrix(self, weight: Any) -> Tensor:
        if not is_quantized(weight):
            return super().matrix(weight)
        assert self.state is not None
        scale = self.state.SCB if weight.SCB is None else weight.SCB
        floats: Tensor = _bitsandbytes().functional.int8_vectorwise_dequant(weight.data, scale)
        return floats

    def kernel(self, layer: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        layer.state.is_training = layer.training
        if weight.CB is not None:
            layer.init_8bit_state()
        bias = None if bias is None else bias.to(x.dtype)
        y: Tensor = _bitsandbytes().matmul(x, weight, bias=bias, state=layer.state)
        return y


def _bitsandbytes() -> Any:
    return importlib.import_module("bitsandbytes")  # installed, since the layer is one of its
