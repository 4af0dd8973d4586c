"""Which stages of a run are done says its state, not the files that lie in its folder; the base is built once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import glora
from glora.adapt.adapter_file import fingerprint, read_header
from glora.errors import AdapterFileError, RunError
from glora.methods.method import get_method
from glora.report.outcome import Outcome
from glora.runs.folder import RunFolder
from glora.runs.loaded import load_run, objective_of
from glora.runs.run import Run
from glora.tasks.objectives.classify import Classify
from suites.toy import Recorder, tiny
from test_statistics import normed


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    Run(tiny(photos, search={"controls": 2}), folder, Recorder()).fit()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished, tmp_path / "run")
    return RunFolder(tmp_path / "run")


# -- state


def test_a_supernet_without_a_state_is_not_taken_as_trained(run: RunFolder) -> None:
    trained, winner = run.supernet.read_bytes(), Outcome.read(run.winner)
    run.stages.unlink()
    run.result.unlink()
    run.supernet.write_bytes(b"half a file")
    opened = Run.open(run.path, Recorder())
    for stage in (opened.search, opened.evaluate, lambda: opened.pick(budget=10**9), lambda: load_run(run.path)):
        with pytest.raises(RunError, match=r"is not trained yet.*glora train --out"):
            stage()
    opened.train()
    assert run.supernet.read_bytes() == trained
    assert opened.search().key == winner.key


@pytest.mark.parametrize("method", ["glora", "lora"])
def test_a_state_without_its_file_is_an_error(photos: Path, tmp_path: Path, method: str) -> None:
    run = Run(tiny(photos, method=method, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    file = run.folder.trained_file()
    assert file == (run.folder.supernet if method == "glora" else run.folder.adapter)
    file.unlink()
    opened = Run.open(run.folder.path, Recorder())
    for stage in (opened.train, opened.search if method == "glora" else opened.evaluate, opened.fit):
        with pytest.raises(RunError, match=rf"was trained, but its {file.name} is gone. Bring the file back"):
            stage()
    assert not file.exists()


def test_a_fold_without_its_file_is_an_error(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, data={"folds": 2}, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    run.folder.fold(1).supernet.unlink()
    with pytest.raises(RunError, match=r"fold-2 was trained, but its supernet\.safetensors is gone"):
        run.search()


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_state_is_told(run: RunFolder, text: str) -> None:
    run.stages.write_text(text)
    with pytest.raises(RunError, match=r"state\.json cannot be read.*another --out"):
        load_run(run.path)


def test_a_finished_run_needs_its_supernet_no_more(run: RunFolder) -> None:
    run.supernet.unlink()
    assert load_run(run.path).result == Run.open(run.path, Recorder()).fit()


def test_a_new_search_is_not_done_until_it_ends(run: RunFolder) -> None:
    assert run.done("searched") == {"winner": Outcome.read(run.winner).key}
    run.forget_search()
    assert run.done("searched") is None
    assert run.done("trained") is not None


# -- runs of glora 0.1


OLD = """\
preset: default
method: lora
rank: 2
model:
  name: test_vit
  checkpoint: null
  pretrained: false
  image_size: 32
  targets:
  - blocks.0.attn.qkv
  - blocks.1.mlp.fc1
  skip: []
  statistics: false
data:
  source: photos
  train: null
  val: null
  on_bad_image: error
  split_seed: 0
  aside: null
  folds: 1
space:
  ranks:
  - 8
  - 4
  product: matrix
  variant: lean
  new_bias: false
  scaling: fan_in
train:
  epochs: 3
  batch_size: 8
  lr: 0.003
  weight_decay: 0.0001
  warmup: 0.1
  restart: true
  precision: 'no'
  sampling: sample
  largest: 1.0
  pace: 'off'
  pace_noise: 1.2
  pace_weight: 1.0
  pace_every: 2
search:
  searcher: evolution
  population: 4
  generations: 2
  parents: 2
  mutations: null
  crossovers: null
  mutation_probability: null
  legalize: repair
  budget: null
  min_budget: null
  fitness: loss
  calibrate: true
  batch_size: 100
  rescore: 10
  controls: null
  control: none
  polish: 0
  polish_on: train
  polish_lr: null
  racing: false
  racing_level: 0.05
  racing_first: 10
  workers: 0
  cluster: null
  limit: 600.0
