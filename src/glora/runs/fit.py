"""`glora.fit`: the whole job on a model and data that a Python program has; `glora.load`: what came of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from glora.adapt.head import find_head
from glora.adapt.sites import refuse_unmade
from glora.backbones import Backbone, preprocess_of, text_preprocess_of
from glora.config import Experiment, build_experiment, group_fields
from glora.errors import ConfigError, DataError, RunError, TargetError, nearest, need
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.console import ConsoleReporter
from glora.runs.folder import RunFolder
from glora.runs.loaded import FROM_PYTHON, TEXT_FROM_PYTHON, LoadedRun, copied, load_run, model_output
from glora.runs.logged import logging_to
from glora.runs.reporter import Reporter, Silent
from glora.runs.run import Run
from glora.runs.text_predictions import MOST
from glora.settings import merged, put
from glora.tasks.data.from_python import DatasetExamples, task_of
from glora.tasks.data.text_from_python import TextFromPython
from glora.tasks.images import ImageSet, is_image
from glora.tasks.objective import Batch, Objective
from glora.tasks.rows import TextPreprocess
from glora.tasks.task import DataSettings, Task

__all__ = ["FitResult", "fit", "load"]

GROUPS = ("train", "search", "search.searcher", "method", "objective", "data")  # where a name is looked up
PROBE = 2  # examples that the model is tried on before anything is written


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

    def to_pandas(self) -> Any:
        """A DataFrame with a row per genotype that the search asked for; see `LoadedRun.to_pandas`."""
        return self.run.to_pandas()

    def predict(self, inputs: Any, *, max_tokens: int = MOST) -> list[dict[str, Any]]:
        """What the model predicts for new inputs; see `LoadedRun.predict`."""
        return self.run.predict(inputs, max_tokens=max_tokens)


def fit(
    model: nn.Module,
    *,
    train: Any,
    val: Any = None,
    test: Any = None,
    tokenizer: Any = None,
    objective: str | Mapping[str, Any] | None = None,
    budget: int | str | None = None,
    out: str | Path = "run",
    seed: int = 0,
    method: str | Mapping[str, Any] = "glora",
    head: str | Sequence[str] | None = "auto",
    settings: Mapping[str, Any] | None = None,
    progress: bool | Reporter = True,
    log: str | Sequence[str] = (),
    **more: Any,
) -> FitResult:
    """Trains, searches, tests once and merges: the whole job on a model and data of yours.

    It writes the same run folder as the command line. The same call continues an interrupted run, and gives the result
    of a finished one.

    Args:
        model: Any module with a head of as many outputs as the objective has. It is left as it is.
        train: A map-style dataset of `(inputs, target)` or of mappings, or a Hugging Face dataset; inputs are what the
            model takes, float64 is read as float32. For a model of timm inputs may be PIL images, and the data a
            DataFrame whose first column names image files. Whole numbers as classes are places of outputs.
        val: The same; None cuts it from train, and says so.
        test: The same, read once at the end; None: nothing is tested, and the result says so.
        tokenizer: Of a language model or a text classifier of transformers, whose data is then rows of texts: mappings
            such as `{"messages": [...]}`, `{"instruction": ..., "output": ...}` or `{"text": ..., "label": ...}`, pairs
            of a text and a label, texts, or a Hugging Face dataset.
        objective: `"classify"`, `"multilabel"`, `"regress"`, `"language"`, `"choose"` or `"verbalize"`, or its settings
            with the name; None: what the rows of texts say, and `"classify"` without a tokenizer.
        budget: Most trainable numbers, without the head: `300_000` or `"0.3M"`; None for no limit.
        out: The run folder.
        seed: Of everything random.
        method: A name of `glora ls methods`, or its settings with the name.
        head: Modules trained whole: `"auto"`, the layer that gives the outputs; names; or None.
        settings: Any other settings, nested as in the YAML file: `{"train": {"epochs": 10}}`.
        progress: Show on stderr what is going on, and the time left; or a reporter of your own.
        log: Where curves are shown too: `"tensorboard"`, `"trackio"`, `"wandb"`, or several of them.
        more: Single settings by their own name, `epochs=10`, or with `__` for the dot, `search__batch_size=64`.

    Returns:
        The result, with the merged model.

    Raises:
        ConfigError: A setting is unknown or not allowed; all of them are told together.
        DataError: The data is none of the objective's, or the model does not take it.
        RunError: The folder holds a run of another model, other data or other settings.
    """
    need(model, nn.Module, ConfigError, "model", "a torch.nn.Module")
    source = FROM_PYTHON if tokenizer is None else TEXT_FROM_PYTHON
    experiment = _experiment(objective or "classify", source, method, budget, seed, settings or {}, more)
    if tokenizer is not None and objective is None:
        usual = cast(TextFromPython, experiment.data).usual(train)
        experiment = _experiment(usual, source, method, budget, seed, settings or {}, more)
    folder = RunFolder(out)
    task = _task(experiment, Path(out).resolve().name, train=train, val=val, test=test)
    backbone = _backbone(model, head, task) if tokenizer is None else _text_backbone(model, tokenizer, head, task)
    with _reporting(progress) as told, logging_to(log, folder.path, told) as reporter:
        run = Run(experiment, folder.path, reporter, backbone=backbone, task=task)
        if isinstance(backbone.preprocess, TextPreprocess) and run.alone:
            backbone.preprocess.tokenizer.save_pretrained(folder.tokenizer)
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
        RunError: An earlier stage is missing, the base must be given, or it is not the one that the run began with.
        AdapterFileError: A file is damaged, or of another base.
    """
    return load_run(run, model=None if model is None else copied(model))


