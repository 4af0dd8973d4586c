"""WebDataset's tar shards: members with one key are one example, its image and its class; read where they stand.

A key is a member's name up to the first dot of its last part, and what comes after the dot says what the member is:
`0001.jpg` and `0001.cls`. Members of one example follow each other. Shards are read in the order of their names, and
members as they stand, so that an example always has the same place.

Source: the format of the package webdataset, which also writes it (`ShardWriter`).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from glora import registry
from glora.errors import DataError, did_you_mean, listed, shown
from glora.tasks.data.hugging_face import LABELS, named_splits
from glora.tasks.data.image_folder import skipped
from glora.tasks.data.image_table import Columns
from glora.tasks.data.scan import SUFFIXES
from glora.tasks.data.text import split_of
from glora.tasks.images import ImageSet, checked
from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, OnBadImage, Pool, Task, assemble, joined

__all__ = ["WebDataset"]

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASSES = (
    "cls",
    "cls.txt",
    "label",
    "label.txt",
    "class",
    "txt",
    "json",
)  # endings of a target, the likelier first
NAMES = "classnames.txt"  # beside the shards: a line per class, where the targets are places
BLOCK = 512  # bytes of a tar
LAYOUT = "Shards (.tar) in which an example is an image and its class under one key: 0001.jpg, 0001.cls."


class WebDataset(DataSettings):
    """Tar shards as the package webdataset writes them, one or a folder of them, with an image and a class per key."""

    reads_paths = True

    format: Literal["webdataset"] = Field("webdataset", description="Tar shards: 0001.jpg with 0001.cls, and so on.")
    image: str | None = Field(None, description="Ending of the images, such as jpg; found if not given.")
    target: str | None = Field(
        None, description="Ending of what is to be predicted, such as cls, txt or json; found if not given."
    )
    columns: Columns = Field((), description="Of targets in JSON: which fields; one called label or so if not given.")
    on_bad_image: OnBadImage = Field("error", description="What to do with unreadable images.")

    @classmethod
    def detects(cls, path: Path) -> bool:
        return _is_shard(path) if path.is_file() else path.is_dir() and bool(_shards(path))

    def load(self, objective: Objective) -> Task:
        pools, notes = self._pools(objective)
        return assemble(Path(self.source).name.partition(".")[0], pools, objective, self, notes=notes)

    def load_all(self, objective: Objective) -> tuple[ImageSet, list[str]]:
        pools, notes = self._pools(objective)
        return joined(pools, objective, make=ImageSet), notes

    def _pools(self, objective: Objective) -> tuple[dict[str, Pool], list[str]]:
        """The images of each split; all of them under `""` where no shard is called as a split."""
        path = Path(self.source).expanduser().resolve()
        files = [path] if path.is_file() else _shards(path)
        if not files:
            raise DataError(f"There are no shards in {shown(str(path))!r}.", allowed=LAYOUT)
        root = path.parent if path.is_file() else path
        splits: dict[str, list[Path]] = {}
        for file in files:
            splits.setdefault("" if path.is_file() else split_of(file.relative_to(path)), []).append(file)
        unused = splits.pop("") if "" in splits and len(splits) > 1 else []
        parts, notes = named_splits(splits, self.source) if "" not in splits else (splits, [])
        if unused:
            notes = [
                *notes,
                f"Shards beside those of the splits are not used: {listed([f.name for f in unused], n=9)}.",
            ]
        names, pools = _names(root), {}
        separator = getattr(objective, "separator", "|")
        for split, shards in parts.items():
            pools[split], told = self._pool(root, shards, names, separator)
            notes = [*notes, *told]
        return pools, notes

    def _pool(self, root: Path, shards: list[Path], names: tuple[str, ...], separator: str) -> tuple[Pool, list[str]]:
        """The images of some shards with their targets, and what a user should be told."""
        items, rows, places, without = list[_Member](), list[tuple[Any, ...]](), list[str](), list[str]()
        columns: tuple[str, ...] = self.columns or ("class",)
        for example in (each for shard in shards for each in _examples(shard, root)):
            image = self._image(example)
            if image is None:
                without.append(example.where)
                continue
            columns, row = self._row(example, columns, names)
            row = tuple(separator.join(map(str, each)) if isinstance(each, list) else each for each in row)
            items.append(image)
            rows.append(row)
            places.append(example.where)
        if not items:
            raise DataError(f"There are no images in {listed([each.name for each in shards])}.", allowed=LAYOUT)
        bad, notes = checked(items)
        notes = [*skipped(bad, None, self.on_bad_image), *notes]
        if without:
            some = "examples have" if len(without) > 1 else "example has"
            notes = [*notes, f"{len(without):,} {some} no image, and are not used: {listed(without)}."]
        good = [place for place, item in enumerate(items) if item not in bad]
        rows, places = [rows[place] for place in good], [places[place] for place in good]
        targets = Targets(columns, rows, names=names if _all_places(rows, names) else (), what="", places=places)
        return Pool([items[place] for place in good], targets), notes

    def _image(self, example: _Example) -> _Member | None:
        if self.image is not None:
            return example.members.get(self.image.lower().lstrip("."))
        found = [each for ending, each in example.members.items() if f".{ending.rpartition('.')[2]}" in SUFFIXES]
        return found[0] if found else None

    def _row(
        self, example: _Example, columns: tuple[str, ...], names: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """What is to be predicted of an example, and what it is called.

        Raises:
            DataError: There is no such thing.
        """
        wanted = (self.target.lower().lstrip("."),) if self.target else CLASSES
        ending = next((each for each in wanted if each in example.members), None)
        if ending is None:
            there = listed([f".{each}" for each in example.members], n=9)
            if self.target:
                raise DataError(
                    f"{example.where} has no .{wanted[0]} (data.target), but {there}.", remedy="Name one of these."
                )
            raise DataError(
                f"{example.where} has no class beside {there}.",
                allowed=f"Known are {', '.join(f'.{each}' for each in CLASSES)}.",
                remedy="Name the ending: --set data.target=ENDING",
            )
        text = example.members[ending].text()
        if ending.rpartition(".")[2] == "json":
            fields = _fields(text, example.members[ending])
            chosen = self.columns or (_label(fields, example.members[ending]),)
            return chosen, tuple(_value(fields, name, example.members[ending]) for name in chosen)
        return columns, (_place(text, names, example.members[ending]) if names else text,)


@dataclass(frozen=True)
class _Member:
    """A member of a shard.

    Attributes:
        shard: The file.
        shown: What the shard is called in messages.
        name: The member's.
        start: Where its bytes begin. size: How many there are.
    """

    shard: Path
    shown: str
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} in {self.shown}"

    def read(self) -> bytes:
        """Its bytes."""
        with self.shard.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def text(self) -> str:
        """What it says.

        Raises:
            DataError: It is no UTF-8.
        """
        try:
            return self.read().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{self} is no text in UTF-8: {error}.", allowed=LAYOUT) from error

    def open(self) -> Any:
        """It as a PIL image."""
        pillow = registry.optional_import("PIL.Image", extra="vision", purpose="Reading images")
        return pillow.open(io.BytesIO(self.read()))

    def identity(self) -> bytes:
        """A hash of its bytes."""
        return hashlib.sha256(self.read()).digest()


@dataclass
class _Example:
    """The members with one key, by their endings in lower case."""

    key: str
    shown: str
    members: dict[str, _Member] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.key} in {self.shown}"


class _Name(NamedTuple):
    """A member's name as key and ending."""

    key: str
    ending: str


