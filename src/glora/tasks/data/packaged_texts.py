"""What the packaged sources of texts have in common: rows become splits, and test is the same whatever their sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from glora.errors import DataError
from glora.settings import Count
from glora.tasks.data.text import SETS, USUAL, asked
from glora.tasks.data.text_layouts import Kind
from glora.tasks.objective import Objective, Targets
from glora.tasks.rows import Asks, Dialog, Labelled, Question, TextReading
from glora.tasks.task import DataSettings, Pool, Task, assemble

__all__ = ["TEST", "TRAIN", "VAL", "PackagedTexts", "parted"]

TRAIN, VAL, TEST = 800, 200, 1000
COLUMNS: dict[Kind, tuple[str, ...]] = {"dialogs": (), "questions": ("answer",), "labelled": ("class",)}

Row = TypeVar("Row")


class PackagedTexts(DataSettings):
    """The base of the packaged sources of texts.

    Attributes:
        kind: What its rows are.
    """

    kind: ClassVar[Kind] = "dialogs"

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
        columns = COLUMNS[self.kind]
        parts = {"train": rows["train"], "test": rows["test"][: self.test]}
        pools = {
            split: Pool(some, Targets(columns, [(labels(row),) * len(columns) for row in some], names=tuple(names)))
            for split, some in parts.items()
        }
        val = self.val or min(VAL, len(parts["train"]) // 5)
        sizes = {"train": self.train or min(TRAIN, len(parts["train"]) - val), "val": val}
        settings = self.model_copy(update=sizes)
        return assemble(name, pools, objective, settings, make=self._make(objective, pools), notes=notes)

    def _make(self, objective: Objective, pools: Mapping[str, Pool]) -> Any:
        """Makes a split of rows and encoded targets.

        Raises:
            DataError: The objective does not read such rows.
        """
        if isinstance(objective, Asks) and self.kind == "labelled":
            named = objective.named(next(iter(pools.values())).targets)
            return partial(asked, named, self.reading)
        if objective.name != USUAL[self.kind]:
            raise DataError(
                f"The objective {objective.name!r} does not read the rows of {self.source!r}.",
                remedy=f"Use the objective {USUAL[self.kind]!r}, which is the default.",
            )
        return partial(SETS[self.kind], reading=self.reading)


def parted(rows: Sequence[Row], name: str, *, test: int = TEST) -> dict[str, list[Row]]:
    """The rows in a random order that is always the same: the first so many are `test`, the others `train`.

    Args:
        rows: More than test takes.
        name: What is drawn by.
        test: How many.
    """
    shuffled = random.Random(name).sample(rows, len(rows))
    return {"train": shuffled[test:], "test": shuffled[:test]}
