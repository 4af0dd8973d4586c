"""`glora predict` of texts: what is meant by its words, and how answers are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glora.cli import predictions
from glora.cli.predictions import Given
from glora.errors import DataError

if TYPE_CHECKING:
    from glora.runs.loaded import LoadedRun

__all__ = ["as_lines", "read_for", "readable", "without"]

SHOWN = 60  # characters of a text that stand before its prediction


def readable(words: Sequence[str], on_bad_row: str) -> Given:
    """The texts, or the rows of texts, that words mean.

    A word that is a file of texts means its rows, of plain text its lines; any other is itself a text.

    Raises:
        DataError: A file cannot be read, or a row is bad and not to be skipped.
    """
    from glora.tasks.data.text_files import Record, kind_of, read_records
    from glora.tasks.rows import BadRow, told

    called, found, bad = list[str](), list[Any](), list[BadRow]()
    for word in words:
        path = Path(word).expanduser()
        is_name = len(word) < 256 and "\n" not in word
        if not (is_name and path.is_file()):
            if is_name and word and path.is_dir():
                raise DataError(f"{word!r} is a folder.", allowed="A text, or a file of texts.")
            if is_name and " " not in word and kind_of(path):
                raise DataError(f"There is no file {word!r}.", allowed="A text, or a file of texts.")
            called.append(_short(word))
            found.append(word)
            continue
        for record in read_records(path, path.name):
            if isinstance(record, Record):
                called.append(record.where)
                found.append(record.fields["text"] if kind_of(path) == ".txt" else record.fields)
            else:
                bad.append(record)
    try:
        notes = told(bad, len(bad) + len(found), on_bad_row)
    except DataError as error:
        remedy = error.remedy.replace("data.on_bad_row=skip", "--on-bad-row skip")
        raise DataError(error.cause, allowed=error.allowed, remedy=remedy) from error
    return Given("text", called, found, notes)


def read_for(run: LoadedRun, max_tokens: int) -> Callable[[Sequence[str], str], Given]:
    """Reads the texts that words mean, as far as the run can predict them; see `readable`."""

    def read(words: Sequence[str], on_bad_row: str) -> Given:
        given = readable(words, on_bad_row)
        return without(given, run.faults(given.items, max_tokens=max_tokens), on_bad_row)

    return read


def without(given: Given, faults: Mapping[int, DataError], on_bad_row: str) -> Given:
    """What can be predicted.

    Raises:
        DataError: An input cannot, and is not to be skipped; or none can.
    """
    if not faults:
        return given
    place, error = min(faults.items())
    cause = error.cause.replace(f"Input {place + 1}", given.called[place], 1)
    if on_bad_row != "skip" or len(faults) == len(given.items):
        skip = "leave such out with --on-bad-row skip." if len(faults) < len(given.items) else ""
        remedy = ", or ".join(filter(None, (error.remedy.rstrip("."), skip)))
        raise DataError(cause, allowed=error.allowed, remedy=remedy[:1].upper() + remedy[1:]) from error
    kept = [k for k in range(len(given.items)) if k not in faults]
    note = f"Skipped {len(faults):,} of {len(given.items):,} inputs; the first: {cause}"
    return Given(given.what, [given.called[k] for k in kept], [given.items[k] for k in kept], [*given.notes, note])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def as_lines(called: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each text: a class, a choice; or how well a known answer is expected, and what the model says."""
    for name, record in zip(called, records, strict=True):
        parts = [name]
        if "answer" in record:
            parts += [record["answer"], f"{100 * record['probability']:.1f} %"]
        if "loss" in record:
            parts.append(f"loss {record['loss']:.3f} in {record['tokens']:,} tokens")
        if "reply" in record:
            parts.append(json.dumps(record["reply"], ensure_ascii=False))
        yield "  ".join(parts) if len(parts) > 1 else next(predictions.as_lines([name], [record]))
