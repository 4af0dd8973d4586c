"""What the winners of several searches have in common: their choices, their numbers, their fronts (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glora.genotype import ROLES
from glora.report.outcome import Outcome
from glora.report.plots.colours import look
from glora.report.plots.figures import INK, count_axis, figure, patches, save
from glora.report.plots.layers import KIND_COLOURS, NOTHING, PANELS, RANK_BLUES, _groups

__all__ = ["fronts_plot", "layers_of_winners", "parameters_of_winners"]

NUMBERS = "numbers"  # the key of a site's count in an outcome
ABSENT = "not offered"


def parameters_of_winners(outcomes: Mapping[str, Outcome], path: str | Path, *, title: str = "") -> dict[str, Any]:
    """The trainable numbers of winners by layer type: a bar for each winner, or of a single one for each type.

    A single winner's bars are stacked by support tensor, where its record tells these.

    Args:
        outcomes: Name -> winner.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: winner -> layer type -> count; and of a single one layer type -> support tensor -> count.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.

    Source: arXiv 2306.07967, Figure 3.
    """
    counts = {name: _by_type(outcome) for name, outcome in outcomes.items()}
    types = list(dict.fromkeys(kind for each in counts.values() for kind in each))
    several = len(counts) > 1
    bars = list(counts) if several else types
    drawing = figure(max(5.2, 2.4 + 0.55 * len(bars)), 4.6)
    axes = drawing.subplots()
    one = next(iter(outcomes.values()))
    split = {} if several else _by_column(one)
    if several:
        parts = {kind: [counts[name].get(kind, 0) for name in bars] for kind in types}
    elif split:
        roles = one.columns or ROLES
        parts = {f"{column}: {role}": [split[kind][column] for kind in types] for column, role in roles.items()}
    else:
        parts = {"": [_by_type(one)[kind] for kind in types]}
    heights = [0] * len(bars)
    for place, (label, share) in enumerate(parts.items()):
        style = {"color": look(place)[0], "edgecolor": "white", "linewidth": 0.6, "label": label}
        axes.bar(range(len(bars)), share, 0.66, bottom=heights, **style)
        heights = [below + more for below, more in zip(heights, share, strict=True)]
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, bars), default=0) > 7 else {}
    axes.set_xticks(range(len(bars)), bars, fontsize=9, **turned)
    axes.set(ylabel="trainable numbers", ylim=(0, max(1, *heights) * 1.08))
    count_axis(axes.yaxis)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    if several or split:
        columns = min(6, len(types)) if several else 3
        drawing.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    axes.set_title(
        title or "Trainable numbers of the winner" + ("s" if several else "") + " by layer type", fontsize=11
    )
    return save(drawing, path, {"winners": counts, **({"layer_types": split} if split else {})})


def _by_type(outcome: Outcome) -> dict[str, int]:
    return {
        kind: sum(int(outcome.sites[site][NUMBERS]) for site in sites) for kind, sites in _groups(outcome.sites).items()
    }


def _by_column(outcome: Outcome) -> dict[str, dict[str, int]]:
    """Layer type -> support tensor, or another column -> its numbers; empty where the record does not tell."""
    columns = outcome.columns or ROLES
    return {
        kind: {column: sum(outcome.numbers[site].get(column, 0) for site in sites) for column in columns}
        for kind, sites in (_groups(outcome.sites).items() if outcome.numbers else ())
    }


def layers_of_winners(outcomes: Mapping[str, Outcome], path: str | Path, *, title: str = "") -> dict[str, Any]:
    """What winners have chosen at every site: in each cell the share of the winners with each choice.

    Args:
        outcomes: Name -> winner, all of the same sites.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: site -> gene -> choice -> how many winners.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.

    Source: arXiv 2306.07967, Figure 4.
    """
    counts = _choices(outcomes.values())
    groups = _groups(counts)
    if all(len(group) == 1 for group in groups.values()):  # rows that have no type, such as blocks
        groups = {"": {site: site for site in counts}}
    columns = min(PANELS, len(groups))
    lines = [list(groups)[k : k + columns] for k in range(0, len(groups), columns)]
    heights = [max(len(groups[name]) for name in line) for line in lines]
    drawing = figure(max(2.3 * columns, 6.6), 1.9 + sum(0.28 * height + 0.75 for height in heights))
    panels = drawing.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    looks = _looks(counts)
    for line, row, height in zip(lines, panels, heights, strict=True):
        for axes in row[len(line) :]:
            axes.set_visible(False)
        for name, axes in zip(line, row, strict=False):
            _panel(axes, {site: (label, counts[site]) for site, label in groups[name].items()}, looks, height)
            axes.set_title(name, fontsize=10, fontweight="bold")
    shapes = patches()
    handles = [shapes.Patch(facecolor=c, edgecolor="#AAAAAA", linewidth=0.5, label=text) for text, c in looks.items()]
    style = {"ncols": min(5, len(handles)), "frameon": False, "fontsize": 9}
    drawing.legend(handles=handles, loc="outside lower center", **style)
    many = f"What {len(outcomes)} winners have chosen, by share" if len(outcomes) > 1 else "What the winner has chosen"
    drawing.suptitle(title or many, fontsize=12)
    return save(drawing, path, {"winners": list(outcomes), "sites": counts})


def _choices(outcomes: Any) -> dict[str, dict[str, dict[str, int]]]:
    """Site -> gene -> choice -> how many winners have it."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for outcome in outcomes:
        for site, cells in outcome.sites.items():
            for gene, choice in cells.items():
                if gene != NUMBERS:
                    told = ABSENT if choice is None else str(choice)
                    found.setdefault(site, {}).setdefault(gene, Counter())[told] += 1
    return {site: {gene: dict(counter) for gene, counter in genes.items()} for site, genes in found.items()}


