"""Training that survives a kill: its state is saved between epochs, and the same run goes on from there."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch

from glora.checkpoint import read_tensors, save_tensors
from glora.reporter import Reporter
from glora.runfolder import RunFolder
from glora.train import Trainer

__all__ = ["train_in"]

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
