"""Tables 1 and 5: VTAB-1K on ViT-B/16 and on Swin-B, and tables of the same kind of other suites (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glora.errors import RunError
from glora.report.paper.rows import (
    INCOMPLETE,
    SPREAD,
    OurRow,
    averages,
    captions,
    mean_over,
    named_set,
    our_rows,
    parameters,
    printed_lines,
)
from glora.report.published import VTAB, VTAB_SWIN, PublishedRow
from glora.report.result import Result
from glora.report.sheet import Cell, Column, Line, Sheet
from glora.tasks.data.paper_sets import VTAB as SETS
from glora.tasks.data.paper_sets import VTAB_GROUPS

__all__ = ["accuracy", "vtab", "vtab_task", "with_test"]

MEANS = "Group mean is the mean of the groups' means, the paper's average; task mean is that of all tasks."
TITLES = {task.name: task.title for task in SETS}


def accuracy(result: Result) -> float | None:
    """Test accuracy in %."""
    value = result.metrics.get("test_accuracy")
    return None if value is None else 100 * value


def vtab_task(result: Result) -> str:
    """The task by its name in VTAB-1K's folders, or by its own."""
    return named_set(result, SETS, "vtab") or result.task


def vtab(results: Sequence[Result]) -> list[Sheet]:
    """The tables of the results: Table 1 for tasks of VTAB-1K, Table 5 for Swin, one of their own for other tasks.

    Args:
        results: The runs; none: the printed rows alone.
    """
    tested, left = with_test(results)
    swin: list[Result] = []
    vit: list[Result] = []
    others: list[Result] = []
    for result in tested:
        (others if not named_set(result, SETS, "vtab") else swin if result.model.startswith("swin") else vit).append(
            result
        )
    sheets = []
    if vit or not results:
        sheets.append(_sheet("VTAB-1K (Table 1, printed: ViT-B/16)", VTAB_GROUPS, vit, VTAB, left))
    if swin or not results:
        sheets.append(_sheet("VTAB-1K (Table 5, printed: Swin-B)", VTAB_GROUPS, swin, VTAB_SWIN, left))
    if others:
        sheets.append(_sheet("Test accuracy by task", _groups_of(others), others, (), left))
    return sheets


def with_test(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The results that have a test accuracy, and what must be said of the others.

    Raises:
        RunError: There are results, and none has one.
    """
    tested = [result for result in results if accuracy(result) is not None]
    if results and not tested:
        raise RunError(
            f"None of the {len(results)} results has a test accuracy.",
            allowed="Results of runs that were tested, of a task of classes.",
            remedy="Test them: glora eval RUN",
        )
    left = len(results) - len(tested)
    return tested, [f"{left} results have no test accuracy and are left out."] if left else []


def _groups_of(results: Sequence[Result]) -> dict[str, list[str]]:
    """Group -> its tasks, VTAB's groups first."""
    found: dict[str, list[str]] = {}
    order = [*VTAB_GROUPS, *sorted({result.group for result in results} - {*VTAB_GROUPS, ""}), ""]
    for group in order:
        tasks = dict.fromkeys(vtab_task(result) for result in results if result.group == group)
        if tasks:
            found[group] = list(tasks)
    return found


def _sheet(
    title: str,
    groups: Mapping[str, Sequence[str]],
    results: Sequence[Result],
    printed: Sequence[PublishedRow],
    left: Sequence[str],
) -> Sheet:
    rows = our_rows(results, vtab_task)
    shown = bool(rows) or any(task in row.values for row in printed for tasks in groups.values() for task in tasks)
    means = [*([*groups, "group_mean"] if len(groups) > 1 else []), *(["task_mean"] if shown else [])]
    columns = [
        Column("parameters", "# param, M", form=".2f"),
        *(Column(task, TITLES.get(task, task), group) for group, tasks in groups.items() for task in tasks if shown),
        *(Column(name, name.replace("_", " ") or "others", "mean", ".2f") for name in means),
    ]
    if any(len(runs) > 1 for row in rows for runs in row.results.values()):
        columns.append(Column("seeds", "seeds", "mean", ".0f"))
    lines = printed_lines(printed, lambda cells: _printed_means(cells, groups))
    lines += [Line(row.name, _cells(row, groups)) for row in rows]
    told = [SPREAD, *([MEANS] if len(means) > 1 else []), INCOMPLETE]
    return Sheet(title, tuple(columns), tuple(lines), (*told, *left, *captions(rows, printed)))


def _printed_means(cells: Mapping[str, Cell], groups: Mapping[str, Sequence[str]]) -> dict[str, Cell]:
    """The averages of a printed row; one of Table 5 has the groups' means alone."""
    if groups.keys() <= cells.keys():
        return averages(cells, {group: [group] for group in groups}) | {"task_mean": Cell()}
    return averages(cells, groups)


def _cells(row: OurRow, groups: Mapping[str, Sequence[str]]) -> dict[str, Cell]:
    every = [task for tasks in groups.values() for task in tasks]
    cells = row.cells(dict.fromkeys(every, accuracy))
    return {"parameters": parameters(row), **cells, **mean_over(row, groups, accuracy), "seeds": row.seeds}
