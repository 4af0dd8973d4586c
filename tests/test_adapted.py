"""A model with its sites: what is chosen, what plays, what trains, and the way back to the plain model."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.errors import GloraError, SpaceError, StateError, TargetError, UnknownNameError
from glora.genotype import Genotype, LayerConfig
from glora.space import SearchSpace
from suites.layer_suite import difference, randomize

PAPER = SearchSpace(ranks=(4, 2), variant="paper")
FULL = LayerConfig(A="lora:4", B="lora:4", C="vector", D="vector", E="vector")
FACTORED = LayerConfig(A="vector", B="lora:4", C="vector", D="vector", E="vector")


def play(adapted: glora.Adapted, config: LayerConfig = FACTORED, seed: int = 0, size: float = 0.05) -> Genotype:
    """Random numbers, and everywhere this configuration as far as the site has it."""
    for k, support in enumerate(adapted.supports.values()):
        randomize(support, seed=seed + k, size=size)
    genotype = Genotype(
        {
            name: LayerConfig(*(c if c in offered else "none" for c, offered in zip(config, options, strict=True)))
            for name, options in adapted.space.options.items()
        }
    )
    adapted.activate(genotype)
    return genotype


def photograph(model: nn.Module) -> dict[str, object]:
    """Everything that detach must bring back."""
    return {
        "classes": {name: type(module) for name, module in model.named_modules()},
        "keys": list(model.state_dict()),
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "objects": {name: id(parameter) for name, parameter in model.named_parameters()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "modes": {name: module.training for name, module in model.named_modules()},
    }


def same(before: dict[str, object], after: dict[str, object], *, without: tuple[str, ...] = ()) -> None:
    for key, value in before.items():
        if key == "values":
            assert all(torch.equal(value[name], after[key][name]) for name in value), "a number changed"
            assert all(value[name].dtype == after[key][name].dtype for name in value)
        elif key not in without:
            assert value == after[key], key


# choosing


def test_linear_is_every_linear_outside_the_head(vit):
    adapted = glora.inject(vit(), PAPER)
    layers = ["attn.qkv", "attn.proj", "fc1", "fc2"]
    assert list(adapted.sites) == [f"blocks.{block}.{layer}" for block in range(2) for layer in layers]
    assert adapted.head == ("head",)
    assert not adapted.sites["blocks.0.fc2"].bias
    assert any("blocks.0.fc2" in note for note in adapted.notes), "what is not offered is said"


@pytest.mark.parametrize(
    ("targets", "skip", "count"),
    [
        ("qkv|fc1", (), 4),
        (r"^blocks\.0\.", (), 6),
        ("norm", (), 5),
        (["norm", "qkv"], "blocks", 1),
        ("all", (), 14),
        (["qkv"], (), 2),
        (["attn.qkv", "blocks.1.fc2"], (), 3),
        ("linear", "fc", 4),
        ("linear", ["fc1", "proj"], 4),
        (["linear"], ["blocks.0.attn.qkv"], 7),
    ],
)
def test_targets_and_skip_are_a_word_an_expression_or_a_list(vit, targets, skip, count):
    assert len(glora.inject(vit(), PAPER, targets=targets, skip=skip).sites) == count


def test_an_attention_is_named_like_any_other_layer():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert list(glora.inject(model, PAPER, targets=["0"], head=None).sites) == ["0.in_proj"]
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, kdim=4, vdim=6), "mlp": nn.Linear(8, 8)})
    sites = glora.inject(model, PAPER, targets="linear", skip=["attn"], head=None).sites
    assert list(sites) == ["attn.out_proj", "mlp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "qkvv"}, r"matches targets='qkvv'.*'qkv'"),
        ({"targets": ["fc3"]}, r"fc1"),
        ({"targets": "("}, r"no regular expression"),
        ({"targets": []}, r"targets is empty"),
        ({"targets": ["head"]}, r"in the head"),
        ({"targets": ["blocks.0.attn"]}, r"cannot be adapted"),
        ({"skip": "nothing"}, r"skip='nothing'"),
        ({"skip": "linear"}, r"leaves out every layer"),
        ({"head": "heaad"}, r"Near: head"),
        ({"head": ["head", "classifier"]}, r"'classifier'"),
    ],
)
def test_wrong_names_are_told_with_the_nearest_and_nothing_is_touched(vit, arguments, message):
    model = vit()
    before = photograph(model)
    with pytest.raises(TargetError, match=message):
        glora.inject(model, PAPER, **arguments)
    same(before, photograph(model))


def test_a_model_without_layers_to_adapt_says_so():
    with pytest.raises(TargetError, match="no layer of the types Linear"):
        glora.inject(nn.Sequential(nn.PReLU()), PAPER)


def test_the_head_is_found_named_or_none(vit):
    assert glora.inject(vit(), PAPER, head="head").head == ("head",)
    assert glora.inject(vit(), PAPER, head=("head", "norm")).head == ("head", "norm")
    bare = glora.inject(vit(), PAPER, head=None)
    assert bare.head == ()
    assert "head" in bare.sites
    assert bare.head_parameters() == []
    headless = glora.inject(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), PAPER)
    assert headless.head == ()
    assert any("No head" in note for note in headless.notes)


def test_a_space_that_offers_nothing_at_a_layer_says_so(vit):
    lora = SearchSpace(only=LayerConfig(B="lora:8"))
    notes = glora.inject(vit(), lora, targets="all").notes
    assert any("offers nothing" in note and "norm1" in note and "fc1" not in note for note in notes)


def test_a_single_layer_is_a_model_too():
    layer = nn.Linear(6, 5)
    x = torch.randn(3, 6)
    plain, before = layer(x), photograph(layer)
    adapted = glora.inject(layer, PAPER, head=None)
    assert list(adapted.sites) == [""]
    play(adapted)
    out = layer(x)
    merged = adapted.merge()
    assert difference(out, merged(x)) < 1e-5
    assert torch.equal(adapted.detach()(x), plain)
    same(before, photograph(layer))


def test_a_tied_weight_is_left_alone_and_said():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 6), "mix": nn.Linear(6, 6), "out": nn.Linear(6, 7, bias=False)})
    model["out"].weight = model["embed"].weight
    adapted = glora.inject(model, PAPER)
    assert list(adapted.sites) == ["mix"]
    assert any("out" in note for note in adapted.notes)


def test_a_module_used_twice_is_one_site():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.again = self.first
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.first(x).relu()))

    model = Twice()
    x, before = torch.randn(3, 6), photograph(model)
    plain = model(x)
    adapted = glora.inject(model, PAPER)
    assert list(adapted.sites) == ["first"]
    play(adapted)
    out = model(x)
    assert difference(out, plain) > 1e-3
    assert difference(adapted.merge()(x), out) < 1e-5
    assert model.again is model.first
    assert model.again.weight is model.first.weight
    adapted.detach()
    same(before, photograph(model))


def test_a_layer_that_is_parametrized_or_quantized_already_is_left_alone_and_said():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))})
    adapted = glora.inject(model, PAPER)
    assert list(adapted.sites) == ["a"]
    assert any("b" in note and "parametrized" in note for note in adapted.notes)


# fresh


@pytest.mark.parametrize("space", [PAPER, SearchSpace(), SearchSpace(product="matrix"), SearchSpace.paper()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_it_is_the_base_bit_for_bit_whatever_is_active(vit, images, space, dtype):
    model, x = vit().to(dtype), images.to(dtype)
    plain = model(x)
    adapted = glora.inject(model, space, example=x)
    rng = random.Random(0)
    assert torch.equal(model(x), plain)
    for _ in range(8):
        genotype = adapted.sample(rng)
        adapted.activate(genotype)
        assert torch.equal(model(x), plain)
        with adapted.hold(genotype) as held, torch.no_grad():
            assert torch.equal(held(x), plain)


def test_equal_seeds_give_equal_adapters_and_the_global_generator_is_not_used(vit):
    state = torch.get_rng_state()
    one, two, other = (glora.inject(vit(), PAPER, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


# saying what is inside


def test_a_summary_says_what_trains_and_what_is_not_adapted(vit):
    model = vit()
    total = sum(parameter.numel() for parameter in model.parameters())
    adapted = glora.inject(model, PAPER, targets="all")
    head = sum(parameter.numel() for parameter in adapted.head_parameters())
    largest = adapted.count(adapted.space.largest)
    summary = adapted.summary()
    assert (summary.total, summary.trainable, summary.active) == (total, largest + head, (largest,))
    assert summary.supernet == sum(p.numel() for s in adapted.supports.values() for p in s.parameters())
    assert f"{largest + head:,} trainable ({(largest + head) / total:.2%} of the model's {total:,})" in str(summary)
    assert "14 sites: 1 conv, 5 norm, 8 linear" in str(summary)
    assert f"head {head} (head)" in str(summary)
    assert "\n" not in str(summary)
    table = summary.table()
    assert all(note in table for note in adapted.notes)
    assert "blocks.0.fc2" in table, "what is not offered, and why"
    assert repr(adapted) == f"Adapted(TinyViT, {summary})"


def test_a_summary_follows_what_plays(vit, tmp_path):
    adapted = glora.inject(vit(), PAPER, head=None)
    small, large = adapted.space.smallest, adapted.space.largest
    adapted.activate(small)
    assert adapted.summary().trainable == 0
    assert "head none" in str(adapted.summary())
    adapted.activate([small, large, large])
    summary = adapted.summary()
    assert summary.trainable == summary.supernet
    assert f"2 genotypes of 0 to {adapted.count(large):,}" in str(summary)
    adapted.activate(large)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    adapted.add("a", tmp_path / "a.safetensors")
    adapted.switch(["a", "base"])
    assert "several adapters" in str(adapted.summary())
    assert "default, a" in adapted.summary().table()
    adapted.switch("a")
    adapted.merge()
    assert repr(adapted) == "Adapted(TinyViT, merged, 9 sites)"
    adapted.detach()
    assert "detached" in repr(adapted)


def test_what_is_printed_of_a_genotype_and_a_space_tells_what_is_inside(vit):
    adapted = glora.inject(vit(), PAPER, targets="fc1|fc2")
    assert repr(adapted.space.smallest) == "Genotype(4 sites: all none)"
    first, *others = adapted.sites
    configs = {first: LayerConfig(B="lora:2", E="vector"), **dict.fromkeys(others, LayerConfig(B="lora:4"))}
    assert repr(Genotype(configs)) == "Genotype(4 sites: B 1 lora:2 + 3 lora:4, E 1 vector)"
    largest = adapted.count(adapted.space.largest)
    assert f"4 sites, 10^{adapted.space.log10_size:.1f} genotypes of 0 to {largest:,}" in repr(adapted.space)
    assert "ranks=(4, 2)" in repr(adapted.space)
    one = glora.inject(vit(), SearchSpace(only=LayerConfig(B="lora:2")), targets="fc1").space
    assert "2 sites, 1 genotype of 144 trainable numbers" in repr(one)


# training


@pytest.mark.parametrize("space", [PAPER, SearchSpace(), SearchSpace(only=LayerConfig(B="lora:2"))])
def test_an_ordinary_loop_right_after_inject_trains_every_support_tensor(vit, images, tmp_path, space):
    model = vit().train()
    plain = model(images)
    adapted = glora.inject(model, space)
    assert adapted.active == adapted.space.largest
    assert torch.equal(model(images), plain), "the largest is the base, too"
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(6) % 3).backward()
        optimizer.step()
    named = dict(model.named_parameters())
    still = [name for name, value in before.items() if torch.equal(named[name], value)]
    down = [name for name in before if ".down." in name]
    assert down
    assert not [name for name in still if name in down or name.startswith("head")]
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    loaded = glora.load_adapter(vit(), tmp_path / "a.safetensors")
    assert loaded.active == adapted.space.largest
    assert torch.equal(loaded.model.train()(images), model(images))


def test_only_support_tensors_and_the_head_are_trained(vit, images):
    model = vit().train()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = glora.inject(model, PAPER)
    owned = {id(parameter) for parameter in adapted.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == owned
    play(adapted, FULL)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), torch.arange(6) % 3)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    detached = adapted.detach().state_dict()
    assert all(torch.equal(base[name], detached[name]) for name in base), "the head comes back too"


def of_nothing(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings that nothing active can be trained."""
    return [record.message for record in caplog.records if "no trainable numbers" in record.message]


