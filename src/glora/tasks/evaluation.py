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

from glora.tasks.batching import lengths_of, passes, weights_of
from glora.tasks.memory import memory_told
from glora.tasks.objective import Batch, Examples, Metric, Objective

__all__ = ["Evaluation", "Evaluator", "ahead", "evaluate", "joined", "mean", "mean_and_error", "selection_bias"]

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """What a model does on examples.

    Attributes:
        objective: What was asked.
        values: What its metrics are made of, by name, `(n, ...)` each, on the CPU.
        averaged: Of a mean over several models: the metrics that are no mean over examples.
        weights: How much each example counts in a mean, `(n,)`; None: all the same.
    """

    objective: Objective
    values: Mapping[str, Tensor]
    averaged: Mapping[str, float] = field(default_factory=dict)
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values["loss"])

    @cached_property
    def _reduced(self) -> Mapping[str, float]:
        return self.averaged or self.objective.reduce(self.values)

    def value(self, name: str) -> float:
        """The metric of this name."""
        if self.objective.metric(name).per_example:
            return mean_and_error(self.values[name], self.weights)[0]
        return self._reduced[name]

    def standard_error(self, name: str) -> float | None:
        """Its standard error; None where it is not a mean of one value per example."""
        metric = self.objective.metric(name)
        if not metric.per_example:
            return None
        return mean_and_error(self.values[name], self.weights, correction=0 if metric.proportion else 1)[1]

    def score(self, name: str) -> tuple[float, float]:
        """The metric as a search reads it: higher is better; with its standard error, 0 where it has none."""
        sign = 1.0 if self.objective.metric(name).higher else -1.0
        return sign * self.value(name), self.standard_error(name) or 0.0

    def scores(self, name: str, *, unit: float = 1.0) -> list[float]:
        """The per-example values that the score of this metric is the plain mean of: higher is better.

        Args:
            name: The metric.
            unit: The mean weight of all examples, of which these may be some.
        """
        values = self.values[name].double()
        values = values if self.weights is None else values * self.weights / unit
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
        batch_size: Most examples per forward pass.
        tokens: Most tokens per forward pass, padding included, of examples that have lengths; None for no limit.
    """

    objective: Objective
    accelerator: Accelerator
    batch_size: int
    tokens: int | None = None

    @torch.no_grad()
    def outputs(
        self, model: nn.Module, examples: Examples, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[Any, Batch]]:
        """The model's outputs, batch by batch, each with its batch; the model is left in eval mode.

        Every process evaluates all examples, without waiting for another. Examples that have lengths come in the order
        of these.

        Args:
            model: What is evaluated, on the accelerator's device.
            examples: Prepared examples.
            indices: Which examples, in which order; None for all.
        """
        for _, output, batch in self.placed(model, examples, indices):
            yield output, batch

    @torch.no_grad()
    def placed(
        self, model: nn.Module, examples: Examples, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Any, Batch]]:
        """As `outputs`, each with the places that its examples have in `indices`."""
        model.eval()
        chosen = range(len(examples)) if indices is None else indices
        for places in passes(chosen, lengths_of(examples), most=self.batch_size, tokens=self.tokens):
            with memory_told(f"a forward pass of {len(places)} {examples.unit}", remedy=self._smaller(len(places))):
                batch = send_to_device(examples.batch([chosen[place] for place in places]), self.accelerator.device)
                with self.accelerator.autocast():
                    output = self.objective.forward(model, batch, train=False)
            yield places, output, batch

    def _smaller(self, examples: int) -> str:
        if examples == 1:
            return "Take a smaller model or smaller inputs, or train.precision=bf16."
        tokens = "" if self.tokens is None else f" or search.batch_tokens={self.tokens // 2}"
        return f"Take fewer at a time: search.batch_size={examples // 2}{tokens}, of {self.batch_size} now."

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Examples, indices: Sequence[int] | None = None) -> Evaluation:
        """The evaluation of a model on examples, in their order; the arguments are those of `outputs`."""
        every = [
            (places, self.objective.values(output, batch))
            for places, output, batch in self.placed(model, examples, indices)
        ]
        return _evaluation(self.objective, every, weights_of(examples, indices))

    @torch.no_grad()
    def evaluate_told(self, model: nn.Module, examples: Examples) -> tuple[Evaluation, dict[str, Tensor]]:
        """As `evaluate`; and `Objective.told` of all examples in their order, `(n,)` each, on the CPU; in one pass."""
        objective, every, told = self.objective, [], []
        for places, output, batch in self.placed(model, examples, None):
            every.append((places, objective.values(output, batch)))
            told.append((places, objective.told(output, batch)))
        return _evaluation(objective, every, weights_of(examples)), _in_order(told)

    @torch.no_grad()
    def evaluate_among(self, model: nn.Module, examples: Examples, outputs: Sequence[int]) -> tuple[Evaluation, ...]:
        """The evaluation of a model on examples, and that of the same outputs as if it had but some, in one pass.

        Args:
            model: What is evaluated, on the accelerator's device.
            examples: Prepared examples, whose targets are among these outputs.
            outputs: Which of the model's outputs count.
        """
        objective, every, some = self.objective, [], []
        for places, output, batch in self.placed(model, examples, None):
            every.append((places, objective.values(output, batch)))
            if (chosen := objective.among(output, outputs)) is not None:
                some.append((places, objective.values(chosen, batch)))
        weights = weights_of(examples)
        return tuple(_evaluation(objective, values, weights) for values in (every, some) if values)


def _evaluation(
    objective: Objective, batches: Sequence[tuple[list[int], Mapping[str, Tensor]]], weights: Tensor | None
) -> Evaluation:
    """The evaluation that the values of some batches are, each example in its place."""
    return Evaluation(objective, _in_order(batches), weights=weights)


def _in_order(batches: Sequence[tuple[list[int], Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The values of some batches, each example in its place, on the CPU."""
    order = torch.argsort(torch.tensor([place for places, _ in batches for place in places]))
    return {name: torch.cat([each[name].cpu() for _, each in batches])[order] for name in batches[0][1]}


