"""The searchers: the loop, the journal; each searcher passes the conformance suite."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glora.errors import ConfigError, RunError, UnknownNameError
from glora.files import read_jsonl
from glora.searchers import SEARCHERS, Racing, Score, Trial, pareto_front, search, settings_class
from glora.searchers.space import space_hash
from glora.space import BoundSpace, SearchSpace
from suites.searcher_suite import SearcherSuite, plain, timeless, toy_score, toy_space

SOURCE = str(Path(sys.modules["glora"].__file__ or "").parent.parent)
FEW = {"population": 6, "generations": 3, "parents": 3}


class TestEvolution(SearcherSuite):
    searcher = "evolution"
    few = FEW
    many = {}  # noqa: RUF012


class TestEvolutionByRejection(SearcherSuite):
    searcher = "evolution"
    few = FEW | {"legalize": "reject"}
    many = {"legalize": "reject", "generations": 9}  # noqa: RUF012
    long = {"legalize": "reject"}  # noqa: RUF012


class TestRandomSearch(SearcherSuite):
    searcher = "random"
    few = {"candidates": 24}  # noqa: RUF012
    many = {}  # noqa: RUF012
    learns = False


def test_every_searcher_of_the_table_has_a_suite() -> None:
    importlib.import_module("test_nsga2")  # its suite is in a file of its own
    assert {suite.searcher for suite in SearcherSuite.__subclasses__()} == set(SEARCHERS)


def test_a_diverged_genotype_is_never_on_the_front() -> None:
    space = toy_space(1)
    scores = [(0, -math.inf), (5, 0.1), (9, 0.2)]
    trials = [Trial(n, (n,), size, Score(value), 0, "random", None, space) for n, (size, value) in enumerate(scores)]
    assert [trial.number for trial in pareto_front(trials)] == [1, 2]
    assert pareto_front(trials[:1]) == ()


# The loop


def constant(genotype: Any) -> float:
    return 0.5


def test_the_defaults_are_the_papers() -> None:
    space = toy_space(12)
    worth = random.Random(0)
    trials = search(lambda genotype: worth.random(), space).trials
    assert len(trials) == 50 + 20 * 50
    for generation in range(21):
        origins = [trial.origin for trial in trials if trial.generation == generation]
        expected = {"random": 50} if generation == 0 else {"mutation": 25, "crossover": 25}
        assert {origin: origins.count(origin) for origin in set(origins)} == expected
        best = sorted((t for t in trials if t.generation < generation), key=lambda t: t.rank)[:10]
        parents = {t.parent for t in trials if t.generation == generation} - {None}
        assert parents <= {trial.number for trial in best}


def test_random_genotypes_fill_the_population_up() -> None:
    space = toy_space(12)
    settings = {"population": 20, "generations": 2, "mutations": 3, "crossovers": 4}
    last = [t.origin for t in search(toy_score(space), space, settings=settings).trials if t.generation == 2]
    assert [last.count(origin) for origin in ("mutation", "crossover", "random")] == [3, 4, 13]


def test_the_last_generation_is_ranked() -> None:
    calls = iter(range(10**6))
    result = search(lambda genotype: float(next(calls)), toy_space(8), settings=FEW)
    assert result.best.number == len(result.trials) - 1


def test_evolution_beats_random_search_at_equal_cost() -> None:
    space = toy_space(12)
    score, budget = toy_score(space), space.count(space.largest) // 3
    found = {
        searcher: [search(score, space, searcher=searcher, budget=budget, seed=s).best.score.value for s in range(3)]
        for searcher in ("evolution", "random")
    }
    assert min(found["evolution"]) > max(found["random"]) + 3


def test_ties_go_to_the_smaller_genotype_then_to_the_older() -> None:
    space = toy_space(6)
    result = search(constant, space, searcher="random", settings={"candidates": 300}, budget=400)
    assert result.best == min(result.trials, key=lambda trial: (trial.parameters, trial.number))
    assert result.front == (result.best,)
    same = [Trial(n, (n,), 10, Score(0.5), 0, "random", None, space) for n in range(5)]
    assert min(reversed(same), key=lambda trial: trial.rank).number == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    space = toy_space(1)
    trials = [Trial(n, (n,), size, Score(value), 0, "random", None, space) for n, (size, value) in enumerate(points)]
    beaten = {
        (size, value)
        for size, value in points
        if any(s <= size and v >= value and (s, v) != (size, value) for s, v in points)
    }
    front = pareto_front(trials)
    assert [(trial.parameters, trial.score.value) for trial in front] == sorted(set(points) - beaten)
    assert all(trial.number == points.index((trial.parameters, trial.score.value)) for trial in front)


def test_a_diverged_candidate_never_wins_and_its_score_is_kept(tmp_path: Path) -> None:
    space, journal = toy_space(3), tmp_path / "search.jsonl"
    calls = iter(range(10**6))

    def score(genotype: Any) -> float:
        return math.nan if next(calls) % 2 else 0.1

    options: dict[str, Any] = {"searcher": "random", "settings": {"candidates": 20}, "journal": journal}
    first = search(score, space, **options)
    assert first.best.score.value == 0.1
    assert [trial.score.value for trial in first.trials[:2]] == [0.1, -math.inf]
    assert search(constant, space, **options) == first


@pytest.mark.parametrize(
    "score",
    [
        math.inf, Score(0.5, -0.1), "abc", "0.5", None, True, [1.0], [1, 2], (1,), (1, 2, 3), (0.5, "x"), {"a": 1}, 1j,
        10**400, np.ones(3), np.True_,
    ],
)  # fmt: skip
def test_what_is_no_score_is_an_error_that_says_what_one_is(score: Any) -> None:
    with pytest.raises(ConfigError, match=r"score function returned.*A score is a number, higher is better"):
        search(lambda genotype: score, toy_space(1))


@pytest.mark.parametrize("score", [0.5, 1, np.float32(0.5), np.array(0.5), Score(0.5, 0.1), (0.5, 0.1)])
def test_numbers_of_any_library_are_scores(score: Any) -> None:
    best = search(lambda genotype: score, toy_space(1), settings=FEW).best
    assert best.score.value == (1 if score == 1 else 0.5)


RACED = (
    {"a": 1},
    5.0,
    None,
    "abcdefghij",
    [1.0],
    [1e308] * 10,
    [-1e308] * 10,
    [(0.5, 0.1)] * 10,
    [None] * 10,
    [True] * 10,
)


@pytest.mark.parametrize("values", RACED, ids=lambda value: repr(value)[:12])
def test_what_are_no_values_in_a_race_is_told(values: Any) -> None:
    options: dict[str, Any] = {"searcher": "random", "settings": {"candidates": 3}, "racing": Racing(10)}
    with pytest.raises(ConfigError, match=r"score function returned.*one number per index"):
        search(lambda genotype, indices: values, toy_space(1), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "0.3M"}, {"budget": math.nan}, {"budget": 3e3}, {"budget": True}, {"min_budget": "1"},
        {"min_budget": -5}, {"seed": None}, {"seed": "a"}, {"racing": True}, {"racing": 200}, {"score": 3},
        {"score": "foo"}, {"score": "no_such_module:score"}, {"score": "math:no_such_name"}, {"space": "linear"},
        {"context": {"a": object}}, {"context": {"a": math.nan}}, {"context": [1]}, {"workers": 1.5},
        {"workers": True}, {"limit": "a"}, {"limit": 0}, {"time_limit": -1},
        {"time_limit": "a"}, {"settings": 3}, {"settings": {"population": True}},
        {"settings": {"population": "a"}}, {"settings": {"population": None}},
        {"settings": {"mutation_probability": "a"}}, {"settings": {"mutation_probability": math.nan}},
        {"settings": {"legalize": []}}, {"searcher": "nsga2", "settings": {"mutation_probability": "a"}},
        {"searcher": "random", "settings": {"candidates": True}},
    ],
    ids=lambda options: re.sub(" object at 0x[0-9a-f]+", "", str(options)),
)  # fmt: skip
def test_wrong_arguments_are_told(options: dict[str, Any]) -> None:
    arguments = {"score": constant, "space": toy_space(1)} | options
    with pytest.raises(ConfigError):
        search(arguments.pop("score"), arguments.pop("space"), **arguments)


@pytest.mark.parametrize("wrong", [{"examples": 30.5}, {"examples": True}, {"first": 1}, {"level": "a"}, {"level": 0}])
def test_a_wrong_race_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        Racing(**({"examples": 30} | wrong))


def test_standard_errors_and_every_trial_are_handed_on() -> None:
    seen: list[Trial] = []
    result = search(lambda g: Score(len(seen) / 100, 0.02), toy_space(4), settings=FEW, on_trial=seen.append)
    assert tuple(seen) == result.trials
    assert {trial.score.standard_error for trial in seen} == {0.02}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 0}, r"population: .*\(got 0\)"),
        ({"population": 10, "mutations": 8, "crossovers": 8}, "mutations=8 and crossovers=8 exceed population=10"),
        ({"mutation_probability": 1.5}, "mutation_probability"),
        ({"legalize": "hope"}, "'repair' or 'reject'"),
        ({"populaton": 3}, "Did you mean 'population'"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(constant, toy_space(1), settings=settings)


def test_an_unknown_searcher_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"evolutoin.*Did you mean 'evolution'.*random"):
        search(constant, toy_space(1), searcher="evolutoin")


def test_rejection_ends_under_a_budget_that_no_random_genotype_keeps() -> None:
    space = toy_space(40)
    result = search(toy_score(space), space, budget=30, settings=FEW | {"legalize": "reject"})
    assert len(result.trials) == 24
    assert all(trial.parameters <= 30 for trial in result.trials)


# Settings


def test_a_searchers_settings_are_a_model_found_by_its_name() -> None:
    for name in SEARCHERS:
        kind = settings_class(name)
        settings = kind()
        assert kind.model_validate({"name": name}) == settings
        assert settings.candidates == 1_050
        assert all(field.description for key, field in kind.model_fields.items() if key != "name")
    with pytest.raises(UnknownNameError, match=r"no searcher 'evo'.*Known: evolution, nsga2, random"):
        settings_class("evo")


def test_settings_may_be_an_instance() -> None:
    space = toy_space(3)
    given = settings_class("evolution")(**FEW)
    assert plain(search(toy_score(space), space, settings=given)) == plain(
        search(toy_score(space), space, settings={"name": "evolution"} | FEW)
    )
    with pytest.raises(ConfigError, match=r"settings=.*RandomSettings"):
        search(constant, space, searcher="random", settings=given)
    with pytest.raises(ConfigError, match=r"name: .*'random'"):
        search(constant, space, searcher="random", settings={"name": "evolution"})


def test_settings_not_given_stay_open_and_are_numbers_in_the_journal(tmp_path: Path) -> None:
    """A population changed later must change what follows from it."""
    settings = settings_class("evolution")(population=7)
    assert settings.model_dump()["mutations"] is None
    assert settings.resolved()["mutations"] == settings.resolved()["crossovers"] == 3
    journaled(tmp_path / "search.jsonl")
    (header,) = lines_of(tmp_path / "search.jsonl", "search")
    assert header["settings"] == {
        **{"population": 6, "generations": 3, "parents": 3, "mutations": 3, "crossovers": 3},
        **{"mutation_probability": 0.2, "legalize": "repair"},
    }


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)the searcher 'evolution'.*population: .*populaton: no such setting"):
        search(constant, toy_space(1), settings={"population": 0, "populaton": 3})


# The space


class Part:
    """A space without some of its members, or with others in their place."""

    def __init__(self, **members: Any) -> None:
        whole = {"costs": [[0, 1]], "decode": tuple, "to_json": dict} | members
        self.__dict__.update({name: member for name, member in whole.items() if member is not None})


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("linear", r"space is a str, which has no costs and no decode and no to_json.*adapted\.space"),
        (SearchSpace(), r"SearchSpace, which has no costs and no decode\..*`bind`"),
        (Part(decode=None), r"Part, which has no decode\..*costs, decode, to_json"),
        (Part(costs=[]), r"space\.costs is not allowed.*At least one gene"),
        (Part(costs=[[0], []]), r"space\.costs is not allowed"),
        (Part(costs=[[0, -1]]), r"space\.costs is not allowed"),
        (Part(costs=[[0, 1.5]]), r"space\.costs is not allowed"),
        (Part(to_json=lambda: object), r"space\.to_json\(\) is no plain data"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_a_space_lacks_is_told(space: Any, words: str) -> None:
    assert search(lambda genotype: 0.5, Part()).best.genotype == (0,)
    with pytest.raises(ConfigError, match=words):
        search(constant, space)


def test_spaces_of_other_genotypes_have_other_hashes() -> None:
    space = toy_space(2)
    held = [BoundSpace(space.rules, space.sites, only=only) for only in (space.smallest, space.largest)]
    assert len({space_hash(each) for each in (space, toy_space(3), toy_space(2, ranks=(4,)), *held)}) == 5
    assert space_hash(space) == space_hash(toy_space(2))


# Time


def test_a_search_out_of_time_gives_what_it_has_and_goes_on_later(tmp_path: Path) -> None:
    path, space = tmp_path / "search.jsonl", toy_space(4)
    whole = journaled(tmp_path / "whole.jsonl")
    assert whole.finished
    part = journaled(path, time_limit=0)
    assert not part.finished
    assert part.trials == (part.best,) == whole.trials[:1]
    assert len(lines_of(path, "ask")) == 6 and len(lines_of(path, "start")) == 1
    with pytest.raises(RunError, match="not finished"):
        journaled(path, score=None, time_limit=0)
    assert journaled(path, time_limit=600) == whole
    assert journaled(path, time_limit=0) == whole  # nothing is left to score
    assert search(toy_score(space), space, settings=FEW, budget=400, time_limit=0).trials == part.trials


def test_a_race_out_of_time_has_a_best_trial(tmp_path: Path) -> None:
    def score(genotype: Any, indices: Any) -> list[float]:
        return [toy_score(space)(genotype)] * len(indices)

    space, racing = toy_space(4), Racing(30)
    options: dict[str, Any] = {"score": score, "racing": racing, "journal": tmp_path / "search.jsonl"}
    part = journaled(**options, path=None, time_limit=0)
    assert not part.finished and part.best.seen == 1
    whole = journaled(**options, path=None)
    assert whole.finished and whole.trials[: len(part.trials)] == part.trials


# The journal


def test_a_journal_written_before_the_settings_were_models_goes_on(tmp_path: Path) -> None:
    """The file is of commit fcd15d2: its format is still 2."""
    options: dict[str, Any] = {"seed": 5, "settings": {"population": 6, "generations": 2, "parents": 3}}
    options |= {"context": {"weights": "abc"}, "space": toy_space(4, scaling="fan_in")}
    before = Path(__file__).parent / "data" / "search_format_2.jsonl"
    assert len(journaled(before, score=None, **options).trials) == 18
    path = tmp_path / "search.jsonl"
    path.write_bytes(b"".join(before.read_bytes().splitlines(keepends=True)[:30]))
    assert journaled(path, **options) == journaled(before, score=None, **options)
    assert timeless(path) == timeless(before)


def lines_of(path: Path, event: str) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(path) if record["event"] == event]


def journaled(path: Path | None, **options: Any) -> Any:
    space = options.pop("space", toy_space(4))
    score = options.pop("score", toy_score(space))
    return search(score, space, **{"settings": FEW, "budget": 400, "journal": path} | options)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"budget": 401}, "budget"),
        ({"settings": FEW | {"generations": 4}}, "settings"),
        ({"space": toy_space(5)}, "space"),
        ({"context": {"weights": "abc"}}, "context"),
    ],
)
def test_the_journal_of_another_search_is_refused(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    path = tmp_path / "search.jsonl"
    journaled(path)
    before = path.read_bytes()
    with pytest.raises(RunError, match=f"another search: its {key}"):
        journaled(path, **change)
    assert path.read_bytes() == before


def test_an_edited_or_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    journaled(path)
    lines = path.read_text().splitlines()
    record = json.loads(lines[5])
    record["genome"] = [0] * len(record["genome"])
    for wrong, message in (
        ([*lines[:5], json.dumps(record), *lines[6:]], "trial 4 is another genotype"),
        ([*lines[:5], json.dumps(record | {"parameters": 1}), *lines[6:]], "trial 4 is another genotype"),
        ([*lines[:5], "{nonsense", *lines[6:]], "line 6, is damaged"),
        ([*lines, json.dumps(record | {"number": 99})], "has trial 99, but the search ends after 24"),
    ):
        path.write_text("\n".join([*wrong, ""]))
        with pytest.raises(RunError, match=message):
            journaled(path)


def edited(lines: list[str], place: int, drop: str = "", **changes: Any) -> list[str]:
    """The journal with one line changed; it is the first score's when place is -1."""
    place = next(n for n, line in enumerate(lines) if '"score"' in line) if place == -1 else place
    record = {name: value for name, value in (json.loads(lines[place]) | changes).items() if name != drop}
    return [*lines[:place], json.dumps(record), *lines[place + 1 :]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": "abc"}, r"line \d+, is damaged: trial 0 has score='abc'"),
        ({"score": True}, r"trial 0 has score=True"),
        ({"drop": "score"}, r"trial 0 has score='missing'"),
        ({"drop": "seconds"}, r"trial 0 has seconds=None"),
        ({"seconds": "1"}, r"trial 0 has seconds='1'"),
        ({"standard_error": -1}, r"trial 0 has standard_error=-1"),
        ({"score": math.inf}, r"line \d+, is damaged"),
        ({"score": math.nan}, r"line \d+, is damaged"),
        ({"number": "x"}, r"the number of a trial is 'x'"),
        ({"number": -1}, r"the number of a trial is -1"),
        ({"event": "guess"}, r"there is no event 'guess'"),
        ({"drop": "score", "values": [1.0]}, r"trial 0 has score='missing'"),
        ({"piece": 0}, r"trial 0 has the piece 0"),
        ({"number": 1}, r"line \d+, is damaged: trial 1 has a second line 'score'"),
    ],
)
def test_a_line_that_no_search_writes_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "search.jsonl"
    journaled(path)
    path.write_text("\n".join([*edited(path.read_text().splitlines(), -1, **change), ""]))
    with pytest.raises(RunError, match=words):
        journaled(path)


