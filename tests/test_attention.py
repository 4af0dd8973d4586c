"""`nn.MultiheadAttention`: several weights in one layer, with parts of one bias, all read and never called."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import glora
from glora.adapt import attach
from glora.adapt.support import Support
from glora.errors import GloraError, StateError
from glora.genotype import Genotype, LayerConfig
from glora.space import SearchSpace
from suites.cases import every
from suites.layer_suite import PRODUCTS, SPREAD, difference, randomize, same, snapshot

FORMS = {
    "joint": {"batch_first": True},
    "joint, bare": {"batch_first": True, "bias": False},
    "joint, sequence first": {},
    "joint, bias_kv": {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
    "separate": {"batch_first": True, "kdim": 6, "vdim": 10},
    "separate, bare": {"kdim": 6, "bias": False},
    "separate, sequence first": {"vdim": 10},
}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SEPARATE = ("q_proj", "k_proj", "v_proj")
RICH = LayerConfig(A="lora:4", B="lora:4", C="lora:2", D="vector", E="vector")

by_form = pytest.mark.parametrize("form", FORMS)
by_product = pytest.mark.parametrize("product", PRODUCTS)


def make(form: str, dtype: torch.dtype = torch.float32) -> nn.MultiheadAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(8, 2, **FORMS[form])
        for parameter in layer.parameters():  # as made the biases are zero
            nn.init.normal_(parameter, std=0.3)
    return layer.to(dtype).eval().requires_grad_(False)  # torch rounds otherwise where a weight wants a gradient


def inputs(form: str, batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value: the same tensor, for the inference fast path, where the widths are."""
    generator = torch.Generator().manual_seed(7)
    given = FORMS[form]
    widths = 8, given.get("kdim", 8), given.get("vdim", 8)
    shape = (batch, 5) if given.get("batch_first") else (5, batch)
    q, k, v = (torch.randn(*shape, width, generator=generator).to(dtype) for width in widths)
    return (q, k, v) if form.startswith("separate") else (q, q, q)


def offered(config: LayerConfig, options) -> LayerConfig:
    return LayerConfig(*(c if c in every else "none" for c, every in zip(config, options, strict=True)))


def adapt(
    form: str, product: str = "elementwise", *, dtype: torch.dtype = torch.float32, fresh: bool = False, **how
) -> tuple[nn.MultiheadAttention, glora.Adapted]:
    layer = make(form, dtype)
    space = SearchSpace(ranks=(4, 2), product=product, variant="paper", scaling="fan_in")
    adapted = glora.inject(layer, space, head=None, **how)
    for k, support in enumerate(adapted.supports.values()):
        if not fresh:
            randomize(support, seed=k)
    return layer, adapted


def everywhere(adapted: glora.Adapted, config: LayerConfig = RICH) -> Genotype:
    return Genotype({name: offered(config, options) for name, options in adapted.space.options.items()})


def random_ones(adapted: glora.Adapted, n: int) -> list[Genotype]:
    return [adapted.sample(random.Random(seed)) for seed in range(n)]


# sites


@by_form
def test_its_in_projections_are_sites_beside_out_proj(form):
    _, adapted = adapt(form)
    bias = "bare" not in form
    widths = {"in_proj": (24, 8)}
    if form.startswith("separate"):
        sizes = 8, FORMS[form].get("kdim", 8), FORMS[form].get("vdim", 8)
        widths = {name: (8, size) for name, size in zip(SEPARATE, sizes, strict=True)}
    shapes = {name: (site.out_features, site.in_features, site.bias) for name, site in adapted.sites.items()}
    assert shapes == {name: (*shape, bias) for name, shape in widths.items()} | {"out_proj": (8, 8, bias)}
    assert any("in_proj" in note or "q_proj" in note for note in adapted.notes) == (not bias), (
        "what is left out is said"
    )


def test_it_never_gets_a_new_bias():
    layer = make("joint, bare")
    adapted = glora.inject(layer, SearchSpace.paper((2,)), head=None, example=inputs("joint, bare"))
    assert not any(site.new_bias for site in adapted.sites.values())
    adapted.activate(adapted.space.largest)
    assert adapted.merge() is layer
    assert adapted.new_keys == ()


