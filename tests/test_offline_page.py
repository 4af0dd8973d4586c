"""The page of the offline suite says what its results say, of any part of the cells."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from glora.report.folders import read_results
from glora.report.result import Result
from suites.results import OFFLINE, made

ROOT = Path(__file__).parent.parent
BASE = {"fashion_mnist": 0.80, "digits": 0.90, "textile": 0.70, "dsprites_loc": 0.20, "dsprites_ori": 0.40}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("offline_page")


def cells(title: str, more: float = 0.0, *, seeds: int = 1, **changes: float) -> list[Result]:
    """The cells of one method: `more` above the base on every task, or on one by its name."""
    found = []
    for task, base in BASE.items():
        for seed in range(seeds):
            test = base + changes.get(task, more) + 0.001 * seed
            metrics = {"test_accuracy": test, "test_accuracy_standard_error": 0.004}
            config = {"data": {"source": task}, "model": {"image_size": 56}, "train": {"lr": 1e-3}}
            fields: dict[str, Any] = {"seed": seed, "metrics": metrics, "config": config, "group": OFFLINE[task]}
            found.append(made(title, task, seconds={"train": 90.0, "search": 30.0}, **fields))
    return found


@pytest.fixture
def results() -> list[Result]:
    glora = cells("GLoRA", 0.01, seeds=3, textile=-0.05)
    return [*cells("LoRA", seeds=3), *cells("SSF", 0.02), *glora, *cells("Linear", -0.1)]


def test_the_page_is_made_from_the_committed_results(page: Any) -> None:
    """There is a page as soon as there are results, and none before."""
    found = list(page.FOLDER.glob("results/*.json"))  # rates.json beside them is no result
    assert page.PAGE.is_file() == bool(found)
    if found:
        committed = read_results([page.FOLDER])
        assert page.PAGE.read_text(encoding="utf-8") == page.page(committed)


def test_it_tells_who_is_best_and_where_glora_stands(page: Any, results: list[Result]) -> None:
    text = " ".join(page.page(results).split())
    assert "digits: SSF (92.0), not told apart from GLoRA (91.0)" in text
    assert "textile: SSF (72.0), before LoRA (70.0)" in text
    means = {"SSF": 62.0, "LoRA": 60.0, "GLoRA": 60.0 + (4 * 1 - 5) / 5}
    assert f"GLoRA is number 3 of 4 by the mean of the tasks, {means['GLoRA']:.1f}" in text
    assert "ahead of it: SSF (62.0), LoRA (60.0). Told apart from it by that mean: SSF." in text
    assert "| LoRA | -0.2 ± 0.3 | – | textile -5.0 | 4 tasks |" in text
    assert "| Linear | +9.8 ± 0.3 | fashion_mnist +11.0" in text


def test_methods_are_compared_on_the_seeds_that_all_have(page: Any) -> None:
    lucky = cells("LoRA", seeds=2)
    for result in cells("LoRA", 0.05, seeds=3):
        lucky += [result] if result.seed == 2 and result.task != "digits" else []
    every = [*lucky, *cells("GLoRA", 0.01, seeds=2)]
    compared, more = page.on_equal_seeds(every)
    assert {result.seed for result in compared} == {0, 1}
    assert [result.seed for result in more] == [2] * 4
    text = " ".join(page.page(every).split())
    assert "24 trainings: 2 methods on 5 tasks" in text
    assert "seeds that every method has on every task, 0, 1: 20 trainings. The other 4 are told at the end." in text
    assert "| LoRA | +1.0 ± " in text
    assert "| LoRA | 4 | 60.05 | 61.42 |" in text  # on four of five tasks the third seed is 5.2 points above the base
    assert "Further seeds" not in page.page(compared)


def test_without_a_seed_that_all_have_nothing_is_left_out(page: Any) -> None:
    one = [result for result in cells("GLoRA", seeds=2) if result.seed == 1]
    compared, more = page.on_equal_seeds([*one, *cells("LoRA")])
    assert (len(compared), more) == (10, [])


def test_a_difference_is_told_apart_beyond_two_standard_errors(page: Any) -> None:
    one, other = (page.our_rows(cells(*each), page.vtab_task)[0] for each in (("GLoRA", 0.0115), ("LoRA",)))
    none = dict.fromkeys(BASE, 0.0)
    assert page.error(one, "digits", 0.0) == pytest.approx(0.4)
    (told,) = page.against(one, [other], none)
    assert "| fashion_mnist +1.2" in told  # 1.15 points, above 2 x 0.4 x sqrt 2 = 1.13
    assert told.endswith("| – | 0 tasks |")
    one = page.our_rows(cells("GLoRA", 0.0112), page.vtab_task)[0]
    (told,) = page.against(one, [other], none)
    assert told.endswith("| – | – | 5 tasks |")
    several = page.our_rows(cells("GLoRA", seeds=3), page.vtab_task)[0]
    assert page.error(several, "digits", 0.0) == pytest.approx((0.4**2 + 0.1**2 / 3) ** 0.5)


def test_two_seeds_that_agree_are_not_taken_for_certain(page: Any) -> None:
    """The typical spread of the task's methods stands for the one that a method's own few seeds do not show."""
    alike = [*cells("GLoRA", 0.02, seeds=2), *cells("LoRA", seeds=2)]
    wild = cells("Full", seeds=2)
    wild = [made("Full", each.task, each.metrics["test_accuracy"] + 0.1 * each.seed, seed=each.seed) for each in wild]
    row, other, third = page.our_rows([*alike, *wild], page.vtab_task)[::-1]
    assert (row.name, third.name) == ("GLoRA", "Full")
    typical = page.spread([row, other, third], "digits")
    assert typical == pytest.approx(((0.005 + 0.005 + 10.1**2 / 2) / 3) ** 0.5)
    assert page.error(row, "digits", typical) == pytest.approx((0.4**2 + typical**2 / 2) ** 0.5)
    assert page.error(third, "digits", typical) > page.error(row, "digits", typical)  # its own, which is larger
    (told,) = page.against(row, [other], dict.fromkeys(BASE, typical))
    assert told.endswith("| – | – | 5 tasks |")


def test_the_training_of_a_winner_anew_is_training(page: Any) -> None:
    seconds = {"train": 90.0, "polish": 60.0, "search": 30.0, "test": 5.0}
    rows = page.our_rows([made("NOAH", "digits", 0.9, seconds=seconds, parameters=7)], page.vtab_task)
    assert list(page.costs(rows))[-1] == "| NOAH | 7 | 80,000 | 150 | 30 |"


def test_it_says_how_learning_rates_were_chosen(page: Any) -> None:
    note = "Learning rate 0.003 of {}, chosen on val: mean accuracy 0.5 on digits, textile after 3 epochs, seed 9{}."
    results = [
        made("LoRA", "digits", notes=[note.format(3, "")]),
        made("SSF", "digits", notes=[note.format(5, ", the highest of the grid: another may be better")]),
    ]
    told = " ".join(page.how_chosen(page.our_rows(results, page.vtab_task)))
    assert "best of 3 to 5 rates for each method, chosen on val: mean accuracy on digits, textile after 3" in told
    assert told.endswith("At an end of the grid: SSF.")
    assert list(page.how_chosen(page.our_rows([made("LoRA", "digits")], page.vtab_task))) == []


def test_it_works_on_any_part_of_the_cells(page: Any, results: list[Result]) -> None:
    part = [result for result in results if not (result.title == "GLoRA" and result.task == "digits")]
    text = " ".join(page.page(part).split())
    assert "Not run, and a dash in the table: GLoRA on digits." in text
    assert "GLoRA has no result on digits, and no place among the others." in text
    alone = page.page(results[:1])
    assert "LoRA" in alone and "minus" not in alone
    untested = page.page([*results[:3], made("NOAH", "digits", None)])
    assert "have no test accuracy and are left out" in untested


def test_its_lines_are_short_but_for_rows_of_tables(page: Any, results: list[Result]) -> None:
    lines = page.page(results).splitlines()
    assert all(len(line) <= 120 or line.startswith("|") for line in lines)
    assert sum(line.startswith("## ") for line in lines) == 6


@pytest.mark.figures
def test_its_picture_has_a_panel_for_each_task(page: Any, results: list[Result], tmp_path: Path) -> None:
    page.draw(results, tmp_path / "tasks.svg")
    data = json.loads((tmp_path / "tasks.json").read_text())["tasks"]
    assert list(data) == list(BASE)
    assert data["digits"]["GLoRA"][0] == pytest.approx(91.0)
    assert "<svg" in (tmp_path / "tasks.svg").read_text()
