"""Two processes in a loop of their own, with weights in parts. A program: `shards.py CASE FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

import glora
from conftest import TinyViT
from glora.adapt.adapter_file import save_tensors
from glora.errors import StateError
from glora.integrations import held_bytes, sharded, watched

SPACE = glora.SearchSpace(ranks=(4, 2))


def base() -> nn.Module:
    torch.manual_seed(0)
    return TinyViT().eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randint(3, (8,), generator=generator)


def steps(model: nn.Module, parameters: list[nn.Parameter], rank: int, size: int) -> torch.optim.Optimizer:
    """Three steps of AdamW on this process's share of the batch."""
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    x, y = (each[rank::size] for each in batch())
    for _ in range(3):
        nn.functional.cross_entropy(model(x), y).backward()
        for parameter in parameters if size > 1 else ():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= size
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def own_loop(rank: int, folder: Path) -> None:
    """Trained, saved and merged in a loop of one's own; what this process holds meanwhile."""
    model = base()
    adapted = glora.inject(model, SPACE, head=["head"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identities, classes = {n: id(p) for n, p in model.named_parameters()}, [type(m) for m in model.modules()]
    trained = list(adapted.parameters())
    for _ in range(2):  # it can be spread again
        with sharded(model, trained):
            held = held_bytes(model, trained)
            optimizer = steps(model, trained, rank, 2)
            assert held_bytes(model, trained) == held, "or a block stays whole between two steps"
            refused(adapted)
            glora.save_adapter(adapted, folder / "within.safetensors")
    glora.save_adapter(adapted, folder / f"after-{rank}.safetensors")
    own = {id(parameter) for parameter in trained}
    frozen = [name for name, parameter in model.named_parameters() if id(parameter) not in own]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in frozen)
    assert identities == {n: id(p) for n, p in model.named_parameters()}
    assert classes == [type(m) for m in model.modules()]
    state = optimizer.state_dict()["state"].values()
    moments = sum(v.numel() * v.element_size() for each in state for name, v in each.items() if name != "step")
    facts = {**held._asdict(), "moments": moments}
    save_tensors(folder / f"merged-{rank}.safetensors", adapted.merge().state_dict(), facts)


def refused(adapted: Any) -> None:
    for action in (adapted.merge, adapted.hold(adapted.space.largest).__enter__):
        try:
            action()
        except StateError as error:
            assert "spread over processes" in str(error)
        else:
            raise AssertionError("not refused")


def by_hand(rank: int, folder: Path) -> None:
    """Everything spread by torch's own call, the support tensors too; saved by both processes."""
    from torch.distributed.fsdp import fully_shard

    model = base()
    adapted = glora.inject(model, SPACE, head=["head"])
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    x, y = (each[rank::2] for each in batch())
    for _ in range(3):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    refused(adapted)
    glora.save_adapter(adapted, folder / "by_hand.safetensors")
    torch.distributed.barrier()


def watching(rank: int, folder: Path) -> None:
    """A loop of one's own, in which the second process is killed."""
    with watched():
        for step in range(1000):
            if (rank, step) == (1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            torch.distributed.all_reduce(torch.ones(1))


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    {"own_loop": own_loop, "by_hand": by_hand, "watching": watching}[sys.argv[1]](
        torch.distributed.get_rank(), Path(sys.argv[2])
    )
    torch.distributed.destroy_process_group()
