"""GLoRA (arXiv 2306.07967): the weight-entangled supernet over all layer-wise configurations.

    W = W0 + W0 A + B,   b = b0 + W0 C + D * b0 + E

Departures: by default W0 A is the matrix product (`product: matrix`; the authors' code has the elementwise one),
choices that give no more functions than others are left out, and with them the LoRA of A, which B has too
(`variant: slim`), a layer without a bias gets none (`new_bias`), every choice has a fixed scale (`scaling: balanced`),
every example of a batch plays a subnet of its own (`sampling: sample`) and a share of them the largest one at first
(`largest`). `preset: paper` sets all of these as in the authors' code, which has one rank where the text has two. In
both, subnets are drawn before a step, by a generator of their own; the authors draw them within the forward pass, also
in eval mode.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn

from glora.adapt.adapted import Adapted, inject
from glora.adapt.adapter_file import fingerprint, load_adapter, load_supernet, save_adapter, save_supernet
from glora.adapt.state import AdapterState
from glora.adapt.statistics import statistics_of
from glora.adapt.supernet import Sampling, Supernet, copied, on_cpu
from glora.genotype import Genotype
from glora.methods.method import Method, Tuned
from glora.space import BoundSpace, SearchSpace

__all__ = ["Adapting", "GLoRA", "Targeting", "TunedAdapter"]


class TunedAdapter(Tuned):
    """An adapted model as a Tuned: it plays random subnets at every step where its space has several.

    Args:
        adapted: The adapted model.
        sampling, largest: Which subnets it plays, as `Supernet` has it.
    """

    def __init__(self, adapted: Adapted, *, sampling: Sampling = "sample", largest: float = 1.0) -> None:
        self.adapted = adapted
        self.supernet = Supernet(adapted, sampling=sampling, largest=largest)
        self.model = adapted.model
        self.head = adapted.head
        self.notes = adapted.notes
        if adapted.quantized:
            self.no_merge = "its base is quantised; load_adapter(..., check_base=False) merges it into the float base"

    @property
    def space(self) -> BoundSpace | None:
        return self.adapted.space if self.adapted.space.size > 1 else None

    @property
    def summary(self) -> str:
        space, layers = self.adapted.space, f"{len(self.adapted.sites)} layers"
        if self.space is None:
            return f"{layers}: {super().summary}"
        low, high = space.count(space.smallest), space.count(space.largest)
        return f"{layers}: 10^{space.log10_size:.1f} genotypes of {low:,} to {high:,} trainable numbers"

    def before_step(self, rng: random.Random, positions: Sequence[int], batch_size: int, done: float) -> None:
        if self.space is not None:
            self.supernet.sample(rng, positions, batch_size, done)

    @property
    def playing(self) -> list[Any]:
        if self.space is None:
            return []
        active = self.adapted.active
        return [active] if isinstance(active, Genotype) else list(dict.fromkeys(active))

    def parameters(self) -> list[nn.Parameter]:
        return self.adapted.parameters()

    def count(self) -> int:
        active = self.adapted.active
        return self.adapted.count(active if isinstance(active, Genotype) else active[0])

    @property
    def constants(self) -> dict[str, Any]:
        return {name: scales for name, scales in self.adapted.scales.items() if scales}

    def use_constants(self, constants: Mapping[str, Any]) -> None:
        for name, support in self.adapted.supports.items():
            support.scales = dict(constants.get(name, {}))

    def save(self, path: str | Path, info: Mapping[str, Any], *, base_fingerprint: str | None = None) -> None:
        write = save_adapter if self.space is None else save_supernet
        write(self.adapted, path, info=info, base_fingerprint=base_fingerprint)

    def load(self, path: str | Path, *, base_fingerprint: str | None = None) -> None:
        load_supernet(self.adapted, path, base_fingerprint=base_fingerprint)

    def merged(self) -> nn.Module:
        return self.model if self.no_merge else self.adapted.merge(keep_base=False)

    @property
    def new_keys(self) -> tuple[str, ...]:
        return self.adapted.new_keys

    def activate(self, genotype: Genotype) -> None:
        self.adapted.activate(genotype)

    def hold(self, genotype: Genotype) -> AbstractContextManager[nn.Module]:
        return self.adapted.hold(genotype)

    def save_winner(self, path: str | Path, info: Mapping[str, Any], *, base_fingerprint: str | None = None) -> None:
        save_adapter(self.adapted, path, info=info, base_fingerprint=base_fingerprint)

    def alone(self, model: nn.Module) -> TunedAdapter:
        return TunedAdapter(Adapted.from_state(model, self.adapted.state()))

    def snapshot(self, *, cpu: bool = False) -> AdapterState:
        return on_cpu(copied(self.adapted)) if cpu else copied(self.adapted)

    def restore(self, snapshot: AdapterState) -> None:
        self.adapted.load_state(snapshot)

    def strengthen(self, factor: float) -> None:
        self.supernet.scale(factor)


class Targeting(Method):
    """What all methods have that can be told which layers to adapt."""

    targets: str | tuple[str, ...] = Field(
        "linear", description="Layers to adapt: linear, conv, norm, embedding, all, an expression, a list."
    )
    skip: tuple[str, ...] = Field((), description="Layers to leave out: names or name endings.")
    statistics: bool = Field(False, description="Let training update the running statistics of BatchNorm.")

    def base_fingerprint(self, model: nn.Module, head: Sequence[str]) -> str:
        return fingerprint(model, (*head, *(statistics_of(model, head) if self.statistics else ())))


class Adapting(Targeting):
    """What all methods that train support tensors have: where they are, and how their files are read."""

    def inject(self, model: nn.Module, space: SearchSpace, *, head: Sequence[str], seed: int) -> Adapted:
        """The model adapted at the targets."""
        where: dict[str, Any] = {"targets": self.targets, "skip": self.skip, "head": head}
        return inject(model, space, **where, seed=seed, statistics=self.statistics)

    def load(self, model: nn.Module, path: str | Path, *, base_fingerprint: str | None = None) -> Tuned:
        return TunedAdapter(load_adapter(model, path, base_fingerprint=base_fingerprint))


class GLoRA(Adapting):
    """The supernet over all layer-wise configurations of a search space.

    Source: arXiv 2306.07967. `preset: paper` is the method as published.
    """

    lr = 1e-3

    name: Literal["glora"] = "glora"
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field((8, 4), min_length=1, description="LoRA ranks offered.")
    product: Literal["elementwise", "matrix"] = Field("matrix", description="How W0 * A is read.")
    variant: Literal["slim", "lean", "paper"] = Field(
        "slim", description="'paper' offers all choices; 'lean' those that others do not span; 'slim' no LoRA A too."
    )
    new_bias: bool = Field(False, description="Offer C and E on layers without a bias too.")
    scaling: Literal["balanced", "fan_in", "none"] = Field(
        "balanced", description="Fixed scales of the choices: how far a step moves an output; 'none' as published."
    )
    sampling: Sampling = Field("sample", description="A random subnet for every example, or one per step (batch).")
    largest: float = Field(
        1.0, ge=0, le=1, description="Share of the examples that play the largest subnet at first; it falls to none."
    )

    @property
    def title(self) -> str:
        return "GLoRA"

    @property
    def space(self) -> SearchSpace:
        """What may be chosen at every site."""
        names = ("ranks", "product", "variant", "new_bias", "scaling")
        return SearchSpace(**{name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _valid(self) -> GLoRA:
        _ = self.space
        return self

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        adapted = self.inject(model, self.space, head=head, seed=seed)
        return TunedAdapter(adapted, sampling=self.sampling, largest=self.largest)
