"""What a model is trained for and how it is measured: the one thing that training, scoring and tables ask.

An objective is a frozen settings model, `objective: {name: classify}` in an experiment. What it learns from the data,
such as the names of the classes, are fields too: `named` and `fitted` fill them in, and the adapter file carries them.
Shapes: `n` examples of a batch, `c` outputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import Self

from glora.errors import DataError, listed
from glora.settings import Settings

__all__ = [
    "Batch",
    "Examples",
    "Grouped",
    "Measured",
    "Metric",
    "Mixed",
    "Objective",
    "Targets",
    "Varied",
    "logits_of",
]


class Metric(NamedTuple):
    """A number by which models are compared.

    Attributes:
        name: Such as `"loss"`, `"accuracy"`, `"rmse"`.
        higher: Whether higher is better.
        show: How a table prints it: `"percent"` (a fraction, shown times 100) or a format such as `".3f"`.
        per_example: Whether it is a mean of one value per example: only such metrics may race, be compared in pairs
            and have a standard error.
        proportion: Whether these values are 0 or 1: the standard error is then the binomial sqrt(p (1 - p) / n).
    """

    name: str
    higher: bool
    show: str = ".4g"
    per_example: bool = True
    proportion: bool = False

    def to_json(self) -> dict[str, Any]:
        """What tables need to know of it."""
        return {"name": self.name, "higher": self.higher, "show": self.show}


class Mixed(NamedTuple):
    """The targets of training examples that are mixed, each with one other.

    Attributes:
        own: Theirs, as a batch has them.
        others: Those of the others.
        share: How much each example is still itself.
    """

    own: Any
    others: Any
    share: float


class Batch(NamedTuple):
    """Some examples as the model takes them.

    Attributes:
        inputs: A tensor, or a tuple or mapping of tensors, examples first.
        targets: A tensor `(n, ...)`, or whatever the objective reads; `Mixed` where training mixes the examples.
        rows: Rows of the model's batch per example, next to each other.
    """

    inputs: Any
    targets: Any
    rows: int = 1


class Examples(Protocol):
    """One split, whatever it holds."""

    @property
    def unit(self) -> str:
        """What the examples are called, in the plural: `"images"`."""
        ...

    @property
    def strata(self) -> Sequence[Hashable] | None:
        """What splits keep in proportion, one per example; None: nothing."""
        ...

    @property
    def targets(self) -> Tensor:
        """What is to be predicted, `(n, ...)`."""
        ...

    def __len__(self) -> int: ...

    def subset(self, indices: Sequence[int]) -> Examples:
        """The examples of these indices, in their order."""
        ...

    def joined(self, other: Any) -> Examples:
        """These examples, then those of another split of the same data."""
        ...

    def prepared(self, preprocess: Any) -> Examples:
        """The same examples, read as a backbone's `preprocess` says; themselves where that does not matter."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples of these indices together."""
        ...

    def identify(self, digest: Any, root: Path | None) -> None:
        """Adds what the examples are to a hash; file names count relative to `root`."""
        ...


@runtime_checkable
class Fixed(Examples, Protocol):
    """Examples whose inputs `identify` leaves out, though they may be known not to change from reading to reading."""

    def identify_inputs(self, digest: Any) -> None:
        """Adds the inputs that are known not to change to a hash."""
        ...


