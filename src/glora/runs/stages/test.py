"""The last stage, and the only file that reads a test example: each model once, nothing is chosen by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from glora.report.examples import ByExample
from glora.report.outcome import Outcome, Row
from glora.runs.comparison import Contender, compare
from glora.runs.session import Session
from glora.runs.stages.search import BEFORE, Search
from glora.tasks.evaluation import Evaluation
from glora.tasks.images import ImageSet
from glora.tasks.objective import Examples
from glora.tasks.task import Task

__all__ = ["Testing", "earlier_tests", "tested_examples"]


def earlier_tests(before: Sequence[Path]) -> tuple[str, ...]:
    """What must be said of a result when the test examples were read before, for the results of other winners."""
    names = ", ".join(f"{file.parent.name}/{file.name}" for file in before)
    return (f"Not the first look at the test examples: other winners were tested before ({names}).",) if before else ()


def tested_examples(
    found: Evaluation, told: Mapping[str, Tensor] | None = None, *, names: Sequence[str] = (), winner: str, data: str
) -> ByExample:
    """What a model does on test as a record.

    Args:
        found: Its metrics.
        told: What its objective tells of every example beside them.
        names: What the examples are called. winner: As the record has it. data: Too.
    """
    values = {
        metric.name: tuple(_finite(each) for each in found.values[metric.name].tolist())
        for metric in found.objective.metrics
        if metric.per_example
    }
    weights = None if found.weights is None else tuple(found.weights.tolist())
    seen = {name: tuple(_finite(float(each)) for each in values.tolist()) for name, values in (told or {}).items()}
    classes = tuple(getattr(found.objective, "classes", ())) if "prediction" in seen else ()
    return ByExample(
        winner=winner,
        data=data,
        values=values,
        weights=weights,
        told=seen,
        names=tuple(names),
        classes=classes,
    )


def _finite(value: float) -> float | None:
    """Seven digits are as many as float32 has."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


class Testing:
    """Measures finished models on test, and on what else they have not seen.

    Args:
        session: The run.
        test: The test examples; None where there are none, and nothing is tested.

    Attributes:
        finished: What the finished model does on test, example by example; None before, and where there is no test.
        told: What the objective tells of each beside its metrics.
    """

    def __init__(self, session: Session, test: Examples | None) -> None:
        self.session = session
        self.test = test
        self.finished: Evaluation | None = None
        self.told: dict[str, Tensor] = {}

    def alone(self, model: nn.Module, *, parameters: int) -> dict[str, Row]:
        """The row of a model that nothing was searched for, and that of its base where that can do the task."""
        self._say("the model")
        val = {} if self.session.seen else {"val": self.session.evaluator.evaluate(model, self.session.data.val)}
        contender = Contender(parameters, val)
        return self._compared(contender, model, {})

    def _compared(self, winner: Contender, model: nn.Module, others: dict[str, Contender]) -> dict[str, Row]:
        """The rows of the finished model, of its base where that can do the task, and of what else was measured."""
        if (
            self.session.objective.outputs is None and not self.session.backbone.head
        ):  # a language model has no new head
            others = {"base": self._base(), **others}
        if self.test is not None:
            self.finished, self.told = self.session.evaluator.evaluate_told(model, self.test)
            winner = replace(winner, splits={**winner.splits, "test": self.finished})
        return compare(winner, others, self.session.objective)

    def _base(self) -> Contender:
        """The pretrained model as it is, on test; where there is none on val."""
        model = self.session.base().to(self.session.accelerator.device)
        val = {} if self.test is not None else {"val": self.session.evaluator.evaluate(model, self.session.data.val)}
        return self._with_test(Contender(0, val), model)

    def searched(
        self,
        model: nn.Module,
        search: Search,
        outcome: Outcome,
        *,
        retrained: nn.Module | None,
        polished: Contender | None = None,
    ) -> dict[str, Row]:
        """The rows of the merged winner and its controls.

        Test sees the winner, the best random genotype, the largest, the winner trained alone, and before polishing.

        Args:
            model: The merged winner.
            search: Where it was found, with what is known of it and of the controls.
            outcome: The winner.
            retrained: It, trained alone and merged.
            polished: What is known of it where it was polished.
        """
        others = search.controls(budget=outcome.budget, min_budget=outcome.min_budget, picked=outcome.picked)
        if retrained is not None:
            unseen = self.session.data.unseen
            splits = {split: self.session.evaluator.evaluate(retrained, examples) for split, examples in unseen.items()}
            calibrated = not search.plan.extent.calibrate or "val" in splits
            others["retrained"] = Contender(outcome.parameters, splits, calibrated=calibrated)
        winner = search.contender(outcome.genome)
        if polished is not None:
            others, winner = {"unpolished": winner, **others}, polished
        if search.again:  # what is not trained on as many examples is no fair control: test sees none of it
            others, winner = {BEFORE: winner, **others}, Contender(outcome.parameters, {})
        self._say("the merged winner and its controls" if others else "the merged winner")
        for name, other in others.items():
            if search.again and name != BEFORE:
                continue
            if self.test is not None and other.genome is not None:
                with search.final.hold(search.space.decode(other.genome)) as held:
                    others[name] = self._with_test(other, held)
            elif name == "retrained" and retrained is not None:
                others[name] = self._with_test(other, retrained)
        return self._compared(winner, model, others)

    def others(self, model: nn.Module, task: Task) -> dict[str, dict[str, float | None]]:
        """Name of a further test set -> the finished model's metrics on it, and `examples`; each is read once.

        A set that has some of the classes alone is scored twice, on the same outputs: `accuracy` among all that the
        model knows, and `accuracy_200way` among the 200 that the set has.
        """
        found = dict[str, dict[str, float | None]]()
        evaluator = self.session.evaluator
        for name, examples in task.others.items():
            self.session.reporter.say(f"Testing on {name} once: {len(examples):,} {examples.unit}")
            if classes := task.among.get(name):
                every = evaluator.evaluate_among(model, examples, classes)
            else:
                every = (evaluator.evaluate(model, examples),)
            row: dict[str, float | None] = {"examples": float(len(examples))}
            for end, evaluation in zip(("", f"_{len(classes or ())}way"), every, strict=False):
                row |= {f"{metric.name}{end}": evaluation.value(metric.name) for metric in evaluation.objective.metrics}
            found[name] = row
        return found

    def record(self, *, winner: str, data: str) -> ByExample | None:
        """What the finished model does on every test example; None where there is none."""
        if self.finished is None:
            return None
        names = self.test.names(range(len(self.test))) if isinstance(self.test, ImageSet) else ()
        return tested_examples(self.finished, self.told, names=names, winner=winner, data=data)

    def _say(self, what: str) -> None:
        if self.test is None:
            self.session.reporter.say("There are no test examples: nothing is tested.")
        else:
            self.session.reporter.say(f"Testing {what} once on {len(self.test):,} {self.test.unit}")

    def _with_test(self, contender: Contender, model: nn.Module) -> Contender:
        if self.test is None:
            return contender
        return replace(
            contender, splits={**contender.splits, "test": self.session.evaluator.evaluate(model, self.test)}
        )
