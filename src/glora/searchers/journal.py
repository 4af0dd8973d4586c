"""The search journal: an append-only file from which a killed search goes on to the same end.

It has one JSON object per line. The first is the header: searcher, settings, budget, seed, the space's hash, racing
and context. Then come an `ask` for every candidate, a `start` for every job handed out and a `score` for every job
done. A job is one candidate on all examples, or in a race on one `piece` of them. A genome is written whole
(`"genome"`) or as the genes that differ from its parent's (`"changed"`: gene, option, gene, option, ...).

A search that goes on runs again from its first candidate: `write` finds the lines that are there and adds only new
ones, and `recall` gives the scores of before. With several workers the order of the lines may differ from run to run;
the lines themselves do not, except for `seconds`.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from glora.errors import ConfigError, RunError
from glora.files import append_jsonl, lock, read_jsonl

__all__ = ["Journal", "genome_record"]

FORMAT = 2
LONGEST = 300  # characters of a value in a message
START_ANEW = "It was written by another version of glora, or edited: start on a new journal."


def genome_record(genome: Sequence[int], parent: Sequence[int] | None) -> dict[str, list[int]]:
    """The genome as an `ask` line has it: whole, or what differs from the parent's genome."""
    if parent is None:
        return {"genome": list(genome)}
    pairs = enumerate(zip(genome, parent, strict=True))
    return {"changed": [number for gene, (new, old) in pairs if new != old for number in (gene, new)]}


class Journal:
    """The journal of one search, open for reading and, while the search runs, for adding lines.

    Args:
        path: The file; made when missing, continued when it is there. None keeps no journal.
        header: What the scores belong to: plain data.
        writable: Whether lines may be added; otherwise it must be that of a finished search, and is only read.

    Raises:
        ConfigError: The header is no plain data.
        RunError: The file is no journal, is damaged, is another search's (the message names what differs), or a
            search that is running holds it.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any], *, writable: bool = True) -> None:
        self.path = None if path is None else Path(path)
        self.writable = writable
        try:
            plain = json.loads(json.dumps(header, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"context is no plain data: {error}.", allowed="What JSON can hold.") from error
        self.header = {"event": "search", "format": FORMAT, **plain}
        self._locked: BinaryIO | None = None
        self._lines: dict[tuple[str, int, int | None], dict[str, Any]] = {}
        if self.path is None:
            return
        self._locked = _lock(self.path) if writable else None
        try:
            self._read(self.path)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path) -> None:
        records = read_jsonl(path)
        if records:
            self._check_header(records[0])
        elif self.writable:
            self._check_empty(path)
            append_jsonl(path, self.header)
        for place, record in enumerate(records[1:], start=2):
            defect = _defect(record, raced=self.header.get("racing") is not None)
            if not defect and _key(record) in self._lines:
                defect = f"trial {record['number']} has a second line {record['event']!r}"
            if defect:
                raise RunError(f"{path}, line {place}, is damaged: {defect}.", remedy=START_ANEW)
            self._lines[_key(record)] = record

    def close(self) -> None:
        """Releases the file, so that another search may go on with it."""
        if self._locked is not None:
            self._locked.close()

    def recall(self, event: str, number: int, piece: int | None = None) -> dict[str, Any] | None:
        """The line that was in the file when the journal was opened, or None."""
        return self._lines.get((event, number, piece))

    def write(self, event: str, number: int, **record: Any) -> None:
        """Adds the line, flushed and fsynced, unless it was in the file when the journal was opened.

        Raises:
            RunError: Another line was in its place, or the line is new and the journal is only read.
        """
        if self.path is None:
            return
        line = {"event": event, "number": number, **record}
        found = self._lines.get(_key(line))
        if found is None and not self.writable:
            self.unfinished()
        elif found is None:
            if not self.path.is_file():
                raise RunError(f"{self.path} was removed while the search went on.", remedy="Start the search again.")
            append_jsonl(self.path, line)
        elif found != line:
            raise RunError(f"{self.path}: trial {number} is another genotype than is asked for now.", remedy=START_ANEW)

    def check_end(self, trials: int) -> None:
        """Raises RunError when the journal has trials beyond the end of the search, which has so many of them."""
        if extra := sorted(number for _, number, _ in self._lines if number >= trials):
            raise RunError(f"{self.path} has trial {extra[0]}, but the search ends after {trials}.", remedy=START_ANEW)

    def unfinished(self, *_: object) -> NoReturn:
        """Raises RunError: what is asked for is in the journal of a finished search only."""
        raise RunError(
            f"The search of {self.path} is not finished.",
            remedy="Go on with it first: `glora search RUN`, or from Python with its score function.",
        )

    def _check_header(self, found: Mapping[str, Any]) -> None:
        for key in self.header.keys() | found.keys():
            mine, theirs = self.header.get(key), found.get(key)
            if mine != theirs and not (key == "settings" and _is_shorter(mine, theirs)):
                differ = _difference(key, mine, theirs)
                raise RunError(
                    f"{self.path} is the journal of another search: {differ}.",
                    allowed="A search goes on with the space, settings, budgets, seed and context it began with.",
                    remedy="Use those, or another journal path.",
                )

    def _check_empty(self, path: Path) -> None:
        """Raises RunError unless a file without a whole line is empty or the beginning of this header.

        A search that is killed while it writes the header leaves its beginning; anything else is not ours to change.
        """
        begun = path.read_bytes() if path.exists() else b""
        if not json.dumps(self.header, separators=(",", ":")).encode().startswith(begun):
            raise RunError(f"{path} is no search journal.", remedy="Use another journal path.")


def _difference(name: str, mine: Any, theirs: Any) -> str:
    """What differs, in words: of a mapping the first item that does."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        key = next(key for key in (*mine, *theirs) if mine.get(key) != theirs.get(key))
        return _difference(f"{name}.{key}", mine.get(key), theirs.get(key))
    return f"its {name} is {_short(theirs)}, here it is {_short(mine)}"


