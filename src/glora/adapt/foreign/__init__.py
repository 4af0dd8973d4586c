"""Adapters that other libraries wrote, as the genotypes that they are; one file a format."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from glora.adapt.state import AdapterState
from glora.registry import load

__all__ = ["FOREIGN", "is_foreign", "read_foreign"]

FOREIGN: dict[str, str] = {  # what it is -> its reader
    "PEFT's folder": "glora.adapt.foreign.peft_folder:PeftFolder",
    "the authors' checkpoint": "glora.adapt.foreign.authors:AuthorsCheckpoint",
}


def is_foreign(path: str | Path) -> bool:
    """Whether another library wrote what is at the path."""
    return any(load(reader).fits(Path(path)) for reader in FOREIGN.values())


def read_foreign(model: nn.Module, path: str | Path) -> AdapterState:
    """The adapter that another library wrote, checked against the model that it is for.

    Raises:
        AdapterFileError: It is damaged, does not fit the model, or has settings without a counterpart.
    """
    reader = next(found for each in FOREIGN.values() if (found := load(each)).fits(Path(path)))
    state: AdapterState = reader.read(model, Path(path))
    return state
