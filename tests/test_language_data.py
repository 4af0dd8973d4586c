"""The texts that packages bring: whole, the same every time, nothing of test in training; and the demo on them."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from glora.errors import DataError
from glora.runs.demo_language import base_row, demo_experiment, run_demo, verdict
from glora.runs.reporter import Silent
from glora.tasks.data import wordnet
from glora.tasks.data.arithmetic import problems
from glora.tasks.data.chatterbot import pairs
from glora.tasks.data.packaged_texts import parted
from glora.tasks.data.wordnet import NOUNS, entries, meanings, questions
from glora.tasks.objectives.choose import Choose
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.language import Language
from glora.tasks.objectives.verbalize import Verbalize
from glora.tasks.rows import keys
from glora.tasks.task import Task, load_task
from language import tiny_causal

LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n"
HERE = pytest.mark.skipif(not wordnet.WORDNET.is_dir(), reason="needs wordnet-base")
GYM = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="needs glora[arithmetic]")
TASKS = {"wordnet_words": Language, "wordnet_choices": Choose, "chatterbot": Language, "arithmetic": Language}


def small_wordnet(folder: Path, nouns: list[tuple[str, int, str]], *, met: int = 1) -> Path:
    """WordNet's files with these nouns alone: words with `,` between them, lexicographer file, gloss."""
    data, index = [], []
    for offset, (words, file, gloss) in enumerate(nouns, 100):
        every = words.split(",")
        named = " ".join(f"{word} 0" for word in every)
        data.append(f"{offset:08d} {file:02d} n {len(every):02x} {named} 001 @ 00000001 n 0000 | {gloss}\n")
        index.append(f"{every[0]} n 1 1 @ 1 {met} {offset:08d}\n")
    for part in wordnet.PARTS:
        (folder / f"data.{part}").write_text(LICENCE + "".join(data if part == "noun" else []))
        (folder / f"index.{part}").write_text(LICENCE + "".join(index if part == "noun" else []))
    return folder


def test_a_meaning_is_read_with_its_words_and_without_its_examples(tmp_path: Path) -> None:
    folder = small_wordnet(tmp_path, [("tea_cup,cup", 6, 'a cup for tea; "he drank"; "a cup(p)"')])
    (meaning,) = meanings("noun", folder).values()
    assert meaning.words == ("tea cup", "cup")
    assert meaning.definition == "a cup for tea"
    assert (meaning.file, meaning.place) == (6, "noun 00000100")


@pytest.mark.parametrize(
    ("word", "gloss"),
    [
        ("Paris", "a city in northern France"),
        ("tea_cup", "a cup for tea"),
        ("ox", "a strong farm animal"),
        ("sadness", "the state of being sad"),
        ("dog", "an animal"),
        ("long", "one two three four five six seven eight nine ten eleven twelve thirteen"),
    ],
)
def test_names_phrases_and_definitions_that_tell_the_word_are_left_out(tmp_path: Path, word: str, gloss: str) -> None:
    kept = ("horse", 5, "a large animal that is ridden")
    found = entries(small_wordnet(tmp_path, [(word, 5, gloss), kept]))
    expected = ["horse"] if word != "sadness" else ["sadness", "horse"]  # `sad` is shorter than its stem
    assert [entry.word for entry in found] == expected


def test_words_that_were_never_met_are_left_out(tmp_path: Path) -> None:
    assert not entries(small_wordnet(tmp_path, [("horse", 5, "a large animal that is ridden")], met=0))


def test_a_damaged_file_is_told_with_its_line(tmp_path: Path) -> None:
    folder = small_wordnet(tmp_path, [("horse", 5, "a large animal that is ridden")])
    (folder / "data.noun").write_text(LICENCE + "00000100 05 n zz horse\n")
    with pytest.raises(DataError, match=r"data\.noun, line 2, is no entry of WordNet"):
        meanings("noun", folder)


def test_where_wordnet_is_missing_the_install_line_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which is missing") as caught:
        entries(tmp_path / "nowhere")
    assert "apt-get install wordnet-base" in caught.value.remedy


def test_choices_are_of_one_field_and_hold_the_answer_once(tmp_path: Path) -> None:
    animals = [
        (word, 5, f"beast number {k} of the farm") for k, word in enumerate(("horse", "sheep", "goat", "cow", "pig"))
    ]
    foods = [("bread", 13, "flour and water that are baked"), ("cheese", 13, "milk that is kept for months")]
    known = entries(small_wordnet(tmp_path, [*animals, *foods]))
    found = questions(known)
    assert len(found) == 5, "there are too few foods"
    for question in found:
        assert len(set(question.choices)) == 4 and not {"bread", "cheese"} & {*question.choices}
        right = next(entry for entry in known if entry.word == question.choices[question.answer])
        assert right.meaning.definition in question.prompt
    assert questions(known) == found, "the same every time"


def test_parts_are_the_same_every_time_and_share_nothing() -> None:
    parts = parted(range(50), "name", test=20)
    assert parts == parted(range(50), "name", test=20)
    assert sorted([*parts["train"], *parts["test"]]) == list(range(50)) and len(parts["test"]) == 20
    assert parted(range(50), "other", test=20) != parts


