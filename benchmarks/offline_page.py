"""The page of what the offline suite has measured: offline-measured.md of the background, from results/offline alone.

    python benchmarks/offline_page.py

It works on any part of the cells: what is missing is a dash, and is told.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
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
SIDE_BY_SIDE = (
    "Means of the cells; training is all of it, that of a winner anew included. Where several ran side by side "
    "(`--workers`), the seconds are of that."
)
STAGES = (("rate", "train", "polish"), ("search",))  # of a result's seconds: training, search
SURE = 2.0  # standard errors of a difference that is told apart
LUCK = math.erfc(SURE / math.sqrt(2))  # share of equal pairs that are told apart all the same
CHOSEN = re.compile(  # what the notes of a result say of its learning rate
    r"Learning rate \S+ of (?P<tries>\d+), chosen on val: "
    r"mean (?P<metric>\w+) \S+ (?P<where>on .+, seed \d+)(?P<end>.*)"
)


def sheets(results: Sequence[Result]) -> list[Sheet]:
    """The tables of the suite, without what the paper prints."""
    return [
        Sheet(each.title, each.columns, tuple(line for line in each.lines if not line.printed), each.caption)
        for each in vtab(results)
    ]


def page(results: Sequence[Result]) -> str:
    """The Markdown page of the results."""
    compared, more = on_equal_seeds([result for result in results if tested(result)])
    rows = our_rows(compared, vtab_task)
    parts = [
        ["# The methods compared on the offline suite", ""],
        ["This page is made by `python benchmarks/offline_page.py` from `results/offline/`; do not edit it.", ""],
        wrapped(" ".join(setting(results, compared, more))),
        ["", "## Test accuracy", "", f"![Test accuracy of every method on every task](figures/{FIGURE.name})", ""],
        *[table(sheet) for sheet in sheets(compared + [result for result in results if not tested(result)])],
        ["## What it shows", ""],
        [*shown(rows), ""],
        ["## What it took", "", *wrapped(SIDE_BY_SIDE), "", *costs(rows), ""],
        ["## Learning rates", "", *wrapped(" ".join(how_chosen(rows))), "", *rates(rows), ""],
        ["## Further seeds", "", *further(compared, more), ""] if more else [],
        ["## Machine and versions", "", *[line for told in stamps(results) for line in wrapped(told, "- ")], ""],
    ]
    return "\n".join(line for part in parts for line in part)


def tested(result: Result) -> bool:
    """Whether the test examples were read."""
    return result.metrics.get("test_accuracy") is not None


def on_equal_seeds(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """The results of the seeds that every cell with a result has, and the others; where there is no such seed, all."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for result in results:
        seeds.setdefault((result.title, result.task), set()).add(result.seed)
    shared = set.intersection(*seeds.values()) if seeds else set()
    if not shared:
        return list(results), []
    return [each for each in results if each.seed in shared], [each for each in results if each.seed not in shared]


def setting(results: Sequence[Result], compared: Sequence[Result], more: Sequence[Result]) -> Iterator[str]:
    """What was run, and what of it is compared."""
    models = sorted({result.model for result in results})
    tasks = list(dict.fromkeys(result.task for result in results))
    rows = our_rows(results, vtab_task)
    yield f"{len(results)} trainings: {len(rows)} methods on {len(tasks)} tasks ({', '.join(tasks)}), backbone"
    yield f"{', '.join(models)}."
    if more:
        seeds = ", ".join(map(str, sorted({result.seed for result in compared})))
        yield f"All comparisons are of the seeds that every method has on every task, {seeds}: {len(compared)}"
        yield f"trainings. The other {len(more)} are told at the end."
    else:
        counts = sorted({len(runs) for row in rows for runs in row.results.values()})
        yield f"Seeds of a method on a task: {' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))}."
    protocols = sorted({result.protocol or "none told" for result in results})
    yield f"Protocol: {', '.join(protocols)}. Everything was chosen on val; test was read once, at the end."
    if absent := missing(rows, tasks):
        yield f"Not run, and a dash in the table: {', '.join(absent)}."


def further(compared: Sequence[Result], more: Sequence[Result]) -> Iterator[str]:
    """What the seeds that not every method has change: rows of a table."""
    every = our_rows([*compared, *more], vtab_task)
    fewer = {row.name: row for row in our_rows(compared, vtab_task)}
    yield from wrapped("The same means with the seeds that not every method has; they are in no comparison above.")
    yield from ("", "| method | further trainings | seeds of all methods | all seeds |", "|---|---:|---:|---:|")
    for row in every:
        before = fewer.get(row.name)
        count = len(row.every()) - (len(before.every()) if before else 0)
        if count:
            told = [f"{average(each):.2f}" if each is not None else "–" for each in (before, row)]
            yield f"| {row.name} | {count} | {' | '.join(told)} |"


