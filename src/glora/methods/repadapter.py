"""RepAdapter (arXiv 2302.08106): a linear adapter before attention and MLP, which merges into the layer after it.

Departures: dropout acts on W_d x and leaves b_d out, whose part is in C. Before layers without a bias the adapter has
no b_d and b_u, which would have to make one. In Swin a padded window's zeros meet the merged layer as they do after the
authors' merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from glora.errors import TargetError
from glora.genotype import LayerConfig, Site
from glora.methods.blocks import Block, Sublayer, find_blocks
from glora.methods.method import Method
from glora.methods.tied import Own, Tied, TunedTied, diagonal, rules_of, sites_named, uniform, zeros
from glora.space import SearchSpace

__all__ = ["RepAdapter"]


class RepAdapter(Method):
    """RepAdapter (arXiv 2302.08106): `x + s (W_u (W_d x + b_d) + b_u)` before qkv and before fc1.

    W_d is `(hidden, d)`; W_u is in groups: its part of the outputs sees its part of the hidden numbers alone. In Eq. 10
    it is the matrix-product A = s W_u W_d, `lora:hidden`, and C = s (W_u b_d + b_u). Layers that read one stream
    together, such as q, k and v, share an adapter.
    """

    lr = 1e-3

    name: Literal["repadapter"] = "repadapter"
    hidden: int = Field(8, ge=1, description="Numbers in the bottleneck.")
    groups: int = Field(2, ge=1, description="Groups of the map up; it divides hidden and the model's width.")
    scale: float = Field(1.0, gt=0, description="Fixed number that multiplies what is added: 0.1 to 10 were published.")
    where: Literal["both", "attention"] = Field("both", description="Before attention and MLP, or attention alone.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Chance that training drops a number of the bottleneck.")

    @model_validator(mode="after")
    def _divides(self) -> RepAdapter:
        if self.hidden % self.groups:
            raise ValueError(f"groups={self.groups} does not divide hidden={self.hidden}")
        return self

    @property
    def title(self) -> str:
        return "RepAdapter" if self.where == "both" else "RepAdapter (attention)"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedTied:
        blocks, generator = find_blocks(model, "RepAdapter").blocks, torch.Generator().manual_seed(seed)
        parts = [(block, part) for block in blocks for part in self._parts(block)]
        names = [name for _, part in parts for name in part.reads]
        sites = sites_named(model, names, "RepAdapter", head=head)
        config = LayerConfig(A=f"lora:{self.hidden}", C="vector")
        rules, supports, own, bare = rules_of(config), dict[str, Tied](), dict[str, Own](), []
        for block, part in parts:
            bias = all(sites[name].bias for name in part.reads)
            bare += [] if bias else list(part.reads)
            numbers = self._numbers(part.reads[0], sites[part.reads[0]], generator, bias=bias)
            own[f"repadapter.{block.name}.{'attention' if part is block.attention else 'mlp'}"] = numbers
            plays = config if bias else LayerConfig(A=config.A)
            supports |= {name: _Reparameterised(sites[name], rules, plays, numbers, self) for name in part.reads}
        notes = [f"RepAdapter has no biases where the layer after it has none: {', '.join(bare)}."] if bare else []
        return TunedTied(self, model, {name: supports[name] for name in sites}, own, head, notes=notes)

    def _parts(self, block: Block) -> tuple[Sublayer, ...]:
        return block.sublayers if self.where == "both" else (block.attention,)

    def _numbers(self, name: str, site: Site, generator: torch.Generator, *, bias: bool) -> Own:
        """As the authors start: W_d Xavier-uniform, all else zero."""
        h, d = self.hidden, site.in_features
        if d % self.groups:
            raise TargetError(
                f"groups={self.groups} does not divide the {d} inputs of {name}.", remedy="Set groups to 1, or to 2."
            )
        biases = {"b_d": zeros(h), "b_u": zeros(d)} if bias else {}
        return Own(W_d=uniform((h, d), (6 / (h + d)) ** 0.5, generator), W_u=zeros(d, h // self.groups), **biases)


class _Reparameterised(Tied):
    """A and C of one layer that reads an adapter's output."""

    drops = "narrow"

    def __init__(self, site: Site, rules: SearchSpace, config: LayerConfig, own: Own, settings: RepAdapter) -> None:
        super().__init__(site, rules, config, own, dropout=settings.dropout)
        self.groups, self.strength = settings.groups, settings.scale

    def tensor(self, tensor: str) -> dict[str, Tensor]:
        own = self.own
        up = diagonal((own["W_u"] * self.strength).chunk(self.groups))  # (d, hidden)
        if tensor == "A":
            return {"down": up, "up": own["W_d"]}
        return {"down": (up @ own["b_d"] + own["b_u"] * self.strength).unsqueeze(1)}
