"""Trainable numbers of every system of the paper's Table 1, counted on the models themselves, beside the printed ones.

The models are built without memory for their weights. What the paper prints is not one convention: a row may count
biases or leave them out, and one counts the head. All of them are given here.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import nn

from glora.adapt.adapted import Adapted
from glora.backbones import load_backbone
from glora.errors import TargetError, UnknownNameError
from glora.methods import METHODS
from glora.methods.method import Tuned, get_method
from glora.report.published import VTAB, VTAB_SWIN
from glora.report.sheet import Cell, Column, Line, Sheet

__all__ = ["CLASSES", "MODELS", "ROWS", "Count", "Row", "counted", "group_mean", "parameter_table"]

MODELS = {"vit_b": "vit_base_patch16_224", "swin_b": "swin_base_patch4_window7_224"}
TITLES = {"vit_b": "ViT-B/16", "swin_b": "Swin-B"}
CLASSES: Mapping[str, tuple[int, ...]] = {  # of the tasks of every group, in the order of Table 1
    "natural": (100, 102, 47, 102, 37, 10, 397),
    "specialized": (2, 10, 45, 5),
    "structured": (8, 6, 6, 4, 16, 16, 18, 9),
}
BIAS = re.compile(r"(^|[._])(bias|b_[a-z]+|beta)$")  # names of numbers that are added to something
DRAWS = 500  # random subnets whose mean size is given

PerTask = Mapping[str, Sequence[int]]
PROMPTS_DEEP: PerTask = {
    "natural": (10, 10, 10, 1, 1, 50, 5),
    "specialized": (100, 100, 10, 1),
    "structured": (50, 200, 100, 50, 10, 50, 200, 200),
}
PROMPTS_SHALLOW: PerTask = {
    "natural": (100, 5, 1, 200, 50, 200, 1),
    "specialized": (5, 50, 50, 10),
    "structured": (100, 200, 100, 100, 100, 100, 200, 200),
}
FACT_TT: PerTask = {
    "natural": (8, 16, 8, 16, 8, 16, 8),
    "specialized": (8, 8, 8, 8),
    "structured": (16, 4, 16, 16, 16, 16, 16, 8),
}
FACT_TK: PerTask = {
    "natural": (32, 32, 16, 32, 16, 32, 16),
    "specialized": (32, 32, 32, 16),
    "structured": (32, 16, 32, 32, 32, 32, 32, 16),
}


@dataclass(frozen=True, eq=False)
class Row:
    """One system with its settings in Table 1.

    Attributes:
        name: The row of the paper.
        label: How these settings are told from others of the same row.
        method: A name of `METHODS`.
        settings: Its settings.
        vary: A setting that has another value for every task; the mean of the groups' means is counted.
        values: Its values.
        note: What a reader must know of the printed number.
    """

    name: str
    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    vary: str = ""
    values: PerTask = field(default_factory=dict)
    note: str = ""


def _glora(name: str, label: str, *ranks: int) -> Row:
    settings = {"ranks": ranks, "product": "elementwise", "variant": "paper", "new_bias": True, "scaling": "none"}
    return Row(name, label, "glora", settings)


QKV = ("attn.qkv",)
SMALLER = "the paper's code has one rank, its text two"
ROWS: tuple[Row, ...] = (
    Row("Full", "", "full"),
    Row("Linear", "", "linear"),
    Row("BitFit", "", "bitfit"),
    Row("VPT-Shallow", "", "vpt", {"depth": "shallow"}, "tokens", PROMPTS_SHALLOW, "its numbers of prompts for each "
        "task are not published in full: the ones used here give the printed mean."),
    Row("VPT-Deep", "", "vpt", {"depth": "deep"}, "tokens", PROMPTS_DEEP, "its numbers of prompts for each task are "
        "published for natural and specialized tasks alone; another public list gives 0.62."),
    Row("Adapter", "", "adapter", {"form": "noah", "hidden": 8}),
    Row("AdaptFormer", "", "adaptformer", {"hidden": 8}),
    Row("LoRA", "qkv", "lora", {"targets": QKV, "rank": 8}, note="one pair for all of qkv, which is the row's code, or "
        "pairs for q and v, are the same number: the figure does not tell them apart."),
    Row("LoRA", "q, v", "lora", {"targets": QKV, "rank": 8, "parts": ("q", "v")}),
    Row("NOAH", "", "noah", note="it depends on the subnets that NOAH's search found, whose mean over the groups is "
        "0.3615 without what their code counts twice; here are the smallest, mean random and largest of the space."),
    Row("FacT", "TK, rank at most 32", "fact", {"form": "tk"}, "rank", FACT_TK, "the row is FacT-TK with a published "
        "rank for each task."),
    Row("FacT", "TT, rank at most 16", "fact", {"form": "tt"}, "rank", FACT_TT),
    Row("SSF", "", "ssf", note="the printed figure counts the head, the others do not."),
    Row("RepAdapter", "", "repadapter", note="the printed figure leaves its biases out; Adapter's counts them."),
    _glora("GLoRA (0.86 M)", "rank 8", 8),
    _glora("GLoRA (0.86 M)", "ranks 8, 4", 8, 4),
    _glora("GLoRA (0.44 M)", "rank 4", 4),
    _glora("GLoRA (0.44 M)", "ranks 4, 2", 4, 2),
    _glora("GLoRA (0.29 M)", "rank 2", 2),
)  # fmt: skip
NO_SUBNETS = (
    "GLoRA: the printed figures cannot be reproduced: the searched subnets and the limits of their size are not "
    f"published, and {SMALLER}. Given is the mean of {DRAWS} random subnets, between the smallest and the largest."
)


@dataclass(frozen=True)
class Count:
    """Trainable numbers without the head.

    Attributes:
        numbers: All of them; of a space with several genotypes the mean of random ones.
        biases: How many of them are biases; None where the method does not tell them apart.
        smallest, largest: Of the space's genotypes; None where there is but one.
    """

    numbers: float
    biases: float | None = None
    smallest: int | None = None
    largest: int | None = None


@cache
def _plain(model: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The model on torch's meta device, without numbers, and its head."""
    with torch.device("meta"):
        backbone = load_backbone(MODELS[model], num_classes=1, pretrained=False)
    return backbone.model, tuple(backbone.head)


