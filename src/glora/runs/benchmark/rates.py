"""Choosing a learning rate for each method on val: a short grid, the same number of image-steps for all.

No test example is read: a try is trained, and its val examples are measured. Of a method that searches, its largest
genotype plays, and all val examples count.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from glora.config import Experiment
from glora.errors import GloraError, RunError, StateError
from glora.files import read_json, write_json
from glora.methods.method import Method
from glora.report.outcome import digest
from glora.runs.benchmark.settings import Benchmark, Cell, RateSettings
from glora.runs.judging import Judging
from glora.runs.run import Reporter, Run

__all__ = ["Rates", "Try", "measure"]

ALONE: dict[str, Any] = {"rescore": 0, "controls": 0, "control": "none", "polish": 0}  # nothing is searched
ALONE_TRAINED: dict[str, Any] = {"restart": False, "final": "train"}


@dataclass(frozen=True)
class Try:
    """One method on one task with one rate of the grid.

    Attributes:
        cell: The first of the method's cells on the task. rate: The learning rate.
        experiment: What is trained.
        given: Short name of what the file says of it.
    """

    cell: Cell
    rate: float
    experiment: Experiment
    given: str

    @classmethod
    def of(cls, cell: Cell, rate: float, settings: RateSettings) -> Try:
        """The try of a rate: a seed of its own, few epochs, as it is; val is whole."""
        own = cell.experiment
        data = {**own.data.model_dump(), "aside": 0, "folds": 1}
        data |= {"splits": "train800"} if "splits" in data else {}
        experiment = own.with_(
            seed=settings.seed,
            train={**own.train.model_dump(), "lr": rate, "epochs": settings.epochs, **ALONE_TRAINED},
            data=data,
            search={**own.search.model_dump(), **ALONE},
        )
        return cls(cell, rate, experiment, digest(list(cell.given), rate, settings.epochs, settings.seed))

    @property
    def label(self) -> str:
        """What the method is called."""
        return self.cell.label

    def __str__(self) -> str:
        return f"{self.label} on {self.cell.task}, learning rate {self.rate:g}"


def measure(experiment: Experiment, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """What a try does on val, and what it has cost; its folder, in which a killed one goes on, is gone afterwards.

    A training whose loss is no number any more has no value.
    """
    run = Run(experiment, folder, reporter)
    session, val = run.session, run.session.data.val
    metric = session.objective.metrics[0]
    found: dict[str, Any] = {"metric": metric.name, "higher": metric.higher, "value": None, "loss": None}
    try:
        run.train()
    except StateError as error:
        found["diverged"] = error.cause
    else:
        largest = None if run.tuned.space is None else run.tuned.space.largest
        judged = Judging(session, run.tuned, val, [largest])()
        found |= {"value": judged.value, "loss": judged.plain}
        found |= {"seconds": run.folder.seconds()["train"], "example_steps": run.folder.example_steps()}
    shutil.rmtree(folder)
    return {**found, "examples": len(val), "epochs": experiment.train.epochs}


class Rates:
    """The learning rates of a benchmark, in `rates.json`: what was measured, and what is chosen from it.

    Args:
        benchmark: The cells.
        file: `rates.json`.
        group: Cell -> the group of its task; asked where the file names no tasks and none were chosen before.

    Raises:
        RunError: The file is damaged.
    """

    def __init__(self, benchmark: Benchmark, file: Path, group: Callable[[Cell], str]) -> None:
        self.benchmark = benchmark
        self.settings = benchmark.settings.rates
        self.file = file
        self.group = group
        self.known: dict[str, Any] = _read(file)
        self._made: dict[tuple[str, str, float], Try] = {}

    def tries(self, labels: Iterable[str]) -> list[Try]:
        """Those of these methods that are not measured yet."""
        return [each for label in labels for each in self._grid(label) if self._measured(each) is None]

    def _grid(self, label: str) -> list[Try]:
        """All tries of a method; where the best rate is at an end of what is measured, also those one step further."""
        assert self.settings is not None
        cells = self._cells(label)
        rates = self.settings.rates(cast(Method, cells[0].experiment.method).lr) if cells else []
        for _ in range(self.settings.extend):
            choice = self._chosen(label, cells, rates)
            if choice is None or not choice.edge:
                break
            first, second = rates[:2] if choice.edge == "lowest" else rates[:-3:-1]
            rates = sorted([*rates, float(f"{first * first / second:.3g}")])
        return self._tries(label, cells, rates)

    def _cells(self, label: str) -> list[Cell]:
        """The first cell of a method on each of the tasks."""
        firsts = {cell.task: cell for cell in reversed(self.benchmark.cells) if cell.label == label and cell.tuned}
        return [firsts[task] for task in self.tasks() if task in firsts]

    def _tries(self, label: str, cells: Sequence[Cell], rates: Sequence[float]) -> list[Try]:
        assert self.settings is not None
        for cell in cells:
            for rate in rates:
                if (key := (label, cell.task, rate)) not in self._made:
                    self._made[key] = Try.of(cell, rate, self.settings)
        return [self._made[label, cell.task, rate] for cell in cells for rate in rates]

    def _chosen(self, label: str, cells: Sequence[Cell], rates: Sequence[float]) -> Choice | None:
        """The best of these rates; None as long as one is not measured."""
        runs = [self._measured(each) for each in self._tries(label, cells, rates)]
        return Choice.of([run for run in runs if run is not None]) if runs and None not in runs else None

    def tasks(self) -> tuple[str, ...]:
        """On which tasks rates are tried; once chosen they stay, as long as the file has them.

        Raises:
            GloraError: No task can be loaded; of several only those that can are asked for their group.
        """
        if self.settings is not None and self.settings.tasks:
            return self.settings.tasks
        known = self.known.get("tasks", [])
        if not known or not {*known} <= {*self.benchmark.tasks}:
            known = self.known["tasks"] = self._first_of_each_group()
        return tuple(known)

    def _first_of_each_group(self) -> list[str]:
        firsts: dict[str, str] = {}
        wrong: list[GloraError] = []
        for task in self.benchmark.tasks:
            try:
                group = self.group(next(cell for cell in self.benchmark.cells if cell.task == task))
            except GloraError as error:  # its cells tell it too
                wrong.append(error)
            else:
                firsts.setdefault(group, task)
        if not firsts:
            raise wrong[0]
        return list(firsts.values())

    def _measured(self, each: Try) -> dict[str, Any] | None:
        runs = self.known.get("methods", {}).get(each.label, {}).get("runs", [])
        found: dict[str, Any] | None = next((run for run in runs if run["given"] == each.given), None)
        return found

    def add(self, each: Try, measured: Mapping[str, Any]) -> None:
        """One more measurement; the file has it, and with the last of a method the choice."""
        methods = self.known.setdefault("methods", {})
        method = methods.setdefault(each.label, {})
        run = {"task": each.cell.task, "rate": each.rate, "given": each.given, **measured}
        wanted = {other.given for other in self._grid(each.label)}
        method["runs"] = [other for other in method.get("runs", []) if other["given"] in wanted] + [run]
        if (choice := self.choice(each.label)) is not None:
            methods[each.label] = {**choice.to_json(), "runs": method["runs"]}
        write_json(self.file, self.known)

    def choice(self, label: str) -> Choice | None:
        """What is chosen for a method; None as long as something is not measured."""
        runs = [self._measured(each) for each in self._grid(label)]
        return Choice.of([run for run in runs if run is not None]) if runs and None not in runs else None

    def settled(self, cell: Cell) -> Cell:
        """The cell with its rate; as it is where that is given in the file, not chosen yet, or out of reach."""
        choice = self.choice(cell.label) if cell.tuned and self.known.get("methods", {}).get(cell.label) else None
        return cell if choice is None or choice.rate is None else cell.at(choice.rate)

    def note(self, label: str) -> str:
        """How the rate of a method was chosen, for its results; empty where it was not."""
        tuned = any(cell.tuned for cell in self.benchmark.cells if cell.label == label)
        choice = self.choice(label) if tuned else None
        return "" if choice is None or self.settings is None else choice.told(self.settings.seed)


@dataclass(frozen=True)
class Choice:
    """The rate with the best mean of the first metric over the tasks; of equal ones that of the lower loss.

    Attributes:
        rate: The learning rate; None where every one has lost the training on a task.
        edge: `lowest` or `highest`, where it is at the end of the grid; else empty.
        means: For each rate, lowest first: `rate`, mean `value` and mean `loss`; None where a training was lost.
        metric: What `value` is. tasks: On which tasks. epochs: Of each try.
    """

    rate: float | None
    edge: str
    means: tuple[Mapping[str, float | None], ...]
    metric: str
    tasks: tuple[str, ...]
    epochs: int

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]]) -> Choice:
        """The choice from all measurements of a method."""
        rates = sorted({run["rate"] for run in runs})
        means = tuple(_means(rate, [run for run in runs if run["rate"] == rate]) for rate in rates)
        sign = 1 if runs[0]["higher"] else -1
        able = [each for each in means if each["value"] is not None]
        order = [(sign * (each["value"] or 0.0), -(each["loss"] or 0.0)) for each in able]
        best = able[order.index(max(order))]["rate"] if able else None
        ends = {rates[0]: "lowest", rates[-1]: "highest"} if len(rates) > 1 and best is not None else {}
        tasks = tuple(dict.fromkeys(run["task"] for run in runs))
        return cls(best, ends.get(best or 0.0, ""), means, runs[0]["metric"], tasks, runs[0]["epochs"])

    def told(self, seed: int) -> str:
        """It in words."""
        value = next((each["value"] for each in self.means if each["rate"] == self.rate), None)
        if self.rate is None or value is None:
            every = ", ".join(f"{each['rate']:g}" for each in self.means)
            return f"Every learning rate of the grid, {every}, lost the training: give it lower ones."
        edge = f", the {self.edge} of the grid: another may be better" if self.edge else ""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return (
            f"Learning rate {self.rate:g} of {len(self.means)}, chosen on val: mean {self.metric} {value:.4f} on "
            f"{', '.join(self.tasks)} after {epochs}, seed {seed}{edge}."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for `rates.json`."""
        return {
            "rate": self.rate,
            "edge": self.edge,
            "metric": self.metric,
            "tasks": list(self.tasks),
            "epochs": self.epochs,
            "means": [dict(each) for each in self.means],
        }


def _means(rate: float, runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Over the tasks; None where a training was lost or a number is not finite."""
    found: dict[str, float | None] = {"rate": rate}
    for name in ("value", "loss"):
        every = [run[name] for run in runs]
        whole = all(each is not None and math.isfinite(each) for each in every)
        found[name] = math.fsum(every) / len(every) if whole else None
    return found if found["loss"] is not None else {**found, "value": None}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    remedy = "Delete it: rates are then chosen again."
    found = read_json(file, remedy=remedy)
    if not isinstance(found, dict):
        raise RunError(f"{file} cannot be read: it is no mapping.", remedy=remedy)
    return found
