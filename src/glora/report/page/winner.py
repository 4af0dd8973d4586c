"""The winner's layer-wise configuration as tables: a row per site, a column per support tensor (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glora.genotype import ROLES
from glora.report.outcome import Outcome
from glora.report.plots.layers import _groups

__all__ = ["Choice", "Numbers", "Panel", "legend", "numbers_by_type", "panels"]

NUMBERS = "numbers"  # the key of a site's count in an outcome
SIZES = 4  # colours of ranks and other sizes, from the largest down


@dataclass(frozen=True)
class Choice:
    """One cell: its text and its class of the style sheet."""

    text: str
    style: str


@dataclass(frozen=True)
class Panel:
    """One layer type: columns, and for every site its label, full name, choices and trainable numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Choice, ...], int], ...]


@dataclass(frozen=True)
class Numbers:
    """The trainable numbers of one layer type: of how many sites, in all, and by column, which older records lack."""

    sites: int
    total: int
    by_column: Mapping[str, int]


def panels(outcome: Outcome) -> list[Panel]:
    """A panel per layer type.

    Source: arXiv 2306.07967, Figure 4.
    """
    looks = _looks(outcome)
    return [_panel(kind, sites, outcome, looks) for kind, sites in _types(outcome).items()]


def _types(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Layer type -> site -> label; of rows that have no type, such as blocks, one group of all."""
    groups = _groups(outcome.sites, gather=f"single {outcome.row}s")
    if all(len(group) == 1 for group in groups.values()):
        return {f"{outcome.row}s": {site: site for site in outcome.sites}}
    return groups


def _panel(kind: str, sites: Mapping[str, str], outcome: Outcome, looks: Mapping[str, str]) -> Panel:
    every = [outcome.sites[site] for site in sites]
    columns = tuple(dict.fromkeys(gene for cells in every for gene in cells if gene != NUMBERS))
    rows = tuple(
        (label, site, tuple(_choice(cells.get(each), looks) for each in columns), int(cells.get(NUMBERS) or 0))
        for (site, label), cells in zip(sites.items(), every, strict=True)
    )
    return Panel(kind, columns, rows)


def _choice(value: Any, looks: Mapping[str, str]) -> Choice:
    if value is None:
        return Choice("·", "absent")
    return Choice("–" if value in ("none", 0, "0") else str(value), looks[str(value)])


def _looks(outcome: Outcome) -> dict[str, str]:
    """Choice -> its class of the style sheet: sizes from the largest down, then the others."""
    every = dict.fromkeys(
        str(value)
        for cells in outcome.sites.values()
        for gene, value in cells.items()
        if gene != NUMBERS and value is not None
    )
    sizes = {each: int(end) for each in every if (end := each.rpartition(":")[2]).isdigit() and int(end)}
    ordered = sorted(sizes, key=lambda each: -sizes[each])
    found = {each: f"size{min(place, SIZES - 1)}" for place, each in enumerate(ordered)}
    found |= {"none": "nothing", "0": "nothing", "vector": "vector", "scalar": "scalar"}
    return {**{each: "other" for each in every if each not in found}, **found}


def legend(outcome: Outcome) -> str:
    """What the columns do, in a sentence."""
    columns = outcome.columns or ROLES
    return "; ".join(f"{name} {role}" for name, role in columns.items())


def numbers_by_type(outcome: Outcome) -> dict[str, Numbers]:
    """Layer type -> its trainable numbers.

    Source: arXiv 2306.07967, Figure 3.
    """
    return {kind: _numbers(outcome, list(sites)) for kind, sites in _types(outcome).items()}


def _numbers(outcome: Outcome, sites: Sequence[str]) -> Numbers:
    total = sum(int(outcome.sites[site].get(NUMBERS) or 0) for site in sites)
    if not outcome.numbers:
        return Numbers(len(sites), total, {})
    columns = outcome.columns or ROLES
    by_column = {column: sum(outcome.numbers[site].get(column, 0) for site in sites) for column in columns}
    return Numbers(len(sites), total, by_column)
