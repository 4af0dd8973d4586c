"""What a model does on examples, one by one, as its objective measures it; and how two such evaluations compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from glora.tasks.objective import Batch, Examples, Metric, Objective

__all__ = ["Evaluation", "Evaluator", "ahead", "evaluate", "joined", "mean", "selection_bias"]

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """What a model does on examples.

    Attributes:
        objective: What was asked.
        values: What its metrics are made of, by name, `(n, ...)` each, on the CPU.
        averaged: Of a mean over several models: the metrics that are no mean over examples.
    """

    objective: Objective
    values: Mapping[str, Tensor]
    averaged: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values["loss"])

    @cached_property
    def _reduced(self) -> Mapping[str, float]:
        return self.averaged or self.objective.reduce(self.values)

    def value(self, name: str) -> float:
        """The metric of this name."""
        if self.objective.metric(name).per_example:
            return self.values[name].double().mean().item()
        return self._reduced[name]

    def standard_error(self, name: str) -> float | None:
        """Its standard error; None where it is not a mean of one value per example."""
        metric, n = self.objective.metric(name), len(self)
        if not metric.per_example:
            return None
        correction = 0 if metric.proportion else 1
        return self.values[name].double().std(correction=correction).item() / math.sqrt(n) if n > correction else 0.0

    def score(self, name: str) -> tuple[float, float]:
        """The metric as a search reads it: higher is better; with its standard error, 0 where it has none."""
        sign = 1.0 if self.objective.metric(name).higher else -1.0
        return sign * self.value(name), self.standard_error(name) or 0.0

    def scores(self, name: str) -> list[float]:
        """The per-example values that the score of this metric is the mean of: higher is better."""
        values = self.values[name].double()
        scores: list[float] = (values if self.objective.metric(name).higher else -values).tolist()
        return scores

    @property
    def flawless(self) -> bool:
        """Whether every example is right, as far as the objective knows right from wrong."""
        first = self.objective.metrics[0]
        return first.proportion and bool((self.values[first.name] == 1).all())

    def metrics(self, split: str) -> Numbers:
        """The numbers of a Result: `test_accuracy`, `test_loss`, ..., their standard errors, and `test_examples`."""
        found: Numbers = {}
        for metric in self.objective.metrics:
            found[f"{split}_{metric.name}"] = self.value(metric.name)
            if metric.per_example:
                found[f"{split}_{metric.name}_standard_error"] = self.standard_error(metric.name)
        return found | {f"{split}_examples": float(len(self))}


@dataclass(frozen=True)
class Evaluator:
    """How models are evaluated throughout a run.

    Attributes:
        objective: How they are called and measured.
        accelerator: Device and precision.
        batch_size: Examples per forward pass.
    """

    objective: Objective
    accelerator: Accelerator
    batch_size: int

    @torch.no_grad()
    def outputs(
        self, model: nn.Module, examples: Examples, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[Any, Batch]]:
        """The model's outputs, batch by batch, each with its batch; the model is left in eval mode.

        Every process evaluates all examples, without waiting for another.

        Args:
            model: What is evaluated, on the accelerator's device.
            examples: Prepared examples.
            indices: Which examples, in which order; None for all.
        """
        model.eval()
        chosen = range(len(examples)) if indices is None else indices
        for first in range(0, len(chosen), self.batch_size):
            batch = examples.batch(chosen[first : first + self.batch_size])
            batch = send_to_device(batch, self.accelerator.device)
            with self.accelerator.autocast():
                output = self.objective.forward(model, batch, train=False)
            yield output, batch

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Examples, indices: Sequence[int] | None = None) -> Evaluation:
        """The evaluation of a model on examples, in their order; the arguments are those of `outputs`."""
        every = [self.objective.values(output, batch) for output, batch in self.outputs(model, examples, indices)]
        return _evaluation(self.objective, every)

    @torch.no_grad()
    def evaluate_among(self, model: nn.Module, examples: Examples, outputs: Sequence[int]) -> tuple[Evaluation, ...]:
        """The evaluation of a model on examples, and that of the same outputs as if it had but some, in one pass.

        Args:
            model: What is evaluated, on the accelerator's device.
            examples: Prepared examples, whose targets are among these outputs.
            outputs: Which of the model's outputs count.
        """
        objective, every, some = self.objective, [], []
        for output, batch in self.outputs(model, examples):
            every.append(objective.values(output, batch))
            if (chosen := objective.among(output, outputs)) is not None:
                some.append(objective.values(chosen, batch))
        return tuple(_evaluation(objective, values) for values in (every, some) if values)


def _evaluation(objective: Objective, batches: Sequence[Mapping[str, Tensor]]) -> Evaluation:
    """The evaluation that the values of some batches are, one after another."""
    return Evaluation(objective, {name: torch.cat([each[name] for each in batches]).cpu() for name in batches[0]})


def evaluate(
    model: nn.Module,
    examples: Examples,
    *,
    objective: Objective,
    accelerator: Accelerator,
    batch_size: int,
    indices: Sequence[int] | None = None,
) -> Evaluation:
    """One evaluation on its own: see `Evaluator`."""
    return Evaluator(objective, accelerator, batch_size).evaluate(model, examples, indices)


def joined(parts: Iterable[Evaluation]) -> Evaluation:
    """One model's evaluation on several sets of examples together."""
    every = list(parts)
    names = every[0].values
    return Evaluation(every[0].objective, {name: torch.cat([each.values[name] for each in every]) for name in names})


def mean(several: Sequence[Evaluation]) -> Evaluation:
    """The mean over models, example by example; of other metrics the mean of the models' own."""
    objective = several[0].objective
    values, averaged = {}, {}
    for metric in objective.metrics:
        if metric.per_example:
            values[metric.name] = torch.stack([each.values[metric.name] for each in several]).double().mean(0)
        else:
            averaged[metric.name] = math.fsum(each.value(metric.name) for each in several) / len(several)
    return Evaluation(objective, values, averaged)


def ahead(winner: Evaluation, control: Evaluation, split: str) -> Numbers:
    """How much better the winner is than a control on the same examples: positive where the winner is better.

    Returns:
        `{split}_{metric}_ahead` for every metric, and the paired standard error of those that have one.
    """
    found: Numbers = {}
    for metric in winner.objective.metrics:
        name, key = metric.name, f"{split}_{metric.name}_ahead"
        if not metric.per_example:
            found[key] = _sign(metric) * (winner.value(name) - control.value(name))
            continue
        difference = _sign(metric) * (winner.values[name].double() - control.values[name].double())
        found[key] = difference.mean().item()
        n = len(difference)
        found[f"{key}_standard_error"] = difference.std().item() / math.sqrt(n) if n > 1 else 0.0
    return found


def selection_bias(row: Mapping[str, float | None], objective: Objective) -> Numbers:
    """How much better val looks than the examples set aside, which did not choose the winner (the winner's curse).

    Empty where nothing was set aside; the standard error is that of a difference between two sets of examples.
    """
    found: Numbers = {}
    for metric in objective.metrics:
        val, aside = row.get(f"val_{metric.name}"), row.get(f"aside_{metric.name}")
        if val is None or aside is None:
            continue
        found[f"selection_bias_{metric.name}"] = _sign(metric) * (val - aside)
        if metric.per_example:
            errors = [row.get(f"{split}_{metric.name}_standard_error") or 0.0 for split in ("val", "aside")]
            found[f"selection_bias_{metric.name}_standard_error"] = math.hypot(*errors)
    return found


def _sign(metric: Metric) -> int:
    return 1 if metric.higher else -1
