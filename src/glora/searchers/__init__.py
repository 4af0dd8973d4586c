"""The search: a searcher asks for genomes and is told their scores; it never sees a model (no torch).

One more searcher is one more file with a class like `Evolution` and one more line in `SEARCHERS`.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from glora.errors import ConfigError, nearest
from glora.genotype import Genotype
from glora.registry import lookup
from glora.searchers.journal import Journal, space_hash
from glora.space import BoundSpace

__all__ = [
    "SEARCHERS",
    "Candidate",
    "Score",
    "SearchResult",
    "Searcher",
    "Trial",
    "new_searcher",
    "pareto_front",
    "search",
]

SEARCHERS = {
    "evolution": "glora.searchers.evolution:Evolution",
    "nsga2": "glora.searchers.nsga2:NSGA2",
    "random": "glora.searchers.random_search:RandomSearch",
}
Origin = Literal["random", "mutation", "crossover"]


class Score(NamedTuple):
    """How good a genotype is: higher is better; NaN counts as the worst.

    Attributes:
        value: Such as an accuracy in [0, 1], or a negative loss.
        standard_error: Of the value, in its unit.
    """

    value: float
    standard_error: float = 0.0


class Candidate(NamedTuple):
    """What a searcher asks for.

    Attributes:
        genome: The index of every support tensor's choice among its options.
        parameters: Trainable numbers.
        origin: How it was made.
        parent: Number of the trial it was made from; None for a random one.
    """

    genome: tuple[int, ...]
    parameters: int
    origin: Origin = "random"
    parent: int | None = None


@dataclass(frozen=True)
class Trial:
    """One scored genotype.

    Attributes:
        number: Its place in the order of asking, from 0.
        genome: The index of every support tensor's choice among its options.
        parameters: Trainable numbers, without the head.
        score: Its score.
        generation: The ask it came from, from 0.
        origin: `"random"`, `"mutation"` or `"crossover"`.
        parent: Number of the trial it was made from, or None.
        space: The space that the genome belongs to.
        seconds: Wall time of the score.
    """

    number: int
    genome: tuple[int, ...] = field(repr=False)
    parameters: int
    score: Score
    generation: int
    origin: Origin
    parent: int | None
    space: BoundSpace = field(repr=False, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def genotype(self) -> Genotype:
        """Site name -> LayerConfig; decoded on every call, since a large search has many."""
        return self.space.decode(self.genome)

    @property
    def rank(self) -> tuple[float, int, int]:
        """The sort key that puts the best first: ties go to the smaller genotype, then to the older."""
        return -self.score.value, self.parameters, self.number


class Searcher(Protocol):
    """Asks for the genomes of the next generation and is told their scores.

    It is built as `cls(space, budget=..., min_budget=..., settings=cls.Settings(...), rng=...)`; `Settings` is a
    frozen dataclass that checks itself. The same generator and the same scores give the same asks.
    """

    Settings: ClassVar[type[Any]]

    def ask(self) -> list[Candidate]:
        """The next generation, none seen before; empty when the search is done."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take in the trials of all that was asked last."""
        ...


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: The trial with the highest score; ties go to the smaller genotype, then to the older.
        trials: Every trial, in the order of asking.
        front: The trials that no other beats in both score and trainable numbers, smallest first.
    """

    best: Trial
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]


def search(
    score: Callable[[Genotype], float | Score],
    space: BoundSpace,
    *,
    searcher: str = "evolution",
    budget: int | None = None,
    min_budget: int = 0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    journal: str | Path | None = None,
    context: Mapping[str, Any] | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """The best genotype within the budget, with every scored one and the front of score against size.

    Args:
        score: Genotype -> score, higher is better; called once per genotype.
        space: The search space at the sites of a model.
        searcher: A name in `SEARCHERS`.
        budget: Most trainable numbers, without the head; None for no limit.
        min_budget: Fewest trainable numbers.
        seed: The same seed and scores give the same search.
        settings: The searcher's own settings; unknown ones are errors.
        journal: An append-only JSONL file. A search started on the journal of a killed one takes the scores
            it finds there and goes on to the same end.
        context: Plain data that the scores depend on, such as fingerprints of weights and images. It is kept in
            the journal, and a journal of another context is refused.
        on_trial: Called with every trial, those from the journal too.

    Raises:
        BudgetError: No genotype keeps the budget; the message has the smallest and largest possible count.
        ConfigError: A setting is unknown or not allowed.
        RunError: The journal belongs to another search, or is damaged.
    """
    asker = new_searcher(
        space, searcher=searcher, budget=budget, min_budget=min_budget, seed=seed, settings=settings or {}
    )
    header = {
        "space": space_hash(space),
        "searcher": searcher,
        "settings": dataclasses.asdict(_settings(searcher, settings or {})),
        "budget": budget,
        "min_budget": min_budget,
        "seed": seed,
        "context": dict(context or {}),
    }
    book = Journal(journal, header)
    trials: list[Trial] = []
    generation = 0
    while candidates := asker.ask():
        asked = len(trials)
        for candidate in candidates:
            trials.append(_scored(candidate, len(trials), generation, score, space, book, trials))
            if on_trial:
                on_trial(trials[-1])
        asker.tell(trials[asked:])
        generation += 1
    book.finish(len(trials))
    return SearchResult(min(trials, key=lambda trial: trial.rank), tuple(trials), pareto_front(trials))


def new_searcher(
    space: BoundSpace, *, searcher: str, budget: int | None, min_budget: int, seed: int, settings: Mapping[str, Any]
) -> Searcher:
    """The searcher that `search` asks, its settings and the budget checked.

    Raises:
        BudgetError: No genotype keeps the budget.
        ConfigError: A setting is unknown or not allowed.
        UnknownNameError: There is no such searcher.
    """
    chosen, kind = _settings(searcher, settings), _kind(searcher)
    asker: Searcher = kind(space, budget=budget, min_budget=min_budget, settings=chosen, rng=random.Random(seed))
    return asker


def _kind(searcher: str) -> Any:
    return lookup(SEARCHERS, searcher, kind="searcher", remedy="List them: glora ls searchers")


def pareto_front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials that no other beats in both score and trainable numbers, smallest first; of equals the oldest."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.parameters, *trial.rank)):
        if not front or trial.score.value > front[-1].score.value:
            front.append(trial)
    return tuple(front)


def _scored(
    candidate: Candidate,
    number: int,
    generation: int,
    score: Callable[[Genotype], float | Score],
    space: BoundSpace,
    book: Journal,
    trials: Sequence[Trial],
) -> Trial:
    """The candidate's trial, with its score from the journal or newly made and written there."""
    genome, parameters, origin, parent = candidate
    base = None if parent is None else trials[parent].genome
    if recorded := book.recall(number, genome, base):
        value, error, seconds = recorded
    else:
        start = time.perf_counter()
        value, error = _checked(score(space.decode(genome)))
        seconds = round(time.perf_counter() - start, 6)
        record: dict[str, Any] = {"parameters": parameters, "score": value, "standard_error": error}
        record |= {"generation": generation, "origin": origin, "parent": parent, "seconds": seconds}
        book.write(number, genome, base, record)
    return Trial(number, genome, parameters, Score(value, error), generation, origin, parent, space, seconds)


def _checked(score: float | Score) -> Score:
    """The score as two floats; NaN becomes the worst score, for a diverged candidate must not win."""
    value, error = score if isinstance(score, tuple) else (score, 0.0)
    value, error = float(value), float(error)
    if value == math.inf or error < 0:
        raise ConfigError(
            f"The score function returned {score!r}.",
            allowed="A score is a finite number (NaN and -inf count as the worst), a standard error at least 0.",
        )
    return Score(-math.inf if math.isnan(value) else value, error if math.isfinite(error) else 0.0)


def _settings(searcher: str, given: Mapping[str, Any]) -> Any:
    """The searcher's settings from plain data; raises ConfigError on an unknown one."""
    kind = _kind(searcher)
    allowed = [item.name for item in dataclasses.fields(kind.Settings)]
    for name in given:
        if name not in allowed:
            near = nearest(name, allowed, n=1)
            raise ConfigError(
                f"The searcher {searcher!r} has no setting {name!r}.",
                allowed=f"Allowed: {', '.join(allowed)}.",
                remedy=f"Did you mean {near[0]!r}?" if near else "",
            )
    return kind.Settings(**given)
