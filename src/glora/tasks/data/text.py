"""Texts in your own files: conversations, questions with choices, labelled texts; JSON, CSV, parquet and others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from glora.errors import ConfigError, DataError, listed
from glora.settings import build
from glora.tasks.data.hugging_face import MARKS, class_names, loaded, named_splits
from glora.tasks.data.image_table import Columns
from glora.tasks.data.scan import SUFFIXES as IMAGES
from glora.tasks.data.tables import has_images, named_labels
from glora.tasks.data.text_files import (
    LAYOUT,
    Record,
    SampleBy,
    first_record,
    kind_of,
    read_records,
    text_files,
)
from glora.tasks.data.text_layouts import LAYOUTS, Kind, Naming, columns_of, layout_of, row_of, values_of
from glora.tasks.objective import Examples, Objective, Targets
from glora.tasks.rows import Asks, BadRow, Question, Row, TextReading, counted, groups, keys, told
from glora.tasks.splits import SPLITS
from glora.tasks.task import DataSettings, Pool, Task, assemble, joined
from glora.tasks.texts import DialogSet, LabelledSet, QuestionSet, TextSet

__all__ = ["SETS", "USUAL", "Text", "TextFile", "asked", "first_layout", "split_of", "unshared", "wanted"]

USUAL: dict[Kind, str] = {"dialogs": "language", "questions": "choose", "labelled": "classify"}
SETS: dict[Kind, type[TextSet]] = {"dialogs": DialogSet, "questions": QuestionSet, "labelled": LabelledSet}
TRIED = 1000  # rows of which one has to be of a known layout
TEMPLATES = ("auto", "chat", "alpaca", "plain")


class Text(DataSettings):
    """Texts: conversations (Alpaca, ShareGPT, messages, prompt and completion, plain), questions, labelled texts."""

    reads_paths = True

    format: Literal["text"] = Field("text", description="Files of texts: .json, .jsonl, .csv, .tsv, .parquet, .txt.")
    layout: Literal["auto", "alpaca", "sharegpt", "messages", "completion", "plain", "question", "label"] = Field(
        "auto", description="What a row is; auto goes by the names of its fields."
    )
    fields: dict[str, str] = Field({}, description="Your own names of fields: {instruction: frage, output: antwort}.")
    roles: dict[str, str] = Field({}, description="Your own names of who speaks: {kunde: user, wir: assistant}.")
    columns: Columns = Field((), description="Columns to predict of labelled texts; the label if not given.")
    prompt: str | None = Field(
        None, description="What stands before the choices of a question: 'Question: {question}\\nAnswer:'."
    )
    config: str | None = Field(None, description="Which of a Hugging Face data set's configurations.")
    sample_by: SampleBy = Field("line", description="What a row of a .txt file is: line, paragraph or document.")
    max_length: int | None = Field(
        None, ge=2, description="Most tokens of a row; if not given what the model takes, at most 2048."
    )
    train_on_prompt: bool = Field(False, description="Whether prompts are learned too, not answers alone.")
    template: str = Field(
        "auto",
        description="How turns are put together: chat, by the model's template; alpaca; plain; or a Jinja file. auto: "
        "chat where there is a template, else alpaca.",
    )
    system: Literal["keep", "user", "drop"] = Field(
        "keep", description="System messages: keep; user, put before the next user's; drop."
    )
    turns: Literal["together", "apart"] = Field(
        "together", description="A conversation is one sequence; apart, one for each learned turn with all before it."
    )
    on_bad_row: Literal["error", "skip"] = Field("error", description="What to do with rows that cannot be used.")
    on_long_row: Literal["bad", "cut"] = Field(
        "bad", description="What to do with rows of too many tokens: they are bad, or cut at the end."
    )

    @classmethod
    def detects(cls, path: Path) -> bool:
        if path.is_file():
            return _is_text(path)
        if any((path / mark).is_file() for mark in MARKS):
            return _saved_texts(path)
        files = text_files(path, beside_images=False)
        return bool(files) and _is_text(files[0])

    @classmethod
    def usual_objective(cls, given: Mapping[str, Any]) -> str:
        layout = str(given.get("layout") or "auto")
        if layout in LAYOUTS:
            return USUAL[LAYOUTS[layout].kind]
        known = {name: given[name] for name in ("fields", "columns", "config") if given.get(name)}
        settings = build(cls, {"source": str(given.get("source", "")), **known}, "the data")
        record, naming = settings._first(), settings._naming(None)
        if record is None:
            return "language"
        try:
            layout = layout_of(record, naming, where=settings.source)
        except DataError:  # maybe it is the first one alone
            files = [file for some in settings._parts()[0].values() for file in some]
            layout = first_layout(files[0] if files else TextFile(settings.source, ()), naming, None)[1]
        return USUAL[LAYOUTS[layout].kind]

    @property
    def reading(self) -> TextReading:
        """What is made of the rows."""
        template = self.template
        if template not in TEMPLATES and "{" not in template:
            try:
                template = Path(template).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"data.template={self.template!r} cannot be read: {error}.",
                    allowed=f"Allowed: {', '.join(TEMPLATES)}, a file with a chat template in Jinja, or the template.",
                ) from error
        names = ("max_length", "train_on_prompt", "system", "turns", "on_bad_row", "on_long_row")
        return TextReading(template=template, **{name: getattr(self, name) for name in names})

    def load(self, objective: Objective) -> Task:
        found = self._found(objective)
        pools, left = unshared(found.pools)
        whole = [target for pool in pools.values() for target in pool.targets.rows]
        places = [place for pool in pools.values() for place in pool.targets.places]
        every = next(iter(pools.values())).targets
        known = objective.named(Targets(every.columns, whole, what=every.what, places=places))
        notes = [*found.notes, *left, *_kept_together(pools)]
        return assemble(_name(self.source), pools, objective, self, make=self._make(known, found.kind), notes=notes)

    def load_all(self, objective: Objective) -> tuple[Examples, list[str]]:
        found = self._found(objective)
        return joined(found.pools, objective, make=self._make(objective, found.kind)), found.notes

    def _make(self, objective: Objective, kind: Kind) -> Any:
        """Makes a split of rows and encoded targets."""
        if isinstance(objective, Asks) and kind == "labelled":
            return partial(asked, objective, self.reading)
        return partial(SETS[kind], reading=self.reading)

    def _naming(self, objective: Objective | None) -> Naming:
        separator = getattr(objective, "separator", None)
        others = objective is not None and wanted(objective) == "labelled"
        found = Naming(self.fields, self.roles, self.columns, self.prompt, separator, others)
        found.check()
        return found

    def _first(self) -> Mapping[str, Any] | None:
        """The fields of the first record there is."""
        path = Path(self.source).expanduser()
        if path.is_file():
            return first_record(path)
        if path.is_dir() and not any((path / mark).is_file() for mark in MARKS):
            return next(map(first_record, text_files(path)), None)
        parts, _ = named_splits(loaded(self.source, self.config), self.source)
        return next((dict(row) for part in parts.values() for row in part.select(range(min(1, len(part))))), None)

    def _found(self, objective: Objective) -> _Found:
        """The rows of each split, all of them under `""` where the data has none; and what a user should be told."""
        naming = self._naming(objective)
        parts, notes = self._parts()
        layouts, pools, bad, total = Counter[str](), dict[str, list[_Row]](), list[BadRow](), 0
        for split, files in parts.items():
            pools[split] = []
            for file in files:
                read = self._rows(file, naming, objective)
                total += len(read.rows) + len(read.bad)
                bad += read.bad
                pools[split] += read.rows
                layouts[read.layout] += len(read.rows)
        notes += told(bad, total, self.on_bad_row)
        if "" in pools:
            pools = self._by_column(pools[""])
        shown = ", ".join(f"{count:,} {name}" for name, count in layouts.items())
        return _Found(
            {split: _pool(rows) for split, rows in pools.items()}, wanted(objective), [f"Read as {shown}.", *notes]
        )

    def _rows(self, file: TextFile, naming: Naming, objective: Objective) -> _Read:
        """The rows of one file, in the layout of its first record that has one."""
        first = next((each for each in file.records if isinstance(each, Record)), None)
        if first is None:
            told([each for each in file.records if isinstance(each, BadRow)], len(file.records), self.on_bad_row)
            raise DataError(f"{file.name} has no rows.", allowed=LAYOUT)
        layout: str = self.layout
        if layout == "auto":
            first, layout = first_layout(file, naming, wanted(objective))
        _check_kind(LAYOUTS[layout].kind, objective, file.name, layout)
        labelled = LAYOUTS[layout].kind == "labelled"
        columns = columns_of(first.fields, naming, where=file.name) if labelled else ()
        rows, bad = list[_Row](), list[BadRow]()
        for record in file.records:
            row = record if isinstance(record, BadRow) else _row(record, layout, naming, columns)
            if isinstance(row, BadRow):
                bad.append(row)
            else:
                rows.append(row)
        return _Read(rows, bad, layout)

    def _parts(self) -> tuple[dict[str, list[TextFile]], list[str]]:
        """The files of each split, read; all of them under `""` where their names tell of none."""
        path = Path(self.source).expanduser()
        if path.is_file():
            return {"": [self._file(path, path.name)]}, []
        if not path.is_dir() or any((path / mark).is_file() for mark in MARKS):
            parts, notes = named_splits(loaded(self.source, self.config), self.source)
            return {split: [_stored(part, split)] for split, part in parts.items()}, notes
        files = text_files(path)
        if not files:
            raise DataError(f"There is no text data in {str(path)!r}.", allowed=LAYOUT)
        splits: dict[str, list[Path]] = {}
        for file in files:
            splits.setdefault(split_of(file.relative_to(path)), []).append(file)
        unused = splits.pop("") if "" in splits and len(splits) > 1 else []
        parts, notes = named_splits(splits, self.source) if "" not in splits else (splits, [])
        if unused:
            names = listed([file.relative_to(path).as_posix() for file in unused], n=9)
            notes = [*notes, f"Files beside those of the splits are not used: {names}."]
        read = {
            split: [self._file(file, file.relative_to(path).as_posix()) for file in some]
            for split, some in parts.items()
        }
        return read, notes

    def _file(self, path: Path, name: str) -> TextFile:
        return TextFile(name, read_records(path, name, sample_by=self.sample_by))

    def _by_column(self, rows: list[_Row]) -> dict[str, list[_Row]]:
        """The rows of each split that a column of theirs names; all of them under `""` where none does."""
        named = [SPLITS.get(row.split.strip().lower()) for row in rows]
        found: dict[str, list[_Row]] = {}
        for row, split in zip(rows, named, strict=True):
            if split is not None:
                found.setdefault(split, []).append(row)
        return found if None not in named and {"train", "test"} <= found.keys() else {"": rows}


class _Row(NamedTuple):
    """A row, the columns and values to predict of it, and the split that it names."""

    row: Row
    columns: tuple[str, ...]
    values: tuple[Any, ...]
    split: str


@dataclass(frozen=True)
class TextFile:
    """What a file or a part of a data set holds."""

    name: str
    records: Sequence[Record | BadRow]


class _Read(NamedTuple):
    """The rows of one file."""

    rows: list[_Row]
    bad: list[BadRow]
    layout: str


class _Found(NamedTuple):
    """The rows of each split, what they are, and what a user should be told."""

    pools: dict[str, Pool]
    kind: Kind
    notes: list[str]


def first_layout(file: TextFile, naming: Naming, kind: Kind | None) -> tuple[Record, str]:
    """The first record whose layout is known, and that layout.

    Raises:
        DataError: There is none; it is the first record's.
    """
    unknown: DataError | None = None
    for record in file.records[:TRIED]:
        if isinstance(record, Record):
            try:
                return record, layout_of(record.fields, naming, where=file.name, kind=kind)
            except DataError as error:
                unknown = unknown or error
    raise unknown or DataError(f"{file.name} has no rows.", allowed=LAYOUT)


def _row(record: Record, layout: str, naming: Naming, columns: tuple[str, ...]) -> _Row | BadRow:
    row = row_of(record, layout, naming)
    if isinstance(row, BadRow):
        return row
    try:
        values = values_of(record, columns, naming)
    except BadRow as bad:
        bad.where = record.where
        return bad
    return _Row(row, columns, values, str(naming.value(record.fields, "split") or ""))


def _is_text(path: Path) -> bool:
    """Whether a file is of text data. A table is one of images where its lines name such, or hold them."""
    if kind_of(path) not in (".csv", ".tsv", ".parquet"):
        return bool(kind_of(path))
    record = first_record(path)
    if record is None:
        return kind_of(path) == ".parquet"
    named = [value for value in record.values() if isinstance(value, str)]
    if has_images(record) or any(Path(value).suffix.lower() in IMAGES for value in named):
        return False
    if kind_of(path) == ".parquet":
        return True
    try:
        layout_of(record, Naming(), where=path.name)
    except DataError:
        return any(len(str(value).split()) > 2 for value in record.values())
    return True


def _saved_texts(path: Path) -> bool:
    """Whether what the package datasets has saved has no images, by its own description."""
    for file in (path / "dataset_info.json", *sorted(path.glob("*/dataset_info.json"))):
        try:
            features = json.loads(file.read_text(encoding="utf-8")).get("features") or {}
        except (OSError, ValueError, AttributeError):
            continue
        if '"Image"' in json.dumps(features):
            return False
        try:
            layout_of(dict.fromkeys(features, ""), Naming(), where=path.name)
        except DataError:
            continue
        return True
    return False


def split_of(file: Path) -> str:
    """The split that the name of a file or of a folder above it tells; empty where none does."""
    stem = file.name.lower().partition(".")[0]
    for word in (stem, *stem.replace("_", "-").split("-"), *(part.lower() for part in file.parts[:-1])):
        if word in SPLITS:
            return SPLITS[word]
    return ""


def _name(source: str) -> str:
    return Path(source).name.partition(".")[0] or source


def _stored(part: Any, split: str) -> TextFile:
    """The rows of a part of a data set of the package datasets; labels have their names."""
    name = split or "data"
    names = {column: list(class_names(kind)) for column, kind in part.features.items() if class_names(kind)}
    rows = [Record(f"{name}, row {place}", named_labels(dict(row), names)) for place, row in enumerate(part)]
    return TextFile(name, rows)


def wanted(objective: Objective) -> Kind:
    """The kind of rows that an objective reads."""
    return next((kind for kind, name in USUAL.items() if name == objective.name), "labelled")


def _check_kind(kind: Kind, objective: Objective, name: str, layout: str) -> None:
    """Raises DataError where the objective does not read such rows."""
    if kind == wanted(objective):
        return
    raise DataError(
        f"The rows of {name} are of the layout {layout}, and the objective {objective.name!r} does not read such.",
        allowed=f"It reads {wanted(objective)}: "
        + ", ".join(each for each, other in LAYOUTS.items() if other.kind == wanted(objective))
        + ".",
        remedy=f"Use the objective {USUAL[kind]!r}, or say what the rows are: --set data.layout=NAME",
    )


def asked(objective: Asks, reading: TextReading, rows: Sequence[Any], targets: Any, *, strata: Any = None) -> TextSet:
    """Labelled texts as questions, each class a choice."""
    choices = objective.choices
    asked = [
        Question(objective.question(row.text, row.pair), choices, int(target), row.where, row.group)
        for row, target in zip(rows, targets, strict=True)
    ]
    return QuestionSet(asked, targets, strata=strata, reading=reading)


def _pool(rows: Sequence[_Row]) -> Pool:
    """The rows of a split, and what is to be predicted of them: of a question its answer."""
    columns = rows[0].columns if rows else ()
    values: list[tuple[Any, ...]] = [row.values for row in rows]
    if rows and hasattr(rows[0].row, "answer"):
        columns, values = ("answer",), [(row.row.answer,) for row in rows]  # type: ignore[union-attr]
    places = [row.row.where for row in rows]
    return Pool([row.row for row in rows], Targets(columns, values, what="the data", places=places))


def unshared(pools: Mapping[str, Pool]) -> tuple[dict[str, Pool], list[str]]:
    """The pools without rows that share a key with those of a later split: test keeps all, then val, then train."""
    order = [split for split in ("train", "val", "test") if split in pools]
    if len(order) < 2:
        return dict(pools), []
    every = keys([row for split in order for row in pools[split].items])
    start, of = 0, dict[str, list[list[Any]]]()
    for split in order:
        of[split] = every[start : start + len(pools[split].items)]
        start += len(pools[split].items)
    later, found, notes = set[Any](), dict[str, Pool](), list[str]()
    for split in reversed(order):
        pool = pools[split]
        kept = [place for place, some in enumerate(of[split]) if not later & set(some)]
        if gone := len(pool.items) - len(kept):
            names = " and ".join(order[order.index(split) + 1 :])
            what = f"Left out of {split}, as the same is asked or the same conversation goes on in {names}"
            notes.append(f"{what}: {counted(gone, 'rows')}.")
        later |= {key for some in of[split] for key in some}
        found[split] = _chosen(pool, kept)
    return {split: found[split] for split in order}, notes


def _chosen(pool: Pool, places: Sequence[int]) -> Pool:
    rows, where = [pool.targets.rows[place] for place in places], [pool.targets.places[place] for place in places]
    return Pool([pool.items[place] for place in places], replace(pool.targets, rows=rows, places=where))


def _kept_together(pools: Mapping[str, Pool]) -> Iterator[str]:
    """What a user should be told about rows that belong together, where splits are cut."""
    for split in ("", "train"):
        if split not in pools or (split == "train" and "val" in pools):
            continue
        found = Counter(groups(pools[split].items) or ())
        several = [count for count in found.values() if count > 1]
        if several:
            yield (
                f"{sum(several):,} of {len(pools[split].items):,} rows ask the same as others or are parts of one "
                f"conversation ({len(several):,} groups): no two splits share a group."
            )
