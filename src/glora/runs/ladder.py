"""`train.lr: auto` without a model: which rates are tried, how long, what is left for the training, and which is best.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all rates of a ladder in short trainings, then the best
of them, and the method's own, in longer ones. A rate is judged by its loss on val together with those of its neighbours
on the ladder: good rates lie side by side, and a few hundred examples are noisy. The method's own rate stays unless
another one's loss is lower by more than twice the paired standard error: what short trainings cannot tell apart, they
must not decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from glora.config import Experiment, TrainSettings
from glora.methods.method import Method
from glora.tasks.visible import VisibleData
from glora.training.pace import example_steps

__all__ = [
    "Ladder",
    "Rung",
    "best_rate",
    "further",
    "kept",
    "ladder_of",
    "smoothed",
    "surely_lower",
    "survivors",
    "training_of",
]

STEPS = (-4, -2, -1, 0, 1)  # halves of a decade from the method's own rate
FURTHER = 1  # more rates at an end of the ladder, while the best is there
KEPT = 3  # rates that are tried once more, the method's own among them
LONGER = 3  # times as long
LEAST = 4  # optimizer steps of a try
SURE = 2.0  # paired standard errors by which a rate must be better than the method's own
LOST = 2.0  # a training whose loss is no number counts as this times the worst of the others


class Rung(NamedTuple):
    """Trainings of one length.

    Attributes:
        rates: How many are tried, at most.
        examples: Training examples of each. epochs: Passes over them.
    """

    rates: int
    examples: int
    epochs: int


@dataclass(frozen=True)
class Ladder:
    """What choosing a rate does.

    Attributes:
        rates: Lowest first; further ones may be tried at an end.
        rungs: One after the other, each longer than the one before.
        passes: Of an example, forward and backward, of all tries together, at most.
        left: Epochs of the training at the rate that is chosen.
        own: The method's own rate.
    """

    rates: tuple[float, ...]
    rungs: tuple[Rung, ...]
    passes: int
    left: int
    own: float

    @property
    def text(self) -> str:
        """It in a sentence."""
        tries = sum(rung.rates for rung in self.rungs)
        epochs = "1 epoch" if self.left == 1 else f"{self.left:,} epochs"
        return (
            f"Learning rate: chosen on val in up to {tries} short trainings, {len(self.rates)} rates from "
            f"{self.rates[0]:g} to {self.rates[-1]:g}, and then further ones and the best again; up to {self.passes:,} "
            f"passes of an example. {epochs} are left for the training"
        )


def ladder_of(experiment: Experiment, data: VisibleData) -> Ladder | None:
    """What choosing a rate does in a run of these settings; None where the rate is given.

    The tries take `train.lr_share` of the passes that `train.epochs` stands for, and at least half of the epochs are
    left, so that a run costs as much as one of a given rate; in a very short one the tries may take more.

    Args:
        experiment: The settings.
        data: What the run sees.
    """
    settings, own = experiment.train, cast(Method, experiment.method).lr
    if settings.lr != "auto":
        return None
    n = len(data.train)
    whole = example_steps(settings, n)
    tried = len(data.training(0)) if data.folds else n
    first = len(STEPS) + FURTHER
    unit = settings.lr_share * whole / (first + LONGER * KEPT)
    short, long = _rung(settings, first, unit, tried), _rung(settings, KEPT, LONGER * unit, tried)
    rungs = (short,) if short[1:] == long[1:] else (short, long)  # the same again would tell nothing new
    each = [_passes(settings, rung) for rung in rungs]
    passes = sum(rung.rates * cost for rung, cost in zip(rungs, each, strict=True))
    epochs = settings.longest
    left = max(math.ceil(epochs / 2), epochs - math.ceil(passes / (whole / epochs)))
    rates = tuple(_rate(own, step) for step in STEPS)
    return Ladder(rates, rungs, passes, left, own)


def _rate(own: float, step: int) -> float:
    """So many halves of a decade from the method's own."""
    return float(f"{own * 10 ** (step / 2):.3g}")


