"""The table of searchers, their settings by name, and a searcher made ready for a space and a budget."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from glora.errors import ConfigError, need, whole
from glora.registry import lookup
from glora.searchers.operators import GenomeSampler
from glora.searchers.searcher import Searcher, SearcherSettings
from glora.searchers.space import Space, check_space
from glora.settings import build

__all__ = ["SEARCHERS", "build_settings", "new_searcher", "settings_class"]

SEARCHERS = {
    "evolution": "glora.searchers.evolution:Evolution",
    "nsga2": "glora.searchers.nsga2:NSGA2",
    "random": "glora.searchers.random_search:RandomSearch",
}


def settings_class(searcher: str) -> type[SearcherSettings]:
    """The model of a searcher's settings.

    Raises:
        UnknownNameError: There is no such searcher.
    """
    settings: type[SearcherSettings] = _class(searcher).Settings
    return settings


def build_settings(searcher: str, settings: Mapping[str, Any] | SearcherSettings | None) -> SearcherSettings:
    """The searcher's settings from values by name; an instance is returned as it is.

    Raises:
        ConfigError: Lists every unknown name and wrong value at once.
        UnknownNameError: There is no such searcher.
    """
    kind = settings_class(searcher)
    if isinstance(settings, kind):
        return settings
    need(settings, Mapping | None, ConfigError, "settings", f"values by name, a {kind.__name__}, or None")
    values: Any = settings or {}
    return build(kind, values, f"the searcher {searcher!r}")


def new_searcher(
    space: Space,
    *,
    searcher: str,
    budget: int | None,
    min_budget: int,
    seed: int,
    settings: Mapping[str, Any] | SearcherSettings | None,
    raced: bool = False,
) -> Searcher:
    """The searcher by its name, ready to be asked; its settings and the budget are checked.

    Args:
        space: What is searched.
        searcher: A name in `SEARCHERS`.
        budget: Most trainable numbers, without the head; None for no limit.
        min_budget: Fewest trainable numbers.
        seed: Of all its random choices.
        settings: The searcher's own settings.
        raced: Whether its candidates race.

    Raises:
        BudgetError: No genotype keeps the budget.
        ConfigError: A setting is unknown or not allowed, or its candidates must not race.
        UnknownNameError: There is no such searcher.
    """
    check_space(space)
    need(searcher, str, ConfigError, "searcher", "a name in SEARCHERS")
    if budget is not None:
        whole(budget, "budget")
    whole(min_budget, "min_budget", least=0)
    whole(seed, "seed")
    checked = build_settings(searcher, settings)
    legalize: Any = getattr(checked, "legalize", "repair")
    sampler = GenomeSampler(space.costs, budget, min_budget, random.Random(seed), legalize=legalize)
    made: Searcher = _class(searcher)(sampler, checked)
    if raced and made.top_k is None:
        raise ConfigError(
            f"The searcher {searcher!r} does not look at its best trials only, so that none may leave a race.",
            remedy="Switch racing off, or search with evolution.",
        )
    return made


def _class(searcher: str) -> Any:
    return lookup(SEARCHERS, searcher, kind="searcher", remedy="List them: glora ls searchers")
