"""Images of Hugging Face's `datasets`: folders of `save_to_disk`, parquet files, or a name where there is a network."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glora import registry
from glora.errors import DataError, did_you_mean, listed
from glora.tasks.data.image_folder import skipped
from glora.tasks.data.image_table import Columns
from glora.tasks.data.tables import has_images, parquet_rows
from glora.tasks.images import ImageSet, StoredImage, unreadable
from glora.tasks.objective import Objective, Targets
from glora.tasks.splits import SPLITS
from glora.tasks.task import DataSettings, OnBadImage, Pool, Task, assemble, joined

__all__ = ["MARKS", "HuggingFace", "class_names", "loaded", "named_splits"]

MARKS = ("dataset_dict.json", "state.json", "dataset_info.json")  # what save_to_disk leaves
LABELS = ("label", "labels", "fine_label", "class", "target", "category", "y")
LAYOUT = (
    "A folder that `save_to_disk` of the package datasets wrote, parquet files that hold images, or a data set's name "
    "on the Hugging Face hub."
)


class HuggingFace(DataSettings):
    """Images of Hugging Face's datasets: of save_to_disk, in parquet files, or by name with format=hugging_face."""

    reads_paths = True

    format: Literal["hugging_face"] = Field("hugging_face", description="Images kept by the package datasets.")
    config: str | None = Field(None, description="Which of the data set's configurations, where it has several.")
    image: str | None = Field(None, description="Column of the images; the first column of images if not given.")
    columns: Columns = Field((), description="Columns to predict; the first of class labels if not given.")
    on_bad_image: OnBadImage = Field("error", description="What to do with unreadable images.")

    @classmethod
    def detects(cls, path: Path) -> bool:
        return _saved(path) or bool(_shards(path))

    def load(self, objective: Objective) -> Task:
        pools, notes = self._pools(objective)
        name = Path(self.source).name
        return assemble(name, pools, objective, self, notes=notes)

    def load_all(self, objective: Objective) -> tuple[ImageSet, list[str]]:
        pools, notes = self._pools(objective)
        return joined(pools, objective, make=ImageSet), notes

    def _pools(self, objective: Objective) -> tuple[dict[str, Pool], list[str]]:
        """The images of each split that the data names; all of them under `""` where it has one alone."""
        parts, notes = named_splits(loaded(self.source, self.config), self.source)
        separator = getattr(objective, "separator", "|")
        tables = {split: _Table(part, split, self) for split, part in parts.items()}
        pools = {}
        for split, table in tables.items():
            items = table.items()
            rows = table.rows(separator)
            bad = unreadable(items)
            notes += skipped(bad, None, self.on_bad_image)
            good = [place for place, item in enumerate(items) if item not in bad]
            targets = Targets(table.columns, [rows[place] for place in good], names=table.names, what=split or "all")
            pools[split] = Pool([items[place] for place in good], targets)
        return pools, notes


@dataclass(frozen=True, eq=False)
class _Stored:
    """An encoded image in a row of a table.

    Attributes:
        table: The rows, their images not decoded.
        column: The column of the images.
        row: Which row.
        split: What the table is called.
    """

    table: Any
    column: str
    row: int
    split: str

    def __str__(self) -> str:
        return f"{self.split or 'row'}[{self.row}]"

    def _bytes(self) -> bytes:
        found: bytes = self.table[self.row][self.column]["bytes"]
        return found

    def open(self) -> Any:
        pillow = registry.optional_import("PIL.Image", extra="vision", purpose="Reading images")
        return pillow.open(io.BytesIO(self._bytes()))

    def identity(self) -> bytes:
        return hashlib.sha256(self._bytes()).digest()


