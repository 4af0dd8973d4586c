"""Which Results make one row of the paper's tables, and what must be said of rows that are not alike (no torch)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from glora.report.published import VTAB, PublishedRow
from glora.report.result import Result
from glora.report.sheet import Cell, Line, mean_of
from glora.report.tables import is_copy, settings_of
from glora.tasks.data.paper_sets import UNUSUAL, by_name

__all__ = [
    "INCOMPLETE",
    "PAPER_PROTOCOL",
    "PRINTED",
    "SPREAD",
    "OurRow",
    "captions",
    "doubtful",
    "mean_over",
    "named_set",
    "our_rows",
    "parameters",
    "printed_lines",
]

GIVEN = "from_python"  # the source of data that a program gave
PRINTED = "Printed rows are the paper's own (arXiv 2306.07967); their averages are computed from their columns."
Draw: TypeAlias = tuple[int, str, str]
SPREAD = "Accuracy is on test, in %; ± is the standard deviation between seeds."
INCOMPLETE = "– was not measured; an average needs every column."
PAPER_PROTOCOL = (
    "Rows of the paper protocol have the published recipes, whose efforts are not equal, and one look at test; printed "
    "rows are often the best of several looks."
)


@dataclass
class OurRow:
    """What was measured of one method.

    Attributes:
        name: What the table calls it.
        model: Its backbone.
        results: Cell -> its runs, one a seed.
    """

    name: str
    model: str
    protocol: str
    results: dict[str, list[Result]] = field(default_factory=dict)

    def cells(self, values: Mapping[str, Callable[[Result], float | None]]) -> dict[str, Cell]:
        """Cell -> mean and spread over seeds; a column that no run has is not there.

        Args:
            values: Column -> the figure of a run of that column.
        """
        found = {}
        for column, value in values.items():
            read = [value(result) for result in self.results.get(column, [])]
            if numbers := [each for each in read if each is not None]:
                found[column] = Cell.over(numbers)
        return found

    @property
    def seeds(self) -> Cell:
        """How many seeds its cells have."""
        counts = sorted({len(runs) for runs in self.results.values()})
        return Cell(counts[0]) if len(counts) == 1 else Cell(note=f"{counts[0]} to {counts[-1]}")

    def every(self) -> list[Result]:
        """All its runs."""
        return [result for runs in self.results.values() for result in runs]


def draw_of(result: Result) -> Draw:
    """What runs of one row may differ in and be averaged: the seed, and those of the training images and the split."""
    data = result.config.get("data")
    own = data if isinstance(data, Mapping) else {}
    return result.seed, str(own.get("list_seed", "")), str(own.get("split_seed", ""))


def our_rows(results: Iterable[Result], cell: Callable[[Result], str]) -> list[OurRow]:
    """The rows of the results: in the order of Table 1, then those of other methods in the order of the results.

    Results of one title, protocol and model share a row, whatever else differs from cell to cell, such as the learning
    rate that was best on each task. Where two of them have the same cell and the same seed, the settings that they
    differ in divide the row. Copies of one run count once.

    Args:
        results: The runs.
        cell: Which column a run belongs to.
    """
    alike: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        alike.setdefault((result.title or result.method, result.protocol, result.model), []).append(result)
    several = len({model for _, _, model in alike}) > 1
    rows: list[OurRow] = []
    for (title, protocol, model), group in alike.items():
        name = f"{title}, {model}" if several else title
        name = f"{name} (paper protocol)" if protocol == "paper" else name
        rows += _divided(name, model, protocol, group, cell)
    return sorted(rows, key=lambda row: _place(row.name))


def _place(name: str) -> int:
    """The row of Table 1 whose name the name begins with, the longest of them; after all others where there is none."""
    begins = [row.name.partition(" (")[0].lower() for row in VTAB]
    found = [place for place, begin in enumerate(begins) if name.lower().startswith(begin)]
    return max(found, key=lambda place: (len(begins[place]), -place), default=len(begins))


def _divided(
    name: str, model: str, protocol: str, group: Sequence[Result], cell: Callable[[Result], str]
) -> list[OurRow]:
    """The rows of results of one name: one, or one for each value of what divides them."""
    single = _without_copies(group, cell)
    by = _dividing(single, cell)
    parts: dict[str, OurRow] = {}
    for result in single:
        settings = settings_of(result)
        told = [f"{setting.rpartition('.')[2]} {json.dumps(settings.get(setting))}" for setting in by]
        title = ", ".join([name, *told]).replace('"', "")
        again = 1
        while True:  # the same settings, cell and seed with other numbers: another row
            row = parts.setdefault(f"{title} {again}", OurRow(title + f" ({again})" * (again > 1), model, protocol))
            runs = row.results.setdefault(cell(result), [])
            if all(draw_of(other) != draw_of(result) for other in runs):
                runs.append(result)
                break
            again += 1
    return list(parts.values())


def _without_copies(group: Sequence[Result], cell: Callable[[Result], str]) -> list[Result]:
    found: list[Result] = []
    for result in group:
        same = (other for other in found if cell(other) == cell(result) and settings_of(other) == settings_of(result))
        if not any(is_copy(result, other) for other in same):
            found.append(result)
    return found


def _dividing(group: Sequence[Result], cell: Callable[[Result], str]) -> list[str]:
    """The settings in which two results of one cell and seed differ."""
    met: dict[tuple[str, Draw], list[Result]] = {}
    for result in group:
        met.setdefault((cell(result), draw_of(result)), []).append(result)
    names: dict[str, None] = {}
    for runs in met.values():
        every = [settings_of(run) for run in runs]
        for name in dict.fromkeys(name for settings in every for name in settings):
            if len({json.dumps(settings.get(name), sort_keys=True) for settings in every}) > 1:
                names[name] = None
    return list(names)


def parameters(row: OurRow) -> Cell:
    """Trainable numbers in millions, without the head: the one count, else from the smallest to the largest."""
    counts = [result.parameters / 1e6 for result in row.every()]
    low, high = (format(each, ".2f") for each in (min(counts), max(counts)))
    if min(counts) == max(counts):
        return Cell(counts[0])
    return Cell(statistics.fmean(counts)) if low == high else Cell(note=f"{low} to {high}")


def mean_over(
    row: OurRow, columns: Mapping[str, Sequence[str]], value: Callable[[Result], float | None]
) -> dict[str, Cell]:
    """The mean of each group of columns, their mean as `group_mean`, and that of all columns as `task_mean`.

    The spread is that of the seeds that every column has.

    Args:
        row: What was measured.
        columns: Group -> its columns.
        value: The figure of a run.
    """
    every = [column for group in columns.values() for column in group]
    cells = row.cells(dict.fromkeys(every, value))
    figures = {column: {draw_of(run): value(run) for run in row.results.get(column, [])} for column in every}
    draws = [{draw for draw, figure in by.items() if figure is not None} for by in figures.values()]
    shared = sorted(set.intersection(*draws)) if draws else []
    by_seed = [averages({column: Cell(by[draw]) for column, by in figures.items()}, columns) for draw in shared]
    found = averages(cells, columns)
    for name, cell in found.items():
        values = [each[name].value for each in by_seed]
        if cell.value is not None and len(values) > 1:
            found[name] = Cell(cell.value, statistics.stdev(each for each in values if each is not None))
    return found


def averages(cells: Mapping[str, Cell], columns: Mapping[str, Sequence[str]]) -> dict[str, Cell]:
    """As `mean_over`, of cells: a mean is missing as soon as a column of it is."""
    found = {group: mean_of([cells.get(name, Cell()) for name in names]) for group, names in columns.items()}
    found["group_mean"] = mean_of(list(found.values()))
    found["task_mean"] = mean_of([cells.get(name, Cell()) for names in columns.values() for name in names])
    return found


def printed_lines(rows: Iterable[PublishedRow], more: Callable[[Mapping[str, Cell]], Mapping[str, Cell]]) -> list[Line]:
    """The printed rows as lines.

    Args:
        rows: What the paper prints.
        more: Cells that are computed of a row's own.
    """
    lines = []
    for row in rows:
        cells = {name: Cell(value) for name, value in row.values.items()}
        lines.append(Line(row.name, {"parameters": Cell(row.parameters), **more(cells), **cells}, printed=True))
    return lines


def captions(rows: Sequence[OurRow], printed: Sequence[PublishedRow] = ()) -> list[str]:
    """What must be said of the rows: what ours were run with, where that differs, and what is wrong in print."""
    found = [PRINTED] if printed else []
    every = [result for row in rows for result in row.every()]
    if every:
        found.append(_run_with(every))
    if len({frozenset(map(draw_of, runs)) for row in rows for runs in row.results.values()}) > 1:
        found.append("Rows or cells differ in their seeds: each mean is of those that it has.")
    if printed and (odd := dict.fromkeys(each.task for each in every if _is_unusual(each))):
        found.append(f"Not of the usual copy, and not to be compared with printed figures: {', '.join(odd)}.")
    if any(row.protocol == "paper" for row in rows):
        found.append(PAPER_PROTOCOL)
    return [*found, *doubtful(printed), *(f"{row.name}: {row.note}" for row in printed if row.note)]


def _is_unusual(result: Result) -> bool:
    """Whether the run's data had another number of images than the paper's set."""
    return any(note.startswith(UNUSUAL) for note in result.notes)


def doubtful(printed: Sequence[PublishedRow]) -> list[str]:
    """Which printed rows are confirmed by no other text, in a sentence; none where all are."""
    names = [row.name for row in printed if not row.confirmed]
    return [f"Printed figures that no public text but the paper confirms: {', '.join(names)}."] if names else []


def _run_with(results: Sequence[Result]) -> str:
    """Model, image size and image-steps of the runs, in a sentence."""
    models = dict.fromkeys(result.model for result in results)
    sizes = dict.fromkeys(_image_size(result) for result in results)
    steps = sorted({sum(result.example_steps.values()) for result in results})
    told = {"models": list(models), "image sizes": list(sizes), "image-steps of training": [f"{n:,}" for n in steps]}
    if all(len(each) == 1 for each in told.values()):
        trained = f", {steps[0]:,} image-steps" if steps[0] else ""
        return f"Measured: {told['models'][0]}, images of {told['image sizes'][0]}{trained}."
    mixed = [f"{what} ({_few(each)})" for what, each in told.items() if len(each) > 1]
    return f"Measured rows or cells differ in {' and in '.join(mixed)}: compare only what is alike."


def _few(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 4 else f"{len(values)} from {values[0]} to {values[-1]}"


def _image_size(result: Result) -> str:
    model = result.config.get("model")
    size = model.get("image_size") if isinstance(model, Mapping) else None
    return f"{size} px" if size else "the model's own size"


def named_set(result: Result, sets: Any, source: str) -> str:
    """Which of the paper's sets the result is of, by its name; empty where it is of none.

    It is of one where its data came from the source of these sets. Of data that a program gave, and of results that do
    not tell their data, the name decides.

    Args:
        result: The run.
        sets: `VTAB` or `FEW_SHOT`.
        source: Name in the table of data sources.
    """
    data = result.config.get("data")
    told = data.get("source", source) if isinstance(data, Mapping) else source
    if told not in (source, GIVEN):
        return ""
    try:
        return by_name(result.task, sets).name
    except ValueError:
        return ""
