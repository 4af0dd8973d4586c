"""Goes through what is left of a benchmark: first the learning rates, then the cells; nothing is done twice."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from glora.errors import ConfigError
from glora.files import held, write_text
from glora.report.result import Result
from glora.runs.benchmark.folder import BenchmarkFolder
from glora.runs.benchmark.protocols import note_of
from glora.runs.benchmark.rates import Rates, Try
from glora.runs.benchmark.settings import Benchmark, Cell, load_benchmark
from glora.runs.benchmark.view import BenchmarkView
from glora.runs.benchmark.work import Job, Work
from glora.runs.resolve import resolve
from glora.searchers.jobs import Executor, new_executor
from glora.searchers.link import Link
from glora.searchers.ranks import RankPool, dismiss
from glora.tasks.objective import Objective
from glora.tasks.task import DataSettings

__all__ = ["Outcome", "run_benchmark"]


@dataclass(frozen=True)
class Outcome:
    """Where a benchmark is.

    Attributes:
        results: The Results of all finished cells, in the order of the file.
        failed: The cells that have none.
    """

    results: tuple[Path, ...]
    failed: tuple[Cell, ...]


def run_benchmark(
    path: str | Path,
    out: str | Path | None = None,
    *,
    workers: int = 0,
    cluster: str | None = None,
    view: BenchmarkView | None = None,
    link: Link | None = None,
) -> Outcome:
    """All cells of a file: those that are not finished are run, killed ones go on, failed ones are tried again.

    Args:
        path: The benchmark's YAML file.
        out: Its folder; `results/NAME` by default.
        workers: Processes that do cells, one thread each; 0: this one, with its threads.
        cluster: `"ray"` puts the workers on a Ray cluster, whose nodes share the folder.
        view: Where to tell what is going on.
        link: Other processes that a launcher has started, which do cells too; this is the first of them.

    Raises:
        ConfigError: The file has errors, all are told; or there are both workers and other processes.
        RunError: The folder holds cells of other settings, or the workers fail.
    """
    benchmark = load_benchmark(path)
    folder = BenchmarkFolder(out or Path("results") / benchmark.settings.name)
    rates = Rates(benchmark, folder.rates, _group)
    view = view or BenchmarkView()
    folder.check(map(rates.settled, benchmark.cells))
    together = link if link is not None and link.size > 1 else None
    if together and workers:
        raise ConfigError(
            f"workers={workers} beside {together.size} processes.", remedy="Leave it out: each process does cells."
        )
    workers = together.size if together else workers
    work, limit = Work(view if workers == 0 else None), benchmark.settings.limit
    score = RankPool(work.build(), together, limit) if together else work
    with (
        held(folder.path, what=f"the benchmark in {folder.path}"),
        closing(new_executor(score, workers, cluster=cluster, limit=limit)) as executor,
    ):
        write_text(folder.file, Path(path).read_text(encoding="utf-8"))
        whole = _Going(benchmark, folder, rates, executor, view, workers)
        whole.choose_rates()
        failed = whole.run_cells()
    if together:
        dismiss(together)
    results = tuple(folder.result(cell) for cell in benchmark.cells if folder.done(cell))
    return Outcome(results, tuple(failed))


def _group(cell: Cell) -> str:
    """The group of a cell's task, which the data knows."""
    data, objective = cell.experiment.data, cell.experiment.objective
    return cast(DataSettings, data).load(cast(Objective, objective)).group