def _is_shorter(mine: Any, theirs: Any) -> bool:
    """Whether the settings are those of the same search that ends after fewer generations: its scores come first."""
    few, many = ((each or {}).get("generations") for each in (mine, theirs))
    return type(few) is type(many) is int and few < many and {**mine, "generations": many} == theirs


def _key(line: Mapping[str, Any]) -> tuple[str, int, int | None]:
    return line["event"], line["number"], line.get("piece")


def _defect(line: Mapping[str, Any], *, raced: bool) -> str:
    """What is wrong with a line that no search writes; empty when nothing is."""
    event, number, piece = (line.get(name) for name in ("event", "number", "piece"))
    if event not in ("ask", "start", "score"):
        return f"there is no event {_short(event)}"
    if type(number) is not int or number < 0:
        return f"the number of a trial is {_short(number)}"
    if type(piece) not in (int, type(None)):
        return f"trial {number} has the piece {_short(piece)}"
    if event == "ask":
        return ""  # `write` compares it with what is asked now
    if (piece is not None) != raced:
        return f"trial {number} has the piece {piece!r}"
    if event == "start":
        return ""
    if not _finite(line.get("seconds")):
        return f"trial {number} has seconds={_short(line.get('seconds'))}"
    if raced:
        values = line.get("values")
        fine = isinstance(values, list) and all(value is None or _finite(value) for value in values)
        return "" if fine else f"trial {number} has values={reprlib.repr(values)}"
    score, error = line.get("score", "missing"), line.get("standard_error")
    if score is not None and not _finite(score):
        return f"trial {number} has score={_short(score)}"
    return (
        ""
        if _finite(error) and error is not None and error >= 0
        else f"trial {number} has standard_error={_short(error)}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _lock(path: Path) -> BinaryIO | None:
    """The file, locked for this search until it is closed or the process ends; None where the system has no locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.", remedy="Give the path of a file.") from error
    return lock(path, taken=f"Another search is running on {path}.")
