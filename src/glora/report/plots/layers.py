"""The pictures of a winner: its choice at every site, and its numbers per layer type (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glora.genotype import NONE, TENSORS, Choice, LayerConfig
from glora.report.plots.figures import INK, count_axis, figure, patches, save
from glora.space import BoundSpace, count_parameters

__all__ = ["layer_plot", "parameters_plot"]

NOTHING = "#EDEDED"
ROLES = {"A": "scales weight", "B": "shifts weight", "C": "prompt", "D": "scales bias", "E": "shifts bias"}
TENSOR_COLOURS = {"A": "#0072B2", "B": "#E69F00", "C": "#009E73", "D": "#CC79A7", "E": "#56B4E9"}
RANK_BLUES = ("#08306B", "#2171B5", "#6BAED6", "#C6DBEF")  # lora, from the largest rank down
KIND_COLOURS = {"vector": "#F0C75E", "scalar": "#FBEBC0", "none": NOTHING}
PANELS = 4  # panels of the layer plot in a row


def layer_plot(
    genotype: Mapping[str, LayerConfig], space: BoundSpace, path: str | Path, *, title: str = ""
) -> dict[str, Any]:
    """The layer-wise configuration: the choice of every support tensor at every site, a panel per layer type.

    Args:
        genotype: What to show.
        space: Its space, which knows what was offered.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: parameters, and per site its layer type and choices; None where only `none` is offered.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.
        SpaceError: The genotype is not of the space.

    Source: arXiv 2306.07967, Figure 4.
    """
    total = space.count(genotype)
    groups = _groups(space.sites, gather=True)
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
            _panel(axes, groups[name], genotype, space, height)
            axes.set_title(name, fontsize=10, fontweight="bold")
        if any(site != label for site, label in groups[line[0]].items()):
            row[0].set_ylabel("site number", fontsize=9)
    drawing.suptitle(title or f"Layer-wise configuration: {total:,} trainable numbers", fontsize=12)
    roles = "support tensors: " + ", ".join(f"{tensor} {role}" for tensor, role in ROLES.items())
    style = {"ncols": 4, "frameon": False, "fontsize": 9, "title": roles, "title_fontsize": 9}
    drawing.legend(handles=_choice_legend(space), loc="outside lower center", **style)
    data = {
        "parameters": total,
        "sites": {
            site: {"layer_type": kind, **_offered_choices(site, genotype, space)}
            for kind, group in groups.items()
            for site in group
        },
    }
    return save(drawing, path, data)


def parameters_plot(
    genotype: Mapping[str, LayerConfig], space: BoundSpace, path: str | Path, *, title: str = ""
) -> dict[str, Any]:
    """The trainable numbers of every layer type, stacked by support tensor.

    Args:
        genotype: What to show.
        space: Its space.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn: parameters, and per layer type its sites and the count of every support tensor.

    Raises:
        ConfigError: The suffix is unknown.
        MissingExtraError: matplotlib is not installed.
        SpaceError: The genotype is not of the space.

    Source: arXiv 2306.07967, Figure 3.
    """
    total = space.count(genotype)
    kinds: dict[str, dict[str, int]] = {}
    for kind, group in _groups(space.sites).items():
        kinds[kind] = {"sites": len(group)} | {
            tensor: sum(_numbers(site, tensor, genotype, space) for site in group) for tensor in TENSORS
        }
    drawing = figure(max(5.2, 1.6 + 0.95 * len(kinds)), 4.4)
    axes = drawing.subplots()
    heights = [0] * len(kinds)
    for tensor in TENSORS:
        share = [kind[tensor] for kind in kinds.values()]
        style = {"color": TENSOR_COLOURS[tensor], "edgecolor": "white", "linewidth": 0.6}
        axes.bar(range(len(kinds)), share, 0.62, bottom=heights, label=f"{tensor}: {ROLES[tensor]}", **style)
        heights = [below + more for below, more in zip(heights, share, strict=True)]
    for place, height in enumerate(heights):
        axes.annotate(
            f"{height:,}", (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=9, color=INK
        )
    labels = [f"{name}\n{kind['sites']} site{'s' * (kind['sites'] > 1)}" for name, kind in kinds.items()]
    axes.set_xticks(range(len(kinds)), labels, fontsize=9)
    axes.set(xlabel="layer type", ylabel="trainable numbers", ylim=(0, max(1, *heights) * 1.1))
    axes.set_title(title or f"Trainable numbers per layer type: {total:,} in all")
    count_axis(axes.yaxis)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    drawing.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, title="support tensor")
    return save(drawing, path, {"parameters": total, "layer_types": kinds})


def _groups(sites: Mapping[str, Any], *, gather: bool = False) -> dict[str, dict[str, str]]:
    """Layer type -> site -> short label. The type is the last part of the name that is no number.

    `gather` puts the types that have a single site into one group.
    """
    kinds: dict[str, list[str]] = {}
    for site in sites:
        words = [part for part in site.split(".") if not part.isdigit()]
        kinds.setdefault(words[-1] if words else site, []).append(site)
    single = [names[0] for names in kinds.values() if len(names) == 1]
    if gather and len(single) > 1:
        kinds = {kind: names for kind, names in kinds.items() if len(names) > 1} | {"single sites": single}
    return {kind: _labels(names) for kind, names in kinds.items()}


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Each site's numbers (`blocks.3.attn.qkv` -> `3`), or whole names where those do not tell the sites apart."""
    short = [".".join(part for part in name.split(".") if part.isdigit()) or name for name in names]
    return dict(zip(names, short if len(set(short)) == len(short) else names, strict=True))


