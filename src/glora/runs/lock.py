"""One process at a time works in a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glora.errors import RunError

__all__ = ["locked"]

NAME = ".lock"  # there while a process works; a killed one leaves it, unlocked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process works in the folder; a killed one holds nothing. Without locks in the system, nothing.

    Raises:
        RunError: Another process does, or another stage of this one.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"Another process is working in {folder}.",
                    remedy="Wait for its end, or stop it; or choose another --out.",
                ) from None
            except OSError:  # a file system without locks
                pass
            if not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
                continue  # the one that had it has just deleted it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if made:
                    with suppress(OSError):  # something was written
                        folder.rmdir()
            return
