"""Jobs in, scores out: from the journal, or by those who score, which is this process or a team of workers."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from glora.errors import ConfigError, RunError, whole, within
from glora.genotype import Genotype
from glora.registry import load, lookup
from glora.searchers.journal import Journal
from glora.searchers.trials import Score
from glora.searchers.workers import Build, Team, timed

__all__ = ["Done", "Job", "Measure", "Scorers", "measured", "new_scorers"]

LARGEST = 1e150  # of a value in a race: its square is finite
SCORE = (
    "A score is a number, higher is better, or glora.Score(value, standard_error): NaN and -inf count as the worst, "
    "inf is none, and a standard error is at least 0."
)
RACED = (
    "With racing it is called with a genotype and indices, and returns one number per index, such as a list of floats, "
    f"each at most {LARGEST:g}; NaN and -inf count as the worst."
)
TEAMS = {"local": "glora.searchers.workers:LocalTeam", "ray": "glora.searchers.ray:RayTeam"}


class Job(NamedTuple):
    """One candidate to score, on one piece of the examples; without a piece on all of them."""

    number: int
    genotype: Genotype
    piece: int | None = None
    indices: tuple[int, ...] = ()

    @property
    def arguments(self) -> tuple[Genotype] | tuple[Genotype, tuple[int, ...]]:
        """What the score function is called with."""
        return (self.genotype,) if self.piece is None else (self.genotype, self.indices)


class Done(NamedTuple):
    """A job's score, or its value per example; and how long it took."""

    job: Job
    found: Score | list[float]
    seconds: float


Measure = Callable[[Iterable[Job]], Iterator[Done]]  # in any order


class Scorers(Protocol):
    """Those who do the jobs."""

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Any, float]]:
        """The jobs with their results and seconds, as they are done; a job is taken when somebody is free for it."""
        ...

    def close(self) -> None:
        """They go home."""
        ...


def new_scorers(score: Any, workers: int, *, cluster: str | None = None, limit: float = 600.0) -> Scorers:
    """Those who score.

    Args:
        score: The score function. Worker processes get it by its module and name, so that it must stand at the top
            of a module; or it is the name of a builder, `"module:function"`, or an object with a method `build`:
            every worker calls that once, without arguments, to make its own score function.
        workers: Number of workers; 0 for this process.
        cluster: `"ray"` for workers on a Ray cluster; None for processes on this machine.
        limit: Seconds that a worker may take to start or for one job.

    Raises:
        ConfigError: The number or the limit is not allowed.
        UnknownNameError: There is no such cluster.
    """
    whole(workers, "workers")
    within(limit, "limit", 0, math.inf)
    if workers < (cluster is not None) or not limit:
        raise ConfigError(
            f"workers={workers}, cluster={cluster!r}, limit={limit}.",
            allowed="workers at least 0, on a cluster at least 1; a limit above 0 seconds.",
        )
    named = isinstance(score, str) and all(score.partition(":"))
    if isinstance(score, str) != named or not (named or callable(score) or hasattr(score, "build")):
        raise ConfigError(
            f"score={reprlib.repr(score)} is not allowed.",
            allowed="A function of a genotype, an object with a method `build`, or 'module:function' that makes one.",
        )
    build: Build = partial(_named, score) if isinstance(score, str) else partial(_itself, score)
    if hasattr(score, "build"):
        build = score.build
    if workers == 0:
        return _Here(build())
    team: Team = lookup(TEAMS, cluster or "local", kind="cluster")(build, workers, limit)
    return team


def _named(name: str) -> Callable[..., Any]:
    try:
        make = load(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"score={name!r} cannot be imported: {error}.", allowed="'module:function'.") from error
    score: Callable[..., Any] = make()
    return score


def _itself(score: Callable[..., Any]) -> Callable[..., Any]:
    return score


class _Here:
    """This process scores, with its own threads."""

    def __init__(self, score: Callable[..., Any]) -> None:
        self.score = score

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Any, float]]:
        for job in jobs:
            yield (job, *timed(self.score, job.arguments))

    def close(self) -> None:
        pass


def measured(jobs: Iterable[Job], team: Scorers, book: Journal) -> Iterator[Done]:
    """The jobs done: those in the journal at once, then the others by the workers, written down as they come."""
    missing = []
    for job in jobs:
        if record := book.recall("score", job.number, job.piece):
            yield Done(job, _recorded(job, record), record["seconds"])
        else:
            missing.append(job)

    def started() -> Iterator[Job]:
        for job in missing:
            book.write("start", job.number, **_piece(job))
            yield job

    for job, answer, took in team.run(started()):
        found = _checked(answer) if job.piece is None else _checked_values(answer, len(job.indices))
        seconds = round(took, 6)
        book.write("score", job.number, **_piece(job), **_told(found), seconds=seconds)
        yield Done(job, found, seconds)


def _piece(job: Job) -> dict[str, int]:
    return {} if job.piece is None else {"piece": job.piece}


def _told(found: Score | list[float]) -> dict[str, Any]:
    """What a score line says."""
    if isinstance(found, Score):
        return {"score": found.value, "standard_error": found.standard_error}
    return {"values": found}


def _recorded(job: Job, record: Mapping[str, Any]) -> Score | list[float]:
    """What a score line said; JSON has no -inf."""
    if job.piece is None:
        return Score(_worst_if_none(record["score"]), float(record["standard_error"]))
    if len(record["values"]) != len(job.indices):
        raise RunError(
            f"The journal has {len(record['values'])} values for the {len(job.indices)} examples of piece {job.piece} "
            f"of trial {job.number}.",
            remedy="It was edited: start on a new journal.",
        )
    return [_worst_if_none(value) for value in record["values"]]


def _worst_if_none(value: float | None) -> float:
    return -math.inf if value is None else float(value)


def _checked(answer: Any) -> Score:
    """The score as two floats; NaN becomes the worst score, for a diverged candidate must not win."""
    pair = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, 0.0)
    value, error = (_float(each, answer) for each in pair)
    if value == math.inf or error < 0:
        raise _no_score(answer)
    return Score(-math.inf if math.isnan(value) else value, error if math.isfinite(error) else 0.0)


def _checked_values(answer: Any, examples: int) -> list[float]:
    """A value per example as floats; NaN becomes the worst."""
    if isinstance(answer, str | bytes | Mapping) or not hasattr(answer, "__len__"):
        raise _no_score(answer, RACED)
    if len(answer) != examples:
        raise ConfigError(f"The score function returned {len(answer)} values for {examples} examples.", allowed=RACED)
    values = [_float(value, answer, RACED) for value in answer]
    if any(value > LARGEST or -math.inf < value < -LARGEST for value in values):
        raise _no_score(answer, RACED)
    return [-math.inf if math.isnan(value) else value for value in values]


def _float(value: Any, answer: Any, allowed: str = SCORE) -> float:
    """A number of any library as a float; raises ConfigError for what only looks like one."""
    kind = type(value).__name__.lower()
    try:
        if not hasattr(value, "__float__") or "bool" in kind or "bool" in str(getattr(value, "dtype", "")):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor of several numbers, 10**400, ...
        raise _no_score(answer, allowed) from None


def _no_score(answer: Any, allowed: str = SCORE) -> ConfigError:
    return ConfigError(f"The score function returned {reprlib.repr(answer)}.", allowed=allowed)