def test_gradients_pass_a_layer_that_no_sample_changes():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    adapted = glora.inject(model, glora.SearchSpace(ranks=(2, 1), product="matrix"), head=None)
    large, small = adapted.space.largest, adapted.space.smallest
    for support in adapted.supports.values():
        randomize(support, seed=0)
    first = Genotype({**small, "0": large["0"]})
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for genotype in (first, [first, Genotype({**first})]):  # the second layer plays nothing
        adapted.activate(genotype)
        for parameter in adapted.parameters():
            parameter.grad = None
        model(x).square().sum().backward()
        found.append([parameter.grad for parameter in adapted.supports["0"].parameters()])
    assert any(each is not None and each.abs().sum() > 0 for each in found[1])
    for one, two in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, two)


def test_training_with_nothing_active_warns_once(vit, images, caplog):
    model = vit().eval()
    adapted = glora.inject(model, PAPER)
    model(images)
    model.train()
    model(images)
    nothing = adapted.space.smallest
    adapted.activate([nothing] * 5 + [adapted.space.largest])
    model(images)
    model.eval()
    for several in (nothing, [nothing] * 6):
        adapted.activate(several)
        model(images)
    with torch.no_grad():
        model.train()
        model(images)
    assert not of_nothing(caplog), "something is active, or nothing is trained"
    with adapted.hold(adapted.space.largest, train=True):
        model(images)
    assert not of_nothing(caplog), "something else is held"
    model(images)
    (message,) = of_nothing(caplog)
    assert "the head alone" in message
    assert "activate(adapted.space.largest)" in message
    adapted.activate(nothing)
    model(images)
    assert len(of_nothing(caplog)) == 1


