"""What a page shows of one run: everything that its folder holds, finished or not (no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from glora.errors import RunError, listed
from glora.files import read_jsonl
from glora.report.examples import TEXTS, THUMBNAILS, ByExample, beside
from glora.report.metrics import MetricInfo
from glora.report.outcome import Outcome
from glora.report.result import Result

__all__ = ["RunRecord", "Scored", "read_run"]


@dataclass(frozen=True)
class Scored:
    """One genotype of a search as a picture shows it.

    Attributes:
        parameters: Its trainable numbers, without the head.
        score: Higher is better; None where it was not finite.
        generation: When it was asked for.
    """

    parameters: int
    score: float | None
    generation: int


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: Of its folder, or of its result.
        path: The run folder or the result file.
        state: How far it is: `begun`, `training`, `trained`, `searching`, `searched` or `tested`.
        settings: Nested, as in `config.yaml`.
        result: Of the model that is here; None as long as it was not tested.
        outcome: The winner of a search.
        curves: What was trained -> its records, one an epoch.
        trials: What the search has scored on all examples.
        front: The trials that no other beats in both.
        left: How many left a race before they were scored on all examples.
        examples: What the model does on every test example.
        thumbnails: Test example -> a small PNG of it.
        texts: Test example -> its `text`, cut short, and of a question its `choices`.
        changed: When it last changed, in seconds since 1970.
    """

    name: str
    path: Path
    state: str
    settings: Mapping[str, Any] = field(repr=False)
    result: Result | None = field(default=None, repr=False)
    outcome: Outcome | None = field(default=None, repr=False)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict, repr=False)
    trials: Sequence[Scored] = field(default=(), repr=False)
    front: Sequence[Scored] = field(default=(), repr=False)
    left: int = 0
    examples: ByExample | None = field(default=None, repr=False)
    thumbnails: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    texts: Mapping[int, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    changed: float = 0.0

    @property
    def metrics(self) -> tuple[MetricInfo, ...]:
        """The metrics of the objective; none as long as nothing was measured."""
        known = self.outcome or self.result
        return () if known is None else known.metrics_info

    @property
    def unit(self) -> str:
        """What an example is, in the plural."""
        return "examples" if self.outcome is None else self.outcome.unit


def read_run(path: str | Path) -> RunRecord:
    """A run folder, or a result file, as a page shows it.

    Raises:
        RunError: It is neither, or a file of it is damaged.
    """
    path = Path(path).expanduser()
    if path.is_file():
        result = Result.read(path)
        return RunRecord(
            result.run,
            path,
            "tested",
            result.config,
            result,
            examples=beside(result, path),
            changed=path.stat().st_mtime,
        )
    if not (path / "config.yaml").is_file():
        inside = sorted(each.parent for each in path.glob("*/config.yaml")) if path.is_dir() else []
        raise RunError(
            f"{path} is no run, but a folder of runs." if inside else f"{path} holds no run.",
            allowed="A run folder, or a result file.",
            remedy=f"Name its runs: {listed(map(str, inside))}" if inside else _elsewhere(path),
        )
    return _read_folder(path)


def _elsewhere(path: Path) -> str:
    return "List the runs of a folder: glora ls runs FOLDER" if path.is_dir() else "Check the path."


def _read_folder(path: Path) -> RunRecord:
    outcome = Outcome.read(path / "winner.json") if (path / "winner.json").is_file() else None
    result = Result.read(path / "result.json") if (path / "result.json").is_file() else None
    if result is not None and outcome is not None and result.winner != outcome.key:
        result = None  # of another winner
    stages = _object(path / "state.json")
    trials, front, left = _searched(path, outcome)
    begun = (path / "search.jsonl").is_file()
    curves = _curves(path, outcome)
    named: dict[str, Any] = {"tested": result, "searched": stages.get("searched"), "searching": begun}
    named |= {"trained": stages.get("trained"), "training": curves}
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    return RunRecord(
        name=path.resolve().name,
        path=path,
        state=next((state for state, there in named.items() if there), "begun"),
        settings=_settings(path / "config.yaml"),
        result=result,
        outcome=outcome,
        curves=curves,
        trials=trials,
        front=front,
        left=left,
        examples=None if result is None else beside(result, path / "result.json"),
        thumbnails={} if result is None else _thumbnails(path / THUMBNAILS),
        texts={} if result is None else _texts(path / TEXTS),
        changed=max(file.stat().st_mtime for file in files),
    )


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no settings")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(
            f"{file} cannot be read: {' '.join(str(error).split())}.", remedy="Bring the file back, or start a new run."
        ) from error
    return found


def _object(file: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}.", remedy="Delete it, and run the stage again.") from error
    return found


def _curves(path: Path, outcome: Outcome | None) -> dict[str, list[dict[str, Any]]]:
    """What was trained -> its records, in the order of time."""
    folders = {"training": path} | {f.name.replace("-", " "): f for f in sorted(path.glob("fold-*"))}
    if outcome is not None:
        folders["polish"] = path / "polished" / outcome.key
    every = {
        name: [r for r in read_jsonl(f / "metrics.jsonl") if r.get("stage") == "train"] for name, f in folders.items()
    }
    return {name: records for name, records in every.items() if records}


def _searched(path: Path, outcome: Outcome | None) -> tuple[list[Scored], list[Scored], int]:
    """What was scored, the front, and how many left a race; of a search that is going on from its journal."""
    drawn = _object(path / "plots" / "search.json") if outcome is not None else {}
    if {"trials", "front"} <= drawn.keys():
        every = drawn["trials"]
        whole = [each for each in every if each["seen"] == 1]
        return [_scored(each) for each in whole], [_scored(each) for each in drawn["front"]], len(every) - len(whole)
    trials = _journal(path / "search.jsonl")
    return trials, _undominated(trials), 0


def _scored(record: Mapping[str, Any]) -> Scored:
    return Scored(record["parameters"], record["score"], record["generation"])


def _journal(file: Path) -> list[Scored]:
    """The genotypes that a search has scored up to now; none of a race, whose scores are of some examples each."""
    asked: dict[int, Mapping[str, Any]] = {}
    found = []
    for record in read_jsonl(file):
        if record.get("event") == "search" and record.get("racing"):
            return []
        if record.get("event") == "ask":
            asked[record["number"]] = record
        if record.get("event") == "score" and record.get("number") in asked:
            found.append(_scored({**asked[record["number"]], "score": record.get("score")}))
    return found


def _undominated(trials: Sequence[Scored]) -> list[Scored]:
    """The trials that no other beats in both, from the smallest to the largest."""
    best, front = float("-inf"), []
    for trial in sorted(trials, key=lambda each: (each.parameters, -(each.score or 0.0))):
        if trial.score is not None and trial.score > best:
            best = trial.score
            front.append(trial)
    return front


def _thumbnails(folder: Path) -> dict[int, bytes]:
    return {int(file.stem): file.read_bytes() for file in sorted(folder.glob("*.png")) if file.stem.isdigit()}


def _texts(file: Path) -> dict[int, Mapping[str, Any]]:
    found = _object(file)
    return {int(k): each for k, each in found.items() if k.isdigit() and isinstance(each, dict)}
