"""One process at a time works in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glora.errors import RunError

__all__ = ["locked"]

NAME = ".lock"  # no file of the run: it may be deleted


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
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"Another process is working in {folder}.",
                remedy="Wait for its end, or stop it; or choose another --out.",
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
