"""Faults that users of such libraries have met: each kind by its smallest inputs, with the right value."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import glora
from glora.errors import StateError
from glora.space import SearchSpace

SPACE = SearchSpace(ranks=(4, 2))


class Net(nn.Module):
    """The smallest model with a layer to adapt and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


def net(kind: Callable[[], nn.Module] = Net) -> Any:
    torch.manual_seed(0)
    return kind()


def inputs(rows: int = 4) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def moved(adapted: glora.Adapted, size: float = 0.2) -> glora.Adapted:
    """The same, as after some training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return adapted


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# Wrapper names are not model names


def compiled_layer() -> Net:
    model = net()
    model.body = torch.compile(model.body, backend="eager")
    return model


def compiled_head() -> Net:
    model = net()
    model.head = torch.compile(model.head, backend="eager")
    return model


def checkpointed_layer() -> Net:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = net()
    model.body = checkpoint_wrapper(model.body)
    return model


WRAPPED = {
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "data parallel": lambda: nn.DataParallel(net()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()),
    "compiled data parallel": lambda: torch.compile(nn.DataParallel(net()), backend="eager"),
    "compiled layer": compiled_layer,
    "compiled head": compiled_head,
    "checkpointed layer": checkpointed_layer,
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@torch.no_grad()  # torch's own compiler warns of a compiled part of a model with gradients
def test_an_adapter_of_a_wrapped_model_is_one_of_the_model(tmp_path: Path, wrapped: Any) -> None:
    model, x = wrapped(), inputs()
    plain = model(x)
    adapted = glora.inject(model, SPACE)
    assert (list(adapted.sites), adapted.head) == (["body"], ("head",))
    assert torch.equal(model(x), plain)
    y = moved(adapted).model(x)
    torch.testing.assert_close(model(x), y)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = glora.load_adapter(net(), tmp_path / "a.safetensors")
    torch.testing.assert_close(other.model(x), y)
    third = wrapped()
    glora.load_adapter(third, tmp_path / "a.safetensors")
    torch.testing.assert_close(third(x), y)
    assert same_state(glora.inject(net(), SPACE).merge(), other.detach()), "the base, bit for bit"


def test_what_synchronises_the_parameters_it_had_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=(tmp_path / "group").as_uri())
    try:
        model = nn.parallel.DistributedDataParallel(net())
        with pytest.raises(StateError, match=r"in a DistributedDataParallel.*Adapt the model that is inside"):
            glora.inject(model, SPACE)
        adapted = glora.inject(model.module, SPACE)
        moved(adapted)
        assert torch.equal(nn.parallel.DistributedDataParallel(adapted.model)(inputs()), adapted.model(inputs()))
    finally:
        torch.distributed.destroy_process_group()


def test_adapters_of_peft_are_not_adapted_themselves() -> None:
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(net(), peft.LoraConfig(target_modules=["body"]))
    for model in (tuned, tuned.base_model.model):
        with pytest.raises(StateError, match=r"adapters of PEFT's already, in .*body.*merge_and_unload"):
            glora.inject(model, SPACE)
    assert list(glora.inject(tuned.merge_and_unload(), SPACE).sites) == ["body"]


# What counts as the base


class Scaled(Net):
    """Its own running scale, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def move(self, h: Tensor) -> None:
        self.scale.mul_(0.9).add_(0.1 * h.detach().std())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.move(h)
        return self.head(h / self.scale)


class Rebound(Scaled):
    """A new tensor in the old one's place."""

    def move(self, h: Tensor) -> None:
        self.scale = 0.9 * self.scale + 0.1 * h.detach().std()


class Within(Net):
    """A part with a step counter and a codebook, as vector quantisers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Codes()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.body(x)))


class Codes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("codes", torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            self.steps += 1
            self.codes.index_add_(0, nearest, 0.1 * x.detach())
        return x + self.codes[nearest].detach()


class Spectral(Net):
    """torch's own: every pass in training is one step of the power method."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extra(self.body(x)))


def trained(adapted: glora.Adapted, steps: int = 3) -> None:
    adapted.model.train()
    optimizer = torch.optim.SGD(adapted.parameters(), 0.1)
    for step in range(steps):
        adapted.model(inputs() + step).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [Scaled, Rebound, Within, Spectral])
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
def test_buffers_that_move_in_training_stay_the_bases(
    tmp_path: Path, kind: Any, compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain = net(kind), net(kind)
    adapted = glora.inject(model, SPACE, targets=["body"])
    if compiled:
        model.compile(backend="eager")
    trained(adapted)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    y = model.eval()(inputs())
    if not compiled:
        assert "put back after every pass" in caplog.text
    other = glora.load_adapter(net(kind), tmp_path / "a.safetensors")
    torch.testing.assert_close(other.model.eval()(inputs()), y)
    trained(adapted)
    assert same_state(copy.deepcopy(adapted).detach(), plain)
    assert same_state(adapted.detach(), plain)


def test_a_copy_of_a_model_keeps_its_own_buffers() -> None:
    adapted = glora.inject(net(Scaled), SPACE)
    other = copy.deepcopy(adapted)
    adapted.model.scale.fill_(7)
    other.model.train()(inputs())
    assert (adapted.model.scale, other.model.scale) == (7, 1)


def test_a_cache_may_move_in_evaluation() -> None:
    model = net(Scaled)
    adapted = glora.inject(model, SPACE)
    model.eval()
    model.scale.fill_(2)
    model(inputs())
    assert model.scale == 2
    assert adapted.detach().scale == 1


@pytest.mark.parametrize("statistics", [False, True])
def test_norms_of_others_keep_statistics_like_torchs(tmp_path: Path, statistics: bool) -> None:
    layers = pytest.importorskip("timm.layers")

    def make() -> nn.Module:
        return net(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), layers.EvoNorm2dB0(8), nn.Flatten(), nn.Linear(8 * 36, 3)))

    model = make()
    adapted = glora.inject(model, SPACE, targets="conv", head=["3"], statistics=statistics)
    x = torch.randn(4, 3, 8, 8)
    model.train()(x)
    assert torch.equal(model[1].running_var, make()[1].running_var) is not statistics
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    again = glora.load_adapter(make(), tmp_path / "a.safetensors")
    torch.testing.assert_close(again.model.eval()(x), model.eval()(x))
    assert same_state(adapted.detach(), make())


@pytest.mark.parametrize("average", ["AveragedModel", "ModelEmaV2", "ModelEmaV3"])
def test_a_copy_that_follows_the_parameters_plays_them(average: str) -> None:
    model = net()
    adapted = glora.inject(model, SPACE)
    if average == "AveragedModel":
        shadow: Any = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda _, new, __: new)
        update = shadow.update_parameters
    else:
        shadow = getattr(pytest.importorskip("timm.utils"), average)(model, decay=0.0)
        update = shadow.update
    moved(adapted)
    update(model)
    y = model.eval()(inputs())
    assert torch.equal(shadow.module.eval()(inputs()), y)
    assert not torch.equal(net()(inputs()), y)
