"""Rows of text data: conversations, questions with choices, labelled texts; and how they are read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from glora.errors import DataError

__all__ = [
    "DEFAULT_LENGTH",
    "Asks",
    "BadRow",
    "Dialog",
    "Labelled",
    "Message",
    "Question",
    "Row",
    "TextPreprocess",
    "TextReading",
    "as_template_reads",
    "counted",
    "groups",
    "keys",
    "need_whole",
    "strings",
    "system_moved",
    "told",
]

DEFAULT_LENGTH = 2048  # tokens of a row at most, where neither the user nor the model says less
HALVES = re.compile("[\ud800-\udfff]")
OFTEN = 10  # rows that may always share a prompt


class Message(NamedTuple):
    """A turn of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`, as chat templates have them. Or a piece that is taken as it is:
            `prompt` and `completion`, which is learned; `text`, all of which is learned.
        text: What is said.
        input: What an instruction is about, the `input` of Alpaca's rows.
        learned: Whether an assistant's turn is learned.
        extra: What else a chat template reads, such as tool calls: a JSON object, or empty.
    """

    role: str
    text: str
    input: str = ""
    learned: bool = True
    extra: str = ""

    @property
    def answers(self) -> bool:
        """Whether it is learned where prompts are not."""
        return self.learned and self.role in ("assistant", "completion", "text")


class Dialog(NamedTuple):
    """A conversation to learn from; a prompt and its completion, or a plain text, are the smallest ones.

    Attributes:
        messages: Its turns, in order.
        where: Its file and line, for messages.
        group: What it is a part of, such as a longer conversation, which is never in two splits; may be empty.
        tools: The tools that a chat template lists: a JSON list, or empty.
    """

    messages: tuple[Message, ...]
    where: str = ""
    group: str = ""
    tools: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What comes before the first learned turn."""
        first = next((place for place, message in enumerate(self.messages) if message.answers), len(self.messages))
        return self.messages[:first]


class Question(NamedTuple):
    """A question with several choices.

    Attributes:
        prompt: What each choice follows, after a space: `"Question: What is water?\\nAnswer:"`.
        choices: The choices, without the space before them.
        answer: The place of the right one.
        where: Its file and line, for messages.
        group: As of a `Dialog`.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    where: str = ""
    group: str = ""


class Labelled(NamedTuple):
    """A text, or a pair of texts, about which something is predicted.

    Attributes:
        text: The text.
        pair: The second one of a pair.
        where: Its file and line, for messages.
        group: As of a `Dialog`.
    """

    text: str
    pair: str | None = None
    where: str = ""
    group: str = ""


Row: TypeAlias = Dialog | Question | Labelled


@runtime_checkable
class Asks(Protocol):
    """An objective that makes a question of a labelled text, each class a choice."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The answers to choose from, one for each class."""
        ...

    def question(self, text: str, pair: str | None = None) -> str:
        """What the model reads of a text, or of two."""
        ...


@dataclass(frozen=True)
class TextPreprocess:
    """How a model reads texts.

    Attributes:
        tokenizer: transformers' tokenizer of the model.
        name: The folder or name that it was loaded from.
        form: `causal`, one sequence that goes on; `encoder_decoder`, the prompt and then what is said to it; `encoder`,
            a text that is classified.
        max_length: Most tokens of a sequence that the model takes; None: it does not say.
    """

    tokenizer: Any
    name: str
    form: Literal["causal", "encoder_decoder", "encoder"]
    max_length: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What a file records of it; the tokenizer comes with the model."""
        return {"kind": "text", "tokenizer": self.name, "form": self.form, "max_length": self.max_length}

    @property
    def summary(self) -> str:
        """In a few words, for the plan of a run."""
        return "" if self.max_length is None else f"up to {self.max_length:,} tokens"


@dataclass(frozen=True)
class TextReading:
    """What is made of rows of text, as the settings of the data say.

    Attributes:
        max_length: Most tokens of a row; None: what the model takes, at most `DEFAULT_LENGTH`.
        train_on_prompt: Whether prompts are learned too.
        template: How turns are put together. `chat`: by the tokenizer's own chat template; `alpaca`: by Alpaca's
            prompt; `plain`: as they are, a line each; `auto`: by the chat template where there is one, else Alpaca's
            (of an encoder-decoder plain); else a chat template in Jinja.
        system: What becomes of system messages: `keep`; `user`, put before the next user's; `drop`.
        turns: `together`, a conversation is one sequence; `apart`, one for each learned turn, with all before it.
        on_bad_row: What to do with rows that cannot be learned from.
        on_long_row: What to do with rows of too many tokens: they are `bad`; or `cut`, at the end. A plain text that is
            too long always goes on in another row.
    """

    max_length: int | None = None
    train_on_prompt: bool = False
    template: str = "auto"
    system: Literal["keep", "user", "drop"] = "keep"
    turns: Literal["together", "apart"] = "together"
    on_bad_row: Literal["error", "skip"] = "error"
    on_long_row: Literal["bad", "cut"] = "bad"

    def limit(self, preprocess: TextPreprocess) -> int:
        """Most tokens of a row for this model.

        Raises:
            DataError: More are asked for than the model takes.
        """
        most = preprocess.max_length
        if self.max_length is None:
            return DEFAULT_LENGTH if most is None else min(most, DEFAULT_LENGTH)
        if most is not None and self.max_length > most:
            raise DataError(
                f"data.max_length={self.max_length:,} is more than {preprocess.name} takes.",
                allowed=f"At most {most:,} tokens.",
                remedy="Give less, or leave it out.",
            )
        return self.max_length


class BadRow(Exception):
    """A row that nothing can be learned from.

    Args:
        cause: What is wrong in two or three words, the same for all such rows: `too long`.
        message: What is wrong with this one, as the rest of a sentence that begins with its place.
        remedy: What can be done about it, beside leaving such rows out.
        where: Its file and line; where it is raised that may not be known.
    """

    def __init__(self, cause: str, message: str, *, remedy: str = "", where: str = "") -> None:
        super().__init__(message)
        self.cause, self.message, self.remedy, self.where = cause, message, remedy, where

    def __str__(self) -> str:
        return f"{self.where}, {self.message}" if self.where else f"A row {self.message}"


def strings(row: Row) -> list[str]:
    """What a row says."""
    if isinstance(row, Dialog):
        return [text for message in row.messages for text in (message.text, message.input)]
    return [row.prompt, *row.choices] if isinstance(row, Question) else [row.text, row.pair or ""]


def need_whole(*texts: str) -> None:
    """Raises BadRow where part of a character stands, as a cut in `\\ud83d\\ude00` leaves it: tokenizers take none."""
    for text in texts:
        if not text.isascii() and (half := HALVES.search(text)):
            raise BadRow(
                "of a broken character", f"has {half[0]!r}, which is a part of a character", remedy="Take it out"
            )


def told(bad: Sequence[BadRow], total: int, on_bad_row: str) -> list[str]:
    """What a user should be told about bad rows: how many there are of each cause, and where the first one is.

    Args:
        bad: The bad rows.
        total: How many rows there are, bad ones too.
        on_bad_row: `error` or `skip`.

    Raises:
        DataError: There are some, and they are not to be skipped; or there are no others.
    """
    if not bad:
        return []
    counts = Counter(row.cause for row in bad)
    first = {row.cause: row for row in reversed(bad)}
    places = {cause: f" (first: {row.where})" if row.where else "" for cause, row in first.items()}
    each = ", ".join(f"{count:,} {cause}{places[cause]}" for cause, count in counts.most_common())
    if on_bad_row == "error" or len(bad) == total:
        others = f" In all {len(bad):,} of {total:,} rows cannot be used: {each}." if len(bad) > 1 else ""
        skip = "leave such rows out with data.on_bad_row=skip" if len(bad) < total else ""
        remedy = ", or ".join(filter(None, (bad[0].remedy or "Mend the row", skip)))
        raise DataError(f"{bad[0]}.{others}", remedy=f"{remedy}.")
    return [f"Skipped {len(bad):,} of {total:,} rows: {each}."]


def counted(number: int, things: str) -> str:
    """`1,204 rows`, `1 row`."""
    return f"{number:,} {things if number != 1 else things.removesuffix('s')}"


def keys(rows: Sequence[Row]) -> list[list[Hashable]]:
    """What each row shares with those that no other split may have: what it asks, its conversation, all of it.

    What more than half of the rows share, such as one prompt for all, keeps nothing together.
    """
    every = [list(_keys(row)) for row in rows]
    counts = Counter(key for some in every for key in some[1:])
    often = {key for key, count in counts.items() if count > max(OFTEN, len(rows) / 2)}
    return [[key for key in some if key not in often] for some in every]


def _keys(row: Row) -> Iterator[Hashable]:
    """All that it says, what it asks, and what it is a part of."""
    if isinstance(row, Dialog):
        yield ("said", *((each.role, _plain(each.text), _plain(each.input)) for each in row.messages))
        if row.prompt:
            yield ("asked", *((each.role, _plain(each.text), _plain(each.input)) for each in row.prompt))
    elif isinstance(row, Question):
        yield ("asked", _plain(row.prompt), frozenset(map(_plain, row.choices)))
    else:
        yield ("said", _plain(row.text), _plain(row.pair or ""))
    if row.group:
        yield ("part", row.group)


def groups(rows: Sequence[Row]) -> list[Hashable] | None:
    """The group of each row, as a number; None where each is for itself.

    Rows are of one group where they share a key, or where others between them do.
    """
    first: dict[Hashable, int] = {}
    roots = list(range(len(rows)))

    def root(place: int) -> int:
        while roots[place] != place:
            roots[place] = roots[roots[place]]
            place = roots[place]
        return place

    for place, some in enumerate(keys(rows)):
        for key in some:
            roots[root(place)] = root(first.setdefault(key, place))
    found = [root(place) for place in range(len(rows))]
    return None if len(set(found)) == len(found) else list(found)


def _plain(text: str) -> str:
    return " ".join(text.split())


def system_moved(messages: Iterable[Message], how: str) -> list[Message]:
    """The messages with those of the system as they are, before the next user's, or left out."""
    if how == "keep":
        return list(messages)
    found, waiting = list[Message](), list[str]()
    for message in messages:
        if message.role == "system":
            waiting += [message.text] if how == "user" else []
        elif message.role == "user" and waiting:
            found.append(message._replace(text="\n\n".join([*waiting, message.text])))
            waiting = []
        else:
            found.append(message)
    return found


def as_template_reads(message: Message) -> dict[str, Any]:
    """The message as chat templates have it; an instruction and its input are two lines."""
    text = f"{message.text}\n{message.input}" if message.input else message.text
    return {"role": message.role, "content": text, **(json.loads(message.extra) if message.extra else {})}
