"""What the packaged sources of texts have in common: rows become splits, and test is the same whatever their sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from glora.settings import Count
from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, Pool, Task, assemble
from glora.tasks.texts import Dialog, DialogSet, Labelled, LabelledSet, Question, QuestionSet, TextReading, TextSet

__all__ = ["TEST", "TRAIN", "VAL", "PackagedTexts", "parted"]

TRAIN, VAL, TEST = 800, 200, 1000
USUAL: dict[type[TextSet], str] = {DialogSet: "language", QuestionSet: "choose", LabelledSet: "classify"}

Row = TypeVar("Row")


class PackagedTexts(DataSettings):
    """The base of the packaged sources of texts.

    Attributes:
        kind: The set that a split is.
    """

    kind: ClassVar[type[TextSet]] = DialogSet

    test: Count | None = Field(None, ge=1, description="Number of test rows, the first of them; all if not given.")
    max_length: int | None = Field(None, ge=1, description="Most tokens of a row; what the model takes if not given.")
    template: str = Field(
        "auto", description="How turns are put together: auto, chat, alpaca, plain, or a chat template in Jinja."
    )

    @property
    def reading(self) -> TextReading:
        """What is made of the rows."""
        return TextReading(max_length=self.max_length, template=self.template)

    @classmethod
    def usual_objective(cls, given: Mapping[str, Any]) -> str:
        return USUAL[cls.kind]

    def task(
        self,
        name: str,
        rows: Mapping[str, Sequence[Dialog | Question | Labelled]],
        objective: Objective,
        *,
        labels: Callable[[Any], int] = lambda row: 0,
        names: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> Task:
        """The task of these rows.

        Args:
            name: What it is called in results.
            rows: Of `train`, from which val is cut, and of `test`.
            objective: What is learned.
            labels: Row -> its class, of texts that are labelled.
            names: Of the classes.
            notes: What a user should be told.
        """
        parts = {"train": rows["train"], "test": rows["test"][: self.test]}
        pools = {
            split: Pool(some, Targets(("class",), [(labels(row),) for row in some], names=tuple(names)))
            for split, some in parts.items()
        }
        val = self.val or min(VAL, len(parts["train"]) // 5)
        sizes = {"train": self.train or min(TRAIN, len(parts["train"]) - val), "val": val}
        settings = self.model_copy(update=sizes)
        return assemble(name, pools, objective, settings, make=partial(self.kind, reading=self.reading), notes=notes)


def parted(rows: Sequence[Row], name: str, *, test: int = TEST) -> dict[str, list[Row]]:
    """The rows in a random order that is always the same: the first so many are `test`, the others `train`.

    Args:
        rows: More than test takes.
        name: What is drawn by.
        test: How many.
    """
    shuffled = random.Random(name).sample(rows, len(rows))
    return {"train": shuffled[test:], "test": shuffled[:test]}
