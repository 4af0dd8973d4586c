"""Three tasks made of WordNet, which Debian packages: words to explain, words to choose, and classes of meanings.

A word stands for the meaning that it most often has. Every word and every meaning is in one row, so that nothing that
is tested was trained on; the test examples are the same whatever the sizes of train and val.

Source: Fellbaum 1998; the files as `wndb(5WN)` describes them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

from glora.errors import DataError
from glora.tasks.data.packaged_texts import PackagedTexts, parted
from glora.tasks.objective import Objective
from glora.tasks.task import Task
from glora.tasks.texts import Dialog, Labelled, Message, Question

__all__ = ["NOUNS", "Entry", "entries", "meanings"]

WORDNET = Path("/usr/share/wordnet")  # where Debian's package puts it
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}  # end of a file's name -> what it is
NOUNS = ("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
         "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
         "relation", "shape", "state", "substance", "time")  # fmt: skip
FIRST_NOUN = 4  # the file of the first of them; file 3 has what all the others begin with
SHORT, LONG = 3, 12  # words of a definition
CHOICES = 4


class Meaning(NamedTuple):
    """A synset.

    Attributes:
        place: File and offset, such as `noun 00001740`.
        part: `noun`, `verb`, `adj` or `adv`.
        file: The number of its lexicographer file: a field of meanings, such as animals.
        words: The words that have it, the usual one first.
        definition: Its gloss without the examples.
    """

    place: str
    part: str
    file: int
    words: tuple[str, ...]
    definition: str


class Entry(NamedTuple):
    """A word with its first meaning."""

    word: str
    meaning: Meaning


class WordNetWords(PackagedTexts):
    """Common English words and what they mean, as instructions: 800 train, 200 val, 1,000 test."""

    def load(self, objective: Objective) -> Task:
        rows = {split: list(map(_dialog, some)) for split, some in parted(entries(), "words").items()}
        return self.task("wordnet_words", rows, objective)


class WordNetChoices(PackagedTexts):
    """Which of four words has a definition, all of one field of meanings: 800 train, 200 val, 984 test."""

    kind: ClassVar = "questions"

    def load(self, objective: Objective) -> Task:
        rows = {split: questions(some) for split, some in parted(entries(), "words").items()}
        return self.task("wordnet_choices", rows, objective, labels=lambda row: row.answer)


class WordNetClasses(PackagedTexts):
    """Which of 25 kinds of things a definition is of, such as an act or an animal: 800 train, 200 val, 1,000 test."""

    kind: ClassVar = "labelled"

    def load(self, objective: Objective) -> Task:
        last = FIRST_NOUN + len(NOUNS)
        found = {each.definition: each for each in meanings("noun").values() if FIRST_NOUN <= each.file < last}
        fields = {definition: meaning.file - FIRST_NOUN for definition, meaning in found.items()}
        parts = parted(list(found.values()), "words")
        rows = {
            split: [Labelled(each.definition, where=_place(each)) for each in some] for split, some in parts.items()
        }
        return self.task("wordnet_classes", rows, objective, labels=lambda row: fields[row.text], names=NOUNS)


def questions(known: Sequence[Entry]) -> list[Question]:
    """A question for every word of a field of meanings that has four words of its part of speech: which is defined?

    The three others are drawn from these words by a generator of the word's own, and so is the order; none has the
    meaning that is asked for.
    """
    fields: dict[tuple[str, int], list[Entry]] = {}
    for entry in known:
        fields.setdefault((entry.meaning.part, entry.meaning.file), []).append(entry)
    found = []
    for entry in known:
        rng = random.Random(entry.word)
        field = fields[entry.meaning.part, entry.meaning.file]
        others = [other.word for other in field if other.word not in entry.meaning.words]
        if len(others) >= CHOICES - 1:
            choices = [entry.word, *rng.sample(others, CHOICES - 1)]
            rng.shuffle(choices)
            prompt = f"Definition: {entry.meaning.definition}\n{PARTS[entry.meaning.part].capitalize()}:"
            found.append(Question(prompt, tuple(choices), choices.index(entry.word), _place(entry.meaning)))
    return found


def _dialog(entry: Entry) -> Dialog:
    asked = f'What does the {PARTS[entry.meaning.part]} "{entry.word}" mean?'
    return Dialog((Message("user", asked), Message("assistant", entry.meaning.definition)), _place(entry.meaning))


def _place(meaning: Meaning) -> str:
    return f"WordNet, {meaning.place}"


@cache
def meanings(part: str, folder: Path = WORDNET) -> dict[int, Meaning]:
    """Offset -> every meaning of a part of speech, in the order of the file.

    Args:
        part: A key of `PARTS`.
        folder: WordNet's own.

    Raises:
        DataError: WordNet is not installed, or a file is damaged.
    """
    found = {}
    for number, line in _lines(folder / f"data.{part}"):
        head, bar, gloss = line.partition("|")
        try:
            offset, file, _, count, *rest = head.split()
            words = tuple(word.partition("(")[0].replace("_", " ") for word in rest[: 2 * int(count, 16) : 2])
            meaning = Meaning(f"{part} {offset}", part, int(file), words, gloss.partition('; "')[0].strip(" ;\n"))
            found[int(offset)] = meaning
        except ValueError as error:
            raise _damaged(folder / f"data.{part}", number) from error
        if not (bar and words):
            raise _damaged(folder / f"data.{part}", number)
    return found


@cache
def entries(folder: Path = WORDNET) -> tuple[Entry, ...]:
    """The common words with a short definition that no word of their family is in, each word and meaning once.

    Common are those that were met in the texts that WordNet's authors have read for it.

    Args:
        folder: WordNet's own.

    Raises:
        DataError: WordNet is not installed, or a file is damaged.
    """
    found: dict[str, Entry] = {}
    told = set[str]()
    for part in PARTS:
        for word, meaning in _first_meanings(part, folder):
            definition = meaning.definition
            plain = word.isalpha() and word.islower() and len(word) >= SHORT and meaning.words[0] == word
            fits = SHORT <= len(definition.split()) <= LONG and not _tells(definition, word)
            if plain and fits and word not in found and definition not in told:
                found[word] = Entry(word, meaning)
                told.add(definition)
    return tuple(found.values())


def _tells(definition: str, word: str) -> bool:
    """Whether a definition has the word in it, or one of its family: of `cleverly` one that begins with `clev`."""
    stem = word[: max(4, len(word) - 4)]
    return any(other.startswith(stem) for other in re.findall(r"[a-z]+", definition.lower()))


def _first_meanings(part: str, folder: Path) -> Iterator[tuple[str, Meaning]]:
    """The words that were met in texts, each with the meaning that it most often had there."""
    every, file = meanings(part, folder), folder / f"index.{part}"
    for number, line in _lines(file):
        try:
            word, _, _, pointers, *rest = line.split()
            _, met, first, *_ = rest[int(pointers) :]
            if int(met):
                yield word, every[int(first)]
        except (ValueError, KeyError) as error:
            raise _damaged(file, number) from error


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file after its licence, numbered from 1."""
    try:
        with file.open(encoding="utf-8") as opened:
            yield from ((number, line) for number, line in enumerate(opened, 1) if not line.startswith("  "))
    except FileNotFoundError as error:
        raise DataError(
            f"WordNet needs {str(file)!r}, which is missing.", remedy="Install it: apt-get install wordnet-base"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{str(file)!r} cannot be read: {error}.",
            remedy="Install it again: apt-get install --reinstall wordnet-base",
        ) from error


def _damaged(file: Path, number: int) -> DataError:
    return DataError(
        f"{file}, line {number}, is no entry of WordNet.",
        remedy="Install it again: apt-get install --reinstall wordnet-base",
    )
