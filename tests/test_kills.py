"""A training that is stopped anywhere, by a kill, a signal or a full disk, goes on to the same end."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import glora
from fuzz.kill_runs import kill_runs
from glora import files
from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.errors import AdapterFileError, GloraError, RunError, StateError, WriteError
from glora.files import read_jsonl
from glora.runs import judging, saving
from glora.runs.chance import generators, put_back, seeded
from glora.runs.folder import RunFolder
from glora.runs.run import Run
from glora.runs.saving import Saving
from glora.runs.stages import train
from glora.runs.stopping import Halt, Stopping
from glora.tasks.balance import Balance
from glora.training import trainer as trainers
from glora.training.trainer import Trainer
from suites.ranked import ended as ended_all
from suites.ranked import started
from suites.savepoints import at_every_change
from suites.toy import Recorder, tiny
from suites.training import CLASSES, MIXED, adapted, equal, make_trainer, run, toy_images, values

Vit = Callable[..., nn.Module]

# -- the state within an epoch

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sgd": {"optimizer": "sgd", "lr": 1e-2},
    "average": {"average": 0.6},
    "accumulated": {"micro_batch": 3},
    "pace fast": {"pace": "fast"},
    "pace full": {"pace": "full"},
    "pace lazy": {"pace": "lazy"},
    "published": {"schedule": "paper"},
}


def paused(trainer: Trainer, file: Path, step: int) -> Trainer:
    """The trainer after so many steps, where its state was saved."""
    steps = iter(trainer.run(due=lambda: True))
    while trainer.epoch * trainer.steps_per_epoch + trainer.taken < step:
        next(steps)
    save_tensors(file, *trainer.state())
    return trainer


@pytest.mark.parametrize("form", FORMS)
def test_a_training_stopped_after_any_step_goes_on_to_the_same_bits(vit: Vit, tmp_path: Path, form: str) -> None:
    file, settings = tmp_path / "state.safetensors", {"epochs": 2, **FORMS[form]}
    images = toy_images(14).augmented(MIXED) if form == "plain" else toy_images(14)
    whole = adapted(vit(), sampling="sample")
    ends = run(uninterrupted := make_trainer(whole, images, **settings))
    for step in range(1, 2 * uninterrupted.steps_per_epoch):
        first = paused(make_trainer(adapted(vit(), sampling="sample"), images, **settings), file, step)
        tuned = adapted(vit(), seed=5, sampling="sample")
        second = make_trainer(tuned, images, **settings)
        second.restore(*read_tensors(file))
        assert (second.epoch, second.taken) == (first.epoch, first.taken)
        left = run(second)
        assert equal(values(tuned), values(whole)), step
        assert (left[-1].loss, left[-1].metric, second.losses) == (ends[-1].loss, ends[-1].metric, uninterrupted.losses)
        assert second.example_steps == uninterrupted.example_steps


def test_a_training_that_draws_its_examples_goes_on_within_an_epoch(vit: Vit, tmp_path: Path) -> None:
    images = toy_images(14).augmented(MIXED)

    def made(tuned: Any) -> Trainer:
        plain = make_trainer(tuned, images, epochs=1, batch_size=3)
        return Trainer(tuned, images, CLASSES, plain.settings, lr=5e-3, seed=0, accelerator=plain.accelerator,
                       balance=Balance("sampling"))  # fmt: skip

    whole, tuned = adapted(vit()), adapted(vit(), seed=5)
    run(made(whole))
    paused(made(adapted(vit())), tmp_path / "state.safetensors", 3)
    second = made(tuned)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    run(second)
    assert equal(values(tuned), values(whole))


def test_how_often_a_training_pauses_changes_nothing(vit: Vit) -> None:
    whole, tuned, rng = adapted(vit()), adapted(vit()), random.Random(3)
    ends = run(make_trainer(whole, average=0.5, pace="full"))
    progress = list(make_trainer(tuned, average=0.5, pace="full").run(due=lambda: rng.random() < 0.6))
    assert equal(values(tuned), values(whole))
    assert len(progress) > len(ends)
    losses = {(each.epoch, each.step): each.loss for each in progress}
    assert all(losses[each.epoch, each.step] == each.loss for each in ends)


def test_the_numbers_of_a_pause_are_finite(vit: Vit) -> None:
    tuned = adapted(vit())
    trainer = make_trainer(tuned)

    def spoilt(*_: object) -> None:
        if trainer.taken == 1:
            with torch.no_grad():
                next(iter(tuned.parameters())).fill_(torch.inf)

    trainer.optimizer.optimizer.register_step_post_hook(spoilt)
    pauses = trainer.run(due=lambda: True)
    next(pauses)
    with pytest.raises(StateError, match=r"trained number becomes .* epoch 1, step 2"):
        next(pauses)


@pytest.mark.parametrize(
    "change",
    [
        {"taken": 99},
        {"taken": -1},
        {"taken": 1.5},
        {"taken": "2"},
        {"generators": []},
        {"generators": [[3, [1, 2], None], [3, [1], None]]},
        {"generators": [[3, ["x"] * 625, None]] * 2},
        {"generators": 7},
        {"generators": [None, None]},
    ],
)
def test_a_damaged_state_within_an_epoch_is_refused_and_nothing_changed(
    vit: Vit, tmp_path: Path, change: dict[str, Any]
) -> None:
    first = paused(make_trainer(adapted(vit())), tmp_path / "state.safetensors", 2)
    tensors, meta = first.state()
    other = make_trainer(tuned := adapted(vit(), seed=5))
    before = values(tuned)
    with pytest.raises(StateError, match=r"does not fit.*Delete"):
        other.restore(tensors, {**meta, **change})
    with pytest.raises(StateError, match=r"does not fit.*sums"):
        other.restore({**tensors, "sums": torch.zeros(3)}, meta)
    assert equal(values(tuned), before)


def test_a_state_of_the_first_format_is_that_of_whole_epochs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tiny(photos), tmp_path / "whole", Recorder())
    whole.train()
    stopped = Run(tiny(photos), tmp_path / "run", Recorder())
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        save = train._save
        patch.setattr(train, "_save", lambda folder, trainer: save(folder, trainer) or 1 // (1 - trainer.epoch))
        stopped.train()
    tensors, meta = read_tensors(stopped.folder.training)
    for name in ("taken", "generators", "python_rng", "numpy_rng"):
        del meta[name]
    del tensors["numpy_rng"]
    save_tensors(stopped.folder.training, tensors, {**meta, "format": 1})
    Run(tiny(photos), tmp_path / "run", Recorder()).train()
    assert stopped.folder.supernet.read_bytes() == whole.folder.supernet.read_bytes()


# -- how often it is saved


@pytest.mark.parametrize("seed", range(20))
def test_a_minute_or_a_twentieth_is_lost_at_most_and_little_time_goes_into_saving(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Steps of up to 10 s, states that take up to 30 s to save, epochs of any length."""
    rng, now = random.Random(seed), 1000.0
    step, cost, steps = 10 ** rng.uniform(-1.5, 1), 10 ** rng.uniform(-3, 1.5), rng.choice((3, 100, 10**9))
    monkeypatch.setattr(saving.time, "perf_counter", lambda: now)
    process = SimpleNamespace(num_processes=1, is_main_process=True, wait_for_everyone=lambda: None)
    told: Any = SimpleNamespace(seconds=0.0, taken=0, over=False, accelerator=process)
    keeps, saved, spent = Saving(told, Stopping()), now, 0.0

    def save() -> None:
        nonlocal now, saved, spent
        assert now - saved <= max(60, 0.05 * (now - 1000)), "it would be lost by a kill in here"
        took = cost * rng.uniform(0.8, 1.2)
        now, spent = now + took, spent + took
        saved = now

    while now < 1000 + 4000:
        now += step * rng.uniform(0.8, 1.2)
        told.taken += 1
        if keeps.due():
            keeps.at_pause(save)
        if told.taken == steps:
            told.taken = 0
            keeps.at_pause(save)
    assert spent <= (0.06 * 4000 if cost < 1 else 0.55 * 4000)


