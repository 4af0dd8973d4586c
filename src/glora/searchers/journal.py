"""The search journal: an append-only file from which a killed search goes on to the same end.

One JSON line each: first the header (the space's hash, the searcher, its settings, the seed, the budget), then an
`ask` for every candidate, a `start` for every job handed out, a `score` for every job done. A job is one candidate on
all examples, or on one `piece` of them in a race. A genome is written whole (`"genome"`), or as the genes that differ
from its parent's (`"changed"`: gene, option, gene, ...). With several workers the order of the lines may differ from
run to run; the lines do not, up to `seconds`.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from glora.errors import ConfigError, RunError
from glora.files import append_jsonl, read_jsonl
from glora.space import BoundSpace

__all__ = ["Journal", "genes", "space_hash"]

FORMAT = 2
AGAIN = "It was written by another version of glora, or edited: start on a new journal."


def space_hash(space: BoundSpace) -> str:
    """The SHA-256 of the space's rules and sites, as hexadecimal digits."""
    sites = [[name, asdict(site)] for name, site in space.sites.items()]
    text = json.dumps([space.rules.to_json(), sites], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def genes(genome: Sequence[int], base: Sequence[int] | None) -> dict[str, list[int]]:
    """The genome as a journal has it: whole, or what differs from the parent's genome."""
    if base is None:
        return {"genome": list(genome)}
    pairs = enumerate(zip(genome, base, strict=True))
    return {"changed": [number for gene, (new, old) in pairs if new != old for number in (gene, new)]}


class Journal:
    """What a search has said so far, each line once; without a path it forgets.

    Args:
        path: The file; made when missing, continued when it is there.
        header: What the scores belong to: plain data.
        grows: Whether lines may be added; otherwise it must be that of a finished search, and is only read.

    Raises:
        ConfigError: The header is no plain data.
        RunError: The file is no journal, is damaged, is another search's (the message names what differs), or a
            search that is running holds it.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any], *, grows: bool = True) -> None:
        self.path = None if path is None else Path(path)
        self.grows = grows
        try:
            plain = json.loads(json.dumps(header, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"context is no plain data: {error}.", allowed="What JSON can hold.") from error
        self.header = {"event": "search", "format": FORMAT, **plain}
        self._held: BinaryIO | None = None
        self._lines: dict[tuple[str, int, int | None], dict[str, Any]] = {}
        if self.path is None:
            return
        self._held = _lock(self.path) if grows else None
        try:
            self._begin(self.path)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: Path) -> None:
        records = read_jsonl(path)
        if records:
            self._check(records[0])
        elif self.grows:
            self._check_unfinished(path)
            append_jsonl(path, self.header)
        for place, record in enumerate(records[1:], start=2):
            wrong = _wrong(record, raced=self.header.get("racing") is not None)
            if not wrong and _key(record) in self._lines:
                wrong = f"trial {record['number']} has a second line {record['event']!r}"
            if wrong:
                raise RunError(f"{path}, line {place}, is damaged: {wrong}.", remedy=AGAIN)
            self._lines[_key(record)] = record

    def close(self) -> None:
        """Another search may go on with it."""
        if self._held is not None:
            self._held.close()

    def recall(self, event: str, number: int, piece: int | None = None) -> dict[str, Any] | None:
        """The line that the journal began with, or None."""
        return self._lines.get((event, number, piece))

    def write(self, event: str, number: int, **record: Any) -> None:
        """The line is in the file, flushed and fsynced, and there only once.

        Raises:
            RunError: The journal began with another line in its place.
        """
        if self.path is None:
            return
        line = {"event": event, "number": number, **record}
        found = self._lines.get(_key(line))
        if found is None and not self.grows:
            self.unfinished()
        elif found is None:
            append_jsonl(self.path, line)
        elif found != line:
            raise RunError(f"{self.path}: trial {number} is another genotype than is asked for now.", remedy=AGAIN)

    def finish(self, trials: int) -> None:
        """Nothing when the journal holds no trial beyond the search's end.

        Raises:
            RunError: It does: it was edited, or written by another version.
        """
        if extra := sorted(number for _, number, _ in self._lines if number >= trials):
            raise RunError(f"{self.path} has trial {extra[0]}, but the search ends after {trials}.", remedy=AGAIN)

    def unfinished(self, *_: object) -> NoReturn:
        """Raises RunError: something is asked of the search that only a finished one has."""
        raise RunError(
            f"The search of {self.path} is not finished.",
            remedy="Go on with it first: `glora search RUN`, or from Python with its score function.",
        )

    def _check(self, found: Mapping[str, Any]) -> None:
        for key in self.header.keys() | found.keys():
            mine, theirs = self.header.get(key), found.get(key)
            if mine != theirs:
                raise RunError(
                    f"{self.path} is the journal of another search: its {key} is {theirs!r}, here it is {mine!r}.",
                    allowed="A search goes on with the space, settings, budgets, seed and context it began with.",
                    remedy="Use those, or another journal path.",
                )

    def _check_unfinished(self, path: Path) -> None:
        """A file without a whole line is a header cut short by a kill; anything else is not ours to cut."""
        begun = path.read_bytes() if path.exists() else b""
        if not json.dumps(self.header, separators=(",", ":")).encode().startswith(begun):
            raise RunError(f"{path} is no search journal.", remedy="Use another journal path.")


def _key(line: Mapping[str, Any]) -> tuple[str, int, int | None]:
    return line["event"], line["number"], line.get("piece")


def _wrong(line: Mapping[str, Any], *, raced: bool) -> str:
    """What no search writes in a line; empty when it may be one."""
    event, number, piece = (line.get(name) for name in ("event", "number", "piece"))
    if event not in ("ask", "start", "score"):
        return f"there is no event {event!r}"
    if type(number) is not int or number < 0:
        return f"the number of a trial is {number!r}"
    if event == "ask":
        return ""  # it is compared with what is asked
    if (piece is not None) != raced or type(piece) not in (int, type(None)):
        return f"trial {number} has the piece {piece!r}"
    if event == "start":
        return ""
    if not _finite(line.get("seconds")):
        return f"trial {number} has seconds={line.get('seconds')!r}"
    if raced:
        values = line.get("values")
        fine = isinstance(values, list) and all(value is None or _finite(value) for value in values)
        return "" if fine else f"trial {number} has values={reprlib.repr(values)}"
    score, error = line.get("score", "missing"), line.get("standard_error")
    if score is not None and not _finite(score):
        return f"trial {number} has score={score!r}"
    return "" if _finite(error) and error is not None and error >= 0 else f"trial {number} has standard_error={error!r}"


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _lock(path: Path) -> BinaryIO | None:
    """The file, held for this search until it is closed or its process ends; None where the system has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.", remedy="Give the path of a file.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(
            f"Another search is running on {path}.", remedy="Wait for its end, or stop it; a killed one holds nothing."
        ) from None
    except OSError:  # a file system without locks
        pass
    return file