def loaded(source: str, **settings: Any) -> Task:
    return load_task(source, objective=TASKS[source](), **{"train": 40, "val": 20, "test": 30, **settings})


@HERE
@pytest.mark.parametrize("source", [pytest.param(name, marks=GYM if name == "arithmetic" else ()) for name in TASKS])
def test_no_prompt_is_in_two_splits_and_test_is_always_the_same(source: str) -> None:
    one, other = loaded(source), loaded(source, train=60, val=10, seed=5)
    assert [len(split) for split in one.splits.values()] == [40, 20, 30]
    assert one.test.rows == other.test.rows and one.train.rows[:5] != other.train.rows[:5]
    every = [key for some in keys([row for split in one.splits.values() for row in split.rows]) for key in some]
    assert not any(count > 1 for count in Counter(every).values())
    assert one.fingerprint == loaded(source).fingerprint
    assert all(row.where for row in one.test.rows)


@HERE
def test_no_choice_of_a_test_question_is_met_in_training() -> None:
    task = load_task("wordnet_choices", objective=Choose())
    train, test = ({word for row in split.rows for word in row.choices} for split in (task.train, task.test))
    assert not train & test
    answers = Counter(row.answer for row in task.train.rows)
    assert all(150 < count < 250 for count in answers.values()), "the right one is anywhere"


@HERE
def test_wordnet_is_large_enough_and_its_usual_sizes_are_as_told() -> None:
    assert len(entries()) > 5_000
    task = load_task("wordnet_words", objective=Language())
    assert [len(split) for split in task.splits.values()] == [800, 200, 1000]


@HERE
@pytest.mark.parametrize("objective", [Classify(), Verbalize()])
def test_classes_are_the_fields_of_nouns(objective: Any) -> None:
    task = load_task("wordnet_classes", objective=objective, train=100, val=50, test=50)
    assert task.objective.classes == NOUNS
    if objective.name == "verbalize":
        assert task.test.rows[0].choices == NOUNS
        assert task.test.rows[0].answer == task.test.targets[0]


@HERE
def test_an_objective_that_does_not_read_such_rows_is_refused() -> None:
    with pytest.raises(DataError, match="'choose' does not read the rows of 'wordnet_words'") as caught:
        load_task("wordnet_words", objective=Choose())
    assert "'language'" in caught.value.remedy


@GYM
def test_arithmetic_is_right_and_no_problem_is_there_twice() -> None:
    found = problems("basic_arithmetic", 200)
    assert len(dict(found)) == 200
    for question, answer in found:
        expression = question.removeprefix("Calculate ").removesuffix(".")
        assert eval(expression.replace("/", "//")) == int(answer), question
    assert found[:50] == problems("basic_arithmetic", 50)


def test_chatterbot_has_every_question_once() -> None:
    found = pairs()
    assert len(found) > 600
    assert not any(count > 1 for count in Counter(question.lower() for question in found).values())


# -- the demo


def test_quick_changes_only_sizes() -> None:
    full, quick = demo_experiment(seed=3), demo_experiment(quick=True, seed=3)
    assert (full.model, full.method, full.objective, full.seed) == (
        quick.model,
        quick.method,
        quick.objective,
        quick.seed,
    )
    assert full.search.budget == quick.search.budget
    assert full.objective.name == "language"  # type: ignore[attr-defined]


def test_the_demo_searches_for_less_than_half_the_work_of_its_training() -> None:
    """A pass backward costs about twice one forward; val is halved by what is set aside."""
    full = demo_experiment()
    searcher: Any = full.search.searcher
    scored = searcher.population + searcher.generations * (searcher.mutations + searcher.crossovers)
    data: Any = full.data
    forward = (scored * data.val // 2) + full.search.rescore * (data.val // 2)
    assert forward <= 3 * full.train.epochs * data.train / 2


@HERE
@pytest.mark.slow
def test_the_quick_demo_runs_on_a_tiny_model_and_is_not_done_twice(tmp_path: Path) -> None:
    model = str(tiny_causal(tmp_path / "model"))
    results, answers = run_demo(tmp_path / "demo", Silent(), quick=True, model=model)
    base, lora, glora = results
    assert [result.method for result in results] == ["base", "lora", "glora"]
    assert base.parameters == 0 and lora.parameters >= glora.parameters > 0
    assert base == base_row(glora)
    assert lora.example_steps == glora.example_steps and lora.controls["base"] == {
        **lora.controls["base"],
        "test_loss": base.metrics["test_loss"],
    }
    lines = verdict(results, tmp_path / "demo").splitlines()
    assert [line.startswith("GLoRA ") for line in lines] == [True, True]
    assert len(answers) == 3 and all(answer.question.startswith("What does the") for answer in answers)
    again, _ = run_demo(tmp_path / "demo", Silent(), quick=True, model=model)
    assert [result.time for result in again] == [result.time for result in results]
