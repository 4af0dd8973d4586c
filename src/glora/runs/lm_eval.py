"""A run's winner, its base and other runs on tasks of lm-evaluation-harness, in one evaluation with the same settings.

The only file that imports lm_eval. Source: Gao et al., "The Language Model Evaluation Harness" (zenodo 10256836).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from glora import registry
from glora.backbones import load_backbone
from glora.errors import ConfigError, GloraError, RunError, UnknownNameError, listed, nearest
from glora.files import read_metadata, sha256
from glora.report.harness import HARNESS, Evaluated, HarnessRow, Score, read_evaluations, with_evaluation
from glora.report.outcome import digest
from glora.runs.folder import RunFolder
from glora.runs.loaded import LoadedRun, load_run
from glora.runs.reporter import Reporter
from glora.tasks.texts import TextPreprocess
from glora.training.device import device_name, new_accelerator

__all__ = ["Asked", "evaluate_run"]

PURPOSE = "glora eval --tasks"
BOOTSTRAP = 1_000  # draws of a standard error that has no formula; with none the harness gives no errors at all
DEFINES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md")  # what a task is made of
NAME = re.compile(r"^(?:task|group):[ \t]*['\"]?([^\s'\"#\[]+)", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """What is evaluated.

    Attributes:
        tasks: Names of tasks and groups, and paths of tasks' YAML files.
        folder: Where your own tasks and data sets are, in the layout of the hub; None: the folder of the YAML file.
        limit: First questions of each task; None: all.
        batch_size: Requests per forward pass.
    """

    tasks: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    batch_size: int = 8


class _Model(NamedTuple):
    """A model to evaluate: what is known without loading it, and how to load it."""

    row: HarnessRow
    load: Callable[[], tuple[nn.Module, TextPreprocess]]


def evaluate_run(run: Path, asked: Asked, reporter: Reporter, *, others: Sequence[Path] = ()) -> Evaluated:
    """The base, the other runs and the winner on the tasks; in the run folder as `lm_eval.json`.

    What was measured of the same weights with the same settings is not measured again.

    Args:
        run: A finished run of a language model.
        asked: The tasks.
        reporter: Where to tell what is going on.
        others: Further finished runs of the same base.

    Raises:
        RunError: A run is not finished, has another base, or is none of a language model; or a task fails.
        UnknownNameError: There is no such task.
        MissingExtraError: lm_eval is not installed.
    """
    harness = registry.optional_import("lm_eval", extra="lm-eval", purpose=PURPOSE)
    models = _models(run.absolute(), [other.absolute() for other in others])
    names, folder = _names(asked)
    precision = RunFolder(run).precision
    found = Evaluated(settings=_settings(asked, names, folder, precision))
    path = RunFolder(run).path.absolute() / HARNESS
    before = [each for each in read_evaluations(path) if each.settings == found.settings]
    known = {row.key: row for each in before for row in each.rows}
    if before:
        found = replace(found, shots=before[0].shots, examples=before[0].examples)
    with _quiet(), _inside(folder), _random_kept():
        manager = _manager(names, folder)
        for model in models:
            row = model.row
            if row.key in known:
                reporter.say(f"{row.title} {row.run}".strip() + " was evaluated so already.")
                row = replace(row, scores=known[row.key].scores)
            else:
                reporter.say(f"Evaluating {row.title} {row.run}".strip() + f" on {listed(names)}")
                result = _evaluated(harness, model, names, manager, asked, precision)
                row = replace(row, scores=_scores(result))
                found = replace(found, shots=_counts(result, "n-shot"), examples=_examples(result))
            found = replace(found, rows=(*found.rows, row))
            with_evaluation(path, found)
    return found


# The models


def _models(run: Path, others: Sequence[Path]) -> list[_Model]:
    base = _spec(run)
    for other in others:
        if _spec(other) != base:
            raise RunError(
                f"{other} is a run of {_named(_spec(other))}, and {run} one of {_named(base)}.",
                allowed="Runs of the same base in one evaluation.",
                remedy=f"Evaluate it alone: glora eval {other} --tasks NAME",
            )
    every: list[tuple[Path, Literal["run", "winner"]]] = [*((other, "run") for other in others), (run, "winner")]
    rows = [_Model(_row(path, kind), _loading(path)) for path, kind in every]
    bare = HarnessRow(kind="base", key="", title="Base", run="", model=rows[-1].row.model, parameters=0, scores={})
    key = digest("base", RunFolder(run).base, sorted(map(str, base.items())))
    return [_Model(replace(bare, key=key), lambda: _base(base)), *rows]


def _info(run: Path) -> dict[str, Any]:
    folder = RunFolder(run)
    folder.experiment()  # tells when there is none
    folder.need(folder.adapter, f"glora fit --out {run}")
    folder.key()
    info: dict[str, Any] = read_metadata(folder.adapter).get("info", {})
    if (info.get("preprocess") or {}).get("kind") != "text" or info["preprocess"].get("form") == "encoder":
        raise RunError(
            f"{run} is no run of a model that generates text.",
            allowed="lm-evaluation-harness asks language models.",
            remedy=f"Test it: glora eval {run}",
        )
    return info


def _spec(run: Path) -> dict[str, Any]:
    spec = _info(run).get("backbone")
    if spec is None:
        raise RunError(
            f"The base of {run} came from a Python program: it cannot be rebuilt from a name.",
            remedy="Merge it to a folder, and give the folder to lm_eval.",
        )
    return dict(spec)


def _named(spec: Mapping[str, Any]) -> str:
    return repr(spec.get("name"))


def _row(run: Path, kind: Literal["run", "winner"]) -> HarnessRow:
    folder, info = RunFolder(run), _info(run)
    method: Any = folder.experiment().method
    result = folder.current_result()
    numbers = sum(_numbers(folder.adapter)) if result is None else result.parameters
    key = sha256(folder.adapter)
    return HarnessRow(
        kind=kind, key=key, title=method.title, run=run.name, model=str(info["model"]), parameters=numbers, scores={}
    )


def _numbers(adapter: Path) -> Iterator[int]:
    """How many numbers each tensor of an adapter file has."""
    from safetensors import safe_open

    with safe_open(adapter, framework="np") as file:
        for name in file.keys():
            yield int(np.prod(file.get_slice(name).get_shape()))


def _loading(run: Path) -> Callable[[], tuple[nn.Module, TextPreprocess]]:
    def load() -> tuple[nn.Module, TextPreprocess]:
        found: LoadedRun = load_run(run)
        assert isinstance(found.preprocess, TextPreprocess)
        return found.model, found.preprocess

    return load


def _base(spec: Mapping[str, Any]) -> tuple[nn.Module, TextPreprocess]:
    backbone = load_backbone(**spec, num_classes=None)
    assert isinstance(backbone.preprocess, TextPreprocess)
    return backbone.model.eval(), backbone.preprocess


# The tasks


def _names(asked: Asked) -> tuple[list[str], Path | None]:
    """The names of all tasks, and the folder that they and their data are in.

    Raises:
        ConfigError: Files of several folders are named.
    """
    names, folders = [], []
    for task in asked.tasks:
        if Path(task).suffix in (".yaml", ".yml"):
            path = Path(task).expanduser().absolute()
            names.append(_name_in(path))
            folders.append(path.parent)
        else:
            names.append(task)
    folder = None if asked.folder is None else asked.folder.expanduser().absolute()
    if folder is not None and not folder.is_dir():
        raise RunError(f"There is no folder {folder}.", remedy="Give --tasks-dir a folder of tasks or data sets.")
    if folder is None:
        if len({*folders}) > 1:
            raise ConfigError(
                f"The tasks are in several folders: {listed(map(str, dict.fromkeys(folders)))}.",
                remedy="Name the folder that holds them all: --tasks-dir DIR",
            )
        folder = folders[0] if folders else None
    return list(dict.fromkeys(names)), folder


def _name_in(path: Path) -> str:
    try:
        found = NAME.search(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}.", remedy="Give a task's YAML file.") from error
    if found is None:
        raise RunError(
            f"{path} names no task.", allowed="A line `task: NAME` or `group: NAME`, as lm-evaluation-harness has it."
        )
    return found[1]


def _settings(asked: Asked, names: Sequence[str], folder: Path | None, precision: str) -> dict[str, Any]:
    """What scores depend on beside the weights; the files of a task folder by their hash."""
    versions = {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch")}
    found = hashlib.sha256()
    files = [] if folder is None else sorted(file for file in folder.rglob("*") if file.suffix in DEFINES)
    for file in files:
        found.update(f"{file.relative_to(folder or file)} {sha256(file)}\n".encode())
    return {
        "tasks": list(names),
        "limit": asked.limit,
        "batch_size": asked.batch_size,
        "precision": precision,
        "files": found.hexdigest()[:16] if files else "",
        "versions": versions,
        "device": device_name(new_accelerator(precision).device),
    }


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """The harness's index of tasks; of your own alone if all names are among them, which takes no time."""
    manager = _lm_eval("lm_eval.tasks").TaskManager
    path = None if folder is None else str(folder)
    own = manager(include_path=path, include_defaults=False)
    if {*names} <= {*own.all_tasks}:
        return own
    every = manager(include_path=path)
    for name in names:
        if name not in every.all_tasks and not every.match_tasks([name]):
            near = nearest(name, every.all_tasks)
            raise UnknownNameError(
                f"lm-evaluation-harness has no task {name!r}.",
                allowed=f"Did you mean {' or '.join(map(repr, near))}?" if near else "",
                remedy="List them: lm_eval ls tasks. Your own: --tasks PATH.yaml, or --tasks-dir DIR with the name.",
            )
    return every


