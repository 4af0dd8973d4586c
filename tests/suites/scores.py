"""Score functions that worker processes can import: a toy, and a toy that gets into trouble."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.genotype import Genotype
from suites.searcher_suite import prompt_score, toy_score, toy_space

SPACE = toy_space(4)
EXAMPLES = 60


def score(genotype: Genotype) -> float:
    """A separable score."""
    return toy_score(SPACE)(genotype)


def values(genotype: Genotype, indices: Sequence[int]) -> list[float]:
    """The same with noise of its own for every example, most of it shared by all genotypes."""
    noise = random.Random(repr(genotype.to_json()))
    own = [noise.gauss(0, 0.5) for _ in range(EXAMPLES)]
    return [score(genotype) + own[index] + random.Random(index).gauss(0, 3) for index in indices]


def build() -> object:
    """A builder."""
    return score


def cannot_build() -> object:
    raise ValueError("no weights here")


@dataclass(frozen=True)
class Trouble:
    """The toy score; the first calls, by all processes together, end otherwise.

    Args:
        folder: Counts the calls, a file each.
        what: `"kill"`, `"hang"`, `"stop"` (as by `kill -STOP`) or `"raise"`.
        times: Number of calls that do.
        pause: Seconds that every call takes.
    """

    folder: Path
    what: str = ""
    times: int = 0
    pause: float = 0.0

    def __call__(self, genotype: Any) -> float:
        (self.folder / f"pid-{os.getpid()}").touch()
        for number in range(self.times):
            try:
                (self.folder / f"{self.what}-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            self._trouble()
        time.sleep(self.pause)
        return self._score(genotype)

    def _score(self, genotype: Any) -> float:
        return score(genotype)

    def _trouble(self) -> None:
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.what == "hang":
            time.sleep(3600)
        raise ValueError("this genotype cannot be scored")


@dataclass(frozen=True)
class PromptTrouble(Trouble):
    """The same for the genotypes of a `PromptSpace`."""

    what: str = "kill"

    def _score(self, genotype: Any) -> float:
        return prompt_score(genotype)
