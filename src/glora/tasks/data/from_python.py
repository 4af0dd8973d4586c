"""Examples that a Python program gives: torch datasets, Hugging Face datasets, a DataFrame of paths and targets."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import default_collate

from glora.errors import DataError, listed
from glora.tasks.images import ImageSet
from glora.tasks.objective import Batch, Examples, Objective, Targets
from glora.tasks.splits import carve_val
from glora.tasks.task import DataSettings, Task

__all__ = ["DatasetExamples", "FromPython", "as_targets", "task_of"]

INPUTS = ("input", "inputs", "image", "images", "img", "pixel_values", "x")
TARGETS = ("target", "targets", "label", "labels", "y")


class FromPython(DataSettings):
    """Data that a Python program gave to `glora.fit`: it is not on disk, and must be given again."""

    source: Literal["from_python"] = Field("from_python", description="Examples from Python.")

    def load(self, objective: Objective) -> Task:
        raise DataError(
            "The data of this run came from a Python program and is not on disk.",
            remedy="Call glora.fit again with the same data, or load what is finished: glora.load(RUN).",
        )


class DatasetExamples:
    """A map-style dataset as one split: items are `(inputs, target)` or mappings with such keys.

    Args:
        dataset: Has `len` and items by index; inputs are tensors (or tuples or mappings of tensors), or what
            `default_collate` can make into them.
        targets: Encoded targets, one per item of the dataset.
        strata: What splits keep in proportion.
        indices: Which items of the dataset are the split; None for all.
        decode: What turns an item's inputs into the model's, such as a preprocessing; None leaves them as they are.
    """

    unit = "examples"

    def __init__(
        self,
        dataset: Any,
        targets: Tensor,
        *,
        strata: Sequence[Hashable] | None = None,
        indices: Sequence[int] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.targets = targets
        self.strata = strata
        self.indices = tuple(range(len(targets)) if indices is None else indices)
        self.decode = decode

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, indices: Sequence[int]) -> DatasetExamples:
        """The examples of these indices, in their order."""
        strata = None if self.strata is None else [self.strata[index] for index in indices]
        return DatasetExamples(
            self.dataset,
            self.targets[torch.tensor(list(indices), dtype=torch.int64)],
            strata=strata,
            indices=[self.indices[index] for index in indices],
            decode=self.decode,
        )

    def joined(self, other: DatasetExamples) -> DatasetExamples:
        """These examples, then those of another split."""
        strata = None if self.strata is None or other.strata is None else [*self.strata, *other.strata]
        targets = torch.cat([self.targets, other.targets])
        if self.dataset is other.dataset:
            indices = (*self.indices, *other.indices)
            return DatasetExamples(self.dataset, targets, strata=strata, indices=indices, decode=self.decode)
        return DatasetExamples(_Concatenated(self, other), targets, strata=strata, decode=self.decode)

    def prepared(self, preprocess: Any) -> DatasetExamples:
        """Themselves: a dataset gives what its model takes."""
        return self

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples of these indices together; an item's own target is not read again."""
        places = [int(index) for index in indices]
        inputs = [inputs_of(self.dataset[self.indices[place]]) for place in places]
        if self.decode is not None:
            inputs = [self.decode(each) for each in inputs]
        return Batch(default_collate(inputs), self.targets[torch.tensor(places)])

    def identify(self, digest: Any, root: Path | None) -> None:
        """Adds the targets to a hash: inputs may be augmented, and differ from reading to reading."""
        digest.update(self.targets.contiguous().numpy().tobytes())


class _Concatenated:
    """The items of two splits, one after the other."""

    def __init__(self, first: DatasetExamples, second: DatasetExamples) -> None:
        self.first, self.second = first, second

    def __getitem__(self, index: int) -> Any:
        part, place = (self.first, index) if index < len(self.first) else (self.second, index - len(self.first))
        return part.dataset[part.indices[place]]


class Split(NamedTuple):
    """One split as it was given, with its targets."""

    dataset: Any
    targets: Targets


def inputs_of(item: Any) -> Any:
    """The inputs of a dataset's item.

    Raises:
        DataError: The item is neither a pair nor a mapping with a known key.
    """
    if isinstance(item, Mapping):
        names = [name for name in INPUTS if name in item]
        if len(names) == 1:
            return item[names[0]]
        rest = {name: value for name, value in item.items() if name not in TARGETS}
        if rest and all(isinstance(value, Tensor) for value in rest.values()):
            return rest  # the model is called with them by name
    elif isinstance(item, Sequence) and len(item) == 2:
        return item[0]
    raise DataError(
        f"An item of the dataset is {_shape(item)}.",
        allowed=f"(inputs, target), or a mapping with one of {listed(INPUTS, n=9)} and one of {listed(TARGETS, n=9)}.",
    )


