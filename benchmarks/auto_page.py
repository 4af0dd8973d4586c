"""The page of what a run gives that is told nothing: auto-measured.md of the background, from results/auto alone.

    python benchmarks/auto_page.py --gather FOLDER   (a benchmark's folder, whose examples are too large to be kept)
    python benchmarks/auto_page.py

It works on any part of the cells; a difference is of the seeds that both have.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from offline_page import costs, sheets
from pages import interval, spelled, stamps, table, wrapped

from glora.errors import RunError
from glora.files import atomic
from glora.report.folders import read_results, read_tested
from glora.report.paper.rows import our_rows
from glora.report.paper.vtab import vtab_task
from glora.report.result import Result

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "auto"
HITS = "hits.npz"  # in the folder: who is right on every test image, a cell each
PAGE = ROOT / "docs" / "background" / "auto-measured.md"
TRIED = ("count", "dsprites_ori", "fashion_mnist")  # tasks of whose images, others than these, defaults were tried
PAIRS = (  # what, minus what, and what this project set out for, over all tasks
    ("GLoRA", "LoRA", "lower end above 0"),
    ("GLoRA", "LoRA, auto", "lower end above 0"),
    ("GLoRA, auto", "LoRA, auto", None),
    ("GLoRA, auto", "GLoRA", None),
    ("LoRA, auto", "LoRA", None),
)
RATE = re.compile(r"Learning rate: (\S+) was best on val .* The method's own is (\S+)\.$")  # where that was certain

Hits = Mapping[str, np.ndarray]


def page(results: Sequence[Result], hits: Hits) -> str:
    """The Markdown page of the results.

    Args:
        results: The cells.
        hits: Cell -> who is right on the test images, (images,).
    """
    rows = our_rows(results, vtab_task)
    parts = [
        ["# What a default run gives", ""],
        ["This page is made by `python benchmarks/auto_page.py` from `results/auto/`; do not edit it.", ""],
        [*wrapped(" ".join(setting(results))), ""],
        ["## Differences", "", *differences(results, hits), ""],
        ["## Test accuracy", ""],
        *[table(sheet) for sheet in sheets(results)],
        ["## Task by task", "", *by_task(results, hits), ""],
        ["## The automatic learning rate", "", *wrapped(" ".join(departures(results))), ""],
        ["## What it took", "", *wrapped(" ".join(took(results))), "", *costs(rows), ""],
        ["## Machine and versions", "", *[line for told in stamps(results) for line in wrapped(told, "- ")], ""],
    ]
    return "\n".join(line for part in parts for line in part)


def setting(results: Sequence[Result]) -> Iterator[str]:
    """What was run."""
    tasks = list(dict.fromkeys(result.task for result in results))
    models = ", ".join(sorted({result.model for result in results}))
    yield f"{len(results)} trainings on {', '.join(tasks)}; backbone {models}; `experiments/auto.yaml`. GLoRA and LoRA"
    yield "have no setting but the size of the images, the length of the training and its precision; *auto* is"
    yield "`train.lr: auto`, which has no more image-steps in all, those on choosing among them. Everything was chosen"
    yield "on val; test was read once, at the end."


def gaps(results: Sequence[Result], hits: Hits, mine: str, other: str) -> dict[str, np.ndarray]:
    """One minus another, in points of accuracy, by task: (seeds, test images), of the seeds that both have."""
    found: dict[str, list[np.ndarray]] = {}
    runs = {(result.task, result.seed, result.title): hits.get(str(result.run)) for result in results}
    for (task, seed, title), right in runs.items():
        beside = runs.get((task, seed, other))
        if title == mine and right is not None and beside is not None:
            found.setdefault(task, []).append(100.0 * (right.astype(float) - beside.astype(float)))
    return {task: np.array(rows) for task, rows in found.items()}


def differences(results: Sequence[Result], hits: Hits) -> Iterator[str]:
    """The pooled differences: rows of a table."""
    tasks = dict.fromkeys(result.task for result in results)
    fresh = [task for task in tasks if task not in TRIED]
    yield from wrapped(
        "Points of test accuracy, mean of tasks and seeds, with the 95% interval of a paired bootstrap over seeds and "
        "test images. With so few seeds the interval is rather too narrow. The last two columns are of the tasks on "
        f"whose kind of images no default was tried: {', '.join(fresh)}."
    )
    yield from (
        "",
        "| | seeds | all tasks | interval | asked | those tasks | interval |",
        "|---|---:|---:|---:|---|---:|---:|",
    )
    for mine, other, asked in PAIRS:
        by = gaps(results, hits, mine, other)
        if by.keys() != tasks.keys():
            lacking = ", ".join(task for task in tasks if task not in by)
            yield f"| {mine} minus {other} | not run on {lacking} | | | | | |"
            continue
        whole, rest = interval(list(by.values())), interval([by[task] for task in fresh])
        counts = " to ".join(str(count) for count in sorted({len(rows) for rows in by.values()}))
        told = f"{asked}: {'met' if whole[1] > 0 else 'missed'}" if asked else ""
        yield f"| {mine} minus {other} | {counts} | {' | '.join([*spelled(whole), told, *spelled(rest)])} |"


def by_task(results: Sequence[Result], hits: Hits) -> Iterator[str]:
    """The same of every task."""
    tasks = dict.fromkeys(result.task for result in results)
    names = [f"{mine} minus {other}" for mine, other, _ in PAIRS]
    yield from (f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}")
    every = [gaps(results, hits, mine, other) for mine, other, _ in PAIRS]
    for task in tasks:
        cells = [" (".join(spelled(interval([by[task]]))) + ")" if task in by else "–" for by in every]
        yield f"| {task} | {' | '.join(cells)} |"


def departures(results: Sequence[Result]) -> Iterator[str]:
    """How often val moved the learning rate, and where to."""
    automatic = [result for result in results if result.title.endswith("auto")]
    found = [(result, told) for result in automatic for note in result.notes if (told := RATE.match(note))]
    moved = [(result, told) for result, told in found if told[1] != told[2]]
    yield f"{len(moved)} of {len(automatic)} runs left the method's own rate, where another was surely better on val."
    for title, own in dict.fromkeys((result.title, told[2]) for result, told in moved):
        by: dict[str, list[str]] = {}
        for result, told in moved:
            if result.title == title:
                by.setdefault(result.task, []).append(told[1])
        where = "; ".join(f"{task} {', '.join(rates)}" for task, rates in by.items())
        yield f"{title} (own: {own}) took on {where}."


def took(results: Sequence[Result]) -> Iterator[str]:
    """What the numbers of the table are, and the share of the search."""
    yield "Means of the cells, two side by side with one thread each. Choosing a rate is part of the training."
    shares = [r.seconds["search"] / r.seconds["train"] for r in results if r.seconds.get("search")]
    if shares:
        yield f"The searches took {100 * float(np.mean(shares)):.0f}% of the training's seconds, at most"
        yield f"{100 * max(shares):.0f}%."


def gather(folder: Path) -> None:
    """The results of a benchmark that has run, and who is right on its test images.

    Raises:
        RunError: Cells of one task have different test examples, or none are kept.
    """
    data: dict[str, str] = {}
    hits = {}
    for result, examples in read_tested([folder]):
        if examples is None:
            raise RunError(f"The test examples of {result.run} are not in {folder / 'examples'}.")
        if data.setdefault(result.task, examples.data) != examples.data:
            raise RunError(f"{result.run} was tested on other examples than the cells of {result.task} before it.")
        hits[str(result.run)] = np.array(examples.values["accuracy"]) > 0
        result.write(FOLDER / "results" / f"{result.run}.json")
    with atomic(FOLDER / HITS) as path, path.open("wb") as file:
        np.savez_compressed(file, **hits)


def committed() -> tuple[list[Result], Hits]:
    """The results of the folder."""
    with np.load(FOLDER / HITS) as file:
        return read_results([FOLDER]), dict(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", type=Path, help="folder of a benchmark that has run")
    if folder := parser.parse_args().gather:
        gather(folder)
    PAGE.write_text(page(*committed()), encoding="utf-8")


if __name__ == "__main__":
    main()
