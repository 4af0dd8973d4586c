"""Classes of unequal size in training: rare ones count more in the loss, or come more often; and which are rare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from glora.errors import DataError, listed
from glora.tasks.objective import Examples, Objective
from glora.tasks.objectives.classify import Classes

__all__ = ["Balance", "Kind", "check_balance", "imbalance"]

Kind: TypeAlias = Literal["none", "weights", "sampling"]

RARE = 10  # a class with so many times fewer examples than the largest one is called rare


@dataclass(frozen=True)
class Balance:
    """How much the examples of a class count in training, by how many there are.

    A class of n examples counts as much as n^(1 - power) of them: at power 1 all classes count the same, at 0.5 by the
    square root of their size (arXiv 1805.00932, Sec. 2.2), at 0 as they are.

    Attributes:
        kind: `weights`: in the loss, a weighted mean over the examples of a step as that of
            `torch.nn.CrossEntropyLoss(weight=...)`; `sampling`: an epoch draws as many examples as there are, with
            replacement, those of rare classes more often.
        power: See above.
    """

    kind: Kind = "none"
    power: float = 1.0

    @property
    def on(self) -> bool:
        """Whether anything is balanced."""
        return self.kind != "none" and self.power > 0

    def counting(self, objective: Objective, train: Examples) -> Tensor | None:
        """How much each training example counts, `(n,)` float64 of mean 1; None where all count the same.

        Raises:
            DataError: What is learned has no classes.
        """
        if not self.on:
            return None
        check_balance(self, objective)
        found = train.targets.bincount()[train.targets].double().pow(-self.power)
        return found / found.mean()

    def chance(self, train: Examples) -> float:
        """The loss of knowing how much each class counts and nothing else: the entropy of their shares."""
        sizes = train.targets.bincount()
        counting = sizes[sizes > 0].double().pow(1 - self.power)
        shares = counting / counting.sum()
        return -(shares * shares.log()).sum().item() or math.log(2)


def check_balance(balance: Balance, objective: Objective) -> None:
    """Nothing when the objective has classes, or nothing is to be balanced.

    Raises:
        DataError: It has none.
    """
    if balance.on and not isinstance(objective, Classes):
        raise DataError(
            f"data.balance={balance.kind} is about classes, and the objective {objective.name!r} has none.",
            allowed="Objectives with one class per example: classify and verbalize.",
            remedy="Leave it out.",
        )


def imbalance(train: Examples, objective: Objective, balance: Balance) -> list[str]:
    """What a user should be told of the sizes of the classes in train: which are rare, and what is done about it.

    Raises:
        DataError: They are to be balanced, and the objective has none.
    """
    check_balance(balance, objective)
    if not isinstance(objective, Classes):
        return []
    sizes = {objective.classes[place]: count for place, count in enumerate(train.targets.bincount().tolist()) if count}
    said = _rare(sizes, train.unit)
    if balance.on:
        shares = "the same" if balance.power == 1 else f"as much as their number to the power {1 - balance.power:g}"
        how = "by weights in the loss" if balance.kind == "weights" else "by how often their examples are drawn"
        said = [*said, f"In training all classes count {shares}, {how}."]
    elif said:
        said = [f"{said[0]} To train as if classes were of one size: --set data.balance=weights, or sampling."]
    return said


def _rare(sizes: dict[str, int], unit: str) -> list[str]:
    """A sentence on the classes with a tenth or less of the largest one's examples; none where there are none."""
    largest = max(sizes, key=lambda name: sizes[name])
    rare = sorted((name for name, size in sizes.items() if size * RARE <= sizes[largest]), key=sizes.__getitem__)
    if not rare:
        return []
    some = "classes are" if len(rare) > 1 else "class is"
    each = listed([f"{name!r} ({sizes[name]:,})" for name in rare], n=9)
    return [f"{len(rare)} {some} rare in train: {each}, where {largest!r} has {sizes[largest]:,} {unit}."]
