"""What a training, as it stands, does on val: the number by which a run chooses its rate and its epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from glora.methods.method import Tuned
from glora.runs.comparison import random_genomes
from glora.runs.cost import planned
from glora.runs.session import Session
from glora.tasks.batching import weights_of
from glora.tasks.calibration import GENOTYPES, TEMPERATURES
from glora.tasks.evaluation import Evaluation, joined
from glora.tasks.objective import Examples

__all__ = ["Judged", "Judging", "played"]

APART = 2  # between the seeds of a run and of the genotypes that judge it


@dataclass(frozen=True)
class Judged:
    """What a model does on val, or the mean of several genotypes.

    Attributes:
        loss: The mean loss with the logits divided by the temperature that suits it best: few examples, seen often,
            make a model surer than it is right, and the plain loss tells of that alone. Where there is no temperature
            the plain loss.
        plain: The plain loss. value: The objective's first metric.
        each: What every example adds to the loss; their mean is the loss.
    """

    loss: float
    plain: float
    value: float
    each: tuple[float, ...] = ()


def played(session: Session, tuned: Tuned) -> list[Any]:
    """The genotypes that tell of a supernet: some random ones of the sizes that will be searched; [None] of one model.

    Args:
        session: The run.
        tuned: What is trained.
    """
    if tuned.space is None:
        return [None]
    plan = planned(session.experiment, session.data, tuned.space)
    bounds: dict[str, Any] = {"budget": plan.budget, "min_budget": plan.min_budget}
    genomes = random_genomes(tuned.space, GENOTYPES, **bounds, seed=session.experiment.seed + APART)
    return [tuned.space.decode(genome) for genome in genomes]


class Judging:
    """Judges a training as it stands; all processes are told what the main process finds.

    Args:
        session: The run.
        tuned: What is trained.
        examples: Those that it is not trained on.
        genotypes: What is played; `played` where not given.
    """

    def __init__(
        self, session: Session, tuned: Tuned, examples: Examples, genotypes: Sequence[Any] | None = None
    ) -> None:
        self.session = session
        self.tuned = tuned
        self.examples = examples
        self.genotypes = played(session, tuned) if genotypes is None else genotypes

    @property
    def passes(self) -> int:
        """Forward passes of an example that judging takes."""
        return len(self.genotypes) * len(self.examples)

    @torch.no_grad()
    def __call__(self, between: Callable[[], None] | None = None) -> Judged:
        """What it does; the model plays what it played, and is in eval mode.

        Args:
            between: Called after every batch; what it raises ends the look.
        """
        tuned, session = self.tuned, self.session
        every: list[Evaluation] = []
        losses: dict[float, Tensor] = {}  # temperature -> of every example, summed over the genotypes
        weights = weights_of(self.examples)
        for genotype in self.genotypes:
            with nullcontext(tuned.model) if genotype is None else tuned.hold(genotype) as model:
                for places, output, batch in session.evaluator.placed(model, self.examples):
                    own = None if weights is None else weights[places]
                    values = {name: each.cpu() for name, each in session.objective.values(output, batch).items()}
                    every.append(Evaluation(session.objective, values, weights=own))
                    self._add(losses, places, output, batch, values["loss"])
                    if between is not None:
                        between()
        whole = joined(every)
        plain, value = whole.value("loss"), whole.value(session.objective.metrics[0].name)
        share = torch.ones(len(self.examples)) if weights is None else len(weights) * weights / weights.sum()
        means = {
            temperature: total.double() * share / len(self.genotypes)
            for temperature, total in losses.items()
            if bool(total.isfinite().all())
        }
        best = min(means, key=lambda temperature: means[temperature].sum().item(), default=None)
        each = () if best is None else tuple(means[best].tolist())
        loss = plain if best is None else math.fsum(each) / len(each)
        found: Judged = broadcast_object_list([Judged(loss, plain, value, each)])[0]
        return found

    def _add(self, losses: dict[float, Tensor], places: Any, output: Any, batch: Any, plain: Tensor) -> None:
        """Adds the losses of a batch, for every temperature; the plain ones where there is none."""
        objective = self.session.objective
        for temperature in TEMPERATURES:
            cooled = objective.tempered(output, temperature)
            mine = losses.setdefault(temperature, torch.zeros(len(self.examples), dtype=torch.float64))
            mine[places] += (plain if cooled is None else objective.losses(cooled, batch)).double().cpu()
            if cooled is None:
                return