@runtime_checkable
class Varied(Examples, Protocol):
    """Examples that look another way in every epoch of a training."""

    @property
    def mixes(self) -> bool:
        """Whether the examples of training batches are mixed with each other."""
        ...

    def training_batch(self, batch: Sequence[int], positions: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """The examples at some positions of a training batch, as this seed and epoch have them."""
        ...


@runtime_checkable
class Measured(Examples, Protocol):
    """Examples of different lengths, such as texts, some of which may count more than others."""

    @property
    def lengths(self) -> Sequence[int]:
        """The length of each, such as its number of tokens: a batch is padded to the longest."""
        ...

    @property
    def weights(self) -> Tensor | None:
        """How much each counts in a loss or a mean, `(n,)`, such as its trained tokens; None: all the same."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a user should be told of them, such as rows left out when they were prepared."""
        ...


@runtime_checkable
class Grouped(Examples, Protocol):
    """Examples some of which belong together, such as texts that ask the same."""

    @property
    def groups(self) -> Sequence[Hashable] | None:
        """The group of each: no two splits share one. None: each is for itself."""
        ...


@dataclass(frozen=True)
class Targets:
    """What is to be predicted, as the data has it.

    Attributes:
        columns: Names of the columns; a folder of classes has one.
        rows: One tuple of values per example, as long as `columns`.
        names: Names of the whole numbers in a single column, where the data knows them.
        what: Where they stand, for messages: a file, or `"train"`.
        lines: The line of each row, where it is a file.
        places: Where each row stands, where that is in several files.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    names: tuple[str, ...] = ()
    what: str = ""
    lines: Sequence[int] = ()
    places: Sequence[str] = ()

    def where(self, row: int) -> str:
        """How a message names a row, at the beginning of its sentence."""
        if self.places:
            return f"{self.places[row]},"
        if self.lines:
            return f"{self.what}, line {self.lines[row]},"
        return f"Example {row} of {self.what}" if self.what else f"Example {row}"

    @property
    def in_files(self) -> bool:
        """Whether the rows stand in files, whose columns have names."""
        return bool(self.lines or self.places)

    def single(self, objective: str) -> list[Any]:
        """The values of the only column.

        Raises:
            DataError: There are several.
        """
        if len(self.columns) != 1:
            raise DataError(
                f"The objective {objective!r} got {len(self.columns)} columns: {', '.join(self.columns)}.",
                allowed="It takes one column.",
                remedy="Name one: --set data.columns=[NAME]" if self.in_files else "Give one value per example.",
            )
        return [row[0] for row in self.rows]

    def ordered(self, names: Sequence[str]) -> Sequence[tuple[Any, ...]]:
        """The rows with their columns in the order of these names, whatever order the data has.

        Examples of a program have columns without names, and are taken as they are.

        Raises:
            DataError: A column is missing, or there are others.
        """
        if sorted(self.columns) != sorted(names):
            if not self.in_files and len(self.columns) == len(names):
                return self.rows
            raise DataError(
                f"{self.what or 'The data'} has the columns {listed(self.columns, n=20)}.",
                allowed=f"To be predicted are {listed(names, n=20)}.",
                remedy="Name the columns: --set data.columns=[NAME,NAME]" if self.in_files else "",
            )
        places = [self.columns.index(name) for name in names]
        return [tuple(row[place] for place in places) for row in self.rows]


class Objective(Settings):
    """The base of all objectives. One more is a subclass in a file of its own and a line in `OBJECTIVES`.

    Attributes:
        metrics: What it measures. The first is what tables show; `"loss"` is among them.
        of_training: Settings that are about training alone: the data is the same whatever they are.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    of_training: ClassVar[frozenset[str]] = frozenset()
    name: str

    @classmethod
    def metric(cls, name: str) -> Metric:
        """The metric of this name; raises KeyError where there is none."""
        return {metric.name: metric for metric in cls.metrics}[name]

    # What the data tells it.

    def named(self, targets: Targets) -> Self:
        """The same objective knowing the names in all of the data, such as its classes.

        Raises:
            DataError: The targets are none of this objective.
        """
        return self

    def fitted(self, train: Tensor) -> Self:
        """The same objective knowing the encoded training targets, such as their mean."""
        return self

    def encode(self, targets: Targets) -> Tensor:
        """The targets as `losses` reads them, `(n, ...)`.

        Raises:
            DataError: A value is none of this objective; the message names its place.
        """
        raise NotImplementedError

    def strata(self, encoded: Tensor) -> list[int] | None:
        """What splits keep in proportion, one per example; None where there is no such thing."""
        return None

    @property
    def strata_names(self) -> tuple[str, ...]:
        """What the strata 0, 1, ... are called; empty where there are none."""
        return ()

    @property
    def outputs(self) -> int | None:
        """How many outputs the model's head has; None: the model's own."""
        raise NotImplementedError

    @property
    def summary(self) -> str:
        """What is predicted, in a few words: `"3 classes"`."""
        raise NotImplementedError

    def chance(self, train: Examples) -> float | None:
        """The loss of knowing the training targets' distribution and nothing else; None: unknown."""
        return None

    # What the model gives.

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> Any:
        """The model's output for a batch, `(n, c)` in float32; precision is the caller's.

        Raises:
            DataError: The model gives no tensor, and nothing with `logits`.
        """
        inputs = batch.inputs
        if isinstance(inputs, Mapping):
            output: Any = model(**inputs)
        else:
            output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        return logits_of(model, output, train=train).float()

    def losses(self, output: Any, batch: Batch) -> Tensor:
        """The loss of every example, `(n,)`, with gradient."""
        raise NotImplementedError

    def training_losses(self, output: Any, batch: Batch) -> Tensor:
        """What training makes small, `(n,)`: of mixed examples the loss for both targets, in their shares."""
        if not isinstance(batch.targets, Mixed):
            return self._trained(output, batch)
        own, others, share = batch.targets
        first, second = (self._trained(output, batch._replace(targets=targets)) for targets in (own, others))
        return share * first + (1 - share) * second

    def _trained(self, output: Any, batch: Batch) -> Tensor:
        """The loss in training of examples that are not mixed, `(n,)`."""
        return self.losses(output, batch)

    def values(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """What the metrics are made of, `(n, ...)` each; a per-example metric has its own values under its name."""
        raise NotImplementedError

    def told(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """What is kept of every test example beside its metrics, `(n,)` each, for a person who looks at them."""
        return {}

    def reduce(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics that are not a mean over examples, from the values of all examples together."""
        return {}

    def tempered(self, output: Any, t: float) -> Any | None:
        """The output with its logits divided by t; None where there is no temperature."""
        return None

    def among(self, output: Any, outputs: Sequence[int]) -> Any | None:
        """The output as of a model that has these outputs alone; None where that means nothing."""
        return None

    def distance(self, a: Any, b: Any) -> Tensor | None:
        """How far two outputs for the same examples are apart, `(n,)`, for PACE; None: not defined."""
        return (a - b).square().flatten(1).sum(-1) if torch.is_tensor(a) and a.dim() > 1 else None

    def predictions(self, output: Any) -> list[dict[str, Any]]:
        """What is predicted for every example, as plain data for a person: classes and probabilities, or values."""
        raise NotImplementedError


def logits_of(model: nn.Module, output: Any, *, train: bool = False) -> Tensor:
    """The tensor in what a model gives: itself, or its `logits`.

    Raises:
        DataError: There is none.
    """
    output = output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise DataError(
            f"{type(model).__name__} gives a {type(output).__name__}{' in training' if train else ''}.",
            allowed="A tensor of outputs, examples first, or an object with `logits`.",
            remedy="Wrap the model in a module that gives the tensor alone.",
        )
    return output
