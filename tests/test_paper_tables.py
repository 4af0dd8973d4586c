"""The paper's tables: the printed rows against the averages printed with them, and ours beside them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from glora.cli.app import app
from glora.errors import RunError, UnknownNameError
from glora.report.folders import read_results
from glora.report.paper.fewshot import fewshot
from glora.report.paper.generalization import generalization
from glora.report.paper.inference import inference
from glora.report.paper.vtab import vtab
from glora.report.published import (
    FEWSHOT,
    GENERALIZATION,
    INFERENCE,
    SHOTS,
    VTAB,
    VTAB_SWIN,
    PublishedRow,
)
from glora.report.sheet import Cell, Column, Line, Sheet, as_csv, as_latex, as_markdown, as_tables
from glora.runs.reporter import Silent
from glora.runs.run import Run
from glora.tasks.data.paper_sets import FEW_SHOT, VTAB_GROUPS
from suites.results import OFFLINE, made, suite
from suites.toy import image_folder, tiny

FEWSHOT_TASKS = [each.name for each in FEW_SHOT]
TASKS = [task for tasks in VTAB_GROUPS.values() for task in tasks]
GROUP_OF = {task: group for group, tasks in VTAB_GROUPS.items() for task in tasks}
COMPUTED = {  # the mean of the three group means, computed elsewhere from the printed columns
    "Full": 68.97, "VPT-Deep": 71.97, "LoRA": 74.60, "NOAH": 75.48, "FacT": 75.55, "SSF": 75.70, "RepAdapter": 76.09,
    "GLoRA (0.86 M)": 77.97, "GLoRA (0.29 M)": 77.36,
}  # fmt: skip
TASK_MEANS = {  # of all 19, as V-PETL-Bench prints them
    "Full": 65.57, "Adapter": 71.44, "VPT-Shallow": 64.85, "VPT-Deep": 69.43, "BitFit": 62.05, "LoRA": 72.25,
    "AdaptFormer": 72.32, "SSF": 73.10, "NOAH": 73.25, "FacT": 73.23, "RepAdapter": 73.84,
}  # fmt: skip


def cell(sheet: Sheet, name: str, column: str, *, printed: bool = False) -> Cell:
    line = next(line for line in sheet.lines if line.name == name and line.printed == printed)
    return line.cells.get(column, Cell())


def value(sheet: Sheet, name: str, column: str, *, printed: bool = False) -> float:
    found = cell(sheet, name, column, printed=printed).value
    assert found is not None
    return found


def names(sheet: Sheet) -> list[str]:
    return [line.name for line in sheet.lines if not line.printed]


# -- the printed rows


@pytest.mark.parametrize("row", VTAB, ids=lambda row: row.name)
def test_a_printed_row_gives_the_average_that_is_printed_with_it(row: PublishedRow) -> None:
    """Averages are printed rounded or cut off, as it happens."""
    sheet = vtab([])[0]
    assert list(row.values) == TASKS
    found = value(sheet, row.name, "group_mean", printed=True)
    assert row.average is not None
    assert row.average in {round(found, 1), int(10 * found) / 10} or row.name == "LoRA"
    assert abs(found - row.average) < 0.11  # LoRA's columns give 74.60, and 74.5 is printed
    if row.name in COMPUTED:
        assert found == pytest.approx(COMPUTED[row.name], abs=0.006)
    if row.name in TASK_MEANS:
        assert value(sheet, row.name, "task_mean", printed=True) == pytest.approx(TASK_MEANS[row.name], abs=0.006)


def test_misprints_are_kept_and_told() -> None:
    linear = next(row for row in VTAB if row.name == "Linear")
    assert (linear.values["cifar"], linear.values["resisc45"]) == (64.4, 68.5)
    meant = {**linear.values, "cifar": 63.4, "resisc45": 68.6}
    natural, specialized = ([meant[task] for task in VTAB_GROUPS[group]] for group in ("natural", "specialized"))
    assert sum(natural) / 7 == pytest.approx(68.93, abs=0.006)
    assert sum(specialized) / 4 == pytest.approx(77.15, abs=0.006)
    assert "63.4" in linear.note
    assert any(linear.note in sentence for sentence in vtab([])[0].caption)


@pytest.mark.parametrize("row", VTAB_SWIN, ids=lambda row: row.name)
def test_the_group_means_of_swin_give_its_printed_average(row: PublishedRow) -> None:
    assert row.average == pytest.approx(sum(row.values.values()) / 3, abs=0.06)
    assert value(vtab([])[1], row.name, "group_mean", printed=True) == pytest.approx(row.average, abs=0.06)


@pytest.mark.parametrize("row", GENERALIZATION, ids=lambda row: row.name)
def test_generalization_rows_give_the_average_quoted_with_them(row: PublishedRow) -> None:
    assert row.average is not None
    off = abs(sum(row.values.values()) / 5 - row.average)
    assert off < (0.25 if "34.9" in row.note else 0.1)


def test_the_few_shot_rows_are_whole_and_rise_with_the_shots() -> None:
    for row in FEWSHOT:
        assert list(row.values) == [f"{task}:{shots}" for task in FEWSHOT_TASKS for shots in SHOTS]
        for task in FEWSHOT_TASKS:
            curve = [row.values[f"{task}:{shots}"] for shots in SHOTS]
            assert curve == sorted(curve)


def test_merged_methods_cost_what_the_plain_network_costs() -> None:
    rows = {row.name: row.values for row in INFERENCE}
    assert rows["GLoRA"] == rows["Full"]
    assert all(rows[name]["images_per_second_1"] < rows["Full"]["images_per_second_1"] for name in ("VPT", "Adapter"))


def test_every_printed_row_says_where_it_was_read() -> None:
    every = [*VTAB, *VTAB_SWIN, *GENERALIZATION, *INFERENCE, *FEWSHOT]
    assert all(row.source for row in every)
    doubtful = {row.name for row in VTAB if not row.confirmed}
    assert doubtful == {"GLoRA (0.44 M)", "GLoRA (0.29 M)"}
    told = next(sentence for sentence in vtab([])[0].caption if "no public text" in sentence)
    assert all(name in told for name in doubtful)


# -- VTAB with rows of ours


def test_a_printed_row_measured_again_has_its_averages() -> None:
    row = next(row for row in VTAB if row.name == "LoRA")
    tests = {task: row.values[task] / 100 for task in TASKS}
    sheet = vtab(suite("LoRA", tests, groups=GROUP_OF))[0]
    for column in [*TASKS, *VTAB_GROUPS, "group_mean", "task_mean"]:
        assert value(sheet, "LoRA", column) == pytest.approx(value(sheet, "LoRA", column, printed=True))
    assert value(sheet, "LoRA", "parameters") == 0.29


def test_seeds_give_mean_and_spread_of_cells_and_of_averages() -> None:
    tests = dict.fromkeys(TASKS, 0.5)
    sheet = vtab(suite("LoRA", tests, groups=GROUP_OF, seeds=(0, 1, 2)))[0]
    for column in ("cifar", "natural", "group_mean", "task_mean"):
        found = cell(sheet, "LoRA", column)
        assert found.value == pytest.approx(51.0)
        assert found.spread == pytest.approx(1.0)
    assert value(sheet, "LoRA", "seeds") == 3
    assert cell(sheet, "LoRA", "cifar").text(".1f") == "51.0 ± 1.0"


def test_the_spread_of_an_average_is_that_of_seeds_which_have_every_column() -> None:
    cells = suite("LoRA", dict.fromkeys(TASKS, 0.5), groups=GROUP_OF, seeds=(0, 1))
    cells = [each for each in cells if (each.task, each.seed) != ("cifar", 1)]
    sheet = vtab(cells)[0]
    assert cell(sheet, "LoRA", "cifar").spread is None
    assert cell(sheet, "LoRA", "natural").spread is None  # one seed alone has all of it
    assert value(sheet, "LoRA", "natural") == pytest.approx((50 + 6 * 50.5) / 7)
    assert cell(sheet, "LoRA", "seeds").note == "1 to 2"


@pytest.mark.parametrize("lost", ["cifar", "smallnorb_ele"])
def test_an_average_of_an_incomplete_row_is_a_dash(lost: str) -> None:
    tests = {task: 0.5 for task in TASKS if task != lost}
    sheet = vtab(suite("LoRA", tests, groups=GROUP_OF))[0]
    missing = {lost, GROUP_OF[lost], "group_mean", "task_mean"}
    for column in [*TASKS, *VTAB_GROUPS, "group_mean", "task_mean"]:
        assert (cell(sheet, "LoRA", column).value is None) == (column in missing)
        assert cell(sheet, "LoRA", column).text(".1f") == ("–" if column in missing else "50.0")


def test_the_order_and_the_names_of_rows() -> None:
    """Ours after the printed ones and in their order, a method that is not printed last."""
    cells = [made(title, "cifar") for title in ("mine", "FacT-TK", "Adapter (Houlsby)", "AdaptFormer")]
    cells += [made("SSF", "cifar100"), made("", "caltech101", method="lora"), made("SSF", "Caltech101")]
    sheet = vtab(cells)[0]
    assert [line.printed for line in sheet.lines] == [True] * len(VTAB) + [False] * 6
    assert names(sheet) == ["Adapter (Houlsby)", "AdaptFormer", "lora", "FacT-TK", "SSF", "mine"]
    assert cell(sheet, "SSF", "cifar").value == cell(sheet, "SSF", "caltech101").value == 80.0


def test_rows_of_the_papers_protocol_are_marked_and_apart() -> None:
    cells = [made("LoRA", "cifar", 0.7), made("LoRA", "cifar", 0.8, protocol="paper")]
    sheet = vtab(cells)[0]
    assert names(sheet) == ["LoRA", "LoRA (paper protocol)"]
    assert any("paper protocol" in sentence for sentence in sheet.caption)
    assert not any("paper protocol" in sentence for sentence in vtab(cells[:1])[0].caption)


def test_models_have_rows_of_their_own_and_a_mixture_is_told() -> None:
    cells = [made("LoRA", "cifar"), made("LoRA", "cifar", model="vit_small_patch14", example_steps={"train": 8_000})]
    sheet = vtab(cells)[0]
    assert names(sheet) == ["LoRA, vit_base_patch16_224", "LoRA, vit_small_patch14"]
    told = next(sentence for sentence in sheet.caption if "differ" in sentence)
    assert "vit_small_patch14" in told and "8,000, 80,000" in told and "image sizes" not in told
    assert any("80,000 image-steps" in sentence for sentence in vtab(cells[:1])[0].caption)


def test_a_setting_chosen_task_by_task_divides_no_row_but_two_runs_of_one_cell_do() -> None:
    rates = [
        made("LoRA", task, config={"train": {"lr": lr}})
        for task, lr in (("cifar", 1e-3), ("dtd", 1e-2), ("svhn", 1e-3))
    ]
    assert names(vtab(rates)[0]) == ["LoRA"]
    again = made("LoRA", "cifar", 0.7, config={"train": {"lr": 1e-2}})
    sheet = vtab([*rates, again])[0]
    assert names(sheet) == ["LoRA, lr 0.001", "LoRA, lr 0.01"]
    assert value(sheet, "LoRA, lr 0.01", "cifar") == 70.0
    assert value(sheet, "LoRA, lr 0.01", "dtd") == value(sheet, "LoRA, lr 0.001", "svhn") == 80.0


def test_copies_count_once_and_a_run_made_again_has_its_own_row() -> None:
    one = made("LoRA", "cifar", 0.7)
    assert names(vtab([one, one])[0]) == ["LoRA"]
    sheet = vtab([one, one, made("LoRA", "cifar", 0.75)])[0]
    assert names(sheet) == ["LoRA", "LoRA (2)"]
    assert (value(sheet, "LoRA", "cifar"), value(sheet, "LoRA (2)", "cifar")) == (70.0, 75.0)


def test_swin_is_compared_with_table_5_and_both_have_a_sheet() -> None:
    swin = suite("LoRA", dict.fromkeys(TASKS, 0.6), groups=GROUP_OF, model="swin_base_patch4_window7_224")
    sheets = vtab([*swin, made("LoRA", "cifar")])
    assert ["Table 1" in sheet.title for sheet in sheets] == [True, False]
    assert value(sheets[1], "LoRA", "group_mean") == pytest.approx(60.0)
    assert value(sheets[1], "Full", "natural", printed=True) == 79.1
    assert cell(sheets[1], "Full", "cifar", printed=True).value is None
    assert cell(sheets[1], "Full", "task_mean", printed=True).value is None


def test_another_suite_has_its_own_columns_and_no_printed_rows() -> None:
    tests = {"fashion_mnist": 0.8, "digits": 0.9, "textile": 0.7, "dsprites_loc": 0.2, "dsprites_ori": 0.4}
    cells = [
        made("GLoRA", task, test, group=OFFLINE[task], config={"data": {"source": task}})
        for task, test in tests.items()
    ]
    (own,) = vtab(cells)  # of packaged data: two tasks are called like VTAB's, which come from the source "vtab"
    assert not [line for line in own.lines if line.printed]
    assert [column.key for column in own.columns][1:6] == list(tests)
    assert [column.group for column in own.columns][1:6] == [OFFLINE[task] for task in tests]
    assert value(own, "GLoRA", "group_mean") == pytest.approx((85 + 70 + 30) / 3)
    assert value(own, "GLoRA", "task_mean") == pytest.approx(60.0)


def test_printed_rows_stand_beside_the_papers_own_data_alone() -> None:
    def named(source: str) -> str:
        return vtab([made("LoRA", "svhn", config={"data": {"source": source}})])[0].title

    assert "Table 1" in named("vtab") and "Table 1" in named("from_python")
    assert "Table 1" not in named("svhn") + named("my/svhn")


def test_a_run_on_a_miniature_of_the_shared_layout_is_a_cell_of_table_1(tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "vtab" / "kitti" / "images", classes=("a", "b", "c", "d"), per_class=6)
    files = [f"images/{name}/{k}.png {label}" for label, name in enumerate("abcd") for k in range(6)]
    for split, shares in (("train800", (0, 1, 2)), ("val200", (3,)), ("test", (4, 5))):
        lines = [line for k, line in enumerate(files) if k % 6 in shares]
        (photos.parent / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    data = {"source": "vtab", "root": str(tmp_path / "vtab"), "task": "kitti"}
    experiment = tiny(tmp_path, method="linear", data=data)
    result = Run(experiment, tmp_path / "run", Silent()).fit()
    assert result is not None
    (sheet,) = vtab(read_results([tmp_path / "run"]))
    assert "Table 1" in sheet.title
    assert value(sheet, result.title or "linear", "kitti") == pytest.approx(
        100 * (result.metrics["test_accuracy"] or 0)
    )


def test_rows_of_different_seeds_are_told() -> None:
    told = "Rows or cells differ in their seeds: each mean is of those that it has."
    results = [made(title, "cifar", seed=seed) for title in ("LoRA", "SSF") for seed in (0, 1)]
    assert told not in vtab(results)[0].caption
    assert told in vtab([*results, made("LoRA", "cifar", 0.9, seed=2)])[0].caption


def test_a_copy_of_other_size_is_told_beside_printed_rows() -> None:
    note = "Not the usual copy: cifar/test.txt has 20 images, where 10,000 are known."
    results = [made("LoRA", "cifar", notes=[note]), made("SSF", "cifar", notes=[note]), made("LoRA", "dtd")]
    (sheet,) = vtab(results)
    assert "Not of the usual copy, and not to be compared with printed figures: cifar." in sheet.caption
    (sheet,) = vtab(results[2:])
    assert not any("usual copy" in each for each in sheet.caption)


def test_tasks_of_no_group_have_a_task_mean_alone() -> None:
    (own,) = vtab([made("LoRA", "mine", 0.5), made("LoRA", "yours", 0.7)])
    assert [column.key for column in own.columns] == ["parameters", "mine", "yours", "task_mean"]
    assert value(own, "LoRA", "task_mean") == pytest.approx(60.0)


def test_results_without_test_are_left_out_and_told() -> None:
    sheet = vtab([made("LoRA", "cifar"), made("SSF", "cifar", None)])[0]
    assert names(sheet) == ["LoRA"]
    assert any(sentence.startswith("1 results have no test") for sentence in sheet.caption)
    with pytest.raises(RunError, match="None of the 1 results has a test accuracy"):
        vtab([made("SSF", "cifar", None)])


# -- the other tables


def shot(title: str, task: str, shots: int, test: float, **more: Any) -> Any:
    return made(title, task, test, config={"data": {"source": "fewshot", "shots": shots}}, **more)


def test_few_shot_cells_are_told_apart_by_their_shots() -> None:
    cells = [shot("GLoRA", task, n, 0.5, seed=seed) for task in FEWSHOT_TASKS for n in (1, 16) for seed in (0, 1)]
    cells += [shot("GLoRA", "oxford-pets", 4, 0.7)]
    sheet = fewshot(cells)[0]
    assert value(sheet, "GLoRA", "oxford_pets:4") == pytest.approx(70.0)
    assert value(sheet, "GLoRA", "mean:16") == pytest.approx(50.0)
    assert cell(sheet, "GLoRA", "mean:4").value is None
    assert cell(sheet, "GLoRA", "food101:2").value is None
    printed = [value(sheet, "GLoRA", f"{task}:16", printed=True) for task in FEWSHOT_TASKS]
    assert value(sheet, "GLoRA", "mean:16", printed=True) == pytest.approx(sum(printed) / 5)


def test_draws_of_training_images_are_averaged_as_seeds_are() -> None:
    cells = [
        made("SSF", "food101", 0.5 + draw / 100, config={"data": {"source": "fewshot", "shots": 1, "list_seed": draw}})
        for draw in (0, 1, 2)
    ]
    sheet = fewshot(cells)[0]
    assert names(sheet) == ["SSF"]
    assert (cell(sheet, "SSF", "food101:1").value, cell(sheet, "SSF", "food101:1").spread) == pytest.approx((51, 1))


def test_few_shots_of_other_data_have_a_sheet_and_no_shots_none() -> None:
    sheets = fewshot([shot("LoRA", "digits", 2, 0.5), made("LoRA", "digits")])
    assert [names(sheet) for sheet in sheets] == [["LoRA"]]
    assert [column.key for column in sheets[0].columns] == ["parameters", "digits:2"]
    assert any("no number of shots" in sentence for sentence in sheets[0].caption)
    with pytest.raises(RunError, match="None of the results has a number of shots"):
        fewshot([made("LoRA", "digits")])


def test_generalization_reads_the_further_test_sets() -> None:
    others: dict[str, Mapping[str, float | None]] = {
        "imagenetv2": {"accuracy": 0.6, "accuracy_200way": None},
        "imagenet-adversarial": {"accuracy": 0.1, "accuracy_200way": 0.3},
    }
    cells = [made("LoRA", "imagenet", 0.7 + seed / 100, seed=seed, others=others) for seed in (0, 1, 2)]
    sheet = generalization([*cells, made("SSF", "cifar")])[0]
    assert names(sheet) == ["LoRA"]
    assert cell(sheet, "LoRA", "imagenet").spread == pytest.approx(1.0)
    assert value(sheet, "LoRA", "imagenetv2") == pytest.approx(60.0)
    assert value(sheet, "LoRA", "imagenet-adversarial") == pytest.approx(10.0)
    assert value(sheet, "LoRA", "imagenet-adversarial:200") == pytest.approx(30.0)
    assert cell(sheet, "LoRA", "imagenet-sketch").value is None
    assert value(sheet, "NOAH", "imagenet-sketch", printed=True) == 24.8
    with pytest.raises(RunError, match="further test set"):
        generalization([made("SSF", "cifar")])


def test_inference_reads_speeds_and_what_the_method_adds() -> None:
    speeds = {"images_per_second_1": 10.0, "images_per_second_16": 40.0, "flops": 7.0e9, "backbone_flops": 6.0e9}
    sheet = inference([made("VPT-Deep", "", latency=speeds), made("LoRA", "", latency={"ratio": 1.0})])[0]
    assert names(sheet) == ["VPT-Deep"]
    assert value(sheet, "VPT-Deep", "gflops") == pytest.approx(3.5)
    assert value(sheet, "VPT-Deep", "added_gflops") == pytest.approx(0.5)
    assert value(sheet, "VPT-Deep", "images_per_second_16") == 40.0
    assert cell(sheet, "VPT-Deep", "images_per_second_4").value is None
    with pytest.raises(RunError, match="speed by batch size"):
        inference([made("LoRA", "")])


# -- how a sheet is written


SHEET = Sheet(
    "A & B",
    (Column("x", "x_1", "one"), Column("y", "y", "one", ".2f"), Column("z", "z", "two")),
    (
        Line("LoRA|8", {"x": Cell(50.0), "y": Cell(1.0)}, printed=True),
        Line("SSF", {"x": Cell(61.04, 0.5), "z": Cell(note="1 to 2")}),
    ),
    ("50 % is half.",),
)


def test_a_sheet_as_markdown() -> None:
    lines = as_markdown(SHEET).splitlines()
    assert lines[0] == "**A & B**"
    assert [part.strip() for part in lines[4].split(" | ")] == [r"| LoRA\|8, printed", "50.0", "1.00", "– |"]
    assert [part.strip() for part in lines[5].split(" | ")] == ["| SSF", "61.0 ± 0.5", "–", "1 to 2 |"]
    assert len({len(line) for line in lines[2:6]}) == 1


def test_a_sheet_as_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(SHEET))))
    assert rows[0] == {"method": "LoRA|8", "printed": "true", "x": "50.0", "x_spread": "", "y": "1.0", "z": ""}
    assert rows[1] == {"method": "SSF", "printed": "false", "x": "61.04", "x_spread": "0.5", "y": "", "z": "1 to 2"}


def test_a_spread_of_nothing_is_a_spread() -> None:
    sheet = Sheet("A", (Column("x", "x"),), (Line("SSF", {"x": Cell.over([50.0, 50.0])}),))
    assert as_csv(sheet).splitlines() == ["method,printed,x,x_spread", "SSF,false,50.0,0.0"]


def test_a_sheet_as_latex() -> None:
    text = as_latex(SHEET)
    assert r"\caption{A \& B. 50 \% is half.}" in text
    assert r"\multicolumn{2}{c}{one}" in text and r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    assert r"x\_1 & y & z \\" in text
    assert r"SSF & 61.0 $\pm$ 0.5 & -- & 1 to 2 \\" in text
    assert text.count(r"\midrule") == 2
    assert text.count("{") == text.count("}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in rows)


def test_a_sheet_for_a_terminal() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for table in as_tables(SHEET):
        console.print(table)
    assert "61.0 ± 0.5" in console.export_text()
    wide = as_tables(vtab([])[0])
    assert [str(table.title).rpartition(": ")[2] for table in wide] == [*VTAB_GROUPS, "mean"]


def printed_on(sheet: Sheet, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in as_tables(sheet, width):
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [70, 80, 120])
def test_on_a_narrow_terminal_no_name_and_no_number_is_broken(width: int) -> None:
    sheet = vtab(suite("LoRA", dict.fromkeys(GROUP_OF, 0.6), seeds=(0, 1), groups=GROUP_OF))[0]
    text = printed_on(sheet, width)
    rows = {tuple(part.strip() for part in line.split("│")[1:-1]) for line in text.splitlines() if "│" in line}
    names = [f"{line.name}, printed" if line.printed else line.name for line in sheet.lines]
    for line, name in zip(sheet.lines, names, strict=True):
        assert [cell for row in rows if row[0] == name for cell in row[1:]]
        assert {cell for row in rows if row[0] == name for cell in row[1:]} == set(sheet.texts(line))
    assert {row[0] for row in rows} == set(names)
    assert max(map(len, text.splitlines())) <= width


def test_columns_of_one_title_are_told_apart_on_a_terminal() -> None:
    sheet = Sheet("A", (Column("x", "R", "all"), Column("y", "R", "200")), (Line("SSF", {"x": Cell(1.0)}),))
    assert "all R" in printed_on(sheet, 80) and "200 R" in printed_on(sheet, 80)


# -- the command


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_command_reads_runs_files_and_folders_of_either(tmp_path: Path) -> None:
    cells = suite("LoRA", {"cifar": 0.6, "dtd": 0.7, "svhn": 0.8, "sun397": 0.4}, groups=GROUP_OF)
    cells[0].write(tmp_path / "run" / "result.json")
    cells[1].write(tmp_path / "one.json")
    cells[2].write(tmp_path / "bench" / "results" / "svhn-lora-0.json")
    cells[3].write(tmp_path / "runs" / "a" / "result.json")
    paths = [tmp_path / name for name in ("run", "one.json", "bench", "runs", "one.json")]
    assert [result.task for result in read_results(paths)] == ["cifar", "dtd", "svhn", "sun397"]
    told = json.loads(call("table", "vtab", *paths, "--json").stdout)[0]
    row = next(row for row in told["rows"] if not row["printed"])
    assert {name: row["values"][name] for name in ("cifar", "sun397")} == {"cifar": 60.0, "sun397": 40.0}
    assert row["values"]["group_mean"] is None
    assert "LoRA" in call("table", *paths).stdout or "lora" in call("table", *paths).stdout


def test_the_command_writes_every_form_and_one_at_a_time(tmp_path: Path) -> None:
    made("LoRA", "cifar").write(tmp_path / "a.json")
    for form, start in (("markdown", "**VTAB"), ("csv", "method,printed,"), ("latex", r"\begin{table}")):
        assert call("table", "vtab", tmp_path, f"--{form}").stdout.startswith(start)
    assert "LoRA" in call("table", "vtab", tmp_path).stdout
    assert call("table", "vtab", tmp_path, "--csv", "--latex").exit_code == 2
    assert call("table", tmp_path, "--csv").exit_code == 2
    for name in ("fewshot", "generalization", "inference", "vtab"):
        assert "printed" in call("table", name, "--markdown").stdout


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no result"):
        read_results([tmp_path])
    with pytest.raises(RunError, match=r"cannot be read"):
        read_results([tmp_path / "nothing.json"])


def test_the_command_counts_parameters() -> None:
    pytest.importorskip("glora.runs.parameter_table")
    told = json.loads(call("table", "params", "--json").stdout)
    assert {row["name"].partition(" (")[0] for row in told[0]["rows"]} >= {"Full", "Linear", "LoRA", "GLoRA"}


def test_a_misspelled_table_is_told() -> None:
    told = CliRunner().invoke(app, ["table", "vtb", "runs"])
    assert isinstance(told.exception, UnknownNameError)
    assert "There is no run and no table 'vtb'" in str(told.exception) and "'vtab'" in str(told.exception)
