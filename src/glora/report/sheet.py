"""A table of numbers with groups of columns, written as text, Markdown, CSV, LaTeX or JSON (no torch)."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MISSING", "Cell", "Column", "Line", "Sheet", "as_csv", "as_latex", "as_markdown", "as_tables", "mean_of"]

MISSING = "–"
DIGITS = 4  # after the point, of numbers in CSV
BORDERS = 3  # characters of a text table between two columns
TITLE = 14  # characters of a line of a text table's titles
TEXT_COLUMNS = 10  # a text table of more columns is printed group by group


@dataclass(frozen=True)
class Cell:
    """A number and how far it varies.

    Attributes:
        value: None where it is missing.
        spread: Standard deviation between seeds; None of a single one.
        note: Instead of the number, where there is no one number, such as `"0.2 to 0.3"`.
    """

    value: float | None = None
    spread: float | None = None
    note: str = ""

    @classmethod
    def over(cls, values: Sequence[float]) -> Cell:
        """The mean of several with their standard deviation; of none: missing."""
        if not values:
            return cls()
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, form: str) -> str:
        """Such as `"76.4 ± 0.3"`."""
        if self.value is None:
            return self.note or MISSING
        return format(self.value, form) + ("" if self.spread is None else f" ± {format(self.spread, form)}")


def mean_of(cells: Sequence[Cell]) -> Cell:
    """The mean of cells, without a spread; missing as soon as one of them is, or there is none."""
    values = [cell.value for cell in cells if cell.value is not None]
    return Cell(statistics.fmean(values)) if values and len(values) == len(cells) else Cell()


@dataclass(frozen=True)
class Column:
    """One column of numbers.

    Attributes:
        key: Its name in data.
        title: Its name for a person.
        group: What it stands under together with its neighbours; empty for none.
        form: Python's format of its numbers.
    """

    key: str
    title: str
    group: str = ""
    form: str = ".1f"


@dataclass(frozen=True)
class Line:
    """One row.

    Attributes:
        name: What it is called.
        cells: Column key -> number; one that is not there is missing.
        printed: Whether the paper prints it; else it was measured.
    """

    name: str
    cells: Mapping[str, Cell] = field(repr=False)
    printed: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: What it is.
        columns: The columns after the name.
        lines: The rows.
        caption: What a reader must know, a sentence each.
    """

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    caption: tuple[str, ...] = ()

    def texts(self, line: Line) -> list[str]:
        """A row's cells as text, without its name."""
        return [line.cells.get(column.key, Cell()).text(column.form) for column in self.columns]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the columns, and of every row its numbers and spreads."""
        return {
            "title": self.title,
            "columns": [{"key": c.key, "title": c.title, "group": c.group} for c in self.columns],
            "rows": [
                {
                    "name": line.name,
                    "printed": line.printed,
                    "values": {c.key: line.cells.get(c.key, Cell()).value for c in self.columns},
                    "spreads": {key: cell.spread for key, cell in line.cells.items() if cell.spread is not None},
                    "notes": {key: cell.note for key, cell in line.cells.items() if cell.note},
                }
                for line in self.lines
            ],
            "caption": list(self.caption),
        }


def named(line: Line) -> str:
    """The row's name, for a table that has printed rows beside measured ones."""
    return f"{line.name}, printed" if line.printed else line.name


