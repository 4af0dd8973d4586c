"""The classification data sets of torchvision, by the names of their classes."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from glora import registry
from glora.errors import DataError, did_you_mean, listed
from glora.tasks.images import Item, pixels_of, unreadable
from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, Pool, Task, assemble

__all__ = ["TorchvisionSet"]

Parts = Mapping[str, Mapping[str, Any]]  # split -> what the class is called with


def _by(argument: str, **splits: Any) -> Parts:
    return {split: {argument: value} for split, value in splits.items()}


_TRAIN = _by("train", train=True, test=False)
_TWO = _by("split", train="train", test="test")
_THREE = _by("split", train="train", val="val", test="test")
_WHOLE: Parts = {"": {}}
SETS: Mapping[str, Parts] = {
    "CIFAR10": _TRAIN,
    "CIFAR100": _TRAIN,
    "CLEVRClassification": _by("split", train="train", test="val"),  # its test has no labels
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": _by("split", train="train", val="valid", test="test"),
    "DTD": _THREE,
    "EMNIST": {"train": {"split": "balanced", "train": True}, "test": {"split": "balanced", "train": False}},
    "EuroSAT": _WHOLE,
    "FER2013": _TWO,
    "FGVCAircraft": _THREE,
    "FashionMNIST": _TRAIN,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "ImageNet": _by("split", train="train", test="val"),
    "Imagenette": _by("split", train="train", test="val"),
    "KMNIST": _TRAIN,
    "MNIST": _TRAIN,
    "OxfordIIITPet": _by("split", train="trainval", test="test"),
    "PCAM": _THREE,
    "Places365": _by("split", train="train-standard", test="val"),
    "QMNIST": _TRAIN,
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "STL10": _TWO,
    "SUN397": _WHOLE,
    "SVHN": _TWO,
    "StanfordCars": _TWO,
    "USPS": _TRAIN,
}
NO_DOWNLOAD = ("ImageNet", "StanfordCars", "FER2013")  # by torchvision: licences, or links that are gone


class TorchvisionSet(DataSettings):
    """A classification data set of torchvision by its class's name: CIFAR100, DTD, EuroSAT, ... under a root."""

    name: str = Field(description="The class in torchvision.datasets, such as CIFAR100.")
    root: Path = Field(description="The folder that torchvision's class is given.")
    download: bool = Field(False, description="Let torchvision download what is missing.")
    options: dict[str, Any] = Field({}, description="Further arguments of the class, such as {partition: 2} of DTD.")

    def load(self, objective: Objective) -> Task:
        parts = _parts(self.name)
        root = self.root.expanduser().resolve()
        found = {split: self._part(root, given) for split, given in parts.items()}
        labels = {split: _labels(part) for split, part in found.items()}
        names = _class_names(next(iter(found.values())), max(label for each in labels.values() for label in each))
        pools = {}
        for split, part in found.items():
            pairs = _ordered(_items(part, split), labels[split])
            self._check([item for item, _ in pairs])
            targets = Targets(("class",), [(label,) for _, label in pairs], names=names, what=split or self.name)
            pools[split] = Pool([item for item, _ in pairs], targets)
        return assemble(self.name.lower(), pools, objective, self, root=root)

    def _part(self, root: Path, given: Mapping[str, Any]) -> Any:
        """The dataset of torchvision for one split."""
        kind = getattr(_torchvision(), self.name)
        known = inspect.signature(kind).parameters
        unknown = [name for name in self.options if name not in known]
        if unknown and not any(each.kind is each.VAR_KEYWORD for each in known.values()):
            raise DataError(
                f"torchvision's {self.name} has no argument {unknown[0]!r} (data.options).",
                allowed=f"It has {listed(known, n=20)}.",
                remedy=did_you_mean(unknown[0], known),
            )
        arguments = {**given, **self.options}
        if self.name not in NO_DOWNLOAD:
            arguments["download"] = self.download
        try:
            if not root.is_dir() and not self.download:
                raise FileNotFoundError("there is no such folder")
            return kind(root, **arguments)
        except Exception as error:  # its readers, and the network's, raise of everything
            reason = " ".join(str(error).split()).rstrip(".")
            raise DataError(
                f"torchvision's {self.name} cannot be read in {str(root)!r} (data.root): "
                f"{type(error).__name__}: {reason or 'no reason is given'}.",
                remedy=self._remedy(),
            ) from error

    def _remedy(self) -> str:
        if self.name in NO_DOWNLOAD:
            return f"torchvision does not download {self.name}: its documentation says where to get it."
        if self.download:
            return "Check the network and the space on the disk, or bring the files from another machine."
        return "Let torchvision download it with --set data.download=true, or bring the files from another machine."

    def _check(self, items: Sequence[Item]) -> None:
        """Every image decodes to the end."""
        if bad := unreadable([item for item in items if isinstance(item, Path | _Stored)]):
            file, reason = next(iter(bad.items()))
            others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise DataError(
                f"The image {str(file)!r} cannot be read: {reason.rstrip('.')}{others}.", remedy="Get it again."
            )


