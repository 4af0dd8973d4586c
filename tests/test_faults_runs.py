"""Faults of runs and of the command line that users have met: each kind by its smallest inputs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import glora
from glora.errors import RunError, WriteError
from glora.report.outcome import Outcome
from glora.runs.console import telling
from glora.runs.demo import demo_experiment
from glora.runs.folder import RunFolder
from glora.runs.run import Run
from glora.searchers import search
from suites.scores import SPACE, Trouble
from suites.toy import Recorder, image_folder, tiny

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("finished")
    search = {"controls": 1, "searcher": {"name": "evolution", "population": 4, "generations": 1, "parents": 2}}
    Run(tiny(image_folder(root / "photos"), train={"epochs": 1}, search=search), root / "run", Recorder()).fit()
    return root / "run"


def command(*words: Any, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "glora", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )


# What is written is what its name says


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("m.onnx", "--to onnx"),
        ("m.ONNX", "--to onnx"),
        ("m.pth", r"Name it .*m\.safetensors"),
        ("m.bin", r"Name it .*m\.safetensors"),
        ("m.gguf", r"Name it .*m\.safetensors"),
        ("folder", r"Name a file: .*folder.merged\.safetensors"),
    ],
)
def test_a_merged_model_is_not_written_under_the_name_of_something_else(
    finished: Path, tmp_path: Path, name: str, remedy: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=remedy):
        glora.load(finished).save(tmp_path / name)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["folder"]


# Consoles of another code page


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
def test_tables_can_be_printed_on_any_console(finished: Path, encoding: str) -> None:
    for words in (("search", finished, "--show"), ("table", finished), ("ls", "methods")):
        done = command(*words, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.decode(encoding)


# A search may be ended early


class Stopper(Recorder):
    """Ctrl-C after so many genotypes."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def trial(self, trial: Any, best: Any, total: int, saved: float | None = None) -> None:
        super().trial(trial, best, total, saved)
        if len(self.trials) == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stopped", [5, 8])
def test_a_search_that_was_begun_may_end_after_fewer_generations(tmp_path: Path, stopped: int) -> None:
    photos, many = image_folder(tmp_path / "photos"), {"population": 4, "generations": 50, "parents": 2}
    search = {"controls": 1, "min_budget": 0, "calibrate": False, "searcher": {"name": "evolution", **many}}
    Run(tiny(photos, train={"epochs": 1}, search=search), tmp_path / "run", Recorder()).train()
    for name, generations in (("run", 1), ("whole", 1)):
        if name == "whole":
            few = {**search, "searcher": {**search["searcher"], "generations": 1}}
            Run(tiny(photos, train={"epochs": 1}, search=few), tmp_path / "whole", Recorder()).train()
        else:
            with pytest.raises(KeyboardInterrupt):
                Run.open(tmp_path / "run", Stopper(stopped)).search()
        recorder = Recorder()
        Run.open(tmp_path / name, recorder, search={"searcher": {"generations": generations}}).search()
        assert len(recorder.trials) == 8
    one, other = (Outcome.read(RunFolder(tmp_path / name).winner) for name in ("run", "whole"))
    assert one.genome == other.genome
    assert Run.open(tmp_path / "run", Recorder()).evaluate() is not None


def test_what_is_beyond_the_early_end_is_said(tmp_path: Path) -> None:
    search = {
        "controls": 1,
        "min_budget": 0,
        "searcher": {"name": "evolution", "population": 4, "generations": 50, "parents": 2},
    }
    run = Run(tiny(image_folder(tmp_path / "photos"), train={"epochs": 1}, search=search), tmp_path / "run", Recorder())
    run.train()
    with pytest.raises(KeyboardInterrupt):
        Run.open(tmp_path / "run", Stopper(11)).search()
    with pytest.raises(RunError, match="the search ends after 8"):
        Run.open(tmp_path / "run", Recorder(), search={"searcher": {"generations": 1}}).search()
    with pytest.raises(RunError, match=r"fewer search\.searcher\.generations end it early"):
        Run.open(tmp_path / "run", Recorder(), search={"searcher": {"population": 6}})
    with pytest.raises(RunError, match="generations"):
        Run.open(tmp_path / "run", Recorder(), search={"searcher": {"generations": 51}})
    assert Run.open(tmp_path / "run", Recorder(), search={"searcher": {"generations": 2}}).search() is not None


