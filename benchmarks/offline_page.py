"""The page of what the offline suite has measured: offline-measured.md of the background, from results/offline alone.

    python benchmarks/offline_page.py

It works on any part of the cells: what is missing is a dash, and is told.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pages import rates, stamps, table, wrapped

from glora.report.folders import read_results
from glora.report.paper.rows import OurRow, our_rows
from glora.report.paper.vtab import vtab, vtab_task
from glora.report.plots.colours import look
from glora.report.plots.figures import figure, save
from glora.report.result import Result
from glora.report.sheet import Sheet

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "offline"
PAGE = ROOT / "docs" / "background" / "offline-measured.md"
FIGURE = ROOT / "docs" / "background" / "figures" / "offline-tasks.svg"
OURS = "GLoRA"  # how the rows begin whose standing is told
SIDE_BY_SIDE = "Means of the cells. Where several ran side by side (`--workers`), the seconds are of that."
SURE = 2.0  # standard errors of a difference that is told apart


def sheets(results: Sequence[Result]) -> list[Sheet]:
    """The tables of the suite, without what the paper prints."""
    return [
        Sheet(each.title, each.columns, tuple(line for line in each.lines if not line.printed), each.caption)
        for each in vtab(results)
    ]


def page(results: Sequence[Result]) -> str:
    """The Markdown page of the results."""
    rows = our_rows([result for result in results if tested(result)], vtab_task)
    parts = [
        ["# The methods compared on the offline suite", ""],
        ["This page is made by `python benchmarks/offline_page.py` from `results/offline/`; do not edit it.", ""],
        wrapped(" ".join(setting(results))),
        ["", "## Test accuracy", "", f"![Test accuracy of every method on every task](figures/{FIGURE.name})", ""],
        *[table(sheet) for sheet in sheets(results)],
        ["## What it shows", ""],
        [*shown(rows), ""],
        ["## What it took", "", *wrapped(SIDE_BY_SIDE), "", *costs(rows), ""],
        ["## Learning rates", "", *rates(rows), ""],
        ["## Machine and versions", "", *[line for told in stamps(results) for line in wrapped(told, "- ")], ""],
    ]
    return "\n".join(line for part in parts for line in part)


def tested(result: Result) -> bool:
    """Whether the test examples were read."""
    return result.metrics.get("test_accuracy") is not None


def setting(results: Sequence[Result]) -> Iterator[str]:
    """What was run."""
    models = sorted({result.model for result in results})
    tasks = list(dict.fromkeys(result.task for result in results))
    rows = our_rows(results, vtab_task)
    yield f"{len(results)} trainings: {len(rows)} methods on {len(tasks)} tasks ({', '.join(tasks)}), backbone"
    yield f"{', '.join(models)}."
    yield from seeds(rows, tasks)
    protocols = sorted({result.protocol or "none told" for result in results})
    yield f"Protocol: {', '.join(protocols)}. Everything was chosen on val; test was read once, at the end."
    if absent := missing(rows, tasks):
        yield f"Not run, and a dash in the table: {', '.join(absent)}."


def seeds(rows: Sequence[OurRow], tasks: Sequence[str]) -> Iterator[str]:
    """How many seeds the methods have on all tasks, and which have one more on some."""
    whole: Counter[int] = Counter()
    more = []
    for row in rows:
        by_task = [{result.seed for result in row.results.get(task, ())} for task in tasks]
        everywhere = set.intersection(*by_task)
        whole[len(everywhere)] += 1
        some = sum(bool(found - everywhere) for found in by_task)
        more += [f"{row.name} on {some}"] if some else []
    yield "; ".join(f"{count} methods with {plural(number, 'seed')}" for number, count in sorted(whole.items())) + "."
    if more:
        yield f"One seed more on some of the tasks: {', '.join(more)}."


def plural(number: int, what: str) -> str:
    """`"1 seed"`, `"3 seeds"`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def missing(rows: Sequence[OurRow], tasks: Sequence[str]) -> list[str]:
    """The cells that no run has, a method with none of its tasks not among them."""
    return [f"{row.name} on {task}" for row in rows for task in tasks if not row.results.get(task)]


# What it shows


