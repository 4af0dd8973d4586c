"""The table of each task: every metric, the base, and differences in pairs over what is kept of the test examples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from glora.errors import RunError
from glora.report.examples import TESTED, ByExample
from glora.report.folders import read_tested
from glora.report.metrics import MetricInfo
from glora.report.result import Result
from glora.runs.by_task import Pairs, by_task
from glora.tasks.evaluation import mean_and_error

LOSS, ACC = MetricInfo("loss", False, ".3f"), MetricInfo("acc", True, "percent")


def kept(*losses: float | None, weights: tuple[float, ...] | None = None, data: str = "d") -> ByExample:
    return ByExample(winner="", data=data, values={"loss": losses}, weights=weights)


def result(method: str, seed: int = 0, loss: float = 1.0, **changes: Any) -> Result:
    metrics = {"test_loss": loss, "test_loss_standard_error": 0.1}
    given: dict[str, Any] = {"method": method, "title": method, "task": "t", "model": "m", "seed": seed, "config": {}}
    return Result(
        **{**given, "parameters": 5, "objective": "language", "metrics_info": (LOSS,), "metrics": metrics, **changes}
    )


def test_a_difference_is_the_weighted_mean_of_pairs_with_the_error_of_a_split() -> None:
    weights = (1.0, 2.0, 5.0)
    found = Pairs.of([kept(1.0, 2.0, 4.0, weights=weights)], [kept(0.5, 2.5, 3.0, weights=weights)], "loss")
    expected = mean_and_error(torch.tensor([0.5, -0.5, 1.0]), torch.tensor(weights, dtype=torch.float64))
    assert found is not None and (found.mean, found.error) == pytest.approx(expected)


def test_runs_of_several_seeds_are_averaged_example_by_example() -> None:
    found = Pairs.of([kept(1.0, 2.0), kept(3.0, 2.0)], [kept(1.0, 1.0), kept(1.0, 1.0)], "loss")
    assert found is not None and found.mean == 1.0 and found.error == 0.0


@pytest.mark.parametrize(
    "other", [kept(1.0, 2.0, data="e"), kept(1.0), kept(1.0, None), kept(1.0, 2.0, weights=(1.0, 2.0))]
)
def test_what_is_no_pair_is_not_compared(other: ByExample) -> None:
    assert Pairs.of([kept(1.0, 2.0)], [other], "loss") is None
    assert Pairs.of([], [], "loss") is None


def test_a_difference_is_written_in_the_metrics_own_unit() -> None:
    assert Pairs(-0.25, 0.1).text(LOSS) == "-0.250 [-0.446, -0.054]"
    assert Pairs(0.02, 0.01).text(ACC) == "+2.0 [+0.0, +4.0]"


def test_the_table_has_the_base_every_method_and_how_far_the_searched_one_is_from_it() -> None:
    base = {"base": {"test_loss": 3.0, "test_loss_standard_error": 0.2, "parameters": 0.0}}
    searched = {"winner": "w", "controls": base, "seconds": {"train": 4.0, "search": 2.0}}
    tested = [
        (result("LoRA", loss=1.5, controls=base), kept(1.0, 2.0)),
        (result("GLoRA", loss=1.25, **searched), kept(1.0, 1.5)),
    ]
    (sheet,) = by_task(tested)
    lines = {line.name: line.cells for line in sheet.lines}
    assert next(iter(lines)) == "Base" and lines["Base"]["loss"].value == 3.0
    assert lines["LoRA"]["loss_ahead"].note.startswith("-0.250 [")
    assert "loss_ahead" not in lines["GLoRA"] and lines["GLoRA"]["search"].value == 2.0
    assert any(column.title == "GLoRA minus it, loss" for column in sheet.columns)


def test_tasks_have_a_table_each_and_untested_runs_are_told() -> None:
    sheets = by_task([(result("a"), None), (result("a", task="u"), None), (result("b", metrics={}), None)])
    assert [sheet.title for sheet in sheets] == ["t, m", "u, m"]
    assert "1 results have no metric on test and are left out." in sheets[0].caption
    with pytest.raises(RunError, match="None of the 1 results"):
        by_task([(result("b", metrics={}), None)])


def test_examples_are_read_beside_a_run_and_of_a_benchmark_and_only_of_their_winner(tmp_path: Path) -> None:
    mine = kept(1.0, math.pi)
    result("LoRA").write(tmp_path / "run" / "result.json")
    mine.write(tmp_path / "run" / TESTED)
    result("LoRA").write(tmp_path / "bench" / "results" / "cell.json")
    mine.write(tmp_path / "bench" / "examples" / "cell.json")
    assert [found for _, found in read_tested([tmp_path / "run", tmp_path / "bench"])] == [mine, mine]
    result("LoRA", winner="another").write(tmp_path / "run" / "result.json")
    assert [found for _, found in read_tested([tmp_path / "run"])] == [None]
    (tmp_path / "bench" / "examples" / "cell.json").write_text("{")
    with pytest.raises(RunError, match=r"cell\.json cannot be read"):
        read_tested([tmp_path / "bench"])