def counted(model: str, method: str, settings: Mapping[str, Any]) -> Count:
    """What a method with these settings trains on a model of `MODELS`."""
    plain, head = _plain(model)
    tuned = get_method(method, settings).apply(copy.deepcopy(plain), head=head, seed=0)
    if (space := tuned.space) is not None:
        rng = random.Random(0)
        mean = fmean(space.count(space.sample(rng)) for _ in range(DRAWS))
        return Count(mean, None, space.count(space.smallest), space.count(space.largest))
    return Count(tuned.count(), _biases(tuned))


def _biases(tuned: Tuned) -> int | None:
    """How many of the method's numbers are biases, by their names or as C, D and E; None where it tells neither."""
    numbers: Mapping[str, nn.Parameter] | None = getattr(tuned, "numbers", None)
    if numbers is not None:
        return sum(value.numel() for name, value in numbers.items() if BIAS.search(name))
    adapted: Adapted | None = getattr(tuned, "adapted", None)
    if adapted is None:
        return None
    shifts = (support.whole(tensor) for support in adapted.supports.values() for tensor in "CDE")
    return sum(value.numel() for factors in shifts for value in factors.values())


def group_mean(values: Mapping[str, Sequence[float]]) -> float:
    """The mean of the groups' means, as the paper averages."""
    return fmean(fmean(group) for group in values.values())


def _row_count(model: str, row: Row) -> Count:
    """A row's count, over all tasks where they differ."""
    if not row.vary:
        return counted(model, row.method, row.settings)
    distinct = {value for group in row.values.values() for value in group}
    found = {value: counted(model, row.method, {**row.settings, row.vary: value}) for value in sorted(distinct)}
    sizes = {name: [found[value].numbers for value in group] for name, group in row.values.items()}
    biases = {name: [found[value].biases or 0 for value in group] for name, group in row.values.items()}
    return Count(group_mean(sizes), group_mean(biases))


def _fitting(model: str, row: Row) -> Count | None:
    """A row's count; None where the method refuses the model."""
    try:
        return _row_count(model, row)
    except TargetError:
        return None


def parameter_table(model: str = "vit_b", rows: Sequence[Row] = ROWS) -> Sheet:
    """Our counts beside the paper's column, in millions, for all methods that are in `METHODS`.

    Args:
        model: `vit_b` or `swin_b`.
        rows: What is counted; what cannot be put on the model is left out, which the caption says.

    Raises:
        UnknownNameError: There is no such model.
        MissingExtraError: timm is not installed.
    """
    if model not in MODELS:
        raise UnknownNameError(f"There are no counts for the model {model!r}.", allowed=f"Known: {', '.join(MODELS)}.")
    plain, head = _plain(model)
    inputs = sum(parameter.numel() for name in head for parameter in plain.get_submodule(name).parameters())
    heads = group_mean({group: [inputs * classes for classes in of] for group, of in CLASSES.items()})
    printed = {row.name: row.parameters for row in (VTAB if model == "vit_b" else VTAB_SWIN)}
    rows = [row for row in rows if row.method in METHODS]
    counts = {row: count for row in rows if (count := _fitting(model, row)) is not None}
    lines = [_line(row, count, printed.get(row.name), heads) for row, count in counts.items()]
    columns = (
        Column("paper", "printed", form=".2f"),
        Column("counted", "counted", form=".4f"),
        Column("without_biases", "without biases", form=".4f"),
        Column("with_head", "with head", form=".4f"),
        Column("smallest", "smallest", form=".3f"),
        Column("largest", "largest", form=".3f"),
    )
    notes = [f"{row.name}: {row.note}" for row in counts if row.note]
    notes += [f"{row.name} is left out: it cannot be put on {TITLES[model]}." for row in rows if row not in counts]
    told = [f"Heads are of VTAB's 19 tasks, {heads / 1e6:.4f} M: the mean of the means of its three groups."]
    title = f"Trainable numbers on {TITLES[model]}, in millions"
    return Sheet(title, columns, tuple(lines), (*told, *notes, NO_SUBNETS))


def _line(row: Row, count: Count, printed: float | None, head: float) -> Line:
    """One row, in millions."""
    values = {
        "paper": None if printed is None else printed * 1e6,
        "counted": count.numbers,
        "without_biases": None if count.biases is None else count.numbers - count.biases,
        "with_head": count.numbers + head,
        "smallest": count.smallest,
        "largest": count.largest,
    }
    cells = {key: Cell(value / 1e6) for key, value in values.items() if value is not None}
    return Line(f"{row.name} ({row.label})" if row.label else row.name, cells)
