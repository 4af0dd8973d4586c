"""Workers on a Ray cluster: each is an actor with one CPU. Ray is imported when the pool is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glora.registry import optional_import
from glora.searchers.workers import BuildScore, Message, Worker, WorkerPool, timed, use_one_thread

__all__ = ["RayPool"]


class RayPool(WorkerPool):
    """Workers on the Ray cluster that this process is connected to, that RAY_ADDRESS names, or else a new local one.

    Args:
        build: Makes the score function, in every worker; what it imports must be installed on every node.
        size: Number of workers.
        limit: Seconds that a worker may take to start or for one job.
    """

    def __init__(self, build: BuildScore, size: int, limit: float) -> None:
        super().__init__(build, size, limit)
        self.ray: Any = optional_import("ray", extra="cluster", purpose="A search on a Ray cluster")
        self.shuts_down = not self.ray.is_initialized()  # a connection made by somebody else stays
        if self.shuts_down:
            self.ray.init(include_dashboard=False, log_to_driver=False)
        self.actor = self.ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
        self.shared_build = self.ray.put(build)  # once for all workers

    def start(self) -> Worker:
        return _RayWorker(self.ray, self.actor.remote(), self.shared_build)

    def listen(self, workers: Sequence[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        by_answer = {worker.answer: worker for worker in workers if isinstance(worker, _RayWorker)}
        ready, _ = self.ray.wait(list(by_answer), num_returns=1, timeout=seconds)
        return [(by_answer[answer], by_answer[answer].receive()) for answer in ready]

    def close(self) -> None:
        super().close()
        if self.shuts_down:
            self.ray.shutdown()


class _Actor:
    """What runs on the cluster."""

    def ping(self) -> None:
        """Answers as soon as the actor has its CPU."""

    def ready(self, build: BuildScore) -> Message:
        self.score = build()
        return Message("ready")

    def work(self, arguments: tuple[Any, ...]) -> Message:
        use_one_thread()
        return Message("done", *timed(self.score, arguments))


class _RayWorker(Worker):
    def __init__(self, ray: Any, actor: Any, build: Any) -> None:
        self.ray = ray
        self.actor = actor
        self.pong = actor.ping.remote()
        self.has_cpu = False
        self.answer = actor.ready.remote(build)  # its next message

    @property
    def waiting(self) -> bool:  # type: ignore[override]
        before, self.has_cpu = self.has_cpu, bool(self.ray.wait([self.pong], timeout=0)[0])
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
