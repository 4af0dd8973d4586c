"""How a run made texts of its rows, as its files and its merged model's folder tell it."""

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
RAW = ("prompt", "text")  # roles of what is read as it is


def said_of(task: Task) -> dict[str, Any]:
    """What travels with a run's files of how its rows are read; empty where they are no texts."""
    train = task.train
    if not isinstance(train, TextSet):
        return {}
    first = train.rows[0] if train.rows else None
    raw = isinstance(first, Dialog) and first.messages[0].role in RAW
    return {KEY: {**asdict(train.reading), "raw": raw}}


def reading_of(info: Mapping[str, Any]) -> tuple[TextReading, bool]:
    """How rows become texts, and whether a text alone is the beginning of what goes on, and not a user's turn.

    The longest row is the model's: the limit of the training data is not that of what is asked.
    """
    said = info.get(KEY) or {}
    known = {each.name for each in fields(TextReading)} - {"max_length"}
    return TextReading(**{name: value for name, value in said.items() if name in known}), bool(said.get("raw"))


def naming_of(data: Any) -> Naming:
    """What the data of a run, by its settings, calls its fields."""
    names = ("fields", "roles", "columns", "prompt")
    return Naming(**{name: value for name in names if (value := getattr(data, name, None)) is not None})
