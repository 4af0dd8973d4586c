"""What a person sees while a run works: a live bar on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

from glora.report.metrics import RAW_SCORE, MetricInfo

if TYPE_CHECKING:  # it is on the screen before torch is loaded
    from glora.searchers import Trial

__all__ = ["BETWEEN", "ConsoleReporter", "SearchView", "clock", "telling"]

PLAIN_EVERY = 10.0  # seconds between plain lines
DRAW_EVERY = 0.1  # seconds between drawings of the bar
BETWEEN = "  "  # between the parts of a line
BAR, SHORTEST_BAR = 20, 5  # widest and shortest bar, in characters
GENERATIONS = 8  # on the screen
REPLAYED = 0.02  # a trial that comes within this share of the time its score took is read from the journal
UNKNOWN = "–"


class TrainingProgress(Protocol):
    """What is shown of a training: `glora.training.trainer.Progress` is one."""

    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def metric(self) -> float | None: ...
    @property
    def metric_name(self) -> str: ...
    @property
    def examples_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float: ...


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[None]:
    """Within it what the library warns of is told too, each warning once, such as a worker that was lost.

    But for the notes on a model that is adapted, which a run tells itself.
    """
    handler, log = _Telling(say), logging.getLogger("glora")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Telling(logging.Handler):
    """Tells warnings to a reporter."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say, self._told = say, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._told and not getattr(record, "noted", False):
            self._told.add(text)
            self._say(f"Warning: {text}")


class ConsoleReporter:
    """Tells a run's progress on stderr. A context manager: leaving it closes the live bar.

    On a terminal something always moves: a bar, or a spinner where nothing can be counted.

    Args:
        console: Where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._spinner: Status | None = None
        self._bar_is_open = False  # a bar is on the line of the cursor
        self._live: Live | None = None  # the table of a search
        self._stage = ""  # what was shown last
        self._shown_at = 0.0
        self._search = SearchView(RAW_SCORE)

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

    def training(self, progress: TrainingProgress) -> None:
        """Loss, metric, time left, epoch and examples per second of the training."""
        if not self._is_time("train", progress.step, progress.steps):
            return
        metric = [] if progress.metric is None else [f"{progress.metric_name} {progress.metric:.3f}"]
        parts = [  # in the order of their worth: the last are left out where room is short
            f"loss {progress.loss:.3f}",
            *metric,
            f"{clock(progress.seconds_left)} left",
            f"epoch {progress.epoch}/{progress.epochs}",
            f"{progress.examples_per_second:.0f} examples/s",
        ]
        if self.console.is_terminal:
            self._draw_bar("train", progress.step, progress.steps, parts)
        else:
            self._print_line("train", progress.step, progress.steps, parts)
        self._shown("train", progress.step, progress.steps)

    def search_begins(self, metric: MetricInfo) -> None:
        """A search begins, or goes on from its journal; this is the metric that its scores are made of."""
        self._search = SearchView(metric)
        self._stage = ""

    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None:
        """The search so far: a table on a terminal, a row per generation."""
        self._search.add(trial, best, saved)
        done = self._search.done
        if not self._is_time("search", done, total):
            return
        left = f"{clock(self._search.seconds_left(total))} left"
        if self.console.is_terminal:
            self._draw_table(done, total, left)
        else:
            self._print_line("search", done, total, [*self._search.summary(), left])
        self._shown("search", done, total)

    # What is on the screen

    def _is_time(self, stage: str, done: int, total: int) -> bool:
        """Whether it is time to show something again; a stage's first and last are always shown."""
        every = DRAW_EVERY if self.console.is_terminal else PLAIN_EVERY
        return stage != self._stage or done >= total or time.perf_counter() - self._shown_at >= every

    def _shown(self, stage: str, done: int, total: int) -> None:
        """Remembers what was shown and when; at a stage's end the spinner takes over."""
        self._stage, self._shown_at = stage, time.perf_counter()
        if done >= total:
            self._close()
            self._spin("working")

    def _print_line(self, stage: str, done: int, total: int, parts: list[str]) -> None:
        self.console.print(BETWEEN.join([f"{stage} {done}/{total}", *parts]), soft_wrap=True, markup=False)

    def _draw_bar(self, stage: str, done: int, total: int, parts: list[str]) -> None:
        if not self._bar_is_open or stage != self._stage:
            self._close()
        self._bar_is_open = True
        colour = self.console.color_system is not None
        line = _line(stage, done, total, parts, self.console.width - 1, colour=colour)
        self.console.file.write(f"\r{line}")  # at once: of what rich buffers, Ctrl-C may leave a second copy
        self.console.file.flush()

    def _draw_table(self, done: int, total: int, left: str) -> None:
        if self._live is None:
            self._close()
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        line = _line("search", done, max(done, total), [left], self.console.width - 1, colour=True)
        self._live.update(Group(Text.from_ansi(line), self._search.table()), refresh=True)

    def _spin(self, text: str) -> None:
        if self.console.is_terminal:
            self._spinner = Status(text, console=self.console)
            self._spinner.start()

    def _close(self) -> None:
        """Whatever moves stops, and the cursor is on a new line."""
        if self._spinner is not None:
            self._spinner.stop()
        if self._bar_is_open:
            self.console.file.write("\n")
        if self._live is not None:
            self._live.stop()
        self._spinner, self._live, self._bar_is_open = None, None, False


