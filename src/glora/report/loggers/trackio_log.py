"""trackio: a local database that `trackio show` shows."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from glora import registry

__all__ = ["Trackio"]

PROJECT = "glora"
trackio: Any = registry.optional_import("trackio", extra="log", purpose="Logging to trackio")


class Trackio:
    """A run of the project `glora`, named after the run folder and its key; one that goes on is continued."""

    anew: ClassVar[bool] = False

    def __init__(self, folder: Path, *, key: str, settings: Mapping[str, Any]) -> None:
        name = f"{folder.resolve().name}-{key}"
        plain = {k: value if isinstance(value, int | float | str) else str(value) for k, value in settings.items()}
        with contextlib.redirect_stdout(sys.stderr):  # it tells where it writes; stdout is the command's own
            self.run = trackio.init(project=PROJECT, name=name, config=plain, resume="allow")

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        self.run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def result(self, values: Mapping[str, float], verdict: Sequence[str]) -> None:
        self.log("result", 0, values)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()
