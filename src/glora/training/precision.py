"""Whether bfloat16 is worth having: units for it in the device, and a training step timed in both precisions."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from accelerate.state import is_initialized
from accelerate.utils import broadcast_object_list, send_to_device

from glora.config import TrainSettings
from glora.methods.method import Tuned
from glora.tasks.batching import lengths_of, passes
from glora.tasks.objective import Examples, Objective
from glora.training.device import processes

__all__ = ["FEW", "Chosen", "Step", "bf16_units", "chosen_precision", "device_of", "precision_in_use", "slowdown"]

GAIN = 0.9  # bf16 must take at most this share of float32's time: a timing has noise
TIMES = 3  # steps of each precision that are timed, after one that is not
SHORT = 1.0  # seconds that a second look may take
FEW = 2  # examples of a step that shows how slow bf16 is without units
AMPERE = (8, 0)  # the first CUDA capability with bf16 units
UNITS = ("avx512_bf16", "amx_bf16", "avx10_2", "arm_bf16", "bf16")  # what processors call theirs


class Chosen(NamedTuple):
    """A precision that was chosen.

    Attributes:
        precision: `no` or `bf16`.
        why: In a sentence.
    """

    precision: str
    why: str


def device_of() -> torch.device:
    """The device that this process's accelerator has, or will have."""
    return cast(torch.device, processes().device)


def precision_in_use() -> str | None:
    """What this process computes in already, and cannot change any more; None where that is open."""
    from accelerate.state import AcceleratorState

    return str(AcceleratorState().mixed_precision) if is_initialized() else None


def bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 numbers in hardware; False where that is not known."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= AMPERE
    if device.type != "cpu":
        return False
    return any(cpu_flags().get(name) for name in UNITS)


def cpu_flags() -> Mapping[str, Any]:
    """What the processor can do, as torch tells it; empty where it does not."""
    found: Callable[[], Mapping[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    return {} if found is None else found()


class Step:
    """One training step, forward and backward, as often as it is asked for; nothing that is trained changes.

    Args:
        tuned: The model made trainable, on the device.
        examples: The training examples, of which the first are taken.
        objective: What is learned.
        settings: How many make a forward pass.
        device: Where it runs.
    """

    def __init__(
        self, tuned: Tuned, examples: Examples, objective: Objective, settings: TrainSettings, device: torch.device
    ) -> None:
        self.tuned = tuned
        self.examples = examples
        self.objective = objective
        self.settings = settings
        self.device = device

    def seconds(self, precision: str, *, most: int | None = None) -> float:
        """How long it takes.

        Args:
            precision: `no` or `bf16`.
            most: Fewer examples than a forward pass of the training has.
        """
        settings = self.settings
        size = min(settings.batch_size, len(self.examples), most or settings.batch_size)
        cut = passes(range(size), lengths_of(self.examples), most=settings.micro_batch, tokens=settings.batch_tokens)
        batch = send_to_device(self.examples.batch(cut[0]), self.device)
        model = self.tuned.model
        buffers = [value.clone() for value in model.buffers()]
        training, devices = model.training, [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # drop-out of the backbone draws from it
            model.train()
            rows = [place for place in range(len(cut[0])) for _ in range(batch.rows)]
            self.tuned.before_step(random.Random(0), rows, len(cut[0]), 0.5)
            self._wait()
            start = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = self.objective.forward(model, batch, train=True)
            self.objective.training_losses(output, batch).mean().backward()  # type: ignore[no-untyped-call]
            self._wait()
            taken = time.perf_counter() - start
            model.train(training)
            if self.tuned.space is not None:
                self.tuned.activate(self.tuned.space.largest)  # as it came
        self._restore(buffers)
        return taken

    def _restore(self, buffers: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for value, before in zip(self.tuned.model.buffers(), buffers, strict=True):
                value.copy_(before)
        for parameter in self.tuned.parameters():
            parameter.grad = None

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def chosen_precision(seconds: Callable[[str], float], device: torch.device) -> Chosen:
    """bf16 where the device has units for it and a training step is clearly quicker with them; else float32.

    All processes choose what the main process does.

    Args:
        seconds: How long a step takes in a precision, which is timed only where there are units.
        device: Where it runs.
    """
    if (used := precision_in_use()) is not None:
        return Chosen(used, f"Precision: {_named(used)}, which this process computes in already.")
    if not bf16_units(device):
        return Chosen("no", f"Precision: float32; this {device.type} has no units for bfloat16.")
    for precision in ("no", "bf16"):  # the first step of each loads what the next ones have
        seconds(precision)
    best = {"no": math.inf, "bf16": math.inf}
    for _ in range(TIMES):
        best = {precision: min(known, seconds(precision)) for precision, known in best.items()}
    share = best["bf16"] / best["no"]
    chosen = "bf16" if share <= GAIN else "no"
    told = f"Precision: {_named(chosen)}; a step in bfloat16 takes {share:.2f} times as long as in float32."
    return cast(Chosen, broadcast_object_list([Chosen(chosen, told)])[0])


def _named(precision: str) -> str:
    return {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]


def slowdown(seconds: Callable[[str], float]) -> str:
    """What is to be told of bf16 on a processor without units for it: how much slower it is.

    Args:
        seconds: How long a step of a few examples takes in a precision.
    """
    seconds("no")
    slow = seconds("bf16")
    if slow < SHORT:  # the first one prepares what the next have
        slow = min(slow, seconds("bf16"))
    times = slow / min(seconds("no") for _ in range(TIMES))
    return (
        f"The processor has no units for bfloat16: a training step takes {times:.3g} times as long as in float32. "
        "Take --precision no, or auto."
    )