def _experiment(
    objective: str | Mapping[str, Any],
    source: str,
    method: str | Mapping[str, Any],
    budget: int | str | None,
    seed: int,
    settings: Mapping[str, Any],
    more: Mapping[str, Any],
) -> Experiment:
    data: dict[str, Any] = {
        "method": method,
        "model": {"name": FROM_PYTHON},
        "data": {"source": source},
        "objective": objective,
        "search": {"budget": budget},
        "seed": seed,
    }
    data, problems = merged(data, settings), []
    for name, value in more.items():
        dotted = _dotted(name, data)
        if not dotted:
            problems.append(f"{name}: no such setting.{_hint(name, data)}")
        elif isinstance(value, Mapping):
            data = merged(data, {dotted: value})
        else:
            problems += put(data, dotted, value)
    for group, given, key, place in (("model", "model", "name", FROM_PYTHON), ("data", "train", "source", source)):
        inner = data[group] if isinstance(data[group], Mapping) else {"source": data[group]}
        own = {"name", "source"} | (group_fields(data)["data"] if group == "data" else set())
        if inner.get("name", inner.get("source")) != place or inner.keys() - own:
            problems.append(f"{group}: it is given as an object, {given}=..., and is not loaded by these settings.")
            data[group] = {key: place}
    return build_experiment(data, source="the arguments of glora.fit", problems=problems)


def _dotted(name: str, data: Mapping[str, Any]) -> str:
    """The dotted name of a setting that is given by its own, in the first group of `GROUPS` that has it; "": none."""
    if "__" in name:
        return name.replace("__", ".")
    fields = group_fields(data)
    found = [f"{group}.{name}" for group in GROUPS if name in fields[group]]
    return found[0] if found else name if name in Experiment.model_fields else ""


def _hint(name: str, data: Mapping[str, Any]) -> str:
    """Which setting may be meant."""
    fields = group_fields(data)
    near = nearest(name, {each for group in GROUPS for each in fields[group]}, n=1)
    return f" Did you mean {near[0]!r} ({_dotted(near[0], data)})?" if near else ""


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


def _text_backbone(model: nn.Module, tokenizer: Any, head: str | Sequence[str] | None, task: Task) -> Backbone:
    """A copy of a model of texts with its head and its tokenizer, tried on some rows.

    Raises:
        BackboneError: It is none of transformers, or does not fit the tokenizer.
        ConfigError: The model cannot be copied.
        DataError: It does not take the data, or has not as many outputs as the objective.
        TargetError: There is no such head.
    """
    base, name, objective = copied(model).cpu(), type(model).__name__, task.objective
    preprocess, told = text_preprocess_of(base, copy.deepcopy(tokenizer), num_classes=objective.outputs)
    heads, notes = find_head(base, head)
    train = task.train.prepared(preprocess)
    output = model_output(base.eval(), objective, train.batch(range(min(PROBE, len(train)))))
    if objective.outputs is not None:
        _check_outputs(name, output, task)
    return Backbone(name, base, preprocess, heads, None, (*told, *notes))


