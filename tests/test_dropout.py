"""Dropout before B's LoRA: right in expectation, only in training mode, nowhere in what is merged or saved."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.errors import ConfigError
from glora.genotype import LayerConfig
from glora.space import SearchSpace
from suites.layer_suite import PRODUCTS, difference
from test_adapted import PAPER, play

DRAWS = 4000
CONFIG = LayerConfig(A="vector", B="lora:4", C="vector", E="vector")
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), lambda: torch.randn(1, 6)),
    "tokens": (lambda: nn.Linear(6, 5, bias=False), lambda: torch.randn(1, 3, 6)),
    "conv": (lambda: nn.Conv2d(2, 5, 3), lambda: torch.randn(1, 2, 5, 5)),
    "small conv": (lambda: nn.Conv2d(2, 5, 3, groups=1), lambda: torch.randn(1, 2, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2), lambda: torch.randn(1, 2, 3, 3)),
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def adapt(kind: str, product: str = "elementwise", config: LayerConfig = CONFIG) -> tuple[glora.Adapted, Tensor]:
    """One layer with random numbers, in training mode, and as many equal inputs as there are draws."""
    make, make_input = LAYERS[kind]
    space = SearchSpace(ranks=(4, 2), variant="paper", product=product)
    adapted = glora.inject(make().train(), space, head=None, targets="all")
    play(adapted, config, size=0.5)
    x = make_input()
    return adapted, x.expand(DRAWS, *x.shape[1:])


def spread(found: Tensor) -> float:
    """The largest standard deviation between the draws."""
    return float(found.detach().std(0).max())


def is_mean(found: Tensor, expected: Tensor) -> bool:
    """Whether the mean of the draws is what is expected, within five standard errors."""
    found, expected = found.detach(), expected.detach()
    error = found.std(0) / DRAWS**0.5
    return bool(((found.mean(0) - expected[0]).abs() <= 5 * error + 1e-5).all())


@pytest.mark.parametrize("config", [CONFIG, LayerConfig(A="lora:4", B="lora:2")], ids=["factored", "weight"])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_in_expectation_nothing_is_dropped(kind, product, config):
    adapted, x = adapt(kind, product, config)
    expected = adapted.model(x)
    adapted.set_dropout(0.4)
    found = adapted.model(x)
    assert is_mean(found, expected)
    assert spread(found) > 1e-3, "something is dropped"
    assert not is_mean(found + 0.2, expected), "the test can tell"


def test_it_drops_what_b_reads_and_nothing_else():
    adapted, x = adapt("linear")
    genotype = adapted.active
    expected = adapted.model(x)
    adapted.set_dropout(0.5)
    for other in (LayerConfig(A="lora:4", C="lora:2", D="vector", E="vector"), LayerConfig(A="vector", B="vector")):
        adapted.activate({"": other})
        assert spread(adapted.model(x)) < 1e-6, other
    adapted.activate(genotype)
    (support,) = adapted.supports.values()
    b, up = support.factors("B", genotype[""])
    change = adapted.model(x) - expected  # of every draw the sum of these columns, each taken away or added once more
    columns = (b @ up) * x[0]  # (o, i)
    signs = torch.tensor([[1 if bit == "1" else -1 for bit in f"{n:06b}"] for n in range(64)], dtype=torch.float32)
    possible = signs @ columns.T  # (64, o)
    nearest = torch.cdist(change, possible, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert float(nearest.detach().max()) < 1e-5


@pytest.mark.parametrize("rates", [(0.3,), (0.0, 0.6)], ids=["one rate", "a rate per adapter"])
def test_one_genotype_per_sample_drops_too(rates, tmp_path):
    adapted, x = adapt("linear")
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(3)] + [adapted.active]
    x = x[:4].clone() if len(rates) > 1 else x
    if len(rates) == 1:
        adapted.activate(genotypes * (DRAWS // 4))
        expected = adapted.model(x)
        adapted.set_dropout(rates[0])
        found = adapted.model(x)
        for sample, genotype in enumerate(genotypes):
            assert is_mean(found[sample::4].repeat(4, 1), expected[sample : sample + 1])
            dropped = genotype[""].B.kind == "lora"
            assert (spread(found[sample::4]) > 1e-3) == dropped
        return
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    adapted.add("a", tmp_path / "a.safetensors")
    adapted.switch("a")
    adapted.set_dropout(rates[1])
    adapted.switch(["default", "a", "default", "a"])
    adapted.model.eval()
    expected = adapted.model(x)
    adapted.model.train()
    several = torch.stack([adapted.model(x) for _ in range(200)])
    assert torch.allclose(several[:, ::2], expected[::2].expand(200, 2, -1), atol=1e-5)
    assert spread(several[:, 1::2]) > 1e-3


def test_eval_mode_hold_and_merge_know_no_dropout(vit, images, tmp_path):
    adapted = glora.inject(vit(), PAPER)
    genotype = play(adapted)
    expected = adapted.model(images)
    adapted.set_dropout(0.5)
    assert torch.equal(adapted.model(images), expected)
    adapted.model.train()
    assert difference(adapted.model(images), expected) > 1e-3
    with adapted.hold(genotype):
        assert difference(adapted.model(images), expected) < 1e-5
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    loaded = glora.load_adapter(vit().train(), tmp_path / "a.safetensors")
    assert torch.equal(loaded.model(images), expected), "the file has none"
    assert difference(adapted.merge()(images), expected) < 1e-5
    assert all("dropout" not in key for key in adapted.model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_it_is_the_base_bit_for_bit_in_training_mode(vit, images, dtype):
    model, x = vit().to(dtype).train(), images.to(dtype)
    plain = model(x)
    adapted = glora.inject(model, PAPER)
    adapted.set_dropout(0.5)
    for genotype in (adapted.active, adapted.sample(random.Random(0)), [adapted.sample(random.Random(1))] * 6):
        adapted.activate(genotype)
        assert torch.equal(model(x), plain)


def test_the_gradient_is_that_of_the_dropped_input():
    adapted, x = adapt("linear", config=LayerConfig(B="lora:4"))
    adapted.set_dropout(0.5)
    (support,) = adapted.supports.values()
    down = support.down["B"]
    _, up = support.factors("B", adapted.active[""])
    torch.manual_seed(5)
    adapted.model(x[:3]).sum().backward()
    torch.manual_seed(5)
    (expected,) = torch.autograd.grad((nn.functional.dropout(x[:3], 0.5) @ up.T @ down.T).sum(), down)
    assert difference(down.grad, expected) < 1e-5


def test_layers_that_are_never_called_or_look_up_are_noted(caplog):
    model = nn.ModuleDict({"m": nn.MultiheadAttention(8, 2), "e": nn.Embedding(5, 8), "f": nn.Linear(8, 8)})
    adapted = glora.inject(model, PAPER, targets="all", head=None)
    adapted.set_dropout(0.0)
    assert not any("dropout" in note for note in adapted.notes)
    adapted.set_dropout(0.1)
    (note,) = (note for note in adapted.notes if "dropout" in note)
    assert "m.in_proj" in note
    assert "e" in note.rpartition(":")[2]
    assert "f" not in note.rpartition(":")[2]
    assert note in caplog.text


@pytest.mark.parametrize("probability", [1.0, -0.1, "0.1", None])
def test_a_wrong_probability_says_what_is_allowed(vit, probability):
    with pytest.raises(ConfigError, match="dropout"):
        glora.inject(vit(), PAPER).set_dropout(probability)
