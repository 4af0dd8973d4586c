"""Running statistics: frozen, or the adapter's own, from training to the file and back to the base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.adapt import adapter_file as checkpoint
from glora.adapt.statistics import statistics_of
from glora.errors import AdapterFileError, StateError
from glora.space import SearchSpace
from test_adapted import difference, photograph, play, same
from test_checkpoint import edited, refused

PAPER = SearchSpace(ranks=(4, 2), variant="paper")


class Normed(nn.Module):
    """BatchNorm between Linear layers, one that averages over all batches, and one inside the head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.mean = nn.BatchNorm1d(8, momentum=None)
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mean(self.fc2(self.norm(self.fc1(x)).relu())))


def normed(seed: int = 0) -> Normed:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Normed()
        with torch.no_grad():
            for value in (model.norm.weight, model.norm.running_mean, model.norm.running_var, model.mean.weight):
                value.uniform_(0.5, 1.5)
        return model.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(3))


def train(model: nn.Module, x: Tensor, steps: int = 3) -> None:
    model.train()
    for _ in range(steps):
        model(x).sum().backward()
    model.eval()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in statistics_of(model, ("head",)).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


TARGETS = ["linear", "norm", "all"]


@pytest.mark.parametrize("targets", TARGETS)
def test_unasked_they_stay_and_asked_they_are_updated_as_the_plain_model_updates_them(x, targets):
    plain, frozen, trained = normed(), normed(), normed()
    before = statistics(plain)
    glora.inject(frozen, PAPER, targets=targets)
    assert glora.inject(trained, PAPER, targets=targets, statistics=True).statistics
    for model in (plain, frozen, trained):
        train(model, x)
    assert equal(statistics(frozen), before)
    assert equal(statistics(trained), statistics(plain))
    assert trained.norm.num_batches_tracked == 3
    assert torch.equal(trained(x), plain(x)), "a fresh adapter changes nothing else"


@pytest.mark.parametrize("targets", TARGETS)
def test_one_genotype_per_sample_updates_them_once_a_batch(x, targets):
    plain, model = normed(), normed()
    adapted = glora.inject(model, PAPER, targets=targets, statistics=True)
    adapted.activate([adapted.space.largest, adapted.space.smallest] * 8)
    for each in (plain, model):
        train(each, x)
    expected = statistics(plain)
    for name, value in statistics(model).items():  # elementwise LoRA A goes by groups of samples: other rounding
        assert torch.allclose(value, expected[name], atol=1e-5), name


@pytest.mark.parametrize("targets", TARGETS)
def test_merge_keeps_them_and_detach_restores_them_bit_for_bit(x, targets):
    model = normed()
    base, before = photograph(model), model(x)
    adapted = glora.inject(model, PAPER, targets=targets, statistics=True)
    play(adapted)
    train(model, x)
    trained, out = statistics(model), model(x)
    merged = adapted.merge()
    assert equal(statistics(merged), trained)
    assert difference(merged(x), out) < 1e-5
    train(merged, x, steps=1)
    assert merged.norm.num_batches_tracked == 4, "the merged model is an ordinary one"
    assert torch.equal(adapted.detach()(x), before)
    same(base, photograph(model))
    again = glora.inject(model, PAPER, targets=targets, statistics=True)
    train(model, x)
    again.detach()
    same(base, photograph(model))


def test_they_travel_with_the_file(x, tmp_path):
    model = normed()
    adapted = glora.inject(model, PAPER, statistics=True)
    play(adapted)
    train(model, x)
    out, path = model(x), tmp_path / "a.safetensors"
    glora.save_adapter(adapted, path)
    assert len(checkpoint.read_header(path)["statistics"]) == 6
    other = normed()
    base, plain = photograph(other), other(x)
    loaded = glora.load_adapter(other, path)
    assert loaded.statistics
    assert torch.equal(other(x), out)
    assert equal(statistics(other), statistics(model))
    train(other, x, steps=1)
    assert other.norm.num_batches_tracked == 4, "training goes on"
    assert torch.equal(loaded.detach()(x), plain)
    same(base, photograph(other))


