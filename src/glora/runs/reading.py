"""How a run turned its rows into texts, as its files and the folder of its merged model record it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from glora.tasks.data.text_layouts import Naming
from glora.tasks.rows import Dialog, TextReading
from glora.tasks.task import Task
from glora.tasks.texts import TextSet

__all__ = ["naming_of", "reading_of", "said_of"]

KEY = "reading"
CONTINUED = ("prompt", "text")  # roles of what is read as it is


def said_of(task: Task) -> dict[str, Any]:
    """What a run's files record of how its rows are read; empty if they are not texts."""
    train = task.train
    if not isinstance(train, TextSet):
        return {}
    first = train.rows[0] if train.rows else None
    raw = isinstance(first, Dialog) and first.messages[0].role in CONTINUED
    return {KEY: {**asdict(train.reading), "raw": raw}}


def reading_of(info: Mapping[str, Any]) -> tuple[TextReading, bool]:
    """How rows become texts, and whether a bare text is continued rather than answered as a user's turn.

    `max_length` is left out: the limit of the training data does not apply to what is asked later.
    """
    said = info.get(KEY) or {}
    known = {each.name for each in fields(TextReading)} - {"max_length"}
    return TextReading(**{name: value for name, value in said.items() if name in known}), bool(said.get("raw"))


def naming_of(data: Any) -> Naming:
    """What the data of a run, by its settings, calls its fields."""
    names = ("fields", "roles", "columns", "prompt")
    return Naming(**{name: value for name in names if (value := getattr(data, name, None)) is not None})
