"""Which examples train, which choose, which test: seeded, stratified where there are classes, in the VTAB manner."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

from glora.errors import DataError
from glora.tasks.objective import Examples, Grouped

__all__ = ["SPLITS", "carve_val", "groups_of", "sampled", "split_in_three", "strata_of", "stratified_split"]

Split = TypeVar("Split", bound=Examples)

SPLITS = {  # what folders, files, columns and data sets call them, in small letters
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "holdout", "hold-out"), "test"),
}

_TRAIN, _VAL = 800, 200  # VTAB-1k
_SMALL = 1250  # below it those 1,000 leave less than a fifth for the test


def stratified_split(
    strata: Sequence[Hashable],
    sizes: Sequence[int],
    rng: random.Random,
    *,
    groups: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Disjoint index lists of exactly these sizes, each with every stratum, such as a class, in its share.

    Shares are rounded by largest remainder, ties in an order drawn from `rng`. A split with room for it
    has at least one example of every stratum that has an example for each split.

    Args:
        strata: Stratum of each example, `(n,)`.
        sizes: Examples of each split; together at most `n`.
        rng: Draws the examples; the same seed gives the same lists.
        groups: The group of each example, where no two lists may share one; the sizes and shares are then as near as
            that allows. None: each is for itself.

    Returns:
        One ascending list of indices for each size.

    Raises:
        DataError: The sizes are negative or ask for more examples than there are.
    """
    if min(sizes, default=0) < 0 or sum(sizes) > len(strata):
        raise DataError(
            f"Splits of {', '.join(map(str, sizes))} examples cannot be cut from {len(strata)}.",
            allowed=f"Sizes are at least 0 and together at most {len(strata)}.",
        )
    if groups is not None:
        return _grouped_split(strata, sizes, groups, rng)
    members: dict[Hashable, list[int]] = {each: [] for each in sorted(set(strata), key=_order)}
    for index, each in enumerate(strata):
        members[each].append(index)
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


