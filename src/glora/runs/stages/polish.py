"""After the search: some epochs of the winner alone, from the supernet's or the pretrained weights; no test example."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from glora.methods.method import Tuned
from glora.report.outcome import Outcome
from glora.runs.calibration import load_calibrated
from glora.runs.comparison import Contender, compare
from glora.runs.folder import RunFolder
from glora.runs.stages.search import Search
from glora.runs.stages.train import Training, is_trained, train_into
from glora.tasks.objective import Examples

__all__ = ["Polishing", "polish", "retrain"]


class Polishing:
    """Trains a search's winner on, and tells what it does before and after.

    Args:
        search: The finished search.
        outcome: Its winner, to be polished.
    """

    def __init__(self, search: Search, outcome: Outcome) -> None:
        assert outcome.polish is not None
        self.search = search
        self.outcome = outcome
        self.session = search.session
        self.polish = outcome.polish
        data = self.session.data
        self.unseen: Mapping[str, Examples] = {} if self.polish["on"] == "all" else data.unseen

    def run(self) -> Outcome:
        """Polishes the winner, or goes on; the run folder's adapter is the polished one."""
        search, session, outcome = self.search, self.session, self.outcome
        folder = session.folder.polished(outcome.key)
        info = {**session.info, "polish": dict(self.polish), "winner": outcome.key}
        if not is_trained(session, folder):
            settings = session.experiment.train.model_copy(update={"epochs": self.polish["epochs"]})
            examples = session.data.everything if self.polish["on"] == "all" else session.data.train
            session.reporter.say(self._plan(examples))
            start = afresh if self.polish.get("from") == "base" else trained
            train_into(session, start(search, outcome), folder, examples, Training(settings, self.polish["lr"], info))
        tuned = load_calibrated(session, folder.adapter, self._val)
        tuned.save_winner(session.folder.adapter, info, base_fingerprint=session.base_fingerprint)
        others = search.controls(budget=outcome.budget, min_budget=outcome.min_budget, picked=outcome.picked)
        others = {"unpolished": search.contender(outcome.genome), **others}
        rows = compare(self.contender(tuned.merged()), others, session.objective)
        outcome = search.complete(outcome, rows)
        session.reporter.say(outcome.polish_effect)
        return outcome

    def _plan(self, examples: Examples) -> str:
        """What is going to be done, in a sentence."""
        epochs = "1 epoch" if self.polish["epochs"] == 1 else f"{self.polish['epochs']} epochs"
        start = " from the pretrained weights" if self.polish.get("from") == "base" else ""
        what = f"{epochs} of the winner alone{start} on {len(examples):,} {examples.unit}"
        return f"Polish: {what}, learning rate {self.polish['lr']:g}"

    @property
    def _val(self) -> Examples | None:
        """What the polished winner is calibrated on: training has made it surer again."""
        return self.unseen.get("val") if self.search.plan.extent.calibrate else None

    def contender(self, model: nn.Module) -> Contender:
        """What the polished and merged winner does on the splits that it has not seen."""
        model = model.to(self.session.accelerator.device)
        splits = {split: self.session.evaluator.evaluate(model, examples) for split, examples in self.unseen.items()}
        calibrated = not self.search.plan.extent.calibrate or "val" in splits
        return Contender(self.outcome.parameters, splits, calibrated=calibrated)


def polish(search: Search, outcome: Outcome) -> Outcome:
    """The winner polished where the settings ask for it, else as it is."""
    return outcome if outcome.polish is None else Polishing(search, outcome).run()


def trained(search: Search, outcome: Outcome) -> Tuned:
    """The winner alone with the supernet's numbers, on the session's device."""
    search.final.put()
    search.tuned.activate(search.space.decode(outcome.genome))
    return _alone(search, search.tuned)


def afresh(search: Search, outcome: Outcome) -> Tuned:
    """The winner alone with the numbers that the method begins with, on the session's device."""
    session = search.session
    fresh = session.method.apply(session.base(), head=session.backbone.head, seed=session.experiment.seed)
    fresh.activate(search.space.decode(outcome.genome))
    return _alone(search, fresh)


def _alone(search: Search, tuned: Tuned) -> Tuned:
    alone = tuned.alone(search.session.base())
    alone.model.to(search.session.accelerator.device)
    return alone


def retrain(search: Search, outcome: Outcome) -> nn.Module:
    """The winner trained alone from the pretrained weights, with the supernet's examples, steps and rate; merged."""
    session = search.session
    folder: RunFolder = session.folder.retrained(outcome.genome)
    if not is_trained(session, folder):
        session.reporter.say("Control: the winner trained alone from the pretrained weights")
        train_into(session, afresh(search, outcome), folder, session.data.train)
    val = session.data.unseen.get("val") if search.plan.extent.calibrate else None
    return load_calibrated(session, folder.adapter, val).merged()
