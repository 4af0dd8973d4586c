"""The winner of a search in words, and the file it is kept in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from glora.errors import RunError
from glora.files import write_json
from glora.report.metrics import MetricInfo
from glora.report.outcome import Outcome
from glora.report.result import FORMAT_1_METRICS, Result

REGRESSION = (MetricInfo("rmse", False, ".4g"), MetricInfo("mae", False, ".4g"), MetricInfo("loss", False, ".3f"))


def outcome(rows: Any = (), **changes: Any) -> Outcome:
    fields: dict[str, Any] = {"number": 7, "genome": (1, 0, 2), "weights": "ab", "polish": None, "parameters": 90}
    fields |= {"sites": {"fc": {"A": "lora:4", "E": None, "numbers": 90}}, "budget": None, "min_budget": 0}
    fields |= {"metrics_info": FORMAT_1_METRICS, "fitness": "loss", "score": -0.25, "standard_error": 0.0125}
    return Outcome(**fields | {"scored": 1050, "eligible": 1050, "rows": dict(rows)} | changes)


def row(gap: float | None, error: float | None, *, split: str = "aside", **more: float) -> dict[str, float | None]:
    numbers = {f"{split}_{name}_ahead": gap for name in ("accuracy", "loss")}
    numbers |= {f"{split}_{name}_ahead_standard_error": error for name in ("accuracy", "loss")}
    return {"parameters": 100.0, "genotypes": 50.0, f"{split}_examples": 90.0, **numbers, **more}


@pytest.mark.parametrize(
    ("gap", "error", "word"),
    [(0.3, 0.1, "beats"), (0.3, 0.2, "does not beat"), (0.02, 0.01, "does not beat"), (-0.3, 0.1, "does worse than")],
)
def test_the_winner_beats_a_control_by_two_paired_standard_errors_or_not(gap: float, error: float, word: str) -> None:
    (line,) = outcome({"winner": {}, "random_best": row(gap, error)}, rescored=1, unit="images").comparisons
    assert line.startswith(f"The winner {word} the best of 50 random genotypes on the 90 set-aside images: ")
    assert f"loss {-gap:+.3f} ± {error:.3f}" in line
    assert f"accuracy {100 * gap:+.1f} ± {100 * error:.1f} points" in line


def test_the_examples_that_chose_least_decide_and_a_larger_control_is_called_that() -> None:
    rows = {"winner": {}, "largest": {**row(0.3, 0.1), **row(-0.3, 0.1, split="test")}}
    (line,) = outcome(rows, fitness="accuracy", budget=99, rescored=10).comparisons
    larger = "the largest subnet (100 numbers, above the budget)"
    assert line.startswith(f"The winner does worse than {larger} on the 90 test examples: ")
    (only_val,) = outcome({"random_mean": row(0.3, 0.1, split="val")}, rescored=1).comparisons
    assert "the mean of 50 random genotypes on the 90 val examples, which also chose it: " in only_val
    (again,) = outcome({"random_mean": row(0.3, 0.1)}, rescored=10).comparisons
    assert "on the 90 set-aside examples, which also chose it among the best 10: " in again


def test_the_metric_that_was_searched_decides() -> None:
    numbers = {"test_accuracy_ahead": 0.3, "test_accuracy_ahead_standard_error": 0.1}
    numbers |= {"test_loss_ahead": -0.3, "test_loss_ahead_standard_error": 0.1}
    rows: Any = {"largest": {"parameters": 1.0, "test_examples": 9.0, **numbers}}
    for fitness, word in (("accuracy", "beats"), ("loss", "does worse than")):
        assert f"The winner {word} the largest" in outcome(rows, fitness=fitness).comparisons[0]
    rows["largest"]["uncalibrated"] = 1.0
    for fitness in ("accuracy", "loss"):
        (line,) = outcome(rows, fitness=fitness).comparisons
        assert "The winner beats the largest" in line, "losses of different temperatures do not compare"
        assert line.endswith("loss +0.300 ± 0.100 (not to be compared: one of them is not calibrated).")


def test_a_metric_without_a_standard_error_is_shown_and_the_loss_decides() -> None:
    numbers = {"test_rmse_ahead": 12.0, "test_mae_ahead": 0.5, "test_mae_ahead_standard_error": 0.1}
    numbers |= {"test_loss_ahead": -0.3, "test_loss_ahead_standard_error": 0.1}
    rows: Any = {"largest": {"parameters": 1.0, "test_examples": 9.0, **numbers}}
    (line,) = outcome(rows, metrics_info=REGRESSION, fitness="rmse").comparisons
    assert line == (
        "The winner does worse than the largest subnet on the 9 test examples: "
        "rmse -12, mae -0.5 ± 0.1, loss +0.300 ± 0.100."
    )
    rows["largest"]["uncalibrated"] = 1.0
    assert "beats the largest" in outcome(rows, metrics_info=REGRESSION, fitness="rmse").comparisons[0]


def test_what_is_not_finite_is_not_compared() -> None:
    (line,) = outcome({"largest": row(None, None, split="test")}).comparisons
    assert line.startswith("The winner cannot be compared with the largest subnet on the 90 test")
    assert line.endswith("accuracy not finite, loss not finite.")
    assert outcome({"retrained": {"parameters": 1.0}}).comparisons == (), "nothing in common was measured"


def test_the_verdict_of_a_classifier_from_the_users_model_to_its_controls() -> None:
    """The numbers of the committed demo, in the sentences that its result holds since."""
    result = Result.read(Path(__file__).parent.parent / "results" / "demo" / "glora.json")
    found = outcome(result.rows, rescored=1, budget=500_000, unit="images")
    model, how, score, bias, *comparisons = found.verdict
    assert model == f"Your model: {100 * result.metrics['test_accuracy']:.1f} % accuracy on 1,197 test images."
    assert how == "1,050 genotypes scored; the best on val won, and was scored again on set-aside images."
    assert score == "The winner's loss on val, as the search read it: 0.2500 ± 0.0125."
    assert [bias, *comparisons] == list(result.verdict[3:])


def test_a_score_without_a_standard_error_is_told_without_one() -> None:
    found = outcome(metrics_info=REGRESSION, fitness="rmse", standard_error=0.0).search_score
    assert found == "The winner's rmse on val, as the search read it: 0.2500."


def test_the_first_line_is_of_the_most_honest_split() -> None:
    metrics = {f"{split}_{name}": 0.5 for split in ("val", "aside", "test") for name in ("rmse", "loss")}
    metrics |= {"val_examples": 1.0, "aside_examples": 2.0, "test_examples": 3000.0}
    told = []
    for split in ("test", "aside", "val"):
        told.append(outcome({"winner": metrics}, metrics_info=REGRESSION, rescored=2).verdict[0])
        del metrics[f"{split}_rmse"]
    assert told == [
        "Your model: 0.5 rmse on 3,000 test examples.",
        "Your model: 0.5 rmse on 2 set-aside examples, which also chose it among the best 2.",
        "Your model: 0.5 rmse on 1 val examples, which also chose it.",
    ]
    assert outcome().verdict[0].startswith("1,050 genotypes scored"), "nothing was measured yet"


def test_polishing_is_told_before_and_after() -> None:
    rows: Any = {"winner": {"val_accuracy": 0.98}, "unpolished": {"val_accuracy": 0.97, "parameters": 1.0}}
    assert outcome(rows).polish_effect == "Accuracy on val before polishing 97.0 %, after it 98.0 %."
    rows["winner"] = {}
    told = "Accuracy on val before polishing 97.0 %; polishing has seen the val images, so that they tell nothing after"
    assert outcome(rows, unit="images").polish_effect == f"{told} it."


def test_an_outcome_comes_back_from_its_file(tmp_path: Path) -> None:
    kept = outcome({"winner": {"parameters": 90.0, "val_loss": None}}, polish={"epochs": 2}, unit="images")
    kept.write(tmp_path / "winner.json")
    assert Outcome.read(tmp_path / "winner.json") == kept
    assert json.loads((tmp_path / "winner.json").read_text())["verdict"] == list(kept.verdict)
    diverged = outcome(score=-math.inf)
    diverged.write(tmp_path / "winner.json")
    assert "not finite" in Outcome.read(tmp_path / "winner.json").search_score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "format=1.*glora [0-9.]+ reads format 2.*Search again"),
        ({"format": 3}, "format=3"),
        ({"genome": "12"}, "genome: .*not '12'"),
        ({"scored": None, "surprise": 1}, "scored: .*not None; surprise: unknown"),
        ({"rows": [1]}, "rows: "),
    ],
)
def test_a_file_of_another_version_or_a_damaged_one_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "winner.json"
    write_json(path, outcome().to_json() | change)
    with pytest.raises(RunError, match=f"winner.json.*{message}"):
        Outcome.read(path)
    for text in ("{", "[1]", "{}"):  # the last has no format, as files of format 1
        path.write_text(text)
        with pytest.raises(RunError, match=r"winner\.json"):
            Outcome.read(path)