def _looks(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, str]:
    """Choice -> colour, in the order of the legend: ranks and other sizes from the largest, then the others."""
    every = dict.fromkeys(choice for genes in counts.values() for each in genes.values() for choice in each)
    sizes = {choice: int(number) for choice in every if (number := choice.rpartition(":")[2]).isdigit() and int(number)}
    ordered = sorted(sizes, key=lambda choice: -sizes[choice])
    found = {choice: RANK_BLUES[min(place, len(RANK_BLUES) - 1)] for place, choice in enumerate(ordered)}
    known = {**KIND_COLOURS, "none": NOTHING, "0": NOTHING}
    found |= {choice: colour for choice, colour in known.items() if choice in every}
    others = sorted(choice for choice in every if choice not in found and choice != ABSENT)
    found |= {choice: look(place + 1)[0] for place, choice in enumerate(others)}
    return found | ({ABSENT: "white"} if ABSENT in every else {})


def _panel(axes: Any, rows: Mapping[str, tuple[str, Mapping[str, Any]]], looks: Mapping[str, str], height: int) -> None:
    """One layer type: a row per site, a column per gene, a cell divided by the shares of the choices."""
    shapes = patches()
    genes = list(dict.fromkeys(gene for _, found in rows.values() for gene in found))
    for row, (_, found) in enumerate(rows.values()):
        for column, gene in enumerate(genes):
            total, left = sum(found.get(gene, {}).values()), column - 0.47
            for choice, colour in looks.items():
                width = 0.94 * found.get(gene, {}).get(choice, 0) / max(total, 1)
                axes.add_patch(shapes.Rectangle((left, row - 0.45), width, 0.9, facecolor=colour, linewidth=0))
                left += width
            frame = {"fill": False, "edgecolor": "#AAAAAA", "linewidth": 0.5}
            axes.add_patch(shapes.Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, **frame))
    axes.set(xlim=(-0.55, len(genes) - 0.45), ylim=(height - 0.4, -0.6))
    axes.set_xticks(range(len(genes)), genes, fontsize=9)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows.values()], fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def fronts_plot(fronts: Mapping[str, Mapping[str, Any]], path: str | Path, *, title: str = "") -> dict[str, Any]:
    """The fronts of several searches and their winners: score against trainable numbers.

    Args:
        fronts: Name -> what `search_plot` has returned.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.
    """
    drawing = figure(7.6, 5.2)
    axes = drawing.subplots()
    for place, (name, found) in enumerate(fronts.items()):
        colour, marker = look(place)
        front = sorted((t for t in found["front"] if t["score"] is not None), key=lambda t: t["parameters"])
        x, y = [t["parameters"] for t in front], [t["score"] for t in front]
        style = {"color": colour, "linewidth": 1.4, "marker": marker, "markersize": 5, "drawstyle": "steps-post"}
        axes.plot(x, y, label=name, **style)
        star = {"marker": "*", "markersize": 15, "color": colour, "markeredgecolor": INK, "linestyle": "none"}
        axes.plot(found["winner"]["parameters"], found["winner"]["score"], zorder=5, **star)
    measures = _measures(fronts.values())
    axes.set(xlabel="trainable numbers, without the head", ylabel=f"{measures} as the search read it, higher is better")
    axes.set_title(title or "Fronts of the searches; stars are the winners")
    count_axis(axes.xaxis)
    axes.grid(alpha=0.25)
    drawing.legend(loc="outside lower center", ncols=min(3, len(fronts)), frameon=False, fontsize=9)
    return save(drawing, path, {"searches": {name: dict(found) for name, found in fronts.items()}})


def _measures(fronts: Any) -> str:
    names: Sequence[str] = list(dict.fromkeys(str(found["fitness"]) for found in fronts))
    return f"score ({', '.join(names)})"
