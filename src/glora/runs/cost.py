"""What a search costs beside the training, counted beforehand in passes of an example and in tokens; and its limit.

The training's passes go forward and backward, and count three times a forward pass: the backward pass takes about twice
as long as the forward pass (Kaplan et al., arXiv 2001.08361, Sec. 2.1). Examples that have lengths cost as much as they
are long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from glora.config import Experiment, SearchSettings
from glora.genes import GenotypeSpace
from glora.methods.method import Method
from glora.runs.ladder import training_of
from glora.runs.resolve import Extent, SearchPlan, plan_search
from glora.tasks.batching import lengths_of
from glora.tasks.calibration import FEWEST, GENOTYPES, STRENGTHS
from glora.tasks.objective import Examples
from glora.tasks.visible import VisibleData
from glora.training.pace import example_steps

__all__ = ["BACKWARD", "CONTROLS", "SearchCost", "Work", "extent_of", "planned", "search_cost", "tokens_in"]

BACKWARD = 3  # forward passes that one forward and backward counts as
SHARE = 0.1  # of the training, of a search that is not told how many genotypes it scores
OF_TEXTS = 0.5  # of one on texts that is
CONTROLS = 50  # random genotypes, where the searcher has no population
LEAST_CONTROLS = 2
FOR_CALIBRATION = 1 / 2  # of the passes, at most
FOR_SCORES = 2 / 3  # of what is left after the calibration; the rest is for rescoring and for controls
FOR_RESCORING = 1 / 3  # of that rest
BESIDE = 2  # measured beside the random genotypes: the winner and the largest


class Work(NamedTuple):
    """Some passes through a model.

    Attributes:
        examples: Forward passes of one example.
        tokens: Tokens in them, without padding; None of examples that have no lengths.
    """

    examples: float
    tokens: float | None = None

    @classmethod
    def over(cls, examples: Examples) -> Work:
        """One forward pass of every example."""
        lengths = lengths_of(examples)
        return cls(len(examples), None if lengths is None else math.fsum(lengths))

    @classmethod
    def sum(cls, several: Iterable[Work]) -> Work:
        """All of them."""
        every = list(several)
        tokens = [each.tokens for each in every]
        known = None if None in tokens else math.fsum(cast(list[float], tokens))
        return cls(math.fsum(each.examples for each in every), known)

    def times(self, n: float) -> Work:
        """So many times as much."""
        return Work(n * self.examples, None if self.tokens is None else n * self.tokens)

    @property
    def size(self) -> float:
        """What two of them are compared by: tokens where they are known."""
        return self.examples if self.tokens is None else self.tokens

    def text(self, unit: str) -> str:
        """Such as `"1,200 forward passes of an example (150,000 tokens)"`."""
        tokens = "" if self.tokens is None else f" ({self.tokens:,.0f} tokens)"
        return f"{self.examples:,.0f} forward passes{tokens} of {unit}"


def tokens_in(examples: Examples, passes: int) -> dict[str, int]:
    """`tokens`: how many are in so many passes of an example; empty of examples that have no lengths.

    Exact of whole epochs; where examples are drawn with replacement, what is expected.
    """
    work = Work.over(examples)
    return {} if work.tokens is None or not work.examples else {"tokens": round(passes * work.tokens / work.examples)}


@dataclass(frozen=True)
class SearchCost:
    """What a search costs at most.

    Attributes:
        training: The trainings before it.
        calibration: Choosing how strongly subnets play.
        scores: Scoring the genotypes that the searcher asks for.
        beside: Scoring the best again, and what the winner is compared with.
        unit: What an example is, in the plural.
    """

    training: Work
    calibration: Work
    scores: Work
    beside: Work
    unit: str

    @property
    def work(self) -> Work:
        """All of it."""
        return Work.sum((self.calibration, self.scores, self.beside))

    @property
    def share(self) -> float:
        """Of the training."""
        return self.work.size / self.training.size

    def lines(self, share: float | None, candidates: int, most: int | None) -> list[str]:
        """What a user should know of it, in sentences.

        Args:
            share: The most that it may be of the training; None for no limit.
            candidates: Genotypes that the searcher would score without one.
            most: Genotypes that it may score; None for any number.
        """
        parts = {"calibration": self.calibration, "scores": self.scores, "rescoring and controls": self.beside}
        told = ", ".join(f"{part.size / self.work.size:.0%} {name}" for name, part in parts.items() if part.size)
        lines = [
            f"The search costs up to {self.work.text(self.unit)}, {self.share:.0%} of the training, whose passes go "
            f"forward and backward and count {BACKWARD} each: {told}."
        ]
        if most is not None and share is not None and most < candidates:
            lines.append(
                f"search.share={share:g} lets it score {most:,} of {candidates:,} genotypes in full; "
                "search.share=any is no limit."
            )
        if share is not None and self.share > share:
            lines.append(f"That is above search.share={share:g}, and the least a search takes: its val is large.")
        return lines


def _training(experiment: Experiment, data: VisibleData) -> Work:
    """All trainings before the search, in forward passes."""
    each = [data.training(place) for place in range(len(data.folds))] if data.folds else []
    every = [Work.over(examples) for examples in (data.train, *each)]
    settings = training_of(experiment, data)
    steps = [example_steps(settings, int(work.examples)) for work in every]
    return Work.sum(work.times(BACKWARD * n / work.examples) for work, n in zip(every, steps, strict=True))


def _share(search: SearchSettings, data: VisibleData) -> float | None:
    """The most that the search may cost, of the training; None for no limit."""
    if search.share == "auto":
        return None if lengths_of(data.val) is None else OF_TEXTS
    return None if search.share == "any" else float(search.share or SHARE)


def _races(experiment: Experiment) -> bool:
    """Whether the candidates race."""
    search, objective = experiment.search, cast(Any, experiment.objective)
    if search.racing is not None:
        return search.racing
    single = {metric.name for metric in objective.metrics if metric.per_example}
    return cast(Any, search.searcher).races and search.fitness in single


def extent_of(experiment: Experiment, data: VisibleData) -> Extent:
    """How much the search may do: all that its settings ask for, or what `search.share` leaves of it.

    Half at most is for the calibration, with as many genotypes as that allows; of what is left two thirds are for the
    genotypes that the searcher asks for, and a third for scoring the best again and for controls.

    Args:
        experiment: The settings.
        data: What the run sees.
    """
    search = experiment.search
    usual = getattr(search.searcher, "population", CONTROLS)
    controls = usual if search.controls is None else search.controls
    share, calibrate = _share(search, data), GENOTYPES * search.calibrate
    if share is None:
        return Extent(None, calibrate, search.rescore, controls, _races(experiment))
    val, both = (work.size for work in _scored(data))
    passes = share * _training(experiment, data).size / val
    if each := _calibration(1, data):
        calibrate = min(calibrate, math.floor(FOR_CALIBRATION * passes / each))
    left = passes - _calibration(calibrate, data)
    rest = (1 - FOR_SCORES) * left * val / both  # measurements on val and on the examples set aside
    rescore = min(search.rescore, max(1, math.floor(FOR_RESCORING * rest)))
    if search.controls is None:
        controls = max(LEAST_CONTROLS, min(controls, math.floor(rest) - rescore - BESIDE))
    return Extent(max(1, math.floor(FOR_SCORES * left)), calibrate, rescore, controls, _races(experiment))


def _calibration(genotypes: int, data: VisibleData) -> int:
    """Passes over val."""
    return genotypes * len(STRENGTHS) if len(data.val) >= FEWEST else 0


def _scored(data: VisibleData) -> tuple[Work, Work]:
    """One pass of val, and one of val and the examples set aside."""
    val = Work.over(data.val)
    return val, Work.sum((val, Work.over(data.aside))) if len(data.aside) else val


def planned(experiment: Experiment, data: VisibleData, space: GenotypeSpace) -> SearchPlan:
    """What the search of a run is called with.

    Args:
        experiment: The settings.
        data: What the run sees.
        space: What is searched.

    Raises:
        BudgetError: No genotype keeps the budget.
    """
    least = cast(Method, experiment.method).least
    return plan_search(experiment.search, space, least=least, extent=extent_of(experiment, data))


def search_cost(plan: SearchPlan, experiment: Experiment, data: VisibleData) -> tuple[SearchCost, list[str]]:
    """What a search costs at most, and that in sentences.

    Args:
        plan: What it is called with.
        experiment: The settings.
        data: What the run sees.
    """
    extent, (val, both) = plan.extent, _scored(data)
    again = extent.controls + BESIDE if extent.controls else 1
    again += extent.rescore if len(data.aside) else 0
    cost = SearchCost(
        _training(experiment, data),
        val.times(_calibration(extent.calibrate, data)),
        val.times(plan.full_scores),
        both.times(again),
        data.val.unit,
    )
    candidates = cast(Any, experiment.search.searcher).candidates
    lines = cost.lines(_share(experiment.search, data), candidates, extent.most)
    if experiment.search.calibrate and not extent.calibrate:
        lines.append("There is no calibration: it would take more than half of that.")
    return cost, lines
