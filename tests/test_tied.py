"""Embeddings in a model, and weights that several layers share: one site, one gradient, one merged parameter."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.adapt import attach
from glora.errors import AdapterFileError
from glora.genotype import LayerConfig
from glora.space import SearchSpace
from suites.cases import every
from test_adapted import difference, photograph, play, same
from test_checkpoint import refused

PAPER = SearchSpace(ranks=(4, 2), variant="paper")
MATRIX = SearchSpace(ranks=(4, 2), variant="paper", product="matrix")
ODD = [  # every way of the factored product, and the effective weight
    LayerConfig(A="lora:4", B="lora:2"),
    LayerConfig(A="vector", B="vector"),
    LayerConfig(A="scalar", B="lora:4"),
    LayerConfig(B="scalar"),
]


class TinyLM(nn.Module):
    """Tokens and positions, a norm and a mixer, and an output layer that may share the weight of the tokens."""

    def __init__(self, *, tied: bool = True, padding: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=padding)
        self.position = nn.Embedding(8, 6)
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 11)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1])[None])
        return self.out(x + self.mix(self.norm(x)))


def tiny(seed: int = 0, **settings: object) -> TinyLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyLM(**settings).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(2))


# one site


@pytest.mark.parametrize("targets", ["all", "embedding", "embed", "^out$", ["out"], ["embed"]])
def test_a_shared_weight_is_one_site_whichever_of_its_layers_is_named_and_it_is_said(targets):
    adapted = glora.inject(tiny(), PAPER, targets=targets, head=None)
    site = adapted.sites["embed"]
    assert "out" not in adapted.sites
    assert (site.kind, site.out_features, site.in_features, site.bias) == ("embedding", 11, 6, False)
    assert any("embed = out" in note and "A and B alone" in note for note in adapted.notes)


@pytest.mark.parametrize("head", ["auto", None])
def test_linear_leaves_an_output_layer_alone_that_shares_an_embedding_and_says_so(head):
    adapted = glora.inject(tiny(), PAPER, targets="linear", head=head)
    assert list(adapted.sites) == ["mix"]
    assert any("embed = out" in note and "Not adapted" in note for note in adapted.notes)


def test_two_linears_may_share_a_weight():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    before, x = photograph(model), torch.randn(5, 6)
    plain = model(x)
    adapted = glora.inject(model, PAPER, head=["3"])
    assert list(adapted.sites) == ["0"]
    assert not adapted.sites["0"].bias, "the biases differ"
    assert any("0 = 2" in note for note in adapted.notes)
    play(adapted)
    out = model(x)
    assert difference(out, plain) > 1e-3
    merged = adapted.merge()
    assert merged[2].weight is merged[0].weight
    assert difference(merged(x), out) < 1e-5
    adapted.detach()
    same(before, photograph(model))


@pytest.mark.parametrize("unfit", ["max_norm", "raw", "head"])
def test_a_weight_shared_with_what_cannot_be_adapted_is_left_out_and_said(unfit):
    model = tiny(tied=unfit != "raw")
    if unfit == "max_norm":
        model.embed.max_norm = 1.0
    elif unfit == "raw":
        model.register_parameter("table", model.embed.weight)
    adapted = glora.inject(model, PAPER, targets="all", head=["out"] if unfit == "head" else None)
    assert {"embed", "out"}.isdisjoint(adapted.sites) or unfit == "raw"
    assert "embed" not in adapted.sites
    if unfit != "head":
        assert any("shared with what cannot be adapted" in note for note in adapted.notes)


def test_layers_that_see_other_matrices_in_one_weight_are_left_out():
    transformers = pytest.importorskip("transformers")
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": transformers.pytorch_utils.Conv1D(6, 6), "c": nn.Linear(6, 6)})
    model["b"].weight = model["a"].weight
    adapted = glora.inject(model, PAPER, head=None)
    assert list(adapted.sites) == ["c"]
    assert any("a" in note and "shared" in note for note in adapted.notes)


def test_a_bias_of_several_modules_is_not_adapted_and_it_is_said():
    model = tiny(tied=False)
    model.register_parameter("shift", model.out.bias)
    adapted = glora.inject(model, SearchSpace.paper(), targets="linear", head=None, example=torch.zeros(1, 3).long())
    assert not adapted.sites["out"].bias
    assert not adapted.sites["out"].new_bias
    assert any("no bias of its own" in note and "out" in note for note in adapted.notes)
    before = photograph(model)["values"]["shift"]
    play(adapted, LayerConfig(A="vector", E="vector"))
    assert torch.equal(adapted.merge().shift, before)
    assert model.shift is model.out.bias


def test_a_module_under_two_names_is_one_site_and_it_is_said():
    model = tiny(tied=False)
    model.again = model.norm
    adapted = glora.inject(model, PAPER, targets="norm")
    assert list(adapted.sites) == ["norm"]
    assert any("norm = again" in note for note in adapted.notes)
    play(adapted)
    assert adapted.merge().again is model.norm


# it plays, trains and comes back


@pytest.mark.parametrize("settings", [{}, {"padding": 3}, {"tied": False, "padding": 3}], ids=str)
@every(dtype=[torch.float32, torch.bfloat16], space=[PAPER, MATRIX, SearchSpace()])
def test_fresh_it_is_the_base_and_merged_it_is_what_it_played(ids, space, settings, dtype):
    model = tiny(**settings).to(dtype)
    before, plain = photograph(model), model(ids)
    adapted = glora.inject(model, space, targets="all", head=None)
    for seed in range(5):
        genotype = adapted.sample(random.Random(seed))
        adapted.activate(genotype)
        assert torch.equal(model(ids), plain), "fresh"
        with adapted.hold(genotype):
            assert torch.equal(model(ids), plain)
    for config in ODD:
        genotype = play(adapted, config)
        out = model(ids)
        with adapted.hold(genotype):
            held = model(ids)
        twin = copy.deepcopy(adapted)
        merged = twin.merge()
        assert torch.equal(merged(ids), held)
        assert difference(out, held) < (1e-5 if dtype == torch.float32 else 0.05), config
        assert (merged.out.weight is merged.embed.weight) == settings.get("tied", True)
        assert list(merged.state_dict()) == before["keys"]
        assert sum(1 for _ in merged.parameters()) == len(before["flags"])
    adapted.merge()
    assert torch.equal(adapted.detach()(ids), plain)
    same(before, photograph(model))


def test_a_copy_shares_what_the_original_shares(ids):
    adapted = glora.inject(tiny(), PAPER, targets="all", head=None)
    play(adapted)
    twin = copy.deepcopy(adapted)
    assert torch.equal(twin.model(ids), adapted.model(ids))
    play(twin, seed=5)
    base = twin.model
    assert attach.state_of(base.embed).support is attach.state_of(base.out).support
    assert attach.base_of(base.embed)[0] is attach.base_of(base.out)[0]
    assert difference(twin.merge()(ids), adapted.model(ids)) > 1e-3


def test_gradient_is_counted_once_and_the_optimizer_sees_a_number_once(ids):
    for config in ODD:
        grads = []
        for tied in (True, False):
            model = tiny()
            if not tied:  # two layers of equal numbers: the gradient of the shared site is the sum of theirs
                model.out.weight = nn.Parameter(model.embed.weight.detach().clone())
            space = SearchSpace(ranks=(4, 2), variant="paper", scaling="none")
            adapted = glora.inject(model, space, targets=["embed", "out"], head=None)
            play(adapted, LayerConfig())
            if not tied:
                adapted.supports["out"].load_state_dict(adapted.supports["embed"].state_dict(), strict=False)
            adapted.activate(dict.fromkeys(adapted.sites, config))
            parameters = adapted.parameters()
            assert len({id(p) for p in parameters}) == len(parameters)
            (model(ids) ** 2).sum().backward()
            grads.append({name: dict(each.named_parameters()) for name, each in adapted.supports.items()})
        shared, apart = grads
        for name, parameter in shared["embed"].items():
            parts = [apart[site][name].grad for site in ("embed", "out")]
            assert (parameter.grad is None) == all(part is None for part in parts)
            if parameter.grad is not None:
                assert torch.allclose(parameter.grad, sum(parts), rtol=1e-4, atol=1e-4), (config, name)


def test_state_dict_and_file_go_round(ids, tmp_path):
    model = tiny()
    adapted = glora.inject(model, PAPER, targets="all", head=None)
    genotype = play(adapted)
    out = model(ids)
    other = tiny()
    again = glora.inject(other, PAPER, targets="all", head=None, seed=3)
    again.activate(genotype)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids), out)
    path = tmp_path / "a.safetensors"
    glora.save_adapter(adapted, path)
    third = tiny()
    loaded = glora.load_adapter(third, path)
    assert torch.equal(third(ids), out)
    loaded.add("b", path)
    loaded.switch("b")
    assert torch.equal(third(ids), out)
    assert attach.state_of(third.embed).support is attach.state_of(third.out).support
    merged = loaded.merge()
    assert merged.out.weight is merged.embed.weight
    untied = tiny()
    untied.out.weight = nn.Parameter(untied.embed.weight.detach().clone())
    error = refused(untied, path, "another model")
    assert "out" in str(error)
    assert isinstance(error, AdapterFileError)


def test_every_sample_plays_its_own_tokens_and_the_first_ones_positions(ids, caplog):
    for space in (PAPER, MATRIX):
        model = tiny()
        adapted = glora.inject(model, space, targets=["embed", "mix"], head=None)
        play(adapted)
        genotypes = [adapted.sample(random.Random(seed)) for seed in range(len(ids))]
        adapted.activate(genotypes)
        together = model(ids)
        for sample, genotype in enumerate(genotypes):
            adapted.activate(genotype)
            assert torch.allclose(model(ids)[sample], together[sample], atol=1e-5)
    assert not caplog.records or "whole batch" not in caplog.text
    adapted.detach()
    adapted = glora.inject(model, PAPER, targets=["position"], head=None)
    play(adapted)
    adapted.activate([adapted.space.largest] + [adapted.space.smallest] * 3)
    model(ids)
    assert "position plays the first sample's genotype" in caplog.text


@pytest.mark.parametrize("shape", [(8,), (8, 8)])
def test_ids_of_positions_are_not_taken_for_samples(shape):
    model = nn.ModuleDict({"position": nn.Embedding(9, 4)})  # the batch's size is checked where a model is called
    adapted = glora.inject(model, PAPER, targets="all", head=None)
    play(adapted)
    layer = model["position"]
    configs = [LayerConfig(A="scalar"), *[LayerConfig()] * 3]
    index = torch.arange(8).expand(shape)
    attach.state_of(layer).play(configs)
    mixed = layer(index)
    attach.state_of(layer).play(configs[:1])
    assert torch.equal(mixed, layer(index))


# embeddings


@pytest.mark.parametrize("space", [PAPER, MATRIX])
def test_the_row_of_the_padding_stays_and_gets_no_gradient_either_way(space):
    layer = nn.Embedding(9, 6, padding_idx=2)
    with torch.no_grad():
        layer.weight[2] = 0.5
    adapted = glora.inject(layer, space, targets="all", head=None)
    (support,) = adapted.supports.values()
    index = torch.tensor([[2, 1, 0], [2, 2, 8]])
    for config in ODD:
        play(adapted, config)
        grads = []
        for read in (lambda: layer(index), lambda: layer.weight[index]):
            support.zero_grad()
            out = read()
            assert torch.equal(out[index == 2], torch.full((3, 6), 0.5))
            assert not torch.equal(out[0, 1], layer.parametrizations.weight.original[1])
            (out**2).sum().backward()
            grads.append([p.grad.clone() for p in support.parameters() if p.grad is not None])
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))
    out = layer(index)
    assert difference(adapted.merge()(index), out) < 1e-5


def test_the_forward_of_an_embedding_never_builds_its_whole_weight(monkeypatch):
    layer = nn.Embedding(50, 6)
    adapted = glora.inject(layer, PAPER, targets="all", head=None)
    play(adapted, LayerConfig(A="lora:4", B="lora:4"))

    def whole(*_: object) -> None:
        raise AssertionError("the whole weight was built")

    monkeypatch.setattr(type(adapted.supports[""]), "weight", whole)
    layer(torch.arange(3)[None])
    with pytest.raises(AssertionError, match="whole"):
        _ = layer.weight


def test_an_embedding_that_renormalises_its_weight_is_left_alone_and_said():
    model = nn.ModuleDict({"a": nn.Embedding(5, 4), "b": nn.Embedding(5, 4, max_norm=1.0)})
    adapted = glora.inject(model, PAPER, targets="embedding", head=None)
    assert list(adapted.sites) == ["a"]
    assert any("renormalises" in note and "b" in note for note in adapted.notes)


def test_sparse_gradients_through_another_forward_are_refused_and_it_is_said():
    model = nn.ModuleDict({"a": nn.Embedding(5, 4, sparse=True), "b": nn.EmbeddingBag(5, 4, sparse=True)})
    adapted = glora.inject(model, PAPER, targets="embedding", head=None)
    assert list(adapted.sites) == ["a"]
    assert any("sparse" in note and "b" in note for note in adapted.notes)


@pytest.mark.parametrize("settings", [{"sparse": True}, {"scale_grad_by_freq": True}], ids=str)
def test_how_the_frozen_weight_would_get_its_gradient_changes_nothing(settings):
    layer = nn.Embedding(9, 6, **settings)
    adapted = glora.inject(layer, PAPER, targets="all", head=None)
    for config in ODD:
        play(adapted, config)
        index = torch.tensor([[1, 2, 1]])
        out = layer(index)
        (out**2).sum().backward()
        twin = copy.deepcopy(adapted)
        assert difference(twin.merge()(index), out) < 1e-6


def test_an_embedding_bag_plays_through_its_weight():
    layer = nn.EmbeddingBag(9, 6)
    adapted = glora.inject(layer, PAPER, targets="embedding", head=None)
    play(adapted)
    index = torch.tensor([[1, 2, 1]])
    out = layer(index)
    out.sum().backward()
    assert difference(adapted.merge()(index), out) < 1e-6


# real architectures, random weights


def language_models(transformers):
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0}
    gpt = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **ends)),
        "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**shape, **ends, head_dim=8)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt, **ends)),
    }


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2"])
def test_a_language_model_with_tied_embeddings(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    make = language_models(transformers)[name]

    def model():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = make().eval()
            for parameter in made.parameters():
                nn.init.normal_(parameter, 0.0, 0.3)
            return made

    base, x = model(), torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    before, plain = photograph(base), base(x).logits
    adapted = glora.inject(base, PAPER, targets="all")
    assert adapted.head == ()
    assert any("lm_head" in note and "one site" in note for note in adapted.notes)
    assert {site.kind for site in adapted.sites.values()} == {"linear", "norm", "embedding"}
    assert torch.equal(base(x).logits, plain)
    play(adapted, LayerConfig(A="vector", B="lora:4", C="vector", D="vector", E="vector"))
    out = base(x).logits
    assert difference(out, plain) > 1e-3
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = model()
    glora.load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other(x).logits, out)
    merged = adapted.merge()
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert difference(merged(x).logits, out) < 1e-4
    assert list(merged.state_dict()) == before["keys"]
    adapted.detach()
    same(before, photograph(base))
