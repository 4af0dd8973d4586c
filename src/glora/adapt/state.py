"""One adapter as plain tensors: what a file holds and what an adapted model is rebuilt from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glora.adapt.support import Support
from glora.errors import StateError
from glora.genotype import TENSORS, Genotype, Site
from glora.space import BoundSpace, SearchSpace, factor_shapes

__all__ = ["AdapterState", "NamedAdapter", "fill"]


@dataclass(frozen=True)
class AdapterState:
    """The slices that one genotype reads and the head; or, without a genotype, the whole supernet.

    Attributes:
        space: The rules it was trained in; its product holds for every tensor.
        sites: Site name -> Site.
        genotype: Site name -> LayerConfig; None for a whole supernet.
        scales: Site name -> `TENSOR.kind` -> the fixed scale, where it is not 1.
        tensors: `SITE.TENSOR.down` or `.up` -> the numbers, unscaled.
        head: Parameter and buffer names of the head -> values.
        head_modules: Names of the modules trained whole.
        statistics: Names of running statistics outside the head -> values; empty where they are frozen.
    """

    space: SearchSpace
    sites: dict[str, Site]
    genotype: Genotype | None
    scales: dict[str, dict[str, float]]
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    head_modules: tuple[str, ...]
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that every tensor must have."""
        return expected_shapes(self.space, self.sites, self.genotype)


@dataclass
class NamedAdapter:
    """One of several adapters on the same base.

    Attributes:
        space: What it may play.
        supports: Site name -> its support tensors.
        active: The genotype it plays, or played when another took its place.
        own: Its head and trained running statistics while another plays.
    """

    space: BoundSpace
    supports: dict[str, Support]
    active: Genotype
    own: dict[str, Tensor]


def expected_shapes(
    space: SearchSpace, sites: dict[str, Site], genotype: Genotype | None
) -> dict[str, tuple[int, ...]]:
    """Shape of every `SITE.TENSOR.down` and `.up`: what the genotype reads, or the largest of all choices."""
    found: dict[str, tuple[int, ...]] = {}
    for name, site in sites.items():
        options = space.options(site) if genotype is None else tuple((choice,) for choice in genotype[name])
        for tensor, choices in zip(TENSORS, options, strict=True):
            for choice in choices:
                for side, shape in factor_shapes(site, tensor, choice, space.product).items():
                    key = f"{name}.{tensor}.{side}"
                    found[key] = tuple(map(max, zip(found.get(key, shape), shape, strict=True)))
    return found


def fill(supports: Mapping[str, Support], state: AdapterState) -> None:
    """Writes the state's numbers and scales into the support tensors.

    Raises:
        StateError: A tensor has another shape, or is computed from other numbers.
    """
    if computed := [name for name, support in supports.items() if support.computed]:
        raise StateError(
            f"The support tensors of {computed[0]} are computed from a method's own numbers.",
            remedy="Load the file into a plain model.",
        )
    for site, scales in state.scales.items():
        supports[site].scales = dict(scales)
    with torch.no_grad():
        for key, value in state.tensors.items():
            site, tensor, side = key.rsplit(".", 2)
            mine = supports[site].whole(tensor)[side]
            if mine.shape != value.shape:
                raise StateError(f"{key} has shape {tuple(value.shape)}, not {tuple(mine.shape)}.")
            mine.copy_(value)
