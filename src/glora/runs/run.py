"""One Experiment -> one run folder -> one Result, stage by stage; a stage that is done is not done again."""

from __future__ import annotations

import copy
import functools
import itertools
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import nn

from glora.backbones import Backbone, load_backbone
from glora.config import Experiment
from glora.errors import BackboneError, ConfigError, GloraError, RunError, listed
from glora.methods.method import Method, Tuned
from glora.report.outcome import Outcome, Row
from glora.report.result import Result
from glora.runs.cost import planned, search_cost
from glora.runs.excerpts import excerpts
from glora.runs.folder import RunFolder
from glora.runs.latency import latency_ratio
from glora.runs.loaded import FROM_PYTHON, LoadedRun, load_run
from glora.runs.reading import said_of
from glora.runs.reporter import Reporter, Silent, plan
from glora.runs.resolve import resolve
from glora.runs.session import Session
from glora.runs.stages.polish import Polishing, polish, retrain
from glora.runs.stages.rate import choose_rate
from glora.runs.stages.search import Search
from glora.runs.stages.test import Testing, earlier_tests
from glora.runs.stages.train import train
from glora.runs.thumbnails import thumbnails
from glora.runs.together import joined, launched
from glora.searchers.ranks import dismiss, serve
from glora.settings import merged
from glora.tasks.batching import lengths_of
from glora.tasks.calibration import Calibration
from glora.tasks.images import Preprocess
from glora.tasks.memory import memory_told
from glora.tasks.objective import Examples, Objective
from glora.tasks.task import DataSettings, Task
from glora.tasks.visible import VisibleData, visible
from glora.training.device import check_precision, device_name, new_accelerator, processes
from glora.training.pace import check_pace
from glora.training.precision import FEW, Step, bf16_units, chosen_precision, device_of, slowdown

