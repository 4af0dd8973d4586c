"""What a person sees of a benchmark: a live table of its cells on a terminal, a line per event elsewhere; on stderr."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from glora.runs.console import BETWEEN, clock

__all__ = ["BenchmarkView"]

MOST = 8  # running jobs that are named
COLUMNS = ("done", "running", "left", "failed")


class BenchmarkView:
    """Tells what is done and what is left. A context manager: leaving it closes the live table.

    It is also the reporter of the cells that run in this process, whose progress is a line below the table.

    Args:
        console: Where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._begin("", {}, {}, 1)

    def __enter__(self) -> BenchmarkView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def say(self, text: str) -> None:
        """One line worth reading. What a cell says, its own folder keeps."""

    def tell(self, text: str) -> None:
        """One line of the benchmark itself, above the table."""
        self.console.print(text, soft_wrap=not self.console.is_terminal, markup=False)

    # A stage: its rows are the methods, its jobs cells or tries.

    def begin(self, stage: str, total: dict[str, int], done: dict[str, int], workers: int) -> None:
        """A stage begins.

        Args:
            stage: `rates` or `cells`.
            total: Row -> its jobs.
            done: Row -> those that are finished already.
            workers: How many run side by side.
        """
        self.end()
        self._begin(stage, total, done, workers)
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.render, refresh_per_second=2, transient=True)
            self._live.start()

    def _begin(self, stage: str, total: dict[str, int], done: dict[str, int], workers: int) -> None:
        self.stage, self.total, self.workers = stage, total, max(1, workers)
        self.counts = {name: Counter[str]() for name in ("done", "running", "failed")}
        self.counts["done"].update(done)
        self.seconds: dict[str, list[float]] = {}
        self.start = time.monotonic()
        self.now: dict[str, str] = {}  # a job that is running -> where it is, where that is known

    def started(self, row: str, what: str) -> None:
        """A job begins."""
        self.counts["running"][row] += 1
        self.now[what] = ""
        if not self.console.is_terminal:
            self.tell(f"{self.head()}{BETWEEN}begins: {what}")

    def ended(self, row: str, what: str, seconds: float, *, told: str, failed: bool = False) -> None:
        """A job has ended.

        Args:
            row: The method.
            what: The job.
            seconds: How long it took.
            told: What came of it: its number, or why it failed.
            failed: Whether it has no result.
        """
        self.counts["running"][row] -= 1
        self.now.pop(what, None)
        self.counts["failed" if failed else "done"][row] += 1
        if not failed:
            self.seconds.setdefault(row, []).append(seconds)
        if failed or not self.console.is_terminal:
            verb = "failed" if failed else "done"
            self.tell(f"{self.head()}{BETWEEN}{verb}: {what}: {told}{BETWEEN}{clock(seconds)}")

    def refused(self, row: str, count: int, told: str) -> None:
        """Jobs that cannot begin."""
        self.counts["failed"][row] += count
        self.tell(f"failed: {row}, all that is left: {told}")

    def end(self) -> None:
        """The stage is over: its table stands as it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.console.print(self.render())

    # What it looks like

    def left(self, row: str) -> int:
        """Jobs that have not begun."""
        return self.total[row] - sum(count[row] for count in self.counts.values())

    def seconds_left(self) -> float | None:
        """Estimated, from the mean time of a method's jobs, or of all where it has none; None before the first."""
        every = [each for some in self.seconds.values() for each in some]
        if not every:
            return None
        means = {row: statistics.fmean(self.seconds.get(row, every)) for row in self.total}
        open_jobs = {row: self.left(row) + self.counts["running"][row] / 2 for row in self.total}
        return sum(means[row] * open_jobs[row] for row in self.total) / self.workers

    def head(self) -> str:
        """The numbers in a line: of all rows together, with the times."""
        done, begun, failed = (self.counts[name].total() for name in ("done", "running", "failed"))
        running = min(begun, self.workers)  # the next job begins a moment before the end of the last one is told
        total = sum(self.total.values())
        parts = [f"{self.stage} {done}/{total}", f"running {running}", f"left {total - done - running - failed}"]
        parts += [f"failed {failed}"] if failed else []
        parts += [f"{clock(time.monotonic() - self.start)} used"]
        left = self.seconds_left()
        return BETWEEN.join([*parts, *([] if left is None else [f"about {clock(left)} left"])])

    def render(self) -> Group:
        """The table, a row per method."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("method", no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.total:
            numbers = {**{name: count[row] for name, count in self.counts.items()}, "left": self.left(row)}
            table.add_row(row, *(str(numbers[column] or "") for column in COLUMNS))
        now = [Text(BETWEEN.join(filter(None, each)), style="dim") for each in self.now.items()]
        return Group(Text(self.head()), table, *now[:MOST])

    # The reporter of a cell in this process

    def training(self, progress: Any) -> None:
        """Called a few times a second at most."""
        self._note(f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.3f}")

    def search_begins(self, metric: Any) -> None:
        """A search begins."""

    def trial(self, trial: Any, best: Any, total: int, saved: float | None = None) -> None:
        """Called after every scored genotype."""
        self._note(f"search {trial.number + 1}/{total}")

    def _note(self, text: str) -> None:
        self.now = dict.fromkeys(self.now, text)  # in this process there is one
