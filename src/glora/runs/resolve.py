"""From settings to what they mean: nothing left open, and what a search is called with."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from glora import searchers
from glora.config import Experiment, SearchSettings
from glora.errors import BudgetError
from glora.genes import GenotypeSpace
from glora.methods.method import Method, Polish
from glora.searchers.operators import Budget, GenomeSampler
from glora.tasks.calibration import GENOTYPES
from glora.tasks.data import SOURCES

__all__ = ["Extent", "SearchPlan", "plan_search", "polish_info", "resolve"]

WITHOUT_RATE: Literal["own", "auto"] = "own"  # what a run without a learning rate takes
RACED = 4  # candidates of a race for each full score (docs/background/racing.md)
POLISH = Polish().rate  # of the training's learning rate, from the supernet's weights
AFRESH = 1.0  # the same from the pretrained weights


def resolve(experiment: Experiment) -> Experiment:
    """The same experiment with nothing left open: absolute paths, the method's own learning rate, the polish's."""
    data, model, search = cast(Any, experiment.data), experiment.model, experiment.search
    source = Path(data.source).expanduser()
    if data.source not in SOURCES and source.exists():
        data = data.model_copy(update={"source": str(source.resolve())})
    data = data.model_copy(update={k: v.expanduser().resolve() for k, v in data if isinstance(v, Path)})  # roots
    if model.checkpoint is not None:
        model = model.model_copy(update={"checkpoint": model.checkpoint.expanduser().resolve()})
    if "/" in model.name and (folder := Path(model.name).expanduser()).is_dir():
        model = model.model_copy(update={"name": str(folder.resolve())})
    lr = experiment.train.lr or _usual_rate(experiment)
    search = search.model_copy(update={**_polish(experiment, lr), **_extent(search)})
    train = experiment.train.model_copy(update={"lr": lr})
    return experiment.model_copy(update={"data": data, "model": model, "train": train, "search": search})


def _usual_rate(experiment: Experiment) -> float | Literal["auto"]:
    """The learning rate of a run without a given one; as published it is the method's own."""
    published = experiment.preset == "paper"
    return "auto" if WITHOUT_RATE == "auto" and not published else cast(Method, experiment.method).lr


def _extent(search: SearchSettings) -> dict[str, Any]:
    """What is left open of a searcher that is told how many genotypes it scores: that is done, in full."""
    searcher: Any = search.searcher
    if searcher.candidates == type(searcher)().candidates:
        return {}
    usual = {"share": "auto", "racing": False}
    return {name: value for name, value in usual.items() if getattr(search, name) is None}


def _polish(experiment: Experiment, lr: float | Literal["auto"]) -> dict[str, Any]:
    """What is left open of the winner's own training: the method's."""
    search, own = experiment.search, cast(Method, experiment.method).polish
    epochs = search.polish
    if epochs is None:
        epochs = math.ceil(own.epochs * experiment.train.longest)
    if not epochs:
        return {"polish": 0}
    start = search.polish_from or own.start
    rate = search.polish_lr or (None if lr == "auto" else lr * _polish_share(own, start))
    on = {"polish_on": "all"} if experiment.train.final == "all" else {}  # it is the last training
    return {"polish": epochs, "polish_from": start, "polish_lr": rate, **on}


def _polish_share(own: Polish, start: str) -> float:
    """A polish's learning rate as a multiple of the training's."""
    return own.rate if start == own.start else {"supernet": POLISH, "base": AFRESH}[start]


class Extent(NamedTuple):
    """How much a search does.

    Attributes:
        most: Full scores that it may spend; None: as many as its searcher asks for.
        calibrate: Random genotypes that it is calibrated with before; 0: it is not.
        rescore: Best genotypes scored again on the examples set aside.
        controls: Random genotypes to compare with; 0: nothing is compared.
        racing: Whether candidates race.
    """

    most: int | None
    calibrate: int
    rescore: int
    controls: int
    racing: bool


class SearchPlan(NamedTuple):
    """What a search is called with.

    Attributes:
        searcher: Its name. settings: Its own settings.
        budget: Most trainable numbers; None for no limit. min_budget: Fewest.
        extent: How much it does.
    """

    searcher: str
    settings: Any
    budget: int | None
    min_budget: int
    extent: Extent

    @property
    def full_scores(self) -> int:
        """Genotypes scored at most, on all examples."""
        asked = int(self.settings.candidates)
        return asked if self.extent.most is None else min(asked, self.extent.most)

    @property
    def candidates(self) -> int:
        """Genotypes looked at most, those that leave a race among them."""
        return int(self.settings.candidates) if self.extent.racing else self.full_scores

    def new_searcher(self, space: GenotypeSpace, *, seed: int) -> searchers.Searcher:
        """A fresh searcher; making one checks settings and budget.

        Raises:
            BudgetError: No genotype keeps the budget.
            ConfigError: The searcher's candidates may not be raced.
        """
        return searchers.new_searcher(
            space,
            searcher=self.searcher,
            settings=self.settings,
            budget=self.budget,
            min_budget=self.min_budget,
            seed=seed,
            raced=self.extent.racing,
        )


def plan_search(
    settings: SearchSettings, space: GenotypeSpace, *, least: float = Method.least, extent: Extent | None = None
) -> SearchPlan:
    """The searcher and the budget of a search; where the fewest numbers are left open they are decided here.

    Args:
        settings: The search's.
        space: What is searched.
        least: The method's share of the most numbers, which are the fewest where they are left open.
        extent: How much it may do; None: all that the settings ask for.

    Raises:
        BudgetError: No genotype keeps the budget.
    """
    searcher: Any = settings.searcher
    calibrate, racing = GENOTYPES * settings.calibrate, bool(settings.racing)
    extent = extent or Extent(None, calibrate, settings.rescore, settings.controls or 0, racing)
    shaped = searcher if extent.most is None else searcher.shaped(extent.most * (RACED if extent.racing else 1))
    plan = SearchPlan(searcher.name, shaped, settings.budget, settings.min_budget or 0, extent)
    if settings.min_budget is None and _wants_one_size(plan, space):
        plan = plan._replace(min_budget=_near(settings, space, least, plan.full_scores))
    return plan


def _wants_one_size(plan: SearchPlan, space: GenotypeSpace) -> bool:
    """Whether one winner of the budget is wanted: not a front of all sizes, and not as published."""
    as_published = getattr(plan.settings, "legalize", "repair") == "reject"
    return not as_published and plan.new_searcher(space, seed=0).top_k is not None


def _near(settings: SearchSettings, space: GenotypeSpace, share: float, candidates: int) -> int:
    """This share of the most trainable numbers that there may be; 0 where too few genotypes are so near."""
    budget = Budget(space.costs, settings.budget)
    least = math.floor(share * min(budget.high, budget.largest))
    try:
        sampler = GenomeSampler(space.costs, settings.budget, least, random.Random(0))
    except BudgetError:
        return 0
    return least if sampler.can_sample(candidates) else 0


def polish_info(experiment: Experiment, lr: float) -> dict[str, Any] | None:
    """How a winner is polished, as its adapter file has it; None where it is not.

    Args:
        experiment: The settings, resolved.
        lr: The training's learning rate.
    """
    settings = experiment.search
    if not settings.polish:
        return None
    start = {"from": "base"} if settings.polish_from == "base" else {}
    share = _polish_share(cast(Method, experiment.method).polish, settings.polish_from or "supernet")
    return {"epochs": settings.polish, "on": settings.polish_on, "lr": settings.polish_lr or lr * share, **start}
