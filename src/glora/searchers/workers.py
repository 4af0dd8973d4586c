"""Worker processes that do jobs and are replaced when they die or hang (no torch).

A job is anything with `arguments`, what the score function is called with. Every worker makes its own score function
and uses one thread, so that a score does not depend on who made it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from glora.errors import ConfigError, RunError

__all__ = ["Build", "LocalTeam", "Message", "Team", "Worker", "one_thread", "timed"]

LOSSES = 10  # workers lost over one job, or in a row before one is ready: then it is no accident

Build = Callable[[], Callable[..., Any]]  # makes the score function

log = logging.getLogger("glora")


class _Job(Protocol):
    @property
    def arguments(self) -> tuple[Any, ...]: ...


def timed(score: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """The score and the seconds it took."""
    start = time.perf_counter()
    return score(*arguments), time.perf_counter() - start


def one_thread() -> None:
    """From now on torch, where it is loaded, uses one thread."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


class Message(NamedTuple):
    """What a worker says: it is `ready`, a job is `done`, the score function has `failed`, the worker is `lost`."""

    kind: str
    result: Any = None
    seconds: float = 0.0


class Worker(ABC):
    """One worker. Made, it builds its score function and says that it is ready.

    Attributes:
        deadline: When it must have said something, on the monotonic clock.
        waiting: Whether it had no place to start at when this was last asked.
    """

    deadline = 0.0
    waiting = False

    @abstractmethod
    def send(self, arguments: tuple[Any, ...]) -> None:
        """Hands it a job; a worker that is lost is heard of later."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it, whatever it is doing."""


class Team(ABC):
    """Workers side by side. What one of them has lost, another does again.

    Args:
        build: Makes the score function, in every worker.
        size: Number of workers.
        limit: Seconds that a worker may take to start or for one job.
    """

    def __init__(self, build: Build, size: int, limit: float) -> None:
        self.build = build
        self.size = size
        self.limit = limit
        self.starting: list[Worker] = []
        self.free: list[Worker] = []
        self.busy: dict[Worker, _Job] = {}
        self.unready = 0  # workers lost in a row before one was ready

    @abstractmethod
    def start(self) -> Worker:
        """One more worker."""

    @abstractmethod
    def listen(self, workers: Sequence[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        """What they have said, at most one message of each; waits for the first, but not longer than that."""

    def run(self, jobs: Iterator[Any]) -> Iterator[tuple[Any, Any, float]]:
        """The jobs with their results and seconds, as they are done.

        Raises:
            ConfigError: The score function cannot be sent to another process.
            RunError: It fails, or one job or the start has ended too many workers.
        """
        todo, losses, done = list[_Job](), Counter[_Job](), list[tuple[_Job, Any, float]]()
        while done or todo or self.busy or (todo := list(islice(jobs, 1))):  # without a job nobody starts
            while len(self.starting) + len(self.free) + len(self.busy) < self.size:
                self.starting.append(self._from_now(self.start()))
            while self.free and (todo or (todo := list(islice(jobs, 1)))):
                worker = self._from_now(self.free.pop())
                self.busy[worker] = todo.pop()
                worker.send(self.busy[worker].arguments)
            yield from done  # while the others work
            done = []
            for worker, (kind, result, seconds) in self._heard() if todo or self.busy else ():
                if kind == "failed":
                    raise RunError(f"The score function failed in a worker:\n{result}")
                job = self.busy.pop(worker, None)
                if job is None:
                    self.starting.remove(worker)
                if kind == "lost":
                    worker.stop()
                    self._count(job, losses, result)
                    todo += [] if job is None else [job]
                    continue
                self.free.append(worker)
                if job is None:
                    self.unready = 0
                else:
                    done.append((job, result, seconds))

    def _from_now(self, worker: Worker) -> Worker:
        worker.deadline = time.monotonic() + self.limit
        return worker

    def _heard(self) -> list[tuple[Worker, Message]]:
        """The messages of those at work, and for those who are silent beyond their deadline that they are lost."""
        working = [*self.starting, *self.busy]
        first = min(worker.deadline for worker in working)
        heard = self.listen(working, max(0.0, first - time.monotonic()))
        told, now = {worker for worker, _ in heard}, time.monotonic()
        late = Message("lost", f"it said nothing for {self.limit:g} seconds")
        for worker in (each for each in working if each not in told and each.deadline <= now):
            if worker in self.starting and worker.waiting:
                log.warning("A worker waits for a free CPU on the cluster: ask for fewer, or let it grow.")
                self._from_now(worker)
            else:
                heard.append((worker, late))
        return heard

    def _count(self, job: _Job | None, losses: Counter[_Job], reason: str) -> None:
        """One more loss; raises RunError when it is one too many."""
        log.warning("A worker was lost: %s. Another takes its place.", reason)
        if job is None:
            self.unready += 1
        else:
            losses[job] += 1
        if max(self.unready, *losses.values(), 0) >= LOSSES:
            raise RunError(
                f"{LOSSES} workers were lost {'before one was ready' if job is None else 'over one job'}: {reason}.",
                remedy="Read what they wrote above. A script that searches with workers needs the line "
                "`if __name__ == '__main__':`; a slow score needs a higher limit; a large one more memory.",
            )

    def close(self) -> None:
        """Ends all workers."""
        for worker in (*self.starting, *self.free, *self.busy):
            worker.stop()
        self.starting, self.free, self.busy = [], [], {}


class LocalTeam(Team):
    """Processes on this machine, started afresh (`spawn`)."""

    def start(self) -> Worker:
        return _Process(self.build)

    def listen(self, workers: Sequence[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        processes = [worker for worker in workers if isinstance(worker, _Process)]
        ready = wait([each for worker in processes for each in (worker.connection, worker.process.sentinel)], seconds)
        return [
            (worker, worker.receive())
            for worker in processes
            if worker.connection in ready or worker.process.sentinel in ready
        ]


class _Process(Worker):
    def __init__(self, build: Build) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, build), daemon=True)
        try:
            self.process.start()
        except OSError:
            raise  # no process can be started at all
        except Exception as error:  # what cannot be sent raises PicklingError, AttributeError, TypeError, ...
            raise ConfigError(
                f"The score function cannot be sent to a worker process: {error}.",
                allowed="A function at the top of a module, or an object that can be pickled.",
                remedy="Or give 'module:function', which every worker calls to make its own score function.",
            ) from error
        theirs.close()

    def send(self, arguments: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(arguments)

    def receive(self) -> Message:
        try:
            if self.connection.poll():
                return Message(*self.connection.recv())
        except (EOFError, OSError):
            pass
        self.process.join(1)
        return Message("lost", f"process {self.process.pid} ended with code {self.process.exitcode}")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, build: Build) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the searching process's, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        score = build()
        connection.send(Message("ready"))
        while True:
            arguments = connection.recv()
            one_thread()
            connection.send(Message("done", *timed(score, arguments)))
    except EOFError:
        return
    except Exception:
        connection.send(Message("failed", traceback.format_exc()))


def _end_with_parent() -> None:
    """A search that was killed leaves no process behind, not even one that hangs."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
