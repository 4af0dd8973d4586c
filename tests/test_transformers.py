"""Models of transformers, made from a configuration with random weights."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import glora
from glora.genotype import Genotype, LayerConfig
from suites.layer_suite import randomize

transformers = pytest.importorskip("transformers")


@pytest.fixture
def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("product", ["elementwise", "matrix"])
def test_gpt2_is_adapted_trained_merged_and_given_back(gpt2, tokens, product):
    conv1d = transformers.pytorch_utils.Conv1D
    plain = gpt2(tokens).logits.detach()
    keys, bits = list(gpt2.state_dict()), {key: value.clone() for key, value in gpt2.state_dict().items()}
    adapted = glora.inject(gpt2, glora.SearchSpace(ranks=(4,), product=product, variant="paper"))
    assert len(adapted.sites) == 8
    assert adapted.sites["transformer.h.1.attn.c_attn"].out_features == 48
    assert adapted.head == (), "its output layer shares its weight with the embedding"
    adapted.activate(adapted.space.largest)
    assert torch.equal(gpt2(tokens).logits, plain)

    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-2)
    losses = []
    rng = random.Random(0)
    for _ in range(5):
        adapted.activate([adapted.sample(rng) for _ in tokens])
        optimizer.zero_grad()
        loss = gpt2(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    for support in adapted.supports.values():
        randomize(support)
    adapted.activate(adapted.sample(rng))
    out = gpt2(tokens).logits.detach()
    merged = adapted.merge()
    assert list(merged.state_dict()) == keys
    assert all(type(m).forward is conv1d.forward for m in gpt2.modules() if isinstance(m, conv1d))
    assert torch.allclose(merged(tokens).logits, out, rtol=1e-4, atol=1e-4 * float(out.abs().max()))
    assert not torch.allclose(out, plain, atol=1e-2)

    adapted.detach()
    now = gpt2.state_dict()
    assert list(now) == keys
    assert all(torch.equal(now[key], value) for key, value in bits.items())
    assert torch.equal(gpt2(tokens).logits, plain)


def test_gpt2_builds_no_weight_where_its_layers_are_called(gpt2, tokens, monkeypatch):
    adapted = glora.inject(gpt2, glora.SearchSpace(ranks=(4,), product="matrix", variant="paper"))
    config = LayerConfig(A="lora:4", B="lora:4", C="vector", E="vector")
    adapted.activate(Genotype(dict.fromkeys(adapted.sites, config)))
    monkeypatch.setattr("glora.adapt.support.Support.weight", None)
    gpt2(tokens)
