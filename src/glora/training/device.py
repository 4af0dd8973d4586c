"""What a run computes on: the accelerator it asks for, and the device in words."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from glora.errors import ConfigError

__all__ = ["device_name", "new_accelerator"]


def new_accelerator(precision: str) -> Accelerator:
    """Device, processes and mixed precision (`no`, `bf16`, `fp16`) of a run.

    Raises:
        ConfigError: This device cannot, or another precision is in use in this process.
    """
    try:
        return Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise ConfigError(f"train.precision={precision}: {error}.", remedy="Use precision no or bf16.") from error


def device_name(device: torch.device) -> str:
    """What a number was measured on, in words."""
    if device.type == "cuda":
        products = "" if torch.get_float32_matmul_precision() == "highest" else ", matrix products in TF32"
        return torch.cuda.get_device_name(device) + products
    return f"{device.type}, {torch.get_num_threads()} threads"