@pytest.mark.parametrize(
    ("targets", "skip", "sites"),
    [
        ("linear", (), ["q_proj", "k_proj", "v_proj", "out_proj"]),
        ("all", (), ["q_proj", "k_proj", "v_proj", "out_proj"]),
        (["k_proj"], (), ["k_proj"]),
        ("linear", ["k_proj", "out_proj"], ["q_proj", "v_proj"]),
    ],
)
def test_targets_and_skip_name_its_weights(targets, skip, sites):
    _, adapted = adapt("separate", targets=targets, skip=skip)
    assert list(adapted.sites) == sites


# exactness


@by_form
@every(product=PRODUCTS, dtype=FLOATS, grad=[False, True], training=[False, True])
def test_fresh_it_is_the_plain_layer_bit_for_bit(form, product, dtype, grad, training):
    plain = make(form, dtype).train(training).requires_grad_(grad)
    layer, adapted = adapt(form, product, dtype=dtype, fresh=True)
    layer.train(training)
    x = inputs(form, dtype=dtype)
    causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    calls = [{}, {"need_weights": False}, {"attn_mask": causal}, {"key_padding_mask": padding, "need_weights": False}]
    with torch.set_grad_enabled(grad):
        for config in SPREAD[1:]:
            adapted.activate(everywhere(adapted, config))
            for call in calls:
                for ours, theirs in zip(layer(*x, **call), plain(*x, **call), strict=True):
                    assert ours is theirs is None or torch.equal(ours, theirs), (config, call)


def eq13(support: Support, config: LayerConfig, w0: Tensor) -> Tensor:
    """Eq. 13 once more, in float64, without the library's slices and views."""
    a, b = ({side: value.double() for side, value in support.slices(t, config).items()} for t in "AB")
    w = w0.double()
    change = a["down"] @ a["up"] if "up" in a else a.get("down", torch.zeros(1, 1, dtype=torch.float64))
    change = change * support.scale("A", config.A)
    if not support.is_matrix:
        w = w + w * change
    elif "up" in a:
        w = w + w @ change
    else:
        w = w + w * change.reshape(1, -1)
    return w + support.scale("B", config.B) * (b["down"] @ b["up"] if "up" in b else b.get("down", 0))


def eq14(support: Support, config: LayerConfig, w0: Tensor, b0: Tensor | None) -> Tensor | None:
    """Eq. 14 once more, in float64."""
    if b0 is None:
        return None
    c, d, e = ({side: value.double() for side, value in support.slices(t, config).items()} for t in "CDE")
    prompt = c["down"] @ c["up"] if "up" in c else c.get("down")
    b = b0.double() * (1 + d.get("down", 0)) + e.get("down", 0)
    return b if prompt is None else b + (w0.double() @ prompt).squeeze(-1)


@by_form
@every(product=PRODUCTS)
def test_it_plays_equations_13_and_14(form, product):
    plain, (layer, adapted) = make(form).double(), adapt(form, product)
    x = inputs(form)
    for genotype in [everywhere(adapted, config) for config in SPREAD] + random_ones(adapted, 10):
        adapted.activate(genotype)
        weights, biases = {}, []
        for name, support in adapted.supports.items():
            holder, key = (plain.out_proj, "weight") if name == "out_proj" else (plain, f"{name}_weight")
            bias, part = (plain.out_proj.bias if name == "out_proj" else plain.in_proj_bias), slice(None)
            if name in SEPARATE:
                part = slice(8 * SEPARATE.index(name), 8 * SEPARATE.index(name) + 8)
            w0 = holder._parameters[key]
            weights[name] = eq13(support, genotype[name], w0)
            biases.append(eq14(support, genotype[name], w0, None if bias is None else bias[part]))
        *ins, out = biases
        q, k, v = (t.double() if not FORMS[form].get("batch_first") else t.double().transpose(0, 1) for t in x)
        expected = F.multi_head_attention_forward(
            q, k, v, 8, 2, weights.get("in_proj"), None if ins[0] is None else torch.cat(ins), plain.bias_k,
            plain.bias_v, plain.add_zero_attn, 0.0, weights["out_proj"], out,
            use_separate_proj_weight="in_proj" not in weights,
            **{f"{name}_weight": weights.get(name) for name in SEPARATE},
        )[0]  # fmt: skip
        expected = expected.transpose(0, 1) if FORMS[form].get("batch_first") else expected
        assert difference(layer(*x)[0].double(), expected) < 1e-5, genotype.to_json()


