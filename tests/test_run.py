"""Whole runs in a folder: what they leave, what survives `kill -9`, what is refused, and that test is read once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import glora
from glora.adapt.adapter_file import read_header
from glora.errors import BudgetError, ConfigError, DataError, RunError, UnknownNameError
from glora.files import read_jsonl
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.folder import RunFolder
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.runs.scoring import recipe_of
from glora.tasks.data.image_folder import ImageFolder
from glora.tasks.images import ImageSet
from glora.tasks.task import Task
from suites.toy import Recorder, free_port, image_folder, tiny

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def fitted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Result, Recorder]:
    """A finished run."""
    reporter = Recorder()
    run = Run(tiny(photos), tmp_path_factory.mktemp("runs") / "whole", reporter)
    return run, run.fit(), reporter


class CountedReads(ImageSet):
    """A test split that counts how often each image is read, by itself and by every split made of it."""

    reads: Counter[Path]

    @classmethod
    def of(cls, images: ImageSet, reads: Counter[Path]) -> CountedReads:
        counting = cls(images.items, images.targets, strata=images.strata, preprocess=images.preprocess)
        counting.reads = reads
        return counting

    def _with(self, *args: Any) -> ImageSet:
        return CountedReads.of(super()._with(*args), self.reads)

    def batch(self, indices: Any) -> Any:
        self.reads.update(self.items[int(index)] for index in indices)
        return super().batch(indices)


@pytest.fixture
def test_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each test image was read by runs made within the test."""
    reads: Counter[Path] = Counter()
    load = ImageFolder.load

    def counting(self: ImageFolder, objective: Any) -> Task:
        task = load(self, objective)
        return dataclasses.replace(task, test=CountedReads.of(task.test, reads))

    monkeypatch.setattr(ImageFolder, "load", counting)
    return reads


def journal_of(folder: Path) -> list[dict[str, Any]]:
    """The search's records without what differs from run to run: the times, and the hash of a file with times."""
    records = read_jsonl(folder / "search.jsonl")
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def scores_in(journal: Path) -> list[float]:
    return [line["score"] for line in read_jsonl(journal) if line["event"] == "score"]


# -- a whole run


def test_a_run_folder_holds_what_was_promised(fitted: tuple[Run, Result, Recorder]) -> None:
    run, _, _ = fitted
    folder = run.folder.path
    names = {entry.name for entry in folder.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "supernet.safetensors", "search.jsonl", "adapter.safetensors", "result.json",
        "plots", "examples.jsonl", "winner.json", "calibration.json", "state.json", "test_examples.json",
        ".lock",
    }  # fmt: skip
    assert {"search.svg", "layers.svg", "parameters.svg"} <= {entry.name for entry in (folder / "plots").iterdir()}
    assert RunFolder(folder).experiment() == run.experiment
    stages = [record["stage"] for record in read_jsonl(folder / "metrics.jsonl")]
    assert stages == ["begun", "train", "train", "train"]
    done = json.loads((folder / "state.json").read_text())
    assert set(done) == {"trained", "searched"}
    assert done["trained"]["example_steps"] == 3 * len(run.task.train)
    assert done["searched"] == {"winner": Outcome.read(run.folder.winner).key}
    assert len(scores_in(folder / "search.jsonl")) == 12


def test_a_result_tells_the_whole_run(fitted: tuple[Run, Result, Recorder], photos: Path) -> None:
    run, result, _ = fitted
    assert result == Result.read(run.folder.result)
    assert (result.method, result.task, result.model, result.seed) == ("glora", "photos", "test_vit", 0)
    assert result.config == run.experiment.to_json()
    lines = read_jsonl(run.folder.journal)
    outcome = Outcome.read(run.folder.winner)
    [best] = [line for line in lines if line["event"] == "score" and line["number"] == outcome.number]
    [asked] = [line for line in lines if line["event"] == "ask" and line["number"] == outcome.number]
    assert result.parameters == outcome.parameters == asked["parameters"]
    assert result.head_parameters == 2 * 64 + 2
    metrics = result.metrics
    assert metrics["val_loss"] == pytest.approx(-best["score"], rel=1e-5), (
        "the winner as merged is the winner as scored"
    )
    assert metrics["val_examples"] == metrics["aside_examples"] == len(run.task.val) / 2
    assert metrics["test_examples"] == len(run.task.test)
    assert 0 <= (metrics["test_accuracy"] or 0) <= 1
    assert set(result.seconds) == {"train", "search", "check", "test"}
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert result.latency is not None
    assert result.latency["ratio"] > 0
    assert {"torch", "timm", "python"} <= set(result.versions)


