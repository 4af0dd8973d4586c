"""The comparison table, from Results only: as rows, Markdown, or a rich table (no torch).

A row is one set of settings: its runs differ in the seed alone, and the row has their mean and how many they are.
Settings in which rows differ become columns.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glora.errors import listed
from glora.genotype import ROLES
from glora.report.metrics import MetricInfo
from glora.report.outcome import SPLITS, Outcome, Row, row_title
from glora.report.result import Result
from glora.settings import flat

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "CAPTION",
    "comparison_table",
    "is_copy",
    "markdown",
    "rich_table",
    "rows",
    "settings_of",
    "trainable",
    "winner_table",
]

CAPTION = (
    "± is the standard error on the examples counted, or with several seeds the standard deviation between them. val "
    "also chose the configuration of a searched method and flatters it. Trainable numbers are without the head. "
    "Latency: merged model / plain backbone."
)
COMPARED = (
    "± is the standard error. val chose the winner; the examples set aside chose among the best few only, of the "
    "random genotypes too; test chose nothing. Below, ± of a difference is paired: example by example."
)
CHOICES = "– none, · not offered. {}."
MISSING = "–"
NAMES = ("task", "model", "method")  # what a row is of; the first two are columns only where they differ
NUMBERS = ("seeds", "trainable", "head", "train, s", "latency")  # titles of columns with numbers, beside the metrics
TAKEN = (*NAMES, *NUMBERS, "run", "metric", "val", "test")  # titles that no setting gets
NOT_SETTINGS = {"seed", "search.workers", "search.cluster", "search.limit"}  # no number of one run depends on them
SAME_AS_NAMES = {"method", "method.name", "model.name"}  # told by a name of the row
OWNERS = {  # beginning of a setting's name -> the name of a row that it belongs to: rows of others do not have it
    "method": "method", "rank": "method", "space": "method", "train.lr": "method",  # each method has its default rate
    "model": "model", "data": "task",
}  # fmt: skip


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
    """One row per set of settings, in the order of the results: column title -> text.

    Args:
        results: The runs. Those that differ in the seed alone share a row; copies of one run count once.
    """
    groups = _groups(results)
    firsts = [group[0] for group in groups]
    differing = [name for name in NAMES[:2] if len({getattr(first, name) for first in firsts}) > 1]
    heads = [
        {**{name: getattr(first, name) for name in (*differing, "method")}, **settings}
        for first, settings in zip(firsts, _differing_settings(firsts), strict=True)
    ]
    if len({tuple(head.values()) for head in heads}) < len(heads):
        for head, group in zip(heads, groups, strict=True):
            head["run"] = listed(result.run or MISSING for result in group)
    many_seeds = any(len(group) > 1 for group in groups)
    metrics = {_first_metric(first) for first in firsts}
    shared = metrics.pop() if len(metrics) == 1 else None
    return [head | _numbers_of(group, shared, many_seeds) for head, group in zip(heads, groups, strict=True)]


def markdown(results: Iterable[Result]) -> str:
    """The comparison table as GitHub Markdown, with its caption."""
    table = rows(results)
    if not table:
        return "No results.\n"
    titles = list(table[0])
    cells = [titles, *([row[title].replace("|", r"\|") for title in titles] for row in table)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(titles))]
    left = [not _holds_numbers(title) for title in titles]
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
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    every = list(results)
    shared = [names.pop() for names in ({r.task for r in every}, {r.model for r in every}) if len(names) == 1]
    title = title or ", ".join(shared)
    look: Any = {"caption_justify": "left", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = Table(title=title or None, caption=CAPTION, **look)
    lines = rows(every)
    for name in lines[0] if lines else ("method",):
        if _holds_numbers(name):  # a heading is wrapped between words, a number never
            least = max(map(len, (*name.split(), *(line[name] for line in lines))))
            table.add_column(name, justify="right", min_width=least)
        else:
            table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*line.values())
    return table


def comparison_table(compared: Mapping[str, Row], metrics_info: Sequence[MetricInfo]) -> Table:
    """The winner of a search and its controls for a terminal, on every split that they were measured on.

    Args:
        compared: `winner` and every control -> its metrics: the rows of an `Outcome` or a `Result`.
        metrics_info: Their metrics; the first is shown on every split, the others but for the loss on test.
    """
    from rich.table import Table

    table = Table(caption=COMPARED, caption_justify="left")
    columns = [
        (f"{split}_{metric.name}", f"{SPLITS[split]} {metric.title}", metric)
        for place, metric in enumerate(metrics_info)
        for split in ("val", "aside", "test")
        if any(f"{split}_{metric.name}" in row for row in compared.values())
        and (place == 0 or (split == "test" and metric.name != "loss"))
    ]
    for title in ("", "trainable", *(title for _, title, _ in columns)):
        table.add_column(title, justify="right" if title else "left")
    for name, row in compared.items():
        cells = [_number(metric, row.get(key), row.get(f"{key}_standard_error")) for key, _, metric in columns]
        table.add_row(row_title(name, row), trainable(row["parameters"] or 0), *cells)
    return table


def winner_table(outcome: Outcome) -> Table:
    """The winner row by row for a terminal, of GLoRA site by site: every choice, and the row's trainable numbers."""
    from rich.table import Table

    budget = "no budget" if outcome.budget is None else f"budget {outcome.budget:,}"
    least = f", at least {outcome.min_budget:,}" if outcome.min_budget else ""
    heading = f"The winner, trial {outcome.number}: {outcome.parameters:,} trainable numbers, {budget}{least}"
    columns = outcome.columns or ROLES
    caption = CHOICES.format(", ".join(f"{name}: {role}" for name, role in columns.items()))
    table = Table(title=heading, caption=caption, caption_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in (outcome.row, *columns, "numbers"):
        table.add_column(column, justify="right" if column == "numbers" else "left", overflow="fold")
    for row, cells in outcome.sites.items():
        looks = {None: "·", "none": MISSING}
        table.add_row(row, *(looks.get(cells[name], cells[name]) for name in columns), f"{cells['numbers']:,}")
    return table


# Which runs share a row


def _groups(results: Iterable[Result]) -> list[list[Result]]:
    """The runs of every row. A run of a seed that its row has already, with other numbers, begins another row."""
    alike: dict[str, list[list[Result]]] = {}
    order: list[list[Result]] = []
    for result in results:
        key = json.dumps(
            [*(getattr(result, name) for name in (*NAMES, "objective")), settings_of(result)], sort_keys=True
        )
        groups = alike.setdefault(key, [])
        if any(is_copy(result, other) for group in groups for other in group):
            continue
        for group in groups:
            if all(other.seed != result.seed for other in group):
                group.append(result)
                break
        else:
            groups.append([result])
            order.append(groups[-1])
    return order


def is_copy(one: Result, other: Result) -> bool:
    """Whether two runs of the same settings are one: equal up to what the clock, the machine and the folder say."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("seed", "parameters", "metrics", "controls", "others")
    )


def settings_of(result: Result) -> dict[str, Any]:
    """Dotted name -> value of every setting that can change a number of the result."""
    searched = bool(result.winner or result.controls.keys() - {"base"})
    return {
        name: value
        for name, value in flat(result.config).items()
        if name not in NOT_SETTINGS | SAME_AS_NAMES and (searched or not name.startswith("search."))
    }


# Which settings become columns


def _differing_settings(firsts: Sequence[Result]) -> list[dict[str, str]]:
    """Of every row the settings in which rows differ: short name -> value."""
    every = [settings_of(first) for first in firsts]
    names = list(dict.fromkeys(name for settings in every for name in settings))
    shown = [name for name in names if _differs(name, firsts, every)]
    titles = _short(shown)
    return [{titles[name]: _text(settings.get(name)) for name in shown} for settings in every]


def _differs(name: str, firsts: Sequence[Result], every: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows that the setting belongs to differ in it.

    That of a method is compared among rows of this method, that of a model among rows of this model, that of the data
    among rows of this task, that of a search among rows that were searched.
    """
    owner = next((OWNERS[start] for start in OWNERS if f"{name}.".startswith(f"{start}.")), None)
    values: dict[str, set[str]] = {}
    for first, settings in zip(firsts, every, strict=True):
        if name in settings:
            values.setdefault(getattr(first, owner) if owner else "", set()).add(_text(settings[name]))
    return any(len(several) > 1 for several in values.values())


def _short(names: Sequence[str]) -> dict[str, str]:
    """Dotted name -> its last part, or more where that is another's or a column's of its own."""
    titles: dict[str, str] = {}
    for name in names:
        last = name.removesuffix(".name").rpartition(".")[2]
        alone = [other.removesuffix(".name").rpartition(".")[2] for other in names].count(last) == 1
        titles[name] = last if alone and last not in TAKEN else name
    return titles


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or MISSING
    return json.dumps(value) if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value)


