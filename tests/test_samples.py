"""One genotype per sample where layers do not keep the samples first: it is found, and said."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.genotype import Genotype
from glora.methods.glora import TunedAdapter
from glora.space import SearchSpace
from glora.training.pace import Noise
from suites.layer_suite import difference, randomize

N, L, W = 3, 6, 8  # samples, tokens, width
SAID = "layer plays the first sample's genotype for the whole batch"


class Model(nn.Module):
    """Calls one layer, and a plain one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(W, W)
        self.last = nn.Linear(W, 2)


class Plain(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).mean(1))


class Windows(Model):
    """Windows of two tokens, those of a sample next to each other."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.reshape(-1, 2, W)).reshape(x.shape).mean(1))


class Reused(Model):
    """The layer is called on the samples, and besides on a table that all of them share."""

    def forward(self, x: Tensor) -> Tensor:
        self.layer(torch.ones(1, L, W))
        return self.last(self.layer(x).mean(1))


class Cached(Plain):
    """Is given something that it adds to."""

    def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        cache.append(x)
        return super().forward(x)


class SequenceFirst(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.transpose(0, 1)).transpose(0, 1).mean(1))


class WindowsFirst(Model):
    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(len(x), -1, 2, W).transpose(0, 1)
        y = self.layer(windows.reshape(-1, 2, W)).reshape(windows.shape).transpose(0, 1)
        return self.last(y.reshape(x.shape).mean(1))


class Shared(Model):
    """The layer's input is the same for every sample, and as long by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(N, W))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.mean(1) + self.layer(self.table).sum(0))


class Expert(Model):
    """The layer sees the tokens of a positive first number, as many as there are."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, W)
        chosen = flat[:, 0] > 0
        return self.last(flat.masked_scatter(chosen[:, None], self.layer(flat[chosen])).view(x.shape).mean(1))


def adapted_of(model: nn.Module) -> glora.Adapted:
    adapted = glora.inject(model, SearchSpace((2,), variant="paper"), targets="linear", head=None)
    for seed, support in enumerate(adapted.supports.values()):
        randomize(support, seed=seed)
    return adapted


def mixture(adapted: glora.Adapted) -> list[Genotype]:
    return [adapted.sample(random.Random(seed)) for seed in range(N)]


def tokens() -> Tensor:
    """Two positive first numbers in the first sample, three and one in the others: twice three in all."""
    x = torch.randn(N, L, W, generator=torch.Generator().manual_seed(0))
    x[..., 0] = -x[..., 0].abs()
    for sample, places in enumerate(([0, 3], [1, 2, 5], [4])):
        x[sample, places, 0] *= -1
    return x


def given(model: nn.Module) -> tuple[object, ...]:
    return (tokens(), []) if isinstance(model, Cached) else (tokens(),)


@pytest.mark.parametrize("kind", [Plain, Windows, Reused, Cached, WindowsFirst])
def test_a_layer_that_keeps_samples_first_plays_each_its_own(kind):
    adapted = adapted_of(kind())
    genotypes = mixture(adapted)
    adapted.activate(genotypes)
    together = adapted.model(*given(adapted.model))
    for sample, genotype in enumerate(genotypes):
        adapted.activate(genotype)
        alone = adapted.model(*given(adapted.model))
        assert difference(alone[sample], together[sample]) < 1e-5
        assert difference(alone[sample], together[sample - 1]) > 1e-3


@pytest.mark.parametrize("kind", [SequenceFirst, Shared, Expert])
def test_a_layer_that_does_not_plays_the_first_samples_and_says_so(kind, caplog):
    adapted = adapted_of(kind())
    genotypes = mixture(adapted)
    adapted.activate(genotypes)
    together = adapted.model(tokens())
    assert SAID in caplog.text
    assert "last plays" not in caplog.text, "the other layer's samples are told apart"
    for sample, genotype in enumerate(genotypes):
        adapted.activate({"layer": genotypes[0]["layer"], "last": genotype["last"]})
        assert difference(adapted.model(tokens())[sample], together[sample]) < 1e-5


def test_it_is_looked_at_once_and_for_every_number_of_samples(caplog):
    adapted = adapted_of(SequenceFirst())
    calls: list[int] = []
    adapted.model.last.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    adapted.activate(mixture(adapted))
    adapted.model(tokens())
    looked = len(calls)
    caplog.clear()
    adapted.activate(mixture(adapted)[:2])
    adapted.model(tokens()[:2])
    assert len(calls) == looked + 1
    assert SAID not in caplog.text, "it was said before"


def test_a_copy_knows_what_was_found():
    adapted = adapted_of(SequenceFirst())
    adapted.activate(mixture(adapted))
    adapted.model(tokens())
    other = copy.deepcopy(adapted)
    calls: list[int] = []
    other.model.last.register_forward_pre_hook(lambda *_: calls.append(1))
    other.activate(mixture(other))
    assert torch.equal(other.model(tokens()), adapted.model(tokens()))
    assert len(calls) == 1, "it is not looked at again"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_rounding_is_no_mixing_of_samples(dtype, caplog):
    adapted = adapted_of(nn.Sequential(*[nn.Linear(W, W) for _ in range(6)]).to(dtype))
    adapted.activate(mixture(adapted))
    adapted.model(tokens().to(dtype))
    assert not caplog.text


def test_the_look_leaves_no_trace():
    model = nn.Sequential(nn.Linear(W, W), nn.BatchNorm1d(L), nn.Dropout(0.5), nn.Linear(W, 2)).train()
    model[2].eval()
    adapted = adapted_of(model)
    adapted.activate(mixture(adapted))
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    model(tokens())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    torch.manual_seed(5)
    again = model(tokens())
    torch.manual_seed(5)
    assert torch.equal(model(tokens()), again)
    assert [module.training for module in model] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_noise_of_pace_is_no_mixing_of_samples(caplog):
    adapted = adapted_of(nn.Sequential(nn.Linear(W, W), nn.Linear(W, W)))
    adapted.activate(mixture(adapted))
    with Noise(TunedAdapter(adapted), 1.0, torch.device("cpu")) as noise:
        noise.draw(0, range(N), N)
        adapted.model(tokens())
    assert not caplog.text
