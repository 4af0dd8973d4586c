"""The training stage: one supernet or baseline, a supernet for each fold, a winner alone; no test image comes here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from glora.adapt.adapted import Adapted
from glora.adapt.adapter_file import read_tensors, save_adapter, save_supernet, save_tensors
from glora.adapt.state import AdapterState
from glora.adapt.supernet import copied
from glora.config import TrainSettings
from glora.genotype import Genotype
from glora.methods import Tuned
from glora.methods.glora import TunedAdapter
from glora.runs.folder import RunFolder
from glora.runs.reporter import Reporter
from glora.tasks.task import ImageSet
from glora.tasks.visible import Known
from glora.training.trainer import Trainer

__all__ = ["Training", "train_in"]


class Training:
    """Trains what a run needs; every part that has left its file is not done again.

    Args:
        known: The images, without test.
        folder: The run folder, its config written.
        settings: The training loop's.
        lr: Learning rate at the top.
        seed: Decides batches and subnets; the same for every training of a run.
        accelerator: Device, precision and processes.
        reporter: Where to tell what is going on.
        info: What travels with the files.
    """

    def __init__(
        self,
        known: Known,
        folder: RunFolder,
        settings: TrainSettings,
        *,
        lr: float,
        seed: int,
        accelerator: Accelerator,
        reporter: Reporter,
        info: Mapping[str, Any],
    ) -> None:
        self.known = known
        self.folder = folder
        self.settings = settings
        self.lr = lr
        self.seed = seed
        self.accelerator = accelerator
        self.reporter = reporter
        self.info = info

    def run(self, tuned: Tuned) -> None:
        """Trains a fresh `tuned`; with folds each fold's supernet first, then the winner's on all their images."""
        if folds := len(self.known.folds):
            assert isinstance(tuned, TunedAdapter)  # nothing else is folded
            fresh = copied(tuned.adapted)
            for place in range(folds):
                self.reporter.say(f"Fold {place + 1} of {folds}")
                self._into(self.folder.fold(place), tuned, self.known.training(place))
                tuned.adapted.load_state(fresh)
            self.reporter.say(f"The winner's supernet, on the images of all {folds} folds")
        self._into(self.folder, tuned, self.known.train)

    def alone(self, fresh: TunedAdapter, genotype: Genotype, folder: RunFolder) -> None:
        """Trains one genotype of a fresh supernet as that was: from the same start, with its images, steps and rate."""
        fresh.adapted.activate(genotype)
        state = fresh.adapted.state()
        self.on(fresh.adapted.detach(), state, folder, self.known.train)

    def on(self, model: nn.Module, start: AdapterState, folder: RunFolder, images: ImageSet) -> None:
        """Trains the one genotype of a plain model's adapter state, from its numbers."""
        tuned = TunedAdapter(Adapted.from_state(model, start))
        tuned.model.to(self.accelerator.device)
        self._into(folder, tuned, images)

    def _into(self, folder: RunFolder, tuned: Tuned, images: ImageSet) -> None:
        done = folder.supernet.is_file()
        self.accelerator.wait_for_everyone()  # before the first of them writes
        if done:
            return
        folder.check_data(self.known.fingerprint)
        torch.manual_seed(self.seed)  # drop-out and drop-path of the backbone draw from it
        how: dict[str, Any] = {"lr": self.lr, "seed": self.seed, "accelerator": self.accelerator}
        trainer = Trainer(tuned, images, self.settings, **how)
        train_in(folder, trainer, self.reporter, fingerprint=self.known.fingerprint)
        if self.accelerator.is_main_process:
            if isinstance(tuned, TunedAdapter) and tuned.adapted.space.size == 1:
                save_adapter(tuned.adapted, folder.adapter, info=self.info)
            self._save(tuned, folder.supernet)
            folder.training.unlink(missing_ok=True)

    def _save(self, tuned: Tuned, path: Path) -> None:
        if isinstance(tuned, TunedAdapter):
            save_supernet(tuned.adapted, path, info=self.info)
        else:
            save_tensors(path, tuned.state(), {"info": self.info})


SAVE_SHARE = 0.05  # of the training time may go into saving its state


def train_in(folder: RunFolder, trainer: Trainer, reporter: Reporter, *, fingerprint: str) -> None:
    """Trains to the end, from the state in the folder where there is one; the main process keeps the metrics.

    Args:
        folder: The run folder, its config written.
        trainer: A fresh trainer.
        reporter: Where to tell the progress.
        fingerprint: The images', kept in the metrics.
    """
    accelerator, epochs = trainer.accelerator, trainer.settings.epochs
    if folder.training.is_file():
        _restore(folder, trainer)
        reporter.say(f"Training goes on after epoch {trainer.epoch} of {epochs}.")
    accelerator.wait_for_everyone()  # all have read what the main process will write anew
    main = accelerator.is_main_process
    if main:
        folder.begin(fingerprint, trainer.epoch)
    saved, cost = trainer.seconds, 0.0
    for progress in trainer.run(reporter.training):
        if trainer.began == trainer.epoch:  # it begins anew
            torch.manual_seed(trainer.seed)  # drop-out and drop-path of the backbone draw from it
        if not main:
            continue
        if told := trainer.pace.news():  # a layer that is never called is known after some passes
            reporter.say(told)
        folder.record("train", asdict(progress))
        if trainer.news:
            reporter.say(trainer.news)
            folder.record("news", {"epoch": trainer.epoch, "lr": trainer.lr, "text": trainer.news})
        if trainer.epoch < epochs and cost <= SAVE_SHARE * (trainer.seconds - saved):
            start = time.perf_counter()
            _save(folder, trainer)
            saved, cost = trainer.seconds, time.perf_counter() - start
    if main:
        folder.record("trained", {"seconds": trainer.seconds, "image_steps": trainer.image_steps})


def _save(folder: RunFolder, trainer: Trainer) -> None:
    tensors, meta = trainer.state()
    tensors["rng"] = torch.get_rng_state()  # drop-out and drop-path of the backbone draw from it
    if trainer.accelerator.device.type == "cuda":
        tensors["cuda_rng"] = torch.cuda.get_rng_state(trainer.accelerator.device)
    save_tensors(folder.training, tensors, meta)


def _restore(folder: RunFolder, trainer: Trainer) -> None:
    tensors, meta = read_tensors(folder.training)
    torch.set_rng_state(tensors["rng"])
    if "cuda_rng" in tensors and trainer.accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda_rng"], trainer.accelerator.device)
    trainer.restore(tensors, meta)
