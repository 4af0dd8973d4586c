"""Convolutions: the suite of every layer type in several geometries, and what is theirs alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.adapt import attach
from glora.adapt.layers.conv import Conv
from glora.adapt.layers.linear import Linear
from glora.errors import StateError
from glora.genotype import LayerConfig
from suites.layer_suite import NEAR, PRODUCTS, LayerSuite, difference, view_of


class ConvSuite(LayerSuite):
    """`size` is that of one sample."""

    size: tuple[int, ...]

    @pytest.fixture(autouse=True)
    def factored_where_it_can_be(self, monkeypatch):
        """Layers as small as these are cheaper through their weight, which is the other way of every test."""
        monkeypatch.setattr(Conv, "builds", Linear.builds)

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(7))

    def test_a_single_sample_without_a_batch_is_that_sample(self):
        layer, support = self.adapt("bias")
        x = self.make_input(3)
        for config in self.spread(support):
            attach.state_of(layer).play([config])
            assert difference(layer(x[0]), layer(x)[0]) <= NEAR, config

    def test_where_it_can_the_called_layer_builds_no_weight(self, monkeypatch):
        layer, support = self.adapt("bias", "matrix")
        monkeypatch.setattr(type(support), "weight", None)
        for config in self.spread(support):
            attach.state_of(layer).play([config])
            layer(self.make_input(3))


class TestPointwise(ConvSuite):
    size = (6, 3, 4)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Conv2d(6, 10, 1, bias=bias)


class TestStrided(ConvSuite):
    size = (6, 7, 6)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Conv2d(6, 9, (3, 2), (2, 1), padding=(1, 0), bias=bias)


class TestGroupedDilatedReflecting(ConvSuite):
    size = (10, 6, 7)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Conv2d(10, 6, 3, dilation=2, groups=2, padding=2, padding_mode="reflect", bias=bias)


class TestDepthwiseCircular(ConvSuite):
    size = (6, 9)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Conv1d(6, 12, 4, groups=6, padding="same", padding_mode="circular", bias=bias)


class TestConv3d(ConvSuite):
    size = (5, 3, 4, 3)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Conv3d(5, 7, 2, padding=1, padding_mode="replicate", bias=bias)


class TestTransposed1d(ConvSuite):
    size = (6, 5)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.ConvTranspose1d(6, 5, 3, dilation=2, padding=1, bias=bias)


class TestTransposedGrouped(ConvSuite):
    size = (10, 3, 4)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.ConvTranspose2d(10, 12, 3, 2, padding=1, output_padding=(1, 0), groups=2, bias=bias)


class TestTransposed3d(ConvSuite):
    size = (4, 2, 3, 2)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.ConvTranspose3d(4, 6, (2, 3, 1), 2, bias=bias)


def test_samples_without_a_batch_cannot_be_told_apart_though_the_channels_could_be_counted_as_samples(caplog):
    suite = TestStrided()
    layer, support = suite.adapt("bias")
    configs = suite.spread(support)[1:4]  # 3 samples, 6 channels
    x = suite.make_input(1)[0]
    attach.state_of(layer).play(configs)
    first = layer(x)
    assert "for the whole batch" in caplog.text
    attach.state_of(layer).play(configs[:1])
    assert torch.equal(layer(x), first)


# C, the products and the rule, by hand


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_product_a_is_one_mixing_of_the_channels_of_every_group_before_the_layer(transposed):
    suite = TestTransposedGrouped() if transposed else TestGroupedDilatedReflecting()
    layer, support = suite.adapt("bias", "matrix")
    attach.state_of(layer).play([LayerConfig(A="lora:4")])
    x = suite.make_input(3)
    down, up = support.factors("A", LayerConfig(A="lora:4"))
    assert down is not None and up is not None
    a = (down @ up).detach()
    assert a.shape == (5, 5)
    mixed = x + torch.cat([torch.einsum("dc,nchw->ndhw", a, half) for half in x.chunk(2, 1)], 1)
    out = layer(x)
    attach.detach(layer)
    assert difference(out, layer(mixed)) <= NEAR


def test_c_is_a_constant_per_output_and_inside_the_border_the_input_shifted_by_it():
    layer = nn.Conv2d(4, 5, 3, padding=1)
    suite = type("Suite", (TestStrided,), {"make_layer": lambda self, *, bias: layer})()
    _, support = suite.adapt("bias")
    per_channel = torch.randn(4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        support.down["C"].zero_()[:, 0] = per_channel.repeat_interleave(9)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    attach.state_of(layer).play([LayerConfig(C="vector")])
    out = layer(x)
    attach.detach(layer)
    constant = out - layer(x)
    assert torch.allclose(constant, constant[:1, :, :1, :1].expand_as(constant), atol=1e-5)
    shifted = layer(x + per_channel.view(4, 1, 1))
    assert torch.allclose(out[..., 1:-1, 1:-1], shifted[..., 1:-1, 1:-1], atol=1e-5)
    assert not torch.allclose(out[..., 0, :], shifted[..., 0, :], atol=1e-2)


@pytest.mark.parametrize(
    ("layer", "factored"),
    [
        (nn.Conv2d(256, 256, 3, padding=1), {"B lora", "B vector", "A lora"}),
        (nn.Conv2d(384, 1536, 1), {"B lora", "B vector", "A lora"}),
        (nn.Conv2d(3, 64, 7, stride=2), {"B lora", "B vector", "A lora"}),
        (nn.Conv2d(16, 16, 1), {"B vector"}),
        (nn.Conv2d(256, 256, 3, groups=32), {"B vector", "A lora"}),
        (nn.Conv2d(256, 256, 3, groups=256), set()),
        (nn.ConvTranspose2d(256, 256, 2, stride=2), {"B lora", "B vector", "A lora"}),
        (nn.ConvTranspose2d(256, 256, 4, stride=2, groups=256), set()),
    ],
)
def test_the_weight_is_built_where_that_takes_fewer_operations(layer, factored):
    builds = view_of(layer).builds
    configs = {
        "A lora": LayerConfig(A="lora:8"),
        "B lora": LayerConfig(B="lora:8"),
        "B vector": LayerConfig(B="vector"),
    }
    assert {name for name, config in configs.items() if not builds(config, True)} == factored
    assert {name for name, config in configs.items() if not builds(config, False)} == factored - {"A lora"}
    for is_matrix in (False, True):
        assert not builds(LayerConfig(C="vector", D="scalar", E="vector"), is_matrix)
        assert not builds(LayerConfig(A="scalar"), is_matrix)


# layers that go their own way


class Doubled(nn.Conv2d):
    """A subclass that changes what its own forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * weight, bias)