def test_a_supernet_comes_back_with_them(x, tmp_path):
    model = normed()
    adapted = glora.inject(model, PAPER, statistics=True)
    train(model, x)
    checkpoint.save_supernet(adapted, tmp_path / "supernet.safetensors")
    other = glora.inject(normed(), PAPER, statistics=True)
    checkpoint.load_supernet(other, tmp_path / "supernet.safetensors")
    assert equal(statistics(other.model), statistics(model))
    frozen = glora.inject(normed(), PAPER)
    with pytest.raises(StateError, match="statistics=True"):
        checkpoint.load_supernet(frozen, tmp_path / "supernet.safetensors")


def test_every_adapter_has_its_own(x, tmp_path):
    outputs = {}
    for name, steps in (("one", 1), ("five", 5)):
        model = normed()
        adapted = glora.inject(model, PAPER, statistics=True)
        play(adapted, seed=steps)
        train(model, x, steps)
        outputs[name] = model(x)
        glora.save_adapter(adapted, tmp_path / name)
    model = normed()
    base, plain = photograph(model), model(x)
    adapted = glora.load_adapter(model, tmp_path / "one")
    adapted.add("five", tmp_path / "five")
    assert torch.equal(model(x), outputs["one"])
    for name in ("five", "default", "five"):
        adapted.switch(name)
        assert torch.equal(model(x), outputs["one" if name == "default" else name])
    adapted.remove("default")
    twin = copy.deepcopy(adapted)
    assert difference(adapted.merge()(x), outputs["five"]) < 1e-5
    assert torch.equal(adapted.detach()(x), plain)
    same(base, photograph(model))
    assert torch.equal(twin.detach()(x), plain)


@pytest.mark.parametrize("asked", [True, False])
def test_adapters_with_and_without_them_do_not_mix(tmp_path, asked):
    glora.save_adapter(glora.inject(normed(), PAPER, statistics=not asked), tmp_path / "other")
    adapted = glora.inject(normed(), PAPER, statistics=asked)
    with pytest.raises(StateError, match=f"statistics={not asked}"):
        adapted.add("other", tmp_path / "other")
    assert adapted.adapters == ("default",)


def test_asked_of_a_model_that_keeps_none_it_says_so(vit):
    adapted = glora.inject(vit(), PAPER, statistics=True)
    assert not adapted.statistics
    assert any("statistics=True changes nothing" in note for note in adapted.notes)


@pytest.fixture
def saved(x, tmp_path) -> Path:
    model = normed()
    adapted = glora.inject(model, PAPER, statistics=True)
    train(model, x)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


KEY = "statistics/norm.running_mean"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: t.pop(KEY), r"lacks statistics/norm\.running_mean"),
        (lambda h, t: t.update({"statistics/norm.other": torch.zeros(8)}), "unknown keys"),
        (lambda h, t: (h["statistics"].remove("norm.running_mean"), t.pop(KEY)), r"lacks norm\.running_mean"),
        (lambda h, t: t.update({KEY: torch.zeros(7)}), r"norm\.running_mean.*shape"),
        (lambda h, t: h.pop("statistics"), "header"),
        (lambda h, t: h.update(statistics=3), "header"),
        (lambda h, t: h.update(version=1), "unknown keys"),
    ],
)
def test_a_changed_file_is_refused(saved: Path, change: Callable[..., None], message: str):
    refused(normed(), edited(saved, change), message)


def test_the_base_is_checked_without_them_and_with_all_else(saved):
    other = normed()
    other.norm.running_mean.add_(1.0)
    glora.load_adapter(other, saved)
    other = normed()
    with torch.no_grad():
        other.norm.weight.add_(1.0)
    with pytest.raises(AdapterFileError, match="another base"):
        glora.load_adapter(other, saved)


def test_a_file_of_version_1_is_still_read(x, tmp_path):
    model = normed()
    adapted = glora.inject(model, PAPER)
    play(adapted)
    out, path = model(x), tmp_path / "a.safetensors"
    glora.save_adapter(adapted, path)

    def older(header, _):
        header["version"] = 1
        for key in ("statistics", "shared"):
            del header[key]
        for site in header["sites"].values():
            for key in ("mixed", "diagonal", "fixed"):
                del site[key]

    other = normed()
    assert not glora.load_adapter(other, edited(path, older)).statistics
    assert torch.equal(other(x), out)
