"""Methods that are one fixed configuration of GLoRA's support tensors: LoRA is B alone, biases are E alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import nn

from glora.genotype import LayerConfig
from glora.methods.glora import Adapting, TunedAdapter
from glora.space import SearchSpace

__all__ = ["Biases", "LoRA"]


class LoRA(Adapting):
    """LoRA (arXiv 2106.09685) on every target: `W0 + alpha / rank * down up`.

    Departures: the random factor is Xavier-uniform as in GLoRA, not Kaiming-uniform.
    """

    lr = 3e-3

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Rank of the update.")
    alpha: float | None = Field(None, gt=0, description="The update is multiplied by alpha / rank; rank if not given.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Chance that training leaves out an input of the update.")

    @property
    def title(self) -> str:
        return "LoRA"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        space = SearchSpace(ranks=(self.rank,), only=LayerConfig(B=f"lora:{self.rank}"), scaling="none")
        adapted = self.inject(model, space, head=head, seed=seed)
        adapted.set_dropout(self.dropout)
        if self.alpha is not None and self.alpha != self.rank:
            for support in (each for each in adapted.supports.values() if "B" in each.up):
                support.scales["B.lora"] = self.alpha / self.rank
        return TunedAdapter(adapted)


class Biases(Adapting):
    """The bias of every target: E alone, which is the part of BitFit (arXiv 2106.10199) that Eq. 10 holds."""

    lr = 1e-3

    name: Literal["biases"] = "biases"

    @property
    def title(self) -> str:
        return "Biases"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        return TunedAdapter(self.inject(model, SearchSpace(only=LayerConfig(E="vector")), head=head, seed=seed))
