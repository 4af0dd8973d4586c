"""A reporter that also feeds loggers, from what the run has written up to then."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from glora.report.loggers import Feed
from glora.report.metrics import MetricInfo

if TYPE_CHECKING:  # it is there before torch is loaded
    from glora.runs.reporter import Reporter
    from glora.searchers import Trial
    from glora.training.trainer import Progress

__all__ = ["LoggedReporter", "logging_to"]

EVERY = 2.0  # seconds between looks at the run's files


class LoggedReporter:
    """Tells another reporter all that it is told, and lets the loggers have what is new in the run folder.

    Args:
        reporter: The other one.
        feed: The run folder and its loggers.
    """

    def __init__(self, reporter: Reporter, feed: Feed) -> None:
        self.reporter, self.feed = reporter, feed
        self._looked = 0.0
        self.told = False  # whether this process, the main one of several, was told anything

    def say(self, text: str) -> None:
        self.reporter.say(text)
        self._look()

    def training(self, progress: Progress) -> None:
        self.reporter.training(progress)
        self._look()

    def search_begins(self, metric: MetricInfo) -> None:
        self.reporter.search_begins(metric)
        self._look()

    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None:
        self.reporter.trial(trial, best, total, saved)
        self._look()

    def _look(self) -> None:
        self.told = True
        if time.perf_counter() - self._looked >= EVERY:
            for line in self.feed.update():
                self.reporter.say(line)
            self._looked = time.perf_counter()


@contextmanager
def logging_to(names: str | Sequence[str], folder: str | Path, reporter: Reporter) -> Iterator[Reporter]:
    """The reporter, and within it the run in the folder is logged; at the end the loggers are closed.

    Args:
        names: Names in `LOGGERS`; none for no logging.
        folder: The run folder.
        reporter: Where to tell what is going on.

    Raises:
        UnknownNameError: There is no such logger.
        MissingExtraError: Its package is not installed.
    """
    every = [names] if isinstance(names, str) else list(names)
    if not every:
        yield reporter
        return
    logged = LoggedReporter(reporter, Feed(folder, every))
    try:
        yield logged
    finally:
        if logged.told:
            for line in logged.feed.close():
                reporter.say(line)
