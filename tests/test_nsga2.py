"""NSGA-II: the conformance suite, pymoo as an oracle, brute force on a small space, and what it gains over random."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.indicators.hv import HV
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance, get_crowding_function
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from glora.cli import app as cli
from glora.config import load_experiment
from glora.errors import ConfigError
from glora.files import read_jsonl
from glora.genotype import Genotype
from glora.runs.resolve import plan_search
from glora.searchers import (
    SEARCHERS,
    Candidate,
    Score,
    SearcherSettings,
    Trial,
    new_searcher,
    pareto_front,
    search,
)
from glora.searchers.nsga2 import NSGA2, crowding_distances, nondominated_fronts
from glora.space import BoundSpace
from suites.searcher_suite import SearcherSuite, toy_score, toy_space
from suites.toy import image_folder

FEW = {"population": 6, "generations": 3}

points = st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=60)


class TestNSGA2(SearcherSuite):
    searcher = "nsga2"
    few = FEW
    many = {}  # noqa: RUF012
    near = 0.05  # of its scores one end of the front has a part only
    long = {"generations": 60}  # noqa: RUF012


class TestNSGA2ByRejection(SearcherSuite):
    searcher = "nsga2"
    few = FEW | {"legalize": "reject", "mutation_probability": 0.2}
    many = {"legalize": "reject", "generations": 9}  # noqa: RUF012
    near = 0.05
    long = {"legalize": "reject", "generations": 60}  # noqa: RUF012


def searcher_of(space: BoundSpace, *, budget: int | None = None, seed: int = 0, **options: Any) -> NSGA2:
    asker = new_searcher(space, searcher="nsga2", budget=budget, min_budget=0, settings=options, seed=seed)
    assert isinstance(asker, NSGA2)
    return asker


def trials_of(space: BoundSpace, asked: list[Candidate], scores: Iterable[float], first: int = 0) -> list[Trial]:
    return [
        Trial(first + k, c.genome, c.parameters, Score(score), 0, c.origin, c.parent, space)
        for k, (c, score) in enumerate(zip(asked, scores, strict=True))
    ]


# The maths against pymoo


@settings(deadline=None)
@given(points)
def test_the_fronts_are_pymoos(drawn: list[tuple[float, float]]) -> None:
    expected = [sorted(front.tolist()) for front in NonDominatedSorting().do(np.array(drawn))]
    assert [sorted(front) for front in nondominated_fronts(drawn)] == expected


@settings(deadline=None)
@given(points.filter(lambda drawn: len(set(drawn)) >= 3))
def test_the_crowding_distances_are_pymoos(drawn: list[tuple[float, float]]) -> None:
    for front in nondominated_fronts(drawn):
        chosen = [drawn[index] for index in sorted(front)]
        if len(set(chosen)) > 1 and len(chosen) > 2:  # pymoo answers fewer points at once
            oracle = get_crowding_function(calc_crowding_distance).do(np.array(chosen))
            assert crowding_distances(chosen) == pytest.approx([2 * distance for distance in oracle])  # its mean


def test_crowding_distances_by_hand() -> None:
    front = [(0.0, 8.0), (1.0, 4.0), (1.0, 4.0), (3.0, 2.0), (4.0, 0.0)]
    assert crowding_distances(front) == [math.inf, 3 / 4 + 6 / 8, 0, 3 / 4 + 4 / 8, math.inf]
    assert crowding_distances([(1.0, 2.0)] * 3) == [math.inf, 0, 0]
    assert crowding_distances([(-1e308, 1e308), (0.0, 0.0), (1e308, -1e308)])[1] == 0  # the span overflows


def test_the_survivors_of_parents_and_children_are_pymoos() -> None:
    space, noise = toy_space(12), random.Random(5)
    searcher, parents = searcher_of(space, population=20, generations=12), list[Trial]()
    number = old = 0
    while asked := searcher.ask():
        assert {candidate.parent for candidate in asked} - {None} <= {trial.number for trial in parents}
        told = trials_of(space, asked, [noise.random() + c.parameters / 2_000 for c in asked], number)
        number += len(told)
        searcher.tell(told)
        everyone = Population.new("F", np.array([(-t.score.value, t.parameters) for t in parents + told]))
        kept = RankAndCrowding(crowding_func=calc_crowding_distance).do(Problem(), everyone, n_survive=20)
        expected = sorted((one.get("rank"), round(2 * one.get("crowding"), 9)) for one in kept)  # which end is free
        assert sorted((member.rank, round(member.crowding, 9)) for member in searcher.members) == expected
        assert {member.trial.number for member in searcher.members} <= {trial.number for trial in parents + told}
        parents = [member.trial for member in searcher.members]
        old += sum(trial.number < number - 20 for trial in parents)
    assert number == 13 * 20
    assert old > 20  # parents do outlive children: a search that forgets them would be seen


# Selection and variation


def test_a_tournament_prefers_the_better_front_and_then_the_lonelier() -> None:
    space, size = toy_space(12), 20
    chain: list[int] = []
    ends = 0
    for seed in range(100):
        searcher = searcher_of(space, population=size, seed=seed, mutation_probability=0.3)
        asked = searcher.ask()
        order = sorted(range(size), key=lambda k: (asked[k].parameters, k))
        searcher.tell(trials_of(space, asked, [-order.index(k) for k in range(size)]))  # each dominates the larger ones
        chain += [order.index(c.parent) for c in searcher.ask() if c.parent is not None]
        searcher = searcher_of(space, population=size, seed=seed, mutation_probability=0.3)
        asked = searcher.ask()
        searcher.tell(trials_of(space, asked, [c.parameters for c in asked]))  # one front: only the ends are inf
        ends += sum(c.parent in (0, 1) for c in searcher.ask())
    assert statistics.fmean(chain) == pytest.approx((size - 1) * (2 * size - 1) / (6 * size), abs=0.6)  # of one: 9.5
    assert ends / (100 * size) == pytest.approx(1 - 0.9**2, abs=0.04)  # two lonely ones of 20; by chance alone 0.1


@pytest.mark.parametrize(("legalize", "budget", "least"), [("repair", None, 30), ("reject", 700, 15)])
def test_without_mutation_every_gene_of_a_child_is_a_survivors(legalize: Any, budget: int | None, least: int) -> None:
    space = toy_space(12)
    searcher = searcher_of(space, population=30, mutation_probability=0, legalize=legalize, budget=budget)
    searcher.tell(trials_of(space, searcher.ask(), range(30)))
    children = [child for child in searcher.ask() if child.origin != "random"]
    assert len(children) >= least
    assert {child.origin for child in children} == {"crossover"}  # a mutant would be its parent again
    pool = [member.trial.genome for member in searcher.members]
    for child in children:
        assert any(
            all(gene in pair for gene, pair in zip(child.genome, zip(one, other, strict=True), strict=True))
            for one, other in itertools.combinations(pool, 2)
        )


@pytest.mark.parametrize(("probability", "least", "most"), [(None, 1, 2), (0.5, 16, 24)])
def test_about_one_gene_mutates_unless_told_otherwise(probability: float | None, least: float, most: float) -> None:
    space = toy_space(12)  # a new draw gives the old choice in 1 of 3 to 5 cases
    assert sum(len(options) > 1 for options in space.costs) == 51
    searcher, changed = searcher_of(space, population=200, mutation_probability=probability), list[int]()
    noise = random.Random(1)
    first = trials_of(space, searcher.ask(), [noise.random() for _ in range(200)])
    searcher.tell(first)
    for child in searcher.ask():
        if child.origin == "mutation":
            parent = first[child.parent or 0].genome
            changed.append(sum(old != new for old, new in zip(parent, child.genome, strict=True)))
    assert len(changed) >= 5
    assert least <= statistics.fmean(changed) <= most


def test_most_children_have_two_parents() -> None:
    space = toy_space(12)
    trials = search(toy_score(space), space, searcher="nsga2").trials
    assert len(trials) == 50 + 20 * 50
    share = sum(trial.origin == "crossover" for trial in trials) / 1_000
    assert share == pytest.approx(0.92, abs=0.05)  # 0.9, and a little more, since mutants are more often seen before


def test_the_first_generation_has_both_ends() -> None:
    space = toy_space(12)
    first, second, *others = searcher_of(space).ask()
    assert (first.parameters, second.parameters) == (0, space.count(space.largest))
    assert all(0 < candidate.parameters < second.parameters for candidate in others)
    first, second, *others = searcher_of(space, budget=900).ask()
    assert (first.parameters, max(candidate.parameters for candidate in others) <= 900) == (0, True)
    assert 850 < second.parameters <= 900


def test_a_diverged_candidate_is_no_parent_even_if_it_is_the_smallest() -> None:
    space = toy_space(8)

    def score(genotype: Any) -> float:
        return math.nan if space.count(genotype) % 2 == 0 else space.count(genotype) / 1_000

    trials = search(score, space, searcher="nsga2", settings=FEW | {"generations": 30}).trials
    assert trials[0].score.value == -math.inf
    assert {trials[trial.parent].parameters % 2 for trial in trials if trial.parent is not None} == {1}
    hopeless = search(lambda genotype: math.nan, space, searcher="nsga2", settings=FEW)
    assert [trial.origin for trial in hopeless.trials] == ["random"] * 24


# The front


def volume(trials: Any, corner: int) -> float:
    """The share of the rectangle from score 0 and `corner` numbers to the ideal that the front dominates."""
    return float(HV(ref_point=np.array([0.0, corner]))(np.array([(-t.score.value, t.parameters) for t in trials])))


@pytest.mark.parametrize("share", [1, 4])
def test_the_front_is_far_beyond_random_search_at_equal_cost(share: int) -> None:
    space = toy_space(24)
    score, corner = toy_score(space), space.count(space.largest) // share
    found = {
        searcher: [search(score, space, searcher=searcher, budget=corner, seed=seed) for seed in range(3)]
        for searcher in ("nsga2", "random")
    }
    volumes = {name: [volume(result.front, corner) for result in results] for name, results in found.items()}
    assert {len(result.trials) for results in found.values() for result in results} == {1_050}
    assert min(volumes["nsga2"]) > 1.3 * max(volumes["random"])


def tangled_score(space: BoundSpace) -> Callable[[Genotype], float]:
    """A score that grows with size, and in which every two neighbouring genes depend on each other."""
    rng = random.Random(3)
    worths = [[math.log1p(cost) * rng.random() for cost in costs] for costs in space.costs]
    pairs = [[[rng.random() for _ in after] for _ in before] for before, after in itertools.pairwise(space.costs)]

    def score(genotype: Genotype) -> float:
        genome = space.encode(genotype)
        single = sum(worth[gene] for worth, gene in zip(worths, genome, strict=True))
        return single + sum(pair[a][b] for pair, (a, b) in zip(pairs, itertools.pairwise(genome), strict=True))

    return score


@pytest.mark.parametrize(("make", "least", "hits"), [(toy_score, 1 - 1e-9, 9), (tangled_score, 0.98, 25)])
def test_the_front_of_a_small_space_is_nearly_the_true_one_by_brute_force(
    make: Callable[[BoundSpace], Callable[[Genotype], float]], least: float, hits: int
) -> None:
    space = toy_space(2, ranks=(2,), variant="lean")
    score, corner = make(space), space.count(space.largest)
    every = []
    for genome in itertools.product(*(range(len(options)) for options in space.genes)):
        value = Score(score(space.decode(genome)))
        size = sum(costs[gene] for costs, gene in zip(space.costs, genome, strict=True))
        every.append(Trial(len(every), genome, size, value, 0, "random", None, space))
    assert len(every) == 36_864
    truth = pareto_front(every)
    for seed in range(3):
        front, control = (search(score, space, searcher=name, seed=seed).front for name in ("nsga2", "random"))
        shares = [volume(trials, corner) / volume(truth, corner) for trials in (front, control)]
        assert least <= shares[0] <= 1 + 1e-9
        assert shares[1] < 0.97
        assert len({trial.genome for trial in front} & {trial.genome for trial in truth}) >= hits  # of 9 and of 53


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"population": 0}, r"population: .*\(got 0\)"),
        ({"generations": -1}, r"generations: .*\(got -1\)"),
        ({"mutation_probability": 1.5}, "mutation_probability"),
        ({"legalize": "hope"}, "'repair' or 'reject'"),
        ({"parents": 3}, "parents: no such setting"),
    ],
)
def test_wrong_settings_are_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(lambda genotype: 0.0, toy_space(1), searcher="nsga2", settings=wrong)


def test_settings_that_the_searcher_does_not_have_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(searcher: str, *changes: str) -> str:
        overrides = [f"search.searcher={searcher}", *(f"search.searcher.{change}" for change in changes)]
        try:
            load_experiment(None, overrides, {"data.source": "digits"})
        except ConfigError as error:
            return str(error)
        return ""

    assert told("nsga2", "population=12", "legalize=reject", "mutation_probability=0.3") == told("random") == ""
    assert told("evolution", "parents=3", "mutations=2", "crossovers=2", "legalize=reject") == ""
    wrong = told("nsga2", "parents=3", "mutations=2")
    assert wrong.startswith("2 errors in the settings")
    for name in ("parents", "mutations"):
        assert f"search.searcher.{name}: no such setting of 'nsga2'." in wrong
    assert "search.searcher.legalize: no such setting of 'random', which has candidates." in told(
        "random", "legalize=reject"
    )
    monkeypatch.setitem(SEARCHERS, "mine", f"{__name__}:Mine")  # one more searcher is one more line
    assert told("mine", "legalize=reject") == ""
    assert "search.searcher.parents: no such setting of 'mine', which has tries, legalize." in told("mine", "parents=3")
    overrides = ["search.searcher=mine", "search.searcher.tries=7", "search.min_budget=0"]
    found = load_experiment(None, overrides, {"data.source": "digits"}).search
    assert plan_search(found, toy_space(1)).settings.resolved() == {"tries": 7, "legalize": "repair"}


class MySettings(SearcherSettings):
    name: Literal["mine"] = "mine"
    tries: int = 5
    legalize: str = "repair"


class Mine:
    Settings = MySettings


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_the_config_passes_each_searcher_its_own_settings(searcher: str) -> None:
    sizes = {"candidates": 30} if searcher == "random" else {"population": 12, "generations": 4}
    overrides = [f"search.searcher={searcher}", *(f"search.searcher.{name}={n}" for name, n in sizes.items())]
    plan = plan_search(load_experiment(None, overrides, {"data.source": "digits"}).search, toy_space(12))
    asker: Any = plan.new_searcher(toy_space(12), seed=0)
    if searcher == "random":
        assert asker.left == 30
    else:
        assert asker.settings.resolved() == type(asker.settings)(population=12, generations=4).resolved()
    assert len(asker.ask()) == (30 if searcher == "random" else 12)


@pytest.mark.slow
@pytest.mark.figures
def test_the_command_line_searches_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, run = image_folder(tmp_path / "photos"), tmp_path / "run"
    words = ["fit", "--data", photos, "--model", "test_vit", "--no-pretrained", "--image-size", 32, "--epochs", 1]
    words += ["--population", 4, "--generations", 2, "--set", "search.searcher=nsga2", "--out", run]
    monkeypatch.setattr(sys, "argv", ["glora", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    header, *lines = read_jsonl(run / "search.jsonl")
    assert header["searcher"] == "nsga2"
    assert set(header["settings"]) == {"population", "generations", "mutation_probability", "legalize"}
    assert [line["event"] for line in lines].count("score") == 12
