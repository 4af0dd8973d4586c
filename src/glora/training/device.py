"""What a run computes on: the accelerator it asks for, and the device in words."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import get_int_from_env, parse_flag_from_env

from glora.errors import ConfigError

__all__ = ["check_precision", "device_name", "new_accelerator", "processes"]


def new_accelerator(precision: str) -> Accelerator:
    """Device, processes and mixed precision (`no`, `bf16`, `fp16`) of a run.

    Raises:
        ConfigError: This device cannot, or another precision is in use in this process.
    """
    try:
        return Accelerator(mixed_precision=precision, cpu=_processors())
    except ValueError as error:
        raise ConfigError(f"train.precision={precision}: {error}.", remedy="Use precision no or bf16.") from error


def processes() -> PartialState:
    """The processes of a run and this one's device, as its accelerator finds them, before its precision is known."""
    return PartialState(cpu=_processors())


def _processors() -> bool:
    """Whether a run computes on processors: because it is told to, or several processes have nothing else."""
    launched = get_int_from_env(["WORLD_SIZE"], 1) > 1
    return parse_flag_from_env("ACCELERATE_USE_CPU") or (launched and not torch.accelerator.is_available())


def check_precision(accelerator: Accelerator) -> None:
    """Raises ConfigError where training would be in another precision than is asked for, without a word."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise ConfigError(
            "train.precision=fp16: a processor would train in float32.", remedy="Use precision no, or bf16, or a GPU."
        )


def device_name(device: torch.device) -> str:
    """What a number was measured on, in words."""
    if device.type == "cuda":
        products = "" if torch.get_float32_matmul_precision() == "highest" else ", matrix products in TF32"
        return torch.cuda.get_device_name(device) + products
    return f"{device.type}, {torch.get_num_threads()} threads"
