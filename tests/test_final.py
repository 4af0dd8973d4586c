"""`train.final: all`: the finished model is trained on train and val, as was chosen; no val tells of it afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glora.adapt.adapter_file import read_header
from glora.errors import RunError
from glora.methods import METHODS
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.loaded import load_run
from glora.runs.run import Run
from suites.toy import Recorder, tiny
from suites.training import equal, values

TESTS = Path(__file__).parent
ALL: dict[str, Any] = {"train": {"final": "all"}}
BY_VAL: dict[str, Any] = {"train": {"final": "all", "epochs": "auto", "most_epochs": 8, "patience": 2, "lr": 3e-2}}


def fitted(settings: Any, folder: Path) -> tuple[Run, Result, Recorder]:
    run = Run(settings, folder, reporter := Recorder())
    result = run.fit()
    assert result is not None
    return run, result, reporter


def check_told(run: Run, result: Result) -> None:
    """No number of val is one of the finished model, and that is said."""
    n = len(run.session.data.everything)
    assert n == len(run.task.train) + len(run.task.val)
    assert not [name for name in result.metrics if name.startswith(("val_", "aside_"))]
    assert "test_loss" in result.metrics
    assert any(f"trained in the end on all {n} labelled" in note for note in result.notes)


@pytest.mark.parametrize("method", ["lora", "linear"])
def test_where_val_judges_nothing_there_is_one_training(photos: Path, tmp_path: Path, method: str) -> None:
    run, result, _ = fitted(tiny(photos, method=method, **ALL), tmp_path / "run")
    check_told(run, result)
    assert result.example_steps == {"train": 3 * len(run.session.data.everything)}
    plain, other, _ = fitted(tiny(photos, method=method), tmp_path / "plain")
    assert other.example_steps == {"train": 3 * len(run.task.train)}
    assert not equal(values(run.tuned), values(plain.tuned))


def test_where_val_ends_the_training_the_last_one_has_its_epochs(photos: Path, tmp_path: Path) -> None:
    run, result, reporter = fitted(tiny(photos, method="lora", **BY_VAL), tmp_path / "run")
    check_told(run, result)
    epochs = run.folder.done("epochs")
    assert epochs is not None
    everything = len(run.session.data.everything)
    assert result.example_steps == {
        "train": epochs["trained"] * len(run.task.train),
        "final": epochs["chosen"] * everything,
    }
    direct = {"final": "all", "epochs": epochs["chosen"], "lr": 3e-2}
    other, _, _ = fitted(tiny(photos, method="lora", train=direct), tmp_path / "direct")
    assert equal(values(other.tuned), values(run.tuned))
    first, second = (load_run(tmp_path / name).model.state_dict() for name in ("run", "direct"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_header(run.folder.adapter)["info"]["final"] == "all"
    assert any(f"all {everything} images, train and val: up to" in line for line in reporter.lines)


def test_the_winner_of_a_search_plays_the_supernet_of_all_examples_calibrated_alike(
    photos: Path, tmp_path: Path
) -> None:
    run, result, _ = fitted(tiny(photos, **ALL), tmp_path / "run")
    check_told(run, result)
    before = result.controls["before_final"]
    assert {"val_loss", "aside_loss", "test_loss", "test_loss_ahead", "selection_bias_loss"} <= before.keys()
    tested = {name for name, row in result.controls.items() if "test_loss" in row}
    assert tested == {"before_final"}, "test sees no control that was trained on fewer examples"
    plain, other, _ = fitted(tiny(photos), tmp_path / "plain")
    assert before["test_loss"] == pytest.approx(other.metrics["test_loss"])
    assert before["parameters"] == other.parameters == result.parameters
    outcome = Outcome.read(run.folder.winner)
    assert outcome.genome == Outcome.read(plain.folder.winner).genome
    assert not any("on val" in line and "Your model" in line for line in result.verdict)
    assert result.example_steps["final"] == 3 * len(run.session.data.everything)
    assert result.metrics["test_loss"] != pytest.approx(other.metrics["test_loss"], rel=1e-6)


def test_a_polish_is_the_last_training_where_there_is_one(photos: Path, tmp_path: Path) -> None:
    run, result, _ = fitted(tiny(photos, search={"polish": 1}, **ALL), tmp_path / "run")
    check_told(run, result)
    assert run.experiment.search.polish_on == "all"
    assert "final" not in result.example_steps
    assert result.example_steps["polish"] == len(run.session.data.everything)


def test_the_same_command_again_trains_nothing(photos: Path, tmp_path: Path) -> None:
    settings = tiny(photos, method="lora", **BY_VAL)
    _, result, _ = fitted(settings, tmp_path / "run")
    _, again, reporter = fitted(settings, tmp_path / "run")
    assert again == result
    assert not reporter.steps


def test_an_unfinished_last_training_is_not_tested(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, method="lora", **BY_VAL), tmp_path / "run", Recorder())
    run.train()
    run.folder.unmark("final")
    with pytest.raises(RunError, match="not trained on train and val together yet"):
        run.evaluate()
    again, _, _ = fitted(run.experiment, tmp_path / "run")
    assert equal(values(again.tuned), values(run.tuned))


VICTIM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from suites.toy import tiny, Recorder
from glora.runs.run import Run
from test_final import ALL
torch.set_num_threads(1)

class Late(Recorder):
    def say(self, text):
        self.kill_step = 6 if text.startswith("Once more") else self.kill_step

Run(tiny(Path(sys.argv[2]), **ALL), sys.argv[3], Late()).fit()
"""


def test_killed_in_the_last_training_it_goes_on(photos: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", VICTIM, str(TESTS), str(photos), str(tmp_path / "run")]
    killed = subprocess.run(words, check=False, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run, result, _ = fitted(tiny(photos, **ALL), tmp_path / "run")
    whole, other, _ = fitted(tiny(photos, **ALL), tmp_path / "whole")
    assert run.folder.adapter.read_bytes() == whole.folder.adapter.read_bytes()
    assert result.metrics == other.metrics


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_chooses_its_rate_and_epochs_and_ends_on_all_examples(
    photos: Path, tmp_path: Path, method: str
) -> None:
    auto = {"lr": "auto", "epochs": "auto", "most_epochs": 3, "average": 0.5, "final": "all"}
    run, result, _ = fitted(tiny(photos, method=method, train=auto), tmp_path / "run")
    check_told(run, result)
    assert {"train", "rate"} < result.example_steps.keys() <= {"train", "rate", "final", "polish"}