def mean_and_error(values: Tensor, weights: Tensor | None = None, *, correction: int = 1) -> tuple[float, float]:
    """The mean over examples, weighted where they have weights, and its standard error; that of too few is 0.

    The error of a weighted mean is that of a ratio: of Σ w v to Σ w.

    Args:
        values: One value per example, `(n,)`.
        weights: How much each counts, `(n,)`; None: all the same.
        correction: 1 where the values' own mean is estimated, 0 for proportions.
    """
    values, n = values.double(), len(values)
    if weights is None:
        error = values.std(correction=correction).item() / math.sqrt(n) if n > correction else 0.0
        return values.mean().item(), error
    weights = weights / weights.mean()
    mean = (weights * values).mean().item()
    left = (weights * (values - mean)).square().sum().item() / max(1, n - correction)
    return mean, math.sqrt(left / n) if n > correction else 0.0


def evaluate(
    model: nn.Module,
    examples: Examples,
    *,
    objective: Objective,
    accelerator: Accelerator,
    batch_size: int,
    tokens: int | None = None,
    indices: Sequence[int] | None = None,
) -> Evaluation:
    """One evaluation on its own: see `Evaluator`."""
    return Evaluator(objective, accelerator, batch_size, tokens).evaluate(model, examples, indices)


def joined(parts: Iterable[Evaluation]) -> Evaluation:
    """One model's evaluation on several sets of examples together."""
    every = list(parts)
    values = {name: torch.cat([each.values[name] for each in every]) for name in every[0].values}
    weights = [each.weights for each in every if each.weights is not None]
    return Evaluation(every[0].objective, values, weights=torch.cat(weights) if weights else None)


def mean(several: Sequence[Evaluation]) -> Evaluation:
    """The mean over models, example by example; of other metrics the mean of the models' own."""
    objective = several[0].objective
    values, averaged = {}, {}
    for metric in objective.metrics:
        if metric.per_example:
            values[metric.name] = torch.stack([each.values[metric.name] for each in several]).double().mean(0)
        else:
            averaged[metric.name] = math.fsum(each.value(metric.name) for each in several) / len(several)
    return Evaluation(objective, values, averaged, several[0].weights)


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
        found[key], found[f"{key}_standard_error"] = mean_and_error(difference, winner.weights)
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
