"""The page of default runs says what its results say, of any part of the cells."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glora.report.result import Result
from suites.results import OFFLINE, made

ROOT = Path(__file__).parent.parent
NOTE = "Learning rate: {} was best on val of 5 from 1e-05 to 0.003, in short trainings of 2,480 passes. {}"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("auto_page")


def cells(title: str, right: int, seeds: int = 2, notes: tuple[str, ...] = ()) -> tuple[list[Result], dict[str, Any]]:
    """Results of one method on every task, and its hits: the first `right` of 100 images, the same with every seed."""
    results, hits = [], {}
    for task in OFFLINE:
        for seed in range(seeds):
            name = f"{task}-{title}-seed{seed}"
            seconds = {"train": 100.0, "search": 8.0} if "GLoRA" in title else {"train": 90.0}
            fields: dict[str, Any] = {"seed": seed, "run": name, "group": OFFLINE[task], "seconds": seconds}
            results.append(made(title, task, right / 100, notes=notes, **fields))
            hits[name] = np.arange(100) < right
    return results, hits


def test_the_page_is_made_from_the_committed_results(page: Any) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(*page.committed())


def test_differences_are_those_of_the_same_images_and_seeds(page: Any) -> None:
    (ours, hits), (theirs, others) = cells("GLoRA", 80), cells("LoRA", 75, seeds=1)
    lines = list(page.differences([*ours, *theirs], hits | others))
    (line,) = (line for line in lines if line.startswith("| GLoRA minus LoRA |"))
    assert line.startswith("| GLoRA minus LoRA | 1 | +5.0 | +")  # one seed: the other has no partner
    assert "lower end above 0: met" in line
    (worse, fewer), (better, more) = cells("GLoRA", 75), cells("LoRA", 80)
    back = list(page.differences([*worse, *better], fewer | more))
    assert not any("met" in line for line in back if line.startswith("| GLoRA minus LoRA |"))
    assert "climate" not in lines[1]  # no task that has not been run is told


def test_a_part_of_the_cells_has_dashes(page: Any) -> None:
    (ours, hits), (theirs, others) = cells("GLoRA", 80), cells("LoRA", 75)
    part = [result for result in theirs if result.task != "digits"]
    text = page.page([*ours, *part], hits | others)
    assert "| GLoRA minus LoRA | not run on digits |" in text
    assert "| digits | – |" in text
    assert "The searches took 8% of the training's seconds, at most 8%." in " ".join(text.split())


def test_it_tells_where_val_moved_the_rate(page: Any) -> None:
    own = "The method's own is 0.001."
    stays = "The method's own stays, 0.001: val does not tell them apart for certain."
    runs = [
        made("LoRA, auto", "digits", notes=[NOTE.format("0.0001", own)]),
        made("LoRA, auto", "textile", notes=[NOTE.format("0.001", own)]),
        made("LoRA, auto", "count", notes=[NOTE.format("0.0001", stays)]),
    ]
    told = " ".join(page.departures(runs))
    assert told.startswith("1 of 3 runs left the method's own rate")
    assert told.endswith("LoRA, auto (own: 0.001) took on digits 0.0001.")
    assert list(page.departures(runs[1:])) == [told.replace("1 of 3", "0 of 2").partition(" LoRA")[0]]
