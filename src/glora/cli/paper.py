"""`glora table NAME RUNS` and `glora plot NAME RUNS`: the paper's tables and figures (no torch)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from glora import registry
from glora.errors import UnknownNameError, nearest
from glora.report.folders import read_results, read_tested
from glora.report.paper import TABLES
from glora.report.sheet import Sheet, as_csv, as_latex, as_markdown, as_tables

__all__ = ["FORMS", "check_word", "is_table", "print_sheets", "print_table"]

COUNTED = {"params": "glora.runs.parameter_table:parameter_table"}  # of models, not of runs: name -> its sheet of one
PAIRED = {"tasks": "glora.runs.by_task:by_task"}  # of results and what they say of every test example
EVALUATED = {"language": "glora.report.paper.language:language"}  # of what `glora eval --tasks` has left in runs
MODEL = "vit_b"
FORMS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}  # `text` and `json` are below

_EVERY = {**TABLES, **PAIRED, **EVALUATED, **COUNTED}


def check_word(word: str) -> None:
    """Raises UnknownNameError where the word is no path and almost the name of a table."""
    near = nearest(word, _EVERY, n=1)
    if near and not is_table(word) and not Path(word).expanduser().exists():
        raise UnknownNameError(
            f"There is no run and no table {word!r}.",
            allowed=f"Tables: {', '.join(_EVERY)}.",
            remedy=f"Did you mean {near[0]!r}?",
        )


def is_table(word: str) -> bool:
    """Whether the word names a table of the paper; a folder of that name is written with a path: `./vtab`."""
    return word in _EVERY


def print_table(name: str, runs: Sequence[str], form: str) -> None:
    """The table of this name of the results that the paths lead to, on stdout.

    Args:
        name: A key of `TABLES`, `PAIRED`, `EVALUATED` or `COUNTED`.
        runs: Run folders, Result files, or folders of either; none: the printed rows alone. Of `COUNTED` models.
        form: `text`, `json`, or a key of `FORMS`.
    """
    sheets: list[Sheet]
    if name in COUNTED:
        sheets = [registry.load(COUNTED[name])(model) for model in runs or [MODEL]]
    elif name in EVALUATED:
        sheets = registry.load(EVALUATED[name])(runs)
    elif name in PAIRED:
        sheets = registry.load(PAIRED[name])(read_tested(runs))
    else:
        sheets = registry.load(TABLES[name])(read_results(runs))
    print_sheets(sheets, form)


def print_sheets(sheets: Sequence[Sheet], form: str) -> None:
    """Sheets on stdout in a form."""
    if form == "json":
        typer.echo(json.dumps([sheet.to_json() for sheet in sheets]))
    elif form in FORMS:
        typer.echo("\n".join(FORMS[form](sheet) for sheet in sheets), nl=False)
    else:
        from rich.console import Console

        console = Console()
        for sheet in sheets:
            for table in as_tables(sheet, console.width):
                console.print(table)