# The evaluation


def _lm_eval(module: str) -> Any:
    return registry.optional_import(module, extra="lm-eval", purpose=PURPOSE)


def _evaluated(
    harness: Any, model: _Model, names: Sequence[str], manager: Any, asked: Asked, precision: str
) -> Mapping[str, Any]:
    """What the harness gives for one model, which is gone from memory afterwards."""
    accelerator = new_accelerator(precision)
    network, preprocess = model.load()
    network.to(accelerator.device)
    wrapped = _lm_eval("lm_eval.models.huggingface").HFLM(
        pretrained=network, tokenizer=preprocess.tokenizer, batch_size=asked.batch_size
    )
    try:
        with accelerator.autocast():
            found: Mapping[str, Any] = harness.simple_evaluate(
                model=wrapped,
                tasks=list(names),
                task_manager=manager,
                limit=asked.limit,
                bootstrap_iters=BOOTSTRAP,
                log_samples=False,
            )
    except GloraError:
        raise
    except Exception as error:  # those of the harness, of its tasks and of the hub client have no common root
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"lm-evaluation-harness could not evaluate {listed(names)}: {type(error).__name__}: {reason[:300]}.",
            allowed="Data sets come from a hub, unless they are in the folder --tasks-dir.",
            remedy="See that the task runs with lm_eval alone; without a network: --tasks-dir DIR, which holds them.",
        ) from error
    return found


