"""What records of text data mean: the layouts that people write, told apart by the names of their fields.

A layout turns a record into a row: a conversation, a question with choices, or a labelled text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from glora.errors import ConfigError, DataError, did_you_mean, listed
from glora.tasks.data.text_files import Record, called
from glora.tasks.rows import BadRow, Dialog, Labelled, Message, Question, Row, need_whole, strings

__all__ = ["FIELDS", "LAYOUTS", "ROLES", "Kind", "Layout", "Naming", "columns_of", "layout_of", "row_of", "values_of"]

Kind: TypeAlias = Literal["dialogs", "questions", "labelled"]

FIELDS = {  # our name of a field -> the names it is known by, the first that is there counts
    "instruction": ("instruction", "question", "query", "prompt", "input"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns"),
    "prompt": ("prompt",),
    "completion": ("completion",),
    "text": ("text", "sentence", "sentence1", "premise", "question1", "review", "content", "title"),
    "pair": ("pair", "text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "class", "category", "target", "sentiment", "rating", "score", "y"),
    "question": ("question", "prompt", "ctx", "query", "question_stem"),
    "choices": ("choices", "options", "endings"),
    "answer": ("answer", "answerKey", "answer_key", "label", "gold", "correct"),
    "group": ("conversation_id", "conversation_hash", "conv_id", "dialog_id", "dialogue_id", "session_id", "thread_id"),
    "split": ("split",),
}
ROLES = {  # what turns are said by -> the role of chat templates
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "bard": "assistant", "bing": "assistant", "function_call": "assistant", "agent": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
}  # fmt: skip
SPEAKERS, SAYINGS = ("role", "from", "speaker", "author"), ("content", "value", "text")
EXTRA = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")  # of a turn, that templates may read
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Naming:
    """What the user's data calls things.

    Attributes:
        fields: Our name of a field -> the data's.
        roles: Who a turn is said by, in the data -> a role of `ROLES`.
        columns: The columns to predict of labelled texts; empty: found by their names.
        prompt: What stands before the choices of a question, with fields in braces; None: the question.
        separator: What stands between several labels in one value; None: a value is one label.
        others: Whether of labelled texts all other columns are to be predicted, where none is known by its name.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    prompt: str | None = None
    separator: str | None = None
    others: bool = False

    def place(self, record: Mapping[str, Any], name: str) -> str | None:
        """What the record calls this field; None where it has no such field."""
        if name in self.fields:
            return self.fields[name] if self.fields[name] in record else None
        return next((each for each in FIELDS[name] if each in record), None)

    def value(self, record: Mapping[str, Any], name: str) -> Any:
        """The value of this field; None where it has none."""
        place = self.place(record, name)
        return None if place is None else record[place]

    def check(self) -> None:
        """Raises ConfigError where a field or a role is none of ours."""
        roles = set(ROLES.values())
        fields = {ours: f"{{{theirs}: {ours}}}" for ours, theirs in self.fields.items() if theirs in FIELDS}
        turned = {theirs: f"{{{theirs}: {said}}}" for said, theirs in self.roles.items() if said in roles}
        for what, names, known, other in (
            ("fields", self.fields, FIELDS, fields),
            ("roles", self.roles.values(), roles, turned),
        ):
            for name in names:
                if name not in known:
                    remedy = f"The other way round: data.{what}='{other[name]}'." if name in other else ""
                    raise ConfigError(
                        f"data.{what} names {name!r}.",
                        allowed=f"Allowed: {listed(sorted(known), n=30)}.",
                        remedy=remedy or did_you_mean(name, known),
                    )


class Layout(NamedTuple):
    """A way to write rows.

    Attributes:
        kind: What the rows are.
        fields: The fields that tell it, all of which a record has.
        make: Makes a row of a record; raises BadRow.
    """

    kind: Kind
    fields: tuple[str, ...]
    make: Callable[[Record, Naming], Row]


def layout_of(record: Mapping[str, Any], naming: Naming, *, where: str, kind: Kind | None = None) -> str:
    """The layout of a record, a name in `LAYOUTS`: the first that fits and gives what is asked for.

    Raises:
        DataError: None fits.
    """
    fits = [name for name, layout in LAYOUTS.items() if _fits(record, naming, name, layout)]
    if naming.columns and "label" in fits:
        return "label"
    if wanted := [name for name in fits if LAYOUTS[name].kind == kind]:
        return wanted[0]
    if fits:
        return fits[0]
    given = f" Named are {listed([f'{ours}: {theirs}' for ours, theirs in naming.fields.items()])}." * bool(
        naming.fields
    )
    raise DataError(
        f"{where} has the fields {listed(record, n=12)}, of which no layout is known.{given}",
        allowed=f"Layouts: {'; '.join(_shown(name) for name in LAYOUTS)}.",
        remedy="Name your own fields: --set data.fields='{instruction: NAME, output: NAME}'",
    )


