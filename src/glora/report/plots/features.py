"""Features of several models in the plane, a panel for each, a colour for each class (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.report.plots.colours import COLOURS, MARKERS, look
from glora.report.plots.figures import figure, save

__all__ = ["Placed", "features_plot"]

MOST_CLASSES = 2 * len(COLOURS)  # as many can be told apart
ACROSS = 3  # panels in a row


@dataclass(frozen=True)
class Placed:
    """Examples of one model in the plane.

    Attributes:
        points: `(x, y)` of each example.
        labels: Its class.
        classes: Names of all classes.
        note: Beside the panel's title, such as the accuracy.
    """

    points: Sequence[tuple[float, float]]
    labels: Sequence[str]
    classes: Sequence[str]
    note: str = ""


def features_plot(panels: Mapping[str, Placed], path: str | Path, *, title: str = "") -> dict[str, Any]:
    """The features of each model, by class.

    Args:
        panels: Name of the model -> its examples. Of more classes than can be told apart the most frequent are drawn.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: model -> class -> points.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.

    Source: arXiv 2306.07967, Figure 5.
    """
    classes = list(dict.fromkeys(name for each in panels.values() for name in each.classes))
    seen = Counter(label for each in panels.values() for label in each.labels)
    frequent = {name for name, _ in seen.most_common(MOST_CLASSES)}
    drawn = [name for name in classes if name in frequent]
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    drawing = figure(max(5.0, 3.4 * across), 1.5 + 3.3 * down)
    axes = drawing.subplots(down, across, squeeze=False).ravel()
    for each in axes[len(panels) :]:
        each.set_visible(False)
    for each, (name, placed) in zip(axes, panels.items(), strict=False):
        _draw(each, placed, drawn)
        each.set_title(f"{name}\n{placed.note}" if placed.note else name, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    style = {"ncols": min(8, len(labels)), "frameon": False, "fontsize": 8, "markerscale": 1.6}
    drawing.legend(handles, labels, loc="outside lower center", **style)
    left = f"; the {len(drawn)} most frequent of {len(classes)} classes" if len(drawn) < len(classes) else ""
    drawing.suptitle(title or f"Features before the head, in the plane by t-SNE{left}", fontsize=11)
    data = {name: _by_class(placed, classes) for name, placed in panels.items()}
    return save(drawing, path, {"models": data})


def _draw(axes: Any, placed: Placed, drawn: Sequence[str]) -> None:
    found = _by_class(placed, drawn)
    for place, name in enumerate(drawn):
        colour, marker = look(place)
        x, y = zip(*found[name], strict=True) if found.get(name) else ((), ())
        style = {"color": colour, "marker": marker if len(drawn) > len(MARKERS) else "o", "s": 12, "alpha": 0.8}
        axes.scatter(x, y, label=name, linewidths=0, **style)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")


def _by_class(placed: Placed, classes: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in classes}
    for point, label in zip(placed.points, placed.labels, strict=True):
        if label in found:
            found[label].append(point)
    return found
