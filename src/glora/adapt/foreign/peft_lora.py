"""PEFT's LoRA: B at every layer, `alpha / r` (rsLoRA: `alpha / sqrt(r)`) as its scale, and E where its bias is trained.

Names below the base model's: `lora_A` `(r, i)` is `up`, `lora_B` `(o, r)` is `down`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from glora.adapt.foreign.parts import Layer, Parts, layers_of, named, refuse
from glora.adapt.foreign.peft_folder import Config, PeftKind
from glora.adapt.layers.conv import Conv, ConvTranspose
from glora.adapt.layers.embedding import Embedding
from glora.errors import AdapterFileError, listed
from glora.genotype import Choice

__all__ = ["PeftLora"]

STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # that leave the base as it is
KNOWN = {
    "r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora", "init_lora_weights", "rank_pattern",
    "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
    "qalora_group_size", "lora_bias", "ensure_weight_tying",
}  # fmt: skip
MOST = 1e9  # alpha / rank


class PeftLora(PeftKind):
    """Reads `peft_type: LORA`."""

    known: ClassVar = frozenset(KNOWN)
    biases: ClassVar = ("lora_only",)
    product: ClassVar = "matrix"

    def check(self, path: Path, config: Config) -> None:
        if config.get("use_dora"):
            refuse(path, "it is a DoRA (use_dora=true), which has no counterpart: its norms are no support tensor.")
        start = config.get("init_lora_weights", True)
        if start not in STARTS:
            refuse(
                path,
                f"init_lora_weights={start!r} began with another base than the pretrained one.",
                remedy="Convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
            )

    def take(self, parts: Parts, model: nn.Module, config: Config, tensors: dict[str, Tensor]) -> None:
        layers = layers_of(model)
        pairs = _pairs(parts.path, tensors)
        if lost := [name for name in pairs if name not in layers]:
            refuse(parts.path, f"{type(model).__name__} has no {listed(lost)} to adapt.", remedy="Build its base.")
        _check_tied(parts.path, layers, pairs)
        for module, (up, down) in pairs.items():
            layer, scale = layers[module], _scale(module, config, up.shape[0])
            rank = _pattern(config.get("rank_pattern"), module, config.get("r"))
            if isinstance(rank, int) and rank != up.shape[0]:
                refuse(parts.path, f"{module} has rank {up.shape[0]}, and {rank} by the configuration.")
            factors = _factors(parts.path, module, layer, up, down if scale > 0 else down * scale)
            parts.put(layer, "B", Choice("lora", up.shape[0]), **factors)
            if scale > 0 and scale != 1.0:  # a scale of ours is above 0
                parts.scales[layer.name]["B.lora"] = scale
            shift = tensors.pop(f"{module}.lora_B.bias", None)
            if shift is not None and shift.any():
                parts.put(layer, "E", Choice("vector"), down=scale * shift.float())
            if config.get("bias") == "lora_only":
                _take_bias(parts, module, layer, tensors)


def _pairs(path: Path, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> `lora_A` and `lora_B`, of an embedding turned as a linear layer has them; taken out of the mapping."""
    found = {}
    for ends in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
        first, second = (named(tensors, end) for end in ends)
        if odd := sorted(first.keys() ^ second.keys()):
            refuse(path, f"{listed(odd)} has one factor alone.", remedy="Copy the folder again.")
        for name in first:
            up, down = (tensors.pop(name + end) for end in ends)
            found[name] = (down.T, up.T) if "embedding" in ends[0] else (up, down)
    return found


def _factors(path: Path, module: str, layer: Layer, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """PEFT's pair as `up` `(r, i)` and `down` `(o, r)`."""
    view, site = layer.weight.view, layer.site
    if site.kind == "attention" or type(layer.weight.layer).__name__ == "NonDynamicallyQuantizableLinear":
        refuse(path, f"{module} is in an nn.MultiheadAttention, where PEFT adds what it learned in other ways.")
    if site.diagonal or isinstance(view, ConvTranspose):
        refuse(path, f"{module} is a {site.kind} layer of a kind that has no LoRA here.")
    if isinstance(view, Conv):
        if view.groups > 1:
            refuse(path, f"{module} is a convolution in groups, whose LoRA mixes them.")
        up, down = up.flatten(1), down.flatten(1)
    if isinstance(view, Embedding) and site.fixed is not None and down[site.fixed].any():
        refuse(path, f"{module} changes the row of its padding, which stays as it is here.")
    return {"up": up, "down": down}


def _scale(module: str, config: Config, rank: int) -> float:
    alpha = float(_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not abs(scale) <= MOST:
        raise ValueError(f"{module} is multiplied by {scale:.3g}")
    return scale


def _pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """What a `rank_pattern` or `alpha_pattern` says of a layer: the first that matches the end of its name."""
    if not isinstance(patterns, Mapping | None):
        raise TypeError(f"{str(patterns)[:80]!r} is no pattern and value")
    for each in patterns or {}:  # a stranger's, and Python's search for them has no limit of its own
        if len(each) > 200 or len(re.findall(r"[*+?{]", each)) > 3 or re.search(r"\)[*+{]", each):
            raise ValueError(f"the pattern {each[:80]!r} could take for ever")
    key = next((key for key in patterns or {} if re.match(rf"(.*\.)?({key})$", module)), None)
    return otherwise if key is None or patterns is None else patterns[key]


def _check_tied(path: Path, layers: Mapping[str, Layer], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Raises AdapterFileError where one of several layers with one weight is adapted alone, or each in its own way."""
    for module in pairs:
        others = [weight.name for weight in layers[module].group]
        same = all(name in pairs and all(map(_equal, pairs[name], pairs[module])) for name in others)
        if not same:
            raise AdapterFileError(
                f"{path}: {module} shares its weight with {listed(name for name in others if name != module)}, "
                "which is adapted in another way or not at all.",
                allowed="A shared weight is one site here.",
                remedy="Untie the weights first: model.config.tie_word_embeddings=False, and clone one.",
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _take_bias(parts: Parts, module: str, layer: Layer, tensors: dict[str, Tensor]) -> None:
    """The bias that was trained whole, as E."""
    for name in (f"{module}.base_layer.bias", f"{module}.bias"):
        bias, own = tensors.pop(name, None), layer.weight.bias
        if bias is None:
            continue
        if own is None or own.shape != bias.shape or not layer.site.bias:
            refuse(parts.path, f"{name} has no counterpart: the layer has no such bias of its own.")
        parts.put(layer, "E", Choice("vector"), down=bias.float() - own.detach().float().to(bias.device))
