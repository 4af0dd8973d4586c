"""Scoring jobs: each calls the score function once, in this process or in a worker, and its result is journaled."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from glora.errors import ConfigError, RunError, whole, within
from glora.registry import load, lookup
from glora.searchers.journal import Journal
from glora.searchers.scores import checked_score, checked_values
from glora.searchers.trials import Score
from glora.searchers.workers import BuildScore, WorkerPool, timed

__all__ = ["Executor", "Job", "JobResult", "OutOfTime", "RunJobs", "new_executor", "run_jobs"]

WORKER_POOLS = {  # where the workers are; None of `search(cluster=...)` is "local"
    "local": "glora.searchers.workers:ProcessPool",
    "ray": "glora.searchers.ray:RayPool",
}


@dataclass(frozen=True, eq=False)  # a genotype need not be hashable: a job is equal to itself only
class Job:
    """One candidate to score: on all examples, or in a race on one piece of them.

    Attributes:
        number: The candidate's number.
        genotype: What the score function is called with.
        piece: Number of the piece; None for all examples.
        indices: The examples of the piece.
    """

    number: int
    genotype: Any
    piece: int | None = None
    indices: tuple[int, ...] = ()

    @property
    def arguments(self) -> tuple[Any] | tuple[Any, tuple[int, ...]]:
        """What the score function is called with."""
        return (self.genotype,) if self.piece is None else (self.genotype, self.indices)


class JobResult(NamedTuple):
    """What a job gave: a score, or in a race one value per example."""

    job: Job
    score: Score | list[float]
    seconds: float


class OutOfTime(Exception):
    """The time limit of the search has passed, and jobs are left that were not started."""


RunJobs = Callable[[Iterable[Job]], Iterator[JobResult]]  # `run_jobs` of one search; the results come in any order


class Executor(Protocol):
    """Calls the score function for jobs: this process, or a pool of workers."""

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Any, float]]:
        """The jobs with what the score function returned and the seconds it took, in the order in which they end.

        A job is taken from the iterator only when it can begin at once.
        """
        ...

    def close(self) -> None:
        """Ends the workers, if there are any."""
        ...


class InProcess:
    """Calls the score function in this process, which keeps its number of threads."""

    def __init__(self, score: Callable[..., Any]) -> None:
        self.score = score

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Any, float]]:
        for job in jobs:
            yield (job, *timed(self.score, job.arguments))

    def close(self) -> None:
        """There is nothing to end."""


def new_executor(score: Any, workers: int, *, cluster: str | None = None, limit: float = 600.0) -> Executor:
    """What runs the jobs of a search.

    Args:
        score: The score function. Worker processes get it by its module and name, so that it must stand at the top
            of a module. Or `"module:function"`, or an object with a method `build`: every worker calls that once,
            without arguments, to make a score function of its own. Or a pool of workers, which is taken as it is.
        workers: Number of workers; 0 for this process.
        cluster: `"ray"` for workers on a Ray cluster; None for processes on this machine.
        limit: Seconds that a worker may take to start or for one job.

    Raises:
        ConfigError: An argument is not allowed.
        UnknownNameError: There is no such cluster.
    """
    whole(workers, "workers")
    within(limit, "limit", 0, math.inf)
    if workers < (cluster is not None) or not limit:
        raise ConfigError(
            f"workers={workers}, cluster={cluster!r}, limit={limit}.",
            allowed="workers at least 0, on a cluster at least 1; a limit above 0 seconds.",
        )
    if isinstance(score, WorkerPool):
        return score
    build = _builder(score)
    if workers == 0:
        return InProcess(build())
    pool: WorkerPool = lookup(WORKER_POOLS, cluster or "local", kind="cluster")(build, workers, limit)
    return pool


def _builder(score: Any) -> BuildScore:
    """What makes the score function, in this process or in a worker: it must be picklable."""
    if hasattr(score, "build"):
        build: BuildScore = score.build
        return build
    if isinstance(score, str) and all(score.partition(":")):
        return partial(_build_by_name, score)
    if callable(score):
        return partial(_the_same, score)
    raise ConfigError(
        f"score={reprlib.repr(score)} is not allowed.",
        allowed="A function of a genotype, an object with a method `build`, or 'module:function' that makes one.",
    )


def _build_by_name(name: str) -> Callable[..., Any]:
    try:
        build = load(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"score={name!r} cannot be imported: {error}.", allowed="'module:function'.") from error
    score: Callable[..., Any] = build()
    return score


def _the_same(score: Callable[..., Any]) -> Callable[..., Any]:
    return score


def run_jobs(
    jobs: Iterable[Job], executor: Executor, journal: Journal, may_start: Callable[[], bool] = lambda: True
) -> Iterator[JobResult]:
    """The results of the jobs: first those that the journal has, then the others as they end, written to it.

    Args:
        jobs: The jobs.
        executor: Calls the score function.
        journal: Has the results of before, and is given the new ones.
        may_start: Asked before each job that is not in the journal.

    Raises:
        OutOfTime: A job was not started; all that were have given their results.
    """
    missing = list[Job]()
    for job in jobs:
        if record := journal.recall("score", job.number, job.piece):
            yield JobResult(job, _from_record(job, record), record["seconds"])
        else:
            missing.append(job)

    left = len(missing)

    def started() -> Iterator[Job]:
        for job in missing:
            if not may_start():
                return
            journal.write("start", job.number, **_piece(job))
            yield job

    for job, returned, took in executor.run(started()):
        score = checked_score(returned) if job.piece is None else checked_values(returned, len(job.indices))
        seconds = round(took, 6)
        journal.write("score", job.number, **_piece(job), **_to_record(score), seconds=seconds)
        yield JobResult(job, score, seconds)
        left -= 1
    if left:
        raise OutOfTime


def _piece(job: Job) -> dict[str, int]:
    return {} if job.piece is None else {"piece": job.piece}


def _to_record(score: Score | list[float]) -> dict[str, Any]:
    """The score in a `score` line of the journal."""
    if isinstance(score, Score):
        return {"score": score.value, "standard_error": score.standard_error}
    return {"values": score}


def _from_record(job: Job, record: Mapping[str, Any]) -> Score | list[float]:
    """The score of a `score` line; JSON has null for -inf."""
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
