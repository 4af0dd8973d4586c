"""`nn.MultiheadAttention`: its in-projections, one joint or three; its `out_proj` is a layer of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from glora.adapt.layers.view import View
from glora.genotype import Site

__all__ = ["Attention"]


class Attention(View):
    """An in-projection of `nn.MultiheadAttention`, `(o, i)` as stored: joint `(3E, E)`, or `(E, i)` of q, k or v.

    The module reads its weights and never calls them, so that they play through the effective weight: of several
    genotypes in a batch they play the first sample's. The three biases are thirds of one `in_proj_bias`. Without it
    C, D and E are not offered, and no new bias is made.
    """

    kind = "attention"
    called = False
    bias = "in_proj_bias"

    def __init__(self, layer: Any, slot: str = "in_proj") -> None:
        self.weight = f"{slot}_weight"
        o, i = layer._parameters[self.weight].shape
        if slot != "in_proj":
            first = "qkv".index(slot[0]) * o
            self.part = slice(first, first + o)
        self.site = Site(self.kind, o, i, layer.in_proj_bias is not None)

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        slots = ("in_proj", "q_proj", "k_proj", "v_proj")
        return {slot: cls(layer, slot) for slot in slots if f"{slot}_weight" in floats}