@dataclass
class _Generation:
    """One row of the table of a search."""

    scores: list[float] = field(default_factory=list)
    best: str = ""  # of all trials up to its end
    front: int = 0  # trials on the front at its end
    saved: float | None = None  # share of the forwards that racing has saved up to its end


class SearchView:
    """What is known of a search after some of its trials.

    Args:
        metric: What its scores are made of.

    Attributes:
        done: Trials so far.
    """

    def __init__(self, metric: MetricInfo) -> None:
        self.metric = metric
        self.done = 0
        self._generations: dict[int, _Generation] = {}
        self._front: list[tuple[int, float]] = []  # trainable numbers, score
        self._last = time.perf_counter()  # when the last trial came
        self._scoring_began: tuple[float, int] | None = None  # when the first trial that is no replay, and its number

    def add(self, trial: Trial, best: Trial, saved: float | None) -> None:
        """Takes in one more trial, and the best and the share of forwards saved so far."""
        now = time.perf_counter()
        if self._scoring_began is None and now - self._last >= REPLAYED * trial.seconds:
            self._scoring_began = (self._last, self.done)
        self._last = now
        self.done += 1
        generation = self._generations.setdefault(trial.generation, _Generation())
        if trial.seen == 1:  # what has left a race was scored on fewer examples, and compares with no other
            generation.scores.append(trial.score.value)
            self._add_to_front(trial.parameters, trial.score.value)
        generation.best = f"{self._value(best.score.value)} ± {_number(best.score.standard_error)}"
        generation.front, generation.saved = len(self._front), saved

    def _add_to_front(self, parameters: int, score: float) -> None:
        if not math.isfinite(score) or any(p <= parameters and s >= score for p, s in self._front):
            return
        beaten = [(p, s) for p, s in self._front if p >= parameters and s <= score]
        self._front = [each for each in self._front if each not in beaten] + [(parameters, score)]

    def seconds_left(self, total: int) -> float:
        """From the wall time of the trials that were scored now."""
        if self._scoring_began is None:
            return 0.0
        start, before = self._scoring_began
        return (self._last - start) / max(1, self.done - before) * max(0, total - self.done)

    def summary(self) -> list[str]:
        """The generation at work in a few words, for a line."""
        number = max(self._generations)
        generation = self._generations[number]
        parts = [f"generation {number}", f"best val {self.metric.name} {generation.best}"]
        parts += [f"median {self._median(generation)}", f"front {generation.front}"]
        return parts if generation.saved is None else [*parts, f"forwards saved {_percent(generation.saved)}"]

    def table(self) -> Table:
        """The last generations, the one at work at the bottom."""
        racing = any(generation.saved is not None for generation in self._generations.values())
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("gen", f"best val {self.metric.name}", "median", "front", *(["saved"] if racing else [])):
            table.add_column(column, justify="right", no_wrap=True)
        for number in sorted(self._generations)[-GENERATIONS:]:
            generation = self._generations[number]
            cells = [str(number), generation.best, self._median(generation), str(generation.front)]
            table.add_row(*cells, *([_percent(generation.saved)] if racing else []))
        return table

    def _median(self, generation: _Generation) -> str:
        return self._value(statistics.median(generation.scores)) if generation.scores else UNKNOWN

    def _value(self, score: float) -> str:
        """The metric that a score is made of."""
        return _number(self.metric.sign * score)


def _number(value: float) -> str:
    """Four decimals, which tell the genotypes of a search apart; of large values six digits."""
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def _line(stage: str, done: int, total: int, parts: list[str], width: int, *, colour: bool) -> str:
    """One line of exactly `width` characters, so that it covers the one before: stage, bar, and parts that fit."""
    head = f"{stage:6} {done:{len(str(total))}}/{total}"
    kept: list[str] = []
    for part in parts:
        if len(BETWEEN.join([head, *kept, part])) > width:
            break
        kept.append(part)
    text = BETWEEN.join(["", *kept])
    bar = min(BAR, width - len(head) - len(text) - 1)
    if bar < SHORTEST_BAR:
        return f"{head}{text}"[:width].ljust(width)
    full = round(bar * done / max(1, total))
    green, grey, off = ("\x1b[32m", "\x1b[90m", "\x1b[0m") if colour else ("", "", "")
    drawn = f"{green}{'━' * full}{grey}{'━' * (bar - full)}{off}"
    return f"{head} {drawn}{text}{' ' * (width - len(head) - 1 - bar - len(text))}"


def clock(seconds: float) -> str:
    """A time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