def shown(rows: Sequence[OurRow]) -> Iterator[str]:
    """The lines of the findings, computed from the numbers."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.results))
    for told in best_by_task(rows, tasks):
        yield from (*wrapped(told), "")
    for row in rows:
        if row.name.startswith(OURS):
            yield from (*wrapped(standing(row, rows, tasks)), "")
            if found := list(against(row, [other for other in rows if other is not row])):
                yield f"| {row.name} minus | points, mean of the tasks | ahead on | behind on | not told apart on |"
                yield "|---|---:|---|---|---|"
                yield from (*found, "")
    yield from wrapped(
        "Told apart is what differs by more than two standard errors, of the test examples and, with several seeds, "
        "between them; with one seed the seed's own luck is in no error."
    )


def mean(row: OurRow, task: str) -> float:
    """Test accuracy in %, mean of the seeds."""
    return statistics.fmean(100 * (result.metrics["test_accuracy"] or 0) for result in row.results[task])


def error(row: OurRow, task: str) -> float:
    """The standard error of `mean`: of the test examples, and between seeds where there are several."""
    runs = row.results[task]
    own = [100 * (result.metrics.get("test_accuracy_standard_error") or 0) for result in runs]
    between = 0.0
    if len(runs) > 1:
        between = statistics.stdev(100 * (each.metrics["test_accuracy"] or 0) for each in runs) / math.sqrt(len(runs))
    return math.hypot(statistics.fmean(own), between)  # the seeds share the test examples


def best_by_task(rows: Sequence[OurRow], tasks: Sequence[str]) -> Iterator[str]:
    """Who is first on each task."""
    found = []
    for task in tasks:
        ranked = sorted((row for row in rows if row.results.get(task)), key=lambda row: -mean(row, task))
        if ranked:
            rest = f", before {ranked[1].name} ({mean(ranked[1], task):.1f})" if len(ranked) > 1 else ""
            found.append(f"{task}: {ranked[0].name} ({mean(ranked[0], task):.1f}){rest}")
    if found:
        yield f"The best on each task, test accuracy in %: {'; '.join(found)}."


def standing(row: OurRow, rows: Sequence[OurRow], tasks: Sequence[str]) -> str:
    """The place of a method among those that have all tasks."""
    whole = [each for each in rows if all(each.results.get(task) for task in tasks)]
    if row not in whole:
        lacking = [task for task in tasks if not row.results.get(task)]
        return f"{row.name} has no result on {', '.join(lacking)}, and no place among the others."
    averages = {each.name: statistics.fmean(mean(each, task) for task in tasks) for each in whole}
    ranked = sorted(averages, key=lambda name: -averages[name])
    place = ranked.index(row.name) + 1
    ahead = ", ".join(f"{name} ({averages[name]:.1f})" for name in ranked[: place - 1])
    before = f"; ahead of it: {ahead}" if ahead else ""
    return f"{row.name} is number {place} of {len(ranked)} by the mean of the tasks, {averages[row.name]:.1f}{before}."


def against(row: OurRow, others: Sequence[OurRow]) -> Iterator[str]:
    """A method against each other one, task by task: rows of a table."""
    for other in others:
        shared = [task for task in row.results if other.results.get(task)]
        if not shared:
            continue
        gaps = {task: mean(row, task) - mean(other, task) for task in shared}
        errors = {task: math.hypot(error(row, task), error(other, task)) for task in shared}
        sure = {task: gap for task, gap in gaps.items() if abs(gap) > SURE * errors[task]}
        wins = ", ".join(f"{task} {gap:+.1f}" for task, gap in sure.items() if gap > 0)
        losses = ", ".join(f"{task} {gap:+.1f}" for task, gap in sure.items() if gap < 0)
        average, rest = statistics.fmean(gaps.values()), len(gaps) - len(sure)
        yield f"| {other.name} | {average:+.1f} | {wins or '–'} | {losses or '–'} | {plural(rest, 'task')} |"


# What it took


def costs(rows: Sequence[OurRow]) -> Iterator[str]:
    """Trainable numbers, image-steps and seconds, mean of a method's cells."""
    yield "| method | trainable numbers | image-steps | training, s | search, s |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows:
        every = row.every()
        numbers = statistics.fmean(result.parameters for result in every)
        steps = statistics.fmean(sum(result.example_steps.values()) for result in every)
        seconds = [statistics.fmean(each.seconds.get(stage, 0.0) for each in every) for stage in ("train", "search")]
        yield f"| {row.name} | {numbers:,.0f} | {steps:,.0f} | {seconds[0]:,.0f} | {seconds[1]:,.0f} |"


def draw(results: Sequence[Result], path: Path) -> None:
    """Test accuracy of every method, a panel for each task, with two standard errors."""
    rows = our_rows([result for result in results if tested(result)], vtab_task)
    tasks = list(dict.fromkeys(task for row in rows for task in row.results))
    drawing = figure(2.0 + 1.9 * len(tasks), 1.4 + 0.3 * len(rows))
    panels = drawing.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    data: dict[str, dict[str, tuple[float, float]]] = {}
    for axes, task in zip(panels, tasks, strict=True):
        data[task] = {row.name: (mean(row, task), error(row, task)) for row in rows if row.results.get(task)}
        for place, row in enumerate(rows):
            if row.name in data[task]:
                middle, spread = data[task][row.name]
                colour = look(1 if row.name.startswith(OURS) else 0)[0]
                axes.errorbar(middle, place, xerr=2 * spread, fmt="o", color=colour, markersize=5, capsize=2)
        axes.set_title(task, fontsize=9)
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
    panels[0].invert_yaxis()
    drawing.supxlabel("test accuracy, %; bars are two standard errors", fontsize=9)
    save(drawing, path, {"tasks": data})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results")
    results = read_results([parser.parse_args().results])
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    draw(results, FIGURE)
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
