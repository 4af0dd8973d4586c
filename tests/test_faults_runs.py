"""Faults of runs and of the command line that users have met: each kind by its smallest inputs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import glora
from glora.errors import RunError
from glora.runs.lock import locked
from glora.runs.run import Run
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


# Two processes, signals


def started(*words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "glora", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 100
    while not file.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


LONG = ["--model", "test_vit", "--no-pretrained", "--image-size", "32", "--epochs", "2000"]


@pytest.mark.slow
def test_a_second_training_in_the_folder_is_refused_and_a_terminated_one_goes_on(tmp_path: Path) -> None:
    words = ["train", "--data", image_folder(tmp_path / "photos"), *LONG, "--out", tmp_path / "run"]
    first = started(*words)
    try:
        wait_for(tmp_path / "run" / "training.safetensors", first)
        second = command(*words)
        assert second.returncode == 2
        assert b"Another process is working in" in second.stderr
        first.terminate()
        _, err = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 143
    assert err.rstrip().endswith("Terminated. The same command continues the run.")
    assert "Traceback" not in err
    third = started(*words)
    try:
        for line in third.stderr or ():
            if "Training goes on after epoch" in line:
                break
        else:
            pytest.fail("it began anew")
    finally:
        third.kill()
        third.communicate()


def test_a_folder_that_is_worked_in_is_refused_whatever_the_stage(finished: Path) -> None:
    run = Run.open(finished, Recorder())
    with locked(finished):
        for stage in (run.train, run.search, run.evaluate, lambda: run.pick(budget=10_000)):
            with pytest.raises(RunError, match=r"Another process is working in .*run.*choose another --out"):
                stage()
    assert run.evaluate() is not None, "what was locked is free again"