# -- signals


class Caught(Exception):
    """What a handler raises."""


@pytest.fixture
def catching() -> Iterator[list[int]]:
    """SIGTERM raises `Caught` here; which came is in the list."""
    came: list[int] = []

    def handler(number: int, _: object) -> None:
        came.append(number)
        raise Caught

    before = signal.signal(signal.SIGTERM, handler)
    yield came
    signal.signal(signal.SIGTERM, before)


def test_a_signal_waits_for_the_end_and_is_passed_on_there(catching: list[int]) -> None:
    done = []
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Caught), Stopping() as stopping:
        signal.raise_signal(signal.SIGTERM)
        assert stopping.came == signal.SIGTERM
        with pytest.raises(Halt):
            stopping.check()
        done.append("the step")
    assert done == ["the step"] and catching == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_signal_takes_effect_at_once_and_one_that_comes_twice_is_one(
    catching: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("glora.runs.stopping.time.monotonic", lambda: clock)
    with pytest.raises(Caught), Stopping() as stopping:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert catching == []
        clock = 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stopping.came == 0
        signal.raise_signal(signal.SIGTERM)
    assert catching == [signal.SIGTERM]


def test_a_handler_that_only_takes_note_lets_the_training_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGTERM)
            stopping.pass_on()
            assert (noted, stopping.came) == ([signal.SIGTERM], 0)
            signal.raise_signal(signal.SIGTERM)
            assert stopping.came
        assert len(noted) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ignored_signals_and_other_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGTERM)
            assert not stopping.came
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    found: list[Any] = []

    def elsewhere() -> None:
        with Stopping():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


