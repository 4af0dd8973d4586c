"""FacT (arXiv 2212.03145): the updates of all layers as one tensor in factors, FacT-TT and FacT-TK.

Every weight is cut into `(d, d)` slices, d the width of the stream: q, k, v, proj, four of fc1 and four of fc2 in a
ViT. U `(r, d)` and V `(d, r)` are shared by all of them, and slice k gets

    s V S_k U                     S_k its own `(r, r)` matrix (TT), or
    S_k = sum_j C[:, :, j] P[j, k]  of the shared core C (TK).

The mixture of Eq. 10 that this is: B = `lora:r` at every layer, its factors tied.

Departures: the default gives slice k its own matrix S_k, as it is written here; the authors' code for FacT-TK has S_k
transposed but in fc2, and reshapes the four slices of an MLP layer so that their entries interleave. `slices:
interleaved` does both, to load their weights. There is no code of theirs for Swin; one set of factors per width, and
Swin's merging layers left alone, is our reading.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from glora.adapt.support import FLOAT
from glora.errors import TargetError
from glora.genotype import LayerConfig, Site
from glora.methods.blocks import Sublayer, find_blocks
from glora.methods.method import Method
from glora.methods.tied import Own, Tied, TunedTied, diagonal, linear_init, rules_of, sites_named, uniform, zeros
from glora.space import SearchSpace

__all__ = ["FacT"]


class FacT(Method):
    """FacT (arXiv 2212.03145): one set of factors for the updates of all linear layers of the blocks.

    Networks in stages, such as Swin, have one set per width.
    """

    lr = 1e-3

    name: Literal["fact"] = "fact"
    form: Literal["tt", "tk"] = Field("tk", description="tt: a matrix per slice; tk: a core shared by all slices.")
    rank: int = Field(16, ge=1, description="Rank of the shared factors.")
    scale: float = Field(1.0, gt=0, description="Fixed number that multiplies the update: 0.01 to 100 were published.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Chance that training drops a number after the middle factor.")
    slices: Literal["exact", "interleaved"] = Field(
        "exact", description="interleaved: C as the authors' FacT-TK reads it, the slices of an MLP layer mixed."
    )

    @property
    def title(self) -> str:
        return f"FacT-{self.form.upper()}"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedTied:
        blocks, generator = find_blocks(model, "FacT"), torch.Generator().manual_seed(seed)
        names = [name for block in blocks.blocks for part in block.sublayers for name in _linears(part)]
        sites = sites_named(model, names, "FacT", head=head)
        config = LayerConfig(B=f"lora:{self.rank}")
        rules, supports, own = rules_of(config), dict[str, Tied](), dict[str, Own]()
        for width, stage in blocks.stages.items():
            layers = [
                (name, part is block.mlp) for block in stage for part in block.sublayers for name in _linears(part)
            ]
            counts = [_slices(name, sites[name], width) for name, _ in layers]
            fans: list[int] = []
            for (name, _), count in zip(layers, counts, strict=True):
                fans += [count if _gathers(sites[name]) else 1] * count
            factors = self._factors(width, fans, generator)
            own["fact" if len(blocks.stages) == 1 else f"fact.{width}"] = factors
            ends = itertools.accumulate(counts)
            for (name, mlp), count, end in zip(layers, counts, ends, strict=True):
                supports[name] = _Slices(sites[name], rules, config, factors, self, slice(end - count, end), mlp=mlp)
        return TunedTied(self, model, {name: supports[name] for name in sites}, own, head)

    def _factors(self, width: int, fans: Sequence[int], generator: torch.Generator) -> Own:
        """As the authors start: V zero, U and the middle factors as Linear layers, C and P Xavier-uniform.

        Args:
            width: d.
            fans: Of every slice, how many are summed in its layer.
            generator: What is drawn comes from it.
        """
        r, slices = self.rank, len(fans)
        ends = {"U": linear_init((r, width), generator), "V": zeros(width, r)}
        if self.form == "tt":
            spread = torch.tensor(fans, **FLOAT).rsqrt().view(-1, 1, 1)
            return Own(**ends, S=nn.Parameter(linear_init((slices, r, r), generator).detach() * spread))
        core = uniform((r, r, r), (6 / (2 * r * r)) ** 0.5, generator)
        return Own(**ends, C=core, P=uniform((r, slices), (6 / (r + slices)) ** 0.5, generator))


def _linears(part: Sublayer) -> tuple[str, ...]:
    return (*part.reads, part.writes)


def _slices(name: str, site: Site, width: int) -> int:
    """Into how many `(d, d)` slices a layer is cut; raises TargetError where it cannot be."""
    o, i = site.out_features, site.in_features
    if o % width or i % width or min(o, i) != width:
        raise TargetError(
            f"FacT cuts weights into slices of {width} x {width}, and {name} is {o} x {i}.",
            allowed="A layer must be as wide as the stream on one side, and a multiple of it on the other.",
            remedy="Choose a method that takes layers of any width: glora, lora, repadapter.",
        )
    return max(o, i) // width


def _gathers(site: Site) -> bool:
    """Whether the layer sums over its slices: its input is the wide side."""
    return site.in_features > site.out_features


class _Slices(Tied):
    """B of one layer: neighbouring slices, below each other, or beside each other where the input is the wide side.

    Args:
        site, rules, config, own: As `Tied` has them.
        settings: The method.
        mine: Numbers of its slices.
        mlp: Whether it is a layer of an MLP.
    """

    drops = "narrow"

    def __init__(
        self, site: Site, rules: SearchSpace, config: LayerConfig, own: Own, settings: FacT, mine: slice, *, mlp: bool
    ) -> None:
        super().__init__(site, rules, config, own, dropout=settings.dropout)
        self.authors = settings.form == "tk" and settings.slices == "interleaved"
        self.interleaved = mlp and self.authors
        self.strength = settings.scale
        self.mine = mine
        self.gathers = _gathers(site)

    def middles(self) -> Tensor:
        """S_k of every slice, `(slices, r, r)`, to be multiplied as `V S_k U`."""
        own = self.own
        if "S" in own:
            middles: Tensor = own["S"][self.mine]
            return middles
        core = own["C"] @ own["P"][:, self.mine]  # (r, r, slices)
        if self.interleaved:
            core = core.reshape(len(core), -1)  # entry (b, k) at b * slices + k, and then cut into pieces of r
            core = core.reshape(len(core), -1, len(core)).transpose(1, 2)
        by_slice: Tensor = core.permute(2, 0, 1)
        return by_slice.transpose(1, 2) if self.authors and not self.gathers else by_slice

    def tensor(self, tensor: str) -> dict[str, Tensor]:
        ends = self.own
        v = ends["V"] * self.strength
        if self.gathers:
            return {"down": v, "up": (self.middles() @ ends["U"]).transpose(0, 1).flatten(1)}
        return {"down": (v @ self.middles()).flatten(0, 1), "up": ends["U"]}

    def dropping(self, tensor: str, config: LayerConfig) -> tuple[Tensor, Tensor]:
        """With the middle factors on the right: `S_k U` below each other, and V for each of them."""
        if self.gathers:
            return super().dropping(tensor, config)
        middles = self.middles()
        down = diagonal([self.own["V"] * self.strength] * len(middles))
        return down, (middles @ self.own["U"]).flatten(0, 1)
