"""`glora.fit`: anybody's model and data in one call, and what is said where they do not fit."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import glora
from glora.errors import ConfigError, DataError, RunError, StateError, TargetError
from glora.files import read_jsonl
from glora.report.result import Result
from glora.tasks.data.from_python import as_targets, task_of
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.multilabel import MultiLabel
from glora.tasks.task import DataSettings
from suites.toy import Recorder, image_folder

TESTS = Path(__file__).parent
QUICK: dict[str, Any] = {"epochs": 1, "population": 2, "generations": 0, "parents": 1, "controls": 1, "progress": False}
CLASSES = ("cat", "dog", "owl")


class Shapes(Dataset):  # type: ignore[type-arg]
    """As torchvision's datasets: `targets`, `classes` and transforms; easy, a class is a brightness."""

    def __init__(self, count: int, *, seed: int = 0, target_transform: Any = None) -> None:
        noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        self.classes = list(CLASSES)
        self.targets = [place % 3 for place in range(count)]
        self.pixels = noise / 4 + 3 * torch.tensor(self.targets).view(-1, 1, 1, 1)
        self.target_transform = target_transform
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        self.reads[place] += 1
        target = self.targets[place]
        return self.pixels[place], self.target_transform(target) if self.target_transform else target


class Net(nn.Module):
    """A convolution with BatchNorm and three Linear layers; no layer has a head's usual name."""

    def __init__(self, outputs: int = 3, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
            self.body = nn.Sequential(nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
            self.predict = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(self.body(self.stem(x)))


def mlp(inputs: int = 8, outputs: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


X = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3
PAIRS = TensorDataset(X, Y)


@pytest.fixture(autouse=True, scope="module")
def no_pictures() -> Iterator[None]:
    """Drawing takes most of the time of such small runs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("glora.runs.stages.search.Search._draw", lambda *_: None)
        yield


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(out: Path, error: type[Exception], words: str, model: Any = None, train: Any = PAIRS, **how: Any) -> None:
    """The call is refused with these words before anything is written."""
    with pytest.raises(error, match=words):
        glora.fit(mlp() if model is None else model, train=train, out=out, **{**QUICK, **how})
    assert not out.exists()


# -- the whole job


def whole_job(out: Path, *, net: nn.Module | None = None, **changes: Any) -> tuple[glora.FitResult, Recorder]:
    reporter = Recorder()
    splits = {"train": Shapes(60), "val": Shapes(24, seed=1), "test": Shapes(18, seed=2)}
    how = {"epochs": 3, "batch_size": 4, "lr": 3e-2, "population": 4, "generations": 2, "parents": 2, "budget": 3000}
    return glora.fit(net or Net(), out=out, **{**splits, **how, "progress": reporter, **changes}), reporter


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[glora.FitResult, Recorder, Path]:
    out = tmp_path_factory.mktemp("fit") / "shapes"
    return (*whole_job(out), out)


def test_the_merged_model_never_takes_the_place_of_a_runs_own_file(
    done: tuple[glora.FitResult, Recorder, Path], tmp_path: Path
) -> None:
    result, _, out = done
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "link.safetensors").symlink_to(out / "supernet.safetensors")
    for path in (out / "supernet.safetensors", out / "adapter.safetensors", tmp_path / "link.safetensors",
                 out / "training.safetensors", out / "plots" / "x.safetensors"):  # fmt: skip
        with pytest.raises(RunError, match=r"is the run's own file.*Choose another --out, such as .*merged"):
            result.run.save(path)
    with pytest.raises(RunError, match=r"is a run\."):
        result.run.save(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_the_result_has_metrics_winner_model_and_verdict(done: tuple[glora.FitResult, Recorder, Path]) -> None:
    result, reporter, out = done
    assert result.metrics == Result.read(out / "result.json").metrics
    assert {"val_accuracy", "aside_accuracy", "test_accuracy", "test_loss_standard_error"} <= result.metrics.keys()
    assert result.metrics["test_examples"] == 18
    assert (result.metrics["test_accuracy"] or 0) > 2 / 3, "the classes are far apart, guessing has a third"
    assert result.winner is not None
    assert result.winner.parameters == result.record.parameters <= 3000
    assert result.verdict == result.record.verdict
    assert "18 test examples" in result.verdict[0]
    assert (result.record.model, result.record.task) == ("Net", "shapes")
    told = "\n".join(reporter.lines)
    assert "shapes: 60 train, 24 val and 18 test examples, 3 classes" in told
    assert "The head, trained whole, is 'predict', the layer that gives the outputs." in told


def test_the_model_is_the_plain_class_and_gives_what_was_measured(
    done: tuple[glora.FitResult, Recorder, Path],
) -> None:
    result, _, _ = done
    assert type(result.model) is Net
    assert not result.model.training
    assert result.model.state_dict().keys() == Net().state_dict().keys()
    test = Shapes(18, seed=2)
    with torch.no_grad():
        output = result.model(test.pixels)
    loss = nn.functional.cross_entropy(output, torch.tensor(test.targets)).item()
    assert result.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert [row["class"] for row in result.predict(test)] == [CLASSES[place] for place in output.argmax(1)]


def test_a_finished_run_is_loaded_with_its_model(done: tuple[glora.FitResult, Recorder, Path], tmp_path: Path) -> None:
    result, _, out = done
    with pytest.raises(RunError, match=r"came from Python, a Net.*glora\.load\(RUN, model=\.\.\.\)"):
        glora.load(out)
    net = Net()
    before = state_of(net)
    run = glora.load(out, model=net)
    test = Shapes(5, seed=3)
    assert run.predict(test) == result.predict(test)
    assert run.result == result.record
    assert run.winner == result.winner
    assert run.merge() is run.model
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert "state dict of your Net" in run.save(tmp_path / "merged.safetensors")
    with pytest.raises(RunError, match="another model"):
        glora.load(out, model=Net(seed=1))


def test_the_same_call_gives_the_finished_result_without_training(
    done: tuple[glora.FitResult, Recorder, Path],
) -> None:
    result, _, out = done
    files = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    test = Shapes(18, seed=2)
    again, reporter = whole_job(out, test=test)
    assert again.record == result.record
    assert reporter.steps == reporter.trials == []
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == files
    assert sum(test.reads.values()) <= 3, "no more than a look at whose targets they are"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"net": Net(seed=1)}, "began with another model: the weights differ"),
        ({"train": Shapes(57)}, "The data has changed"),
        ({"epochs": 2}, "train.epochs is 3 there, 2 here"),
        ({"method": "lora"}, "method.name is 'glora' there, 'lora' here"),
    ],
)
def test_another_model_other_data_or_settings_are_refused_by_name(
    done: tuple[glora.FitResult, Recorder, Path], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RunError, match=words):
        whole_job(done[2], **changes)


def test_other_inputs_of_the_same_number_and_targets_are_refused_where_they_are_known(tmp_path: Path) -> None:
    fitted(tmp_path / "run", PAIRS)
    changed = X.clone()
    changed[5, 3] += 1e-3
    with pytest.raises(
        RunError, match=r"data has changed since .*: (train|val|test) \(\d+ examples, \w+ then, \d+ examples"
    ):
        fitted(tmp_path / "run", TensorDataset(changed, Y))
    fitted(tmp_path / "run", Subset(TensorDataset(X.clone(), Y), range(len(X))))


def test_a_fresh_head_may_start_elsewhere(done: tuple[glora.FitResult, Recorder, Path]) -> None:
    result, _, out = done
    net = Net()
    nn.init.normal_(net.predict.weight)
    again, _ = whole_job(out, net=net)
    assert again.predict(Shapes(5, seed=3)) == result.predict(Shapes(5, seed=3))


VICTIM = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_fit
from suites.toy import Recorder
torch.set_num_threads(1)
step, trial = (int(text) if text else None for text in sys.argv[3:5])
test_fit.whole_job(sys.argv[2], progress=Recorder(kill_step=step, kill_trial=trial))
"""


def killed(out: Path, *, step: int | None = None, trial: int | None = None) -> None:
    words = [str(TESTS), str(out), *("" if number is None else str(number) for number in (step, trial))]
    ended = subprocess.run([sys.executable, "-c", VICTIM, *words], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_call_goes_on_to_the_same_bits_and_its_model_is_watched(
    done: tuple[glora.FitResult, Recorder, Path], tmp_path: Path
) -> None:
    result, _, whole = done
    out = tmp_path / "shapes"
    killed(out, step=5)
    assert not (out / "supernet.safetensors").exists()
    with pytest.raises(RunError, match="another model"):
        whole_job(out, net=Net(seed=1))
    killed(out, trial=5)
    again, reporter = whole_job(out)
    assert reporter.steps == []
    assert (out / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    assert again.metrics == result.metrics
    assert [r["epoch"] for r in read_jsonl(out / "metrics.jsonl") if r["stage"] == "train"] == [1, 2, 3]


def test_the_users_model_is_left_as_it_is(tmp_path: Path) -> None:
    net = Net().train()
    net.stem.requires_grad_(False)
    net.body.eval()
    before, attributes = state_of(net), list(net.__dict__)
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    modes = {name: module.training for name, module in net.named_modules()}
    result = fitted(tmp_path / "run", Shapes(24), net, method="glora", **QUICK)
    result.predict(Shapes(3))
    assert state_of(net).keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert list(net.__dict__) == attributes
    assert result.model is not net


def test_without_test_nothing_is_tested_and_that_is_said(tmp_path: Path) -> None:
    reporter = Recorder()
    result = glora.fit(mlp(), train=PAIRS, out=tmp_path / "run", **{**QUICK, "progress": reporter})
    assert not [name for name in result.metrics if name.startswith("test")]
    assert any("nothing is tested" in line for line in reporter.lines)
    assert any("nothing was tested" in note for note in result.record.notes)
    assert any("No val was given: 10 val examples cut from the training examples" in n for n in result.record.notes)


def test_running_statistics_stay_the_bases_unless_asked_for(tmp_path: Path) -> None:
    for asked in (False, True):
        result = fitted(tmp_path / str(asked), Shapes(24), Net(), statistics=asked)
        same = torch.equal(result.model.stem[1].running_mean, Net().stem[1].running_mean)
        assert same is not asked
        assert glora.load(tmp_path / str(asked), model=Net()).predict(Shapes(4)) == result.predict(Shapes(4))


def test_workers_score_on_models_and_data_from_python(tmp_path: Path) -> None:
    how = {**QUICK, "population": 3, "generations": 1}
    alone, team = (
        glora.fit(Net(), train=Shapes(30), out=tmp_path / str(workers), workers=workers, **how) for workers in (0, 1)
    )
    assert alone.winner is not None and team.winner is not None
    assert alone.winner.genome == team.winner.genome
    assert team.metrics["val_loss"] == pytest.approx(alone.metrics["val_loss"], rel=1e-5)


# -- the head


def test_a_head_is_found_by_its_name_or_by_its_outputs_or_named(tmp_path: Path) -> None:
    class Named(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.predict = self.predict, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.body(self.stem(x)))

    def heads(model: nn.Module, **how: Any) -> tuple[list[str], list[str]]:
        reporter = Recorder()
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        result = fitted(out, Shapes(24), model, progress=reporter, **how)
        return result.run.info["head"], [line for line in reporter.lines if "The head" in line or "No head" in line]

    assert heads(Named())[0] == ["fc"]
    assert heads(Net()) == (["predict"], ["The head, trained whole, is 'predict', the layer that gives the outputs."])
    assert heads(Net(), head="body.2")[0] == ["body.2"]
    assert heads(Net(), head=None) == ([], [])
    ends = nn.Sequential(Net(), nn.LogSoftmax(-1))
    found, [note] = heads(ends)
    assert found == []
    assert "No head was found" in note and "head=" in note


def test_what_cannot_be_a_head_or_target_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(out, TargetError, "no module 'fc' to be the head", Net(), Shapes(24), head="fc")
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    refused(out, TargetError, "targets='linear'.*matched by targets='conv' or targets='all'", conv, Shapes(24))
    fitted(out, Shapes(24), conv, targets="conv")


# -- models and data that do not fit


def test_models_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x), x

    class Dense(Pair):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.net(x)[:, None].expand(-1, 5, -1)

    grown = mlp()
    grown.cache = grown(X)  # type: ignore[assignment]
    broken = mlp()
    nn.init.constant_(broken[0].weight, float("nan"))
    out = tmp_path / "run"
    refused(out, ConfigError, "model='resnet18' is not allowed", "resnet18")
    refused(out, ConfigError, "Sequential cannot be copied", grown)
    refused(out, StateError, "not made yet", nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3)))
    refused(out, DataError, "gives 4 outputs, and the data has 3 classes. Give the model a head of 3", mlp(outputs=4))
    refused(out, DataError, "gives 2 outputs, and the data has 3 classes", mlp(outputs=2))
    refused(out, DataError, "Pair gives a tuple", Pair())
    refused(out, DataError, r"outputs of shape \(2, 5, 3\) for 2 examples", Dense())
    refused(out, DataError, "outputs that are not finite", broken)
    adapted = mlp()
    glora.inject(adapted, glora.SearchSpace())
    refused(out, StateError, "adapted", adapted)


def test_inputs_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ragged = [(x[: 4 + place % 2], place % 3) for place, x in enumerate(X)]
    images = [(Image.new("RGB", (8, 8)), place % 3) for place in range(12)]
    refused(out, DataError, r"does not take the inputs, float32 \(2, 8\).*cannot be multiplied", mlp(inputs=5))
    refused(out, DataError, r"uint8 \(2, 8\).*ToDtype", train=TensorDataset(X.abs().byte(), Y))
    refused(out, DataError, r"put together: float32 \((4|5),\) and float32 \((5|4),\)", train=ragged)
    refused(out, DataError, "images, a PIL.*only for a timm model.*transform", train=images)
    refused(out, DataError, "train is empty", train=[])
    refused(out, DataError, "val is empty", val=[])
    refused(out, DataError, "train is a DataLoader.*loader.dataset", train=DataLoader(PAIRS))
    refused(out, DataError, "train is a tuple.*TensorDataset", train=(X, Y))
    refused(out, DataError, "test is a dict.*'a', 'b'", test={"a": PAIRS, "b": PAIRS})
    refused(out, DataError, "train is a int", train=3)
    refused(out, DataError, "item of the dataset is a tuple of 3", train=TensorDataset(X, Y, Y))
    refused(out, DataError, "mapping with the keys a, b", train=[{"a": x, "b": 0} for x in X])


def test_targets_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(out, DataError, "only one class, '1'", train=[(x, 1) for x in X])
    refused(out, DataError, "Example 0 of train has no target", train=[(x, None) for x in X])
    refused(out, DataError, "no example of class '0'.*count from 0", train=TensorDataset(X, Y + 1))
    wide = {"train": TensorDataset(X, Y + 1), "val": TensorDataset(X, Y + 1)}
    refused(out, DataError, "gives 3 outputs, and the data has 4 classes.*count classes from 0", **wide)
    refused(out, DataError, "got 3 columns.*one column", train=[(x, [1, 0, 0]) for x in X])
    named = {"name": "classify", "classes": ["a", "b"]}
    refused(out, DataError, "Example 2 of train has the class 2, and there are names for 2: a, b", objective=named)
    refused(out, DataError, "train has no example of class 'x'", train=words(), test=[(X[0], "a"), (X[1], "x")])
    refused(out, DataError, "the data has 4 classes", train=words(), val=words(), test=[(X[0], "a"), (X[1], "x")])
    refused(out, DataError, "'x' for a number", train=[(x, "x") for x in X], objective="regress")
    refused(out, DataError, "different lengths: 1, 2", train=[(X[0], [1, 0]), (X[1], [1])], objective="multilabel")


def words() -> list[tuple[Tensor, str]]:
    return [(x, "abc"[y]) for x, y in zip(X, Y, strict=True)]


def test_settings_that_do_not_exist_are_told_together_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        glora.fit(
            mlp(), train=PAIRS, out=tmp_path / "run", epoch=3, search__pool=1, rnks=(4,), image_size=32,
            settings={"model": {"name": "resnet18"}, "trian": {}}, progress=False,
        )  # fmt: skip
    text = str(caught.value)
    for part in (
        "6 errors", "Did you mean 'epochs' (train.epochs)?", "search.pool: no such setting", "Did you mean 'ranks'",
        "image_size: no such setting", "model: it is given as an object", "trian: no such setting. Did you mean",
    ):  # fmt: skip
        assert part in text, part
    assert not (tmp_path / "run").exists()
    refused(tmp_path / "run", ConfigError, "no objective 'clasify'. Did you mean 'classify'", objective="clasify")
    refused(tmp_path / "run", ConfigError, "no method 'loraa'", method="loraa")
    refused(tmp_path / "run", ConfigError, "seed", seed=-1)


def test_settings_reach_their_groups_by_their_own_name_or_dotted(tmp_path: Path) -> None:
    how = {"rank": 2, "batch_size": 7, "search__batch_size": 9, "threshold": 0.3, "weight_decay": 0.0}
    target = [(x, (x[:3] > 0).int()) for x in X]
    result = glora.fit(
        mlp(), train=target, out=tmp_path / "run", method="lora", objective="multilabel", seed=2**62,
        settings={"train": {"lr": 1e-2}, "data": {"val": 8}}, epochs=1, progress=False, **how,
    )  # fmt: skip
    config = result.record.config
    assert config["method"]["rank"] == 2
    assert (config["train"]["batch_size"], config["search"]["batch_size"]) == (7, 9)
    assert (config["train"]["lr"], config["train"]["weight_decay"]) == (1e-2, 0)
    assert config["objective"]["threshold"] == 0.3
    assert result.winner is None
    assert {"val_map", "val_f1", "val_loss"} <= result.metrics.keys()
    assert result.metrics["val_examples"] == 8
    text = fitted(tmp_path / "text", PAIRS, budget="0.1k", seed=2**33, search={"rescore": 0}, method="glora", **QUICK)
    assert (text.record.config["search"]["budget"], text.record.config["search"]["rescore"]) == (100, 0)


# -- what data may look like


def fitted(out: Path, train: Any, model: nn.Module | None = None, **how: Any) -> glora.FitResult:
    """A quick run without a search."""
    model = mlp() if model is None else model
    return glora.fit(model, train=train, out=out, **{"method": "lora", "epochs": 1, "progress": False, **how})


def test_the_same_examples_in_any_form_give_the_same_result(tmp_path: Path) -> None:
    forms: list[Any] = [
        PAIRS,
        list(zip(X, Y.tolist(), strict=True)),
        [(x.double().numpy(), y) for x, y in zip(X, Y.numpy(), strict=True)],
        [{"x": x, "label": y} for x, y in zip(X, Y, strict=True)],
        [(x.numpy(), float(y)) for x, y in zip(X, Y, strict=True)],
    ]
    metrics = [fitted(tmp_path / str(place), form).metrics for place, form in enumerate(forms)]
    assert all(each == metrics[0] for each in metrics)


def test_several_inputs_are_given_to_the_model_by_place_or_by_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = mlp(outputs=8), mlp()

        def forward(self, feats: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"logits": self.last(self.first(feats) * mask)}

    ones = torch.ones(8)
    by_place = fitted(tmp_path / "place", [((x, ones), y) for x, y in zip(X, Y, strict=True)], Two())
    named = [{"mask": ones, "feats": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    by_name = fitted(tmp_path / "name", named, Two())
    assert by_place.metrics == by_name.metrics
    tensors = X[:5], torch.ones(5, 8)
    expected = by_place.predict(tensors)
    assert expected == by_name.predict({"feats": tensors[0], "mask": tensors[1]}) == by_name.predict(named[:5])


@pytest.mark.parametrize("target", [lambda x: float(x.sum()), lambda x: x[:1], lambda x: x[0].numpy()])
def test_numbers_are_predicted_in_their_units(tmp_path: Path, target: Any) -> None:
    train = [(x, target(x)) for x in X]
    columns, squeezed = mlp(outputs=1), nn.Sequential(*mlp(outputs=1), nn.Flatten(0))
    one = fitted(tmp_path / "one", train, columns, objective="regress", head=None)
    other = fitted(tmp_path / "other", train, squeezed, objective="regress", head=None)
    assert one.metrics == other.metrics
    assert {"val_rmse", "val_mae", "val_r2", "val_loss"} <= one.metrics.keys()
    assert len(one.predict(X[:3])) == 3


SETTINGS = DataSettings(source="from_python")


def targets_of(dataset: Any, objective: Any = None, **splits: Any) -> tuple[list[Any], tuple[str, ...]]:
    task = task_of("t", objective or Classify(), train=dataset, **{"val": dataset, **splits}, settings=SETTINGS)
    return task.train.targets.tolist(), task.objective.strata_names


def test_whole_numbers_are_places_of_outputs() -> None:
    x = X[0]
    assert targets_of([(x, place) for place in range(12)]) == (list(range(12)), tuple(map(str, range(12))))
    assert targets_of([(x, 3), (x, 1)]) == ([3, 1], ("0", "1", "2", "3"))
    assert targets_of([(x, torch.tensor(1)), (x, np.int64(0))]) == ([1, 0], ("0", "1"))
    assert targets_of([(x, True), (x, False)]) == ([1, 0], ("False", "True"))
    assert targets_of([(x, "b"), (x, "a")]) == ([1, 0], ("a", "b"))
    named = Classify(classes=("no", "yes"))
    assert targets_of([(x, 1), (x, 0)], named) == ([1, 0], ("no", "yes"))
    assert targets_of([(x, "yes"), (x, "no")], named) == ([1, 0], ("no", "yes"))
    assert targets_of([(x, 0), (x, 1)], test=[(x, 2)])[1] == ("0", "1", "2"), "over all splits"
    assert targets_of([(x, 5), (x, 10**9)]) == ([0, 1], ("5", "1000000000")), "no places"


def test_targets_and_names_are_found_where_torchvision_keeps_them() -> None:
    whole = Shapes(30)
    assert targets_of(whole) == (whole.targets, CLASSES)
    assert sum(whole.reads.values()) <= 2 * 3, "not every item is read for its target"
    part = Shapes(30)
    subset = Subset(part, [5, 4, 7])
    assert as_targets(subset).names == CLASSES
    assert [row for (row,) in as_targets(subset).rows] == [2, 1, 1]
    assert sum(part.reads.values()) <= 2 * 3
    turned = Shapes(30, target_transform=lambda target: 2 - target)
    assert targets_of(turned) == ([2 - target for target in turned.targets], CLASSES)
    other = Shapes(3)
    other.classes = ["owl", "dog", "cat"]  # names count, not their places
    task = task_of("t", Classify(), train=whole, val=other, settings=SETTINGS)
    assert task.val.targets.tolist() == [2, 1, 0]


def test_columns_of_labels_have_the_names_of_the_classes() -> None:
    class Multi(Shapes):
        def __init__(self) -> None:
            super().__init__(6)
            self.targets = np.eye(3)[[0, 1, 2, 0, 1, 2]]  # type: ignore[assignment]

    task = task_of("t", MultiLabel(), train=Multi(), val=Multi(), settings=SETTINGS)
    assert task.objective.model_dump()["labels"] == CLASSES
    assert torch.equal(task.train.targets, torch.eye(3)[[0, 1, 2, 0, 1, 2]])


def test_train_and_val_given_both_are_sampled_to_the_sizes_asked_for() -> None:
    settings = DataSettings(source="from_python", train=30, val=6)
    task = task_of("t", Classify(), train=Shapes(60), val=Shapes(24), settings=settings)
    assert (len(task.train), len(task.val)) == (30, 6)
    assert Counter(task.train.targets.tolist()) == {0: 10, 1: 10, 2: 10}


# -- images


def timm_model() -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit", img_size=32, num_classes=2)


HOW = {"targets": ["blocks.0.attn.qkv"], "epochs": 2, "lr": 1e-2}


def opened(file: str) -> Image.Image:
    with Image.open(file) as image:
        return image.copy()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    pandas = pytest.importorskip("pandas")
    root = image_folder(tmp_path_factory.mktemp("frames"))
    rows = [(str(file), file.parent.name) for file in sorted(root.rglob("*.png"))]
    table = pandas.DataFrame(rows, columns=["file", "label"]).sample(frac=1, random_state=0)
    return table[:30], table[30:]


def test_a_table_of_files_is_read_as_the_timm_model_wants(frames: tuple[Any, Any], tmp_path: Path) -> None:
    train, test = frames
    result = fitted(tmp_path / "run", train, timm_model(), test=test, **HOW)
    assert result.metrics["test_examples"] == 10
    assert result.run.info["preprocess"]["size"] == [32, 32]
    assert result.run.objective.model_dump()["classes"] == ("dark", "light")
    files = list(test["file"])
    expected = result.predict(files)
    right = [row["class"] == Path(file).parent.name for row, file in zip(expected, files, strict=True)]
    assert sum(right) / 10 == pytest.approx(result.metrics["test_accuracy"])
    assert result.predict(test) == result.predict(list(map(opened, files))) == expected
    loaded = glora.load(tmp_path / "run", model=timm_model())
    assert loaded.predict(files) == expected


def test_pil_images_are_read_as_files_are(frames: tuple[Any, Any], tmp_path: Path) -> None:
    train, _ = frames
    places = {"dark": 0, "light": 1}
    items = [{"image": opened(file), "label": places[label]} for file, label in train.itertuples(index=False)]
    by_file = fitted(tmp_path / "file", train, timm_model(), **HOW)
    by_image = fitted(tmp_path / "image", items, timm_model(), **HOW)
    assert by_file.metrics["val_loss"] == pytest.approx(by_image.metrics["val_loss"], rel=1e-6)


def test_a_table_that_does_not_fit_says_what_is_missing(frames: tuple[Any, Any], tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    train, out = frames[0], tmp_path / "run"
    gone, empty = train.copy(), train.copy()
    gone.iloc[1, 0] = "nowhere.png"
    empty.iloc[2, 1] = None
    refused(out, DataError, "not known how Sequential reads images.*dataset of \\(tensor, target\\)", train=train)
    refused(out, DataError, "'file' of train names files that are not there: nowhere.png", timm_model(), gone)
    refused(out, DataError, "Row 2 of train has no value in 'label'", timm_model(), empty)
    numbers = pandas.DataFrame({"a": [1.0], "b": [2]})
    refused(out, DataError, "Row 0 of train has .* in its first column, 'a'", timm_model(), numbers)
    refused(out, DataError, "has the column 'file' alone", timm_model(), train[["file"]])
    refused(out, DataError, "train is empty", timm_model(), train[:0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hugging_face_dataset_gives_columns_names_and_items(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"x": datasets.Array2D((3, 4), "float32"), "label": label})
    rows = {"x": np.float32(X[:24, :6].repeat(1, 2).view(24, 3, 4)).tolist(), "label": [k % 2 for k in range(24)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    model = nn.Sequential(nn.Flatten(), *mlp(12, 2))
    asked = fitted(tmp_path / "torch", data.with_format("torch"), model)
    assert asked.run.objective.model_dump()["classes"] == ("no", "yes")
    turned = data.with_transform(lambda batch: {**batch, "x": [torch.tensor(x) for x in batch["x"]]})
    assert fitted(tmp_path / "transform", turned, model).metrics == asked.metrics
    splits = datasets.DatasetDict({"train": data})
    refused(tmp_path / "dict", DataError, "train is a DatasetDict.*'train'", model, splits)
