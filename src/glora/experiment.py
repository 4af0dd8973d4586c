"""One Experiment -> one run folder -> one Result: the only file that knows every room.

Every stage that has left its file in the run folder is not done again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glora import plots
from glora.backbones import Backbone, load_backbone
from glora.checkpoint import (
    load_supernet,
    read_header,
    read_tensors,
    save_adapter,
    save_supernet,
    save_tensors,
)
from glora.config import Experiment
from glora.data import DATASETS, ImageSet, Task, load_task
from glora.device import device_name, new_accelerator
from glora.errors import MissingExtraError, RunError
from glora.files import sha256
from glora.genotype import Genotype
from glora.latency import latency_ratio
from glora.methods import Method, Tuned, get_method
from glora.methods.glora import GLoRA, TunedAdapter
from glora.reporter import Reporter, Silent, plan
from glora.results import Result
from glora.resume import train_in
from glora.runfolder import RunFolder
from glora.scoring import Recipe, ValScorer, shared_weights
from glora.searchers import Racing, SearchResult, Trial, new_searcher, search
from glora.train import Evaluation, Trainer, evaluate
from glora.winner import load_winner

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
        self.method: Method = _method(experiment)
        self.experiment = experiment = _settled(experiment, self.method)
        self.folder = RunFolder(folder)
        self.folder.check(experiment)
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
        self.backbone.model.to(self.accelerator.device)
        self.searches = isinstance(self.tuned, TunedAdapter) and self.tuned.adapted.space.size > 1
        if self.searches:
            new_searcher(self.adapter.adapted.space, seed=experiment.seed, **experiment.search.arguments())
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
        if not self.folder.result.is_file():
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
        for line in plan(self.experiment, self.task, self.backbone, self.tuned, lr=self.lr):
            self.reporter.say(line)
        if self.accelerator.is_main_process:
            self.folder.write_config(self.experiment)
        torch.manual_seed(self.experiment.seed)  # drop-out and drop-path of the backbone draw from it
        trainer = Trainer(
            self.tuned,
            self.task.train,
            self.experiment.train,
            lr=self.lr,
            seed=self.experiment.seed,
            accelerator=self.accelerator,
        )
        train_in(self.folder, trainer, self.reporter, fingerprint=self.task.fingerprint)
        if self.accelerator.is_main_process:
            if isinstance(self.tuned, TunedAdapter) and not self.searches:
                save_adapter(self.tuned.adapted, self.folder.adapter, info=self.info)
            self._save_weights(self.folder.supernet)
            self.folder.training.unlink(missing_ok=True)

    def _save_weights(self, path: Path) -> None:
        if isinstance(self.tuned, TunedAdapter):
            save_supernet(self.tuned.adapted, path, info=self.info)
        else:
            save_tensors(path, self.tuned.state(), {"info": self.info})

    def _load_weights(self, path: Path) -> None:
        if isinstance(self.tuned, TunedAdapter):
            load_supernet(self.tuned.adapted, path)
        else:
            tensors, _ = read_tensors(path)
            with torch.no_grad():
                for name, value in self.tuned.state().items():
                    value.copy_(tensors[name])

    def search(self) -> SearchResult:
        """Searches the trained supernet on val, activates the winner and saves its adapter and pictures.

        Raises:
            RunError: The supernet is not trained yet, or the method has nothing to search.
        """
        if not self.searches:
            raise RunError(
                f"Method {self.experiment.method!r} has one genotype: there is nothing to search.",
                remedy=f"Test it: glora eval {self.folder.path}",
            )
        self.folder.need(self.folder.supernet, f"glora train --out {self.folder.path}")
        self._alone()
        self._load_weights(self.folder.supernet)
        settings = self.experiment.search
        best: list[Trial] = []

        def tell(trial: Trial) -> None:
            best[:] = [min((*best, trial), key=lambda each: each.rank)]
            self.reporter.trial(trial, best[0], settings.candidates)

        if not self.folder.journal.is_file():  # a search anew
            self.folder.adapter.unlink(missing_ok=True)
            self.folder.write_config(self.experiment)
        racing = Racing(len(self.task.val), level=settings.racing_level, first=settings.racing_first)
        found = search(
            self._recipe() if settings.workers else self._scorer(),
            self.adapter.adapted.space,
            seed=self.experiment.seed,
            **settings.arguments(),
            racing=racing if settings.racing else None,
            workers=settings.workers,
            cluster=settings.cluster,
            limit=settings.limit,
            journal=self.folder.journal,
            context={"data": self.task.fingerprint, "supernet": sha256(self.folder.supernet)},
            on_trial=tell,
        )
        self._keep(found)
        return found

    def _scorer(self) -> ValScorer:
        settings = self.experiment.search
        return ValScorer(
            self.adapter.supernet,
            self.task.val,
            fitness=settings.fitness,
            accelerator=self.accelerator,
            batch_size=settings.batch_size,
        )

    def _recipe(self) -> Recipe:
        settings = self.experiment.search
        if self.accelerator.num_processes > 1:
            raise RunError(
                "Search workers are started by one process, not by several.",
                remedy=f"Train with several, then: glora search {self.folder.path}",
            )
        assert isinstance(self.method, GLoRA)
        return Recipe(
            spec=self.backbone.spec,
            classes=len(self.task.classes),
            method=self.method,
            weights=shared_weights(self.backbone.model),
            val=self.task.val,
            fitness=settings.fitness,
            precision=self.experiment.train.precision,
            batch_size=settings.batch_size,
        )

    def _keep(self, found: SearchResult) -> None:
        """The winner's adapter, and what a person wants to see of the search."""
        adapted, winner = self.adapter.adapted, found.best
        adapted.activate(winner.genotype)
        save_adapter(adapted, self.folder.adapter, info=self.info)
        fitness, budget = self.experiment.search.fitness, self.experiment.search.budget
        folder = self.folder.plots
        try:
            plots.search_plot(found.trials, found.front, winner, folder / "search.svg", fitness=fitness, budget=budget)
            plots.layer_plot(winner.genotype, adapted.space, folder / "layers.svg")
            plots.parameters_plot(winner.genotype, adapted.space, folder / "parameters.svg")
        except MissingExtraError as error:  # the search is done; its pictures can be had later
            self.reporter.say(f"No pictures: {error}")

    def evaluate(self) -> Result:
        """The Result: val, and test exactly once; a run that has one is not tested again.

        Raises:
            RunError: An earlier stage is missing.
        """
        if self.folder.result.is_file():
            self.reporter.say("The test images were read once already; this is the result of then.")
            return Result.read(self.folder.result)
        self._alone()
        winner = load_winner(self.folder)
        model = winner.model.to(self.accelerator.device)
        latency = self._latency(model)
        metrics = self._evaluation(model, self.task.val).metrics("val")
        self.reporter.say(f"Testing the merged model once on {len(self.task.test):,} images")
        start = time.perf_counter()
        metrics |= self._evaluation(model, self.task.test).metrics("test")
        seconds = {**self.folder.seconds(), "test": time.perf_counter() - start}
        heads = [p for name in self.backbone.head for p in model.get_submodule(name).parameters()]
        result = Result.stamped(
            method=self.experiment.method,
            task=self.task.name,
            model=self.experiment.model.name,
            seed=self.experiment.seed,
            config=json.loads(self.experiment.model_dump_json()),
            parameters=self._parameters(),
            head_parameters=sum(p.numel() for p in heads),
            metrics=metrics,
            seconds=seconds,
            latency=latency,
            notes=(*self.task.notes, *(f"A new key of the merged model: {key}" for key in winner.new_keys)),
            device=device_name(self.accelerator.device),
        )
        result.write(self.folder.result)
        return result

    def _parameters(self) -> int:
        """Trainable numbers of what is tested, without the head."""
        if not isinstance(self.tuned, TunedAdapter):
            return self.tuned.count()
        genotype = read_header(self.folder.adapter)["genotype"]
        return self.tuned.adapted.count(Genotype.from_json(genotype))

    def _evaluation(self, model: nn.Module, images: ImageSet) -> Evaluation:
        size = self.experiment.search.batch_size
        return evaluate(model, images, accelerator=self.accelerator, batch_size=size)

    def _latency(self, model: nn.Module) -> dict[str, float]:
        plain = self._backbone(len(self.task.classes)).model.to(self.accelerator.device)
        x, _ = self.task.val.batch(range(min(32, len(self.task.val))))
        return latency_ratio(model, plain, x.to(self.accelerator.device))


def _settled(experiment: Experiment, method: Method) -> Experiment:
    """The same experiment with nothing left open: absolute paths, the method's own learning rate."""
    data, model = experiment.data, experiment.model
    source = Path(data.source).expanduser()
    if data.source not in DATASETS and source.exists():
        data = data.model_copy(update={"source": str(source.resolve())})
    if model.checkpoint is not None:
        model = model.model_copy(update={"checkpoint": model.checkpoint.expanduser().resolve()})
    train = experiment.train.model_copy(update={"lr": experiment.train.lr or method.lr})
    return experiment.model_copy(update={"data": data, "model": model, "train": train})


def _method(experiment: Experiment) -> Method:
    model = experiment.model
    targets = model.targets if isinstance(model.targets, str) else tuple(model.targets)
    where = {"targets": targets, "skip": tuple(model.skip)}
    settings: dict[str, dict[str, Any]] = {
        "glora": {"space": experiment.space.build(), **where},
        "lora": {"rank": experiment.rank, **where},
        "bitfit": where,
    }
    return get_method(experiment.method, settings.get(experiment.method, {}))