def average(row: OurRow) -> float:
    """The mean of a row's tasks."""
    return statistics.fmean(mean(row, task) for task in row.results)


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
    spreads = {task: spread(rows, task) for task in tasks}
    for told in best_by_task(rows, spreads):
        yield from (*wrapped(told), "")
    most = 0
    for row in rows:
        if row.name.startswith(OURS):
            yield from (*wrapped(standing(row, rows, spreads)), "")
            if found := list(against(row, [other for other in rows if other is not row], spreads)):
                yield f"| {row.name} minus | points, mean of the tasks | ahead on | behind on | not told apart on |"
                yield "|---|---:|---|---|---|"
                yield from (*found, "")
                most = max(most, len(found) * len(tasks))
    yield from wrapped(" ".join(how_sure(most)))


def how_sure(most: int) -> Iterator[str]:
    """What told apart means, and what it does not.

    Args:
        most: Differences in one table.
    """
    yield "Told apart is what differs by more than two standard errors; ± is one. An error is that of the test examples"
    yield "and of the seeds. The spread between seeds is the method's own or, where that is larger or there is one seed"
    yield "alone, the typical one of all methods on the task: two seeds that agree say little. All methods have"
    yield "the same test examples; that is not used, which errs on the safe side."
    if most:
        yield f"Of the {most} differences in a table some {LUCK * most:.0f} would be told apart if there were none."


def mean(row: OurRow, task: str) -> float:
    """Test accuracy in %, mean of the seeds."""
    return statistics.fmean(100 * (result.metrics["test_accuracy"] or 0) for result in row.results[task])


def between(row: OurRow, task: str) -> float | None:
    """The standard deviation between the seeds of a method, in points; None of a single one."""
    values = [100 * (each.metrics["test_accuracy"] or 0) for each in row.results.get(task, ())]
    return statistics.stdev(values) if len(values) > 1 else None


def spread(rows: Sequence[OurRow], task: str) -> float:
    """The typical standard deviation between seeds on a task, in points: the root of the methods' mean variance."""
    found = [each for row in rows if (each := between(row, task)) is not None]
    return math.sqrt(statistics.fmean(each**2 for each in found)) if found else 0.0


def error(row: OurRow, task: str, typical: float) -> float:
    """The standard error of `mean`: of the test examples, and between seeds.

    Args:
        row, task: Whose.
        typical: `spread` of the task.
    """
    runs = row.results[task]
    own = [100 * (result.metrics.get("test_accuracy_standard_error") or 0) for result in runs]
    seeds = max(between(row, task) or 0.0, typical) / math.sqrt(len(runs))
    return math.hypot(statistics.fmean(own), seeds)  # the seeds share the test examples


def gap(row: OurRow, other: OurRow, task: str, typical: float) -> tuple[float, float]:
    """How far the first is ahead on a task, and the standard error of that."""
    return mean(row, task) - mean(other, task), math.hypot(error(row, task, typical), error(other, task, typical))


def mean_gap(row: OurRow, other: OurRow, spreads: Mapping[str, float]) -> tuple[float, float]:
    """The same of the mean of the tasks that both have."""
    gaps = [gap(row, other, task, spreads[task]) for task in row.results if other.results.get(task)]
    return statistics.fmean(each for each, _ in gaps), math.hypot(*(each for _, each in gaps)) / len(gaps)


def best_by_task(rows: Sequence[OurRow], spreads: Mapping[str, float]) -> Iterator[str]:
    """Who is first on each task."""
    found = []
    for task, typical in spreads.items():
        ranked = sorted((row for row in rows if row.results.get(task)), key=lambda row: -mean(row, task))
        told = f"{task}: {ranked[0].name} ({mean(ranked[0], task):.1f})"
        if len(ranked) > 1:
            ahead, sure = gap(ranked[0], ranked[1], task, typical)
            told += f", {'before' if ahead > SURE * sure else 'not told apart from'} {ranked[1].name}"
            told += f" ({mean(ranked[1], task):.1f})"
        found.append(told)
    if found:
        yield f"The best on each task, test accuracy in %: {'; '.join(found)}."


