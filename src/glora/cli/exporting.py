"""`glora export`: a finished run in the format of another library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glora.errors import ConfigError
from glora.settings import parse_value

__all__ = ["export_run"]


def export_run(
    run: Path, to: str, out: Path, options: Mapping[str, Any], overrides: Sequence[str], reporter: Any
) -> None:
    """Writes the export, and tells what a user should know of it.

    Args:
        run: The run folder.
        to: Name of the format.
        out: The folder to write.
        options: Settings of the format that were given as options; None: not given.
        overrides: Others, as `KEY=VALUE`.
        reporter: Where to tell it.

    Raises:
        ConfigError: An override has no value.
    """
    from glora.runs.exporting import export

    settings = {name: value for name, value in options.items() if value is not None}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override} has no value.", allowed="--set KEY=VALUE.")
        settings[key] = parse_value(text)
    for note in export(run, to, out, **settings):
        reporter.say(note)
    reporter.say(f"{out}: its README.md says how to load it.")
