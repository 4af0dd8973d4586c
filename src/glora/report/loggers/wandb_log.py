"""Weights & Biases; project, entity and mode are what its own settings and environment say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from glora import registry

__all__ = ["WandB"]

wandb: Any = registry.optional_import("wandb", extra="wandb", purpose="Logging to Weights & Biases")


class WandB:
    """A run with the run folder's name and an id of its own; one that goes on is continued."""

    anew: ClassVar[bool] = False

    def __init__(self, folder: Path, *, key: str, settings: Mapping[str, Any]) -> None:
        name, config = folder.resolve().name, dict(settings)
        self.run = wandb.init(name=name, id=key, resume="allow", config=config, dir=str(folder))
        self.groups: set[str] = set()

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if group not in self.groups:  # each group counts its own steps
            self.groups.add(group)
            self.run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self.run.log({f"{group}/step": step, **{f"{group}/{name}": value for name, value in values.items()}})

    def result(self, values: Mapping[str, float], verdict: Sequence[str]) -> None:
        self.run.summary.update({**values, "verdict": " ".join(verdict)})

    def close(self) -> None:
        self.run.finish()