def standing(row: OurRow, rows: Sequence[OurRow], spreads: Mapping[str, float]) -> str:
    """The place of a method among those that have all tasks."""
    whole = [each for each in rows if all(each.results.get(task) for task in spreads)]
    if row not in whole:
        lacking = [task for task in spreads if not row.results.get(task)]
        return f"{row.name} has no result on {', '.join(lacking)}, and no place among the others."
    ranked = sorted(whole, key=lambda each: -average(each))
    place = ranked.index(row)
    told = f"{row.name} is number {place + 1} of {len(ranked)} by the mean of the tasks, {average(row):.1f}"
    if not place:
        return f"{told}."
    before = {each.name: (average(each), mean_gap(row, each, spreads)) for each in ranked[:place]}
    ahead = ", ".join(f"{name} ({value:.1f})" for name, (value, _) in before.items())
    apart = [name for name, (_, (points, sure)) in before.items() if abs(points) > SURE * sure]
    return f"{told}; ahead of it: {ahead}. Told apart from it by that mean: {', '.join(apart) or 'none of them'}."


def against(row: OurRow, others: Sequence[OurRow], spreads: Mapping[str, float]) -> Iterator[str]:
    """A method against each other one, task by task: rows of a table."""
    for other in others:
        shared = [task for task in row.results if other.results.get(task)]
        if not shared:
            continue
        gaps = {task: gap(row, other, task, spreads[task]) for task in shared}
        sure = {task: ahead for task, (ahead, wide) in gaps.items() if abs(ahead) > SURE * wide}
        wins = ", ".join(f"{task} {ahead:+.1f}" for task, ahead in sure.items() if ahead > 0)
        losses = ", ".join(f"{task} {ahead:+.1f}" for task, ahead in sure.items() if ahead < 0)
        (middle, wide), rest = mean_gap(row, other, spreads), len(gaps) - len(sure)
        told = (f"{middle:+.1f} ± {wide:.1f}", wins or "–", losses or "–", plural(rest, "task"))
        yield f"| {other.name} | {' | '.join(told)} |"


# What it took


def costs(rows: Sequence[OurRow]) -> Iterator[str]:
    """Trainable numbers, image-steps and seconds, mean of a method's cells."""
    yield "| method | trainable numbers | image-steps | training, s | search, s |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows:
        every = row.every()
        numbers = statistics.fmean(result.parameters for result in every)
        steps = statistics.fmean(sum(result.example_steps.values()) for result in every)
        took = [statistics.fmean(sum(each.seconds.get(one, 0.0) for one in of) for each in every) for of in STAGES]
        yield f"| {row.name} | {numbers:,.0f} | {steps:,.0f} | {took[0]:,.0f} | {took[1]:,.0f} |"


def how_chosen(rows: Sequence[OurRow]) -> Iterator[str]:
    """How learning rates were chosen, as the notes of the results say."""
    found = {row.name: note for row in rows for each in row.every() for note in map(CHOSEN.match, each.notes) if note}
    if not found:
        return
    tries = sorted({int(note["tries"]) for note in found.values()})
    span = " to ".join(map(str, dict.fromkeys([tries[0], tries[-1]])))
    how = dict.fromkeys(f"mean {note['metric']} {note['where']}" for note in found.values())
    ends = [name for name, note in found.items() if "of the grid" in note["end"]]
    yield f"The best of {span} rates for each method, chosen on val: {'; '.join(how)}. Of a method that searches, its"
    yield "largest genotype plays there. What the tries took is in none of the numbers above."
    yield f"At an end of the grid: {', '.join(ends)}." if ends else "None is at an end of its grid."


def draw(results: Sequence[Result], path: Path) -> None:
    """Test accuracy of every method, a panel for each task, with two standard errors."""
    rows = our_rows(on_equal_seeds([result for result in results if tested(result)])[0], vtab_task)
    tasks = list(dict.fromkeys(task for row in rows for task in row.results))
    drawing = figure(2.0 + 1.9 * len(tasks), 1.4 + 0.3 * len(rows))
    panels = drawing.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    data: dict[str, dict[str, tuple[float, float]]] = {}
    for axes, task in zip(panels, tasks, strict=True):
        typical = spread(rows, task)
        data[task] = {row.name: (mean(row, task), error(row, task, typical)) for row in rows if row.results.get(task)}
        for place, row in enumerate(rows):
            if row.name in data[task]:
                middle, sure = data[task][row.name]
                colour = look(1 if row.name.startswith(OURS) else 0)[0]
                axes.errorbar(middle, place, xerr=2 * sure, fmt="o", color=colour, markersize=5, capsize=2)
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
