"""The command line's options, each once, and the setting that each one gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "SETTINGS",
    "AsJson",
    "BatchSize",
    "Budget",
    "Checkpoint",
    "Config",
    "Control",
    "Data",
    "Epochs",
    "Generations",
    "ImageSize",
    "Lr",
    "MinBudget",
    "Model",
    "OnBadImage",
    "Out",
    "Overrides",
    "Population",
    "Precision",
    "Preset",
    "Pretrained",
    "RunFolder",
    "Seed",
    "Show",
    "Skip",
    "Targets",
    "TrainSize",
    "ValSize",
    "Workers",
    "given",
]

Option = typer.Option

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `glora fit` or `train` made.")]
Config = Annotated[Path | None, Option("--config", metavar="FILE", help="An experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Any of `glora ls settings`, such as space.ranks=[4].")
]
Data = Annotated[str | None, Option(metavar="FOLDER", help="Labelled images, or a name of `glora ls data`.")]
Model = Annotated[str | None, Option(metavar="NAME", help="dinov2_vits14 (packaged) or any timm model.")]
Out = Annotated[Path, Option(metavar="RUN", help="The run folder; an unfinished run in it is continued.")]
Budget = Annotated[str | None, Option(metavar="NUMBER", help="Most trainable numbers: 300000 or 0.3M.")]
MinBudget = Annotated[
    str | None, Option(metavar="NUMBER", help="Fewest trainable numbers; default: nine tenths of the most.")
]
Generations = Annotated[int | None, Option(metavar="N", help="Generations after the first.")]
Population = Annotated[int | None, Option(metavar="N", help="Genotypes per generation.")]
Workers = Annotated[int | None, Option(metavar="N", help="Processes that score; 0: this one.")]
Targets = Annotated[
    list[str] | None,
    Option(metavar="NAME", help="Layers to adapt: linear, a regular expression, names (repeat it)."),
]
Skip = Annotated[list[str] | None, Option(metavar="NAME", help="Layers to leave out (repeat it).")]
Epochs = Annotated[int | None, Option(metavar="N", help="Passes over the training images.")]
BatchSize = Annotated[int | None, Option(metavar="N", help="Images per step.")]
Lr = Annotated[float | None, Option(metavar="RATE", help="Learning rate at its top.")]
Precision = Annotated[str | None, Option(metavar="no|bf16|fp16", help="Mixed precision.")]
ImageSize = Annotated[int | None, Option(metavar="PIXELS", help="Side of the square input.")]
Checkpoint = Annotated[Path | None, Option(metavar="FILE", help="Weights: a local .safetensors file.")]
Pretrained = Annotated[bool | None, Option("--pretrained/--no-pretrained", help="Load pretrained weights.")]
TrainSize = Annotated[int | None, Option(metavar="N", help="Training images of the seeded split.")]
ValSize = Annotated[int | None, Option(metavar="N", help="Validation images of the seeded split.")]
OnBadImage = Annotated[str | None, Option(metavar="error|skip", help="What to do with unreadable images.")]
Control = Annotated[
    str | None, Option(metavar="retrain", help="Also train the winner alone, to compare with; it costs a training.")
]
Preset = Annotated[str | None, Option(metavar="NAME", help="paper: the method as published.")]
Seed = Annotated[int | None, Option(metavar="N", help="Of everything random.")]
Show = Annotated[bool, Option("--show", help="Print the winner site by site; alone it searches nothing.")]
AsJson = Annotated[bool, Option("--json", help="Print the result as JSON.")]

SETTINGS = {  # option -> setting
    "data": "data.source",
    "train_size": "data.train",
    "val_size": "data.val",
    "on_bad_image": "data.on_bad_image",
    "model": "model.name",
    "image_size": "model.image_size",
    "checkpoint": "model.checkpoint",
    "pretrained": "model.pretrained",
    "targets": "model.targets",
    "skip": "model.skip",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "precision": "train.precision",
    "budget": "search.budget",
    "min_budget": "search.min_budget",
    "generations": "search.generations",
    "population": "search.population",
    "control": "search.control",
    "workers": "search.workers",
    "preset": "preset",
    "seed": "seed",
}


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given as options, by dotted name."""
    found = {SETTINGS[name]: value for name, value in options.items() if name in SETTINGS and value not in (None, [])}
    if len(found.get("model.targets", ())) == 1:  # a word or a regular expression
        found["model.targets"] = found["model.targets"][0]
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}
