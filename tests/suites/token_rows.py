"""Rows of token ids as examples: what a set of texts gives once it is prepared, without tokenizer or file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glora.tasks.objective import Batch
from glora.tasks.texts import IGNORED, Choices, padded

__all__ = ["Questions", "Rows", "random_questions", "random_rows"]


@dataclass(frozen=True)
class Rows:
    """Texts: token ids, and from which place on they are learned. Implements `Measured`."""

    ids: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    unit = "texts"
    strata = None
    notes: tuple[str, ...] = ()

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    @property
    def weights(self) -> Tensor:
        return torch.tensor([len(row) - start for row, start in zip(self.ids, self.starts, strict=True)])

    @property
    def targets(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int]) -> Rows:
        return Rows(tuple(self.ids[k] for k in indices), tuple(self.starts[k] for k in indices))

    def joined(self, other: Any) -> Rows:
        return Rows((*self.ids, *other.ids), (*self.starts, *other.starts))

    def prepared(self, preprocess: Any) -> Rows:
        return self

    def batch(self, indices: Sequence[int]) -> Batch:
        rows = [self.ids[k] for k in indices]
        learned = [(IGNORED,) * self.starts[k] + self.ids[k][self.starts[k] :] for k in indices]
        inputs = {"input_ids": padded(rows, 2), "attention_mask": padded([[1] * len(row) for row in rows], 0)}
        return Batch(inputs, padded(learned, IGNORED))

    def identify(self, digest: Any, root: Path | None) -> None:
        digest.update(repr(self).encode())


@dataclass(frozen=True)
class Questions:
    """Questions: the ids of the prompt and of each choice, the number of the right one. Implements `Measured`."""

    prompts: tuple[tuple[int, ...], ...]
    choices: tuple[tuple[tuple[int, ...], ...], ...]
    answers: tuple[int, ...]

    unit = "questions"
    strata = None
    weights = None
    notes: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        return max(map(len, self.choices))

    @property
    def lengths(self) -> list[int]:
        longest = [max(map(len, choices)) for choices in self.choices]
        return [(len(prompt) + more) * self.most for prompt, more in zip(self.prompts, longest, strict=True)]

    @property
    def targets(self) -> Tensor:
        return torch.tensor(self.answers)

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, indices: Sequence[int]) -> Batch:
        rows: list[tuple[int, ...]] = []
        scored: list[tuple[int, ...]] = []
        for k in indices:
            for choice in self.choices[k]:
                rows.append(self.prompts[k] + choice)
                scored.append((IGNORED,) * len(self.prompts[k]) + choice)
            missing = self.most - len(self.choices[k])
            rows += [(2,)] * missing
            scored += [(IGNORED,)] * missing
        sizes = [[2 * len(c) for c in self.choices[k]] + [0] * (self.most - len(self.choices[k])) for k in indices]
        inputs = {"input_ids": padded(rows, 2), "attention_mask": padded([[1] * len(row) for row in rows], 0)}
        answer = self.targets[list(indices)]
        return Batch(inputs, Choices(padded(scored, IGNORED), answer, torch.tensor(sizes)), rows=self.most)

    def subset(self, indices: Sequence[int]) -> Questions:
        return Questions(*(tuple(part[k] for k in indices) for part in (self.prompts, self.choices, self.answers)))  # type: ignore[arg-type]

    def joined(self, other: Any) -> Questions:
        return Questions(self.prompts + other.prompts, self.choices + other.choices, self.answers + other.answers)

    def prepared(self, preprocess: Any) -> Questions:
        return self

    def identify(self, digest: Any, root: Path | None) -> None:
        digest.update(repr(self).encode())


def _ids(rng: random.Random, low: int, high: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, vocabulary) for _ in range(rng.randint(low, high)))


def random_rows(n: int, *, vocabulary: int = 300, seed: int = 0) -> Rows:
    """Texts of 4 to 14 tokens, of which the last 1 to 9 are learned."""
    rng = random.Random(seed)
    ids = tuple(_ids(rng, 4, 14, vocabulary) for _ in range(n))
    return Rows(ids, tuple(rng.randint(max(1, len(row) - 9), len(row) - 1) for row in ids))


def random_questions(n: int, *, vocabulary: int = 300, seed: int = 0, choices: int = 4, tokens: int = 4) -> Questions:
    """Questions of 2 to 7 tokens with 2 to `choices` choices of 1 to `tokens` tokens."""
    rng = random.Random(seed)
    prompts = tuple(_ids(rng, 2, 7, vocabulary) for _ in range(n))
    sizes = [choices, *(rng.randint(2, choices) for _ in range(n - 1))]
    every = tuple(tuple(_ids(rng, 1, tokens, vocabulary) for _ in range(size)) for size in sizes)
    return Questions(prompts, every, tuple(rng.randrange(size) for size in sizes))
