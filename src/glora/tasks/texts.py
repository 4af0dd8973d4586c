"""Texts as examples: conversations to learn from, questions with choices, labelled texts; and how a model reads them.

A source (`tasks/data/`) makes rows, and a set of rows is a split. `prepared` turns them into token ids with the model's
tokenizer; before that, a set knows nothing of tokens. Batches are padded on the right, and masked by length.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from glora.errors import DataError
from glora.tasks.objective import Batch
from glora.tasks.rows import (
    Asks,
    BadRow,
    Dialog,
    Labelled,
    Message,
    Question,
    TextPreprocess,
    TextReading,
    counted,
    groups,
    strings,
    told,
)
from glora.tasks.tokens import IGNORED, Asked, Encoded, Tokens

__all__ = [
    "IGNORED",
    "Asks",
    "Choices",
    "Dialog",
    "DialogSet",
    "Labelled",
    "LabelledSet",
    "Message",
    "Question",
    "QuestionSet",
    "TextPreprocess",
    "TextReading",
    "TextSet",
    "padded",
]


class Choices(NamedTuple):
    """The targets of questions with several choices, n of them with c choices at most.

    Attributes:
        tokens: The tokens that are scored, `(n * c, t)` as the inputs, the choices of a question next to each other;
            `IGNORED` everywhere else, and for choices that are not there. Where one is scored that is not read any
            more, `(n * c, t + 1)`; of an encoder-decoder `(n * c, u)`.
        answer: The right choice of each, `(n,)`.
        sizes: Characters of each choice, `(n, c)`, as `acc_norm` divides by them; 0 where there is no such choice.
    """

    tokens: Tensor
    answer: Tensor
    sizes: Tensor


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a model reads of the rows of a set.

    Attributes:
        preprocess: How it reads texts.
        rows: What it reads of each.
        notes: What a user should be told about it.
        most: The most choices of a question of the whole split.
    """

    preprocess: TextPreprocess
    rows: tuple[Any, ...]
    notes: tuple[str, ...] = ()
    most: int = 0


