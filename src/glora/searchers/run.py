"""`glora.search`: the loop that asks a searcher for candidates, scores them, and keeps the journal."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from glora.errors import ConfigError, need, whole, within
from glora.searchers.jobs import Executor, Job, OutOfTime, RunJobs, new_executor, run_jobs
from glora.searchers.journal import Journal, genome_record
from glora.searchers.racing import RULE, Race, Raced, Racing
from glora.searchers.searcher import Candidate, Searcher, SearcherSettings
from glora.searchers.space import Space, space_hash
from glora.searchers.table import build_settings, new_searcher
from glora.searchers.trials import Score, SearchResult, Trial, pareto_front

__all__ = ["search"]


def search(
    score: Callable[[Any], float | Score] | Callable[[Any, Sequence[int]], Sequence[float]] | Any | None,
    space: Space,
    *,
    searcher: str = "evolution",
    budget: int | None = None,
    min_budget: int = 0,
    seed: int = 0,
    settings: Mapping[str, Any] | SearcherSettings | None = None,
    racing: Racing | None = None,
    workers: int = 0,
    cluster: str | None = None,
    limit: float = 600.0,
    time_limit: float | None = None,
    most: int | None = None,
    journal: str | Path | None = None,
    context: Mapping[str, Any] | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """The best genotype within the budget, with every scored one and the front of score against size.

    Args:
        score: Genotype -> score, higher is better; called once per genotype. With racing: (genotype, indices) ->
            values, one per example; the score is their mean. None reads a finished search back from its journal,
            and writes nothing. For workers see `glora.searchers.jobs.new_executor`.
        space: What is searched: the space of an adapted model, or any `glora.searchers.Space`.
        searcher: A name in `SEARCHERS`.
        budget: Most trainable numbers, without the head; None for no limit.
        min_budget: Fewest trainable numbers.
        seed: The same seed and scores give the same search.
        settings: The searcher's own settings by name, or an instance of its settings.
        racing: Candidates are scored on a part of the examples first, and dropped when they cannot win any more.
        workers: Number of processes that score, one thread each; 0 scores in this process.
        cluster: `"ray"` puts the workers on a Ray cluster.
        limit: Seconds that a worker may take to start or for one score; then it is replaced.
        time_limit: Seconds after which nothing more is scored: the result then has `finished=False` and the trials so
            far, at least one. With the same journal the next call goes on. None for no limit.
        most: Full scores that may be spent at most, at least 1; a candidate that leaves a race counts as the share of
            the examples that it has seen. A generation that does not fit is cut, and is the last one. None: as many
            as the searcher asks for.
        journal: An append-only JSONL file. A search that was killed takes the scores it finds there and goes on to
            the same end.
        context: Plain data that the scores depend on, such as fingerprints of weights and images. It is kept in
            the journal, and a journal of another context is refused.
        on_trial: Called with every trial as soon as it is scored, those from the journal too.

    Raises:
        BudgetError: No genotype keeps the budget; the message has the smallest and largest possible count.
        ConfigError: A setting is unknown or not allowed.
        RunError: The journal belongs to another search, or is damaged; or the workers fail.
    """
    _check(racing, time_limit, most, context, on_trial)
    chosen: dict[str, Any] = {"searcher": searcher, "budget": budget, "min_budget": min_budget, "seed": seed}
    asked = new_searcher(space, **chosen, settings=settings, raced=racing is not None)
    header = chosen | _header(space, build_settings(searcher, settings), racing, most, context or {})
    score_generation = _in_full if racing is None else _race(racing, asked, seed)
    end = math.inf if time_limit is None or score is None else time.monotonic() + time_limit
    trials: dict[int, Trial] = {}
    with (
        closing(Journal(journal, header, writable=score is not None)) as lines,
        closing(_executor(score, lines, workers=workers, cluster=cluster, limit=limit)) as executor,
    ):

        def may_start() -> bool:  # there is a best trial, whatever the limit
            return time.monotonic() < end or all(trial.seen < 1 for trial in trials.values())

        def scored(genotypes: Mapping[int, Any]) -> Iterator[Raced]:
            return score_generation(genotypes, lambda jobs: run_jobs(jobs, executor, lines, may_start))

        finished = _run(asked, space, scored, trials, lines, on_trial, most)
    return _result(trials, finished)


def _result(trials: Mapping[int, Trial], finished: bool) -> SearchResult:
    ordered = tuple(trials[number] for number in sorted(trials))
    return SearchResult(min(ordered, key=lambda trial: trial.rank), ordered, pareto_front(ordered), finished)


def _check(racing: Any, time_limit: Any, most: Any, context: Any, on_trial: Any) -> None:
    need(racing, Racing | None, ConfigError, "racing", "glora.Racing(examples=...), or None")
    if time_limit is not None:
        within(time_limit, "time_limit", 0, math.inf)
    if most is not None:
        whole(most, "most", least=1)
    need(context, Mapping | None, ConfigError, "context", "plain data by name, or None")
    need(on_trial, Callable | None, ConfigError, "on_trial", "a function of a Trial, or None")


def _header(
    space: Space, settings: SearcherSettings, racing: Racing | None, most: int | None, context: Mapping[str, Any]
) -> dict[str, Any]:
    """What a journal says of its search beside the searcher's name, budget and seed."""
    return {
        "space": space_hash(space),
        "settings": settings.resolved(),
        "racing": None if racing is None else {**dataclasses.asdict(racing), "rule": RULE},
        "context": dict(context),
        **({} if most is None else {"most": most}),
    }


