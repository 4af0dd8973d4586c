"""What can go wrong, in one tree: every message says the cause, what is allowed, and the remedy."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "AdapterFileError",
    "BackboneError",
    "BudgetError",
    "ConfigError",
    "DataError",
    "GloraError",
    "MissingExtraError",
    "RunError",
    "SpaceError",
    "StateError",
    "TargetError",
    "UnknownNameError",
    "WriteError",
    "listed",
    "nearest",
    "need",
    "several",
    "shown",
    "whole",
    "within",
]


LONGEST = 300  # characters of a name in a message: a damaged file may have any


class GloraError(Exception):
    """The root of every error this library raises on purpose.

    Args:
        cause: One sentence: what was wrong, with the offending value and its place.
        allowed: One sentence: what would have been right.
        remedy: One sentence: what to do now. The command line prints it as a TIP.
    """

    def __init__(self, cause: str, *, allowed: str = "", remedy: str = "") -> None:
        cause, allowed, remedy = shown(cause), shown(allowed), shown(remedy)
        super().__init__(" ".join(part for part in (cause, allowed, remedy) if part))
        self.cause = cause
        self.allowed = allowed
        self.remedy = remedy

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class ConfigError(GloraError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class SpaceError(GloraError, ValueError):
    """A choice, layer configuration or genotype is not in its search space."""


class BudgetError(SpaceError):
    """No genotype of the space keeps the parameter budget."""


class TargetError(GloraError, ValueError):
    """No layer, or not the layers meant, match `targets`, `skip` or `head`."""


class StateError(GloraError, RuntimeError):
    """The call does not fit the adapted model's state, such as `activate` after `merge`."""


class AdapterFileError(GloraError, ValueError):
    """An adapter file is damaged, of another format, or belongs to another base model."""


class DataError(GloraError, ValueError):
    """A data set is missing, empty, unreadable or cannot be split."""


class BackboneError(GloraError, ValueError):
    """A backbone cannot be built or its weights cannot be found."""


class RunError(GloraError, RuntimeError):
    """A run folder is missing a stage, or belongs to other settings."""


class WriteError(GloraError, OSError):
    """A file cannot be written: the disk is full, the folder read-only or gone.

    Args:
        cause, allowed, remedy: As in every error here.
        errno: The system's number of what happened.
    """

    def __init__(self, cause: str, *, allowed: str = "", remedy: str = "", errno: int | None = None) -> None:
        super().__init__(cause, allowed=allowed, remedy=remedy)
        self.errno, self.strerror = errno, str(self)


class UnknownNameError(GloraError, KeyError):
    """A name is in no table; the message lists the nearest ones."""


class MissingExtraError(GloraError, ImportError):
    """An optional package is not installed; the message has the install line."""


def need(value: object, kind: Any, error: type[GloraError], name: str, allowed: str) -> None:
    """Raises the error unless the argument of this name is of that kind."""
    if not isinstance(value, kind):
        raise error(f"{name}={reprlib.repr(value)} is not allowed.", allowed=f"Allowed: {allowed}.")


def whole(value: object, name: str, *, least: int | None = None) -> None:
    """Raises ConfigError unless the argument of this name is an int, and no smaller than the least."""
    if type(value) is not int or (least is not None and value < least):
        allowed = "A whole number" + ("." if least is None else f" >= {least}.")
        raise ConfigError(f"{name}={reprlib.repr(value)} is not allowed.", allowed=allowed)


def within(value: object, name: str, low: float, high: float) -> None:
    """Raises ConfigError unless the argument of this name is a number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name}={reprlib.repr(value)} is not allowed.", allowed=f"A number in [{low:g}, {high:g}].")


def several(value: Any, kind: Any, error: type[GloraError], name: str, allowed: str) -> tuple[Any, ...]:
    """The argument of this name, one of that kind or an iterable of them, as a tuple; raises the error for others."""
    every = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (kind, str)) else (value,)
    for each in every:
        need(each, kind, error, name, allowed)
    return every


def nearest(name: str, names: Iterable[str], *, n: int = 3) -> list[str]:
    """The `n` names most like `name`, best first; empty when none is similar."""
    return difflib.get_close_matches(name, list(names), n=n, cutoff=0.4)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The question that a remedy asks, `Did you mean 'this'?`; empty where no name is like it."""
    near = nearest(name, names, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def shown(text: str) -> str:
    """Text that can be printed and written: of a file's name the bytes that are no UTF-8 as `\\xe9`."""
    try:
        found = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates of another origin
        found = text.encode("utf-8", "backslashreplace")
    return found.decode("utf-8", "backslashreplace")


def listed(names: Iterable[str], *, n: int = 3) -> str:
    """The first `n` of the names and, when there are more, how many in all: `a, b, c, ... (48)`."""
    every = list(names)
    return ", ".join(each if len(each) <= LONGEST else f"{each[:LONGEST]}..." for each in every[:n]) + (
        f", ... ({len(every)})" if len(every) > n else ""
    )
