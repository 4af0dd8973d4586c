"""Norms: the weight is a vector that multiplies the normalised input x̂, `y = w ∘ x̂ + b`.

As a matrix it is `diag(w)`, shown as one column `(o, 1)`. A and B are a vector or a scalar, D and E act on the bias; C
would be E once more. `Norm` plays through its weight, with whatever forward the layer has, one genotype a batch. The
others are norms of torch and timm whose forward is known; they also play one genotype per sample.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from glora.adapt.layers.view import View
from glora.genotype import Site

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "LayerNorm2d", "Norm", "RMSNorm"]


class Norm(View):
    """Any norm whose own forward reads its `weight`, and its `bias` where it has one.

    W0 is the stored weight. Where the layer multiplies by `1 + w` (the RMSNorm of Gemma), A scales w alone, and
    changes nothing where w is 0; B shifts the factor itself.
    """

    kind = "norm"
    called = False

    def __init__(self, layer: Any) -> None:
        bias = getattr(layer, "bias", None) is not None
        self.site = Site("norm", layer.weight.numel(), 1, bias, diagonal=True)

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        """Nothing where the bias has another shape than the weight: only the name is a norm's."""
        bias = getattr(layer, "bias", None)
        return super().of(layer, floats) if bias is None or bias.shape == layer.weight.shape else {}

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1, 1)

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.view_as(like)


class _Called(Norm):
    """A norm with torch's own forward, or timm's, which is torch's unless its fast kernels are switched on."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.called = not getattr(layer, "_fast_norm", False)

    def total(self, layer: Any, x: Tensor) -> Tensor:
        return self.plain(layer, x, None, None)

    def plain(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class LayerNorm(_Called):
    """`nn.LayerNorm`: `(n, ..., *normalized_shape)`; o is the product of normalized_shape."""

    def tells_apart(self, x: Tensor, samples: int) -> bool:
        return x.dim() > len(self.shape) and super().tells_apart(x, samples)

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.shape = layer.weight.shape

    def plain(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, self.shape, weight, None if bias is None else bias.view(self.shape), layer.eps)

    def spread(self, layer: Any, numbers: Tensor, y: Tensor) -> Tensor:
        samples = numbers.shape[:-1]
        return numbers.view(*samples, *[1] * (y.dim() - len(samples) - len(self.shape)), *self.shape)


class RMSNorm(LayerNorm):
    """`nn.RMSNorm`, which has no bias."""

    def plain(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.rms_norm(x, self.shape, weight, layer.eps)


class GroupNorm(_Called):
    """`nn.GroupNorm`: `(n, o, ...)`."""

    def plain(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)

    def spread(self, layer: Any, numbers: Tensor, y: Tensor) -> Tensor:
        return numbers.view(*numbers.shape, *[1] * (y.dim() - 2))


class LayerNorm2d(GroupNorm):
    """timm's `LayerNorm2d`: `(n, o, h, w)`, over the channels."""

    def plain(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), layer.normalized_shape, weight, bias, layer.eps).permute(0, 3, 1, 2)


class BatchNorm(GroupNorm):
    """`nn.BatchNorm1d`, `2d`, `3d`: `(n, o, ...)`; see `statistics.py` for the running statistics."""

    def plain(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        layer._check_input_dim(x)
        momentum = layer.momentum or 0.0
        if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            momentum = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else momentum
        kept = layer.track_running_stats or not layer.training
        return self._normalised(layer, x, weight, bias, momentum, kept=kept)

    def total(self, layer: Any, x: Tensor) -> Tensor:  # updates no statistics
        return self._normalised(layer, x, None, None, 0.0, kept=not layer.training)

    def _normalised(
        self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, momentum: float, *, kept: bool
    ) -> Tensor:
        mean, variance = (layer.running_mean, layer.running_var) if kept else (None, None)
        of_batch = layer.training or layer.running_mean is None
        return F.batch_norm(x, mean, variance, weight, bias, of_batch, momentum, layer.eps)
