"""Worker processes that call the score function for jobs, and are replaced when they die or hang.

A job is anything with `arguments`, what the score function is called with. Every worker makes a score function of its
own and uses one thread, so that a score does not depend on the worker it comes from.
"""

from __future__ import annotations

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

__all__ = ["BuildScore", "Message", "ProcessPool", "Worker", "WorkerPool", "timed", "use_one_thread"]

LOSSES = 10  # workers lost over one job, or in a row while starting, after which the search gives up

BuildScore = Callable[[], Callable[..., Any]]  # makes the score function

log = logging.getLogger("glora")


class _Job(Protocol):
    @property
    def arguments(self) -> tuple[Any, ...]: ...


def timed(score: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """The score and the seconds it took."""
    start = time.perf_counter()
    return score(*arguments), time.perf_counter() - start


def use_one_thread() -> None:
    """Lets torch use one thread from now on, if the score function has loaded it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


class Message(NamedTuple):
    """What a worker says, or what is said of it.

    Attributes:
        kind: `"ready"` for jobs; `"done"` with a job; `"failed"`, when the score function raised; `"lost"`, when the
            worker died or hangs.
        result: What the score function returned, its traceback, or how the worker was lost.
        seconds: Time that the job took.
    """

    kind: str
    result: Any = None
    seconds: float = 0.0


class Worker(ABC):
    """One worker. As soon as it is made it builds its score function, and then says that it is ready.

    Attributes:
        deadline: When it counts as lost unless it has said something, on the monotonic clock.
        waiting: Whether it had no CPU to start on when this was last asked.
    """

    deadline = 0.0
    waiting = False

    @abstractmethod
    def send(self, arguments: tuple[Any, ...]) -> None:
        """Hands it a job. If the worker is lost, `listen` will tell."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it at once, whatever it is doing."""


class WorkerPool(ABC):
    """Several workers side by side. The job of a lost worker is done by another one.

    Args:
        build: Makes the score function, in every worker.
        size: Number of workers.
        limit: Seconds that a worker may take to start or for one job.
    """

    def __init__(self, build: BuildScore, size: int, limit: float) -> None:
        self.build = build
        self.size = size
        self.limit = limit
        self.starting: list[Worker] = []
        self.idle: list[Worker] = []
        self.busy: dict[Worker, _Job] = {}
        self.failed_starts = 0  # in a row
        self.losses = Counter[_Job]()

    @abstractmethod
    def start(self) -> Worker:
        """One more worker."""

    @abstractmethod
    def listen(self, workers: Sequence[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        """Their messages, at most one of each worker; waits for the first one, but no longer than these seconds."""

    def run(self, jobs: Iterator[Any]) -> Iterator[tuple[Any, Any, float]]:
        """The jobs with their results and seconds, in the order in which they end. Without a job no worker is started.

        Raises:
            ConfigError: The score function cannot be sent to another process.
            RunError: It fails, or one job or the start has ended too many workers.
        """
        todo, done = list[_Job](), list[tuple[_Job, Any, float]]()  # todo: not sent yet, or lost with a worker
        while done or todo or self.busy or (todo := list(islice(jobs, 1))):
            while len(self.starting) + len(self.idle) + len(self.busy) < self.size:
                self.starting.append(self._with_deadline(self.start()))
            while self.idle and (todo or (todo := list(islice(jobs, 1)))):
                worker = self._with_deadline(self.idle.pop())
                self.busy[worker] = todo.pop()
                worker.send(self.busy[worker].arguments)
            yield from done  # while the workers work
            done = []
            for worker, message in self._messages() if todo or self.busy else ():
                job = self._freed(worker, message)
                if job is not None and message.kind == "lost":
                    todo.append(job)
                elif job is not None:
                    done.append((job, message.result, message.seconds))

    def _freed(self, worker: Worker, message: Message) -> _Job | None:
        """The job that the worker had, if any. The worker is idle now, or ended if it was lost."""
        if message.kind == "failed":
            raise RunError(f"The score function failed in a worker:\n{message.result}")
        job = self.busy.pop(worker, None)
        if job is None:
            self.starting.remove(worker)
        if message.kind == "lost":
            worker.stop()
            self._count_loss(job, message.result)
            return job
        if job is None:
            self.failed_starts = 0
        self.idle.append(worker)
        return job

    def _with_deadline(self, worker: Worker) -> Worker:
        worker.deadline = time.monotonic() + self.limit
        return worker

    def _messages(self) -> list[tuple[Worker, Message]]:
        """The messages of those that start or work; a worker that is silent beyond its deadline counts as lost."""
        working = [*self.starting, *self.busy]
        first = min(worker.deadline for worker in working)
        messages = self.listen(working, max(0.0, first - time.monotonic()))
        heard, now = {worker for worker, _ in messages}, time.monotonic()
        lost = Message("lost", f"it said nothing for {self.limit:g} seconds")
        for worker in (each for each in working if each not in heard and each.deadline <= now):
            if worker in self.starting and worker.waiting:
                log.warning("A worker waits for a free CPU on the cluster: ask for fewer, or let it grow.")
                self._with_deadline(worker)
            else:
                messages.append((worker, lost))
        return messages

    def _count_loss(self, job: _Job | None, reason: str) -> None:
        """Counts one more loss; raises RunError when it is one too many."""
        log.warning("A worker was lost: %s. Another takes its place.", reason)
        if job is None:
            self.failed_starts += 1
        else:
            self.losses[job] += 1
        if max(self.failed_starts, *self.losses.values(), 0) >= LOSSES:
            raise RunError(
                f"{LOSSES} workers were lost {'before one was ready' if job is None else 'over one job'}: {reason}.",
                remedy="Read what they wrote above. A script that searches with workers needs the line "
                "`if __name__ == '__main__':`; a slow score needs a higher limit; a large one more memory.",
            )

    def close(self) -> None:
        """Ends all workers."""
        for worker in (*self.starting, *self.idle, *self.busy):
            worker.stop()
        self.starting, self.idle, self.busy = [], [], {}


class ProcessPool(WorkerPool):
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
    def __init__(self, build: BuildScore) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, worker_end = context.Pipe()
        self.process = context.Process(target=_work, args=(worker_end, build), daemon=True)
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
        worker_end.close()

    def send(self, arguments: tuple[Any, ...]) -> None:
        try:
            self.connection.send(arguments)
        except OSError:
            pass  # lost: `receive` tells
        except Exception as error:  # as above
            raise ConfigError(
                f"A genotype cannot be sent to a worker process: {error}.",
                allowed="`space.decode` returns what can be pickled.",
            ) from error

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


def _work(connection: Connection, build: BuildScore) -> None:
    """What runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the searching process, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        score = build()
        connection.send(Message("ready"))
        while True:
            arguments = connection.recv()
            use_one_thread()
            connection.send(Message("done", *timed(score, arguments)))
    except EOFError:
        return
    except Exception:
        connection.send(Message("failed", traceback.format_exc()))


def _end_with_parent() -> None:
    """Ends this process when the search is killed, even if its score function hangs."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
