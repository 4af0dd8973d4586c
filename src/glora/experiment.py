"""One Experiment -> one run folder -> one Result: the only file that knows every room.

A run folder holds `config.yaml` (resolved), `metrics.jsonl`, `supernet.safetensors`, `search.jsonl` (the journal),
`adapter.safetensors`, `result.json` and `plots/`. Every stage that has left its file is not done again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator
from torch import nn

from glora import plots
from glora.backbones import Backbone, load_backbone
from glora.checkpoint import (
    file_hash,
    load_adapter,
    load_supernet,
    read_tensors,
    save_adapter,
    save_supernet,
    save_tensors,
)
from glora.config import Experiment, build_experiment
from glora.data import Task, load_task
from glora.errors import MissingExtraError, RunError
from glora.files import write_text
from glora.latency import latency_ratio
from glora.methods import Method, Tuned, get_method
from glora.methods.glora import TunedAdapter
from glora.results import Result, append_jsonl, read_jsonl
from glora.scoring import ValScorer
from glora.searchers import SearchResult, Trial, search
from glora.searchers.operators import Window
from glora.train import Evaluation, Progress, Trainer, evaluate

__all__ = ["Reporter", "Run"]

SAVE_EVERY = 60.0  # seconds of training between saved states


class Reporter(Protocol):
    """Where a run tells what it is doing."""

    def say(self, text: str) -> None:
        """One line worth reading."""

    def training(self, progress: Progress) -> None:
        """Called a few times a second at most."""

    def trial(self, trial: Trial, best: Trial, total: int) -> None:
        """Called after every scored genotype; `total` is how many there will be."""


class Run:
    """One experiment in one folder, stage by stage: train, search, evaluate.

    Building it reads and checks data, model and budget, and writes nothing.

    Args:
        experiment: The resolved settings.
        folder: The run folder; one with the same settings is continued.
        reporter: Where to tell what is going on.

    Raises:
        RunError: The folder holds a run of other settings, or something else.
        GloraError: Data, model, targets or budget are wrong.
    """

    def __init__(self, experiment: Experiment, folder: str | Path, reporter: Reporter) -> None:
        self.experiment = experiment
        self.folder = Path(folder)
        self.reporter = reporter
        self._check_folder()
        self.accelerator = Accelerator(mixed_precision=experiment.train.precision)
        self.method: Method = _method(experiment)
        data = experiment.data
        task = load_task(
            data.source, seed=data.split_seed, train=data.train, val=data.val, on_bad_image=data.on_bad_image
        )
        self.backbone = self._backbone(len(task.classes))
        self.task: Task = task.prepared(self.backbone.preprocess)
        for note in (*task.notes, *self.backbone.notes):
            reporter.say(note)
        self.tuned: Tuned = self.method.apply(self.backbone.model, head=self.backbone.head, seed=experiment.seed)
        self.backbone.model.to(self.accelerator.device)
        if self.searches:
            Window(self.adapter.adapted.space.costs, experiment.search.budget, experiment.search.min_budget)

    @classmethod
    def open(cls, folder: str | Path, reporter: Reporter) -> Run:
        """The run that a folder holds.

        Raises:
            RunError: The folder holds none.
        """
        config = Path(folder) / "config.yaml"
        if not config.is_file():
            raise RunError(f"{folder} holds no run.", remedy="Start one: glora fit --data FOLDER --out RUN")
        return cls(build_experiment(yaml.safe_load(config.read_text()), source=str(config)), folder, reporter)

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

    def _check_folder(self) -> None:
        config = self.folder / "config.yaml"
        if config.is_file():
            if build_experiment(yaml.safe_load(config.read_text()), source=str(config)) != self.experiment:
                raise RunError(
                    f"{self.folder} holds a run of other settings.",
                    remedy="Choose another --out, or give the same settings to continue it.",
                )
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise RunError(f"{self.folder} exists and holds no run.", remedy="Choose another --out.")

    @property
    def searches(self) -> bool:
        """Whether the method has more than one genotype."""
        return isinstance(self.tuned, TunedAdapter) and self.tuned.adapted.space.size > 1

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
        self.train()
        if not self.accelerator.is_main_process:
            raise SystemExit(0)  # training was shared; one process does the rest
        if self.searches:
            self.search()
        return self.evaluate()

    def train(self) -> None:
        """Trains the supernet (or the baseline), or takes it from the folder when it was trained already."""
        weights, state = self.folder / "supernet.safetensors", self.folder / "training.safetensors"
        if weights.is_file():
            self._load_weights(weights)
            return
        if self.accelerator.is_main_process:
            plain = json.loads(self.experiment.model_dump_json())
            write_text(self.folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
        settings = self.experiment.train
        lr = self.method.lr if settings.lr is None else settings.lr
        torch.manual_seed(self.experiment.seed)  # drop-out and drop-path of the backbone draw from it
        trainer = Trainer(
            self.tuned, self.task.train, settings, lr=lr, seed=self.experiment.seed, accelerator=self.accelerator
        )
        if state.is_file():
            trainer.restore(*read_tensors(state))
            self.reporter.say(f"Training goes on after epoch {trainer.epoch} of {settings.epochs}.")
        saved = trainer.seconds
        for progress in trainer.run(self.reporter.training):
            if not self.accelerator.is_main_process:
                continue
            append_jsonl(self.folder / "metrics.jsonl", {"stage": "train", **asdict(progress)})
            if trainer.seconds - saved > SAVE_EVERY and trainer.epoch < settings.epochs:
                saved = trainer.seconds
                save_tensors(state, *trainer.state())
        if self.accelerator.is_main_process:
            append_jsonl(self.folder / "metrics.jsonl", {"stage": "trained", "seconds": trainer.seconds})
            self._save_weights(weights)
            state.unlink(missing_ok=True)

    def _save_weights(self, path: Path) -> None:
        if isinstance(self.tuned, TunedAdapter):
            save_supernet(self.tuned.adapted, path, info=self.info)
        else:
            values = {str(k): p.detach() for k, p in enumerate(self.tuned.parameters())}
            save_tensors(path, values, {"parameters": len(values)})

    def _load_weights(self, path: Path) -> None:
        if isinstance(self.tuned, TunedAdapter):
            load_supernet(self.tuned.adapted, path)
            return
        values, _ = read_tensors(path)
        with torch.no_grad():
            for k, parameter in enumerate(self.tuned.parameters()):
                parameter.copy_(values[str(k)])

    def search(self) -> SearchResult:
        """Searches the trained supernet on val, activates the winner and saves its adapter and pictures.

        Raises:
            RunError: The supernet is not trained yet.
        """
        self._need("supernet.safetensors", "train")
        settings = self.experiment.search
        scorer = ValScorer(
            self.adapter.supernet,
            self.task.val,
            fitness=settings.fitness,
            accelerator=self.accelerator,
            batch_size=settings.batch_size,
        )
        best: list[Trial] = []

        def tell(trial: Trial) -> None:
            best[:] = [min((*best, trial), key=lambda each: each.rank)]
            self.reporter.trial(trial, best[0], settings.candidates)

        found = search(
            scorer,
            self.adapter.adapted.space,
            searcher=settings.searcher,
            budget=settings.budget,
            min_budget=settings.min_budget,
            seed=self.experiment.seed,
            settings=settings.settings(),
            journal=self.folder / "search.jsonl",
            context={"data": self.task.fingerprint, "supernet": file_hash(self.folder / "supernet.safetensors")},
            on_trial=tell,
        )
        self._keep(found)
        return found

    def _keep(self, found: SearchResult) -> None:
        """The winner's adapter, and what a person wants to see of the search."""
        adapted, winner = self.adapter.adapted, found.best
        adapted.activate(winner.genotype)
        save_adapter(adapted, self.folder / "adapter.safetensors", info=self.info)
        fitness, budget = self.experiment.search.fitness, self.experiment.search.budget
        folder = self.folder / "plots"
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
        path = self.folder / "result.json"
        if path.is_file():
            self.reporter.say("The test images were read once already; this is the result of then.")
            return Result.read(path)
        model = self._winner()
        parameters = self.tuned.count()
        heads = sum(p.numel() for name in self.backbone.head for p in model.get_submodule(name).parameters())
        batch = self.experiment.search.batch_size
        metrics: dict[str, float | None] = {}
        start = time.perf_counter()
        for split, images in (("val", self.task.val), ("test", self.task.test)):
            found = evaluate(model, images, accelerator=self.accelerator, batch_size=batch)
            metrics |= _metrics(split, found)
        seconds = {**self._stage_seconds(), "test": time.perf_counter() - start}
        result = Result.stamped(
            method=self.experiment.method,
            task=self.task.name,
            model=self.experiment.model.name,
            seed=self.experiment.seed,
            config=json.loads(self.experiment.model_dump_json()),
            parameters=parameters,
            head_parameters=heads,
            metrics=metrics,
            seconds=seconds,
            latency=self._latency(model),
            notes=self.task.notes,
            device=_device(self.accelerator.device),
        )
        result.write(path)
        return result

    def _winner(self) -> nn.Module:
        """The plain model to test: for adapters read back from the file and merged, as a user would."""
        self._need("supernet.safetensors", "train")
        if not isinstance(self.tuned, TunedAdapter):
            return self.tuned.merge()
        adapter = self.folder / "adapter.safetensors"
        if self.searches:
            self._need("adapter.safetensors", "search")
        elif not adapter.is_file():
            save_adapter(self.tuned.adapted, adapter, info=self.info)
        self.tuned.adapted.detach()
        self.tuned = TunedAdapter(load_adapter(self.backbone.model, adapter))
        return self.tuned.merge()

    def merged(self) -> nn.Module:
        """The merged plain model of a finished search."""
        if isinstance(self.tuned, TunedAdapter):
            return self._winner()
        self.train()
        return self.tuned.merge()

    def _latency(self, model: nn.Module) -> dict[str, float]:
        plain = self._backbone(len(self.task.classes)).model.to(self.accelerator.device)
        count = min(32, len(self.task.val))
        x, _ = self.task.val.batch(list(range(count)))
        return latency_ratio(model, plain, x.to(self.accelerator.device))

    def _stage_seconds(self) -> dict[str, float]:
        records = read_jsonl(self.folder / "metrics.jsonl")
        seconds = {"train": sum(record["seconds"] for record in records if record["stage"] == "trained")}
        if self.searches or (self.folder / "search.jsonl").is_file():
            seconds["search"] = sum(r.get("seconds", 0.0) for r in read_jsonl(self.folder / "search.jsonl"))
        return seconds

    def _need(self, name: str, stage: str) -> None:
        if not (self.folder / name).is_file():
            raise RunError(f"{self.folder} has no {name} yet.", remedy=f"Run `glora {stage} {self.folder}` first.")


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


def _metrics(split: str, found: Evaluation) -> dict[str, float | None]:
    return {
        f"{split}_accuracy": found.accuracy,
        f"{split}_accuracy_standard_error": found.accuracy_standard_error,
        f"{split}_loss": found.loss,
        f"{split}_loss_standard_error": found.loss_standard_error,
        f"{split}_images": float(len(found.losses)),
    }


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
