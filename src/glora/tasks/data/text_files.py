"""Records out of files: JSON, JSON lines, CSV, TSV, parquet and plain text, each with the line where it stands."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from glora.errors import DataError
from glora.tasks.data.scan import SUFFIXES as IMAGES
from glora.tasks.data.tables import parquet_rows, separator_of
from glora.tasks.rows import BadRow

__all__ = [
    "SUFFIXES",
    "Record",
    "SampleBy",
    "called",
    "first_record",
    "kind_of",
    "read_records",
    "text_files",
]

SampleBy: TypeAlias = Literal["line", "paragraph", "document"]
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
NO_DATA |= {"readme.txt", "license.txt", "licence.txt", "requirements.txt", "notes.txt"}
HOLDS = {"data", "rows", "examples", "instances", "train"}  # what a list of rows is called in an object
LAYOUT = f"Text data is in files that end in {', '.join(SUFFIXES)}; also packed with gzip."
PEEK = 1 << 20  # characters in which the first record is looked for


class Record(NamedTuple):
    """What stands in one place of a file.

    Attributes:
        where: The file and the line or row: `chats.jsonl, line 3`.
        fields: Its values by name.
    """

    where: str
    fields: Mapping[str, Any]


Found: TypeAlias = Record | BadRow


def kind_of(path: Path) -> str:
    """The ending that says how a file is read, without that of gzip."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def text_files(path: Path, *, beside_images: bool = True) -> list[Path]:
    """The files of text data anywhere in a folder, in order; those of plain text only where there are no others.

    Args:
        path: The folder.
        beside_images: Whether there may be images too; else nothing is found where one is, and the search stops there.
    """
    found = []
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        for file in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            if file.suffix.lower() in IMAGES and not beside_images:
                return []
            if kind_of(file) and file.name.lower() not in NO_DATA:
                found.append(file)
    return [file for file in found if kind_of(file) != ".txt"] or found


def first_record(path: Path) -> Mapping[str, Any] | None:
    """The fields of the first record of a file, read from its beginning alone; None where there is none."""
    kind = kind_of(path)
    if kind == ".txt":
        return {"text": ""}
    try:
        if kind == ".parquet":
            return next((each.fields for each in _parquet(path, path.name, most=1)), None)
        with _opened(path) as file:
            beginning = file.read(PEEK)
        if kind in (".csv", ".tsv"):
            found = _table(beginning.rpartition("\n")[0] if len(beginning) == PEEK else beginning, path.name, kind)
            return next((each.fields for each in found if isinstance(each, Record)), None)
        value, _ = json.JSONDecoder().raw_decode(beginning, beginning.index("{"))
        inside = _list_in(value)
        value = next((each for each in inside if isinstance(each, dict)), None) if inside else value
        return value if isinstance(value, dict) else None
    except (DataError, OSError, UnicodeDecodeError, ValueError):
        pass  # it is longer, or damaged
    return next((each.fields for each in _safely(path) if isinstance(each, Record)), None)


def _safely(path: Path) -> list[Found]:
    try:
        return read_records(path, path.name)
    except DataError:
        return []


def read_records(path: Path, name: str, *, sample_by: SampleBy = "line") -> list[Found]:
    """All records of a file, in order; what cannot be one is a bad row.

    Args:
        path: The file.
        name: What messages call it.
        sample_by: What a record of plain text is.

    Raises:
        DataError: The file cannot be read, or is damaged so that what follows cannot be told.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        return list(_parquet(path, name))
    text = _text(path)
    if not text.strip():
        raise DataError(f"{path} is empty.", remedy="Fill it, or remove it.")
    if kind in (".csv", ".tsv"):
        return _table(text, name, kind)
    if kind == ".txt":
        return _pieces(text, name, sample_by)
    return _unwrapped(_json(text, name), name)


def _text(path: Path) -> str:
    """The whole file as text: UTF-8, or UTF-16 where it begins with the mark of that.

    Raises:
        DataError: It cannot be read, or is of another encoding; the message has the line.
    """
    try:
        raw: bytes = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy="Check the file.") from error
    try:
        return raw.decode("utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}, is not UTF-8: the byte {raw[error.start]:#04x} is no part of a character.",
            remedy="Save the file as UTF-8.",
        ) from error


def _opened(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


# JSON.


def _json(text: str, name: str) -> list[Found]:
    """A list of objects, objects one after the other, or one a line: whatever the file holds."""
    start = _after_space(text, 0)
    line = text[start:].partition("\n")[0]
    try:
        json.loads(line)
        whole = text[start] != "["
    except ValueError:  # an object over several lines?
        whole = text[start] != "[" and (text[start] != "{" or line.rstrip().endswith("}"))
    if not whole:
        try:
            return list(_objects(text, start + (text[start] == "["), name))
        except DataError:
            lines = _object_a_line(text, name)
            if 2 * sum(isinstance(each, Record) for each in lines) <= len(lines):
                raise
            return lines  # of which the first one is damaged
    return _object_a_line(text, name)


def _object_a_line(text: str, name: str) -> list[Found]:
    return [_object_of(line, f"{name}, line {place}") for place, line in _lines(text) if line.strip()]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines and their numbers; only line ends count, as other separators may stand in JSON."""
    return ((place, line.rstrip("\r")) for place, line in enumerate(text.split("\n"), 1))