def test_saving_with_nothing_active_warns(vit, tmp_path, caplog):
    adapted = glora.inject(vit(), PAPER)
    path = tmp_path / "a.safetensors"
    glora.save_adapter(adapted, path)
    assert not of_nothing(caplog)
    adapted.activate(adapted.space.smallest)
    for _ in range(2):
        glora.save_adapter(adapted, path)
    assert len(of_nothing(caplog)) == 1
    caplog.clear()
    loaded = glora.load_adapter(vit(), path)
    loaded.model.train()(torch.zeros(1, 3, 8, 8))
    glora.save_adapter(loaded, path)
    assert not of_nothing(caplog), "there is nothing larger to activate"


def test_nothing_active_is_the_base_in_training_and_compiles_whole(vit, images, caplog):
    model = vit().train()
    plain = model(images)
    adapted = glora.inject(model, PAPER)
    adapted.activate(adapted.space.smallest)
    torch._dynamo.reset()
    run = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(run(images), plain)
    torch._dynamo.reset()
    assert not of_nothing(caplog)


@pytest.mark.parametrize("product", ["elementwise", "matrix"])
def test_count_is_the_gradient_reached_and_the_numbers_saved(vit, images, product):
    model = vit()
    adapted = glora.inject(model, SearchSpace(ranks=(4, 2), variant="paper", product=product))
    outputs: list[Tensor] = []  # of every site: some numbers, such as a shift of keys, do not reach the logits
    for name in adapted.sites:
        model.get_submodule(name).register_forward_hook(lambda *call: outputs.append(call[2]))
    for seed in range(6):
        play(adapted)
        genotype = adapted.sample(random.Random(seed))
        adapted.activate(genotype)
        model.zero_grad()
        model(images)
        loss = torch.stack([output.pow(3).sum() for output in outputs]).sum()
        outputs.clear()
        loss.backward()
        supports = [p for s in adapted.supports.values() for p in s.parameters() if p.grad is not None]
        assert sum(int((p.grad != 0).sum()) for p in supports) == adapted.count(genotype)
        assert sum(tensor.numel() for tensor in adapted.state().tensors.values()) == adapted.count(genotype)