class _Going:
    """One call of a benchmark.

    Args:
        benchmark: The cells.
        folder: Where they are kept.
        rates: Their learning rates.
        executor: Does the jobs.
        view: Where to tell.
        workers: How many jobs are done side by side.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        folder: BenchmarkFolder,
        rates: Rates,
        executor: Executor,
        view: BenchmarkView,
        workers: int,
    ) -> None:
        self.benchmark = benchmark
        self.folder = folder
        self.rates = rates
        self.executor = executor
        self.view = view
        self.workers = workers
        self.lost: dict[str, str] = {}  # method -> why one of its tries has failed

    @property
    def left(self) -> list[Cell]:
        """The cells that are not finished."""
        return [cell for cell in self.benchmark.cells if not self.folder.done(cell)]

    def choose_rates(self) -> None:
        """Measures what is not measured yet of the methods that have cells left."""
        labels = list(dict.fromkeys(cell.label for cell in self.left if cell.tuned))
        measured = False
        while tries := self.rates.tries([label for label in labels if label not in self.lost]):
            self._measure(tries)  # more may follow, where a best rate is at an end of the grid
            measured = True
        if not measured:
            return
        if not self.lost:
            shutil.rmtree(self.folder.tries, ignore_errors=True)
        for label in labels:
            if note := self.rates.note(label):
                self.view.tell(f"{label}: {note}")

    def _measure(self, tries: Sequence[Try]) -> None:
        self.view.begin("rates", dict(Counter(each.label for each in tries)), {}, self.workers)
        jobs = [Job(each, "rate", self._asked(each, self.folder.trial(each.cell, each.rate))) for each in tries]
        for each, found, seconds in self._done(jobs):
            if "failed" in found:
                self.lost[each.label] = f"{each}: {found['failed']['message']}"
            else:
                self.rates.add(each, found["done"])
            self._ended(each, found, seconds, lambda done: _told(done["value"], f"val {done['metric']}"))
        self.view.end()

    def run_cells(self) -> list[Cell]:
        """Runs what is left; the cells that have no result."""
        settled = [self.rates.settled(cell) for cell in self.benchmark.cells]
        self.folder.check(settled)
        left = [cell for cell in settled if not self.folder.done(cell)]
        total = Counter(cell.label for cell in self.benchmark.cells)
        done = Counter(cell.label for cell in self.benchmark.cells if self.folder.done(cell))
        if not left:
            self.view.tell(f"All {total.total()} cells are finished.")
            return []
        self.view.begin("cells", dict(total), dict(done), self.workers)
        failed = self._without_rate([cell for cell in left if cell.tuned])
        jobs = [Job(cell, "cell", self._cell(cell)) for cell in left if not cell.tuned]
        for cell, found, seconds in self._done(jobs):
            if "failed" in found:
                self.folder.write_failure(cell, found["failed"])
                failed.append(cell)
            else:
                self.folder.write_result(cell, Result.from_json(found["done"]))
            self._ended(cell, found, seconds, _told_result)
        self.view.end()
        return failed

    def _without_rate(self, cells: list[Cell]) -> list[Cell]:
        """The same cells, whose methods have no learning rate: each has failed."""
        for label, count in Counter(cell.label for cell in cells).items():
            why = f"No learning rate was chosen. {self.lost.get(label) or self.rates.note(label)}"
            for cell in (cell for cell in cells if cell.label == label):
                self.folder.write_failure(cell, {"error": "RunError", "message": why})
            self.view.refused(label, count, why)
        return cells

    def _asked(self, what: Cell | Try, folder: Path) -> dict[str, Any]:
        """What a worker is told of a run: settings that are the same from any folder, scored by itself alone."""
        experiment = resolve(what.experiment)
        if self.workers:  # a worker has no workers of its own
            search = experiment.search.model_copy(update={"workers": 0, "cluster": None})
            experiment = experiment.model_copy(update={"search": search})
        return {"experiment": experiment.to_json(), "folder": str(folder)}

    def _cell(self, cell: Cell) -> dict[str, Any]:
        settings, rate = self.benchmark.settings, self.rates.note(cell.label)
        notes = [*note_of(settings.protocol), *([rate] if rate else [])]
        named = {"name": cell.name, "label": cell.label, "protocol": settings.protocol, "notes": notes}
        return {**self._asked(cell, self.folder.run(cell)), **named, "keep": settings.keep}

    def _done(self, jobs: Sequence[Job]) -> Iterator[tuple[Any, dict[str, Any], float]]:
        """Cells or tries with what came of them and the seconds, in the order in which they end."""

        def started() -> Iterator[Job]:
            for job in jobs:
                self.view.started(job.what.label, str(job.what))
                yield job

        for job, found, seconds in self.executor.run(cast(Any, started())):
            yield cast(Job, job).what, found, seconds

    def _ended(self, what: Any, found: dict[str, Any], seconds: float, told: Callable[[Any], str]) -> None:
        failed = "failed" in found
        text = found["failed"]["message"] if failed else told(found["done"])
        self.view.ended(what.label, str(what), seconds, told=text, failed=failed)


def _told(value: float | None, name: str) -> str:
    return "the training was lost" if value is None else f"{name} {value:.4f}"


def _told_result(result: dict[str, Any]) -> str:
    """The first metric on test, or on val where there is no test."""
    name = result["metrics_info"][0]["name"]
    split = "test" if f"test_{name}" in result["metrics"] else "val"
    return _told(result["metrics"].get(f"{split}_{name}"), f"{split} {name}")
