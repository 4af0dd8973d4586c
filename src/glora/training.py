"""The training stage: one supernet or baseline, a supernet for each fold, a winner alone; no test image comes here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from glora.adapted import Adapted
from glora.checkpoint import save_adapter, save_supernet, save_tensors
from glora.config import TrainSettings
from glora.data import ImageSet
from glora.data.known import Known
from glora.genotype import Genotype
from glora.methods import Tuned
from glora.methods.glora import TunedAdapter
from glora.reporter import Reporter
from glora.resume import train_in
from glora.runfolder import RunFolder
from glora.state import AdapterState
from glora.supernet import copied
from glora.train import Trainer

__all__ = ["Training"]


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