def _parts(name: str) -> Parts:
    """The splits of a data set of torchvision.

    Raises:
        DataError: It has none of this name, or none that is classified.
    """
    if name in SETS:
        return SETS[name]
    same = [each for each in SETS if each.lower() == name.lower().replace("-", "").replace("_", "")]
    raise DataError(
        f"torchvision has no data set {name!r} for classification (data.name).",
        allowed=f"Known: {', '.join(SETS)}.",
        remedy=did_you_mean(same[0] if same else name, SETS),
    )


def _torchvision() -> Any:
    return registry.optional_import("torchvision.datasets", extra="vision", purpose="The data source 'torchvision'")


@dataclass(frozen=True, eq=False)
class _Stored:
    """An image that a dataset of torchvision reads itself.

    Attributes:
        dataset: The dataset.
        place: Which of its examples.
        split: What the dataset is called.
    """

    dataset: Any
    place: int
    split: str

    def __str__(self) -> str:
        return f"{type(self.dataset).__name__} {self.split}[{self.place}]".replace(" [", "[")

    def open(self) -> Any:
        return self.dataset[self.place][0]

    def identity(self) -> bytes:
        return pixels_of(self.open()).tobytes()


def _attribute(dataset: Any, *names: str) -> Any:
    """The first of these attributes that has something for every example."""
    for name in names:
        found = getattr(dataset, name, None)
        if found is not None and not callable(found) and len(found) == len(dataset):
            return found
    return None


def _pairs(dataset: Any) -> Any:
    """The `(file, class)` of every example, where the dataset has them."""
    found = _attribute(dataset, "_samples", "samples", "imgs")
    return found if found is not None and len(found) and isinstance(found[0][0], str | Path) else None


def _labels(dataset: Any) -> list[int]:
    """The class of every example; images are read for it only where the dataset tells it no other way."""
    if (pairs := _pairs(dataset)) is not None:
        return [int(label) for _, label in pairs]
    found = _attribute(dataset, "targets", "labels", "_labels", "y")
    if found is not None and np.ndim(found) == 1:
        return [int(label) for label in found]
    return [int(dataset[place][1]) for place in range(len(dataset))]


def _items(dataset: Any, split: str) -> list[Item]:
    """The image of every example: its file, its pixels, or where the dataset keeps it."""
    if (pairs := _pairs(dataset)) is not None:
        return [Path(file) for file, _ in pairs]
    if (files := _attribute(dataset, "_image_files", "_images")) is not None:
        return [Path(file) for file in files]
    data = _attribute(dataset, "data")
    pixels = None if data is None else np.asarray(data)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        return [_Stored(dataset, place, split) for place in range(len(dataset))]
    if pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[-1] != 3:
        pixels = pixels.transpose(0, 2, 3, 1)  # (n, 3, h, w) -> (n, h, w, 3)
    return list(pixels)


def _ordered(items: Sequence[Item], labels: Sequence[int]) -> list[tuple[Item, int]]:
    """Images and classes; files in the order of their paths, which not every dataset keeps the same everywhere."""
    pairs = list(zip(items, labels, strict=True))
    if all(isinstance(item, Path) for item in items):
        pairs.sort(key=lambda pair: str(pair[0]))
    return pairs


def _class_names(dataset: Any, largest: int) -> tuple[str, ...]:
    """What the dataset calls its classes; empty where it does not, or not all."""
    found = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    names = [", ".join(each) if isinstance(each, tuple | list) else str(each) for each in found]
    if len(names) <= largest:
        return ()
    counts = Counter(names)  # ImageNet has two cranes
    return tuple(f"{name} ({place})" if counts[name] > 1 else name for place, name in enumerate(names))
