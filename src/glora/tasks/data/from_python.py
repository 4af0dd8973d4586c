"""Examples that a Python program gives: torch datasets, Hugging Face datasets, a DataFrame of paths and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from glora.errors import DataError, listed
from glora.tasks.balance import imbalance
from glora.tasks.images import ImageSet, Preprocess, is_image, read_image
from glora.tasks.objective import Batch, Examples, Objective, Targets
from glora.tasks.splits import carve_val, sampled
from glora.tasks.task import DataSettings, Task, augmented

__all__ = [
    "DatasetExamples",
    "FromPython",
    "as_float32",
    "as_targets",
    "collate",
    "described",
    "inputs_of",
    "task_of",
]

INPUTS = ("input", "inputs", "image", "images", "img", "pixel_values", "x")
TARGETS = ("target", "targets", "label", "labels", "y")
MOST_CLASSES = 100_000  # whole numbers up to it are places of outputs; beyond it they are names
AT_ONCE = 256  # examples that are hashed together


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
        dataset: Has `len` and items by index; inputs are tensors (or tuples or mappings of tensors), what
            `default_collate` can make into them, or PIL images for a model whose preprocessing is known.
        targets: Encoded targets, one per item of the dataset.
        strata: What splits keep in proportion.
        indices: Which items of the dataset are the split; None for all.
        preprocess: How the model reads images; needed for PIL images alone.
    """

    unit = "examples"

    def __init__(
        self,
        dataset: Any,
        targets: Tensor,
        *,
        strata: Sequence[Hashable] | None = None,
        indices: Sequence[int] | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        self.dataset = dataset
        self.targets = targets
        self.strata = strata
        self.indices = tuple(range(len(targets)) if indices is None else indices)
        self.preprocess = preprocess

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
            preprocess=self.preprocess,
        )

    def joined(self, other: DatasetExamples) -> DatasetExamples:
        """These examples, then those of another split."""
        strata = None if self.strata is None or other.strata is None else [*self.strata, *other.strata]
        targets = torch.cat([self.targets, other.targets])
        dataset, indices = _Concatenated(self, other), None
        if self.dataset is other.dataset:
            dataset, indices = self.dataset, (*self.indices, *other.indices)
        return DatasetExamples(dataset, targets, strata=strata, indices=indices, preprocess=self.preprocess)

    def prepared(self, preprocess: Preprocess | None) -> DatasetExamples:
        """The same examples; `preprocess` is how PIL images are read, tensors are what the model takes."""
        return DatasetExamples(
            self.dataset, self.targets, strata=self.strata, indices=self.indices, preprocess=preprocess
        )

    def inputs(self, index: int) -> Any:
        """The inputs of one example, as the dataset gives them."""
        return inputs_of(self.dataset[self.indices[index]])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples of these indices together; an item's own target is not read again.

        Raises:
            DataError: The inputs cannot be put together.
        """
        places = [int(index) for index in indices]
        inputs = collate([self.inputs(place) for place in places], self.preprocess)
        return Batch(inputs, self.targets[torch.tensor(places)])

    def identify(self, digest: Any, root: Path | None) -> None:
        """Adds the targets to a hash: inputs may be augmented, and differ from reading to reading."""
        digest.update(self.targets.contiguous().numpy().tobytes())

    def identify_inputs(self, digest: Any) -> None:
        """Adds the tensors of a `TensorDataset`, or of a `Subset` of one: they are the same at every reading."""
        dataset: Any = self.dataset
        indices = list(self.indices)
        while isinstance(dataset, Subset):
            dataset, indices = dataset.dataset, [dataset.indices[index] for index in indices]
        for tensor in dataset.tensors if isinstance(dataset, TensorDataset) else ():
            digest.update(f"{tensor.dtype} {tuple(tensor.shape[1:])}".encode())
            for start in range(0, len(indices), AT_ONCE):
                rows = tensor[indices[start : start + AT_ONCE]].detach().cpu().contiguous()
                digest.update(rows.reshape(-1).view(torch.uint8).numpy().data)


class _Concatenated:
    """The items of two splits, one after the other."""

    def __init__(self, first: DatasetExamples, second: DatasetExamples) -> None:
        self.first, self.second = first, second

    def __getitem__(self, index: int) -> Any:
        part, place = (self.first, index) if index < len(self.first) else (self.second, index - len(self.first))
        return part.dataset[part.indices[place]]


def collate(inputs: Sequence[Any], preprocess: Preprocess | None = None) -> Any:
    """Inputs of several examples as one batch: float64 becomes float32, PIL images are read as `preprocess` says.

    Raises:
        DataError: They cannot be put together; says what they are.
    """
    first = inputs[0]
    if is_image(first):
        if preprocess is None:
            raise DataError(
                f"The inputs are images, {described(first)}, and it is not known how the model reads them.",
                allowed="Tensors; images only for a timm model, whose preprocessing is known.",
                remedy="Give the dataset a transform, such as torchvision's weights.transforms().",
            )
        inputs = [read_image(each, preprocess) for each in inputs]
    try:
        return as_float32(default_collate(list(inputs)))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        odd = next((each for each in inputs if described(each) != described(first)), first)
        both = f": {described(first)} and {described(odd)}" if odd is not first else f", {described(first)} each"
        raise DataError(
            f"The inputs of {len(inputs)} examples cannot be put together{both}.",
            allowed="Tensors of one shape, or tuples or mappings of them.",
            remedy="Give the dataset a transform that makes them so.",
        ) from error


def as_float32(inputs: Any) -> Any:
    """Floating-point numbers in single precision, and several inputs as a tuple."""
    if isinstance(inputs, Tensor):
        return inputs.float() if inputs.dtype == torch.float64 else inputs
    if isinstance(inputs, Mapping):
        return {name: as_float32(value) for name, value in inputs.items()}
    return tuple(map(as_float32, inputs)) if isinstance(inputs, list | tuple) else inputs


def described(inputs: Any) -> str:
    """What the inputs of an example or a batch are, in a few words: `float32 (3, 32, 32)`."""
    if hasattr(inputs, "shape") and hasattr(inputs, "dtype"):
        return f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{name}: {described(value)}" for name, value in inputs.items()) + "}"
    if isinstance(inputs, list | tuple):
        return "(" + listed(map(described, inputs)) + ")"
    return f"a {type(inputs).__module__}.{type(inputs).__qualname__}".replace("a builtins.", "a ")


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
    elif _is_pair(item):
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
    elif _is_pair(item):
        return item[1]
    inputs_of(item)
    raise DataError(
        f"An item of the dataset is {_shape(item)}, without a target.",
        allowed=f"(inputs, target), or a mapping with one of {listed(INPUTS, n=9)} and one of {listed(TARGETS, n=9)}.",
    )


def _is_pair(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2


def _shape(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a mapping with the keys {listed(map(str, item), n=9)}"
    return f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, Sequence) else "")


def as_targets(dataset: Any, what: str = "the dataset") -> Targets:
    """The targets of a map-style dataset, from its attribute `targets` or `labels`, a column, or its items.

    Args:
        dataset: Has `len` and items by index.
        what: What messages call it.

    Raises:
        DataError: It is empty or of an unknown kind, or an item has no target.
    """
    _need_dataset(dataset, what)
    values = [_plain(value) for value in _targets(dataset)]
    rows = [tuple(value) if isinstance(value, list) else (value,) for value in values]
    for place, row in enumerate(rows):
        if any(value is None or (isinstance(value, float) and math.isnan(value)) for value in row):
            raise DataError(f"Example {place} of {what} has no target: {row[0] if len(row) == 1 else row}.")
    names = tuple(map(str, _class_names(dataset)))
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise DataError(
            f"The targets of {what} have different lengths: {listed(map(str, widths))}.",
            allowed="Numbers of one length; for several labels per example 0 and 1 for each label, or 'cat|dog'.",
        )
    if widths[0] > 1:
        columns = names if len(names) == widths[0] else tuple(f"target{k}" for k in range(widths[0]))
        return Targets(columns, rows, what=what)
    return Targets(("target",), rows, names=names if _fit(rows, names) else (), what=what)


def _fit(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> bool:
    """Whether all rows are single whole numbers that have a name."""
    return all(_is_whole(value) and 0 <= value < len(names) for row in rows for value in row)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A target as plain Python data: numpy's and torch's numbers too, and 3.0 as 3."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _need_dataset(dataset: Any, what: str) -> None:
    """Raises DataError unless there are items by index."""
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        remedy = "Give the loader's dataset: loader.dataset. Batches are glora's own (batch_size=32)."
    elif isinstance(dataset, Mapping):
        remedy = f"Give one of its values: {listed(map(repr, dataset))}."
    elif isinstance(dataset, tuple) and dataset and all(hasattr(each, "shape") for each in dataset):
        remedy = "Wrap the arrays: torch.utils.data.TensorDataset(x, y)."
    elif isinstance(dataset, Tensor) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        remedy = "A list of (inputs, target) will do."
    elif not len(dataset):
        raise DataError(f"{what} is empty.", allowed="At least one example.")
    else:
        return
    raise DataError(f"{what} is a {kind}.", allowed="A dataset with a length and items by index.", remedy=remedy)


def _targets(dataset: Any) -> Sequence[Any]:
    """All targets: at once where the dataset keeps them so, and some items say the same."""
    count, values = len(dataset), _column(dataset)
    if values is not None and len(values) == count:
        some = {0, count // 2, count - 1}  # a target_transform changes what items say
        if all(_plain(values[place]) == _plain(target_of(dataset[place])) for place in some):
            return values
    return [target_of(dataset[place]) for place in range(count)]


def _column(dataset: Any) -> Sequence[Any] | None:
    """All targets at once: torchvision's `targets`, a Hugging Face column; None where there are none."""
    if isinstance(dataset, Subset):
        whole = _column(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and hasattr(found, "__len__") and hasattr(found, "__getitem__"):
            return list(found)
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list) and hasattr(dataset, "with_format"):
        named = [name for name in TARGETS if name in columns]
        return list(dataset.with_format(None)[named[0]]) if len(named) == 1 else None
    return None