def _backbone(model: nn.Module, head: str | Sequence[str] | None, task: Task) -> Backbone:
    """A copy of the model with its head, tried on some examples.

    Raises:
        ConfigError: The model cannot be copied.
        DataError: It does not take the data, or has not as many outputs as the objective.
        TargetError: There is no such head, or a parameter is not made yet.
    """
    refuse_unmade(model)
    base, name = copied(model).cpu(), type(model).__name__
    heads, notes = find_head(base, head)
    preprocess = preprocess_of(base) if _holds_images(task) else None
    train = task.train.prepared(preprocess)
    if isinstance(train, ImageSet) and preprocess is None:
        raise DataError(
            f"It is not known how {name} reads images: only timm's models tell.",
            allowed="For other models the data gives tensors, which the model takes as they are.",
            remedy="Give a dataset of (tensor, target), or a model of timm.",
        )
    output, last = _probe(base, task.objective, train.batch(range(min(PROBE, len(train)))))
    _check_outputs(name, output, task)
    if head == "auto" and not heads and last:
        heads, notes = (last,), [f"The head, trained whole, is {last!r}, the layer that gives the outputs."]
    return Backbone(name, base, preprocess, heads, None, tuple(notes))


def _holds_images(task: Task) -> bool:
    """Whether the inputs are images still to be read: files, or PIL images."""
    return not isinstance(task.train, DatasetExamples) or is_image(task.train.inputs(0))


def _probe(model: nn.Module, objective: Objective, batch: Batch) -> tuple[Tensor, str]:
    """The model's output, and the name of the layer that gives it; empty where it is not a layer's own output."""
    called: list[tuple[str, Any]] = []
    layers = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: called.append((name, output)))
        for name, module in layers
    ]
    training = model.training
    try:
        output: Tensor = model_output(model.eval(), objective, batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    name, last = called[-1] if called else ("", None)
    same = isinstance(last, Tensor) and torch.equal(last.float().flatten(), output.flatten())
    return output, name if same and _may_be_head(model, name) else ""


def _may_be_head(model: nn.Module, name: str) -> bool:
    """Whether the layer can be trained whole: it is not the whole model, not quantised, and shares no weight."""
    try:
        find_head(model, [name])
    except TargetError:
        return False
    own = {id(parameter) for parameter in model.get_submodule(name).parameters()}
    found = [id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False)]
    return sum(each in own for each in found) == len(own)


def _check_outputs(name: str, output: Tensor, task: Task) -> None:
    """Raises DataError unless the model gives as many outputs per example as the objective has."""
    objective = task.objective
    wanted = objective.outputs
    examples = min(PROBE, len(task.train))
    if not output.isfinite().all():
        raise DataError(
            f"{name} gives outputs that are not finite.", remedy="Look for NaN in the inputs, and in the weights."
        )
    if output.shape == (examples, wanted):
        return
    if output.dim() != 2 or len(output) != examples:
        raise DataError(
            f"{name} gives outputs of shape {tuple(output.shape)} for {examples} examples.",
            allowed=f"({examples}, {wanted}): the data has {objective.summary}.",
            remedy="End the model in a Linear layer, one row for each example.",
        )
    remedy, found = f"Give the model a head of {wanted} outputs.", output.shape[-1]
    if objective.strata_names[:1] == ("0",) and not (task.train.targets == 0).any():
        remedy += " Whole numbers are places of outputs: count classes from 0."
    elif objective.strata_names and wanted is not None and found > wanted:
        remedy += " Or name all classes: objective={'name': 'classify', 'classes': [...]}."
    raise DataError(f"{name} gives {found} outputs, and the data has {objective.summary}.", remedy=remedy)
