"""The same seed gives the same run: twice in one process, in another one, with any number of workers of the search."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glora.config import Experiment
from glora.files import read_jsonl
from glora.runs.run import Run
from suites.toy import Recorder, image_folder, tiny

SEARCH = {"controls": 2, "searcher": {"name": "evolution", "population": 4, "generations": 1, "parents": 2}}
CASES: dict[str, dict[str, Any]] = {
    "glora": {"data": {"augment": "light", "mixup": 0.5}, "model": {"drop_path": 0.2}},
    "lora": {"method": {"name": "lora", "rank": 2, "dropout": 0.2}},
    "racing": {"search": {**SEARCH, "racing": True}},
}
FIT = """
import json, sys, torch
torch.set_num_threads(1)
from glora.config import build_experiment
from glora.runs.reporter import Silent
from glora.runs.run import Run
if __name__ == "__main__":
    Run(build_experiment(json.loads(sys.argv[1])), sys.argv[2], Silent()).fit()
"""
FILES = ("supernet.safetensors", "adapter.safetensors", "winner.json", "calibration.json")


def experiment(photos: Path, case: str, *, workers: int = 0) -> Experiment:
    changes = CASES[case]
    search = {**changes.get("search", SEARCH), "workers": workers}
    return tiny(photos, **{**changes, "search": search, "train": {"epochs": 2}})


def traces(folder: Path) -> dict[str, Any]:
    """All that a run has come to: files bit for bit, and records without what they took."""
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    took = ("seconds", "memory_bytes", "time", "latency", "examples_per_second", "seconds_left", "config", "run")
    result = json.loads((folder / "result.json").read_text())
    found["result"] = {name: value for name, value in result.items() if name not in took}
    for name in ("metrics.jsonl", "search.jsonl"):
        lines = read_jsonl(folder / name) if (folder / name).is_file() else []
        kept = [{key: value for key, value in line.items() if key not in took} for line in lines]
        found[name] = sorted(json.dumps(line, sort_keys=True) for line in kept)
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("same") / "photos")


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_run(photos: Path, tmp_path: Path, case: str) -> None:
    Run(experiment(photos, case), tmp_path / "one", Recorder()).fit()
    torch.manual_seed(99), random.seed(99), np.random.seed(99)  # nothing depends on what was drawn before
    Run(experiment(photos, case), tmp_path / "two", Recorder()).fit()
    workers = 2 if case != "lora" else 0
    words = [json.dumps(experiment(photos, case, workers=workers).model_dump(mode="json")), str(tmp_path / "three")]
    script = tmp_path / "fit.py"  # a file: workers import what started them
    script.write_text(FIT)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, script, *words], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    one, two, three = (traces(tmp_path / name) for name in ("one", "two", "three"))
    assert one.keys() == two.keys() == three.keys()
    for name, value in one.items():
        assert value == two[name], name
        assert value == three[name], name


def test_another_seed_gives_another_run(photos: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        Run(experiment(photos, "lora").with_(seed=seed), tmp_path / str(seed), Recorder()).fit()
    one, other = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("0", "1"))
    assert one != other
