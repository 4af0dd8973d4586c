"""Where a run reports what it is doing, and the plan that it tells before it starts."""

from __future__ import annotations

from typing import Any, Protocol

from glora.methods.method import Tuned
from glora.report.metrics import MetricInfo
from glora.runs.cost import planned, search_cost
from glora.runs.ladder import ladder_of, training_of
from glora.searchers import Trial
from glora.tasks.calibration import FEWEST
from glora.tasks.task import Task
from glora.tasks.visible import VisibleData
from glora.training.pace import example_steps
from glora.training.trainer import Progress

__all__ = ["Reporter", "Silent", "plan"]


class Reporter(Protocol):
    """Where a run reports."""

    def say(self, text: str) -> None:
        """One line worth reading."""

    def training(self, progress: Progress) -> None:
        """Called a few times a second at most."""

    def search_begins(self, metric: MetricInfo) -> None:
        """A search begins, or goes on from its journal; this is the metric that its scores are made of."""

    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None:
        """Called after every scored genotype.

        Args:
            trial: The genotype.
            best: The best so far.
            total: How many there will be at most.
            saved: Share of the forward passes that racing has saved so far.
        """


class Silent:
    """A reporter that reports nothing."""

    def say(self, text: str) -> None: ...
    def training(self, progress: Progress) -> None: ...
    def search_begins(self, metric: MetricInfo) -> None: ...
    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None: ...


def plan(experiment: Any, task: Task, data: VisibleData, backbone: Any, tuned: Tuned) -> list[str]:
    """What a run is going to do, in sentences.

    Args:
        experiment: The resolved settings.
        task: The examples.
        data: The same without test, cut for the search.
        backbone: The network.
        tuned: The network made trainable.
    """
    unit = task.train.unit
    *first, last = (f"{len(split):,} {name}" for name, split in task.splits.items())
    sizes = f"{', '.join(first)} and {last} {unit}"
    lines = [f"{task.name}: {sizes}, {task.objective.summary}", *task.notes, *data.notes, *backbone.notes, *tuned.notes]
    training = _training(experiment, data, searches=tuned.space is not None)
    size = "" if backbone.preprocess is None else f" {backbone.preprocess.summary}".rstrip()
    what = f"{backbone.name}{size}, method {experiment.method.name}, {tuned.summary}"
    if tuned.space is None:
        return [*lines, what, *training]
    bounds = planned(experiment, data, tuned.space)
    high = tuned.space.count(tuned.space.largest)
    candidates = bounds.candidates
    most = high if bounds.budget is None else min(high, bounds.budget)
    return [
        *lines,
        f"{what}; searched from {bounds.min_budget:,} to {most:,}",
        *training,
        f"Search: up to {candidates:,} genotypes on {len(data.val):,} {unit}"
        + ("; then one look at the test examples" if task.test is not None else ""),
        *([few_val(len(data.val), unit)] if len(data.val) < FEWEST and candidates > 1 else []),
        *search_cost(bounds, experiment, data)[1],
    ]


def few_val(count: int, unit: str) -> str:
    """What so few examples can tell of genotypes."""
    return (
        f"{count:,} val {unit} hardly tell genotypes apart: which of them the search chooses is mostly chance. "
        "More val examples help (data.val); --generations 0 saves most of the search."
    )


def _training(experiment: Any, data: VisibleData, *, searches: bool) -> list[str]:
    """What is going to be trained: before the training the rate, where it is chosen."""
    ladder, settings = ladder_of(experiment, data), training_of(experiment, data)
    last = len(data.everything) if settings.final == "all" else 0  # examples of the last training, where it has more
    directly = last and not searches and settings.epochs != "auto"
    counts = [last if directly else len(data.train), *(len(data.train) - len(part) for part in data.folds)]
    steps = sum(example_steps(settings, n) for n in counts)
    epochs = "1 epoch" if settings.longest == 1 else f"{settings.longest:,} epochs"
    epochs = f"up to {epochs}" if settings.epochs == "auto" else epochs
    times = f" of {len(data.folds) + 1} supernets" if data.folds else ""
    rate = f"learning rate {settings.lr:g}" if ladder is None else "at the rate that is chosen"
    training = f"Training: {epochs}{times}, {steps:,} passes of an example, {rate}"
    training += "" if settings.pace == "off" else f", PACE {settings.pace}"
    if settings.epochs == "auto":
        training += f"; it ends when val has got no better for {settings.patience} epochs, and the best state is kept"
    lines = [training] if ladder is None else [ladder.text, training]
    if last and not directly and not experiment.search.polish:
        most = example_steps(settings, last)
        lines.append(f"At last the same on all {last:,} {data.train.unit}, train and val: up to {most:,} passes")
    return lines
