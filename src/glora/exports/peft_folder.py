"""What PEFT's folders have in common: which layers have a place there, what is kept whole, names, and the two files."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn

from glora.adapt import attach
from glora.adapt.adapted import Adapted
from glora.adapt.head import is_inside
from glora.adapt.sites import called_layers
from glora.adapt.statistics import statistics_of
from glora.errors import GloraError, RunError, TargetError
from glora.exports.card import Facts, Loading
from glora.exports.changes import Change, changes_of
from glora.exports.export import Export, Trained, Written
from glora.files import write_json

__all__ = ["OTHERWISE", "Contents", "PeftFolder", "module_of", "plain_name"]

PREFIX = "base_model.model."
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TASKS = {"ForCausalLM": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}  # ends of the model's class
OTHERWISE = "Export the merged model: --to huggingface, onnx or torch."


class Contents(NamedTuple):
    """What goes into a folder.

    Attributes:
        settings: The format's own keys of the configuration.
        tensors: Names below the base model's -> values.
        targets: Names of the layers with an adapter.
        notes: What a user should be told.
        told: Plain data for the card's file.
    """

    settings: Mapping[str, Any]
    tensors: dict[str, Tensor]
    targets: tuple[str, ...]
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] = {}


class PeftFolder(Export):
    """A folder that PEFT loads."""

    @abstractmethod
    def contents(self, trained: Trained, changes: Sequence[Change]) -> Contents:
        """What goes into the folder for these changes, all of which have a place.

        Raises:
            GloraError: They cannot be written; all of them are listed.
        """

    @abstractmethod
    def place(self, change: Change) -> str:
        """Where a change has a place: `"adapter"`, `"whole"` (its module is saved whole), else why it has none."""

    def write(self, trained: Trained, folder: Path, name: str) -> Written:
        adapted = trained.need_adapted(self.export_name)
        changes = changes_of(adapted)
        places = {change.name: self.place(change) for change in changes}
        lost = {each: why for each, why in places.items() if why not in ("adapter", "whole")}
        lost |= _unplayed(adapted, [each for each in changes if places[each.name] == "adapter"], trained.example)
        self._refuse(lost)
        whole = _whole(adapted, [change for change in changes if places[change.name] == "whole"])
        self.check_whole(trained, whole)
        found = self.contents(trained, [change for change in changes if places[change.name] == "adapter"])
        _refuse_nothing(found)
        tensors, modules = found.tensors | _values(adapted.model, whole, found.targets), sorted(whole)
        config = _config(adapted.model, trained.facts, found, modules)
        save_file(_contiguous(tensors), folder / ADAPTER, metadata={"format": "pt"})
        write_json(folder / CONFIG, config)
        return Written(loading=self.loading(trained, name), notes=found.notes, told=found.told)

    @property
    def export_name(self) -> str:
        """What `glora export --to` calls it."""
        return str(self.name)  # type: ignore[attr-defined]

    def loading(self, trained: Trained, name: str) -> Loading:
        """How the folder is loaded."""
        return peft_loading(trained.facts, name)

    def check_whole(self, trained: Trained, modules: Sequence[str]) -> None:
        """Raises GloraError where the format has no place for modules that are saved whole."""
        return

    def _refuse(self, lost: Mapping[str, str]) -> None:
        if lost:
            lines = "".join(f"\n  {name}: {why}" for name, why in lost.items())
            raise GloraError(
                f"The format {self.export_name!r} cannot hold what was trained at {len(lost)} layers:{lines}\n",
                remedy=OTHERWISE,
            )


def module_of(change: Change) -> tuple[str, ...]:
    """Names of the layers of a change, several where their weight is tied."""
    return tuple(weight.module for weight in change.layers)


def plain_name(layer: nn.Module) -> str:
    """What the type of a layer is called, adapted or not."""
    return (type(layer).__bases__[0] if attach.is_attached(layer) else type(layer)).__name__


def peft_loading(facts: Facts, name: str) -> Loading:
    """Three lines for PEFT; without the base's where a program gave it."""
    tags = ("peft", "lora")
    line = f"model = peft.PeftModel.from_pretrained(base, {name!r}).eval()"
    if facts.base.build:
        code = (f"import peft, {facts.base.module}", f"base = {facts.base.build}", line)
        return Loading(library="peft", code=code, tags=tags)
    return Loading(
        library="peft",
        code=("import peft", line),
        tags=tags,
        comment=f"`base` is the {facts.base.name} that it was trained on.",
    )