@pytest.mark.parametrize("change", [{"score": 1.0}, {"values": [1.0]}, {"values": "abc"}, {"values": [None, "1"] * 5}])
def test_a_races_line_that_no_search_writes_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    def race() -> None:
        options: dict[str, Any] = {"searcher": "random", "settings": {"candidates": 3}, "racing": Racing(30)}
        search(lambda genotype, indices: [0.5] * len(indices), toy_space(2), journal=path, **options)

    path = tmp_path / "search.jsonl"
    race()
    race()
    drop = "" if "values" in change else "values"
    path.write_text("\n".join([*edited(path.read_text().splitlines(), -1, drop, **change), ""]))
    with pytest.raises(RunError, match=r"trial 0"):
        race()


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_searchers import journaled
def slow(genotype):
    print("scoring", flush=True)
    time.sleep(600)
journaled(sys.argv[1], score=slow)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_journal_belongs_to_one_search_at_a_time_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    words = [sys.executable, "-c", HOLDER, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": SOURCE}, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"scoring\n"
        before = path.read_bytes()
        with pytest.raises(RunError, match="Another search is running on"):
            journaled(path)
        assert path.read_bytes() == before
        holder.kill()
    journaled(path)
    with pytest.raises(RunError, match="another search: its seed"):
        journaled(path, seed=1)
    journaled(path)


def test_a_finished_search_is_read_back_without_a_score_and_an_unfinished_one_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    found = journaled(path)
    whole = path.read_bytes()
    assert journaled(path, score=None) == found
    lines = whole.splitlines(keepends=True)
    for part in (b"", lines[0][:9], lines[0], b"".join(lines[:3]), b"".join(lines[:-1])):
        path.write_bytes(part)
        with pytest.raises(RunError, match=r"is not finished"):
            journaled(path, score=None)
        assert path.read_bytes() == part
    path.unlink()
    with pytest.raises(RunError, match=r"is not finished"):
        journaled(path, score=None)
    assert not path.exists()


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "thesis.tex"
    path.write_text("ten years of work")
    with pytest.raises(RunError, match="no search journal"):
        journaled(path)
    assert path.read_text() == "ten years of work"


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be written.*Give the path of a file"):
        journaled(tmp_path)


def test_the_journal_writes_the_genes_that_changed_and_tells_every_genome(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    result = journaled(path)
    genomes: list[list[int]] = []
    for record in lines_of(path, "ask"):
        genome = record.get("genome") or list(genomes[record["parent"]])
        for gene, option in zip(record.get("changed", [])[::2], record.get("changed", [])[1::2], strict=True):
            assert genome[gene] != option
            genome[gene] = option
        genomes.append(genome)
        trial = result.trials[record["number"]]
        facts = [trial.parameters, trial.generation, trial.origin, trial.parent]
        assert [record[key] for key in ("parameters", "generation", "origin", "parent")] == facts
    assert genomes == [list(trial.genome) for trial in result.trials]
    assert any(trial.parent is not None for trial in result.trials)


def test_a_score_that_fails_loses_nothing_that_was_scored(tmp_path: Path) -> None:
    path, space = tmp_path / "search.jsonl", toy_space(4)
    score, calls = toy_score(space), iter(range(10**6))

    def failing(genotype: Any) -> float:
        if next(calls) == 17:
            raise KeyboardInterrupt
        return score(genotype)

    options: dict[str, Any] = {"settings": FEW, "budget": 400}
    with pytest.raises(KeyboardInterrupt):
        search(failing, space, journal=path, **options)
    assert [line["number"] for line in lines_of(path, "score")] == list(range(17))
    assert search(score, space, journal=path, **options) == search(score, space, **options)


# Size and reach


THOUSAND_SITES = """
import random, sys
from glora.searchers import Score, Trial, new_searcher
from glora.space import SearchSpace, Site
space = SearchSpace(variant="paper").bind({f"layers.{k}.fc": Site("linear", 4096, 4096, True) for k in range(1_000)})
settings = {"candidates": 1_000} if sys.argv[1] == "random" else {"generations": 19}
largest, worth = space.count(space.largest), random.Random(0)
for share in (1, 4, 200):
    trials = []
    seeker = new_searcher(space, searcher=sys.argv[1], budget=largest // share, min_budget=0, settings=settings, seed=0)
    while asked := seeker.ask():
        scored = [Trial(n, *c[:2], Score(worth.random()), 0, *c[2:], space) for n, c in enumerate(asked, len(trials))]
        seeker.tell(scored)
        trials += scored
    print(len(trials))
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])  # of resource, fork inherits the parent's
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak memory")
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_thousand_sites_are_asked_and_told_in_little_memory(searcher: str) -> None:
    between = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"
    words = [sys.executable, "-c", between, "-c", THOUSAND_SITES, searcher]  # a child begins with its parent's peak
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": SOURCE}, stdout=subprocess.PIPE, check=True)
    *runs, kilobytes = done.stdout.decode().splitlines()
    assert runs == ["1000"] * 3
    assert int(kilobytes) < 200_000


def lines_run(searcher: str, *, sites: int, generations: int, share: int) -> int:
    """How many lines of the searchers' code a search runs; a pass of a loop within a line counts too."""
    space, worth, lines = toy_space(sites), random.Random(0), 0
    settings = {"candidates": 50 * generations + 50} if searcher == "random" else {"generations": generations}
    folder = str(Path(SOURCE) / "glora" / "searchers")

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(folder):
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        budget = space.count(space.largest) // share
        found = search(lambda genotype: worth.random(), space, searcher=searcher, budget=budget, settings=settings)
    finally:
        sys.settrace(before)
    assert len(found.trials) == 50 * (generations + 1)
    return lines


@pytest.mark.parametrize("share", [1, 4, 20])
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_twice_the_sites_or_scores_are_twice_the_work(searcher: str, share: int) -> None:
    lines = lines_run(searcher, sites=20, generations=3, share=share)
    assert lines_run(searcher, sites=40, generations=3, share=share) < 2.2 * lines
    assert lines_run(searcher, sites=20, generations=7, share=share) < 2.2 * lines
    assert lines < 20 * (20 * 5) * 200  # a few lines for each gene of each score


def test_the_searchers_never_import_torch() -> None:
    rooms = "glora.searchers.evolution, glora.searchers.random_search, glora.report.tables, glora.report.plots"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SOURCE}, check=True)
