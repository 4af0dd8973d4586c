"""PEFT's GLoRA: the elementwise product, one setting for all layers; Xd is `down` and Xu is `up`, `constant` a scalar.

It adds C, D and E where a layer has a bias, and ignores them elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from glora.adapt.foreign.parts import Layer, Parts, layers_of, refuse
from glora.adapt.foreign.peft_folder import Config, PeftKind
from glora.errors import listed
from glora.genotype import TENSORS, Choice

__all__ = ["PeftGlora"]


class PeftGlora(PeftKind):
    """Reads `peft_type: GLORA`."""

    known: ClassVar = frozenset({"r", "config_A_B", "config_C", "config_D_E", "init_weights"})
    product: ClassVar = "elementwise"

    def check(self, path: Path, config: Config) -> None:
        return

    def take(self, parts: Parts, model: nn.Module, config: Config, tensors: dict[str, Tensor]) -> None:
        layers, found = layers_of(model), dict[str, dict[str, dict[str, Tensor]]]()
        for name in [name for name in tensors if ".glora_" in name]:
            module, _, rest = name.rpartition(".glora_")
            tensor, _, part = rest.partition(".")
            value = tensors.pop(name)
            if part != "zeros":  # of one that is switched off
                found.setdefault(module, {}).setdefault(tensor, {})[part] = value
            else:
                found.setdefault(module, {})
        if lost := [name for name in found if name not in layers or layers[name].site.kind != "linear"]:
            refuse(
                parts.path, f"{type(model).__name__} has no linear {listed(lost)} to adapt.", remedy="Build its base."
            )
        for module, by_tensor in found.items():
            if len(layers[module].group) > 1:
                refuse(parts.path, f"{module} shares its weight with another layer.")
            _take_layer(parts, module, layers[module], by_tensor)


def _take_layer(parts: Parts, module: str, layer: Layer, by_tensor: dict[str, dict[str, Tensor]]) -> None:
    for tensor, given in by_tensor.items():
        if tensor not in TENSORS or given.keys() not in ({"X"}, {"Xd", "Xu"}):
            refuse(parts.path, f"{module}.glora_{tensor} has {listed(sorted(given))}, which is no GLoRA of PEFT's.")
        if tensor in "CDE" and not layer.site.bias:
            continue
        if "X" not in given:
            rank = given["Xd"].shape[-1]
            parts.put(layer, tensor, Choice("lora", rank), down=given["Xd"], up=given["Xu"])
            continue
        value, one = given["X"], given["X"].numel() == 1
        shape = (value.numel(),) if tensor in "DE" else (value.numel(), 1)
        length = layer.site.in_features if tensor == "C" else layer.site.out_features
        kind = "scalar" if one and length > 1 else "vector"
        parts.put(layer, tensor, Choice(kind), down=value.reshape(shape))
    parts.configs.setdefault(layer.name, {})
    parts.sites.setdefault(layer.name, layer.site)
    parts.scales.setdefault(layer.name, {})
