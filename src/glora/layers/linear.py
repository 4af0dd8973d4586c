"""`nn.Linear`: its weight already is the `(o, i)` matrix."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from glora.genotype import Site

__all__ = ["Linear"]


class Linear:
    """How `nn.Linear` shows its weight, and its plain forward."""

    kind = "linear"

    @staticmethod
    def site(layer: nn.Linear) -> Site:
        """The layer's site."""
        return Site("linear", layer.out_features, layer.in_features, layer.bias is not None)

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """The weight as `(o, i)`."""
        return weight

    @staticmethod
    def unmatrix(matrix: Tensor, like: Tensor) -> Tensor:
        """The `(o, i)` matrix in the shape of the layer's weight."""
        return matrix

    @staticmethod
    def plain(layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The plain layer's output with this weight and bias: `(n, ..., i)` to `(n, ..., o)`."""
        return F.linear(x, weight, bias)
