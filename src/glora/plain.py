"""Plain data from JSON that may come from anyone: every key once, no deeper and no larger than such files are."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

__all__ = ["LARGE", "parse_json"]

DEEPEST = 64  # mappings and lists within each other
DIGITS = 40  # of a whole number: the state of a generator has 128 bits
LARGE = 1 << 30  # bytes that a file of one's own may take in memory
MOST = 80_000_000  # bytes that a stranger's may
PER_CHARACTER, PER_WIDE, PER_ITEM, PER_PLACE = 3, 9, 120, 64  # bytes in memory, at most; 9: UTF-32, and copies


def parse_json(text: str | bytes, *, finite: bool = True, most: int = MOST) -> Any:
    """The data of a JSON text.

    Args:
        text: In UTF-8, where it is bytes.
        finite: Take no NaN and no infinity, which are no JSON, though Python writes them.
        most: How many bytes the data may take in memory, which is estimated before any of it is built.

    Raises:
        ValueError: It is no JSON, has a key twice, is nested deeper than DEEPEST, has a number of more than DIGITS
            digits, or is too large.
    """
    if (size := _size(text)) > most:
        raise ValueError(f"it would take up to {size:,} bytes of memory, of {most:,} that are allowed")
    try:
        found = json.loads(
            text,
            object_pairs_hook=_once,
            parse_int=_whole,
            parse_float=_finite if finite else float,
            parse_constant=_no_number if finite else float,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    _check_depth(found)
    return found


def _size(text: str | bytes) -> int:
    """Bytes in memory that the text's data take at most, by the marks of lists and mappings in it."""
    if isinstance(text, bytes):
        places, items = text.count(b","), sum(map(text.count, (b"{", b"[", b":")))
    else:
        places, items = text.count(","), sum(map(text.count, ("{", "[", ":")))
    return len(text) * (PER_CHARACTER if text.isascii() else PER_WIDE) + PER_PLACE * places + PER_ITEM * items


def _check_depth(found: Any) -> None:
    level, depth = [found], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST}")
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = set[str]()
        twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(found := float(digits)):
        raise ValueError(f"{digits[:20]} is no finite number")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
