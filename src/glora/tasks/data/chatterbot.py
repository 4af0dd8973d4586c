"""Questions and answers of `chatterbot-corpus`, a package of English conversations on twenty subjects.

Its files repeat themselves: `tech_support.yml` has ten pairs a hundred times. Of every question the first answer
counts, and of longer conversations what begins them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from glora.errors import DataError, MissingExtraError
from glora.settings import read_settings
from glora.tasks.data.packaged_texts import PackagedTexts, parted
from glora.tasks.objective import Objective
from glora.tasks.task import Task
from glora.tasks.texts import Dialog, Message

__all__ = ["Chatterbot", "pairs"]

TEST = 150
MOST = 40  # words of a question or an answer


class Chatterbot(PackagedTexts):
    """Short English questions with answers on twenty subjects: 460 train, 115 val, 150 test."""

    def load(self, objective: Objective) -> Task:
        rows = [
            Dialog((Message("user", question), Message("assistant", answer)), where)
            for question, (answer, where) in pairs().items()
        ]
        return self.task("chatterbot", parted(rows, "chatterbot", test=TEST), objective)


def pairs() -> dict[str, tuple[str, str]]:
    """Question -> its answer, and the file that it stands in.

    Raises:
        DataError: A file is damaged.
        MissingExtraError: The package is not installed.
    """
    found: dict[str, tuple[str, str]] = {}
    known = set[str]()
    for file in sorted(_folder().glob("*.yml")):
        for conversation in _conversations(file):
            question, answer = (" ".join(str(turn).split()) for turn in conversation[:2])
            short = all(0 < len(text.split()) <= MOST for text in (question, answer))
            if short and _plain(question) not in known:
                known.add(_plain(question))
                found[question] = answer, f"chatterbot-corpus, {file.name}"
    return found


def _plain(question: str) -> str:
    """What equal questions have in common."""
    return "".join(letter for letter in question.lower() if letter.isalnum())


def _folder() -> Path:
    spec = importlib.util.find_spec("chatterbot_corpus")  # finds the files without running the package
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "The data set 'chatterbot' needs the package 'chatterbot-corpus', which is not installed.",
            remedy="Install it: pip install 'glora[demo-language]'",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "english"


def _conversations(file: Path) -> list[list[Any]]:
    """The conversations of two turns or more."""
    found = read_settings(file).get("conversations")
    if not isinstance(found, list):
        raise DataError(
            f"{str(file)!r} has no conversations.",
            remedy="Install it again: pip install --force-reinstall chatterbot-corpus",
        )
    return [each for each in found if isinstance(each, list) and len(each) > 1]