def _class_names(dataset: Any) -> Sequence[Any]:
    """The names of the classes, where the dataset knows them: `classes`, or a Hugging Face ClassLabel."""
    if isinstance(dataset, Subset):
        return _class_names(dataset.dataset)
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        return next((features[name].names for name in TARGETS if hasattr(features.get(name), "names")), ())
    names = getattr(dataset, "classes", None)
    return names if isinstance(names, list | tuple) else ()


class Split(NamedTuple):
    """One split as it was given, with its targets, and what makes examples of it."""

    items: Any
    targets: Targets
    make: Callable[..., Examples]


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
    given = {key: value for key, value in given.items() if value is not None or key == "train"}
    splits, told = settings.splits(given, objective) if isinstance(settings, Splits) else _splits(given, objective)
    every = [row for each in splits.values() for row in each.targets.rows]
    objective = objective.named(replace(splits["train"].targets, rows=every, what="", places=()))
    made: dict[str, Examples] = {}
    for key, split in splits.items():
        encoded = objective.encode(split.targets)
        made[key] = split.make(split.items, encoded, strata=objective.strata(encoded))
    notes = (*told, *_cut(made, objective, settings))
    objective = objective.fitted(made["train"].targets)
    train = augmented(made["train"], settings)
    notes = (*notes, *imbalance(train, objective, settings.balancing))
    return Task(name, objective, train, made["val"], made.get("test"), notes).stamped()


