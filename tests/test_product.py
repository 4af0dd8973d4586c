"""The hand-made gradients of `layers/product.py`: little is saved, and what surrounds the layer works on."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glora.adapt import attach
from glora.adapt.layers import per_sample
from glora.genotype import LayerConfig
from suites.cases import every
from suites.layer_suite import PRODUCTS, LayerSuite, difference
from test_layers import TestLinear


class TestFewRows(TestLinear):
    """Fewer rows than make it worth while to add the low-rank part to the weight."""

    def make_input(self, batch: int) -> Tensor:
        return super().make_input(batch)[:, 0]


EVERY = [
    LayerConfig(A=a, B=b, E=e)
    for a, b, e in itertools.product(("lora:2", "vector", "scalar", "none"), repeat=3)
    if e != "lora:2"
]

PER_SAMPLE = list(
    itertools.product(
        ("lora:2", "lora:1", "vector", "scalar", "none"),
        ("lora:2", "lora:1", "vector", "scalar", "none"),
        ("lora:2", "lora:1", "vector", "none"),
        ("vector", "scalar", "none"),
        ("vector", "scalar", "none"),
    )
)


def linear(product: str, suite: type[LayerSuite] = TestLinear) -> nn.Module:
    return suite().adapt("bias", product)[0]


@every(product=PRODUCTS, rows=[1, 2, 50])
def test_gradients_are_those_of_the_effective_weight(product, rows):
    layer = linear(product).double()
    # its own numbers: a scalar's gradient is a float32 sum, in which about one x in a hundred cancels
    x = torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for config in EVERY:
        attach.state_of(layer).play([config])
        numbers = [x, *attach.state_of(layer).support.parameters()]
        (found, wanted) = (
            torch.autograd.grad((y**3).sum(), numbers, allow_unused=True)
            for y in (layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        )
        for mine, other in zip(found, wanted, strict=True):
            assert (mine is None) == (other is None), config
            assert mine is None or other is None or not other.any() or difference(mine, other) <= 1e-5, config


@every(product=PRODUCTS, shape=[(), (5,), (2, 3)], windows=[1, 2], built=[False, True])
def test_gradients_of_one_configuration_per_sample_are_the_sums_of_those_alone(product, shape, windows, built):
    layer = linear(product).double()
    drawn = [LayerConfig(*choices) for choices in random.Random(0).sample(PER_SAMPLE, 40)]
    # an elementwise LoRA A has a weight that is built
    configs = [config for config in drawn if built or product == "matrix" or config.A.kind != "lora"]
    x = torch.randn(len(configs) * windows, *shape, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    state = attach.state_of(layer)
    numbers = [x, *state.support.parameters()]

    def gradients(y: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad((y**3).sum(), numbers, allow_unused=True))

    state.play(configs)
    together = layer(x)
    alone = []
    for sample, config in enumerate(configs):
        state.play([config])
        alone.append(nn.functional.linear(x[sample * windows : (sample + 1) * windows], layer.weight, layer.bias))
    assert difference(together, torch.cat(alone)) <= 1e-6
    for mine, other in zip(gradients(together), gradients(torch.cat(alone)), strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or other is None or difference(mine, other) <= 1e-5


@pytest.mark.parametrize("windows", [1, 2])
def test_gradients_are_the_same_in_parts_that_stay_in_a_cache(monkeypatch: pytest.MonkeyPatch, windows: int) -> None:
    layer = linear("matrix").double()
    configs = [LayerConfig(*choices) for choices in random.Random(1).sample(PER_SAMPLE, 7)]
    x = torch.randn(len(configs) * windows, 5, 6, dtype=torch.float64, requires_grad=True)
    state = attach.state_of(layer)
    state.play(configs)
    numbers = [x, *state.support.parameters()]
    calls, found = [], []
    for cached in (10**6, 12 * windows, 1):
        monkeypatch.setattr(per_sample, "IN_CACHE", cached)
        calls.append(len(list(per_sample._parts(len(configs), 5 * windows, x.device))))
        found.append(torch.autograd.grad((layer(x) ** 3).sum(), numbers, allow_unused=True))
    assert calls == [1, 4, 7]
    for gradients in found[1:]:
        for mine, other in zip(gradients, found[0], strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or other is None or difference(mine, other) <= 1e-12


def test_one_configuration_per_sample_saves_the_input_once_and_small_numbers():
    layer, rows = linear("matrix"), 400
    configs = [LayerConfig(*choices) for choices in random.Random(0).sample(PER_SAMPLE, 4)]
    configs = [*configs, LayerConfig(A="vector", B="lora:2"), LayerConfig(A="lora:2", E="vector")]
    x = torch.randn(len(configs), rows, 6, requires_grad=True)
    attach.state_of(layer).play(configs)
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    large = [tensor for tensor in saved.values() if tensor.numel() >= len(configs) * rows]
    inputs = [tensor for tensor in large if tensor.shape == x.shape]
    narrow = [tensor for tensor in large if tensor.shape != x.shape]
    assert len(inputs) == 1 and sum(tensor.shape[0] for tensor in narrow) <= 2 * 3 + 2  # columns of A and B, vectors


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_base_that_is_unfrozen_has_its_whole_gradient_whatever_plays(product):
    layer = linear(product).double().requires_grad_(True)
    x = torch.randn(50, 6, dtype=torch.float64)
    base = [layer.parametrizations.weight.original, layer.parametrizations.bias.original]
    for config in EVERY:
        attach.state_of(layer).play([config])
        outputs = (layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        found, wanted = (torch.autograd.grad((y**3).sum(), base) for y in outputs)
        assert max(map(difference, found, wanted)) <= 1e-5, config


@every(dtype=[torch.float32, torch.bfloat16, torch.float16], rows=[(2,), (50,), (4, 50), (2, 3, 50), ()])
def test_fresh_bits_do_not_depend_on_the_shape_or_the_strides_of_the_input(rows, dtype):
    layer = TestLinear().make_layer(bias=True).to(dtype).requires_grad_(False)
    x = torch.randn(*rows, 6).to(dtype)
    turned = x.transpose(0, -2).contiguous().transpose(0, -2) if len(rows) > 1 else x
    plain, plain_turned = layer(x), layer(turned)
    support = linear("matrix").parametrizations.weight[0].support
    for factor in support.down.values():
        nn.init.zeros_(factor)
    attach.attach(layer, support)
    for config in EVERY:
        attach.state_of(layer).play([config])
        assert torch.equal(layer(x), plain), config
        assert torch.equal(layer(turned), plain_turned), config


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_empty_batch_goes_through(product):
    layer = linear(product)
    x = torch.randn(0, 3, 6, requires_grad=True)
    for config in EVERY:
        attach.state_of(layer).play([config])
        layer(x).sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("product", PRODUCTS)
def test_what_follows_may_change_the_output_in_place(product):
    layer = linear(product)
    x = torch.randn(5, 3, 6, requires_grad=True)
    for config in EVERY:
        attach.state_of(layer).play([config])
        (apart,) = torch.autograd.grad(nn.functional.relu(layer(x)).sum(), x)
        (in_place,) = torch.autograd.grad(nn.functional.relu(layer(x), inplace=True).sum(), x)
        assert torch.equal(apart, in_place), config


@pytest.mark.parametrize("product", PRODUCTS)
def test_saved_is_at_most_the_input_or_the_plain_output_and_small_numbers(product):
    layer = linear(product, TestLinear)
    x = torch.randn(100, 6, requires_grad=True)
    own = {p.data_ptr() for p in layer.parameters()}
    for config in EVERY:
        attach.state_of(layer).play([config])
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            if tensor.data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = layer(x)
        sizes = sorted(kept.values(), reverse=True)
        stretched = config.A.kind == "scalar" or (product == "matrix" and config.A.kind != "none")
        if config.B.kind == "lora" or config.A.kind == "lora" or stretched:
            wanted = [x.numel()]
        else:
            wanted = [y.numel()] if config.A.kind == "vector" else []
        assert [size for size in sizes if size > len(x)] == wanted, config


@pytest.mark.parametrize("product", PRODUCTS)
def test_under_checkpointing_the_gradients_are_the_same(product):
    layer = linear(product)
    x = torch.randn(5, 6, requires_grad=True)
    for config in EVERY:
        attach.state_of(layer).play([config])
        (plain,) = torch.autograd.grad((layer(x) ** 2).sum(), x)
        (again,) = torch.autograd.grad((checkpoint(layer, x, use_reentrant=False) ** 2).sum(), x)
        assert torch.equal(plain, again), config