__all__ = ["Reporter", "Run"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Given = ParamSpec("Given")
Made = TypeVar("Made")


def _held(stage: Callable[Concatenate[Run, Given], Made]) -> Callable[Concatenate[Run, Given], Made]:
    """The stage, during which no other process may work in the run's folder."""

    @functools.wraps(stage)
    def alone(run: Run, /, *args: Given.args, **kwargs: Given.kwargs) -> Made:
        with run.link.telling(), run.holding(makes=stage.__name__ in ("fit", "train")):
            return stage(run, *args, **kwargs)

    return alone


class Run:
    """One experiment in one folder, stage by stage: train, search, evaluate.

    Building it reads and checks data, model and budget, and writes nothing.

    Args:
        experiment: The settings.
        folder: The run folder; one with the same settings is continued.
        reporter: Where to tell what is going on.
        backbone: The base, where a program gives it; by default it is built as the settings say.
        task: The examples, where a program gives them; by default they are loaded as the settings say.

    Attributes:
        session: What the stages share.
        link: What connects the processes of the run.
        tuned: The base made trainable.
        searches: Whether the method has more than one genotype.

    Raises:
        RunError: The folder holds a run of other settings, or something else.
        GloraError: Data, model, targets or budget are wrong.
    """

    _holds = False  # whether this process works in the folder
    _begun = False  # whether the folder is there, unless someone removes it

    def __init__(
        self,
        experiment: Experiment,
        folder: str | Path,
        reporter: Reporter,
        *,
        backbone: Backbone | None = None,
        task: Task | None = None,
    ) -> None:
        self.folder = RunFolder(folder)
        self.link = joined()
        with self.link.telling():
            self._make(experiment, reporter, backbone, task)
        weakref.finalize(self, self.link.leave)

    def _make(self, experiment: Experiment, reporter: Reporter, backbone: Backbone | None, task: Task | None) -> None:
        experiment = self.folder.check(resolve(experiment))
        method = cast(Method, experiment.method)
        self.reporter: Reporter = reporter if processes().is_main_process else Silent()
        found = task or cast(DataSettings, experiment.data).load(cast(Objective, experiment.objective))
        self.folder.check_data(found.fingerprint, found.parts)
        backbone = _finite(_reading(backbone or _backbone(experiment, found.objective), experiment))
        self.task = found.prepared(backbone.preprocess)
        model = copy.deepcopy(backbone.model)
        self.tuned: Tuned = method.apply(model, head=backbone.head, seed=experiment.seed)
        self.searches = self.tuned.space is not None
        self._told = False  # whether the user knows what the search costs
        data = _visible(experiment, self.task, searches=self.searches)
        accelerator, self._precision = self._computing(experiment, data)
        self.session = Session(
            experiment,
            method,
            data,
            backbone,
            self.folder,
            accelerator,
            self.reporter,
            _info(backbone, found),
        )
        self.folder.check_base(self.session.base_fingerprint)
        if experiment.train.pace != "off":
            check_pace(self.tuned)
        if self.tuned.space is not None:
            search = planned(experiment, self.session.data, self.tuned.space)
            search.new_searcher(self.tuned.space, seed=experiment.seed)
            self._check_processes()

    @classmethod
    def open(
        cls, folder: str | Path, reporter: Reporter, *, search: Mapping[str, Any] | None = None, **given: Any
    ) -> Run:
        """The run that a folder holds.

        Args:
            folder: The run folder.
            reporter: Where to tell what is going on.
            search: Settings of the search to change, nested; possible as long as nothing was searched.
            given: The base and the examples, where a program gives them.

        Raises:
            RunError: The folder holds none, or its search was made with other settings.
        """
        experiment = RunFolder(folder).experiment()
        run = cls(experiment.with_(search=changed_search(experiment, search or {})), folder, reporter, **given)
        run._begun = True
        return run

    def _computing(self, experiment: Experiment, data: VisibleData) -> tuple[Accelerator, str]:
        """What the run computes on and in; and why in that precision, where it was chosen now."""
        device, precision, why = device_of(), self.folder.settled_precision(experiment), ""
        self.tuned.model.to(device)
        if experiment.train.precision == "auto" and self.folder.done("precision") is None:
            step = Step(self.tuned, data.train, data.objective, experiment.train, device)
            precision, why = chosen_precision(step.seconds, device)
        found = new_accelerator(precision)
        if self.folder.done("trained") is None:  # what is trained may be played in what is nearest to it
            check_precision(found)
        return found, why

    def _check_processes(self) -> None:
        search = self.session.experiment.search
        again = ["--control retrain"] if search.control == "retrain" else []
        again += [f"--set search.polish={search.polish}"] if search.polish else []
        if again and self.session.accelerator.num_processes > 1:
            raise ConfigError(
                f"{' and '.join(again)} trains once more after the search, which one process does alone.",
                remedy=f"Leave it out here (search.polish=0), and then run: "
                f"glora search {self.folder.path} {' '.join(again)}",
            )

    @property
    def experiment(self) -> Experiment:
        """The settings, nothing left open."""
        return self.session.experiment

    @contextmanager
    def holding(self, *, makes: bool) -> Iterator[None]:
        """Within it no other process may work in the folder; other processes of this run leave that to the main one.

        Args:
            makes: Whether what follows makes the folder; if not, and there is none, it is left to say so.

        Raises:
            RunError: Another process does, or the folder of a run that has begun is gone.
        """
        if self._begun and self.alone:
            self.folder.need_there()
        if self._holds or not self.alone or not (makes or self.folder.path.is_dir()):
            yield
            return
        with self.folder.held():
            self._holds = True
            try:
                yield
            finally:
                self._holds = False

    @_held
    def fit(self) -> Result | None:
        """All stages: train, search, and one look at test.

        Returns:
            The result; None on all but the main process, which works alone after the training.
        """
        if self._has_result():
            return self.evaluate()
        self.train()
        if self.searches:
            self.search()
        return self.evaluate()

    def _has_result(self) -> bool:
        try:
            return self.folder.current_result() is not None
        except GloraError:  # what a stop has left is mended by the stages
            return False

    @property
    def alone(self) -> bool:
        """Whether this is the main process, which works alone after the training."""
        return bool(self.session.accelerator.is_main_process)

    @_held
    def train(self) -> None:
        """Trains the supernet (or the baseline), or takes it from the folder when it was trained already."""
        session = self.session
        trained = self.folder.done("trained") is not None
        session.accelerator.wait_for_everyone()  # before the first of them writes
        if trained:
            session.reporter.say("The training is done already.")
        else:
            _say(
                session.reporter,
                plan(self.experiment, self.task, session.data, session.backbone, self.tuned),
            )
            _say(session.reporter, self._started())
            self._told = True
            if self.alone:
                self.folder.write_config(self.experiment)
                self._keep_precision()
                self._begun = True
            session.accelerator.wait_for_everyone()  # all have read whether there was a choice before
            choose_rate(session, self.tuned)
        train(session, self.tuned)

    def _started(self) -> list[str]:
        """How many processes there are, and what each has of a batch."""
        count, size = self.session.accelerator.num_processes, self.experiment.train.batch_size
        if count == 1:
            parts = "train.base=sharded changes nothing: there is one process."
            return [said for said in (launched(), parts * (self.experiment.train.base == "sharded")) if said]
        share = f"{size // count}" if size % count == 0 else f"{size // count} or {size // count + 1}"
        return [f"{count} processes, of a batch of {size} each has {share}; together they do what one would"]

    def _keep_precision(self) -> None:
        """The precision is in the folder, where it was chosen; a slow one is told once."""
        session, asked = self.session, self.experiment.train.precision
        if self.folder.done("precision") is not None:
            return
        if asked == "bf16" and not bf16_units(session.accelerator.device):
            step = Step(self.tuned, session.data.train, session.objective, self.experiment.train, device_of())
            self._precision = slowdown(lambda each: step.seconds(each, most=FEW))
        if self._precision:
            self.reporter.say(self._precision)
            self.folder.mark("precision", chosen=session.accelerator.mixed_precision, why=self._precision)

    @_held
    def search(self) -> Outcome | None:
        """Searches the trained supernet on val, saves the winner's adapter and pictures, compares it with controls.

        The other processes of a run score for the main one.

        Returns:
            The winner; None on all but the main process.

        Raises:
            RunError: The supernet is not trained yet, or the method has nothing to search.
        """
        if not self.alone:
            serve(self.link, self._helping)
            return None
        search = self.searching()
        if not self.folder.begun:  # a search anew
            self.folder.forget_search()
            if not self._told:
                _say(self.reporter, search_cost(search.plan, self.experiment, self.session.data)[1])
        self.folder.write_config(self.experiment)
        outcome = search.run(self.link)
        dismiss(self.link)
        return self._finished(search, outcome)

    def _helping(self) -> Callable[..., Any]:
        """What scores in this process for the main one, which has calibrated the supernet."""
        return self.searching().scorer

    @_held
    def pick(self, *, budget: int | None, min_budget: int | None = None) -> Outcome:
        """The winner for another budget out of a finished search, without a new score; its adapter and pictures.

        Raises:
            BudgetError: No scored genotype keeps the budget.
            RunError: The search is not finished.
        """
        search = self.searching()
        outcome = search.pick(budget=budget, min_budget=min_budget)
        self.folder.write_config(self.experiment)
        return self._finished(search, outcome)

    def _finished(self, search: Search, outcome: Outcome) -> Outcome:
        """The winner polished and trained alone, where the settings ask for it; tested before, it keeps its result."""
        outcome = polish(search, outcome)
        if self.experiment.search.control == "retrain":
            retrain(search, outcome)
        if tested := self.folder.restore_result(outcome.key):
            outcome = search.complete(outcome, tested.rows)
        return outcome

    def searching(self) -> Search:
        """The search of the trained supernet, whether it was begun or not.

        Raises:
            RunError: There is nothing to search, or no supernet yet.
        """
        if not self.searches:
            raise RunError(
                f"Method {self.session.method.name!r} has one genotype: there is nothing to search.",
                remedy=f"Test it: glora eval {self.folder.path}",
            )
        self.folder.trained_file()  # tells when there is none
        return Search(self.session, self.tuned)

    def load(self) -> LoadedRun:
        """The finished run, ready to predict and to be saved.

        Raises:
            RunError: An earlier stage is missing.
        """
        session = self.session
        return load_run(
            self.folder.path,
            model=session.base(),
            base_fingerprint=session.base_fingerprint,
            preprocess=session.backbone.preprocess,
        )

    @_held
    def evaluate(self) -> Result | None:
        """The Result: val, and test exactly once; a run that has one is not tested again.

        Of the controls, the best random genotype, the largest and the retrained one are tested here too, once.

        Returns:
            The result; None on all but the main process.

        Raises:
            RunError: An earlier stage is missing.
        """
        if not self.alone:
            return None
        if found := self.folder.current_result():
            self.reporter.say("This run was tested already; this is the result of then.")
            return found
        session = self.session
        if not self.searches and session.trains_again(searches=False) and self.folder.done("final") is None:
            raise RunError(
                f"{self.folder.path} is not trained on train and val together yet.",
                remedy=f"Run `glora train --out {self.folder.path}` first.",
            )
        loaded = self.load()
        search = self.searching() if self.searches else None
        outcome = None if search is None else search.current()
        model = loaded.model.to(session.accelerator.device)
        latency = self._latency(model)
        start = time.perf_counter()
        testing = Testing(self.session, self.task.test)
        rows, outcome = self._tested(testing, model, search, outcome)
        others = testing.others(model, self.task)
        seconds = {**self.folder.seconds(), "test": time.perf_counter() - start}
        work, tokens = self.folder.work(), self.folder.tokens()
        if outcome is not None and outcome.polish:
            polished = self.folder.polished(outcome.key)
            seconds["polish"], work["polish"] = polished.seconds()["train"], polished.example_steps()
            if count := sum(polished.tokens().values()):
                tokens["polish"] = count
        measured = {"seconds": seconds, "example_steps": work, "latency": latency, "others": others, "tokens": tokens}
        result = self._result(loaded, rows, outcome, **measured)
        self.folder.archive_result()
        if (kept := testing.record(winner=result.winner, data=self.task.fingerprint)) is not None:
            kept.write(self.folder.tested_examples)
            wrong = kept.most_wrong()
            thumbnails(self.task.test, wrong, self.folder.thumbnails)
            excerpts(self.task.test, wrong, self.folder.texts)
        result.write(self.folder.result)
        return result

    def _tested(
        self, testing: Testing, model: nn.Module, search: Search | None, outcome: Outcome | None
    ) -> tuple[dict[str, Row], Outcome | None]:
        if search is None or outcome is None:
            return testing.alone(model, parameters=self.tuned.count()), None
        retrained = retrain(search, outcome) if self.experiment.search.control == "retrain" else None
        polished = None if outcome.polish is None else Polishing(search, outcome).contender(model)
        rows = testing.searched(model, search, outcome, retrained=retrained, polished=polished)
        return rows, search.complete(outcome, rows)

    def _result(self, loaded: LoadedRun, rows: dict[str, Row], outcome: Outcome | None, **measured: Any) -> Result:
        session, data = self.session, self.session.data
        metrics = {name: value for name, value in rows["winner"].items() if name not in ("parameters", "genotypes")}
        heads = [p for name in session.backbone.head for p in loaded.model.get_submodule(name).parameters()]
        warnings = (*self.folder.warnings(outcome), *Calibration.read(self.folder.calibration).notes)
        seen = (session.seen,) if session.seen else ()
        untested = ("There are no test examples: nothing was tested.",) if self.task.test is None else ()
        new_keys = [f"A new key of the merged model: {key}" for key in loaded.new_keys]
        if loaded.no_merge:
            new_keys = [f"It is not merged into the plain model: {loaded.no_merge}."]
        return Result.stamped(
            run=self.folder.path.resolve().name,
            method=session.method.name,
            title=session.method.title,
            task=self.task.name,
            group=self.task.group,
            objective=session.objective.name,
            metrics_info=[metric.to_json() for metric in session.objective.metrics],
            model=session.backbone.name,
            seed=self.experiment.seed,
            config=self.experiment.to_json(),
            parameters=round(rows["winner"]["parameters"] or 0),
            head_parameters=sum(p.numel() for p in heads),
            metrics=metrics,
            controls={name: row for name, row in rows.items() if name != "winner"},
            **measured,
            notes=(*self.task.notes, *data.notes, *self.folder.chosen, *seen, *untested, *warnings, *new_keys),
            verdict=() if outcome is None else (*earlier_tests(self.folder.tested), *outcome.verdict),
            winner="" if outcome is None else outcome.key,
            device=device_name(session.accelerator.device),
        )

    def _latency(self, model: nn.Module) -> dict[str, float]:
        session = self.session
        base = session.base().to(session.accelerator.device)
        val, size = session.data.val, session.evaluator.batch_size
        count = min(_timed(val), size)
        remedy = f"Take fewer at a time: search.batch_size={max(1, count // 2)}, of {size} now."
        with memory_told(f"a forward pass of {count} {val.unit}, whose time is taken", remedy=remedy):
            batch = val.batch(range(count))
            return latency_ratio(model, base, batch, session.objective, session.accelerator.device)


def _say(reporter: Reporter, lines: Sequence[str]) -> None:
    for line in lines:
        reporter.say(line)


def _timed(examples: Examples) -> int:
    """How many examples a forward pass has whose time is taken: 32, and of texts no more than have 256 tokens."""
    most, lengths = min(32, len(examples)), lengths_of(examples)
    if lengths is None:
        return most
    return max(1, sum(total <= 256 for total in itertools.accumulate(lengths[:most])))


def changed_search(experiment: Experiment, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The search's settings with some changed; `searcher` by name or by some of its own settings."""
    opened = dict(changes)
    if isinstance(opened.get("searcher"), str):
        opened["searcher"] = {"name": opened["searcher"]}
    return merged(experiment.search.model_dump(), opened)


def _backbone(experiment: Experiment, objective: Objective) -> Backbone:
    """The base as the settings say."""
    model = experiment.model
    if model.name == FROM_PYTHON:
        raise RunError(
            "The base of this run came from a Python program: it cannot be rebuilt from a name.",
            remedy="Call glora.fit again with the same model and data.",
        )
    return load_backbone(**model.model_dump(), num_classes=objective.outputs, seed=experiment.seed)


def _reading(backbone: Backbone, experiment: Experiment) -> Backbone:
    """The base, its images resized as the data's settings say."""
    resize = cast(DataSettings, experiment.data).resize
    if not isinstance(backbone.preprocess, Preprocess):
        if resize == "straight":
            return backbone
        given = "tensors" if backbone.preprocess is None else "texts"
        raise ConfigError(
            f"data.resize={resize} is about images, and this run's model is given {given}.", remedy="Leave it out."
        )
    return replace(backbone, preprocess=replace(backbone.preprocess, resize=resize))


def _finite(backbone: Backbone) -> Backbone:
    """The base, all of whose numbers are finite.

    Raises:
        BackboneError: Some are not; names their tensors.
    """
    named = backbone.model.named_parameters()
    plain = {name: value for name, value in named if type(value) is nn.Parameter and value.device.type != "meta"}
    if odd := [name for name, value in plain.items() if value.dtype in FLOATS and not bool(value.isfinite().all())]:
        raise BackboneError(
            f"The base {backbone.name} has numbers that are not finite, in {listed(odd)}.",
            allowed="Every weight of the base is a finite number; nothing can be trained on another.",
            remedy="Get its checkpoint again from its source, or another one.",
        )
    return backbone


def _info(backbone: Backbone, task: Task) -> dict[str, Any]:
    """What travels with every file: how to rebuild the base, what it predicts, and how it reads images or texts."""
    preprocess = None if backbone.preprocess is None else backbone.preprocess.to_json()
    return {
        "backbone": backbone.spec,
        "model": backbone.name,
        "head": list(backbone.head),
        "objective": task.objective.model_dump(mode="json"),
        "preprocess": preprocess,
        "task": task.name,
        "data": task.fingerprint,
        **said_of(task),
    }


def _visible(experiment: Experiment, task: Task, *, searches: bool) -> VisibleData:
    """The examples without test: a method that searches has some of val set aside, and folds where asked."""
    data, search = cast(DataSettings, experiment.data), experiment.search
    if searches:
        aside = data.aside
        if aside is None:
            aside = len(task.val) // 2 if search.rescore else 0
        return visible(task, seed=data.split_seed, aside=aside, folds=data.folds)
    found = visible(task, seed=data.split_seed, aside=0, folds=1)
    asked = [f"data.{name}" for name in ("aside", "folds") if getattr(data, name) not in (None, 0, 1)]
    asked += [f"search.{name}" for name in ("budget", "min_budget", "polish") if getattr(search, name)]
    note = f"Nothing is searched: {' and '.join(asked)} {'changes' if len(asked) == 1 else 'change'} nothing."
    return replace(found, notes=(note,)) if asked else found
