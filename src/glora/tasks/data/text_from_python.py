"""Texts that a Python program gives: rows as mappings, pairs of a text and its label, texts; Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from glora.errors import DataError
from glora.tasks.data.from_python import Split
from glora.tasks.data.text import USUAL, Text, TextFile, first_layout, unshared
from glora.tasks.data.text_files import Record
from glora.tasks.data.text_layouts import LAYOUTS
from glora.tasks.objective import Objective, Targets
from glora.tasks.task import Task

__all__ = ["TextFromPython"]

ALLOWED = "A list of mappings as rows of the data, of (text, label), or of texts; or a Hugging Face dataset."


class TextFromPython(Text):
    """Texts that a Python program gave to `glora.fit`: they are not on disk, and must be given again."""

    reads_paths = False

    _given: dict[str, list[TextFile]] = PrivateAttr(default_factory=dict)

    source: Literal["text_from_python"] = Field("text_from_python", description="Texts from Python.")

    def load(self, objective: Objective) -> Task:
        raise DataError(
            "The data of this run came from a Python program and is not on disk.",
            remedy="Call glora.fit again with the same data, or load what is finished: glora.load(RUN).",
        )

    def usual(self, train: Any) -> str:
        """The objective where none is named, by the first row."""
        layout = self.layout
        if layout == "auto":
            file = TextFile("train", records_of(train, "train"))
            layout = first_layout(file, self._naming(None), None)[1]  # type: ignore[assignment]
        return USUAL[LAYOUTS[layout].kind]

    def splits(self, given: Mapping[str, Any], objective: Objective) -> tuple[dict[str, Split], list[str]]:
        """The splits as they were given, and what a user should be told.

        Raises:
            DataError: A row is none of the objective's, and is not to be skipped.
        """
        filled = self.model_copy()
        filled._given = {name: [TextFile(name, records_of(value, name))] for name, value in given.items()}
        found = filled._found(objective)
        pools, left = unshared(found.pools)
        every = [pool.targets for pool in pools.values()]
        rows, places = ([each for targets in every for each in getattr(targets, name)] for name in ("rows", "places"))
        known = objective.named(Targets(every[0].columns, rows, what=every[0].what, places=places))
        make = self._make(known, found.kind)
        return {name: Split(pool.items, pool.targets, make) for name, pool in pools.items()}, [*found.notes, *left]

    def _parts(self) -> tuple[dict[str, list[TextFile]], list[str]]:
        return self._given, []


def records_of(given: Any, what: str) -> list[Record]:
    """The rows of a split with the places where they stand, such as `train, row 3`.

    Raises:
        DataError: It holds no rows of text.
    """
    names: dict[str, Any] = {}
    features = getattr(given, "features", None)
    if isinstance(features, Mapping):
        names = {column: kind.names for column, kind in features.items() if hasattr(kind, "names")}
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a DataFrame
        given = given.to_dict("records")
    if isinstance(given, str | Mapping) or not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise DataError(f"{what} is a {type(given).__name__}.", allowed=ALLOWED)
    if not len(given):
        raise DataError(f"{what} is empty.", allowed="At least one row.")
    return [_record(given[place], f"{what}, row {place}", names) for place in range(len(given))]


def _record(item: Any, where: str, names: Mapping[str, Any]) -> Record:
    if isinstance(item, str):
        return Record(where, {"text": item})
    if isinstance(item, Mapping):
        fields = dict(item)
        for column, known in names.items():
            if isinstance(fields.get(column), int) and 0 <= fields[column] < len(known):
                fields[column] = known[fields[column]]
        return Record(where, fields)
    if isinstance(item, tuple | list) and len(item) == 2:
        text, label = item
        pair = isinstance(text, tuple | list) and len(text) == 2
        texts = {"text": text[0], "pair": text[1]} if pair else {"text": text}
        return Record(where, {**texts, "label": label})
    raise DataError(f"{where} is a {type(item).__name__}.", allowed=ALLOWED)
