"""Methods that are one fixed configuration of GLoRA's support tensors: LoRA is B alone, biases are E alone.

Departures: the random factor of LoRA is Xavier-uniform as in GLoRA, not Kaiming-uniform. The zero factor starts at
zero, as it was meant to in the code of the paper's row, which drew it anew. Biases is nobody's method: it is the part
of BitFit in the layers that are adapted, which is all that Eq. 10 holds of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from glora.adapt.sites import plan_sites
from glora.errors import TargetError, listed
from glora.genotype import LayerConfig, Site
from glora.methods.glora import Adapting, TunedAdapter
from glora.methods.method import Method, Tuned
from glora.methods.tied import Own, Tied, TunedTied, diagonal, rules_of, uniform, zeros
from glora.space import SearchSpace

__all__ = ["Biases", "LoRA"]

FUSED = ("qkv", "c_attn", "in_proj", "Wqkv")  # ends of the names of layers whose outputs are q, k and v, a third each
PAPER = ("qkv", "attn.qkv")  # targets of the paper's row


class LoRA(Adapting):
    """LoRA (arXiv 2106.09685) on every target: `W0 + s down up`, s = alpha / rank.

    The row of arXiv 2306.07967, Table 1, is `targets: [attn.qkv]`, `dropout: 0.1`: one pair of factors for all of qkv.
    `parts` gives q, k or v factors of their own there, such as LoRA's usual q and v; where q, k and v are layers of
    their own, `targets` chooses them.
    """

    lr = 3e-3

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Rank of the update.")
    alpha: float | None = Field(None, gt=0, description="The update is multiplied by alpha / rank; rank if not given.")
    scaling: Literal["standard", "rank_stabilized"] = Field(
        "standard", description="rank_stabilized: the update is multiplied by alpha / sqrt(rank)."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Chance that training leaves out an input of the update.")
    parts: tuple[Literal["q", "k", "v"], ...] = Field(
        (), description="Of fused qkv layers, what gets factors of its own: [q, v]. Empty: one pair for the layer."
    )

    @property
    def title(self) -> str:
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        where = "" if set(targets) <= set(PAPER) else "all linears" if targets == ("linear",) else " ".join(targets)
        forms = [where or "qkv", ",".join(self.parts)] if self.parts else [where]
        forms.append("rank-stabilized" if self.scaling != "standard" else "")
        form = ", ".join(filter(None, forms))
        return f"LoRA ({form})" if form else "LoRA"

    @property
    def strength(self) -> float:
        """s, the number that multiplies the update."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank if self.scaling == "standard" else math.sqrt(self.rank))

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> Tuned:
        return self._in_parts(model, head, seed) if self.parts else self._whole(model, head, seed)

    def load(self, model: nn.Module, path: str | Path, *, base_fingerprint: str | None = None) -> Tuned:
        loads = Method.load if self.parts else Adapting.load
        return loads(self, model, path, base_fingerprint=base_fingerprint)

    def _whole(self, model: nn.Module, head: Sequence[str], seed: int) -> TunedAdapter:
        """One pair of factors for every target."""
        space = SearchSpace(ranks=(self.rank,), only=LayerConfig(B=f"lora:{self.rank}"), scaling="none")
        adapted = self.inject(model, space, head=head, seed=seed)
        adapted.set_dropout(self.dropout)
        if self.strength != 1:
            for support in (each for each in adapted.supports.values() if "B" in each.up):
                support.scales["B.lora"] = self.strength
        return TunedAdapter(adapted)

    def _in_parts(self, model: nn.Module, head: Sequence[str], seed: int) -> TunedTied:
        """A pair for every part of a fused layer, one pair for every other target."""
        found, _, _ = plan_sites(model, targets=self.targets, skip=self.skip, head=head, new_bias=False, example=None)
        sites = {name: site for name, site in found.items() if not site.diagonal}
        if not any(_is_fused(name, site) for name, site in sites.items()):
            raise TargetError(
                f"parts={list(self.parts)} splits fused qkv layers, and there is none among {listed(sites)}.",
                allowed=f"A fused layer is called {listed(FUSED)} and has three times as many outputs as inputs.",
                remedy="Where q, k and v are layers of their own, name them in targets and leave parts empty.",
            )
        generator = torch.Generator().manual_seed(seed)
        supports, own = dict[str, Tied](), dict[str, Own]()
        configs = {name: LayerConfig(B=f"lora:{self._rank(name, site)}") for name, site in sites.items()}
        rules = rules_of(*configs.values())
        for name, site in sites.items():
            parts = self._named_parts(name, site)
            own[f"lora.{name}"] = numbers = self._numbers(site, parts, generator)
            supports[name] = _Parts(site, rules, configs[name], numbers, parts, self)
        return TunedTied(self, model, supports, own, head, statistics=self.statistics)

    def _named_parts(self, name: str, site: Site) -> tuple[str, ...]:
        """The parts of q, k, v in their order; of a layer that is not fused one without a name."""
        return tuple(part for part in "qkv" if part in self.parts) if _is_fused(name, site) else ("",)

    def _rank(self, name: str, site: Site) -> int:
        return self.rank * len(self._named_parts(name, site))

    def _numbers(self, site: Site, parts: Sequence[str], generator: torch.Generator) -> Own:
        o, i, r = site.out_features // (1 if parts == ("",) else 3), site.in_features, self.rank
        bound = (6 / (i + r)) ** 0.5
        ups = {f"{part}up": uniform((r, i), bound, generator) for part in parts}
        return Own(**ups, **{f"{part}down": zeros(o, r) for part in parts})


def _is_fused(name: str, site: Site) -> bool:
    return name.rpartition(".")[2] in FUSED and site.out_features == 3 * site.in_features


class _Parts(Tied):
    """B of one layer: the factors of its parts, each in its own third of the outputs."""

    def __init__(
        self, site: Site, rules: SearchSpace, config: LayerConfig, own: Own, parts: Sequence[str], settings: LoRA
    ) -> None:
        super().__init__(site, rules, config, own, dropout=settings.dropout)
        self.parts, self.strength = tuple(parts), settings.strength

    def tensor(self, tensor: str) -> dict[str, Tensor]:
        up = torch.cat([self.own[f"{part}up"] for part in self.parts])
        downs = {part: self.own[f"{part}down"] * self.strength for part in self.parts}
        if "" in downs:
            return {"down": downs[""], "up": up}
        nothing = up.new_zeros(self.site.out_features // 3, 0)  # a third that is not adapted: rows, no columns
        return {"down": diagonal([downs.get(part, nothing) for part in "qkv"]), "up": up}


class Biases(Adapting):
    """The bias of every target: E alone, which is the part of BitFit (arXiv 2106.10199) that Eq. 10 holds."""

    lr = 1e-3

    name: Literal["biases"] = "biases"

    @property
    def title(self) -> str:
        return "Biases"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        sites, _, _ = plan_sites(model, targets=self.targets, skip=self.skip, head=head, new_bias=False, example=None)
        if not any(site.bias for site in sites.values()):
            raise TargetError(
                f"Biases trains the biases of layers, and {listed(sites)} has none.",
                allowed="At least one target must have a bias.",
                remedy="Choose other targets, or a method that changes weights: glora, lora.",
            )
        space = SearchSpace(only=LayerConfig(E="vector"), scaling="none")
        return TunedAdapter(self.inject(model, space, head=head, seed=seed))
