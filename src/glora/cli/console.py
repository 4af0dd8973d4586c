"""What a person sees while a run works: a live bar on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # it is on the screen before torch is loaded
    from glora.searchers import Trial
    from glora.training.trainer import Progress
if TYPE_CHECKING:
    from glora.searchers import Trial

__all__ = ["ConsoleReporter", "SearchView"]


ROWS = 8  # generations on the screen
REPLAYED = 0.02  # a trial that comes this much faster than it was scored is read from the journal


@dataclass
class _Row:
    """One generation."""

    scores: list[float] = field(default_factory=list)
    best: str = ""
    front: int = 0
    saved: float | None = None


class SearchView:
    """What is known of a search after some of its trials."""

    def __init__(self) -> None:
        self.done = 0
        self.name = ""
        self._rows: dict[int, _Row] = {}
        self._front: list[tuple[int, float]] = []  # trainable numbers, score
        self._last = time.perf_counter()
        self._since: tuple[float, int] | None = None  # when the first trial that was no replay began, and its number

    def add(self, trial: Trial, best: Trial, saved: float | None) -> None:
        """Takes in one more trial, and the best and the share of forwards saved so far."""
        now = time.perf_counter()
        if self._since is None and now - self._last >= REPLAYED * trial.seconds:
            self._since = (self._last, self.done)
        self._last = now
        self.done += 1
        row = self._rows.setdefault(trial.generation, _Row())
        if trial.seen == 1:  # the score of what has left a race is of some images, and compares with no other
            row.scores.append(trial.score.value)
            self._add_to_front(trial.parameters, trial.score.value)
        loss = best.score.value < 0
        self.name = "loss" if loss else "accuracy"
        row.best = f"{abs(best.score.value):.4f} ± {best.score.standard_error:.4f}"
        row.front, row.saved = len(self._front), saved

    def _add_to_front(self, parameters: int, score: float) -> None:
        if not math.isfinite(score) or any(p <= parameters and s >= score for p, s in self._front):
            return
        beaten = [(p, s) for p, s in self._front if p >= parameters and s <= score]
        self._front = [each for each in self._front if each not in beaten] + [(parameters, score)]

    def seconds_left(self, total: int) -> float:
        """From the wall time of the trials that were scored now."""
        if self._since is None:
            return 0.0
        start, before = self._since
        return (self._last - start) / max(1, self.done - before) * max(0, total - self.done)

    def words(self) -> list[str]:
        """The generation at work in a few words, for a line."""
        generation = max(self._rows)
        row = self._rows[generation]
        parts = [f"generation {generation}", f"best val {self.name} {row.best}"]
        parts += [f"median {_median(row)}", f"front {row.front}"]
        return parts if row.saved is None else [*parts, f"forwards saved {_share(row)}"]

    def table(self) -> Table:
        """The last generations, the one at work at the bottom."""
        racing = any(row.saved is not None for row in self._rows.values())
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("gen", f"best val {self.name}", "median", "front", *(["saved"] if racing else [])):
            table.add_column(column, justify="right", no_wrap=True)
        for generation in sorted(self._rows)[-ROWS:]:
            row = self._rows[generation]
            cells = [str(generation), row.best, _median(row), str(row.front)]
            table.add_row(*cells, *([_share(row)] if racing else []))
        return table


def _median(row: _Row) -> str:
    value = statistics.median(row.scores) if row.scores else math.nan
    return f"{abs(value):.4f}" if math.isfinite(value) else "–"


def _share(row: _Row) -> str:
    return "–" if row.saved is None else f"{100 * row.saved:.0f} %"


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
