"""Runs of a tiny language model on a file of made conversations."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import language
from glora.config import load_experiment
from glora.runs.reporter import Silent
from glora.runs.run import Run

WORDS = "one two three four five six seven eight nine ten red blue morning sky Paris France".split()


class Saying(Silent):
    """Keeps every line that a run says, and the trials of its search."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.trials: list[Any] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def trial(self, trial: Any, best: Any, total: int, saved: float | None = None) -> None:
        self.trials.append(trial)


def sources(folder: Path, rows: int = 100) -> tuple[Path, Path]:
    """The folder of a tiny Llama and a file of conversations, both made."""
    rng = random.Random(0)
    model, data = folder / "llama", folder / "data.jsonl"
    if not model.exists():
        language.tiny_causal(model)
    made = [
        {"prompt": f"{i} {_some(rng, 2, 9)}", "completion": _some(rng, 1, 9)}  # a number: no two prompts are equal
        for i in range(rows)
    ]
    data.write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    return model, data


def _some(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def language_run(folder: Path, out: str, *overrides: str, rows: int = 100) -> tuple[Run, Saying]:
    """A run in `folder / out`, and what it says; the overrides win."""
    model, data = sources(folder, rows)
    usual = ["data.train=48", "data.val=40", "train.epochs=2", "train.batch_size=8", "search.budget=2000"]
    given = [f"model.name={model}", f"data.source={data}", *usual, *overrides]
    said = Saying()
    return Run(load_experiment(None, given), folder / out, said), said