class Signalled(Recorder):
    """A reporter that sends a signal to the process at this step of a training."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.step, self.number = step, number

    def training(self, progress: Any) -> None:
        super().training(progress)
        if progress.step == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("step", [1, 6, 8, 12])
def test_a_signal_within_an_epoch_saves_the_step_under_way(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(trainers, "SYNC_EVERY", 0)
    settings = tiny(photos, method="lora", train={"batch_size": 8, "average": 0.5})
    whole = Run(settings, tmp_path / "whole", Recorder())
    whole.train()
    stopped = Run(settings, tmp_path / "run", Signalled(step))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    steps = -(-len(whole.session.data.train) // 8)
    folder = RunFolder(tmp_path / "run")
    if step == 12:
        assert folder.done("trained"), "the last step is the end of the training"
    else:
        meta = read_tensors(folder.training)[1]
        assert meta["epoch"] * steps + meta["taken"] in (step, step + 1)
    Run(settings, tmp_path / "run", again := Recorder()).train()
    assert not any(line.startswith("Training goes on after epoch 0") for line in again.lines)
    assert folder.adapter.read_bytes() == whole.folder.adapter.read_bytes()
    epochs = [record["epoch"] for record in read_jsonl(folder.metrics) if record["stage"] == "train"]
    assert epochs == [1, 2, 3]


@pytest.mark.parametrize("look", [1, 3])
def test_a_signal_in_the_look_at_val_ends_it_and_the_steps_before_are_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    settings = tiny(photos, train={"epochs": "auto", "most_epochs": 4, "patience": 2, "average": 0.5})
    whole = Run(settings, tmp_path / "whole", Recorder())
    whole.train()
    looked, looks, add, call = 0, 0, judging.Judging._add, judging.Judging.__call__

    def counted(self: Any, *args: Any, **given: Any) -> Any:
        nonlocal looks
        looks += 1
        return call(self, *args, **given)

    def added(*args: Any) -> None:
        nonlocal looked
        add(*args)
        if looks == look:
            looked += 1
            if looked == 2:
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(judging.Judging, "_add", added)
        patch.setattr(judging.Judging, "__call__", counted)
        Run(settings, tmp_path / "run", Recorder()).train()
    assert looked == 2, "the look has ended there"
    folder = RunFolder(tmp_path / "run")
    meta = read_tensors(folder.training)[1]
    assert (meta["epoch"], meta["taken"]) == (look - 1, 4)
    Run(settings, tmp_path / "run", Recorder()).train()
    assert folder.supernet.read_bytes() == whole.folder.supernet.read_bytes()


class Drawing(Dataset[tuple[torch.Tensor, int]]):
    """Examples that look another way at every reading, by the generators that all code shares."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        noise = random.gauss(0, 1) + np.random.default_rng(np.random.randint(10**6)).normal() + torch.rand(()).item()
        return torch.full((6,), float(place % 2)) + 0.3 * noise, place % 2


def test_what_a_dataset_draws_from_shared_generators_goes_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "SYNC_EVERY", 0)

    def fitted(out: str, reporter: Recorder) -> bytes:
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        given: dict[str, Any] = {"epochs": 3, "train__batch_size": 4, "method": {"name": "lora", "rank": 2}}
        val = torch.utils.data.TensorDataset(torch.eye(6), torch.tensor([0, 1] * 3))
        glora.fit(net, train=Drawing(), val=val, out=tmp_path / out / "x", progress=reporter, **given)
        return (tmp_path / out / "x" / "adapter.safetensors").read_bytes()

    whole = fitted("whole", Recorder())
    random.seed(99)
    np.random.seed(99)
    with pytest.raises(KeyboardInterrupt):
        fitted("run", Signalled(8))
    assert fitted("run", Recorder()) == whole


