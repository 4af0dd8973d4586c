"""The training stage: one supernet or baseline, a supernet for each fold, a winner alone. It sees no test example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.adapt.sharded import sharded
from glora.config import TrainSettings
from glora.errors import RunError
from glora.methods.method import Tuned
from glora.runs.chance import fits, generators, put_back, seed_all, seeded
from glora.runs.cost import tokens_in
from glora.runs.folder import RunFolder
from glora.runs.judging import Judging
from glora.runs.ladder import training_of
from glora.runs.saving import Saving
from glora.runs.session import Session
from glora.runs.stopping import Halt, Stopping
from glora.tasks.objective import Examples
from glora.training.trainer import Progress, Trainer

__all__ = ["Training", "is_trained", "run_training", "train", "train_into", "trained_values"]

FORMATS = 1, 2  # of the state of an unfinished training: the first is always that of whole epochs
FORMAT = FORMATS[-1]


@dataclass(frozen=True)
class Training:
    """How one training differs from the run's own.

    Attributes:
        settings: The training loop's.
        lr: Learning rate at the top.
        info: What travels with the file.
    """

    settings: TrainSettings
    lr: float
    info: Mapping[str, Any]

    @classmethod
    def of(cls, session: Session) -> Training:
        """The run's own."""
        return cls(training_of(session.experiment, session.data), session.lr, session.info)


def trained_values(tuned: Tuned) -> list[Tensor]:
    """All that training changes."""
    return [*tuned.parameters(), *tuned.model.buffers()]


def train(session: Session, tuned: Tuned) -> None:
    """Trains a fresh `tuned`; with folds each fold's supernet first, then the winner's on all their examples.

    With `final: all` the last training is on train and val together. What is trained already is not trained again;
    afterwards `tuned` has the numbers of the last.
    """
    data, folder, searches = session.data, session.folder, tuned.space is not None
    again = session.trains_again(searches=searches)
    first = [value.detach().clone() for value in trained_values(tuned)] if again else []
    if folds := len(data.folds):
        fresh = tuned.snapshot()
        for place in range(folds):
            session.reporter.say(f"Fold {place + 1} of {folds}")
            train_into(session, tuned, folder.fold(place), data.training(place))
            tuned.restore(fresh)
        session.reporter.say(f"The winner's supernet, on the {data.train.unit} of all {folds} folds")
    whole = session.experiment.train.final == "all" and not searches and not again
    train_into(session, tuned, folder, data.everything if whole else data.train)
    if again:
        with torch.no_grad():
            for value, before in zip(trained_values(tuned), first, strict=True):
                value.copy_(before)
        _train_again(session, tuned)


def _train_again(session: Session, tuned: Tuned) -> None:
    """Trains on train and val together, as was chosen; of a method without a search it is the run's adapter."""
    folder, data = session.folder, session.data
    training = Training.of(session)
    if training.settings.epochs == "auto":
        facts = folder.done("epochs")
        assert facts is not None  # the training before has ended
        training = replace(training, settings=training.settings.model_copy(update={"epochs": max(1, facts["chosen"])}))
    if folder.final.done("trained") is None:
        session.reporter.say(f"Once more on all {len(data.everything):,} {data.train.unit}, train and val together")
    train_into(session, tuned, folder.final, data.everything, training)
    if tuned.space is None and session.accelerator.is_main_process:
        tuned.save(folder.adapter, {**training.info, "final": "all"}, base_fingerprint=session.base_fingerprint)
        folder.mark("final")


def is_trained(session: Session, folder: RunFolder) -> bool:
    """Whether the training of a folder is done; the state that a stop at its very end has left is gone then."""
    done = folder.done("trained") is not None
    if done and session.accelerator.is_main_process:
        folder.training.unlink(missing_ok=True)
    return done


def train_into(
    session: Session, tuned: Tuned, folder: RunFolder, examples: Examples, own: Training | None = None
) -> None:
    """Trains into a folder, to the end; one that is trained already gives its numbers.

    Args:
        session: The run.
        tuned: What is trained, with the numbers to start from.
        folder: Where the state, the metrics and the trained file are kept.
        examples: What it is trained on.
        own: Its epochs, learning rate and info, where they are not the run's.
    """
    training = own or Training.of(session)
    done = is_trained(session, folder)
    session.accelerator.wait_for_everyone()  # before the first of them writes
    if done:
        tuned.load(folder.trained_file(), base_fingerprint=session.base_fingerprint)
        return
    folder.check_data(session.data.fingerprint, session.data.parts)
    stopping = Stopping()
    trainer = Trainer(
        tuned,
        examples,
        session.objective,
        training.settings,
        lr=training.lr,
        seed=session.experiment.seed,
        accelerator=session.accelerator,
        val_loss=_val_loss(session, tuned, stopping) if training.settings.epochs == "auto" else None,
        balance=session.experiment.balancing,
    )
    with stopping:
        run_training(session, trainer, folder, stopping)
        _keep(session, trainer, folder, training)


def _keep(session: Session, trainer: Trainer, folder: RunFolder, training: Training) -> None:
    """What was trained is in its file, and the training is done."""
    tuned = trainer.tuned
    if session.accelerator.is_main_process:
        if training.settings.epochs == "auto":
            _tell_best(session, trainer, folder)
        file = folder.adapter if tuned.space is None else folder.supernet
        info = {**training.info, "metrics": {"train_loss": trainer.losses[-1]}}
        tuned.save(file, info, base_fingerprint=session.base_fingerprint)
        cost = {"example_steps": trainer.example_steps, **tokens_in(trainer.examples, trainer.example_steps)}
        folder.mark("trained", file=file.name, seconds=trainer.seconds, **cost)
        folder.training.unlink(missing_ok=True)


