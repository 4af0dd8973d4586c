"""The pictures of a winner: its choice at every site, and its numbers per layer type (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glora.genes import Cell, GenotypeSpace, Looks
from glora.report.plots.figures import INK, count_axis, figure, patches, save

__all__ = ["layer_plot", "parameters_plot"]

NOTHING = "#EDEDED"
COLUMN_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
RANK_BLUES = ("#08306B", "#2171B5", "#6BAED6", "#C6DBEF")  # ranks and other sizes, from the largest down
KIND_COLOURS = {"vector": "#F0C75E", "scalar": "#FBEBC0"}
PANELS = 4  # panels of the layer plot in a row
GLORA = "site"  # its rows: layers of several types


def layer_plot(genotype: Any, space: GenotypeSpace, path: str | Path, *, title: str = "") -> dict[str, Any]:
    """The layer-wise configuration: what is chosen in every row of a genotype, a panel per layer type.

    Of GLoRA a row is a site and a column a support tensor; of other methods such as blocks and their modules.

    Args:
        genotype: What to show.
        space: Its space, which knows what was offered.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: parameters, and per site (row) its layer type and choices; None where nothing is offered.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.
        SpaceError: The genotype is not of the space.

    Source: arXiv 2306.07967, Figure 4.
    """
    total, cells, looks = space.count(genotype), space.cells(genotype), space.looks
    groups = _groups(cells, gather=f"single {looks.row}s")
    columns = min(PANELS, len(groups))
    lines = [list(groups)[k : k + columns] for k in range(0, len(groups), columns)]
    heights = [max(len(groups[name]) for name in line) for line in lines]
    longest = sum(
        max(len(text) for name in list(groups)[k::columns] for text in groups[name].values()) for k in range(columns)
    )
    drawing = figure(max(2.2 * columns + 0.075 * longest, 6.6), 1.7 + sum(0.27 * height + 0.75 for height in heights))
    panels = drawing.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for line, row, height in zip(lines, panels, heights, strict=True):
        for axes in row[len(line) :]:
            axes.set_visible(False)
        for name, axes in zip(line, row, strict=False):
            _panel(axes, groups[name], cells, looks, height)
            axes.set_title(name, fontsize=10, fontweight="bold")
        if any(site != label for site, label in groups[line[0]].items()):
            row[0].set_ylabel(f"{looks.row} number", fontsize=9)
    what = "Layer-wise configuration" if looks.row == GLORA else f"Configuration by {looks.row}s"
    drawing.suptitle(title or f"{what}: {total:,} trainable numbers", fontsize=12)
    verb = " " if looks.row == GLORA else ": "
    roles = f"{looks.column}s: " if looks.row == GLORA else ""
    roles += ", ".join(f"{column}{verb}{role}" for column, role in looks.columns.items())
    style = {"ncols": 4, "frameon": False, "fontsize": 9, "title": roles, "title_fontsize": 9}
    drawing.legend(handles=_choice_legend(looks), loc="outside lower center", **style)
    data = {
        "parameters": total,
        "sites": {
            site: {"layer_type": kind, **{column: cell.choice for column, cell in cells[site].items()}}
            for kind, group in groups.items()
            for site in group
        },
    }
    return save(drawing, path, data)


def parameters_plot(genotype: Any, space: GenotypeSpace, path: str | Path, *, title: str = "") -> dict[str, Any]:
    """The trainable numbers of every layer type, stacked by support tensor; of blocks, those of each block.

    Args:
        genotype: What to show.
        space: Its space.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: parameters, and per layer type (or row) its sites and the count of every column.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.
        SpaceError: The genotype is not of the space.

    Source: arXiv 2306.07967, Figure 3.
    """
    total, cells, looks = space.count(genotype), space.cells(genotype), space.looks
    by_type = looks.row == GLORA
    kinds: dict[str, dict[str, int]] = {}
    for kind, group in (_groups(cells) if by_type else {row: {row: row} for row in cells}).items():
        kinds[kind] = {"sites": len(group)} | {
            column: sum(cells[site][column].numbers for site in group) for column in looks.columns
        }
    drawing = figure(max(5.2, 1.6 + (0.95 if by_type else 0.45) * len(kinds)), 4.4)
    axes = drawing.subplots()
    heights = [0] * len(kinds)
    for place, (column, role) in enumerate(looks.columns.items()):
        share = [kind[column] for kind in kinds.values()]
        style = {"color": COLUMN_COLOURS[place % len(COLUMN_COLOURS)], "edgecolor": "white", "linewidth": 0.6}
        axes.bar(range(len(kinds)), share, 0.62, bottom=heights, label=f"{column}: {role}", **style)
        heights = [below + more for below, more in zip(heights, share, strict=True)]
    _bar_titles(axes, kinds, heights, by_type=by_type)
    axes.set(ylabel="trainable numbers", ylim=(0, max(1, *heights) * 1.1))
    per = "layer type" if by_type else looks.row
    axes.set_xlabel(per)
    axes.set_title(title or f"Trainable numbers per {per}: {total:,} in all")
    count_axis(axes.yaxis)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    drawing.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, title=looks.column)
    return save(drawing, path, {"parameters": total, "layer_types": kinds})


def _bar_titles(axes: Any, kinds: Mapping[str, Mapping[str, int]], heights: Sequence[int], *, by_type: bool) -> None:
    """What the bars are, below them, and above them their heights where there is room."""
    if not by_type:
        axes.set_xticks(range(len(kinds)), list(kinds), fontsize=8, rotation=45, ha="right")
        return
    for place, height in enumerate(heights):
        axes.annotate(
            f"{height:,}", (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=9, color=INK
        )
    labels = [f"{name}\n{kind['sites']} site{'s' * (kind['sites'] > 1)}" for name, kind in kinds.items()]
    axes.set_xticks(range(len(kinds)), labels, fontsize=9)


def _groups(sites: Mapping[str, Any], *, gather: str = "") -> dict[str, dict[str, str]]:
    """Layer type -> site -> short label. The type is the last part of the name that is no number.

    `gather` is the name of one group for the types that have a single site.
    """
    kinds: dict[str, list[str]] = {}
    for site in sites:
        words = [part for part in site.split(".") if not part.isdigit()]
        kinds.setdefault(words[-1] if words else site, []).append(site)
    single = [names[0] for names in kinds.values() if len(names) == 1]
    if gather and len(single) > 1:
        kinds = {kind: names for kind, names in kinds.items() if len(names) > 1} | {gather: single}
    return {kind: _labels(names) for kind, names in kinds.items()}


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Each site's numbers (`blocks.3.attn.qkv` -> `3`), or whole names where those do not tell the sites apart."""
    short = [".".join(part for part in name.split(".") if part.isdigit()) or name for name in names]
    return dict(zip(names, short if len(set(short)) == len(short) else names, strict=True))


