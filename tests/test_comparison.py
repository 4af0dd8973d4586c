"""Paired comparisons on the same images, and the file that keeps what single genotypes do."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glora.files import append_jsonl, read_jsonl
from glora.runs.comparison import ExampleValues
from glora.tasks.evaluation import Evaluation, ahead, joined, mean, selection_bias
from glora.tasks.objectives.classify import Classify


def evaluation(*losses: float, right: str = "") -> Evaluation:
    hits = [float(hit) for hit in right or "1" * len(losses)]
    return made(torch.tensor(losses), torch.tensor(hits))


def made(losses: torch.Tensor, hits: torch.Tensor) -> Evaluation:
    return Evaluation(Classify(), {"accuracy": hits, "loss": losses})


@given(st.lists(st.floats(0, 5, width=32), min_size=2, max_size=30), st.floats(-1, 1, width=32))
def test_a_constant_difference_has_no_paired_error_however_noisy_the_images(losses: list[float], by: float) -> None:
    theirs, hits = torch.tensor(losses, dtype=torch.float64), torch.ones(len(losses))
    found = ahead(made(theirs - by, hits), made(theirs, hits), "val")
    assert found["val_loss_ahead"] == pytest.approx(by, abs=1e-9)
    assert found["val_loss_ahead_standard_error"] == pytest.approx(0, abs=1e-9)
    assert found["val_accuracy_ahead"] == 0


def test_the_winner_is_ahead_where_its_loss_is_lower_and_its_hits_are_more() -> None:
    winner, control = evaluation(1.0, 2.0, 3.0, 2.0, right="1101"), evaluation(2.0, 2.0, 4.0, 4.0, right="1000")
    found = ahead(winner, control, "aside")
    assert found["aside_accuracy_ahead"] == 0.5
    assert found["aside_loss_ahead"] == 1.0
    assert found["aside_loss_ahead_standard_error"] == pytest.approx(math.sqrt(2 / 3) / 2)
    assert found["aside_accuracy_ahead_standard_error"] == pytest.approx(math.sqrt(1 / 3) / 2)


def test_selection_bias_is_how_much_better_val_looks() -> None:
    metrics = {**evaluation(0.1, 0.3, right="11").metrics("val"), **evaluation(0.4, 0.8, right="10").metrics("aside")}
    found = selection_bias(metrics, Classify())
    assert found["selection_bias_accuracy"] == 0.5
    assert found["selection_bias_loss"] == pytest.approx(0.4)
    assert found["selection_bias_loss_standard_error"] == pytest.approx(math.hypot(0.1, 0.2))
    assert selection_bias(evaluation(0.1).metrics("val"), Classify()) == {}


def test_the_mean_over_models_is_taken_image_by_image() -> None:
    found = mean([evaluation(1.0, 3.0, right="10"), evaluation(3.0, 3.0, right="11")])
    assert found.values["loss"].tolist() == [2.0, 3.0]
    assert found.value("accuracy") == 0.75
    assert found.standard_error("accuracy") == pytest.approx(0.25 / math.sqrt(2))
    assert joined([evaluation(1.0), evaluation(2.0, 3.0)]).values["loss"].tolist() == [1.0, 2.0, 3.0]


# -- the file


def test_a_genotype_is_measured_once_and_comes_back_from_the_file_bit_for_bit(tmp_path: Path) -> None:
    asked = []

    def measure(genome: tuple[int, ...]) -> dict[str, Evaluation]:
        asked.append(genome)
        losses = torch.rand(5, generator=torch.Generator().manual_seed(genome[0]))
        return {"val": made(losses, (losses > 0.5).float()), "aside": evaluation(math.nan, 1 / 3, right="01")}

    def of_file() -> ExampleValues:
        return ExampleValues(path, {"supernet": "a"}, Classify(), measure)

    path = tmp_path / "examples.jsonl"
    first = of_file()
    found = {genome: first(genome) for genome in [(1, 2), (3, 4), (1, 2)]}
    again = of_file()
    assert (1, 2) in again
    for genome, splits in found.items():
        for split, whole in splits.items():
            assert again(genome)[split].objective == whole.objective
            for name, values in whole.values.items():
                assert torch.equal(again(genome)[split].values[name].nan_to_num(9), values.nan_to_num(9))
                assert again(genome)[split].values[name].dtype == values.dtype
    assert asked == [(1, 2), (3, 4)]
    with path.open("ab") as file:
        file.write(b'{"genome": [5')  # a kill within a line
    of_file()((5, 6))
    assert asked == [(1, 2), (3, 4), (5, 6)]
    assert [record.get("genome") for record in read_jsonl(path)] == [None, [1, 2], [3, 4], [5, 6]]


def test_what_another_supernet_did_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"

    def of_file(supernet: str, loss: float) -> ExampleValues:
        return ExampleValues(path, {"supernet": supernet}, Classify(), lambda genome: {"val": evaluation(loss)})

    of_file("a", 1.0)((1,))
    assert of_file("b", 2.0)((1,))["val"].value("loss") == 2
    assert [record.get("supernet") for record in read_jsonl(path)] == ["b", None]
    line = {"genome": [2], "seconds": 0.0, "splits": {"val": {"accuracy": [1.0], "loss": [3.0]}}}
    append_jsonl(path, line)
    assert of_file("b", 2.0)((2,))["val"].value("loss") == 3


# -- what setting aside costs


def test_setting_half_of_val_aside_and_scoring_ten_again_loses_nothing_against_all_of_val() -> None:
    """On the recorded losses of 1,050 candidates: how far the chosen one is from the best, val drawn anew each time."""
    losses = np.load(Path(__file__).parent / "data" / "digits_losses.npz")["losses"].astype(np.float32)
    true, rng = losses.mean(1), np.random.default_rng(0)
    regrets: dict[str, list[float]] = {"all": [], "half": [], "rescored": []}
    for _ in range(300):
        images = rng.integers(losses.shape[1], size=200)
        val, everything = losses[:, images[:100]].mean(1), losses[:, images].mean(1)
        best = np.argsort(val)[:10]
        chosen = {"all": everything.argmin(), "half": val.argmin(), "rescored": best[everything[best].argmin()]}
        for name, number in chosen.items():
            regrets[name].append(float(true[number] - true.min()))
    means = {name: float(np.mean(values)) for name, values in regrets.items()}
    difference = np.subtract(regrets["rescored"], regrets["all"])
    assert means["half"] > 1.5 * means["all"]
    assert difference.mean() < 2 * difference.std() / len(difference) ** 0.5 + 0.1 * means["all"]