def _val_loss(session: Session, tuned: Tuned, stopping: Stopping) -> Callable[[], float]:
    """What a training that ends by val is asked for after every epoch; a signal ends it as if it had not been asked."""
    judging, device = Judging(session, tuned, session.data.val), session.accelerator.device
    alone = session.accelerator.num_processes == 1  # several end together, after a step

    def loss() -> float:
        before = generators(device)
        try:
            return judging(between=stopping.check if alone else None).loss
        except Halt:
            put_back(*before, device)
            raise

    return loss


def _tell_best(session: Session, trainer: Trainer, folder: RunFolder) -> None:
    """Which epoch's state was kept is told, and in the folder."""
    best, epoch = trainer.best, trainer.epoch
    why = f"Epochs: the state after {best.epoch} of {epoch} is kept, which was best on val: loss {best.loss:.4f}."
    if not best.epoch:
        why = f"Epochs: {epoch}; val had no finite loss after any of them."
    session.reporter.say(why)
    folder.mark("epochs", chosen=best.epoch, trained=epoch, why=why)


def run_training(session: Session, trainer: Trainer, folder: RunFolder, stopping: Stopping | None = None) -> None:
    """Trains to the end, from the state in the folder where there is one; the main process keeps the metrics.

    Args:
        session: The run.
        trainer: What trains.
        folder: Where state and metrics are kept.
        stopping: What signals wait in: one ends the step under way, and the state is saved before it takes effect.
    """
    with seeded(trainer.seed):  # drop-out and drop-path of the backbone draw from what is shared
        _go_on(session, trainer, folder)
        saving = Saving(trainer, stopping or Stopping())
        with _spread(trainer):
            while not trainer.over:
                _go(session, trainer, folder, saving)


def _go(session: Session, trainer: Trainer, folder: RunFolder, saving: Saving) -> None:
    """Trains what is left; saves where it is due."""
    try:
        for progress in trainer.run(session.reporter.training, saving.due):
            if not trainer.taken:
                _epoch_done(session, trainer, folder, progress)
            saving.at_pause(lambda: _save(folder, trainer))
    except Halt:  # in the look at val, which is taken again
        saving.now(lambda: _save(folder, trainer))


def _go_on(session: Session, trainer: Trainer, folder: RunFolder) -> None:
    """The training stands where it was saved; the metrics have what belongs to it."""
    if folder.training.is_file():
        _restore(folder, trainer)
        within = f"step {trainer.taken} of {trainer.steps_per_epoch} in epoch {trainer.epoch + 1}"
        done = within if trainer.taken else f"epoch {trainer.epoch}"
        session.reporter.say(f"Training goes on after {done} of {trainer.settings.longest}.")
    trainer.accelerator.wait_for_everyone()  # all have read what the main process will write anew
    if trainer.accelerator.is_main_process:
        data = session.data
        folder.begin(data.fingerprint, trainer.epoch, base=session.base_fingerprint, parts=data.parts)


def _epoch_done(session: Session, trainer: Trainer, folder: RunFolder, progress: Progress) -> None:
    """What has become of the training in an epoch is in the metrics, and told where it is worth a line."""
    if trainer.began == trainer.epoch:  # it begins anew
        seed_all(trainer.seed)
    if not trainer.accelerator.is_main_process:
        return
    if warning := trainer.pace.warning():  # a layer that is never called is known after some passes
        session.reporter.say(warning)
    folder.record("train", asdict(progress))
    if trainer.warning:
        session.reporter.say(trainer.warning)
        folder.record("warning", {"epoch": trainer.epoch, "lr": trainer.lr, "text": trainer.warning})
    if trainer.best.epoch:
        folder.record("val", {"epoch": trainer.epoch, "best_epoch": trainer.best.epoch, "best": trainer.best.loss})


def _spread(trainer: Trainer) -> AbstractContextManager[Any]:
    """What the frozen weights are spread within, where the settings and several processes say so."""
    if trainer.settings.base == "whole" or trainer.accelerator.num_processes == 1:
        return nullcontext()
    return sharded(trainer.tuned.model, trainer.parameters)


def _save(folder: RunFolder, trainer: Trainer) -> None:
    tensors, meta = trainer.state()
    shared, told = generators(trainer.accelerator.device)
    folder.need_there()
    save_tensors(folder.training, {**tensors, **shared}, {**meta, **told, "format": FORMAT})


def _restore(folder: RunFolder, trainer: Trainer) -> None:
    tensors, meta = read_tensors(folder.training)
    if meta.get("format", 1) not in FORMATS:  # of before it was kept: the first
        raise RunError(
            f"{folder.training} has the format {str(meta['format'])[:40]}.",
            allowed=f"This glora continues a training of format {' or '.join(map(str, FORMATS))}.",
            remedy=f"Finish it with the version of then, or {folder.anew}",
        )
    if not fits(tensors):
        raise _no_generators(folder)
    trainer.restore(tensors, meta)
    try:
        put_back(tensors, meta, trainer.accelerator.device)
    except (TypeError, ValueError, KeyError, OverflowError, RuntimeError) as error:
        raise _no_generators(folder) from error


def _no_generators(folder: RunFolder) -> RunError:
    return RunError(
        f"{folder.training} is damaged: it has no state of the random numbers.",
        remedy="Delete it; its stage starts again.",
    )
