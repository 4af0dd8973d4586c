"""Racing: what leaves, what stays, what it costs, and that no kill changes it."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glora.errors import ConfigError
from glora.files import read_jsonl
from glora.genotype import Genotype
from glora.searchers import Racing, search
from glora.searchers.jobs import Job, JobResult
from glora.searchers.racing import Race, is_eliminated
from glora.space import SearchSpace, Site
from suites.scores import EXAMPLES, SPACE, score, values
from suites.searcher_suite import plain

RACING = Racing(EXAMPLES, first=10)
SETTINGS = {"population": 12, "generations": 3, "parents": 3}
TABLE = Path(__file__).parent / "data" / "digits_losses.npz"  # benchmarks/racing.py --record


def run(score: Any = values, **options: Any) -> Any:
    return search(score, SPACE, **{"settings": SETTINGS, "racing": RACING} | options)


@pytest.mark.parametrize("seed", range(10))
def test_the_papers_search_costs_a_quarter_and_its_winner_is_among_the_best(seed: int) -> None:
    """1,050 genotypes of a real supernet on 200 real images, in the order in which a full search asked for them."""
    table = -np.load(TABLE)["losses"].astype(np.float64)
    assert table.shape == (1_050, 200)
    race, found = Race(Racing(200), top_k=10, seed=seed), []

    def run_jobs(jobs: Iterable[Job]) -> Iterator[JobResult]:
        for job in jobs:
            yield JobResult(job, [float(table[job.number, index]) for index in job.indices], 0.0)

    for first in range(0, len(table), 50):
        found += race.run(dict.fromkeys(range(first, first + 50), Genotype({})), run_jobs)
    assert sum(raced.seen for raced in found) <= len(table) / 4
    full = table.mean(axis=1)
    winner = max((raced for raced in found if raced.seen == 1), key=lambda raced: raced.score).number
    assert (full > full[winner]).sum() < 0.01 * len(table)
    finished = {raced.number for raced in found if raced.seen == 1}
    assert len(finished.intersection(np.argsort(-full)[:10].tolist())) >= 8
    gaps = table[full.argmax()] - table[winner]
    assert gaps.mean() <= gaps.std(ddof=1) / math.sqrt(len(gaps))


def test_who_is_still_in_has_the_full_score_and_who_left_the_score_of_what_it_saw(tmp_path: Path) -> None:
    result = run(journal=tmp_path / "race.jsonl")
    seen: dict[int, dict[str, list[float]]] = {}
    for line in read_jsonl(tmp_path / "race.jsonl"):
        if line["event"] == "score":
            seen.setdefault(line["number"], {})[line["piece"]] = line["values"]
    for trial in result.trials:
        told_of = [value for piece in seen[trial.number].values() for value in piece]
        assert trial.score.value == math.fsum(told_of) / len(told_of)
        assert trial.seen == len(told_of) / EXAMPLES
        if trial.seen == 1:
            assert trial.score.value == math.fsum(values(trial.genotype, range(EXAMPLES))) / EXAMPLES
    complete = [trial for trial in result.trials if trial.seen == 1]
    assert 3 <= len(complete) < 30
    assert result.best == min(complete, key=lambda trial: (-trial.score.value, trial.parameters))
    assert set(result.front) <= set(complete)


def test_only_what_has_seen_everything_is_a_parent() -> None:
    trials = run().trials
    assert all(trials[trial.parent].seen == 1 for trial in trials if trial.parent is not None)
    assert any(trial.seen < 1 for trial in trials)


def test_a_race_in_one_piece_is_the_full_search() -> None:
    def mean(genotype: Genotype) -> float:
        return math.fsum(values(genotype, range(EXAMPLES))) / EXAMPLES

    assert plain(run(racing=Racing(EXAMPLES, first=EXAMPLES))) == plain(run(mean, racing=None))


def test_a_race_finds_the_optimum_where_the_examples_agree() -> None:
    def exact(genotype: Genotype, indices: Sequence[int]) -> list[float]:
        return [score(genotype)] * len(indices)

    raced = run(exact)
    assert raced.best.genome == run(score, racing=None).best.genome
    assert statistics.fmean(trial.seen for trial in raced.trials) < 0.7


class Counted:
    """The race's order, and whether it was by spread."""

    def __init__(self, order: Callable[[Race], list[int]]) -> None:
        self.order, self.spreads = order, list[bool]()

    def __get__(self, race: Race, kind: type) -> Callable[[], list[int]]:
        def order() -> list[int]:
            found = self.order(race)
            self.spreads.append(race.spread is not None)
            return found

        return order


def test_a_raced_random_search_finds_a_good_genotype() -> None:
    """As many as the paper scores: the losses of a real supernet, drawn in the order of the table."""
    table = -np.load(TABLE)["losses"].astype(np.float64)
    space = SearchSpace(variant="paper").bind({f"layers.{k}": Site("linear", 8, 8, True) for k in range(9)})
    rows: dict[Genotype, int] = {}

    def score(genotype: Genotype, indices: Sequence[int]) -> list[float]:
        return [float(table[rows.setdefault(genotype, len(rows)), index]) for index in indices]

    for seed in range(3):
        rows.clear()
        found = search(score, space, searcher="random", racing=Racing(200), seed=seed)
        assert (table.mean(axis=1) > table[rows[found.best.genotype]].mean()).sum() < 10
        assert sum(trial.seen for trial in found.trials) < len(table) / 4


