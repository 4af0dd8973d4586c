"""The search journal: an append-only file with one JSON line per score, from which a killed search goes on.

The first line is the header: the space's hash, the searcher, its settings, the seed, the budget. A genome is
written whole (`"genome"`), or as the genes that differ from its parent's (`"changed"`: gene, option, gene, ...).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glora.errors import RunError
from glora.results import append_jsonl, read_jsonl
from glora.space import BoundSpace

__all__ = ["Journal", "space_hash"]

FORMAT = 1


def space_hash(space: BoundSpace) -> str:
    """The SHA-256 of the space's rules and sites, as hexadecimal digits."""
    sites = [[name, asdict(site)] for name, site in space.sites.items()]
    text = json.dumps([space.rules.to_json(), sites], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """The scores that a search has made, kept in a file; without a path it keeps none.

    Args:
        path: The file; made when missing, continued when it is there.
        header: What the scores belong to: plain data.

    Raises:
        RunError: The file is no journal, or the journal of another search; the message names what differs.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.header = {"event": "search", "format": FORMAT, **json.loads(json.dumps(header))}
        self._scores: dict[int, dict[str, Any]] = {}
        if self.path is None:
            return
        records = read_jsonl(self.path)
        if records:
            self._check(records[0])
            self._scores = {record["number"]: record for record in records[1:] if record.get("event") == "score"}
        else:
            self._check_unfinished(self.path)
            append_jsonl(self.path, self.header)

    def recall(
        self, number: int, genome: Sequence[int], base: Sequence[int] | None
    ) -> tuple[float, float, float] | None:
        """Score, standard error and seconds of the trial, or None when it was not scored yet.

        Raises:
            RunError: The journal has another genome under this number.
        """
        record = self._scores.get(number)
        if record is None:
            return None
        if not _genes(genome, base).items() <= record.items():
            raise RunError(
                f"{self.path}: trial {number} is another genotype than the searcher asks for now.",
                remedy="It was written by another version of glora, or edited: start on a new journal.",
            )
        score, error, seconds = record["score"], record["standard_error"], record["seconds"]
        return (-math.inf if score is None else score), error, seconds  # JSON has no -inf

    def write(self, number: int, genome: Sequence[int], base: Sequence[int] | None, record: Mapping[str, Any]) -> None:
        """The trial's line is in the file, flushed and fsynced."""
        if self.path is not None:
            append_jsonl(self.path, {"event": "score", "number": number, **record, **_genes(genome, base)})

    def finish(self, trials: int) -> None:
        """Nothing when the journal holds no trial beyond the search's end.

        Raises:
            RunError: It does: it was edited, or written by another version.
        """
        if extra := sorted(number for number in self._scores if number >= trials):
            raise RunError(
                f"{self.path} has trial {extra[0]}, but the search ends after {trials}.",
                remedy="It was written by another version of glora, or edited: start on a new journal.",
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


def _genes(genome: Sequence[int], base: Sequence[int] | None) -> dict[str, list[int]]:
    if base is None:
        return {"genome": list(genome)}
    pairs = enumerate(zip(genome, base, strict=True))
    return {"changed": [number for gene, (new, old) in pairs if new != old for number in (gene, new)]}
