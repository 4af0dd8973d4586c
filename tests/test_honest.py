"""A search's honesty: what it cannot reach, what it scores again, what it is compared with, what it picks later."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytest
import torch

import glora
from glora.adapt.adapter_file import load_supernet, read_header
from glora.adapt.supernet import copied
from glora.cli.app import search_or_pick
from glora.errors import BudgetError, ConfigError, RunError
from glora.files import read_jsonl
from glora.methods.glora import TunedAdapter
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.calibration import apply_calibration
from glora.runs.folder import RunFolder
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.runs.scoring import StoredNumbers, ValScorer
from glora.runs.stages.search import Search
from glora.searchers import pareto_front
from glora.space import SearchSpace
from glora.tasks.calibration import Calibration
from glora.tasks.evaluation import Evaluation
from glora.tasks.images import ImageSet
from glora.tasks.objectives.classify import Classify
from suites.toy import Recorder, tiny
from test_floors import SRC, imports, tree_of
from test_statistics import normed

NSGA2 = {"searcher": {"name": "nsga2", "population": 6, "generations": 2}, "rescore": 3, "controls": 5}


@pytest.fixture(scope="module")
def searched(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a search over all sizes, not tested yet."""
    run = Run(tiny(photos, search=NSGA2), tmp_path_factory.mktemp("runs") / "nsga2", Recorder())
    run.train()
    run.search()
    return run


def copy_of(run: Run, folder: Path) -> Path:
    import shutil

    shutil.copytree(run.folder.path, folder)
    return folder


# -- the test images cannot be reached


def reachable(start: Any) -> list[Any]:
    """All that can be got at from an object by attributes, items and closures; modules and classes end a path."""
    found: dict[int, Any] = {}
    todo = [start]
    while todo:
        each = todo.pop()
        if id(each) in found or isinstance(each, str | bytes | int | float | torch.Tensor | ModuleType | type):
            continue
        found[id(each)] = each
        if isinstance(each, dict):
            todo += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            todo += each
        if isinstance(each, MethodType):
            todo.append(each.__self__)
        function = getattr(each, "__func__", each)
        if isinstance(function, FunctionType):
            todo += [cell.cell_contents for cell in function.__closure__ or () if cell is not None]
            todo += function.__defaults__ or ()
        todo += vars(each).values() if hasattr(each, "__dict__") else []
        slots = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
        todo += [getattr(each, name) for name in slots if isinstance(name, str) and hasattr(each, name)]
    return list(found.values())


def images_in(things: list[Any]) -> set[Any]:
    return {item for each in things if isinstance(each, ImageSet) for item in each.items}


