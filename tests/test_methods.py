"""Every row of the table of methods: builds, counts right, trains, keeps the base, merges into the plain model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from glora.errors import UnknownNameError
from glora.methods import METHODS
from glora.methods.method import get_method

CLASSES = 3
SETTINGS: dict[str, dict[str, Any]] = {"lora": {"rank": 2}, "glora": {"sampling": "batch"}}  # one to merge
FROZEN_BASE = sorted(set(METHODS) - {"full"})


def build(name: str = "test_vit") -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **size).eval()
    return model


def batch(n: int = 4, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def step(tuned: Any, x: Tensor, *, lr: float = 1e-3) -> None:
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr)
    tuned.model.train()
    tuned.before_step(random.Random(0), range(len(x)), len(x), 1.0)
    nn.functional.cross_entropy(tuned.model(x), torch.arange(len(x)) % CLASSES).backward()
    optimizer.step()
    optimizer.zero_grad()
    tuned.model.eval()


def linears(model: nn.Module) -> list[nn.Linear]:
    head = model.get_classifier()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_method_is_the_base_and_one_step_changes_it(name: str) -> None:
    model, x = build(), batch()
    plain = model(x)
    tuned = get_method(name, SETTINGS.get(name, {})).apply(model, head=("head",), seed=0)
    assert torch.equal(tuned.model(x), plain)
    step(tuned, x)
    assert not torch.equal(tuned.model(x), plain)
    assert all(parameter.requires_grad for parameter in tuned.parameters())


def test_lora_is_as_published_and_glora_has_fixed_scales() -> None:
    lora, glora = (
        get_method(name, {}).apply(build(), head=("head",), seed=0).adapted.supports for name in ("lora", "glora")
    )
    assert not any(support.scales for support in lora.values())
    assert all(support.scales for support in glora.values())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_trained_is_what_moves(name: str) -> None:
    model, x = build(), batch()
    tuned = get_method(name, SETTINGS.get(name, {})).apply(model, head=("head",), seed=0)
    owned = {id(parameter) for parameter in tuned.parameters()}
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    step(tuned, x)
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert moved <= {key for key, parameter in model.named_parameters() if id(parameter) in owned}
    assert {"head.weight", "head.bias"} <= moved


@pytest.mark.parametrize("name", METHODS)
def test_merging_gives_the_plain_model_with_the_same_answers(name: str) -> None:
    model, x = build(), batch()
    keys, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    tuned = get_method(name, SETTINGS.get(name, {})).apply(model, head=("head",), seed=0)
    step(tuned, x, lr=1e-2)
    with torch.no_grad():
        before, after = tuned.model(x), tuned.merge()(x)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == kinds


def test_counts_are_without_the_head() -> None:
    model = build()
    sizes = [(layer.out_features, layer.in_features) for layer in linears(model)]
    whole = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.head.parameters())
    wanted = {"lora": 2 * sum(o + i for o, i in sizes), "bitfit": sum(o for o, _ in sizes), "linear": 0, "full": whole}
    for name, count in wanted.items():
        assert get_method(name, SETTINGS.get(name, {})).apply(build(), head=("head",), seed=0).count() == count, name


def test_the_supernet_counts_what_it_plays() -> None:
    tuned = get_method("glora", {"sampling": "batch"}).apply(build(), head=("head",), seed=0)
    tuned.before_step(random.Random(3), range(4), 4, 1.0)
    assert tuned.count() == tuned.adapted.count(tuned.adapted.active) > 0


def test_steps_of_equal_generators_play_the_same_subnet() -> None:
    played = []
    for _ in range(2):
        tuned = get_method("glora", {"sampling": "batch", "largest": 0}).apply(build(), head=("head",), seed=0)
        rng = random.Random(5)
        played.append([(tuned.before_step(rng, range(4), 4, 0.0), tuned.adapted.active)[1] for _ in range(3)])
    assert played[0] == played[1]
    assert len(set(played[0])) == 3


def test_every_sample_can_play_its_own_subnet_the_same_on_one_process_as_on_two() -> None:
    tuned = get_method("glora", {}).apply(build(), head=("head",), seed=0)

    def played(places: range) -> tuple[Any, ...]:
        tuned.before_step(random.Random(5), places, 12, 0.75)
        active: tuple[Any, ...] = tuned.adapted.active
        return active

    whole = played(range(12))
    assert whole.count(tuned.adapted.space.largest) == 3, "as much as is left of the training"
    assert len(set(whole)) == 1 + 9
    assert (played(range(0, 12, 2)), played(range(1, 12, 2))) == (whole[::2], whole[1::2])


@pytest.mark.parametrize("sampling", ["batch", "sample"])
@pytest.mark.parametrize(("share", "done", "wanted"), [(0.0, 0.0, 0), (1.0, 0.0, 200), (1.0, 0.75, 50), (0.5, 0.5, 50)])
def test_fewer_and_fewer_play_the_largest_subnet(sampling: str, share: float, done: float, wanted: int) -> None:
    tuned = get_method("glora", {"sampling": sampling, "largest": share}).apply(build(), head=("head",), seed=0)
    rng, found = random.Random(0), 0
    for _ in range(200 if sampling == "batch" else 50):
        tuned.before_step(rng, range(4), 4, done)
        active = [tuned.adapted.active] if sampling == "batch" else tuned.adapted.active
        found += list(active).count(tuned.adapted.space.largest)
    assert found == pytest.approx(wanted, abs=15)


@pytest.mark.parametrize("name", ["glora", "lora", "bitfit"])
def test_targets_and_skip_reach_the_model(name: str) -> None:
    settings = {**SETTINGS.get(name, {}), "targets": r"blocks\.[01]\.(attn|mlp)", "skip": ("mlp.fc2",)}
    sites = get_method(name, settings).apply(build(), head=("head",), seed=0).adapted.sites
    assert sorted(sites) == [f"blocks.{b}.{leaf}" for b in (0, 1) for leaf in ("attn.proj", "attn.qkv", "mlp.fc1")]


class Normed(nn.Sequential):
    """A Linear behind a batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 8), nn.Linear(8, 3))


