"""A benchmark: from a file to Results; nothing is run twice, nothing is lost, and val alone chooses."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from glora.cli import app as cli
from glora.cli.listing import check
from glora.config import build_experiment
from glora.errors import ConfigError, DataError, GloraError, RunError
from glora.files import held, read_jsonl, write_json
from glora.report.result import Result
from glora.runs.benchmark.bench import Outcome, run_benchmark
from glora.runs.benchmark.folder import BenchmarkFolder
from glora.runs.benchmark.rates import Choice, Rates
from glora.runs.benchmark.settings import build_benchmark
from glora.runs.benchmark.view import BenchmarkView
from glora.runs.run import Run
from glora.settings import read_settings
from glora.tasks.data.image_folder import ImageFolder
from suites.toy import MODEL, image_folder
from test_paper_data import vtab
from test_run import CountedReads

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent
LORA = {"name": "lora", "rank": 2, "targets": ["blocks.0.attn.qkv"]}
GLORA = {"name": "glora", "ranks": [2], "targets": ["blocks.0.attn.qkv"]}
SEARCH = {"searcher": {"name": "evolution", "population": 4, "generations": 1, "parents": 2}, "rescore": 2}


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of labelled images."""
    return image_folder(tmp_path / "photos"), image_folder(tmp_path / "prints", classes=("a", "b", "c"))


def benchmark(*tasks: Any, **changes: Any) -> dict[str, Any]:
    """A benchmark of a second or two, as plain data."""
    return {
        "name": "toy",
        "settings": {"model": MODEL, "train": {"epochs": 2, "batch_size": 8}, "search": SEARCH},
        "tasks": [str(task) if isinstance(task, Path) else task for task in tasks],
        "methods": ["linear", {"label": "LoRA 2", "method": LORA, "seeds": [0, 1]}],
        **changes,
    }


