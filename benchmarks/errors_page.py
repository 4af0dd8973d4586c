"""The page of what `errors.py` has measured, from results/errors alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import wrapped

__all__ = ["FOLDER", "PAGE", "page"]

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "errors"
PAGE = ROOT / "docs" / "background" / "errors-measured.md"
DTYPES = ("fp64", "fp32", "bf16", "fp16")
VALUES = ("ordinary", "extreme")
PEFT = "peft"
ALMOST = 1 + 1e-3  # of the bar: the numbers have four digits
Row = Mapping[str, Any]

SAYS = """
A merge computes every weight and bias in float64 and rounds it once to the base's dtype. Here is what is left of it:
the error of the merged layer against the formula and the layer computed in long double from the same stored numbers,
the largest of the outputs, in units of the dtype's epsilon times the largest output. The bar is what cannot be had
cheaper: the error that the plain layer itself makes with weight and bias rounded once, plus what that rounding changes.
""".strip().replace("\n", " ")
CELLS = """
A cell is `error / bar` of the case with the largest error, first for ordinary values and then for extreme ones (weights
and inputs over many powers of two; support tensors of -1, 100, -100, 1e-7 and 0). Rank 4; both readings of `W0 * A`.
LlamaRMSNorm computes in float32 whatever its type; where a softmax is steep, as with extreme values, all errors grow.
""".strip().replace("\n", " ")
WHY_64 = """
In fp64 there is no wider type to compute in, so that a weight has the few roundings of its own formula instead of one;
where products cancel, as with an A of -1, they are of the size of what has cancelled.
""".strip().replace("\n", " ")
THEIRS = """
PEFT's on the same layers, inputs and numbers. Drift is what one merge and unmerge leaves of the base's weight: the norm
of the difference over that of the weight, the largest of the cases; moved is the largest share of its numbers that are
no longer what they were. `detach` of glora leaves 0 of both. "Not finite" counts the cases whose base is lost in NaN or
infinity. LoRA is rank 4 in float32; GLoRA all its settings with A and B.
""".strip().replace("\n", " ")


def read(folder: Path | None = None) -> list[dict[str, Any]]:
    """What was measured, a file for each layer type and one of PEFT's."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder or FOLDER).glob("*.json"))]
    return sorted(found, key=lambda each: each["place"])


def page(found: Sequence[Mapping[str, Any]] | None = None) -> str:
    """The Markdown page."""
    found = read() if found is None else found
    layers = [each for each in found if each["name"] != PEFT]
    theirs = [row for each in found if each["name"] == PEFT for row in each["rows"]]
    parts = [
        ["# How exact a merge is", ""],
        ["This page is made by `python benchmarks/errors.py --table` from `results/errors/`; do not edit it.", ""],
        [*wrapped(SAYS), ""],
        ["## What it shows", "", *shown(layers, theirs), ""],
        ["## By layer type", "", *wrapped(CELLS), "", *by_layer(layers), ""],
        ["## Beside PEFT", "", *wrapped(THEIRS), "", *peft_table(theirs), ""],
        ["## By choice", ""],
        [line for each in layers for line in by_choice(each)],
        ["## Machine and versions", "", *stamps(found), ""],
    ]
    return "\n".join(line for part in parts for line in part)


