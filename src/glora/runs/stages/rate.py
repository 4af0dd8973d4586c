"""Before the training: the learning rate, where it is `auto`, by short trainings judged on val; no test example."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from glora.errors import RunError, StateError
from glora.files import append_jsonl, plain_json, read_jsonl, write_text
from glora.methods.method import Tuned
from glora.runs.cost import tokens_in
from glora.runs.folder import RunFolder
from glora.runs.judging import Judged, Judging
from glora.runs.ladder import Ladder, Rung, best_rate, further, kept, ladder_of, surely_lower, survivors
from glora.runs.session import Session
from glora.runs.stages.train import run_training, trained_values
from glora.runs.stopping import Stopping
from glora.tasks.objective import Examples
from glora.training.trainer import Trainer

__all__ = ["choose_rate"]


def choose_rate(session: Session, tuned: Tuned) -> None:
    """Chooses the learning rate where it is open, or goes on; it is in the folder, and `tuned` is as it came.

    Raises:
        RunError: All rates have lost the training.
    """
    ladder = ladder_of(session.experiment, session.data)
    chosen = session.folder.done("lr") is not None
    session.accelerator.wait_for_everyone()  # before the main process writes
    if chosen and session.accelerator.is_main_process:
        shutil.rmtree(session.folder.tries, ignore_errors=True)  # a stop may have left it
    if ladder is None or chosen:
        return
    _Choosing(session, tuned, ladder).run()
    session.accelerator.wait_for_everyone()  # it is written


class _Choosing:
    """The tries of a run, in `rates.jsonl`: a line each.

    Args:
        session: The run.
        tuned: What is trained, with the numbers that every try begins with.
        ladder: What is tried.
    """

    def __init__(self, session: Session, tuned: Tuned, ladder: Ladder) -> None:
        self.session = session
        self.tuned = tuned
        self.ladder = ladder
        self.train, self.val = _halves(session)
        self.judging = Judging(session, tuned, self.val)
        self.first = [value.detach().clone() for value in trained_values(tuned)]
        data, base = session.data.fingerprint, session.base_fingerprint
        self.header = plain_json({"event": "rates", "data": data, "base": base, "rates": ladder.rates})
        self.found = self._read()

    def _read(self) -> list[dict[str, Any]]:
        """The tries that are done; those of other data or of another model are forgotten."""
        folder, accelerator = self.session.folder, self.session.accelerator
        records = read_jsonl(folder.rates)
        mine = records[:1] == [self.header]
        known = records[1:] if mine else []
        accelerator.wait_for_everyone()  # all have read what the main process will write anew
        if accelerator.is_main_process:
            if not mine:
                shutil.rmtree(folder.tries, ignore_errors=True)
            lines = [json.dumps(each, separators=(",", ":")) + "\n" for each in (self.header, *known)]
            write_text(folder.rates, "".join(lines))
        accelerator.wait_for_everyone()
        return known

    def run(self) -> None:
        """Tries what is left, and keeps what is best."""
        session, ladder = self.session, self.ladder
        rates, rungs = list(ladder.rates), list[Mapping[float, float | None]]()
        for place, rung in enumerate(ladder.rungs):
            rates = kept(rungs[-1], rung.rates, ladder.own) if rungs else rates
            losses = {rate: self._loss(place, rung, rate) for rate in rates}
            while not rungs and (more := further(losses, ladder)) is not None:
                losses[more] = self._loss(place, rung, more)
            rungs.append(losses)
        best = best_rate(rungs[-1], ladder, lambda rate: self._better(rate, len(rungs) - 1))
        if best is None:
            tried = ", ".join(f"{rate:g}" for rate in ladder.rates)
            raise RunError(f"Every learning rate that was tried lost the training: {tried}.", remedy="Give --lr.")
        counted = [name for name in ("example_steps", "tokens", "seconds") if all(name in each for each in self.found)]
        cost = {name: sum(each[name] for each in self.found) for name in counted}
        why = self._why(best, rungs, int(cost["example_steps"]))
        session.reporter.say(why)
        if session.accelerator.is_main_process:
            session.folder.mark("lr", chosen=best, why=why, **cost)
            shutil.rmtree(session.folder.tries, ignore_errors=True)

    def _better(self, rate: float, place: int) -> bool:
        """Whether the try of a rate is surely better on val than that of the method's own."""
        each = {(one["rung"], one["rate"]): one["each"] for one in self.found}
        return surely_lower(each[place, rate], each[place, self.ladder.own])

    def _why(self, best: float, rungs: Sequence[Mapping[float, float | None]], passes: int) -> str:
        [tried] = survivors(rungs[-1], 1)
        ladder, rates = self.ladder, sorted(rungs[0])
        told = f"The method's own is {ladder.own:g}."
        if best != tried:
            told = f"The method's own stays, {ladder.own:g}: val does not tell them apart for certain."
        return (
            f"Learning rate: {tried:g} was best on val of {len(rates)} from {rates[0]:g} to "
            f"{rates[-1]:g}, in short trainings of {passes:,} passes of an example. {told}"
        )

    def _loss(self, place: int, rung: Rung, rate: float) -> float | None:
        """What a try has on val, from the file or made now; None where its training was lost."""
        for each in self.found:
            if (each["rung"], each["rate"]) == (place, rate):
                return None if each["loss"] is None else float(each["loss"])
        session = self.session
        found = {"event": "try", "rung": place, "rate": rate, **self._tried(place, rung, rate)}
        self.found.append(found)
        if session.accelerator.is_main_process:
            append_jsonl(session.folder.rates, found)
        loss: float | None = found["loss"]
        name = session.objective.metrics[0].name
        told = "the training was lost" if loss is None else f"val loss {loss:.4f}, {name} {found['value']:.4f}"
        session.reporter.say(f"Learning rate {rate:g}, {_length(rung)}: {told}")
        return loss

    def _tried(self, place: int, rung: Rung, rate: float) -> dict[str, Any]:
        session, seed = self.session, self.session.experiment.seed
        with torch.no_grad():
            for value, first in zip(trained_values(self.tuned), self.first, strict=True):
                value.copy_(first)
        own = {"epochs": rung.epochs, "restart": False, "schedule": "cosine", "lr": rate}
        settings = session.experiment.train.model_copy(update=own)
        trainer = Trainer(
            self.tuned,
            self._some(rung),
            session.objective,
            settings,
            lr=rate,
            seed=seed,
            accelerator=session.accelerator,
            balance=session.experiment.balancing,
        )
        trainer.chance = None  # what a bad rate does is no warning
        folder = RunFolder(session.folder.tries / f"{place}-{rate:g}")
        judged: Judged | None = None
        try:
            with Stopping() as stopping:
                run_training(session, trainer, folder, stopping)
        except StateError:  # it is no number any more
            pass
        else:
            judged = self.judging()
        finally:
            self._as_it_came()
        whole = judged is not None and math.isfinite(judged.plain)
        told = {name: getattr(judged, name) if whole else None for name in ("loss", "value", "each")}
        cost = {"example_steps": trainer.example_steps, **tokens_in(self._some(rung), trainer.example_steps)}
        return {**told, **cost, "seconds": trainer.seconds}

    def _as_it_came(self) -> None:
        with torch.no_grad():
            for value, first in zip(trained_values(self.tuned), self.first, strict=True):
                value.copy_(first)
        if self.tuned.space is not None:
            self.tuned.activate(self.tuned.space.largest)

    def _some(self, rung: Rung) -> Examples:
        """As many training examples as a try has, the same for all of a rung."""
        n = len(self.train)
        if rung.examples >= n:
            return self.train
        rng = random.Random(f"tries {self.session.experiment.seed}")
        return self.train.subset(sorted(rng.sample(range(n), rung.examples)))


def _halves(session: Session) -> tuple[Examples, Examples]:
    """What tries are trained on, and what judges them; with folds those of the first."""
    data = session.data
    return (data.training(0), data.scoring[0]) if data.folds else (data.train, data.val)


def _length(rung: Rung) -> str:
    epochs = "1 epoch" if rung.epochs == 1 else f"{rung.epochs} epochs"
    return f"{epochs} of {rung.examples:,} examples"