@pytest.mark.parametrize("searcher", ["evolution", "random"])
def test_a_race_killed_anywhere_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searcher: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    options: dict[str, Any] = {"searcher": searcher, "racing": Racing(EXAMPLES, first=20, level=0.01)}
    options["settings"] = {"candidates": 60} if searcher == "random" else {"population": 20, "generations": 1}
    monkeypatch.setattr(Race, "_order", counted := Counted(Race._order))
    expected = plain(run(journal=whole, **options))
    assert counted.spreads == [False, True]  # the second generation's examples are ordered
    lines = whole.read_bytes().splitlines(keepends=True)

    def timeless(path: Path) -> list[Any]:
        return [{key: value for key, value in line.items() if key != "seconds"} for line in read_jsonl(path)]

    for kept in range(0, len(lines), 29):
        part.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        assert plain(run(journal=part, **options)) == expected
        assert timeless(part) == timeless(whole)
    scored = {json.loads(line)["number"] for line in lines[1:]}
    assert scored == set(range(len(expected[2])))


def test_the_journal_of_another_race_is_refused(tmp_path: Path) -> None:
    run(journal=tmp_path / "race.jsonl")
    with pytest.raises(Exception, match="another search: its racing"):
        run(journal=tmp_path / "race.jsonl", racing=Racing(EXAMPLES, level=0.1))


def pieces_of(race: Race, numbers: range, value: Callable[[int, int], float]) -> list[tuple[int, ...]]:
    """The pieces of a generation whose candidate `number` is worth `value(number, index)` on an example."""
    pieces: dict[int, tuple[int, ...]] = {}

    def run_jobs(jobs: Iterable[Job]) -> Iterator[JobResult]:
        for job in jobs:
            assert job.piece is not None and pieces.setdefault(job.piece, job.indices) == job.indices
            yield JobResult(job, [value(job.number, index) for index in job.indices], 0.0)

    for _ in race.run(dict.fromkeys(numbers, Genotype({})), run_jobs):
        pass
    return list(pieces.values())


def test_the_pieces_of_a_generation_grow_and_cover_all() -> None:
    for seed in (0, 1):
        pieces = pieces_of(Race(RACING, 3, seed), range(12), lambda number, index: 0.0)
        assert sorted(index for piece in pieces for index in piece) == list(range(EXAMPLES))
        assert np.cumsum([len(piece) for piece in pieces]).tolist() == [10, 15, 22, 33, 49, 60]
    assert pieces != pieces_of(Race(RACING, 3, 0), range(12), lambda number, index: 0.0)


def test_what_the_best_differ_on_comes_first_as_soon_as_ten_have_seen_all() -> None:
    telling = {3, 17, 40, 41, 59}

    def value(number: int, index: int) -> float:
        return math.sin(number + index) if index in telling else 0.25

    race = Race(RACING, 12, 0)
    assert not telling <= set(pieces_of(race, range(11), value)[0])  # shuffled; too few to leave
    assert telling <= set(pieces_of(race, range(11, 14), value)[0])
    fewer = Race(RACING, 12, 0)
    pieces_of(fewer, range(9), value)
    assert not telling <= set(pieces_of(fewer, range(9, 14), value)[0])


def test_where_the_examples_are_ordered_nothing_is_extrapolated_from_those_seen() -> None:
    racing = Racing(100, level=0.1)
    behind, level = [0.0, 0.0], [1.0, 1.0]
    assert is_eliminated(behind, level, racing, unseen=2.0)  # 2 behind, the rest spreads by 1.4: 1.28 of that is 1.8
    assert not is_eliminated(behind, level, racing, unseen=3.0)
    assert is_eliminated(behind, level, racing, unseen=0.0) and not is_eliminated(level, level, racing, unseen=0.0)
    assert not is_eliminated(level, behind, racing, unseen=0.0)


def test_the_test_sends_an_equal_away_as_often_as_its_level_says() -> None:
    """The examples not seen yet are part of the truth: without the correction for that, it would be less often."""
    rng, racing, gone = random.Random(1), Racing(100, level=0.1), 0
    for _ in range(2_000):
        gaps = [rng.gauss(0, 1) for _ in range(100)]
        middle = statistics.fmean(gaps)
        gone += is_eliminated([0.0] * 60, [gap - middle for gap in gaps[:60]], racing)  # equal over all 100
    assert gone / 2_000 == pytest.approx(0.1, abs=0.02)


def test_with_all_examples_but_one_seen_only_what_is_behind_is_eliminated() -> None:
    racing = Racing(11, level=0.25)
    assert is_eliminated([0.0] * 10, [0.1] * 9 + [0.2], racing)
    assert not is_eliminated([0.1] * 9 + [0.2], [0.0] * 10, racing)
    assert not is_eliminated([0.1] * 10, [0.1] * 10, racing)


def test_what_diverged_leaves_first_and_never_wins() -> None:
    def score(genotype: Genotype, indices: Sequence[int]) -> list[float]:
        own = values(genotype, indices)
        return [math.nan, *own[1:]] if SPACE.count(genotype) % 2 else own

    trials = run(score).trials
    diverged = [trial for trial in trials if trial.score.value == -math.inf]
    assert diverged
    assert max(trial.seen for trial in diverged) < 0.5
    assert max(trials, key=lambda trial: trial.seen == 1 and trial.score.value).score.value > -math.inf


def test_a_searcher_that_looks_at_more_than_the_best_refuses_to_race() -> None:
    with pytest.raises(ConfigError, match=r"'nsga2' does not look at its best trials only.*racing off"):
        run(searcher="nsga2", settings={"population": 6})


def test_wrong_races_are_told() -> None:
    for wrong in ({"examples": 0}, {"examples": 9, "first": 1}, {"examples": 9, "level": 0.6}):
        with pytest.raises(ConfigError, match=r"examples=0|first=1|level=0\.6"):
            Racing(**wrong)
    with pytest.raises(ConfigError, match="returned 3 values for 10 examples"):
        run(lambda genotype, indices: [0.0] * 3)
