"""The picture of some examples of each task, a row a task (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glora.report.plots.figures import INK, figure, save

__all__ = ["Samples", "samples_plot"]

SIDE = 0.74  # inches of an image and what is around it
LETTERS = 12  # of what an image is called


class Samples(NamedTuple):
    """Some examples of one task.

    Attributes:
        title: The task. note: A line below it.
        images: uint8 pixels `(h, w, 3)`, of any size.
        labels: What each is, in a word.
    """

    title: str
    note: str
    images: Sequence[npt.NDArray[np.uint8]]
    labels: Sequence[str]


def samples_plot(rows: Sequence[Samples], path: str | Path) -> dict[str, Any]:
    """Some examples of each task, with what each is below it.

    Args:
        rows: The tasks, at least one, each with at least one example.
        path: The figure's file, `.svg`, `.png` or `.pdf`.

    Returns:
        What is drawn, without the pixels: title, note and labels of every row.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.
    """
    width = max(len(row.images) for row in rows)
    drawing = figure(1.35 + SIDE * width, 1.26 * SIDE * len(rows))
    grid = drawing.subplots(len(rows), width + 1, squeeze=False, width_ratios=[1.75, *[1] * width])
    for row, (first, *others) in zip(rows, grid, strict=True):
        first.text(0, 0.58, row.title, fontsize=10, color=INK, va="bottom", weight="bold", transform=first.transAxes)
        first.text(0, 0.52, row.note, fontsize=8, color=INK, va="top", transform=first.transAxes)
        for axes in (first, *others[len(row.images) :]):
            axes.set_axis_off()
        for axes, pixels, label in zip(others, row.images, row.labels, strict=False):
            axes.imshow(pixels, interpolation="nearest", aspect="equal")
            short = label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…"
            axes.set_title(short, fontsize=7, color=INK, y=-0.04, va="top", pad=0)
            axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
            for side in axes.spines.values():  # a white image is told from the paper
                side.set(color="#BBBBBB", linewidth=0.5)
    told = [{"title": row.title, "note": row.note, "labels": list(row.labels)} for row in rows]
    return save(drawing, path, {"rows": told})
