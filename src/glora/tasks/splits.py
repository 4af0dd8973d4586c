"""Which images train, which choose, which test: seeded, stratified, in the VTAB manner."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from glora.errors import DataError
from glora.tasks.images import ImageSet

__all__ = ["carve_val", "sampled", "split_in_three", "stratified_split"]

_TRAIN, _VAL = 800, 200  # VTAB-1k
_SMALL = 1250  # below it those 1,000 leave less than a fifth for the test


def stratified_split(labels: Sequence[int], sizes: Sequence[int], rng: random.Random) -> list[list[int]]:
    """Disjoint index lists of exactly these sizes, each with every class in its share.

    Shares are rounded by largest remainder, ties in an order drawn from `rng`. A split with room for it
    has at least one image of every class that has an image for each split.

    Args:
        labels: Class of each image, `(n,)`.
        sizes: Images of each split; together at most `n`.
        rng: Draws the images; the same seed gives the same lists.

    Returns:
        One ascending list of indices for each size.

    Raises:
        DataError: The sizes are negative or ask for more images than there are.
    """
    if min(sizes, default=0) < 0 or sum(sizes) > len(labels):
        raise DataError(
            f"Splits of {', '.join(map(str, sizes))} images cannot be cut from {len(labels)}.",
            allowed=f"Sizes are at least 0 and together at most {len(labels)}.",
        )
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for index, label in enumerate(labels):
        members[label].append(index)
    for indices in members.values():
        rng.shuffle(indices)
    counts = [len(indices) for indices in members.values()]
    taken = [0] * len(counts)
    splits = []
    for number, size in enumerate(sizes):
        left = [count - used for count, used in zip(counts, taken, strict=True)]
        shares = _shares(size, counts, left, keep=len(sizes) - 1 - number, rng=rng)
        ends = [used + share for used, share in zip(taken, shares, strict=True)]
        ranges = zip(members.values(), taken, ends, strict=True)
        splits.append(sorted(index for indices, start, end in ranges for index in indices[start:end]))
        taken = ends
    return splits


def _shares(size: int, counts: list[int], left: list[int], *, keep: int, rng: random.Random) -> list[int]:
    """How many of `size` images each class gives, leaving `keep` of each class for later where it can."""
    total = max(sum(counts), 1)
    quota = [size * count / total for count in counts]
    soft = [max(have - keep, min(have, 1)) for have in left]
    least = 1 if size >= len(counts) else 0
    shares = [min(max(int(share), least), limit) for share, limit in zip(quota, soft, strict=True)]
    order = list(range(len(counts)))
    rng.shuffle(order)
    while sum(shares) > size:
        shares[max((c for c in order if shares[c] > least), key=lambda c: shares[c] - quota[c])] -= 1
    while sum(shares) < size:
        ready = [c for c in order if shares[c] < soft[c]] or [c for c in order if shares[c] < left[c]]
        shares[max(ready, key=lambda c: quota[c] - shares[c])] += 1
    return shares


def split_in_three(
    images: ImageSet, classes: Sequence[str], *, train: int | None, val: int | None, seed: int
) -> tuple[tuple[ImageSet, ImageSet, ImageSet], str]:
    """Train, val and test cut from one pool, and a sentence that says how.

    800 and 200 images, the rest for the test; below 1,250 images 64%, 16% and 20%.

    Args:
        images: The pool.
        classes: The name of each label.
        train: Number of training images instead of the default.
        val: Number of validation images instead of the default.
        seed: Seed of the split.

    Raises:
        DataError: A class has under 3 images, val is empty, or the sizes leave no test.
    """
    n = len(images)
    _enough(images, classes, least=3, need="one each for train, val and test")
    small = n < _SMALL
    n_train = train if train is not None else round(0.64 * n) if small else _TRAIN
    n_val = val if val is not None else max(1, round(0.16 * n)) if small else _VAL
    n_test = n - n_train - n_val
    if n_test < 1:
        raise DataError(
            f"train={n_train} and val={n_val} leave no test images of {n}.",
            allowed=f"Together they can be at most {n - 1}.",
            remedy="Ask for fewer, or give train/, val/ and test/ folders.",
        )
    _sizes(n_train, n_val, classes)
    parts = stratified_split(images.labels, (n_train, n_val, n_test), random.Random(seed))
    first, second, third = (images.subset(part) for part in parts)
    cut = f"{n_train} train, {n_val} val and {n_test} test images, stratified by class, seed {seed}"
    default = train is None and val is None and small
    why = f"Fewer than {_SMALL:,} images, so split 64 / 16 / 20%: " if default else "Split: "
    return (first, second, third), f"{why}{cut}."


def carve_val(
    images: ImageSet, classes: Sequence[str], *, train: int | None, val: int | None, seed: int
) -> tuple[tuple[ImageSet, ImageSet], str]:
    """Train and val cut from a training pool whose test is elsewhere, and a sentence that says how.

    The default val is 200 images, below 1,000 a fifth; the default train is all the rest.

    Args:
        images: The pool.
        classes: The name of each label.
        train: Number of training images instead of the rest.
        val: Number of validation images instead of the default.
        seed: Seed of the split.

    Raises:
        DataError: A class has under 2 images, val is empty, or the sizes do not fit.
    """
    n = len(images)
    _enough(images, classes, least=2, need="one each for train and val")
    n_val = val if val is not None else min(_VAL, max(1, round(n / 5)))
    n_train = train if train is not None else n - n_val
    if n_train + n_val > n:
        raise DataError(
            f"train={n_train} and val={n_val} are more than the {n} training images.",
            remedy="Ask for fewer.",
        )
    _sizes(n_train, n_val, classes)
    parts = stratified_split(images.labels, (n_train, n_val), random.Random(seed))
    first, second = (images.subset(part) for part in parts)
    cut = f"{n_val} val images cut from the training images, {n_train} left to train on"
    return (first, second), f"{cut}, stratified by class, seed {seed}."


def sampled(images: ImageSet, size: int | None, *, classes: Sequence[str], what: str, seed: int) -> ImageSet:
    """A stratified sample of `size` images, or all of them for None.

    Args:
        images: The pool.
        size: How many images to keep.
        classes: The name of each label.
        what: The split's name, for the error: `train` or `val`.
        seed: Seed of the sample.

    Raises:
        DataError: There are fewer images than that, or fewer training images than classes.
    """
    if size is None:
        return images
    if size > len(images):
        raise DataError(f"{what}={size} is more than the {len(images)} {what} images.", remedy="Ask for fewer.")
    least = len(classes) if what == "train" else 1
    _at_least(size, least, what)
    return images.subset(stratified_split(images.labels, (size,), random.Random(seed))[0])


def _enough(images: ImageSet, classes: Sequence[str], *, least: int, need: str) -> None:
    counts = Counter(images.labels)
    for label, name in enumerate(classes):
        if counts[label] < least:
            raise DataError(
                f"Class {name!r} has too few images: {counts[label]}.",
                allowed=f"A class needs at least {least}, {need}.",
                remedy="Add images, or remove the class folder.",
            )


def _sizes(train: int, val: int, classes: Sequence[str]) -> None:
    _at_least(train, len(classes), "train")
    _at_least(val, 1, "val")


def _at_least(size: int, least: int, what: str) -> None:
    if size < least:
        state = "empty" if size == 0 else f"too small: {size} images"
        raise DataError(
            f"The {what} split is {state}.",
            allowed=f"It needs at least {least}" + (", one of each class." if least > 1 else "."),
            remedy=f"Ask for more {what} images.",
        )
