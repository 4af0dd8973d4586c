"""Jobs spread over the processes of a run, as a launcher has started them; the first of them works too."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from glora.errors import RunError
from glora.searchers.link import GOES_ON, Link
from glora.searchers.workers import Message, Worker, WorkerPool, timed

__all__ = ["RankPool", "dismiss", "serve"]


class RankPool(WorkerPool):
    """The processes of a run as workers: what `serve` runs in the others, and the score function of this one.

    Every process makes a score function of its own, and keeps its number of threads.

    Args:
        score: The score function of this process.
        link: What connects the processes.
        limit: Seconds that a process may take to begin or for one job.
    """

    def __init__(self, score: Callable[..., Any], link: Link, limit: float) -> None:
        super().__init__(lambda: score, link.size, limit)
        self.link = link
        self.own = _Own(score)
        self.others = {connection: _Rank(connection, rank) for rank, connection in link.jobs.items()}
        self._not_started: list[Worker] = [self.own, *self.others.values()]

    def start(self) -> Worker:
        if not self._not_started:
            raise RunError(f"A process of the run is lost: {self.link.lost or 'it is silent.'}", remedy=GOES_ON)
        worker = self._not_started.pop()
        if isinstance(worker, _Rank):
            worker.say("make")
        return worker

    def listen(self, workers: Sequence[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        own = self.own in workers and self.own.todo
        found = self._heard(workers, 0.0 if own else seconds)
        if found or not own:
            return found
        message = self.own.work()
        return [(self.own, message), *self._heard(workers, 0.0)]  # those that have ended meanwhile are not silent

    def _heard(self, workers: Sequence[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        wanted = [connection for connection, worker in self.others.items() if worker in workers]
        if not wanted:
            return []
        return [(self.others[each], self.others[each].receive()) for each in wait(wanted, seconds)]  # type: ignore[index]

    def close(self) -> None:
        """The other processes wait for what comes next."""
        self.starting, self.idle, self.busy = [], [], {}
        self._not_started = [self.own, *self.others.values()]


class _Own(Worker):
    """This process, which works while it has nothing to hear."""

    def __init__(self, score: Callable[..., Any]) -> None:
        self.score = score
        self.ready = False
        self.arguments: tuple[Any, ...] | None = None

    @property
    def todo(self) -> bool:
        return not self.ready or self.arguments is not None

    def send(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def work(self) -> Message:
        if not self.ready:
            self.ready = True
            return Message("ready")
        arguments, self.arguments = self.arguments, None
        assert arguments is not None
        return Message("done", *timed(self.score, arguments))

    def stop(self) -> None:
        """It goes on."""


class _Rank(Worker):
    """Another process of the run."""

    def __init__(self, connection: Connection, rank: int) -> None:
        self.connection = connection
        self.rank = rank

    def say(self, what: str, *arguments: Any) -> None:
        try:
            self.connection.send((what, arguments))
        except OSError:
            pass  # lost: `receive` tells

    def send(self, arguments: tuple[Any, ...]) -> None:
        self.say("do", *arguments)

    def receive(self) -> Message:
        try:
            return Message(*self.connection.recv())
        except (EOFError, OSError) as error:
            raise RunError(f"Process {self.rank + 1} of the run has ended.", remedy=GOES_ON) from error

    def stop(self) -> None:
        """Only its launcher can end it."""


def dismiss(link: Link) -> None:
    """The other processes leave `serve`."""
    for connection in link.jobs.values():
        try:
            connection.send(("end", ()))
        except OSError:
            pass  # it is gone, and not needed any more


def serve(link: Link, make: Callable[[], Callable[..., Any]]) -> None:
    """Works for the first process of the run until that says that it is the end, or ends.

    Args:
        link: What connects the processes.
        make: Makes the score function, whenever a search begins.
    """
    connection, score = link.jobs[0], None
    while True:
        try:
            what, arguments = connection.recv()
            if what == "end":
                return
            if what == "make":
                score = make()
                connection.send(Message("ready"))
                continue
            assert score is not None
            connection.send(Message("done", *timed(score, arguments)))
        except (EOFError, OSError) as error:
            raise RunError(link.lost or "The first process of the run has ended.", remedy=GOES_ON) from error
        except Exception:
            connection.send(Message("failed", traceback.format_exc()))
