"""HiRA, one fixed configuration of GLoRA's support tensors: the elementwise A alone, whose update can have full rank.

Departures: the random factor is Xavier-uniform as in GLoRA, not Kaiming-uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import nn

from glora.genotype import LayerConfig
from glora.methods.glora import Adapting, TunedAdapter
from glora.space import SearchSpace

__all__ = ["HiRA"]


class HiRA(Adapting):
    """HiRA (Huang et al., ICLR 2025) on every target: `W0 + W0 * (down up)`, element by element.

    It has the numbers of a LoRA of the same rank. A step changes a weight by a share of itself, so that good learning
    rates are higher than LoRA's.
    """

    lr = 1e-2

    name: Literal["hira"] = "hira"
    rank: int = Field(32, ge=1, description="Rank of what the weight is multiplied by, element by element.")

    @property
    def title(self) -> str:
        return "HiRA"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        only = LayerConfig(A=f"lora:{self.rank}")
        space = SearchSpace(ranks=(self.rank,), product="elementwise", only=only, scaling="none")
        return TunedAdapter(self.inject(model, space, head=head, seed=seed))