# The numbers of a row


def _numbers_of(group: Sequence[Result], shared: MetricInfo | None, many_seeds: bool) -> dict[str, str]:
    """The columns with numbers; `shared` is the metric of all rows, None where each row has to name its own."""
    row = {"seeds": str(len(group))} if many_seeds else {}
    row["trainable"] = trainable(statistics.fmean(r.parameters for r in group))
    row["head"] = trainable(statistics.fmean(r.head_parameters for r in group))
    metric = _first_metric(group[0])
    if shared is None:
        row["metric"] = MISSING if metric is None else metric.title
    for split in ("val", "test"):
        row[f"{split} {shared.title}" if shared else split] = (
            MISSING if metric is None else _mean_of(group, split, metric)
        )
    row["train, s"] = _mean([r.seconds.get("train") for r in group], "{:,.0f}")
    row["latency"] = _mean([(r.latency or {}).get("ratio") for r in group], "{:.2f}x")
    return row


def _first_metric(result: Result) -> MetricInfo | None:
    return result.metrics_info[0] if result.metrics_info else None


def _mean_of(group: Sequence[Result], split: str, metric: MetricInfo) -> str:
    """The mean ± the spread between seeds, or for one run ± its standard error."""
    key = f"{split}_{metric.name}"
    values = _finite(r.metrics.get(key) for r in group)
    if not values:
        return MISSING
    errors = _finite(r.metrics.get(f"{key}_standard_error") for r in group)
    spread = statistics.stdev(values) if len(values) > 1 else errors[0] if errors else None
    return _number(metric, statistics.fmean(values), spread)


def _number(metric: MetricInfo, value: float | None, error: float | None) -> str:
    return MISSING if value is None else metric.number(value, error)


def _mean(values: Iterable[float | None], form: str) -> str:
    found = _finite(values)
    return form.format(statistics.fmean(found)) if found else MISSING


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _holds_numbers(title: str) -> bool:
    return title in NUMBERS or title.partition(" ")[0] in ("val", "test")