seed: 0
"""


def test_a_run_of_glora_0_1_is_refused_with_its_name(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OLD)
    words = r"is a run of glora 0\.1.*adapter and its result are still read.*with glora 0\.1, or start anew"
    starts: list[Callable[[], Any]] = [
        lambda: RunFolder(tmp_path).experiment(),
        lambda: Run.open(tmp_path, Recorder()),
        lambda: Run(tiny(photos), tmp_path, Recorder()),
        lambda: load_run(tmp_path),
    ]
    for start in starts:
        with pytest.raises(RunError, match=words):
            start()
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == OLD


def test_an_adapter_of_glora_0_1_is_still_loaded(vit: Callable[..., nn.Module], tmp_path: Path) -> None:
    """Its info has the classes where there is an objective now."""
    tuned, file = get_method("lora").apply(vit(), head=("head",), seed=0), tmp_path / "adapter.safetensors"
    tuned.save(file, {"backbone": None, "classes": ["cat", "dog", "hen"], "preprocess": None})
    assert glora.load_adapter(vit(), file).active == tuned.adapted.active  # type: ignore[attr-defined]
    assert objective_of(read_header(file)["info"]) == Classify(classes=("cat", "dog", "hen"))


# -- the base


def test_the_base_is_built_once_in_a_run_and_hashed_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that a run can have: folds, a calibration, controls, a polish, the winner trained alone, the test."""
    built, hashed = count(monkeypatch, "glora.backbones.timm_source.load"), count_hashes(monkeypatch)
    search = {"controls": 2, "control": "retrain", "polish": 1}
    run = Run(tiny(photos, data={"folds": 2}, train={"epochs": 1}, search=search), tmp_path / "run", Recorder())
    run.fit()
    run.load()
    assert (len(built), len(hashed)) == (1, 1)
    own = fingerprint(run.session.backbone.model, run.session.backbone.head)
    folder = run.folder
    files = [folder.supernet, folder.fold(0).supernet, folder.adapter, *folder.path.glob("*/*/adapter.safetensors")]
    assert len(files) == 5
    assert {read_header(file)["base"] for file in files} == {own}


def test_a_method_without_adapters_hashes_its_base_once_too(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, hashed = count(monkeypatch, "glora.backbones.timm_source.load"), count_hashes(monkeypatch)
    Run(tiny(photos, method="linear", train={"epochs": 1}), tmp_path / "run", Recorder()).fit()
    assert (len(built), len(hashed)) == (1, 1), "another base is refused, whatever the method"


def count(monkeypatch: pytest.MonkeyPatch, place: str) -> list[Any]:
    """Gets an entry for every call of the function at this place."""
    module, _, name = place.rpartition(".")
    calls: list[Any] = []
    real = getattr(__import__(module, fromlist=[name]), name)

    def counted(*args: Any, **settings: Any) -> Any:
        calls.append(args)
        return real(*args, **settings)

    monkeypatch.setattr(place, counted)
    return calls


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Gets an entry for every hash of a base: `fingerprint` reads its tensors by this name."""
    return count(monkeypatch, "glora.adapt.adapter_format.base_state")


@pytest.mark.parametrize("statistics", [False, True])
def test_the_untouched_base_has_the_fingerprint_of_the_adapted_one(statistics: bool) -> None:
    method = get_method("lora", {"statistics": statistics})
    model = normed()
    untouched = method.base_fingerprint(model, ("head",))
    assert untouched == method.apply(model, head=("head",), seed=0).adapted.base_fingerprint()  # type: ignore[attr-defined]


def test_another_base_is_noticed_with_its_fingerprint_given(vit: Callable[..., nn.Module], tmp_path: Path) -> None:
    method = get_method("lora")
    tuned, file = method.apply(vit(), head=("head",), seed=0), tmp_path / "adapter.safetensors"
    own = method.base_fingerprint(vit(), ("head",))
    tuned.save(file, {}, base_fingerprint=own)
    other = vit(seed=1)
    with torch.no_grad(), pytest.raises(AdapterFileError, match="another base"):
        method.load(other, file, base_fingerprint=method.base_fingerprint(other, ("head",)))
    method.load(vit(), file, base_fingerprint=own)
