"""Where the pictures meet matplotlib: a figure, its file, its data, and the axis of trainable numbers (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glora.errors import ConfigError
from glora.files import atomic, write_json
from glora.registry import optional_import

__all__ = ["FRONT", "INK", "count_axis", "figure", "figure_file", "fixed_ticks", "patches", "save", "whole_numbers"]

SUFFIXES = (".svg", ".png", ".pdf")
UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # equal numbers, equal files
FRONT, INK = "#D55E00", "#222222"


def figure(width: float, height: float) -> Any:
    """A figure of its own, in inches: no pyplot, no global state."""
    module = optional_import("matplotlib.figure", extra="plot", purpose="A figure")
    return module.Figure(figsize=(width, height), dpi=150, layout="constrained")


def patches() -> Any:
    """matplotlib's module of shapes."""
    return optional_import("matplotlib.patches", extra="plot", purpose="A figure")


def figure_file(path: str | Path) -> Path:
    """The path of a figure.

    Raises:
        ConfigError: Its suffix is that of no format.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path.name}: {path.suffix!r} is no figure format.", allowed=f"Allowed: {', '.join(SUFFIXES)}."
        )
    return path


def save(drawing: Any, path: str | Path, data: dict[str, Any]) -> dict[str, Any]:
    """Writes the figure in the format of the path's suffix, and the numbers drawn as JSON beside it; returns those.

    Raises:
        ConfigError: The suffix is unknown.
    """
    path = figure_file(path)
    matplotlib = optional_import("matplotlib", extra="plot", purpose="A figure")
    with atomic(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "glora"}):
        drawing.savefig(temporary, format=path.suffix[1:], metadata=UNDATED.get(path.suffix))
    write_json(path.with_suffix(".json"), data)
    return data


def count_axis(axis: Any) -> None:
    """Trainable numbers on the axis in one unit."""
    ticker = optional_import("matplotlib.ticker", extra="plot", purpose="A figure")
    axis.set_major_formatter(ticker.EngFormatter(sep=" "))
    axis.set_major_locator(ticker.MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def whole_numbers() -> Any:
    """Ticks at whole numbers only."""
    return optional_import("matplotlib.ticker", extra="plot", purpose="A figure").MaxNLocator(integer=True)


def fixed_ticks(axis: Any, places: list[int]) -> None:
    """Ticks at these whole numbers and nowhere else, on a logarithmic axis too."""
    ticker = optional_import("matplotlib.ticker", extra="plot", purpose="A figure")
    axis.set_major_locator(ticker.FixedLocator(places))
    axis.set_major_formatter(ticker.FixedFormatter([str(place) for place in places]))
    axis.set_minor_locator(ticker.NullLocator())
