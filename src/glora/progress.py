"""What a person sees while a run works: a live bar on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from glora.searchers import Trial
from glora.train import Progress

__all__ = ["ConsoleReporter"]

PLAIN_EVERY = 10.0  # seconds between plain lines


class ConsoleReporter:
    """Tells a run's progress on stderr. A context manager: leaving it closes the live bar.

    Args:
        fitness: What trial scores are: `"loss"` shows their negative.
    """

    def __init__(self, *, fitness: str = "loss") -> None:
        self.fitness = fitness
        self.console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._last = 0.0
        self._started = 0.0

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def say(self, text: str) -> None:
        """One line worth reading."""
        self._close()
        self.console.print(text, soft_wrap=True, markup=False)

    def training(self, progress: Progress) -> None:
        """Loss, accuracy, images per second and time left of the training."""
        text = (
            f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}  accuracy {progress.accuracy:.3f}  "
            f"{progress.images_per_second:.0f} img/s  {_clock(progress.seconds_left)} left"
        )
        self._show("train", progress.step, progress.steps, text)

    def trial(self, trial: Trial, best: Trial, total: int) -> None:
        """Generation, best score, its numbers and time left of the search."""
        if self._stage != "search":
            self._started = time.perf_counter() - trial.seconds
        done = trial.number + 1
        left = (time.perf_counter() - self._started) / done * max(0, total - done)
        value = -best.score.value if self.fitness == "loss" else best.score.value
        text = (
            f"generation {trial.generation}  best val {self.fitness} {value:.4f} ± {best.score.standard_error:.4f}  "
            f"{best.parameters:,} numbers  {_clock(left)} left"
        )
        self._show("search", done, max(done, total), text)

    def _show(self, stage: str, done: int, total: int, text: str) -> None:
        if self.console.is_terminal:
            self._bar(stage, total).update(self._task or TaskID(0), completed=done, total=total, text=text)
        elif time.perf_counter() - self._last >= PLAIN_EVERY or done >= total or stage != self._stage:
            self._last = time.perf_counter()
            print(f"{stage} {done}/{total}  {text}", file=sys.stderr, flush=True)
        self._stage = stage

    def _bar(self, stage: str, total: int) -> Bars:
        if self._bars is None or stage != self._stage:
            self._close()
            columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
            self._bars = Bars(*columns, TextColumn("{task.fields[text]}"), console=self.console)
            self._task = self._bars.add_task(stage, total=total, text="")
            self._bars.start()
        return self._bars

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task = None, None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
