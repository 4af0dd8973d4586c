"""Every layer type of the table keeps the properties of the suite."""

from __future__ import annotations

from typing import ClassVar

import pytest
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


class TestConv1D(TestLinear):
    """The Linear of transformers that is stored the other way round."""

    def make_layer(self, *, bias: bool) -> nn.Module:
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
        if not bias:
            pytest.skip("a Conv1D always has a bias")
        layer = conv1d(10, 6)
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias, std=0.3)
        return layer


def test_every_row_of_the_table_loads_and_names_itself():
    kinds = set()
    for path in (*layers.TABLE.values(), *layers.QUANTIZED.values()):
        view = load(path)
        assert issubclass(view, layers.View)
        kinds.add(view.kind)
    assert {kind for word in layers.WORDS.values() for kind in word} == kinds


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


# norms


class NormSuite(LayerSuite):
    """A and B, D and E are a vector, a scalar or none."""

    forms: ClassVar = {"bias": (81, 81), "bare": (9, 9)}

    def randomized(self, layer: nn.Module) -> nn.Module:
        with torch.no_grad():
            for value in (*layer.parameters(), *layer.buffers()):
                if value.is_floating_point():
                    value.uniform_(0.5, 1.5)
        return layer.eval()


class TestLayerNorm(NormSuite):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.LayerNorm(6, bias=bias))

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 6, generator=torch.Generator().manual_seed(7))


class TestLayerNormOfImages(TestLayerNorm):
    """Its weight and bias have several dimensions."""

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.LayerNorm((3, 6), bias=bias))


class TestRMSNorm(TestLayerNorm):
    forms: ClassVar = {"bare": (9, 9)}

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.RMSNorm(6))


class TestBatchNorm(NormSuite):
    forms: ClassVar = {"bias": (81, 81)}

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.BatchNorm2d(6))

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 6, 3, 2, generator=torch.Generator().manual_seed(7))


class TestBatchNorm1d(TestBatchNorm):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.BatchNorm1d(6))

    def make_input(self, batch: int) -> Tensor:
        return super().make_input(batch)[..., 0, 0]


class TestGroupNorm(TestBatchNorm):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.GroupNorm(2, 6))


class TestInstanceNorm(TestBatchNorm):
    """Plays through its weight, as every norm with a forward of its own does."""

    called: ClassVar = False

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.InstanceNorm2d(6, affine=True, track_running_stats=True))


# embeddings


class TestEmbedding(LayerSuite):
    forms: ClassVar = {"bare": (16, 25)}

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Embedding(10, 6)

    def make_input(self, batch: int) -> Tensor:
        return (torch.arange(5 * batch) % 10).view(batch, 5)
