"""A finished run, from its files alone: its plain model, ready to predict, merge, save and evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import default_collate

from glora.adapt.adapter_file import save_merged
from glora.backbones import load_backbone
from glora.config import Experiment
from glora.errors import DataError, RunError
from glora.files import read_metadata
from glora.methods.method import Method
from glora.registry import load
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.folder import RunFolder
from glora.tasks.evaluation import Evaluation, evaluate
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objective import Batch, Objective
from glora.tasks.objectives import OBJECTIVES
from glora.tasks.task import DataSettings, source_class
from glora.training.device import new_accelerator

__all__ = ["FROM_PYTHON", "LoadedRun", "load_run", "objective_of"]

FROM_PYTHON = "from_python"  # the name of a model or of data that a program gave


@dataclass(frozen=True)
class LoadedRun:
    """A finished run.

    Attributes:
        folder: Its files.
        model: The plain model in eval mode; what was learned is merged, where the method can.
        experiment: Its settings.
        objective: What the model predicts.
        info: How its base was built (`backbone`), its `objective`, and how it reads images (`preprocess`).
        new_keys: State-dict keys that the base does not have, a new bias each.
    """

    folder: RunFolder
    model: nn.Module
    experiment: Experiment
    objective: Objective
    info: dict[str, Any]
    new_keys: tuple[str, ...] = ()

    @property
    def adapter(self) -> Path:
        """The adapter file: what was learned, without the base."""
        return self.folder.adapter

    @cached_property
    def winner(self) -> Outcome | None:
        """The winner of the search and what it was compared with; None of a method without a search."""
        return Outcome.read(self.folder.winner) if self.folder.winner.is_file() else None

    @cached_property
    def result(self) -> Result | None:
        """The result, where the run was tested; None before."""
        return self.folder.current_result()

    def merge(self) -> nn.Module:
        """The plain model: the class and the state-dict keys of the base."""
        return self.model

    def save(self, path: str | Path) -> str:
        """Writes the plain state dict as safetensors; says how to load it."""
        save_merged(self.model, path, info={**self.info, "new_keys": list(self.new_keys)})
        config = getattr(self.model, "pretrained_cfg", None) or {}
        backbone = self.info["backbone"]
        keys = f", with new keys: {', '.join(self.new_keys)}" if self.new_keys else ""
        if backbone is None:
            return f"{path}: the state dict of your {type(self.model).__name__}{keys}"
        name, size = config.get("architecture", backbone["name"]), self.info["preprocess"]["size"][0]
        return f"{path}: the state dict of timm's {name} for {size} px images and {self.objective.summary}{keys}"

    def predict(self, inputs: Any, *, batch_size: int | None = None) -> list[dict[str, Any]]:
        """What the model predicts for new inputs, one record each: a class with probabilities, labels, or values.

        Args:
            inputs: Image files, PIL images or arrays `(h, w, 3)` uint8, read as the run read its own; a tensor, or a
                tuple or mapping of tensors, examples first, as the model takes them; or a dataset of such.
            batch_size: Examples per forward pass; by default the run's.

        Raises:
            DataError: An image cannot be read, or the run's model takes no images.
        """
        accelerator = new_accelerator(self.experiment.train.precision)
        model, size = self.model.to(accelerator.device).eval(), batch_size or self.experiment.search.batch_size
        found: list[dict[str, Any]] = []
        with torch.no_grad():
            for batch in self._batches(inputs, size):
                with accelerator.autocast():
                    moved = send_to_device(batch, accelerator.device)
                    output = self.objective.forward(model, moved, train=False)
                found += self.objective.predictions(output)
        return found

    def _batches(self, inputs: Any, size: int) -> Iterator[Batch]:
        if isinstance(inputs, (str, Path)):
            inputs = [inputs]
        if isinstance(inputs, Tensor):
            yield from (Batch(part, None) for part in torch.split(inputs, size))
            return
        if isinstance(inputs, tuple) and all(isinstance(each, Tensor) for each in inputs):
            yield from (Batch(each, None) for each in zip(*(torch.split(part, size) for part in inputs), strict=True))
            return
        if isinstance(inputs, dict):
            parts = [torch.split(value, size) for value in inputs.values()]
            yield from (Batch(dict(zip(inputs, each, strict=True)), None) for each in zip(*parts, strict=True))
            return
        items = _Items(inputs)
        first = items[0] if len(items) else None
        images = None if first is None or isinstance(first, (Tensor, dict, tuple)) else self._images(list(items))
        for start in range(0, len(items), size):
            places = range(start, min(start + size, len(items)))
            if images is not None:
                yield Batch(images.batch(places).inputs, None)
            else:
                yield Batch(default_collate([items[place] for place in places]), None)

    def _images(self, items: Sequence[Any]) -> ImageSet:
        """Files, PIL images and arrays as the run reads its own images."""
        given = self.info["preprocess"]
        if given is None:
            raise DataError(
                "This run's model came from Python, with tensors as inputs: glora does not know how it reads images.",
                remedy="Give tensors, preprocessed as in training.",
            )
        pixels = [Path(each) if isinstance(each, (str, Path)) else _pixels(each) for each in items]
        if missing := [str(each) for each in pixels if isinstance(each, Path) and not each.is_file()]:
            raise DataError(f"There is no image {missing[0]!r}.", remedy="Check the path.")
        return ImageSet(pixels, [0] * len(pixels), cache_bytes=0).prepared(_preprocess(given))

    def evaluate_on(self, source: str | Path) -> tuple[Evaluation, list[str]]:
        """What the model does on all labelled examples of another folder, and what a user should be told.

        Raises:
            DataError: The folder has other classes, no images, or unreadable ones.
        """
        data = cast(DataSettings, self.experiment.data)
        kind = source_class({"source": str(source)})
        own = data.model_dump() if isinstance(data, kind) else {}
        settings = kind.model_validate({**own, "source": str(source), "train": None, "val": None})
        examples, notes = settings.load_all(self.objective)
        accelerator = new_accelerator(self.experiment.train.precision)
        examples = examples.prepared(_preprocess(self.info["preprocess"]))
        how: dict[str, Any] = {"objective": self.objective, "batch_size": self.experiment.search.batch_size}
        return evaluate(self.model.to(accelerator.device), examples, accelerator=accelerator, **how), notes


class _Items:
    """The inputs of a list or dataset by index, without the targets."""

    def __init__(self, inputs: Any) -> None:
        if not hasattr(inputs, "__len__") or not hasattr(inputs, "__getitem__"):
            inputs = list(inputs)
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        item = self.inputs[index]
        labelled = isinstance(item, dict) or (isinstance(item, tuple) and len(item) == 2)
        return load("glora.tasks.data.from_python:inputs_of")(item) if labelled else item

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _pixels(image: Any) -> Any:
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise DataError(
            f"An image is an array of {array.dtype} {array.shape}.", allowed="uint8 pixels (h, w) or (h, w, 3)."
        )
    return array


def _preprocess(given: dict[str, Any]) -> Preprocess:
    return Preprocess(
        size=tuple(given["size"]),
        mean=tuple(given["mean"]),
        std=tuple(given["std"]),
        interpolation=given["interpolation"],
    )


def objective_of(info: dict[str, Any]) -> Objective:
    """The objective in a file's info; files of glora 0.1 have the classes alone."""
    plain = info.get("objective") or {"name": "classify", "classes": info["classes"]}
    kind: type[Objective] = load(OBJECTIVES[plain["name"]])
    return kind.model_validate(plain)


