"""A run is never continued with other data or by two at once; what stops it is told, and the last good state stays."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import glora
from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.config import Experiment
from glora.errors import BackboneError, RunError, StateError
from glora.runs import run as runs
from glora.runs.folder import RunFolder
from glora.runs.run import Run
from glora.tasks.memory import memory_told
from test_run import Recorder, tiny

HOLDS = """
import sys, time
from glora.runs.folder import RunFolder
with RunFolder(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


class Stopped(Exception):
    """What a test stops a training with."""


def stopped_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training stops when the state of so many epochs is saved."""
    from glora.runs import saving
    from glora.runs.stages import train

    save = train._save

    def saved(folder: RunFolder, trainer: Any) -> None:
        save(folder, trainer)
        if trainer.epoch == epochs:
            raise Stopped

    monkeypatch.setattr(train, "_save", saved)
    monkeypatch.setattr(saving, "SHARE", 1e9)


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """The images, in a folder of the test's own."""
    shutil.copytree(photos, tmp_path / "own")
    return tmp_path / "own"


def unfinished(photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A run that stopped after its first epoch."""
    settings = tiny(photos)
    with monkeypatch.context() as patched:
        stopped_after(1, patched)
        with pytest.raises(Stopped):
            Run(settings, folder, Recorder()).fit()
    assert (folder / "training.safetensors").is_file()
    return settings


def test_changed_data_is_named_by_split_and_how_to_begin_anew(
    own_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unfinished(own_photos, tmp_path / "run", monkeypatch)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    file = sorted(own_photos.rglob("*.png"))[0]
    pixels = np.asarray(Image.open(file).convert("RGB")).copy()
    pixels[0, 0] ^= 1  # a change that leaves name and, but for compression, size
    Image.fromarray(pixels).save(file)
    anew = re.escape(f"start anew beside it: --out {tmp_path / 'run-2'}")
    with pytest.raises(
        RunError, match=rf"data has changed since.*: (train|val|test) \(\d+ images, .*then.*{anew}"
    ) as told:
        Run(settings, tmp_path / "run", Recorder())
    assert told.value.cause.count(" then, ") == 1, "the other splits are as they were"
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_folder_in_use_is_refused_at_every_stage_and_free_after_a_kill(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    unfinished(photos, folder, monkeypatch)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            run = Run.open(folder, Recorder())
            for stage in (run.fit, run.train, run.search, run.evaluate, lambda: run.pick(budget=None)):
                with pytest.raises(
                    RunError, match=r"Another process is working on the run in .*run\. Wait for its end"
                ):
                    stage()
        finally:
            other.kill()
    assert run.fit() is not None
    with RunFolder(folder).held():
        pass


def test_a_run_whose_folder_is_removed_between_its_stages_does_not_make_it_again(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos), tmp_path / "run", Recorder())
    run.train()
    shutil.rmtree(tmp_path / "run")
    for stage in (run.train, run.search, run.evaluate):
        with pytest.raises(RunError, match="was removed while the run went on"):
            stage()
    assert not (tmp_path / "run").exists()


def test_a_training_state_of_another_format_is_not_continued(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unfinished(photos, tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "training.safetensors"
    tensors, meta = read_tensors(file)
    save_tensors(file, tensors, {**meta, "format": 99})
    with pytest.raises(
        RunError, match=r"training\.safetensors has the format 99.*continues a training of format 1.*-2"
    ):
        Run(settings, tmp_path / "run", Recorder()).train()


def test_a_diverging_run_keeps_the_state_of_the_last_good_epoch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unfinished(photos, tmp_path / "run", monkeypatch)
    good = (tmp_path / "run" / "training.safetensors").read_bytes()
    run = Run(settings, tmp_path / "run", Recorder())
    forward = type(run.session.objective).training_losses
    steps: list[int] = []

    def spoiled(objective: Any, output: Any, batch: Any) -> torch.Tensor:
        steps.append(0)
        return forward(objective, output, batch) * (float("nan") if len(steps) == 2 else 1.0)

    monkeypatch.setattr(type(run.session.objective), "training_losses", spoiled)
    with pytest.raises(
        StateError, match=r"loss is nan in epoch 2, step \d+ of \d+, at a learning rate of .*In play: Gen"
    ):
        run.train()
    assert (tmp_path / "run" / "training.safetensors").read_bytes() == good
    monkeypatch.undo()
    assert Run(settings, tmp_path / "run", Recorder()).fit() is not None


def test_a_base_that_is_not_finite_is_named_before_anything_begins(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = runs.load_backbone

    def broken(*args: Any, **kwargs: Any) -> Any:
        found = load(*args, **kwargs)
        with torch.no_grad():
            found.model.blocks[0].norm1.weight[0] = float("nan")
        return found

    monkeypatch.setattr(runs, "load_backbone", broken)
    with pytest.raises(BackboneError, match=r"not finite, in blocks\.0\.norm1\.weight\.") as told:
        Run(tiny(photos), tmp_path / "run", Recorder())
    assert "checkpoint again" in told.value.remedy
    assert not (tmp_path / "run").exists()


def test_a_number_that_the_last_step_of_an_epoch_spoils_is_not_saved(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos), tmp_path / "run", Recorder())
    step = torch.optim.AdamW.step

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = step(self, *args, **kwargs)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("inf"))
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", spoiled)
        with pytest.raises(StateError, match=r"(becomes infinite or NaN|loss is (nan|inf)) in epoch 1, step \d+ of"):
            run.train()
    assert not (tmp_path / "run" / "training.safetensors").exists()
    assert not (tmp_path / "run" / "supernet.safetensors").exists()


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_out_of_memory_is_told_with_the_batch_size_and_what_to_try(
    stage: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny(photos, method="linear"), tmp_path / "run", Recorder())
    if stage == "evaluate":
        run.train()
    forward = type(run.session.objective).forward

    def greedy(objective: Any, model: nn.Module, batch: Any, *, train: bool) -> Any:
        torch.empty(1 << 56)  # what the allocator says is its own
        return forward(objective, model, batch, train=train)

    monkeypatch.setattr(type(run.session.objective), "forward", greedy)
    words = {
        "train": r"a training step of \d+ images.*train\.batch_size is \d+: begin anew with train\.micro_batch=\d+",
        "evaluate": r"a forward pass of \d+ images.*search\.batch_size=\d+",
    }[stage]
    with pytest.raises(StateError, match=rf"Out of memory in {words}"):
        getattr(run, stage)()


def test_other_errors_are_not_taken_for_missing_memory() -> None:
    for error in (RuntimeError("shapes differ"), StateError("Out of memory, says a user"), KeyError("x")):
        with pytest.raises(type(error)) as caught, memory_told("a step", remedy="Take less."):
            raise error
        assert caught.value is error
    with pytest.raises(StateError, match=r"Out of memory in a step\. Take less\."):
        with memory_told("a step", remedy="Take less."):
            raise MemoryError


def test_files_say_who_made_them(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos), tmp_path / "run", Recorder())
    run.fit()
    header = glora.adapt.adapter_file.read_header(run.folder.adapter)
    assert header["made"] == {"glora": glora.__version__, "torch": torch.__version__}
    assert header["base"] == run.session.base_fingerprint
    assert header["genotype"].keys() == header["sites"].keys()
    info = header["info"]
    assert info["data"] == run.task.fingerprint
    assert info["task"] == run.task.name
    assert 0 < info["metrics"]["val_loss"] < 100
    trained = glora.adapt.adapter_file.read_header(run.folder.supernet)
    assert trained["info"]["metrics"]["train_loss"] > 0


LIMIT = """
import resource, signal, sys
if int(sys.argv[1]):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["glora", *sys.argv[2:]]
from glora.cli.app import main
main()
"""


@pytest.mark.slow
def test_a_run_that_cannot_write_says_so_and_goes_on_to_the_same_end(photos: Path, tmp_path: Path) -> None:
    def command(limit: int, out: str) -> subprocess.CompletedProcess[str]:
        given = ["train", "--data", str(photos), "--model", "test_vit", "--out", out, "--epochs", "2",
                 "--set", "model.pretrained=false"]  # fmt: skip
        return subprocess.run(
            [sys.executable, "-c", LIMIT, str(limit), *given], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    whole = command(0, "whole")
    assert whole.returncode == 0, whole.stderr
    stopped = command(20_000, "stopped")
    assert stopped.returncode == 2, stopped.stderr
    assert re.search(r"Error: .*stopped/\w+\.safetensors cannot be written: File too large", stopped.stderr)
    assert "TIP: " in stopped.stderr
    assert not list((tmp_path / "stopped").glob("*.tmp")) + list((tmp_path / "stopped").glob(".*.tmp"))
    again = command(0, "stopped")
    assert again.returncode == 0, again.stderr
    ends = [(tmp_path / each / "supernet.safetensors").read_bytes() for each in ("whole", "stopped")]
    assert ends[0] == ends[1]
