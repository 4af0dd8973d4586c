"""What training and search may know of a task: everything but its test images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from glora.errors import DataError
from glora.tasks.splits import stratified_split
from glora.tasks.task import ImageSet, Task

__all__ = ["Known", "known"]


@dataclass(frozen=True)
class Known:
    """The labelled images without test: what trains, what chooses, and what is set aside from the choice.

    Attributes:
        name: What the task is called in results.
        classes: The name of each label.
        train: Images that the winner's weights are trained on.
        val: Images that choose between candidates; with folds the same images as `train`.
        aside: Images that neither train nor choose: they tell what the choice is worth; may be empty.
        folds: Places in `val` of the images that each fold scores; empty in the plain split.
        notes: What a user should be told of the split.
        fingerprint: The task's.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    aside: ImageSet
    folds: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""

    def training(self, fold: int) -> ImageSet:
        """What the supernet of this fold is trained on: the images of all others."""
        mine = set(self.folds[fold])
        return self.train.subset([place for place in range(len(self.train)) if place not in mine])

    @cached_property
    def everything(self) -> ImageSet:
        """Train, val and set-aside images, each once."""
        whole = self.train if self.folds else _joined(self.train, self.val)
        return _joined(whole, self.aside) if len(self.aside) else whole

    @property
    def unseen(self) -> dict[str, ImageSet]:
        """What the training images tell nothing of, by split."""
        splits = {"aside": self.aside} if self.folds else {"val": self.val, "aside": self.aside}
        return {name: images for name, images in splits.items() if len(images)}

    @cached_property
    def scoring(self) -> tuple[ImageSet, ...]:
        """The parts of val, each scored by a supernet that has not seen it; one in the plain split."""
        return tuple(self.val.subset(places) for places in self.folds) or (self.val,)


def known(task: Task, *, seed: int, aside: int, folds: int) -> Known:
    """The task without its test images, the set-aside images cut from val, the rest folded where asked.

    Args:
        task: The task; nothing of its test images is kept.
        seed: Seed of the cuts, which are stratified by class.
        aside: Number of val images to set aside.
        folds: With 2 or more, train and the rest of val are one pool, cut into so many parts.

    Raises:
        DataError: Nothing of val would be left, or there are fewer images than folds.
    """
    if aside >= len(task.val):
        raise DataError(
            f"aside={aside} leaves no val images of {len(task.val)}.",
            allowed=f"At most {len(task.val) - 1} can be set aside.",
            remedy="Set fewer aside, or ask for more val images.",
        )
    chosen, kept = stratified_split(task.val.labels, (len(task.val) - aside, aside), random.Random(f"aside {seed}"))
    train, set_aside = task.train, task.val.subset(kept)
    val = task.val.subset(chosen) if aside else task.val
    notes: tuple[str, ...] = (
        (f"{aside} of the {len(task.val)} val images are set aside from the search.",) if aside else ()
    )
    if folds < 2:
        return Known(task.name, task.classes, train, val, set_aside, notes=notes, fingerprint=task.fingerprint)
    pool = _joined(train, val)
    parts = _parts(pool.labels, folds, random.Random(f"folds {seed}"))
    notes += (f"{folds} folds of the {len(pool)} images of train and val; each scores what its supernet did not see.",)
    return Known(task.name, task.classes, pool, pool, set_aside, parts, notes, task.fingerprint)


def _joined(first: ImageSet, second: ImageSet) -> ImageSet:
    items, labels = (*first.items, *second.items), (*first.labels, *second.labels)
    return ImageSet(items, labels, preprocess=first.preprocess, cache_bytes=first.cache_bytes)


def _parts(labels: Sequence[int], folds: int, rng: random.Random) -> tuple[tuple[int, ...], ...]:
    """Stratified parts of about equal size that together are all the images."""
    if folds > len(labels):
        raise DataError(f"folds={folds} is more than the {len(labels)} images.", remedy="Ask for fewer folds.")
    sizes = [(len(labels) + part) // folds for part in range(folds)]
    return tuple(map(tuple, stratified_split(labels, sizes, rng)))
