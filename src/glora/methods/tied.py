"""Methods inside Eq. 10 that are a tied GLoRA configuration: support tensors computed from fewer numbers.

The layers play, merge and detach as those of any adapter do; what is trained, counted and saved are the method's own
numbers, and `TunedTied.adapted` writes the same function as a plain adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from glora.adapt.adapted import Adapted
from glora.adapt.sites import plan_sites
from glora.adapt.support import FLOAT, Support
from glora.errors import TargetError
from glora.genotype import NONE, TENSORS, Choice, Genotype, LayerConfig, Site
from glora.methods.method import Method
from glora.methods.numbers import TunedNumbers
from glora.space import BoundSpace, SearchSpace

__all__ = ["Own", "Tied", "TunedTied", "diagonal", "linear_init", "rules_of", "sites_named", "uniform", "zeros"]


def uniform(shape: Sequence[int], bound: float, generator: torch.Generator) -> nn.Parameter:
    """Numbers drawn uniformly from -bound to bound."""
    return nn.Parameter(torch.empty(*shape, **FLOAT).uniform_(-bound, bound, generator=generator))


def linear_init(shape: Sequence[int], generator: torch.Generator) -> nn.Parameter:
    """What `nn.Linear` starts with: uniform up to 1 / sqrt(inputs), the last dimension."""
    return uniform(shape, 1 / math.sqrt(shape[-1]), generator)


def zeros(*shape: int) -> nn.Parameter:
    """Numbers that start at zero."""
    return nn.Parameter(torch.zeros(*shape, **FLOAT))


def diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """The matrix of these blocks along its diagonal, zero elsewhere."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


class Own(nn.Module):
    """Numbers of a method's own, some sites' or one's; they stay float32 whatever the model becomes.

    Args:
        numbers: Name -> the numbers.
    """

    def __init__(self, **numbers: nn.Parameter) -> None:
        super().__init__()
        for name, value in numbers.items():
            self.register_parameter(name, value)

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def __getitem__(self, name: str) -> Tensor:
        value = self._parameters[name]
        assert value is not None
        return value


class Tied(Support):
    """The support tensors of one site, computed from numbers of `own`, which may be other sites' too.

    A subclass says how, in `tensor`, and what LayerConfig that is.

    Args:
        site: The affine weight they adapt.
        rules: Its product holds; `rules_of` makes them.
        config: The one configuration that the site plays; choices that the site cannot have become `none`.
        own: What they are computed from.
        dropout: The probability with which training drops a number; `drops` says where.
    """

    computed = True

    def __init__(self, site: Site, rules: SearchSpace, config: LayerConfig, own: Own, *, dropout: float = 0.0) -> None:
        super().__init__(site, rules, [(NONE,)] * len(TENSORS), generator=torch.Generator())
        self.own = own
        self.dropout = dropout
        bias = site.bias or site.new_bias
        self.config = LayerConfig(
            config.A,
            config.B,
            config.C if bias else NONE,
            config.D if site.bias else NONE,
            config.E if bias else NONE,
        )

    def tensor(self, tensor: str) -> dict[str, Tensor]:
        """The `down`, and of a LoRA the `up`, of one support tensor that the configuration has."""
        raise NotImplementedError

    def whole(self, tensor: str) -> dict[str, Tensor]:
        choice: Choice = getattr(self.config, tensor)
        return self.tensor(tensor) if choice.kind != "none" else {}


def rules_of(*configs: LayerConfig, product: Literal["elementwise", "matrix"] = "matrix") -> SearchSpace:
    """The rules of adapters that play these configurations, as published: no fixed scales, and no choice dropped."""
    ranks = {choice.rank for config in configs for choice in config if choice.kind == "lora"}
    return SearchSpace(ranks=tuple(ranks) or (1,), product=product, variant="paper", scaling="none", new_bias=True)


def sites_named(
    model: nn.Module, names: Sequence[str], what: str, *, head: Sequence[str], new_bias: bool = False
) -> dict[str, Site]:
    """The sites of exactly these layers, in the model's order.

    Args:
        model: The plain model.
        names: Names of layers that the method needs, all of them.
        what: The method, in an error's words: `"FacT"`.
        head: Names of the modules trained whole.
        new_bias: Whether layers without a bias may get one.

    Raises:
        TargetError: One of them cannot be adapted.
    """
    found, _, _ = plan_sites(model, targets=tuple(names), skip=(), head=head, new_bias=new_bias, example=None)
    if missing := [name for name in names if name not in found]:
        raise TargetError(
            f"{what} changes {missing[0]}, a {type(model.get_submodule(missing[0])).__name__} that cannot be adapted.",
            allowed="Its weight must be its own, and plain or quantised in a way that is known.",
            remedy="Choose a method that takes targets: glora, lora.",
        )
    return {name: site for name, site in found.items() if name in names}


class TunedTied(TunedNumbers):
    """A model that plays support tensors computed from a method's own numbers, which are what is trained and saved.

    Args:
        method: The settings, which travel with the file.
        model: The plain model.
        supports: Site name -> its support tensors.
        own: Name -> numbers; a file has `NAME.KEY`.
        head: Names of the modules trained whole.
        statistics: Train running statistics outside the head and save them.
        notes: What a user should be told.

    Attributes:
        adapted: The same as an adapted model, which can be saved as a plain adapter, merged and detached.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        supports: Mapping[str, Tied],
        own: Mapping[str, Own],
        head: Sequence[str],
        *,
        statistics: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        sites = {name: support.site for name, support in supports.items()}
        genotype = Genotype({name: support.config for name, support in supports.items()})
        space = BoundSpace(next(iter(supports.values())).space, sites, only=genotype)
        self.adapted = Adapted(model, sites, space, tuple(head), statistics=statistics, supports=supports)
        numbers = {f"{name}.{key}": value for name, module in own.items() for key, value in module.named_parameters()}
        super().__init__(method, model, numbers, head, statistics=True)  # `adapted` freezes them
        self.statistics = self.adapted.statistics
        self.adapted.note_undropped(name for name, support in supports.items() if support.dropout)
        self.notes = (*notes, *self.adapted.notes)

    @property
    def summary(self) -> str:
        return f"{len(self.adapted.sites)} layers: {super().summary}"

    def base_fingerprint(self) -> str:
        return self.adapted.base_fingerprint()

    def merged(self) -> nn.Module:
        return self.adapted.merge(keep_base=False)

    @property
    def new_keys(self) -> tuple[str, ...]:
        return self.adapted.new_keys
