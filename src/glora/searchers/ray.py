"""The same team on a Ray cluster: every worker is an actor with one CPU; Ray is imported on use (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glora.registry import optional_import
from glora.searchers.workers import Build, Message, Team, Worker, one_thread, timed

__all__ = ["RayTeam"]


class RayTeam(Team):
    """Workers on the Ray cluster that this process is connected to, that RAY_ADDRESS names, or a new one here.

    Args:
        build: Makes the score function, in every worker; what it imports must be installed on every node.
        size: Number of workers.
        limit: Seconds that a worker may take to start or for one job.
    """

    def __init__(self, build: Build, size: int, limit: float) -> None:
        super().__init__(build, size, limit)
        self.ray: Any = optional_import("ray", extra="cluster", purpose="A search on a Ray cluster")
        self.mine = not self.ray.is_initialized()
        if self.mine:
            self.ray.init(include_dashboard=False, log_to_driver=False)
        self.actor = self.ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
        self.shared = self.ray.put(build)

    def start(self) -> Worker:
        return _Remote(self.ray, self.actor.remote(), self.shared)

    def listen(self, workers: Sequence[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        remotes = {worker.answer: worker for worker in workers if isinstance(worker, _Remote)}
        ready, _ = self.ray.wait(list(remotes), num_returns=1, timeout=seconds)
        return [(remotes[answer], remotes[answer].receive()) for answer in ready]

    def close(self) -> None:
        super().close()
        if self.mine:
            self.ray.shutdown()


class _Actor:
    """What runs on the cluster."""

    def here(self) -> None:
        """Answers as soon as the actor has its CPU."""

    def ready(self, build: Build) -> Message:
        self.score = build()
        return Message("ready")

    def work(self, arguments: tuple[Any, ...]) -> Message:
        one_thread()
        return Message("done", *timed(self.score, arguments))


class _Remote(Worker):
    def __init__(self, ray: Any, actor: Any, build: Any) -> None:
        self.ray = ray
        self.actor = actor
        self.here = actor.here.remote()
        self.placed = False
        self.answer = actor.ready.remote(build)  # what it says next

    @property
    def waiting(self) -> bool:  # type: ignore[override]
        before, self.placed = self.placed, bool(self.ray.wait([self.here], timeout=0)[0])
        return not before

    def send(self, arguments: tuple[Any, ...]) -> None:
        self.answer = self.actor.work.remote(arguments)

    def receive(self) -> Message:
        try:
            return Message(*self.ray.get(self.answer))
        except self.ray.exceptions.RayTaskError as error:
            return Message("failed", str(error))
        except self.ray.exceptions.RayError as error:
            return Message("lost", str(error).partition("\n")[0])

    def stop(self) -> None:
        self.ray.kill(self.actor)
