"""What every searcher must do: subclass `SearcherSuite`, name the searcher, inherit the tests."""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import glora
from glora.errors import BudgetError, ConfigError, RunError
from glora.genotype import Genotype, Site
from glora.searchers import SearchResult, search
from glora.space import BoundSpace, SearchSpace

TESTS = Path(__file__).parent.parent
SOURCE = Path(glora.__file__).parent.parent


def toy_space(sites: int, *, ranks: tuple[int, ...] = (4, 2), variant: Any = "paper", **more: Any) -> BoundSpace:
    """A space of small layers, some without a bias."""
    rules = SearchSpace(ranks=ranks, variant=variant, **more)
    return rules.bind({f"blocks.{k}.fc": Site("linear", 12 + k % 3, 8, k % 4 != 3) for k in range(sites)})


def toy_worths(space: BoundSpace) -> list[list[float]]:
    """Of every gene's option a worth of its own."""
    rng = random.Random(7)
    return [[rng.random() for _ in options] for options in space.genes]


def optimum(space: BoundSpace, budget: int | None) -> float:
    """The best that `toy_score` can be within the budget: exactly, gene by gene the best worth for every count."""
    best = {0: 0.0}
    for worths, costs in zip(toy_worths(space), space.costs, strict=True):
        further: dict[int, float] = {}
        for (count, worth), (more, cost) in itertools.product(best.items(), zip(worths, costs, strict=True)):
            if budget is None or count + cost <= budget:
                further[count + cost] = max(further.get(count + cost, 0.0), worth + more)
        best = further
    return max(best.values())


def toy_score(space: BoundSpace) -> Callable[[Genotype], float]:
    """A separable score: the worths of the options chosen, added up."""
    worths = toy_worths(space)
    return lambda genotype: sum(worth[gene] for worth, gene in zip(worths, space.encode(genotype), strict=True))


def legal(space: BoundSpace, budget: int | None, min_budget: int = 0) -> list[Genotype]:
    """Every genotype of a small space within the budget."""
    every = map(space.decode, itertools.product(*(range(len(options)) for options in space.genes)))
    return [g for g in every if min_budget <= space.count(g) <= (space.count(g) if budget is None else budget)]


class PromptSpace:
    """A space that is not GLoRA's: how many prompts each block has, as unhashable plain data."""

    lengths = (0, 1, 5, 10)

    def __init__(self, blocks: int, width: int = 8) -> None:
        self.blocks, self.width = blocks, width
        self.costs = [[length * width for length in self.lengths]] * blocks

    def decode(self, genome: tuple[int, ...]) -> dict[str, int]:
        return {f"blocks.{block}": self.lengths[gene] for block, gene in enumerate(genome)}

    def to_json(self) -> dict[str, Any]:
        return {"prompts": list(self.lengths), "blocks": self.blocks, "width": self.width}


def prompt_score(genotype: dict[str, int]) -> float:
    """Best with one prompt in every block but the last, which wants ten."""
    last = f"blocks.{len(genotype) - 1}"
    return -float(sum(abs(length - (10 if block == last else 1)) for block, length in genotype.items()))


def plain(result: SearchResult) -> list[Any]:
    """All that a search found, as plain data."""
    best, front = result.best.number, [trial.number for trial in result.front]
    return [best, front, [[list(t.genome), t.parameters, t.score.value, t.generation, t.origin] for t in result.trials]]


def replay(searcher: str, settings: dict[str, Any]) -> None:
    """Print a search, for the test that compares two processes."""
    space = toy_space(6)
    print(json.dumps(plain(search(toy_score(space), space, searcher=searcher, budget=500, seed=3, settings=settings))))


