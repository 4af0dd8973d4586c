"""A table of images: `images.csv`, .tsv or .parquet beside them, a column of files and others of targets."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from glora.errors import DataError, did_you_mean, listed
from glora.tasks.data.image_folder import TABLES, skipped
from glora.tasks.data.tables import parquet_rows, separator_of
from glora.tasks.images import ImageSet, unreadable
from glora.tasks.objective import Objective, Targets
from glora.tasks.splits import SPLITS
from glora.tasks.task import DataSettings, OnBadImage, Pool, Task, assemble

__all__ = ["ImageTable"]

NAMES = tuple(f"images{suffix}" for suffix in TABLES)  # in a folder
Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
LAYOUT = (
    "A folder with images.csv, or a .csv, .tsv or .parquet file: its first line names the columns, every other line is "
    "an image. Values are separated by commas, semicolons or tabs."
)


class ImageTable(DataSettings):
    """A table with a line per image: its file, relative to the table, what is to be predicted, maybe its split."""

    reads_paths = True

    format: Literal["image_table"] = Field(
        "image_table", description="A .csv, .tsv or .parquet file that names images."
    )
    columns: Columns = Field((), description="Columns to predict; every other column if not given.")
    image: str | None = Field(None, description="Column of the files; the first if not given.")
    split: str = Field("split", description="Column of train, val and test, where there is one.")
    on_bad_image: OnBadImage = Field("error", description="What to do with unreadable images.")

    @classmethod
    def detects(cls, path: Path) -> bool:
        return path.suffix.lower() in TABLES or any((path / name).is_file() for name in NAMES)

    def load(self, objective: Objective) -> Task:
        table, lines, notes = self._lines()
        columns = self._targets(table)
        pools = {name: _pool(table, some, columns) for name, some in self._splits(table, lines).items()}
        name = table.path.parent.name if table.path.name in NAMES else table.path.stem
        return assemble(name, pools, objective, self, notes=notes, root=table.path.parent)

    def load_all(self, objective: Objective) -> tuple[ImageSet, list[str]]:
        table, lines, notes = self._lines()
        pool = _pool(table, lines, self._targets(table))
        return ImageSet(pool.items, objective.encode(pool.targets)), notes

    def _lines(self) -> tuple[_Table, list[_Line], list[str]]:
        """The table, its lines whose image can be read, and what a user should be told."""
        path = Path(self.source).expanduser()
        table = _read(_in_folder(path) if path.is_dir() else path)
        image = table.place(self.image) if self.image is not None else 0
        lines = [_Line(number, row, _file(table, number, row[image])) for number, row in table.rows]
        bad = unreadable(list(dict.fromkeys(line.file for line in lines)))
        notes = skipped(bad, table.path.parent, self.on_bad_image)
        good = [line for line in lines if line.file not in bad]
        if not good:
            raise DataError(f"{table.path} names no image that can be read.", remedy="Check the files.")
        return table, good, [*notes, *_repeated(good, table.unit)]

    def _targets(self, table: _Table) -> list[int]:
        """The places of the columns to predict."""
        if self.columns:
            return [table.place(name) for name in self.columns]
        image = table.header[0] if self.image is None else self.image
        found = [place for place, name in enumerate(table.header) if name not in (image, self.split)]
        if not found:
            raise DataError(
                f"{table.path} has no column to predict beside {listed(table.header, n=9)}.", allowed=LAYOUT
            )
        return found

    def _splits(self, table: _Table, lines: Sequence[_Line]) -> dict[str, list[_Line]]:
        """The lines of each split that the table names; all of them under `""` where it names none."""
        if self.split not in table.header:
            if self.split != type(self).model_fields["split"].default:
                table.place(self.split)
            return {"": list(lines)}
        place, found = table.header.index(self.split), dict[str, list[_Line]]()
        for line in lines:
            name = SPLITS.get(line.row[place].strip().lower())
            if name is None:
                raise DataError(
                    f"{table.path.name}, {table.unit} {line.number}, has the split {line.row[place]!r}.",
                    allowed="Allowed: train, val and test.",
                )
            found.setdefault(name, []).append(line)
        if not {"train", "test"} <= found.keys():
            raise DataError(
                f"The column {self.split!r} of {table.path.name} has {listed(sorted(found))} alone.",
                allowed="train, test and maybe val.",
                remedy="Name the missing split, or remove the column: the images are then split by chance.",
            )
        return {name: found[name] for name in ("train", "val", "test") if name in found}


@dataclass(frozen=True)
class _Table:
    """A table as text.

    Attributes:
        path: The file.
        header: The names of the columns.
        rows: The number of each line, and its values.
        unit: What is numbered: a line, or a row.
    """

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]
    unit: str = "line"

    def place(self, column: str) -> int:
        """Where a column is.

        Raises:
            DataError: There is none of this name.
        """
        if column in self.header:
            return self.header.index(column)
        raise DataError(
            f"{self.path} has no column {column!r}.",
            allowed=f"Its columns are {listed(self.header, n=30)}.",
            remedy=did_you_mean(column, self.header),
        )


@dataclass(frozen=True)
class _Line:
    """A line of the table: its number, its values, and the image that it names."""

    number: int
    row: list[str]
    file: Path


def _in_folder(path: Path) -> Path:
    """The table in a folder.

    Raises:
        DataError: There are several.
    """
    found = [path / name for name in NAMES if (path / name).is_file()]
    if len(found) > 1:
        raise DataError(
            f"{path} has the tables {listed([each.name for each in found])}.", remedy="Name one of them: --data FILE"
        )
    return found[0] if found else path / NAMES[0]


def _read(path: Path) -> _Table:
    """The table in the file.

    Raises:
        DataError: There is none, it is no table, or a line has not as many values as the header.
    """
    if not path.is_file():
        raise DataError(f"There is no table {str(path)!r}.", allowed=LAYOUT)
    found = _parquet(path) if path.suffix.lower() == ".parquet" else _lines_of(path)
    if odd := [name for name in found.header if not name or found.header.count(name) > 1]:
        what = f"several columns {odd[0]!r}" if odd[0] else "a column without a name"
        raise DataError(f"{path} has {what}.", remedy="Give every column its own name in the first line.")
    if len(found.header) == 1:
        raise DataError(f"{path} has one column alone, {found.header[0]!r}.", allowed=LAYOUT)
    for number, row in found.rows:
        if len(row) != len(found.header):
            raise DataError(
                f"{path.name}, line {number}, has {len(row)} values, and the header {len(found.header)}.",
                remedy="Mend the line: values are separated as in the header, and one with that sign stands in quotes.",
            )
    return found


def _lines_of(path: Path) -> _Table:
    """A .csv or .tsv file."""
    rows, line = list[tuple[int, list[str]]](), 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            reader = csv.reader(file, strict=True, delimiter=separator_of(first, path.suffix.lower()))
            for row in reader:
                if any(map(str.strip, row)):  # no blank line
                    rows.append((line, row))
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        where = f"{path}, line {line}," if isinstance(error, csv.Error) else str(path)
        raise DataError(f"{where} cannot be read: {error}.", remedy="Save it as comma-separated UTF-8.") from error
    if len(rows) < 2:
        raise DataError(f"{path} has no lines below its header.", allowed=LAYOUT)
    return _Table(path.resolve(), [name.strip() for name in rows[0][1]], rows[1:])


def _parquet(path: Path) -> _Table:
    """A .parquet file; its rows are counted from 0."""
    found = parquet_rows(path)
    if not found:
        raise DataError(f"{path} has no rows.", allowed=LAYOUT)
    rows = [(place, list(map(_text, row.values()))) for place, row in enumerate(found)]
    return _Table(path.resolve(), list(found[0]), rows, unit="row")


def _text(value: Any) -> str:
    """A value as a table of text has it: truth as 0 and 1, several labels with `|` between them."""
    if isinstance(value, bool):
        return str(int(value))
    return "|".join(map(_text, value)) if isinstance(value, list) else "" if value is None else str(value)


def _file(table: _Table, number: int, name: str) -> Path:
    """The image that a line names.

    Raises:
        DataError: It is not there.
    """
    if not name.strip():
        raise DataError(
            f"{table.path.name}, {table.unit} {number}, names no image.", remedy=f"Fill it or remove the {table.unit}."
        )
    file = table.path.parent / name.strip()
    if not file.is_file():
        beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise DataError(
            f"{table.path.name}, {table.unit} {number}, names the image {name.strip()!r}, which is not there.",
            allowed=f"Names are relative to {str(table.path.parent)!r}.",
            remedy=did_you_mean(file.name, beside) or f"Add the image or remove the {table.unit}.",
        )
    return file


def _repeated(lines: Sequence[_Line], unit: str) -> list[str]:
    """What is to be told of images that several lines name: splits may share them."""
    seen: dict[Path, list[int]] = {}
    for line in lines:
        seen.setdefault(line.file, []).append(line.number)
    several = [(file.name, numbers) for file, numbers in seen.items() if len(numbers) > 1]
    if not several:
        return []
    name, numbers = several[0]
    where = listed(map(str, numbers), n=9)
    count = f"{len(several)} images are" if len(several) > 1 else "1 image is"
    return [f"{count} named more than once, and may be in train and in test: {name} in {unit}s {where}."]


def _pool(table: _Table, lines: Sequence[_Line], columns: Sequence[int]) -> Pool:
    """The images of these lines, and what is to be predicted of them."""
    targets = Targets(
        tuple(table.header[place] for place in columns),
        [tuple(line.row[place].strip() for place in columns) for line in lines],
        what=table.path.name,
        lines=[line.number for line in lines],
        places=[f"{table.path.name}, row {line.number}" for line in lines] if table.unit == "row" else (),
    )
    return Pool([line.file for line in lines], targets)