def _panel(
    axes: Any, group: Mapping[str, str], cells: Mapping[str, Mapping[str, Cell]], looks: Looks, height: int
) -> None:
    """One layer type: a row per site, a column per support tensor."""
    shapes = patches()
    for row, site in enumerate(group):
        for column, name in enumerate(looks.columns):
            choice = cells[site][name].choice
            text, colour = ("·", "white") if choice is None else _look(choice, looks)
            cell = shapes.Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=colour, linewidth=0)
            axes.add_patch(cell)
            ink = "white" if colour in RANK_BLUES[:2] else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set(xlim=(-0.55, len(looks.columns) - 0.45), ylim=(height - 0.4, -0.6))
    axes.set_xticks(range(len(looks.columns)), list(looks.columns), fontsize=9)
    axes.set_yticks(range(len(group)), list(group.values()), fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _look(choice: str, looks: Looks) -> tuple[str, str]:
    """The short label and the colour of a choice."""
    label = looks.choices[choice]
    if not label:
        return label, NOTHING
    sizes = [each for each, short in looks.choices.items() if short and each not in KIND_COLOURS]
    if choice in KIND_COLOURS:
        return label, KIND_COLOURS[choice]
    return label, RANK_BLUES[min(sizes.index(choice), len(RANK_BLUES) - 1)]


def _choice_legend(looks: Looks) -> list[Any]:
    shapes = patches()
    handles = []
    for choice in looks.choices:
        text, colour = _look(choice, looks)
        label = choice if text == choice else f"{text}: {choice}" if text else f"empty: {choice}"
        handles.append(shapes.Patch(facecolor=colour, edgecolor="#AAAAAA", linewidth=0.5, label=label))
    handles.append(shapes.Patch(facecolor="white", edgecolor="#AAAAAA", linewidth=0.5, label="·: only none is offered"))
    return handles
