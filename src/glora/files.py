"""Files that are whole or not there: written beside their place, then moved."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from glora.errors import AdapterFileError, RunError

__all__ = [
    "append_jsonl",
    "atomic",
    "atomic_folder",
    "plain_json",
    "read_jsonl",
    "read_metadata",
    "sha256",
    "write_json",
    "write_text",
]


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder; what was written there takes the place of `path` at the end.

    On an error nothing is left and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would make it private
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`; with what was written into it, it takes the place of `path` at the end.

    On an error nothing is left and `path` is as it was.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of this number that was killed
    try:
        temporary.mkdir()
        yield temporary
        for each in temporary.rglob("*"):
            if each.is_file():
                with each.open("rb+") as file:
                    os.fsync(file.fileno())
        if path.exists():
            path.replace(old)
        try:
            temporary.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
            remedy="Copy it again from its source.",
        ) from error
    return found if isinstance(found, dict) else {}


def write_json(path: str | Path, data: Any) -> None:
    """`path` holds `data` as indented JSON, whole or not at all. NaN and infinities become null."""
    write_text(path, json.dumps(plain_json(data), indent=2, allow_nan=False) + "\n")


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """`record` is the last line of `path`, flushed and fsynced. NaN and infinities become null.

    A last line without its newline is what a killed process left: it is cut off first.

    Args:
        path: The append-only file; made when missing, its folder too.
        record: Plain data.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(plain_json(record), separators=(",", ":"), allow_nan=False) + "\n"
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of an append-only file, without a last line that was cut short; empty when there is no file.

    Raises:
        RunError: Another line is damaged; the message has its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line, parse_constant=_no_number)
            if not isinstance(record, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise RunError(
                f"{path}, line {number}, is damaged: {line[:40]!r}.",
                allowed="Every line is one JSON object.",
                remedy=f"Delete line {number} and all below it, or the file, and start again.",
            ) from error
        records.append(record)
    return records


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def plain_json(data: Any) -> Any:
    """The data as JSON has it: paths as text, tuples as lists, numbers that are not finite as None."""
    if isinstance(data, Mapping):
        return {str(key): plain_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_json(value) for value in data]
    if isinstance(data, Real) and not isinstance(data, int):
        return float(data) if math.isfinite(data) else None
    return str(data) if isinstance(data, Path) else data