def test_a_genotype_may_be_a_plain_mapping(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    genotype = play(adapted)
    out = model(images)
    adapted.activate(dict(genotype))
    assert isinstance(adapted.active, Genotype)
    assert torch.equal(model(images), out)
    adapted.merge()


def test_hold_is_merge_bit_for_bit_and_leaves_everything_as_it_was(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    held_one, active = play(adapted, FULL), adapted.sample(random.Random(1))
    adapted.activate(active)
    playing = model(images)
    with torch.no_grad():
        with adapted.hold(held_one):
            held = model(images)
            assert adapted.active == held_one
        with pytest.raises(ZeroDivisionError), adapted.hold(held_one):
            _ = 1 / 0
        assert torch.equal(model(images), playing)
        assert adapted.active == active
        adapted.activate(held_one)
        assert torch.equal(adapted.merge()(images), held)


@pytest.mark.parametrize("train", [False, True])
def test_within_hold_nothing_else_is_played_merged_or_detached(vit, images, train):
    model = vit()
    adapted = glora.inject(model, PAPER)
    genotype, other = play(adapted), adapted.sample(random.Random(1))
    playing, before = model(images), photograph(model)
    actions = {
        "activate": lambda: adapted.activate([genotype, other]),
        "switch": lambda: adapted.switch("default"),
        "merge": adapted.merge,
        "detach": adapted.detach,
    }
    with adapted.hold(other, train=train), adapted.hold(other, train=train):
        held = model(images)
    with adapted.hold(other, train=train):
        with adapted.hold(genotype, train=train):
            pass
        for name, action in actions.items():
            with pytest.raises(StateError, match=rf"{name} is not possible. Leave hold\(\) first"):
                action()
            assert torch.equal(model(images), held)
            assert adapted.active == other
    with pytest.raises(StateError), adapted.hold(other, train=train):
        adapted.merge()
    assert adapted.active == genotype
    same(before, photograph(model))
    assert torch.equal(model(images), playing)
    assert difference(adapted.merge()(images), playing) < 1e-5


def test_a_copy_made_within_hold_is_free(vit, images):
    adapted = glora.inject(vit(), PAPER)
    genotype = play(adapted)
    playing = adapted.model(images)
    with adapted.hold(adapted.sample(random.Random(1))):
        twin = copy.deepcopy(adapted)
    twin.activate(genotype)
    assert torch.equal(twin.model(images), playing)
    twin.merge()


def test_a_genotype_per_sample_is_each_sample_alone(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted)
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(6)]
    adapted.activate(genotypes)
    together = model(images)
    for sample, genotype in enumerate(genotypes):
        adapted.activate(genotype)
        assert torch.allclose(model(images[sample : sample + 1]), together[sample : sample + 1], atol=1e-5)
    adapted.activate(genotypes)
    for action in (adapted.merge, adapted.state):
        with pytest.raises(StateError, match="per sample"):
            action()
    with pytest.raises(StateError, match="No genotype"):
        adapted.activate([])
    with pytest.raises(StateError, match="one per sample"):
        model(images[:4])


def test_a_genotype_outside_the_space_is_refused_and_the_old_one_plays_on(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    genotype = play(adapted)
    out = model(images)
    with pytest.raises(SpaceError, match="not offered"):
        adapted.activate(Genotype({**genotype, "blocks.1.fc2": LayerConfig(B="lora:3")}))
    with pytest.raises(SpaceError, match="not offered"), adapted.hold(Genotype(dict.fromkeys(adapted.sites, FULL))):
        pass
    assert torch.equal(model(images), out)
    assert adapted.active == genotype


# merge and detach


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_gives_the_plain_model_and_detach_the_base(vit, images, dtype):
    model, x = vit().to(dtype), images.to(dtype)
    model.blocks[0].requires_grad_(False)
    before = photograph(model)
    plain = model(x)
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    with torch.no_grad():
        adapted.head_parameters()[0].add_(0.1)
    out = model(x)
    merged = adapted.merge()
    assert merged is model
    assert adapted.merged
    assert difference(merged(x), out) < (1e-5 if dtype == torch.float32 else 0.05)
    assert not torch.equal(merged(x), plain)
    same(before | {"values": {}}, photograph(model), without=("objects",))
    assert adapted.merge() is model, "merging twice is once"
    assert adapted.detach() is model
    assert not adapted.merged
    assert torch.equal(model(x), plain)
    same(before, photograph(model))


def test_merge_is_close_to_the_factored_path(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FACTORED)
    out = model(images)
    assert difference(adapted.merge()(images), out) < 1e-5


def test_detach_without_merge_and_again_and_again(vit, images):
    model = vit()
    before, plain = photograph(model), model(images)
    for cycle in range(10):
        adapted = glora.inject(model, PAPER, seed=cycle)
        play(adapted, FULL)
        if cycle % 2:
            adapted.merge()
        adapted.detach()
        adapted.detach()
        assert torch.equal(model(images), plain)
    same(before, photograph(model))


def test_a_merged_model_can_be_adapted_again(vit, images):
    model = vit()
    first = glora.inject(model, PAPER)
    play(first)
    out = first.merge()(images)
    second = glora.inject(model, PAPER)
    assert torch.equal(model(images), out)
    play(second, seed=9)
    second.merge()
    assert torch.equal(second.detach()(images), out)


def test_the_base_may_be_freed(vit, images):
    adapted = glora.inject(vit(), PAPER)
    play(adapted)
    adapted.merge(keep_base=False)
    assert adapted._base is None
    with pytest.raises(StateError, match="freed"):
        adapted.detach()


def test_adapting_twice_is_an_error_and_changes_nothing(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted)
    out, flags = model(images), [p.requires_grad for p in model.parameters()]
    with pytest.raises(StateError, match="adapted already"):
        glora.inject(model, PAPER)
    assert torch.equal(model(images), out)
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("end", ["merge", "detach", "merge and detach"])
def test_what_does_not_fit_the_state_is_refused(vit, tmp_path, end):
    adapted = glora.inject(vit(), PAPER)
    genotype = play(adapted)
    for word in end.split(" and "):
        getattr(adapted, word)()
    actions = [
        lambda: adapted.activate(genotype),
        adapted.parameters,
        adapted.state,
        lambda: adapted.add("b", "x"),
        lambda: adapted.switch("default"),
        lambda: glora.save_adapter(adapted, tmp_path / "a.safetensors"),
        lambda: adapted.hold(genotype).__enter__(),
    ]
    if end != "merge":
        actions.append(adapted.merge)
    for action in actions:
        with pytest.raises(StateError, match=end.split()[-1]):
            action()
    assert not list(tmp_path.iterdir())
    assert adapted.count(genotype) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_refuses_to_merge_names_the_site_and_changes_nothing(vit, value):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted)
    with torch.no_grad():
        adapted.supports["blocks.1.fc1"].down["B"][0, 0] = value
    before = photograph(model)
    with pytest.raises(GloraError, match=r"blocks\.1\.fc1"):
        adapted.merge()
    same(before | {"values": {}}, photograph(model))
    adapted.detach()


def test_a_float16_weight_that_would_overflow_refuses_to_merge(vit):
    model = vit().half()
    adapted = glora.inject(model, PAPER)
    play(adapted, LayerConfig(B="vector"))
    with torch.no_grad():
        adapted.supports["blocks.0.fc1"].down["B"].fill_(1e7)
    with pytest.raises(GloraError, match=r"blocks\.0\.fc1"):
        adapted.merge()


def test_inference_mode_around_it_spoils_nothing(vit, images):
    model = vit()
    with torch.inference_mode():
        adapted = glora.inject(model, PAPER)
    genotype = play(adapted, FULL)
    with torch.inference_mode():
        model(images)
        with adapted.hold(genotype):
            held = model(images)
    model(images).sum().backward()
    assert adapted.supports["blocks.0.fc1"].down["A"].grad is not None
    with torch.inference_mode():
        adapted.merge()
    model.requires_grad_(True)
    out = model(images)
    out.sum().backward()
    assert torch.equal(out, held)


def test_the_base_follows_the_model_to_another_type_while_merged(vit, images):
    model, expected = vit(), vit().half()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    adapted.merge().half()
    adapted.detach()
    assert torch.equal(model(images.half()), expected(images.half()))


def test_a_merged_copy_leaves_the_original_training(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted)
    out = model(images)
    twin = copy.deepcopy(adapted)
    assert twin.model is not model
    assert torch.equal(twin.model(images), out)
    merged = twin.merge()
    assert difference(merged(images), out) < 1e-5
    assert torch.equal(model(images), out)
    model(images).sum().backward()
    play(adapted, seed=4)
    assert difference(merged(images), out) < 1e-5
    twin.detach()
    assert torch.equal(adapted.detach()(images), twin.model(images))


# several adapters


def test_several_adapters_on_one_base(vit, images, tmp_path):
    outputs = {}
    for name, classes, seed in (("birds", 3, 1), ("cars", 5, 2)):
        model = vit(classes=3)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.head = nn.Linear(12, classes)
        adapted = glora.inject(model, PAPER)
        play(adapted, FULL, seed=seed)
        outputs[name] = model(images)
        glora.save_adapter(adapted, tmp_path / f"{name}.safetensors")
    model = vit()
    before, plain = photograph(model), model(images)
    adapted = glora.load_adapter(model, tmp_path / "birds.safetensors")
    assert torch.equal(model(images), outputs["birds"])
    adapted.add("cars", tmp_path / "cars.safetensors")
    assert torch.equal(model(images), outputs["birds"]), "adding plays nothing"
    adapted.switch("cars")
    assert model(images).shape == (6, 5)
    assert torch.equal(model(images), outputs["cars"])
    adapted.switch("default")
    assert torch.equal(model(images), outputs["birds"])
    assert adapted.adapters == ("default", "cars")
    with pytest.raises(StateError, match="in use"):
        adapted.remove("default")
    with pytest.raises(UnknownNameError, match="cars"):
        adapted.switch("planes")
    with pytest.raises(StateError, match="already"):
        adapted.add("cars", tmp_path / "cars.safetensors")
    adapted.switch("cars")
    adapted.remove("default")
    assert difference(adapted.merge()(images), outputs["cars"]) < 1e-5
    assert torch.equal(adapted.detach()(images), plain)
    same(before, photograph(model))


def test_an_adapter_of_other_sites_or_another_head_is_not_added(vit, tmp_path):
    narrow = glora.inject(vit(), PAPER, targets="qkv")
    other = glora.inject(vit(), PAPER, targets="fc1")
    headless = glora.inject(vit(), PAPER, targets="qkv", head=None)
    glora.save_adapter(narrow, tmp_path / "narrow.safetensors")
    glora.save_adapter(other, tmp_path / "other.safetensors")
    glora.save_adapter(headless, tmp_path / "headless.safetensors")
    model = vit()
    adapted = glora.inject(model, PAPER, targets=["attn.qkv", "attn.proj"])
    adapted.add("narrow", tmp_path / "narrow.safetensors")
    with pytest.raises(StateError, match=r"blocks\.0\.fc1"):
        adapted.add("other", tmp_path / "other.safetensors")
    with pytest.raises(StateError, match="head"):
        adapted.add("headless", tmp_path / "headless.safetensors")
    assert adapted.adapters == ("default", "narrow")
    adapted.switch("narrow")


# odd models


class Normed(nn.Module):
    """BatchNorm between Linear layers, and one inside the head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc2(self.norm(self.fc1(x)).relu()))


def test_running_statistics_stay_frozen_in_training_and_the_heads_do_not():
    model = Normed().eval()
    x = torch.randn(16, 6)
    before, plain = photograph(model), model(x)
    adapted = glora.inject(model, PAPER)
    play(adapted)
    model.train()
    statistics = model.norm.running_mean.clone(), model.norm.num_batches_tracked.clone()
    for _ in range(3):
        model(x).sum().backward()
    assert torch.equal(model.norm.running_mean, statistics[0])
    assert torch.equal(model.norm.num_batches_tracked, statistics[1])
    assert model.head[0].num_batches_tracked == 3
    assert model.norm.training, "the flag is the user's"
    model.eval()
    out = model(x)
    assert difference(adapted.merge()(x), out) < 1e-5
    adapted.detach()
    assert torch.equal(model(x), plain)
    same(before, photograph(model))


class Reader(nn.Module):
    """Reads `silent.weight` without calling it, as timm's swinv2, beit and eva do; `spoken` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.silent, self.spoken = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spoken(nn.functional.linear(x, self.silent.weight).relu()))


def test_a_new_bias_is_offered_only_where_the_model_calls_the_layer():
    model = Reader().train()
    model.silent.eval()
    x = torch.randn(5, 6)
    before, plain = photograph(model), model(x)
    adapted = glora.inject(model, SearchSpace.paper(), example=x[:1])
    assert adapted.sites["spoken"].new_bias
    assert not adapted.sites["silent"].new_bias
    assert any("silent" in note and "spoken" not in note for note in adapted.notes)
    assert torch.equal(model(x), plain)
    config = LayerConfig(A="lora:8", C="vector", E="vector")
    play(adapted, config)
    out = model(x)
    assert difference(out, plain) > 1e-3
    merged = adapted.merge()
    assert difference(merged(x), out) <= 1e-6
    assert set(merged.state_dict()) - set(before["keys"]) == {"spoken.bias"}
    adapted.detach()
    same(before, photograph(model))
    with pytest.raises(TargetError, match="example"):
        glora.inject(model, SearchSpace.paper())


def test_a_weight_read_alone_plays_one_genotype_a_batch_and_says_so(caplog):
    model = Reader()
    adapted = glora.inject(model, PAPER)
    adapted.activate([adapted.sample(random.Random(seed)) for seed in range(3)])
    model(torch.randn(3, 6))
    assert "silent plays the first sample's genotype for the whole batch" in caplog.text
    assert "spoken plays" not in caplog.text


class Caster(Reader):
    """Reads the type of `silent` before it calls it, as T5 does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.silent(x.to(self.silent.weight.dtype))


def test_nothing_is_said_of_a_weight_whose_type_alone_is_read(caplog):
    adapted = glora.inject(Caster(), PAPER)
    play(adapted)
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(3)]
    adapted.activate(genotypes)
    x = torch.randn(3, 6)
    together = adapted.model(x)
    assert "first sample" not in caplog.text, "nothing comes of what was read"
    adapted.model.silent(x[0])
    assert "because samples cannot be told apart in an input of the shape (6,)" in caplog.text
    for sample, genotype in enumerate(genotypes):
        adapted.activate(genotype)
        assert torch.allclose(adapted.model(x[sample : sample + 1])[0], together[sample], atol=1e-5)


# timm, random weights

TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)
    },
    "swinv2_tiny_window8_256": {
        "img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)
    },
    "beit_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)},
    "MlpMixer": {"img_size": 32, "num_blocks": 2, "embed_dim": 32},  # the named ones are fixed and large
    "regnety_002": {},  # its only Linear is the head
    "resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "tf_mobilenetv3_small_minimal_100": {},  # its own padding
    "nf_regnet_b0": {},  # standardises its weights
    "mobilevit_xxs": {},
}  # fmt: skip
CONV = ("regnety_002", "resnext50_32x4d", "densenet121", "tf_mobilenetv3_small_minimal_100", "nf_regnet_b0")
TARGETS = {**dict.fromkeys(CONV, "conv"), "mobilevit_xxs": "all", "convnext_tiny": "all"}  # the others: "linear"
HEADS = {
    "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    "resnext50_32x4d": ("fc",),
    **dict.fromkeys(("densenet121", "tf_mobilenetv3_small_minimal_100"), ("classifier",)),
    **dict.fromkeys(("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "convnext_tiny"), ("head.fc",)),
    **dict.fromkeys(("regnety_002", "nf_regnet_b0", "mobilevit_xxs"), ("head.fc",)),
}  # the others: "head"
SIZE = {"eva02_tiny_patch14_224": 28}


@pytest.fixture(params=TIMM)
def timm_model(request):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"num_classes": 4, **TIMM[request.param]}
        if request.param == "MlpMixer":
            model = timm.models.mlp_mixer.MlpMixer(**settings)
        else:
            model = timm.create_model(request.param, pretrained=False, **settings)
        x = torch.randn(2, 3, *[SIZE.get(request.param, 32)] * 2)
        for parameter in model.parameters():  # some heads and layer scales start at zero
            nn.init.normal_(parameter, std=0.2)
    return model.eval(), x, request.param


@pytest.mark.parametrize("new_bias", [False, True], ids=["", "new_bias"])
def test_a_timm_model_is_adapted_trained_merged_and_given_back(timm_model, new_bias):
    model, x, name = timm_model
    before = photograph(model)
    with torch.no_grad():  # with gradients torch chooses another attention kernel for a base that is frozen
        plain = model(x)
    space = SearchSpace(ranks=(4,), variant="paper", new_bias=new_bias)
    adapted = glora.inject(model, space, targets=TARGETS.get(name, "linear"), example=x)
    assert adapted.head == HEADS.get(name, ("head",))
    with torch.no_grad():
        assert torch.equal(model(x), plain)
    silent = [site for site in adapted.sites if site.endswith("qkv") and name[:5] in ("swinv", "beit_")]
    assert not any(adapted.sites[site].new_bias for site in silent)
    genotype = play(adapted, LayerConfig(A="vector", B="lora:4", C="vector", D="scalar", E="vector"))
    model.train()
    model(x).square().sum().backward()
    model.eval()
    unreached = [
        f"{site}.{tensor}"
        for site, config in genotype.items()
        for tensor, choice in zip("ABCDE", config, strict=True)
        if choice.kind != "none" and adapted.supports[site].down[tensor].grad is None
    ]
    assert not unreached
    with torch.no_grad():
        out = model(x)
        with adapted.hold(genotype):
            held = model(x)
        merged = adapted.merge()
        assert torch.equal(merged(x), held)
    assert difference(out, plain) > 1e-4
    assert difference(out, held) < 1e-4
    added = set(merged.state_dict()) - set(before["keys"])
    assert all(key.endswith(".bias") for key in added)
    assert bool(added) == any(site.new_bias for site in adapted.sites.values())
    adapted.detach()
    with torch.no_grad():
        assert torch.equal(model(x), plain)
    same(before, photograph(model))


# one for all: the paper's claim that GLoRA contains the others


def baseline_layer() -> tuple[nn.Linear, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(6, 10), torch.randn(4, 6)


def merged_with(layer: nn.Linear, space: SearchSpace, config: LayerConfig, numbers: dict[str, Tensor]) -> nn.Module:
    adapted = glora.inject(layer, space, head=None)
    adapted.activate(Genotype({"": config}))
    with torch.no_grad():
        for key, value in numbers.items():
            tensor, _, side = key.partition(".")
            adapted.supports[""].whole(tensor)[side].copy_(value)
    return adapted.merge()


def test_lora_is_b():
    layer, x = baseline_layer()
    down, up = torch.randn(4, 6), torch.randn(10, 4)  # in its own words: A down-projects, B up-projects
    alpha = 8.0
    expected = layer(x) + (alpha / 4) * (x @ down.T) @ up.T
    space = SearchSpace(ranks=(4,), variant="paper", scaling="none")
    merged = merged_with(layer, space, LayerConfig(B="lora:4"), {"B.down": up * alpha / 4, "B.up": down})
    assert torch.allclose(merged(x), expected, atol=1e-5)


def test_bitfit_is_e():
    layer, x = baseline_layer()
    shift = torch.randn(10)
    expected = x @ layer.weight.T + (layer.bias + shift)
    space = SearchSpace(ranks=(4,), variant="paper", scaling="none")
    merged = merged_with(layer, space, LayerConfig(E="vector"), {"E.down": shift})
    assert torch.allclose(merged(x), expected, atol=1e-6)


def test_ssf_is_a_d_and_e_vectors():
    layer, x = baseline_layer()
    scale, shift = 1 + torch.randn(10), torch.randn(10)
    expected = scale * layer(x) + shift
    space = SearchSpace(ranks=(4,), variant="paper", product="elementwise", scaling="none")
    numbers = {"A.down": (scale - 1)[:, None].expand(10, 4), "D.down": scale - 1, "E.down": shift}
    merged = merged_with(layer, space, LayerConfig(A="vector", D="vector", E="vector"), numbers)
    assert torch.allclose(merged(x), expected, atol=1e-5)


def test_repadapter_is_a_matrix_a_and_c():
    layer, x = baseline_layer()
    s, down, down_bias = 0.5, torch.randn(4, 6), torch.randn(4)
    up, up_bias = torch.zeros(6, 4), torch.randn(6)
    up[:3, :2], up[3:, 2:] = torch.randn(3, 2), torch.randn(3, 2)  # two groups, made dense
    z = x + s * ((x @ down.T + down_bias) @ up.T + up_bias)
    expected = layer(z)
    space = SearchSpace(ranks=(4,), variant="paper", product="matrix", scaling="none")
    prompt = s * (up @ down_bias + up_bias)
    numbers = {"A.down": s * up, "A.up": down, "C.down": prompt[:, None].expand(6, 4)}
    merged = merged_with(layer, space, LayerConfig(A="lora:4", C="vector"), numbers)
    assert torch.allclose(merged(x), expected, atol=1e-5)


def test_merge_names_the_keys_of_new_biases(caplog):
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    adapted = glora.inject(model, SearchSpace.paper((2,)), head=["2"], example=torch.zeros(1, 6))
    adapted.activate(adapted.space.largest)
    adapted.merge()
    assert adapted.new_keys == ("0.bias",)
    assert "0.bias" in model.state_dict()
    assert "0.bias" in caplog.text
    adapted.detach()
    assert "0.bias" not in model.state_dict()


def test_merge_names_nothing_where_the_new_bias_is_not_played():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    adapted = glora.inject(model, SearchSpace.paper((2,)), head=["2"], example=torch.zeros(1, 6))
    adapted.activate(adapted.space.smallest)
    adapted.merge()
    assert adapted.new_keys == ()
    assert "0.bias" not in model.state_dict()


@pytest.mark.parametrize("batch_first", [True, False])
def test_sequence_first_layers_refuse_one_genotype_per_sample(batch_first):
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    adapted = glora.inject(model, SearchSpace((2,)), targets=["linear1", "linear2"], head=None)
    genotypes = [adapted.space.smallest, adapted.space.largest]
    if batch_first:
        adapted.activate(genotypes)
    else:
        with pytest.raises(StateError, match="takes sequences first"):
            adapted.activate(genotypes)


@pytest.mark.parametrize(
    "call",
    [
        "adapted.activate(None)",
        "adapted.activate(5)",
        "adapted.activate('x')",
        "adapted.activate([None])",
        "adapted.activate(['x', 'y'])",
        "adapted.activate([genotype, None])",
        "adapted.activate({**genotype, 'silent': None})",
        "adapted.activate({**genotype, 'silent': 'lora:4'})",
        "adapted.activate({**genotype, 'silent': genotype['silent'].to_json()})",
        "adapted.activate({**genotype, 5: LayerConfig(), None: LayerConfig()})",
        "adapted.activate({'silent': LayerConfig(B='lora')})",
        "adapted.activate({'silent': LayerConfig(B=None)})",
        "adapted.hold(None).__enter__()",
        "adapted.hold('x').__enter__()",
        "adapted.hold([genotype, genotype]).__enter__()",
        "adapted.count(None)",
        "adapted.count('x')",
        "adapted.switch(None)",
        "adapted.switch(5)",
        "adapted.switch([None])",
        "adapted.switch([['default']])",
        "adapted.add(None, 'x')",
        "adapted.remove(None)",
        "adapted.remove(['default'])",
        "Genotype(None)",
        "Genotype(['x'])",
        "Genotype.from_json(None)",
        "Genotype.from_json({'silent': None})",
        "LayerConfig.from_json('lora:4')",
        "LayerConfig('lora:4:4')",
        "LayerConfig(5)",
        "SearchSpace(ranks=None)",
        "SearchSpace(ranks='x')",
        "SearchSpace(ranks=4.0)",
        "SearchSpace(ranks=[[4]])",
        "SearchSpace(ranks=True)",
        "SearchSpace(product=None)",
        "SearchSpace(variant=['lean'])",
        "SearchSpace(only='lora:4')",
        "glora.inject(None, PAPER)",
        "glora.inject('vit', PAPER)",
        "glora.inject(plain, None)",
        "glora.inject(plain, 'lean')",
        "glora.inject(plain, adapted.space)",
        "glora.inject(plain, PAPER, targets=None)",
        "glora.inject(plain, PAPER, targets=5)",
        "glora.inject(plain, PAPER, targets=[5])",
        "glora.inject(plain, PAPER, skip=5)",
        "glora.inject(plain, PAPER, skip=[None])",
        "glora.inject(plain, PAPER, head=5)",
        "glora.inject(plain, PAPER, head=['head', None])",
        "glora.inject(plain, PAPER, head=[['head']])",
    ],
)
def test_a_wrong_input_is_an_error_of_ours_that_says_what_is_allowed_and_changes_nothing(call):
    adapted = glora.inject(Reader(), PAPER, head=None)
    genotype, plain = adapted.active, Reader()
    before = photograph(plain)
    names = {**globals(), "adapted": adapted, "genotype": genotype, "plain": plain}
    with pytest.raises(GloraError) as error:
        eval(call, names)
    assert error.value.allowed, error.value
    same(before, photograph(plain))
    assert adapted.active == genotype
    assert adapted.playing == "default"


def test_a_model_held_for_training_says_that_it_cannot_be_copied():
    adapted = glora.inject(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)), SearchSpace((2,)), head=None)
    play(adapted)
    with adapted.hold(adapted.space.largest, train=True), pytest.raises(StateError, match="0 is held for training"):
        copy.deepcopy(adapted)
    with adapted.hold(adapted.space.largest):
        copy.deepcopy(adapted)
    copy.deepcopy(adapted)


@pytest.mark.parametrize("train", [False, True])
def test_what_is_held_follows_the_type_of_the_model(train):
    adapted = glora.inject(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)), SearchSpace((2,)), head=None)
    play(adapted)
    x = torch.randn(3, 6)
    with adapted.hold(adapted.space.largest, train=train) as model:
        expected = model(x)
        assert difference(model.double()(x.double()), expected.double()) < 1e-5
        model.float()
        assert torch.equal(model(x), expected)


def test_targets_may_be_read_only_once(caplog):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.loose = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))

    adapted = glora.inject(Odd(), SearchSpace((2,)), targets=(word for word in ["all"]), head=None)
    assert list(adapted.sites) == ["layer"]
    assert "their parameters are of no layer type that is known: Odd" in caplog.text


def test_memory_that_runs_out_in_a_merge_leaves_the_model_adapted(monkeypatch):
    adapted = glora.inject(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)), SearchSpace((2,)), head=None)
    play(adapted)
    adapted.activate(adapted.space.smallest)  # every weight is copied
    x, real, left = torch.randn(3, 6), Tensor.clone, [2]
    expected = adapted.model(x)

    def clone(tensor: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        return real(tensor)

    with monkeypatch.context() as short, pytest.raises(MemoryError):
        short.setattr(Tensor, "clone", clone)
        adapted.merge()
    assert not adapted.merged
    adapted.activate(adapted.space.largest)
    assert difference(adapted.model(x), expected) > 1e-3
    adapted.activate(adapted.space.smallest)
    assert torch.equal(adapted.merge()(x), expected)