def _shown(name: str) -> str:
    return f"{name} ({', '.join(LAYOUTS[name].fields)})"


def _fits(record: Mapping[str, Any], naming: Naming, name: str, layout: Layout) -> bool:
    if name == "question" and _lettered(record) and naming.place(record, "question") and naming.place(record, "answer"):
        return True
    if name == "plain" and "text" not in naming.fields and not {"text", "content"} & record.keys():
        return False
    if name == "alpaca" and _fits(record, naming, "question", LAYOUTS["question"]):
        return False
    if name == "sharegpt" and not _says_from(naming.value(record, "messages")):
        return False
    places = [naming.place(record, each) for each in layout.fields if each != "label"]
    if None in places or len(set(places)) < len(places):
        return False
    if name == "label":
        return bool(naming.columns) or naming.place(record, "label") is not None or (naming.others and len(record) > 1)
    return name != "completion" or isinstance(record[str(places[0])], type(record[str(places[1])]))


def _says_from(turns: Any) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in turns)


def row_of(record: Record, layout: str, naming: Naming) -> Row | BadRow:
    """The row that a record of this layout means; a bad row where it means none."""
    try:
        row = LAYOUTS[layout].make(record, naming)
        need_whole(*strings(row))
        return row
    except BadRow as bad:
        bad.where = record.where
        return bad


# Conversations.


def _text(record: Mapping[str, Any], naming: Naming, name: str, *, least: int = 1) -> str:
    """A field that is a text; empty where it may be left out and is.

    Raises:
        BadRow: It is missing, empty or of another type.
    """
    value = naming.value(record, name)
    if value is None and not least:
        return ""
    if value is None:
        raise BadRow("without a field", f"has no {naming.fields.get(name, name)!r}")
    if not isinstance(value, str):
        raise BadRow("of a wrong type", f"has {naming.place(record, name)!r} as {called(value)}, not as a text")
    if least and not value.strip():
        raise BadRow("empty", f"has an empty {naming.place(record, name)!r}")
    return value


def _group(record: Record, naming: Naming) -> str:
    """What a row is a part of: the conversation that it names; rows of one file that have one id."""
    place = naming.place(record.fields, "group")
    if place is not None and record.fields[place] not in (None, ""):
        return f"{place} {record.fields[place]}"
    own = record.fields.get("id")
    return f"{record.where.rpartition(', ')[0]} {own}" if isinstance(own, str | int) and own != "" else ""


def _dialog(record: Record, naming: Naming, messages: Sequence[Message]) -> Dialog:
    tools = naming.value(record.fields, "tools")
    said = tools if isinstance(tools, str) else json.dumps(tools) if tools else ""
    return Dialog(tuple(messages), record.where, _group(record, naming), _json_list(said))


def _json_list(text: str) -> str:
    """The text where it is a list in JSON; empty where there is none."""
    if not text.strip():
        return ""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadRow("of odd tools", f"has tools that are no JSON: {error}") from error
    if not isinstance(found, list):
        raise BadRow("of odd tools", "has tools that are no list")
    return json.dumps(found) if found else ""


def _system(record: Record, naming: Naming) -> list[Message]:
    text = _text(record.fields, naming, "system", least=0)
    return [Message("system", text)] if text.strip() else []


