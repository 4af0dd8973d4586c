"""When the state of a training is saved: so often that little is lost, so seldom that it costs little."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import torch

from glora.runs.stopping import Stopping
from glora.training.trainer import Trainer

__all__ = ["Saving"]

SHARE = 0.05  # of the training time may go into saving its state
EVERY = 30.0  # seconds between two states within an epoch
LONGEST, LATEST = 50.0, 0.04  # the most there are where saving is slow, the second as a share of the training so far: a
# minute and 5% are promised, and a step may be longer than the one before it


class Saving:
    """Tells after which steps of a training its state is saved, and saves it; all processes pause together.

    Args:
        trainer: The training, where it begins or goes on.
        stopping: What tells of signals: after one the state is saved, and then the signal passed on.
    """

    def __init__(self, trainer: Trainer, stopping: Stopping) -> None:
        self.trainer = trainer
        self.stopping = stopping
        self._cost = 0.0  # seconds of the last one
        self._saved = self._asked = time.perf_counter()
        self._begun = self._saved - trainer.seconds
        self._stops = False

    def due(self) -> bool:
        """Whether the training pauses after this step; asked after every one."""
        now = time.perf_counter()
        step, self._asked = now - self._asked, now
        late = self.trainer.accelerator.is_main_process and now - self._saved + step >= self._patience(now)
        late, self._stops = self._agreed(late, bool(self.stopping.came))
        return late or self._stops

    def _patience(self, now: float) -> float:
        """Seconds after a state within which the next one is saved."""
        return min(max(EVERY, self._cost / SHARE), max(LONGEST, LATEST * (now - self._begun)))

    def _agreed(self, *mine: bool) -> tuple[bool, ...]:
        """What any process says."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return mine
        told = torch.tensor([float(each) for each in mine], device=accelerator.device)
        return tuple(each > 0 for each in accelerator.reduce(told, "sum").tolist())

    def at_pause(self, save: Callable[[], None]) -> None:
        """Between two steps or epochs: saves where it is time to, and lets a signal take effect.

        At the end of an epoch a state is saved too unless that would cost more than its share.
        """
        trainer = self.trainer
        if not trainer.taken:
            _, self._stops = self._agreed(False, bool(self.stopping.came))
        cheap = self._cost <= SHARE * (time.perf_counter() - self._saved) and not trainer.over
        if self._stops:
            self.now(save)
        elif trainer.taken or cheap:
            self._save(save)

    def now(self, save: Callable[[], None]) -> None:
        """Saves, and lets the signal take effect that has come to any process; not where the training is over."""
        self._save(save)
        self.trainer.accelerator.wait_for_everyone()  # none ends before it is written
        self.stopping.came = self.stopping.came or signal.SIGTERM
        if not self.trainer.over:
            self.stopping.pass_on()

    def _save(self, save: Callable[[], None]) -> None:
        if self.trainer.accelerator.is_main_process:
            start = time.perf_counter()
            save()
            self._cost = time.perf_counter() - start
        self._saved = time.perf_counter()