def _is_shard(path: Path) -> bool:
    return path.name.lower().endswith((".tar", *PACKED))


def _shards(folder: Path) -> list[Path]:
    """The shards in a folder and in the folders of its splits, in the order of their paths."""
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and split_of(Path(entry.name))]
    return sorted(
        entry
        for each in (folder, *inner)
        for entry in each.iterdir()
        if _is_shard(entry) and not entry.name.startswith(".") and entry.is_file()
    )


def _names(folder: Path) -> tuple[str, ...]:
    """The names of the classes by their places, where a file beside the shards has them."""
    file = folder / NAMES
    if not file.is_file():
        return ()
    try:
        return tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(str(file))} cannot be read: {error}.", allowed="A line per class, UTF-8.") from error


def _examples(shard: Path, root: Path) -> Iterator[_Example]:
    """The examples of a shard in their order.

    Raises:
        DataError: It is compressed, damaged, or an example has a member twice.
    """
    example: _Example | None = None
    for member in _members(shard, shard.relative_to(root).as_posix()):
        name = _named(member.name)
        if name is None:
            continue
        if example is None or example.key != name.key:
            if example is not None:
                yield example
            example = _Example(name.key, member.shown)
        if name.ending in example.members:
            raise DataError(
                f"{member.shown} has {member.name} twice for one example.", remedy="Give every example its own key."
            )
        example.members[name.ending] = member
    if example is not None:
        yield example