@runtime_checkable
class Splits(Protocol):
    """Settings of data that a program gives in a way of its own."""

    def splits(self, given: Mapping[str, Any], objective: Objective) -> tuple[dict[str, Split], list[str]]:
        """The splits as they were given, and what a user should be told."""
        ...


def _splits(given: Mapping[str, Any], objective: Objective) -> tuple[dict[str, Split], list[str]]:
    """The splits as they were given; there is nothing to be told."""
    found = {key: _split(value, key) for key, value in given.items()}
    named = _named_alike({key: split.targets for key, split in found.items()}, objective)
    return {key: split._replace(targets=named[key]) for key, split in found.items()}, []


def _cut(made: dict[str, Examples], objective: Objective, settings: DataSettings) -> tuple[str, ...]:
    """Train and val have the sizes asked for, val out of train where it was not given; says so."""
    names, seed = objective.strata_names, settings.split_seed
    if "val" not in made:
        strata = made["train"].strata
        if strata is not None and (absent := [name for place, name in enumerate(names) if place not in strata]):
            numbers = (
                " Whole numbers are places of outputs: count from 0, without gaps." if absent[0].isdecimal() else ""
            )
            raise DataError(
                f"train has no example of class {absent[0]!r}: val cannot be cut from it.{numbers}",
                allowed=f"Examples of all {len(names)} classes.",
                remedy="Add some, or give val yourself.",
            )
        sizes: dict[str, Any] = {"train": settings.train, "val": settings.val, "seed": seed}
        (made["train"], made["val"]), note = carve_val(made["train"], names, **sizes)
        return (f"No val was given: {note}",)
    for key, size in (("train", settings.train), ("val", settings.val)):
        made[key] = sampled(made[key], size, names=names, what=key, seed=seed)
    return ()