class SearcherSuite:
    """The conformance of a searcher."""

    searcher: ClassVar[str]
    few: ClassVar[dict[str, Any]]  # settings for about 30 scores, in several generations where there are any
    many: ClassVar[dict[str, Any]]  # settings for at least 500 scores
    learns: ClassVar[bool] = True  # False where no score changes what is asked: it need not come near an optimum
    near: ClassVar[float] = 0.03  # the part of the optimum that the median of three seeds may miss
    long: ClassVar[dict[str, Any]] = {}  # settings for that, where the defaults do not come so near

    def run(self, space: Any, **options: Any) -> SearchResult:
        score = options.pop("score") if "score" in options else toy_score(space)
        return search(score, space, **{"searcher": self.searcher, "settings": self.few} | options)

    @pytest.mark.parametrize(("budget", "min_budget"), [(None, 0), (400, 0), (60, 0), (None, 1_000), (520, 480)])
    def test_stays_in_the_space_and_in_the_budget_and_never_repeats(self, budget: int | None, min_budget: int) -> None:
        space = toy_space(6)
        trials = self.run(space, budget=budget, min_budget=min_budget, settings=self.many).trials
        assert len(trials) >= 500
        assert len({trial.genome for trial in trials}) == len(trials)
        assert [trial.number for trial in trials] == list(range(len(trials)))
        for trial in trials:
            assert space.encode(trial.genotype) == trial.genome
            assert trial.parameters == space.count(trial.genotype)
            assert min_budget <= trial.parameters
            assert budget is None or trial.parameters <= budget

    def test_the_seed_decides(self) -> None:
        space = toy_space(6)
        assert plain(self.run(space, seed=1)) == plain(self.run(space, seed=1))
        assert plain(self.run(space, seed=1)) != plain(self.run(space, seed=2))

    def test_does_not_touch_the_global_generator(self) -> None:
        random.seed(0)
        state = random.getstate()
        self.run(toy_space(3))
        assert random.getstate() == state

    def test_replays_from_its_seed_in_another_process(self) -> None:
        code = f"from suites.searcher_suite import replay; replay({self.searcher!r}, {self.few!r})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(SOURCE)]), "PYTHONHASHSEED": "5"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
        here = self.run(toy_space(6), budget=500, seed=3)
        assert json.loads(done.stdout) == json.loads(json.dumps(plain(here)))

    def test_resumes_to_the_same_end_wherever_it_was_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of searches: no need to reach the disk
        space = toy_space(4)
        score, calls = toy_score(space), 0

        def counted(genotype: Genotype) -> float:
            nonlocal calls
            calls += 1
            return score(genotype)

        whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
        expected = plain(self.run(space, budget=400, journal=whole))
        lines = whole.read_bytes().splitlines(keepends=True)
        assert len(lines) == 3 * len(expected[2]) + 1
        for kept, line in enumerate([*lines, b""]):
            for rest in {b"", line[: len(line) // 2], line[:-1]}:
                part.write_bytes(b"".join(lines[:kept]) + rest)
                calls = 0
                assert plain(self.run(space, budget=400, journal=part, score=counted)) == expected
                assert calls == len(expected[2]) - sum(b'"event":"score"' in line for line in lines[:kept])
                assert timeless(part) == timeless(whole)

    def test_comes_near_the_optimum_of_a_separable_toy(self) -> None:
        """Out of 1.5e16 genotypes; and as many random ones as it scores do not find it."""
        space = toy_space(6)
        for budget in (None, 400, 200):
            bar = (1 - self.near) * optimum(space, budget)
            options: dict[str, Any] = {"budget": budget, "settings": self.long}
            found = [self.run(space, seed=seed, **options) for seed in range(3)]
            control = {"searcher": "random", "settings": {"candidates": len(found[0].trials)}, "budget": budget}
            assert all(self.run(space, seed=seed, **control).best.score.value < bar for seed in range(3))
            assert max(result.best.score.value for result in found) <= optimum(space, budget) + 1e-9
            assert not self.learns or statistics.median(result.best.score.value for result in found) >= bar

    def test_the_optimum_of_the_toy_is_that_of_all_its_genotypes(self) -> None:
        space = toy_space(1, ranks=(2,))
        for budget in (None, 40, 13, 1, 0):
            assert optimum(space, budget) == pytest.approx(max(map(toy_score(space), legal(space, budget))))

    def test_ends_when_every_legal_genotype_was_scored(self) -> None:
        space = toy_space(1, ranks=(2,), variant="lean")
        result = self.run(space, budget=60, min_budget=3, settings=self.many)
        assert {trial.genotype for trial in result.trials} == set(legal(space, 60, 3))

    def test_searches_a_space_of_another_kind(self, tmp_path: Path) -> None:
        space, journal = PromptSpace(3), tmp_path / "search.jsonl"  # of 64 genotypes
        options: dict[str, Any] = {"score": prompt_score, "settings": self.many, "budget": 8 * 12, "journal": journal}
        result = self.run(space, **options)
        assert result.best.genotype == {"blocks.0": 1, "blocks.1": 1, "blocks.2": 10}
        assert (result.best.score.value, result.best.parameters) == (0, 8 * 12)
        legal_lengths = [g for g in itertools.product(space.lengths, repeat=3) if sum(g) <= 12]
        assert {tuple(trial.genotype.values()) for trial in result.trials} == set(legal_lengths)
        assert plain(self.run(space, **options | {"score": None})) == plain(result)
        with pytest.raises(RunError, match="its space is"):
            self.run(PromptSpace(3, width=9), **options)

    @pytest.mark.parametrize("window", [(-1, 0), (10**9, 10**9), (50, 60)])
    def test_an_impossible_budget_is_told_at_once(self, window: tuple[int, int]) -> None:
        space = toy_space(5)
        largest = space.count(space.largest)

        def never(genotype: Genotype) -> float:
            raise AssertionError("scored")

        with pytest.raises(BudgetError, match=f"smallest genotype has 0 .* largest {largest:,}"):
            self.run(space, budget=window[0], min_budget=window[1], score=never)

    def test_an_unknown_setting_lists_the_allowed_ones(self) -> None:
        with pytest.raises(ConfigError, match=f"(?s)nonsense: no such setting.*It has .*{next(iter(self.few))}"):
            self.run(toy_space(1), settings={"nonsense": 1})


def timeless(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal without the times."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