def _scores(result: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """Task or group -> metric -> value and standard error; a metric under another filter has that in its name."""
    found: dict[str, dict[str, Score]] = {}
    for task, metrics in {**result["results"], **result.get("groups", {})}.items():
        scores: dict[str, Score] = {}
        for key, value in metrics.items():
            name, comma, how = key.partition(",")
            if not comma or name.endswith("_stderr") or _number(value) is None:
                continue
            title = name if how in ("none", "get-answer") or f"{name},none" not in metrics else f"{name}, {how}"
            scores.setdefault(title, (_number(value), _number(metrics.get(f"{name}_stderr,{how}"))))
        if scores:
            found[task] = scores
    return found


def _number(value: Any) -> float | None:
    """A plain float; the harness has NumPy's, and the text N/A."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if np.isfinite(value) else None


def _counts(result: Mapping[str, Any], key: str) -> dict[str, int]:
    return {task: int(n) for task, n in result.get(key, {}).items() if _number(n) is not None}


def _examples(result: Mapping[str, Any]) -> dict[str, int]:
    return {task: int(each["effective"]) for task, each in result.get("n-samples", {}).items()}


@contextlib.contextmanager
def _random_kept() -> Iterator[None]:
    """Within it the harness may seed the global generators; afterwards they are as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    """Within it the folder is the working one: data sets are found in it, and files by names relative to it."""
    before = Path.cwd()
    if folder is not None:
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within it the harness and what it calls give no warnings: what matters are its errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