def _named(name: str) -> _Name | None:
    """Key and ending of a member's name; None of what is hidden, made by a system, or has no ending."""
    folder, _, last = name.rpartition("/")
    key, dot, ending = last.partition(".")
    if not key or not dot or last.startswith("__"):
        return None
    return _Name(f"{folder}/{key}" if folder else key, ending.lower())


def _members(shard: Path, name: str) -> Iterator[_Member]:
    """The plain files in a shard."""
    if shard.name.lower().endswith(PACKED):
        raise DataError(
            f"{name} is compressed: its members cannot be read one by one.",
            allowed="Plain .tar files.",
            remedy="Unpack it, such as with gunzip: images are compressed already.",
        )
    size, last, end = shard.stat().st_size, "its beginning", 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for each in archive:
                if each.isreg() and not each.issparse():
                    if each.offset_data + each.size > size:
                        raise _cut_off(name, each.name)
                    yield _Member(shard, name, each.name, each.offset_data, each.size)
                last, end = each.name, each.offset_data + (each.size if each.isreg() else 0)
        _need_end(shard, name, last, end)
    except (OSError, tarfile.TarError, UnicodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{name} is damaged after {shown(last)}: {reason}.", remedy="Copy or download the shard again."
        ) from error


def _need_end(shard: Path, name: str, last: str, end: int) -> None:
    """Raises DataError unless zeros follow the last member, as in every whole tar."""
    with shard.open("rb") as file:
        file.seek(-(-end // BLOCK) * BLOCK)
        found = file.read(BLOCK)
    if len(found) < BLOCK or any(found):
        raise _cut_off(name, last)


def _cut_off(name: str, member: str) -> DataError:
    return DataError(
        f"{name} is cut off or damaged at {shown(member)}: a whole shard has an end mark after its last member.",
        remedy="Copy or download the shard again.",
    )


def _fields(text: str, member: _Member) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{member} is no JSON: {error}.") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{member} is no JSON object.", remedy="Name another ending: --set data.target=ENDING")
    return found


def _label(fields: Mapping[str, Any], member: _Member) -> str:
    found = [name for name in LABELS if name in fields]
    if not found:
        raise DataError(
            f"{member} has no field that is called as a class is.",
            allowed=f"Its fields are {listed(fields, n=20)}.",
            remedy="Name it: --set data.columns=[NAME]",
        )
    return found[0]


def _value(fields: Mapping[str, Any], name: str, member: _Member) -> Any:
    if name not in fields:
        raise DataError(
            f"{member} has no field {name!r}.",
            allowed=f"Its fields are {listed(fields, n=20)}.",
            remedy=did_you_mean(name, fields),
        )
    return fields[name]


def _place(text: str, names: tuple[str, ...], member: _Member) -> Any:
    """The place of a class that `classnames.txt` has the name of."""
    place = int(text) if text.isdecimal() else names.index(text) if text in names else -1
    if not 0 <= place < len(names):
        raise DataError(
            f"{member} has the class {shown(text)!r}, and {NAMES} has {len(names)} lines.",
            allowed=f"0 to {len(names) - 1}, or one of the names.",
        )
    return place


def _all_places(rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> bool:
    return bool(names) and all(len(row) == 1 and type(row[0]) is int and 0 <= row[0] < len(names) for row in rows)
