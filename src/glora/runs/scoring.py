"""Genotype -> Score on val; which weights score which examples; and how a worker process makes the same scorer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glora.adapt.layers.quantized import is_quantized
from glora.backbones import Backbone, load_backbone
from glora.errors import ConfigError, listed
from glora.methods.method import Method, Tuned
from glora.runs.calibration import apply_calibration
from glora.runs.session import Session
from glora.searchers import Score
from glora.tasks.batching import weights_of
from glora.tasks.calibration import Calibration
from glora.tasks.evaluation import Evaluation, Evaluator, joined
from glora.tasks.objective import Batch, Examples, Objective
from glora.training.device import new_accelerator

__all__ = ["Part", "Recipe", "StoredNumbers", "ValScorer", "calibrated_parts", "load_numbers", "recipe_of"]


class StoredNumbers:
    """One of several sets of numbers on the same model, such as the supernets of folds.

    Args:
        tuned: The model that all of them share.
        snapshot: The numbers of this one.
    """

    def __init__(self, tuned: Tuned, snapshot: Any) -> None:
        self.tuned = tuned
        self.snapshot = snapshot

    def put(self) -> None:
        """The model has these numbers from here on."""
        self.tuned.restore(self.snapshot)

    def hold(self, genotype: Any) -> AbstractContextManager[nn.Module]:
        """Within it the model plays the genotype with these numbers, its weights built once."""
        self.put()
        return self.tuned.hold(genotype)

    def active(self, genotype: Any) -> AbstractContextManager[nn.Module]:
        """The same without building weights, which takes as long as some passes do."""
        self.put()
        self.tuned.activate(genotype)
        return nullcontext(self.tuned.model)


class Part(NamedTuple):
    """Examples and the numbers that score them."""

    numbers: StoredNumbers
    examples: Examples


class ValScorer:
    """Scores a genotype on all parts of val together, each part by its own numbers; it never sees another split.

    Args:
        parts: The examples and their numbers.
        evaluator: How models are called and measured.
        fitness: The metric that is the score.
    """

    def __init__(self, parts: Sequence[Part], evaluator: Evaluator, *, fitness: str) -> None:
        self.parts = tuple(parts)
        self.evaluator = evaluator
        self.fitness = fitness
        weights = [found for part in parts if (found := weights_of(part.examples)) is not None]
        self.unit = torch.cat(weights).mean().item() if weights else 1.0

    def __call__(self, genotype: Any, indices: Sequence[int] | None = None) -> Score | list[float]:
        """The genotype's score with its standard error, higher is better; for some examples one value each.

        The examples are numbered part after part.
        """
        if indices is None:
            return Score(*self.evaluation(genotype).score(self.fitness))
        values: dict[int, float] = {}
        start = 0
        for part in self.parts:
            mine = [index for index in indices if start <= index < start + len(part.examples)]
            if mine:
                found = self.on(part, genotype, [index - start for index in mine])
                values |= dict(zip(mine, found.scores(self.fitness, unit=self.unit), strict=True))
            start += len(part.examples)
        return [values[index] for index in indices]

    def evaluation(self, genotype: Any) -> Evaluation:
        """What the genotype does on every example of val, part after part."""
        return joined(self.on(part, genotype) for part in self.parts)

    def outputs(self, genotype: Any) -> list[tuple[Any, Batch]]:
        """The genotype's outputs on all of val, part after part, each with its batch."""
        found: list[tuple[Any, Batch]] = []
        for part in self.parts:
            with part.numbers.hold(genotype) as model:
                found += self.evaluator.outputs(model, part.examples)
        return found

    def on(self, part: Part, genotype: Any, indices: Sequence[int] | None = None) -> Evaluation:
        """What the genotype does on the examples of one part, or on some of them."""
        numbers = part.numbers
        with numbers.hold(genotype) if indices is None else numbers.active(genotype) as model:
            return self.evaluator.evaluate(model, part.examples, indices)


def load_numbers(session: Session, tuned: Tuned) -> list[Any]:
    """Snapshots of what was trained: of each fold's supernet, then of the one whose numbers the winner plays.

    Raises:
        RunError: A supernet is not trained yet.
        AdapterFileError: A file is damaged, or of another base.
    """
    folder, snapshots = session.folder, []
    for each in (*(folder.fold(place) for place in range(len(session.data.folds))), folder):
        tuned.load(each.trained_file(), base_fingerprint=session.base_fingerprint)
        snapshots.append(tuned.snapshot())
    return snapshots


