"""What a person sees while a run works: a live bar on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.status import Status
from rich.text import Text

if TYPE_CHECKING:  # it is on the screen before torch is loaded
    from glora.searchers import Trial
    from glora.train import Progress

__all__ = ["ConsoleReporter"]

PLAIN_EVERY = 10.0  # seconds between plain lines
GAP = "  "
BAR = 20  # widest bar, in characters


class ConsoleReporter:
    """Tells a run's progress on stderr. A context manager: leaving it closes the live bar.

    On a terminal something always moves: a bar, or a spinner where nothing can be counted.

    Args:
        console: Where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._live: Live | Status | None = None
        self._stage = ""
        self._last = 0.0
        self._seconds = 0.0  # of the trials told

    def __enter__(self) -> ConsoleReporter:
        self._spin("loading")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def say(self, text: str) -> None:
        """One line worth reading."""
        self._close()
        self.console.print(text, soft_wrap=not self.console.is_terminal, markup=False)
        self._spin("working")

    def training(self, progress: Progress) -> None:
        """Loss, accuracy, images per second and time left of the training."""
        parts = [
            f"loss {progress.loss:.3f}",
            f"accuracy {progress.accuracy:.3f}",
            f"{_clock(progress.seconds_left)} left",
            f"epoch {progress.epoch}/{progress.epochs}",
            f"{progress.images_per_second:.0f} img/s",
        ]
        self._show("train", progress.step, progress.steps, parts)

    def trial(self, trial: Trial, best: Trial, total: int) -> None:
        """Best score, its numbers and time left of the search."""
        done = trial.number + 1
        self._seconds = trial.seconds + (self._seconds if trial.number else 0.0)
        left = self._seconds / done * max(0, total - done)
        name, value = ("loss", -best.score.value) if best.score.value < 0 else ("accuracy", best.score.value)
        parts = [
            f"best val {name} {value:.4f} ± {best.score.standard_error:.4f}",
            f"{_clock(left)} left",
            f"{best.parameters:,} numbers",
            f"generation {trial.generation}",
        ]
        self._show("search", done, max(done, total), parts)

    def _show(self, stage: str, done: int, total: int, parts: list[str]) -> None:
        """The stage's line; `parts` come in the order of their worth, the last are left out where room is short."""
        if self.console.is_terminal:
            if not isinstance(self._live, Live) or stage != self._stage:
                self._close()
                self._live = Live(console=self.console, auto_refresh=False, transient=False)
                self._live.start()
            self._live.update(_line(stage, done, total, parts, self.console.width), refresh=True)
        elif time.perf_counter() - self._last >= PLAIN_EVERY or done >= total or stage != self._stage:
            self._last = time.perf_counter()
            self.console.print(GAP.join([f"{stage} {done}/{total}", *parts]), soft_wrap=True, markup=False)
        self._stage = stage
        if done >= total:
            self._close()
            self._spin("working")

    def _spin(self, text: str) -> None:
        if self.console.is_terminal:
            self._live = Status(text, console=self.console)
            self._live.start()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None


def _line(stage: str, done: int, total: int, parts: list[str], width: int) -> Text:
    """One line of at most `width` characters."""
    head = f"{stage:6} {done:{len(str(total))}}/{total}"
    kept: list[str] = []
    for part in parts:
        if len(GAP.join([head, *kept, part])) > width - 1:
            break
        kept.append(part)
    text = GAP.join(["", *kept])
    bar = min(BAR, width - 1 - len(head) - len(text) - 1)
    line = Text(head, no_wrap=True, overflow="crop", end="")
    if bar >= 5:
        full = round(bar * done / max(1, total))
        line.append(" ").append("━" * full, style="green").append("━" * (bar - full), style="bright_black")
    return line.append(text)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
