"""PEFT's folders: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`); what holds for every kind.

What has no counterpart is refused by name: another kind of adapter, a setting that is not known and not off, weights
that belong to nothing. PEFT reads most of such folders without a word, with wrong numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from glora.adapt.foreign.parts import Parts, layers_of, refuse
from glora.adapt.head import is_inside
from glora.adapt.sites import base_state
from glora.adapt.state import AdapterState
from glora.backbones.checkpoint import read_pickled
from glora.errors import BackboneError, listed
from glora.plain import parse_json
from glora.registry import load

__all__ = ["PeftFolder", "PeftKind"]

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
KINDS = {  # peft_type -> its reader
    "LORA": "glora.adapt.foreign.peft_lora:PeftLora",
    "GLORA": "glora.adapt.foreign.peft_glora:PeftGlora",
}
ANYWHERE = {  # settings that change no number of a trained adapter
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
}  # fmt: skip
OFF: tuple[Any, ...] = (None, False, {}, [], "", 0)
Config = Mapping[str, Any]


class PeftKind(ABC):
    """One `peft_type`.

    Attributes:
        known: Settings that are read, or change no number of a trained adapter.
        biases: Values of `bias` that are read, besides `"none"`.
    """

    known: ClassVar[frozenset[str]]
    biases: ClassVar[tuple[str, ...]] = ()
    product: ClassVar[str]

    @abstractmethod
    def check(self, path: Path, config: Config) -> None:
        """Raises AdapterFileError on a setting without a counterpart."""

    @abstractmethod
    def take(self, parts: Parts, model: nn.Module, config: Config, tensors: dict[str, Tensor]) -> None:
        """Puts the adapted layers into the parts, and takes their tensors out of the mapping."""


class PeftFolder:
    """Reads a folder of PEFT's."""

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether the path is such a folder."""
        return path.is_dir()

    @staticmethod
    def read(model: nn.Module, path: Path) -> AdapterState:
        """The adapter in the folder, checked against the model.

        Raises:
            AdapterFileError: It is damaged, does not fit, or has settings without a counterpart.
        """
        config = _config(path)
        kind: PeftKind = load(KINDS[config["peft_type"]])()
        _check_settings(kind, path, config)
        tensors, parts = _tensors(path), Parts(path)
        kind.take(parts, model, config, tensors)
        _take_whole(parts, model, config, tensors)
        return parts.state(model, product=kind.product)


def _config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    if not file.is_file():
        refuse(path, f"the folder has no {CONFIG}.", remedy="Give an adapter file, or a folder that PEFT wrote.")
    try:
        config = parse_json(file.read_bytes())
        kind = str(config["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(path, f"{CONFIG} is damaged: {type(error).__name__}: {error}.", remedy="Copy the folder again.")
    if kind not in KINDS:
        refuse(path, f"PEFT's {kind} has no counterpart; read are {' and '.join(KINDS)}.")
    return dict(config)


def _check_settings(kind: PeftKind, path: Path, config: Config) -> None:
    if (bias := config.get("bias") or "none") != "none" and bias not in kind.biases:
        allowed = " or ".join(repr(each) for each in ("none", *kind.biases))
        refuse(path, f"bias={bias!r} trains biases of layers without an adapter too, which has no counterpart; "
                     f"read is {allowed}.")  # fmt: skip
    kind.check(path, config)
    unknown = {name: value for name, value in config.items() if name not in ANYWHERE | kind.known and value not in OFF}
    if unknown:
        shown = listed((f"{name}={value!r}" for name, value in sorted(unknown.items())), n=10)
        refuse(path, f"settings without a counterpart here: {shown}.", remedy="Merge it with PEFT, and take the model.")


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors, by their names in the base model."""
    try:
        if (path / WEIGHTS).is_file():
            found = load_file(path / WEIGHTS)
        elif (path / PICKLED).is_file():
            found = read_pickled(path / PICKLED)
        else:
            refuse(path, f"the folder has no {WEIGHTS}.", remedy="Copy it again.")
    except (SafetensorError, OSError, BackboneError) as error:
        refuse(path, f"its weights are damaged: {error}", remedy="Copy the folder again.")
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        refuse(path, "its weights are no tensors by name.")
    if odd := [name for name, value in found.items() if not bool(value.isfinite().all())]:
        refuse(path, f"{listed(odd)} has numbers that are not finite.", remedy="Save or copy it again.")
    if odd := [name for name in found if not name.startswith(PREFIX)]:
        refuse(path, f"{listed(odd)} does not begin with {PREFIX!r}: PEFT would leave it out without a word.")
    return {name.removeprefix(PREFIX): value for name, value in found.items()}


def _take_whole(parts: Parts, model: nn.Module, config: Config, tensors: dict[str, Tensor]) -> None:
    """What is left belongs to modules that are saved whole, or is the base's own."""
    endings = tuple(config.get("modules_to_save") or ())
    modules = [name for name, _ in model.named_modules() if name and name.endswith(endings)] if endings else []
    modules = [name for name in modules if not any(is_inside(name, (o,)) for o in modules if o != name)]
    left = {name.replace(".modules_to_save.", "."): value for name, value in tensors.items()}
    parts.head = {name: value.float() for name, value in left.items() if is_inside(name, modules)}
    parts.head_modules = tuple(module for module in modules if any(is_inside(name, (module,)) for name in parts.head))
    own, adapted = base_state(model, ()), layers_of(model)
    for name in left.keys() - parts.head.keys():
        plain = name.replace(".base_layer.", ".")
        same = (
            plain in own and own[plain].shape == left[name].shape and torch.equal(own[plain], left[name].to(own[plain]))
        )
        if not same:
            what = "is not the base's, and of" if plain in own or name in adapted else "is of"
            refuse(parts.path, f"{name} {what} no adapter or module that is saved whole.",
                   remedy="Is this the base that it was trained on?")  # fmt: skip
    for module in parts.head_modules:
        tied = [name for name, layer in adapted.items() if is_inside(name, (module,)) and len(layer.group) > 1]
        if tied:
            refuse(parts.path, f"{tied[0]} is saved whole, and its weight is another layer's too.")