def calibrated_parts(
    session: Session, tuned: Tuned, snapshots: Sequence[Any], calibration: Calibration
) -> tuple[tuple[Part, ...], StoredNumbers]:
    """The parts of val with the numbers that score them, and the numbers that the winner plays; all calibrated.

    In the plain split one supernet scores all of val; with folds each what it did not see.
    """
    stored: list[StoredNumbers] = []
    for snapshot in snapshots:
        tuned.restore(snapshot)
        apply_calibration(tuned, calibration)
        stored.append(StoredNumbers(tuned, tuned.snapshot()))
    return tuple(map(Part, stored[:-1] or stored, session.data.scoring)), stored[-1]


@dataclass(frozen=True)
class Recipe:
    """How a worker makes a `ValScorer` of its own; all processes of one machine share the base's weights.

    Attributes:
        base: What rebuilds the backbone: its spec, or itself where it was given as an object.
        outputs: Outputs of its head.
        head: The modules that are trained whole.
        method: What makes it trainable.
        weights: Name -> parameter or buffer of the trained model, in shared memory.
        examples: The validation examples, part by part.
        snapshots: The numbers of each part.
        constants: Those of the trained model, whatever the library's are now.
        objective, fitness, precision, batch_size, tokens: As in the run.
    """

    base: Mapping[str, Any] | Backbone
    outputs: int | None
    head: tuple[str, ...]
    method: Method
    weights: Mapping[str, Tensor]
    examples: tuple[Examples, ...]
    snapshots: tuple[Any, ...]
    constants: Mapping[str, Any]
    objective: Objective
    fitness: str
    precision: str
    batch_size: int
    tokens: int | None = None

    def build(self) -> ValScorer:
        """The scorer, in this process; what differs from part to part is its own."""
        if isinstance(self.base, Backbone):
            model = copy.deepcopy(self.base.model)
        else:
            spec: dict[str, Any] = {**self.base, "pretrained": False, "checkpoint": None}
            model = load_backbone(**spec, num_classes=self.outputs).model
        tuned = self.method.apply(model, head=self.head, seed=0)
        tuned.use_constants(self.constants)
        own = _weights(model)
        assert own.keys() == self.weights.keys()
        for name, tensor in own.items():
            tensor.data = self.weights[name]
        accelerator = new_accelerator(self.precision)
        model.to(accelerator.device)
        for tensor in (*tuned.parameters(), *model.buffers()):  # what a snapshot changes is this process's own
            tensor.data = tensor.data.clone()
        numbers = [StoredNumbers(tuned, snapshot) for snapshot in self.snapshots]
        parts = tuple(Part(*each) for each in zip(numbers, self.examples, strict=True))
        return ValScorer(
            parts, Evaluator(self.objective, accelerator, self.batch_size, self.tokens), fitness=self.fitness
        )


def recipe_of(session: Session, tuned: Tuned, parts: Sequence[Part]) -> Recipe:
    """How worker processes make the scorer of these parts."""
    backbone, search = session.backbone, session.experiment.search
    snapshots = []
    for part in parts:
        part.numbers.put()
        snapshots.append(tuned.snapshot(cpu=True))
    return Recipe(
        base=backbone if backbone.spec is None else dict(backbone.spec),
        outputs=session.objective.outputs,
        head=backbone.head,
        method=session.method,
        weights=_shared_weights(tuned.model),
        examples=tuple(part.examples for part in parts),
        snapshots=tuple(snapshots),
        constants=tuned.constants,
        objective=session.objective,
        fitness=search.fitness,
        precision=session.accelerator.mixed_precision,
        batch_size=search.batch_size,
        tokens=search.batch_tokens,
    )


def _shared_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, moved to memory that other processes can read.

    Raises:
        ConfigError: One is quantised.
    """
    if odd := [name for name, tensor in _weights(model).items() if is_quantized(tensor)]:
        raise ConfigError(
            f"The weights of a quantised base cannot be shared with workers: {listed(odd)}.",
            remedy="Search without workers: --workers 0",
        )
    shared = {name: tensor.detach().cpu() for name, tensor in _weights(model).items()}
    for tensor in shared.values():
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
