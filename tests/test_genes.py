"""Spaces of rows, columns and options: their genotypes are plain data, and GLoRA's space is shown in the same way."""

from __future__ import annotations

import json
import pickle
import random
from typing import Any

import pytest

from glora.errors import SpaceError
from glora.genes import Cell, GeneSpace, PlainGenotype
from glora.genotype import TENSORS, Site
from glora.searchers import search
from glora.searchers.space import check_space, space_hash
from glora.space import SearchSpace, count_parameters

ROWS: dict[str, Any] = {
    "a": {"prompts": {5: 50, 1: 10, 0: 0}, "lora": {2: 24, 0: 0}},
    "b": {"lora": {2: 24, 0: 0}},
    "c": {"prompts": {7: 70}},
}


def space(**changes: Any) -> GeneSpace:
    return GeneSpace(ROWS | changes, columns={"prompts": "tokens", "lora": "rank"}, row="block", column="module")


def test_genomes_are_the_options_row_by_row() -> None:
    found = space()
    check_space(found)
    assert found.genes == ((5, 1, 0), (2, 0), (2, 0), (7,))
    assert found.size == 12
    assert found.count(found.largest) == 50 + 24 + 24 + 70
    assert found.count(found.smallest) == 70
    for _ in range(20):
        genotype = found.sample(random.Random(3))
        assert found.decode(found.encode(genotype)) == genotype
        assert found.count(genotype) == sum(ROWS[r][c][o] for r, cells in genotype.items() for c, o in cells.items())


def test_it_is_drawn_uniformly() -> None:
    found, rng = space(), random.Random(0)
    drawn = [found.encode(found.sample(rng)) for _ in range(1200)]
    counts = [drawn.count(genome) for genome in set(drawn)]
    assert len(counts) == 12
    assert min(counts) > 60 and max(counts) < 150


def test_a_genotype_is_plain_data() -> None:
    genotype = space().largest
    assert PlainGenotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    again = pickle.loads(pickle.dumps(genotype))
    assert again == genotype and hash(again) == hash(genotype)
    other = PlainGenotype({row: dict(reversed(list(cells.items()))) for row, cells in reversed(list(genotype.items()))})
    assert other == genotype and hash(other) == hash(genotype)
    assert len({genotype, other, space().smallest}) == 2
    with pytest.raises(TypeError):
        genotype["a"]["lora"] = 0  # type: ignore[index]
    assert repr(genotype) == "PlainGenotype(3 rows: prompts 1 5 + 1 7, lora 2 2)"


def test_what_is_shown_is_the_choice_and_its_numbers() -> None:
    cells = space().cells({"a": {"prompts": 1, "lora": 0}, "b": {"lora": 2}, "c": {"prompts": 7}})
    assert cells == {
        "a": {"prompts": Cell("1", 10), "lora": Cell("none", 0)},
        "b": {"prompts": Cell(None, 0), "lora": Cell("2", 24)},
        "c": {"prompts": Cell(None, 70), "lora": Cell(None, 0)},
    }
    assert list(space().looks.choices.items()) == [("5", "5"), ("1", "1"), ("none", ""), ("2", "2"), ("7", "7")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"a": {"prompts": 3, "lora": 0}}, r"a: prompts is not offered 3\. Offered there: 5, 1, 0"),
        ({"a": {"prompts": True, "lora": 0}}, r"a: prompts is not offered True"),
        ({"a": {"prompts": 5}}, r"lacks lora\. The modules of a are prompts, lora"),
        ({"d": {"prompts": 5}}, r"has d, which the model has not\. The blocks are a, b, c"),
        ({"a": 3}, r"a=3 is not allowed"),
    ],
)
def test_what_is_not_of_the_space_is_refused(change: dict[str, Any], told: str) -> None:
    genotype = space().largest.to_json() | change
    for ask in (space().encode, space().count, space().cells):
        with pytest.raises(SpaceError, match=told):
            ask(genotype)


def test_no_gene_or_no_option_is_no_space() -> None:
    for rows in ({}, {"a": {}}, {"a": {"prompts": {}}}):
        with pytest.raises(SpaceError, match="at least one gene"):
            GeneSpace(rows, columns={}, row="block", column="module")


def test_its_hash_is_of_what_genomes_mean() -> None:
    assert space_hash(space()) == space_hash(space())
    others = [space(b={"lora": {3: 24, 0: 0}}), space(b={"lora": {2: 25, 0: 0}}), space(d={"lora": {2: 24, 0: 0}})]
    assert len({space_hash(each) for each in (space(), *others)}) == 4


def test_it_is_searched_within_a_budget() -> None:
    found = search(lambda genotype: genotype["a"]["prompts"] + genotype["b"]["lora"], space(), budget=110)
    assert found.best.genotype == PlainGenotype({"a": {"prompts": 1, "lora": 0}, "b": {"lora": 2}, "c": {"prompts": 7}})


def test_gloras_space_shows_sites_by_support_tensors() -> None:
    sites = {"fc": Site("linear", 6, 4, True), "proj": Site("linear", 4, 6, False)}
    glora = SearchSpace(variant="paper", ranks=(2,)).bind(sites)
    genotype = glora.sample(random.Random(1))
    cells = glora.cells(genotype)
    for name, site in sites.items():
        for tensor, options in zip(TENSORS, glora.options[name], strict=True):
            choice = genotype[name][TENSORS.index(tensor)]
            shown = str(choice) if len(options) > 1 else None
            assert cells[name][tensor] == Cell(shown, count_parameters(site, tensor, choice, "matrix"))
    assert sum(cell.numbers for row in cells.values() for cell in row.values()) == glora.count(genotype)
    assert list(glora.looks.columns) == list(TENSORS)
    assert {str(choice) for options in glora.genes for choice in options} <= glora.looks.choices.keys()
