"""What the pages of measurements have in common: lines, tables, intervals, learning rates, where they were measured."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from glora.report.paper.rows import OurRow
from glora.report.result import Result
from glora.report.sheet import Sheet, as_markdown

WIDTH = 120  # of a line of a page
DRAWS = 10_000  # of a bootstrap


def wrapped(text: str, begin: str = "") -> list[str]:
    """The text in lines of the page, the first with a beginning."""
    indent = " " * len(begin)
    return textwrap.wrap(
        text, WIDTH, initial_indent=begin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def table(sheet: Sheet) -> list[str]:
    """A table and its caption."""
    lines = as_markdown(sheet).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [*rows, "", *wrapped(" ".join(sheet.caption)), ""]


def interval(pooled: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean over tasks and seeds with its bootstrap 95% interval.

    Paired: a draw takes, for each task, seeds and test images with replacement, the same for both.

    Args:
        pooled: Of each task the differences, (seeds, test images).
    """
    low, high = np.quantile(np.mean([drawn(gap, place) for place, gap in enumerate(pooled)], axis=0), [0.025, 0.975])
    return float(np.mean([gap.mean() for gap in pooled])), float(low), float(high)


def drawn(gap: np.ndarray, place: int) -> np.ndarray:
    """The means of so many draws of a task's seeds and images, (DRAWS,); images that are alike are drawn together."""
    rng, (seeds, images) = np.random.default_rng(place), gap.shape
    kinds, counts = np.unique(gap, axis=1, return_counts=True)
    of_images = rng.multinomial(images, counts / images, size=DRAWS) / images
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds
    return np.asarray((of_images @ kinds.T * of_seeds).sum(1))


def spelled(found: tuple[float, float, float]) -> list[str]:
    """A difference and its interval."""
    middle, low, high = found
    return [f"{middle:+.1f}", f"{low:+.1f} to {high:+.1f}"]


def rates(rows: Sequence[OurRow]) -> Iterator[str]:
    """The learning rates of every method."""
    yield "| method | learning rate |"
    yield "|---|---|"
    for row in rows:
        by: dict[str, list[str]] = {}
        for task, runs in row.results.items():
            for each in runs:
                told = rate(each)
                if task not in by.setdefault(told, []):
                    by[told].append(task)
        single = len(by) == 1
        cells = [told if single else f"{told} ({', '.join(tasks)})" for told, tasks in by.items()]
        yield f"| {row.name} | {'; '.join(cells)} |"


def rate(result: Result) -> str:
    """A run's learning rate, as its settings have it."""
    train = result.config.get("train")
    value = train.get("lr") if isinstance(train, Mapping) else None
    return f"{value:g}" if isinstance(value, int | float) else "the method's own"


def stamps(results: Sequence[Result]) -> Iterator[str]:
    """On what the cells were run, and with which code."""
    for what, found in (
        ("Device", Counter(result.device for result in results)),
        ("Commit", Counter((result.commit or "")[:7] for result in results)),
        ("Versions", Counter(", ".join(f"{k} {v}" for k, v in result.versions.items()) for result in results)),
    ):
        told = [f"{name or 'not told'} ({count})" for name, count in found.most_common()]
        yield f"{what}: {'; '.join(told)}."
    hours = sum(sum(result.seconds.values()) for result in results) / 3600
    yield f"Time of all stages, added up: {hours:.1f} hours."