@by_form
@every(product=PRODUCTS)
def test_training_eval_held_and_merged_agree(form, product):
    layer, adapted = adapt(form, product)
    x = inputs(form)
    for genotype in [everywhere(adapted), *random_ones(adapted, 5)]:
        layer, adapted = adapt(form, product)
        adapted.activate(genotype)
        trained = layer.train()(*x)[0]
        layer.eval()
        with torch.no_grad():
            fast = layer(*x)[0]
            with adapted.hold(genotype):
                held = layer(*x)[0]
            merged = adapted.merge()(*x)[0]
        assert difference(trained, fast) < 1e-5
        assert difference(fast, held) < 1e-6, "both go through the effective weight, one with more digits"
        assert torch.equal(merged, held)


@by_form
@pytest.mark.parametrize("cycles", [14, pytest.param(100, marks=pytest.mark.slow)])
@every(dtype=[torch.float32, torch.bfloat16], how=[{}, {"targets": "out_proj|[nk]_proj"}, {"skip": "out_proj"}])
def test_many_cycles_change_no_bit_and_no_order(form, dtype, how, cycles):
    layer = make(form, dtype)
    layer.out_proj.weight.requires_grad_(True)
    cls, before, out, modules = type(layer), snapshot(layer), snapshot(layer.out_proj), list(layer._modules)
    keys, names = list(layer.state_dict()), list(layer._parameters)
    for cycle in range(cycles):  # of 14 each configuration is merged once and detached once
        adapted = glora.inject(layer, SearchSpace(ranks=(2,), variant="paper"), head=None, **how)
        adapted.activate(everywhere(adapted, SPREAD[cycle % len(SPREAD)]))
        if cycle % 2:
            adapted.merge()
            assert list(layer.state_dict()) == keys
        adapted.detach()
    assert type(layer) is cls
    assert list(layer._modules) == modules
    assert (list(layer.state_dict()), list(layer._parameters)) == (keys, names)
    assert "forward" not in vars(layer)
    assert same(layer, before)
    assert same(layer.out_proj, out)


@by_form
def test_adapting_one_weight_leaves_the_others_the_same_objects(form):
    slot = "k_proj" if form.startswith("separate") else "in_proj"
    plain, (layer, adapted) = make(form), adapt(form, targets=[slot])
    adapted.activate(everywhere(adapted))
    x = inputs(form)
    assert difference(layer(*x)[0], plain(*x)[0]) > 1e-3
    others = set(SEPARATE) - {slot} if slot == "k_proj" else set()
    assert all(isinstance(getattr(layer, f"{other}_weight"), nn.Parameter) for other in others)
    if layer.in_proj_bias is not None and slot == "k_proj":
        changed = layer.in_proj_bias != plain.in_proj_bias
        assert changed[8:16].all()
        assert not changed[:8].any() and not changed[16:].any()
    merged = adapted.merge()
    for name, value in merged.state_dict().items():
        touched = name in (f"{slot}_weight", "in_proj_bias")
        assert torch.equal(value, plain.state_dict()[name]) != touched, name


