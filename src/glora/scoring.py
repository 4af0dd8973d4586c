"""Genotype -> Score on val; and the recipe by which a worker process makes the same scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from accelerate import Accelerator
from torch import Tensor, nn

from glora.backbones import Spec, load_backbone
from glora.data import ImageSet
from glora.device import new_accelerator
from glora.genotype import Genotype
from glora.methods.glora import GLoRA
from glora.searchers import Score
from glora.supernet import Supernet
from glora.train import Evaluation, evaluate

__all__ = ["Recipe", "ValScorer", "score_of", "shared_weights", "values_of"]

Fitness = Literal["loss", "accuracy"]


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
        self, supernet: Supernet, val: ImageSet, *, fitness: Fitness, accelerator: Accelerator, batch_size: int
    ) -> None:
        self.supernet = supernet
        self.val = val
        self.fitness = fitness
        self.accelerator = accelerator
        self.batch_size = batch_size

    def __call__(self, genotype: Genotype, indices: Sequence[int] | None = None) -> Score | list[float]:
        """The genotype's score with its standard error, higher is better; for some images one value each."""
        found = self._evaluation(genotype, indices)
        if indices is not None:
            return values_of(found, self.fitness)
        return score_of(found, self.fitness)

    def _evaluation(self, genotype: Genotype, indices: Sequence[int] | None) -> Evaluation:
        with self.supernet.hold(genotype) as model:
            return evaluate(model, self.val, accelerator=self.accelerator, batch_size=self.batch_size, indices=indices)


def score_of(found: Evaluation, fitness: str) -> Score:
    """The score of an evaluation, with its standard error; higher is better."""
    if fitness == "accuracy":
        return Score(found.accuracy, found.accuracy_standard_error)
    return Score(-found.loss, found.loss_standard_error)


def values_of(found: Evaluation, fitness: str) -> list[float]:
    """What a score is the mean of: one value per image."""
    values = found.right.double() if fitness == "accuracy" else -found.losses.double()
    return [float(value) for value in values]


@dataclass(frozen=True)
class Recipe:
    """How a worker makes a `ValScorer` of its own; all processes of one machine share the weights.

    Attributes:
        spec: What rebuilds the backbone; its weights are not read again.
        classes: Outputs of its head.
        method: What adapts it.
        weights: Name -> parameter or buffer of the adapted model, in shared memory.
        val: The validation images.
        fitness, precision, batch_size: As in the settings.
    """

    spec: Spec
    classes: int
    method: GLoRA
    weights: Mapping[str, Tensor]
    val: ImageSet
    fitness: Fitness
    precision: str
    batch_size: int

    def build(self) -> ValScorer:
        """The scorer, in this process."""
        spec: Spec = {**self.spec, "pretrained": False, "checkpoint": None}
        backbone = load_backbone(**spec, num_classes=self.classes)
        supernet = self.method.apply(backbone.model, head=backbone.head, seed=0).supernet
        own = _weights(backbone.model)
        assert own.keys() == self.weights.keys()
        for name, tensor in own.items():
            tensor.data = self.weights[name]
        accelerator = new_accelerator(self.precision)
        backbone.model.to(accelerator.device)
        return ValScorer(supernet, self.val, fitness=self.fitness, accelerator=accelerator, batch_size=self.batch_size)


def shared_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, moved to memory that other processes can read."""
    shared = {name: tensor.detach().cpu() for name, tensor in _weights(model).items()}
    for tensor in shared.values():
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
