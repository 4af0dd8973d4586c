"""One adapter per sample of a batch: every sample through its own numbers, genotype and head, in one pass."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.errors import StateError, UnknownNameError
from glora.genotype import LayerConfig
from glora.space import SearchSpace
from suites.layer_suite import difference, randomize
from test_adapted import FULL, PAPER, photograph, play, same

SPACES = {  # adapters of different products, ranks, scalings and sites on one base
    "birds": (PAPER, "linear"),
    "cars": (SearchSpace(ranks=(3,), variant="paper", product="matrix"), "linear"),
    "dogs": (SearchSpace(ranks=(2,), variant="paper", scaling="none"), "qkv|fc1"),
    "eggs": (SearchSpace(only=LayerConfig(B="lora:5")), "fc"),
}
NAMES = ("birds", "cars", "base", "dogs", "eggs", "birds")


@pytest.fixture
def folder(vit, tmp_path) -> Path:
    """An adapter file of every space, each with its own head."""
    for seed, (name, (space, targets)) in enumerate(SPACES.items()):
        adapted = glora.inject(vit(), space, targets=targets)
        for number, support in enumerate(adapted.supports.values()):
            randomize(support, seed=10 * seed + number, size=0.1)
        adapted.activate(adapted.sample(random.Random(seed)))
        with torch.no_grad():
            for parameter in adapted.head_parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        glora.save_adapter(adapted, tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def several(vit, folder) -> Callable[[], glora.Adapted]:
    def make() -> glora.Adapted:
        adapted = glora.load_adapter(vit(), folder / "birds.safetensors")
        for name in SPACES:
            adapted.add(name, folder / f"{name}.safetensors")
        return adapted

    return make


def alone(vit, folder: Path, name: str, x: Tensor) -> Tensor:
    model = vit()
    if name != "base":
        glora.load_adapter(model, folder / f"{name}.safetensors")
    return model(x)


def test_every_sample_goes_through_its_own_adapter_and_head(vit, images, folder, several):
    adapted = several()
    for seed in range(4):
        names = random.Random(seed).sample(NAMES, len(NAMES))
        adapted.switch(names)
        assert adapted.playing == tuple(names)
        together = adapted.model(images)
        outputs = [alone(vit, folder, name, images[n : n + 1]) for n, name in enumerate(names)]
        assert difference(together, torch.cat(outputs)) < 1e-5
        assert difference(outputs[0], together[1:2]) > 1e-2, "the adapters differ"


@pytest.mark.parametrize("in_use", [*SPACES, "default"])
def test_it_does_not_matter_which_adapter_is_in_use(images, several, in_use):
    adapted, other = several(), several()
    adapted.switch(in_use)
    for each in (adapted, other):
        each.switch(NAMES)
    assert difference(adapted.model(images), other.model(images)) < 1e-5


def test_a_batch_of_one_adapter_is_that_adapter(images, several):
    adapted = several()
    adapted.switch("cars")
    expected = adapted.model(images)
    adapted.switch("birds")
    adapted.switch(["cars"] * 6)
    assert difference(adapted.model(images), expected) < 1e-5
    adapted.switch(["cars"])
    assert torch.equal(adapted.model(images), expected)


def test_gradients_reach_the_numbers_of_the_adapters_that_play(images, several):
    adapted = several()
    adapted.switch("dogs")
    adapted.switch(["birds", "base", "eggs"])
    adapted.model(images[:3]).square().sum().backward()
    reached = {
        name: any(p.grad is not None and bool(p.grad.any()) for s in each.supports.values() for p in s.parameters())
        for name, each in adapted._adapters.items()
    }
    assert reached == {"default": False, "birds": True, "cars": False, "dogs": False, "eggs": True}


def test_switching_or_activating_ends_the_mixture_and_the_adapter_in_use_stays_in_use(images, several):
    adapted = several()
    adapted.switch("cars")
    expected = adapted.model(images)
    active = adapted.active
    adapted.switch(NAMES)
    with torch.no_grad():  # the head of the adapter in use is the model's own, live
        adapted.head_parameters()[0].add_(0.1)
    adapted.activate(active)
    assert adapted.playing == "cars"
    assert difference(adapted.model(images), expected) > 1e-3
    with torch.no_grad():
        adapted.head_parameters()[0].sub_(0.1)
    adapted.switch(NAMES)
    adapted.switch(NAMES[:2])
    adapted.switch("birds")
    adapted.switch("cars")
    assert adapted.active == active
    assert difference(adapted.model(images), expected) < 1e-5


def test_what_needs_one_adapter_is_refused_while_a_batch_is_mixed(images, several, tmp_path):
    adapted = several()
    adapted.switch(NAMES)
    for action in (
        adapted.merge,
        adapted.state,
        adapted.parameters,
        lambda: adapted.hold(adapted.space.smallest).__enter__(),
        lambda: glora.save_adapter(adapted, tmp_path / "mixed.safetensors"),
    ):
        with pytest.raises(StateError, match="One adapter per sample plays"):
            action()
    with pytest.raises(StateError, match="in use"):
        adapted.remove("eggs")
    assert not (tmp_path / "mixed.safetensors").exists()
    adapted.switch(["birds"] * 6)
    adapted.remove("eggs")
    adapted.switch("birds")
    assert adapted.merge() is adapted.model


def test_a_wrong_batch_or_name_is_told_and_the_mixture_before_plays_on(images, several, folder, vit):
    wide = glora.inject(vit(classes=5), PAPER)
    glora.save_adapter(wide, folder / "wide.safetensors")
    adapted = several()
    adapted.add("wide", folder / "wide.safetensors")
    adapted.switch(NAMES)
    expected = adapted.model(images)
    with pytest.raises(StateError, match="one per sample, but the batch has 4"):
        adapted.model(images[:4])
    with pytest.raises(UnknownNameError, match="planes"):
        adapted.switch(["birds", "planes"])
    with pytest.raises(StateError, match=r"sample 1 has another shape.*head\.weight"):
        adapted.switch(["birds", "wide"])
    with pytest.raises(StateError, match="No adapter"):
        adapted.switch([])
    with pytest.raises(StateError, match="already"):
        adapted.add("base", folder / "birds.safetensors")
    assert torch.equal(adapted.model(images), expected)


def test_the_base_plays_by_its_name(vit, images, several):
    adapted = several()
    expected, active = adapted.model(images), adapted.active
    adapted.switch("base")
    assert adapted.playing == "base"
    assert torch.equal(adapted.model(images), vit()(images))
    assert torch.equal(adapted.model(images[:4]), vit()(images[:4])), "of any batch"
    for action in (adapted.merge, adapted.state, adapted.parameters):
        with pytest.raises(StateError, match="The base plays"):
            action()
    adapted.activate(active)
    assert adapted.playing == "default"
    assert torch.equal(adapted.model(images), expected)
    adapted.switch("base")
    adapted.switch("cars")
    adapted.switch("default")
    assert torch.equal(adapted.model(images), expected)


@pytest.mark.parametrize("end", ["detach", "merge and detach"])
def test_detach_brings_the_base_back_from_a_mixture(vit, images, folder, end):
    model = vit()
    before, plain = photograph(model), model(images)
    adapted = glora.load_adapter(model, folder / "birds.safetensors")
    adapted.add("cars", folder / "cars.safetensors")
    adapted.switch(["cars", "base", "default"])
    if end != "detach":
        adapted.switch("cars")
        adapted.merge()
    adapted.detach()
    assert torch.equal(model(images), plain)
    assert not any("forward" in vars(module) for module in model.modules())
    same(before, photograph(model))


def test_a_copy_of_a_mixture_lives_on_its_own(images, several):
    adapted = several()
    adapted.switch(NAMES)
    expected = adapted.model(images)
    twin = copy.deepcopy(adapted)
    assert torch.equal(twin.model(images), expected)
    twin.switch("cars")
    twin.merge()
    adapted_again = adapted.model(images)
    assert torch.equal(adapted_again, expected)
    adapted.detach()
    twin.detach()
    assert torch.equal(adapted.model(images), twin.model(images))


def test_the_head_keeps_a_forward_and_hooks_of_its_own(images, several):
    adapted = several()
    calls, head = [], adapted.model.head
    head.register_forward_hook(lambda *call: calls.append(call[2].shape))
    own = head.__dict__["forward"] = head.forward
    adapted.switch(NAMES)
    adapted.model(images)  # the first mixed batch is run on copies besides
    calls.clear()
    adapted.model(images)
    assert calls == [(6, 3)], "a hook on the head sees the whole batch once"
    adapted.switch("birds")
    assert head.__dict__["forward"] is own


class Readout(nn.Module):
    """`read` says how the head is used: called, its weight read, or called on what has lost the batch."""

    def __init__(self, read: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.read == "weight":
            return nn.functional.linear(x, self.head.weight, self.head.bias)
        return self.head(x.mean(0, keepdim=True) if self.read == "lost" else x)


@pytest.mark.parametrize(("read", "message"), [("weight", "does not call its head"), ("lost", "cannot be told apart")])
def test_a_head_that_cannot_play_per_sample_is_an_error(read, message, tmp_path):
    adapted = glora.inject(Readout(read), PAPER)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    adapted.add("a", tmp_path / "a.safetensors")
    adapted.switch(["a", "base", "default"])
    with pytest.raises(StateError, match=message):
        adapted.model(torch.randn(3, 6))


def test_a_head_of_tokens_plays_per_sample(tmp_path):
    class Tokens(Readout):
        """Rows of all samples in one dimension, those of a sample together."""

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).flatten(0, 1)).unflatten(0, x.shape[:2])

    other = glora.inject(Tokens(""), PAPER)
    play(other, FULL)
    with torch.no_grad():
        other.head_parameters()[0].add_(1)
    x = torch.randn(3, 4, 6)
    expected = other.model(x)
    glora.save_adapter(other, tmp_path / "a.safetensors")
    adapted = glora.inject(Tokens(""), PAPER)
    plain = adapted.model(x)
    adapted.add("a", tmp_path / "a.safetensors")
    adapted.switch(["a", "base", "a"])
    assert difference(adapted.model(x), torch.stack([expected[0], plain[1], expected[2]])) < 1e-5


def test_in_low_precision_every_adapter_keeps_its_numbers(vit, images, several):
    adapted = several()
    adapted.switch(NAMES)
    expected = adapted.model(images)
    adapted.switch("birds")
    adapted.model.bfloat16()
    adapted.switch(NAMES)
    out = adapted.model(images.bfloat16())
    assert out.dtype == torch.bfloat16
    assert difference(out.float(), expected) < 0.05
