"""What lm-evaluation-harness measured of a run and of what stands beside it: one record per evaluation (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from glora.errors import RunError
from glora.files import read_json, write_json
from glora.report.records import checked

__all__ = ["HARNESS", "Evaluated", "HarnessRow", "Score", "evaluations_of", "read_evaluations", "with_evaluation"]

HARNESS = "lm_eval.json"  # in a run folder
FORMAT = 1
Score: TypeAlias = tuple[float | None, float | None]  # a value, and its standard error where the harness tells one


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class HarnessRow:
    """One model.

    Attributes:
        kind: `base`, the pretrained model as it is; `run`, another run; `winner`, the run whose folder this is.
        key: Which weights: the hash of the adapter's file, of the base its fingerprint.
        title: What tables call the method.
        run: The run folder's name; empty of a base.
        model: The backbone.
        parameters: Trainable numbers, without the head.
        scores: Task or group -> metric -> score, as the harness has it: accuracies are fractions.
    """

    kind: Literal["base", "run", "winner"]
    key: str
    title: str
    run: str
    model: str
    parameters: int
    scores: Mapping[str, Mapping[str, Score]] = field(repr=False)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Evaluated:
    """One evaluation: several models on the same tasks with the same settings.

    Attributes:
        settings: What the scores depend on beside the models: tasks, limit, batch size, versions, precision.
        shots: Task -> examples shown before each question.
        examples: Task -> questions asked.
        rows: The models that are measured so far.
    """

    settings: Mapping[str, Any]
    shots: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    rows: tuple[HarnessRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def read_evaluations(path: Path) -> list[Evaluated]:
    """The evaluations in a file; none where there is no file.

    Raises:
        RunError: It cannot be read.
    """
    if not path.is_file():
        return []
    try:
        data = read_json(path, remedy="Delete it and evaluate again.")
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        return [checked(Evaluated, each, "evaluation") for each in data["evaluations"]]
    except (OSError, ValueError, KeyError, TypeError, RunError) as error:
        raise RunError(f"{path} cannot be read: {error}.", remedy="Delete it and evaluate again.") from error


def with_evaluation(path: Path, found: Evaluated) -> None:
    """The file has this evaluation, in the place of one with the same settings; whole or not at all."""
    others = [each for each in read_evaluations(path) if each.settings != found.settings]
    write_json(path, {"format": FORMAT, "evaluations": [each.to_json() for each in (*others, found)]})


def evaluations_of(paths: Sequence[str | Path]) -> list[Evaluated]:
    """Every evaluation that the paths lead to: run folders, files, or folders of run folders.

    Raises:
        RunError: A path leads to none.
    """
    return [each for path in paths for file in _files(Path(path).expanduser()) for each in read_evaluations(file)]


def _files(path: Path) -> Iterable[Path]:
    found = [path] if path.is_file() else [*_inside(path)]
    if not found:
        raise RunError(
            f"{path} holds no evaluation of lm-evaluation-harness.",
            allowed=f"A run folder with a {HARNESS}, such a file, or a folder of run folders.",
            remedy=f"Make one: glora eval {path} --tasks NAME",
        )
    return found


def _inside(path: Path) -> Iterator[Path]:
    yield from [path / HARNESS] if (path / HARNESS).is_file() else sorted(path.glob(f"*/{HARNESS}"))
