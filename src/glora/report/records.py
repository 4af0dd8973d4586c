"""Plain data -> a checked record: every unknown, missing or wrong field at once (no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from glora.errors import RunError

__all__ = ["checked"]

Record = TypeVar("Record")
LONGEST, MOST = 200, 12  # characters of a problem, and problems, in a message
WORDS = {"unexpected_keyword_argument": "unknown", "missing": "missing"}  # the kind of a problem, in words


def checked(record: type[Record], data: Mapping[str, Any], what: str) -> Record:
    """The record of these fields.

    Args:
        record: A pydantic dataclass. Its field types are taken strictly: a text is no number.
        data: What was read from JSON.
        what: What the record is, in the error's words: `"result"`.

    Raises:
        RunError: Lists every field that is unknown, missing or of another type.
    """
    if not isinstance(data, Mapping):
        raise RunError(f"The {what} is no mapping but {str(data)[:80]!r}.")
    try:
        return TypeAdapter(record).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for each in error.errors():
            name = ".".join(map(str, each["loc"][:2]))
            text = WORDS.get(each["type"]) or f"{each['msg'].lower()}, not {repr(each['input'])[:200]}"
            problems.setdefault(name, f"{name}: {text}")
        told = [text[:LONGEST] for text in problems.values()]
        more = f"; and {len(told) - MOST} more" if len(told) > MOST else ""
        raise RunError(f"The {what} has wrong fields. {'; '.join(told[:MOST])}{more}.") from error
