"""Adapters that other libraries wrote, as the genotypes that they are; one file a format."""

from __future__ import annotations

import math
import re
from pathlib import Path

from torch import nn

from glora.adapt.state import AdapterState
from glora.errors import AdapterFileError, GloraError, listed
from glora.registry import load

__all__ = ["FOREIGN", "is_foreign", "read_foreign"]

FOREIGN: dict[str, str] = {  # what it is -> its reader
    "PEFT's folder": "glora.adapt.foreign.peft_folder:PeftFolder",
    "the authors' checkpoint": "glora.adapt.foreign.authors:AuthorsCheckpoint",
}
DAMAGE = (  # what values of another type or size come to
    ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError,
    re.error,
)  # fmt: skip


def is_foreign(path: str | Path) -> bool:
    """Whether another library wrote what is at the path."""
    return any(load(reader).fits(Path(path)) for reader in FOREIGN.values())


def read_foreign(model: nn.Module, path: str | Path) -> AdapterState:
    """The adapter that another library wrote, checked against the model that it is for.

    Raises:
        AdapterFileError: It is damaged, does not fit the model, or has settings without a counterpart.
    """
    reader = next(found for each in FOREIGN.values() if (found := load(each)).fits(Path(path)))
    try:
        state: AdapterState = reader.read(model, Path(path))
    except DAMAGE as error:
        if isinstance(error, GloraError):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise AdapterFileError(f"{path} is damaged: {said[:300]}.", remedy="Copy it again from its source.") from error
    tensors = {**state.tensors, **state.head, **state.statistics}
    odd = [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    odd += [name for name, of in state.scales.items() if not all(map(math.isfinite, of.values()))]
    if odd:
        raise AdapterFileError(
            f"{path}: {listed(odd)} has numbers that are not finite.", remedy="Save or copy it again."
        )
    return state
