"""Saving and loading: adapters, supernets, the plain merged model, and the tensors of an unfinished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from glora.adapt.adapted import Adapted
from glora.adapt.adapter_format import CHECKSUM, checksum, fingerprint, is_adapter, read_header, write_state
from glora.adapt.reading import read_state
from glora.adapt.rollback import as_before_on_error
from glora.adapt.wrappers import bare
from glora.errors import AdapterFileError
from glora.files import atomic, read_metadata, read_tensor_layout

__all__ = [
    "fingerprint",
    "is_adapter",
    "load_adapter",
    "load_supernet",
    "read_header",
    "read_metadata",
    "read_tensors",
    "save_adapter",
    "save_merged",
    "save_supernet",
    "save_tensors",
]


def save_adapter(
    adapted: Adapted,
    path: str | Path,
    *,
    info: Mapping[str, Any] | None = None,
    base_fingerprint: str | None = None,
) -> None:
    """Writes the active genotype's numbers, the head and trained running statistics, and nothing else.

    Args:
        adapted: An adapted model that is not merged.
        path: The safetensors file.
        info: Plain JSON that travels with it, such as class names and preprocessing.
        base_fingerprint: The base's fingerprint where it is known already, so that the weights are not hashed again.

    Raises:
        StateError: One genotype per sample is active, or the model is merged or detached.
    """
    path = Path(path).expanduser()
    write_state(adapted.model, adapted.state(), path, info=info, base_fingerprint=base_fingerprint)


def save_supernet(
    adapted: Adapted,
    path: str | Path,
    *,
    info: Mapping[str, Any] | None = None,
    base_fingerprint: str | None = None,
) -> None:
    """Writes all support tensors, whole, and the head; `load_adapter` gives the supernet back.

    The arguments are those of `save_adapter`.
    """
    state, path = adapted.state(whole=True), Path(path).expanduser()
    write_state(adapted.model, state, path, info=info, base_fingerprint=base_fingerprint)


def load_adapter(
    model: nn.Module, path: str | Path, *, check_base: bool = True, base_fingerprint: str | None = None
) -> Adapted:
    """The plain model adapted as the file says, its genotype active and its head in place.

    Args:
        model: The base that the adapter was trained on; its head may be fresh, of any width.
        path: What `save_adapter` wrote, a folder of PEFT's, or a checkpoint of the authors' code.
        check_base: Compare the base's fingerprint; False accepts, for instance, the same base in another dtype.
        base_fingerprint: The base's fingerprint where it is known already, so that the weights are not hashed again.

    Raises:
        AdapterFileError: The file is damaged or does not fit the model; the model is untouched then.
    """
    model, path = bare(model), Path(path).expanduser()
    state = read_state(model, path, check_base=check_base, base_fingerprint=base_fingerprint)
    with as_before_on_error(model):
        return Adapted.from_state(model, state)


def load_supernet(adapted: Adapted, path: str | Path, *, base_fingerprint: str | None = None) -> None:
    """Fills an adapted model of the same space and base with what `save_supernet` wrote.

    Raises:
        AdapterFileError: The file is damaged or of another base.
        StateError: It is of other sites or another space.
    """
    adapted.load_state(read_state(adapted.model, Path(path).expanduser(), base_fingerprint=base_fingerprint))


def save_merged(model: nn.Module, path: str | Path, *, info: Mapping[str, Any] | None = None) -> None:
    """Writes the state dict of a plain (merged) model as safetensors, tied weights once, with plain JSON beside it."""
    metadata = {"glora": json.dumps(dict(info or {})), "format": "pt"}  # transformers refuses files without a format
    with atomic(Path(path).expanduser()) as temporary:
        save_model(model, str(temporary), metadata=metadata)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and plain data of an unfinished run as safetensors, with their checksum, atomically."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    said = {**meta, CHECKSUM: checksum(meta, whole, whole.__getitem__)}
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata={"glora": json.dumps(said)})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        AdapterFileError: The file is damaged.
    """
    remedy = "Delete it; its stage starts again."
    try:
        layout, meta = read_tensor_layout(path), read_metadata(path)
        with safe_open(Path(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in layout.tensors}
    except AdapterFileError as error:
        raise AdapterFileError(error.cause, remedy=remedy) from error
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{path} is damaged: {error}.", remedy=remedy) from error
    if CHECKSUM in meta and meta[CHECKSUM] != checksum(meta, tensors, tensors.__getitem__):
        raise AdapterFileError(f"{path} is damaged: it does not have the checksum in its header.", remedy=remedy)
    meta.pop(CHECKSUM, None)
    return tensors, meta
