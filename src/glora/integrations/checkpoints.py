"""What a trainer's checkpoints of an adapted model are: its support tensors, never its parametrized weights.

A loop that knows nothing of support tensors saves the state dict of the model: the base under `parametrizations.*`,
which `from_pretrained` does not find, so that it draws every adapted weight at random. Here the model's own methods,
which such loops call, write and read adapter files instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glora.adapt.adapted import Adapted
from glora.adapt.adapter_file import save_adapter
from glora.adapt.adapter_format import state_from, tensors_of, write_state
from glora.errors import AdapterFileError, StateError

__all__ = ["ADAPTER", "SUPERNET", "Checkpoints", "SupernetState"]

SUPERNET = "model.safetensors"  # the name by which HF's Trainer knows a checkpoint that it can continue from
ADAPTER = "adapter.safetensors"
OURS = "glora/"  # before the names of a supernet's tensors in a state dict; no module's name has it

METHODS = ("save_pretrained", "load_state_dict")  # that are replaced


class Checkpoints:
    """The model's `save_pretrained` and `load_state_dict` while it is adapted.

    `save_pretrained` writes two adapter files, which `glora.load_adapter` reads: the whole supernet, and the active
    genotype. No `config.json` is written, and the supernet's file has a tensor that goes by the name of an adapted
    weight and has no shape of it: whoever takes the folder for a plain model gets an error and no random weights.
    `load_state_dict` gives the supernet back. Once the model is merged or detached, both are its own again.

    Attributes:
        restored: Whether a supernet was loaded since this was last set to False.
    """

    def __init__(self, adapted: Adapted) -> None:
        self.adapted = adapted
        self.restored = False
        self._fingerprint = ""  # of the base, which is frozen: computed once
        model = adapted.model
        self._before = {name: model.__dict__[name] for name in METHODS if name in model.__dict__}
        model.__dict__.update(save_pretrained=self.save_pretrained, load_state_dict=self.load_state_dict)

    def remove(self) -> None:
        """Gives the model its own methods back."""
        for name in METHODS:
            if getattr(self.adapted.model.__dict__.get(name), "__self__", None) is self:
                del self.adapted.model.__dict__[name]
                if self.adapted.attached and name in self._before:
                    self.adapted.model.__dict__[name] = self._before[name]

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Writes supernet and active genotype into the folder, on the main process.

        Raises:
            StateError: One genotype per sample is active, or the folder would be pushed to a hub.
        """
        adapted, folder = self.adapted, Path(save_directory)
        if not adapted.attached:
            model: Any = adapted.model
            type(model).save_pretrained(model, save_directory, *args, **options)
            return
        if options.get("push_to_hub"):
            raise StateError("An adapted model is not pushed to a hub.", remedy="Merge it first.")
        if not (args[0] if args else options.get("is_main_process", True)):
            return
        base = self._base()
        active, whole = adapted.state(), adapted.state(whole=True)  # both before anything is written
        info = {"genotype": None if active.genotype is None else active.genotype.to_json()}
        save_adapter(adapted, folder / ADAPTER, base_fingerprint=base)
        write_state(
            adapted.model, whole, folder / SUPERNET, info=info, base_fingerprint=base, marks={self._mark: _coded(base)}
        )

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        """Takes over the supernet that `save_pretrained` wrote; another state dict is loaded as ever.

        Raises:
            AdapterFileError: It is of another base, or of another space.
        """
        model, tensors = self.adapted.model, dict(state_dict)
        mark = tensors.get(self._mark)
        if not self.adapted.attached or mark is None or mark.shape != _coded(" " * 64).shape:
            return type(model).load_state_dict(model, state_dict, *args, **options)
        if not torch.equal(tensors.pop(self._mark).cpu(), _coded(self._base())):
            raise _other_base(model)
        self.adapted.load_state(state_from(tensors, self.adapted.state(whole=True), "The checkpoint"))
        self.restored = True
        return type(model).load_state_dict(model, {}, strict=False)._replace(missing_keys=[])

    @property
    def _mark(self) -> str:
        """The name of an adapted weight in the plain model."""
        return f"{next(iter(self.adapted.sites))}.weight"

    def _base(self) -> str:
        self._fingerprint = self._fingerprint or self.adapted.base_fingerprint()
        return self._fingerprint


class SupernetState:
    """The state dict of the model while it is adapted: its supernet and its buffers, and nothing of the base.

    It is there in the state dict of whatever module holds the model. Loading one compares the base, and takes nothing
    else; the state dict of a plain model is refused as lacking the supernet. With `keep_vars=True`, and once the model
    is merged or detached, its state dict is what torch makes of it.
    """

    def __init__(self, adapted: Adapted) -> None:
        self.adapted = adapted
        self._fingerprint = ""  # of the base, which is frozen: computed once
        model: Any = adapted.model
        self._hooks = [
            model.register_state_dict_post_hook(partial(self._saving)),  # torch marks it, and a method takes no marks
            model.register_load_state_dict_pre_hook(partial(self._loading)),
        ]

    def remove(self) -> None:
        """The model's state dict is what torch makes of it."""
        for hook in self._hooks:
            hook.remove()

    def _applies(self, model: Any) -> bool:
        return model is self.adapted.model and self.adapted.attached

    def _saving(self, model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if not self._applies(model):  # a copy of the model has this hook too
            return
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if any(state.get(prefix + name) is value for name, value in parameters.items()):
            return
        for name in parameters:
            state.pop(prefix + name, None)
        for name, value in tensors_of(self.adapted.state(whole=True)).items():
            state[f"{prefix}{OURS}{name}"] = value
        state[f"{prefix}{OURS}base"] = _coded(self._base())

    def _loading(self, model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if not self._applies(model):
            return
        start = prefix + OURS
        found = {name.removeprefix(start): state.pop(name) for name in list(state) if name.startswith(start)}
        if not found:
            raise AdapterFileError(
                f"The state dict holds no supernet for this {type(model).__name__}.",
                allowed="One that was saved while the model was adapted, and its steps were drawn by glora.",
                remedy="Load the weights of the base before inject.",
            )
        if not torch.equal(found.pop("base").cpu(), _coded(self._base())):
            raise _other_base(model)
        self.adapted.load_state(state_from(found, self.adapted.state(whole=True), "The state dict"))
        for name, value in model.state_dict(keep_vars=True).items():
            state.setdefault(prefix + name, value)

    def _base(self) -> str:
        self._fingerprint = self._fingerprint or self.adapted.base_fingerprint()
        return self._fingerprint


def _other_base(model: Any) -> AdapterFileError:
    return AdapterFileError(
        f"The checkpoint was trained on another base: the weights of this {type(model).__name__} differ.",
        remedy="Load the model that its training began with, then inject.",
    )


def _coded(fingerprint: str) -> Tensor:
    """The 64 characters as numbers, in a shape that no weight of a linear layer, norm or embedding has."""
    return torch.tensor([float(ord(letter)) for letter in fingerprint]).reshape(1, 1, 1, 1, 1, -1)
