"""A table of images: `images.csv` beside them, a column of file names and one or more columns of targets."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glora.errors import DataError, listed, nearest
from glora.tasks.data.image_folder import skipped
from glora.tasks.images import ImageSet, unreadable
from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, OnBadImage, Pool, Task, assemble

__all__ = ["ImageTable"]

NAME = "images.csv"
SPLITS = ("train", "val", "test")
_LAYOUT = "A folder with images.csv, or a .csv file; its first line names the columns, and one holds file names."


class ImageTable(DataSettings):
    """A .csv file with a line per image: its file, relative to the table, what is to be predicted, maybe its split."""

    reads_paths = True

    format: Literal["image_table"] = Field("image_table", description="A .csv file that names images.")
    columns: tuple[str, ...] = Field((), description="Columns to predict; every other column if not given.")
    image: str | None = Field(None, description="Column of the files; the first if not given.")
    split: str = Field("split", description="Column of train, val and test, where there is one.")
    on_bad_image: OnBadImage = Field("error", description="What to do with unreadable images.")

    @classmethod
    def detects(cls, path: Path) -> bool:
        return path.suffix.lower() == ".csv" or (path / NAME).is_file()

    def load(self, objective: Objective) -> Task:
        table = self._table()
        header, rows = _rows(table)
        image, columns, split = self._columns(table, header)
        rows, files, notes = self._readable(table, rows, image)
        pools = {}
        for name in _splits(table, rows, split):
            mine = [k for k, row in enumerate(rows) if not name or row[split].strip().lower() == name]
            targets = Targets(columns, [tuple(rows[k][column] for column in columns) for k in mine], what=table.name)
            pools[name] = Pool([files[k] for k in mine], targets)
        name = table.parent.name if table.name == NAME else table.stem
        return assemble(name, pools, objective, self, notes=notes, root=table.parent)

    def load_all(self, objective: Objective) -> tuple[ImageSet, list[str]]:
        table = self._table()
        header, rows = _rows(table)
        image, columns, _ = self._columns(table, header)
        rows, files, notes = self._readable(table, rows, image)
        targets = Targets(columns, [tuple(row[column] for column in columns) for row in rows], what=table.name)
        return ImageSet(files, objective.encode(targets)), notes

    def _table(self) -> Path:
        path = Path(self.source).expanduser()
        table = path / NAME if path.is_dir() else path
        if not table.is_file():
            raise DataError(f"There is no table {str(table)!r}.", allowed=_LAYOUT)
        return table.resolve()

    def _columns(self, table: Path, header: Sequence[str]) -> tuple[str, tuple[str, ...], str]:
        """The column of files, those to predict, and that of splits."""
        image = self.image or header[0]
        others = tuple(name for name in header if name not in (image, self.split))
        for name in (image, *self.columns):
            if name not in header:
                near = nearest(name, header, n=1)
                raise DataError(
                    f"{table} has no column {name!r}.",
                    allowed=f"Its columns are {listed(header, n=30)}.",
                    remedy=f"Did you mean {near[0]!r}?" if near else "",
                )
        columns = self.columns or others
        if not columns:
            raise DataError(f"{table} has no column to predict.", allowed=_LAYOUT)
        return image, columns, self.split

    def _readable(
        self, table: Path, rows: list[dict[str, Any]], image: str
    ) -> tuple[list[dict[str, Any]], list[Path], list[str]]:
        """The rows whose image can be read, their files, and what a user should be told."""
        files = [table.parent / row[image] for row in rows]
        for place, file in enumerate(files):
            if not file.is_file():
                raise DataError(
                    f"{table.name}, line {place + 2}, names the image {rows[place][image]!r}, which is not there.",
                    allowed=f"Names are relative to {str(table.parent)!r}.",
                    remedy="Add the image or remove the line.",
                )
        bad = unreadable(list(dict.fromkeys(files)))
        notes = skipped(bad, table.parent, self.on_bad_image)
        kept = [place for place, file in enumerate(files) if file not in bad]
        return [rows[place] for place in kept], [files[place] for place in kept], notes


def _rows(table: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the columns, and every line as a mapping from them."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {error}.", remedy="Save it as comma-separated UTF-8.") from error
    if not header or not rows:
        raise DataError(f"{table} has no lines below its header.", allowed=_LAYOUT)
    for place, row in enumerate(rows):
        if None in row or None in row.values():
            raise DataError(
                f"{table.name}, line {place + 2}, has not as many values as the header's {len(header)} columns.",
                remedy="Mend the line; values with commas stand in quotes.",
            )
    return header, rows


def _splits(table: Path, rows: Sequence[dict[str, Any]], split: str) -> list[str]:
    """The splits that the table names; `[""]` where it names none."""
    if split not in rows[0]:
        return [""]
    found = {row[split].strip().lower() for row in rows}
    if unknown := sorted(found - set(SPLITS)):
        raise DataError(
            f"{table.name} has the split {unknown[0]!r} in its column {split!r}.", allowed=f"Allowed: {listed(SPLITS)}."
        )
    if not {"train", "test"} <= found:
        raise DataError(
            f"The column {split!r} of {table.name} names {listed(sorted(found))}.", allowed="train and test."
        )
    return [name for name in SPLITS if name in found]
