"""The only training loop: it knows Tuned, examples and their objective, nothing of methods."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from glora.config import TrainSettings
from glora.errors import StateError, listed
from glora.methods.method import Tuned
from glora.tasks.balance import Balance
from glora.tasks.batching import grouped, lengths_of, passes, weights_of
from glora.tasks.memory import memory_told
from glora.tasks.objective import Batch, Examples, Objective, Varied
from glora.training.alone import example_alone
from glora.training.average import Average
from glora.training.best import Best
from glora.training.optimizers import OPTIMIZERS
from glora.training.pace import Pace, StepExamples
from glora.training.schedules import SCHEDULES, Place

__all__ = ["Progress", "Trainer", "collapsed"]

SYNC_EVERY = 0.5  # seconds between looks at the loss, which make a GPU wait
LEARNED, LOST = 0.1, 0.5  # a loss this share from that of chance is clearly another; this share of a gain may go
SLOWER = 3  # so many times lower is the learning rate after a collapse
MOVING = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # what an optimizer keeps of a parameter
SURE = 20  # steps, or two epochs, are judged together: one epoch of few examples may be bad by chance


def collapsed(losses: Sequence[float], last: int, chance: float) -> bool:
    """Whether each of the last epochs has lost half of what the best one before them had learned.

    Where that had learned nothing: whether each is worse than it was, and clearly worse than chance.

    Args:
        losses: Mean training loss of each epoch.
        last: How many epochs must have.
        chance: The loss of knowing the targets' distribution and nothing else.
    """
    if len(losses) <= last:
        return False
    best = min(losses[:-last])
    learned = chance - best
    bad = chance - (1 - LOST) * learned if learned > LEARNED * chance else max(best, (1 + LEARNED) * chance)
    return min(losses[-last:]) > bad


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training run is.

    Attributes:
        step: Steps done, of `steps`. epoch: Epochs begun, of `epochs`.
        loss: Mean training loss of this epoch.
        metric: The objective's first metric on this epoch's training examples; None where it is no mean over examples,
            or these are mixed with each other.
        metric_name: What it is called.
        lr: Learning rate of the last step.
        examples_per_second: Over this process's run. seconds_left: Estimated.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    metric: float | None
    metric_name: str
    lr: float
    examples_per_second: float
    seconds_left: float


class _Taken(NamedTuple):
    """A step that was taken: its number, its examples, the generator before it, and its sums."""

    step: int
    examples: int
    before: tuple[Any, ...]
    sums: Tensor


class Trainer:
    """Trains a Tuned on examples: with the optimizer and the schedule of the settings, PACE if asked.

    A training that loses what it had learned begins anew with a third of the learning rate: from there on it is one
    of the epochs that are left, from the numbers that `tuned` came with.

    With `average` the parameters are in the end their moving mean over the last steps. With `val_loss` the training
    ends in the state that was best on val, and once there was none better for `patience` epochs.

    Every process draws the same genotypes and takes its share of each batch; gradients are averaged over the
    processes, those of numbers that no process played stay absent.

    Args:
        tuned: The model made trainable, on the accelerator's device.
        examples: The training examples; those that are `Varied` look another way in every epoch.
        objective: What is learned.
        settings: Epochs, batch size, optimizer, weight decay, schedule.
        lr: Learning rate at the top.
        seed: Decides batches and subnets.
        accelerator: Device, precision and processes.
        val_loss: What the model does on val as it stands, asked after every epoch; None: val has no say.
        balance: How much the examples of a class count.

    Attributes:
        lr: Learning rate at the top, as it is now.
        epoch: Epochs done. began: How many of them were in vain, before it began anew.
        taken: Steps done of the epoch under way.
        example_steps: Forward-and-backward passes of an example so far, over all processes.
        chance: The loss of knowing the targets' distribution and nothing else; None: unknown, no collapse is told.
        warning: What has become of the training in the last epoch, if that is worth a line; else empty.

    Raises:
        ConfigError: PACE is asked for, and nothing can be perturbed.
        DataError: Classes are to be balanced, and there are none.
    """

    def __init__(
        self,
        tuned: Tuned,
        examples: Examples,
        objective: Objective,
        settings: TrainSettings,
        *,
        lr: float,
        seed: int,
        accelerator: Accelerator,
        val_loss: Callable[[], float] | None = None,
        balance: Balance | None = None,
    ) -> None:
        self.tuned = tuned
        self.val_loss = val_loss
        self.best = Best(settings.patience)
        self.examples = examples
        self.objective = objective
        self.settings = settings
        self.lr = lr
        self.seed = seed
        self.accelerator = accelerator
        self.epoch = self.began = self.taken = 0
        self._rng, self._sums = random.Random(), torch.zeros(4)  # of the epoch under way
        self.losses: list[float] = []  # mean loss of the epochs since it began, without PACE's part
        self.warning = ""
        self.seconds = self._start = 0.0
        self.example_steps = 0
        self.parameters = list(tuned.parameters())
        self.lengths = lengths_of(examples)
        self._count(balance or Balance())
        first = objective.metrics[0]
        mixed = isinstance(examples, Varied) and examples.mixes
        self.metric = first if first.per_example and not mixed else None
        self._first = [value.detach().to("cpu", copy=True) for value in self._values()] if settings.restart else []
        self.pace = Pace(tuned, objective, settings, examples=len(examples), seed=seed, accelerator=accelerator)
        self.average = Average(self.parameters, settings.average)
        optimizer = OPTIMIZERS[settings.optimizer](self.parameters, lr, settings.weight_decay)
        self.optimizer = accelerator.prepare_optimizer(optimizer)

    def _count(self, balance: Balance) -> None:
        """How much each example counts in the loss, how often each is drawn, and what guessing loses."""
        counting = balance.counting(self.objective, self.examples)
        self.counting = counting if balance.kind == "weights" else None
        self.drawing = counting if balance.kind == "sampling" else None
        self.uniform = weights_of(self.examples) is None and self.counting is None
        self.chance = self.objective.chance(self.examples) if counting is None else balance.chance(self.examples)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the examples."""
        return math.ceil(len(self.examples) / self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of the training since it began."""
        return self.steps_per_epoch * (self.settings.longest - self.began)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step since it began."""
        epochs = self.settings.longest - self.began
        at = Place(step, self.steps_per_epoch, epochs, self.settings.warmup)
        return SCHEDULES[self.settings.schedule](self.lr, at)

    def run(
        self, on_progress: Callable[[Progress], None] | None = None, due: Callable[[], bool] | None = None
    ) -> Iterator[Progress]:
        """Trains what is left; yields after every epoch, and after every step where it is due: the state may be saved.

        Args:
            on_progress: Told where it is, a few times a second at most.
            due: Asked after every step, on every process; nothing that is computed depends on what it says.

        Raises:
            StateError: The loss is NaN or infinite.
        """
        while not self.over:
            self._go_on()
            self.tuned.model.train()
            yield from self._epoch(on_progress, due)
            progress = self._progress()
            self._stop_clock()
            self._close()
            if self.over:
                self._end()
            self._stop_clock()
            yield progress

    def _go_on(self) -> None:
        self._start = time.perf_counter() - self.seconds  # as if all before had just run, and nothing between

    def _stop_clock(self) -> None:
        self.seconds = time.perf_counter() - self._start

    @property
    def over(self) -> bool:
        """Whether no epoch is left, or val has got no better for long enough."""
        stops = self.val_loss is not None and self.best.over(self.epoch, self.began)
        return stops or self.epoch >= self.settings.longest

    def _close(self) -> None:
        """All steps of an epoch are done: the training is judged, by itself and by val.

        Should val's part be cut short, the epoch is as it was before: it can be closed again.
        """
        self.losses.append(self._means()[2])
        self.epoch += 1
        self._judge()
        try:
            self._look()
        except BaseException:
            self.epoch -= 1
            del self.losses[-1]
            raise
        self.taken = 0

    def _look(self) -> None:
        """Keeps the state where it is the best on val so far: that of the moving mean, where there is one."""
        if self.val_loss is None or self.began == self.epoch:
            return
        self.average.swap()
        try:
            self.best.see(self.epoch, self.val_loss(), self._values())
        finally:
            self.average.swap()

    def _end(self) -> None:
        """The numbers are those that the training ends in."""
        self.average.swap()
        if self.val_loss is not None:
            self.best.put(self._values())

    def _judge(self) -> None:
        """Begins anew where the last epochs have lost what was learned; tells of that, or that nothing was learned."""
        last, chance = max(2, math.ceil(SURE / self.steps_per_epoch)), self.chance
        left, now, self.warning = self.settings.longest - self.epoch, self.losses[-1], ""
        if chance is None:
            return
        if self.settings.restart and collapsed(self.losses, last, chance):
            self.warning = (
                f"Training has collapsed by epoch {self.epoch}: the loss rose from {min(self.losses):.2f} to "
                f"{now:.2f}, where guessing has {chance:.2f}, at a learning rate of {self.lr:.2g}."
            )
            if left:
                self._begin_anew()
                self.warning += f" It begins anew at {self.lr:.2g}, for the epochs that are left: {left}."
            else:
                self.warning += " No epoch is left: train with a lower one."
        elif not left and now > (1 - LEARNED) * chance:
            self.warning = (
                f"Training has learned next to nothing: its loss ends at {now:.2f}, and guessing has {chance:.2f}. "
                f"Try more epochs, or another learning rate than {self.lr:.2g}."
            )

    def _begin_anew(self) -> None:
        self.lr, self.began, self.losses, self.pace.outputs = self.lr / SLOWER, self.epoch, [], None
        self.optimizer.state.clear()
        self.average.forget()
        with torch.no_grad():
            for value, first in zip(self._values(), self._first, strict=True):
                value.copy_(first)

    def _values(self) -> list[Tensor]:
        """All that training changes."""
        return [*self.parameters, *self.tuned.model.buffers()]

    def _epoch(self, told: Callable[[Progress], None] | None, due: Callable[[], bool] | None) -> Iterator[Progress]:
        """The steps that are left of an epoch; yields where it is due."""
        size, epoch = self.settings.batch_size, self.epoch - self.began
        order, first = self._order(epoch), epoch * self.steps_per_epoch
        if not self.taken:
            self._rng = random.Random(f"subnets {self.seed} {epoch}")
            self._sums = torch.zeros(4, device=self.accelerator.device)
            self.pace.begin(epoch)
        shown = 0.0
        unseen: list[_Taken] = []  # steps since the last look at the loss
        while self.taken < self.steps_per_epoch:
            k = self.taken
            whole = order[k * size : (k + 1) * size]
            batch = whole[: self.pace.examples(first + k, len(whole))]
            before = self._rng.getstate()
            with memory_told(f"a training step of {len(batch)} {self.examples.unit}", remedy=self._smaller()):
                unseen.append(_Taken(first + k, len(batch), before, self._step(batch, first + k, self._rng)))
            self._sums = self._sums + unseen[-1].sums
            self.taken += 1
            pauses, last = due is not None and due(), self.taken == self.steps_per_epoch
            if time.perf_counter() - shown < SYNC_EVERY and not pauses and not last:
                continue
            shown = time.perf_counter()
            self._check_finite(unseen, numbers=pauses or last)
            unseen = unseen[-1:]
            progress = self._progress()
            if told is not None:
                told(progress)
            if pauses:
                self._stop_clock()
                yield progress
                self._go_on()

    def _check_finite(self, unseen: Sequence[_Taken], *, numbers: bool) -> None:
        """Raises StateError unless the loss is finite; `numbers`: and all that is trained, of a last step too."""
        if not math.isfinite(self._means()[0]):
            raise self._diverged("The training loss is", unseen)
        if numbers and not all(bool(value.isfinite().all()) for value in self.parameters):
            raise self._diverged("A trained number becomes", unseen)

    def _means(self) -> list[float]:
        """Of the epoch under way: mean loss, first metric, and loss without PACE's part."""
        *totals, seen = self._sums.tolist()
        return [total / seen for total in totals]

    def _diverged(self, what: str, unseen: Sequence[_Taken]) -> StateError:
        """What is said where numbers are not finite: in which step, at which learning rate, and what was played."""
        totals = [taken.sums[0].item() for taken in unseen]
        place = next((place for place, total in enumerate(totals) if not math.isfinite(total)), len(totals) - 1)
        taken, rng = unseen[place], random.Random()
        rng.setstate(taken.before)
        self.tuned.before_step(rng, range(taken.examples), taken.examples, taken.step / self.steps)
        played = [text if len(text := repr(each)) < 300 else f"{text[:300]}..." for each in self.tuned.playing]
        number = totals[place] if not math.isfinite(totals[place]) else "infinite or NaN"
        return StateError(
            f"{what} {number} in epoch {self.epoch + 1}, step {taken.step + 1} of {self.steps}, at a learning rate of "
            f"{self.lr_at(taken.step):.3g}.{f' In play: {listed(played, n=1)}.' if played else ''}",
            allowed="What was saved before is as it was.",
            remedy=f"Train with a lower learning rate than {self.lr:g}, or in float32, in another folder.",
        )

    def _smaller(self) -> str:
        """What to try where a training step does not fit into memory."""
        size, most = self.settings.batch_size, self.settings.micro_batch
        passes = min(size, most or size)
        if passes == 1:
            return "Take a smaller model or smaller inputs, or train.precision=bf16."
        said = f"train.batch_size is {size}" + (f", train.micro_batch {most}" if most else "")
        return (
            f"{said}: begin anew with train.micro_batch={passes // 2}, which makes the same steps with less memory, or "
            "with train.precision=bf16."
        )

    def _progress(self) -> Progress:
        n, epochs, k = len(self.examples), self.settings.longest, self.taken
        loss, metric, _ = self._means()
        done = self.epoch * n + min(n, k * self.settings.batch_size)
        speed = done / max(1e-9, time.perf_counter() - self._start)
        return Progress(
            step=self.epoch * self.steps_per_epoch + k,
            steps=epochs * self.steps_per_epoch,
            epoch=self.epoch + 1,
            epochs=epochs,
            loss=loss,
            metric=None if self.metric is None else metric,
            metric_name="" if self.metric is None else self.metric.name,
            lr=self.lr_at((self.epoch - self.began) * self.steps_per_epoch + k - 1),
            examples_per_second=speed,
            seconds_left=(epochs * n - done) / speed,
        )

    def _order(self, epoch: int) -> Tensor:
        """The examples in the order of an epoch, `(n,)`; those that have lengths in batches of about the same.

        Each comes once; where classes are balanced by sampling, as often as it was drawn.
        """
        n, seed = len(self.examples), (self.seed * 1_000_003 + epoch) % 2**63
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(n, generator=generator)
        if self.drawing is not None:
            order = torch.multinomial(self.drawing, n, replacement=True, generator=generator)
        if self.lengths is None or self.settings.order == "random":
            return order
        rng = random.Random(f"batches {self.seed} {epoch}")
        return torch.tensor(grouped(order.tolist(), self.lengths, size=self.settings.batch_size, rng=rng))

    def _step(self, batch: Tensor, step: int, rng: random.Random) -> Tensor:
        """One optimizer step on these examples; sums over them: loss, first metric, loss without PACE's part, weights.

        What is too much for one forward pass goes in several, whose gradients are added up: the genotypes are those of
        the whole step, drawn once.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(step)
        weights = self._weights(batch)
        positions = range(len(batch))[self.accelerator.process_index :: self.accelerator.num_processes]
        counts = len(positions) > 0
        if not counts:  # fewer examples than processes: this one's gradients are zeros
            positions = range(1)
        sums, before = torch.zeros(3, device=self.accelerator.device), rng.getstate()
        for places in self._passes(batch, positions):
            rng.setstate(before)
            sums = sums + self._pass(StepExamples(batch, places, step, counts), weights, rng)
        self.example_steps += len(batch) * self.pace.passes(step)
        self._sum_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(step, self.steps)
        summed: Tensor = self.accelerator.reduce(sums, "sum")
        return torch.cat([summed, summed.new_tensor([weights.sum().item()])])

    def _passes(self, batch: Tensor, positions: Sequence[int]) -> list[list[int]]:
        """This process's places in the batch, forward pass by forward pass."""
        settings, chosen = self.settings, batch[list(positions)].tolist()
        cut = passes(chosen, self.lengths, most=settings.micro_batch, tokens=settings.batch_tokens)
        return [[positions[place] for place in places] for places in cut]

    def _weights(self, batch: Tensor) -> Tensor:
        """How much each example of a step counts in its loss, `(n,)`: 1 where all count the same."""
        weights = weights_of(self.examples, batch.tolist())
        weights = torch.ones(len(batch), dtype=torch.float64) if weights is None else weights
        return weights if self.counting is None else weights * self.counting[batch]

    def _pass(self, taken: StepExamples, weights: Tensor, rng: random.Random) -> Tensor:
        """Forward and backward of some examples of a step; the sums over them, as `_step` gives them."""
        places = list(taken.positions)
        mine, total = weights[places], weights.sum().item()
        share = mine.sum().item() / total if taken.mine else 0.0
        examples = send_to_device(self._read(taken, places), self.accelerator.device)
        rows = [place for place in places for _ in range(examples.rows)]
        self.tuned.before_step(rng, rows, len(taken.batch), taken.step / self.steps)
        with self.pace.around(), example_alone(self.tuned.model, len(rows)):
            output, penalty = self.pace.run(lambda: self._forward(examples), taken)
            losses = self.objective.training_losses(output, examples)
            plain = losses.mean() if self.uniform else (losses * mine.to(losses)).sum() / mine.sum().item()
            loss = (plain + penalty) * share
            self.accelerator.backward(loss)
        metric = self._metric(output, examples, mine) * taken.mine
        return torch.stack([total * loss.detach(), metric, total * share * plain.detach()])

    def _read(self, taken: StepExamples, positions: Sequence[int]) -> Batch:
        """This process's examples, as they look in this epoch; in this step, where an epoch may have one twice."""
        if isinstance(self.examples, Varied):
            drawn = {"seed": self.seed, "epoch": self.epoch - self.began if self.drawing is None else taken.step}
            return self.examples.training_batch(taken.batch.tolist(), positions, **drawn)
        return self.examples.batch(taken.batch[list(positions)].tolist())

    def _forward(self, batch: Batch) -> Any:
        with self.accelerator.autocast():
            return self.objective.forward(self.tuned.model, batch, train=True)

    @torch.no_grad()
    def _metric(self, output: Any, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum of the first metric over the batch; 0 where it is no mean over examples."""
        if self.metric is None:
            return torch.zeros((), device=self.accelerator.device)
        values = self.objective.values(output, batch)[self.metric.name]
        return (values * weights.to(values)).sum()

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
        """All that a later process needs to go on from here, as tensors (valid until then) and plain data.

        It is that of the whole training, whatever the number of processes: epochs and steps done, and the generators
        that every process has alike.
        """
        tensors: dict[str, Tensor] = {f"buffer.{name}": value for name, value in self.tuned.model.named_buffers()}
        optimizer = self.optimizer.state_dict()["state"]
        for index, parameter in enumerate(self.parameters):
            tensors[f"{index}.value"] = parameter.detach()
            kept = optimizer.get(index, {}).items()
            tensors |= {f"{index}.{name}": value for name, value in kept if isinstance(value, Tensor)}
        if self.pace.outputs is not None:
            tensors["pace.outputs"] = self.pace.outputs
        if self.taken:
            tensors["sums"] = self._sums
        best, told = self.best.state()
        tensors |= {**self.average.state(), **best}
        scaler = self.accelerator.scaler
        return tensors, {
            "epoch": self.epoch,
            "taken": self.taken,
            "generators": [_state_of(rng) for rng in (self._rng, self.pace.rng)] if self.taken else [],
            "seconds": self.seconds,
            "example_steps": self.example_steps,
            "lr": self.lr,
            "began": self.began,
            "losses": self.losses,
            "averaged": self.average.seen,
            "best": told,
            "constants": self.tuned.constants,
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _check_fits(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Raises StateError unless the state is of a training of this model."""
        wanted = {f"buffer.{name}": value for name, value in self.tuned.model.named_buffers()}
        wanted |= {f"{index}.value": value for index, value in enumerate(self.parameters)}
        odd = [name for name, value in wanted.items() if name not in tensors or tensors[name].shape != value.shape]
        shapes = {name.partition(".")[0]: value.shape for name, value in wanted.items() if name.endswith(".value")}
        for name, value in tensors.items():
            index, _, moving = name.partition(".")
            odd += [name] if moving in MOVING and value.dim() and value.shape != shapes.get(index, value.shape) else []
        numbers = ("epoch", "seconds", "example_steps", "lr", "began")
        odd += [name for name in numbers if type(meta.get(name)) not in (int, float)]
        odd += self._odd_within(tensors, meta)
        if odd or not isinstance(meta.get("losses"), list):
            raise StateError(
                f"The unfinished training does not fit this model: {listed(odd) or 'losses'}.",
                remedy="Delete its training.safetensors: the training starts again.",
            )

    def _odd_within(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> list[str]:
        """What does not fit of an epoch under way."""
        taken, sums = meta.get("taken", 0), tensors.get("sums", self._sums)
        odd = [] if type(taken) is int and 0 <= taken <= self.steps_per_epoch else ["taken"]
        odd += [] if sums.shape == self._sums.shape else ["sums"]
        try:
            generators = [_generator(each) for each in meta.get("generators", [])]
        except (TypeError, ValueError, OverflowError):
            return [*odd, "generators"]
        return odd + (["generators"] if taken and ("sums" not in tensors or len(generators) != 2) else [])

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Takes over what `state` gave; the run goes on as if it had not stopped.

        Should it collapse, it begins anew from the numbers that this trainer's `tuned` came with.

        Raises:
            StateError: The support tensors were multiplied by other fixed scales; nothing is changed then.
        """
        if meta.get("constants", {}) != self.tuned.constants:
            raise StateError(
                "The unfinished training is of a version of glora with other fixed scales of the support tensors: its "
                "numbers would play another function now.",
                remedy="Finish it with that version, or start anew with another --out.",
            )
        self._check_fits(tensors, meta)
        optimizer = self.optimizer.state_dict()
        with torch.no_grad():
            for name, buffer in self.tuned.model.named_buffers():
                buffer.copy_(tensors[f"buffer.{name}"])
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"{index}.value"])
                kept = {name: tensors.get(f"{index}.{name}") for name in MOVING}
                if found := {name: value.clone() for name, value in kept.items() if value is not None}:
                    optimizer["state"][index] = found
        self.optimizer.load_state_dict(optimizer)
        if "pace.outputs" in tensors:
            self.pace.outputs = tensors["pace.outputs"].to(self.accelerator.device, copy=True)
        if self.accelerator.scaler is not None and meta["scaler"]:
            self.accelerator.scaler.load_state_dict(meta["scaler"])
        self.average.restore(tensors, int(meta.get("averaged", 0)))
        self.best.restore(tensors, meta.get("best", {}), self._values())
        self.epoch, self.seconds = int(meta["epoch"]), float(meta["seconds"])
        self.example_steps = int(meta["example_steps"])
        self.lr, self.began, self.losses = float(meta["lr"]), int(meta["began"]), list(meta["losses"])
        self.taken = int(meta.get("taken", 0))  # of before it was kept: states were those of whole epochs
        if self.taken:
            self._rng, noise = (_generator(each) for each in meta["generators"])
            self._sums = tensors["sums"].to(self.accelerator.device, copy=True)
            self.pace.begin(self.epoch - self.began, noise)


def _state_of(rng: random.Random) -> list[Any]:
    """The state of a generator as plain data."""
    version, words, spare = rng.getstate()
    return [version, list(words), spare]


def _generator(state: Any) -> random.Random:
    """The generator whose state it is; raises TypeError, ValueError or OverflowError where it is none."""
    version, words, spare = state
    rng = random.Random()
    rng.setstate((version, tuple(words), spare))
    return rng
