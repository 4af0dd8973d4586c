"""Linears with a weight-only quantised weight: the base stays as it is, and a merge makes floats only when told to."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.adapt import attach, layers
from glora.adapt.adapter_file import fingerprint
from glora.adapt.layers.quantized import is_quantized
from glora.errors import AdapterFileError, StateError, TargetError
from glora.genotype import Genotype, LayerConfig
from glora.space import SearchSpace
from suites.cases import every
from suites.layer_suite import PRODUCTS, LayerSuite, bits, difference, equal, randomize, rms

PAPER = SearchSpace(ranks=(4, 2), variant="paper")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # what torchao quantises


def quantize(layer: nn.Module, how: str) -> nn.Module:
    ao = pytest.importorskip("torchao.quantization")
    granularity = pytest.importorskip("torchao.quantization.granularity")
    config: dict[str, Callable[[], Any]] = {
        "int8": ao.Int8WeightOnlyConfig,
        "int4": lambda: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity.PerGroup(8)),
        "int8 input": ao.Int8DynamicActivationInt8WeightConfig,
    }
    ao.quantize_(layer, config[how]())
    return layer


class TestInt8(LayerSuite):
    dtypes = FLOATS
    held_is_built = False
    how = "int8"

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Linear(16, 10, bias=bias)

    def finished(self, layer: nn.Module) -> nn.Module:
        return quantize(layer, self.how)

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 16, generator=torch.Generator().manual_seed(7))

    def plain_error(self, plain: nn.Module, values: dict[str, Tensor | None], x: Tensor, truth: Tensor) -> float:
        """The quantised kernel's with its own weight: a float layer is exacter."""
        floats = plain.weight.dequantize().double()
        return rms(
            plain(x).double()
            - nn.functional.linear(x.double(), floats, None if plain.bias is None else plain.bias.double())
        )

    # torchao's int8 weight keeps its type whatever the layer becomes, and the plain layer fails then
    test_support_tensors_stay_float32_whatever_the_layer_becomes = None


class TestInt4(TestInt8):
    how = "int4"

    @every(dtype=[torch.bfloat16, torch.float16])
    def test_support_tensors_stay_float32_whatever_the_layer_becomes(self, dtype):
        LayerSuite.test_support_tensors_stay_float32_whatever_the_layer_becomes.__wrapped__(self, dtype)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(16, 24), nn.Linear(24, 16, bias=False), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc3(self.fc2(self.fc1(x).relu()).relu()).relu())


