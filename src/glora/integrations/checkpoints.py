"""What a trainer's checkpoints of an adapted model are: its support tensors, never its parametrized weights.

A loop that knows nothing of support tensors saves the state dict of the model: the base under `parametrizations.*`,
which `from_pretrained` does not find, so that it draws every adapted weight at random. Here the model's own methods,
which such loops call, write and read adapter files instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glora.adapt.adapted import Adapted
from glora.adapt.adapter_file import save_adapter
from glora.adapt.adapter_format import state_from, write_state
from glora.errors import AdapterFileError, StateError

__all__ = ["ADAPTER", "SUPERNET", "Checkpoints"]

SUPERNET = "model.safetensors"  # the name by which HF's Trainer knows a checkpoint that it can continue from
ADAPTER = "adapter.safetensors"

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
            raise AdapterFileError(
                f"The checkpoint was trained on another base: the weights of this {type(model).__name__} differ.",
                remedy="Load the model that its training began with, then inject.",
            )
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


def _coded(fingerprint: str) -> Tensor:
    """The 64 characters as numbers, in a shape that no weight of a linear layer, norm or embedding has."""
    return torch.tensor([float(ord(letter)) for letter in fingerprint]).reshape(1, 1, 1, 1, 1, -1)