def _split(given: Any, what: str) -> Split:
    """A split as it was given; of a DataFrame the files and the other columns.

    Raises:
        DataError: It is of an unknown kind, or lacks files or values.
    """
    if not (hasattr(given, "iloc") and hasattr(given, "columns")):
        return Split(given, as_targets(given, what), DatasetExamples)
    if not len(given):
        raise DataError(f"{what} is empty.", allowed="At least one row.")
    image, *columns = map(str, given.columns)
    if not columns:
        raise DataError(f"{what} has the column {image!r} alone.", allowed="Image files first, then targets.")
    rows = list(given.itertuples(index=False, name=None))
    for place, row in enumerate(rows):
        if not isinstance(row[0], str | Path):
            raise DataError(
                f"Row {place} of {what} has {row[0]!r} in its first column, {image!r}.",
                allowed="The first column names image files.",
                remedy="For other data give a dataset of (inputs, target).",
            )
        if empty := [name for name, value in zip(columns, row[1:], strict=True) if _is_missing(value)]:
            raise DataError(f"Row {place} of {what} has no value in {empty[0]!r}.", remedy="Fill it or drop the row.")
    files = [Path(row[0]).expanduser() for row in rows]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise DataError(
            f"The column {image!r} of {what} names files that are not there: {listed(missing)}.",
            remedy="Give whole paths, or paths relative to the working folder.",
        )
    targets = Targets(tuple(columns), [tuple(map(_plain, row[1:])) for row in rows], what=what)
    return Split(files, targets, ImageSet)


def _is_missing(value: Any) -> bool:
    """None, NaN, and pandas' NA, which is no truth value."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return True


def _named_alike(targets: Mapping[str, Targets], objective: Objective) -> dict[str, Targets]:
    """Whole numbers are places of outputs in all splits: named by the data, by the objective, or by themselves."""
    single = [value for each in targets.values() if len(each.columns) == 1 for (value,) in each.rows]
    if not single or not all(_is_whole(value) and value >= 0 for value in single):
        return dict(targets)
    known = next((each.names for each in targets.values() if each.names), ()) or objective.strata_names
    if not known and max(single) < MOST_CLASSES:
        known = tuple(map(str, range(max(single) + 1)))
    for each in targets.values():
        odd = [place for place, (value,) in enumerate(each.rows) if known and value >= len(known)]
        if odd and not each.names:
            raise DataError(
                f"{each.where(odd[0])} has the class {each.rows[odd[0]][0]!r}, and there are names for {len(known)}: "
                f"{listed(known, n=20)}."
            )
    return {key: each if each.names else replace(each, names=known) for key, each in targets.items()}