def test_a_run_says_first_what_it_is_going_to_do(fitted: tuple[Run, Result, Recorder]) -> None:
    run, _, reporter = fitted
    told = "\n".join(reporter.lines)
    space = run.experiment.method.space.bind(read_sites(run))
    for words in (
        "photos: 26 train, 6 val and 8 test images, 2 classes", "Fewer than 1,250 images", "test_vit at 32 x 32 px",
        "2 layers", f"10^{space.log10_size:.1f} genotypes of 0 to {space.count(space.largest):,} trainable numbers",
        "searched from", "3 epochs, 78 passes of an example, learning rate 0.001", "up to 12 genotypes",
    ):  # fmt: skip
        assert words in told, words
    assert [progress.step for progress in reporter.steps][-1] == 12
    assert len(reporter.trials) == 12


def read_sites(run: Run) -> dict[str, Any]:
    from glora.genotype import Site

    return {name: Site(**site) for name, site in read_header(run.folder.supernet)["sites"].items()}


def test_the_adapter_in_a_fresh_process_gives_the_merged_models_bits(
    fitted: tuple[Run, Result, Recorder], tmp_path: Path
) -> None:
    run, _, _ = fitted
    x = run.task.val.batch(range(4)).inputs
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch, glora\n"
        "from glora.backbones import load_backbone\n"
        "from glora.adapt.adapter_file import read_header\n"
        "torch.set_num_threads(1)\n"
        "info = read_header(sys.argv[1])['info']\n"
        "plain = load_backbone(**info['backbone'], num_classes=len(info['objective']['classes'])).model.eval()\n"
        "model = glora.load_adapter(plain, sys.argv[1]).merge()\n"
        "assert model is plain and type(model).__module__.startswith('timm')\n"
        "torch.save(model(torch.load(sys.argv[2])).detach(), sys.argv[3])\n"
    )
    files = [str(run.folder.adapter), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-c", code, *files], check=True, timeout=120)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "y.pt"), load_run(run.folder.path).model.eval()(x))


# -- test is read once


def test_the_search_never_reads_test_and_the_result_reads_it_once_for_each_model_tested(
    photos: Path, tmp_path: Path, test_reads: Counter[Path]
) -> None:
    run = Run(tiny(photos), tmp_path / "run", Recorder())
    run.train()
    run.search()
    assert not test_reads
    first = run.evaluate()
    models = ("winner", "random_best", "largest")
    assert test_reads == Counter({image: len(models) for image in run.task.test.items})
    assert {name for name, row in first.controls.items() if "test_loss" in row} == set(models[1:])
    again = run.evaluate()
    reopened = Run.open(tmp_path / "run", Recorder())
    assert again == first == reopened.evaluate() == reopened.fit()
    assert set(test_reads.values()) == {len(models)}
    assert len(test_reads) == 8


# -- kill -9


VICTIM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from suites.toy import Recorder, tiny
from glora.runs import run as experiment
torch.set_num_threads(1)
step, trial = (int(text) if text else None for text in sys.argv[4:6])
reporter = Recorder(kill_step=step, kill_trial=trial)
experiment.Run(tiny(Path(sys.argv[2])), sys.argv[3], reporter).fit()
"""


def killed(photos: Path, folder: Path, *, step: int | None = None, trial: int | None = None) -> None:
    """A real process that fits, and dies as by `kill -9` at this training step or scored genotype."""
    words = [str(TESTS), str(photos), str(folder), *("" if n is None else str(n) for n in (step, trial))]
    done = subprocess.run([sys.executable, "-c", VICTIM, *words], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_run_killed_in_training_and_in_search_ends_as_if_it_was_not(
    photos: Path, fitted: tuple[Run, Result, Recorder], tmp_path: Path
) -> None:
    whole, result, _ = fitted
    folder = tmp_path / "run"
    killed(photos, folder, step=9)  # the first of the third epoch
    assert RunFolder(folder).done("trained") is None
    assert len(read_jsonl(folder / "metrics.jsonl")) == 1 + 2
    killed(photos, folder, trial=5)
    trained = (folder / "supernet.safetensors").read_bytes()
    assert trained == whole.folder.supernet.read_bytes(), "the training went on to the same bits"
    assert len(scores_in(folder / "search.jsonl")) == 6
    assert not (folder / "training.safetensors").exists()

    reporter = Recorder()
    again = Run(tiny(photos), folder, reporter).fit()
    assert (folder / "supernet.safetensors").read_bytes() == trained
    assert journal_of(folder) == journal_of(whole.folder.path)
    assert (folder / "adapter.safetensors").read_bytes() == whole.folder.adapter.read_bytes()
    assert again.metrics == result.metrics
    assert again.parameters == result.parameters
    assert [r["epoch"] for r in read_jsonl(folder / "metrics.jsonl") if r["stage"] == "train"] == [1, 2, 3]
    assert reporter.steps == []
    assert any("done already" in line for line in reporter.lines)


def test_epochs_that_a_kill_has_undone_are_not_in_the_metrics_twice(photos: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.begin("f", 0)
    for epoch in (1, 2, 3):
        run.record("train", {"epoch": epoch, "loss": 1.0})
    for epoch in (1, 3):
        run.record("warning", {"epoch": epoch, "text": str(epoch)})
    run.mark("trained", seconds=5.0)
    run.begin("f", 2)
    assert [record.get("epoch") for record in read_jsonl(run.metrics)] == [None, 1, 2, 1]
    assert run.warnings() == ["1"]
    run.mark("trained", seconds=7.0)
    assert run.seconds() == {"train": 7.0}


def test_a_training_that_began_anew_is_told_wherever_its_result_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glora.training.trainer.collapsed", lambda losses, *_, **__: len(losses) == 2)
    told = Recorder()
    result = Run(tiny(photos, method="lora", train={"lr": 0.03}), tmp_path / "run", told).fit()
    (line,) = [line for line in told.lines if "collapsed by epoch 2" in line]
    assert line in result.notes
    assert "at a learning rate of 0.03. It begins anew at 0.01, for the epochs that are left: 1." in line
    assert [step.lr < 0.0101 for step in told.steps if step.epoch == 3][-1]
    assert result.example_steps["train"] == 3 * len(Run(tiny(photos), tmp_path / "other", told).task.train)


def test_of_a_winners_polish_and_its_training_alone_the_result_tells_too(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glora.training.trainer.collapsed", lambda losses, *_, **__: len(losses) == 1)
    settings = tiny(photos, train={"epochs": 2}, search={"control": "retrain", "polish": 2, "controls": 1})
    notes = Run(settings, tmp_path / "run", Recorder()).fit().notes
    for whose in ("", "The polish: ", "The winner trained alone: "):
        assert [note for note in notes if note.startswith(f"{whose}Training has collapsed by epoch 1")], whose


@pytest.mark.slow
def test_two_processes_fit_as_a_launcher_starts_them(photos: Path, tmp_path: Path) -> None:
    """The main process writes and tests; the other waits for what it has written."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny(photos, search={"controls": 2}).model_dump(mode="json")))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    files = ["--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "glora", "fit", *files],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told
    assert Result.read(tmp_path / "run" / "result.json").metrics["test_accuracy"] is not None