class _Table:
    """The rows of one split, and which of its columns are read."""

    def __init__(self, rows: Any, split: str, settings: HuggingFace) -> None:
        self.split = split
        self.features: Mapping[str, Any] = rows.features
        self.where = f"The data set {settings.source!r}"
        self.image = self._column(settings.image) if settings.image else self._first("Image", "images", "data.image")
        self.columns = tuple(map(self._column, settings.columns)) or (self._label(),)
        encoded = rows.cast_column(self.image, _datasets().Image(decode=False))
        self.data = encoded.select_columns([self.image])
        self.targets = rows.select_columns(list(self.columns))

    def _column(self, name: str) -> str:
        if name in self.features:
            return name
        raise DataError(
            f"{self.where} has no column {name!r}.",
            allowed=f"Its columns are {listed(self.features, n=30)}.",
            remedy=did_you_mean(name, self.features),
        )

    def _first(self, kind: str, what: str, setting: str) -> str:
        found = [name for name, feature in self.features.items() if type(feature).__name__ == kind]
        if not found:
            raise DataError(
                f"{self.where} has no column of {what}.",
                allowed=f"Its columns are {listed(self.features, n=30)}.",
                remedy=f"Name it: --set {setting}=NAME",
            )
        return found[0]

    def _label(self) -> str:
        """The column of class labels; else one that is called so; else the only other one."""
        kinds = [name for name, feature in self.features.items() if class_names(feature)]
        called = [name for name in LABELS if name in self.features]
        others = [name for name in self.features if name != self.image]
        found = kinds or called or (others if len(others) == 1 else [])
        return found[0] if found else self._first("ClassLabel", "class labels", "data.columns")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, where a single column has one class a row."""
        feature = self.features[self.columns[0]]
        single = len(self.columns) == 1 and type(feature).__name__ == "ClassLabel"
        return class_names(feature) if single else ()

    def items(self) -> list[Path | StoredImage]:
        """An image of every row: its file where it is one, else where its bytes are."""
        found = list[Path | StoredImage]()
        for row, record in enumerate(self.data):
            image = record[self.image]
            if image is None or (image["bytes"] is None and not image["path"]):
                raise DataError(
                    f"Row {row} of {self.split or 'the data'} has no image.", remedy="Fill it, or leave it out."
                )
            stored = image["bytes"] is not None
            found.append(_Stored(self.data, self.image, row, self.split) if stored else Path(image["path"]))
        return found

    def rows(self, separator: str) -> list[tuple[Any, ...]]:
        """The targets of every row; several labels in one value stand in one text."""
        values = [self._values(name, separator) for name in self.columns]
        return list(zip(*values, strict=True))

    def _values(self, name: str, separator: str) -> list[Any]:
        feature, names = self.features[name], class_names(self.features[name])
        values = list(self.targets[name])
        if type(feature).__name__ != "ClassLabel":
            return [_joined(value, names, separator) for value in values]
        if without := [row for row, value in enumerate(values) if value is None or value < 0]:
            raise DataError(
                f"{len(without)} rows of {self.split or 'the data'} have no class in {name!r}, as row {without[0]}.",
                remedy="Leave such rows out, or the whole split where its labels are not published.",
            )
        return values if self.names else [names[value] for value in values]


def _joined(value: Any, names: Sequence[str], separator: str) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return separator.join(str(names[each] if names and isinstance(each, int) else each) for each in value)


def class_names(feature: Any) -> tuple[str, ...]:
    """The names of the classes in a column of one or several a row."""
    inner = getattr(feature, "feature", feature)
    return tuple(inner.names or ()) if type(inner).__name__ == "ClassLabel" else ()


def _datasets() -> Any:
    return registry.optional_import("datasets", extra="data", purpose="Reading Hugging Face's data sets")


def loaded(source: str, config: str | None) -> Any:
    """The data set in the folder, or of the name."""
    path, datasets = Path(source).expanduser(), _datasets()
    saved, shards = _saved(path), _shards(path)
    try:
        if saved and not (path / "dataset_dict.json").is_file() and not (path / "state.json").is_file():
            raise FileNotFoundError(f"{path / 'state.json'} is missing: the folder is no whole copy")
        if shards:
            return _of_shards(path, shards)
        return datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(source, config)
    except Exception as error:  # its readers, and the network's, raise of everything
        reason = " ".join(str(error).split()) or type(error).__name__
        if saved:
            remedy = "Copy the whole folder again, or write it anew: dataset.save_to_disk(FOLDER)."
        else:
            remedy = "Check the name and the network, or save it where there is one: dataset.save_to_disk(FOLDER)."
        raise DataError(
            f"The data set {source!r} cannot be loaded: {reason.rstrip('.')}.", allowed=LAYOUT, remedy=remedy
        ) from error


def _saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((path / mark).is_file() for mark in MARKS)


def _shards(path: Path) -> list[Path]:
    """The parquet files that hold images: the path itself, or those of a folder as hubs have it."""
    if path.is_file():
        files = [path] if path.suffix.lower() == ".parquet" else []
    else:
        files = (
            [] if _saved(path) else [file for each in ("", "data", *SPLITS) for file in (path / each).glob("*.parquet")]
        )
    try:
        return sorted(files) if files and has_images(parquet_rows(files[0], most=1)[0]) else []
    except (DataError, IndexError):  # what reads them tells of it
        return []


def _of_shards(path: Path, files: Sequence[Path]) -> Any:
    """The rows of parquet files; by splits, where the names of files or folders begin with these."""
    datasets, splits = _datasets(), dict[str, list[str]]()
    for file in files:
        known = [name for name in SPLITS if file.name.lower().startswith(name) or file.parent.name.lower() == name]
        splits.setdefault(max(known, key=len, default="") if path.is_dir() else "", []).append(str(file))
    if len(splits) > 1 and "" in splits:
        raise DataError(
            f"The names of {listed([Path(each).name for each in splits['']])} in {str(path)!r} tell no split.",
            allowed="Names that begin with train, val or test; or none that does, and the rows are split by chance.",
            remedy="Rename or remove them.",
        )
    found = datasets.load_dataset("parquet", data_files={name or "train": some for name, some in splits.items()})
    for name, part in found.items():
        for column, feature in part.features.items():
            if has_images({column: feature}):  # plain bytes, as other programs write them
                found[name] = part.cast_column(column, datasets.Image())
    return found


def named_splits(found: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    """The parts of a data set by our names, and what a user should be told of them."""
    if not isinstance(found, Mapping):
        return {"": found}, []
    parts, unused = dict[str, Any](), list[str]()
    for name, part in found.items():
        split = SPLITS.get(str(name).lower())
        if split is None or split in parts:
            unused.append(str(name))
        else:
            parts[split] = part
    notes = [f"Splits that are not used: {listed(unused, n=9)}."] if unused and parts else []
    if not parts and len(found) == 1:
        return {"": next(iter(found.values()))}, []
    if set(parts) == {"train"}:
        return {"": parts["train"]}, notes
    if set(parts) == {"train", "val"}:  # as of ImageNet and Food-101: the labels of their test are not published
        return {"train": parts["train"], "test": parts["val"]}, [*notes, "There is no test split: val is taken for it."]
    if not {"train", "test"} <= parts.keys():
        raise DataError(
            f"The data set {source!r} has the splits {listed(map(str, found), n=9)}.",
            allowed="train, test and maybe val; or train alone, which is cut in three.",
        )
    return parts, notes
