"""The search space: what is offered, exact counts, plain data both ways, and the lean variant by rank."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glora.errors import SpaceError
from glora.genotype import NONE, TENSORS, Choice, Genotype, LayerConfig, Site
from glora.space import PRODUCTS, BoundSpace, SearchSpace, count_parameters, factor_shapes
from suites.cases import every

SITE = Site("linear", 12, 8, True)
BARE = replace(SITE, bias=False)


def paper(*ranks: int, **settings: object) -> SearchSpace:
    return SearchSpace(ranks=ranks or (4,), variant="paper", **settings)


# counts


@pytest.mark.parametrize("product", ["elementwise", "matrix"])
@pytest.mark.parametrize(("ranks", "size"), [((4,), 432), ((8, 4), 900), ((8, 4, 2), 6 * 6 * 5 * 3 * 3)])
def test_one_layer_has_exactly_so_many_configurations(ranks, size, product):
    space = paper(*ranks, product=product).bind({"a": SITE})
    assert space.size == size
    assert len(set(itertools.product(*space.options["a"]))) == size


def test_48_layers_have_432_to_the_48_genotypes():
    space = paper().bind({f"layer{k}": SITE for k in range(48)})
    assert space.size == 432**48
    assert space.log10_size == pytest.approx(126.503, abs=5e-4)


def test_without_bias_only_the_weight_is_adapted():
    assert paper().bind({"a": BARE}).size == 16
    assert paper(new_bias=True).bind({"a": replace(BARE, new_bias=True)}).size == 16 * 3 * 3  # C and E, no D
    assert paper(new_bias=True).bind({"a": BARE}).size == 16  # not called, so no new bias there


@pytest.mark.parametrize("product", ["elementwise", "matrix"])
def test_count_is_the_sum_of_the_numbers_of_all_factors(product):
    sites = {"a": SITE, "b": Site("linear", 3, 7, True), "c": BARE}
    space = paper(4, 2, product=product).bind(sites)
    for seed in range(50):
        genotype = space.sample(random.Random(seed))
        by_hand = 0
        for name, config in genotype.items():
            o, i = sites[name].out_features, sites[name].in_features
            left = i if product == "matrix" else o
            r = {tensor: getattr(config, tensor).rank for tensor in TENSORS}
            by_hand += {"lora": r["A"] * (left + i), "vector": left, "scalar": 1, "none": 0}[config.A.kind]
            by_hand += {"lora": r["B"] * (o + i), "vector": o, "scalar": 1, "none": 0}[config.B.kind]
            by_hand += {"lora": r["C"] * (i + 1), "vector": i, "none": 0}[config.C.kind]
            by_hand += {"vector": o, "scalar": 1, "none": 0}[config.D.kind]
            by_hand += {"vector": o, "scalar": 1, "none": 0}[config.E.kind]
        assert space.count(genotype) == by_hand


def test_smallest_and_largest_bound_every_genotype():
    space = SearchSpace(ranks=(4, 2)).bind({"a": SITE, "b": Site("linear", 3, 7, True)})
    low, high = space.count(space.smallest), space.count(space.largest)
    assert low == 0
    assert all(low <= space.count(space.sample(random.Random(seed))) <= high for seed in range(200))
    assert space.count(space.decode([costs.index(max(costs)) for costs in space.costs])) == high


# sampling


def test_a_sample_is_in_the_space_and_a_function_of_its_generator():
    space = SearchSpace(ranks=(4, 2)).bind({"a": SITE, "b": BARE})
    state = random.getstate()
    first = [space.sample(rng) for rng in [random.Random(3)] for _ in range(20)]
    again = [space.sample(rng) for rng in [random.Random(3)] for _ in range(20)]
    assert first == again
    assert len(set(first)) > 5
    assert random.getstate() == state, "the global generator was used"
    for genotype in first:
        assert space.decode(space.encode(genotype)) == genotype


def test_sampling_is_uniform_over_the_choices_of_each_support_tensor():
    space = paper().bind({"a": SITE})
    rng = random.Random(0)
    drawn = [space.sample(rng)["a"].A.kind for _ in range(4000)]
    for kind in ("lora", "vector", "scalar", "none"):
        assert abs(drawn.count(kind) / 4000 - 0.25) < 0.03


# plain data


def test_genotype_and_space_survive_json():
    space = SearchSpace(ranks=(4, 2), product="matrix", variant="paper", new_bias=True, scaling="none")
    only = SearchSpace(only=LayerConfig(B="lora:8", E="vector"))
    for each in (space, only, SearchSpace.paper()):
        assert SearchSpace.from_json(json.loads(json.dumps(each.to_json()))) == each
    bound = space.bind({"a": SITE, "b.c": BARE})
    for seed in range(20):
        genotype = bound.sample(random.Random(seed))
        back = Genotype.from_json(json.loads(json.dumps(genotype.to_json())))
        assert back == genotype
        assert hash(back) == hash(genotype)
        assert list(back) == list(genotype)


def test_a_choice_reads_what_it_writes():
    for text in ("lora:1", "lora:16", "vector", "scalar", "none"):
        assert str(Choice.parse(text)) == text
    assert LayerConfig() == LayerConfig(*["none"] * 5)
    assert LayerConfig(B="lora:4").B == Choice("lora", 4)


@pytest.mark.parametrize("text", ["lora", "lora:", "lora:0", "lora:-1", "lora:x", "lora:2.0", "Vector", "vector:2", ""])
def test_a_wrong_choice_says_what_is_allowed(text):
    with pytest.raises(SpaceError, match="lora:RANK"):
        LayerConfig(B=text)


@pytest.mark.parametrize(("tensor", "text"), [("C", "scalar"), ("D", "lora:4"), ("E", "lora:4")])
def test_a_choice_the_tensor_does_not_have_is_refused(tensor, text):
    with pytest.raises(SpaceError, match=f"{tensor} has no choice"):
        LayerConfig(**{tensor: text})


@pytest.mark.parametrize("choice", [Choice("lora", 0), Choice("lora", -2), Choice("vector", 3)])
def test_a_choice_made_by_hand_is_checked_too(choice):
    with pytest.raises(SpaceError):
        LayerConfig(A=choice)


def test_unknown_support_tensors_are_refused():
    with pytest.raises(SpaceError, match="'F'"):
        LayerConfig.from_json({"A": "none", "F": "none"})


@pytest.mark.parametrize(
    "settings",
    [
        {"ranks": (0,)},
        {"ranks": (4, 4)},
        {"ranks": (2.5,)},
        {"ranks": (True,)},
        {"product": "hadamard"},
        {"variant": "full"},
        {"scaling": "fan_out"},
    ],
)
def test_a_wrong_setting_is_refused(settings):
    with pytest.raises(SpaceError, match="not allowed"):
        SearchSpace(**settings)


def test_a_genotype_of_other_sites_or_choices_is_refused():
    space = SearchSpace(ranks=(4,)).bind({"block.fc1": SITE, "block.fc2": BARE})
    good = space.smallest
    with pytest.raises(SpaceError, match=r"block\.fc1"):  # the nearest name
        space.encode(Genotype({**good, "block.fc": LayerConfig()}))
    with pytest.raises(SpaceError, match=r"lacks the sites block\.fc2"):
        space.count({"block.fc1": LayerConfig()})
    with pytest.raises(SpaceError, match="not offered 'lora:8'"):
        space.encode(Genotype({**good, "block.fc1": LayerConfig(B="lora:8")}))
    with pytest.raises(SpaceError, match="E is not offered 'vector'"):
        space.encode(Genotype({**good, "block.fc2": LayerConfig(E="vector")}))
    with pytest.raises(SpaceError, match="at least one site"):
        SearchSpace().bind({})


def test_only_offers_one_configuration_and_drops_what_a_site_cannot_have():
    space = SearchSpace(only=LayerConfig(B="lora:8", E="vector")).bind({"a": SITE, "b": BARE})
    assert space.size == 1
    assert space.smallest == space.largest
    assert space.smallest["a"] == LayerConfig(B="lora:8", E="vector")
    assert space.smallest["b"] == LayerConfig(B="lora:8")
    assert space.count(space.smallest) == 2 * 8 * (12 + 8) + 12


def test_a_space_bound_to_one_genotype_offers_that():
    genotype = Genotype({"a": LayerConfig(A="vector", E="scalar")})
    space = BoundSpace(SearchSpace(ranks=(4,)), {"a": SITE}, only=genotype)
    assert space.size == 1
    assert space.sample(random.Random(0)) == genotype


def test_paper_is_the_published_space():
    space = SearchSpace.paper()
    assert (space.variant, space.product, space.new_bias, space.scaling) == ("paper", "elementwise", True, "none")
    assert space.bind({"a": SITE}).size == 432


# lean, by rank: what each choice reaches is computed here from the formula alone


def change(rng, tensor, choice, site, product, w0, b0):
    """A random change of W, or of b, that the choice reaches."""
    o, i, mixed = (*w0.shape, site.mixed)
    mixes = tensor == "A" and product == "matrix" and not site.diagonal
    if tensor in "AB":
        left, right = (mixed, mixed) if mixes else (o, i)
        if choice.kind == "lora":
            full = rng.normal(size=(left, choice.rank)) @ rng.normal(size=(choice.rank, right))
        elif mixes:
            full = np.diag(rng.normal(size=mixed)) if choice.kind == "vector" else rng.normal() * np.eye(mixed)
        else:
            full = np.broadcast_to(rng.normal(size=(left if choice.kind == "vector" else 1, 1)), (o, i))
        if tensor == "B":
            return full
        return w0 @ np.kron(full, np.eye(i // mixed)) if mixes else w0 * full
    if tensor == "C":
        return w0 @ rng.normal(size=i)
    values = rng.normal(size=o if choice.kind == "vector" else 1)
    return values * b0 if tensor == "D" else values * np.ones(o)


def stacked(weight, mixed):
    """The places of a kernel below each other: `(o, mixed places)` as `(o places, mixed)`."""
    return weight.reshape(len(weight), mixed, -1).transpose(0, 2, 1).reshape(-1, mixed)


def reaches(tensor, choice, site, product, w0, b0, wanted):
    """Whether the choice reaches this change: by rank, or by least squares where it is linear in its numbers."""
    o, i, mixed = (*w0.shape, site.mixed)
    rank = np.linalg.matrix_rank
    mixes = tensor == "A" and product == "matrix" and not site.diagonal
    if choice.kind == "lora" and tensor == "B":
        return rank(wanted, tol=1e-8) <= choice.rank
    if choice.kind == "lora" and tensor == "A" and not mixes:
        return rank(wanted / w0, tol=1e-8) <= choice.rank
    if choice.kind == "lora" and tensor == "A":  # W0 M at every place: the least rank of M is that of W0 M
        base, wanted = stacked(w0, mixed), stacked(wanted, mixed)
        inside = rank(np.hstack([base, wanted]), tol=1e-8) == rank(base, tol=1e-8)
        return inside and rank(wanted, tol=1e-8) <= choice.rank
    if tensor == "C":
        basis = w0
    elif tensor in "DE":
        scaled = np.diag(b0) if tensor == "D" else np.eye(o)
        basis = scaled if choice.kind == "vector" else scaled.sum(1, keepdims=True)
    else:
        columns = np.repeat(np.eye(mixed), i // mixed, axis=1)  # the numbers of one channel
        units = [columns[[k]] for k in range(mixed)] if mixes else [np.eye(o)[:, [k]] for k in range(o)]
        masks = units if choice.kind == "vector" else [np.ones((1, 1))]
        basis = np.stack([((w0 if tensor == "A" else np.ones((o, i))) * mask).ravel() for mask in masks], axis=1)
    solution = np.linalg.lstsq(basis, wanted.ravel(), rcond=None)[0]
    return bool(np.abs(basis @ solution - wanted.ravel()).max() < 1e-8)


def spans(big, small, site, product):
    """Whether `big` reaches what `small` reaches, for a random W0 and b0."""
    if (big[0] in "AB") != (small[0] in "AB"):
        return False
    for seed in range(2):
        rng = np.random.default_rng(seed)
        w0, b0 = rng.normal(size=(site.out_features, site.in_features)), rng.normal(size=site.out_features)
        if not reaches(*big, site, product, w0, b0, change(rng, *small, site, product, w0, b0)):
            return False
    return True


LINEAR = [(1, 1), (1, 2), (1, 5), (2, 1), (5, 1), (2, 2), (2, 3), (3, 2), (4, 4), (3, 7), (7, 3), (5, 6), (6, 5)]
CONV = [(1, 1, 4), (1, 2, 9), (1, 4, 2), (5, 1, 4), (2, 1, 9), (2, 4, 2), (2, 6, 2), (4, 2, 2), (3, 3, 4), (9, 2, 3)]
SHAPES = [
    *[Site("linear", o, i, True) for o, i in LINEAR],
    *[Site("conv", o, mixed * places, True, mixed=mixed) for o, mixed, places in CONV],
    *[Site("norm", o, 1, True, diagonal=True) for o in (1, 2, 7)],
]


@pytest.mark.parametrize("ranks", [(4,), (2, 1), (8, 4), (3, 1)])
@every(product=["elementwise", "matrix"], bias=["bias", "bare", "new"])
def test_lean_drops_exactly_what_another_choice_spans_with_no_more_numbers(ranks, bias, product):
    for shape in SHAPES:
        site = replace(shape, bias=bias == "bias", new_bias=bias == "new")
        settings = {"ranks": ranks, "product": product, "new_bias": bias == "new"}
        full = SearchSpace(variant="paper", **settings).options(site)
        lean = SearchSpace(variant="lean", **settings).options(site)
        cost = {
            (t, c): count_parameters(site, t, c, product)
            for t, cs in zip(TENSORS, full, strict=True)
            for c in cs
            if c != NONE
        }
        kept = [(t, c) for t, cs in zip(TENSORS, lean, strict=True) for c in cs if c != NONE]
        dropped = [each for each in cost if each not in kept]
        assert set(kept) <= set(cost)
        assert all(NONE in choices for choices in lean)
        for small in dropped:
            assert any(cost[big] <= cost[small] and spans(big, small, site, product) for big in kept), (
                f"{small} was dropped at {site}, but nothing kept spans it with as few numbers; kept: {kept}"
            )
        for big, small in itertools.permutations(kept, 2):
            spanned = cost[big] <= cost[small] and spans(big, small, site, product)
            assert not spanned, f"{small} was kept at {site} beside {big}, which spans it with no more numbers"


def test_the_table_of_the_docs_is_what_remains():
    text = (Path(__file__).parents[1] / "docs" / "background" / "space.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.count("|") == 9]
    seen = 0
    for name, o, m, k, *told in rows[2:]:
        bias, new = "without a bias" not in name and "new bias" not in name, "new bias" in name
        mixed, places = (int(m), int(k)) if m else (1, 1)
        site = Site("", int(o), mixed * places, bias, new, mixed=mixed, diagonal="norm" in name)
        full = SearchSpace(ranks=(8,), variant="paper", new_bias=new).options(site)
        every: list = [{"variant": "lean", "product": product} for product in PRODUCTS]
        fewer = [SearchSpace(ranks=(8,), new_bias=new, **each).options(site) for each in (*every, {})]
        assert [math.prod(map(len, options)) for options in (full, *fewer)] == list(map(int, told)), name
        seen += 1
    assert seen == 11


def test_lean_breaks_ties_towards_e_then_b():
    o = i = 4
    lean = SearchSpace(ranks=(2,)).options(Site("linear", o, i, True))
    kept = {t: {c.kind for c in cs} for t, cs in zip(TENSORS, lean, strict=True)}
    assert kept["E"] == {"vector", "scalar", "none"}
    assert kept["D"] == {"scalar", "none"}  # a vector D is a vector E
    assert kept["C"] == {"none"}  # W0 c is a vector E
    matrix = SearchSpace(ranks=(2,), product="matrix").options(Site("linear", o, i, True))
    assert "lora" in {c.kind for c in matrix[1]}
    assert "lora" not in {c.kind for c in matrix[0]}  # W0 A is a LoRA B


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("site", [Site("linear", 9, 3, True), Site("conv", 9, 12, True, mixed=3)])
def test_slim_leaves_low_rank_to_b_where_b_reaches_all_that_a_does(product, site):
    lean, slim = (
        SearchSpace(ranks=(2,), product=product, variant=variant).options(site) for variant in ("lean", "slim")
    )
    assert "lora" in {choice.kind for choice in lean[0]}
    spanned = product == "matrix" and site.mixed == site.in_features
    assert slim == ((tuple(choice for choice in lean[0] if choice.kind != "lora"), *lean[1:]) if spanned else lean)


def test_the_lean_space_of_a_vit_layer_is_smaller_and_in_the_paper_one():
    site = Site("linear", 1536, 384, True)
    lean, full = SearchSpace(ranks=(8, 4), variant="lean").options(site), paper(8, 4).options(site)
    assert all(set(a) <= set(b) for a, b in zip(lean, full, strict=True))
    assert math.prod(map(len, lean)) < math.prod(map(len, full))


def test_shapes_of_the_factors_are_those_of_the_design():
    site = Site("linear", 5, 3, True)
    lora = Choice("lora", 2)
    assert factor_shapes(site, "A", lora, "elementwise") == {"down": (5, 2), "up": (2, 3)}
    assert factor_shapes(site, "A", lora, "matrix") == {"down": (3, 2), "up": (2, 3)}
    assert factor_shapes(site, "B", lora, "matrix") == {"down": (5, 2), "up": (2, 3)}
    assert factor_shapes(site, "C", lora, "matrix") == {"down": (3, 2), "up": (2, 1)}
    assert factor_shapes(site, "A", Choice("vector"), "elementwise") == {"down": (5, 1)}
    assert factor_shapes(site, "A", Choice("vector"), "matrix") == {"down": (3, 1)}
    assert factor_shapes(site, "E", Choice("scalar"), "matrix") == {"down": (1,)}
    assert factor_shapes(site, "E", NONE, "matrix") == {}
