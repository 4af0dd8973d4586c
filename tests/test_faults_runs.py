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
from glora.runs.folder import RunFolder
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
