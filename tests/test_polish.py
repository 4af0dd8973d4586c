"""Polish: epochs of the winner alone after the search, from the supernet's weights; what is told of it, and kills."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glora.adapt.adapter_file import read_metadata, read_tensors
from glora.cli import app as cli
from glora.config import build_experiment
from glora.errors import ConfigError, RunError
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.report.tables import comparison_table
from glora.runs.folder import RunFolder
from glora.runs.resolve import POLISH
from glora.runs.run import Run
from glora.tasks.calibration import STRENGTHS
from glora.tasks.images import ImageSet
from suites.toy import Recorder, tiny

FEW = {"rescore": 2, "controls": 2}


@pytest.fixture(scope="module")
def searched(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A searched run without polish, not tested."""
    run = Run(tiny(photos, search=FEW), tmp_path_factory.mktemp("runs") / "run", Recorder())
    run.train()
    run.search()
    return run.folder


def polished(searched: RunFolder, folder: Path, **settings: Any) -> tuple[Run, Recorder]:
    shutil.copytree(searched.path, folder)
    reporter = Recorder()
    run = Run.open(folder, reporter, search={"polish": 2, **settings})
    run.search()
    return run, reporter


def numbers(file: Path) -> dict[str, torch.Tensor]:
    return read_tensors(file)[0]


