"""The formula against a plain float64 re-statement of Eq. 13 and 14, for every configuration, and the scales."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from glora.adapt.layers.factored import one
from glora.adapt.layers.linear import Linear
from glora.adapt.support import Support, fixed_scale
from glora.genotype import NONE, TENSORS, Choice, LayerConfig, Site
from glora.space import SearchSpace, count_parameters
from suites.cases import every
from suites.layer_suite import PRODUCTS, randomize, swept

LINEAR_LAYER = torch.nn.Linear(2, 2)
LINEAR = Linear(LINEAR_LAYER)


def make(site: Site, product: str, ranks=(4,), scaling="none", seed=0) -> Support:
    space = SearchSpace(ranks=ranks, product=product, variant="paper", new_bias=True, scaling=scaling)
    support = Support(site, space, space.options(site), generator=torch.Generator().manual_seed(seed))
    return support


def restated(support: Support, config: LayerConfig, w0: np.ndarray, b0: np.ndarray | None):
    """W and b of Eq. 13 and 14 in float64, written here once more from the paper."""
    o, i = w0.shape
    matrix = support.space.product == "matrix"

    def tensor(name: str, rows: int, columns: int) -> np.ndarray:
        choice = getattr(config, name)
        if choice == NONE:
            return np.zeros((rows, columns))
        down = support.down[name].detach().double().numpy()
        down = down.reshape(len(down), -1)
        fan_in = support.space.scaling == "fan_in"
        scale = 1 / i if fan_in and name == "B" else 1
        if choice.kind == "lora":
            scale = i**-0.5 if fan_in and (name == "B" or (name == "A" and matrix)) else 1
            up = support.up[name].detach().double().numpy()
            return down[:, : choice.rank] @ up[: choice.rank] * scale
        column = down[:, :1] if choice.kind == "vector" else np.full((rows, 1), down[0, 0])
        if name == "A" and matrix:
            return np.diag(column[:, 0]) * scale
        return np.repeat(column, columns, axis=1) * scale

    a = tensor("A", i if matrix else o, i)
    w = w0 + (w0 @ a if matrix else w0 * a) + tensor("B", o, i)  # Eq. 13
    c, d, e = tensor("C", i, 1), tensor("D", o, 1), tensor("E", o, 1)
    old = np.zeros((o, 1)) if b0 is None else b0[:, None]
    return w, (old + w0 @ c + d * old + e)[:, 0]  # Eq. 14


SHAPES = (3, 5), (4, 4), (1, 6), (6, 1)  # beside 5 x 3


@pytest.mark.parametrize(
    ("o", "i", "sweep"),
    [
        (5, 3, "all"),
        *((o, i, "triples") for o, i in SHAPES),
        *(pytest.param(o, i, "all", marks=pytest.mark.slow) for o, i in SHAPES),
    ],
)
@every(scaling=["none", "fan_in"], product=PRODUCTS)
def test_every_configuration_is_equation_13_and_14(o, i, sweep, product, scaling):
    support = make(Site("linear", o, i, True), product, scaling=scaling)
    randomize(support)
    rng = np.random.default_rng(0)
    w0, b0 = rng.normal(size=(o, i)), rng.normal(size=o)
    x = rng.normal(size=(7, i))
    w32, b32, x32 = (torch.tensor(value, dtype=torch.float32) for value in (w0, b0, x))
    w0, b0, x = (value.double().numpy() for value in (w32, b32, x32))
    assert len(swept(support.space.options(support.site), "all")) == 432
    for config in swept(support.space.options(support.site), sweep):
        w, b = restated(support, config, w0, b0)
        y = x @ w.T + b
        with torch.no_grad():
            assert np.allclose(support.weight(LINEAR, w32, config).numpy(), w, atol=2e-6), config
            assert np.allclose(support.bias(LINEAR, w32, b32, config).numpy(), b, atol=2e-6), config
            out = one((support, config), LINEAR, LINEAR_LAYER, x32, w32, b32).numpy()
        assert np.abs(out - y).max() <= 1e-5 * np.abs(y).max(), config


@pytest.mark.parametrize("product", PRODUCTS)
def test_without_a_bias_the_formula_has_no_b0(product):
    site = Site("linear", 5, 3, False, new_bias=True)
    support = make(site, product)
    randomize(support)
    rng = np.random.default_rng(0)
    w32, x32 = torch.tensor(rng.normal(size=(5, 3)), dtype=torch.float32), torch.randn(4, 3)
    for config in itertools.starmap(LayerConfig, itertools.product(*support.space.options(site))):
        w, b = restated(support, config, w32.double().numpy(), None)
        y = x32.double().numpy() @ w.T + b
        with torch.no_grad():
            out = one((support, config), LINEAR, LINEAR_LAYER, x32, w32, None).double().numpy()
        assert np.abs(out - y).max() <= 1e-5 * np.abs(y).max(), config


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_configuration_of_two_ranks_reads_slices(product):
    support = make(Site("linear", 6, 5, True), product, ranks=(4, 2))
    randomize(support)
    w32, b32 = torch.randn(6, 5), torch.randn(6)
    for config in itertools.starmap(LayerConfig, itertools.product(*support.space.options(support.site))):
        w, b = restated(support, config, w32.double().numpy(), b32.double().numpy())
        assert np.allclose(support.weight(LINEAR, w32, config).detach().numpy(), w, atol=2e-6), config
        assert np.allclose(support.bias(LINEAR, w32, b32, config).detach().numpy(), b, atol=2e-6), config


@pytest.mark.parametrize("product", PRODUCTS)
def test_fan_in_scales_what_sums_over_all_inputs_and_nothing_else(product):
    site, kinds = Site("linear", 6, 384, True), ("lora", "vector", "scalar", "none")
    scales = {("B", "vector"): 1 / 384, ("B", "scalar"): 1 / 384, ("B", "lora"): 384**-0.5}
    if product == "matrix":
        scales["A", "lora"] = 384**-0.5
    for tensor, kind in itertools.product(TENSORS, kinds):
        if tensor in "DE" and kind == "lora":
            continue
        choice = Choice(kind, 4 if kind == "lora" else 0)
        expected = pytest.approx(scales.get((tensor, kind), 1.0))
        assert fixed_scale(SearchSpace(product=product, scaling="fan_in"), site, tensor, choice) == expected
        gain = 4.0 if tensor in "ADE" and kind in ("vector", "scalar") else 1.0
        expected = pytest.approx(gain * scales.get((tensor, kind), 1.0))
        assert fixed_scale(SearchSpace(product=product), site, tensor, choice) == expected
        assert fixed_scale(SearchSpace(product=product, scaling="none"), site, tensor, choice) == 1.0


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_right_factor_starts_the_same_function_and_one_step_is_the_same_share_of_it_whatever_the_width(product):
    for width in (60, 6_000):
        site = Site("linear", 6, width, True)
        ours, published = (
            Support(site, space, space.options(site), generator=torch.Generator().manual_seed(0))
            for space in (SearchSpace(product=product), SearchSpace(product=product, scaling="none"))
        )
        for tensor in ours.up:
            share = 1e-3 / ours.up[tensor].detach().square().mean().sqrt().item()  # of a step of Adam of 1e-3
            assert share == pytest.approx(1e-3 / 2**0.5, rel=0.1)
            scale = ours.scale(tensor, Choice("lora", 8)) * (1 if tensor == "B" or product == "matrix" else width**-0.5)
            assert torch.allclose(scale * ours.up[tensor], published.up[tensor], rtol=1e-5)


def test_the_first_step_on_lora_a_changes_the_output_about_as_much_as_on_lora_b():
    """Of a layer whose output is as large as its input; as published A does 30 times less at 1,000 inputs."""
    o, i = 40, 1_000
    layer, x = torch.nn.Linear(i, o), torch.randn(64, i)
    torch.nn.init.normal_(layer.weight, std=i**-0.5)
    for scaling, low, high in (("fan_in", 0.3, 3.0), ("none", 0.0, 0.1)):
        support = make(Site("linear", o, i, True), "elementwise", scaling=scaling)
        with torch.no_grad():
            for down in support.down.values():
                down.copy_(1e-3 * torch.randn_like(down).sign())
            moved = {
                t: (x @ (support.weight(LINEAR, layer.weight, LayerConfig(**{t: "lora:4"})) - layer.weight).T).std()
                for t in "AB"
            }
        assert low < moved["A"] / moved["B"] < high


def test_one_step_on_a_scaled_b_moves_the_weight_by_its_fan_in_less():
    site = Site("linear", 6, 50, True)
    w0 = torch.randn(6, 50)
    moved = {}
    for scaling in ("none", "fan_in"):
        support = make(site, "elementwise", scaling=scaling)
        config = LayerConfig(B="vector")
        with torch.no_grad():
            support.down["B"].fill_(1e-3)
        moved[scaling] = (support.weight(LINEAR, w0, config) - w0).abs().mean().item()
    assert moved["none"] == pytest.approx(50 * moved["fan_in"], rel=1e-3)


def test_down_starts_at_zero_and_up_is_drawn_from_the_generator_alone():
    site = Site("linear", 6, 5, True)
    state = torch.get_rng_state()
    first, again, other = (make(site, "elementwise", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not down.any() for down in first.down.values())
    assert all(torch.equal(first.up[t], again.up[t]) for t in first.up)
    assert all(not torch.equal(first.up[t], other.up[t]) for t in first.up)
    assert set(first.up) == {"A", "B", "C"}


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_support_tensors_are_float32_whatever_the_default_type(default):
    torch.set_default_dtype(default)
    try:
        support = make(Site("linear", 6, 5, True), "elementwise")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in support.parameters()} == {torch.float32}


def test_nothing_is_held_for_what_is_not_offered():
    bare = make(Site("linear", 6, 5, False), "elementwise")
    assert set(bare.down) == {"A", "B"}
    space = SearchSpace(only=LayerConfig(B="lora:3"))
    site = Site("linear", 6, 5, True)
    support = Support(site, space, space.options(site), generator=torch.Generator())
    assert sum(p.numel() for p in support.parameters()) == 3 * (6 + 5)


@pytest.mark.parametrize("product", PRODUCTS)
def test_slices_are_as_many_numbers_as_counted_and_contiguous(product):
    site = Site("linear", 6, 5, True)
    support = make(site, product, ranks=(4, 2))
    for config in itertools.starmap(LayerConfig, itertools.product(*support.space.options(site))):
        for tensor, choice in zip(TENSORS, config, strict=True):
            parts = support.slices(tensor, config)
            assert sum(part.numel() for part in parts.values()) == count_parameters(site, tensor, choice, product)
            assert all(part.is_contiguous() for part in parts.values())


def test_low_precision_weights_are_computed_in_float32_and_rounded_once():
    site = replace(Site("linear", 6, 5, True))
    support = make(site, "elementwise")
    randomize(support)
    config = LayerConfig(A="vector", B="lora:4", C="vector", D="vector", E="vector")
    w0, b0 = torch.randn(6, 5).bfloat16(), torch.randn(6).bfloat16()
    w, b = restated(support, config, w0.double().numpy(), b0.double().numpy())
    assert torch.equal(support.weight(LINEAR, w0, config), torch.tensor(w).float().bfloat16())
    assert torch.equal(support.bias(LINEAR, w0, b0, config), torch.tensor(b).float().bfloat16())


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_an_elementwise_lora_a_changes_a_weight_by_the_same_share_whatever_its_width(kind):
    """As a vector A does: an embedding's rows are looked up, not summed, and need the scale nevertheless."""
    shares = {}
    for width in (16, 1024):
        support = make(Site(kind, 400, width, bias=False), "elementwise", scaling="fan_in")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            support.down["A"].copy_(torch.randn(support.down["A"].shape, generator=generator).sign() * 0.01)
        w0 = torch.randn(400, width, generator=generator)
        for choice in ("lora:4", "vector"):
            change = support.weight(LINEAR, w0, LayerConfig(A=choice)).detach() - w0
            shares[width, choice] = float(change.norm() / w0.norm())
        assert shares[width, "vector"] == pytest.approx(0.01, rel=1e-3)
        assert shares[width, "lora:4"] == pytest.approx(0.01 * (2 * 4) ** 0.5, rel=0.2)  # 4 terms, var 2 / (i + r)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("fixed", [None, 2])
def test_a_large_weight_is_widened_in_parts(product, fixed, monkeypatch):
    site = Site("linear", 5, 3, True) if fixed is None else Site("embedding", 5, 3, False, fixed=fixed)
    support = make(site, product)
    randomize(support)
    w0 = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    for choices in itertools.product(*support.space.options(site)[:2]):
        config = LayerConfig(*choices)
        whole = support.weight(LINEAR, w0, config, torch.float64)
        for block in (1, 7, 15):
            monkeypatch.setattr("glora.adapt.support.BLOCK", block)
            torch.testing.assert_close(support.weight(LINEAR, w0, config, torch.float64), whole, rtol=1e-7, atol=1e-8)
        monkeypatch.undo()