def load_run(path: str | Path, *, model: nn.Module | None = None, base_fingerprint: str | None = None) -> LoadedRun:
    """A finished run, read from its folder: its training data is not needed.

    Args:
        path: The run folder.
        model: The base, where it came from Python and cannot be rebuilt from a name: the same object or an equal one.
            It is adapted and merged in place.
        base_fingerprint: `Method.base_fingerprint` of this base, where it is known already.

    Raises:
        RunError: An earlier stage is missing, a stop has left two winners, or the base must be given.
        AdapterFileError: A file is damaged, or of another base.
    """
    folder = RunFolder(path)
    experiment = folder.experiment()
    if folder.need_trained()["file"] == folder.adapter.name:
        folder.trained_file()
    else:  # the winner's; the supernet itself is needed no more
        folder.need(folder.adapter, f"glora search {folder.path}")
    folder.key()
    info = read_metadata(folder.adapter)["info"]
    objective = objective_of(info)
    if model is None and info["backbone"] is None:
        raise RunError(
            f"The base of {folder.path} came from Python, a {info['model']}: it cannot be rebuilt from a name.",
            remedy="Give it again: glora.load(RUN, model=...).",
        )
    base = model
    if base is None:
        base = load_backbone(**info["backbone"], num_classes=objective.outputs).model
    tuned = cast(Method, experiment.method).load(base, folder.adapter, base_fingerprint=base_fingerprint)
    return LoadedRun(folder, tuned.merged().eval(), experiment, objective, info, tuned.new_keys)