def every(layers: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """The rows over all choices."""
    for each in layers:
        yield from (row for row in each["rows"] if not row["tensor"])


def shown(layers: Sequence[Mapping[str, Any]], theirs: Sequence[Row]) -> Iterator[str]:
    """The findings, computed from the numbers."""
    rows = list(every(layers))
    cases, lost = (sum(row[name] for row in rows) for name in ("cases", "not_detached"))
    yield from wrapped(f"{cases:,} merges of {len(layers)} layer types. {back(cases, lost)}", "- ")
    for dtype in DTYPES:
        of = [row for row in rows if row["dtype"] == dtype]
        total, missed, refused = (sum(row[name] for row in of) for name in ("cases", "missed", "refused"))
        if not total:
            continue
        most = max(row["ratio"] for row in of)
        told = f"{dtype}: the bar is missed in {missed:,} of {total:,} cases"
        told += f", by up to {most:.3g} times." if missed else "."
        if refused:
            told += f" {refused:,} more have a weight (which is refused) or a plain output that {dtype} cannot hold."
        yield from wrapped(f"{told} {WHY_64}" if missed and dtype == "fp64" else told, "- ")
    if theirs:
        yield from wrapped(peft_told(theirs), "- ")


def back(cases: int, lost: int) -> str:
    """What came of the bases."""
    return f"`detach` gave all {cases:,} bases back bit for bit." if not lost else f"`detach` failed in {lost:,} cases."


def peft_told(theirs: Sequence[Row]) -> str:
    """What one cycle of PEFT's does to a base in bf16."""
    parts = []
    for method in dict.fromkeys(row["method"] for row in theirs):
        of = [row for row in theirs if row["method"] == method and row["dtype"] == "bf16"]
        ranges, lost = [], sum(row["drift"] is None for row in of)
        for values in VALUES:
            drifts = [100 * row["drift"] for row in of if row["values"] == values and row["drift"] is not None]
            ranges += [f"by {min(drifts):.2g} to {max(drifts):.2g}% ({values} values)"] if drifts else []
        ranges += [f"and loses it in NaN or infinity in {lost} of {len(of)} cases"] if lost else []
        parts.append(f"{method}'s leaves the base's weight off {', '.join(ranges)}")
    return f"One merge and unmerge of PEFT's in bf16: {'; '.join(parts)}."


def short(value: float) -> str:
    """Two decimals; of large values two digits."""
    return f"{value:.2f}" if value < 1000 else f"{value:.1e}"


def of_bar(row: Row) -> str:
    """The error beside the bar."""
    return f"{short(row['error'])} / {short(row['own'] + row['rounding'])}"


def cell(rows: Sequence[Row]) -> str:
    """Error and bar, ordinary then extreme."""
    parts = []
    for values in VALUES:
        of = [row for row in rows if row["values"] == values and row["cases"]]
        if of:
            row = max(of, key=lambda each: each["error"])
            parts.append(of_bar(row))
    return ", ".join(parts) or "–"


def by_layer(layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A row for every layer type."""
    yield f"| layer | cases | {' | '.join(DTYPES)} | bar missed |"
    yield f"|---|---:|{'---|' * len(DTYPES)}---:|"
    for each in layers:
        rows = list(every([each]))
        cells = [cell([row for row in rows if row["dtype"] == dtype]) for dtype in DTYPES]
        missed = {dtype: sum(row["missed"] for row in rows if row["dtype"] == dtype) for dtype in DTYPES}
        told = ", ".join(f"{dtype} {count:,}" for dtype, count in missed.items() if count) or "0"
        yield f"| {each['name']} | {sum(row['cases'] for row in rows):,} | {' | '.join(cells)} | {told} |"


def by_choice(each: Mapping[str, Any]) -> Iterator[str]:
    """The table of one layer type: a row for every support tensor and choice."""
    yield from (f"### {each['name']}", "")
    yield f"| choice | {' | '.join(DTYPES)} |"
    yield f"|---|{'---|' * len(DTYPES)}"
    keys = dict.fromkeys((row["tensor"], row["choice"]) for row in each["rows"] if row["tensor"])
    for tensor, choice in sorted(keys, key=lambda key: key[0]):
        of = [row for row in each["rows"] if (row["tensor"], row["choice"]) == (tensor, choice)]
        cells = [cell([row for row in of if row["dtype"] == dtype]) for dtype in DTYPES]
        yield f"| {tensor} {choice} | {' | '.join(cells)} |"
    yield ""


def peft_table(theirs: Sequence[Row]) -> Iterator[str]:
    """A row for every method, layer, dtype and kind of values."""
    yield "| | layer | dtype | values | cases | error / bar | bar missed | glora's error | drift | moved | not finite |"
    yield "|---|---|---|---|---:|---|---:|---:|---:|---:|---:|"
    keys = dict.fromkeys((row["method"], row["layer"], row["dtype"], row["values"]) for row in theirs)
    for key in keys:
        of = [row for row in theirs if (row["method"], row["layer"], row["dtype"], row["values"]) == key]
        told = [row for row in of if row["error"] is not None]
        worst = max(told, key=lambda row: row["error"], default=None)
        error = "–" if worst is None else of_bar(worst)
        missed = sum(row["error"] > ALMOST * (row["own"] + row["rounding"]) for row in told)
        ours = max((row["glora"] for row in of if row["glora"] is not None), default=None)
        drifts = [row["drift"] for row in of if row["drift"] is not None]
        drift = f"{100 * max(drifts):.2g}%" if drifts else "–"
        moved = max(row["moved"] for row in of)
        lost = len(of) - len(drifts)
        mine = "–" if ours is None else short(ours)
        numbers = [error, str(missed), mine, drift, f"{100 * moved:.0f}%", str(lost)]
        yield f"| {' | '.join(key)} | {len(of)} | {' | '.join(numbers)} |"


def stamps(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """On what it was measured, and with which code."""
    for what, values in (
        ("Device", {each["device"] for each in found}),
        ("Commit", {(each["commit"] or "")[:7] for each in found}),
        ("Versions", {", ".join(f"{k} {v}" for k, v in each["versions"].items()) for each in found}),
    ):
        yield from wrapped(f"{what}: {'; '.join(sorted(values))}.", "- ")
