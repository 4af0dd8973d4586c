"""Every objective: the shared suite, scikit-learn as an oracle, and whole runs of a table of images."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from glora.errors import ConfigError, DataError
from glora.files import read_jsonl
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.report.tables import markdown
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.tasks.evaluation import Evaluation
from glora.tasks.likelihood import TokenLosses
from glora.tasks.objective import Batch, Objective, Targets
from glora.tasks.objectives import OBJECTIVES
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.multilabel import MultiLabel, average_precision
from glora.tasks.objectives.regress import Regress
from glora.tasks.texts import Choices
from suites.objective_suite import ObjectiveSuite, Toy
from suites.toy import Recorder, tiny

TESTS = Path(__file__).parent
ANIMALS = ("cat", "dog", "owl")


class TestClassify(ObjectiveSuite):
    name = "classify"
    toy = Toy(Targets(("animal",), [(ANIMALS[k % 5 % 3],) for k in range(40)]), {}, {"accuracy": 1, "loss": 0})

    def perfect(self, objective: Objective, encoded: Tensor) -> Tensor:
        return 20 * torch.eye(3)[encoded]

    def constant(self, objective: Objective, encoded: Tensor) -> Tensor:
        return torch.tensor([0.4, 0.4, 0.2]).log().expand(len(encoded), 3)


class TestMultiLabel(ObjectiveSuite):
    name = "multilabel"
    toy = Toy(
        Targets(("tags",), [("|".join(ANIMALS[j] for j in range(3) if k % (j + 2) == 0),) for k in range(36)]),
        {"threshold": 0.4},
        {"map": 1, "f1": 1, "loss": 0},
    )

    def perfect(self, objective: Objective, encoded: Tensor) -> Tensor:
        return 20 * (2 * encoded - 1)

    def constant(self, objective: Objective, encoded: Tensor) -> Tensor:
        share = torch.tensor([1 / 2, 1 / 3, 1 / 4])
        return (share / (1 - share)).log().expand(len(encoded), 3)


class TestRegress(ObjectiveSuite):
    name = "regress"
    toy = Toy(
        Targets(("mass", "age"), [(1000.0 + 3 * k, f"{(7 * k) % 5 - 2}") for k in range(30)]),
        {},
        {"rmse": 0, "mae": 0, "r2": 1, "loss": 0},
    )

    def perfect(self, objective: Objective, encoded: Tensor) -> Tensor:
        return (encoded - encoded.mean(0)) / encoded.std(0, correction=0)

    def constant(self, objective: Objective, encoded: Tensor) -> Tensor:
        return torch.zeros_like(encoded)


class Expecting(nn.Module):
    """A language model of five words: after a word it expects the next."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return torch.eye(5).roll(1, 1)[input_ids]


