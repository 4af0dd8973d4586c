"""`glora report` and `glora ls runs`: runs as one HTML page, and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from glora.errors import ConfigError
from glora.files import write_text
from glora.report.page import RunRecord, read_run, render
from glora.report.runs_table import filtered, rich_runs, run_rows, sorted_runs
from glora.report.sheet import Sheet

__all__ = ["list_runs", "page", "report"]


def report(runs: Sequence[Path], out: Path, *, images: bool) -> None:
    """The page of these runs, in its file.

    Raises:
        ConfigError: The file is no .html.
        RunError: A path is no run, or a file of it is damaged.
    """
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(
            f"{out.name} is no page.", allowed="A file whose name ends in .html.", remedy="--out report.html"
        )
    text = page(runs, images=images)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)


def list_runs(folder: Path, sort: str | None, filters: Sequence[str], *, as_json: bool) -> None:
    """The runs in a folder on stdout, as a table or as JSON.

    Raises:
        ConfigError: A filter or the key of the order is of no run.
        RunError: There is no run.
    """
    rows = filtered(run_rows(folder), filters)
    rows = sorted_runs(rows, sort) if sort else rows
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console

    Console().print(rich_runs(rows))


def page(runs: Sequence[Path], *, images: bool = True, refresh: int = 0) -> str:
    """The page of these runs; of several with the tables that compare those that are tested."""
    records = [read_run(run) for run in dict.fromkeys(runs)]
    return render(records, sheets=_compared(records), images=images, refresh=refresh)


def _compared(records: Sequence[RunRecord]) -> list[Sheet]:
    """A table for every task that has several tested runs or one; none of a single run."""
    tested = [(record.result, record.examples) for record in records if record.result is not None]
    if len(tested) < 2:
        return []
    from glora.runs.by_task import by_task  # torch waits until there is something to compare

    return by_task(tested)
