"""The test texts that a model gets most wrong, cut short, for a person who looks at the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glora.files import write_json
from glora.tasks.objective import Examples
from glora.tasks.rows import Dialog, Question, Row
from glora.tasks.texts import TextSet

__all__ = ["excerpts"]

LONGEST = 600  # characters of a text
OF_A_CHOICE = 120
CUT = "…"


def excerpts(examples: Examples | None, places: Sequence[int], file: Path) -> None:
    """The file holds these texts and no others; there is none where they are no texts.

    Args:
        examples: The split.
        places: Which of it.
        file: Place -> `text`, and of a question its `choices`; an earlier one is removed.
    """
    file.unlink(missing_ok=True)
    if isinstance(examples, TextSet) and places:
        write_json(file, {str(place): _excerpt(examples.rows[place]) for place in places})


def _excerpt(row: Row) -> dict[str, Any]:
    if isinstance(row, Question):
        return {"text": _short(row.prompt), "choices": [_short(choice, OF_A_CHOICE) for choice in row.choices]}
    if isinstance(row, Dialog):
        turns = (f"{each.role}: {' '.join(filter(None, (each.text, each.input)))}" for each in row.messages)
        return {"text": _short("\n".join(turns))}
    return {"text": _short(row.text if row.pair is None else f"{row.text}\n{row.pair}")}


def _short(text: str, most: int = LONGEST) -> str:
    """Its beginning and its end, where it is long: what is asked often stands at the end."""
    half = (most - len(CUT)) // 2
    return text if len(text) <= most else f"{text[:half]}{CUT}{text[-half:]}"
