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