def own_ways() -> list[nn.Module]:
    from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame

    same = [Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame]
    made = [layer_type(6, 8, 3, stride=2, groups=2, bias=True) for layer_type in same]
    return [*made, Doubled(6, 8, 3, bias=True)]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_subclass_with_its_own_way_to_the_output_plays_through_its_weight(number, product):
    plain = own_ways()[number]
    x = torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(0))
    before, cls, keys = plain(x), type(plain), list(plain.state_dict())

    class Suite(LayerSuite):
        def make_layer(self, *, bias: bool) -> nn.Module:
            return plain

    suite = Suite()
    layer, support = suite.adapt("bias", product)
    for config in suite.spread(support):
        attach.state_of(layer).play([config])
        support.zero_grad()
        out = layer(x)
        if config != LayerConfig():
            (out**2).sum().backward()
            assert any(bool(p.grad.any()) for p in support.parameters() if p.grad is not None), config
        base = attach.merge(layer)
        assert type(layer) is cls
        assert list(layer.state_dict()) == keys
        assert difference(layer(x), out) <= NEAR, config
        layer._parameters.update(base)
        attach.attach(layer, support)
    attach.detach(layer)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("config", [LayerConfig(), LayerConfig(A="vector", B="lora:2", C="vector", E="vector")])
def test_a_transposed_convolution_may_be_told_the_size_of_its_output(config):
    suite = TestTransposedGrouped()
    layer, _ = suite.adapt("bias")
    attach.state_of(layer).play([config])
    x = suite.make_input(2)
    out = layer(x, output_size=(5, 8))
    assert out.shape[2:] == (5, 8)
    with attach.holding(layer, config):
        assert difference(layer(x, [5, 8]), out) <= NEAR
    attach.merge(layer)
    assert difference(layer(x, output_size=(5, 8)), out) <= NEAR


@pytest.mark.parametrize("suite", [TestStrided(), TestTransposedGrouped()], ids=["conv", "transposed"])
def test_fresh_it_is_the_plain_layer_with_channels_last_too(suite):
    layer, support = suite.adapt("bias")
    attach.detach(layer)
    layer.to(memory_format=torch.channels_last)
    x = suite.make_input(2).to(memory_format=torch.channels_last)
    plain, strides = layer(x), layer.weight.stride()
    with torch.no_grad():
        for down in support.down.values():
            down.zero_()
    attach.attach(layer, support)
    for config in suite.spread(support):
        attach.state_of(layer).play([config])
        assert torch.equal(layer(x), plain), config
        with attach.holding(layer, config):
            assert torch.equal(layer(x), plain), config
            assert layer(x).stride() == plain.stride()
    attach.state_of(layer).play([suite.spread(support)[1]])
    assert layer.weight.stride() == strides
    attach.merge(layer)
    assert layer.weight.stride() == strides


def test_a_lazy_layer_is_refused_until_it_knows_its_channels():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 1))
    with pytest.raises(StateError, match=r"0\.weight.*Call the model once"):
        glora.inject(model, glora.SearchSpace(), targets="conv", head=None)
    model(torch.randn(1, 3, 5, 5))
    assert list(glora.inject(model, glora.SearchSpace(), targets="conv", head=None).sites) == ["0", "1"]


def test_called_by_name_it_is_the_same_layer():
    suite = TestStrided()
    layer, support = suite.adapt("bias")
    attach.state_of(layer).play([suite.spread(support)[1]])
    x = suite.make_input(2)
    assert difference(layer(input=x), layer(x)) <= NEAR
