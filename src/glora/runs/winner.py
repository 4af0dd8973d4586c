"""The plain model of a finished run, rebuilt from the run's files alone: its training images are not needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glora.adapt.adapter_file import is_adapter, load_adapter, read_metadata, read_tensors, save_merged
from glora.backbones import load_backbone
from glora.config import Experiment
from glora.runs.folder import RunFolder
from glora.runs.reporter import Reporter
from glora.tasks.evaluation import Evaluation, evaluate
from glora.tasks.images import Preprocess
from glora.tasks.task import load_labelled
from glora.training.device import new_accelerator

__all__ = ["Winner", "load_winner"]


@dataclass(frozen=True, slots=True)
class Winner:
    """A finished run's plain model.

    Attributes:
        model: Images `(b, 3, h, w)` to logits `(b, classes)`; adapters are merged.
        experiment: The run's settings.
        info: How its base was built (`backbone`), its `classes`, and how it reads images (`preprocess`).
        new_keys: State-dict keys that the base does not have, a new bias each.
    """

    model: nn.Module
    experiment: Experiment
    info: dict[str, Any]
    new_keys: tuple[str, ...] = ()

    def save(self, path: str | Path) -> str:
        """Writes the plain state dict; says how to load it."""
        save_merged(self.model, path, info={**self.info, "new_keys": list(self.new_keys)})
        config = getattr(self.model, "pretrained_cfg", None) or {}
        name = config.get("architecture", self.info["backbone"]["name"])
        size, classes = self.info["preprocess"]["size"][0], len(self.info["classes"])
        text = f"{path}: the state dict of timm's {name} for {size} px images and {classes} classes"
        return text + (f", with new keys: {', '.join(self.new_keys)}" if self.new_keys else "")

    def evaluate_on(self, source: str | Path, reporter: Reporter) -> Evaluation:
        """What it does on all images of a labelled folder of the same classes, read as the run reads its own.

        Raises:
            DataError: The folder has other classes, no images, or unreadable ones.
        """
        classes, on_bad_image = tuple(self.info["classes"]), self.experiment.data.on_bad_image
        images, notes = load_labelled(source, classes, on_bad_image=on_bad_image)
        for note in notes:
            reporter.say(note)
        given = self.info["preprocess"]
        wanted = Preprocess(
            size=tuple(given["size"]),
            mean=tuple(given["mean"]),
            std=tuple(given["std"]),
            interpolation=given["interpolation"],
        )
        accelerator = new_accelerator(self.experiment.train.precision)
        model, size = self.model.to(accelerator.device), self.experiment.search.batch_size
        return evaluate(model, images.prepared(wanted), accelerator=accelerator, batch_size=size)


def load_winner(folder: RunFolder) -> Winner:
    """The run's plain model: of adapters the winner, read from its file and merged as a user would.

    Raises:
        RunError: An earlier stage is missing, or a stop has left two winners.
        AdapterFileError: A file is damaged, or of another base.
    """
    experiment = folder.experiment()
    folder.need(folder.supernet, f"glora train --out {folder.path}")
    trained = read_metadata(folder.supernet)
    info = trained["info"]
    model: nn.Module = load_backbone(**info["backbone"], num_classes=len(info["classes"])).model
    if is_adapter(trained):
        folder.need(folder.adapter, f"glora search {folder.path}")
        folder.key()
        adapted = load_adapter(model, folder.adapter)
        return Winner(adapted.merge(keep_base=False), experiment, info, adapted.new_keys)
    tensors, _ = read_tensors(folder.supernet)
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return Winner(model, experiment, info)
