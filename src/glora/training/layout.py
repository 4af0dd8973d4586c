"""What one process of several holds while it trains, by part: from the shapes of a model.

`docs/guide/processes.md` has a model of 7 billion numbers on eight GPUs; a test compares the numbers with what two
processes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glora.adapt.sharded import blocks_of

__all__ = ["Layout", "flash_attention", "layout", "shapes_alone"]

MOMENTS = 2  # of AdamW: numbers that it keeps of a trained one


@dataclass(frozen=True)
class Layout:
    """Bytes that one process holds.

    Attributes:
        blocks: Its part of the blocks' frozen weights, the largest that a process has.
        block: One block's frozen weights, brought together for its forward or backward pass; 0 where all are whole.
        others: All other frozen weights, and buffers.
        trained: Support tensors and heads. gradients: Theirs. moments: What AdamW keeps of them.
        summed: The copy of the gradients in which several processes add them up.
        inputs: What is kept of a forward pass under checkpointing: the inputs of all blocks.
        inside: What one block keeps while it is computed again for its backward pass.
        outside: What is kept outside of the blocks, logits above all, and as much for its gradient.
    """

    blocks: int
    block: int
    others: int
    trained: int
    gradients: int
    moments: int
    summed: int
    inputs: int
    inside: int
    outside: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(asdict(self).values())


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within it tensors have shapes and no numbers, and take no memory: a model is made, adapted and run for those."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield


def flash_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention, `(b, heads, n, i)`, of which no matrix of tokens by tokens is kept: also on shapes alone."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found: Tensor = flash(query, key, value, 0.0, True, scale=scale)[0]
    return found


def layout(
    model: nn.Module,
    trained: Iterable[nn.Parameter],
    loss: Callable[[nn.Module], Tensor],
    *,
    processes: int = 1,
    sharded: bool = True,
) -> Layout:
    """What one process holds while it trains a model with AdamW, its blocks checkpointed.

    Args:
        model: Adapted, its largest genotype active; within `shapes_alone` it takes no memory.
        trained: The parameters that are trained.
        loss: Of this process's share of a batch; it is called once.
        processes: How many there are.
        sharded: Whether the frozen weights of the blocks are spread over them.
    """
    own = {id(parameter): parameter for parameter in trained}
    blocks = list(blocks_of(model).values())
    parts = [_frozen(block, own) for block in blocks]
    inside = {key for part in parts for key in part}
    spread = {key: parameter for part in parts for key, parameter in part.items()}
    others = [p for p in model.parameters() if id(p) not in inside and id(p) not in own]
    numbers = sum(map(_bytes, own.values()))
    split = sharded and processes > 1
    inputs, block, outside = _kept(model, blocks, loss)
    return Layout(
        blocks=sum(_share(parameter, processes if split else 1) for parameter in spread.values()),
        block=max((sum(map(_bytes, part.values())) for part in parts), default=0) if split else 0,
        others=sum(map(_bytes, others)) + sum(map(_bytes, model.buffers())),
        trained=numbers,
        gradients=numbers,
        moments=MOMENTS * numbers,
        summed=numbers if processes > 1 else 0,
        inputs=inputs,
        inside=block,
        outside=2 * outside,
    )


def _frozen(block: nn.Module, own: Any) -> dict[int, nn.Parameter]:
    return {id(parameter): parameter for parameter in block.parameters() if id(parameter) not in own}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _share(parameter: nn.Parameter, processes: int) -> int:
    """The part of the first process: rows are dealt out, and it has the most."""
    rows = len(parameter) if parameter.dim() else 1
    return -(-rows // processes) * (_bytes(parameter) // max(1, rows))


def _kept(model: nn.Module, blocks: list[nn.Module], loss: Callable[[nn.Module], Tensor]) -> tuple[int, int, int]:
    """Bytes of the inputs of all blocks, of what the largest keeps inside, and of what is kept outside of them."""
    calls: dict[nn.Module, tuple[Any, Any]] = {}
    forwards = [block.forward for block in blocks]
    known = {id(parameter) for parameter in model.parameters()}

    def nothing(_: Any) -> Any:
        return None

    def alone(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[block] = (args, kwargs)
            with torch.autograd.graph.saved_tensors_hooks(nothing, nothing):  # it is computed again
                return forward(*args, **kwargs)

        return run

    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = alone(block, forward)
        with _saved(known) as outside:
            loss(model)
    finally:
        for block, before in zip(blocks, own, strict=True):
            del block.forward
            if before is not None:
                block.forward = before
    inputs: dict[int, int] = {}
    for args, kwargs in calls.values():  # what all of them are given is one
        inputs |= {id(each): _bytes(each) for each in (*args, *kwargs.values()) if isinstance(each, Tensor)}
    most = 0
    for block, (args, kwargs) in calls.items():
        with _saved(known) as saved:
            block.forward(*args, **kwargs)
        most = max(most, sum(saved.values()))
    return sum(inputs.values()), most, sum(outside.values())


@contextmanager
def _saved(known: set[int]) -> Any:
    """The bytes of what is kept for a backward pass, by the memory that it is in; parameters are there anyway."""
    found: dict[Any, int] = {}
    kept: list[Tensor] = []  # so that no memory has the name of another

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in known and id(tensor._base) not in known:
            kept.append(tensor)
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
