"""Frozen weights spread over two processes: the same training, the same file, and everything back in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.adapt.adapter_file import read_tensors
from glora.adapt.sharded import blocks_of
from glora.errors import StateError
from glora.integrations import sharded
from glora.training.layout import layout
from suites import shards
from suites.ranked import ended, launch

SUITE = Path(shards.__file__)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left."""
    folder = tmp_path_factory.mktemp("two")
    for case in ("own_loop", "by_hand"):
        found = ended(launch(2, case, folder, file=SUITE))
        assert [code for code, _ in found] == [0, 0], [text for _, text in found]
    return folder


@pytest.fixture(scope="module")
def alone() -> glora.adapt.adapted.Adapted:
    """What one process has, with the whole batch."""
    model = shards.base()
    adapted = glora.inject(model, shards.SPACE, head=["head"])
    for _ in range(2):
        shards.steps(model, list(adapted.parameters()), 0, 1)
    return adapted


def apart(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """How far the numbers are from each other, as a share of the way that they have gone."""
    assert one.keys() == other.keys()
    every = [torch.cat([each[name].flatten().double() for name in one]) for each in (one, other, start)]
    return float((every[0] - every[1]).norm() / (every[1] - every[2]).norm())


@pytest.mark.slow
def test_the_trained_model_is_that_of_one_process(by_two: Path, alone: Any) -> None:
    start = shards.base().state_dict()
    merged = [read_tensors(by_two / f"merged-{rank}.safetensors")[0] for rank in range(2)]
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in start)
    model = glora.load_adapter(shards.base(), by_two / "within.safetensors").merge()
    assert all(torch.equal(value, merged[0][name]) for name, value in model.state_dict().items())
    x, _ = shards.batch()
    assert torch.allclose(model(x), alone.model(x), atol=1e-4)


@pytest.mark.slow
def test_the_file_is_the_one_that_an_unspread_model_writes(by_two: Path) -> None:
    within = (by_two / "within.safetensors").read_bytes()
    assert within == (by_two / "after-0.safetensors").read_bytes() == (by_two / "after-1.safetensors").read_bytes()


@pytest.mark.slow
def test_what_torchs_own_call_has_spread_is_saved_whole(by_two: Path) -> None:
    model = shards.base()
    adapted = glora.inject(model, shards.SPACE, head=["head"])
    shards.steps(model, list(adapted.parameters()), 0, 1)
    loaded = glora.load_adapter(shards.base(), by_two / "by_hand.safetensors")
    x, _ = shards.batch()
    assert torch.allclose(loaded.model(x), model(x), atol=1e-4)


@pytest.mark.slow
def test_a_process_holds_its_part_of_the_blocks_and_all_of_the_rest(by_two: Path) -> None:
    """Rows are dealt out: of an odd number the first process has one more. As `layout` counts it."""
    model = shards.base()
    adapted = glora.inject(model, shards.SPACE, head=["head"])
    told = layout(model, adapted.parameters(), lambda model: model(shards.batch()[0]).sum(), processes=2)
    own = {id(parameter) for parameter in adapted.parameters()}
    blocks = {id(p): p for block in blocks_of(model).values() for p in block.parameters() if id(p) not in own}
    rest = sum(4 * p.numel() for p in model.parameters() if id(p) not in blocks and id(p) not in own)
    trained = sum(4 * p.numel() for p in adapted.parameters())
    for rank in range(2):
        facts = read_tensors(by_two / f"merged-{rank}.safetensors")[1]
        rows = sum(4 * p.numel() // len(p) * len(range(len(p))[rank::2]) for p in blocks.values())
        assert facts == {"frozen": rest + rows, "trained": trained, "buffers": 0, "moments": 2 * trained}
        if rank == 0:
            assert facts == {
                "frozen": told.blocks + told.others,
                "trained": told.trained,
                "buffers": 0,
                "moments": told.moments,
            }
    assert trained > 0 < rest


@pytest.mark.slow
def test_a_loop_of_ones_own_ends_with_a_message_where_it_is_watched(tmp_path: Path) -> None:
    (first, text), (second, _) = ended(launch(2, "watching", tmp_path, file=SUITE))
    assert (first, second) == (1, -9)
    assert "RunError: Process 2 of 2 has ended; the others end with it." in text


def test_blocks_are_the_outermost_repeated_modules() -> None:
    assert list(blocks_of(shards.base())) == ["blocks.0", "blocks.1"]
    nested = nn.ModuleDict({"layers": nn.ModuleList(shards.base() for _ in range(2)), "act": nn.Sequential(nn.ReLU())})
    assert list(blocks_of(nested)) == ["layers.0", "layers.1"]


def test_without_processes_or_blocks_nothing_is_spread() -> None:
    with pytest.raises(StateError, match="process group, and there is none"), sharded(shards.base(), []):
        pass
