"""What a person sees while a run works: a live bar on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.text import Text

from glora.searchview import SearchView

if TYPE_CHECKING:  # it is on the screen before torch is loaded
    from glora.searchers import Trial
    from glora.train import Progress

__all__ = ["ConsoleReporter"]

PLAIN_EVERY = 10.0  # seconds between plain lines
DRAW_EVERY = 0.1  # seconds between drawings of the bar
GAP = "  "
BAR, SHORTEST = 20, 5  # widest and shortest bar, in characters


class ConsoleReporter:
    """Tells a run's progress on stderr. A context manager: leaving it closes the live bar.

    On a terminal something always moves: a bar, or a spinner where nothing can be counted.

    Args:
        console: Where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._spinner: Status | None = None
        self._open = False  # a bar is on the line of the cursor
        self._stage = ""
        self._last = 0.0
        self._live: Live | None = None
        self._search = SearchView()

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

    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None:
        """The search so far: a table on a terminal, a row per generation."""
        if self._stage != "search":
            self._search = SearchView()
        self._search.add(trial, best, saved)
        done = self._search.done
        if not self._due("search", done, total):
            return
        left = f"{_clock(self._search.seconds_left(total))} left"
        if not self.console.is_terminal:
            self.console.print(GAP.join([f"search {done}/{total}", *self._search.words(), left]), soft_wrap=True)
        else:
            if self._live is None:
                self._close()
                self._live = Live(console=self.console, auto_refresh=False)
                self._live.start()
            line = _line("search", done, max(done, total), [left], self.console.width - 1, colour=True)
            self._live.update(Group(Text.from_ansi(line), self._search.table()), refresh=True)
        self._told("search", done, total)

    def _show(self, stage: str, done: int, total: int, parts: list[str]) -> None:
        """The stage's line; `parts` come in the order of their worth, the last are left out where room is short."""
        if not self._due(stage, done, total):
            return
        if not self.console.is_terminal:
            self.console.print(GAP.join([f"{stage} {done}/{total}", *parts]), soft_wrap=True, markup=False)
        else:
            if not self._open or stage != self._stage:
                self._close()
            self._open = True
            colour = self.console.color_system is not None
            line = _line(stage, done, total, parts, self.console.width - 1, colour=colour)
            self.console.file.write(f"\r{line}")  # at once: of what rich buffers, Ctrl-C may leave a second copy
            self.console.file.flush()
        self._told(stage, done, total)

    def _due(self, stage: str, done: int, total: int) -> bool:
        """Whether it is time to show something again; a stage's first and last are always shown."""
        every = DRAW_EVERY if self.console.is_terminal else PLAIN_EVERY
        return stage != self._stage or done >= total or time.perf_counter() - self._last >= every

    def _told(self, stage: str, done: int, total: int) -> None:
        self._stage, self._last = stage, time.perf_counter()
        if done >= total:
            self._close()
            self._spin("working")

    def _spin(self, text: str) -> None:
        if self.console.is_terminal:
            self._spinner = Status(text, console=self.console)
            self._spinner.start()

    def _close(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
        if self._open:
            self.console.file.write("\n")
        if self._live is not None:
            self._live.stop()
        self._spinner, self._live, self._open = None, None, False


def _line(stage: str, done: int, total: int, parts: list[str], width: int, *, colour: bool) -> str:
    """One line of exactly `width` characters, so that it covers the one before."""
    head = f"{stage:6} {done:{len(str(total))}}/{total}"
    kept: list[str] = []
    for part in parts:
        if len(GAP.join([head, *kept, part])) > width:
            break
        kept.append(part)
    text = GAP.join(["", *kept])
    bar = min(BAR, width - len(head) - len(text) - 1)
    if bar < SHORTEST:
        return f"{head}{text}"[:width].ljust(width)
    full = round(bar * done / max(1, total))
    green, grey, off = ("\x1b[32m", "\x1b[90m", "\x1b[0m") if colour else ("", "", "")
    drawn = f"{green}{'━' * full}{grey}{'━' * (bar - full)}{off}"
    return f"{head} {drawn}{text}{' ' * (width - len(head) - 1 - bar - len(text))}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
