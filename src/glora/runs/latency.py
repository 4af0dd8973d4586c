"""How long a model's forward takes beside another's, measured interleaved."""

from __future__ import annotations

import statistics
import time

import torch
from accelerate.utils import send_to_device
from torch import nn

from glora.tasks.objective import Batch, Objective

__all__ = ["latency_ratio"]

LEAST = 5  # pairs


@torch.no_grad()
def latency_ratio(
    model: nn.Module,
    reference: nn.Module,
    batch: Batch,
    objective: Objective,
    device: torch.device,
    *,
    rounds: int = 31,
    seconds: float = 30.0,
) -> dict[str, float]:
    """The model's forward time over the reference's: medians of interleaved runs.

    Args:
        model: What is measured.
        reference: What it is compared with, on the same device.
        batch: One batch of examples.
        objective: How the models are called.
        device: Where they are.
        rounds: Timed pairs; within a pair the order alternates.
        seconds: After this long no further pair is begun once there are `LEAST`, which is enough where each takes long.

    Returns:
        `seconds` and `reference_seconds` (medians per batch), `ratio` (median of the pairs' ratios), and
        `ratio_low`, `ratio_high` (their quartiles).
    """
    model.eval(), reference.eval()
    batch = send_to_device(batch, device)

    def timed(each: nn.Module) -> float:
        start = time.perf_counter()
        objective.forward(each, batch, train=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    start = time.perf_counter()
    for _ in range(3):
        timed(reference), timed(model)
    pairs: list[tuple[float, float]] = []
    for k in range(rounds):
        if len(pairs) >= LEAST and time.perf_counter() - start > seconds:
            break
        first, second = (model, reference) if k % 2 else (reference, model)
        a, b = timed(first), timed(second)
        pairs.append((a, b) if k % 2 else (b, a))
    low, middle, high = statistics.quantiles([mine / other for mine, other in pairs], n=4)
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"seconds": mine, "reference_seconds": other, "ratio": middle, "ratio_low": low, "ratio_high": high}
