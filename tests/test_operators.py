"""The operators on genomes: draw, mutate, cross, repair, and the pool that never gives one twice."""

from __future__ import annotations

import itertools
import random
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glora.errors import BudgetError
from glora.searchers.operators import Budget, GenomeSampler, crossover, mutate, random_genome, repair, wheels

costs = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12)
seeds = st.integers(0, 10**6).map(random.Random)
shares = st.integers(0, 20).map(lambda part: part / 20)


@settings(deadline=None)
@given(costs, seeds)
def test_a_random_genome_is_in_the_space(table: list[tuple[int, ...]], rng: random.Random) -> None:
    genome = random_genome(wheels(Budget(table)), rng)
    assert all(0 <= gene < len(options) for gene, options in zip(genome, table, strict=True))


def test_random_genomes_are_uniform() -> None:
    rng = random.Random(0)
    even = wheels(Budget([(3, 0), (9, 5, 4, 1, 0)]))
    drawn = [random_genome(even, rng) for _ in range(20_000)]
    shares = [sum(genome == (a, b) for genome in drawn) / len(drawn) for a in range(2) for b in range(5)]
    assert shares == pytest.approx([0.1] * 10, abs=0.01)


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.2, 0.9, 1.0])
def test_mutation_draws_the_given_share_of_genes_anew(probability: float) -> None:
    rng = random.Random(0)
    child = mutate((0,) * 40_000, wheels(Budget([(3, 2, 1, 0)] * 40_000)), probability, rng)
    changed = [place for place, gene in enumerate(child) if gene]
    assert len(changed) / 40_000 == pytest.approx(probability * 3 / 4, abs=0.01)  # a quarter draw the old option
    assert {child[place] for place in changed} <= {1, 2, 3}
    assert not changed or statistics.fmean(changed) == pytest.approx(20_000, rel=0.05)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=70), seeds)
def test_every_gene_of_a_crossover_comes_from_a_parent(pairs: list[tuple[int, int]], rng: random.Random) -> None:
    first, second = map(tuple, zip(*pairs, strict=True))
    child = crossover(first, second, rng)
    assert len(child) == len(pairs)
    assert all(gene in pair for gene, pair in zip(child, pairs, strict=True))


def test_a_crossover_takes_half_of_each_parent() -> None:
    child = crossover((0,) * 10_000, (1,) * 10_000, random.Random(0))
    assert sum(child) == pytest.approx(5_000, abs=200)


@settings(deadline=None)
@given(costs, seeds, shares)
def test_repair_keeps_the_budget_and_all_that_fits(table: Any, rng: random.Random, share: float) -> None:
    genome = random_genome(wheels(Budget(table)), rng)
    smallest, largest = sum(map(min, table)), sum(map(max, table))
    budget = smallest + int(share * (largest - smallest))
    fixed = repair(genome, Budget(table, budget), rng)
    assert fixed is not None
    child, count = fixed
    assert count == sum(options[gene] for options, gene in zip(table, child, strict=True)) <= budget
    before = sum(options[gene] for options, gene in zip(table, genome, strict=True))
    if before <= budget:
        assert child == genome
    for options, old, new in zip(table, genome, child, strict=True):
        assert options[new] <= options[old]
        assert old == new or count + options[old] - options[new] > budget  # nothing was given up in vain


@settings(deadline=None)
@given(costs, seeds, shares)
def test_repair_reaches_a_least_count(table: Any, rng: random.Random, share: float) -> None:
    genome = random_genome(wheels(Budget(table)), rng)
    smallest, largest = sum(map(min, table)), sum(map(max, table))
    least = smallest + int(share * (largest - smallest))
    fixed = repair(genome, Budget(table, None, least), rng)
    assert fixed is not None
    assert fixed[1] == sum(options[gene] for options, gene in zip(table, fixed[0], strict=True)) >= least


def test_repair_takes_back_the_moves_that_a_later_one_made_needless() -> None:
    budget = Budget([(0, 1)] * 30 + [(0, 100)], 99)
    for seed in range(20):
        assert repair((1,) * 31, budget, random.Random(seed)) == ((1,) * 30 + (0,), 30)


def test_a_pool_runs_dry_only_when_every_legal_genome_was_drawn() -> None:
    sampler = GenomeSampler([tuple(range(6))] * 5, 20, 3, random.Random(0))
    drawn = []
    while fresh := sampler.sample():
        drawn.append(fresh)
    legal_genomes = [
        (genome, sum(genome)) for genome in itertools.product(range(6), repeat=5) if 3 <= sum(genome) <= 20
    ]
    assert sorted(drawn) == legal_genomes


def test_repair_finds_a_single_count_and_a_hole_is_told() -> None:
    table = [(0, 1, 10)] * 20
    rng = random.Random(0)
    even = wheels(Budget(table))
    for _ in range(50):
        fixed = repair(random_genome(even, rng), Budget(table, 57, 57), rng)
        assert fixed is not None
        assert fixed[1] == 57
    with pytest.raises(BudgetError, match=r"between 5 and 9 .* smallest genotype has 0 .* largest 200"):
        Budget([(0, 10)] * 20, 9, 5)


def test_draws_under_a_tight_budget_are_like_uniform_genomes_that_happen_to_keep_it() -> None:
    table, budget = [(12, 6, 1, 0)] * 12, 40
    sampler, rng = GenomeSampler(table, budget, 0, random.Random(0)), random.Random(1)
    drawn = [sampler.sample() for _ in range(1_000)]
    even, legal_genomes = wheels(Budget(table)), list[tuple[int, ...]]()
    while len(legal_genomes) < 1_000:
        genome = random_genome(even, rng)
        legal_genomes += [genome] if sum(table[0][gene] for gene in genome) <= budget else []
    for option in range(4):
        shares = [
            statistics.fmean(genome.count(option) for genome in genomes)
            for genomes in ([fresh[0] for fresh in drawn if fresh], legal_genomes)
        ]
        assert shares[0] == pytest.approx(shares[1], abs=0.5)  # of 12; without a tilt far from it
