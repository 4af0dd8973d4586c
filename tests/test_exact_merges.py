"""How exact a merge is: the bar on every layer type, and in what was measured; `test_benchmarks.py` has the page."""

from __future__ import annotations

import importlib
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from glora.genotype import LayerConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def errors() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("errors")


SUBJECTS = (
    "Linear", "Conv1D (transformers)", "Linear, int8 (torchao)", "MultiheadAttention", "Conv1d", "Conv2d", "Conv3d",
    "ConvTranspose2d", "Embedding", "EmbeddingBag", "LayerNorm", "LayerNorm2d (timm)", "RMSNorm",
    "LlamaRMSNorm (transformers)", "GroupNorm", "BatchNorm2d", "InstanceNorm2d",
)  # fmt: skip


def test_every_layer_type_is_measured(errors: Any) -> None:
    assert tuple(errors.SUBJECTS) == SUBJECTS


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_merge_errs_no_more_than_the_plain_layer_and_one_rounding(errors: Any, name: str) -> None:
    if "(" in name:
        pytest.importorskip(name.partition("(")[2].rstrip(")"))
    subject, rng = errors.SUBJECTS[name], random.Random(0)
    for dtype, values, product in itertools.product(("fp32", "bf16", "fp16"), errors.VALUES, errors.PRODUCTS):
        measured = errors.Measured(subject, dtype, values, product)
        options = measured.support.space.options(measured.support.site)
        for _ in range(12):
            config = LayerConfig(*map(rng.choice, options))
            found = measured.case(config)
            if found is not None:  # a weight that the type can hold
                bar = found["own"] + found["rounding"]
                assert found["error"] <= bar * errors.ALMOST, (dtype, values, product, config, found)
                assert found["detached"]


def test_the_committed_results_keep_the_bar(errors: Any) -> None:
    """Of float64 there is no wider type to compute in."""
    found = importlib.import_module("errors_page").read()
    assert {each["name"] for each in found} == {*SUBJECTS, "peft"}
    for each in found:
        for row in each["rows"] if each["name"] != "peft" else ():
            assert not row["not_detached"]
            assert not row["missed"] or row["dtype"] == "fp64", (each["name"], row)
