"""Settings: one field = one YAML key = one override; every error told at once; presets under what is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from glora.config import Experiment, build_experiment, describe, load_experiment
from glora.errors import BudgetError, ConfigError
from glora.runs.resolve import search_arguments
from glora.settings import parse_count
from glora.space import SearchSpace
from suites.searcher_suite import legal, toy_space

HERE = Path(__file__).parents[1]
DATA = {"data": {"source": "photos"}}


def yaml_file(folder: Path, text: str) -> Path:
    file = folder / "experiment.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "count"),
    [("0.3M", 300_000), ("300k", 300_000), ("300_000", 300_000), ("300,000", 300_000), (7, 7), ("1g", 10**9)],
)
def test_counts_may_have_a_unit(text: Any, count: int) -> None:
    assert parse_count(text) == count
    assert build_experiment({**DATA, "search": {"budget": text}}).search.budget == count


@pytest.mark.parametrize("text", ["many", "3x", "", "nan", "inf"])
def test_a_count_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.budget"):
        build_experiment({**DATA, "search": {"budget": text}})


def test_every_error_is_told_at_once_with_the_nearest_names(tmp_path: Path) -> None:
    file = yaml_file(
        tmp_path,
        "preset: papr\ntrian: {}\ntrain: {epochs: 0, lrr: 1, lr: .nan}\nspace: {ranks: [0], product: dot}\n"
        "search: {budget: 1, min_budget: 0.3M}\nmodel: {targets: 3}\nmethod: [1]\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, ["seed=x", "oops"])
    told = str(caught.value)
    for words in (
        "13 errors in ", "no preset 'papr'", "Did you mean 'paper'?", "trian: no such setting. Did you mean 'train'?",
        "train.lrr: no such setting. Did you mean 'lr'?", "train.epochs: ", "train.lr: ",
        "space.product: ", "space.ranks: ",
        "search: min_budget=300000 is above budget=1", "model.targets: ", "method: ", "data.source: missing",
        "'oops' is no override", "(got 0)",
    ):  # fmt: skip
        assert words in told, words
    assert "glora ls settings" in caught.value.remedy
    assert told.count("model.targets") == 1  # not once for each type it may have


def test_relations_name_both_settings() -> None:
    with pytest.raises(ConfigError, match=r"mutations=19 and crossovers=10 exceed population=20"):
        build_experiment({**DATA, "search": {"population": 20, "mutations": 19}})
    settings = build_experiment({**DATA, "search": {"population": 20}}).search
    assert search_arguments(settings, toy_space(1))["settings"]["population"] == 20


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"budget": 400}, 360), ({}, 696), ({"budget": 1_000_000}, 696),
        ({"budget": 400, "min_budget": 0}, 0), ({"budget": 400, "min_budget": 7}, 7),
        ({"budget": 400, "searcher": "nsga2"}, 0), ({"budget": 400, "legalize": "reject"}, 0),
        ({"budget": 400, "searcher": "random", "legalize": "reject"}, 0),  # the control of a published search
    ],
)  # fmt: skip
def test_a_search_looks_near_the_most_numbers_it_may_have(changes: dict[str, Any], least: int) -> None:
    settings = build_experiment({**DATA, "search": changes}).search
    found = search_arguments(settings, toy_space(4))
    assert (found["budget"], found["min_budget"]) == (changes.get("budget"), least)


def test_every_size_is_searched_where_fewer_are_near_the_most_than_a_search_scores() -> None:
    space, settings = toy_space(1), build_experiment({**DATA, "search": {"budget": 200}}).search
    near = legal(space, 200, 180)
    assert 0 < len(near) < settings.candidates and search_arguments(settings, space)["min_budget"] == 0
    settings = settings.model_copy(update={"population": len(near), "generations": 0})
    assert search_arguments(settings, space)["min_budget"] == 180
    assert not legal(space, 7, 6)
    settings = settings.model_copy(update={"budget": 7})
    assert search_arguments(settings, space)["min_budget"] == 0


def test_the_published_search_takes_every_size() -> None:
    settings = build_experiment({**DATA, "preset": "paper", "search": {"budget": 400}}).search
    assert search_arguments(settings, toy_space(4))["min_budget"] == 0


def test_a_budget_below_everything_is_still_told() -> None:
    settings = build_experiment({**DATA, "search": {"budget": -1}}).search
    with pytest.raises(BudgetError, match="below the smallest"):
        search_arguments(settings, toy_space(4))


def test_overrides_win_over_values_and_both_over_the_file(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "data: {source: photos}\ntrain: {lr: 0.1, epochs: 5, precision: no}\nseed: 1\n")
    found = load_experiment(
        file, ["train.lr=1e-3", "search.budget=0.3M", "space.ranks=[4, 2]"], {"seed": 2, "train.lr": 7}
    )
    assert (found.train.lr, found.train.epochs, found.train.precision) == (1e-3, 5, "no")
    assert (found.search.budget, found.space.ranks, found.seed) == (300_000, [4, 2], 2)
    assert load_experiment(file, ["train.precision=no"]).train.precision == "no"  # YAML reads a bare no as False


def test_a_setting_cannot_be_put_below_another() -> None:
    with pytest.raises(ConfigError, match=r"seed\.x: 'seed' is not a group"):
        load_experiment(None, ["data.source=photos", "seed=1", "seed.x=2"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "no YAML"), ("- 1", "no experiment"), ("3", "no experiment"), ("1: 2\ndata: {source: x}", "1: ")],
)
def test_a_file_that_is_no_experiment_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_experiment(yaml_file(tmp_path, text))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_the_paper_preset_is_the_published_method_and_what_is_given_wins() -> None:
    paper = build_experiment({**DATA, "preset": "paper"})
    assert paper.space.build() == SearchSpace.paper()
    assert (paper.search.fitness, paper.search.legalize, paper.search.searcher) == ("accuracy", "reject", "evolution")
    sizes = paper.search.population, paper.search.generations, paper.search.parents, paper.search.mutation_probability
    assert sizes == (50, 20, 10, 0.2)
    assert paper.search.candidates == 1050
    mine = build_experiment({**DATA, "preset": "paper", "space": {"ranks": [4]}, "train": {"epochs": 2}})
    assert mine.space.build() == SearchSpace.paper(ranks=(4,))
    assert (mine.train.epochs, mine.search.fitness) == (2, "accuracy")
    assert load_experiment(None, ["preset=paper", "search.fitness=loss"], {"data.source": "x"}).search.fitness == "loss"


def test_the_default_is_the_lean_space_with_scales() -> None:
    assert build_experiment(DATA).space.build() == SearchSpace()


def test_the_resolved_settings_make_a_round_trip_through_yaml(tmp_path: Path) -> None:
    first = load_experiment(
        None, ["preset=paper", "search.budget=0.3M", "model.checkpoint=w.safetensors"], {"data.source": "x"}
    )
    text = yaml.safe_dump(yaml.safe_load(first.model_dump_json()))
    assert load_experiment(yaml_file(tmp_path, text)) == first


def test_one_field_is_one_key_one_override_and_one_help_line() -> None:
    lines = describe()
    names = [line.split()[0] for line in lines]
    plain = build_experiment(DATA).model_dump()
    dotted = [f"{k}.{inner}" for k, v in plain.items() if isinstance(v, dict) for inner in v]
    assert sorted(names) == sorted(dotted + [k for k, v in plain.items() if not isinstance(v, dict)])
    for line in lines:
        name, _, rest = line.partition(" ")
        assert rest.rstrip().endswith("."), f"{name} has no description"
        value = "photos" if name == "data.source" else rest.removeprefix("= ").partition("  ")[0]
        assert load_experiment(None, [f"{name}={value}"], {"data.source": "photos"}) == build_experiment(DATA)


def test_settings_are_frozen_and_changes_are_checked() -> None:
    experiment = build_experiment(DATA)
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 1  # type: ignore[misc]
    assert experiment.with_(seed=1).seed == 1
    with pytest.raises(ConfigError, match="seed"):
        experiment.with_(seed=-1)


@pytest.mark.parametrize("file", sorted((HERE / "experiments").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_experiment_is_right(file: Path) -> None:
    assert isinstance(load_experiment(file), Experiment)
