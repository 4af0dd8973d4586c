"""What a finished model does on test, example by example, so that models can be compared in pairs (no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from glora.errors import RunError
from glora.files import read_json, write_text
from glora.report.records import checked
from glora.report.result import Result

__all__ = ["TESTED", "ByExample", "beside"]

TESTED = "test_examples.json"  # in a run folder


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ByExample:
    """The metrics of one model on every test example.

    Attributes:
        winner: Which model, as `Result.winner` has it.
        data: Fingerprint of the task: models are compared on the same one.
        values: Metric that is a mean over examples -> its values, in the order of the examples; None is not finite.
        weights: How much each example counts in a mean; None: all the same.
    """

    winner: str
    data: str
    values: Mapping[str, tuple[float | None, ...]] = field(repr=False)
    weights: tuple[float, ...] | None = field(default=None, repr=False)

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
