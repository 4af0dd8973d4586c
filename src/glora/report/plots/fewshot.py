"""The few-shot figure: accuracy over the number of shots, a panel for each data set and for their mean (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glora.report.paper.fewshot import fewshot
from glora.report.plots.colours import look
from glora.report.plots.figures import figure, fixed_ticks, save
from glora.report.result import Result
from glora.report.sheet import Line, Sheet

__all__ = ["fewshot_plot"]

ACROSS = 3  # panels in a row


def fewshot_plot(results: Sequence[Result], path: str | Path, *, title: str = "") -> dict[str, Any]:
    """Accuracy over shots: ours in solid lines with their spread over seeds, printed ones dashed.

    Args:
        results: The runs, whose data has a number of shots; none: the printed curves alone.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: panel -> curve -> shots -> accuracy in %, with `spread`.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.
        RunError: No run has a number of shots.

    Source: arXiv 2306.07967, Figure 2.
    """
    panels = [panel for sheet in fewshot(results) for panel in _panels(sheet)]
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    drawing = figure(1.2 + 3.1 * across, 1.5 + 2.6 * down)
    axes = drawing.subplots(down, across, squeeze=False).ravel()
    for each in axes[len(panels) :]:
        each.set_visible(False)
    names = list(dict.fromkeys(_key(line)[0] for _, lines, _ in panels for line in lines))
    for each, (name, lines, numbers) in zip(axes, panels, strict=False):
        _draw(each, lines, numbers, names)
        each.set_title(name, fontsize=10, fontweight="bold")
    for row in range(down):
        axes[row * across].set_ylabel("test accuracy, %")
    entries = {text: line for each in axes for line, text in zip(*each.get_legend_handles_labels(), strict=True)}
    style = {"loc": "outside lower center", "ncols": min(4, len(entries)), "frameon": False, "fontsize": 9}
    drawing.legend(list(entries.values()), list(entries), **style)
    drawing.suptitle(title or "Accuracy with few training images of a class", fontsize=12)
    return save(drawing, path, {"panels": {name: _data(lines, numbers) for name, lines, numbers in panels}})


def _panels(sheet: Sheet) -> list[tuple[str, list[Line], dict[int, str]]]:
    """Of each group of columns its title, the rows that have any of them, and shots -> column."""
    groups: dict[str, dict[int, str]] = {}
    for column in sheet.columns:
        if column.group:
            groups.setdefault(column.group, {})[int(column.title)] = column.key
    found = []
    for name, numbers in groups.items():
        lines = [line for line in sheet.lines if _curve(line, numbers)]
        found.append((name, lines, numbers))
    return found


def _curve(line: Line, numbers: dict[int, str]) -> dict[int, tuple[float, float | None]]:
    """Shots -> accuracy and its spread, where they were measured."""
    cells = {shots: line.cells[key] for shots, key in numbers.items() if key in line.cells}
    return {shots: (cell.value, cell.spread) for shots, cell in cells.items() if cell.value is not None}


def _key(line: Line) -> tuple[str, str]:
    """What has a colour of its own, and the entry of the legend."""
    return line.name, f"{line.name}, printed" if line.printed else line.name


def _draw(axes: Any, lines: Sequence[Line], numbers: dict[int, str], names: Sequence[str]) -> None:
    for line in lines:
        name, label = _key(line)
        colour, marker = look(names.index(name))
        curve = _curve(line, numbers)
        y, spreads = zip(*curve.values(), strict=True)
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.1, "label": label}
        if line.printed:
            style |= {"linestyle": (0, (4, 2)), "markerfacecolor": "white", "alpha": 0.75}
        else:
            style |= {"linewidth": 2.0, "zorder": 4}
        axes.plot(list(curve), y, **style)
        if any(spread for spread in spreads):
            bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1.2, "capsize": 3, "zorder": 4}
            axes.errorbar(list(curve), y, yerr=[spread or 0 for spread in spreads], **bars)
    axes.set_xscale("log", base=2)
    fixed_ticks(axes.xaxis, list(numbers))
    axes.set_xlabel("images a class", fontsize=9)
    axes.grid(alpha=0.25)
    axes.margins(0.06)


def _data(lines: Sequence[Line], numbers: dict[int, str]) -> dict[str, Any]:
    return {
        _key(line)[1]: {
            str(shots): {"accuracy": value, "spread": spread}
            for shots, (value, spread) in _curve(line, numbers).items()
        }
        for line in lines
    }
