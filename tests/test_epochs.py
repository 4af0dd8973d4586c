"""`train.epochs: auto`: when a training ends by val, which state it ends in, and that a kill changes nothing."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.errors import ConfigError
from glora.files import read_jsonl
from glora.runs.judging import Judging
from glora.runs.run import Run
from glora.training.best import Best
from glora.training.trainer import Trainer
from suites.toy import Recorder, tiny
from suites.training import adapted, equal, make_trainer, run, values

TESTS = Path(__file__).parent
AUTO: dict[str, Any] = {"train": {"epochs": "auto", "most_epochs": 12, "patience": 2, "lr": 3e-2}}


def judged(tuned: Any, losses: list[float], **settings: Any) -> tuple[Trainer, list[list[torch.Tensor]]]:
    """A trainer whose val losses are these, and the numbers that were judged."""
    seen: list[list[torch.Tensor]] = []

    def val_loss() -> float:
        seen.append(values(tuned))
        return losses[trainer.epoch - 1]

    trainer = make_trainer(tuned, epochs="auto", most_epochs=len(losses), **settings)
    trainer.val_loss = val_loss
    return trainer, seen


def test_it_ends_without_a_better_one_for_as_long_as_the_patience_and_in_the_best_state(vit) -> None:
    tuned = adapted(vit())
    trainer, seen = judged(tuned, [0.9, 0.5, 0.7, 0.4, 0.4, 0.6, 0.1], patience=2)
    assert len(run(trainer)) == 6
    assert (trainer.best.epoch, trainer.best.loss) == (4, 0.4)
    assert equal(values(tuned), seen[3])
    assert not equal(values(tuned), seen[5])
    assert trainer.example_steps == 6 * 30


def test_it_ends_at_the_most_epochs_at_the_latest(vit) -> None:
    tuned = adapted(vit())
    trainer, seen = judged(tuned, [0.9, 0.5, 0.7], patience=2)
    assert len(run(trainer)) == 3
    assert equal(values(tuned), seen[1])


def test_until_it_ends_it_is_the_training_of_the_most_epochs(vit) -> None:
    plain, tuned = adapted(vit()), adapted(vit())
    losses = [progress.loss for progress in run(make_trainer(plain, epochs=4))]
    trainer, _ = judged(tuned, [4.0, 3.0, 2.0, 1.0])
    assert [progress.loss for progress in run(trainer)] == losses
    assert equal(values(tuned), values(plain))


def test_a_loss_that_is_no_number_is_never_the_best(vit) -> None:
    tuned = adapted(vit())
    trainer, seen = judged(tuned, [math.nan, 0.5, math.nan], patience=3)
    run(trainer)
    assert trainer.best.epoch == 2
    assert equal(values(tuned), seen[1])


def test_what_is_judged_and_kept_is_the_moving_mean_where_there_is_one(vit) -> None:
    tuned = adapted(vit())
    trainer, seen = judged(tuned, [0.9, 0.5, 0.7, 0.8], average=1.0)
    last: list[list[torch.Tensor]] = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: last.append(values(tuned)))
    run(trainer)
    assert equal(values(tuned), seen[1])
    assert not equal(seen[1], last[7]), "the mean is not the last value"
    other = adapted(vit())
    run(make_trainer(other, epochs=4))
    assert equal(last[-1], values(other)), "looking changes nothing"


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_kill_changes_nothing(vit, tmp_path: Path, after: int) -> None:
    losses = [0.9, 0.5, 0.7, 0.6, 0.6, 0.6]
    whole = adapted(vit())
    run(judged(whole, losses, patience=3, average=0.5)[0])
    first, _ = judged(adapted(vit()), losses, patience=3, average=0.5)
    ends = first.run()
    for _ in range(after):
        next(ends)
    save_tensors(tmp_path / "state.safetensors", *first.state())
    tuned = adapted(vit(), seed=5)
    second, _ = judged(tuned, losses, patience=3, average=0.5)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    run(second)
    assert second.epoch == 5
    assert equal(values(tuned), values(whole))


def test_the_patience_of_a_training_that_began_anew_begins_anew() -> None:
    best = Best(2)
    best.see(1, 0.5, [])
    assert best.over(3)
    assert not best.over(3, began=2)


# -- whole runs


@pytest.mark.parametrize("method", ["glora", "lora", "linear"])
def test_a_run_of_any_method_ends_by_val_and_says_so(photos: Path, tmp_path: Path, method: str) -> None:
    run = Run(tiny(photos, method=method, **AUTO), tmp_path / "run", reporter := Recorder())
    run.train()
    facts = run.folder.done("epochs")
    assert facts is not None
    records = read_jsonl(run.folder.metrics)
    trained = [each for each in records if each["stage"] == "train"]
    looks = [each for each in records if each["stage"] == "val"]
    assert len(trained) == len(looks) == facts["trained"] <= 12
    assert looks[-1]["best_epoch"] == facts["chosen"]
    assert facts["trained"] == min(12, facts["chosen"] + 2)
    assert run.folder.example_steps() == facts["trained"] * len(run.task.train)
    assert any("up to 12 epochs" in line and "no better for 2 epochs" in line for line in reporter.lines)
    assert facts["why"] in reporter.lines
    assert Judging(run.session, run.tuned, run.session.data.val)().loss == pytest.approx(looks[-1]["best"], abs=1e-5)


VICTIM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from suites.toy import tiny, Recorder
from glora.runs.run import Run
from test_epochs import AUTO
torch.set_num_threads(1)
Run(tiny(Path(sys.argv[2]), **AUTO), sys.argv[3], Recorder(kill_step=int(sys.argv[4]))).train()
"""


def test_killed_it_goes_on_to_the_same_end(photos: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", VICTIM, str(TESTS), str(photos), str(tmp_path / "run"), "10"]
    killed = subprocess.run(words, check=False, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    runs = [Run(tiny(photos, **AUTO), tmp_path / name, Recorder()) for name in ("run", "whole")]
    for each in runs:
        each.train()
    assert runs[0].folder.done("epochs") == runs[1].folder.done("epochs")
    assert runs[0].folder.supernet.read_bytes() == runs[1].folder.supernet.read_bytes()


def test_the_result_tells_it_and_a_rate_can_be_chosen_too(photos: Path, tmp_path: Path) -> None:
    settings = tiny(photos, method="lora", train={**AUTO["train"], "lr": "auto"})
    run = Run(settings, tmp_path / "run", Recorder())
    result = run.fit()
    assert result is not None
    told = {note.partition(":")[0] for note in result.notes}
    assert {"Epochs", "Learning rate"} <= told
    assert result.example_steps["train"] <= 12 * len(run.task.train)


def test_with_folds_it_is_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match="epochs=auto needs val examples"):
        tiny(photos, data={"folds": 2}, **AUTO)
