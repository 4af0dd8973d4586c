"""Rows of text as token ids: what a model reads of them, and which of its tokens are learned.

A conversation is rendered as a whole, and once for each learned turn up to where its answer begins and up to where it
ends. Both must be beginnings of the whole: the tokens between them are learned, up to the token that ends the turn. So
no chat template needs marks of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glora.errors import DataError
from glora.tasks.rows import (
    BadRow,
    Dialog,
    Labelled,
    Message,
    Question,
    TextPreprocess,
    TextReading,
    as_template_reads,
    counted,
    need_whole,
    system_moved,
)

__all__ = ["IGNORED", "Asked", "Encoded", "Tokens"]

IGNORED = -100  # the target of a token that is not learned
CHUNK = 1000  # rows that are tokenised together
RAW = {"prompt": "user", "completion": "assistant"}  # what they are to a chat template

ALPACA = "Below is an instruction that describes a task"  # github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
ALPACA_INPUT = ", paired with an input that provides further context"
ALPACA_END = "Write a response that appropriately completes the request."

Ids = npt.NDArray[np.int32]


class Encoded(NamedTuple):
    """A conversation as tokens.

    Attributes:
        ids: What the model reads, `(t,)`.
        targets: The tokens that are learned, `IGNORED` elsewhere, `(t,)`; of an encoder-decoder the response, `(u,)`.
    """

    ids: Ids
    targets: Ids

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return int((self.targets != IGNORED).sum())


class Asked(NamedTuple):
    """A question as tokens.

    Attributes:
        ids: What the model reads of each choice, `(t,)` each; of an encoder-decoder the prompt.
        scored: The tokens of each choice, `(u,)` each.
        ends: The place after the last of these: the end of its `ids`. Where the model reads no more, one after it: the
            last token is predicted and need not be read.
    """

    ids: tuple[Ids, ...]
    scored: tuple[Ids, ...]
    ends: tuple[int, ...]


class _Part(NamedTuple):
    """What is learned of a text: all that `through` has beyond `before`."""

    before: str
    through: str

    @property
    def learned(self) -> str:
        return self.through[len(self.before) :]


class _Sequence(NamedTuple):
    """A sequence as text: the whole, what is learned of it, and how it came about: `chat`, `pieces` or `text`."""

    whole: str
    parts: tuple[_Part, ...]
    how: str


class Tokens:
    """Tokenises rows for one model.

    Args:
        preprocess: How the model reads texts.
        reading: The settings of the data.

    Raises:
        DataError: The settings and the model do not go together.
    """

    def __init__(self, preprocess: TextPreprocess, reading: TextReading) -> None:
        self.tokenizer, self.name, self.form = preprocess.tokenizer, preprocess.name, preprocess.form
        self.reading, self.limit = reading, reading.limit(preprocess)
        self.leading, self.trailing = _around(self.tokenizer)
        added = self.tokenizer.added_tokens_decoder.items()
        self.special = np.array([place for place, token in added if token.special], dtype=np.int32)
        self.eos: str = self.tokenizer.eos_token or ""
        self.unstopped, self.shortened = 0, 0  # rows whose template ended no turn, and rows that were cut
        self.unasked = 0  # rows that begin with an answer
        self.style = self._style()

    def _style(self) -> str:
        """`chat`, `alpaca` or `plain`."""
        style, has = self.reading.template, bool(self.tokenizer.chat_template)
        if style == "chat" and not has:
            raise DataError(
                f"The tokenizer of {self.name} has no chat template (data.template=chat).",
                allowed="data.template is auto, alpaca, plain, or a chat template in Jinja.",
            )
        if style == "auto":
            style = "chat" if has else "plain" if self.form == "encoder_decoder" else "alpaca"
        if self.form == "encoder_decoder" and self.reading.train_on_prompt:
            raise DataError(f"{self.name} is an encoder-decoder: what it reads is not learned (data.train_on_prompt).")
        return style if style in ("chat", "alpaca", "plain") else "chat"

    @property
    def notes(self) -> list[str]:
        """What a user should be told about what has been read so far."""
        found = []
        if self.unstopped:
            found.append(f"The chat template of {self.name} ends no turn: {self.eos!r} is put at the end of each row.")
        if self.unasked:
            found.append(
                f"An opening turn of the assistant is read and not learned: {counted(self.unasked, 'conversations')}."
            )
        if self.shortened:
            found.append(f"Cut to {self.limit:,} tokens: {counted(self.shortened, 'rows')}.")
        return found

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of texts, without special ones around them."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(each, dtype=np.int32) for each in found]

    # Conversations.

    def dialogs(self, rows: Sequence[Dialog]) -> Iterator[list[Encoded] | BadRow]:
        """What is learned of each conversation: one sequence, or several where it is taken apart."""
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            found = [_trying(self._sequences, row) for row in some]
            needed = [text for each in found if isinstance(each, list) for one in each for text in self._needed(one)]
            texts = list(dict.fromkeys(needed))
            self._of = dict(zip(texts, self.ids(texts), strict=True))
            for row, each in zip(some, found, strict=True):
                yield each if isinstance(each, BadRow) else _trying(self._all_encoded, row, each)

    def _all_encoded(self, row: Dialog, sequences: list[_Sequence]) -> list[Encoded]:
        return [piece for each in sequences for piece in self._encoded(each)]

    def _needed(self, sequence: _Sequence) -> list[str]:
        """The texts whose tokens are needed."""
        if self.form == "encoder_decoder":
            return [_read(sequence.parts[-1]), self._said(sequence.parts[-1])]
        return [sequence.whole, *(text for part in sequence.parts for text in part)]

    def _said(self, part: _Part) -> str:
        """A response without what ends it."""
        return part.learned.removesuffix(self.eos) if self.eos else part.learned

    def _sequences(self, row: Dialog) -> list[_Sequence]:
        opens = next((place for place, each in enumerate(row.messages) if each.role != "system"), 0)
        if row.messages[opens : opens + 1] and row.messages[opens].role == "assistant":  # it answers nothing
            self.unasked += 1
            opening = row.messages[opens]._replace(learned=False)
            row = row._replace(messages=(*row.messages[:opens], opening, *row.messages[opens + 1 :]))
        if not any(message.answers for message in row.messages):
            raise BadRow("without an answer", "has no turn of an assistant", remedy="Add one")
        apart = self.reading.turns == "apart" or self.form == "encoder_decoder"
        return [self._sequence(each) for each in (_apart(row) if apart else [row])]

    def _sequence(self, row: Dialog) -> _Sequence:
        made = self._put_together(row)
        need_whole(made.whole)
        return made

    def _put_together(self, row: Dialog) -> _Sequence:
        messages = system_moved(row.messages, self.reading.system)
        roles = {message.role for message in messages}
        if "text" in roles or (roles <= {"prompt", "completion"} and self.reading.template in ("auto", "plain")):
            how = "text" if roles == {"text"} else "pieces"
            return _joined([(self._ended(each) if each.answers else each.text, each.answers) for each in messages], how)
        messages = [each._replace(role=RAW.get(each.role, each.role)) for each in messages]
        if self.style == "chat":
            return self._by_template(messages, row.tools)
        if any(message.role == "tool" or message.extra for message in messages):
            raise BadRow("with tools", "calls tools, for which a chat template is needed", remedy="Give data.template")
        return _joined(list(self._alpaca(messages) if self.style == "alpaca" else self._plain(messages)), "pieces")

    def _ended(self, message: Message) -> str:
        """What a turn says, and the token that ends it."""
        if not self.eos:
            raise DataError(
                f"The tokenizer of {self.name} has no token that ends a text (eos_token): the model would never stop.",
                remedy="Name it in its tokenizer_config.json.",
            )
        return message.text if message.text.endswith(self.eos) else message.text + self.eos

    def _alpaca(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """Pieces of text in Alpaca's way, each with whether it is learned."""
        about = ALPACA_INPUT if any(message.input for message in messages) else ""
        given = [message.text for message in messages if message.role == "system"]
        yield "\n\n".join(given) or f"{ALPACA}{about}. {ALPACA_END}", False
        for message in messages:
            if message.role == "user":
                yield f"\n\n### Instruction:\n{message.text}", False
                yield f"\n\n### Input:\n{message.input}" if message.input else "", False
            elif message.role == "assistant":
                yield "\n\n### Response:\n", False
                yield self._ended(message), message.answers

    def _plain(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """Pieces of text as they are, a line each, each with whether it is learned."""
        for place, message in enumerate(messages):
            if place:
                yield "\n", False
            said = f"{message.text}\n{message.input}" if message.input else message.text
            ended = message.role == "assistant" and (message.answers or self.form == "causal")
            yield self._ended(message) if ended else said, message.answers

    def _by_template(self, messages: Sequence[Message], tools: str) -> _Sequence:
        """The conversation as the chat template renders it.

        Raises:
            BadRow: The template refuses it, or renders turns in another way when others follow.
        """
        plain = [as_template_reads(message) for message in messages]
        whole = self._render(plain, tools)
        parts = list[_Part]()
        for place, message in enumerate(messages):
            if not message.answers:
                continue
            before = self._render(plain[:place], tools, prompt=True)
            through = whole if place + 1 == len(plain) else self._render(plain[: place + 1], tools)
            if self.eos and not whole.startswith(through):  # some put it at the end of all, and not of every turn
                through = through.removesuffix(self.eos)
            if not (whole.startswith(through) and through.startswith(before)):
                alone = len(messages) == place + 1 and not parts
                raise self._changed(messages, place, alone=alone)
            parts.append(_Part(before, through))
        return _Sequence(whole, tuple(parts), "chat")

    def _changed(self, messages: Sequence[Message], place: int, *, alone: bool) -> BadRow:
        """What is wrong with a conversation whose turn at this place the template changes."""
        remedy = "Set data.turns=apart, which renders each learned turn with what is before it alone"
        if alone:
            remedy = "Give another template: data.template=FILE.jinja"
        if any(message.role == "system" for message in messages):
            remedy += ", or set data.system=user"
        return BadRow(
            "changed by the chat template",
            f"has turns that the chat template of {self.name} renders in another way when others follow, as turn "
            f"{place + 1} shows: it cannot be told which tokens are learned",
            remedy=remedy,
        )

    def _render(self, messages: list[dict[str, Any]], tools: str, *, prompt: bool = False) -> str:
        own = self.reading.template in ("auto", "chat")
        try:
            found: str = self.tokenizer.apply_chat_template(
                messages,
                tools=json.loads(tools) if tools else None,
                chat_template=None if own else self.reading.template,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except Exception as error:  # whatever the template's own code refuses
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            if type(error).__name__ == "TemplateSyntaxError":  # jinja2's, whichever the row
                whose = f"of {self.name}" if own else "in data.template"
                raise DataError(f"The chat template {whose} is no Jinja: {reason}.", remedy="Mend it.") from error
            has_system = any(message["role"] == "system" for message in messages)
            raise BadRow(
                "refused by the chat template",
                f"is refused by the chat template of {self.name}: {reason}",
                remedy="Mend the order of its turns" + (", or set data.system=user" if has_system else ""),
            ) from error
        return found

    def _encoded(self, sequence: _Sequence) -> list[Encoded]:
        """The tokens of a sequence, cut as the settings say.

        Raises:
            BadRow: It has too many, or none that is learned.
        """
        whole = self._pair(sequence) if self.form == "encoder_decoder" else self._masked(sequence)
        if not whole.learned:
            raise BadRow("without a learned token", "has no token that is learned")
        n = max(len(whole.ids), len(whole.targets))
        if n <= self.limit:
            return [whole]
        if sequence.how == "text" and self.form != "encoder_decoder":  # it goes on after its last token, read again
            starts = range(0, n - 1, self.limit - 1)
            found = [Encoded(*(each[start : start + self.limit].copy() for each in whole)) for start in starts]
            for each in found:
                each.targets[0] = IGNORED
            return found
        short = Encoded(whole.ids[: self.limit], whole.targets[: self.limit])
        if self.reading.on_long_row == "cut" and short.learned:
            self.shortened += 1
            return [short]
        what = "none of the first is learned" if self.reading.on_long_row == "cut" else "so many are not read"
        raise BadRow(
            "too long",
            f"has {n:,} tokens, more than {self.limit:,}: {what}",
            remedy="Raise data.max_length where the model takes more"
            + ("" if self.reading.on_long_row == "cut" else ", cut such rows at the end with data.on_long_row=cut"),
        )

    def _masked(self, sequence: _Sequence) -> Encoded:
        """A sequence, and which of its tokens are learned."""
        ids = self._of[sequence.whole]
        learned = np.zeros(len(ids), dtype=bool)
        stopped = True
        for part in sequence.parts:
            start, through = _common(self._of[part.before], ids), _common(self._of[part.through], ids)
            end = self._stop(ids, start, through)
            stopped = end is not None
            learned[start : through if end is None else end] = True
        if sequence.how == "chat" and not stopped and learned[-1:].any() and self.eos:
            ids, learned = np.append(ids, np.int32(self.tokenizer.eos_token_id)), np.append(learned, True)
            self.unstopped += 1
        if self.reading.train_on_prompt:
            learned[:] = True
        elif learned.any():  # nothing is learned from what comes after the last learned token
            ids = ids[: np.flatnonzero(learned)[-1] + 1]
            learned = learned[: len(ids)]
        if sequence.how != "chat" and ids[: len(self.leading)].tolist() != self.leading:
            ids = np.append(np.array(self.leading, dtype=np.int32), ids)
            learned = np.append(np.zeros(len(self.leading), dtype=bool), learned)
        learned[:1] = False  # nothing is before the first token
        return Encoded(ids, np.where(learned, ids, np.int32(IGNORED)))

    def _stop(self, ids: Ids, start: int, end: int) -> int | None:
        """The place after the token that ends a turn; None where no special token does."""
        places = np.flatnonzero(np.isin(ids[start:end], self.special))
        if not len(places):
            return None
        after: int = start + int(places[-1]) + 1
        return None if after < end and self.tokenizer.decode(ids[after:end].tolist()).strip() else after

    def _pair(self, sequence: _Sequence) -> Encoded:
        """What an encoder reads, and the response that the decoder learns."""
        part = sequence.parts[-1]
        read, said = self._of[_read(part)], self._of[self._said(part)]
        end = self.trailing or [self.tokenizer.eos_token_id]
        return Encoded(
            np.array([*self.leading, *read.tolist(), *self.trailing], dtype=np.int32),
            np.array([*said.tolist(), *end], dtype=np.int32),
        )

    # What a model answers to.

    def asked(self, messages: Sequence[Message]) -> list[int]:
        """The tokens after which a model answers: a conversation up to where the next turn of an assistant begins.

        Raises:
            BadRow: The chat template refuses it.
        """
        raw = {message.role for message in messages} <= RAW.keys()
        row = Dialog((*messages, Message("completion" if raw else "assistant", "Yes")))
        sequence = self._sequence(_apart(row)[-1])
        part = sequence.parts[-1]
        if self.form == "encoder_decoder":
            return [*self.leading, *self.ids([_read(part)])[0].tolist(), *self.trailing]
        ids: list[int] = self.ids([part.before])[0].tolist()
        led = sequence.how == "chat" or ids[: len(self.leading)] == self.leading
        return ids if led else [*self.leading, *ids]

    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        found = {self.tokenizer.eos_token_id, *self.trailing[:1]}
        (one,) = self.dialogs([Dialog((Message("user", "Why?"), Message("assistant", "Yes")))])
        if isinstance(one, list) and one[-1].targets[-1] in self.special:
            found.add(int(one[-1].targets[-1]))
        return sorted(found - {None})

    # Questions and labelled texts.

    def questions(self, rows: Sequence[Question]) -> Iterator[Asked | BadRow]:
        """Each question with its choices, as lm-eval makes tokens of them.

        Prompt and choice are made tokens of together; the choice is what is beyond the prompt's own number of tokens.
        Spaces at the end of a prompt are the choice's. Too many tokens are cut off at the beginning.

        Source: lm-eval 0.4.13, `TemplateLM._encode_pair` and `HFLM._loglikelihood_tokens`.
        """
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            pairs = [(*_moved(row.prompt, choice),) for row in some for choice in row.choices]
            causal = self.form != "encoder_decoder"
            needed = [text for before, after in pairs for text in (before, before + after if causal else after)]
            texts = list(dict.fromkeys(needed))
            self._of = dict(zip(texts, self.ids(texts), strict=True))
            for row in some:
                yield _trying(self._asked, row)

    def _asked(self, row: Question) -> Asked:
        if not 0 <= row.answer < len(row.choices) or len(row.choices) < 2:
            raise BadRow("without a right choice", f"has {len(row.choices)} choices, and the answer {row.answer}")
        made = [self._choice(*_moved(row.prompt, choice)) for choice in row.choices]
        longest = max(len(scored) for _, scored in made)
        if not all(len(scored) for _, scored in made) or longest > self.limit:
            raise BadRow("of an odd choice", f"has a choice of no token, or of more than {self.limit:,}")
        scored = tuple(each for _, each in made)
        if self.form == "encoder_decoder":
            self.shortened += any(len(ids) > self.limit for ids, _ in made)
            return Asked(tuple(ids[-self.limit :] for ids, _ in made), scored, tuple(map(len, scored)))
        most = self.limit + 1
        self.shortened += any(len(ids) > most for ids, _ in made)
        ends = tuple(min(len(ids), most) for ids, _ in made)
        return Asked(tuple(ids[-most:][: self.limit] for ids, _ in made), scored, ends)

    def _choice(self, before: str, after: str) -> tuple[Ids, Ids]:
        """What the model reads of a choice, and its scored tokens."""
        read = self._of[before]
        if self.form == "encoder_decoder":
            return np.array([*self.leading, *read, *self.trailing], dtype=np.int32), self._of[after]
        whole = self._of[before + after]
        if not before:
            first = self.tokenizer.bos_token_id
            first = self.tokenizer.eos_token_id if first is None else first
            own = bool(len(whole)) and int(whole[0]) == first
            return (whole, whole[1:]) if own else (np.append(np.int32(first), whole), whole)
        led = whole[: len(self.leading)].tolist() == self.leading
        ids = whole if led else np.append(np.array(self.leading, dtype=np.int32), whole)
        return ids, whole[len(read) :]

    def labelled(self, rows: Sequence[Labelled]) -> Iterator[dict[str, list[int]]]:
        """All that the tokenizer gives for each text or pair; too long ones are cut as it does."""
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            pairs = [row.pair or "" for row in some] if any(row.pair is not None for row in some) else None
            given = ([row.text for row in some], pairs) if pairs else ([row.text for row in some],)
            whole = self.tokenizer(*given, verbose=False)
            self.shortened += sum(len(ids) > self.limit for ids in whole["input_ids"])
            found = self.tokenizer(*given, truncation=True, max_length=self.limit)
            for place in range(len(some)):
                yield {name: list(values[place]) for name, values in found.items()}


def _trying(make: Callable[..., Any], row: Any, *more: Any) -> Any:
    """What is made of a row; the bad row where nothing is."""
    try:
        return make(row, *more)
    except BadRow as bad:
        bad.where = row.where
        return bad


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    alone: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    for first in range(len(whole) - len(alone) + 1):
        if whole[first : first + len(alone)] == alone:
            return whole[:first], whole[first + len(alone) :]
    return [], []


def _apart(row: Dialog) -> list[Dialog]:
    """A conversation for each learned turn, which ends with it, and in which no other is learned."""
    found = []
    for place, message in enumerate(row.messages):
        if message.answers:
            before = tuple(each._replace(learned=False) for each in row.messages[:place])
            found.append(row._replace(messages=(*before, message)))
    return found


def _joined(pieces: Sequence[tuple[str, bool]], how: str) -> _Sequence:
    """The sequence of these pieces of text, each with whether it is learned."""
    whole, parts = "", []
    for text, learned in pieces:
        if learned:
            parts.append(_Part(whole, whole + text))
        whole += text
    return _Sequence(whole, tuple(parts), how)


def _read(part: _Part) -> str:
    """What an encoder reads before a response."""
    return part.before.strip()


def _common(beginning: Ids, whole: Ids) -> int:
    """How many tokens are the same from the beginning on: a token on the border counts to what comes after it."""
    n = min(len(beginning), len(whole))
    other = np.flatnonzero(beginning[:n] != whole[:n])
    return int(other[0]) if len(other) else n


def _moved(prompt: str, choice: str) -> tuple[str, str]:
    """Prompt and choice, a space between them; spaces at the end of the prompt go to the choice."""
    bare = prompt.rstrip()
    return bare, f"{prompt[len(bare) :]} {choice}"