class TextSet:
    """The base of all sets of rows of text.

    Args:
        rows: The rows of one split.
        targets: Encoded targets, `(n, ...)`, one each; zeros where the rows are all there is.
        strata: What splits keep in proportion.
        reading: What is made of the rows.
        found: What a model reads of them, where that is made already.

    Raises:
        DataError: There are not as many targets as rows.
    """

    unit: ClassVar[str] = "rows"

    def __init__(
        self,
        rows: Iterable[Any],
        targets: Tensor | None = None,
        *,
        strata: Sequence[Hashable] | None = None,
        reading: TextReading | None = None,
        found: _Prepared | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.targets = torch.zeros(len(self.rows), dtype=torch.int64) if targets is None else targets
        if len(self.rows) != len(self.targets):
            raise DataError(f"{len(self.rows)} rows came with {len(self.targets)} targets.", allowed="One each.")
        self.strata = None if strata is None else tuple(strata)
        self.reading = reading or TextReading()
        self.found = found

    def __len__(self) -> int:
        return len(self.rows)

    def _with(self, places: Sequence[int], found: _Prepared | None) -> Self:
        """The set of the rows at these places."""
        strata = None if self.strata is None else [self.strata[place] for place in places]
        chosen = self.targets[torch.tensor(list(places), dtype=torch.int64)]
        rows = [self.rows[place] for place in places]
        return type(self)(rows, chosen, strata=strata, reading=self.reading, found=found)

    def subset(self, indices: Sequence[int]) -> Self:
        """The rows of these indices, in their order."""
        places, found = [int(index) for index in indices], self.found
        if found is not None:
            found = _Prepared(found.preprocess, tuple(found.rows[place] for place in places), (), found.most)
        return self._with(places, found)

    def joined(self, other: Self) -> Self:
        """These rows, then those of another set."""
        strata = None if self.strata is None or other.strata is None else (*self.strata, *other.strata)
        found = None
        if self.found is not None and other.found is not None:
            one, two = self.found, other.found
            notes = tuple(dict.fromkeys([*one.notes, *two.notes]))
            found = _Prepared(one.preprocess, (*one.rows, *two.rows), notes, max(one.most, two.most))
        targets = torch.cat([self.targets, other.targets])
        return type(self)((*self.rows, *other.rows), targets, strata=strata, reading=self.reading, found=found)

    def prepared(self, preprocess: Any) -> Self:
        """The same rows as tokens of the model that `preprocess` is of; bad ones are left out, or an error.

        Raises:
            DataError: The model reads no texts, or a row is bad and not to be skipped.
        """
        if not isinstance(preprocess, TextPreprocess):
            raise DataError(
                f"The data is {self.unit}, and the model reads no texts.",
                allowed="A language model or a text encoder of transformers.",
                remedy="Name its folder: --model FOLDER",
            )
        if self.found is not None and self.found.preprocess is preprocess:
            return self
        tokens = Tokens(preprocess, self.reading)
        made, bad = self._made(tokens)
        rows = tuple(each for _, each in made)
        notes = (*told(bad, len(self), self.reading.on_bad_row), *tokens.notes)
        if len(rows) > (several := len({place for place, _ in made})):
            notes = (*notes, f"Read as {len(rows):,} rows: {counted(several, self.unit)}.")
        return self._with([place for place, _ in made], _Prepared(preprocess, rows, notes, self._most(rows)))

    def _made(self, tokens: Tokens) -> tuple[list[tuple[int, Any]], list[BadRow]]:
        """What the model reads, each with the place of its row; and the bad rows."""
        raise NotImplementedError

    def _most(self, made: Sequence[Any]) -> int:
        return 0

    @property
    def _needed(self) -> _Prepared:
        if self.found is None:
            raise DataError(
                "These rows are not tokenised yet: their model is not known.",
                remedy="Use task.prepared(backbone.preprocess).",
            )
        return self.found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should be told about the rows, once they are prepared."""
        return () if self.found is None else self.found.notes

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row, those of its choices together; characters, before it is prepared."""
        if self.found is None:
            return [sum(map(len, strings(row))) for row in self.rows]
        return [self._length(row) for row in self.found.rows]

    def _length(self, row: Any) -> int:
        raise NotImplementedError

    @cached_property
    def weights(self) -> Tensor | None:
        """How much each counts; None: all the same."""
        return None

    @cached_property
    def groups(self) -> list[Hashable] | None:
        """What no split may share with another, one for each row: equal prompts, parts of one conversation."""
        return groups(self.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows of these indices together, padded to the longest."""
        raise NotImplementedError

    def identify(self, digest: Any, root: Path | None) -> None:
        """Adds what the rows say to a hash; not where they stand."""
        for row in self.rows:
            digest.update(repr(row._replace(where="", group="")).encode())
        digest.update(self.targets.contiguous().numpy().tobytes())


class DialogSet(TextSet):
    """Conversations to learn from. The target of a learned token is the token itself: nothing is shifted."""

    unit = "conversations"

    def _made(self, tokens: Tokens) -> tuple[list[tuple[int, Encoded]], list[BadRow]]:
        every = list(enumerate(tokens.dialogs(self.rows)))
        made = [(place, each) for place, some in every if isinstance(some, list) for each in some]
        return made, [each for _, each in every if isinstance(each, BadRow)]

    def _length(self, row: Encoded) -> int:
        return len(row.ids) + (len(row.targets) if self._needed.preprocess.form == "encoder_decoder" else 0)

    @cached_property
    def weights(self) -> Tensor | None:
        """Learned tokens of each row, `(n,)`; None before it is prepared."""
        if self.found is None:
            return None
        return torch.tensor([row.learned for row in self.found.rows], dtype=torch.float64)

    def batch(self, indices: Sequence[int]) -> Batch:
        rows: list[Encoded] = [self._needed.rows[int(index)] for index in indices]
        pad = _pad(self._needed.preprocess.tokenizer)
        inputs = _inputs([row.ids for row in rows], pad)
        return Batch(inputs, padded([row.targets for row in rows], IGNORED))


class QuestionSet(TextSet):
    """Questions with several choices, each choice a row of the model's batch."""

    unit = "questions"

    def _made(self, tokens: Tokens) -> tuple[list[tuple[int, Asked]], list[BadRow]]:
        every = list(enumerate(tokens.questions(self.rows)))
        made = [(place, each) for place, each in every if isinstance(each, Asked)]
        return made, [each for _, each in every if isinstance(each, BadRow)]

    def _most(self, made: Sequence[Asked]) -> int:
        return max((len(each.ids) for each in made), default=0)

    def _length(self, row: Asked) -> int:
        return self._needed.most * max(map(len, row.ids))

    def batch(self, indices: Sequence[int]) -> Batch:
        places, most = [int(index) for index in indices], self._needed.most
        rows: list[Asked] = [self._needed.rows[place] for place in places]
        pad = _pad(self._needed.preprocess.tokenizer)
        nothing = np.array([pad], dtype=np.int32)  # read where there is no such choice: attention needs a token
        ids = [each for row in rows for each in _filled(row.ids, nothing, most)]
        scored = [each for row in rows for each in _filled(row.scored, nothing[:0], most)]
        ends = [each for row in rows for each in _filled(row.ends, 0, most)]
        tokens = padded(
            [np.pad(s, (max(0, e - len(s)), 0), constant_values=IGNORED) for s, e in zip(scored, ends, strict=True)],
            IGNORED,
        )
        answer = torch.tensor([self.rows[place].answer for place in places])
        sizes = torch.tensor([_filled(tuple(map(len, self.rows[place].choices)), 0, most) for place in places])
        return Batch(_inputs(ids, pad), Choices(tokens, answer, sizes), rows=most)


class LabelledSet(TextSet):
    """Texts, or pairs of texts, about which something is predicted."""

    unit = "texts"

    def _made(self, tokens: Tokens) -> tuple[list[tuple[int, Mapping[str, list[int]]]], list[BadRow]]:
        return list(enumerate(tokens.labelled(self.rows))), []

    def _length(self, row: Mapping[str, list[int]]) -> int:
        return len(row["input_ids"])

    def batch(self, indices: Sequence[int]) -> Batch:
        places = [int(index) for index in indices]
        rows = [self._needed.rows[place] for place in places]
        pad = _pad(self._needed.preprocess.tokenizer)
        fill = {"input_ids": pad}
        inputs = {name: padded([row[name] for row in rows], fill.get(name, 0)) for name in rows[0]}
        return Batch(inputs, self.targets[torch.tensor(places)])


def padded(rows: Sequence[Any], fill: int) -> Tensor:
    """Sequences of numbers as one tensor `(n, t)` int64, filled up on the right."""
    found = torch.full((len(rows), max(map(len, rows), default=0)), fill, dtype=torch.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
    return found


def _inputs(ids: Sequence[Any], pad: int) -> dict[str, Tensor]:
    """Tokens padded on the right, and what is no padding: by their lengths, as the padding may be a real token too."""
    mask = padded([np.ones(len(each)) for each in ids], 0)
    return {"input_ids": padded(ids, pad), "attention_mask": mask}


def _pad(tokenizer: Any) -> int:
    """The token that fills up; any would do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(each) for each in known if each is not None)


def _filled(row: Sequence[Any], fill: Any, most: int) -> list[Any]:
    return [*row, *[fill] * (most - len(row))]
