"""What all stages of a run share: settings, visible data, the untouched base, where to compute, write and report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from accelerate import Accelerator
from torch import nn

from glora.backbones import Backbone
from glora.config import Experiment
from glora.errors import RunError
from glora.methods.method import Method
from glora.runs.folder import RunFolder
from glora.runs.reporter import Reporter
from glora.tasks.evaluation import Evaluator
from glora.tasks.objective import Objective
from glora.tasks.visible import VisibleData

__all__ = ["Session", "evaluator_of"]


def evaluator_of(experiment: Experiment, objective: Objective, accelerator: Accelerator) -> Evaluator:
    """How models are evaluated in a run of these settings."""
    search = experiment.search
    return Evaluator(objective, accelerator, search.batch_size, search.batch_tokens)


@dataclass(frozen=True)
class Session:
    """One run, as its stages see it. No path leads from here to a test example.

    Attributes:
        experiment: The settings, nothing left open.
        method: What makes the base trainable.
        data: The examples without test, and their objective.
        backbone: The pretrained network, built once and never changed: stages work on copies.
        folder: Where the run is kept.
        accelerator: Device, precision and processes.
        reporter: Where to tell what is going on.
        info: Plain JSON that travels with every file: how to rebuild the base, the objective, the preprocessing.
    """

    experiment: Experiment
    method: Method
    data: VisibleData
    backbone: Backbone
    folder: RunFolder
    accelerator: Accelerator
    reporter: Reporter
    info: Mapping[str, Any]

    @property
    def objective(self) -> Objective:
        """What is learned."""
        return self.data.objective

    @property
    def lr(self) -> float:
        """The learning rate at its top, given or chosen.

        Raises:
            RunError: It is not chosen yet.
        """
        lr = self.experiment.train.lr
        assert lr is not None  # resolved
        if lr != "auto":
            return lr
        facts = self.folder.done("lr")
        if facts is None:
            raise RunError(
                f"The learning rate of {self.folder.path} is not chosen yet.",
                remedy=f"Run `glora train --out {self.folder.path}` first.",
            )
        return float(facts["chosen"])

    def trains_again(self, *, searches: bool) -> bool:
        """Whether the finished model is of a training of its own, on train and val, after the one that val judges.

        Where val judges no training there is but one; and a winner that is polished is so on train and val.

        Args:
            searches: Whether the method has several genotypes.
        """
        train, polished = self.experiment.train, bool(self.experiment.search.polish)
        return train.final == "all" and (not polished if searches else train.epochs == "auto")

    @property
    def seen(self) -> str:
        """What is to be told of a model that was trained on val too; empty of others."""
        if self.experiment.train.final != "all":
            return ""
        n, unit = len(self.data.everything), self.data.train.unit
        return f"It was trained in the end on all {n:,} labelled {unit}, val among them: none tells how good it is."

    @cached_property
    def base_fingerprint(self) -> str:
        """The hash by which the method's files know the base: of the untouched network, computed once."""
        return self.method.base_fingerprint(self.backbone.model, self.backbone.head)

    def base(self) -> nn.Module:
        """A fresh copy of the pretrained network."""
        return copy.deepcopy(self.backbone.model)

    @cached_property
    def evaluator(self) -> Evaluator:
        """How models, on the session's device, are evaluated."""
        return evaluator_of(self.experiment, self.objective, self.accelerator)