def _panel(
    axes: Any, group: Mapping[str, str], genotype: Mapping[str, LayerConfig], space: BoundSpace, height: int
) -> None:
    """One layer type: a row per site, a column per support tensor."""
    shapes = patches()
    for row, site in enumerate(group):
        for column, tensor in enumerate(TENSORS):
            text, colour = _cell(site, tensor, genotype, space)
            cell = shapes.Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=colour, linewidth=0)
            axes.add_patch(cell)
            ink = "white" if colour in RANK_BLUES[:2] else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set(xlim=(-0.55, len(TENSORS) - 0.45), ylim=(height - 0.4, -0.6))
    axes.set_xticks(range(len(TENSORS)), TENSORS, fontsize=9)
    axes.set_yticks(range(len(group)), list(group.values()), fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _cell(site: str, tensor: str, genotype: Mapping[str, LayerConfig], space: BoundSpace) -> tuple[str, str]:
    """The text and the colour of one choice."""
    if not _offers(site, tensor, space):
        return "·", "white"
    return _look(genotype[site][TENSORS.index(tensor)], space)


def _look(choice: Choice, space: BoundSpace) -> tuple[str, str]:
    if choice.kind == "lora":
        place = space.rules.ranks.index(choice.rank)
        return f"r{choice.rank}", RANK_BLUES[min(place, len(RANK_BLUES) - 1)]
    return {"vector": "vec", "scalar": "sca", "none": ""}[choice.kind], KIND_COLOURS[choice.kind]


def _choice_legend(space: BoundSpace) -> list[Any]:
    shapes = patches()
    choices = [*(Choice("lora", rank) for rank in space.rules.ranks), Choice("vector"), Choice("scalar"), NONE]
    handles = []
    for choice in choices:
        text, colour = _look(choice, space)
        label = f"{text}: {choice}" if text else f"empty: {choice}"
        handles.append(shapes.Patch(facecolor=colour, edgecolor="#AAAAAA", linewidth=0.5, label=label))
    handles.append(shapes.Patch(facecolor="white", edgecolor="#AAAAAA", linewidth=0.5, label="·: only none is offered"))
    return handles


def _offers(site: str, tensor: str, space: BoundSpace) -> bool:
    return len(space.options[site][TENSORS.index(tensor)]) > 1


def _offered_choices(site: str, genotype: Mapping[str, LayerConfig], space: BoundSpace) -> dict[str, str | None]:
    written = genotype[site].to_json()
    return {tensor: written[tensor] if _offers(site, tensor, space) else None for tensor in TENSORS}


def _numbers(site: str, tensor: str, genotype: Mapping[str, LayerConfig], space: BoundSpace) -> int:
    choice = genotype[site][TENSORS.index(tensor)]
    return count_parameters(space.sites[site], tensor, choice, space.rules.product)
