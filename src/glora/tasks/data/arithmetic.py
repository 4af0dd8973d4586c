"""Sums and word problems, made by `reasoning-gym` from a fixed seed (arXiv 2505.24760)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from glora import registry
from glora.tasks.augment import drawing
from glora.tasks.data.packaged_texts import TEST, TRAIN, VAL, PackagedTexts
from glora.tasks.objective import Objective
from glora.tasks.task import Task
from glora.tasks.texts import Dialog, Message

__all__ = ["Arithmetic", "problems"]

SEED = 0
SHORT: dict[str, dict[str, Any]] = {  # settings of the generators: problems that a small model can learn
    "basic_arithmetic": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "gsm_symbolic": {},
}


class Arithmetic(PackagedTexts):
    """Arithmetic with its result, from a generator: by default 800 train, 200 val, 1,000 test."""

    problems: Literal["basic_arithmetic", "gsm_symbolic"] = Field(
        "basic_arithmetic", description="Two or three numbers of up to two digits, or word problems."
    )

    def load(self, objective: Objective) -> Task:
        wanted = TEST + (self.train or TRAIN) + (self.val or VAL)
        rows = [
            Dialog((Message("user", question), Message("assistant", answer)), f"{self.problems}, {place}")
            for place, (question, answer) in enumerate(problems(self.problems, wanted))
        ]
        return self.task("arithmetic", {"train": rows[TEST:], "test": rows[:TEST]}, objective)


def problems(kind: str, number: int) -> list[tuple[str, str]]:
    """Problems and results, no problem twice.

    Args:
        kind: A data set of reasoning-gym.
        number: How many.

    Raises:
        MissingExtraError: reasoning-gym is not installed.
    """
    found: dict[str, str] = {}
    for question, answer in _generated(kind, 2 * number):
        if len(found) == number:
            break
        found.setdefault(" ".join(question.split()), answer)
    return list(found.items())


def _generated(kind: str, most: int) -> Iterator[tuple[str, str]]:
    with drawing("reasoning-gym"):  # its packages draw from the global generators when they are imported
        gym: Any = registry.optional_import("reasoning_gym", extra="arithmetic", purpose="The data set 'arithmetic'")
    for each in gym.create_dataset(kind, size=most, seed=SEED, **SHORT[kind]):
        yield each["question"], each["answer"]
