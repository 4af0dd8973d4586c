"""The language table: what lm-evaluation-harness measured, the authors' rows of June 2023 beside it (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from glora.errors import RunError
from glora.report.harness import Evaluated, HarnessRow, evaluations_of
from glora.report.published import LANGUAGE
from glora.report.sheet import Cell, Column, Line, Sheet, mean_of

__all__ = ["LEADERBOARD", "Measure", "language"]


class Measure(NamedTuple):
    """One column of the Open LLM Leaderboard, version 1.

    Attributes:
        task: The harness's name.
        metric: The metric that is shown.
        title: What the authors' table calls it.
        shots: Examples shown before each question.
    """

    task: str
    metric: str
    title: str
    shots: int


LEADERBOARD = {  # column -> what it is: the group `openllm` but for winogrande and gsm8k, which are not printed
    "arc": Measure("arc_challenge", "acc_norm", "ARC", 25),
    "hellaswag": Measure("hellaswag", "acc_norm", "HellaSwag", 10),
    "mmlu": Measure("mmlu", "acc", "MMLU", 5),
    "truthfulqa": Measure("truthfulqa_mc2", "acc", "TruthfulQA", 0),
}
ERRORS = "± is the harness's standard error over the questions."
PRINTED = (
    "Printed rows are the authors' (June 2023, LLaMA-7B, their harness of then): accuracy in %, by length on "
    "ARC and HellaSwag, mc2 on TruthfulQA. MMLU is asked in another way since: compare measured rows with the "
    "measured base."
)
MEAN = "The mean needs all four."
FRACTIONS = ("acc", "exact_match", "f1", "mc1", "mc2", "em")  # beginnings of the metrics that are fractions


def language(runs: Sequence[str]) -> list[Sheet]:
    """The table of the leaderboard's tasks with the printed rows, and one of all other tasks, where there are any.

    Args:
        runs: Run folders, their `lm_eval.json`, or folders of run folders; none: the printed rows alone.

    Raises:
        RunError: A path leads to no evaluation.
    """
    every = evaluations_of(runs)
    if runs and not any(each.rows for each in every):
        raise RunError(f"Nothing is evaluated in {', '.join(map(str, runs))}.", remedy="glora eval RUN --tasks NAME")
    rated = [each for each in every if any(_rated(row) for row in each.rows)]
    sheets = [_leaderboard(rated)] if rated or not runs else []
    others = [each for each in every if any(_other_tasks(row) for row in each.rows)]
    return [*sheets, *(_others(each) for each in others)]


def _rated(row: HarnessRow) -> dict[str, Cell]:
    """The leaderboard's columns that a row has."""
    scores = {name: row.scores.get(each.task, {}).get(each.metric) for name, each in LEADERBOARD.items()}
    return {name: _cell(*score, scale=100) for name, score in scores.items() if score is not None}


def _other_tasks(row: HarnessRow) -> list[str]:
    """Tasks that are none of the leaderboard's, nor a part of one."""
    own = {each.task for each in LEADERBOARD.values()}
    parts = ("mmlu_", "truthfulqa_")
    return [task for task in row.scores if task not in own and not (_rated(row) and task.startswith(parts))]


def _cell(value: float | None, error: float | None, *, scale: float) -> Cell:
    return Cell(None if value is None else scale * value, None if error is None else scale * error)


def _leaderboard(evaluated: Sequence[Evaluated]) -> Sheet:
    columns = [Column("parameters", "# param, M", form=".2f")]
    columns += [Column(name, each.title) for name, each in LEADERBOARD.items()]
    columns.append(Column("mean", "mean"))
    lines = []
    for printed in LANGUAGE:
        cells = {name: Cell(value) for name, value in printed.values.items()}
        lines.append(
            Line(printed.name, {"parameters": Cell(printed.parameters), **cells, "mean": _mean(cells)}, printed=True)
        )
    for row, name in _named(evaluated):
        cells = _rated(row)
        lines.append(Line(name, {"parameters": Cell(row.parameters / 1e6), **cells, "mean": _mean(cells)}))
    measured = [ERRORS, *_differing(evaluated)] if evaluated else []
    return Sheet("Open LLM Leaderboard tasks", tuple(columns), tuple(lines), (PRINTED, MEAN, *measured))


