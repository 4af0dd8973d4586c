"""What the tests of whole runs share: a folder of easy images, a tiny experiment, a reporter that remembers."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glora.config import Experiment, build_experiment
from glora.report.metrics import MetricInfo
from glora.searchers import Trial
from glora.settings import merged
from glora.training.trainer import Progress

MODEL = {
    "name": "test_vit",
    "pretrained": False,
    "image_size": 32,
}
TARGETS = ["blocks.0.attn.qkv", "blocks.1.mlp.fc1"]
SEARCHER = {"population": 4, "generations": 2, "parents": 2}


def image_folder(root: Path, *, per_class: int = 20, classes: tuple[str, ...] = ("dark", "light")) -> Path:
    """`root` with a folder of noisy 12 x 12 PNGs per class, each class of its own brightness."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            level = 40 + 170 * label / max(1, len(classes) - 1)
            pixels = (level + rng.normal(0, 10, (12, 12, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def tiny(folder: Path, **changes: Any) -> Experiment:
    """An experiment of a second: a randomly initialised tiny transformer, two layers adapted."""
    settings: dict[str, Any] = {
        "method": {"name": "glora", "targets": TARGETS},
        "model": MODEL,
        "data": {"source": str(folder)},
        "train": {"epochs": 3, "batch_size": 8},
        "search": {"searcher": {"name": "evolution", **SEARCHER}},
    }
    method = changes.get("method", {})
    method = {"name": method} if isinstance(method, str) else method
    if method.get("name", "glora") in ("glora", "lora", "biases"):
        method = {"targets": TARGETS, **method}
    changes["method"] = method
    return build_experiment(merged(settings, changes))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Recorder:
    """A reporter that keeps what it is told, and kills the process where it is asked to.

    Args:
        kill_step: Training step at which the process ends as by `kill -9`.
        kill_trial: The same for a scored genotype.
    """

    def __init__(self, *, kill_step: int | None = None, kill_trial: int | None = None) -> None:
        self.lines: list[str] = []
        self.steps: list[Progress] = []
        self.trials: list[Trial] = []
        self.kill_step, self.kill_trial = kill_step, kill_trial

    def say(self, text: str) -> None:
        self.lines.append(text)

    def training(self, progress: Progress) -> None:
        self.steps.append(progress)
        if self.kill_step is not None and progress.step >= self.kill_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def search_begins(self, metric: MetricInfo) -> None:
        self.metric = metric

    def trial(self, trial: Trial, best: Trial, total: int, saved: float | None = None) -> None:
        self.trials.append(trial)
        if trial.number == self.kill_trial:
            os.kill(os.getpid(), signal.SIGKILL)
