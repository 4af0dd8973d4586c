"""GLoRA's supernet, and the methods that are one fixed LayerConfig of it: LoRA and BitFit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from glora.adapt.adapted import Adapted, inject
from glora.adapt.supernet import Sampling, Supernet
from glora.genotype import Genotype, LayerConfig
from glora.space import SearchSpace

__all__ = ["BitFit", "GLoRA", "LoRA", "TunedAdapter"]


class TunedAdapter:
    """An adapted model as a Tuned: it plays random subnets at every step where its space has several.

    Args:
        adapted: The adapted model.
        how: Which subnets it plays, as `Supernet` has it.
    """

    def __init__(self, adapted: Adapted, **how: Any) -> None:
        self.adapted = adapted
        self.supernet = Supernet(adapted, **how)
        self.model = adapted.model
        self.head = adapted.head

    def before_step(self, rng: random.Random, places: Sequence[int], of: int, done: float) -> None:
        if self.adapted.space.size > 1:
            self.supernet.sample(rng, places, of, done)

    def parameters(self) -> list[nn.Parameter]:
        return self.adapted.parameters()

    def count(self) -> int:
        active = self.adapted.active
        return self.adapted.count(active if isinstance(active, Genotype) else active[0])

    def state(self) -> dict[str, Tensor]:
        state = self.adapted.state(whole=True)
        return {**state.tensors, **state.head, **state.statistics}

    def merge(self) -> nn.Module:
        return self.adapted.merge()


@dataclass(frozen=True)
class GLoRA:
    """The supernet over all layer-wise configurations of a search space (arXiv 2306.07967).

    Attributes:
        space: What may be chosen at every site.
        targets: Which layers are sites; `skip` leaves some out.
        statistics: Let training update the running statistics of norms.
        sampling: A random subnet for every sample of a training step, or one for the step ("batch").
        largest: Share of the samples that play the largest subnet instead, at first; it falls to none.
    """

    space: SearchSpace = field(default_factory=SearchSpace)
    targets: str | tuple[str, ...] = "linear"
    skip: tuple[str, ...] = ()
    statistics: bool = False
    sampling: Sampling = "sample"
    largest: float = 1.0
    lr: float = 1e-3

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        """The model with its support tensors injected."""
        where = {"targets": self.targets, "skip": self.skip, "head": head}
        adapted = inject(model, self.space, **where, seed=seed, statistics=self.statistics)
        return TunedAdapter(adapted, sampling=self.sampling, largest=self.largest)


@dataclass(frozen=True)
class LoRA:
    """LoRA (arXiv 2106.09685) on every target: `W0 + down up`, alpha = rank; GLoRA with B alone and no fixed scale.

    Departure: the random factor is Xavier-uniform as in GLoRA, not Kaiming-uniform.
    """

    rank: int = 8
    targets: str | tuple[str, ...] = "linear"
    skip: tuple[str, ...] = ()
    statistics: bool = False
    lr: float = 3e-3

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        """The model with LoRA on its targets."""
        space = SearchSpace(ranks=(self.rank,), only=LayerConfig(B=f"lora:{self.rank}"), scaling="none")
        return GLoRA(space, self.targets, self.skip, self.statistics).apply(model, head=head, seed=seed)


@dataclass(frozen=True)
class BitFit:
    """BitFit (arXiv 2106.10199) on the biases of every target: GLoRA with E alone.

    Departure: the biases of norms and of the patch embedding stay frozen; those of norms before a Linear fold
    exactly into its E.
    """

    targets: str | tuple[str, ...] = "linear"
    skip: tuple[str, ...] = ()
    statistics: bool = False
    lr: float = 1e-3

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapter:
        """The model with its target biases trainable."""
        space = SearchSpace(only=LayerConfig(E="vector"))
        return GLoRA(space, self.targets, self.skip, self.statistics).apply(model, head=head, seed=seed)
