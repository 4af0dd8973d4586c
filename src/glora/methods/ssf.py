"""SSF (arXiv 2210.08823): every layer's output is scaled and shifted, channel by channel.

Departures: gamma 1 and beta 0 at the start, so that step 0 is the base; `start: authors` draws them around that. Layers
without a bias have no beta unless `new_bias` makes one. A norm that multiplies by 1 + w, as Gemma's does, has its w
scaled. Layers that share a weight have a gamma in common and no beta. Weight decay is the run's for all numbers; the
authors use none for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from glora.adapt.sites import plan_sites
from glora.adapt.support import FLOAT
from glora.errors import TargetError, listed
from glora.genotype import LayerConfig, Site
from glora.methods.glora import Targeting
from glora.methods.method import Method, Tuned
from glora.methods.tied import Own, Tied, TunedTied, rules_of, zeros

__all__ = ["SSF"]

WORDS = ("linear", "conv", "norm")
AUTHORS = 0.02  # standard deviation


class SSF(Targeting):
    """SSF (arXiv 2210.08823): `gamma y + beta` after every linear layer, convolution and norm outside the head.

    In Eq. 10 it is the elementwise A = D = gamma - 1, one number for both, and E = beta. Swin's merging layers
    (`reduction`) have none, as the authors have it.
    """

    lr = 5e-3

    name: Literal["ssf"] = "ssf"
    targets: str | tuple[str, ...] = Field(
        WORDS, description="Layers whose output is scaled: linear, conv, norm, an expression, a list."
    )
    start: Literal["exact", "authors"] = Field(
        "exact", description="exact: 1 and 0; authors: drawn with standard deviation 0.02 around them."
    )
    new_bias: bool = Field(False, description="Give layers without a bias a beta too; merged, they have a new bias.")

    @property
    def title(self) -> str:
        return "SSF"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedTied:
        sites, notes = self._sites(model, head)
        generator = torch.Generator().manual_seed(seed)
        config = LayerConfig(A="vector", D="vector", E="vector")
        rules, supports, own = rules_of(config, product="elementwise"), dict[str, Tied](), dict[str, Own]()
        for name, site in sites.items():
            own[f"ssf.{name}"] = numbers = self._numbers(site, generator)
            supports[name] = _Scaled(site, rules, config, numbers)
        return TunedTied(self, model, supports, own, head, statistics=self.statistics, notes=notes)

    def load(self, model: nn.Module, path: str | Path, *, base_fingerprint: str | None = None) -> Tuned:
        return Method.load(self, model, path, base_fingerprint=base_fingerprint)

    def _sites(self, model: nn.Module, head: Sequence[str]) -> tuple[dict[str, Site], list[str]]:
        """The sites, and notes on layers whose output cannot be shifted."""
        given = self.targets != WORDS
        found, _, _ = plan_sites(
            model,
            targets=self.targets if given else "all",
            skip=self.skip,
            head=head,
            new_bias=self.new_bias,
            example=None,
        )
        merging = {name for name in found if name.endswith("downsample.reduction") and not given}
        sites = {name: site for name, site in found.items() if name not in merging and site.kind != "embedding"}
        if not sites:
            raise TargetError(
                f"SSF scales the output of layers, and {listed(found)} is looked up.",
                allowed="targets name linear layers, convolutions or norms.",
            )
        bare = [name for name, site in sites.items() if not (site.bias or site.new_bias)]
        return sites, [f"SSF does not shift the output of layers without a bias: {listed(bare)}."] if bare else []

    def _numbers(self, site: Site, generator: torch.Generator) -> Own:
        o, spread = site.out_features, AUTHORS if self.start == "authors" else 0.0
        gamma, beta = nn.Parameter(torch.ones(o, **FLOAT)), zeros(o)
        if spread:
            with torch.no_grad():
                gamma.add_(torch.empty(o, **FLOAT).normal_(0, spread, generator=generator))
                beta.add_(torch.empty(o, **FLOAT).normal_(0, spread, generator=generator))
        return Own(gamma=gamma, beta=beta) if site.bias or site.new_bias else Own(gamma=gamma)


class _Scaled(Tied):
    """A, D and E of one layer. gamma is one number for A and D."""

    def tensor(self, tensor: str) -> dict[str, Tensor]:
        own = self.own
        if tensor == "E":
            return {"down": own["beta"]}
        change = own["gamma"] - 1
        return {"down": change.unsqueeze(1) if tensor == "A" else change}
