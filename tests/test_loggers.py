"""Curves beside the run's own files: every number once, whatever is killed and resumed, and no logger ends a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import glora
from glora.errors import UnknownNameError
from glora.files import read_jsonl
from glora.report.loggers import LOGGERS, Feed
from glora.runs.logged import logging_to
from glora.runs.run import Run
from suites.toy import Recorder, image_folder, tiny

NAMES = ("kept", "kept_on")


class Kept:
    """Keeps what it is told, in files, as services do: it begins anew."""

    anew: ClassVar[bool] = True
    broken: ClassVar[bool] = False

    def __init__(self, folder: Path, *, key: str, settings: Mapping[str, Any]) -> None:
        assert settings["train.epochs"] and key
        self.file = folder / f"{type(self).__name__}.txt"
        if self.anew:
            self.file.write_text("")

    def _write(self, *what: Any) -> None:
        with self.file.open("a") as file:
            file.write(" ".join(map(str, what)) + "\n")

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self._write(group, step, *sorted(values))

    def result(self, values: Mapping[str, float], verdict: Sequence[str]) -> None:
        self._write("result", *(name for name in sorted(values) if name.startswith("test_")))

    def close(self) -> None:
        pass


class KeptOn(Kept):
    """The same, which goes on where it was."""

    anew: ClassVar[bool] = False


class Broken(Kept):
    broken: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("kept", "Kept"), ("kept_on", "KeptOn"), ("broken", "Broken")):
        monkeypatch.setitem(LOGGERS, name, f"test_loggers:{kind}")


def run_of(tmp_path: Path, reporter: Any = None, names: Sequence[str] = NAMES) -> list[str]:
    """The lines said in a run with loggers."""
    if not (tmp_path / "photos").is_dir():
        image_folder(tmp_path / "photos")
    told = Recorder() if reporter is None else reporter
    with logging_to(names, tmp_path / "run", told) as logged:
        Run(tiny(tmp_path / "photos"), tmp_path / "run", logged).fit()
    return list(told.lines)


def expected(run: Path) -> list[str]:
    """A line for each number that the run's files hold."""
    names = "accuracy epoch examples_per_second loss lr"
    lines = [f"train {r['step']} {names}" for r in read_jsonl(run / "metrics.jsonl") if r["stage"] == "train"]
    scored = [r for r in read_jsonl(run / "search.jsonl") if r.get("event") == "score"]
    assert scored and len(lines) == 3
    return lines + [f"search {r['number']} best parameters score" for r in scored]


def logged(run: Path, name: str) -> list[str]:
    return (run / f"{name}.txt").read_text().splitlines()


def test_every_number_of_a_run_comes_once(tmp_path: Path) -> None:
    run_of(tmp_path)
    run = tmp_path / "run"
    for name in ("Kept", "KeptOn"):
        *lines, last = logged(run, name)
        assert sorted(lines) == sorted(expected(run))
        assert last.startswith("result test_accuracy")
    assert run_of(tmp_path) and len(logged(run, "KeptOn")) == len(logged(run, "Kept")), "nothing twice"


@pytest.mark.parametrize("where", [{"kill_step": 8}, {"kill_trial": 3}], ids=["training", "search"])
def test_a_resumed_run_has_every_number_once(tmp_path: Path, where: dict[str, int]) -> None:
    image_folder(tmp_path / "photos")
    code = (
        "import sys; from pathlib import Path; import test_loggers as t; from suites.toy import Recorder\n"
        "from glora.report.loggers import LOGGERS\n"
        "LOGGERS.update(kept='test_loggers:Kept', kept_on='test_loggers:KeptOn')\n"
        "import glora.runs.logged as l; l.EVERY = 0.0\n"
        f"t.run_of(Path(sys.argv[1]), Recorder(**{where!r}))"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, env=here, check=False)
    assert done.returncode == -9, done.stderr.decode()
    run_of(tmp_path)
    for name in ("Kept", "KeptOn"):
        *lines, _ = logged(tmp_path / "run", name)
        assert sorted(lines) == sorted(expected(tmp_path / "run"))


def test_a_logger_that_fails_is_let_go_and_said(tmp_path: Path) -> None:
    lines = run_of(tmp_path, names=("broken", "kept"))
    assert lines.count("Nothing is logged to broken any more: ConnectionError: no network") == 1
    assert (tmp_path / "run" / "result.json").is_file() and logged(tmp_path / "run", "Kept")


def test_an_unknown_logger_is_an_error_before_anything_is_done(tmp_path: Path) -> None:
    data = [(torch.zeros(4), 0), (torch.ones(4), 1)] * 10
    with pytest.raises(UnknownNameError, match=r"There is no logger 'tensorbord'\. Did you mean 'tensorboard'"):
        glora.fit(nn.Linear(4, 2), train=data, out=tmp_path / "run", log="tensorbord", progress=False)
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    data = list(zip(x, (x[:, 0] > 0).long().tolist(), strict=True))
    given: dict[str, Any] = {"test": data, "method": "lora", "epochs": 3, "progress": False, "log": "tensorboard"}
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    record = glora.fit(model, train=data, out=tmp_path / "run", **given).record
    for _ in range(2):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        found = [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors("train/loss")]
        wanted = [
            (r["step"], r["loss"]) for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["stage"] == "train"
        ]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted])
        accuracy = make_ndarray(events.Tensors("result/test_accuracy")[0].tensor_proto).item()
        assert accuracy == pytest.approx(record.metrics["test_accuracy"])
        assert not Feed(tmp_path / "run", ["tensorboard"]).close()  # `glora log`: the same once more


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_the_others_take_a_run_without_a_network(tmp_path: Path, name: str) -> None:
    """In a process of its own: they start servers and threads, and read the environment."""
    pytest.importorskip(name, exc_type=ImportError)
    run_of(tmp_path, names=("kept",))
    environment = {**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "db"), "WANDB_SILENT": "true"}
    command = [sys.executable, "-m", "glora", "log", str(tmp_path / "run"), "--to", name]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0 and not done.stdout, done.stderr
    assert name in done.stderr
