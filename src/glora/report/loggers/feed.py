"""Reads what a run writes and hands on what is new to its loggers."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from glora.errors import GloraError, RunError
from glora.files import read_jsonl, write_json
from glora.report.loggers.logger import Logger, logger_class
from glora.report.result import Result
from glora.settings import flat

__all__ = ["Feed"]

SENT = "logged.json"  # how much of each file the loggers that do not begin anew have had
OF_TRAINING = ("loss", "lr", "epoch", "examples_per_second")


class _Point(NamedTuple):
    """Some numbers of a step."""

    group: str
    step: int
    values: dict[str, float]


@dataclass
class _Tail:
    """A file of JSON lines that grows.

    Attributes:
        path: The file.
        group: What its numbers are of.
        size: Its bytes when it was read last.
        points: What it holds, in its order.
    """

    path: Path
    group: str
    size: int = -1
    points: list[_Point] = field(default_factory=list)

    def read(self) -> None:
        """Takes over what is new."""
        size = self.path.stat().st_size
        if size != self.size:
            records = read_jsonl(self.path)
            self.points = list(_searched(records) if self.group == "search" else _trained(records, self.group))
            self.size = size


class Feed:
    """What a run writes, for some loggers.

    A logger that fails is let go, so that it cannot end a run; `update` says so.

    Args:
        folder: The run folder; it need not exist yet.
        names: Names in `LOGGERS`.

    Raises:
        UnknownNameError: There is no such logger.
        MissingExtraError: Its package is not installed.
    """

    def __init__(self, folder: str | Path, names: Sequence[str]) -> None:
        self.folder = Path(folder)
        self.kinds = {name: logger_class(name) for name in dict.fromkeys(names)}
        self._open: dict[str, Logger] = {}
        self._state: dict[str, dict[str, Any]] = {}  # logger -> its key, and how many points of each file it has had
        self._tails: dict[Path, _Tail] = {}

    def update(self) -> list[str]:
        """Hands on what is new.

        Returns:
            What a user should be told: a logger that failed.
        """
        if not (self.folder / "config.yaml").is_file():
            return []
        try:
            for tail in self._found():
                tail.read()
            result = self._result()
        except (GloraError, OSError):  # it is being written: the next time
            return []
        told = []
        for name, kind in list(self.kinds.items()):
            try:
                self._hand_on(name, kind, result)
            except Exception as error:  # of any kind, by other libraries and the network
                del self.kinds[name]
                self._open.pop(name, None)
                told.append(f"Nothing is logged to {name} any more: {type(error).__name__}: {error}")
        return told

    def close(self) -> list[str]:
        """Hands on the rest, and closes the loggers; returns what a user should be told."""
        told = self.update()
        for name, logger in self._open.items():
            try:
                logger.close()
            except Exception as error:
                told.append(f"{name} could not be closed: {type(error).__name__}: {error}")
        self._open = {}
        return told

    def _found(self) -> list[_Tail]:
        """The files that there are."""
        files = {"train": self.folder / "metrics.jsonl", "search": self.folder / "search.jsonl"}
        for pattern in ("fold-*", "polished/*", "retrained/*"):
            for inner in sorted(self.folder.glob(pattern)):
                files[pattern.partition("/")[0].replace("fold-*", inner.name)] = inner / "metrics.jsonl"
        for group, file in files.items():
            if file.is_file() and file not in self._tails:
                self._tails[file] = _Tail(file, group)
        return [tail for tail in self._tails.values() if tail.path.is_file()]

    def _result(self) -> Result | None:
        file = self.folder / "result.json"
        return Result.read(file) if file.is_file() else None

    def _hand_on(self, name: str, kind: type[Logger], result: Result | None) -> None:
        """What this logger has not had yet."""
        state = self._state[name] if name in self._state else self._begun(name, kind)
        sent, new = state["sent"], 0
        for tail in self._tails.values():
            place = tail.path.relative_to(self.folder).as_posix()
            for group, step, values in tail.points[sent.get(place, 0) :]:
                self._logger(name, kind).log(group, step, values)
                new += 1
            sent[place] = max(sent.get(place, 0), len(tail.points))
        if result is not None and state["result"] != result.winner + result.time:
            values = _finite({**result.metrics, "parameters": result.parameters})
            self._logger(name, kind).result(values, result.verdict)
            state["result"], new = result.winner + result.time, new + 1
        if new and not kind.anew:
            kept = self._kept()
            write_json(self.folder / SENT, {**kept, name: state})

    def _begun(self, name: str, kind: type[Logger]) -> dict[str, Any]:
        """How far a logger is: at the beginning, or where an earlier part of the run has left it."""
        fresh = {"key": uuid.uuid4().hex[:12], "sent": {}, "result": ""}
        self._state[name] = fresh if kind.anew else self._kept().get(name, fresh)
        return self._state[name]

    def _kept(self) -> dict[str, Any]:
        file = self.folder / SENT
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            return found if isinstance(found, dict) else {}
        except ValueError:  # what is damaged is begun anew
            return {}

    def _logger(self, name: str, kind: type[Logger]) -> Logger:
        """The logger, opened when there is something to log."""
        if name not in self._open:
            settings = flat(_settings(self.folder / "config.yaml"))
            self._open[name] = kind(self.folder, key=self._state[name]["key"], settings=settings)
        return self._open[name]


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{file} cannot be read: {' '.join(str(error).split())}.") from error
    return found if isinstance(found, Mapping) else {}


def _trained(records: Sequence[Mapping[str, Any]], group: str) -> Iterator[_Point]:
    """An epoch each."""
    for record in records:
        if record.get("stage") == "train":
            values = {name: record.get(name) for name in OF_TRAINING}
            if record.get("metric_name"):
                values[record["metric_name"]] = record.get("metric")
            yield _Point(group, int(record["step"]), _finite(values))


def _searched(records: Sequence[Mapping[str, Any]]) -> Iterator[_Point]:
    """A scored genotype each, with the best so far; none of a race, whose scores are of some examples each."""
    if records and records[0].get("racing"):
        return
    asked = {record["number"]: record for record in records if record.get("event") == "ask"}
    best = -math.inf
    for record in records:
        if record.get("event") != "score" or record["number"] not in asked:
            continue
        score = record.get("score")
        best = best if score is None else max(best, score)
        values = {"score": score, "best": best, "parameters": asked[record["number"]].get("parameters")}
        yield _Point("search", int(record["number"]), _finite(values))


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are finite numbers."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
