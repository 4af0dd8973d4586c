"""What finished runs make of test images just before the head, and where t-SNE puts them in the plane."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from glora import scikit
from glora.errors import ConfigError, DataError, RunError
from glora.report.plots.features import Placed
from glora.runs.loaded import FROM_PYTHON, LoadedRun, load_run
from glora.runs.session import evaluator_of
from glora.tasks.objective import Examples, Objective
from glora.tasks.objectives.classify import Classify
from glora.tasks.task import DataSettings
from glora.training.device import new_accelerator

__all__ = ["features", "placed", "test_examples"]

LEAST = 4  # examples
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def test_examples(run: LoadedRun) -> Examples:
    """The test examples of a run, loaded anew as its settings say.

    Raises:
        RunError: A program gave them, or there are none.
        DataError: They are not where they were.
    """
    data = cast(DataSettings, run.experiment.data)
    if data.source == FROM_PYTHON:
        raise RunError(
            f"The data of {run.folder.path} came from a Python program: it cannot be loaded anew.",
            remedy="Call glora.runs.features.features with the examples.",
        )
    test = data.load(cast(Objective, run.experiment.objective)).test
    if test is None:
        raise RunError(f"The data of {run.folder.path} has no test examples.")
    return test.prepared(run.preprocess)


test_examples.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest thinks of its name


def features(run: LoadedRun, examples: Examples, indices: Sequence[int]) -> Tensor:
    """What comes into the head, `(n, d)` float32 on the CPU: of several tokens or places their mean.

    Args:
        run: Whose model is asked.
        examples: Prepared as the run reads its own.
        indices: Which of them, in which order.

    Raises:
        ConfigError: The model's head is no module of its own that is called once.
    """
    head = _head(run)
    seen: list[Tensor] = []
    keep = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        accelerator = new_accelerator(run.folder.precision)
        evaluator = evaluator_of(run.experiment, run.objective, accelerator)
        model = run.model.to(accelerator.device)
        found, order = [], []
        for places, _, batch in evaluator.placed(model, examples, indices):
            if len(seen) != 1:
                raise ConfigError(f"The head of {run.folder.path} was called {len(seen)} times for a batch, not once.")
            found.append(_flat(seen.pop(), head, len(batch.targets)))
            order += places
    finally:
        keep.remove()
    return torch.cat(found)[torch.argsort(torch.tensor(order))]


def _head(run: LoadedRun) -> nn.Module:
    """The last of the modules that are trained whole."""
    names = run.info.get("head") or []
    if not names:
        raise ConfigError(f"{run.folder.path} has no head of its own.", allowed="Runs whose head is a named module.")
    return run.model.get_submodule(names[-1])


def _flat(inputs: Tensor, head: nn.Module, examples: int) -> Tensor:
    """One vector for each example: the mean over tokens or places, channels second for a convolution, else last."""
    if inputs.dim() > 2:
        between = tuple(range(2, inputs.dim())) if isinstance(head, CONVOLUTIONS) else tuple(range(1, inputs.dim() - 1))
        inputs = inputs.mean(between)
    return inputs.reshape(examples, -1).float().cpu()


def placed(path: str | Path, *, limit: int, seed: int) -> Placed:
    """Test images of the run in the folder, in the plane.

    Args:
        path: The run folder.
        limit: Most images; equal seeds draw the same ones of the same data.
        seed: Of the draw and of t-SNE.

    Raises:
        RunError: The run is not finished, or its data cannot be loaded anew.
        ConfigError: It does not tell classes apart, or there are too few images.
    """
    run = load_run(path)
    if not isinstance(run.objective, Classify):
        raise ConfigError(
            f"{run.folder.path} learns {run.objective.name!r}.", allowed="The colours of the picture are classes."
        )
    examples = test_examples(run)
    every = list(range(len(examples)))
    chosen = every if limit >= len(every) else sorted(random.Random(seed).sample(every, limit))
    if len(chosen) < LEAST:
        raise ConfigError(f"{len(chosen)} images are too few for t-SNE.", allowed=f"At least {LEAST}.")
    found: Any = scikit.tsne(features(run, examples, chosen).numpy(), seed=seed)
    targets = examples.targets[torch.tensor(chosen)].tolist()
    classes = run.objective.classes
    if not all(0 <= target < len(classes) for target in targets):
        raise DataError(f"The test examples of {run.folder.path} have other classes than the run.")
    labels = [classes[target] for target in targets]
    return Placed([(float(x), float(y)) for x, y in found], labels, classes, _accuracy(run))


def _accuracy(run: LoadedRun) -> str:
    """The test accuracy of the run's result, in words; empty where it was not tested."""
    metrics = {} if run.result is None else run.result.metrics
    value = metrics.get("test_accuracy")
    return "" if value is None else f"test accuracy {100 * value:.1f} %"
