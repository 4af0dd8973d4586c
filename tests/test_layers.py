"""Every layer type of the table keeps the properties of the suite."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from glora import layers
from glora.registry import load
from suites.layer_suite import LayerSuite


class TestLinear(LayerSuite):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Linear(6, 10, bias=bias)

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 6, generator=torch.Generator().manual_seed(7))


class TestWideLinear(TestLinear):
    """More inputs than outputs, and images instead of tokens."""

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Linear(17, 5, bias=bias)

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 2, 2, 17, generator=torch.Generator().manual_seed(7))


def test_every_row_of_the_table_loads_and_names_itself():
    kinds = set()
    for path in layers.TABLE.values():
        view = load(path)
        assert issubclass(view, layers.View)
        kinds.add(view.kind)
    assert {kind for word in layers.WORDS.values() for kind in word} == kinds


def between(page: str, mark: str) -> list[str]:
    """The rows of a marked table."""
    return page.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0].strip().splitlines()[2:]


def test_the_page_on_layers_has_the_table_and_the_words():
    page = (Path(__file__).parents[1] / "docs" / "layers.md").read_text(encoding="utf-8")
    rows = [f"| `{pattern}` | {load(path).kind} |" for pattern, path in layers.TABLE.items()]
    assert between(page, "table") == rows
    assert between(page, "words") == [f"| `{word}` | {', '.join(kinds)} |" for word, kinds in layers.WORDS.items()]


def test_a_subclass_with_its_own_forward_plays_through_its_weight():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * nn.functional.linear(x, self.weight, self.bias)

    class Suite(TestLinear):
        def make_layer(self, *, bias: bool) -> nn.Module:
            return Doubled(6, 10, bias=bias)

    suite = Suite()
    layer, support = suite.adapt("bias")
    layers.activate(layer, [suite.spread(support)[1]])
    out = layer(suite.make_input(3))
    layers.merge(layer)
    assert type(layer) is Doubled
    assert torch.equal(out, layer(suite.make_input(3)))
