"""What every adapted layer type keeps. Subclass `LayerSuite` with `make_layer` and `make_input` and inherit it all."""

from __future__ import annotations

import copy
import itertools
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from glora.adapt import attach, layers
from glora.adapt.layers.quantized import is_quantized, plain_parts
from glora.adapt.support import GAIN, Support
from glora.errors import GloraError
from glora.genotype import NONE, TENSORS, Choice, LayerConfig
from glora.space import SearchSpace, count_parameters
from suites.cases import every

PRODUCTS = ("elementwise", "matrix")
DTYPES = (torch.bfloat16, torch.float16, torch.float64)
OFF = -1 / GAIN  # a vector A of it takes the weight away
NEAR = 1e-5  # max|difference| / max|output| between the two ways of computing one layer, float32

Merged = Callable[[LayerConfig], dict[str, Tensor | None]]  # weight and bias by name

SPREAD = (  # one configuration of each kind, for the tests that do not go through all
    LayerConfig(),
    LayerConfig(A="lora:4", B="lora:4", C="lora:4", D="vector", E="vector"),
    LayerConfig(A="vector", B="vector", C="vector", D="scalar", E="scalar"),
    LayerConfig(A="scalar", B="scalar"),
    LayerConfig(A="lora:2", E="vector"),
    LayerConfig(B="lora:2", D="vector"),
    LayerConfig(A="vector", B="lora:4", C="lora:2"),
)


def triples(configs: Sequence[LayerConfig]) -> list[LayerConfig]:
    """A few of the configurations that together show every combination of choices of any three support tensors.

    Of 900 about 100. Greedy: first the configurations with many combinations not seen yet.
    """

    def found(config: LayerConfig) -> set[tuple[tuple[int, Choice], ...]]:
        return set(itertools.combinations(enumerate(config), 3))

    missing, kept = set().union(*map(found, configs)), list[LayerConfig]()
    for new in range(10, 0, -1):  # five support tensors have ten groups of three
        for config in configs:
            if len(found(config) & missing) == new:
                kept.append(config)
                missing -= found(config)
    return kept


@cache
def swept(options: tuple[tuple[Choice, ...], ...], sweep: str) -> Sequence[LayerConfig]:
    """All configurations of these options, or their `triples`."""
    configs = list(itertools.starmap(LayerConfig, itertools.product(*options)))
    return configs if sweep == "all" else triples(configs)


def everything(ranks: tuple[int, ...], product: str) -> SearchSpace:
    return SearchSpace(ranks=ranks, product=product, variant="paper", new_bias=True)