def test_shared_generators_are_the_programs_own_again_after_a_training() -> None:
    random.seed(7)
    np.random.seed(7)
    with seeded(0):
        drawn = random.random(), np.random.rand(), torch.rand(()).item()
    mine = random.random(), np.random.rand()
    random.seed(7)
    np.random.seed(7)
    assert mine == (random.random(), np.random.rand())
    with seeded(0):
        kept = generators(torch.device("cpu"))
        assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
        put_back(*kept, torch.device("cpu"))
        assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())


# -- kills at every save point

PARTS = 2  # of the sweep, in tests of their own


def listed(folder: Path) -> str:
    """What is in a folder, as a hash."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != ".lock":
            found.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode() + file.read_bytes())
    return found.hexdigest()


def big(photos: Path, **changes: Any) -> Any:
    """A run of all stages: a rate that is chosen, epochs by val, search, controls, polish, retraining, test."""
    settings: dict[str, Any] = {
        "train": {"lr": "auto", "epochs": "auto", "most_epochs": 3, "patience": 2, "average": 0.5},
        "search": {"polish": 1, "control": "retrain", "controls": 2, "rescore": 2},
    }
    return tiny(photos, **{**settings, **changes})


def ended(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("adapter.safetensors", "supernet.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("changes", [{}, {"train": {"epochs": 2, "final": "all"}, "search": {"racing": True}}])
def test_a_kill_at_any_save_point_leaves_what_the_same_command_ends_from(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], part: int
) -> None:
    """A copy of the folder is what a process leaves that is killed there; of changes of one kind the last is tried."""
    settings, seen, states = big(photos, **changes), set[str](), dict[str, Path]()

    def kept(what: str) -> None:
        if (tmp_path / "run").is_dir() and (state := listed(tmp_path / "run")) not in seen:
            seen.add(state)
            shutil.rmtree(states.pop(what, tmp_path / "nothing"), ignore_errors=True)
            states[what] = tmp_path / f"killed-{len(seen)}"
            shutil.copytree(tmp_path / "run", states[what])

    monkeypatch.setattr(saving, "LONGEST", 0.0)
    with at_every_change(kept):
        Run(settings, tmp_path / "run", Recorder()).fit()
    expected = ended(tmp_path / "run")
    monkeypatch.undo()
    assert len(states) > 30
    for what, folder in list(states.items())[part::PARTS]:
        Run(settings, folder, Recorder()).fit()
        assert ended(folder) == expected, what
        assert not [*folder.rglob(".*.tmp"), *folder.rglob("training.safetensors")], what
        shutil.rmtree(folder)


# -- a disk that is full, a folder that is gone


def points_of(settings: Any, folder: Path) -> list[str]:
    """What a whole run changes on the disk, in order."""
    found: list[str] = []
    with at_every_change(found.append):
        Run(settings, folder, Recorder()).fit()
    return found


def some(count: int, most: int) -> range:
    """About so many places of a count, spread over it."""
    return range(1, count, max(1, count // most))


@pytest.mark.parametrize("places", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_a_disk_that_refuses_is_one_error_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, places: int
) -> None:
    settings = tiny(photos, search={"controls": 2}) if places < 10 else big(photos)
    syncs, real = 0, files._sync
    refused: dict[int, int] = {}

    def sync(path: Path) -> None:
        nonlocal syncs
        syncs += 1
        if number := refused.get(syncs):
            raise OSError(number, os.strerror(number), str(path))
        real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_sync", sync)
        Run(settings, tmp_path / "whole", Recorder()).fit()
        expected, count = ended(tmp_path / "whole"), syncs
        for place in some(count, places):
            syncs, number = 0, (errno.EDQUOT, errno.ENOSPC, errno.EROFS, errno.EIO)[place % 4]
            refused = {place + 1: number}
            out = tmp_path / f"run-{place}"
            with pytest.raises(WriteError, match=r"cannot be written.*as it was") as told:
                Run(settings, out, Recorder()).fit()
            assert told.value.errno == number and told.value.remedy
            refused = {}
            assert not list(out.rglob(".*.tmp"))
            Run(settings, out, Recorder()).fit()
            assert ended(out) == expected, place
            shutil.rmtree(out)


@pytest.mark.parametrize("places", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_a_folder_removed_under_way_is_told_and_not_made_again(photos: Path, tmp_path: Path, places: int) -> None:
    settings = tiny(photos, search={"controls": 2}) if places < 10 else big(photos)
    whole = points_of(settings, tmp_path / "whole")
    first = next(place for place, what in enumerate(whole) if what == "after rename config.yaml")
    last = next(place for place, what in enumerate(whole) if what == "after rename result.json")
    remove = shutil.rmtree
    for place in some(last - first, places):
        count, out = 0, tmp_path / f"run-{place}"

        def act(_: str, at: int = first + place, out: Path = out) -> None:
            nonlocal count
            count += 1
            if count == at + 1:
                remove(out)

        with at_every_change(act), pytest.raises(GloraError) as told:
            Run(settings, out, Recorder()).fit()
        assert isinstance(told.value, RunError | WriteError | AdapterFileError), whole[first + place]
        assert told.value.remedy, whole[first + place]
        assert not out.exists(), (whole[first + place], sorted(out.rglob("*")))


def test_what_a_killed_export_was_writing_is_no_obstacle(photos: Path, tmp_path: Path) -> None:
    settings = tiny(photos, train={"epochs": 1})
    run = Run(settings, tmp_path / "run", Recorder())
    run.train()
    (tmp_path / "run" / ".export.123.tmp").mkdir()
    (tmp_path / "run" / ".export.123.tmp" / "model.safetensors").touch()
    assert run.fit() is not None
    assert not list((tmp_path / "run").glob(".*.tmp"))


# -- real processes


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rate", "language"])
def test_real_runs_that_are_killed_end_as_undisturbed_ones(tmp_path: Path, case: str) -> None:
    found = kill_runs(4, 1, tmp_path, cases=[case])
    assert not found.broken
    assert found.kills == 4


LONG = """
import os, signal, sys, time
from glora.cli import app
name, pauses = sys.argv[1], list(map(float, sys.argv[2].split()))
signal.signal(signal.SIGINT, signal.default_int_handler)
from glora.training import trainer
step = trainer.Trainer._step
def slow(self, *args):
    if self.taken == 5:
        for pause in pauses:
            time.sleep(pause)
            os.kill(os.getpid(), getattr(signal, name))
    found = step(self, *args)
    if self.taken > 5:
        print("went on", flush=True)
    return found
