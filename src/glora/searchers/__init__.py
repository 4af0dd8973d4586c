"""Search: find the best genotype within a parameter budget. Knows no model and no data; never imports torch.

`search(score, space)` does it all: a *searcher* (a row of `SEARCHERS`) asks for candidates a generation at a time, the
score function is called for each, here or in worker processes, and the searcher is told the scores. What is searched is
a `Space`; what comes out is a `SearchResult` of `Trial`s. A search may keep a journal, from which it goes on after a
kill, and its candidates may race (`Racing`), which spares most of the examples.

Whoever needs the parts: `settings_class` has the settings of a searcher by its name, and `new_searcher` makes one to
ask and tell by hand. `glora.searchers.searcher` says how to add a searcher.
"""

from __future__ import annotations

from glora.searchers.racing import Racing
from glora.searchers.run import search
from glora.searchers.searcher import Candidate, Searcher, SearcherSettings
from glora.searchers.space import Space
from glora.searchers.table import SEARCHERS, new_searcher, settings_class
from glora.searchers.trials import Score, SearchResult, Trial, pareto_front

__all__ = [
    "SEARCHERS",
    "Candidate",
    "Racing",
    "Score",
    "SearchResult",
    "Searcher",
    "SearcherSettings",
    "Space",
    "Trial",
    "new_searcher",
    "pareto_front",
    "search",
    "settings_class",
]