def test_polish_trains_the_winner_on_from_the_supernets_weights(searched: RunFolder, tmp_path: Path) -> None:
    run, reporter = polished(searched, tmp_path / "run", polish_lr=1e-12)
    [folder] = (run.folder.path / "polished").iterdir()
    before, after = numbers(searched.adapter), numbers(folder / "adapter.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before), "no other start"
    assert any(
        "Polish: 2 epochs of the winner alone" in line and "learning rate 1e-12" in line for line in reporter.lines
    )
    other, _ = polished(searched, tmp_path / "other")
    moved = numbers(other.folder.adapter)
    assert not all(torch.equal(before[name], moved[name]) for name in before)
    genotype = read_metadata(searched.adapter)["genotype"]
    assert read_metadata(other.folder.adapter)["genotype"] == genotype
    rate = POLISH * other.session.lr
    assert other.folder.experiment().search.polish_lr == rate, "kept, whatever the next version's default is"
    assert read_metadata(other.folder.adapter)["info"]["polish"] == {"epochs": 2, "on": "train", "lr": rate}
    assert max(step.lr for step in reporter.steps) < 1e-11


def test_a_polished_winner_is_calibrated_by_itself_where_it_has_not_seen_val(
    searched: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glora.tasks.calibration.FEWEST", 1)  # the toys are few, and all right
    monkeypatch.setattr("glora.tasks.calibration.is_flawless", lambda *_: False)
    for on in ("train", "all"):
        run, _ = polished(searched, tmp_path / on, polish_on=on)
        [folder] = (run.folder.path / "polished").iterdir()
        before, after = numbers(folder / "adapter.safetensors"), numbers(run.folder.adapter)
        left = [name for name in before if name.endswith(".down")]
        fits = [
            strength
            for strength in STRENGTHS
            if all(torch.allclose(after[name], strength * before[name], atol=0) for name in left)
        ]
        assert len(fits) == 1
        assert all(torch.equal(before[name], after[name]) for name in before if name.endswith(".up"))
        same = all(torch.equal(before[name], after[name]) for name in before)
        assert same == (on == "all")


def test_val_before_and_after_are_told_and_test_is_the_polished_one(searched: RunFolder, tmp_path: Path) -> None:
    run, reporter = polished(searched, tmp_path / "run", polish_lr=3e-3)
    result = run.evaluate()
    before, after = result.controls["unpolished"], result.metrics
    assert {"val_accuracy", "aside_accuracy", "test_accuracy", "test_loss_ahead"} <= set(before)
    assert before["val_loss"] != after["val_loss"]
    assert before["val_loss"] == Outcome.read(searched.winner).rows["winner"]["val_loss"]
    told = [line for line in result.verdict if line.startswith("Accuracy on val before polishing")]
    assert told == [line for line in reporter.lines if line.startswith("Accuracy on val before polishing")]
    assert f"after it {100 * (after['val_accuracy'] or 0):.1f} %" in told[0]
    table = comparison_table(result.rows, result.metrics_info)
    assert "winner before polishing" in list(table.columns[0].cells)
    assert result.example_steps == {"train": 3 * len(run.task.train), "polish": 2 * len(run.task.train)}
    assert result.seconds["polish"] > 0
    assert Result.read(run.folder.result) == result


def test_on_all_images_val_tells_nothing_after_it(searched: RunFolder, tmp_path: Path) -> None:
    run, reporter = polished(searched, tmp_path / "run", polish_on="all")
    images = len(run.task.train) + len(run.task.val)
    assert any(f"winner alone on {images} images" in line for line in reporter.lines)
    outcome = Outcome.read(run.folder.winner)
    assert not any(name.startswith(("val", "aside", "selection_bias")) for name in outcome.rows["winner"])
    assert any("has seen the val images" in line for line in outcome.verdict)
    result = run.evaluate()
    assert not any(name.startswith(("val", "aside", "selection_bias")) for name in result.metrics)
    assert {"val_loss", "selection_bias_loss", "test_loss"} <= set(result.controls["unpolished"])
    assert result.metrics["test_loss"] != result.controls["unpolished"]["test_loss"]
    assert result.example_steps["polish"] == 2 * images
    assert "–" in list(comparison_table(result.rows, result.metrics_info).columns[2].cells)


def test_with_folds_the_pool_tells_nothing_and_what_was_set_aside_does(photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": {"folds": 2}, "search": {**FEW, "polish": 1}}
    result = Run(tiny(photos, **settings), tmp_path / "run", Recorder()).fit()
    assert "aside_loss" in result.metrics
    assert "val_loss" not in result.metrics
    assert "val_loss" in result.controls["unpolished"]


def test_polish_reads_no_test_image(searched: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(searched.path, tmp_path / "run")
    run = Run.open(tmp_path / "run", Recorder(), search={"polish": 1, "polish_on": "all"})
    read, test = ImageSet.batch, {id(item) for item in run.task.test.items}

    def batch(self: ImageSet, indices: Any) -> Any:
        assert not test & {id(self.items[index]) for index in indices}
        return read(self, indices)

    monkeypatch.setattr(ImageSet, "batch", batch)
    run.search()


def kill_in_polish(folder: Path, photos: Path) -> None:
    class Killer(Recorder):
        def say(self, text: str) -> None:
            super().say(text)
            if text.startswith("Polish:"):
                self.kill_step = 8  # of the second epoch

    Run(tiny(photos, search={**FEW, "polish": 5}), folder, Killer()).fit()


def test_a_polish_that_was_killed_goes_on_to_the_same_bits(photos: Path, tmp_path: Path) -> None:
    experiment = tiny(photos, search={**FEW, "polish": 5})
    whole = Run(experiment, tmp_path / "whole", Recorder()).fit()
    process = multiprocessing.get_context("fork").Process(target=kill_in_polish, args=(tmp_path / "killed", photos))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    folder = RunFolder(tmp_path / "killed")
    assert not folder.adapter.is_file(), "no adapter that is not the polished one"
    with pytest.raises(RunError, match=r"has no adapter\.safetensors yet.*glora search"):
        Run.open(folder.path, Recorder()).evaluate()
    reporter = Recorder()
    again = Run(experiment, folder.path, reporter).fit()
    assert any("Training goes on after epoch" in line for line in reporter.lines)
    mine, theirs = numbers(folder.adapter), numbers(tmp_path / "whole" / "adapter.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert again.metrics == whole.metrics
    assert again.example_steps == whole.example_steps


def test_another_winner_is_polished_too_and_without_polish_the_supernets_is_back(
    searched: RunFolder, tmp_path: Path
) -> None:
    run, _ = polished(searched, tmp_path / "run")
    first = run.folder.adapter.read_bytes()
    smallest = run.tuned.space.count(run.tuned.space.smallest)
    sizes = [trial.parameters for trial in run.reporter.trials]  # type: ignore[attr-defined]
    budget = min(size for size in sizes if size > smallest)
    picked = run.pick(budget=budget, min_budget=0)
    assert read_metadata(run.folder.adapter)["info"]["polish"]["epochs"] == 2
    assert "unpolished" in picked.rows
    run.search()
    assert run.folder.adapter.read_bytes() == first
    Run.open(run.folder.path, Recorder(), search={"polish": 0}).search()
    back, own = numbers(run.folder.adapter), numbers(searched.adapter)
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_the_adapter_tested_is_the_one_that_the_settings_ask_for(searched: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(searched.path, tmp_path / "run")
    with pytest.raises(RunError, match=r"was polished with None.*glora search"):
        Run.open(tmp_path / "run", Recorder(), search={"polish": 1}).evaluate()


def test_polish_is_a_setting_of_glora_search(
    searched: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(searched.path, tmp_path / "run")

    def glora(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["glora", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    run = str(tmp_path / "run")
    code, told = glora("search", run, "--set", "search.polish=1", "--set", "search.polish_lr=1e-4")
    assert code == 0
    assert "Polish: 1 epoch of the winner alone" in told
    assert RunFolder(run).experiment().search.polish_lr == 1e-4
    assert "no such setting" in glora("search", run, "--set", "search.polsh=1")[1]
    code, told = glora("search", run, "--set", "train.lr=1e-4")
    assert code == 2
    assert "'train.lr=1e-4' is no setting of the search" in told
    Run.open(run, Recorder()).evaluate()
    code, told = glora("search", run, "--set", "search.polish=2")
    assert code == 2
    assert "holds a run of other settings" in told


def test_what_cannot_be_is_told(photos: Path, tmp_path: Path) -> None:
    for wrong in ({"polish": -1}, {"polish_on": "val"}, {"polish_lr": 0}):
        with pytest.raises(ConfigError, match=rf"search\.{next(iter(wrong))}"):
            build_experiment({"data": {"source": str(photos)}, "search": wrong})
    run = Run(tiny(photos, method="lora", search={"polish": 1}), tmp_path / "run", Recorder())
    assert any("search.polish changes nothing" in note for note in run.session.data.notes)
