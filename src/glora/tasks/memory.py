"""Running out of memory, in one sentence and with what to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glora.errors import StateError

__all__ = ["memory_told"]

SIGNS = ("out of memory", "can't allocate memory", "not enough memory")  # of CUDA and MPS, of the CPU's allocators


@contextmanager
def memory_told(doing: str, *, remedy: str) -> Iterator[None]:
    """Turns what torch says when there is no memory left into one StateError; other errors pass.

    Args:
        doing: `a training step of 32 examples`.
        remedy: What to try.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
        text = str(error)
        if isinstance(error, StateError) or not (isinstance(error, MemoryError) or any(s in text for s in SIGNS)):
            raise
        lines = [line.strip() for line in text.splitlines() if any(sign in line for sign in SIGNS)]
        said = f" ({lines[0][-200:]})" if lines else ""
        raise StateError(f"Out of memory in {doing}.{said}", remedy=remedy) from error
