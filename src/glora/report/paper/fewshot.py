"""The few-shot figure's numbers: accuracy on each data set at 1, 2, 4, 8 and 16 shots (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glora.errors import RunError
from glora.report.paper.rows import (
    INCOMPLETE,
    SPREAD,
    OurRow,
    captions,
    mean_over,
    named_set,
    our_rows,
    parameters,
    printed_lines,
)
from glora.report.paper.vtab import accuracy, with_test
from glora.report.published import FEWSHOT, SHOTS, PublishedRow
from glora.report.result import Result
from glora.report.sheet import Cell, Column, Line, Sheet, mean_of
from glora.tasks.data.paper_sets import FEW_SHOT

__all__ = ["fewshot", "fewshot_task", "shots_of"]

TITLES = {each.name: each.title for each in FEW_SHOT}


def shots_of(result: Result) -> int | None:
    """Training examples of a class, as the settings of the data say; None where they do not."""
    data = result.config.get("data")
    found = data.get("shots") if isinstance(data, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def fewshot_task(result: Result) -> str:
    """The data set by its name among the paper's, or by its own."""
    return named_set(result, FEW_SHOT, "fewshot") or result.task


def fewshot(results: Sequence[Result]) -> list[Sheet]:
    """The numbers of the figure, and those of other data sets in a table of their own.

    Args:
        results: The runs; those without a number of shots are left out, which the caption says.

    Raises:
        RunError: No run has one.
    """
    tested, left = with_test(results)
    shot = [result for result in tested if shots_of(result) is not None]
    if results and not shot:
        raise RunError(
            "None of the results has a number of shots.",
            allowed="Results whose data has the setting shots.",
            remedy="For other tasks: glora table vtab RUNS",
        )
    if without := len(tested) - len(shot):
        left = [*left, f"{without} results have no number of shots and are left out."]
    known = [result for result in shot if named_set(result, FEW_SHOT, "fewshot")]
    others = [result for result in shot if not named_set(result, FEW_SHOT, "fewshot")]
    sheets = []
    if known or not results:
        sheets.append(_sheet("Few shots (printed: ViT-B/16)", list(TITLES), known, FEWSHOT, left))
    if others:
        tasks = tuple(dict.fromkeys(map(fewshot_task, others)))
        sheets.append(_sheet("Few shots, other data sets", tasks, others, (), left))
    return sheets


def _sheet(
    title: str, tasks: Sequence[str], results: Sequence[Result], printed: Sequence[PublishedRow], left: Sequence[str]
) -> Sheet:
    rows = our_rows(results, lambda result: f"{fewshot_task(result)}:{shots_of(result)}")
    numbers = sorted({*(SHOTS if printed else ()), *(shots for each in results if (shots := shots_of(each)))})
    columns = [Column("parameters", "# param, M", form=".2f")]
    for task in tasks:
        columns += [Column(f"{task}:{n}", str(n), TITLES.get(task, task)) for n in numbers]
    if len(tasks) > 1:
        columns += [Column(f"mean:{n}", str(n), "mean") for n in numbers]
    lines = printed_lines(printed, lambda cells: _means(cells, tasks, numbers))
    lines += [Line(row.name, _cells(row, tasks, numbers)) for row in rows]
    told = [SPREAD, "Columns are numbers of training images a class.", INCOMPLETE, *left]
    return Sheet(title, tuple(columns), tuple(lines), (*told, *captions(rows, printed)))


def _means(cells: Mapping[str, Cell], tasks: Sequence[str], numbers: Sequence[int]) -> dict[str, Cell]:
    return {f"mean:{n}": mean_of([cells.get(f"{task}:{n}", Cell()) for task in tasks]) for n in numbers}


def _cells(row: OurRow, tasks: Sequence[str], numbers: Sequence[int]) -> dict[str, Cell]:
    found = row.cells({f"{task}:{n}": accuracy for task in tasks for n in numbers})
    for n in numbers:
        found[f"mean:{n}"] = mean_over(row, {"": [f"{task}:{n}" for task in tasks]}, accuracy)["task_mean"]
    return {"parameters": parameters(row), **found}
