"""Where the affine weights of a model are, adapted or not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glora import layers
from glora.genotype import Site
from glora.layers.quantized import plain_parts

__all__ = ["Place", "adaptable", "base_state", "holders", "is_inside", "places", "site_of"]


class Place(NamedTuple):
    """One affine weight of one layer.

    Attributes:
        module: The layer's name in the model.
        slot: What the weight adds to it; `""` for a layer's only one.
        layer: The layer.
        view: How it shows the weight.
        site: The weight's site, as the plain layer has it.
        weight: The weight's parameter, the frozen one of an adapted layer.
        bias: The same of the layer's bias, or None.
    """

    module: str
    slot: str
    layer: nn.Module
    view: layers.View
    site: Site
    weight: Any
    bias: Any

    @property
    def name(self) -> str:
        """The site's name."""
        return ".".join(part for part in (self.module, self.slot) if part)


def places(model: nn.Module) -> dict[str, Place]:
    """Every affine weight that can be adapted or is, site name -> Place, in the model's order.

    A bias that another module has too is none of the site's: C, D and E would change it there.
    """
    owners = _owners(model)
    found = {}
    for module, layer in model.named_modules():
        if layers.is_attached(layer):
            views = {slot: adapter.view for slot, adapter in layers.adapters_of(layer).items()}
        else:
            views = layers.views_of(layer)
        for slot, view in views.items():
            weight, bias = (layers.plain_parameter(layer, name) for name in (view.weight, view.bias))
            site = replace(view.site, bias=view.site.bias and owners[id(bias)] == 1)
            place = Place(module, slot, layer, view, site, weight, bias)
            found[place.name] = place
    return found


def _owners(model: nn.Module) -> Counter[int]:
    """How many modules have a parameter, by its id."""
    return Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())


def holders(model: nn.Module) -> dict[str, list[Place]]:
    """Site name -> its place, and every other that shows the same weight (tied), in the model's order."""
    groups: dict[int, list[Place]] = {}
    for place in places(model).values():
        groups.setdefault(id(place.weight), []).append(place)
    return {group[0].name: group for group in groups.values()}


def adaptable(model: nn.Module, head: Sequence[str] = ()) -> dict[str, Site]:
    """Every site of a plain model outside the head, name -> Site, in the model's order.

    A weight shared by several layers is one site, without the biases, which differ: A and B alone. It is none where
    a layer that cannot be adapted, or the head, shares it too, or where the layers see it as different matrices.
    """
    owners = _owners(model)
    found = {}
    for name, group in holders(model).items():
        alone = owners[id(group[0].weight)] == len(group) and not any(is_inside(p.module, head) for p in group)
        if alone and (len(group) == 1 or len(set(map(_matrix, group))) == 1):
            found[name] = site_of(group)
    return found


def _matrix(place: Place) -> tuple[Site, tuple[int, ...]]:
    """Which matrix a place sees: its sizes, and where its numbers are in the weight."""
    like = torch.empty_like(place.weight, device="meta")
    return replace(place.site, kind="", bias=False, fixed=None), place.view.matrix(like).stride()


def site_of(group: Sequence[Place]) -> Site:
    """The site of the weight that these places show; a shared row is never fixed, an output head trains it too."""
    return group[0].site if len(group) == 1 else replace(group[0].site, bias=False, fixed=None)


def base_state(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The base's parameters and persistent buffers by their plain names, adapted or not, without the head.

    Of a quantised tensor its plain inner ones.
    """
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        plain = re.sub(r"\.?parametrizations\.(\w+)\.original$", r".\1", key).removeprefix(".")
        added = plain != key and _is_new(model, key)
        if not re.search(r"(^|\.)parametrizations\.", plain) and not added and not is_inside(plain, head):
            found |= {part: tensor.detach() for part, tensor in plain_parts(plain, value)}
    return found


def _is_new(model: nn.Module, key: str) -> bool:
    """Whether the key of an attached layer is the bias that attaching created."""
    layer, _, rest = key.partition("parametrizations.")
    return layers.is_new_bias(model.get_submodule(layer.rstrip(".")), rest.partition(".")[0])


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether the module or tensor of this name is one of the modules or within it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
