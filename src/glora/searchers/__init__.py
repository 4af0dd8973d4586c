"""The search: a searcher asks for genomes and is told their scores; it never sees a model (no torch).

One more searcher is one more file with a class like `Evolution` and one more line in `SEARCHERS`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from glora.errors import ConfigError, nearest, need, whole
from glora.genotype import Genotype
from glora.registry import lookup
from glora.searchers.journal import Journal, genes, space_hash
from glora.searchers.measure import Job, Measure, Scorers, measured, new_scorers
from glora.searchers.operators import Pool
from glora.searchers.racing import RULE, Outcome, Race, Racing
from glora.searchers.trials import Candidate, Score, Searcher, SearchResult, Trial, pareto_front
from glora.space import BoundSpace

__all__ = [
    "SEARCHERS",
    "Candidate",
    "Racing",
    "Score",
    "SearchResult",
    "Searcher",
    "Trial",
    "new_searcher",
    "pareto_front",
    "search",
    "settings_of",
]

SEARCHERS = {
    "evolution": "glora.searchers.evolution:Evolution",
    "nsga2": "glora.searchers.nsga2:NSGA2",
    "random": "glora.searchers.random_search:RandomSearch",
}


def search(
    score: Callable[[Genotype], float | Score] | Callable[[Genotype, Sequence[int]], Sequence[float]] | Any | None,
    space: BoundSpace,
    *,
    searcher: str = "evolution",
    budget: int | None = None,
    min_budget: int = 0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    racing: Racing | None = None,
    workers: int = 0,
    cluster: str | None = None,
    limit: float = 600.0,
    journal: str | Path | None = None,
    context: Mapping[str, Any] | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """The best genotype within the budget, with every scored one and the front of score against size.

    Args:
        score: Genotype -> score, higher is better; called once per genotype. With racing: (genotype, indices) ->
            values, one per example; the score is their mean. None reads a finished search back from its journal,
            and writes nothing. For workers see `glora.searchers.measure.new_scorers`.
        space: The search space at the sites of a model.
        searcher: A name in `SEARCHERS`.
        budget: Most trainable numbers, without the head; None for no limit.
        min_budget: Fewest trainable numbers.
        seed: The same seed and scores give the same search.
        settings: The searcher's own settings; unknown ones are errors.
        racing: Candidates leave when some of the examples have told that they cannot win.
        workers: Number of processes that score, one thread each; 0 scores in this process.
        cluster: `"ray"` puts the workers on a Ray cluster.
        limit: Seconds that a worker may take to start or for one score; then it is replaced.
        journal: An append-only JSONL file. A search started on the journal of a killed one takes the scores
            it finds there and goes on to the same end.
        context: Plain data that the scores depend on, such as fingerprints of weights and images. It is kept in
            the journal, and a journal of another context is refused.
        on_trial: Called with every trial as soon as it is scored, those from the journal too.

    Raises:
        BudgetError: No genotype keeps the budget; the message has the smallest and largest possible count.
        ConfigError: A setting is unknown or not allowed.
        RunError: The journal belongs to another search, or is damaged; or the workers fail.
    """
    need(racing, Racing | None, ConfigError, "racing", "glora.Racing(examples=...), or None")
    need(context, Mapping | None, ConfigError, "context", "plain data by name, or None")
    need(on_trial, Callable | None, ConfigError, "on_trial", "a function of a Trial, or None")
    given = {} if settings is None else settings
    whose: dict[str, Any] = {"searcher": searcher, "budget": budget, "min_budget": min_budget, "seed": seed}
    asker = new_searcher(space, **whose, settings=given, raced=racing is not None)
    run = _run
    if racing is not None:
        assert asker.elite is not None  # as new_searcher sees to
        run = Race(racing, asker.elite, seed).run
    header = whose | _header(space, _settings(searcher, given), racing, context or {})
    with (
        closing(Journal(journal, header, grows=score is not None)) as book,
        closing(_scorers(score, book, workers=workers, cluster=cluster, limit=limit)) as team,
    ):

        def scored(asked: Mapping[int, Genotype]) -> Iterator[Outcome]:
            return run(asked, lambda jobs: measured(jobs, team, book))

        found = _searched(asker, scored, space, book, on_trial)
        book.finish(len(found))
    return SearchResult(min(found, key=lambda trial: trial.rank), found, pareto_front(found))


def _header(space: BoundSpace, settings: Any, racing: Racing | None, context: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "space": space_hash(space),
        "settings": dataclasses.asdict(settings),
        "racing": None if racing is None else {**dataclasses.asdict(racing), "rule": RULE},
        "context": dict(context),
    }


def _searched(
    asker: Searcher,
    scored: Callable[[Mapping[int, Genotype]], Iterator[Outcome]],
    space: BoundSpace,
    book: Journal,
    on_trial: Callable[[Trial], None] | None,
) -> tuple[Trial, ...]:
    """Every trial, in the order of asking; a generation is told when all of it is scored."""
    trials: dict[int, Trial] = {}
    generation = 0
    while candidates := asker.ask():
        asked = dict(enumerate(candidates, len(trials)))
        for number, (genome, parameters, origin, parent) in asked.items():
            facts = {"parameters": parameters, "generation": generation, "origin": origin, "parent": parent}
            book.write("ask", number, **facts, **genes(genome, None if parent is None else trials[parent].genome))
        for number, score, seconds, seen in scored({number: space.decode(one.genome) for number, one in asked.items()}):
            genome, parameters, origin, parent = asked[number]
            trial = Trial(number, genome, parameters, score, generation, origin, parent, space, seconds, seen)
            trials[number] = trial
            if on_trial:
                on_trial(trial)
        asker.tell([trials[number] for number in asked])
        generation += 1
    return tuple(trials[number] for number in sorted(trials))


def new_searcher(
    space: BoundSpace,
    *,
    searcher: str,
    budget: int | None,
    min_budget: int,
    seed: int,
    settings: Mapping[str, Any],
    raced: bool = False,
) -> Searcher:
    """The searcher that `search` asks, its settings and the budget checked.

    Raises:
        BudgetError: No genotype keeps the budget.
        ConfigError: A setting is unknown or not allowed, or its candidates may not be raced.
        UnknownNameError: There is no such searcher.
    """
    need(space, BoundSpace, ConfigError, "space", "a bound space, such as adapted.space")
    need(settings, Mapping, ConfigError, "settings", "the searcher's settings by name, or None")
    need(searcher, str, ConfigError, "searcher", "a name in SEARCHERS")
    if budget is not None:
        whole(budget, "budget")
    whole(min_budget, "min_budget", least=0)
    whole(seed, "seed")
    chosen, kind = _settings(searcher, settings), _kind(searcher)
    legalize: Any = getattr(chosen, "legalize", "repair")
    pool = Pool(space.costs, budget, min_budget, random.Random(seed), legalize=legalize)
    asker: Searcher = kind(pool, chosen)
    if raced and asker.elite is None:
        raise ConfigError(
            f"The searcher {searcher!r} looks at more than its best trials: none may leave a race.",
            remedy="Switch racing off, or search with evolution.",
        )
    return asker


def _scorers(score: Any, book: Journal, **who: Any) -> Scorers:
    return new_scorers(book.unfinished if score is None else score, **who)


def settings_of(searcher: str) -> tuple[str, ...]:
    """The names of a searcher's own settings."""
    return tuple(item.name for item in dataclasses.fields(_kind(searcher).Settings))


def _kind(searcher: str) -> Any:
    return lookup(SEARCHERS, searcher, kind="searcher", remedy="List them: glora ls searchers")


def _run(genotypes: Mapping[int, Genotype], measure: Measure) -> Iterator[Outcome]:
    """The outcome of every candidate, scored on all examples at once."""
    for done in measure([Job(number, genotype) for number, genotype in genotypes.items()]):
        assert isinstance(done.found, Score)
        yield Outcome(done.job.number, done.found, done.seconds)


def _settings(searcher: str, given: Mapping[str, Any]) -> Any:
    """The searcher's settings from plain data; raises ConfigError on an unknown one."""
    kind, allowed = _kind(searcher), settings_of(searcher)
    for name in given:
        if name not in allowed:
            near = nearest(name, allowed, n=1)
            raise ConfigError(
                f"The searcher {searcher!r} has no setting {name!r}.",
                allowed=f"Allowed: {', '.join(allowed)}.",
                remedy=f"Did you mean {near[0]!r}?" if near else "",
            )
    return kind.Settings(**given)
