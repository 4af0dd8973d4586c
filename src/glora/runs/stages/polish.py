"""After the search: some epochs of the winner alone, from the supernet's weights; no test image comes here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from glora.adapt.adapter_file import save_adapter
from glora.config import SearchSettings
from glora.report.outcome import Outcome
from glora.runs.calibration import load_calibrated
from glora.runs.comparison import Contender, compared
from glora.runs.reporter import Reporter
from glora.runs.stages.search import Search
from glora.runs.stages.train import Training
from glora.tasks.evaluation import evaluate
from glora.tasks.task import ImageSet

__all__ = ["Polishing", "polish_info"]


def polish_info(settings: SearchSettings) -> dict[str, Any] | None:
    """How a winner is polished, as its adapter file tells it; None where it is not.

    Args:
        settings: The search's, settled.
    """
    if not settings.polish:
        return None
    return {"epochs": settings.polish, "on": settings.polish_on, "lr": settings.polish_lr}


class Polishing:
    """Trains a search's winner on, and keeps what it does before and after.

    Args:
        search: The finished search.
        training: The training loop with the polish's epochs and learning rate.
        how: What `polish_info` gave.
        base: Makes the plain model.
    """

    def __init__(
        self, search: Search, training: Training, how: Mapping[str, Any], base: Callable[[], nn.Module]
    ) -> None:
        self.search = search
        self.training = training
        self.how = how
        self.base = base
        self.reporter: Reporter = search.reporter
        self.unseen: Mapping[str, ImageSet] = {} if how["on"] == "all" else search.known.unseen
        self._how: dict[str, Any] = {"accelerator": search.accelerator, "batch_size": search.settings.batch_size}

    def run(self, outcome: Outcome) -> Outcome:
        """Polishes the winner, or goes on; the run folder's adapter is the polished one."""
        search, folder = self.search, self.search.folder.polished(outcome.key)
        if not folder.adapter.is_file():
            images = self._images()
            epochs = "1 epoch" if self.how["epochs"] == 1 else f"{self.how['epochs']} epochs"
            what = f"{epochs} of the winner alone on {len(images):,} images"
            self.reporter.say(f"Polish: {what}, learning rate {self.how['lr']:g}")
            search.final.put()
            search.adapted.activate(search.space.decode(outcome.genome))
            self.training.on(self.base(), search.adapted.state(), folder, images)
        val = self.unseen.get("val") if search.calibrated else None  # training has made it surer again
        adapted = load_calibrated(self.base(), folder.adapter, val, **self._how)
        save_adapter(adapted, search.folder.adapter, info=self.training.info)
        model = adapted.merge(keep_base=False)
        others = search.controls(budget=outcome.budget, min_budget=outcome.min_budget, picked=outcome.picked)
        others = {"unpolished": search.contender(outcome.genome), **others}
        outcome = search.complete(outcome, compared(self.contender(outcome, model), others))
        self.reporter.say(outcome.polish_effect)
        return outcome

    def contender(self, outcome: Outcome, model: nn.Module) -> Contender:
        """What the polished and merged winner does on the splits that it has not seen."""
        model = model.to(self.search.accelerator.device)
        splits = {split: evaluate(model, images, **self._how) for split, images in self.unseen.items()}
        return Contender(outcome.parameters, splits, alike=not self.search.calibrated or "val" in splits)

    def _images(self) -> ImageSet:
        known = self.search.known
        return known.everything if self.how["on"] == "all" else known.train
