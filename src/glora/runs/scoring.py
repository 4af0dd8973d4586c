"""Genotype -> Score on val; and the recipe by which a worker process makes the same scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from glora.adapt.adapted import Adapted
from glora.adapt.adapter_file import load_supernet
from glora.adapt.state import AdapterState
from glora.adapt.supernet import StoredSupernet, Supernet, copied
from glora.backbones import Spec, load_backbone
from glora.genotype import Genotype
from glora.methods.glora import GLoRA
from glora.runs.calibration import Calibration
from glora.runs.folder import RunFolder
from glora.runs.sheet import joined
from glora.searchers import Score
from glora.tasks.evaluation import Evaluation, evaluate, predictions
from glora.tasks.task import ImageSet
from glora.tasks.visible import Known
from glora.training.device import new_accelerator

__all__ = ["Part", "Recipe", "ValScorer", "load_parts", "score_of", "shared_weights", "values_of"]


class Part(NamedTuple):
    """Images and the supernet that scores them."""

    supernet: Supernet
    images: ImageSet


class ValScorer:
    """Scores a genotype on all parts of val together, each part by its own supernet; it never sees another split.

    Args:
        parts: The images and their supernets.
        fitness: `"loss"` (the score is its negative) or `"accuracy"` (the paper's).
        accelerator: Device, precision and processes.
        batch_size: Images per forward pass.
    """

    def __init__(self, parts: Sequence[Part], *, fitness: str, accelerator: Accelerator, batch_size: int) -> None:
        self.parts = tuple(parts)
        self.fitness = fitness
        self.accelerator = accelerator
        self.batch_size = batch_size

    def __call__(self, genotype: Genotype, indices: Sequence[int] | None = None) -> Score | list[float]:
        """The genotype's score with its standard error, higher is better; for some images one value each.

        The images are numbered part after part.
        """
        if indices is None:
            return score_of(self.evaluation(genotype), self.fitness)
        values: dict[int, float] = {}
        start = 0
        for part in self.parts:
            mine = [index for index in indices if start <= index < start + len(part.images)]
            if mine:
                found = self.on(part, genotype, [index - start for index in mine])
                values |= dict(zip(mine, values_of(found, self.fitness), strict=True))
            start += len(part.images)
        return [values[index] for index in indices]

    def evaluation(self, genotype: Genotype) -> Evaluation:
        """What the genotype does on every image of val, part after part."""
        return joined(self.on(part, genotype) for part in self.parts)

    def logits(self, genotype: Genotype) -> tuple[Tensor, Tensor]:
        """The genotype's logits `(n, classes)` on all of val, part after part, and the labels `(n,)`."""
        found: list[tuple[Tensor, Tensor]] = []
        for part in self.parts:
            with part.supernet.hold(genotype) as model:
                found += predictions(model, part.images, accelerator=self.accelerator, batch_size=self.batch_size)
        logits, labels = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def on(self, part: Part, genotype: Genotype, indices: Sequence[int] | None = None) -> Evaluation:
        """What the genotype does on the images of one part, or on some of them."""
        how: dict[str, Any] = {"accelerator": self.accelerator, "batch_size": self.batch_size, "indices": indices}
        with part.supernet.hold(genotype) as model:
            return evaluate(model, part.images, **how)


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
    """How a worker makes a `ValScorer` of its own; all processes of one machine share the base's weights.

    Attributes:
        spec: What rebuilds the backbone; its weights are not read again.
        classes: Outputs of its head.
        method: What adapts it.
        weights: Name -> parameter or buffer of the adapted model, in shared memory.
        images: The validation images, part by part.
        states: The numbers of each part's supernet; empty where there is one, whose numbers are in the weights.
        scales: Site name -> the fixed scales that the supernet was trained with, whatever the library's are now.
        fitness, precision, batch_size: As in the settings.
    """

    spec: Spec
    classes: int
    method: GLoRA
    weights: Mapping[str, Tensor]
    images: tuple[ImageSet, ...]
    states: tuple[AdapterState, ...]
    scales: Mapping[str, Mapping[str, float]]
    fitness: str
    precision: str
    batch_size: int

    def build(self) -> ValScorer:
        """The scorer, in this process; what differs from part to part is its own."""
        spec: Spec = {**self.spec, "pretrained": False, "checkpoint": None}
        backbone = load_backbone(**spec, num_classes=self.classes)
        supernet = self.method.apply(backbone.model, head=backbone.head, seed=0).supernet
        for name, support in supernet.adapted.supports.items():
            support.scales = dict(self.scales[name])
        own = _weights(backbone.model)
        assert own.keys() == self.weights.keys()
        for name, tensor in own.items():
            tensor.data = self.weights[name]
        accelerator = new_accelerator(self.precision)
        backbone.model.to(accelerator.device)
        if self.states:
            for tensor in (*supernet.adapted.parameters(), *backbone.model.buffers()):
                tensor.data = tensor.data.clone()
        stored = [StoredSupernet(supernet.adapted, state) for state in self.states]
        supernets: list[Supernet] = [*stored] or [supernet]
        parts = tuple(Part(*each) for each in zip(supernets, self.images, strict=True))
        return ValScorer(parts, fitness=self.fitness, accelerator=accelerator, batch_size=self.batch_size)


def shared_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, moved to memory that other processes can read."""
    shared = {name: tensor.detach().cpu() for name, tensor in _weights(model).items()}
    for tensor in shared.values():
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_parts(
    adapted: Adapted, known: Known, folder: RunFolder, calibration: Calibration
) -> tuple[tuple[Part, ...], StoredSupernet]:
    """The parts of val with the supernets that score them, and the supernet whose weights the winner plays.

    All of them are calibrated. The numbers of the last are in place afterwards.

    Raises:
        RunError: A supernet is not trained yet.
        AdapterFileError: A file is damaged, or of another base.
    """
    folders = [folder.fold(place) for place in range(len(known.folds))]
    for each in (*folders, folder):
        each.need(each.supernet, f"glora train --out {folder.path}")
    stored: list[StoredSupernet] = []
    for each in (*folders, folder):
        load_supernet(adapted, each.supernet)
        calibration.apply(adapted)
        stored.append(StoredSupernet(adapted, copied(adapted)))
    scoring: list[Supernet] = [*stored[:-1]] or [Supernet(adapted)]
    return tuple(map(Part, scoring, known.scoring)), stored[-1]
