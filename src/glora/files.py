"""Files that are whole or not there: written beside their place, then moved."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from glora.errors import AdapterFileError, RunError, WriteError
from glora.plain import LARGE, parse_json
from glora.tensor_file import Layout, read_layout

__all__ = [
    "LOCK",
    "append_jsonl",
    "atomic",
    "atomic_folder",
    "held",
    "lock",
    "plain_json",
    "read_json",
    "read_jsonl",
    "read_metadata",
    "read_tensor_layout",
    "sha256",
    "write_json",
    "write_text",
    "written",
]

LOCK = ".lock"

_held: dict[Path, tuple[int, int]] = {}  # folder that this process works in -> which it is: device and inode


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder; what was written there takes the place of `path` at the end.

    On an error nothing is left and `path` is as it was.

    Raises:
        WriteError: The disk is full, the folder is read-only or gone, or something else does not let the file be.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with written(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would make it private
            yield temporary
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`; with what was written into it, it takes the place of `path` at the end.

    On an error nothing is left and `path` is as it was.

    Raises:
        WriteError: As `atomic` has it.
    """
    path = Path(path).absolute()
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    with written(path):
        shutil.rmtree(temporary, ignore_errors=True)  # of a process of this number that was killed
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            inside = sorted(temporary.rglob("*"))
            for each in inside:
                if each.is_file():
                    _sync(each)
            for folder in (*filter(Path.is_dir, inside), temporary):
                _sync_folder(folder)
            _take_place(temporary, path, old)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)


def _take_place(temporary: Path, path: Path, old: Path) -> None:
    if path.exists():
        path.replace(old)
    try:
        temporary.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """What was renamed in the folder is so after a loss of power too, where the system can promise that."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:  # Windows; a folder that may be written to and not read
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):  # of some network file systems
            raise
    finally:
        os.close(folder)


WHY = {  # errno -> remedy
    errno.ENOSPC: "Make room on that disk, or choose another folder; then give the same command again.",
    errno.EDQUOT: "Your quota there is used up: delete something, or choose another folder.",
    errno.EFBIG: "Files of that size are not allowed there: raise the limit (ulimit -f), or choose another folder.",
    errno.EROFS: "The disk is read-only: choose another folder.",
    errno.EACCES: "You may not write there: choose another folder, or ask for the right to.",
    errno.EPERM: "You may not write there: choose another folder, or ask for the right to.",
    errno.ENOENT: "The folder was removed under way: bring it back, or start anew.",
    errno.ENOTDIR: "A file is in the place of its folder: choose another folder.",
    errno.EISDIR: "A folder is in its place: choose another name.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turns what the system says of a file that cannot be written into one WriteError.

    In a folder that is `held` and was removed meanwhile, nothing is written either.
    """
    try:
        _need_held(path)
        yield
    except (OSError, SafetensorError) as error:  # also of a file in a folder that is not in its place yet
        number = error.errno if isinstance(error, OSError) else _errno_of(str(error))
        if number is None:
            raise
        raise WriteError(
            f"{path} cannot be written: {os.strerror(number)}.",
            allowed="What was there before is as it was.",
            remedy=WHY.get(number, "Look at that folder and its disk, then give the same command again."),
            errno=number,
        ) from error


def _need_held(path: Path) -> None:
    for folder, identity in _held.items():
        if path.absolute().is_relative_to(folder) and _identity(folder) != identity:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _errno_of(text: str) -> int | None:
    """The number in what a library says of the system's error: `I/O error: ... (os error 28)`."""
    found = re.search(r"os error (\d+)", text)
    return int(found[1]) if found else None


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
    try:
        found = parse_json(read_tensor_layout(path).metadata.get("glora", "{}"), finite=False)
    except ValueError as error:
        if isinstance(error, AdapterFileError):
            raise
        raise _damaged(path, error) from error
    return found if isinstance(found, dict) else {}


def read_tensor_layout(path: str | Path) -> Layout:
    """The header of a safetensors file, checked.

    Raises:
        AdapterFileError: No such file, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterFileError(f"There is no adapter file {path}.", remedy="Give the file that save_adapter wrote.")
    try:
        return read_layout(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> AdapterFileError:
    reason = f"{error.strerror}" if isinstance(error, OSError) else f"{error}"
    return AdapterFileError(
        f"{path} is damaged or no safetensors file: {reason}.", remedy="Copy it again from its source."
    )


def read_json(path: Path, *, remedy: str) -> Any:
    """The data of a JSON file of a run folder.

    Raises:
        RunError: It cannot be read; says the line, where there is one, and the remedy.
    """
    try:
        return parse_json(path.read_bytes(), most=LARGE)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.", remedy=remedy) from error
    except json.JSONDecodeError as error:
        raise RunError(
            f"{path} cannot be read: it is no JSON in line {error.lineno}, {error.msg}.", remedy=remedy
        ) from error
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}.", remedy=remedy) from error


def write_json(path: str | Path, data: Any) -> None:
    """`path` holds `data` as indented JSON, whole or not at all. NaN and infinities become null."""
    write_text(path, json.dumps(plain_json(data), indent=2, allow_nan=False) + "\n")


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """`record` is the last line of `path`, flushed and fsynced. NaN and infinities become null.

    A last line without its newline is what a killed process left: it is cut off first.

    Args:
        path: The append-only file; made when missing, its folder too.
        record: Plain data.

    Raises:
        WriteError: As `atomic` has it; the lines before are intact.
    """
    path = Path(path)
    line = json.dumps(plain_json(record), separators=(",", ":"), allow_nan=False) + "\n"
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        _append(path, line.encode())
        if new:
            _sync_folder(path.parent)


def _append(path: Path, line: bytes) -> None:
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def lock(path: Path, *, taken: str) -> BinaryIO | None:
    """The file, made where it is missing, locked until it is closed or the process ends; None where there are no locks.

    Args:
        path: A file in a folder that exists; what it holds stays.
        taken: The cause of the error when another holds it.

    Raises:
        RunError: Another holds it, or it cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        file = path.open("ab")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.", remedy="Give the path of a file.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(taken, remedy="Wait for its end, or stop it; a killed one holds nothing.") from None
    except OSError:  # a file system without locks
        pass
    return file


@contextmanager
def held(folder: Path, *, what: str) -> Iterator[None]:
    """Within it no other process can hold the folder, which is made where it is missing; it has a file `.lock` then.

    Should the folder be removed within it, it is not made again: what is to be written there is a WriteError.

    Args:
        folder: Where the work is done.
        what: What it is, in the words of an error: `the run in x`.

    Raises:
        RunError: Another process holds it.
        WriteError: It cannot be made.
    """
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file = lock(folder / LOCK, taken=f"Another process is working on {what}.")
    _held[folder.absolute()] = _identity(folder)
    try:
        yield
    finally:
        del _held[folder.absolute()]
        if file is not None:
            file.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of an append-only file, without a last line that was cut short; empty when there is no file.

    Raises:
        RunError: Another line is damaged; the message has its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.", remedy="Bring the file back.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, most=LARGE)
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


def plain_json(data: Any) -> Any:
    """The data as JSON has it: paths as text, tuples as lists, numbers that are not finite as None."""
    if isinstance(data, Mapping):
        return {str(key): plain_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_json(value) for value in data]
    if isinstance(data, Real) and not isinstance(data, int):
        return float(data) if math.isfinite(data) else None
    return str(data) if isinstance(data, Path) else data