trainer.Trainer._step = slow
sys.argv = ["glora", *sys.argv[3:]]
app.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "pauses", "kept"),
    [("SIGTERM", 143, "0", 6), ("SIGINT", 130, "0", 6), ("SIGINT", 130, "0 0.6", None)],
)
def test_one_long_epoch_is_kept_by_a_signal_and_a_second_one_ends_it_at_once(
    photos: Path, tmp_path: Path, name: str, code: int, pauses: str, kept: int | None
) -> None:
    words = ["train", "--data", str(photos), "--model", "test_vit", "--set", "model.pretrained=false", "--method"]
    words += ["lora", "--epochs", "1", "--set", "train.batch_size=2", "--out", str(tmp_path / "run")]
    script = [sys.executable, "-c", LONG, name, pauses]
    done = subprocess.run([*script, *words], check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    said = {143: "Terminated.", 130: "Interrupted."}[code]
    assert done.stderr.splitlines()[-1] == f"{said} The same command continues the run."
    assert done.stdout == ""
    state = tmp_path / "run" / "training.safetensors"
    assert (read_tensors(state)[1]["taken"] if state.is_file() else None) == kept


@pytest.mark.slow
@pytest.mark.parametrize("to", [[1], [0, 1]])
def test_a_signal_to_one_of_two_processes_ends_both_with_the_state_saved(
    photos: Path, tmp_path: Path, to: list[int]
) -> None:
    words = ["-m", "glora", "train", "--data", str(photos), "--model", "test_vit", "--set", "model.pretrained=false"]
    words += ["--method", "lora", "--epochs", "2000", "--out", str(tmp_path / "run")]
    processes, end = started(2, words), time.monotonic() + 120
    while not (tmp_path / "run" / "training.safetensors").is_file() and time.monotonic() < end:
        time.sleep(0.1)
    for rank in to:
        processes[rank].send_signal(signal.SIGTERM)
    for code, said in ended_all(processes):
        assert code == 143, said
        assert said.splitlines()[-1] == "Terminated. The same command continues the run."
    assert read_tensors(tmp_path / "run" / "training.safetensors")[1]["epoch"] < 2000
