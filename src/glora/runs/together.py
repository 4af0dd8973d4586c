"""The processes that a launcher has started: one run together, or each a run of its own for one benchmark."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from glora.searchers.link import Link, end_process
from glora.training.device import processes

__all__ = ["apart", "joined", "launched"]

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # what a launcher sets for torch
PLACE = ("MASTER_ADDR", "MASTER_PORT")


def joined(ending: Callable[[str], None] = end_process) -> Link:
    """The link of the processes of a run; of one process a link with nobody.

    Args:
        ending: Called, in another thread, with what to say where this process has to end and does not by itself.
    """
    state = processes()

    def share(value: Any) -> Any:
        return broadcast_object_list([value])[0]

    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    return Link(state.process_index, state.num_processes, host=host, share=share, ending=ending)


def launched() -> str:
    """What is to be told of how this process was started: empty where it does what was asked."""
    asked = "MASTER_PORT" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if asked and processes().num_processes == 1 and not any(name in os.environ for name in LAUNCHERS):
        return (
            "This is one process: `accelerate launch --cpu` starts one, whatever --num_processes says. Several on "
            "processors: torchrun --nproc-per-node 2 -m glora ..."
        )
    return ""


@contextmanager
def apart(ending: Callable[[str], None] = end_process) -> Iterator[Link]:
    """The link of processes that work on one thing each; within it every one of them is a run of its own.

    Args:
        ending: As in `joined`.
    """
    rank, size = (int(os.environ.get(name, least)) for name, least in (("RANK", 0), ("WORLD_SIZE", 1)))
    if size == 1:
        yield Link(0, 1, host="", share=lambda value: value, ending=ending)
        return
    torch.distributed.init_process_group("gloo")

    def share(value: Any) -> Any:
        every = [value]
        torch.distributed.broadcast_object_list(every)
        return every[0]

    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    link = Link(rank, size, host=host, share=share, ending=ending)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    kept = {name: os.environ.pop(name) for name in (*LAUNCHERS, *PLACE) if name in os.environ}
    if torch.cuda.is_available():
        torch.cuda.set_device(int(kept.get("LOCAL_RANK", 0)))
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", f"cuda:{kept.get('LOCAL_RANK', 0)}")
    try:
        with link.telling():
            yield link
        link.leave()
    finally:
        os.environ.update(kept)
