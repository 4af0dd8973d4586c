"""TensorBoard: event files in `RUN/tensorboard`, which `tensorboard --logdir RUN` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from glora import registry

__all__ = ["TensorBoard"]

summary: Any = registry.optional_import("tensorboard.summary", extra="log", purpose="Logging to TensorBoard")


class TensorBoard:
    """Writes the event files anew from the run's own files, so that a resumed run has every point once."""

    anew: ClassVar[bool] = True

    def __init__(self, folder: Path, *, key: str, settings: Mapping[str, Any]) -> None:
        place = folder / "tensorboard"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = summary.Writer(str(place))

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)
        self.writer.flush()

    def result(self, values: Mapping[str, float], verdict: Sequence[str]) -> None:
        self.log("result", 0, values)

    def close(self) -> None:
        self.writer.close()
