"""What the readers of other libraries' adapters share: the sites of a model by layer, and the state that is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from glora.adapt.head import fits_head, head_of, is_inside
from glora.adapt.sites import LayerWeight, site_of, weights_by_site
from glora.adapt.state import AdapterState
from glora.errors import AdapterFileError, listed
from glora.genotype import Genotype, LayerConfig, Site
from glora.space import Choice, SearchSpace

__all__ = ["Layer", "Parts", "layers_of", "refuse"]


def refuse(path: Path, what: str, *, remedy: str = "") -> NoReturn:
    """Raises AdapterFileError with the path."""
    raise AdapterFileError(f"{path}: {what}", remedy=remedy)


@dataclass(frozen=True)
class Layer:
    """A layer that can be adapted.

    Attributes:
        name: The name of its site; of a tied weight that of its first layer.
        site: Its site.
        group: The layers that share the weight.
        weight: Its own.
    """

    name: str
    site: Site
    group: Sequence[LayerWeight]
    weight: LayerWeight


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Name of a weight -> its layer, of every weight that can be adapted."""
    found = {}
    for name, group in weights_by_site(model).items():
        for weight in group:
            found[weight.name] = Layer(name, site_of(group), group, weight)
    return found


@dataclass
class Parts:
    """An adapter as it is read, site by site.

    Attributes:
        path: Where from.
        tensors: `SITE.TENSOR.down` or `.up` -> numbers.
        configs: Site -> choices.
    """

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    scales: dict[str, dict[str, float]] = field(default_factory=dict)
    configs: dict[str, dict[str, Choice]] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    head_modules: tuple[str, ...] = ()

    def put(self, layer: Layer, tensor: str, choice: Choice, **factors: Tensor) -> None:
        """One support tensor of a site, its factors in float32; a bias that the layer has not becomes a new one."""
        self.sites.setdefault(layer.name, layer.site)
        self.scales.setdefault(layer.name, {})
        self.configs.setdefault(layer.name, {})[tensor] = choice
        if tensor in "CE" and not layer.site.bias:
            view = layer.weight.view
            if len(layer.group) > 1 or not view.new_bias or layer.weight.bias is not None:
                refuse(self.path, f"{layer.name} has no bias of its own that could be shifted.")
            self.sites[layer.name] = replace(layer.site, new_bias=True)
        for side, value in factors.items():
            self.tensors[f"{layer.name}.{tensor}.{side}"] = value.detach().float().contiguous()

    def state(self, model: nn.Module, *, product: str, whole: SearchSpace | None = None) -> AdapterState:
        """The state, checked against the model; of a whole supernet where its space is given.

        Raises:
            AdapterFileError: A shape is not the site's, or the head does not fit.
        """
        order = [name for name in weights_by_site(model) if name in self.sites]
        if not order:
            refuse(self.path, "it adapts no layer.")
        configs = {name: LayerConfig(**{t: str(choice) for t, choice in self.configs[name].items()}) for name in order}
        ranks = tuple({choice.rank for config in configs.values() for choice in config if choice.rank}) or (1,)
        new_bias = any(site.new_bias for site in self.sites.values())
        space = whole or SearchSpace(ranks, product, "paper", new_bias, "none")  # type: ignore[arg-type]
        state = AdapterState(
            space,
            {name: self.sites[name] for name in order},
            None if whole is not None else Genotype(configs),
            {name: self.scales[name] for name in order},
            self.tensors,
            self.head,
            self.head_modules,
        )
        self._check(model, state)
        return state

    def _check(self, model: nn.Module, state: AdapterState) -> None:
        shapes = state.shapes()
        if odd := sorted(shapes.keys() ^ state.tensors.keys()):
            refuse(self.path, f"{listed(odd)} {'are' if len(odd) > 1 else 'is'} missing or too much.")
        for key, shape in shapes.items():
            if tuple(state.tensors[key].shape) != shape:
                found = tuple(state.tensors[key].shape)
                refuse(
                    self.path, f"{key} has shape {found}, where {shape} is needed.", remedy="Build the base of then."
                )
        if inner := [name for name in state.sites if is_inside(name, state.head_modules)]:
            refuse(self.path, f"{listed(inner)} is adapted and saved whole too.")
        wanted = head_of(model, state.head_modules)
        if lost := sorted(wanted.keys() ^ state.head.keys()):
            refuse(self.path, f"the modules saved whole lack or have too much: {listed(lost)}.")
        if odd := [name for name, value in state.head.items() if not fits_head(model, name, value)]:
            refuse(self.path, f"{listed(odd)} has another shape than the model's.", remedy="Build the base of then.")


def named(every: Mapping[str, Tensor], ending: str) -> dict[str, Tensor]:
    """The tensors whose names end so, by what comes before."""
    return {name.removesuffix(ending): value for name, value in every.items() if name.endswith(ending)}
