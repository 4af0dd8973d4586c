"""What an export is: settings that write what was trained in one format, whole or not at all, with a model card."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from glora.adapt.adapted import Adapted
from glora.errors import RunError
from glora.exports import EXPORTS
from glora.exports.card import Facts, Loading, model_card
from glora.files import atomic_folder, write_json, write_text
from glora.registry import lookup
from glora.settings import Settings, build
from glora.tasks.images import Preprocess
from glora.tasks.texts import TextPreprocess

__all__ = ["CARD", "Export", "Trained", "Written", "write_export"]

CARD = "glora.json"  # what the card tells, as plain data; by it a folder is known as one of ours


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is exported.

    Attributes:
        adapted: The adapted model, not merged, its one active genotype; None where there are no support tensors.
        why: Why there are none, in words; empty where there are.
        plain: Makes the merged model in eval mode, with the state-dict keys that the base has not.
        facts: What its card tells.
        preprocess: How the model reads images or texts; None where it is not known.
        labels: Names of the outputs, in their order; empty where they have none.
        problem: What transformers calls the objective of a classifier, its `problem_type`; empty: none.
        example: Inputs as the model takes them, for a forward pass: a tensor, a tuple or a mapping; None: unknown.
    """

    adapted: Adapted | None
    why: str = ""
    plain: Callable[[], tuple[nn.Module, tuple[str, ...]]]
    facts: Facts
    preprocess: Preprocess | TextPreprocess | None = None
    labels: tuple[str, ...] = ()
    problem: str = ""
    example: Any = None

    def need_adapted(self, name: str) -> Adapted:
        """The adapted model.

        Raises:
            RunError: There is none.
        """
        if self.adapted is None:
            raise RunError(
                f"The format {name!r} holds an adapter, and {self.why}.",
                remedy="Export the merged model: --to huggingface, onnx or torch.",
            )
        return self.adapted


@dataclass(frozen=True, kw_only=True)
class Written:
    """What an export says of what it wrote.

    Attributes:
        loading: How it is loaded.
        notes: What a user should be told.
        told: Plain data for the card's file, such as the error of every layer.
    """

    loading: Loading
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)


class Export(Settings, ABC):
    """A format. Its settings are its fields; `name` is how `glora export --to` calls it."""

    @abstractmethod
    def write(self, trained: Trained, folder: Path, name: str) -> Written:
        """Writes the files of the format; the card is written afterwards.

        Args:
            trained: What is exported.
            folder: An empty folder, which takes its place when all is written.
            name: What the folder will be called, for the lines that load it.

        Raises:
            GloraError: The format cannot hold what was trained: all of it is listed.
        """


def write_export(trained: Trained, to: str, path: str | Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes the folder of an export with its model card, whole or not at all.

    Args:
        trained: What is exported.
        to: A name in `EXPORTS`.
        path: The folder. One that an export has written is replaced.
        settings: The format's own, by name.

    Returns:
        What a user should be told.

    Raises:
        UnknownNameError: There is no such format.
        ConfigError: A setting is unknown or wrong.
        GloraError: The format cannot hold what was trained; nothing is written.
        RunError: Something else lies at the path.
    """
    kind = lookup(EXPORTS, to, kind="export", remedy="List them: glora ls exports")
    export: Export = build(kind, dict(settings), f"the export {to!r}")
    path = Path(path).expanduser()
    _refuse_occupied(path)
    with atomic_folder(path) as folder:
        written = export.write(trained, folder, path.name)
        write_text(folder / "README.md", model_card(trained.facts, to, written.loading, written.notes))
        write_json(folder / CARD, {"export": to, **trained.facts.to_json(), **written.told})
    return written.notes


def _refuse_occupied(path: Path) -> None:
    """Raises RunError where something lies at the path that no export has written, or a file is meant."""
    remedy = "Name a folder that is new or empty."
    if path.is_dir():
        if any(path.iterdir()) and not (path / CARD).is_file():
            raise RunError(f"The folder {str(path)!r} holds something else.", remedy=remedy)
    elif path.exists() or path.is_symlink():
        raise RunError(f"{str(path)!r} is a file.", allowed="An export is a folder.", remedy=remedy)
    if path.suffix in (".onnx", ".pt2", ".pt", ".pth", ".bin", ".safetensors"):
        raise RunError(
            f"{str(path)!r} is called like a file.",
            allowed="An export is a folder: its card, and what it needs, lie beside the model.",
            remedy=f"Write --out {path.with_suffix('')}.",
        )
