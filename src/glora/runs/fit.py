"""`glora.fit`: the whole job on a model and data that a Python program has; `glora.load`: what came of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from glora.adapt.head import find_head
from glora.backbones import Backbone
from glora.config import Experiment, build_experiment, group_fields
from glora.errors import ConfigError, DataError, RunError, need
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.console import ConsoleReporter
from glora.runs.folder import RunFolder
from glora.runs.loaded import FROM_PYTHON, LoadedRun, load_run
from glora.runs.reporter import Reporter, Silent
from glora.runs.run import Run
from glora.settings import merged, put
from glora.tasks.data.from_python import task_of
from glora.tasks.objective import Objective
from glora.tasks.task import DataSettings, Task

__all__ = ["FitResult", "fit", "load"]

GROUPS = ("train", "search", "search.searcher", "method", "objective", "data", "model")  # where a name is looked up


@dataclass(frozen=True)
class FitResult:
    """What `glora.fit` found.

    Attributes:
        record: The run as one record, as in `result.json`.
        run: The finished run: `run.predict(inputs)`, `run.adapter`, `run.save(path)`.
    """

    record: Result
    run: LoadedRun

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """`val_accuracy`, `test_accuracy`, ...: fractions and losses, with their standard errors."""
        return self.record.metrics

    @property
    def winner(self) -> Outcome | None:
        """The winner of the search and what it was compared with; None of a method without a search."""
        return self.run.winner

    @property
    def model(self) -> nn.Module:
        """The plain model in eval mode, what was learned merged into it: the class that was given."""
        return self.run.model

    @property
    def verdict(self) -> tuple[str, ...]:
        """How good the model is, how it was chosen, and what it beats, in words."""
        return self.record.verdict

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """What the model predicts for new inputs; see `LoadedRun.predict`."""
        return self.run.predict(inputs)


def fit(
    model: nn.Module,
    *,
    train: Any,
    val: Any = None,
    test: Any = None,
    objective: str | Mapping[str, Any] = "classify",
    budget: int | str | None = None,
    out: str | Path = "run",
    seed: int = 0,
    method: str | Mapping[str, Any] = "glora",
    head: str | Sequence[str] | None = "auto",
    settings: Mapping[str, Any] | None = None,
    progress: bool | Reporter = True,
    **more: Any,
) -> FitResult:
    """Trains, searches, tests once and merges: the whole job on a model and data of yours.

    It writes the same run folder as the command line. The same call continues an interrupted run, and gives the result
    of a finished one.

    Args:
        model: Any module with a head of as many outputs as the objective has. It is left as it is.
        train: A map-style dataset of `(inputs, target)` or of mappings, a Hugging Face dataset, or a DataFrame whose
            first column names image files; inputs are what the model takes.
        val: The same; None cuts it from train, and says so.
        test: The same, read once at the end; None: nothing is tested, and the result says so.
        objective: `"classify"`, `"multilabel"` or `"regress"`, or its settings with the name.
        budget: Most trainable numbers, without the head: `300_000` or `"0.3M"`; None for no limit.
        out: The run folder.
        seed: Of everything random.
        method: A name of `glora ls methods`, or its settings with the name.
        head: Modules trained whole: `"auto"`, names, or None.
        settings: Any other settings, nested as in the YAML file: `{"train": {"epochs": 10}}`.
        progress: Show on stderr what is going on, and the time left; or a reporter of your own.
        more: Single settings by their own name, `epochs=10`, or with `__` for the dot, `search__batch_size=64`.

    Returns:
        The result, with the merged model.

    Raises:
        ConfigError: A setting is unknown or not allowed; all of them are told together.
        DataError: The data is none of the objective's, or the model does not take it.
        RunError: The folder holds a run of another model, other data or other settings.
    """
    need(model, nn.Module, ConfigError, "model", "a torch.nn.Module")
    experiment = _experiment(objective, method, budget, seed, settings or {}, more)
    folder = RunFolder(out)
    task = _task(experiment, Path(out).resolve().name, train=train, val=val, test=test)
    base = copy.deepcopy(model)
    heads, notes = find_head(base, head)
    backbone = Backbone(type(model).__name__, base, None, heads, None, tuple(notes))
    _check_outputs(backbone, task)
    with _reporting(progress) as reporter:
        run = Run(experiment, folder.path, reporter, backbone=backbone, task=task)
        record = run.fit()
    if record is None:
        raise RunError(
            "This process trained with others and is done: the main process has the result.",
            remedy="Call glora.load(RUN, model=...) in the main process, or leave here.",
        )
    return FitResult(record, run.load())


def load(run: str | Path, *, model: nn.Module | None = None) -> LoadedRun:
    """A finished run, ready to predict and to be saved; its training data is not needed.

    Args:
        run: The run folder.
        model: The base, where it came from Python and cannot be rebuilt from a name. It is left as it is.

    Raises:
        RunError: An earlier stage is missing, or the base must be given.
        AdapterFileError: A file is damaged, or of another base.
    """
    return load_run(run, model=None if model is None else copy.deepcopy(model))


def _experiment(
    objective: str | Mapping[str, Any],
    method: str | Mapping[str, Any],
    budget: int | str | None,
    seed: int,
    settings: Mapping[str, Any],
    more: Mapping[str, Any],
) -> Experiment:
    data: dict[str, Any] = {
        "method": method,
        "model": {"name": FROM_PYTHON},
        "data": {"source": FROM_PYTHON},
        "objective": objective,
        "search": {"budget": budget},
        "seed": seed,
    }
    data, problems = merged(data, settings), []
    for name, value in more.items():
        problems += put(data, _dotted(name, data), value)
    return build_experiment(data, source="the arguments of glora.fit", problems=problems)


def _dotted(name: str, data: Mapping[str, Any]) -> str:
    """The dotted name of a setting that is given by its own, in the first group of `GROUPS` that has it."""
    if "__" in name:
        return name.replace("__", ".")
    fields = group_fields(data)
    return next((f"{group}.{name}" for group in GROUPS if name in fields[group]), name)


@contextmanager
def _reporting(progress: bool | Reporter) -> Iterator[Reporter]:
    if progress is True:
        with ConsoleReporter() as console:
            yield console
    else:
        yield Silent() if progress is False else progress


def _task(experiment: Experiment, name: str, **splits: Any) -> Task:
    objective = cast(Objective, experiment.objective)
    return task_of(name, objective, settings=cast(DataSettings, experiment.data), **splits)


@torch.no_grad()
def _check_outputs(backbone: Backbone, task: Task) -> None:
    """Nothing when the model takes the data and gives as many outputs as the objective has.

    Raises:
        DataError: It does not.
    """
    model, objective = backbone.model, task.objective
    training, batch = model.training, task.train.prepared(backbone.preprocess).batch([0])
    try:
        output = objective.forward(model.eval(), batch, train=False)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{backbone.name} does not take the data's inputs: {reason or type(error).__name__}.",
            remedy="Give datasets whose items are what the model takes, transforms included.",
        ) from error
    finally:
        model.train(training)
    found = output.shape[-1] if isinstance(output, torch.Tensor) and output.dim() else None
    if found != objective.outputs:
        raise DataError(
            f"{backbone.name} gives {found or 'no'} outputs, and the data has {objective.summary}.",
            remedy=f"Give the model a head of {objective.outputs} outputs.",
        )
