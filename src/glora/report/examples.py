"""What a finished model does on test, example by example, so that models can be compared in pairs (no torch)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from glora.errors import RunError
from glora.files import read_json, write_text
from glora.report.records import checked
from glora.report.result import Result

__all__ = ["TESTED", "TEXTS", "THUMBNAILS", "ByExample", "beside"]

TESTED = "test_examples.json"  # in a run folder
THUMBNAILS = "test_images"  # a folder there, of the images that are most wrong: NUMBER.png
TEXTS = "test_texts.json"  # there too, of the texts that are most wrong: place -> `text`, and `choices` of a question
WRONG = 24  # so many


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ByExample:
    """The metrics of one model on every test example.

    Attributes:
        winner: Which model, as `Result.winner` has it.
        data: Fingerprint of the task: models are compared on the same one.
        values: Metric that is a mean over examples -> its values, in the order of the examples; None is not finite.
        weights: How much each example counts in a mean; None: all the same.
        told: What else is known of every example: of one with a class `target` and `prediction`, as places in
            `classes` or among the choices of a question, and the `probability` of what is predicted.
        names: What the examples are called, such as their files; empty where they have no name.
        classes: Names of the classes.
    """

    winner: str
    data: str
    values: Mapping[str, tuple[float | None, ...]] = field(repr=False)
    weights: tuple[float, ...] | None = field(default=None, repr=False)
    told: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict, repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    classes: tuple[str, ...] = ()

    def most_wrong(self, most: int = WRONG) -> list[int]:
        """The places of examples with another class predicted than theirs, the largest losses first.

        Where there are no classes, those with the largest losses.
        """
        losses = self.values.get("loss", ())
        wrong = list(range(len(losses)))
        if {"target", "prediction"} <= self.told.keys():
            pairs = zip(self.told["target"], self.told["prediction"], strict=True)
            wrong = [place for place, (target, prediction) in enumerate(pairs) if target != prediction]
        by_loss = {place: math.inf if (loss := losses[place]) is None else loss for place in wrong} if losses else {}
        return sorted(wrong, key=lambda place: -by_loss.get(place, 0.0))[:most]

    def write(self, path: Path) -> None:
        """The file holds these, whole or not at all."""
        write_text(path, json.dumps(asdict(self), separators=(",", ":")) + "\n")


def beside(result: Result, file: Path) -> ByExample | None:
    """The examples of a result; None where there are none, or those of another winner.

    Args:
        result: What the file holds.
        file: Of a run folder, whose examples are beside it, or of a benchmark, which has them in `examples/`.

    Raises:
        RunError: They are damaged.
    """
    path = file.with_name(TESTED) if file.name == "result.json" else file.parent.parent / "examples" / file.name
    if not path.is_file():
        return None
    try:
        found = checked(ByExample, read_json(path, remedy=""), "record of test examples")
    except RunError as error:
        cause = error.cause if str(path) in error.cause else f"{path} cannot be read: {error.cause}"
        raise RunError(cause, remedy="Delete it: nothing but pairs needs it.") from error
    return found if found.winner == result.winner else None
