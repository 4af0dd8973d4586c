"""Settings: one field = one YAML key = one override; every error told at once; presets under what is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from glora.config import build_experiment, describe, description, load_experiment
from glora.errors import BudgetError, ConfigError, UnknownNameError
from glora.methods.glora import GLoRA
from glora.runs.resolve import plan_search
from glora.settings import merged, parse_count
from glora.space import SearchSpace
from suites.searcher_suite import legal, toy_space

DATA = {"data": {"source": "digits"}}


def refusal(*overrides: str, file: Path | None = None) -> str:
    """What is said of these overrides."""
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, overrides, {"data.source": "digits"})
    return str(caught.value)


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
        "preset: papr\ntrian: {}\ntrain: {epochs: 0, lrr: 1, lr: .nan}\n"
        "method: {ranks: [0], product: dot, targets: 3}\n"
        "search: {budget: 1, min_budget: 0.3M}\nmodel: [1]\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, ["seed=x", "oops"])
    told = str(caught.value)
    for words in (
        "13 errors in ", "no preset 'papr'", "Did you mean 'paper'?", "trian: no such setting. Did you mean 'train'?",
        "train.lrr: no such setting. Did you mean 'lr'?", "train.epochs: ", "train.lr: ",
        "method.product: ", "method.ranks: ",
        "search: min_budget=300000 is above budget=1", "method.targets: ", "model: ", "data.source: missing",
        "'oops' is no override", "(got 0)",
    ):  # fmt: skip
        assert words in told, words
    assert "glora ls settings" in caught.value.remedy
    assert told.count("method.targets") == 1  # not once for each type it may have


def test_relations_name_both_settings() -> None:
    with pytest.raises(ConfigError, match=r"mutations=19 and crossovers=10 exceed population=20"):
        build_experiment({**DATA, "search": {"searcher": {"population": 20, "mutations": 19}}})
    settings = build_experiment({**DATA, "search": {"searcher": {"population": 20}}}).search
    assert plan_search(settings, toy_space(1)).settings.population == 20


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"budget": 400}, 360), ({}, 696), ({"budget": 1_000_000}, 696),
        ({"budget": 400, "min_budget": 0}, 0), ({"budget": 400, "min_budget": 7}, 7),
        ({"budget": 400, "searcher": "nsga2"}, 0), ({"budget": 400, "searcher": {"legalize": "reject"}}, 0),
        ({"budget": 400, "searcher": "random"}, 360),
    ],
)  # fmt: skip
def test_a_search_looks_near_the_most_numbers_it_may_have(changes: dict[str, Any], least: int) -> None:
    settings = build_experiment({**DATA, "search": changes}).search
    found = plan_search(settings, toy_space(4))
    assert (found.budget, found.min_budget) == (changes.get("budget"), least)


def test_every_size_is_searched_where_fewer_are_near_the_most_than_a_search_scores() -> None:
    space, settings = toy_space(1), build_experiment({**DATA, "search": {"budget": 200}}).search
    near = legal(space, 200, 180)
    searcher: Any = settings.searcher
    assert 0 < len(near) < searcher.candidates and plan_search(settings, space).min_budget == 0
    few = searcher.model_copy(update={"population": len(near), "generations": 0})
    settings = settings.model_copy(update={"searcher": few})
    assert plan_search(settings, space).min_budget == 180
    assert not legal(space, 7, 6)
    settings = settings.model_copy(update={"budget": 7})
    assert plan_search(settings, space).min_budget == 0


def test_the_published_search_takes_every_size() -> None:
    settings = build_experiment({**DATA, "preset": "paper", "search": {"budget": 400}}).search
    assert plan_search(settings, toy_space(4)).min_budget == 0


def test_a_budget_below_everything_is_still_told() -> None:
    settings = build_experiment(DATA).search.model_copy(update={"budget": -1})
    with pytest.raises(BudgetError, match="below the smallest"):
        plan_search(settings, toy_space(4))


def test_overrides_win_over_values_and_both_over_the_file(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "data: {source: digits}\ntrain: {lr: 0.1, epochs: 5, precision: no}\nseed: 1\n")
    found = load_experiment(
        file, ["train.lr=1e-3", "search.budget=0.3M", "method.ranks=[4, 2]"], {"seed": 2, "train.lr": 7}
    )
    assert (found.train.lr, found.train.epochs, found.train.precision) == (1e-3, 5, "no")
    assert isinstance(found.method, GLoRA)
    assert (found.search.budget, found.method.ranks, found.seed) == (300_000, (4, 2), 2)
    assert load_experiment(file, ["train.precision=no"]).train.precision == "no"  # YAML reads a bare no as False


def test_a_setting_cannot_be_put_below_another() -> None:
    with pytest.raises(ConfigError, match=r"seed\.x: 'seed' is not a group"):
        load_experiment(None, ["data.source=digits", "seed=1", "seed.x=2"])


def test_another_method_or_searcher_brings_its_own_settings(tmp_path: Path) -> None:
    file = yaml_file(
        tmp_path,
        "data: {source: digits, folds: 2}\nmodel: {name: a, image_size: 32}\npreset: paper\n"
        "method: {ranks: [2], targets: all}\nsearch: {searcher: {population: 20}, budget: 7}\n",
    )
    ranks = GLoRA(targets="all", ranks=(2,)).space
    assert load_experiment(file).method.ranks == ranks.ranks == load_experiment(file, ["method=glora"]).method.ranks
    for words in (["method=lora", "method.rank=3"], ["method.rank=3", "method=lora"]):
        found = load_experiment(file, [*words, "search.searcher=random", "model.name=b", "data=textile"])
        assert found.method.model_dump() == {
            "targets": "linear", "skip": (), "statistics": False,
            "name": "lora", "rank": 3, "alpha": None, "dropout": 0.0, "scaling": "standard", "parts": (),
        }  # fmt: skip
        assert found.search.searcher.model_dump() == {"name": "random", "candidates": 1050}
        assert (found.search.budget, found.search.fitness, found.data.folds) == (7, "accuracy", 2)
        assert (found.model.name, found.model.image_size, found.data.source) == ("b", 32, "textile")
    both = load_experiment(None, ["search.searcher.population=8", "search.searcher=nsga2"], {"data.source": "digits"})
    assert both.search.searcher.model_dump(include={"name", "population"}) == {"name": "nsga2", "population": 8}


def test_laying_settings_on_others_changes_neither() -> None:
    under, over = {"train": {"lr": 1}, "method": "glora"}, {"train": {"epochs": 2}, "method": {"ranks": [4]}}
    laid = merged(under, over)
    assert laid == {"train": {"lr": 1, "epochs": 2}, "method": {"name": "glora", "ranks": [4]}}
    laid["train"]["lr"] = laid["method"]["name"] = 3
    assert under == {"train": {"lr": 1}, "method": "glora"} and over["train"] == {"epochs": 2}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method=lora", "method.rnk=8"], "method.rnk: no such setting of 'lora'. Did you mean 'rank'?"),
        (["space.ranks=[4]"], "space.ranks: no such setting. Did you mean 'method.ranks'?"),
        (["model.targets=all"], "model.targets: no such setting. Did you mean 'method.targets'?"),
        (["lr=0.1"], "lr: no such setting. Did you mean 'train.lr'?"),
        (["batch_size=3"], "batch_size: no such setting. Did you mean 'train.batch_size' or 'search.batch_size'?"),
        (["search.population=9"], "search.population: no such setting. Did you mean 'search.searcher.population'?"),
        (["trian.epochs=2"], "trian.epochs: no such setting. Did you mean 'train.epochs'?"),
        (["space.ranks=[4]", "space.foo=1"], "space.foo: no such setting."),
        (
            ["search.searcher=random", "search.searcher.population=9"],
            "search.searcher.population: no such setting of 'random', which has candidates.",
        ),
        (["method=linear", "method.xyz=1"], "method.xyz: no such setting of 'linear', which has none."),
        (["method.ranks=4"], "method.ranks: a list is needed (got 4). Did you mean [4]?"),
        (["method=glroa"], "There is no method 'glroa'. Did you mean 'glora'"),
    ],
)
def test_an_error_names_the_place_that_was_meant(overrides: list[str], told: str) -> None:
    assert told in refusal(*overrides)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\ntrain: {epochs: 2}\ntrain:\n  lr: 0.1\n", "train: the key is there twice, in line 2 and in line 3"),
        ("train:\n  lr: 1\n  epochs: 2\n  lr: 2\n", "train.lr: the key is there twice, in line 2 and in line 4"),
    ],
)
def test_a_key_that_is_there_twice_is_told_with_its_lines(tmp_path: Path, text: str, told: str) -> None:
    assert f"1 error in {tmp_path / 'experiment.yaml'}:\n  {told}." in refusal(file=yaml_file(tmp_path, text))
    merging = "a: &a {epochs: 2}\ntrain: {<<: *a, lr: 0.1}\n"  # YAML's own way of saying a key twice
    assert "line 1: a.epochs: no such setting" in refusal(file=yaml_file(tmp_path, merging))


def test_all_that_is_wrong_with_a_file_is_told_at_once_with_its_lines(tmp_path: Path) -> None:
    text = "seed: 1\nseed: 2\ntrain:\n  epochs: x\n  lrr: 0.1\n  lr: 0.1\nmethod: {name: lora,\n  rnk: 4}\n"
    told = refusal("train.weight_decay=x", file=yaml_file(tmp_path, text)).splitlines()
    assert told[0].startswith("5 errors in")
    starts = ("seed: the key is there twice, in line 1 and in line 2", "line 8: method.rnk: ", "line 4: train.epochs: ",
              "train.weight_decay: ", "line 5: train.lrr: no such setting. Did you mean 'lr'")  # fmt: skip
    assert all(any(line.strip().startswith(start) for line in told) for start in starts), told


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "no YAML"), ("- 1", "no experiment"), ("3", "no experiment"), ("1: 2\ndata: {source: digits}", "1: ")],
)
def test_a_file_that_is_no_experiment_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_experiment(yaml_file(tmp_path, text))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_the_paper_preset_is_the_published_method_and_what_is_given_wins() -> None:
    paper = build_experiment({**DATA, "preset": "paper"})
    searcher: Any = paper.search.searcher
    assert isinstance(paper.method, GLoRA)
    assert paper.method.space == SearchSpace.paper()
    assert (paper.search.fitness, searcher.legalize, searcher.name) == ("accuracy", "reject", "evolution")
    sizes = searcher.population, searcher.generations, searcher.parents, searcher.mutation_probability
    assert sizes == (50, 20, 10, 0.2)
    assert searcher.candidates == 1050
    mine = build_experiment({**DATA, "preset": "paper", "method": {"ranks": [4]}, "train": {"epochs": 2}})
    assert isinstance(mine.method, GLoRA)
    assert mine.method.space == SearchSpace.paper(ranks=(4,))
    assert (mine.train.epochs, mine.search.fitness) == (2, "accuracy")
    values = {"data.source": "digits"}
    assert load_experiment(None, ["preset=paper", "search.fitness=loss"], values).search.fitness == "loss"
    lora = load_experiment(None, ["preset=paper"], {**values, "method": "lora"}).method
    assert lora.model_dump() == build_experiment({**DATA, "method": "lora"}).method.model_dump()


def test_the_default_is_the_lean_space_with_scales() -> None:
    method = build_experiment(DATA).method
    assert isinstance(method, GLoRA)
    assert method.space == SearchSpace()


def test_the_resolved_settings_make_a_round_trip_through_yaml(tmp_path: Path) -> None:
    first = load_experiment(
        None, ["preset=paper", "search.budget=0.3M", "model.checkpoint=w.safetensors"], {"data.source": "digits"}
    )
    text = yaml.safe_dump(yaml.safe_load(first.model_dump_json()))
    assert load_experiment(yaml_file(tmp_path, text)) == first


def dotted(data: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in data.items():
        inner = dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else []
        names += inner or [f"{prefix}{name}"]
    return names


def named(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def test_one_field_is_one_key_one_override_and_one_help_line() -> None:
    lines, data = describe(), {"data.source": "digits"}
    plain = dotted(build_experiment(DATA).model_dump())
    kinds = {"method.name": "method", "objective.name": "objective", "search.searcher.name": "search.searcher"}
    common = [line for line in lines if not line.startswith(" ") and not line.endswith(":")]
    own = [line for name in ("glora", "classify", "evolution") for line in describe(name)]
    own += [
        line for line in describe("digits") if line not in common
    ]  # what the packaged data has beside what all have
    assert sorted(named([*common, *own])) == sorted(kinds.get(name, name) for name in plain)
    for line in [*common, *own]:
        name, _, rest = line.partition(" ")
        assert rest.rstrip().endswith("."), f"{name} has no description"
        value = "digits" if name == "data.source" else rest.removeprefix("= ").partition("  ")[0]
        assert load_experiment(None, [f"{name}={value}"], data) == build_experiment(DATA)


def test_every_kind_has_its_settings_below_the_common_ones() -> None:
    lines = describe()
    heads = [line for line in lines if line.endswith(":")]
    assert {"method lora:", "objective regress:", "searcher nsga2:", "data set image_table:"} < set(heads)
    start = lines.index("method lora:") + 1
    below = lines[start : next(place for place in range(start, len(lines)) if lines[place].endswith(":"))]
    assert [line.strip() for line in below] == describe("lora")
    assert "method.rank = 8  Rank of the update." in describe("lora")
    assert not any(" None" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "first", "has"),
    [
        ("image_table", "data.source", "data.columns"),
        ("train", "train.epochs", "train.pace"),
        ("train.lr", "train.lr", "train.lr"),
        ("search.searcher", "search.searcher", "search.searcher.mutations"),
        ("data", "data.source", "data.on_bad_image"),
        ("multilabel", "objective.labels", "objective.threshold"),
    ],
)
def test_settings_are_described_by_kind_group_or_name(name: str, first: str, has: str) -> None:
    lines = describe(name)
    assert named(lines)[0] == first and has in named(lines)
    assert len(lines) < len(describe())


def test_settings_of_an_unknown_name_are_told() -> None:
    with pytest.raises(UnknownNameError, match=r"no settings of 'lorra'. Did you mean 'lora'"):
        describe("lorra")


def test_a_setting_is_described_by_its_dotted_name() -> None:
    assert description("train.epochs").startswith("Passes over the training examples")
    assert description("search.searcher.population") == "Genotypes per generation."
    assert description("method") == "Which method: `glora ls methods`."


def test_settings_are_frozen_and_changes_are_checked() -> None:
    experiment = build_experiment(DATA)
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 1  # type: ignore[misc]
    assert experiment.with_(seed=1).seed == 1
    with pytest.raises(ConfigError, match="seed"):
        experiment.with_(seed=-1)
