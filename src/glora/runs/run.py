"""One Experiment -> one run folder -> one Result: the only file that knows every room.

Every stage that has left its file in the run folder is not done again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glora.adapt.adapter_file import load_supernet, read_tensors
from glora.backbones import Backbone, load_backbone
from glora.config import Experiment
from glora.errors import ConfigError, GloraError, RunError
from glora.methods import Method, Tuned
from glora.methods.glora import TunedAdapter
from glora.report.outcome import Outcome, Row
from glora.report.result import Result
from glora.runs.calibration import Calibration, load_calibrated
from glora.runs.folder import RunFolder
from glora.runs.latency import latency_ratio
from glora.runs.reporter import Reporter, Silent, plan
from glora.runs.resolve import method_of, search_arguments, settled, unused
from glora.runs.stages.polish import Polishing, polish_info
from glora.runs.stages.search import Search
from glora.runs.stages.test import Testing, looked
from glora.runs.stages.train import Training
from glora.runs.winner import Winner, load_winner
from glora.searchers import new_searcher
from glora.tasks.task import Task, load_task
from glora.tasks.visible import Known, known
from glora.training.device import device_name, new_accelerator
from glora.training.pace import check_pace

__all__ = ["Reporter", "Run"]


class Run:
    """One experiment in one folder, stage by stage: train, search, evaluate.

    Building it reads and checks data, model and budget, and writes nothing.

    Args:
        experiment: The resolved settings.
        folder: The run folder; one with the same settings is continued.
        reporter: Where to tell what is going on.

    Attributes:
        searches: Whether the method has more than one genotype.
        lr: The learning rate at its top.

    Raises:
        RunError: The folder holds a run of other settings, or something else.
        GloraError: Data, model, targets or budget are wrong.
    """

    def __init__(self, experiment: Experiment, folder: str | Path, reporter: Reporter) -> None:
        self.method: Method = method_of(experiment)
        self.folder = RunFolder(folder)
        self.experiment = experiment = self.folder.check(settled(experiment, self.method))
        self.accelerator = new_accelerator(experiment.train.precision)
        self.reporter: Reporter = reporter if self.accelerator.is_main_process else Silent()
        data = experiment.data
        task = load_task(
            data.source, seed=data.split_seed, train=data.train, val=data.val, on_bad_image=data.on_bad_image
        )
        self.folder.check_data(task.fingerprint)
        self.backbone = self._backbone(len(task.classes))
        self.task: Task = task.prepared(self.backbone.preprocess)
        self.tuned: Tuned = self.method.apply(self.backbone.model, head=self.backbone.head, seed=experiment.seed)
        if experiment.train.pace != "off":
            check_pace(self.tuned)
        self.backbone.model.to(self.accelerator.device)
        self.searches = isinstance(self.tuned, TunedAdapter) and self.tuned.adapted.space.size > 1
        if self.searches:
            how = search_arguments(experiment.search, space := self.adapter.adapted.space)
            new_searcher(space, seed=experiment.seed, raced=experiment.search.racing, **how)
        self.known: Known = self._known()
        assert experiment.train.lr is not None  # settled
        self.lr = experiment.train.lr

    @classmethod
    def open(cls, folder: str | Path, reporter: Reporter, *, search: dict[str, Any] | None = None) -> Run:
        """The run that a folder holds.

        Args:
            folder: The run folder.
            reporter: Where to tell what is going on.
            search: Settings of the search to change; possible as long as nothing was searched.

        Raises:
            RunError: The folder holds none, or its search was made with other settings.
        """
        experiment = RunFolder(folder).experiment()
        changed = experiment.with_(search={**experiment.search.model_dump(), **(search or {})})
        return cls(changed, folder, reporter)

    def _known(self) -> Known:
        """The images without test: a method that searches has some of val set aside, and folds where asked."""
        data, val = self.experiment.data, len(self.task.val)
        if not self.searches:
            found = known(self.task, seed=data.split_seed, aside=0, folds=1)
            asked = [f"data.{name}" for name in ("aside", "folds") if getattr(data, name) not in (None, 0, 1)]
            asked += ["search.polish"] if self.experiment.search.polish else []
            told = f"Nothing is searched: {' and '.join(asked)} change nothing."
            return replace(found, notes=(told,)) if asked else found
        search = self.experiment.search
        again = ["--control retrain"] if search.control == "retrain" else []
        again += [f"--set search.polish={search.polish}"] if search.polish else []
        if again and self.accelerator.num_processes > 1:
            raise ConfigError(
                f"{' and '.join(again)} trains once more after the search, which one process does alone.",
                remedy=f"Leave it out here, and then run: glora search {self.folder.path} {' '.join(again)}",
            )
        aside = data.aside
        if aside is None:
            aside = val // 2 if self.experiment.search.rescore else 0
        found = known(self.task, seed=data.split_seed, aside=aside, folds=data.folds)
        return replace(found, notes=(*found.notes, *unused(search)))

    def _backbone(self, classes: int) -> Backbone:
        model = self.experiment.model
        return load_backbone(
            model.name,
            num_classes=classes,
            image_size=model.image_size,
            checkpoint=model.checkpoint,
            pretrained=model.pretrained,
            seed=self.experiment.seed,
        )

    @property
    def adapter(self) -> TunedAdapter:
        """The tuned model of a method that adapts layers."""
        assert isinstance(self.tuned, TunedAdapter)
        return self.tuned

    @property
    def info(self) -> dict[str, Any]:
        """What travels with the adapter file: how to rebuild its base and read its images."""
        preprocess = asdict(self.backbone.preprocess)
        return {"backbone": self.backbone.spec, "classes": list(self.task.classes), "preprocess": preprocess}

    def fit(self) -> Result:
        """All stages: train, search, and one look at test."""
        with contextlib.suppress(GloraError):  # what a stop has left is mended by the stages
            if self.folder.shown():
                return self.evaluate()
        self.train()
        if self.searches:
            self.search()
        return self.evaluate()

    def _alone(self) -> None:
        """From here on the main process works alone; the others, which trained with it, are done."""
        if not self.accelerator.is_main_process:
            raise SystemExit(0)

    def train(self) -> None:
        """Trains the supernet (or the baseline), or takes it from the folder when it was trained already."""
        trained = self.folder.supernet.is_file()
        self.accelerator.wait_for_everyone()  # before the first of them writes
        if trained:
            self.reporter.say("The training is done already.")
            self._load_weights(self.folder.supernet)
            return
        for line in plan(self.experiment, self.task, self.known, self.backbone, self.tuned, lr=self.lr):
            self.reporter.say(line)
        if self.accelerator.is_main_process:
            self.folder.write_config(self.experiment)
        self._training().run(self.tuned)

    def _training(self, polish: Mapping[str, Any] | None = None, key: str = "") -> Training:
        """The training loop: the supernet's, or that of a polish, of the winner of this key."""
        settings = self.experiment.train
        return Training(
            self.known,
            self.folder,
            settings.model_copy(update={"epochs": polish["epochs"]}) if polish else settings,
            lr=polish["lr"] if polish else self.lr,
            seed=self.experiment.seed,
            accelerator=self.accelerator,
            reporter=self.reporter,
            info=self.info | ({"polish": polish, "winner": key} if polish else {}),
        )

    def _polishing(self, search: Search, outcome: Outcome) -> Polishing | None:
        how = outcome.polish
        return None if how is None else Polishing(search, self._training(how, outcome.key), how, self._plain)

    def _plain(self) -> nn.Module:
        """The pretrained model anew."""
        return self._backbone(len(self.task.classes)).model

    def _load_weights(self, path: Path) -> None:
        if isinstance(self.tuned, TunedAdapter):
            load_supernet(self.tuned.adapted, path)
        else:
            tensors, _ = read_tensors(path)
            with torch.no_grad():
                for name, value in self.tuned.state().items():
                    value.copy_(tensors[name])

    def search(self) -> Outcome:
        """Searches the trained supernet on val, saves the winner's adapter and pictures, compares it with controls.

        Raises:
            RunError: The supernet is not trained yet, or the method has nothing to search.
        """
        search = self._searching()
        if not self.folder.journal.is_file():  # a search anew
            self.folder.forget_search()
        self.folder.write_config(self.experiment)
        for line in unused(self.experiment.search):
            self.reporter.say(line)
        return self._finished(search, search.run())

    def pick(self, *, budget: int | None, min_budget: int | None = None) -> Outcome:
        """The winner for another budget out of a finished search, without a new score; its adapter and pictures.

        Raises:
            BudgetError: No scored genotype keeps the budget.
            RunError: The search is not finished.
        """
        search = self._searching()
        outcome = search.pick(budget=budget, min_budget=min_budget)
        self.folder.write_config(self.experiment)
        return self._finished(search, outcome)

    def _finished(self, search: Search, outcome: Outcome) -> Outcome:
        """The winner polished and trained alone, where the settings ask for it; tested before, it keeps its result."""
        if polishing := self._polishing(search, outcome):
            outcome = polishing.run(outcome)
        if self.experiment.search.control == "retrain":
            self._retrained(search, outcome)
        if tested := self.folder.show(outcome.key):
            outcome = search.complete(outcome, tested.rows)
        return outcome

    def _searching(self) -> Search:
        if not self.searches:
            raise RunError(
                f"Method {self.experiment.method!r} has one genotype: there is nothing to search.",
                remedy=f"Test it: glora eval {self.folder.path}",
            )
        self._alone()  # the main process has left what it writes
        self.folder.need(self.folder.supernet, f"glora train --out {self.folder.path}")
        return Search(
            self.known,
            self.adapter,
            self.method,
            self.folder,
            self.experiment.search,
            seed=self.experiment.seed,
            accelerator=self.accelerator,
            reporter=self.reporter,
            info=self.info,
            polish=polish_info(self.experiment.search),
        )

    def _retrained(self, search: Search, outcome: Outcome) -> nn.Module:
        """The winner trained alone from the pretrained weights, merged."""
        folder = self.folder.retrained(outcome.genome)
        if not folder.adapter.is_file():
            self.reporter.say("Control: the winner trained alone from the pretrained weights")
            fresh = self.method.apply(self._plain(), head=self.backbone.head, seed=self.experiment.seed)
            assert isinstance(fresh, TunedAdapter)
            self._training().alone(fresh, fresh.adapted.space.decode(outcome.genome), folder)
        images = self.known.unseen.get("val") if search.calibrated else None
        how: dict[str, Any] = {"accelerator": self.accelerator, "batch_size": self.experiment.search.batch_size}
        return load_calibrated(self._plain(), folder.adapter, images, **how).merge(keep_base=False)

    def evaluate(self) -> Result:
        """The Result: val, and test exactly once; a run that has one is not tested again.

        Of the controls, the best random genotype, the largest and the retrained one are tested here too, once.

        Raises:
            RunError: An earlier stage is missing.
        """
        if found := self.folder.shown():
            self.reporter.say("The test images were read once already; this is the result of then.")
            return found
        self._alone()
        winner = load_winner(self.folder)
        search = self._searching() if self.searches else None
        outcome = None if search is None else search.shown()
        polishing = None if search is None or outcome is None else self._polishing(search, outcome)
        model = winner.model.to(self.accelerator.device)
        latency = self._latency(model)
        start = time.perf_counter()
        testing = Testing(
            self.task,
            self.known,
            accelerator=self.accelerator,
            batch_size=self.experiment.search.batch_size,
            reporter=self.reporter,
        )
        if search is None or outcome is None:
            rows = testing.alone(model, parameters=self.tuned.count())
        else:
            retrained = self._retrained(search, outcome) if self.experiment.search.control == "retrain" else None
            polished = None if polishing is None else polishing.contender(outcome, model)
            rows = testing.searched(model, search, outcome, retrained=retrained, polished=polished)
            outcome = search.complete(outcome, rows)
        seconds = {**self.folder.seconds(), "test": time.perf_counter() - start}
        work = {"train": self.folder.image_steps()}
        if outcome is not None and outcome.polish:
            polish = self.folder.polished(outcome.key)
            seconds, work = seconds | {"polish": polish.seconds()["train"]}, work | {"polish": polish.image_steps()}
        result = self._result(winner, rows, outcome, seconds=seconds, image_steps=work, latency=latency)
        if outcome is not None:
            result = replace(result, winner=outcome.key)
        self.folder.put_away()
        result.write(self.folder.result)
        return result

    def _result(self, winner: Winner, rows: dict[str, Row], outcome: Outcome | None, **measured: Any) -> Result:
        metrics = {name: value for name, value in rows["winner"].items() if name not in ("parameters", "genotypes")}
        heads = [p for name in self.backbone.head for p in winner.model.get_submodule(name).parameters()]
        told = (*self.folder.news(outcome), *Calibration.read(self.folder.calibration).notes)
        new_keys = (f"A new key of the merged model: {key}" for key in winner.new_keys)
        return Result.stamped(
            method=self.experiment.method,
            task=self.task.name,
            model=self.experiment.model.name,
            seed=self.experiment.seed,
            config=json.loads(self.experiment.model_dump_json()),
            parameters=round(rows["winner"]["parameters"] or 0),
            head_parameters=sum(p.numel() for p in heads),
            metrics=metrics,
            controls={name: row for name, row in rows.items() if name != "winner"},
            **measured,
            notes=(*self.task.notes, *self.known.notes, *told, *new_keys),
            verdict=() if outcome is None else (*looked(self.folder.tested), *outcome.verdict),
            device=device_name(self.accelerator.device),
        )

    def _latency(self, model: nn.Module) -> dict[str, float]:
        plain = self._plain().to(self.accelerator.device)
        x, _ = self.known.val.batch(range(min(32, len(self.known.val))))
        return latency_ratio(model, plain, x.to(self.accelerator.device))
