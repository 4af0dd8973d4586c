"""The only training loop, and `evaluate`: they know Tuned and images, nothing of methods."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from glora.config import TrainSettings
from glora.data import ImageSet
from glora.errors import StateError
from glora.methods import Tuned
from glora.pace import Pace, Taken
from glora.support import Support

__all__ = ["Evaluation", "Progress", "Trainer", "evaluate", "predictions"]

SYNC_EVERY = 0.5  # seconds between looks at the loss, which make a GPU wait


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training run is.

    Attributes:
        step: Steps done, of `steps`. epoch: Epochs begun, of `epochs`.
        loss: Mean training loss of this epoch. accuracy: Fraction right on the training images of this epoch.
        lr: Learning rate of the last step.
        images_per_second: Over this process's run. seconds_left: Estimated.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    lr: float
    images_per_second: float
    seconds_left: float


class Trainer:
    """Trains a Tuned on images: AdamW, cross-entropy, a cosine learning rate after a linear warm-up, PACE if asked.

    Every process draws the same genotypes and takes its share of each batch; gradients are averaged over the
    processes, those of numbers that no process played stay absent.

    Args:
        tuned: The model made trainable, on the accelerator's device.
        images: The training images.
        settings: Epochs, batch size, weight decay, warm-up.
        lr: Learning rate at the top.
        seed: Decides batches and subnets.
        accelerator: Device, precision and processes.

    Attributes:
        image_steps: Forward-and-backward passes of an image so far, over all processes.

    Raises:
        ConfigError: PACE is asked for, and nothing can be perturbed.
    """

    def __init__(
        self,
        tuned: Tuned,
        images: ImageSet,
        settings: TrainSettings,
        *,
        lr: float,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.tuned = tuned
        self.images = images
        self.settings = settings
        self.lr = lr
        self.seed = seed
        self.accelerator = accelerator
        self.epoch = 0
        self.seconds = 0.0
        self.image_steps = 0
        self.parameters = list(tuned.parameters())
        self.pace = Pace(tuned, settings, images=len(images), seed=seed, accelerator=accelerator)
        self.optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(self.parameters, lr=lr, weight_decay=settings.weight_decay)
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the images."""
        return math.ceil(len(self.images) / self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch * self.settings.epochs

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0: linear up over the warm-up, then half a cosine down to 0."""
        warmup = round(self.settings.warmup * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> Iterator[Progress]:
        """Trains the epochs that are left; yields after each, when the state may be saved.

        Raises:
            StateError: The loss is NaN or infinite.
        """
        while self.epoch < self.settings.epochs:
            start = time.perf_counter() - self.seconds  # as if the epochs before had just run, and nothing between
            self.tuned.model.train()
            progress = None
            for progress in self._epoch(start):
                if on_progress is not None:
                    on_progress(progress)
            self.epoch += 1
            self.seconds = time.perf_counter() - start
            assert progress is not None
            yield progress

    def _epoch(self, start: float) -> Iterator[Progress]:
        n, size = len(self.images), self.settings.batch_size
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
        rng = random.Random(f"subnets {self.seed} {self.epoch}")
        loss_sum = torch.zeros((), device=self.accelerator.device)
        right = torch.zeros((), device=self.accelerator.device)
        told, seen, first = 0.0, 0, self.epoch * self.steps_per_epoch
        self.pace.begin(self.epoch)
        for k, whole in enumerate(order[i : i + size] for i in range(0, n, size)):
            batch = whole[: self.pace.images(first + k, len(whole))]
            loss, hits = self._step(batch, first + k, rng)
            loss_sum, right, seen = loss_sum + loss * len(batch), right + hits, seen + len(batch)
            if time.perf_counter() - told < SYNC_EVERY and k + 1 < self.steps_per_epoch:
                continue
            told = time.perf_counter()
            mean = loss_sum.item() / seen
            if not math.isfinite(mean):
                raise StateError(
                    f"The training loss is {mean} in epoch {self.epoch + 1}.",
                    remedy=f"Train with a lower learning rate than {self.lr:g}, or in float32.",
                )
            done, epochs = self.epoch * n + min(n, (k + 1) * size), self.settings.epochs
            speed = done / max(1e-9, time.perf_counter() - start)
            yield Progress(
                step=first + k + 1,
                steps=self.steps,
                epoch=self.epoch + 1,
                epochs=epochs,
                loss=mean,
                accuracy=right.item() / seen,
                lr=self.lr_at(first + k),
                images_per_second=speed,
                seconds_left=(epochs * n - done) / speed,
            )

    def _step(self, batch: Tensor, step: int, rng: random.Random) -> tuple[Tensor, Tensor]:
        """One optimizer step on the images of these indices; the batch's mean loss and number right."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(step)
        places = range(len(batch))[self.accelerator.process_index :: self.accelerator.num_processes]
        share = len(places) / len(batch)
        if not share:  # fewer images than processes: this one's gradients are zeros
            places = range(1)
        self.tuned.before_step(rng, places, len(batch), step / self.steps)
        x, y = self.images.batch(batch[list(places)].tolist())
        x, y = x.to(self.accelerator.device), y.to(self.accelerator.device)
        with self.pace.around():
            logits, penalty = self.pace.run(lambda: self._logits(x), Taken(batch, places, step, share > 0))
            loss = (F.cross_entropy(logits, y) + penalty) * share
            self.accelerator.backward(loss)
        self.image_steps += len(batch) * self.pace.passes(step)
        hits = (logits.argmax(-1) == y).sum() * (share > 0)
        self._sum_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        told = self.accelerator.reduce(torch.stack([loss.detach(), hits.float()]), "sum")
        return told[0], told[1]

    def _logits(self, x: Tensor) -> Tensor:
        with self.accelerator.autocast():
            logits: Tensor = self.tuned.model(x)
        return logits.float()

    def _sum_gradients(self) -> None:
        """Sums the gradients of this step over the processes; what no process played stays without one."""
        if self.accelerator.num_processes == 1:
            return
        mine = torch.tensor([float(p.grad is not None) for p in self.parameters], device=self.accelerator.device)
        gradients: list[Tensor] = []
        for parameter, played in zip(self.parameters, self.accelerator.reduce(mine, "sum").tolist(), strict=True):
            if played:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        flat = self.accelerator.reduce(torch.cat([g.reshape(-1) for g in gradients]), "sum")
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a later process needs to go on after this epoch, as tensors (valid until then) and plain data."""
        tensors: dict[str, Tensor] = {f"buffer.{name}": value for name, value in self.tuned.model.named_buffers()}
        optimizer = self.optimizer.state_dict()["state"]
        for index, parameter in enumerate(self.parameters):
            tensors[f"{index}.value"] = parameter.detach()
            tensors |= {f"{index}.{name}": value for name, value in optimizer.get(index, {}).items()}
        if self.pace.logits is not None:
            tensors["pace.logits"] = self.pace.logits
        scaler = self.accelerator.scaler
        return tensors, {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "image_steps": self.image_steps,
            "scales": self._scales(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _scales(self) -> dict[str, dict[str, float]]:
        modules = self.tuned.model.named_modules()
        return {name: dict(part.scales) for name, part in modules if isinstance(part, Support) and part.scales}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Takes over what `state` gave; the run goes on as if it had not stopped.

        Raises:
            StateError: The support tensors were multiplied by other fixed scales; nothing is changed then.
        """
        if meta.get("scales", {}) != self._scales():
            raise StateError(
                "The unfinished training is of a version of glora with other fixed scales of the support tensors: its "
                "numbers would play another function now.",
                remedy="Finish it with that version, or start anew with another --out.",
            )
        optimizer = self.optimizer.state_dict()
        with torch.no_grad():
            for name, buffer in self.tuned.model.named_buffers():
                buffer.copy_(tensors[f"buffer.{name}"])
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"{index}.value"])
                names = ("step", "exp_avg", "exp_avg_sq")
                if f"{index}.step" in tensors:
                    optimizer["state"][index] = {name: tensors[f"{index}.{name}"].clone() for name in names}
        self.optimizer.load_state_dict(optimizer)
        if "pace.logits" in tensors:
            self.pace.logits = tensors["pace.logits"].to(self.accelerator.device, copy=True)
        if self.accelerator.scaler is not None and meta["scaler"]:
            self.accelerator.scaler.load_state_dict(meta["scaler"])
        self.epoch, self.seconds = int(meta["epoch"]), float(meta["seconds"])
        self.image_steps = int(meta.get("image_steps", self.epoch * len(self.images)))  # older versions do not tell


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model does on images, example by example.

    Attributes:
        losses: Cross-entropy per example, `(n,)`.
        right: Whether the top prediction is right, `(n,)` bool; a mean over several models has fractions.
    """

    losses: Tensor
    right: Tensor

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.losses.double().mean().item()

    @property
    def loss_standard_error(self) -> float:
        """Standard error of the mean cross-entropy."""
        n = len(self.losses)
        return self.losses.double().std().item() / math.sqrt(n) if n > 1 else 0.0

    @property
    def accuracy(self) -> float:
        """Fraction right."""
        return self.right.double().mean().item()

    @property
    def accuracy_standard_error(self) -> float:
        """Standard error of the accuracy; of one model the binomial sqrt(p (1 - p) / n)."""
        return self.right.double().std(correction=0).item() / math.sqrt(len(self.right))

    def metrics(self, split: str) -> dict[str, float | None]:
        """The numbers of a Result: `test_accuracy`, `test_loss`, their standard errors, `test_images`."""
        return {
            f"{split}_accuracy": self.accuracy,
            f"{split}_accuracy_standard_error": self.accuracy_standard_error,
            f"{split}_loss": self.loss,
            f"{split}_loss_standard_error": self.loss_standard_error,
            f"{split}_images": float(len(self.losses)),
        }


@torch.no_grad()
def predictions(
    model: nn.Module,
    images: ImageSet,
    *,
    accelerator: Accelerator,
    batch_size: int,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's logits `(b, classes)`, in float32, and the labels `(b,)`, batch by batch; it is left in eval mode.

    Args:
        model: Images `(b, 3, h, w)` to logits `(b, classes)`.
        images: Prepared images.
        accelerator: Device and precision; every process evaluates all images, without waiting for another.
        batch_size: Images per forward pass.
        indices: Which images, in which order; None for all.
    """
    model.eval()
    chosen = range(len(images)) if indices is None else indices
    for first in range(0, len(chosen), batch_size):
        x, y = images.batch(chosen[first : first + batch_size])
        with accelerator.autocast():
            logits = model(x.to(accelerator.device)).float()
        yield logits, y.to(accelerator.device)


@torch.no_grad()
def evaluate(model: nn.Module, images: ImageSet, **how: Any) -> Evaluation:
    """The model's losses and hits on the images, in their order; the arguments are those of `predictions`."""
    found = [
        torch.stack([F.cross_entropy(logits, y, reduction="none"), (logits.argmax(-1) == y).float()])
        for logits, y in predictions(model, images, **how)
    ]
    losses, right = torch.cat(found, dim=1).cpu()
    return Evaluation(losses, right > 0)
