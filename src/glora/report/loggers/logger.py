"""What a logger is, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from glora import registry

__all__ = ["LOGGERS", "Logger", "logger_class"]

LOGGERS = {
    "tensorboard": "glora.report.loggers.tensorboard_log:TensorBoard",
    "trackio": "glora.report.loggers.trackio_log:Trackio",
    "wandb": "glora.report.loggers.wandb_log:WandB",
}


class Logger(Protocol):
    """Takes the numbers of one run. Making one opens it.

    Attributes:
        anew: Whether it begins anew when a run goes on: all numbers come once more, those of before too.
    """

    anew: ClassVar[bool]

    def __init__(self, folder: Path, *, key: str, settings: Mapping[str, Any]) -> None:
        """Opens it.

        Args:
            folder: The run folder; its name is that of the run.
            key: What tells this run from all others, the same when it goes on.
            settings: The run's, by their dotted names.
        """

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Some numbers, finite ones, of a step of the group: `train`, `search`, `fold-1`, ..."""

    def result(self, values: Mapping[str, float], verdict: Sequence[str]) -> None:
        """What the run ended with: its metrics, and how good they are in words."""

    def close(self) -> None:
        """All that it was told is written."""


def logger_class(name: str) -> type[Logger]:
    """The logger of this name.

    Raises:
        UnknownNameError: There is none; lists all of them.
        MissingExtraError: Its package is not installed.
    """
    found: type[Logger] = registry.lookup(LOGGERS, name, kind="logger")
    return found
