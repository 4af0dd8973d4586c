"""The last stage, and the only file that reads a test image: each model once, nothing is chosen by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from glora.report.outcome import Outcome, Row
from glora.runs.comparison import Contender, compared
from glora.runs.reporter import Reporter
from glora.runs.stages.search import Search
from glora.tasks.evaluation import Evaluation, evaluate
from glora.tasks.task import ImageSet, Task
from glora.tasks.visible import Known

__all__ = ["Testing", "looked"]


def looked(before: Sequence[Path]) -> tuple[str, ...]:
    """What must be said of a result when the test images were read before, for the results of other winners."""
    names = ", ".join(f"{file.parent.name}/{file.name}" for file in before)
    return (f"Not the first look at the test images: other winners were tested before ({names}).",) if before else ()


class Testing:
    """Measures finished models on test, and on what else they have not seen.

    Args:
        task: The images, test among them.
        known: The same without test, cut for the search.
        accelerator: Device and precision.
        batch_size: Images per forward pass.
        reporter: Where to tell what is going on.
    """

    def __init__(
        self, task: Task, known: Known, *, accelerator: Accelerator, batch_size: int, reporter: Reporter
    ) -> None:
        self.task = task
        self.known = known
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.reporter = reporter

    def alone(self, model: nn.Module, *, parameters: int) -> dict[str, Row]:
        """The row of a model that nothing was searched for."""
        self._say("the model")
        splits = {"val": self._on(model, self.known.val), "test": self._on(model, self.task.test)}
        return compared(Contender(parameters, splits), {})

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
            splits = {split: self._on(retrained, images) for split, images in self.known.unseen.items()}
            alike = not search.calibrated or "val" in splits
            others["retrained"] = Contender(outcome.parameters, splits, alike=alike)
        winner = search.contender(outcome.genome)
        if polished is not None:
            others, winner = {"unpolished": winner, **others}, polished
        self._say("the merged winner and its controls" if others else "the merged winner")
        for name, other in others.items():
            if other.genome is not None:
                with search.final.hold(search.space.decode(other.genome)) as held:
                    others[name] = self._with_test(other, held)
            elif name == "retrained" and retrained is not None:
                others[name] = self._with_test(other, retrained)
        return compared(self._with_test(winner, model), others)

    def _say(self, what: str) -> None:
        self.reporter.say(f"Testing {what} once on {len(self.task.test):,} images")

    def _with_test(self, contender: Contender, model: nn.Module) -> Contender:
        return replace(contender, splits={**contender.splits, "test": self._on(model, self.task.test)})

    def _on(self, model: nn.Module, images: ImageSet) -> Evaluation:
        return evaluate(model, images, accelerator=self.accelerator, batch_size=self.batch_size)
