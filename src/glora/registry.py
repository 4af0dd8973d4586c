"""Names to objects, bound late: a table of `name -> "module:object"` a reader can scan."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from glora.errors import MissingExtraError, UnknownNameError, listed, nearest

__all__ = ["load", "lookup", "optional_import"]


def load(path: str) -> Any:
    """The object at `"module:object"`, importing the module on first use."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lookup(table: Mapping[str, str], name: str, *, kind: str, remedy: str = "") -> Any:
    """The object that `table` names `name`.

    Args:
        table: Name to `"module:object"`.
        name: The name asked for.
        kind: What the table holds, in the error's words: `"method"`, `"searcher"`.
        remedy: What to do when the name is unknown, such as the `glora ls` line.

    Raises:
        UnknownNameError: The name is not in the table; lists the nearest names and all of them.
    """
    if name not in table:
        near = nearest(name, table)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UnknownNameError(
            f"There is no {kind} {name!r}. {hint}".strip(),
            allowed=f"Known: {listed(sorted(table), n=30)}.",
            remedy=remedy,
        )
    return load(table[name])


def optional_import(module: str, *, extra: str, purpose: str) -> ModuleType:
    """An optional package's module.

    Args:
        module: Dotted module name, such as `"timm"`.
        extra: The extra of this library that installs it.
        purpose: What needs it, in the error's words.

    Raises:
        MissingExtraError: It is not installed; the message has the install line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which is not installed.",
            remedy=f"Install it: pip install 'glora[{extra}]'",
        ) from error
