"""A search as a person watches it: a row per generation, from the trials as they come (no torch)."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from glora.searchers import Trial

__all__ = ["SearchView"]

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