def test_parts_of_a_bias_that_nothing_changes_are_the_bias_itself():
    layer, adapted = adapt("separate")
    adapted.activate(everywhere(adapted, LayerConfig(B="lora:2")))
    assert layer.in_proj_bias is layer.parametrizations.in_proj_bias.original


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("form", "site"), [("joint", "in_proj"), ("separate", "v_proj"), ("separate", "out_proj")])
@pytest.mark.parametrize("tensor", ["B", "E"])
def test_a_number_that_is_not_finite_refuses_to_merge_and_names_the_weight(form, site, tensor, value):
    layer, adapted = adapt(form)
    adapted.activate(everywhere(adapted))
    with torch.no_grad():
        adapted.supports[site].down[tensor].flatten()[1] = value
    keys = list(layer.state_dict())
    with pytest.raises(GloraError, match=f"'{site}'"):
        adapted.merge()
    assert list(layer.state_dict()) == keys
    adapted.detach()


# training


@by_form
@every(product=PRODUCTS, training=[False, True])
def test_the_gradient_reaches_exactly_what_is_counted(form, product, training):
    layer, adapted = adapt(form, product)
    layer.train(training)
    for genotype in [everywhere(adapted), *random_ones(adapted, 4)]:
        adapted.activate(genotype)
        layer.zero_grad()
        # a shift of the keys reaches no output: the weights as the layer shows them, beside the output
        loss = layer(*inputs(form))[0].pow(2).sum()
        for holder in (layer, layer.out_proj):
            for name in getattr(holder, "parametrizations", {}):
                loss = loss + getattr(holder, name).pow(3).sum()
        loss.backward()
        reached = [p.grad for s in adapted.supports.values() for p in s.parameters() if p.grad is not None]
        assert sum(int((grad != 0).sum()) for grad in reached) == adapted.count(genotype)
        assert sum(t.numel() for t in adapted.state().tensors.values()) == adapted.count(genotype)
        assert all(parameter.grad is None for parameter in layer.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("form", ["joint", "separate"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_weight_is_built_once_a_forward(form, training, monkeypatch):
    layer, adapted = adapt(form)
    layer.train(training)
    adapted.activate(everywhere(adapted))
    built: list[tuple[str, int]] = []
    for name in ("weight", "bias"):
        plain = getattr(Support, name)

        def counting(self, *args, name=name, plain=plain):
            built.append((name, id(self)))
            return plain(self, *args)

        monkeypatch.setattr(Support, name, counting)
    for n in (1, 2):
        layer(*inputs(form))
        for slot in set(adapted.sites) - {"out_proj"}:
            for name in ("weight", "bias"):
                assert built.count((name, id(adapted.supports[slot]))) == n, "built once, and anew the next time"


def test_an_error_in_its_forward_leaves_nothing_held():
    layer, adapted = adapt("separate")
    adapted.activate(everywhere(adapted))
    x = inputs("separate")
    before = layer(*x)[0]
    with pytest.raises(Exception, match=r"shape|size|match"):
        layer(x[0], x[0], x[0])
    assert all(adapter.held is None for adapter in attach.adapters_of(layer).values())
    with torch.no_grad():
        adapted.supports["q_proj"].down["B"].add_(0.5)
    assert difference(layer(*x)[0], before) > 1e-3


@by_form
def test_under_autocast_it_returns_what_the_plain_layer_returns(form):
    plain, (layer, adapted) = make(form).train(), adapt(form)
    layer.train()
    adapted.activate(everywhere(adapted))
    x = inputs(form)
    exact = layer(*x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = layer(*x)[0], plain(*x)[0]
    assert out.dtype == expected.dtype
    assert difference(out.float(), exact) < 5e-2


# living in a model


@by_form
def test_a_deepcopy_lives_on_its_own(form):
    layer, adapted = adapt(form)
    adapted.activate(everywhere(adapted))
    x = inputs(form)
    before = layer(*x)[0]
    twin = copy.deepcopy(adapted)
    assert torch.equal(twin.model(*x)[0], before)
    for support in twin.supports.values():
        randomize(support, seed=9)
    assert difference(twin.model(*x)[0], before) > 1e-3
    assert torch.equal(layer(*x)[0], before)
    with torch.no_grad():
        out = twin.model(*x)[0]
        assert difference(twin.merge()(*x)[0], out) < 1e-6
    assert torch.equal(layer(*x)[0], before)
    plain = make(form)
    assert torch.equal(twin.detach()(*x)[0], plain(*x)[0])
    assert torch.equal(adapted.detach()(*x)[0], plain(*x)[0])


@by_form
def test_its_state_dict_goes_round(form):
    (layer, adapted), (other, theirs) = adapt(form), adapt(form, fresh=True)
    for each in (adapted, theirs):
        each.activate(everywhere(each))
    x = inputs(form)
    assert not torch.equal(layer(*x)[0], other(*x)[0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(*x)[0], other(*x)[0])


@by_form
def test_its_adapter_goes_through_a_file(form, tmp_path):
    layer, adapted = adapt(form)
    for seed, genotype in enumerate([everywhere(adapted), *random_ones(adapted, 2)]):
        adapted.activate(genotype)
        path = tmp_path / f"{seed}.safetensors"
        glora.save_adapter(adapted, path)
        model = make(form)
        loaded = glora.load_adapter(model, path)
        assert loaded.active == genotype
        assert torch.equal(model(*inputs(form))[0], layer(*inputs(form))[0])
        adapted.add(f"{seed}", path)
        adapted.switch(f"{seed}")
        assert torch.equal(model(*inputs(form))[0], layer(*inputs(form))[0])
        adapted.switch("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_follows_the_model_to_another_type(dtype):
    layer, adapted = adapt("separate")
    genotype = everywhere(adapted)
    adapted.activate(genotype)
    layer.to(dtype)
    x = inputs("separate", dtype=dtype)
    assert layer(*x)[0].dtype == dtype
    with torch.no_grad(), adapted.hold(genotype):
        held = layer(*x)[0]
    assert torch.equal(adapted.merge()(*x)[0], held)
    adapted.detach()
    assert torch.equal(layer(*x)[0], make("separate", dtype)(*x)[0]) or dtype == torch.bfloat16


def test_a_subclass_with_its_own_forward_plays_through_its_weights():
    class Doubled(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)[0]

    layer = Doubled(8, 2, batch_first=True)
    x = inputs("joint")
    adapted = glora.inject(layer, SearchSpace(ranks=(4, 2), variant="paper"), head=None)
    plain = layer(*x)
    for support in adapted.supports.values():
        randomize(support)
    adapted.activate(everywhere(adapted))
    out = layer(*x)
    assert difference(out, plain) > 1e-3
    assert difference(adapted.merge()(*x), out) < 1e-5
    assert type(layer) is Doubled


# several genotypes in a batch


def test_of_several_genotypes_the_first_plays_and_it_is_said_once(caplog):
    layer, adapted = adapt("separate")
    one, *others = [everywhere(adapted, config) for config in SPREAD[1:4]]
    adapted.activate(one)
    x = inputs("separate")
    alone = layer(*x)[0]
    adapted.activate([one, *others])
    for _ in range(2):
        assert torch.equal(layer(*x)[0], alone)
    for name in adapted.sites:
        assert caplog.text.count(f"{name} plays the first sample's genotype for the whole batch") == 1


def test_sequences_first_refuse_several_genotypes():
    _, adapted = adapt("joint, sequence first")
    with pytest.raises(StateError, match="takes sequences first"):
        adapted.activate(random_ones(adapted, 2))


# torch around it


@pytest.mark.slow
@pytest.mark.parametrize("form", ["joint", "separate"])
def test_it_compiles_whole_and_checkpoints(form):
    layer, adapted = adapt(form)
    genotype = everywhere(adapted)
    adapted.activate(genotype)
    x, grads = inputs(form), []
    compiled = torch.compile(layer.train(), backend="eager", fullgraph=True)
    for run in (layer, compiled, lambda *a: torch.utils.checkpoint.checkpoint(layer, *a, use_reentrant=False)):
        layer.zero_grad()
        run(*x)[0].square().sum().backward()
        grads.append([p.grad.clone() for s in adapted.supports.values() for p in s.parameters() if p.grad is not None])
    assert len(grads[0]) > 0
    for other in grads[1:]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads[0], other, strict=True))
    with torch.no_grad(), adapted.hold(genotype):
        assert difference(compiled(*x)[0], layer(*x)[0]) < 1e-5