def further(losses: Mapping[float, float | None], ladder: Ladder) -> float | None:
    """The next rate beyond the end of the ladder that the best is at; None where it is inside, or after some more."""
    rates, more = sorted(losses), len(losses) - len(ladder.rates)
    [best] = survivors(losses, 1)
    if more >= FURTHER or losses[best] is None or best not in (rates[0], rates[-1]):
        return None
    low = STEPS[0] - sum(rate < ladder.rates[0] for rate in rates)
    high = STEPS[-1] + sum(rate > ladder.rates[-1] for rate in rates)
    return _rate(ladder.own, low - 1 if best == rates[0] else high + 1)


def _rung(settings: TrainSettings, rates: int, passes: float, n: int) -> Rung:
    """Trainings of about so many passes: as few epochs of as many of the examples as that takes."""
    an_epoch = example_steps(settings.model_copy(update={"epochs": 1}), n)
    epochs = math.ceil(passes / an_epoch)
    examples = math.floor(n * passes / an_epoch / epochs)
    return Rung(rates, min(n, max(LEAST * settings.batch_size, examples)), epochs)


def _passes(settings: TrainSettings, rung: Rung) -> int:
    return example_steps(settings.model_copy(update={"epochs": rung.epochs}), rung.examples)


def training_of(experiment: Experiment, data: VisibleData) -> TrainSettings:
    """The training loop's settings, with the epochs that choosing the rate leaves."""
    ladder = ladder_of(experiment, data)
    settings = experiment.train
    return settings if ladder is None else settings.lasting(ladder.left)


def smoothed(losses: Mapping[float, float | None]) -> dict[float, float]:
    """Rate -> its loss and those of its neighbours, weighted 1 2 1; at an end of the ladder 2 1.

    Args:
        losses: Rate -> loss; None where the training was lost.
    """
    known = [loss for loss in losses.values() if loss is not None]
    worst = LOST * max(known, default=1.0)
    rates = sorted(losses)
    each = [worst if (loss := losses[rate]) is None else loss for rate in rates]
    found = {}
    for place, rate in enumerate(rates):
        beside = each[max(0, place - 1) : place] + each[place + 1 : place + 2]
        found[rate] = (2 * each[place] + math.fsum(beside)) / (2 + len(beside))
    return found


def survivors(losses: Mapping[float, float | None], n: int) -> list[float]:
    """The best n rates, lowest first."""
    return sorted(_ranked(losses)[:n])


def _ranked(losses: Mapping[float, float | None]) -> list[float]:
    """The rates, best first."""
    scores = smoothed(losses)
    return sorted(scores, key=lambda rate: (scores[rate], rate))


def kept(losses: Mapping[float, float | None], n: int, own: float) -> list[float]:
    """The method's own rate and the best n - 1 others, lowest first."""
    others = [rate for rate in _ranked(losses) if rate != own]
    return sorted([own, *others[: n - 1]])


def best_rate(last: Mapping[float, float | None], ladder: Ladder, better: Callable[[float], bool]) -> float | None:
    """The best rate of the longest tries; the method's own where none is surely better.

    Args:
        last: Of these tries rate -> loss.
        ladder: What was tried.
        better: Whether a rate is surely better than the method's own; asked where that was not lost.

    Returns:
        None where all were lost.
    """
    if all(loss is None for loss in last.values()):
        return None
    [best], own = survivors(last, 1), ladder.own
    return own if last.get(own) is not None and best != own and not better(best) else best


def surely_lower(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the mean of the first is lower by more than noise; both are of the same examples, in their order."""
    gains = [other - loss for loss, other in zip(losses, others, strict=True)]
    mean = math.fsum(gains) / len(gains)
    error = math.sqrt(math.fsum((gain - mean) ** 2 for gain in gains)) / len(gains)
    return mean > SURE * error
