"""Tasks: labelled images as train, val and test, whatever they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from glora import registry
from glora.errors import DataError, UnknownNameError, nearest
from glora.tasks.images import ImageSet, Item, Preprocess, unreadable
from glora.tasks.splits import carve_val, sampled, split_in_three, stratified_split

__all__ = [
    "DATASETS",
    "ImageSet",
    "Item",
    "OnBadImage",
    "Task",
    "carve_val",
    "load_labelled",
    "load_task",
    "sampled",
    "split_in_three",
    "stratified_split",
    "unreadable",
]

DATASETS = {
    "digits": "glora.tasks.data.packaged:digits",
    "dsprites_loc": "glora.tasks.data.sprites:dsprites_loc",
    "dsprites_ori": "glora.tasks.data.sprites:dsprites_ori",
    "fashion_mnist": "glora.tasks.data.packaged:fashion_mnist",
    "textile": "glora.tasks.data.packaged:textile",
}

OnBadImage: TypeAlias = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Task:
    """A data set with its three splits: training sees `train`, the search `val`, the last line `test`.

    Attributes:
        name: What it is called in results.
        classes: The name of each label.
        train: Images to train on.
        val: Images that choose between candidates.
        test: Images that only the final result sees.
        notes: What a user should be told: the split that was chosen, the files skipped.
        fingerprint: sha256 over names, sizes and labels of each split; changes when the data does.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()
    fingerprint: str = ""

    def prepared(self, preprocess: Preprocess) -> Task:
        """The same task, its images read as `preprocess` (a backbone's) says."""
        return replace(
            self,
            train=self.train.prepared(preprocess),
            val=self.val.prepared(preprocess),
            test=self.test.prepared(preprocess),
        )

    def stamped(self, root: Path | None = None) -> Task:
        """The same task with its fingerprint; file names count relative to `root`."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.val, self.test):
            digest.update(f"split {len(split)}\n".encode())
            for item, label in zip(split.items, split.labels, strict=True):
                if isinstance(item, Path):
                    name = item.relative_to(root) if root else item
                    digest.update(f"{name.as_posix()}\0{item.stat().st_size}\0{label}\n".encode())
                else:
                    digest.update(f"{item.shape}\0{label}\n".encode() + item.tobytes())
        return replace(self, fingerprint=digest.hexdigest())


def load_task(
    source: str | Path,
    *,
    seed: int = 0,
    train: int | None = None,
    val: int | None = None,
    on_bad_image: OnBadImage = "error",
) -> Task:
    """The task called `source`, or the one a folder of images holds.

    Args:
        source: A name in `DATASETS`, or a folder (`./digits` is a folder with such a name).
        seed: Seed of the stratified split.
        train: Number of training images; by default 800, or 64% below 1,250 images.
        val: Number of validation images; by default 200, or 16% below 1,250 images.
        on_bad_image: `error` stops at unreadable images, `skip` leaves them out and lists them in `notes`.

    Raises:
        DataError: The folder is missing, empty, unreadable or cannot be split.
        UnknownNameError: `source` is neither a known name nor a path; lists the nearest names.
    """
    if on_bad_image not in ("error", "skip"):
        raise DataError(f"on_bad_image={on_bad_image!r} is no choice.", allowed="It is 'error' or 'skip'.")
    task: Task
    if isinstance(source, str) and source in DATASETS:
        build = registry.load(DATASETS[source])
        task = build(seed=seed, train=train, val=val, on_bad_image=on_bad_image)
        return task
    path = Path(source).expanduser()
    if str(source) == "" or not path.exists():
        raise _nowhere(source)
    build = registry.load("glora.tasks.data.image_folder:load")
    task = build(path, seed=seed, train=train, val=val, on_bad_image=on_bad_image)
    return task


def load_labelled(
    source: str | Path, classes: Sequence[str], *, on_bad_image: OnBadImage = "error"
) -> tuple[ImageSet, list[str]]:
    """All images of a folder with class folders of these names, and what a user should be told.

    Raises:
        DataError: The folder is missing, empty, unreadable or has other classes.
    """
    found: tuple[ImageSet, list[str]]
    found = registry.load("glora.tasks.data.image_folder:labelled")(
        Path(source).expanduser(), classes, on_bad_image=on_bad_image
    )
    return found


def _nowhere(source: str | Path) -> DataError | UnknownNameError:
    path = Path(source).expanduser()
    is_path = isinstance(source, Path) or len(path.parts) > 1 or str(source).startswith((".", "~"))
    allowed = f"Known data sets: {', '.join(DATASETS)}; anything else is the path of a folder of images."
    beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = nearest(path.name, beside, n=1) if is_path else nearest(str(source), [*DATASETS, *beside], n=1)
    hint = f"Did you mean {str(path.parent / near[0]) if is_path else near[0]!r}?" if near else ""
    if is_path:
        return DataError(f"There is no folder {str(source)!r}.", allowed=allowed, remedy=hint or "Check the path.")
    return UnknownNameError(
        f"There is no data set and no folder {str(source)!r}.",
        allowed=allowed,
        remedy=f"{hint} Run `glora ls data`.".strip(),
    )
