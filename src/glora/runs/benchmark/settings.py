"""A benchmark's YAML file -> its cells, each a checked experiment; all errors told together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, ValidationError, model_validator

from glora.backbones import unknown_name
from glora.config import Experiment, all_errors, try_experiment
from glora.methods.method import Method
from glora.runs.benchmark.protocols import recipe_of
from glora.settings import Settings, Written, merged, opened, problems_of, read_written

__all__ = [
    "Benchmark",
    "BenchmarkSettings",
    "Cell",
    "MethodRow",
    "RateSettings",
    "TaskRow",
    "build_benchmark",
    "load_benchmark",
]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Seeds = tuple[int, ...]


class TaskRow(Settings):
    """One task: data settings, or a source's name alone; with `data:` in it, settings of other groups beside them."""

    label: str = Field("", description="What files call it; by the source where not given.")
    data: dict[str, Any] = Field(description="Settings of the data.")
    objective: dict[str, Any] = Field({}, description="What is learned, where it is not classification.")
    model: dict[str, Any] = Field({}, description="Settings of the model, for this task.")
    train: dict[str, Any] = Field({}, description="Settings of the training, for this task.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"data": {"source": value}}
        if isinstance(value, Mapping) and "data" not in value:
            own = {key: item for key, item in value.items() if key == "label"}
            return {**own, "data": {key: item for key, item in value.items() if key != "label"}}
        return _opened(value)

    @property
    def layer(self) -> dict[str, Any]:
        """What lies on the benchmark's own settings, as an experiment has it."""
        every = self.model_dump(exclude={"label"})
        return {group: settings for group, settings in every.items() if settings}


class MethodRow(Settings):
    """One row of the tables: a method's name alone, or its settings with those that go with it."""

    label: str = Field("", description="What tables and files call it; by the method's own title where not given.")
    method: dict[str, Any] = Field(description="Settings of the method.")
    seeds: Seeds | None = Field(None, min_length=1, description="Seeds of this method, where they are others.")
    preset: str | None = Field(None, description="The preset underneath, for this method.")
    model: dict[str, Any] = Field({}, description="Settings of the model, for this method.")
    data: dict[str, Any] = Field({}, description="Settings of the data, for this method.")
    train: dict[str, Any] = Field({}, description="Settings of the training, for this method.")
    search: dict[str, Any] = Field({}, description="Settings of the search, for this method.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"method": {"name": value}} if isinstance(value, str) else _opened(value)

    @property
    def layer(self) -> dict[str, Any]:
        """What lies on the benchmark's own settings and on the task's, as an experiment has it."""
        every = self.model_dump(exclude={"label", "seeds"})
        return {group: settings for group, settings in every.items() if settings}


class RateSettings(Settings):
    """How learning rates are chosen on val; a method whose `train.lr` is given is not tuned."""

    grid: tuple[float, ...] = Field((), description="The learning rates that are tried, the same for all methods.")
    factors: tuple[float, ...] = Field(
        (), description="Or what each method's own rate is multiplied by: good rates differ by orders of magnitude."
    )
    extend: int = Field(
        0, ge=0, description="Most further rates that are tried beyond an end of the grid, while the best is there."
    )
    epochs: int = Field(5, ge=1, description="Epochs of a try.")
    seed: int = Field(1000, ge=0, description="Seed of the tries.")
    tasks: tuple[str, ...] = Field((), description="Labels of the tasks; the first of each group where not given.")

    @model_validator(mode="after")
    def _grid(self) -> RateSettings:
        if bool(self.grid) == bool(self.factors):
            raise ValueError("give either grid or factors")
        for name, numbers in (("grid", self.grid), ("factors", self.factors)):
            if any(not number > 0 for number in numbers) or len({*numbers}) < len(numbers):
                raise ValueError(f"{name}={list(numbers)}: numbers above 0 are needed, each once")
        return self

    def rates(self, own: float) -> list[float]:
        """The learning rates that are tried, lowest first.

        Args:
            own: The method's own.
        """
        return sorted(self.grid) or [float(f"{factor * own:.3g}") for factor in sorted(self.factors)]


class BenchmarkSettings(Settings):
    """The file, its rows opened but not yet put together."""

    name: str = Field(pattern=NAME, description="Of the folder with the results: letters, digits, `.`, `_` and `-`.")
    protocol: Literal["honest", "paper"] = Field("honest", description="Who chooses, and the recipe underneath.")
    seeds: Seeds = Field((0,), min_length=1, description="Seeds of every method that has none of its own.")
    split_seeds: Literal["fixed", "cell"] = Field(
        "fixed", description="'cell': the data's split_seed, or list_seed where it has lists, is the cell's seed."
    )
    settings: dict[str, Any] = Field({}, description="Settings under every cell, as an experiment has them.")
    tasks: tuple[TaskRow, ...] = Field(min_length=1, description="Data settings, or names of sources.")
    methods: tuple[MethodRow, ...] = Field(min_length=1, description="Methods with their settings, or their names.")
    rates: RateSettings | None = Field(None, description="Chooses learning rates on val, before the cells.")
    keep: bool = Field(False, description="Supernets and states of finished cells are kept.")
    limit: float = Field(86_400.0, gt=0, description="Seconds after which a worker with one cell counts as lost.")

    @model_validator(mode="after")
    def _relations(self) -> BenchmarkSettings:
        if self.protocol == "paper" and self.rates is not None:
            raise ValueError("protocol: paper has the published learning rates; leave `rates` out, or give train.lr")
        for seeds in (self.seeds, *(row.seeds for row in self.methods if row.seeds)):
            if len({*seeds}) < len(seeds):
                raise ValueError(f"seeds={list(seeds)}: each is needed once")
        return self


def _opened(value: Any) -> Any:
    """A row whose groups that are given by their name alone are mappings."""
    return {key: opened(key, item) for key, item in value.items()} if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Cell:
    """One method on one task with one seed.

    Attributes:
        label: What the method is called. task: What the task is called. seed: Of everything.
        experiment: What is run; its learning rate is open where it is chosen first.
        tuned: Whether the rate is chosen.
        given: What the file says of it, layer on layer: the same file has the same in any version.
    """

    label: str
    task: str
    seed: int
    experiment: Experiment
    tuned: bool
    given: Sequence[Mapping[str, Any]]

    @property
    def place(self) -> tuple[str, str, str]:
        """Task, label and seed as names of files."""
        return _slug(self.task), _slug(self.label), f"seed{self.seed}"

    @property
    def name(self) -> str:
        """The three together: `digits-LoRA-seed0`."""
        return "-".join(self.place)

    def __str__(self) -> str:
        return f"{self.label} on {self.task}, seed {self.seed}"

    def at(self, lr: float) -> Cell:
        """The same cell with the learning rate that was chosen."""
        train = self.experiment.train.model_copy(update={"lr": lr})
        return replace(self, experiment=self.experiment.model_copy(update={"train": train}), tuned=False)


@dataclass(frozen=True)
class Benchmark:
    """What a file asks for.

    Attributes:
        settings: The file. cells: In the order in which they are run: the first seed of every method, then the second.
    """

    settings: BenchmarkSettings
    cells: tuple[Cell, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods, in their order."""
        return tuple(dict.fromkeys(cell.label for cell in self.cells))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in their order."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def summary(self) -> str:
        """What is run, in words."""
        tuned = {cell.label for cell in self.cells if cell.tuned}
        rates = f", learning rates of {_counted(len(tuned), 'method')} chosen on val" if tuned else ""
        methods, tasks = _counted(len(self.labels), "method"), _counted(len(self.tasks), "task")
        cells = _counted(len(self.cells), "cell")
        return f"ok, a benchmark of {methods} on {tasks}, {cells}, protocol {self.settings.protocol}{rates}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def load_benchmark(path: str | Path) -> Benchmark:
    """The benchmark of a YAML file.

    Raises:
        ConfigError: Lists every unknown key and wrong value of the file and of every cell at once.
    """
    return build_benchmark(read_written(Path(path)), source=str(path))


def build_benchmark(data: Mapping[str, Any], *, source: str = "the benchmark") -> Benchmark:
    """The benchmark of plain data, as `load_benchmark` reads it."""
    try:
        settings = BenchmarkSettings.model_validate(dict(data))
    except ValidationError as error:
        problems = [*problems_of(error, BenchmarkSettings), *_problems_of_cells(data, error)]
        raise all_errors(problems, source, data) from error
    cells, problems = _cells(settings)
    problems += _odd_names(cells)
    labels = {cell.task for cell in cells}
    problems += [
        f"rates.tasks: there is no task {name!r}; they are {', '.join(sorted(labels))}."
        for name in (settings.rates.tasks if settings.rates and not problems else ())
        if name not in labels
    ]
    if problems or (isinstance(data, Written) and data.twice):
        raise all_errors(problems, source, data)
    return Benchmark(settings, tuple(cells))


def _problems_of_cells(data: Mapping[str, Any], error: ValidationError) -> list[str]:
    """What is wrong with the cells of a file that has other errors, as far as they can be built without these."""
    wrong = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
    rest = {"name": "cells", **{key: value for key, value in data.items() if key not in wrong}}
    try:
        return _cells(BenchmarkSettings.model_validate(rest))[1]
    except ValidationError:
        return []


def _cells(settings: BenchmarkSettings) -> tuple[list[Cell], list[str]]:
    """The cells whose experiments can be built, the first seed of all first; what is wrong with the others, once."""
    cells: list[tuple[int, Cell]] = []  # with the place of its seed among the method's
    wrong: dict[str, list[str]] = {}
    tasks = list(zip(_task_labels(settings), settings.tasks, strict=True))
    for row in settings.methods:
        for task, task_row in tasks:
            given = _given(settings, task_row, row)
            for place, seed in enumerate(row.seeds or settings.seeds):
                experiment, problems = _built(settings, given, seed)
                title = row.label or str(row.method.get("name"))
                for problem in problems:
                    wrong.setdefault(problem, []).append(f"{title} on {task}, seed {seed}")
                if experiment is not None and not problems:
                    label = row.label or cast(Method, experiment.method).title
                    tuned = settings.rates is not None and experiment.train.lr is None
                    cells.append((place, Cell(label, task, seed, experiment, tuned, given)))
    problems = [f"{where[0]}{_more(where)}: {problem}" for problem, where in wrong.items()]
    ordered = [cell for _, cell in sorted(cells, key=lambda each: each[0])]
    return ordered, [*problems, *_unlike(ordered)]


def _given(settings: BenchmarkSettings, task: TaskRow, row: MethodRow) -> list[dict[str, Any]]:
    """The layers of a cell's experiment: the protocol's recipe, the file's settings, the task's, the method's."""
    name = str({**_mapping(settings.settings.get("method")), **row.method}.get("name"))
    laid = merged(merged(settings.settings, task.layer), row.layer)
    return [*([recipe_of(name, laid)] if settings.protocol == "paper" else []), laid]


def _mapping(value: Any) -> Mapping[str, Any]:
    found = opened("method", value)
    return found if isinstance(found, Mapping) else {}


def _built(
    settings: BenchmarkSettings, given: Sequence[Mapping[str, Any]], seed: int
) -> tuple[Experiment | None, list[str]]:
    """The experiment of one cell, and what is wrong with it."""
    experiment, problems = try_experiment(*given, {"seed": seed})
    if experiment is None or problems or settings.split_seeds == "fixed":
        return experiment, problems
    own = "list_seed" if "list_seed" in type(experiment.data).model_fields else "split_seed"
    return try_experiment(*given, {"seed": seed, "data": {own: seed}})


def _more(where: Sequence[str]) -> str:
    return f" and {len(where) - 1} more" if len(where) > 1 else ""


def _unlike(cells: Sequence[Cell]) -> list[str]:
    """What the cells together have wrong: names of models, a precision for each."""
    names = dict.fromkeys(cell.experiment.model.name for cell in cells)
    problems = [f"model.name: {problem}" for name in names if (problem := unknown_name(name))]
    precisions = {cell.experiment.train.precision for cell in cells}
    if len(precisions) > 1:
        problems.append(f"train.precision: one process has one precision, not {' and '.join(sorted(precisions))}.")
    return problems


def _odd_names(cells: Sequence[Cell]) -> list[str]:
    """Names that more than one cell would have."""
    shared = Counter(cell.name.lower() for cell in cells)
    twice = [cell for cell in cells if shared[cell.name.lower()] > 1]
    return [f"{cell}: another cell has the same name. Give methods and tasks labels of their own." for cell in twice]


def _task_labels(settings: BenchmarkSettings) -> list[str]:
    """What the tasks are called: by their source; those of one source also by the settings in which they differ."""
    every = [merged({"data": settings.settings.get("data", {})}, {"data": row.data})["data"] for row in settings.tasks]
    heads = [Path(str(data.get("source", "data"))).name for data in every]
    labels = []
    for row, data, head in zip(settings.tasks, every, heads, strict=True):
        same = [other for other, name in zip(every, heads, strict=True) if name == head]
        names = [key for key in data if key != "source" and len({repr(other.get(key)) for other in same}) > 1]
        labels.append(row.label or "-".join([head, *(str(data[key]) for key in names)]))
    return labels


def _slug(text: str) -> str:
    """The text as a name of a file: anything but letters, digits, `.` and `_` is one `-`."""
    return re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-.") or "unnamed"
