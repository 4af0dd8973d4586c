"""The Result record and the files it is kept in."""

from __future__ import annotations

import json
import math
import os
import platform
import stat
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glora.errors import RunError
from glora.files import append_jsonl, read_jsonl, write_json
from glora.report.examples import beside
from glora.report.metrics import MetricInfo
from glora.report.result import Result

REQUIRED: dict[str, Any] = {
    "method": "glora",
    "task": "digits",
    "model": "vit",
    "seed": 3,
    "config": {"lr": 1e-3, "ranks": [8, 4]},
    "parameters": 290_000,
    "run": "runs",
}
names = st.text(max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=30)
@given(st.dictionaries(names, finite), st.dictionaries(names, finite | names | st.none() | st.lists(names)))
def test_json_both_ways(metrics: dict[str, float], config: dict[str, Any]) -> None:
    given_fields = REQUIRED | {"config": config, "metrics": metrics, "notes": ("a", "b"), "latency": {"ratio": 1.01}}
    result = Result(**given_fields, objective="regress", metrics_info=[{"name": "mae", "higher": False, "show": ".4g"}])
    assert result.metrics_info == (MetricInfo("mae", False, ".4g"),)
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_stamped_result_says_what_it_was_run_with(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    result = Result.stamped(**REQUIRED, device="cpu, 2 threads", seconds={"train": 2.5}, notes=["one seed"])
    assert result.versions["python"] == platform.python_version()
    assert "torch" in result.versions
    assert result.memory_bytes is None or result.memory_bytes > 1_000_000
    assert before <= datetime.fromisoformat(result.time) <= datetime.now(timezone.utc)
    assert (result.device, result.seconds, result.notes) == ("cpu, 2 threads", {"train": 2.5}, ("one seed",))
    result.write(tmp_path / "runs" / "result.json")
    assert Result.read_all([tmp_path / "runs" / "result.json"]) == [result]


def test_the_commit_is_the_working_folders_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert Result.stamped(**REQUIRED).commit is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert Result.stamped(**REQUIRED).commit is None  # no commit yet
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert Result.stamped(**REQUIRED).commit == head
    for name, told in (("result.json", head), ("code.py", f"{head}-dirty")):
        (tmp_path / name).write_text("1")
        subprocess.run([*git, "add", name], check=True)
        assert Result.stamped(**REQUIRED).commit == told
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Result.stamped(**REQUIRED).commit is None  # no git


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    result = Result.stamped(**REQUIRED, metrics={"val_loss": math.nan, "val_accuracy": 0.1})
    assert result.metrics == {"val_loss": None, "val_accuracy": 0.1}
    write_json(tmp_path / "a.json", {"x": [math.inf, 1], "path": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1], "path": str(tmp_path)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format=3.*glora [0-9.]+ reads the formats 1 and 2"),
        ({"format": None}, "format=None"),
        ({"surprise": 1}, "surprise: unknown"),
        ({"parameters": "0.29 M"}, "parameters: .*integer, not '0.29 M'"),
        ({"parameters": "29"}, "parameters: .*integer, not '29'"),
        ({"metrics": [1], "seed": None}, "seed: .*integer, not None; metrics: .*object, not .1."),
        ({"metrics": {"val_loss": "low"}}, "metrics.val_loss: .*number, not 'low'"),
        ({"metrics_info": [{"name": "mae", "higher": False, "show": "zz"}]}, "metrics_info.0: .*'zz'"),
    ],
)
def test_reading_is_strict_and_names_the_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "result.json"
    write_json(path, Result(**REQUIRED).to_json() | change)
    with pytest.raises(RunError, match=f"result.json.*{message}"):
        Result.read(path)


def test_a_missing_field_or_file_and_a_broken_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(RunError, match=r"result.json cannot be read"):
        Result.read(path)
    for text, message in (("{", "is no JSON"), ("[1]", "format='list'"), ('{"format": 2}', "seed: missing")):
        path.write_text(text)
        with pytest.raises(RunError, match=message):
            Result.read(path)


def test_a_result_of_format_1_is_read_under_the_names_of_today(tmp_path: Path) -> None:
    row = {"test_loss": 0.5, "test_images": 90.0, "test_loss_ahead": 0.1, "by_accuracy": 1.0}
    metrics = {"val_accuracy": 0.9, "val_images": 10.0, "aside_images": 5.0, "curse_loss": 0.1, "images_raced": 3.0}
    old = {name: value for name, value in REQUIRED.items() if name != "run"}
    old |= {"format": 1, "metrics": metrics, "controls": {"largest": row}, "image_steps": {"train": 7}}
    path = tmp_path / "digits" / "result.json"
    write_json(path, old)
    found = Result.read(path)
    assert found.metrics == {
        "val_accuracy": 0.9, "val_examples": 10.0, "aside_examples": 5.0, "selection_bias_loss": 0.1,
        "images_raced": 3.0,
    }  # fmt: skip
    assert found.controls["largest"].keys() == {"test_loss", "test_examples", "test_loss_ahead", "uncalibrated"}
    assert (found.objective, found.example_steps, found.run) == ("classify", {"train": 7}, "digits")
    assert [(each.name, each.higher, each.show) for each in found.metrics_info] == [
        ("accuracy", True, "percent"),
        ("loss", False, ".3f"),
    ]
    assert Result.from_json(found.to_json()) == found, "written as format 2"


def test_every_committed_result_is_read() -> None:
    files = sorted((Path(__file__).parent.parent / "results").rglob("*.json"))
    files = [each for each in files if each.name != "rates.json"]  # the learning rates that a benchmark tried
    files = [each for each in files if each.parent.name != "errors"]  # of merged layers, by benchmarks/errors.py
    examples = [each for each in files if each.parent.name == "examples"]  # what some of them do on every test example
    results = [each for each in files if each not in examples]
    assert len(Result.read_all(results)) == len(results) > 400
    kept = {each.stem: beside(Result.read(each), each) for each in results if each.parent.name == "results"}
    assert all(kept[each.stem] is not None for each in examples)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=25, deadline=None)  # the disk decides how long
@given(st.lists(st.dictionaries(names, finite | names), min_size=1, max_size=5), st.integers(0, 10**6))
def test_a_line_cut_short_is_dropped_and_written_over(records: list[dict[str, Any]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "a.jsonl"
        for record in records:
            append_jsonl(path, record)
        assert read_jsonl(path) == records
        whole = path.read_bytes()
        kept = whole[: cut % (len(whole) + 1)]
        path.write_bytes(kept)
        left = kept.count(b"\n")
        assert read_jsonl(path) == records[:left]
        append_jsonl(path, {"next": 1})
        assert read_jsonl(path) == [*records[:left], {"next": 1}]


def test_every_appended_line_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "a.jsonl", []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):  # once, of the file that is new
            return
        synced.append(path.read_text().count("\n"))  # flushed before

    monkeypatch.setattr(os, "fsync", fsync)
    append_jsonl(path, {"a": 1})
    append_jsonl(path, {"a": 2})
    assert synced == [1, 2]


def test_a_damaged_line_inside_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_jsonl(path) == []
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(RunError, match="line 2, is damaged"):
        read_jsonl(path)
