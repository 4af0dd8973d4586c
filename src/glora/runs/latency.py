"""How long a model's forward takes beside another's, measured interleaved."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

__all__ = ["latency_ratio"]

LEAST = 5  # pairs


@torch.no_grad()
def latency_ratio(
    model: nn.Module, reference: nn.Module, x: Tensor, *, rounds: int = 31, seconds: float = 30.0
) -> dict[str, float]:
    """The model's forward time over the reference's: medians of interleaved runs.

    Args:
        model: What is measured.
        reference: What it is compared with, on the same device.
        x: One batch of inputs.
        rounds: Timed pairs; within a pair the order alternates.
        seconds: After this long no further pair is begun once there are `LEAST`, which is enough where each takes long.

    Returns:
        `seconds` and `reference_seconds` (medians per batch), `ratio` (median of the pairs' ratios), and
        `ratio_low`, `ratio_high` (their quartiles).
    """
    model.eval(), reference.eval()
    start = time.perf_counter()
    for _ in range(3):
        _timed(reference, x), _timed(model, x)
    pairs: list[tuple[float, float]] = []
    for k in range(rounds):
        if len(pairs) >= LEAST and time.perf_counter() - start > seconds:
            break
        first, second = (model, reference) if k % 2 else (reference, model)
        a, b = _timed(first, x), _timed(second, x)
        pairs.append((a, b) if k % 2 else (b, a))
    low, middle, high = statistics.quantiles([mine / other for mine, other in pairs], n=4)
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"seconds": mine, "reference_seconds": other, "ratio": middle, "ratio_low": low, "ratio_high": high}


def _timed(model: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