# -- what is refused


def test_a_folder_with_a_run_of_other_settings_is_refused(fitted: tuple[Run, Result, Recorder], photos: Path) -> None:
    folder = fitted[0].folder.path
    before = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with pytest.raises(RunError, match=r"train\.epochs is 3 there, 4 here.*start anew beside it: --out .*-2"):
        Run(tiny(photos, train={"epochs": 4}), folder, Recorder())
    with pytest.raises(RunError, match=r"search\.budget is None there, 3 here.*start anew beside it: --out .*-2"):
        Run(tiny(photos, search={"budget": 3}), folder, Recorder())
    assert {file: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


def test_a_folder_of_something_else_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds no run, but thesis\.tex"):
        Run(tiny(photos), tmp_path, Recorder())
    with pytest.raises(RunError, match="is a file, not a folder"):
        Run(tiny(photos), tmp_path / "thesis.tex" / "run", Recorder())
    (tmp_path / "empty").mkdir()
    Run(tiny(photos), tmp_path / "empty", Recorder())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"search": {"min_budget": "1G"}}, BudgetError, "the largest"),
        ({"method": "glroa"}, ConfigError, "Did you mean 'glora'"),
        ({"search": {"searcher": "evolve"}}, ConfigError, "evolution"),
        ({"model": {"name": "test_vitt"}}, UnknownNameError, "test_vit"),
        ({"method": {"targets": "qkvv"}}, ValueError, "qkvv"),
        ({"model": {"image_size": 33}}, ValueError, "33 pixels"),
        ({"train": {"precision": "fp16"}}, ValueError, r"train\.precision=fp16"),
        ({"data": {"val": 0.5}}, ValueError, r"data\.val"),
        ({"data": {"train": 500}}, DataError, "leave no test images"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(
    photos: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        Run(tiny(photos, **changes), tmp_path / "run", Recorder())
    assert isinstance(caught.value, glora.GloraError)
    assert not (tmp_path / "run").exists()


def test_a_budget_below_the_smallest_genotype_is_told_before_anything_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glora.genotype import NONE
    from glora.space import SearchSpace

    options = SearchSpace.options
    no_nones = lambda space, site: tuple(tuple(c for c in t if c != NONE) or t for t in options(space, site))  # noqa: E731
    monkeypatch.setattr(SearchSpace, "options", no_nones)
    with pytest.raises(BudgetError, match=r"budget=1 is below the smallest genotype.*smallest genotype has"):
        Run(tiny(photos, search={"budget": 1}), tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_other_images_than_those_it_began_with_are_refused(tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "photos")
    Run(tiny(photos, train={"epochs": 1}), tmp_path / "run", Recorder()).train()
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(photos / "dark" / "new.png")
    with pytest.raises(RunError, match="data has changed"):
        Run.open(tmp_path / "run", Recorder())


# -- a stage at a time


def test_stages_need_the_ones_before_and_the_search_may_still_change(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="holds no run"):
        Run.open(folder, Recorder())
    run = Run(tiny(photos, train={"epochs": 1}), folder, Recorder())
    with pytest.raises(RunError, match=r"is not trained yet.*glora train --out"):
        run.search()
    with pytest.raises(RunError, match="holds no run"):
        run.evaluate()
    assert not folder.exists()
    run.train()
    for stage in (run.evaluate, lambda: load_run(run.folder.path)):
        with pytest.raises(RunError, match=r"has no adapter\.safetensors yet.*glora search"):
            stage()
    run = Run.open(folder, Recorder(), search={"budget": 500, "searcher": {"generations": 0}})
    found = run.search()
    assert found.parameters <= 500
    assert found.scored == 4
    assert RunFolder(folder).experiment().search.budget == 500
    assert Run.open(folder, Recorder()).search() == found
    with pytest.raises(RunError, match=r"budget is 500 there, 400 here.*delete .*search\.jsonl to search anew"):
        Run.open(folder, Recorder(), search={"budget": 400})
    (folder / "search.jsonl").unlink()
    anew = Run.open(folder, Recorder(), search={"budget": 400})
    assert anew.search().parameters <= 400
    assert anew.evaluate().config["search"]["budget"] == 400


def test_a_reopened_run_searches_what_was_trained(photos: Path, tmp_path: Path) -> None:
    """Not a fresh supernet: `search` alone loads the weights."""
    first = Run(tiny(photos), tmp_path / "a", Recorder())
    first.train()
    first.search()
    scores = journal_of(tmp_path / "a")
    (tmp_path / "a" / "search.jsonl").unlink()
    Run.open(tmp_path / "a", Recorder()).search()
    assert journal_of(tmp_path / "a") == scores


def test_a_run_folder_can_be_used_from_anywhere(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    experiment = tiny(photos, data={"source": "photos"}, train={"epochs": 1})
    Run(experiment, tmp_path / "run", Recorder()).train()
    monkeypatch.chdir(tmp_path)
    assert Run.open(tmp_path / "run", Recorder()).task.name == "photos"


# -- other images, other methods


def test_other_images_of_the_same_classes(fitted: tuple[Run, Result, Recorder], tmp_path: Path) -> None:
    run, _, _ = fitted
    other = image_folder(tmp_path / "other", per_class=3)
    before = run.folder.result.read_bytes()
    winner = load_run(run.folder.path)
    found, notes = winner.evaluate_on(other)
    assert len(found) == 6
    assert notes == []
    assert run.folder.result.read_bytes() == before
    with pytest.raises(DataError, match=r"class folders cats, which the run does not know.*dark, light"):
        winner.evaluate_on(image_folder(tmp_path / "cats", per_class=1, classes=("dark", "cats")))
    with pytest.raises(DataError, match="There is no folder"):
        winner.evaluate_on(tmp_path / "nowhere")
    for file in (other / "light").iterdir():
        file.unlink()
    found, notes = winner.evaluate_on(other)
    assert len(found) == 3
    assert any("light" in note for note in notes)


@pytest.mark.parametrize("method", ["linear", "full", "lora", "bitfit"])
def test_other_methods_train_and_are_tested_the_same_way(photos: Path, tmp_path: Path, method: str) -> None:
    run = Run(tiny(photos, method=method, train={"epochs": 1}), tmp_path / "run", Recorder())
    result = run.fit()
    assert set(result.seconds) == {"train", "test"}
    assert (result.parameters == 0) == (method == "linear")
    with pytest.raises(RunError, match="nothing to search"):
        Run.open(tmp_path / "run", Recorder()).search()
    (tmp_path / "run" / "result.json").unlink()
    again = Run.open(tmp_path / "run", Recorder()).evaluate()  # out of the files alone
    assert again.metrics == result.metrics


def test_another_searcher_runs_from_the_settings(photos: Path, tmp_path: Path) -> None:
    search = {"searcher": {"name": "random", "candidates": 6}, "budget": 500}
    run = Run(tiny(photos, search=search, train={"epochs": 1}), tmp_path / "run", Recorder())
    assert run.fit().parameters <= 500
    assert len(scores_in(run.folder.journal)) == 6


def test_the_published_method_runs(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, preset="paper", train={"epochs": 1, "batch_size": 8}), tmp_path / "run", Recorder())
    result = run.fit()
    options = run.experiment.method.space.options(next(iter(read_sites(run).values())))
    assert np.prod([len(choices) for choices in options]) == 432
    assert max(scores_in(run.folder.journal)) == result.metrics["val_accuracy"]
    assert os.fspath(run.folder.path) == str(tmp_path / "run")


def test_a_finished_run_needs_its_images_no_more(photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    run = Run(tiny(images, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.fit()
    expected = {name: value.clone() for name, value in load_run(run.folder.path).model.state_dict().items()}
    shutil.rmtree(images)
    merged = load_run(tmp_path / "run").model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in merged.items())


def test_the_resolved_settings_have_the_learning_rate(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    assert RunFolder(tmp_path / "run").experiment().train.lr == run.session.method.lr


def test_what_a_killed_process_was_writing_is_no_obstacle(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.yaml.1.tmp").touch()
    (folder / ".DS_Store").touch()
    Run(tiny(photos, train={"epochs": 1}), folder, Recorder()).train()
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.slow
def test_other_images_are_read_as_the_run_reads_its_own(photos: Path, tmp_path: Path) -> None:
    """What the run says of unreadable images and of precision holds for a later look at other images too."""
    fit = (
        "import sys, json\n"
        "from glora.runs.run import Run\n"
        "from glora.config import build_experiment\n"
        "from glora.runs.reporter import Silent\n"
        "Run(build_experiment(json.loads(sys.argv[1])), sys.argv[2], Silent()).fit()\n"
    )
    look = (
        "import sys\n"
        "from glora.runs.loaded import load_run\n"
        "found, notes = load_run(sys.argv[1]).evaluate_on(sys.argv[2])\n"
        "from accelerate import Accelerator\n"
        "print(len(found), Accelerator().mixed_precision, *notes)\n"
    )
    other, run = image_folder(tmp_path / "other", per_class=3), str(tmp_path / "run")
    (other / "light" / "broken.jpg").write_bytes(b"no image")
    data = {"source": str(photos), "on_bad_image": "skip"}
    experiment = tiny(photos, data=data, train={"epochs": 1, "precision": "bf16"}).model_dump(mode="json")
    for code, words in ((fit, [json.dumps(experiment), run]), (look, [run, str(other)])):  # each in its own process
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "6 bf16 Skipped 1 unreadable image: light/broken.jpg."


def test_workers_share_the_weights_and_make_the_same_search(photos: Path, tmp_path: Path) -> None:
    one = Run(tiny(photos, train={"epochs": 1}), tmp_path / "a", Recorder())
    one.train()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker
    one.search()
    torch.set_num_threads(threads)
    two = Run.open(tmp_path / "b", Recorder(), search={"workers": 2})
    search = two.searching()
    recipe = recipe_of(two.session, search.tuned, search.parts)
    built = recipe.build()
    mine = built.parts[0].numbers.tuned
    own = {id(parameter) for parameter in mine.parameters()}  # which a snapshot changes: a copy for each process
    assert all(parameter.is_shared() or id(parameter) in own for parameter in mine.model.parameters())
    assert not any(parameter.is_shared() for parameter in mine.parameters())
    pointers = {name: tensor.data_ptr() for name, tensor in recipe.weights.items()}
    assert pointers == {name: p.data_ptr() for name, p in two.tuned.model.named_parameters()} | {
        name: buffer.data_ptr() for name, buffer in two.tuned.model.named_buffers()
    }, "nothing was copied"
    two.search()
    first, second = tmp_path / "a", tmp_path / "b"
    assert sorted(map(str, journal_of(first))) == sorted(map(str, journal_of(second)))
    assert (first / "adapter.safetensors").read_bytes() == (second / "adapter.safetensors").read_bytes()


def test_workers_play_a_supernet_with_the_scales_of_its_file(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    search = run.searching()
    for support in run.tuned.adapted.supports.values():  # as if an older version had trained it
        support.scales = {"B.lora": 0.5}
    built, largest = recipe_of(run.session, search.tuned, search.parts).build(), search.space.largest
    assert built(largest) == search.scorer(largest)


def test_a_search_begun_with_other_workers_goes_on_and_with_other_settings_does_not(
    photos: Path, tmp_path: Path
) -> None:
    run = Run(tiny(photos, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    run.search()
    Run.open(tmp_path / "run", Recorder(), search={"workers": 2, "limit": 60})
    with pytest.raises(RunError, match=r"search.racing is False there, True here"):
        Run.open(tmp_path / "run", Recorder(), search={"racing": True})


def test_a_run_begun_with_other_fewest_numbers_keeps_them_where_none_are_given(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run(tiny(photos, search={"min_budget": 7}, train={"epochs": 1}), folder, Recorder())
    run.train()
    for changes in ({}, {"polish": 1}, {"workers": 2}, {"racing_level": 0.25, "racing_first": 20}):
        again = Run(tiny(photos, search=changes, train={"epochs": 1}), folder, Recorder())
        assert again.experiment.search.min_budget == 7
    another = Run(tiny(photos, search={"fitness": "accuracy"}, train={"epochs": 1}), folder, Recorder())
    assert another.experiment.search.min_budget is None  # another search


def test_a_run_races_where_it_is_told_to(photos: Path, tmp_path: Path) -> None:
    searcher = {"population": 6, "generations": 2, "parents": 2}
    search = {"searcher": searcher, "racing": True, "racing_first": 2, "rescore": 0}
    recorder = Recorder()
    result = Run(tiny(photos, search=search, train={"epochs": 1}), tmp_path / "run", recorder).fit()
    assert min(trial.seen for trial in recorder.trials) < 1
    best = min(recorder.trials, key=lambda trial: trial.rank)
    assert result.metrics["val_loss"] == pytest.approx(-best.score.value, rel=1e-5)


def test_a_cluster_without_workers_is_told_with_the_other_settings(photos: Path) -> None:
    with pytest.raises(ConfigError, match="needs workers"):
        tiny(photos, search={"cluster": "ray"})


def test_a_searcher_that_cannot_race_is_told_before_any_training(photos: Path, tmp_path: Path) -> None:
    wrong = tiny(photos, search={"racing": True, "searcher": "nsga2"})
    with pytest.raises(ConfigError, match="'nsga2' does not look at its best trials only"):
        Run(wrong, tmp_path / "run", Recorder())
