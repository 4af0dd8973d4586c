"""What lies under a benchmark's cells: nothing for `honest`, the published recipes for `paper`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glora.errors import GloraError
from glora.settings import merged
from glora.tasks.data.paper_sets import VTAB, by_name
from glora.tasks.task import source_class

__all__ = ["note_of", "recipe_of"]

LONG, SHORT = 500, 100  # epochs of a published supernet, and of everything else
COMMON: dict[str, Any] = {  # NOAH's baselines, FacT, RepAdapter and GLoRA share it
    "preset": "paper",
    "model": {"image_size": 224, "normalise": "imagenet", "drop_path": 0.1},
    "train": {
        "epochs": SHORT,
        "batch_size": 64,
        "optimizer": "adamw",
        "weight_decay": 1e-4,
        "schedule": "paper",
        "restart": False,
    },
}
RATES = {  # published; full, linear and bitfit were tuned on a grid per task, and have the library's own rate
    "glora": 5e-4,
    "noah": 5e-4,
    "vpt": 1e-3,
    "adapter": 1e-3,
    "adaptformer": 1e-3,
    "lora": 1e-3,
    "fact": 1e-3,
    "repadapter": 1e-3,
    "ssf": 5e-3,
}
SUPERNETS = ("glora", "noah")
SEARCHED = (*SUPERNETS, "pft")  # choose on val, so that they do not train on it
LOWER = ("diabetic_retinopathy", "clevr_count", "clevr_dist", "smallnorb_ele")  # GLoRA's rate is 1e-4 there


def recipe_of(method: str, laid: Mapping[str, Any]) -> dict[str, Any]:
    """The published recipe of a method, which the settings of a file lie on.

    Args:
        method: Its name.
        laid: The cell's own settings, whose data decide what else there is.

    Returns:
        Settings, nested as an experiment has them.
    """
    train: dict[str, Any] = {"epochs": LONG} if method in SUPERNETS else {}
    if method in RATES:
        train["lr"] = RATES[method]
    data = laid.get("data", {})
    if method == "glora" and _vtab_name(data) in LOWER:
        train["lr"] = 1e-4
    search = {"polish": SHORT, "polish_lr": 1e-3, "polish_on": "all"} if method == "noah" else {}  # trained anew
    everything = method not in SEARCHED and "splits" in _fields(data)
    splits = {"splits": "train800val200"} if everything else {}
    return merged(COMMON, {"train": train, "search": search, "data": splits})


def _fields(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the data's source; none where there is no such source, which is told elsewhere."""
    try:
        return source_class(data).model_fields
    except GloraError:
        return {}


def _vtab_name(data: Mapping[str, Any]) -> str:
    """Which task of VTAB-1K the data are; empty for others."""
    try:
        return by_name(str(data.get("task")), VTAB).name if data.get("source") == "vtab" else ""
    except (GloraError, ValueError):  # told elsewhere
        return ""


def note_of(protocol: str) -> tuple[str, ...]:
    """What a reader of the protocol's results must know."""
    if protocol != "paper":
        return ()
    return (
        f"Protocol paper: the published recipes. Supernets of GLoRA and NOAH are trained for {LONG} epochs where other "
        f"methods have {SHORT}, which is no equal effort; methods without a search also train on the val examples "
        "where the data has such a split, so that their val numbers mean nothing there. Test is read once, after the "
        "last epoch.",
    )