def test_no_path_leads_from_the_search_to_a_test_image(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    assert images_in(reachable(run)) >= set(run.task.test.items), "the walk can find them where there is a path"
    search = run.searching()
    assert isinstance(search, Search)
    things = reachable(search)
    assert search.scorer in things
    assert search.session.data.val in things
    test = set(run.task.test.items)
    assert test
    assert not images_in(things) & test
    assert not [each for each in things if each in (run, run.task, run.task.test)]
    assert not test & images_in(reachable(run.session))


BLIND = [  # files of training and search
    "runs/session", "runs/scoring", "runs/comparison", "runs/calibration", "runs/stages/train", "runs/stages/search",
    "runs/stages/polish", "training/trainer", "training/pace",
]  # fmt: skip


@pytest.mark.parametrize("file", BLIND)
def test_the_files_of_training_and_search_know_no_task(file: str) -> None:
    path = SRC / f"{file}.py"
    known = {name for name in imports(path) if name.startswith(("glora.tasks.task", "glora.runs.stages.test"))}
    assert not known
    assert "glora.tasks.visible.visible" not in imports(path)
    attributes = {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    assert "test" not in attributes


def test_a_search_whose_test_images_cannot_be_read_does_not_notice(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny(photos, search={"control": "retrain"}), tmp_path / "run", Recorder())
    test, batch = run.task.test, ImageSet.batch

    def guarded(self: ImageSet, indices: Any) -> Any:
        assert not set(self.items) & set(test.items), "test was read"
        return batch(self, indices)

    monkeypatch.setattr(ImageSet, "batch", guarded)
    run.train()
    run.search()
    run.pick(budget=10**9, min_budget=0)
    with pytest.raises(AssertionError, match="test was read"):
        run.evaluate()


# -- scored again


def test_the_best_are_scored_again_and_the_best_on_all_images_wins(searched: Run) -> None:
    outcome = Outcome.read(searched.folder.winner)
    values = searched.searching().values
    space = searched.tuned.adapted.space
    by_number = {trial.number: trial for trial in trials_of(searched)}
    assert outcome.rescored == 3
    assert len(by_number) == outcome.scored == outcome.eligible
    first = sorted(by_number.values(), key=lambda trial: trial.rank)[:3]
    losses = {}
    for trial in first:
        with searched.tuned.hold(trial.genotype) as model:
            data = searched.session.data
            found = [searched.session.evaluator.evaluate(model, each) for each in (data.val, data.aside)]
        assert values(trial.genome)["val"].value("loss") == pytest.approx(-trial.score.value)
        losses[trial.number] = torch.cat([each.values["loss"] for each in found]).mean().item()
    assert outcome.number == min(losses, key=lambda number: losses[number])
    assert read_header(searched.folder.adapter)["genotype"] == space.decode(outcome.genome).to_json()


def trials_of(run: Run) -> Any:
    return run.searching().finished.trials


def test_of_equal_genotypes_the_smaller_wins(searched: Run) -> None:
    from glora.runs.comparison import best_again

    def evaluation(loss: float) -> Evaluation:
        return Evaluation(Classify(), {"accuracy": torch.ones(4), "loss": torch.full((4,), loss)})

    same, nan = evaluation(1.0), evaluation(math.nan)
    sizes = {(0,): 30, (1,): 10, (2,): 20}
    values: Any = lambda genome: {"val": same}  # noqa: E731
    assert best_again(sizes, values, fitness="loss") == (1,)
    diverged: Any = lambda genome: {"val": nan if genome == (1,) else same}  # noqa: E731
    assert best_again(sizes, diverged, fitness="loss") == (2,)


def test_without_rescoring_all_of_val_chooses_and_the_best_on_val_wins(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, search={"rescore": 0, "controls": 2}), tmp_path / "run", Recorder())
    result = run.fit()
    outcome = Outcome.read(run.folder.winner)
    assert outcome.number == min(trials_of(run), key=lambda trial: trial.rank).number
    assert result.metrics["val_examples"] == len(run.task.val)
    assert not [name for name in result.metrics if name.startswith(("aside", "selection_bias"))]


def test_rescoring_needs_images_set_aside(photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs examples set aside, but data\.aside=0"):
        tiny(photos, data={"source": str(photos), "aside": 0})


def test_the_gap_between_val_and_what_was_set_aside_is_told(searched: Run) -> None:
    row = Outcome.read(searched.folder.winner).rows["winner"]
    for name, sign in (("accuracy", 1), ("loss", -1)):
        val, aside = (row[f"{split}_{name}"] or 0 for split in ("val", "aside"))
        assert row[f"selection_bias_{name}"] == pytest.approx(sign * (val - aside))
        errors = [row[f"{split}_{name}_standard_error"] or 0 for split in ("val", "aside")]
        assert row[f"selection_bias_{name}_standard_error"] == pytest.approx(math.hypot(*errors))


# -- folds


def test_with_folds_each_genotype_is_scored_on_what_its_supernet_did_not_see(photos: Path, tmp_path: Path) -> None:
    data = {"source": str(photos), "folds": 3, "aside": 2}
    run = Run(tiny(photos, data=data, train={"epochs": 1}), tmp_path / "run", Recorder())
    result = run.fit()
    assert result.metrics["val_examples"] == len(run.task.train) + len(run.task.val) - 2 == len(run.session.data.val)
    assert result.metrics["aside_examples"] == 2
    outcome, search = Outcome.read(run.folder.winner), run.searching()
    genotype = search.space.decode(outcome.genome)
    total = 0.0
    for place, part in enumerate(run.session.data.scoring):  # each fold's file, loaded into a network of its own
        fresh = Run.open(run.folder.path, Recorder())
        load_supernet(fresh.tuned.adapted, run.folder.fold(place).supernet)
        apply_calibration(fresh.tuned, Calibration.read(run.folder.calibration))
        fresh.tuned.activate(genotype)
        found = run.session.evaluator.evaluate(fresh.tuned.merged(), part)
        total += found.values["loss"].double().sum().item()
    assert result.metrics["val_loss"] == pytest.approx(total / len(run.session.data.val), rel=1e-5)
    assert outcome.score == pytest.approx(-(result.metrics["val_loss"] or 0))
    files = [run.folder.supernet, *(run.folder.fold(place).supernet for place in range(3))]
    assert len({file.read_bytes() for file in files}) == 4
    aside = run.session.evaluator.evaluate(load_run(run.folder.path).model, run.session.data.aside).value("loss")
    assert result.metrics["aside_loss"] == pytest.approx(aside, rel=1e-5), "the winner plays the last supernet"


@pytest.mark.slow
def test_folds_go_with_racing_and_with_workers(photos: Path, tmp_path: Path) -> None:
    data = {"source": str(photos), "folds": 2, "aside": 2}
    searcher = {"population": 6, "generations": 2}
    search = {"searcher": searcher, "racing": True, "racing_first": 4, "racing_level": 0.5}
    run = Run(tiny(photos, data=data, train={"epochs": 1}, search=search), tmp_path / "one", Recorder())
    run.train()
    folder = copy_of(run, tmp_path / "two")
    alone = run.search()
    both = Run.open(folder, Recorder(), search={"workers": 2}).search()
    assert both == alone
    scores = [
        {(line["number"], line.get("piece")): line.get("values") for line in read_jsonl(path / "search.jsonl")[1:]}
        for path in (run.folder.path, folder)
    ]
    assert scores[0] == scores[1]
    assert any(trial.seen < 1 for trial in trials_of(run))


def test_the_running_statistics_of_folds_stay_apart() -> None:
    model = normed()
    adapted = glora.inject(model, SearchSpace(ranks=(2,)), targets=["fc1"], head=("head",), statistics=True)
    folds = []
    for value in (1.0, 2.0):
        model.norm.running_mean.fill_(value)
        folds.append(StoredNumbers(TunedAdapter(adapted), copied(adapted)))
    for fold, value in zip(folds, (1.0, 2.0), strict=True):
        with fold.hold(adapted.space.smallest):
            assert model.norm.running_mean.eq(value).all()


@pytest.mark.slow
def test_what_left_a_race_is_neither_scored_again_nor_picked(photos: Path, tmp_path: Path) -> None:
    searcher = {"population": 8, "generations": 2, "parents": 2}
    search = {"searcher": searcher, "racing": True, "racing_first": 2, "racing_level": 0.5}
    run = Run(tiny(photos, search={**search, "rescore": 99}, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    outcome = run.search()
    trials = trials_of(run)
    through = [trial for trial in trials if trial.seen == 1]
    assert 0 < outcome.rescored == len(through) < outcome.scored == len(trials)
    assert trials[outcome.number].seen == 1
    for trial in through:
        picked = run.pick(budget=trial.parameters, min_budget=0)
        assert trials[picked.number].seen == 1
    gone = next(trial.parameters for trial in trials if trial.parameters not in {one.parameters for one in through})
    with pytest.raises(BudgetError, match=f"None of the {len(through)} genotypes of"):
        run.pick(budget=gone, min_budget=gone)


def test_folds_resume_where_they_were_killed(photos: Path, tmp_path: Path) -> None:
    experiment = tiny(photos, data={"source": str(photos), "folds": 2}, train={"epochs": 2})
    whole = Run(experiment, tmp_path / "whole", Recorder())
    whole.train()

    class Stop(Recorder):
        def training(self, progress: Any) -> None:
            super().training(progress)
            if [line for line in self.lines if line.startswith("Fold 2")] and progress.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(experiment, tmp_path / "cut", Stop()).train()
    assert not (tmp_path / "cut" / "supernet.safetensors").exists()
    Run(experiment, tmp_path / "cut", Recorder()).train()
    for name in ("supernet.safetensors", "fold-1/supernet.safetensors", "fold-2/supernet.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert RunFolder(tmp_path / "cut").seconds()["train"] > 0


def test_what_a_method_without_a_search_cannot_use_is_told(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, method="linear", data={"source": str(photos), "folds": 3}), tmp_path / "run", Recorder())
    assert run.session.data.notes == ("Nothing is searched: data.folds changes nothing.",)
    assert len(run.session.data.val) == len(run.task.val)
    run = Run(tiny(photos, method="linear", search={"budget": 100, "polish": 2}), tmp_path / "other", Recorder())
    assert run.session.data.notes == ("Nothing is searched: search.budget and search.polish change nothing.",)


# -- controls


def test_controls_are_random_genotypes_within_the_budget_and_the_largest(photos: Path, tmp_path: Path) -> None:
    search = {"searcher": {"population": 4, "generations": 1}, "budget": 600, "controls": 7, "rescore": 2}
    run = Run(tiny(photos, search=search), tmp_path / "run", Recorder())
    run.train()
    outcome = run.search()
    rows = outcome.rows
    assert list(rows) == ["winner", "random_mean", "random_best", "largest"]
    space = run.tuned.adapted.space
    assert rows["largest"]["parameters"] == space.count(space.largest) > 600
    assert all((rows[name]["parameters"] or 0) <= 600 for name in ("winner", "random_mean", "random_best"))
    assert rows["random_mean"]["genotypes"] == 7
    measured = read_jsonl(run.folder.values)[1:]
    assert len({tuple(record["genome"]) for record in measured}) == len(measured) <= 2 + 7 + 1
    asked = {trial.genome for trial in trials_of(run)}
    assert len({tuple(record["genome"]) for record in measured} - asked) >= 6, "drawn on their own"
    for name in ("random_mean", "random_best", "largest"):
        assert {"aside_loss_ahead", "aside_accuracy_ahead_standard_error", "val_loss_ahead"} <= set(rows[name])
    assert (rows["random_best"]["val_loss"] or 0) <= (rows["random_mean"]["val_loss"] or 0)
    told = " ".join(run.reporter.lines)  # type: ignore[attr-defined]
    assert "the largest subnet" in told
    assert "above the budget" in told
    again = Run.open(run.folder.path, Recorder(), search={"controls": 3}).search()
    assert again.rows["random_mean"]["genotypes"] == 3, "controls may still change after the search"
    assert again.genome == outcome.genome


def test_the_winner_trained_alone_is_a_control_that_costs_a_training(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, search={"control": "retrain", "controls": 0}), tmp_path / "run", Recorder())
    result = run.fit()
    assert list(result.controls) == ["retrained"]
    row = result.controls["retrained"]
    assert row["parameters"] == result.parameters
    assert {"val_loss", "aside_loss", "test_loss", "test_loss_ahead"} <= set(row)
    folder = run.folder.retrained(Outcome.read(run.folder.winner).genome)
    header = read_header(folder.adapter)
    assert header["genotype"] == read_header(run.folder.adapter)["genotype"]
    assert row["test_loss"] != result.metrics["test_loss"]
    steps = [progress.step for progress in run.reporter.steps]  # type: ignore[attr-defined]
    assert steps.count(max(steps)) == 2, "as many steps as the supernet"


def test_a_result_keeps_its_controls_and_their_words(searched: Run, tmp_path: Path) -> None:
    run = Run.open(copy_of(searched, tmp_path / "run"), Recorder())
    result = run.evaluate()
    again = Result.read(run.folder.result)
    assert again == result
    assert set(again.controls) == {"random_mean", "random_best", "largest"}
    told = [line for line in again.verdict if line.startswith("The winner ")]
    assert len(told) == 3
    assert all("test images: accuracy" in line for line in told[1:])
    assert any(line.startswith("Selection bias, val minus set-aside") for line in again.verdict)


# -- another budget, picked


def test_a_finished_search_gives_the_best_for_any_budget_without_a_new_score(
    searched: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(searched, tmp_path / "run")
    trials = trials_of(searched)
    front = pareto_front(trials)
    monkeypatch.setattr(ValScorer, "__call__", lambda *_, **__: pytest.fail("a new score"))
    monkeypatch.setattr("glora.tasks.evaluation.Evaluator.evaluate", lambda *_, **__: pytest.fail("a new forward"))
    journal = (folder / "search.jsonl").read_bytes()
    for trial in front[1:]:
        budget = trial.parameters + 1
        reporter = Recorder()
        outcome = Run.open(folder, reporter).pick(budget=budget, min_budget=0)
        fitting = [each for each in trials if each.parameters <= budget]
        assert outcome.number == trial.number == min(fitting, key=lambda each: each.rank).number
        assert (outcome.eligible, outcome.scored, outcome.picked) == (len(fitting), len(trials), True)
        assert f"Picked from {len(fitting)} of {len(trials)} scored genotypes" in " ".join(reporter.lines)
        assert read_header(folder / "adapter.safetensors")["genotype"] == trial.genotype.to_json()
        drawn = json.loads((folder / "plots" / "search.json").read_text())
        assert drawn["winner"]["parameters"] == trial.parameters
    assert (folder / "search.jsonl").read_bytes() == journal


def test_a_budget_that_nothing_scored_keeps_is_refused_with_the_smallest(searched: Run, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path / "run")
    before = (folder / "adapter.safetensors").read_bytes()
    sizes = [trial.parameters for trial in trials_of(searched)]
    words = rf"None of the {len(sizes)} genotypes .*The smallest has {min(sizes):,}, the largest {max(sizes):,}"
    with pytest.raises(BudgetError, match=words):
        Run.open(folder, Recorder()).pick(budget=None, min_budget=max(sizes) + 1)
    assert (folder / "adapter.safetensors").read_bytes() == before


def test_a_picked_winner_is_compared_with_genotypes_of_the_sizes_searched(photos: Path, tmp_path: Path) -> None:
    search = {"searcher": {"population": 6, "generations": 1}, "controls": 3}
    run = Run(tiny(photos, search=search, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    own = run.search()
    picked = run.pick(budget=own.parameters)
    assert picked.min_budget == own.min_budget > 0
    rows = run.evaluate().controls
    assert all((rows[name]["parameters"] or 0) >= own.min_budget for name in ("random_mean", "random_best"))


def test_an_unfinished_search_is_not_picked_from(searched: Run, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path / "run")
    lines = (folder / "search.jsonl").read_text().splitlines(keepends=True)
    (folder / "search.jsonl").write_text("".join(lines[:-2]))
    with pytest.raises(RunError, match=r"is not finished.*glora search"):
        Run.open(folder, Recorder()).pick(budget=10**6, min_budget=0)


def test_a_second_winner_is_tested_too_and_it_is_said_that_test_was_read_before(searched: Run, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path / "run")
    first = Run.open(folder, Recorder()).evaluate()
    small = min(trials_of(searched), key=lambda trial: trial.parameters).parameters
    run = Run.open(folder, Recorder())
    picked = run.pick(budget=small + 1, min_budget=0)
    second = run.evaluate()
    assert second.parameters == picked.parameters < first.parameters
    kept = folder / "tested" / f"{first.winner}.json"
    assert Result.read(kept) == first
    assert any("Not the first look" in line and kept.name in line for line in second.verdict)
    assert not any("Not the first look" in line for line in first.verdict)
    assert second.controls["random_best"]["parameters"] <= small + 1  # type: ignore[operator]
    run.search()  # back to the run's own winner, which was tested already
    assert run.evaluate() == first
    assert [file.stem for file in run.folder.tested] == ["result", second.winner]


# -- what a folder holds is one model


def smaller(run: Run) -> int:
    """A budget that the run's own winner does not keep."""
    return Outcome.read(run.folder.winner).parameters - 1


def test_after_one_winner_was_tested_no_other_is_polished_and_no_setting_changes(searched: Run, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path / "run")
    first = Run.open(folder, Recorder()).evaluate()
    Run.open(folder, Recorder()).pick(budget=smaller(searched), min_budget=0)
    for change in ({"polish": 2}, {"controls": 1}, {"control": "retrain"}):
        with pytest.raises(RunError, match="holds a run of other settings"):
            Run.open(folder, Recorder(), search=change)
    (folder / "search.jsonl").unlink()
    with pytest.raises(RunError, match="holds a run of other settings"):
        Run.open(folder, Recorder(), search={"budget": smaller(searched)})
    again = Run.open(folder, Recorder())
    again.search()
    assert again.evaluate() == first


def test_a_result_is_shown_beside_no_other_model(searched: Run, tmp_path: Path) -> None:
    folder = RunFolder(copy_of(searched, tmp_path / "run"))
    first = Run.open(folder.path, Recorder()).evaluate()
    kept = folder.result.read_bytes()
    run = Run.open(folder.path, Recorder())
    picked = run.pick(budget=smaller(searched), min_budget=0)
    assert not folder.result.exists()
    folder.result.write_bytes(kept)  # by hand
    second = run.evaluate()
    assert second.winner == picked.key != first.winner
    assert second.parameters == picked.parameters
    assert {Result.read(file).winner for file in folder.tested} == {first.winner, second.winner}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["adapter", "outcome", "result"])
def test_a_stop_between_the_files_of_a_winner_is_told_and_mended(
    searched: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = RunFolder(copy_of(searched, tmp_path / "run"))
    first = Run.open(folder.path, Recorder()).evaluate()
    budget = smaller(searched)
    with monkeypatch.context() as patch:
        stop = {
            "adapter": ("glora.methods.glora", "save_adapter"),
            "outcome": ("glora.report.outcome.Outcome", "write"),
        }
        where, name = stop.get(place, ("glora.runs.folder.RunFolder", "restore_result"))
        patch.setattr(f"{where}.{name}", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Run.open(folder.path, Recorder()).pick(budget=budget, min_budget=0)
    if place == "outcome":  # the adapter is the picked one, winner.json the one before
        again = Run.open(folder.path, Recorder())
        for reader in (again.evaluate, folder.current_result, lambda: load_run(folder.path)):
            with pytest.raises(RunError, match=r"is not the winner in winner\.json.*glora search"):
                reader()
    elif place == "adapter":
        assert Run.open(folder.path, Recorder()).evaluate() == first
    picked = Run.open(folder.path, Recorder()).pick(budget=budget, min_budget=0)
    result = Run.open(folder.path, Recorder()).evaluate()
    assert (result.winner, result.parameters) == (picked.key, picked.parameters)
    fitted = Run.open(folder.path, Recorder())
    fitted.search()
    assert fitted.fit() == first


def test_a_fit_mends_what_a_stop_has_left(searched: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(searched, tmp_path / "run")
    first = Run.open(folder, Recorder()).evaluate()
    with monkeypatch.context() as patch:
        patch.setattr(Outcome, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Run.open(folder, Recorder()).pick(budget=smaller(searched), min_budget=0)
    assert Run.open(folder, Recorder()).fit() == first
    assert read_header(folder / "adapter.safetensors")["info"]["winner"] == first.winner
    (folder / "winner.json").write_text("{")
    assert Run.open(folder, Recorder()).fit() == first


def test_without_a_finished_journal_of_this_winner_test_is_not_read(searched: Run, tmp_path: Path) -> None:
    folder = RunFolder(copy_of(searched, tmp_path / "run"))
    lines = folder.journal.read_text().splitlines(keepends=True)

    def refused(words: str) -> None:
        reporter = Recorder()
        with pytest.raises(RunError, match=words):
            Run.open(folder.path, reporter).evaluate()
        assert not any(line.startswith("Testing") for line in reporter.lines)
        assert not folder.tested

    for kept in (lines[:-1], lines[:1], [lines[0][:20]]):
        folder.journal.write_text("".join(kept))
        refused(r"is not finished.*glora search")
        assert folder.journal.read_text() == "".join(kept)
    folder.journal.unlink()
    refused(r"is not finished.*glora search")
    assert not folder.journal.exists()
    folder.journal.write_text("".join(lines))
    told = json.loads(folder.winner.read_text())
    folder.winner.write_text(json.dumps(told | {"number": told["number"] + 1}))
    refused(r"is of another search than .*search\.jsonl")


def test_a_search_of_a_tested_run_keeps_what_test_told(searched: Run, tmp_path: Path) -> None:
    folder = RunFolder(copy_of(searched, tmp_path / "run"))
    Run.open(folder.path, Recorder()).evaluate()
    tested = Outcome.read(folder.winner).rows
    (folder.path / "winner.json").write_text("damaged")
    again = Run.open(folder.path, Recorder()).search()
    assert again == Outcome.read(folder.winner)
    assert any(name.startswith("test_") for name in tested["winner"])
    for name, row in tested.items():
        assert {**row, "genotypes": 0} == {**again.rows[name], "genotypes": 0}


def test_what_comes_after_a_search_is_for_the_winner_picked_with_it(searched: Run, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path / "run")
    budget = smaller(searched)
    changes = {"budget": budget, "control": "retrain", "polish": 1, "controls": 0}
    picked = search_or_pick(folder, changes, Recorder())
    assert (picked.picked, picked.budget, picked.polish["epochs"]) == (True, budget, 1)
    run = RunFolder(folder)
    assert read_header(run.retrained(picked.genome).adapter)["genotype"] == read_header(run.adapter)["genotype"]
    settings = run.experiment().search
    assert (settings.budget, settings.polish, settings.control) == (None, 1, "retrain")
    assert set(Run.open(folder, Recorder()).evaluate().controls) == {"unpolished", "retrained"}
    with pytest.raises(RunError, match=r"search\.searcher\.population is 6 there, 7 here"):
        search_or_pick(folder, {"budget": budget, "searcher": {"population": 7}}, Recorder())