def _alpaca(record: Record, naming: Naming) -> Row:
    """`instruction`, maybe `input`, `output`; maybe `system`, and `history` as pairs of what was said before."""
    fields = record.fields
    instruction, output = _text(fields, naming, "instruction"), _text(fields, naming, "output")
    place = naming.place(fields, "input")
    given = "" if place == naming.place(fields, "instruction") else _text(fields, naming, "input", least=0)
    messages, history = _system(record, naming), naming.value(fields, "history") or []
    for pair in history if isinstance(history, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise BadRow("of a wrong type", "has a history that is no list of pairs of texts")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    input_ = given if given.strip() else ""
    return _dialog(record, naming, [*messages, Message("user", instruction, input_), Message("assistant", output)])


def _messages(record: Record, naming: Naming) -> Row:
    """A list of turns: `role` and `content`, or ShareGPT's `from` and `value`."""
    turns = _turns(naming.value(record.fields, "messages"), naming)
    messages = turns if turns[0].role == "system" else [*_system(record, naming), *turns]
    if not any(message.answers for message in messages):
        raise BadRow("without an answer", "has no turn of an assistant that is learned")
    return _dialog(record, naming, messages)


def _turns(value: Any, naming: Naming) -> list[Message]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # as tables have them
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(
                "of no JSON", f"has its turns as a text that is no JSON: {error}", remedy="Write it with json.dumps"
            ) from error
    if not isinstance(value, list):
        raise BadRow("of a wrong type", f"has its turns as {called(value)}, not as a list")
    if not value:
        raise BadRow("empty", "has no turns")
    found = [_turn(turn, place, naming) for place, turn in enumerate(value, 1)]
    return [turn for turn in found if turn.role != "system" or turn.text.strip()]


def _turn(turn: Any, place: int, naming: Naming) -> Message:
    """One turn.

    Raises:
        BadRow: It has no role, an unknown one, or nothing is said.
    """
    if not isinstance(turn, Mapping):
        raise BadRow("of a wrong type", f"has {called(turn)} as turn {place}")
    speaker = next((turn[name] for name in SPEAKERS if name in turn), None)
    roles = {**ROLES, **naming.roles}
    known = str(speaker) if str(speaker) in roles else str(speaker).strip().lower()
    if known not in roles:
        what = f"the unknown role {speaker!r}" if speaker is not None else "no role"
        raise BadRow(
            "of an unknown role",
            f"has {what} in turn {place}",
            remedy="" if speaker is None else f"Say what it is: --set data.roles='{{{speaker}: user}}'",
        )
    extra = {name: turn[name] for name in EXTRA if turn.get(name) is not None}
    text = _said(next((turn[name] for name in SAYINGS if name in turn), None), place, silent="tool_calls" in extra)
    if not text.strip() and "tool_calls" not in extra and roles[known] != "system":
        raise BadRow("empty", f"has an empty turn {place}, of {speaker!r}")
    learned = turn.get("weight", 1) not in (0, False) and turn.get("train", True) is not False
    return Message(roles[known], text, "", learned, json.dumps(extra) if extra else "")


def _said(value: Any, place: int, *, silent: bool) -> str:
    """What is said in a turn; parts of a text are one text."""
    if value is None and silent:
        return ""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        if other := [part.get("type") for part in value if part.get("type") != "text"]:
            raise BadRow("with more than text", f"has {other[0]!r} in turn {place}: texts alone are read")
        parts = [part.get("text", "") for part in value]
        odd = [part for part in parts if not isinstance(part, str)]
        value = odd[0] if odd else "".join(parts)
    if not isinstance(value, str):
        raise BadRow("of a wrong type", f"has {called(value)} in turn {place}, not a text")
    return value


def _completion(record: Record, naming: Naming) -> Row:
    """`prompt` and `completion`: texts, or lists of turns."""
    if isinstance(naming.value(record.fields, "prompt"), list):
        asked = _turns(naming.value(record.fields, "prompt"), naming)
        said = _turns(naming.value(record.fields, "completion"), naming)
        before = [message._replace(learned=False) for message in asked]
        if not any(message.answers for message in said):
            raise BadRow("without an answer", "has no turn of an assistant in its completion")
        return _dialog(record, naming, [*before, *said])
    prompt, completion = _text(record.fields, naming, "prompt"), _text(record.fields, naming, "completion")
    return _dialog(record, naming, [Message("prompt", prompt), Message("completion", completion)])


def _plain(record: Record, naming: Naming) -> Row:
    """A `text`, all of which is learned."""
    return _dialog(record, naming, [Message("text", _text(record.fields, naming, "text"))])


# Questions and labelled texts.


def _question(record: Record, naming: Naming) -> Row:
    """A question, its choices, and the right one: its place from 0, its letter, its label or the choice itself."""
    choices, labels = _choices(record, naming)
    question = _text(record.fields, naming, "question")
    prompt = question
    if naming.prompt is not None:
        try:
            prompt = naming.prompt.format_map({**record.fields, "question": question})
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise ConfigError(
                f"data.prompt={naming.prompt!r} does not fit {record.where}: {type(error).__name__} {error}.",
                allowed=f"In braces stand fields: {listed(record.fields, n=20)}.",
            ) from error
    answer = _answer(naming.value(record.fields, "answer"), choices, labels)
    return Question(prompt, choices, answer, record.where, _group(record, naming))


def _lettered(record: Mapping[str, Any]) -> list[str]:
    """The columns A, B, C, ... of choices that a record has."""
    found = [letter for letter in LETTERS if letter in record]
    return found if "".join(found) == LETTERS[: len(found)] and len(found) > 1 else []


def _choices(record: Record, naming: Naming) -> tuple[tuple[str, ...], list[str]]:
    """The choices, and what each is called, where the data says."""
    value, labels = naming.value(record.fields, "choices"), list[str]()
    if value is None:
        labels = _lettered(record.fields)
        value = [record.fields[letter] for letter in labels]
    if isinstance(value, Mapping):  # as of ARC: {"text": [...], "label": ["A", ...]}
        labels, value = [str(each) for each in value.get("label", [])], value.get("text")
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        labels, value = [str(each.get("label", "")) for each in value], [each.get("text") for each in value]
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise BadRow("of a wrong type", f"has {called(value)} for choices, not a list of texts")
    if len(value) < 2 or not all(each.strip() for each in value):
        raise BadRow("without choices", f"has {len(value)} choices" if len(value) < 2 else "has an empty choice")
    return tuple(value), labels


def _answer(value: Any, choices: Sequence[str], labels: Sequence[str]) -> int:
    """The place of the right choice.

    Raises:
        BadRow: It is none of the choices.
    """
    text = str(value).strip()
    if isinstance(value, bool) or value is None or not text:
        raise BadRow("without an answer", f"has {called(value)} for an answer")
    if text in labels:
        return labels.index(text)
    if isinstance(value, str) and value in choices:
        return list(choices).index(value)
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    if len(text) == 1 and text.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(text.upper())
    raise BadRow(
        "of an answer that is no choice", f"has the answer {value!r}, and the choices {listed(map(repr, choices), n=6)}"
    )


def _labelled(record: Record, naming: Naming) -> Row:
    """A text, maybe a second one, and what is to be predicted of them."""
    text = _text(record.fields, naming, "text")
    pair = _text(record.fields, naming, "pair") if naming.place(record.fields, "pair") is not None else None
    return Labelled(text, pair, record.where, _group(record, naming))


def columns_of(record: Mapping[str, Any], naming: Naming, *, where: str) -> tuple[str, ...]:
    """The columns to predict of labelled texts.

    Raises:
        DataError: There is none of such a name, or none at all.
    """
    if missing := [name for name in naming.columns if name not in record]:
        raise DataError(
            f"{where} has no column {missing[0]!r}.",
            allowed=f"Its columns are {listed(record, n=30)}.",
            remedy=did_you_mean(missing[0], record),
        )
    if naming.columns:
        return naming.columns
    if (place := naming.place(record, "label")) is not None:
        return (place,)
    used = {naming.place(record, name) for name in ("text", "pair", "group", "split")} | {"id"}
    return tuple(name for name in record if name not in used)


def values_of(record: Record, columns: Sequence[str], naming: Naming) -> tuple[Any, ...]:
    """What is to be predicted of a record; several labels in one value are one text.

    Raises:
        BadRow: There is nothing.
    """
    found = []
    for column in columns:
        value = record.fields.get(column)
        empty = value is None or (isinstance(value, str) and not value.strip() and naming.separator is None)
        if empty or isinstance(value, Mapping):
            raise BadRow("without a label", f"has {called(value) if value else 'nothing'} for {column!r}")
        if isinstance(value, list):
            value = (naming.separator or "|").join(map(str, value))
        found.append(value.strip() if isinstance(value, str) else value)
    return tuple(found)


LAYOUTS: dict[str, Layout] = {
    "sharegpt": Layout("dialogs", ("messages",), _messages),
    "messages": Layout("dialogs", ("messages",), _messages),
    "question": Layout("questions", ("question", "choices", "answer"), _question),
    "completion": Layout("dialogs", ("prompt", "completion"), _completion),
    "label": Layout("labelled", ("text", "label"), _labelled),
    "alpaca": Layout("dialogs", ("instruction", "output"), _alpaca),
    "plain": Layout("dialogs", ("text",), _plain),
}