@pytest.mark.parametrize("name", METHODS)
def test_running_statistics_of_a_frozen_base_stay(name: str) -> None:
    model = Normed().eval()
    before = {key: value.clone() for key, value in model.named_buffers()}
    tuned = get_method(name, SETTINGS.get(name, {})).apply(model, head=("4",), seed=0)
    x = batch(size=8)
    step(tuned, x)
    same = [torch.equal(value, before[key]) for key, value in model.named_buffers()]
    assert same == [name in FROZEN_BASE] * 3
    tuned.merge().train()(x)
    assert model[1].num_batches_tracked == 1 + (name not in FROZEN_BASE), "merged, the model is the user's own again"


@pytest.mark.parametrize("name", ["glora", "lora", "bitfit"])
def test_running_statistics_are_trained_where_asked(name: str) -> None:
    model = Normed().eval()
    tuned = get_method(name, {**SETTINGS.get(name, {}), "statistics": True}).apply(model, head=("4",), seed=0)
    step(tuned, batch(size=8))
    assert model[1].num_batches_tracked == 1
    assert any("running_mean" in key for key in tuned.state())


def test_full_fine_tuning_keeps_its_statistics_in_its_state() -> None:
    first, second = (get_method("full", {}).apply(build("test_resnet"), head=("fc",), seed=0) for _ in range(2))
    x = batch(size=64)
    step(first, x)
    with torch.no_grad():
        for name, value in second.state().items():
            value.copy_(first.state()[name])
        assert torch.equal(first.model(x), second.model(x))
    assert any("running_mean" in name for name in first.state())


def test_an_unknown_method_or_setting_is_told() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lora'"):
        get_method("loar", {})