def randomize(support: Support, seed: int = 0, size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in support.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def difference(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return 0.0 if torch.equal(a, b) else float((a - b).abs().max() / b.abs().max())


def bits(tensor: Tensor) -> list[Tensor]:
    """A copy of every plain tensor inside."""
    return [part.detach().clone() for _, part in plain_parts("", tensor)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def snapshot(layer: nn.Module) -> dict[str, tuple[int, bool, list[Tensor]]]:
    """Parameters in their order: object, flag and bits."""
    return {name: (id(p), p.requires_grad, bits(p)) for name, p in layer._parameters.items() if p is not None}


def same(layer: nn.Module, before: dict[str, tuple[int, bool, list[Tensor]]]) -> bool:
    now = snapshot(layer)
    return list(now) == list(before) and all(
        now[k][:2] == before[k][:2] and equal(now[k][2], before[k][2]) for k in now
    )


def exact_plain(layer: nn.Module, support: Support) -> tuple[nn.Module, Merged]:
    """The plain layer in float64, and what gives its merged weight and bias computed in float64 alone."""
    view, (w0, b0) = attach.state_of(layer).view, attach.base_of(layer)
    plain, numbers, order = copy.deepcopy(layer), copy.deepcopy(support), attach.state_of(layer).order
    attach.detach(plain)
    for parameter in numbers.parameters():
        parameter.data = parameter.data.double()
    w64 = (w0.dequantize() if is_quantized(w0) else w0).double()
    b64 = None if b0 is None else b0.double()
    plain._parameters[view.weight] = nn.Parameter(w64, requires_grad=False)
    plain_bias = None if b0 is None else getattr(plain, view.bias).shape

    @torch.no_grad()
    def merged(config: LayerConfig) -> dict[str, Tensor | None]:
        bias = numbers.bias(view, w64, b64, config)
        bias = bias if bias is None or plain_bias is None else bias.view(plain_bias)
        return {view.weight: numbers.weight(view, w64, config), **({view.bias: bias} if view.bias in order else {})}

    return plain.double(), merged


def showing(layer: nn.Module, values: dict[str, Tensor | None], dtype: torch.dtype) -> nn.Module:
    """The plain layer with these values, rounded once."""
    for name, value in values.items():
        layer._parameters[name] = None if value is None else nn.Parameter(value.detach().to(dtype), requires_grad=False)
    return layer


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance to the next number of that type."""
    numbers = torch.finfo(dtype)
    return (2 ** value.abs().double().clamp_min(numbers.tiny).log2().floor()) * numbers.eps


def rms(value: Tensor) -> float:
    return float(value.detach().double().square().mean().sqrt())


def view_of(layer: nn.Module) -> layers.View:
    (view,) = layers.views_of(layer).values()
    return view


def shown(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of a layer, attached or not."""
    view = attach.state_of(layer).view if attach.is_attached(layer) else view_of(layer)
    return getattr(layer, view.weight), getattr(layer, view.bias, None)


class LayerSuite:
    """The properties of one layer type."""

    forms: ClassVar = {  # the forms it has -> how many configurations at the ranks (4, 2)
        "bias": 900,
        "new": 300,  # the plain layer has no bias and gets one
        "bare": 25,
    }
    called: ClassVar = True  # its forward is known: samples may play different configurations

    def make_layer(self, *, bias: bool) -> nn.Module:
        """A fresh float32 layer with random numbers, a bias too where asked, and at least 2 features each way."""
        raise NotImplementedError

    def make_input(self, batch: int) -> Tensor:
        """A float32 input of that many samples, or integers, that reaches every number of the weight."""
        raise NotImplementedError

    def finished(self, layer: nn.Module) -> nn.Module:
        """The layer as it is adapted, made of one that has its type already."""
        return layer

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    held_is_built = True  # a held genotype plays the weights that a merge writes

    # help

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Runs a test with an argument `bias` for every form, one with `sweep` for `triples` and, slowly, for all."""
        if "bias" in metafunc.fixturenames:
            metafunc.parametrize("bias", list(self.forms))
        if "sweep" in metafunc.fixturenames:
            metafunc.parametrize("sweep", ["triples", pytest.param("all", marks=pytest.mark.slow)])

    def input(self, batch: int, dtype: torch.dtype) -> Tensor:
        """The input in another type, where it is no integer."""
        x = self.make_input(batch)
        return x.to(dtype) if x.is_floating_point() else x

    def options(self, bias: str, ranks: tuple[int, ...], product: str, sweep: str = "all") -> Sequence[LayerConfig]:
        """All configurations of a form, or their `triples`."""
        layer = self.make_layer(bias=bias == "bias")
        site = replace(view_of(layer).site, new_bias=bias == "new")
        return swept(everything(ranks, product).options(site), sweep)

    def adapt(
        self, bias: str = "", product: str = "elementwise", ranks: tuple[int, ...] = (4, 2), dtype=torch.float32
    ) -> tuple[nn.Module, Support]:
        """A layer with random support tensors attached; with its bias where it has that form."""
        bias = bias or next(iter(self.forms))
        if bias not in self.forms:
            pytest.skip(f"this layer type has no {bias!r} form")
        if dtype not in self.dtypes:
            pytest.skip(f"this layer type has no {dtype}")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = self.finished(self.make_layer(bias=bias == "bias").to(dtype))
        site = replace(view_of(layer).site, new_bias=bias == "new")
        space = everything(ranks, product)
        support = Support(site, space, space.options(site), generator=torch.Generator().manual_seed(0))
        layer.requires_grad_(False)
        attach.attach(layer, support)
        randomize(support)
        return layer, support

    def spread(self, support: Support) -> list[LayerConfig]:
        """The configurations of `SPREAD` with the nearest that this site has."""
        options = support.space.options(support.site)

        def nearest(choice: Choice, offered: tuple[Choice, ...]) -> Choice:
            vector = Choice("vector")
            return choice if choice in offered else vector if choice.kind == "lora" and vector in offered else NONE

        return [LayerConfig(*map(nearest, config, options)) for config in SPREAD]

    def plain_error(self, plain: nn.Module, values: dict[str, Tensor | None], x: Tensor, truth: Tensor) -> float:
        """The plain layer's own error with these values, root mean square."""
        dtype = x.dtype if x.is_floating_point() else next(plain.parameters()).dtype
        return rms(showing(plain, values, dtype)(x).double() - truth)

    def shift(self, support: Support, place: int = 0) -> LayerConfig:
        """B alone: the largest that this site has, or the one at that place."""
        return LayerConfig(B=support.space.options(support.site)[1][place])

    # fresh and plain

    def is_plain(self, out: Tensor, plain: Tensor) -> bool:
        """Whether an output is the plain layer's, bit for bit."""
        return torch.equal(out, plain)

    @every(product=PRODUCTS, dtype=[torch.float32, *DTYPES])
    def test_fresh_it_is_the_plain_layer_bit_for_bit(self, bias, product, dtype):
        layer, support = self.adapt(bias, product, dtype=dtype)
        fresh = Support(support.site, support.space, support.space.options(support.site), generator=torch.Generator())
        attach.detach(layer)
        x = self.input(3, dtype)
        plain = layer(x)
        attach.attach(layer, fresh)
        for config in self.spread(fresh):
            attach.state_of(layer).play([config])
            out = layer(x)
            assert out.dtype == plain.dtype
            assert self.is_plain(out, plain), config
            with attach.holding(layer, config):
                assert self.is_plain(layer(x), plain), config

    @every(product=PRODUCTS)
    def test_with_none_of_the_support_tensors_it_is_the_plain_layer(self, bias, product):
        layer, _ = self.adapt(bias, product)
        x = self.make_input(3)
        attach.state_of(layer).play([LayerConfig()])
        out, (weight, bias_now) = layer(x), shown(layer)
        weight = bits(weight)
        attach.detach(layer)
        assert self.is_plain(out, layer(x))
        assert equal(weight, bits(shown(layer)[0]))
        assert bias_now is None or bias == "new" or torch.equal(bias_now, shown(layer)[1])

    # two ways of computing, one truth

    @every(product=PRODUCTS)
    def test_merged_is_held_bit_for_bit_and_factored_within_rounding(self, bias, product, sweep):
        assert len(self.options(bias, (4, 2), product)) == self.forms[bias]
        layer, support = self.adapt(bias, product)
        x = self.make_input(3)
        for config in self.options(bias, (4, 2), product, sweep):
            attach.state_of(layer).play([config])
            factored = layer(x)
            with attach.holding(layer, config):
                held = layer(x)
            base = attach.merge(layer)
            assert torch.equal(layer(x), held) or not self.held_is_built, config
            assert difference(layer(x), held) <= NEAR, config
            assert difference(factored, held) <= NEAR, config
            layer._parameters.update(base)
            attach.attach(layer, support)

    @every(product=PRODUCTS, dtype=DTYPES)
    def test_other_types_keep_the_two_ways_together(self, bias, product, dtype):
        layer, support = self.adapt(bias, product, dtype=dtype)
        x = self.input(3, dtype)
        near = {torch.bfloat16: 5e-2, torch.float16: 5e-3, torch.float64: 1e-6}[dtype]
        for config in self.spread(support):
            attach.state_of(layer).play([config])
            factored = layer(x)
            base = attach.merge(layer)
            merged = layer(x)
            assert merged.dtype == factored.dtype == dtype
            assert difference(factored.double(), merged.double()) <= near, config
            assert all(parameter.dtype == dtype for parameter in layer.parameters())
            layer._parameters.update(base)
            attach.attach(layer, support)

    @every(product=PRODUCTS, value=[OFF, 1e4, 1e-30, "mixed"])
    def test_a_layer_switched_off_and_huge_and_tiny_numbers_stay_together(self, product, value, sweep):
        layer, support = self.adapt("", product)
        x = self.make_input(3)
        generator = torch.Generator().manual_seed(0)
        extremes = torch.tensor([-1.0, 1e4, -1e4, 1e-30, 0.0])
        with torch.no_grad():
            for factor in (*support.down.values(), *(support.up.values() if value == "mixed" else ())):
                drawn = extremes[torch.randint(len(extremes), factor.shape, generator=generator)]
                factor.copy_(drawn) if value == "mixed" else factor.fill_(value)
        alone = [config for config in (LayerConfig(A="scalar"), LayerConfig(A="vector")) if value == OFF]
        for config in [*self.options(next(iter(self.forms)), (4,), product, sweep), *alone]:
            attach.state_of(layer).play([config])
            factored = layer(x)
            with attach.holding(layer, config):
                held = layer(x)
            assert bool(held.isfinite().all())
            assert bool((factored - held).abs().max() <= NEAR * held.abs().max()), config
            if config in alone:
                assert not shown(layer)[0].any(), "W0 + W0 * (-1) is zero"

    @every(product=PRODUCTS, dtype=[torch.bfloat16, torch.float16])
    def test_in_low_precision_either_way_errs_at_most_twice_as_the_plain_layer(self, bias, product, dtype, sweep):
        """Root mean square against float64; the plain layer has the merged float64 weight, rounded."""
        layer, support = self.adapt(bias, product, (4,), dtype)
        randomize(support, size=0.1)
        with torch.no_grad():  # what vectors read is GAIN times as large
            for tensor in "ADE":
                if tensor in support.down:
                    support.down[tensor].div_(GAIN)
        plain = copy.deepcopy(layer)
        attach.detach(plain)
        exact, merged = exact_plain(layer, support)
        x = self.input(32, dtype)
        with torch.no_grad():
            for config in self.options(bias, (4,), product, sweep):
                values = merged(config)
                truth = showing(exact, values, torch.float64)(x.double() if x.is_floating_point() else x)
                own = self.plain_error(plain, values, x, truth)
                attach.state_of(layer).play([config])
                assert rms(layer(x).double() - truth) <= 2 * own, config
                with attach.holding(layer, config):
                    assert rms(layer(x).double() - truth) <= 2 * own, config

    @every(product=PRODUCTS, dtype=[torch.float32, torch.bfloat16, torch.float16])
    def test_merged_numbers_are_rounded_once(self, bias, product, dtype, sweep):
        layer, support = self.adapt(bias, product, (4,), dtype)
        _, merged = exact_plain(layer, support)
        for config in self.options(bias, (4,), product, sweep):
            attach.state_of(layer).play([config])
            played = attach.effective(layer)
            for name, truth in merged(config).items():
                value = played.get(name)
                if is_quantized(value):  # nothing changed it
                    continue
                assert (value is None) == (truth is None), (name, config)
                if value is None or truth is None:
                    continue
                assert value.dtype == dtype
                # half a distance; torch's way to half precision goes through float32
                room = ulp(truth, dtype) * (0.5 + 2**-14) + 16 * torch.finfo(torch.float64).eps
                assert bool(((value.double() - truth).abs() <= room).all()), (name, config)

    # back again

    @pytest.mark.parametrize("cycles", [14, pytest.param(100, marks=pytest.mark.slow)])
    @every(dtype=[torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_many_cycles_of_merge_and_detach_change_no_bit(self, bias, dtype, cycles):
        layer, support = self.adapt(bias, dtype=dtype)
        attach.detach(layer)
        cls, before, modules = type(layer), snapshot(layer), list(layer._modules)
        configs = self.spread(support)
        for cycle in range(cycles):  # of 14 each configuration is merged once and detached once
            attach.attach(layer, support)
            attach.state_of(layer).play([configs[cycle % len(configs)]])
            if cycle % 2:
                layer._parameters.update(attach.merge(layer))
            else:
                attach.detach(layer)
        assert type(layer) is cls
        assert "forward" not in vars(layer)
        assert list(layer._modules) == modules
        assert same(layer, before)

    def test_merged_it_has_the_plain_class_and_keys_in_their_order(self, bias):
        layer, support = self.adapt(bias)
        attach.detach(layer)
        cls, keys, name = type(layer), list(layer.state_dict()), view_of(layer).bias
        attach.attach(layer, support)
        attach.state_of(layer).play([self.spread(support)[1]])
        attach.merge(layer)
        assert type(layer) is cls
        assert list(layer.state_dict()) == keys + ([name] if bias == "new" else [])
        assert all(type(parameter) is nn.Parameter for parameter in layer.parameters())

    def test_a_new_bias_that_is_not_played_is_not_merged(self):
        layer, _ = self.adapt("new")
        attach.state_of(layer).play([LayerConfig(B="lora:4")])
        attach.merge(layer)
        assert shown(layer)[1] is None

    def test_merge_keeps_whether_the_parameters_are_trained(self):
        layer, support = self.adapt()
        attach.detach(layer)
        shown(layer)[0].requires_grad_(True)
        attach.attach(layer, support)
        attach.state_of(layer).play([self.shift(support)])
        attach.merge(layer)
        trained = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
        assert trained == [view_of(layer).weight]

    @every(value=[float("nan"), float("inf")], side=["down", "up"])
    def test_a_number_that_is_not_finite_refuses_to_merge_and_changes_nothing(self, value, side):
        layer, support = self.adapt()
        attach.state_of(layer).play([self.shift(support)])
        if "B" not in getattr(support, side):
            pytest.skip("this site's B has one factor")
        with torch.no_grad():
            getattr(support, side)["B"].flatten()[1] = value
        cls, keys = type(layer), list(layer.state_dict())
        with pytest.raises(GloraError, match="NaN"):
            attach.merge(layer)
        assert type(layer) is cls
        assert list(layer.state_dict()) == keys

    def test_a_number_that_is_not_played_may_be_anything(self):
        layer, support = self.adapt()
        config = self.shift(support, 1)
        played = support.slices("B", config)["down"].detach().clone()
        with torch.no_grad():
            support.down["B"].fill_(float("nan"))
            support.down["B"][tuple(map(slice, played.shape))] = played
        attach.state_of(layer).play([config])
        attach.merge(layer)
        assert bool(shown(layer)[0].isfinite().all())

    # entanglement and gradients

    @every(product=PRODUCTS)
    def test_a_lower_rank_is_a_slice_of_a_higher_one(self, product):
        x = self.make_input(3)
        for config in (LayerConfig(A="lora:2"), LayerConfig(B="lora:2"), LayerConfig(C="lora:2")):
            layer, support = self.adapt("", product)
            if not all(map(operator.contains, support.space.options(support.site), config)):
                continue
            attach.state_of(layer).play([config])
            small = layer(x)
            with torch.no_grad():  # without its last columns the large one is the small one
                for factor in support.down.values():
                    if factor.dim() == 2:
                        factor[:, 2:] = 0
            tensor = next(t for t in TENSORS if getattr(config, t) != NONE)
            attach.state_of(layer).play([LayerConfig(**{tensor: "lora:4"})])
            assert difference(layer(x), small) <= NEAR

    @every(held=[False, True], product=PRODUCTS)
    def test_gradient_reaches_exactly_the_numbers_counted(self, product, held):
        layer, support = self.adapt("", product)
        randomize(support, size=0.05)  # a ReLU behind it would hide a channel that is moved far
        x = self.make_input(3)
        for config in self.spread(support):
            attach.state_of(layer).play([config])
            support.zero_grad()
            if config != LayerConfig():
                read = [each for each in shown(layer) if each is not None] if held else [layer(x)]
                sum((tensor**2).sum() for tensor in read).backward()
            reached = sum(int((p.grad != 0).sum()) for p in support.parameters() if p.grad is not None)
            counted = sum(count_parameters(support.site, t, c, product) for t, c in zip(TENSORS, config, strict=True))
            saved = sum(part.numel() for t in TENSORS for part in support.slices(t, config).values())
            assert reached == counted == saved, config
            assert all(p.grad is None for p in layer.parameters() if not p.requires_grad)

    @every(product=PRODUCTS)
    def test_both_ways_have_the_same_gradients(self, product):
        if not self.called:
            pytest.skip("this layer type has one way, its weight")
        layer, support = self.adapt("", product)
        view = attach.state_of(layer).view
        for config in self.spread(support)[1:]:
            attach.state_of(layer).play([config])
            grads = []
            for way in range(2):
                support.zero_grad()
                x = self.make_input(3)
                x.requires_grad_(x.is_floating_point())
                out = view.plain(layer, x, *shown(layer)) if way else layer(x)
                (out**3).sum().backward()
                named = [("x", x), *support.named_parameters()]
                grads.append({n: p.grad.clone() for n, p in named if p.grad is not None})
            assert grads[0].keys() == grads[1].keys()
            for name, grad in grads[0].items():
                assert torch.allclose(grad, grads[1][name], rtol=1e-4, atol=1e-4 * float(grad.abs().max())), name

    # living in a model

    def test_a_deepcopy_lives_on_its_own(self, bias):
        layer, support = self.adapt(bias)
        attach.state_of(layer).play([self.spread(support)[1]])
        x = self.make_input(3)
        before = layer(x)
        twin = copy.deepcopy(layer)
        assert torch.equal(twin(x), before)
        randomize(attach.state_of(twin).support, seed=1)
        assert not torch.equal(twin(x), before)
        assert torch.equal(layer(x), before)
        attach.merge(twin)
        assert torch.equal(layer(x), before), "merging a copy changed the original"
        shown(layer)[0].sum()
        attach.detach(layer)

    def test_its_state_dict_goes_round(self, bias):
        layer, support = self.adapt(bias)
        other, _ = self.adapt(bias)
        randomize(attach.state_of(other).support, seed=5)
        for each in (layer, other):
            attach.state_of(each).play([self.spread(support)[1]])
        x = self.make_input(3)
        assert not torch.equal(layer(x), other(x))
        other.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), other(x))

    @every(product=PRODUCTS)
    def test_under_autocast_it_returns_what_the_plain_layer_returns(self, bias, product):
        layer, support = self.adapt(bias, product)
        x = self.make_input(3)
        attach.detach(layer)
        with torch.autocast("cpu", torch.bfloat16):
            plain = layer(x)
        attach.attach(layer, support)
        for config in self.spread(support):
            attach.state_of(layer).play([config])
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(x)
                weight = shown(layer)[0]
            with attach.holding(layer, config):
                held = layer(x)
            assert out.dtype == plain.dtype
            assert weight.dtype == torch.float32
            assert equal(bits(weight), bits(shown(layer)[0])), "the effective weight is made with autocast off"
            assert difference(out.float(), held) < 5e-2

    @every(dtype=DTYPES)
    def test_support_tensors_stay_float32_whatever_the_layer_becomes(self, dtype):
        layer, support = self.adapt()
        attach.state_of(layer).play([self.spread(support)[1]])
        before = {name: value.clone() for name, value in support.state_dict().items()}
        layer.to(dtype)
        assert layer(self.input(2, dtype)).dtype == dtype
        assert shown(layer)[0].dtype == dtype
        after = support.state_dict()
        assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)

    # one configuration per sample

    @every(product=PRODUCTS)
    def test_per_sample_equals_each_sample_alone(self, bias, product):
        if not self.called:
            pytest.skip("this layer type plays one configuration a batch")
        layer, support = self.adapt(bias, product)
        configs = self.spread(support)
        configs = [*configs, configs[2], configs[0]]
        x = self.make_input(len(configs))
        attach.state_of(layer).play(configs)
        together = layer(x)
        for sample, config in enumerate(configs):
            attach.state_of(layer).play([config])
            assert torch.allclose(layer(x)[sample], together[sample], atol=1e-5), config
            alone = layer(x[sample : sample + 1])
            assert torch.allclose(alone, together[sample : sample + 1], atol=1e-5), config

    def test_every_sample_may_play_its_own_support_tensors_of_any_product_and_scaling(self, bias):
        """Configurations of three adapters in one batch, each sample against its own effective weight."""
        if not self.called:
            pytest.skip("its weight is read without calling it")
        layer, first = self.adapt(bias, "elementwise")
        generator, site = torch.Generator().manual_seed(1), first.site
        spaces = [
            replace(everything(ranks, product), scaling=scaling)
            for ranks, product, scaling in (((4,), "matrix", "fan_in"), ((3, 1), "elementwise", "fan_in"))
        ]
        supports = [first, *(Support(site, space, space.options(site), generator=generator) for space in spaces)]
        for seed, support in enumerate(supports):
            randomize(support, seed)
        configs = [itertools.product(*s.space.options(s.site)) for s in supports]
        plays = [(s, LayerConfig(*c)) for s, found in zip(supports, configs, strict=True) for c in found]
        plays = random.Random(0).sample(plays, min(len(plays), 150))
        x = self.make_input(len(plays))
        state = attach.state_of(layer)
        with torch.no_grad():
            state.play([config for _, config in plays], [support for support, _ in plays])
            together = layer(x)
            size = together.abs().amax()
            for sample, (support, config) in enumerate(plays):
                state.play([config], [support])
                state.held = shown(layer)
                alone = layer(x[sample : sample + 1])
                assert float((alone - together[sample : sample + 1]).abs().max()) <= NEAR * float(size), config

    def test_where_samples_cannot_be_told_apart_the_first_genotype_plays_and_it_is_said_once(self, caplog):
        for read in (lambda layer: layer(self.make_input(4)), lambda layer: shown(layer)[0]):
            layer, support = self.adapt()
            configs = self.spread(support)[1:4]
            attach.state_of(layer).play(configs)
            caplog.clear()
            mixed = read(layer)
            attach.state_of(layer).play(configs)  # the next step
            read(layer)
            assert len(caplog.records) == 1
            assert "for the whole batch" in caplog.text
            attach.state_of(layer).play(configs[:1])
            assert torch.equal(mixed, read(layer))
