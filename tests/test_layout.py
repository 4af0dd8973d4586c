"""What a process holds, by part: counted on shapes alone it is what a pass with numbers keeps."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import glora
from conftest import TinyViT
from glora.training.layout import Layout, layout, shapes_alone

ROOT = Path(__file__).parents[1]


def of(model: nn.Module, rows: int = 8, **options: Any) -> Layout:
    adapted = glora.inject(model, glora.SearchSpace(ranks=(4,)), head=["head"])
    return layout(model, adapted.parameters(), lambda model: model(torch.zeros(rows, 3, 8, 8)).sum(), **options)


def test_the_parts_follow_from_the_shapes() -> None:
    whole, spread, more = of(TinyViT()), of(TinyViT(), processes=2), of(TinyViT(), rows=16)
    model = TinyViT()
    blocks = sum(4 * p.numel() for p in model.blocks.parameters())
    assert (whole.blocks, whole.block, whole.summed) == (blocks, 0, 0)
    assert (spread.block, spread.summed) == (blocks // 2, whole.trained)
    assert blocks / 2 <= spread.blocks < 0.55 * blocks  # one more row of what has an odd number
    assert whole.others == 4 * sum(p.numel() for part in (model.patch, model.norm) for p in part.parameters())
    assert whole.moments == 2 * whole.gradients == 2 * whole.trained
    assert whole.inputs == 2 * 8 * 4 * 12 * 4  # of two blocks: images, tokens, width, bytes
    assert (more.inputs, more.outside) == (2 * whole.inputs, 2 * whole.outside)
    assert more.inside > 1.5 * whole.inside
    assert whole.total == sum(getattr(whole, name) for name in whole.__dataclass_fields__)


def test_the_model_is_as_before_and_no_numbers_are_needed() -> None:
    model = TinyViT()
    of(model)
    assert all("forward" not in module.__dict__ for module in model.modules())
    with shapes_alone():
        counted = of(TinyViT())
    assert counted == of(TinyViT())


def script(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["layout.py", *words])
    import layout as module

    return module


def test_a_language_models_layout_is_that_of_a_pass_with_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 64}
    transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2).save_pretrained(tmp_path)
    module = script(monkeypatch, "--config", str(tmp_path), "--rows", "2", "--tokens", "16", "--learned", "4")
    options: argparse.Namespace = module.parsed()
    found = []
    contexts: tuple[AbstractContextManager[None], ...] = (shapes_alone(), nullcontext())
    for context in contexts:
        with context:
            found.append(module.of(module.built(str(tmp_path), torch.float32), options, sharded=True))
    assert found[0] == found[1]
    assert 2 * 2 * 16 * 32 * 4 <= found[0].inputs < 2.1 * 2 * 16 * 32 * 4  # blocks, rows, tokens, width, bytes
    assert found[0].outside >= 2 * 2 * 4 * 64 * 4


@pytest.mark.slow
def test_the_table_of_the_guide_is_made_by_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "guide" / "processes.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- layout -->\n(.*)\n<!-- end -->", page, re.DOTALL)
    script(monkeypatch).main()
    assert shown
    assert capsys.readouterr().out.strip() == shown[1].strip()
