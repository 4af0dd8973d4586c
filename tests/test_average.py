"""`train.average`: the moving mean of what is trained, that training ends in it, and what survives a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.training.average import Average
from suites.toy import Recorder, tiny
from suites.training import adapted, equal, make_trainer, run, values


def averaged(share: float, path: list[float]) -> float:
    """The mean of one number along its path, one step each."""
    number = nn.Parameter(torch.zeros(1))
    average = Average([number], share)
    for step, value in enumerate(path):
        number.data.fill_(value)
        average.step(step, len(path))
    average.swap()
    return number.item()


def test_it_is_the_moving_mean_of_that_span_begun_as_a_plain_mean() -> None:
    path = [float(value) for value in np.random.default_rng(0).normal(size=20)]
    mean, n = path[10], 10
    for k, value in enumerate(path[11:], 2):
        mean += (value - mean) * max(1 / k, 2 / (n + 1))
    assert averaged(0.5, path) == pytest.approx(mean)


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_without_a_step_to_average_the_last_value_stays(share: float) -> None:
    assert averaged(share, [1.0, 5.0, 2.0]) == 2.0


def test_a_constant_is_its_own_mean() -> None:
    assert averaged(1.0, [3.0] * 7) == 3.0


def test_a_training_ends_in_the_mean_and_trains_as_without_it(vit) -> None:
    plain, tuned = adapted(vit()), adapted(vit())
    path: list[list[torch.Tensor]] = []
    first = make_trainer(plain, epochs=2)
    first.optimizer.optimizer.register_step_post_hook(lambda *_: path.append(values(plain)))
    losses = [progress.loss for progress in run(first)]
    assert [progress.loss for progress in run(make_trainer(tuned, epochs=2, average=0.5))] == losses
    expected = path[4]
    for k, step in enumerate(path[5:], 2):
        share = max(1 / k, 2 / 5)
        expected = [mean + share * (value - mean) for mean, value in zip(expected, step, strict=True)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values(tuned), expected, strict=True))
    assert not equal(values(tuned), values(plain))


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_kill_changes_nothing(vit, tmp_path: Path, after: int) -> None:
    whole = adapted(vit())
    run(make_trainer(whole, epochs=4, average=0.6))
    first = make_trainer(adapted(vit()), epochs=4, average=0.6)
    ends = first.run()
    for _ in range(after):
        next(ends)
    save_tensors(tmp_path / "state.safetensors", *first.state())
    tuned = adapted(vit(), seed=5)
    second = make_trainer(tuned, epochs=4, average=0.6)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    run(second)
    assert equal(values(tuned), values(whole))


def test_a_training_that_begins_anew_forgets_its_mean(vit) -> None:
    trainer = make_trainer(adapted(vit()), epochs=3, average=1.0)
    next(trainer.run())
    trainer._begin_anew()
    assert trainer.average.seen == 0


def test_a_run_searches_and_merges_the_mean(photos: Path, tmp_path: Path) -> None:
    changes = {"method": "lora", "train": {"average": 0.5}}
    run = Run(tiny(photos, **changes), tmp_path / "run", Recorder())
    result = run.fit()
    assert result is not None
    other = Run(tiny(photos, method="lora"), tmp_path / "other", Recorder())
    other.fit()
    first, second = (load_run(tmp_path / name).model.state_dict() for name in ("run", "other"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    held = run.session.evaluator.evaluate(load_run(tmp_path / "run").model, run.session.data.val)
    assert held.value("loss") == pytest.approx(result.metrics["val_loss"], rel=1e-4)