def _object_of(line: str, where: str) -> Found:
    try:
        return _as_record(json.loads(line), where)
    except ValueError as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return BadRow("of no JSON", f"is no JSON: {reason}", where=where)
    except RecursionError:
        return BadRow("of no JSON", "is no JSON: it is nested too deep", where=where)


def _as_record(value: Any, where: str) -> Found:
    if isinstance(value, str):
        value = {"text": value}
    if isinstance(value, dict):
        return Record(where, value)
    return BadRow("of another kind", f"is {called(value)}, where an object is needed", where=where)


def called(value: Any) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return {**names, str: "a text", type(None): "nothing"}.get(type(value), f"a {type(value).__name__}")


def _objects(text: str, place: int, name: str) -> Iterator[Found]:
    """The values from a place on, one after the other, commas between them or not; of one line also their number."""
    decoder, line, counted = json.JSONDecoder(), text.count("\n", 0, place) + 1, place
    closed, before = text[:place].strip() != "[", 0
    for entry in itertools.count(1):
        place = _after_space(text, place)
        if place == len(text) or text[place] == "]":
            if place == len(text) and not closed:
                raise DataError(f"{name} ends before its list does.", remedy="Copy it again: it is not whole.")
            if (after := _after_space(text, place + 1)) < len(text):
                line += text.count("\n", counted, after)
                raise DataError(
                    f"{name}, line {line}, goes on after its list has ended.", remedy="Make one list of all, or lines."
                )
            return
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deep"
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(
                f"{name}, line {at}{column}, is no JSON: {reason}.",
                remedy="Mend it there; of JSON lines, an object a line, single ones can be left out.",
            ) from error
        yield _as_record(value, f"{name}, line {line}" + (f", entry {entry}" if line == before else ""))
        before = line


def _after_space(text: str, place: int) -> int:
    """The place of the next character that is neither space nor comma."""
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place


def _unwrapped(found: list[Found], name: str) -> list[Found]:
    """The records of the only list of a file that is one object, such as `{"data": [...]}`; else as they are."""
    if len(found) != 1 or not isinstance(found[0], Record):
        return found
    inside = _list_in(found[0].fields)
    return [_as_record(value, f"{name}, entry {place}") for place, value in enumerate(inside, 1)] or found


def _list_in(fields: Mapping[str, Any]) -> list[Any]:
    """The only list of an object whose name says that it holds the rows."""
    lists = [value for key, value in fields.items() if key in HOLDS and isinstance(value, list)]
    return lists[0] if len(lists) == 1 else []


# Tables.


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module takes values of any length."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table(text: str, name: str, kind: str) -> list[Found]:
    """The lines of a table by the names in its first one."""
    first = text.lstrip().partition("\n")[0]
    sign = separator_of(first, kind)
    with _long_fields():
        rows = list(_rows(text, name, sign))
    if len(rows) < 2:
        raise DataError(f"{name} has no lines below its header.", remedy="Its first line names the columns.")
    header = [each.strip() for each in rows[0][1]]
    if odd := [each for each in header if not each or header.count(each) > 1]:
        what = f"several columns {odd[0]!r}" if odd[0] else "a column without a name"
        raise DataError(f"{name} has {what}.", remedy="Give every column its own name in the first line.")
    return [_line(header, row, f"{name}, line {number}") for number, row in rows[1:]]


def _rows(text: str, name: str, sign: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, and their numbers."""
    reader, line = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True), 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {line}, cannot be read: {error}.",
            remedy="Values with commas, quotes or line ends stand in quotes, and quotes in them are doubled.",
        ) from error


def _line(header: Sequence[str], row: Sequence[str], where: str) -> Found:
    if len(row) != len(header):
        return BadRow(
            "of another number of values", f"has {len(row)} values, and the header has {len(header)}", where=where
        )
    return Record(where, dict(zip(header, row, strict=True)))


def _parquet(path: Path, name: str, *, most: int | None = None) -> list[Record]:
    """The rows of a parquet file, or the first ones."""
    return [Record(f"{name}, row {place}", row) for place, row in enumerate(parquet_rows(path, most=most))]


# Plain text.


def _pieces(text: str, name: str, sample_by: SampleBy) -> list[Found]:
    """Lines, paragraphs between blank lines, or all of it."""
    if sample_by == "document":
        return [Record(name, {"text": text})]
    ended: Callable[[str], bool] = (lambda line: True) if sample_by == "line" else (lambda line: not line.strip())
    found, waiting, first = list[Found](), list[str](), 1
    for number, line in [*_lines(text), (0, "")]:
        if line.strip():
            first = first if waiting else number
            waiting.append(line)
        if waiting and ended(line):
            found.append(Record(f"{name}, line {first}", {"text": "\n".join(waiting)}))
            waiting = []
    return found
