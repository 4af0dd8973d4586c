"""The header of a safetensors file, checked before anything else is read: a stranger may have written it (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.plain import parse_json

__all__ = ["Layout", "read_layout"]

LONGEST = 16 << 20  # bytes of a header: more than 50,000 tensors
BYTES = {  # of one number
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What the header says.

    Attributes:
        metadata: Texts by name.
        tensors: Name -> dtype as safetensors calls it, and shape.
    """

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def read_layout(path: Path) -> Layout:
    """The header of the file, which is consistent in itself and with the file's length.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no safetensors file, or damaged; says where.
    """
    with path.open("rb") as file:
        whole = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if whole < 8 or length > whole - 8:
            raise ValueError(f"its header has {length:,} bytes, the whole file {whole:,}")
        if length > LONGEST:
            raise ValueError(f"its header has {length:,} bytes, of {LONGEST:,} that are allowed")
        found = parse_json(file.read(length))
    if not isinstance(found, dict):
        raise ValueError("its header is no mapping")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    places = {name: _place(name, said) for name, said in found.items()}
    _check_places(places, whole - 8 - length)
    return Layout(metadata, {name: (dtype, shape) for name, (dtype, shape, _, _) in places.items()})


def _place(name: str, said: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, first byte and the byte after the last."""
    short = name[:80]
    if not isinstance(said, Mapping) or {*said} != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{short!r} has not dtype, shape and data_offsets alone")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ValueError(f"{short!r} has the dtype {str(dtype)[:20]!r}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise ValueError(f"{what} of {short!r} is {str(numbers)[:80]}")
    if len(offsets) != 2 or len(shape) > 64 or offsets[1] - offsets[0] != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"{short!r} is {dtype} {str(tuple(shape))[:80]} at the bytes {str(offsets)[:80]}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _check_places(places: Mapping[str, tuple[str, tuple[int, ...], int, int]], size: int) -> None:
    """Raises ValueError unless the tensors lie one after the other and fill the file."""
    end = 0
    for name, (_, _, first, after) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise ValueError(f"{name[:80]!r} begins at byte {first:,} of the tensors, not at {end:,}")
        end = after
    if end != size:
        raise ValueError(f"its tensors have {end:,} bytes, the file has {size:,}")