def target_of(item: Any) -> Any:
    """The target of a dataset's item; raises DataError as `inputs_of`."""
    if isinstance(item, Mapping):
        names = [name for name in TARGETS if name in item]
        if len(names) == 1:
            return item[names[0]]
    elif isinstance(item, Sequence) and len(item) == 2:
        return item[1]
    inputs_of(item)
    raise DataError(f"An item of the dataset is {_shape(item)}.", allowed=f"One of the keys {listed(TARGETS, n=9)}.")


def _shape(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a mapping with the keys {listed(map(str, item))}"
    return f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, Sequence) else "")


def as_targets(dataset: Any) -> Targets:
    """The targets of a map-style dataset, from its attribute `targets` or `labels`, a column, or its items.

    Raises:
        DataError: The dataset has no length, or its items are of an unknown kind.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"A {type(dataset).__name__} has no length or no items by index.", allowed="A map-style dataset."
        )
    values = _column(dataset)
    if values is None:
        values = [target_of(dataset[index]) for index in range(len(dataset))]
    values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    names = tuple(map(str, getattr(dataset, "classes", ()) or ()))
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    names = names if whole and values and max(values) < len(names) else ()
    rows = [tuple(value) if isinstance(value, list | tuple) else (value,) for value in values]
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise DataError(f"The targets of the dataset have different lengths: {sorted(widths)}.", allowed="One length.")
    width = widths.pop() if widths else 1
    return Targets(tuple(f"target{k}" if width > 1 else "target" for k in range(width)), rows, names=names)


def _column(dataset: Any) -> Sequence[Any] | None:
    """All targets at once, where the dataset keeps them so (torchvision's `targets`, a Hugging Face column)."""
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and hasattr(found, "__len__") and len(found) == len(dataset):
            return list(found)
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        for name in TARGETS:
            if name in columns:
                return list(dataset[name])
    return None


def task_of(
    name: str,
    objective: Objective,
    *,
    train: Any,
    val: Any = None,
    test: Any = None,
    settings: DataSettings,
) -> Task:
    """The task of datasets that a program gives.

    Args:
        name: What it is called in results.
        objective: What is to be learned.
        train: A map-style dataset, a Hugging Face dataset, or a DataFrame of image paths and targets.
        val: The same; None cuts it from train.
        test: The same; None: nothing is tested.
        settings: Sizes and seed of the cut.

    Raises:
        DataError: The data is none of the objective's, or too small to be cut.
    """
    given = {"train": train, "val": val, "test": test}
    splits = {key: _split(value, objective) for key, value in given.items() if value is not None}
    rows = [row for split in splits.values() for row in split.targets.rows]
    first = splits["train"].targets
    objective = objective.named(Targets(first.columns, rows, first.names))
    made: dict[str, Examples] = {}
    for key, split in splits.items():
        encoded = objective.encode(split.targets)
        strata = objective.strata(encoded)
        if isinstance(split.dataset, list):  # files
            made[key] = ImageSet(split.dataset, encoded, strata=strata)
        else:
            made[key] = DatasetExamples(split.dataset, encoded, strata=strata)
    notes: tuple[str, ...] = ()
    if "val" not in made:
        sizes: dict[str, Any] = {"train": settings.train, "val": settings.val, "seed": settings.split_seed}
        (made["train"], made["val"]), note = carve_val(made["train"], objective.strata_names, **sizes)
        notes = (f"No val was given: {note}",)
    objective = objective.fitted(made["train"].targets)
    return Task(name, objective, made["train"], made["val"], made.get("test"), notes).stamped()


def _split(given: Any, objective: Objective) -> Split:
    """A split as it was given; of a DataFrame the files and the other columns."""
    if hasattr(given, "iloc") and hasattr(given, "columns"):  # pandas
        image, *columns = map(str, given.columns)
        rows = list(given.itertuples(index=False, name=None))
        files = [Path(row[0]) for row in rows]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise DataError(f"The column {image!r} names files that are not there: {listed(missing)}.")
        return Split(files, Targets(tuple(columns), [tuple(row[1:]) for row in rows]))
    return Split(given, as_targets(given))