def as_markdown(sheet: Sheet) -> str:
    """The sheet as GitHub Markdown with its caption."""
    titles = ["method", *_titles(sheet).values()]
    cells = [titles, *([named(line), *sheet.texts(line)] for line in sheet.lines)]
    cells = [[text.replace("|", r"\|") for text in row] for row in cells]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(titles))]
    lines = [
        "| "
        + " | ".join(text.rjust(w) if k else text.ljust(w) for k, (text, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * (w - 1) + ":" if k else "-" * w for k, w in enumerate(widths)) + " |"
    return "\n".join([f"**{sheet.title}**", "", lines[0], rule, *lines[1:], "", *sheet.caption, ""])


def _titles(sheet: Sheet) -> dict[str, str]:
    """Column key -> its title where no group stands above it; with the group where the title alone is another's too."""
    own = [column.title for column in sheet.columns]
    return {c.key: f"{c.group} {c.title}" if own.count(c.title) > 1 else c.title for c in sheet.columns}


def as_csv(sheet: Sheet) -> str:
    """The sheet as CSV: numbers alone, missing ones empty, and a column of spreads where a column has any."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    varied = {key for line in sheet.lines for key, cell in line.cells.items() if cell.spread is not None}
    spread = {column.key for column in sheet.columns if column.key in varied}
    heads = [key for c in sheet.columns for key in (c.key, *([f"{c.key}_spread"] if c.key in spread else []))]
    writer.writerow(["method", "printed", *heads])
    for line in sheet.lines:
        row: list[Any] = [line.name, str(line.printed).lower()]
        for column in sheet.columns:
            cell = line.cells.get(column.key, Cell())
            row.append(cell.note if cell.value is None else round(cell.value, DIGITS))
            if column.key in spread:
                row.append("" if cell.spread is None else round(cell.spread, DIGITS))
        writer.writerow(row)
    return text.getvalue()


def as_latex(sheet: Sheet) -> str:
    r"""The sheet as a LaTeX table for the package booktabs, a `\midrule` between printed and measured rows."""
    runs = [(name, len(list(columns))) for name, columns in groupby(sheet.columns, key=lambda column: column.group)]
    parts = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(' '.join((f'{sheet.title}.', *sheet.caption)))}}}"]
    parts += [rf"\begin{{tabular}}{{l{'r' * len(sheet.columns)}}}", r"\toprule"]
    if any(name for name, _ in runs):
        parts.append(" & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{_tex(name)}}}" for name, n in runs)]) + r" \\")
        parts.append(" ".join(_rules(runs)))
    parts.append(" & ".join(["method", *(_tex(column.title) for column in sheet.columns)]) + r" \\")
    for _, lines in groupby(sheet.lines, key=lambda line: line.printed):
        parts.append(r"\midrule")
        parts += [" & ".join(map(_tex, [named(line), *sheet.texts(line)])) + r" \\" for line in lines]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _rules(runs: Sequence[tuple[str, int]]) -> Iterator[str]:
    start = 2
    for name, count in runs:
        if name:
            yield rf"\cmidrule(lr){{{start}-{start + count - 1}}}"
        start += count


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", MISSING: "--", "→": r"$\to$"}
    special |= {each: rf"\{each}" for each in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(each, each) for each in text)


def as_tables(sheet: Sheet, width: int | None = None) -> list[Table]:
    """The sheet for a terminal: one table, or where it has many columns one for each group of them.

    Args:
        sheet: The table.
        width: Characters of a line; a table of more is divided, so that no name and no number is broken.
    """
    from rich.table import Table

    groups = _blocks(sheet)
    titles = {column.key: column.title for column in sheet.columns} if len(groups) > 1 else _titles(sheet)
    titles = {key: "\n".join(wrap(title, TITLE, break_long_words=False)) for key, title in titles.items()}
    blocks = [part for block in groups for part in _fitting(sheet, block, titles, width)]
    tables = []
    for place, columns in enumerate(blocks):
        group = columns[-1].group if len(groups) > 1 else ""
        last = place == len(blocks) - 1
        title = f"{sheet.title}: {group}" if group else sheet.title
        table = Table(title=title, caption=" ".join(sheet.caption) if last else None, caption_justify="left")
        table.add_column("method", overflow="fold")
        for column in columns:
            table.add_column(titles[column.key], justify="right", overflow="fold")
        for line, following in zip(sheet.lines, [*sheet.lines[1:], None], strict=True):
            texts = [line.cells.get(column.key, Cell()).text(column.form) for column in columns]
            turns = following is not None and following.printed != line.printed
            table.add_row(named(line), *texts, end_section=turns)
        tables.append(table)
    return tables


def _fitting(
    sheet: Sheet, columns: Sequence[Column], titles: Mapping[str, str], width: int | None
) -> Iterator[list[Column]]:
    """Runs of the columns that stand whole in a line beside the names."""
    room = (width or sys.maxsize) - max(map(len, ("method", *map(named, sheet.lines)))) - BORDERS - 1
    part, used = list[Column](), 0
    for column in columns:
        texts = [line.cells.get(column.key, Cell()).text(column.form) for line in sheet.lines]
        wide = max(map(len, (*titles[column.key].splitlines(), *texts))) + BORDERS
        if part and used + wide > room:
            yield part
            part, used = [], 0
        part.append(column)
        used += wide
    yield part


def _blocks(sheet: Sheet) -> list[list[Column]]:
    """The columns of each text table; those of no group stand before the next group."""
    if len(sheet.columns) <= TEXT_COLUMNS:
        return [list(sheet.columns)]
    blocks: list[list[Column]] = [[]]
    for group, columns in groupby(sheet.columns, key=lambda column: column.group):
        if blocks[-1] and blocks[-1][-1].group and group:
            blocks.append([])
        blocks[-1] += columns
    return blocks
