"""`glora predict`: which images are meant, and how what a run predicts of them is written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glora.errors import DataError

__all__ = ["Given", "as_csv", "as_json", "as_lines", "images", "named", "readable"]

Records = Sequence[Mapping[str, Any]]


def images(paths: Sequence[Path]) -> list[Path]:
    """The images that files and folders name, each once; of a folder all that are anywhere in it, sorted.

    Raises:
        DataError: There is no such file, or a folder has no images.
    """
    from glora.tasks.data.scan import scan

    found: list[Path] = []
    for path in (path.expanduser() for path in paths):
        if not path.exists():
            raise DataError(f"There is no file and no folder {str(path)!r}.", remedy="Check the path.")
        inside = scan(path).images if path.is_dir() else [path]
        if not inside:
            raise DataError(f"There are no images in {str(path)!r}.", remedy="Name the files themselves.")
        found += inside
    return list(dict.fromkeys(found))


def readable(files: Sequence[Path], on_bad_image: str) -> tuple[list[Path], list[str]]:
    """The images that can be read, and what a user should be told of the others.

    Raises:
        DataError: Some cannot, and they are not to be skipped; or none can.
    """
    from glora.tasks.data.image_folder import skipped
    from glora.tasks.images import unreadable

    if on_bad_image not in ("error", "skip"):
        raise DataError(f"--on-bad-image {on_bad_image} is not allowed.", allowed="Allowed: error, skip.")
    bad = unreadable(files)
    notes = skipped(bad, None, on_bad_image)
    kept = [file for file in files if file not in bad]
    if not kept:
        raise DataError("None of the images can be read.", allowed=" ".join(notes))
    return kept, notes


class Given(NamedTuple):
    """What is to be predicted of.

    Attributes:
        what: What each is: `file` or `text`.
        called: What each is called.
        items: They themselves.
        notes: What a user should be told.
    """

    what: str
    called: Sequence[Any]
    items: Sequence[Any]
    notes: Sequence[str]


def named(files: Sequence[str], on_bad_image: str) -> Given:
    """The readable images that files and folders name; raises DataError as `images` and `readable`."""
    kept, notes = readable(images([Path(file) for file in files]), on_bad_image)
    return Given("file", kept, kept, notes)


def as_lines(files: Sequence[Any], records: Records) -> Iterator[str]:
    """A line for each file: what is predicted, with its probability."""
    for file, record in zip(files, records, strict=True):
        yield "  ".join([str(file), *_cells(record)])


def _cells(record: Mapping[str, Any]) -> Iterator[str]:
    chances = record.get("probabilities", {})
    for name, value in record.items():
        if name == "probability":
            yield _percent(value)
        elif isinstance(value, list):
            yield (
                ", ".join(f"{each} {_percent(chances[each])}" if each in chances else str(each) for each in value)
                or "–"
            )
        elif isinstance(value, float):
            yield f"{name} {value:.6g}"
        elif not isinstance(value, Mapping):
            yield str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def as_json(files: Sequence[Any], records: Records, what: str = "file") -> str:
    """A list with a record for each file, or whatever it is: all that the run predicts of it."""
    return json.dumps([{what: str(file), **record} for file, record in zip(files, records, strict=True)])


def as_csv(files: Sequence[Any], records: Records, what: str = "file") -> str:
    """A header and a line for each file, or whatever it is; probabilities are in a column for each class or label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [dict(_columns(record)) for record in records]
    writer.writerow([what, *(name for _, name in rows[0])])
    for file, row in zip(files, rows, strict=True):
        writer.writerow([file, *row.values()])
    return text.getvalue().removesuffix("\n")


def _columns(record: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Values by the group and the name of their column: a class may be called `class`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from (((name, str(each)), inner) for each, inner in value.items())
        else:
            yield ("", name), "|".join(map(str, value)) if isinstance(value, list) else value
