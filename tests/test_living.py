"""Living in a model: compiled, exported, checkpointed, copied, loaded, called functionally. Each works or says no."""

from __future__ import annotations

import copy
import importlib
import pickle
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import glora
from glora.errors import StateError
from glora.genotype import Genotype, LayerConfig
from glora.space import SearchSpace
from suites.layer_suite import PRODUCTS, difference, randomize
from test_adapted import FULL, PAPER, play

Live = tuple[nn.Module, glora.Adapted, Tensor]


def small(product: str = "elementwise") -> Live:
    """Two layers, one of which gets a bias: quick to compile."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.GELU(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3))
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    space = SearchSpace(ranks=(2, 1), variant="paper", new_bias=True, product=product)
    adapted = glora.inject(model, space, head=["4"], example=x)
    for seed, support in enumerate(adapted.supports.values()):
        randomize(support, seed)
    return model, adapted, x


def genotypes(adapted: glora.Adapted, count: int) -> list[Genotype]:
    return [adapted.sample(random.Random(seed)) for seed in range(count)]


def gradients(adapted: glora.Adapted) -> dict[str, Tensor]:
    named = [(f"{site}.{name}", p) for site, s in adapted.supports.items() for name, p in s.named_parameters()]
    return {name: p.grad.clone() for name, p in named if p.grad is not None and bool(p.grad.any())}


# torch.compile


@pytest.fixture
def compiling() -> Iterator[Callable[[], int]]:
    """Gives the number of graphs compiled so far."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What glora has said of compiling; torch's own log is long."""
    return [r.message for r in caplog.records if r.name == "glora" and "compiled" in r.message]


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model compiled whole: a graph break is an error."""
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def test_held_genotypes_compile_whole_and_once(compiling, caplog):
    model, adapted, x = small()
    run = compiled(model)
    with torch.no_grad():
        for genotype in genotypes(adapted, 8):
            with adapted.hold(Genotype({**genotype, "0": LayerConfig(*genotype["0"][:4], "vector")})):
                assert difference(run(x), model(x)) < 1e-5
    assert compiling() == 1
    assert not said(caplog)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch hides its own warning
@pytest.mark.parametrize("product", PRODUCTS)
def test_sampled_genotypes_train_compiled_once_as_held_tensors(compiling, caplog, product):
    model, adapted, x = small(product)
    run = compiled(model)
    for genotype in genotypes(adapted, 12):
        found = []
        for each in (run, model):
            adapted.model.zero_grad()
            with adapted.hold(genotype, train=True):
                each(x).square().sum().backward()
            found.append(gradients(adapted))
        adapted.model.zero_grad()
        adapted.activate(genotype)
        model(x).square().sum().backward()
        found.append(gradients(adapted))
        assert found[0].keys() == found[1].keys() == found[2].keys()
        for name, expected in found[2].items():
            assert difference(found[0][name], expected) < 1e-4, name
            assert difference(found[1][name], expected) < 1e-4, name
    assert compiling() == 1
    assert not said(caplog)


@pytest.mark.slow
def test_a_genotype_that_is_activated_under_a_compiled_model_says_that_it_recompiles_once(compiling, caplog):
    model, adapted, x = small()
    run = compiled(model)
    several = genotypes(adapted, 3)
    adapted.activate(several[0])
    for _ in range(3):
        run(x).sum().backward()
    assert compiling() == 1
    assert not said(caplog), "one genotype for ever is compiled once"
    for genotype in several[1:]:
        adapted.activate(genotype)
        assert difference(run(x), model(x)) < 1e-5
    assert compiling() == 3
    (message,) = said(caplog)
    assert "anew for every other" in message
    assert "hold(genotype, train=True)" in message


def test_one_genotype_per_sample_compiles_whole(compiling):
    model, adapted, x = small()
    adapted.activate(genotypes(adapted, 2))
    assert difference(compiled(model)(x[:2]), model(x[:2])) < 1e-5
    assert compiling() == 1


def test_a_merged_model_compiles_whole(compiling):
    model, adapted, x = small()
    adapted.activate(genotypes(adapted, 1)[0])
    out = model(x)
    adapted.merge()
    assert difference(compiled(model)(x), out) < 1e-5
    assert compiling() == 1


# export


@pytest.mark.parametrize("state", ["active", "held", "merged"])
def test_it_is_exported_as_what_it_plays(vit, images, state):
    model = vit()
    adapted = glora.inject(model, PAPER)
    genotype = play(adapted, FULL)
    out = model(images)
    if state == "merged":
        adapted.merge()
    if state == "held":
        with adapted.hold(genotype):
            program = torch.export.export(model, (images,), strict=False)
    else:
        program = torch.export.export(model, (images,), strict=False)
    assert difference(program.module()(images), out) < 1e-5
    if state == "merged":
        assert set(program.state_dict) == set(model.state_dict())


@pytest.mark.filterwarnings("default")  # what the exporter says of itself
def test_the_merged_model_goes_to_onnx(vit, images, tmp_path):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    out = adapted.merge()(images)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
    session = reference.ReferenceEvaluator(path)
    found = session.run(None, {session.input_names[0]: images.numpy()})[0]
    assert difference(torch.from_numpy(found), out) < 1e-5


# gradient checkpointing


def checkpointed(model: nn.Module, x: Tensor, reentrant: bool | None) -> Tensor:
    """The tiny transformer's blocks; None: without checkpointing."""
    tokens = model.patch(x).flatten(2).transpose(1, 2).detach().requires_grad_()
    for block in model.blocks:
        tokens = block(tokens) if reentrant is None else checkpoint(block, tokens, use_reentrant=reentrant)
    return tokens.square().sum()