def _grouped_split(
    strata: Sequence[Hashable], sizes: Sequence[int], groups: Sequence[Hashable], rng: random.Random
) -> list[list[int]]:
    """Whole groups, the largest first: each goes where it has room and where most of its stratum is lacking.

    What is left over is the last part, which is not given back.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    units = list(members.values())
    rng.shuffle(units)
    units.sort(key=len, reverse=True)
    n, counts = len(strata), Counter(strata)
    rooms = [*sizes, n - sum(sizes)]
    lacking = [{each: room * count / n for each, count in counts.items()} for room in rooms]
    splits: list[list[int]] = [[] for _ in rooms]
    without = [set(counts) if size >= len(counts) else set() for size in sizes] + [set()]
    for unit in units:
        stratum = strata[unit[0]]
        fits = [part for part, room in enumerate(rooms) if room >= len(unit)]
        fits = fits or [max(range(len(rooms)), key=rooms.__getitem__)]
        chosen = max(fits, key=lambda part: (stratum in without[part], lacking[part][stratum]))
        splits[chosen] += unit
        rooms[chosen] -= len(unit)
        lacking[chosen][stratum] -= len(unit)
        without[chosen].discard(stratum)
    return [sorted(split) for split in splits[:-1]]


def _order(stratum: Any) -> tuple[str, Any]:
    return ("", stratum) if isinstance(stratum, int) else (type(stratum).__name__, stratum)


def strata_of(examples: Examples) -> Sequence[Hashable]:
    """The strata of the examples; all are of one where there is nothing to keep in proportion."""
    return [0] * len(examples) if examples.strata is None else examples.strata


def groups_of(examples: Examples) -> Sequence[Hashable] | None:
    """The groups of the examples that no two splits share; None where each is for itself."""
    return examples.groups if isinstance(examples, Grouped) else None


def _shares(size: int, counts: list[int], left: list[int], *, keep: int, rng: random.Random) -> list[int]:
    """How many of `size` examples each stratum gives, leaving `keep` of each for later where it can."""
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
    examples: Split, names: Sequence[str], *, train: int | None, val: int | None, seed: int
) -> tuple[tuple[Split, Split, Split], str]:
    """Train, val and test cut from one pool, and a sentence that says how.

    800 and 200 examples, the rest for the test; below 1,250 examples 64%, 16% and 20%.

    Args:
        examples: The pool.
        names: The name of each stratum, such as a class; empty where there is none.
        train: Number of training examples instead of the default.
        val: Number of validation examples instead of the default.
        seed: Seed of the split.

    Raises:
        DataError: A class has under 3 examples, val is empty, or the sizes leave no test.
    """
    n, unit = len(examples), examples.unit
    _enough(examples, names, least=3, need="one each for train, val and test")
    small = n < _SMALL
    n_train = train if train is not None else round(0.64 * n) if small else _TRAIN
    n_val = val if val is not None else max(1, round(0.16 * n)) if small else _VAL
    n_test = n - n_train - n_val
    if n_test < 1:
        raise DataError(
            f"train={n_train} and val={n_val} leave no test {unit} of {n}.",
            allowed=f"Together they can be at most {n - 1}.",
            remedy="Ask for fewer, or give the splits yourself.",
        )
    _sizes(n_train, n_val, names, unit)
    rng, groups = random.Random(seed), groups_of(examples)
    parts = stratified_split(strata_of(examples), (n_train, n_val, n_test), rng, groups=groups)
    _none_empty(parts, unit)
    first, second, third = (examples.subset(part) for part in parts)
    cut = f"{len(first)} train, {len(second)} val and {len(third)} test {unit}, {_how(names)}seed {seed}"
    default = train is None and val is None and small
    why = f"Fewer than {_SMALL:,} {unit}, so split 64 / 16 / 20%: " if default else "Split: "
    return (first, second, third), f"{why}{cut}."  # type: ignore[return-value]


def _how(names: Sequence[str]) -> str:
    return "stratified by class, " if names else ""


def carve_val(
    examples: Split, names: Sequence[str], *, train: int | None, val: int | None, seed: int
) -> tuple[tuple[Split, Split], str]:
    """Train and val cut from a training pool whose test is elsewhere, and a sentence that says how.

    The default val is 200 examples, below 1,000 a fifth; the default train is all the rest.

    Args:
        examples: The pool.
        names: The name of each stratum, such as a class; empty where there is none.
        train: Number of training examples instead of the rest.
        val: Number of validation examples instead of the default.
        seed: Seed of the split.

    Raises:
        DataError: A class has under 2 examples, val is empty, or the sizes do not fit.
    """
    n, unit = len(examples), examples.unit
    _enough(examples, names, least=2, need="one each for train and val")
    n_val = val if val is not None else min(_VAL, max(1, round(n / 5)))
    n_train = train if train is not None else n - n_val
    if n_train + n_val > n:
        raise DataError(
            f"train={n_train} and val={n_val} are more than the {n} training {unit}.",
            remedy="Ask for fewer.",
        )
    _sizes(n_train, n_val, names, unit)
    parts = stratified_split(strata_of(examples), (n_train, n_val), random.Random(seed), groups=groups_of(examples))
    _none_empty(parts, unit)
    first, second = (examples.subset(part) for part in parts)
    cut = f"{len(second)} val {unit} cut from the training {unit}, {len(first)} left to train on"
    return (first, second), f"{cut}, {_how(names)}seed {seed}."  # type: ignore[return-value]


def sampled(examples: Split, size: int | None, *, names: Sequence[str], what: str, seed: int) -> Split:
    """A stratified sample of `size` examples, or all of them for None.

    Args:
        examples: The pool.
        size: How many examples to keep.
        names: The name of each stratum, such as a class; empty where there is none.
        what: The split's name, for the error: `train` or `val`.
        seed: Seed of the sample.

    Raises:
        DataError: There are fewer examples than that, or fewer training examples than classes.
    """
    if size is None:
        return examples
    if size > len(examples):
        unit = examples.unit
        raise DataError(f"{what}={size} is more than the {len(examples)} {what} {unit}.", remedy="Ask for fewer.")
    least = len(names) or 1 if what == "train" else 1
    _at_least(size, least, what, examples.unit)
    part = stratified_split(strata_of(examples), (size,), random.Random(seed))[0]
    return examples.subset(part)  # type: ignore[return-value]


def _enough(examples: Examples, names: Sequence[str], *, least: int, need: str) -> None:
    counts = Counter(strata_of(examples))
    if not names and len(examples) < least:
        raise DataError(f"There are too few {examples.unit}: {len(examples)}.", allowed=f"At least {least}, {need}.")
    for stratum, name in enumerate(names):
        if counts[stratum] < least:
            raise DataError(
                f"Class {name!r} has too few {examples.unit}: {counts[stratum]}.",
                allowed=f"A class needs at least {least}, {need}.",
                remedy=f"Add {examples.unit}, or leave the class out.",
            )


def _none_empty(parts: Sequence[Sequence[int]], unit: str) -> None:
    """Nothing where every split has an example: groups that belong together may be too large for that."""
    if not all(parts):
        raise DataError(
            f"There are too few groups of {unit} that no two splits may share.",
            allowed=f"{unit.capitalize()} that ask the same, or are parts of one conversation, are in one split.",
            remedy=f"Add other {unit}, or give the splits yourself.",
        )


def _sizes(train: int, val: int, names: Sequence[str], unit: str) -> None:
    _at_least(train, len(names) or 1, "train", unit)
    _at_least(val, 1, "val", unit)


def _at_least(size: int, least: int, what: str, unit: str) -> None:
    if size < least:
        state = "empty" if size == 0 else f"too small: {size} {unit}"
        raise DataError(
            f"The {what} split is {state}.",
            allowed=f"It needs at least {least}" + (", one of each class." if least > 1 else "."),
            remedy=f"Ask for more {what} {unit}.",
        )
