"""Trainable numbers on ViT-B/16 and Swin-B against formulas worked out by hand, and the table of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from glora.cli.app import app
from glora.errors import UnknownNameError
from glora.methods import METHODS
from glora.report.published import VTAB, VTAB_GROUPS
from glora.report.sheet import as_markdown
from glora.runs.parameter_table import CLASSES, FACT_TK, FACT_TT, ROWS, Row, counted, group_mean, parameter_table

D, L = 768, 12
WIDTHS = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2  # of Swin-B's blocks
STAGES = {128: 2, 256: 2, 512: 18, 1024: 2}
QKV = ("attn.qkv",)


@pytest.mark.parametrize(
    ("method", "settings", "wanted"),
    [
        ("full", {}, 85_798_656),
        ("linear", {}, 0),
        ("bitfit", {}, 11 * D * L + 2 * D),
        ("biases", {}, 9 * D * L),
        ("lora", {"targets": QKV}, L * (8 * D + 8 * 3 * D)),
        ("lora", {"targets": QKV, "parts": ("q", "v")}, L * 2 * 2 * 8 * D),
        ("lora", {"targets": QKV, "parts": ("q", "k", "v")}, 442_368),
        ("fact", {"form": "tk", "rank": 8}, 13_952),
        ("fact", {"form": "tk", "rank": 16}, 2 * D * 16 + 144 * 16 + 16**3),
        ("fact", {"form": "tk", "rank": 32}, 86_528),
        ("fact", {"form": "tt", "rank": 4}, 8_448),
        ("fact", {"form": "tt", "rank": 8}, 21_504),
        ("fact", {"form": "tt", "rank": 16}, 2 * D * 16 + 144 * 16**2),
        ("ssf", {}, 22 * D * L + 4 * D),
        ("repadapter", {}, 239_808),
        ("repadapter", {"where": "attention"}, 239_808 // 2),
    ],
)
def test_counts_on_vit_b(method: str, settings: dict[str, Any], wanted: int) -> None:
    assert counted("vit_b", method, settings).numbers == wanted


@pytest.mark.parametrize(
    ("method", "settings", "wanted"),
    [
        # norms of the patches, of the three mergings (4c), and the last; the mergings have no bias of their own
        ("bitfit", {}, sum(11 * d for d in WIDTHS) + 2 * 128 + 4 * (128 + 256 + 512) + 1024),
        ("biases", {}, sum(9 * d for d in WIDTHS)),
        ("lora", {"targets": QKV}, sum(8 * d + 8 * 3 * d for d in WIDTHS)),
        ("fact", {"form": "tk", "rank": 16}, sum(2 * d * 16 + 12 * n * 16 + 16**3 for d, n in STAGES.items())),
        ("fact", {"form": "tt", "rank": 8}, sum(2 * d * 8 + 12 * n * 8**2 for d, n in STAGES.items())),
        ("ssf", {}, sum(22 * d for d in WIDTHS) + 4 * 128 + 8 * (128 + 256 + 512) + 2 * 1024),
        ("repadapter", {}, sum(2 * (8 * d + 4 * d + 8 + d) for d in WIDTHS)),
    ],
)
def test_counts_on_swin_b(method: str, settings: dict[str, Any], wanted: int) -> None:
    assert counted("swin_b", method, settings).numbers == wanted


@pytest.mark.parametrize(
    ("ranks", "mean", "largest"),
    [
        ((2,), 0.309, 2 * 359_472 + 165_888),
        ((4,), 0.500, 4 * 359_472 + 165_888),
        ((8,), 0.880, 8 * 359_472 + 165_888),
        ((4, 2), 0.555, 4 * 359_472 + 165_888),
        ((8, 4), 1.006, 8 * 359_472 + 165_888),
    ],
)
def test_sizes_of_the_papers_spaces(ranks: tuple[int, ...], mean: float, largest: int) -> None:
    settings = {"ranks": ranks, "product": "elementwise", "variant": "paper", "new_bias": True, "scaling": "none"}
    found = counted("vit_b", "glora", settings)
    assert (found.smallest, found.largest) == (0, largest)
    assert found.numbers / 1e6 == pytest.approx(mean, abs=0.02)


def test_the_table_has_every_row_of_the_papers_whose_method_is_there() -> None:
    rows = [row for row in ROWS if row.method in METHODS]
    sheet = parameter_table("vit_b")
    assert len(sheet.lines) == len(rows) >= 14
    assert {row.name for row in ROWS} == {row.name for row in VTAB}
    ours = {line.name: {key: cell.value for key, cell in line.cells.items()} for line in sheet.lines}
    for row, line in zip(rows, sheet.lines, strict=True):
        assert line.cells["paper"].value == next(each.parameters for each in VTAB if each.name == row.name)
    assert ours["BitFit"]["without_biases"] == 0
    assert ours["RepAdapter"]["without_biases"] == pytest.approx(0.221184)
    assert ours["RepAdapter"]["counted"] == pytest.approx(0.239808)
    assert ours["SSF"]["with_head"] == pytest.approx(0.2416, abs=5e-5)
    assert ours["FacT (TK, rank at most 32)"]["counted"] == pytest.approx(0.0693, abs=5e-5)
    assert ours["FacT (TT, rank at most 16)"]["counted"] == pytest.approx(0.0366, abs=5e-5)
    for name, value in {"VPT-Shallow": 0.063, "VPT-Deep": 0.530, "Adapter": 0.1568, "AdaptFormer": 0.1568}.items():
        if name in ours:
            assert ours[name]["counted"] == pytest.approx(value, abs=6e-4), name
    told = as_markdown(sheet)
    assert "cannot be reproduced" in told and "counts the head" in told


@pytest.mark.slow
def test_the_table_of_swin_b_is_made_too() -> None:
    assert "Swin-B" in as_markdown(parameter_table("swin_b"))


def test_values_of_the_tasks_are_complete() -> None:
    for values in (CLASSES, FACT_TK, FACT_TT, *(row.values for row in ROWS if row.vary)):
        assert {group: len(of) for group, of in values.items()} == {g: len(tasks) for g, tasks in VTAB_GROUPS.items()}
    assert sum(map(sum, CLASSES.values())) == 940
    assert group_mean({"a": [1, 3], "b": [8]}) == 5


def test_what_cannot_be_put_on_the_model_is_left_out_and_said() -> None:
    nowhere = Row("NOAH", "", "lora", {"targets": ("nowhere",)})
    sheet = parameter_table("vit_b", [nowhere, Row("SSF", "", "ssf")])
    assert [line.name for line in sheet.lines] == ["SSF"]
    assert "NOAH is left out: it cannot be put on ViT-B/16." in sheet.caption


def test_a_name_is_not_broken_within_a_word_in_a_terminal_of_80_columns() -> None:
    told = CliRunner().invoke(app, ["table", "params"]).stdout
    lines = [line for line in told.splitlines() if line.startswith("│")]
    assert len(lines) >= len(ROWS) and max(map(len, lines)) <= 80
    words = {line.split()[1] for line in lines}
    assert {"VPT-Shallow", "AdaptFormer", "RepAdapter"} <= words


def test_the_command_line_prints_it() -> None:
    told = CliRunner().invoke(app, ["table", "params", "--json"])
    assert told.exit_code == 0, told.output
    (sheet,) = json.loads(told.stdout)
    rows = {row["name"]: row["values"] for row in sheet["rows"]}
    assert rows["BitFit"] == pytest.approx({**rows["BitFit"], "paper": 0.10, "counted": 0.102912})


def test_another_model_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="vit_l"):
        parameter_table("vit_l")