@pytest.mark.parametrize("several", [False, True], ids=["one genotype", "one per sample"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(vit, images, reentrant, several):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    if several:
        adapted.activate(genotypes(adapted, 6))
    found = []
    for kind in (None, reentrant):
        model.zero_grad()
        checkpointed(model, images, kind).backward()
        found.append(gradients(adapted))
    assert found[0].keys() == found[1].keys() != set()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("between", ["another genotype", "one per sample", "hold left", "weight read"])
def test_another_genotype_before_the_repeated_forward_is_an_error(vit, images, reentrant, between):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    first, second = genotypes(adapted, 2)
    adapted.activate(first)
    if between == "weight read":
        weight = checkpoint(lambda x: x @ model.blocks[0].fc1.weight.T, torch.ones(1, 12, requires_grad=True),
                            use_reentrant=reentrant)  # fmt: skip
        adapted.activate(second)
        loss = weight.sum()
    elif between == "hold left":
        with adapted.hold(second, train=True):
            loss = checkpointed(model, images, reentrant)
    else:
        loss = checkpointed(model, images, reentrant)
        adapted.activate(second if between == "another genotype" else [second] * 6)
    with pytest.raises(StateError, match="another genotype in the backward pass"):
        loss.backward()
    adapted.activate(first)
    checkpointed(model, images, reentrant).backward()


def test_back_at_the_same_genotype_the_repeated_forward_is_allowed(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    first, second = genotypes(adapted, 2)
    adapted.activate(first)
    loss = checkpointed(model, images, False)
    adapted.activate(second)
    adapted.activate(Genotype(dict(first)))
    loss.backward()


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("reentrant", [False, True])
def test_transformers_gradient_checkpointing_gives_the_same_gradients(reentrant):
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        model = transformers.LlamaForCausalLM(config).train()
    adapted = glora.inject(model, PAPER)
    play(adapted, LayerConfig(A="vector", B="lora:4"))
    tokens = torch.arange(8).view(2, 4)
    found = []
    for _ in range(2):
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        found.append(gradients(adapted))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    assert found[0].keys() == found[1].keys() != set()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


# states and functions


def test_a_state_dict_goes_round_with_the_same_sites(vit, images):
    one, two = vit(), vit(seed=3)
    adapted, other = glora.inject(one, PAPER), glora.inject(two, PAPER, seed=5)
    genotype = play(adapted, FULL)
    other.activate(genotype)
    assert difference(two(images), one(images)) > 1e-2
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert torch.equal(two(images), one(images))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*parametrizations"):
        vit().load_state_dict(one.state_dict())


def test_it_cannot_be_pickled_and_says_so(vit, tmp_path):
    adapted = glora.inject(vit(), PAPER)
    for save in (pickle.dumps, lambda model: torch.save(model, tmp_path / "model.pt")):
        with pytest.raises(StateError, match=r"cannot be pickled.*glora\.save_adapter"):
            save(adapted.model)
    assert pickle.dumps(adapted.merge())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_follows_the_model_to_another_type(vit, images, dtype):
    model = vit()
    adapted = glora.inject(model, PAPER)
    genotype = play(adapted, FULL)
    out = model(images)
    model.to(dtype)
    assert model(images.to(dtype)).dtype == dtype
    assert difference(model(images.to(dtype)).float(), out) < 0.05
    model(images.to(dtype)).sum().backward()
    assert all(p.dtype == torch.float32 for s in adapted.supports.values() for p in s.parameters())
    with adapted.hold(genotype):
        held = model(images.to(dtype))
    assert torch.equal(adapted.merge()(images.to(dtype)), held)


def test_it_is_called_with_other_numbers(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    out = model(images)
    own = dict(model.named_parameters())
    assert torch.equal(functional_call(model, own, (images,)), out)
    zero = {name: p * 0 if name.endswith(("down.A", "down.B", "down.C", "down.D", "down.E")) else p
            for name, p in own.items()}  # fmt: skip
    changed = functional_call(model, zero, (images,))
    assert torch.equal(model(images), out)
    assert torch.equal(changed, adapted.detach()(images))


def test_gradients_per_sample_are_those_of_each_sample(vit, images):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(numbers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, numbers, (x[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(trained, images)
    model(images[2:3]).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name][2], parameter.grad, atol=1e-4, rtol=1e-4), name


def test_merged_under_inference_mode_it_is_whole_and_can_be_trained():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapted = glora.inject(model, PAPER, head=None)
    adapted.activate(adapted.space.largest)
    with torch.inference_mode():
        adapted.merge()
    model.requires_grad_(True)
    model(torch.randn(3, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    adapted.detach()


def test_a_merged_model_that_was_adapted_anew_is_not_detached_under_it():
    model = nn.Sequential(nn.Linear(4, 4))
    first = glora.inject(model, PAPER, head=None)
    first.merge()
    second = glora.inject(model, PAPER, head=None)
    with pytest.raises(StateError, match="adapted anew"):
        first.detach()
    second.detach()
    first.detach()


def test_freeing_the_base_after_the_merge_frees_it():
    adapted = glora.inject(nn.Sequential(nn.Linear(4, 4)), PAPER, head=None)
    adapted.merge()
    adapted.merge(keep_base=False)
    with pytest.raises(StateError, match="freed"):
        adapted.detach()


def test_an_input_by_name_is_the_same_call():
    model = nn.Sequential(nn.Linear(4, 4))
    adapted = glora.inject(model, PAPER, head=None)
    play(adapted)
    adapted.activate([adapted.sample(random.Random(seed)) for seed in range(3)])
    x = torch.randn(3, 4)
    assert torch.equal(model[0](input=x), model[0](x))


def test_layers_without_numbers_and_those_that_only_sound_like_a_norm_are_no_sites():
    class RMSNormLinear(nn.Linear):
        pass

    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 3)
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "empty": empty, "norm": RMSNormLinear(4, 3)})
    assert list(glora.inject(model, PAPER, targets="all", head=None).sites) == ["a"]


def test_parameters_of_unknown_layers_are_said_where_all_is_wanted():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "both": nn.Bilinear(2, 3, 4)})
    assert any("both" in note for note in glora.inject(model, PAPER, targets="all", head=None).notes)


def test_data_parallel_refuses_it_and_says_what_to_use(vit, monkeypatch):
    """Its replicas would play the original's support tensors. Every card here is the CPU."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", lambda tensors, devices, detach=False: [tensors] * 2)
    model = vit()
    adapted = glora.inject(model, PAPER)
    with pytest.raises(StateError, match=r"DistributedDataParallel.*accelerate"):
        module.replicate(model, [0, 1])
    assert len(module.replicate(adapted.merge(), [0, 1])) == 2