def make(how: str, seed: int = 0) -> Net:
    """fc1 and fc2 quantised, fc3 and the head not."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net().eval().requires_grad_(False)
    quantize(net.fc1, how)
    quantize(net.fc2, how)
    return net


def rich(adapted: glora.Adapted, **choices: str) -> Genotype:
    config = LayerConfig(**choices or {"A": "vector", "B": "lora:4", "C": "lora:2", "D": "vector", "E": "vector"})
    genotype = Genotype(
        {
            name: LayerConfig(*(c if c in every else "none" for c, every in zip(config, options, strict=True)))
            for name, options in adapted.space.options.items()
        }
    )
    adapted.activate(genotype)
    return genotype


def inject(net: Net, product: str = "elementwise", **how: Any) -> glora.Adapted:
    adapted = glora.inject(net, SearchSpace(ranks=(4, 2), variant="paper", product=product), **how)
    for k, support in enumerate(adapted.supports.values()):
        randomize(support, seed=k, size=0.1)
    return adapted


X = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
by_kind = pytest.mark.parametrize("how", ["int8", "int4"])


@by_kind
@pytest.mark.parametrize("product", PRODUCTS)
def test_the_base_is_dequantised_for_an_elementwise_lora_a_alone(how, product, monkeypatch):
    net = make(how)
    adapted = inject(net, product)
    calls: list[int] = []
    kind = type(net.fc1.parametrizations.weight.original)
    plain = kind.dequantize

    def counting(self, *args, **kwargs):
        calls.append(id(self))
        return plain(self, *args, **kwargs)

    genotypes = [adapted.sample(random.Random(seed)) for seed in range(20)]
    if how == "int8":
        monkeypatch.setattr(kind, "dequantize", counting)
        for genotype in genotypes:
            adapted.activate(genotype)
            with torch.no_grad():
                net(X)
                with adapted.hold(genotype):
                    net(X)
            wanted = sum(genotype[name].A.kind == "lora" for name in ("fc1", "fc2")) if product == "elementwise" else 0
            assert len(calls) == 4 * wanted, genotype.to_json()  # two forwards: the weight, and what it changed
            calls.clear()
    adapted.activate(genotypes[:5])
    net(X).sum().backward()


@by_kind
@pytest.mark.parametrize("product", PRODUCTS)
def test_training_reaches_every_site_and_never_the_base(how, product):
    net = make(how)
    base = {name: bits(value) for name, value in net.named_parameters()}
    adapted = inject(net, product)
    rich(adapted)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X), torch.arange(5) % 3)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(support.down["B"].grad.abs().sum() > 0 for support in adapted.supports.values())
    adapted.detach()
    assert all(equal(base[name], bits(value)) for name, value in net.named_parameters())


@by_kind
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_merge_makes_floats_only_when_told_and_says_so(how, product, caplog):
    net = make(how)
    plain, weights = net(X), {name: getattr(net, name).weight for name in ("fc1", "fc2")}
    adapted = inject(net, product)
    rich(adapted)
    out = net(X)
    with pytest.raises(StateError, match=r"floating-point: fc1, fc2.*dequantize=True"):
        adapted.merge()
    assert not adapted.merged
    assert torch.equal(net(X), out), "nothing was changed"
    merged = adapted.merge(dequantize=True)
    assert "no longer quantised: fc1, fc2." in caplog.text
    assert all(type(parameter) is nn.Parameter for parameter in merged.parameters())
    assert type(merged.fc1) is nn.Linear
    assert difference(merged(X), out) < 1e-5
    adapted.detach()
    assert all(getattr(net, name).weight is weight for name, weight in weights.items())
    assert torch.equal(net(X), plain)


@by_kind
def test_a_weight_that_nothing_changes_stays_quantised_in_a_merge(how, caplog):
    net = make(how)
    plain, weight = net(X), net.fc1.weight
    adapted = inject(net)
    genotype = rich(adapted, C="vector", D="vector", E="vector")
    out = net(X)
    assert difference(out, plain) > 1e-3
    merged = adapted.merge()
    assert "no longer quantised" not in caplog.text
    assert merged.fc1.weight is weight
    assert difference(merged(X), out) < 1e-5
    adapted.detach()
    assert torch.equal(net(X), plain)
    assert genotype["fc1"].E.kind == "vector"


@by_kind
def test_detach_gives_the_same_objects_after_a_hundred_cycles(how):
    net = make(how)
    before = {name: (id(value), bits(value)) for name, value in net.named_parameters()}
    plain, keys = net(X), list(net.state_dict())
    for cycle in range(100):
        adapted = inject(net)
        rich(adapted)
        if cycle % 2:
            adapted.merge(dequantize=True)
            assert list(net.state_dict()) == keys
        adapted.detach()
    now = {name: (id(value), bits(value)) for name, value in net.named_parameters()}
    assert list(now) == list(before)
    assert all(now[name][0] == before[name][0] and equal(now[name][1], before[name][1]) for name in before)
    assert torch.equal(net(X), plain)


@by_kind
def test_whoever_reads_the_weight_gets_the_effective_floats(how):
    net = make(how)
    w0 = net.fc1.weight.dequantize()
    adapted = inject(net)
    genotype = rich(adapted, B="lora:4")
    down, up = adapted.supports["fc1"].factors("B", genotype["fc1"])
    assert difference(net.fc1.weight, w0 + down @ up) < 1e-6
    adapted.activate(adapted.space.smallest)
    assert is_quantized(net.fc1.weight), "nothing changes it: nothing is dequantised"


@by_kind
def test_its_fingerprint_is_of_the_plain_tensors_inside(how, tmp_path):
    net = make(how)
    mark = fingerprint(net, ("head",))
    adapted = inject(net)
    assert fingerprint(net, ("head",)) == mark
    genotype = rich(adapted)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = make(how)
    loaded = glora.load_adapter(other, tmp_path / "a.safetensors")
    assert loaded.active == genotype
    assert torch.equal(other(X), net(X))
    with pytest.raises(AdapterFileError, match="another base"):
        glora.load_adapter(make(how, seed=1), tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match="another base"):
        glora.load_adapter(make("int8" if how == "int4" else "int4"), tmp_path / "a.safetensors")


@by_kind
def test_a_deepcopy_and_a_state_dict_live_on_their_own(how):
    net = make(how)
    adapted = inject(net)
    rich(adapted)
    out = net(X)
    twin = copy.deepcopy(adapted)
    assert torch.equal(twin.model(X), out)
    other = inject(make(how))
    for support in other.supports.values():
        randomize(support, seed=50)
    other.activate(adapted.active)
    assert not torch.equal(other.model(X), out)
    other.model.load_state_dict(net.state_dict())
    assert torch.equal(other.model(X), out)
    twin.merge(dequantize=True)
    assert torch.equal(net(X), out)
    assert torch.equal(twin.detach()(X), adapted.detach()(X))


@by_kind
def test_a_genotype_per_sample_is_each_sample_alone(how):
    net = make(how)
    adapted = inject(net)
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(5)]
    adapted.activate(genotypes)
    together = net(X)
    for sample, genotype in enumerate(genotypes):
        adapted.activate(genotype)
        assert torch.allclose(net(X[sample : sample + 1]), together[sample : sample + 1], atol=1e-5)


def test_a_quantised_head_is_not_trained_whole():
    net = make("int8")
    quantize(net.head, "int8")
    adapted = inject(net)
    assert adapted.head == ()
    assert "head" in adapted.sites
    assert any("head" in note and "quantised" in note for note in adapted.notes)
    with pytest.raises(TargetError, match="quantised"):
        glora.inject(make_head("int8"), PAPER, head="head")


def make_head(how: str) -> Net:
    net = make(how)
    quantize(net.head, how)
    return net


def test_a_layer_that_quantises_its_input_too_is_left_alone_and_said():
    net = make("int8")
    quantize(net.fc3, "int8 input")
    adapted = inject(net)
    assert list(adapted.sites) == ["fc1", "fc2"]
    assert any("fc3" in note and "Not adapted" in note for note in adapted.notes)


def test_only_a_quantised_weight_is_taken_for_one():
    assert not is_quantized(nn.Linear(2, 2).weight)
    assert not is_quantized(torch.zeros(2, dtype=torch.int8))
    assert not is_quantized(None)
    assert is_quantized(make("int4").fc1.weight)
    assert layers.views_of(make("int8").fc1)[""].quantized
    assert not layers.views_of(make("int8").fc3)[""].quantized


# bitsandbytes, where it is installed: in training mode, for in eval mode some CPUs make its layers pack themselves anew


def packed(how: str, seed: int = 0, bias: bool = True) -> nn.Sequential:
    """Two layers of bitsandbytes and a head."""
    bnb = pytest.importorskip("bitsandbytes")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if how == "int8":
            two = [bnb.nn.Linear8bitLt(64, 64, bias=bias, has_fp16_weights=False) for _ in range(2)]
        else:
            two = [bnb.nn.Linear4bit(64, 64, bias=bias, compute_dtype=torch.float32, quant_type=how) for _ in range(2)]
        net = nn.Sequential(two[0], nn.ReLU(), two[1], nn.Linear(64, 3))
    return net.to("cpu").train().requires_grad_(False)


def adapt_packed(net: nn.Sequential, product: str = "elementwise", *, fresh: bool = False) -> glora.Adapted:
    adapted = glora.inject(net, SearchSpace(ranks=(4, 2), variant="paper", product=product), head="3")
    for k, support in enumerate(adapted.supports.values()):
        if not fresh:
            randomize(support, seed=k, size=0.1)
    return adapted


LONG = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
by_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
by_format = pytest.mark.parametrize("how", ["int8", "nf4", "fp4"])
A_LORA = {"A": "lora:4", "B": "lora:2", "D": "vector", "E": "vector"}


@by_format
@by_bias
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_packed_layer_is_the_plain_one_fresh_and_plays_the_effective_weight(how, bias, product):
    net = packed(how, bias=bias)
    plain = net(LONG)
    adapted = adapt_packed(net, product, fresh=True)
    genotypes = [rich(adapted, **A_LORA), rich(adapted), *(adapted.sample(random.Random(seed)) for seed in range(5))]
    for genotype in genotypes:
        adapted.activate(genotype)
        assert torch.equal(net(LONG), plain)
    for k, support in enumerate(adapted.supports.values()):
        randomize(support, seed=k, size=0.1)
    for genotype in genotypes:
        adapted.activate(genotype)
        hidden = LONG
        for name in ("0", "2"):
            support, view = adapted.supports[name], attach.state_of(net[int(name)]).view
            base, config = attach.base_of(net[int(name)]), genotype[name]
            weight, shift = support.weight(view, base[0], config), support.bias(view, *base, config)
            hidden = nn.functional.linear(hidden, view.matrix(weight), shift).relu()
            if name == "2":
                out = net[2](net[1](net[0](LONG)))
                assert difference(out.relu(), hidden) < 1e-5
        with adapted.hold(genotype):
            assert torch.equal(net(LONG), net(LONG))
    adapted.activate(genotypes[:5])
    together = net(LONG)
    for sample, genotype in enumerate(genotypes[:5]):
        adapted.activate(genotype)
        assert torch.allclose(net(LONG[sample : sample + 1]), together[sample : sample + 1], atol=1e-4)


@by_format
def test_a_packed_layer_trains_and_its_base_comes_back(how):
    net = packed(how)
    plain, before = net(LONG), {name: (id(value), bits(value)) for name, value in net.named_parameters()}
    keys = list(net.state_dict())
    for cycle in range(10):
        adapted = adapt_packed(net, PRODUCTS[cycle % 2])
        rich(adapted, **A_LORA)
        net(LONG).square().sum().backward()
        assert all(support.down["B"].grad.abs().sum() > 0 for support in adapted.supports.values())
        assert all(support.down["A"].grad.abs().sum() > 0 for support in adapted.supports.values())
        adapted.detach()
    now = {name: (id(value), bits(value)) for name, value in net.named_parameters()}
    assert all(now[name][0] == before[name][0] and equal(now[name][1], before[name][1]) for name in before)
    assert (list(net.state_dict()), list(now)) == (keys, list(before))
    assert torch.equal(net(LONG), plain)


@by_format
def test_a_packed_layer_refuses_a_merge_of_its_weight_and_merges_its_bias(how):
    net = packed(how)
    plain, weight = net(LONG), net[0].weight
    adapted = adapt_packed(net)
    rich(adapted)
    for told in (False, True):
        with pytest.raises(StateError, match="bitsandbytes cannot hold floating-point weights: 0, 2"):
            adapted.merge(dequantize=told)
    rich(adapted, C="lora:2", D="vector", E="vector")
    out = net(LONG)
    merged = adapted.merge()
    assert merged[0].weight is weight
    assert difference(merged(LONG), out) < 1e-5
    assert torch.equal(adapted.detach()(LONG), plain)


@by_format
def test_a_packed_adapter_goes_through_a_file_and_a_copy(how, tmp_path):
    net = packed(how)
    mark = fingerprint(net, ("3",))
    adapted = adapt_packed(net)
    assert fingerprint(net, ("3",)) == mark
    rich(adapted)
    out = net(LONG)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = packed(how)
    glora.load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other(LONG), out)
    with pytest.raises(AdapterFileError, match="another base"):
        glora.load_adapter(packed(how, seed=1), tmp_path / "a.safetensors")
    twin = copy.deepcopy(adapted)
    assert torch.equal(twin.model(LONG), out)
    for support in twin.supports.values():
        randomize(support, seed=9)
    assert not torch.equal(twin.model(LONG), out)
    assert torch.equal(net(LONG), out)


def test_a_layer_of_bitsandbytes_that_is_not_quantised_yet_is_left_alone_and_said():
    bnb = pytest.importorskip("bitsandbytes")

    class Doubled(bnb.nn.Linear4bit):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    late, half = bnb.nn.Linear4bit(64, 64), bnb.nn.Linear8bitLt(64, 64)
    net = nn.Sequential(*packed("nf4"), late, half, Doubled(64, 64).to("cpu"))
    adapted = glora.inject(net, PAPER, head=None)
    assert list(adapted.sites) == ["0", "2", "3"]
    assert any("4, 5, 6" in note and "Not adapted" in note for note in adapted.notes)