def written(folder: Path, data: dict[str, Any]) -> Path:
    (file := folder / "bench.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


class Told(BenchmarkView):
    """A view that keeps what it is told, and shows nothing."""

    def __init__(self, *, stop_before: str = "") -> None:
        super().__init__(Console(quiet=True, force_terminal=False))
        self.begun: list[str] = []
        self.failures: list[str] = []
        self.lines: list[str] = []
        self.stop_before = stop_before

    def begin(self, stage: str, *args: Any) -> None:
        if stage == self.stop_before:
            raise KeyboardInterrupt
        super().begin(stage, *args)

    def started(self, row: str, what: str) -> None:
        super().started(row, what)
        self.begun.append(what)

    def ended(self, row: str, what: str, seconds: float, *, told: str, failed: bool = False) -> None:
        super().ended(row, what, seconds, told=told, failed=failed)
        self.failures += [what] if failed else []

    def tell(self, text: str) -> None:
        self.lines.append(text)


def run(file: Path, out: Path, view: BenchmarkView | None = None, **options: Any) -> Outcome:
    return run_benchmark(file, out, view=view or Told(), **options)


def numbers(results: Path) -> dict[str, Any]:
    """What the Results of a folder say, without times and machine."""
    found = {}
    for file in sorted(results.glob("*.json")):
        plain = Result.read(file).to_json()
        found[file.stem] = {
            key: plain[key] for key in ("metrics", "controls", "parameters", "config", "winner", "notes")
        }
    return found


# -- from a file to Results


def test_a_file_becomes_a_result_for_every_cell_and_none_is_run_again(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    rows = ["linear", {"label": "LoRA 2", "method": LORA, "seeds": [0, 1]}, {"label": "GLoRA", "method": GLORA}]
    file, out = written(tmp_path, benchmark(*tasks, methods=rows)), tmp_path / "out"
    found = run(file, out, first := Told())
    names = ["-".join(cell) for cell in cells(("photos", "prints"))]
    assert sorted(path.stem for path in found.results) == sorted(names)
    assert not found.failed
    assert len(first.begun) == len(names)
    for path in found.results:
        result = Result.read(path)
        assert path.stat().st_size < 20_000
        assert (result.title, result.protocol, result.run) == (
            path.stem.split("-", 1)[1].rsplit("-", 1)[0].replace("-", " "),
            "honest",
            path.stem,
        )
        assert result.versions.keys() >= {"python", "torch", "glora"}
        assert result.metrics["test_accuracy"] is not None
        again = build_experiment(result.config)
        assert again.seed == result.seed
        assert again.to_json() == result.config, "it is all that a run needs"
    assert (out / "benchmark.yaml").read_text() == file.read_text()
    large = {each.name for each in (out / "cells").rglob("*.safetensors")}
    assert large == {"adapter.safetensors"}
    assert not (out / "failed").exists()
    before = {path: path.stat().st_mtime_ns for path in found.results}
    assert run(file, out, second := Told()).results == found.results
    assert not second.begun
    assert before == {path: path.stat().st_mtime_ns for path in found.results}


def cells(tasks: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    for task in tasks:
        for label, seeds in (("Linear", 1), ("LoRA-2", 2), ("GLoRA", 1)):
            yield from ((task, label, f"seed{seed}") for seed in range(seeds))


def test_a_cell_is_the_run_that_its_settings_make_alone(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    run(written(tmp_path, benchmark(tasks[0], methods=[{"label": "G", "method": GLORA}], keep=True)), tmp_path / "out")
    result = Result.read(tmp_path / "out" / "results" / "photos-G-seed0.json")
    alone = Run(build_experiment(result.config), tmp_path / "alone", Told()).fit()
    assert alone is not None
    assert (alone.metrics, alone.winner) == (result.metrics, result.winner)
    assert (tmp_path / "out" / "cells" / "photos" / "G" / "seed0" / "supernet.safetensors").is_file(), "keep: true"


VICTIM = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from rich.console import Console
from glora.runs.benchmark.bench import run_benchmark
from glora.runs.benchmark.view import BenchmarkView
class Killer(BenchmarkView):
    def training(self, progress):
        if self.counts["done"].total() == 1 and progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(1)
run_benchmark(sys.argv[2], sys.argv[3], view=Killer(Console(quiet=True)))
"""


def test_a_benchmark_killed_within_a_cell_goes_on_in_it(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    file, out = written(tmp_path, benchmark(*tasks)), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", VICTIM, str(TESTS), str(file), str(out)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    (finished,) = (out / "results").iterdir()
    before = finished.read_bytes()
    begun = out / "cells" / "prints" / "Linear" / "seed0"
    assert (begun / "training.safetensors").is_file()
    run(file, out, view := Told())
    assert finished.read_bytes() == before
    assert len(view.begun) == 5
    epochs = [record["epoch"] for record in read_jsonl(begun / "metrics.jsonl") if record["stage"] == "train"]
    assert epochs == [1, 2]
    run(file, tmp_path / "whole")
    assert numbers(out / "results") == numbers(tmp_path / "whole" / "results")


def test_a_second_process_on_the_folder_is_refused(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    file, out = written(tmp_path, benchmark(*tasks)), tmp_path / "out"
    with held(out, what="it"), pytest.raises(RunError, match=r"working on the benchmark in .*out\. Wait for its end"):
        run(file, out)
    assert [each.name for each in out.iterdir()] == [".lock"]


def test_workers_do_the_same_cells(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"label": "LoRA", "method": LORA}, {"label": "GLoRA", "method": GLORA, "train": {"lr": 1e-3}}]
    file = written(tmp_path, benchmark(tasks[0], methods=rows, rates={"grid": [1e-3, 1e-2], "epochs": 1}))
    for workers in (0, 2):
        run(file, tmp_path / str(workers), view := Told(), workers=workers)
        assert not view.failures
    assert len(numbers(tmp_path / "0" / "results")) == 2
    assert numbers(tmp_path / "0" / "results") == numbers(tmp_path / "2" / "results")
    one, other = (json.loads((tmp_path / name / "rates.json").read_text())["methods"] for name in "02")
    assert one["LoRA"]["means"] == other["LoRA"]["means"]


@pytest.mark.slow
def test_a_cell_whose_worker_is_killed_is_done_by_another(
    tasks: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Kills(Told):
        def started(self, row: str, what: str) -> None:
            super().started(row, what)
            if len(self.begun) == 2:
                (worker,) = multiprocessing.active_children()
                threading.Timer(0.5, lambda: os.kill(worker.pid or 0, signal.SIGKILL)).start()

    data = benchmark(*tasks, methods=[{"label": "LoRA", "method": LORA, "train": {"epochs": 60}}])
    file = written(tmp_path, data)
    found = run(file, tmp_path / "killed", view := Kills(), workers=1)
    assert caplog.text.count("A worker was lost") == 1
    assert not view.failures
    assert len(found.results) == 2
    run(file, tmp_path / "whole")
    assert numbers(tmp_path / "killed" / "results") == numbers(tmp_path / "whole" / "results")


def test_other_settings_under_the_same_name_are_refused(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    run(written(tmp_path, benchmark(tasks[0])), out := tmp_path / "out")
    changed = benchmark(tasks[0])
    changed["settings"]["train"]["epochs"] = 3
    with pytest.raises(
        RunError, match=r"Linear on photos, seed 0: train\.epochs is 2 there, 3 here(.|\n)*another --out"
    ):
        run(written(tmp_path, changed), out, view := Told())
    assert not view.begun
    more = benchmark(*tasks, seeds=[0, 1])
    more["settings"]["search"] = {**SEARCH, "workers": 2}  # who scores changes no number
    run(written(tmp_path, more), out, view := Told())
    assert set(view.begun) == {
        "Linear on photos, seed 1", "Linear on prints, seed 0", "Linear on prints, seed 1",
        "LoRA 2 on prints, seed 0", "LoRA 2 on prints, seed 1",
    }  # fmt: skip


def test_a_begun_run_of_other_settings_is_refused_too(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    run(written(tmp_path, benchmark(tasks[0])), out := tmp_path / "out")
    shutil.rmtree(out / "results")
    changed = benchmark(tasks[0])
    changed["settings"]["train"]["batch_size"] = 4
    with pytest.raises(RunError, match=r"LoRA 2 on photos, seed 1.*train\.batch_size is 8 there, 4 here"):
        run(written(tmp_path, changed), out)


def test_results_of_another_machine_are_finished_here_too(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    file, out = written(tmp_path, benchmark(tasks[0], methods=["linear"])), tmp_path / "out"
    run(file, out)
    (path,) = (out / "results").iterdir()
    text = path.read_text()
    path.write_text(text.replace(str(tasks[0]), "/somewhere/else/photos"))
    run(file, out, view := Told())
    assert not view.begun
    for odd in ("/somewhere/else/prints", str(image_folder(tmp_path / "copy" / "photos"))):
        path.write_text(text.replace(str(tasks[0]), odd))
        with pytest.raises(RunError, match=r"data\.source is"):
            run(file, out)


# -- a copy of VTAB-1K


def test_a_miniature_vtab_goes_from_its_file_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("cifar", "eurosat", "kitti"):
        vtab(tmp_path / "vtab-1k", name)
    tasks = [{"label": name, "task": name} for name in ("cifar", "eurosat", "kitti")]
    data = benchmark(*tasks, rates={"grid": [1e-3, 1e-2], "epochs": 1}, methods=["linear"], seeds=[0, 1])
    data["settings"]["data"] = {"source": "vtab", "root": "vtab-1k"}
    file = written(tmp_path, data)
    monkeypatch.chdir(tmp_path)
    found = run(file, tmp_path / "out", view := Told())
    assert len(found.results) == 6
    assert json.loads((tmp_path / "out" / "rates.json").read_text())["tasks"] == ["cifar", "eurosat", "kitti"]
    groups = {Result.read(path).task: Result.read(path).group for path in found.results}
    assert groups == {"cifar": "natural", "eurosat": "specialized", "kitti": "structured"}
    run(file, tmp_path / "out", view := Told())
    assert not view.begun
    monkeypatch.setattr(sys, "argv", ["glora", "table", "vtab", str(tmp_path / "out"), "--markdown"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "Linear" in capfd.readouterr().out


# -- what fails


def test_a_cell_that_fails_is_recorded_and_tried_again(
    tasks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = image_folder(tmp_path / "broken", classes=("only",))
    file, out = written(tmp_path, benchmark(broken, tasks[0])), tmp_path / "out"

    def bench() -> int:
        monkeypatch.setattr(sys, "argv", ["glora", "bench", str(file), "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    assert bench() == 1
    assert "3 cells have failed; the same command tries them again" in capfd.readouterr().err
    assert len(list((out / "results").iterdir())) == 3
    failures = sorted((out / "failed").iterdir())
    assert [each.stem for each in failures] == [
        f"broken-{name}" for name in ("Linear-seed0", "LoRA-2-seed0", "LoRA-2-seed1")
    ]
    told = json.loads(failures[0].read_text())
    assert (told["cell"], told["error"]) == ("Linear on broken, seed 0", "DataError")
    assert "only one class" in told["message"]
    image_folder(broken, classes=("second",))
    assert bench() == 0
    assert not list((out / "failed").iterdir())
    assert len(list((out / "results").iterdir())) == 6


def test_an_error_that_nobody_expected_fails_its_cell_alone(
    tasks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ImageFolder.load

    def odd(self: ImageFolder, objective: Any) -> Any:
        return load(self, objective) if "prints" in self.source else 1 / 0

    monkeypatch.setattr(ImageFolder, "load", odd)
    found = run(written(tmp_path, benchmark(*tasks)), tmp_path / "out")
    assert [cell.task for cell in found.failed] == ["photos"] * 3
    assert len(found.results) == 3
    told = json.loads((tmp_path / "out" / "failed" / "photos-Linear-seed0.json").read_text())
    assert told["error"] == "ZeroDivisionError"
    assert "1 / 0" in told["traceback"]


# -- learning rates


@pytest.fixture
def test_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each test image was read."""
    reads: Counter[Path] = Counter()
    load = ImageFolder.load

    def counted(self: ImageFolder, objective: Any) -> Any:
        task = load(self, objective)
        return dataclasses.replace(task, test=CountedReads.of(task.test, reads))

    monkeypatch.setattr(ImageFolder, "load", counted)
    return reads


def test_rates_are_chosen_on_val_and_used_by_every_cell_of_the_method(
    tasks: tuple[Path, Path], tmp_path: Path, test_reads: Counter[Path]
) -> None:
    rows = [
        {"label": "LoRA", "method": LORA},
        {"label": "GLoRA", "method": GLORA},
        {"label": "fixed", "method": LORA, "train": {"lr": 0.002}},
    ]
    rates = {"grid": [1e-5, 1e-2], "epochs": 2, "tasks": ["prints"]}
    file, out = written(tmp_path, benchmark(*tasks, methods=rows, rates=rates)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(file, out, view := Told(stop_before="cells"))
    assert len(view.begun) == 4
    assert not test_reads, "no test image was read"
    chosen = json.loads((out / "rates.json").read_text())["methods"]
    assert chosen.keys() == {"LoRA", "GLoRA"}
    for row in chosen.values():
        assert row["rate"] == 1e-2
        assert row["edge"] == "highest"
        assert {each["example_steps"] for each in row["runs"]} == {chosen["LoRA"]["runs"][0]["example_steps"]}
        assert len({each["examples"] for each in row["runs"]}) == 1, "all of val, also where a search sets some aside"
    run(file, out, view := Told())
    assert len(view.begun) == 6, "no rate was tried again"
    assert test_reads
    for path in (out / "results").iterdir():
        result = Result.read(path)
        fixed = result.title == "fixed"
        assert result.config["train"]["lr"] == (0.002 if fixed else 1e-2)
        notes = [note for note in result.notes if "chosen on val" in note]
        assert [("the highest of the grid" in note, "prints" in note) for note in notes] == (
            [] if fixed else [(True, True)]
        )
    assert not (out / "rates").exists()
    (out / "rates.json").unlink()
    run(file, out, view := Told())
    assert not view.begun, "finished cells need no rate"


def test_a_cell_may_choose_its_rate_and_its_epochs_itself(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    auto = {"lr": "auto", "epochs": "auto", "most_epochs": 4, "average": 0.5, "final": "all"}
    rows = [{"label": "LoRA", "method": LORA, "train": auto}, {"label": "tuned", "method": LORA}]
    file = written(tmp_path, benchmark(tasks[0], methods=rows, rates={"grid": [1e-3], "epochs": 1}))
    run(file, out := tmp_path / "out", view := Told())
    assert view.begun == ["tuned on photos, learning rate 0.001", "LoRA on photos, seed 0", "tuned on photos, seed 0"]
    one, other = (Result.read(out / "results" / f"photos-{name}-seed0.json") for name in ("LoRA", "tuned"))
    assert one.example_steps.keys() == {"train", "rate", "final"}
    assert {"Learning rate", "Epochs"} <= {note.partition(":")[0] for note in one.notes}
    assert one.config["train"]["lr"] == "auto"
    assert "val_loss" not in one.metrics
    assert other.config["train"]["lr"] == 1e-3
    assert "rate" not in other.example_steps


def test_a_stop_among_the_rates_loses_none(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    class Stops(Told):
        def ended(self, *args: Any, **more: Any) -> None:
            super().ended(*args, **more)
            if len(self.begun) == 2:
                raise KeyboardInterrupt

    rows = [{"label": "LoRA", "method": LORA}]
    file = written(tmp_path, benchmark(tasks[0], methods=rows, rates={"grid": [1e-4, 1e-3, 1e-2], "epochs": 1}))
    with pytest.raises(KeyboardInterrupt):
        run(file, tmp_path / "out", Stops())
    run(file, tmp_path / "out", view := Told())
    assert view.begun == ["LoRA on photos, learning rate 0.01", "LoRA on photos, seed 0"]


def test_factors_multiply_each_methods_own_rate(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    rates = {"factors": [3, 0.5], "epochs": 1}
    run(written(tmp_path, benchmark(tasks[0], methods=["linear", "full"], rates=rates)), out := tmp_path / "out")
    chosen = json.loads((out / "rates.json").read_text())["methods"]
    tried = {label: [each["rate"] for each in row["means"]] for label, row in chosen.items()}
    assert tried == {"Linear": [0.015, 0.09], "Full": [5e-5, 3e-4]}


def test_where_the_best_rate_is_at_an_end_the_next_is_tried(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    rates = {"grid": [1e-6, 1e-5], "epochs": 2, "extend": 2}
    file = written(tmp_path, benchmark(tasks[0], methods=[{"label": "LoRA", "method": LORA}], rates=rates))
    run(file, out := tmp_path / "out", view := Told())
    row = json.loads((out / "rates.json").read_text())["methods"]["LoRA"]
    assert [each["rate"] for each in row["means"]] == [1e-6, 1e-5, 1e-4, 1e-3], "two steps further, and no more"
    assert (row["rate"], row["edge"]) == (1e-3, "highest")
    assert len(view.begun) == 5
    run(file, out, view := Told())
    assert not view.begun
    rates["grid"], rates["extend"] = [1e-4, 1e-3, 1e30], 3
    file = written(tmp_path, benchmark(tasks[0], methods=[{"label": "LoRA", "method": LORA}], rates=rates))
    run(file, out := tmp_path / "inside", Told())
    row = json.loads((out / "rates.json").read_text())["methods"]["LoRA"]
    assert (row["rate"], row["edge"], len(row["means"])) == (1e-3, "", 3), "the best is inside: nothing more"


def test_a_rate_that_loses_the_training_is_not_chosen(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"label": "LoRA", "method": LORA}]
    rates = {"grid": [1e-3, 1e30], "epochs": 2}
    run(written(tmp_path, benchmark(tasks[0], methods=rows, rates=rates)), out := tmp_path / "out")
    row = json.loads((out / "rates.json").read_text())["methods"]["LoRA"]
    assert row["rate"] == 1e-3
    assert [each["value"] is None for each in row["means"]] == [False, True]
    assert "training loss" in row["runs"][1]["diverged"]


def test_where_every_rate_is_lost_the_cells_have_failed(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"label": "LoRA", "method": LORA}, {"label": "fixed", "method": LORA, "train": {"lr": 1e-3}}]
    file = written(tmp_path, benchmark(tasks[0], methods=rows, rates={"grid": [1e30], "epochs": 2}))
    for _ in range(2):
        found = run(file, tmp_path / "out")
        assert [cell.label for cell in found.failed] == ["LoRA"]
        assert [path.stem for path in found.results] == ["photos-fixed-seed0"]
    told = json.loads((tmp_path / "out" / "failed" / "photos-LoRA-seed0.json").read_text())
    assert "Every learning rate of the grid, 1e+30, lost the training" in told["message"]


def measured(rate: float, value: float | None, loss: float | None, task: str = "t", **more: Any) -> dict[str, Any]:
    run = {"task": task, "rate": rate, "value": value, "loss": loss, "metric": "accuracy", "higher": True, "epochs": 5}
    return {**run, **more}


LAST = "highest"


@pytest.mark.parametrize(
    ("runs", "rate", "edge"),
    [
        ([measured(1, 0.5, 1.0), measured(2, 0.7, 2.0), measured(3, 0.6, 0.1)], 2, ""),
        ([measured(1, 0.7, 1.0), measured(2, 0.7, 0.9), measured(3, 0.6, 0.1)], 2, ""),  # a tie: the lower loss
        ([measured(1, 0.7, 1.0), measured(2, 0.7, 1.0), measured(3, 0.6, 0.1)], 1, "lowest"),  # then the lower rate
        ([measured(1, 0.1, 1.0), measured(2, None, None), measured(3, 0.6, 0.1)], 3, "highest"),
        ([measured(1, 0.9, 1), measured(1, None, None, "u"), measured(2, 0.1, 1), measured(2, 0.1, 1, "u")], 2, LAST),
        ([measured(1, 0.9, 1), measured(1, 0.1, 1, "u"), measured(2, 0.6, 1), measured(2, 0.6, 1, "u")], 2, LAST),
        ([measured(1, 0.9, 1.0, higher=False), measured(2, 0.5, 2.0, higher=False)], 2, "highest"),
        ([measured(1, 0.9, 1.0)], 1, ""),
    ],
)  # fmt: skip
def test_the_best_mean_over_the_tasks_is_chosen(runs: list[dict[str, Any]], rate: float, edge: str) -> None:
    choice = Choice.of(runs)
    assert (choice.rate, choice.edge) == (rate, edge)
    assert ("may be better" in choice.told(0)) == bool(edge)


def test_rates_are_tried_on_the_first_task_of_each_group_and_stay_there(
    tasks: tuple[Path, Path], tmp_path: Path
) -> None:
    groups = {"a": "natural", "b": "natural", "c": "structured", "d": "specialized"}

    def plain(*names: str) -> Any:
        rows = [{"label": name, "source": str(tasks[0])} for name in names]
        return build_benchmark(benchmark(*rows, rates={"grid": [1e-3]}))

    def rates(*names: str, of: Callable[[Any], str] = lambda cell: groups[cell.task]) -> Rates:
        return Rates(plain(*names), tmp_path / "rates.json", of)

    assert rates("a", "b", "c", "d").tasks() == ("a", "c", "d")
    assert rates("b", "c", of=lambda cell: "").tasks() == ("b",)

    def half(cell: Any) -> str:
        if cell.task == "a":
            raise DataError("a is not here.")
        return groups[cell.task]

    assert rates("a", "b", "c", of=half).tasks() == ("b", "c"), "those that can be loaded"
    with pytest.raises(DataError, match="a is not here"):
        rates("a", of=half).tasks()
    write_json(tmp_path / "rates.json", {"tasks": ["b", "c"]})
    assert rates("a", "b", "c", "d").tasks() == ("b", "c"), "what was chosen before"
    assert rates("a", "c", "d").tasks() == ("a", "c", "d"), "b is gone"


# -- the file


def test_all_errors_of_a_file_are_told_at_once(tasks: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError) as error:
        build_benchmark(benchmark(tasks[0], sedes=[0], rates={"grd": [1]}, methods=[{"lable": "x", "method": "lora"}]))
    for told in ("sedes: no such setting. Did you mean 'seeds'?", "rates.grd: no such setting. Did you mean 'grid'?",
                 "methods.0.lable: no such setting. Did you mean 'label'?"):  # fmt: skip
        assert told in str(error.value)


def test_errors_of_the_file_and_of_its_cells_are_told_together(tasks: tuple[Path, Path]) -> None:
    data = benchmark(*tasks, rates={"grid": [1e-3, "x"]}, name="a b", methods=["linear", "lorra"])
    data["settings"]["train"]["epocs"] = 3
    with pytest.raises(ConfigError) as told:
        build_benchmark(data)
    for each in ("rates.grid", "name", "epocs", "lorra"):
        assert each in str(told.value)


def test_every_cell_is_checked_before_anything_runs(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    data = benchmark(*tasks, methods=["linear", "lara", {"method": {"name": "lora", "rnk": 3}, "train": {"epochs": 0}}])
    data["settings"]["model"] = {**MODEL, "name": "test_vitt"}
    with pytest.raises(ConfigError) as error:
        run(written(tmp_path, data), tmp_path / "out")
    for told in ("There is no method 'lara'. Did you mean 'lora'", "method.rnk: no such setting", "train.epochs",
                 "there is no 'test_vitt'"):  # fmt: skip
        assert told in str(error.value)
    assert str(error.value).count("'lara'") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods": ["lora", {"method": "lora"}]}, "another cell has the same name"),
        ({"seeds": [0, 0]}, "each is needed once"),
        ({"rates": {"grid": [1e-3, 1e-3]}}, "each once"),
        ({"rates": {"grid": [1e-3], "factors": [1]}}, "either grid or factors"),
        ({"rates": {"epochs": 3}}, "either grid or factors"),
        ({"rates": {"grid": [1e-3], "tasks": ["digit"]}}, "there is no task 'digit'"),
        ({"protocol": "paper", "rates": {"grid": [1e-3]}}, "has the published learning rates"),
        ({"protocol": "paperr"}, "protocol: Input should be 'honest' or 'paper' (got 'paperr'). Did you mean 'paper'?"),
        ({"methods": ["linear", {"method": "lora", "train": {"precision": "bf16"}}]}, "one process has one precision"),
        ({"tasks": []}, "tasks: at least 1 is needed (got [])."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(tasks: tuple[Path, Path], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        build_benchmark({**benchmark(tasks[0]), **changes})


def test_tasks_are_called_by_their_source_and_by_what_differs(tasks: tuple[Path, Path]) -> None:
    rows = [{"source": "digits", "train": 10}, {"source": "digits", "train": 20}, "textile", tasks[0]]
    found = build_benchmark(benchmark(*rows, {"label": "mine", "source": str(tasks[1])}))
    assert found.tasks == ("digits-10", "digits-20", "textile", "photos", "mine")


def test_the_first_seed_of_every_method_comes_first(tasks: tuple[Path, Path]) -> None:
    rows = [{"label": "A", "method": "linear", "seeds": [5, 6]}, {"label": "B", "method": "linear"}]
    found = build_benchmark(benchmark(*tasks, methods=rows))
    assert [(cell.label, cell.task, cell.seed) for cell in found.cells] == [
        ("A", "photos", 5), ("A", "prints", 5), ("B", "photos", 0), ("B", "prints", 0),
        ("A", "photos", 6), ("A", "prints", 6),
    ]  # fmt: skip
    assert (found.labels, found.tasks) == (("A", "B"), ("photos", "prints"))


def test_data_of_a_seed_of_its_own(tasks: tuple[Path, Path]) -> None:
    fixed, own = (
        build_benchmark(benchmark(tasks[0], seeds=[0, 3], methods=["linear"], split_seeds=kind)).cells
        for kind in ("fixed", "cell")
    )
    assert [cell.experiment.data.split_seed for cell in fixed] == [0, 0]  # type: ignore[attr-defined]
    assert [cell.experiment.data.split_seed for cell in own] == [0, 3]  # type: ignore[attr-defined]


def test_settings_of_a_task_lie_below_those_of_a_method(tasks: tuple[Path, Path]) -> None:
    task = {"data": {"source": str(tasks[0])}, "train": {"epochs": 7, "batch_size": 4}}
    rows = ["linear", {"method": "lora", "train": {"epochs": 9}}]
    one, other = build_benchmark(benchmark(task, methods=rows)).cells
    assert (one.experiment.train.epochs, one.experiment.train.batch_size) == (7, 4)
    assert (other.experiment.train.epochs, other.experiment.train.batch_size) == (9, 4)


# -- protocols


def test_the_published_recipe_lies_under_the_cells_and_is_told_everywhere(
    tasks: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = {**benchmark(tasks[0]), "protocol": "paper", "settings": {"model": MODEL}}
    rows = [{"label": name, "method": {**each, "name": name}} for name, each in (("lora", LORA), ("glora", GLORA))]
    lora, glora = (cell.experiment for cell in build_benchmark({**plain, "methods": rows}).cells)
    for each in (lora, glora):
        assert (each.preset, each.train.schedule, each.train.batch_size) == ("paper", "paper", 64)
        assert (each.train.weight_decay, each.train.restart, each.train.optimizer) == (1e-4, False, "adamw")
        assert (each.model.normalise, each.model.drop_path) == ("imagenet", 0.1)
        assert each.model.image_size == 32, "the file's own settings win"
    assert (lora.train.epochs, lora.train.lr) == (100, 1e-3)
    assert (glora.train.epochs, glora.train.lr) == (500, 5e-4)
    assert glora.search.fitness == "accuracy"
    quick = {**plain, "settings": {"model": MODEL, "train": {"epochs": 1}, "search": {**SEARCH, "rescore": 0}}}
    run(written(tmp_path, {**quick, "methods": rows}), tmp_path / "out")
    for name in ("lora", "glora"):
        result = Result.read(tmp_path / "out" / "results" / f"photos-{name}-seed0.json")
        assert result.protocol == "paper"
        assert "no equal effort" in result.notes[0]


def test_of_vtab_what_is_not_searched_trains_on_all_1000_and_some_rates_are_lower() -> None:
    tasks = [{"source": "vtab", "root": "nowhere", "task": name} for name in ("cifar", "retino")]
    data = {"name": "v", "protocol": "paper", "tasks": tasks, "methods": ["linear", "glora"]}
    found = {(cell.label, cell.task): cell.experiment for cell in build_benchmark(data).cells}
    splits = {key: experiment.data.splits for key, experiment in found.items()}  # type: ignore[attr-defined]
    assert splits == {(label, task): "train800val200" if label == "Linear" else "train800" for label, task in found}
    rates = [found["GLoRA", task].train.lr for task in ("vtab-cifar", "vtab-retino")]
    assert rates == [5e-4, 1e-4]
    assert found["Linear", "vtab-cifar"].train.lr is None, "there is no published one: the library's own"


# -- on the command line and on the screen


def test_check_knows_a_benchmark(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    assert check(written(tmp_path, benchmark(*tasks))).startswith("ok, a benchmark of 2 methods on 2 tasks, 6 cells")
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        check(written(tmp_path, benchmark(*tasks, methods=["lara"])))


def test_the_view_counts_and_estimates() -> None:
    view = BenchmarkView(Console(file=io.StringIO(), force_terminal=False))
    view.begin("cells", {"A": 4, "B": 2}, {"A": 1}, 2)
    assert view.seconds_left() is None
    view.started("A", "A on t, seed 1")
    view.ended("A", "A on t, seed 1", 10.0, told="accuracy 0.5")
    view.started("B", "B on t, seed 0")
    assert (view.left("A"), view.left("B")) == (2, 1)
    assert view.seconds_left() == pytest.approx((2 * 10 + 1.5 * 10) / 2)
    view.ended("B", "B on t, seed 0", 4.0, told="no images", failed=True)
    assert view.head().startswith("cells 2/6  running 0  left 3  failed 1")


def test_no_more_run_than_there_are_workers() -> None:
    """A worker gets its next job a moment before the end of its last one is told."""
    view = BenchmarkView(Console(file=io.StringIO(), force_terminal=False))
    view.begin("cells", {"A": 5}, {}, 2)
    for seed in range(3):
        view.started("A", f"A on t, seed {seed}")
    assert view.head().startswith("cells 0/5  running 2  left 3  ")
    view.ended("A", "A on t, seed 0", 1.0, told="accuracy 0.5")
    assert view.head().startswith("cells 1/5  running 2  left 2  ")


def test_a_terminal_has_a_table_of_the_methods() -> None:
    console = Console(force_terminal=True, width=80, record=True, file=io.StringIO())
    with BenchmarkView(console) as view:
        view.begin("cells", {"A": 2, "B": 1}, {}, 1)
        view.started("A", "A on t, seed 0")
        view.trial(type("Trial", (), {"number": 3})(), None, 10)
        console.print(view.render())
        view.ended("A", "A on t, seed 0", 1.0, told="accuracy 0.5")
    text = console.export_text()
    assert "method  done  running  left  failed" in text
    assert "A on t, seed 0  search 4/10" in text
    assert "cells 1/3  running 0  left 2" in text


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    data = benchmark(*tasks)
    data["settings"]["train"]["epochs"] = 300  # of some seconds
    data["methods"] = [{"method": "linear", "train": {"epochs": 1}}, {"label": "long", "method": LORA}]
    file, out = written(tmp_path, data), tmp_path / "out"
    listens = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job ignores it
    code = f"{listens}; from glora.cli import app; app.main()"
    words = [sys.executable, "-c", code, "bench", str(file), "--out", str(out)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "begins: long" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1] == "Interrupted. What is finished stays; the same command goes on."
    assert len(list((out / "results").iterdir())) == 2


def test_a_damaged_result_is_told_with_what_to_do(tasks: tuple[Path, Path], tmp_path: Path) -> None:
    file = written(tmp_path, benchmark(tasks[0], methods=["linear"]))
    run(file, tmp_path / "out")
    (result,) = (tmp_path / "out" / "results").iterdir()
    result.write_text(result.read_text()[:50])
    with pytest.raises(RunError, match=r"is no JSON.*Delete it: the cell is run again"):
        run(file, tmp_path / "out")


# -- the files in experiments/


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_files_can_be_read_and_every_cell_built(file: Path) -> None:
    try:
        assert check(file).startswith("ok")
    except GloraError as error:
        pytest.fail(str(error))
    if "tasks" in (data := read_settings(file)):
        assert BenchmarkFolder("x").result(build_benchmark(data).cells[0]).suffix == ".json"
