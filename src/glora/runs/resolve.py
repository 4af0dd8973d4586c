"""From settings to what they mean: nothing left open, and the method that they name."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glora import searchers
from glora.config import Experiment, SearchSettings
from glora.errors import BudgetError
from glora.methods import Method, get_method, settings_of
from glora.searchers.operators import Pool, Window
from glora.space import BoundSpace
from glora.tasks.task import DATASETS

__all__ = ["method_of", "search_arguments", "settled", "unused"]

POLISH = 1 / 3  # of the supernet's learning rate: the start is trained already
NEAR = 0.9  # of the most trainable numbers: few val images prefer small subnets, docs/background/fitness.md


def settled(experiment: Experiment, method: Method) -> Experiment:
    """The same experiment with nothing left open: absolute paths, the method's own learning rate, the polish's."""
    data, model, search = experiment.data, experiment.model, experiment.search
    source = Path(data.source).expanduser()
    if data.source not in DATASETS and source.exists():
        data = data.model_copy(update={"source": str(source.resolve())})
    if model.checkpoint is not None:
        model = model.model_copy(update={"checkpoint": model.checkpoint.expanduser().resolve()})
    lr = experiment.train.lr or method.lr
    if search.polish and search.polish_lr is None:
        search = search.model_copy(update={"polish_lr": POLISH * lr})
    train = experiment.train.model_copy(update={"lr": lr})
    return experiment.model_copy(update={"data": data, "model": model, "train": train, "search": search})


def search_arguments(settings: SearchSettings, space: BoundSpace) -> dict[str, Any]:
    """What `glora.search` is called with: the searcher, those of the settings that it has, and the budget.

    Raises:
        BudgetError: No genotype keeps the budget.
    """
    own = {name: getattr(settings, name, None) for name in searchers.settings_of(settings.searcher)}
    found = {
        "searcher": settings.searcher,
        "settings": {name: value for name, value in own.items() if value is not None},
        "budget": settings.budget,
        "min_budget": settings.min_budget or 0,
    }
    if settings.min_budget is None and _wants_one_size(found, settings, space):
        found["min_budget"] = _near(settings, space)
    return found


def _wants_one_size(how: Mapping[str, Any], settings: SearchSettings, space: BoundSpace) -> bool:
    """Whether one winner of the budget is wanted: not a front of all sizes, and not as published."""
    return settings.legalize != "reject" and searchers.new_searcher(space, seed=0, **how).elite is not None


def _near(settings: SearchSettings, space: BoundSpace) -> int:
    """Nine tenths of the most trainable numbers that there may be; 0 where too few genotypes are so near."""
    window = Window(space.costs, settings.budget)
    least = math.floor(NEAR * min(window.high, window.largest))
    try:
        pool = Pool(space.costs, settings.budget, least, random.Random(0))
    except BudgetError:
        return 0
    return least if pool.has(settings.candidates) else 0


def unused(settings: SearchSettings) -> tuple[str, ...]:
    """What must be said of settings that are not at their default and that only other searchers have."""
    own, fields = set(searchers.settings_of(settings.searcher)), type(settings).model_fields
    if "candidates" in own:  # as many as these two give
        own |= {"population", "generations"}
    others = {
        name for searcher in searchers.SEARCHERS for name in searchers.settings_of(searcher)
    } & fields.keys() - own
    changed = sorted(name for name in others if getattr(settings, name) != fields[name].default)
    names = ", ".join(f"search.{name}" for name in changed)
    return (f"The searcher {settings.searcher!r} has no {names}: nothing changes by it.",) if changed else ()


def method_of(experiment: Experiment) -> Method:
    """The method with those of the experiment's settings that it has.

    Raises:
        UnknownNameError: There is no such method.
    """
    model = experiment.model
    targets = model.targets if isinstance(model.targets, str) else tuple(model.targets)
    offered = {"space": experiment.space.build(), "rank": experiment.rank}
    offered |= {"sampling": experiment.train.sampling, "largest": experiment.train.largest}
    offered |= {"targets": targets, "skip": tuple(model.skip), "statistics": model.statistics}
    own = settings_of(experiment.method)
    return get_method(experiment.method, {name: value for name, value in offered.items() if name in own})