class TestLanguage(ObjectiveSuite):
    name = "language"
    lacks = frozenset({"chance", "distance"})
    toy = Toy(Targets((), [()] * 30), {}, {"loss": 0, "perplexity": 1, "token_accuracy": 1})
    counts = torch.arange(30) % 4 + 1

    def perfect(self, objective: Objective, encoded: Tensor) -> TokenLosses:
        k = int(self.counts.sum())
        return TokenLosses(torch.zeros(k), torch.ones(k, dtype=torch.bool), self.counts)

    def noisy(self, seed: int = 0, scale: float = 1.0) -> TokenLosses:
        losses = torch.rand(int(self.counts.sum()), generator=torch.Generator().manual_seed(seed))
        return TokenLosses(1 + scale * losses, losses < 0.5, self.counts)

    def cut(self, output: TokenLosses, part: slice) -> TokenLosses:
        mine = torch.isin(output.rows, torch.arange(len(output.counts))[part])
        return TokenLosses(output.losses[mine], output.right[mine], output.counts[part])

    def with_gradient(self, output: TokenLosses) -> tuple[TokenLosses, Tensor]:
        return output, output.losses.requires_grad_()

    def test_the_model_is_called_with_a_tensor_a_tuple_or_names(self) -> None:
        ids, targets = torch.tensor([[0, 1, 3], [4, 0, 1]]), torch.tensor([[-100, 1, 3], [-100, -100, 1]])
        for inputs in (ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
            output = self.plain.forward(Expecting(), Batch(inputs, targets), train=True)
            assert output.right.tolist() == [True, False, True]
            assert output.counts.tolist() == [2, 1]


class OfChoices(ObjectiveSuite):
    """What a batch is where the choices of a question are scored, and a model's scores."""

    def batch(self, encoded: Tensor, part: slice = slice(None)) -> Batch:
        sizes = torch.tensor([4, 5, 6]).expand(len(encoded), 3)
        return Batch(None, Choices(torch.empty(0), encoded[part], sizes[part]), rows=3)

    def perfect(self, objective: Objective, encoded: Tensor) -> Tensor:
        return 30 * (torch.eye(3)[encoded] - 1)

    def test_the_model_is_called_with_a_tensor_a_tuple_or_names(self) -> None:
        objective, _ = self.fitted()
        ids = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4]])
        targets = Choices(
            torch.tensor([[-100, 1, 2], [-100, -100, 3], [-100, -100, 4]]), torch.tensor([0]), torch.ones(1, 3)
        )
        for inputs in (ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
            output = objective.forward(Expecting(), Batch(inputs, targets, rows=3), train=True)
            chances = Expecting()(ids).log_softmax(-1)
            expected = [chances[0, 0, 1] + chances[0, 1, 2], chances[1, 1, 3], chances[2, 1, 4]]
            torch.testing.assert_close(output, torch.stack(expected)[None])


class TestChoose(OfChoices):
    name = "choose"
    lacks = frozenset({"chance"})
    toy = Toy(Targets(("answer",), [(k % 5 % 3,) for k in range(40)]), {}, {"acc": 1, "acc_norm": 1, "loss": 0})

    def constant(self, objective: Objective, encoded: Tensor) -> Tensor:
        return torch.full((len(encoded), 3), -9.0)


class TestVerbalize(OfChoices):
    name = "verbalize"
    toy = Toy(TestClassify.toy.targets, {"words": {"owl": "great owl"}}, {"accuracy": 1, "loss": 0})

    def constant(self, objective: Objective, encoded: Tensor) -> Tensor:
        return torch.tensor([0.4, 0.4, 0.2]).log().expand(len(encoded), 3)


def test_every_objective_of_the_table_has_a_suite() -> None:
    suites = [*ObjectiveSuite.__subclasses__(), *OfChoices.__subclasses__()]
    assert {kind.name for kind in suites if kind is not OfChoices} == OBJECTIVES.keys()


# -- scikit-learn as an oracle


def logits(seed: int, rows: int, columns: int, *, steps: int = 3) -> Tensor:
    """Outputs with many equal ones."""
    return torch.randint(-steps, steps + 1, (rows, columns), generator=torch.Generator().manual_seed(seed)) / 2


@pytest.mark.filterwarnings("ignore:No positive class found")
@pytest.mark.parametrize("seed", range(6))
def test_multilabel_is_what_scikit_learn_measures_ties_included(seed: int) -> None:
    measures = pytest.importorskip("sklearn.metrics")
    output, target = logits(seed, 30, 4), (logits(seed + 9, 30, 4) > 0.5).float()
    target[:, 3] *= seed % 2  # a label that never occurs has no precision
    objective = MultiLabel(labels=("a", "b", "c", "d"), threshold=0.5)
    found = Evaluation(objective, objective.values(output, Batch(None, target)))
    occurs = target.any(0)
    each = [measures.average_precision_score(target[:, k], output[:, k]) for k in range(4) if occurs[k]]
    assert found.value("map") == pytest.approx(np.mean(each))
    assert found.value("f1") == pytest.approx(measures.f1_score(target, output >= 0, average="micro"))
    losses = [measures.log_loss(target[:, k], output[:, k].sigmoid(), labels=[0, 1]) for k in range(4)]
    assert found.value("loss") == pytest.approx(np.mean(losses), rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
@settings(deadline=None)
def test_average_precision_does_not_depend_on_the_order(examples: list[tuple[int, bool]]) -> None:
    scores, targets = (torch.tensor(each) for each in zip(*examples, strict=True))
    found = average_precision(scores.double(), targets)
    assert found == average_precision(scores.flip(0).double(), targets.flip(0))
    if not targets.any():
        assert found is None
        return
    assert found is not None
    assert targets.double().mean() - 1e-9 <= found <= 1 or len(set(scores.tolist())) > 1
    measures = pytest.importorskip("sklearn.metrics")
    assert found == pytest.approx(measures.average_precision_score(targets, scores))


@pytest.mark.parametrize("columns", [1, 3])
def test_regression_is_what_scikit_learn_measures_in_the_users_units(columns: int) -> None:
    measures = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(columns)
    target = torch.randn(25, columns, generator=generator) * torch.tensor([1000.0, 0.01, 3.0])[:columns] + 50
    objective = Regress(columns=("a", "b", "c")[:columns]).fitted(target)
    output = torch.randn(25, columns, generator=generator)
    predicted = [list(row.values()) for row in objective.predictions(output)]
    found = Evaluation(objective, objective.values(output, Batch(None, target)))
    assert found.value("rmse") == pytest.approx(measures.root_mean_squared_error(target, predicted), rel=1e-4)
    assert found.value("mae") == pytest.approx(measures.mean_absolute_error(target, predicted), rel=1e-4)
    assert found.value("r2") == pytest.approx(measures.r2_score(target, predicted), rel=1e-4)
    scaled = (np.array(predicted) - target.numpy()) / target.numpy().std(0)
    assert found.value("loss") == pytest.approx((scaled**2).mean(), rel=1e-3)


def test_classification_is_what_scikit_learn_measures() -> None:
    measures = pytest.importorskip("sklearn.metrics")
    output, target = logits(0, 40, 3, steps=9), torch.arange(40) % 3
    objective = Classify(classes=ANIMALS)
    found = Evaluation(objective, objective.values(output, Batch(None, target)))
    assert found.value("accuracy") == pytest.approx(measures.accuracy_score(target, output.argmax(1)))
    assert found.value("loss") == pytest.approx(measures.log_loss(target, output.double().softmax(1)), rel=1e-5)
    records = objective.predictions(output)
    assert [record["class"] for record in records] == [ANIMALS[k] for k in output.argmax(1)]
    for record in records:
        assert record["probability"] == max(record["probabilities"].values())
        assert sum(record["probabilities"].values()) == pytest.approx(1, rel=1e-5)


# -- what single objectives say


def refused(objective: Objective, targets: Targets, words: str) -> None:
    with pytest.raises(DataError, match=words):
        objective.named(targets).encode(targets)


def test_classes_are_in_the_order_of_numbers_or_letters() -> None:
    def classes(*values: Any) -> tuple[str, ...]:
        return Classify().named(Targets(("c",), [(value,) for value in values])).classes

    assert classes("10", "9", "2") == ("2", "9", "10")
    assert classes("b", "10", "a") == ("10", "a", "b")
    refused(Classify(), Targets(("c",), [("a",), ("a",)]), "only one class, 'a'")
    refused(Classify(classes=ANIMALS), Targets(("c",), [("cat",), ("dgo",)]), "Did you mean 'dog'")


def test_labels_stand_in_one_column_or_in_one_column_each() -> None:
    one = Targets(("tags",), [("cat|dog",), ("",), (" owl ",)])
    each = Targets(
        ("dog", "owl", "cat"),
        [("1", "0", "yes"), ("0", "", "no"), (0, 1.0, False)],
        what="t.csv",
        lines=(2, 3, 4),
    )
    by_one, by_each = MultiLabel().named(one), MultiLabel().named(each)
    assert (by_one.labels, by_each.labels) == (ANIMALS, ("dog", "owl", "cat"))
    assert by_one.encode(one).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert by_each.encode(each).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert by_one.encode(each).tolist() == by_one.encode(one).tolist(), "columns are found by their names"
    assert MultiLabel(separator=";").named(Targets(("t",), [("a;b|c",)])).labels == ("a", "b|c")
    single = Targets(("cat",), [("1",), ("0",)])
    assert MultiLabel().named(single).labels == ("cat",)
    assert MultiLabel(labels=("cat",)).encode(single).tolist() == [[1], [0]]
    refused(MultiLabel(), Targets(("t",), [("",)]), "No example has a label")
    refused(MultiLabel(labels=ANIMALS), Targets(("t",), [("cat|dogg",)]), "label 'dogg'.*Did you mean 'dog'")
    refused(
        MultiLabel(), Targets(("a", "b"), [("1", "2")], what="t.csv", lines=(7,)), "t.csv, line 7, has '2' for a label"
    )
    few = Targets(("a", "b"), [(1, 0)], what="t.csv", lines=(2,))
    refused(MultiLabel(labels=ANIMALS), few, "has the columns a, b.*cat, dog, owl")


def test_numbers_are_read_and_named() -> None:
    ages = Targets(
        ("age", "mass"),
        [("3", "4e2"), (" 5 ", 1)],
        what="t.csv",
        lines=(2, 3),
    )
    objective = Regress().named(ages)
    assert objective.encode(ages).tolist() == [[3, 400], [5, 1]]
    turned = Targets(("mass", "age"), [(400, 3)], what="t.csv", lines=(2,))
    assert objective.encode(turned).tolist() == [[3, 400]]
    for value in ("", "x", "nan", "inf", None):
        refused(
            Regress(), Targets(("age",), [(value,)], what="t.csv", lines=(9,)), "t.csv, line 9, has .* for a number"
        )
    refused(Regress(columns=("age",)), ages, "t.csv has the columns age, mass. To be predicted are age")


@pytest.mark.parametrize("value", [0.1, 1e7 + 1, 0.0])
def test_a_constant_number_is_no_division_by_zero(value: float) -> None:
    constant = torch.full((30, 1), value)
    objective = Regress(columns=("x",)).fitted(constant)
    found = Evaluation(objective, objective.values(torch.zeros(30, 1), Batch(None, constant)))
    assert objective.std == (1.0,)
    assert found.value("loss") == pytest.approx(0, abs=1e-6)
    assert np.isnan(found.value("r2")), "nothing is to be explained"


# -- whole runs of a table


def picture_table(root: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Images of a brightness each, and `images.csv` with what is to be predicted of it."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (root / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *header])
        for place, (level, *values) in enumerate(rows):
            pixels = (level + rng.normal(0, 5, (8, 8, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{place}.png")
            writer.writerow([f"{place}.png", *values])
    return root


def tagged(root: Path) -> Path:
    levels = [40, 110, 180, 240]
    tags = ["dark", "dark|grey", "grey|light", "light"]
    return picture_table(root, ["tags"], [(levels[k % 4], tags[k % 4]) for k in range(40)])


def measured(root: Path) -> Path:
    return picture_table(root, ["level", "minus"], [(6 * k, 6 * k / 10, 100 - 6 * k) for k in range(40)])


TABLES = {"multilabel": tagged, "regress": measured}
SEARCH = {"rescore": 2, "controls": 2}


def experiment(folder: Path, name: str, **changes: Any) -> Any:
    search = {**SEARCH, **changes.pop("search", {})}
    train = {"epochs": 2, "batch_size": 8, **changes.pop("train", {})}
    return tiny(folder, objective={"name": name}, search=search, train=train, **changes)


@pytest.fixture(scope="module", params=sorted(TABLES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Run, Result]:
    root = tmp_path_factory.mktemp(request.param)
    folder = TABLES[request.param](root / "data")
    run = Run(experiment(folder, request.param), root / "run", Recorder())
    result = run.fit()
    assert result is not None
    return request.param, folder, run, result


def test_a_whole_run_has_the_objectives_metrics_everywhere(run: tuple[str, Path, Run, Result]) -> None:
    name, _, job, result = run
    first = {"multilabel": "map", "regress": "rmse"}[name]
    metrics = [metric.name for metric in job.session.objective.metrics]
    assert result.objective == name
    assert [metric.name for metric in result.metrics_info] == metrics
    assert {f"{split}_{metric}" for split in ("val", "aside", "test") for metric in metrics} <= result.metrics.keys()
    assert f"test_{first}_standard_error" not in result.metrics
    assert "test_loss_standard_error" in result.metrics
    assert {"random_best", "random_mean", "largest"} <= result.controls.keys()
    outcome = Outcome.read(job.folder.winner)
    assert outcome.fitness == "loss"
    assert result.verdict
    assert first in " ".join(result.verdict)
    assert "accuracy" not in json.dumps(result.to_json())
    assert first in markdown([result])
    assert {"search.svg", "layers.svg", "parameters.svg"} <= {file.name for file in job.folder.plots.iterdir()}
    assert "accuracy" not in (job.folder.plots / "search.svg").read_text()


def test_the_merged_model_predicts_what_was_tested(run: tuple[str, Path, Run, Result]) -> None:
    name, folder, job, result = run
    loaded = load_run(job.folder.path)
    test = job.task.test
    assert test is not None
    records = loaded.predict(list(test.items))
    found = list(zip(records, test.targets.tolist(), strict=True))
    if name == "regress":
        errors = [abs(record[column] - target[k]) for record, target in found for k, column in enumerate(record)]
        assert list(records[0]) == ["level", "minus"]
        assert result.metrics["test_mae"] == pytest.approx(np.mean(errors), rel=1e-4)
    else:
        labels = list(records[0]["probabilities"])
        right = sum(target[labels.index(label)] for record, target in found for label in record["labels"])
        told = sum(len(record["labels"]) for record in records)
        assert labels == ["dark", "grey", "light"]
        assert result.metrics["test_f1"] == pytest.approx(2 * right / (told + test.targets.sum().item()))
    whole, notes = loaded.evaluate_on(folder)
    assert len(whole) == 40
    assert notes == []
    assert job.fit() == result, "and nothing is done again"


VICTIM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_objectives as here
from suites.toy import Recorder
from glora.runs.run import Run
torch.set_num_threads(1)
step, trial = (int(text) if text else None for text in sys.argv[5:7])
Run(here.experiment(Path(sys.argv[2]), sys.argv[3]), sys.argv[4], Recorder(kill_step=step, kill_trial=trial)).fit()
"""


KILLED = {"multilabel": ("5", ""), "regress": ("", "3")}  # in training, in the search


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_killed_run_goes_on_to_the_same_result(run: tuple[str, Path, Run, Result], tmp_path: Path) -> None:
    name, folder, job, result = run
    words = [str(TESTS), str(folder), name, str(tmp_path / "run"), *KILLED[name]]
    ended = subprocess.run([sys.executable, "-c", VICTIM, *words], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    again = Run(experiment(folder, name), tmp_path / "run", Recorder()).fit()
    assert again is not None
    assert again.metrics == result.metrics
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == job.folder.adapter.read_bytes()


@pytest.mark.parametrize(("name", "metric"), [("multilabel", "loss"), ("regress", "mae"), ("regress", "loss")])
@pytest.mark.usefixtures("no_pictures")
def test_a_race_reads_any_metric_that_is_a_mean_over_examples(tmp_path: Path, name: str, metric: str) -> None:
    folder = TABLES[name](tmp_path / "data")
    search = {"racing": True, "racing_first": 2, "fitness": metric, "calibrate": False}
    result = Run(experiment(folder, name, search=search), tmp_path / "run", Recorder()).fit()
    assert result is not None
    scores = [line for line in read_jsonl(tmp_path / "run" / "search.jsonl") if line["event"] == "score"]
    assert scores
    winner = Outcome.read(tmp_path / "run" / "winner.json")
    assert {line["number"] for line in scores} > {winner.number}
    assert winner.score == pytest.approx(-(result.metrics[f"val_{metric}"] or 0), rel=1e-5)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of such small runs."""
    monkeypatch.setattr("glora.runs.stages.search.Search._draw", lambda *_: None)


NO_MEANS = [("multilabel", "map"), ("multilabel", "f1"), ("regress", "rmse"), ("regress", "r2")]


@pytest.mark.parametrize(("name", "metric"), NO_MEANS)
@pytest.mark.usefixtures("no_pictures")
def test_other_metrics_choose_too_but_do_not_race(tmp_path: Path, name: str, metric: str) -> None:
    folder = TABLES[name](tmp_path / "data")
    with pytest.raises(ConfigError, match=f"racing needs a mean over examples; search.fitness={metric}"):
        experiment(folder, name, search={"racing": True, "fitness": metric})
    with pytest.raises(ConfigError, match=f"search.fitness=accuracy is no metric of {name}"):
        experiment(folder, name, search={"fitness": "accuracy"})
    search = {"fitness": metric, "searcher": {"generations": 0}}
    job = Run(experiment(folder, name, search=search, train={"epochs": 1}), tmp_path / "run", Recorder())
    result = job.fit()
    assert result is not None
    outcome = Outcome.read(job.folder.winner)
    sign = 1 if job.session.objective.metric(metric).higher else -1
    assert sign * outcome.score == pytest.approx(result.metrics[f"val_{metric}"], rel=1e-5)
    assert outcome.standard_error == 0


@pytest.mark.parametrize("name", sorted(TABLES))
@pytest.mark.usefixtures("no_pictures")
def test_a_calibrated_supernet_has_a_temperature_where_the_objective_has(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glora.tasks.calibration.FEWEST", 1)
    monkeypatch.setattr("glora.tasks.calibration.LEVEL", -1e9)
    folder = TABLES[name](tmp_path / "data")
    reporter = Recorder()
    job = Run(experiment(folder, name, train={"epochs": 6, "lr": 3e-3}), tmp_path / "run", reporter)
    result = job.fit()
    assert result is not None
    found = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert found["temperature"] == 1 or name == "multilabel"
    assert any(note.startswith("Calibration: adaptations times") for note in result.notes)
    told = [line for line in reporter.lines if "take no divisor" in line]
    assert bool(told) is (name == "regress")
