"""What a run tells: the reporter it tells it to, and the plan it says before it starts."""

from __future__ import annotations

from typing import Protocol

from glora.backbones import Backbone
from glora.config import Experiment
from glora.methods import Tuned
from glora.methods.glora import TunedAdapter
from glora.runs.resolve import search_arguments
from glora.searchers import Trial
from glora.tasks.task import Task
from glora.tasks.visible import Known
from glora.training.pace import image_steps
from glora.training.trainer import Progress

__all__ = ["Reporter", "Silent", "plan"]


class Reporter(Protocol):
    """Where a run tells what it is doing."""

    def say(self, text: str) -> None:
        """One line worth reading."""

    def training(self, progress: Progress) -> None:
        """Called a few times a second at most."""

    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None:
        """Called after every scored genotype.

        Args:
            trial: The genotype.
            best: The best so far.
            total: How many there will be at most.
            saved: Share of the image forwards that racing has saved so far.
        """


class Silent:
    """A reporter that tells nothing."""

    def say(self, text: str) -> None: ...
    def training(self, progress: Progress) -> None: ...
    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None: ...


def plan(experiment: Experiment, task: Task, known: Known, backbone: Backbone, tuned: Tuned, *, lr: float) -> list[str]:
    """What a run is going to do, in sentences.

    Args:
        experiment: The resolved settings.
        task: The images.
        known: The same without test, cut for the search.
        backbone: The network.
        tuned: The network made trainable.
        lr: The learning rate it will be trained with.
    """
    settings, search = experiment.train, experiment.search
    sizes = f"{len(task.train):,} train, {len(task.val):,} val and {len(task.test):,} test images"
    height, width = backbone.preprocess.size
    what = f"{backbone.name} at {width} x {height} px, method {experiment.method}"
    lines = [f"{task.name}: {sizes} of {len(task.classes)} classes", *task.notes, *known.notes, *backbone.notes]
    images = [len(known.train), *(len(known.train) - len(part) for part in known.folds)]
    steps = sum(image_steps(settings, n) for n in images)
    epochs = "1 epoch" if settings.epochs == 1 else f"{settings.epochs:,} epochs"
    times = f" of {len(known.folds) + 1} supernets" if known.folds else ""
    training = f"Training: {epochs}{times}, {steps:,} image-steps, learning rate {lr:g}"
    training += "" if settings.pace == "off" else f", PACE {settings.pace}"
    if isinstance(tuned, TunedAdapter):
        what += f", {len(tuned.adapted.sites)} layers"
        lines += tuned.adapted.notes
    if not (isinstance(tuned, TunedAdapter) and tuned.adapted.space.size > 1):
        return [*lines, f"{what}: {tuned.count():,} trainable numbers and the head", training]
    space = tuned.adapted.space
    low, high = space.count(space.smallest), space.count(space.largest)
    how = search_arguments(search, space)
    most = high if how["budget"] is None else min(high, how["budget"])
    return [
        *lines,
        f"{what}: 10^{space.log10_size:.1f} genotypes of {low:,} to {high:,} trainable numbers; "
        f"searched from {how['min_budget']:,} to {most:,}",
        training,
        f"Search: up to {search.candidates:,} genotypes on {len(known.val):,} images; then one look at the test images",
    ]
