"""The generators that all code of a process shares, torch's, numpy's and Python's: seeded, kept and put back.

Drop-out and drop-path of a backbone draw from torch's, and a dataset from Python from any of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["fits", "generators", "put_back", "seed_all", "seeded"]


def seed_all(seed: int) -> None:
    """All of them begin anew."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it they go on from the seed; afterwards numpy's and Python's are as they were."""
    before = random.getstate(), np.random.get_state()
    seed_all(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def generators(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where they stand, that of the device too, as tensors and plain data."""
    tensors = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda_rng"] = torch.cuda.get_rng_state(device)
    version, words, spare = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    tensors["numpy_rng"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return tensors, {"python_rng": [version, list(words), spare], "numpy_rng": [name, *rest]}


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these tensors have the state of torch's generator."""
    now, then = torch.get_rng_state(), tensors.get("rng")
    return then is not None and then.dtype == now.dtype and then.shape == now.shape


def put_back(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], device: torch.device) -> None:
    """They stand where `generators` found them; those that were not kept are as they are.

    Raises:
        TypeError, ValueError, KeyError, OverflowError, RuntimeError: It is no state of theirs.
    """
    torch.set_rng_state(tensors["rng"])
    if "cuda_rng" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda_rng"], device)
    if "python_rng" in meta:
        version, words, spare = meta["python_rng"]
        random.setstate((version, tuple(words), spare))
    if "numpy_rng" in meta:
        name, *rest = meta["numpy_rng"]
        np.random.set_state((name, tensors["numpy_rng"].numpy().astype(np.uint32), *rest))
