"""What a run predicts for texts: classes, choices, or how likely an answer is and what the model says itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glora.errors import DataError
from glora.runs.chat import Chat, Reply
from glora.tasks.batching import lengths_of, passes
from glora.tasks.data.text import SETS, asked, wanted
from glora.tasks.data.text_files import Record
from glora.tasks.data.text_layouts import ROLES, SPEAKERS, Naming, layout_of, row_of
from glora.tasks.objective import Batch, Objective
from glora.tasks.objectives.language import perplexity
from glora.tasks.rows import (
    Asks,
    BadRow,
    Dialog,
    Labelled,
    Message,
    Question,
    Row,
    TextPreprocess,
    TextReading,
    need_whole,
    strings,
)
from glora.tasks.texts import DialogSet, TextSet

__all__ = ["MOST", "TextPredictor", "are_texts"]

MOST = 128  # tokens of an answer, unless told otherwise

UNSAID = "\ue000unsaid"  # an answer that is not there, while a row is read
ALLOWED = {
    "labelled": "A text, a pair of texts, or a mapping with such: {'text': ...}.",
    "questions": "A mapping with a question and its choices: {'question': ..., 'choices': [...]}.",
    "dialogs": "A text, or a mapping as a row of the data: {'instruction': ...}, {'messages': [...]}.",
}


def are_texts(inputs: Any) -> bool:
    """Whether these are texts or rows of them, and not what a model takes: tensors by name."""
    if isinstance(inputs, Tensor):
        return False
    return not (isinstance(inputs, Mapping) and any(isinstance(value, Tensor) for value in inputs.values()))


@dataclass(frozen=True)
class TextPredictor:
    """Predicts with a model that reads texts.

    Attributes:
        model: The plain model.
        objective: What it predicts.
        preprocess: How it reads texts.
        reading: How rows become texts.
        naming: What the data of the run calls its fields.
        raw: Whether a bare text is continued, and not answered as a user's turn.
        output: A batch -> the model's output.
    """

    model: nn.Module
    objective: Objective
    preprocess: TextPreprocess
    reading: TextReading
    naming: Naming
    raw: bool
    output: Callable[[Batch], Any]

    def predict(self, inputs: Any, *, size: int, tokens: int | None, reply: Reply | None) -> list[dict[str, Any]]:
        """A record for each text.

        Args:
            inputs: Texts, pairs of them, rows as the data has them (mappings), or a data set of such.
            size: Examples in a forward pass at most.
            tokens: Tokens in a forward pass at most; None for no limit.
            reply: How a language model answers; None: it does not.

        Raises:
            DataError: An input is none of the objective's, or cannot be read.
        """
        rows = [self._row(item, place) for place, item in enumerate(_items(inputs), 1)]
        if self.objective.name != "language":
            return self._choices_named(rows, self._predicted(self._set(rows), size, tokens))
        return self._language(rows, size, tokens, reply)

    def faults(self, inputs: Any, *, reply: Reply | None) -> dict[int, DataError]:
        """Why inputs cannot be predicted, by their places from 0; those that are not here can be.

        Args:
            inputs: As for `predict`.
            reply: As for `predict`.
        """
        speaks = self.objective.name == "language" and reply is not None
        chat = Chat(self.model, self.preprocess, self.reading, reply=reply, raw=self.raw) if speaks else None
        found: dict[int, DataError] = {}
        for place, item in enumerate(_items(inputs)):
            try:
                row = self._row(item, place + 1)
                asked = _asked(row) if isinstance(row, Dialog) else ()
                if chat is not None and asked:
                    chat.check(asked)
                if not isinstance(row, Dialog) or any(message.answers for message in row.messages):
                    self._set([row])
            except DataError as error:
                found[place] = error
        return found

    # Rows.

    def _row(self, item: Any, place: int) -> Row:
        where = f"Input {place}"
        if isinstance(item, Dialog | Question | Labelled):
            return item._replace(where=where)
        pair = isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(each, str) for each in item)
        wants = wanted(self.objective)
        if wants == "labelled" and (isinstance(item, str) or pair):
            return _whole(Labelled(item, None, where) if isinstance(item, str) else Labelled(item[0], item[1], where))
        if wants == "dialogs" and isinstance(item, str):
            return Dialog((Message("prompt" if self.raw else "user", item),), where)
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is {item!r:.60}.", allowed=ALLOWED[wants])
        fields = {name: value for name, value in item.items() if value is not None}
        layout = {"labelled": "label", "questions": "question"}.get(wants, "")
        if wants == "questions" and self.naming.place(fields, "answer") is None:
            fields[self.naming.fields.get("answer", "answer")] = 0
        if wants == "dialogs":
            layout = self._answered(fields, where)
        row = row_of(Record(where, fields), layout, self.naming)
        if isinstance(row, BadRow):
            raise DataError(f"{row.where} {row.message}.", allowed=ALLOWED[wants], remedy=row.remedy)
        if isinstance(row, Dialog) and row.messages[-1].text == UNSAID:
            return row._replace(messages=row.messages[:-1])
        return row

    def _answered(self, fields: dict[str, Any], where: str) -> str:
        """The layout of a conversation; an answer that is not there yet is put in, to be taken out again."""
        naming = self.naming
        if (place := naming.place(fields, "messages")) is not None and isinstance(fields[place], list):
            turns = fields[place]
            last = turns[-1] if turns and isinstance(turns[-1], Mapping) else {}
            speaker = str(next((last[name] for name in SPEAKERS if name in last), ""))
            if {**ROLES, **naming.roles}.get(speaker) in ("user", "tool", "system"):
                by, says = ("from", "value") if "from" in last else ("role", "content")
                fields[place] = [*turns, {by: "assistant", says: UNSAID}]
        else:
            for asks, says in (("prompt", "completion"), ("instruction", "output")):
                if naming.place(fields, asks) is not None:
                    if naming.place(fields, says) is None:
                        fields[naming.fields.get(says, says)] = UNSAID
                    break
        return layout_of(fields, naming, where=where, kind="dialogs")

    def _set(self, rows: Sequence[Any]) -> TextSet:
        objective, reading = self.objective, replace(self.reading, on_bad_row="error")
        if isinstance(objective, Asks):
            found = asked(objective, reading, rows, torch.zeros(len(rows), dtype=torch.int64))
        else:
            found = SETS[wanted(objective)](rows, reading=reading)
        return found.prepared(self.preprocess)

    # Outputs.

    def _predicted(self, examples: TextSet, size: int, tokens: int | None) -> list[dict[str, Any]]:
        """The objective's predictions, in the order of the examples."""
        found: list[dict[str, Any]] = [{}] * len(examples)
        for places in passes(range(len(examples)), lengths_of(examples), most=size, tokens=tokens):
            for place, record in zip(
                places, self.objective.predictions(self.output(examples.batch(places))), strict=True
            ):
                found[place] = record
        return found

    @staticmethod
    def _choices_named(rows: Sequence[Row], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The predictions of questions with the choices themselves, without those that are not there."""
        for row, record in zip(rows, records, strict=True):
            if isinstance(row, Question):
                record["answer"] = row.choices[record["choice"]]
                record["probabilities"] = record["probabilities"][: len(row.choices)]
        return records

    def _language(
        self, rows: Sequence[Any], size: int, tokens: int | None, reply: Reply | None
    ) -> list[dict[str, Any]]:
        """What the model says to each, and how well it expects the answer that the row has."""
        found: list[dict[str, Any]] = [{} for _ in rows]
        if reply is not None:
            chat = Chat(self.model, self.preprocess, self.reading, reply=reply, raw=self.raw)
            for row, record in zip(rows, found, strict=True):
                if asked := _asked(row):
                    record["reply"] = chat.reply_to(asked)
        known = [place for place, row in enumerate(rows) if any(message.answers for message in row.messages)]
        if not known:
            return found
        reading = replace(self.reading, on_bad_row="error")
        some = DialogSet([rows[place]._replace(where=f"Input {place + 1}") for place in known], reading=reading)
        losses = self._losses(some.prepared(self.preprocess), size, tokens)
        for place in known:
            found[place] |= losses[f"Input {place + 1}"]
        return found

    def _losses(self, examples: DialogSet, size: int, tokens: int | None) -> dict[str, dict[str, Any]]:
        """The predictions of every row by its place; of a row in several sequences over all of its tokens."""
        found: dict[str, dict[str, Any]] = {}
        for row, record in zip(examples.rows, self._predicted(examples, size, tokens), strict=True):
            before = found.setdefault(row.where, {**record, "loss": 0.0, "tokens": 0})
            both = before["tokens"] + record["tokens"]
            loss = (before["loss"] * before["tokens"] + record["loss"] * record["tokens"]) / both
            found[row.where] = {"loss": loss, "perplexity": perplexity(loss), "tokens": both}
        return found


def _whole(row: Labelled) -> Labelled:
    try:
        need_whole(*strings(row))
    except BadRow as bad:
        raise DataError(f"{row.where} {bad.message}.", allowed="Texts that are UTF-8.") from bad
    return row


def _asked(row: Dialog) -> tuple[Message, ...]:
    """What is said before the last answer; nothing of a plain text."""
    last = max((place for place, message in enumerate(row.messages) if message.answers), default=len(row.messages))
    return () if row.messages[0].role == "text" else row.messages[:last]


def _items(inputs: Any) -> Iterator[Any]:
    """The inputs one by one."""
    if isinstance(inputs, str | Mapping | Dialog | Question | Labelled):
        yield inputs
        return
    if isinstance(inputs, Path):
        raise DataError(f"The inputs are a path, {str(inputs)!r}.", remedy="Give what the file holds: a list of texts.")
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):  # a DataFrame
        inputs = inputs.to_dict("records")
    try:
        yield from inputs
    except TypeError:
        raise DataError(
            f"The inputs are a {type(inputs).__name__}.", allowed="Texts, pairs of them, or rows as mappings."
        ) from None
