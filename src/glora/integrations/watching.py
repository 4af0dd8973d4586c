"""In a loop of one's own: a process that ends does not leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from glora.errors import StateError
from glora.searchers.link import Link, end_process

__all__ = ["watched"]


@contextmanager
def watched(*, host: str = "127.0.0.1", ending: Callable[[str], None] = end_process) -> Iterator[Link]:
    """Within it a process that ends, is killed or is stopped ends all others within a minute, with a message.

    All processes enter it together, after torch's process group was made.

    Args:
        host: Where the first process can be reached: MASTER_ADDR.
        ending: Called with the message where a process waits and does not end by itself; by default it is written to
            stderr and the process ends with 1.

    Raises:
        StateError: There is no process group.
        RunError: Another process has ended.
    """
    if not torch.distributed.is_initialized():
        raise StateError("There is no process group.", remedy="Call torch.distributed.init_process_group() first.")

    def share(value: Any) -> Any:
        every = [value]
        torch.distributed.broadcast_object_list(every)
        return every[0]

    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    link = Link(rank, size, host=host, share=share, ending=ending)
    with link.telling():
        yield link
    link.leave()
