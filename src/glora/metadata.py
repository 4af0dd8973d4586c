"""The JSON that a safetensors file of this library carries; its tensors are not read (no torch)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from glora.errors import AdapterFileError

__all__ = ["read_metadata"]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The JSON that any file of this library carries; empty when it carries none.

    Raises:
        AdapterFileError: No such file, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterFileError(f"There is no adapter file {path}.", remedy="Give the file that save_adapter wrote.")
    try:
        with safe_open(path, framework="numpy") as file:
            found = json.loads((file.metadata() or {}).get("glora", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(
            f"{path} is damaged or no safetensors file: {error}.",
            remedy="Copy it again from its source; adapters are never read from pickle files.",
        ) from error
    return found if isinstance(found, dict) else {}
