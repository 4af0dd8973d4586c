"""`nn.Embedding`: the weight as it is stored, `(o, i)` = (rows, width), of which the layer gives the rows asked for.

A and B alone. The forward computes the effective weight of these rows and of no others. The row of `padding_idx` stays
W0's and gets no gradient; where the weight is tied to other layers it is played like the others, and the embedding
sends it no gradient, as in torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora.adapt.layers.per_sample import in_groups
from glora.adapt.layers.view import Play, View
from glora.genotype import Site

__all__ = ["Embedding"]


class Embedding(View):
    """`nn.Embedding`: ids `(n, ...)` to `(n, ..., i)`; `nn.EmbeddingBag` plays through its weight.

    `sparse` and `scale_grad_by_freq` are about the gradient of W0, which is frozen; the support tensors have an
    ordinary one. Not adapted: with `max_norm` the layer writes into its weight whenever it is called; and where
    another forward than this one asks for sparse gradients, torch cannot carry them on to the support tensors.
    """

    kind = "embedding"
    bias = ""

    def __init__(self, layer: Any) -> None:
        o, i = layer.weight.shape
        self.site = Site("embedding", o, i, bias=False, fixed=layer.padding_idx)
        self.called = isinstance(layer, nn.Embedding)

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        forward: Any = type(layer).forward
        fit = layer.max_norm is None and not (layer.sparse and forward is not nn.Embedding.forward)
        return super().of(layer, floats) if fit else {}

    def tells_apart(self, x: Tensor, samples: int) -> bool:
        """Ids of positions may have any length: `(l,)` and `(l, l)` are taken for such, not for samples."""
        return super().tells_apart(x, samples) and x.shape[0] != x.shape[1]

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(x, weight, layer.padding_idx)

    def output(self, plays: Sequence[Play], layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
        def looked_up(play: Play, ids: Tensor) -> Tensor:
            support, config = play
            index = ids.flatten()
            with torch.autocast(w0.device.type, enabled=False):
                rows = support.rows(w0[index], index, config)
            if layer.padding_idx is not None:
                rows = torch.where((index == layer.padding_idx).unsqueeze(-1), rows.detach(), rows)
            return rows.view(*ids.shape, -1)

        return in_groups(plays, x, looked_up)