def test_the_generation_under_way_can_be_made_the_last(tmp_path: Path) -> None:
    search = {
        "controls": 1,
        "min_budget": 0,
        "calibrate": False,
        "searcher": {"name": "evolution", "population": 4, "generations": 50, "parents": 2},
    }
    folder = RunFolder(tmp_path / "run")
    Run(tiny(image_folder(tmp_path / "photos"), train={"epochs": 1}, search=search), folder.path, Recorder()).train()
    with pytest.raises(RunError, match="no generation that could be its last"):
        _ = folder.generations_begun
    with pytest.raises(KeyboardInterrupt):
        Run.open(folder.path, Stopper(6)).search()
    assert folder.generations_begun == 1
    done = command("search", folder.path, "--stop", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scored"] == 8
    assert Run.open(folder.path, Recorder()).evaluate() is not None


# What a stop has left behind


def test_what_a_stop_has_left_is_swept_by_the_next_command(tmp_path: Path) -> None:
    search = {"controls": 1, "searcher": {"name": "evolution", "population": 4, "generations": 1, "parents": 2}}
    settings = tiny(image_folder(tmp_path / "photos"), train={"epochs": 1}, search=search)
    Run(settings, tmp_path / "run", Recorder()).train()
    stray = ["training.safetensors", ".config.yaml.12.tmp", "plots/.search.svg.12.tmp", "tries/x/.a.safetensors.9.tmp"]
    for name in stray:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"half")
    (tmp_path / "run" / ".export.12.tmp").mkdir()
    Run(settings, tmp_path / "run", Recorder()).fit()
    left = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*")}
    assert not left & {*stray, ".export.12.tmp"}


class Remover(Recorder):
    """Removes the folder of the run when a line is said for the first time, or after a genotype."""

    def __init__(self, folder: Path, *, line: str = "", trial: int = -1) -> None:
        super().__init__()
        self.folder, self.line, self.at = folder, line, trial

    def say(self, text: str) -> None:
        super().say(text)
        if self.line and self.line in text:
            self.line = ""
            shutil.rmtree(self.folder)

    def trial(self, trial: Any, best: Any, total: int, saved: float | None = None) -> None:
        super().trial(trial, best, total, saved)
        if trial.number == self.at:
            shutil.rmtree(self.folder)


def test_a_folder_that_is_removed_in_the_search_is_not_made_again(tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "photos", per_class=80)
    search = {
        "controls": 2,
        "rescore": 2,
        "searcher": {"name": "evolution", "population": 4, "generations": 1, "parents": 2},
    }
    settings = tiny(photos, data={"train": 20, "val": 80}, train={"epochs": 1}, search=search)
    Run(settings, tmp_path / "trained", Recorder()).train()
    moments: list[dict[str, Any]] = [{"trial": 2}, {"trial": 7}]
    moments += [{"line": line} for line in ("Calibration", "Controls:", "The best")]
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "trained", folder)
        with pytest.raises((RunError, WriteError), match="was removed"):
            Run.open(folder, Remover(folder, **moment)).search()
        assert not folder.exists(), moment


# Nothing is warned of in vain


def test_what_is_warned_of_is_told_once(finished: Path) -> None:
    log, told = logging.getLogger("glora"), list[str]()
    with telling(told.append):
        for _ in range(2):
            log.warning("A worker was lost: %s. Another takes its place.", "process 7")
        log.info("nothing to tell")
    log.warning("after the command")
    assert told == ["Warning: A worker was lost: process 7. Another takes its place."]


def test_a_lost_worker_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    with telling(told.append):
        settings = {"population": 4, "generations": 1, "parents": 2}
        search(Trouble(tmp_path, "kill", times=1), SPACE, settings=settings, budget=400, workers=1)
    assert any(line.startswith("Warning: A worker was lost: process ") for line in told)


def test_a_command_without_settings_says_that_it_continues_the_run(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    done = command("fit", "--out", tmp_path / "run")
    assert done.returncode == 0
    assert "run holds a run: it goes on with its own settings." in " ".join(done.stderr.decode().split())


# What so little data can tell


@pytest.mark.parametrize("val", [8, 80])
def test_val_that_cannot_tell_genotypes_apart_is_said_before(tmp_path: Path, val: int) -> None:
    photos, recorder = image_folder(tmp_path / "photos", per_class=80), Recorder()
    Run(tiny(photos, data={"train": 20, "val": val}, train={"epochs": 1}), tmp_path / "run", recorder).train()
    told = [line for line in recorder.lines if "hardly tell genotypes apart" in line]
    assert bool(told) == (val < 60), "half of val is set aside"
    assert all(line.startswith(f"{val // 2} val images") for line in told)


def test_a_quick_demo_tests_little() -> None:
    experiment: Any = demo_experiment(quick=True)
    task = experiment.data.load(experiment.objective)
    assert len(task.test) == 100
    assert len(task.test.targets.unique()) == 10
    full: Any = demo_experiment()
    assert len(full.data.load(full.objective).test) == 1797 - 600
