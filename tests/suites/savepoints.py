"""Every moment at which a process changes what is on the disk: what tests of kills and of full disks act upon."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glora import files

Act = Callable[[str], object]


@contextmanager
def at_every_change(act: Act) -> Iterator[None]:
    """Within it `act` is called right before and after a file is renamed, removed or made longer, and amid the latter.

    Args:
        act: Gets what is going on, such as `before rename winner.json`; what it raises comes out there.
    """
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, verb in (
            (Path, "replace", "rename"),
            (Path, "unlink", "remove"),
            (shutil, "rmtree", "remove"),
        ):
            patch.setattr(owner, name, _around(getattr(owner, name), verb, act))
        patch.setattr(files, "_append", _appending(files._append, act))
        yield


def _around(change: Callable[..., Any], verb: str, act: Act) -> Callable[..., Any]:
    def changed(path: Any, *args: Any, **given: Any) -> Any:
        name = Path(args[0] if verb == "rename" else path).name
        temporary = name.endswith(".tmp")  # what cleans up after a process that has not died here
        if not temporary:
            act(f"before {verb} {name}")
        found = change(path, *args, **given)
        if not temporary:
            act(f"after {verb} {name}")
        return found

    return changed


def _appending(append: Callable[[Path, bytes], None], act: Act) -> Callable[[Path, bytes], None]:
    def changed(path: Path, line: bytes) -> None:
        act(f"before a line of {path.name}")
        size = path.stat().st_size if path.exists() else 0
        append(path, line)
        whole = path.read_bytes()
        os.truncate(path, size + len(line) // 2)
        act(f"amid a line of {path.name}")
        if path.exists():
            path.write_bytes(whole)
        act(f"after a line of {path.name}")

    return changed
