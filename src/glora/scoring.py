"""Genotype -> Score on val."""

from __future__ import annotations

from typing import Literal

from accelerate import Accelerator

from glora.data import ImageSet
from glora.genotype import Genotype
from glora.searchers import Score
from glora.supernet import Supernet
from glora.train import Evaluation, evaluate

__all__ = ["ValScorer", "score_of"]


class ValScorer:
    """Scores a genotype by the supernet's loss or accuracy on validation images; it never sees another split.

    Args:
        supernet: The trained supernet; its weights are inherited, nothing is retrained.
        val: The validation images.
        fitness: `"loss"` (the score is its negative) or `"accuracy"` (the paper's).
        accelerator: Device, precision and processes.
        batch_size: Images per forward pass.
    """

    def __init__(
        self,
        supernet: Supernet,
        val: ImageSet,
        *,
        fitness: Literal["loss", "accuracy"],
        accelerator: Accelerator,
        batch_size: int,
    ) -> None:
        self.supernet = supernet
        self.val = val
        self.fitness = fitness
        self.accelerator = accelerator
        self.batch_size = batch_size

    def __call__(self, genotype: Genotype) -> Score:
        """The genotype's score with its standard error; higher is better."""
        with self.supernet.hold(genotype) as model:
            found = evaluate(model, self.val, accelerator=self.accelerator, batch_size=self.batch_size)
        return score_of(found, self.fitness)


def score_of(found: Evaluation, fitness: str) -> Score:
    """The score of an evaluation, with its standard error; higher is better."""
    if fitness == "accuracy":
        return Score(found.accuracy, found.accuracy_standard_error)
    return Score(-found.loss, found.loss_standard_error)
