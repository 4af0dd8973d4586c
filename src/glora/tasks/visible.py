"""What training and search may see of a task: everything but its test examples."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from glora.errors import DataError
from glora.tasks.objective import Examples, Objective
from glora.tasks.splits import groups_of, strata_of, stratified_split
from glora.tasks.task import Task

__all__ = ["VisibleData", "visible"]


@dataclass(frozen=True)
class VisibleData:
    """The labelled examples without test: what trains, what chooses, and what is set aside from the choice.

    Attributes:
        name: What the task is called in results.
        objective: What is learned and how it is measured.
        train: Examples that the winner's weights are trained on.
        val: Examples that choose between candidates; with folds the same as `train`.
        aside: Examples that neither train nor choose: they tell what the choice is worth; may be empty.
        folds: Places in `val` of the examples that each fold scores; empty in the plain split.
        notes: What a user should be told of the split.
        fingerprint, parts: The task's.
    """

    name: str
    objective: Objective
    train: Examples
    val: Examples
    aside: Examples
    folds: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)

    def training(self, fold: int) -> Examples:
        """What the supernet of this fold is trained on: the examples of all others."""
        mine = set(self.folds[fold])
        return self.train.subset([place for place in range(len(self.train)) if place not in mine])

    @cached_property
    def everything(self) -> Examples:
        """Train, val and set-aside examples, each once."""
        whole = self.train if self.folds else self.train.joined(self.val)
        return whole.joined(self.aside) if len(self.aside) else whole

    @property
    def unseen(self) -> dict[str, Examples]:
        """What the training has not seen, by split."""
        splits = {"aside": self.aside} if self.folds else {"val": self.val, "aside": self.aside}
        return {name: examples for name, examples in splits.items() if len(examples)}

    @cached_property
    def scoring(self) -> tuple[Examples, ...]:
        """The parts of val, each scored by a supernet that has not seen it; one in the plain split."""
        return tuple(self.val.subset(places) for places in self.folds) or (self.val,)


def visible(task: Task, *, seed: int, aside: int, folds: int) -> VisibleData:
    """The task without its test examples, the set-aside ones cut from val, the rest folded where asked.

    Args:
        task: The task; nothing of its test examples is kept.
        seed: Seed of the cuts, which are stratified as the task's splits are.
        aside: Number of val examples to set aside.
        folds: With 2 or more, train and the rest of val are one pool, cut into so many parts.

    Raises:
        DataError: Nothing of val would be left, or there are fewer examples than folds.
    """
    unit = task.val.unit
    if aside >= len(task.val):
        raise DataError(
            f"aside={aside} leaves no val {unit} of {len(task.val)}.",
            allowed=f"At most {len(task.val) - 1} can be set aside.",
            remedy=f"Set fewer aside, or ask for more val {unit}.",
        )
    strata = strata_of(task.val)
    sizes, rng = (len(task.val) - aside, aside), random.Random(f"aside {seed}")
    chosen, kept = stratified_split(strata, sizes, rng, groups=groups_of(task.val))
    val, set_aside = task.val.subset(chosen) if aside else task.val, task.val.subset(kept)
    notes = (f"{len(kept)} of the {len(task.val)} val {unit} are set aside from the search.",) if aside else ()
    stamp = task.fingerprint, task.parts
    if folds < 2:
        return VisibleData(task.name, task.objective, task.train, val, set_aside, (), notes, *stamp)
    pool = task.train.joined(val)
    if folds > len(pool):
        raise DataError(f"folds={folds} is more than the {len(pool)} {unit}.", remedy="Ask for fewer folds.")
    parts = _parts(pool, folds, random.Random(f"folds {seed}"))
    note = f"{folds} folds of the {len(pool)} {unit} of train and val; each scores what its supernet did not see."
    return VisibleData(task.name, task.objective, pool, pool, set_aside, parts, (*notes, note), *stamp)


def _parts(pool: Examples, folds: int, rng: random.Random) -> tuple[tuple[int, ...], ...]:
    """Stratified parts of about equal size that together are all the examples."""
    sizes = [(len(pool) + part) // folds for part in range(folds)]
    return tuple(map(tuple, stratified_split(strata_of(pool), sizes, rng, groups=groups_of(pool))))
