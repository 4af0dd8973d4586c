"""The comparison table, from Results only: as rows, Markdown, or a rich table (no torch).

Results of one method, task and model that differ in the seed share a row: their mean, and how many they are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from glora.genotype import TENSORS
from glora.report.outcome import SPLITS, Outcome, Row, row_title
from glora.report.result import Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CAPTION", "comparison_table", "markdown", "rich_table", "rows", "trainable", "winner_table"]

CAPTION = (
    "val, test: accuracy; ± is the standard error on the images counted, or with several seeds the standard deviation "
    "between them. val also chose the configuration of a searched method and flatters it. Trainable numbers are "
    "without the head. Latency: merged model / plain backbone."
)
COMPARED = (
    "Accuracy ± its standard error. val chose the winner; the images set aside chose among the best few only, of the "
    "random genotypes too; test chose nothing. Below, ± of a difference is paired: image by image."
)
CHOICES = "– none, · not offered. A scales and B shifts the weight, C is a prompt, D scales and E shifts the bias."
MISSING = "–"
TITLES = {"task": "task", "model": "model"}  # columns shown only when the results differ in them


def trainable(parameters: float) -> str:
    """A number of trainable numbers in words: `"0.29 M"`, `"3.8 k"`, `"0"`.

    Args:
        parameters: The count, or a mean of counts.
    """
    for limit, unit, digits in ((99_500_000, 1e6, 0), (99_500, 1e6, 2), (999.5, 1e3, 1)):
        if parameters >= limit:
            return f"{parameters / unit:,.{digits}f} {'M' if unit == 1e6 else 'k'}"
    return f"{parameters:.0f}"


def rows(results: Iterable[Result]) -> list[dict[str, str]]:
    """One row per method, task and model, in the order of the results: column title -> text.

    Args:
        results: The runs; those that differ in the seed alone share a row.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.task, result.model, result.method), []).append(result)
    many_seeds = any(len(group) > 1 for group in groups.values())
    differing = [name for place, name in enumerate(TITLES) if len({key[place] for key in groups}) > 1]
    return [_row(group, differing, many_seeds) for group in groups.values()]


def markdown(results: Iterable[Result]) -> str:
    """The comparison table as GitHub Markdown, with its caption."""
    table = rows(results)
    if not table:
        return "No results.\n"
    titles = list(table[0])
    cells = [titles, *([row[title].replace("|", r"\|") for title in titles] for row in table)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(titles))]
    left = [_is_text(title) for title in titles]
    lines = [
        "| " + " | ".join(c.ljust(w) if t else c.rjust(w) for c, w, t in zip(line, widths, left, strict=True)) + " |"
        for line in cells
    ]
    rule = "| " + " | ".join(("-" * w if t else "-" * (w - 1) + ":") for w, t in zip(widths, left, strict=True)) + " |"
    return "\n".join([lines[0], rule, *lines[1:], "", CAPTION, ""])


def rich_table(results: Iterable[Result], *, title: str = "") -> Table:
    """The comparison table for a terminal.

    Args:
        results: The runs.
        title: Printed above; by default the task and the model, where all results share them.
    """
    from rich.table import Table

    every = list(results)
    shared = [names.pop() for names in ({r.task for r in every}, {r.model for r in every}) if len(names) == 1]
    table = Table(title=title or ", ".join(shared) or None, caption=CAPTION, caption_justify="left")
    lines = rows(every)
    for name in lines[0] if lines else ("method",):
        table.add_column(name, justify="left" if _is_text(name) else "right", overflow="fold")
    for line in lines:
        table.add_row(*line.values())
    return table


def comparison_table(compared: Mapping[str, Row]) -> Table:
    """The winner of a search and its controls for a terminal: accuracy on every split that was looked at."""
    from rich.table import Table

    table = Table(caption=COMPARED, caption_justify="left")
    splits = [
        split for split in ("val", "aside", "test") if any(f"{split}_accuracy" in row for row in compared.values())
    ]
    for column in ("", "trainable", *(f"{SPLITS[split]}, %" for split in splits)):
        table.add_column(column, justify="right" if column else "left")
    for name, row in compared.items():
        table.add_row(
            row_title(name, row), trainable(row["parameters"] or 0), *(_percent(row, split) for split in splits)
        )
    return table


def winner_table(outcome: Outcome) -> Table:
    """The winner site by site for a terminal: the choice of every support tensor, and its trainable numbers."""
    from rich.table import Table

    budget = "no budget" if outcome.budget is None else f"budget {outcome.budget:,}"
    least = f", at least {outcome.min_budget:,}" if outcome.min_budget else ""
    heading = f"The winner, trial {outcome.number}: {outcome.parameters:,} trainable numbers, {budget}{least}"
    table = Table(title=heading, caption=CHOICES, caption_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("site", *TENSORS, "numbers"):
        table.add_column(column, justify="right" if column == "numbers" else "left", overflow="fold")
    for site, cells in outcome.sites.items():
        looks = {None: "·", "none": MISSING}
        table.add_row(site, *(looks.get(cells[tensor], cells[tensor]) for tensor in TENSORS), f"{cells['numbers']:,}")
    return table


def _percent(row: Row, split: str) -> str:
    accuracy, error = (row.get(f"{split}_accuracy{end}") for end in ("", "_standard_error"))
    return MISSING if accuracy is None else f"{100 * accuracy:.1f} ± {100 * (error or 0):.1f}"


def _row(group: Sequence[Result], differing: Sequence[str], many_seeds: bool) -> dict[str, str]:
    row = {TITLES[name]: str(getattr(group[0], name)) for name in differing}
    row["method"] = group[0].method
    if many_seeds:
        row["seeds"] = str(len(group))
    row["trainable"] = trainable(statistics.fmean(r.parameters for r in group))
    row["head"] = trainable(statistics.fmean(r.head_parameters for r in group))
    row["val, %"] = _accuracy(group, "val_accuracy")
    row["test, %"] = _accuracy(group, "test_accuracy")
    row["train, s"] = _mean([r.seconds.get("train") for r in group], "{:,.0f}")
    row["latency"] = _mean([(r.latency or {}).get("ratio") for r in group], "{:.2f}x")
    return row


def _accuracy(group: Sequence[Result], name: str) -> str:
    """The mean in % ± the spread between seeds, or for one run ± its standard error."""
    values = _numbers([r.metrics.get(name) for r in group])
    if not values:
        return MISSING
    errors = _numbers([r.metrics.get(f"{name}_standard_error") for r in group])
    spread = statistics.stdev(values) if len(values) > 1 else errors[0] if errors else None
    text = f"{100 * statistics.fmean(values):.1f}"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def _mean(values: Iterable[float | None], form: str) -> str:
    found = _numbers(values)
    return form.format(statistics.fmean(found)) if found else MISSING


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _is_text(title: str) -> bool:
    return title in ("method", *TITLES.values())
