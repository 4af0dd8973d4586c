"""The runs of a folder as a table: name, task, method, metric with standard error, state, date (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glora.errors import ConfigError, GloraError, RunError, did_you_mean
from glora.report.outcome import SPLITS
from glora.report.page.record import RunRecord, read_run
from glora.report.tables import trainable
from glora.settings import flat

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COLUMNS", "filtered", "find_runs", "rich_runs", "run_rows", "sorted_runs"]

COLUMNS = (
    "name",
    "task",
    "model",
    "method",
    "metric",
    "value",
    "standard_error",
    "split",
    "parameters",
    "state",
    "date",
)
DAMAGED = "damaged"
MISSING = "–"
WHOLE = ("method", "on", "trainable", "state", "date")  # columns that are never folded

Row = dict[str, Any]


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder, at any depth but not within one another; itself where it is one.

    Raises:
        RunError: It is no folder, or there is none in it.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder.", remedy="Name a folder with run folders in it: glora ls runs FOLDER")
    found: list[Path] = []
    for file in sorted(folder.rglob("config.yaml"), key=lambda each: len(each.parts)):
        inside = any(above in file.parents for above in found)
        run = (file.parent / "metrics.jsonl").exists() or (file.parent / "state.json").exists()
        if run and not inside:
            found.append(file.parent)
    if not found:
        raise RunError(f"There is no run in {folder}.", remedy="Start one: glora fit --data FOLDER --out RUN")
    return sorted(found)


def run_rows(folder: Path) -> list[Row]:
    """A row for every run: `COLUMNS`, and `settings`, its settings by dotted name.

    A run whose files are damaged has the state `damaged`, and `problem` says why.

    Raises:
        RunError: There is no run in the folder.
    """
    return [_row(path, folder) for path in find_runs(folder)]


def _row(path: Path, folder: Path) -> Row:
    name = path.resolve().name if path == folder else path.relative_to(folder).as_posix()
    try:
        run = read_run(path)
    except GloraError as error:
        return {**dict.fromkeys(COLUMNS), "name": name, "state": DAMAGED, "settings": {}, "problem": error.cause}
    settings, result = flat(run.settings), run.result
    found = {
        "name": name,
        "task": result.task if result else settings.get("data.source"),
        "model": result.model if result else settings.get("model.name"),
        "method": result.method if result else settings.get("method.name"),
        "parameters": result.parameters if result else run.outcome.parameters if run.outcome else None,
        "state": run.state,
        "date": datetime.fromtimestamp(run.changed, timezone.utc).isoformat(timespec="seconds"),
    }
    return {**dict.fromkeys(COLUMNS), **found, **_measured(run), "settings": settings}


def _measured(run: RunRecord) -> Row:
    """The first metric on the most honest split."""
    numbers = run.result.metrics if run.result else run.outcome.rows.get("winner", {}) if run.outcome else {}
    for metric in run.metrics[:1]:
        for split in SPLITS:
            key = f"{split}_{metric.name}"
            if numbers.get(key) is not None:
                error = numbers.get(f"{key}_standard_error")
                shown = f"{metric.name} {metric.quantity(numbers[key] or 0.0, error)}"
                return {
                    "metric": metric.name,
                    "value": numbers[key],
                    "standard_error": error,
                    "split": split,
                    "shown": shown,
                }
    return {}


def filtered(rows: Sequence[Row], asked: Sequence[str]) -> list[Row]:
    """The rows that have all of these values.

    Args:
        rows: Of `run_rows`.
        asked: `KEY=VALUE` each: a column, or a setting such as `train.epochs`.

    Raises:
        ConfigError: One is no such pair, or no run has its key.
    """
    for each in asked:
        key, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"{each!r} is no filter.", allowed="KEY=VALUE, such as task=digits or train.epochs=5.")
        _check(key, rows)
        rows = [row for row in rows if str(_value(row, key)).lower() == value.lower()]
    return list(rows)


def sorted_runs(rows: Sequence[Row], key: str) -> list[Row]:
    """The rows by a column or a setting, the smallest first; with `-` before it the largest; what lacks it last.

    Raises:
        ConfigError: No run has it.
    """
    down = key.startswith("-")
    key = key.removeprefix("-")
    _check(key, rows)
    known = [row for row in rows if _value(row, key) is not None]
    numbers = all(isinstance(_value(row, key), (int, float)) for row in known)
    known.sort(key=lambda row: _value(row, key) if numbers else str(_value(row, key)), reverse=down)
    return [*known, *(row for row in rows if _value(row, key) is None)]


def _value(row: Row, key: str) -> Any:
    return row.get(key) if key in COLUMNS else row["settings"].get(key)


def _check(key: str, rows: Sequence[Row]) -> None:
    every = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row["settings"])])
    if rows and key not in every:
        raise ConfigError(
            f"No run has {key!r}.",
            allowed=f"Columns: {', '.join(COLUMNS)}; or any of `glora ls settings`.",
            remedy=did_you_mean(key, every),
        )


def rich_runs(rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    told = "± is one standard error on the split named."
    table = Table(caption=told, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("run", "task", "method", "metric", "on", "trainable", "state", "date"):
        side: Literal["left", "right"] = "right" if title == "trainable" else "left"
        table.add_column(title, justify=side, no_wrap=title in WHOLE, overflow="fold")
    for row in rows:
        size = MISSING if row["parameters"] is None else trainable(row["parameters"])
        date = (row["date"] or MISSING)[:10]
        split = SPLITS.get(row["split"] or "", MISSING)
        cells = (
            row["name"],
            row["task"],
            row["method"],
            row.get("shown"),
            split,
            size,
            row["state"],
            date,
        )
        table.add_row(*(MISSING if cell is None else str(cell) for cell in cells))
    return table