def _unplayed(adapted: Adapted, changes: Iterable[Change], example: Any) -> dict[str, str]:
    """Layers whose weight is read without a call: PEFT, which replaces calls, would silently do nothing there."""
    names = [module for change in changes for module in module_of(change)]
    if not names:
        return {}
    try:
        called = called_layers(adapted.model, names, example)
    except TargetError as error:
        raise RunError(
            "It is not known how the model is called, and PEFT does nothing where a layer's weight is read without a "
            "call: that must be tried.",
            remedy="Give an input: glora.export(..., example=x).",
        ) from error
    return {name: "the model reads its weight without calling it" for name in names if name not in called}


def _whole(adapted: Adapted, changes: Iterable[Change]) -> tuple[str, ...]:
    """Names of the modules that are saved whole: the head, layers of these changes, trained running statistics."""
    statistics = statistics_of(adapted.model, adapted.head) if adapted.statistics else {}
    names = (*(module for each in changes for module in module_of(each)), *(n.rpartition(".")[0] for n in statistics))
    return tuple(dict.fromkeys((*adapted.head, *names)))


def _values(model: nn.Module, modules: Sequence[str], targets: Sequence[str]) -> dict[str, Tensor]:
    """What the modules that are saved whole hold, and those that PEFT takes for them: it looks at the ends of names.

    Raises:
        GloraError: PEFT would take a layer with an adapter, or what it is in, for one of them.
    """
    every = dict(model.named_modules())
    taken = [name for name in every if any(name.endswith(module) for module in modules)]
    inner = [name for name in taken if any(is_inside(target, (name,)) for target in targets)]
    if inner:
        raise GloraError(
            f"PEFT knows modules that are saved whole by the ends of their names, and takes {inner[0]!r} for one.",
            allowed=f"Those are {', '.join(modules)}.",
            remedy=OTHERWISE,
        )
    return {f"{name}.{key}": value for name in taken for key, value in _state(every[name]).items()}


def _state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict as it plays, adapted or not."""
    found: dict[str, Tensor] = {}
    for name, each in module.named_modules():
        start = f"{name}." if name else ""
        kept = {key: value for key, value in each._buffers.items() if key not in each._non_persistent_buffers_set}
        own: dict[str, Tensor | None] = {**each._parameters, **kept}
        if attach.is_attached(each):
            own |= attach.effective(each)
        if "parametrizations" not in name.split("."):
            found |= {f"{start}{key}": value.detach() for key, value in own.items() if value is not None}
    return found


def _as_targets(model: nn.Module, targets: Sequence[str]) -> list[str] | str:
    """The targets as PEFT's `target_modules`: a list, or an expression where the end of a name would take others."""
    wanted = set(targets)
    others = [name for name, _ in model.named_modules() if name not in wanted]
    ends = {name[place + 1 :] for name in others for place, letter in enumerate(name) if letter == "."}
    if wanted & ends:
        return "|".join(map(re.escape, targets))
    return list(targets)


def _config(model: nn.Module, facts: Facts, found: Contents, modules: Sequence[str]) -> dict[str, Any]:
    task = next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)
    return {
        **found.settings,
        "base_model_name_or_path": facts.base.name,
        "bias": found.settings.get("bias", "none"),
        "inference_mode": True,
        "modules_to_save": list(modules) or None,
        "target_modules": _as_targets(model, found.targets),
        "task_type": task,
    }


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under PEFT's names, each in memory of its own."""
    return {PREFIX + name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}


def _refuse_nothing(found: Contents) -> None:
    """Raises GloraError where no layer has an adapter: PEFT needs one."""
    if not found.targets:
        raise GloraError(
            "No layer's weight or bias is changed but by what is saved whole: PEFT needs one layer with an adapter.",
            remedy=OTHERWISE,
        )
