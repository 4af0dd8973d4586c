"""The demo's settings are alike for all methods, and it says in words who won."""

from __future__ import annotations

from pathlib import Path

from glora.config import load_experiment
from glora.report.result import Result
from glora.runs.demo import demo_experiment, lora_rank, verdict
from glora.space import Site


def result(method: str, accuracy: float) -> Result:
    metrics = {"test_accuracy": accuracy, "test_accuracy_standard_error": 0.003}
    return Result(method=method, task="t", model="m", seed=0, config={}, parameters=1, metrics=metrics)


def test_verdict_says_a_loss_as_loudly_as_a_win() -> None:
    text = verdict([result("linear", 0.8), result("lora", 0.95), result("glora", 0.94)])
    first, second = text.splitlines()
    assert first.startswith("glora beats linear on test: +14.0 points")
    assert second.startswith("glora does not beat lora on test: -1.0 points")
    assert "0.4)" in second  # sqrt(2) * 0.3


def test_a_tie_is_no_win() -> None:
    assert "does not beat" in verdict([result("lora", 0.9), result("glora", 0.9)])


def test_quick_changes_only_sizes() -> None:
    full, quick = demo_experiment(seed=3), demo_experiment(quick=True, seed=3)
    assert (full.model, full.method, full.seed) == (quick.model, quick.method, quick.seed)
    assert quick.search.budget == full.search.budget


def test_lora_gets_the_smallest_rank_not_below_the_winner() -> None:
    sites = [Site("linear", 30, 20, True), Site("linear", 10, 40, True)]  # 100 numbers a rank
    assert [lora_rank(n, sites) for n in (0, 99, 100, 101, 200, 201)] == [1, 1, 1, 2, 2, 3]


def test_the_shipped_experiment_is_the_demo() -> None:
    assert load_experiment(Path(__file__).parent.parent / "experiments" / "digits.yaml") == demo_experiment()
