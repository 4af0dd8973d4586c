"""The options that are settings: one table of what each sets, from which commands get their parameters and help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer
from typer.core import TyperCommand

__all__ = ["OPTIONS", "Command", "Setting", "given", "takes"]

Function = TypeVar("Function", bound=Callable[..., None])


class Setting(NamedTuple):
    """One option.

    Attributes:
        name: The dotted name of the setting that it gives.
        metavar: What stands for its value in the help.
        kind: Type of the value.
        help: Its help. Empty: the setting's own description; given only where that stands in a file that loads torch.
    """

    name: str
    metavar: str
    kind: Any = str
    help: str = ""


OPTIONS = {
    "data": Setting("data.source", "FOLDER", str, "Labelled images, texts, or a name of `glora ls data`."),
    "model": Setting("model.name", "NAME"),
    "method": Setting("method", "NAME"),
    "objective": Setting("objective", "NAME"),
    "budget": Setting("search.budget", "NUMBER"),
    "min_budget": Setting("search.min_budget", "NUMBER"),
    "epochs": Setting("train.epochs", "N|auto"),
    "lr": Setting("train.lr", "RATE|auto"),
    "batch_size": Setting("train.batch_size", "N", int),
    "precision": Setting("train.precision", "no|bf16|fp16|auto"),
    "generations": Setting("search.searcher.generations", "N", int),
    "population": Setting("search.searcher.population", "N", int),
    "workers": Setting("search.workers", "N", int),
    "image_size": Setting("model.image_size", "PIXELS", int),
    "checkpoint": Setting("model.checkpoint", "FILE", Path),
    "pretrained": Setting("model.pretrained", "", bool),
    "targets": Setting(
        "method.targets", "NAME", list[str], "Layers to adapt: linear, a regular expression, names (repeat it)."
    ),
    "skip": Setting("method.skip", "NAME", list[str], "Layers to leave out (repeat it)."),
    "train_size": Setting("data.train", "N", int, "Training examples of the seeded split."),
    "val_size": Setting("data.val", "N", int, "Validation examples of the seeded split."),
    "on_bad_image": Setting("data.on_bad_image", "error|skip", str, "What to do with unreadable images."),
    "on_bad_row": Setting("data.on_bad_row", "error|skip", str, "What to do with rows of text that cannot be used."),
    "control": Setting("search.control", "none|retrain"),
    "preset": Setting("preset", "NAME"),
    "seed": Setting("seed", "N", int),
}


def takes(**groups: bool) -> Callable[[Function], Function]:
    """A decorator for a command with `**settings`: in their place it takes the options of the table.

    Args:
        groups: `search=True` for the options of that group alone, `search=False` for all others; none for all.
    """

    def wanted(setting: Setting) -> bool:
        return all((setting.name.partition(".")[0] == group) == only for group, only in groups.items())

    def decorate(command: Function) -> Function:
        own = inspect.signature(command, eval_str=True)
        made = [_parameter(name, setting) for name, setting in OPTIONS.items() if wanted(setting)]
        kept = [p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        command.__signature__ = own.replace(parameters=[*made, *kept])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, setting: Setting) -> inspect.Parameter:
    kind, option = setting.kind, typer.Option(metavar=setting.metavar or None, help=setting.help or None)
    annotation: Any = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


class Command(TyperCommand):
    """A command whose options without a help of their own get it from their settings, once it is asked for."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        from glora.config import description

        for parameter in self.params:
            if getattr(parameter, "help", "") is None and parameter.name in OPTIONS:
                parameter.help = description(OPTIONS[parameter.name].name)  # type: ignore[attr-defined]
        return super().make_context(*args, **extra)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given as options, by dotted name."""
    found = {OPTIONS[name].name: value for name, value in options.items() if value not in (None, [])}
    if len(found.get("method.targets", ())) == 1:  # a word or a regular expression
        found["method.targets"] = found["method.targets"][0]
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}