def _mean(cells: Mapping[str, Cell]) -> Cell:
    return mean_of([cells.get(name, Cell()) for name in LEADERBOARD])


def _others(evaluated: Evaluated) -> Sheet:
    """One evaluation's tasks that are not the leaderboard's, with every metric."""
    tasks = dict.fromkeys(task for row in evaluated.rows for task in _other_tasks(row))
    keys = {
        (task, metric): _scale(metric)
        for task in tasks
        for row in evaluated.rows
        for metric in row.scores.get(task, {})
    }
    columns = [Column("parameters", "# param, M", form=".3f")]
    for (task, metric), scale in keys.items():
        title = f"{metric}, %" if scale != 1 else metric
        columns.append(Column(f"{task}:{metric}", title, task, ".1f" if scale != 1 else ".4g"))
    lines = []
    for row, name in _named([evaluated]):
        cells = {
            f"{task}:{metric}": _cell(*row.scores[task][metric], scale=scale)
            for (task, metric), scale in keys.items()
            if metric in row.scores.get(task, {})
        }
        lines.append(Line(name, {"parameters": Cell(row.parameters / 1e6), **cells}))
    told = [f"{task}: {_asked(evaluated, task)}." for task in tasks if task in evaluated.shots]
    return Sheet(
        "Tasks of lm-evaluation-harness", tuple(columns), tuple(lines), (ERRORS, *told, *_run_with([evaluated]))
    )


def _scale(metric: str) -> float:
    return 100.0 if metric.startswith(FRACTIONS) else 1.0


def _asked(evaluated: Evaluated, task: str) -> str:
    """Such as `"0 shots, 200 questions"`."""
    shots = "1 shot" if evaluated.shots[task] == 1 else f"{evaluated.shots[task]} shots"
    count = evaluated.examples.get(task)
    return shots if count is None else f"{shots}, {count:,} questions"


def _named(evaluated: Sequence[Evaluated]) -> Iterable[tuple[HarnessRow, str]]:
    """Every row once, with a name that tells it from the others."""
    seen: dict[tuple[str, str], HarnessRow] = {}
    for each in evaluated:
        for row in each.rows:
            seen.setdefault((row.key, repr(sorted(each.settings.items(), key=str))), row)
    rows = list(seen.values())
    models = len({row.model for row in rows}) > 1
    titles = [f"{row.title}, {row.model}" if models else row.title for row in rows]
    for row, title in zip(rows, titles, strict=True):
        yield row, f"{title} ({row.run})" if row.run and titles.count(title) > 1 else title


def _differing(evaluated: Sequence[Evaluated]) -> list[str]:
    """What measured rows have otherwise than the printed ones, a sentence each."""
    found = []
    for name, each in LEADERBOARD.items():
        shots = sorted({count for one in evaluated if (count := _shots(one, each.task)) is not None})
        if shots and shots != [each.shots]:
            told = " and ".join(map(str, shots))
            found.append(f"{LEADERBOARD[name].title} was asked with {told} shots here, and with {each.shots} in print.")
    return [*found, *_run_with(evaluated)]


def _shots(evaluated: Evaluated, task: str) -> int | None:
    """The shots of a task; of a group those of its first part."""
    parts = (count for name, count in evaluated.shots.items() if name.startswith(f"{task}_"))
    return evaluated.shots.get(task, next(parts, None))


def _run_with(evaluated: Sequence[Evaluated]) -> list[str]:
    """Versions, precision and limit, in sentences; where evaluations differ in them, that."""
    versions = dict.fromkeys(str(each.settings.get("versions", {}).get("lm_eval", "?")) for each in evaluated)
    precisions = dict.fromkeys(str(each.settings.get("precision", "?")) for each in evaluated)
    limits = dict.fromkeys(each.settings.get("limit") for each in evaluated)
    shown = ", ".join("float32" if each == "no" else each for each in precisions)
    found = [f"Measured with lm-evaluation-harness {', '.join(versions)}, {shown}."]
    if any(limit is not None for limit in limits):
        told = " or ".join("all" if limit is None else f"the first {limit:,}" for limit in limits)
        found.append(f"Of every task {told} questions were asked: these are no figures to publish.")
    if len(versions) > 1 or len(precisions) > 1 or len(limits) > 1:
        found.append("Rows differ in these settings: compare only those of one evaluation.")
    return found