def _executor(score: Any, lines: Journal, **where: Any) -> Executor:
    """What calls the score function; without one, a job that is not in the journal is an error."""
    return new_executor(lines.unfinished if score is None else score, **where)


def _race(racing: Racing, searcher: Searcher, seed: int) -> Callable[[Mapping[int, Any], RunJobs], Iterator[Raced]]:
    """Scores a generation in a race."""
    assert searcher.top_k is not None  # `new_searcher` refuses to race others
    return Race(racing, searcher.top_k, seed).run


def _in_full(genotypes: Mapping[int, Any], run_all: RunJobs) -> Iterator[Raced]:
    """Scores a generation without a race, every candidate on all examples at once."""
    for job, score, seconds in run_all(Job(number, genotype) for number, genotype in genotypes.items()):
        assert isinstance(score, Score)
        yield Raced(job.number, score, seconds)


def _affordable(candidates: list[Candidate], trials: Mapping[int, Trial], most: int | None) -> list[Candidate]:
    """The first candidates of a generation, as many as may be scored in full beside what was spent."""
    if most is None:
        return candidates
    spent = math.fsum(trial.seen for trial in trials.values())
    return candidates[: max(0, math.floor(most - spent))]


def _run(
    searcher: Searcher,
    space: Space,
    scored: Callable[[Mapping[int, Any]], Iterator[Raced]],
    trials: dict[int, Trial],
    lines: Journal,
    on_trial: Callable[[Trial], None] | None,
    most: int | None,
) -> bool:
    """Adds every trial as soon as it is scored; the searcher is told when a whole generation is.

    Returns:
        Whether the search came to its end; False when its time was over.
    """
    generation = 0
    while candidates := _affordable(searcher.ask(), trials, most):
        asked = dict(enumerate(candidates, len(trials)))
        for number, (genome, parameters, origin, parent) in asked.items():
            facts = {"parameters": parameters, "generation": generation, "origin": origin, "parent": parent}
            written = genome_record(genome, None if parent is None else trials[parent].genome)
            lines.write("ask", number, **facts, **written)
        genotypes = {number: space.decode(candidate.genome) for number, candidate in asked.items()}
        try:
            for number, score, seconds, seen in scored(genotypes):
                genome, parameters, origin, parent = asked[number]
                trial = Trial(number, genome, parameters, score, generation, origin, parent, space, seconds, seen)
                trials[number] = trial
                if on_trial:
                    on_trial(trial)
        except OutOfTime:
            return False
        searcher.tell([trials[number] for number in asked])
        generation += 1
    lines.check_end(len(trials))
    return True
