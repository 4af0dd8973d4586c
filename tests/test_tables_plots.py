"""The comparison table and the pictures, from plain records only."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from glora.errors import ConfigError, MissingExtraError, SpaceError
from glora.genotype import TENSORS, Genotype, Site
from glora.report import plots
from glora.report.metrics import MetricInfo
from glora.report.result import FORMAT_1_METRICS, Result
from glora.report.tables import CAPTION, comparison_table, markdown, rich_table, rows, trainable
from glora.searchers import Score, SearchResult, search
from glora.space import BoundSpace, SearchSpace

pytestmark = pytest.mark.figures


def made(method: str, *, seed: int = 0, test: float | None = 0.8, **changes: Any) -> Result:
    metrics: dict[str, float | None] = {"val_accuracy": 0.855, "val_accuracy_standard_error": 0.025}
    metrics |= {"test_accuracy": test, "test_accuracy_standard_error": 0.0126}
    fields: dict[str, Any] = {"task": "digits", "model": "vit", "config": {}, "parameters": 287_104}
    fields["metrics_info"] = FORMAT_1_METRICS
    fields |= {"head_parameters": 3_850, "metrics": metrics, "seconds": {"train": 61.4, "search": 9}}
    return Result(method=method, seed=seed, **fields | {"latency": {"ratio": 1.004}} | changes)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.0 k"),
        (3_850, "3.9 k"),
        (99_499, "99.5 k"),
        (99_500, "0.10 M"),
        (287_104, "0.29 M"),
        (85_800_000, "85.80 M"),
        (6_738_000_000, "6,738 M"),
    ],
)
def test_trainable_numbers_in_words(count: int, text: str) -> None:
    assert trainable(count) == text


def test_one_run_is_a_row_with_standard_errors_in_percent() -> None:
    assert rows([made("glora")]) == [
        {
            "method": "glora",
            "trainable": "0.29 M",
            "head": "3.9 k",
            "val accuracy, %": "85.5 ± 2.5",
            "test accuracy, %": "80.0 ± 1.3",
            "train, s": "61",
            "latency": "1.00x",
        }
    ]


def test_what_was_not_measured_is_a_dash() -> None:
    row = rows([made("linear", test=None, latency=None, seconds={})])[0]
    assert [row[title] for title in ("test accuracy, %", "latency", "train, s")] == ["–"] * 3


def test_seeds_share_a_row_with_their_mean_and_spread() -> None:
    several = [made("lora", seed=k, test=test) for k, test in enumerate((0.7, 0.8, 0.9))]
    first, second = rows([*several, made("glora")])
    assert (first["method"], first["seeds"], first["test accuracy, %"]) == ("lora", "3", "80.0 ± 10.0")
    assert (second["method"], second["seeds"], second["test accuracy, %"]) == ("glora", "1", "80.0 ± 1.3")


def config(seed: int = 0, **settings: Any) -> dict[str, Any]:
    """A nested configuration; `train__epochs=3` is train.epochs."""
    nested: dict[str, Any] = {"seed": seed, "model": {"name": "vit", "image_size": 28}, "train": {"epochs": 30}}
    nested |= {"data": {"source": "digits", "val": 90}, "search": {"population": 50, "workers": 0}}
    for name, value in settings.items():
        group, _, key = name.partition("__")
        nested[group] = {**nested.get(group, {}), key: value} if key else value
    return nested


def test_runs_of_different_settings_are_not_pooled_as_seeds() -> None:
    """28 px for 3 epochs and 98 px for 30 epochs were one row: `seeds 2 | 90.6 ± 13.3`."""
    small = config(model__image_size=28, train__epochs=3)
    large = [config(seed, model__image_size=98, train__epochs=30) for seed in (0, 1)]
    found = rows(
        [
            made("lora", test=0.7, config=small),
            made("lora", test=0.96, config=large[0]),
            made("lora", test=0.98, seed=1, config=large[1]),
        ]
    )
    shown = [[row[title] for title in ("image_size", "epochs", "seeds", "test accuracy, %")] for row in found]
    assert shown == [["28", "3", "1", "70.0 ± 1.3"], ["98", "30", "2", "97.0 ± 1.4"]]
    assert list(found[0])[:3] == ["method", "image_size", "epochs"]
    assert "run" not in found[0]


def test_a_copy_of_a_run_is_that_run() -> None:
    """Two copies of one run were `seeds 2`, ± 0.0."""
    original = made("lora", config=config(), run="a")
    copies = [original, made("lora", config=config(), run="b", time="later", seconds={"train": 80.0})]
    assert rows(copies) == rows([original])
    assert "seeds" not in rows(copies)[0]


def test_runs_of_one_seed_with_other_numbers_are_rows_of_their_own_with_the_runs_name() -> None:
    again = [made("lora", test=test, config=config(), run=run) for test, run in ((0.7, "a"), (0.9, "b"))]
    found = rows([*again, made("lora", seed=1, test=0.8, config=config(1), run="c")])
    assert [(row["run"], row["seeds"]) for row in found] == [("a, c", "2"), ("b", "1")]
    assert list(found[0])[:2] == ["method", "run"]


def test_who_did_the_scoring_makes_no_row() -> None:
    several = [config(), config(1, search__workers=4, search__cluster="auto")]
    (row,) = rows([made("glora", seed=seed, winner="a", config=each) for seed, each in enumerate(several)])
    assert row["seeds"] == "2"


def test_a_setting_is_compared_only_where_it_means_something() -> None:
    lora = config(method={"name": "lora", "rank": 8}, train__lr=0.003, search__population=7)
    glora = config(method={"name": "glora", "ranks": [8, 4]}, train__lr=0.001)
    found = rows([made("lora", config=lora), made("glora", config=glora, winner="a")])
    assert list(found[0])[:2] == ["method", "trainable"], "the methods tell them apart, and LoRA was not searched"
    other = config(method={"name": "lora", "rank": 4}, train__lr=0.003)
    found = rows([made("lora", config=lora), made("lora", config=other), made("glora", config=glora, winner="a")])
    assert [row["rank"] for row in found] == ["8", "4", "–"]
    assert "lr" not in found[0]
    tasks = [config(data__source=f"/data/{task}", data__classes=k) for k, task in enumerate(("pets", "cars"))]
    found = rows([made("lora", task=each["data"]["source"][6:], config=each) for each in tasks])
    assert list(found[0])[:3] == ["task", "method", "trainable"], "the tasks tell them apart"


def test_a_setting_has_a_short_name_where_that_is_its_own() -> None:
    first = config(search__batch_size=100, train__batch_size=32, data__val=50, train__pace=None)
    second = config(search__batch_size=50, train__batch_size=16, data__val=500_000, train__pace=False)
    second["search"]["searcher"] = {"name": "random"}
    first["search"]["searcher"] = {"name": "nsga2"}
    found = rows([made("glora", winner="a", config=each) for each in (first, second)])
    shown = [[row[name] for name in ("train.batch_size", "search.batch_size", "data.val")] for row in found]
    assert shown == [["32", "100", "50"], ["16", "50", "500,000"]]
    assert [(row["pace"], row["searcher"]) for row in found] == [("–", "nsga2"), ("false", "random")]


RMSE = MetricInfo("rmse", False, ".4g")


def test_another_metric_is_shown_in_its_own_format() -> None:
    metrics = {"val_rmse": 12.3456, "test_rmse": 0.00123456, "test_rmse_standard_error": 0.0001}
    (row,) = rows([made("lora", metrics=metrics, metrics_info=(RMSE,), objective="regress")])
    assert (row["val rmse"], row["test rmse"]) == ("12.35", "0.001235 ± 0.0001")


def test_results_of_several_objectives_name_their_metric() -> None:
    regression = made("lora", task="ages", metrics={"test_rmse": 4.5}, metrics_info=(RMSE,), objective="regress")
    found = rows([made("lora"), regression, made("speed", task="none", metrics={"step": 1.0}, metrics_info=())])
    shown = [[row[title] for title in ("task", "metric", "val", "test")] for row in found]
    assert shown == [
        ["digits", "accuracy, %", "85.5 ± 2.5", "80.0 ± 1.3"],
        ["ages", "rmse", "–", "4.5"],
        ["none", "–", "–", "–"],
    ]


def test_the_comparison_has_a_column_for_each_split_that_was_measured() -> None:
    compared: Any = {
        "winner": {"parameters": 10.0, "val_rmse": 2.0, "val_rmse_standard_error": 0.5, "test_rmse": 3.0},
        "random_mean": {"parameters": 9.0, "genotypes": 50.0, "val_rmse": 2.5},
    }
    table = comparison_table(compared, (RMSE, *FORMAT_1_METRICS))
    assert [column.header for column in table.columns] == ["", "trainable", "val rmse", "test rmse"]
    assert [list(column.cells) for column in table.columns][1:] == [["10", "9"], ["2 ± 0.5", "2.5"], ["3", "–"]]


def test_tasks_and_models_are_columns_only_where_they_differ() -> None:
    assert "task" not in rows([made("a"), made("b")])[0]
    two = rows([made("a"), made("a", task="textile")])
    assert [row["task"] for row in two] == ["digits", "textile"]
    assert "model" not in two[0]


def test_markdown_is_a_table_of_the_same_cells() -> None:
    results = [made("linear probe"), made("a|b", parameters=12)]
    lines = markdown(results).splitlines()
    cells = [[cell.strip().replace("\\|", "|") for cell in line[2:-2].split(" | ")] for line in lines[:4]]
    assert cells[0] == list(rows(results)[0])
    assert [cells[2], cells[3]] == [list(row.values()) for row in rows(results)]
    assert len({len(line) for line in lines[:4]}) == 1
    assert all(set(cell) <= {"-", ":"} for cell in cells[1])
    assert lines[-1] == CAPTION
    assert markdown([]) == "No results.\n"


def test_the_rich_table_shows_every_cell() -> None:
    console = Console(width=160, record=True, file=Path("/dev/null").open("w"))
    console.print(rich_table([made("linear probe"), made("glora", parameters=12)]))
    text = console.export_text()
    console.file.close()
    for row in rows([made("linear probe"), made("glora", parameters=12)]):
        assert all(cell in text for cell in [*row, *row.values()])
    assert "digits, vit" in text


def test_a_terminal_of_80_columns_breaks_no_word_and_no_number() -> None:
    results = [made("linear probe", config={"train": {"lr": 0.03}}), made("glora", parameters=12)]
    with Path("/dev/null").open("w") as file:
        console = Console(width=80, record=True, file=file)
        console.print(rich_table(results))
    text = console.export_text()
    numbers = [cell for row in rows(results) for cell in list(row.values())[2:]]
    assert all(word in text for name in rows(results)[0] for word in name.split())
    assert all(cell in text for cell in numbers)


# The pictures

ACCURACY: Any = {"fitness": "accuracy", "metrics_info": FORMAT_1_METRICS}
LOSS: Any = {"fitness": "loss", "metrics_info": FORMAT_1_METRICS}


@pytest.fixture(scope="module")
def space() -> BoundSpace:
    shapes = (("attn.qkv", 48, 16), ("attn.proj", 16, 16), ("mlp.fc1", 64, 16), ("mlp.fc2", 16, 64))
    sites = {f"blocks.{b}.{name}": Site("linear", o, i, True) for b in range(3) for name, o, i in shapes}
    return SearchSpace(ranks=(4, 2)).bind(sites | {"stem.proj": Site("linear", 16, 8, False)})


@pytest.fixture(scope="module")
def genotype(space: BoundSpace) -> Genotype:
    return space.sample(random.Random(1))


@pytest.fixture(scope="module")
def found(space: BoundSpace) -> SearchResult:
    rng = random.Random(0)

    def score(genotype: Any) -> Score:
        return Score(math.nan if rng.random() < 0.1 else 0.5 + 0.4 * rng.random(), 0.02)

    return search(score, space, settings={"population": 20, "generations": 2})


def is_figure(path: Path) -> bool:
    if path.suffix == ".svg":
        return ElementTree.fromstring(path.read_bytes()).tag.endswith("svg")
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_every_plot_writes_a_figure_and_its_data_and_nothing_else(
    suffix: str, found: SearchResult, genotype: Genotype, space: BoundSpace, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("search", "layers", "parameters")]
    drawn = [
        plots.search_plot(found.trials, found.front, found.best, paths[0], **ACCURACY, budget=900),
        plots.layer_plot(genotype, space, paths[1]),
        plots.parameters_plot(genotype, space, paths[2]),
    ]
    for path, data in zip(paths, drawn, strict=True):
        assert is_figure(path)
        written = json.loads(path.with_suffix(".json").read_text())
        assert written == json.loads(json.dumps(data).replace("-Infinity", "null"))
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_figure_drawn_later_is_the_same_file(
    suffix: str, genotype: Genotype, space: BoundSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path, day in zip(paths, ("0", "86400"), strict=True):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)  # what matplotlib takes for now
        plots.layer_plot(genotype, space, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_search_plot_has_every_trial(found: SearchResult, tmp_path: Path) -> None:
    data = plots.search_plot(found.trials, found.front, found.best, tmp_path / "a.svg", **LOSS)
    scores = [(trial.parameters, trial.score.value) for trial in found.trials]
    assert [(trial["parameters"], trial["score"]) for trial in data["trials"]] == scores
    assert -math.inf in [score for _, score in scores]  # a diverged one does not stop the plot
    assert data["winner"] in data["front"]


@pytest.mark.parametrize(("fitness", "shown"), [("accuracy", "50.0 ± 2.0 %"), ("loss", "0.500 ± 0.020")])
def test_the_search_plot_has_the_controls_and_the_examples_set_aside(
    fitness: str, shown: str, found: SearchResult, tmp_path: Path
) -> None:
    metrics = {f"{split}_{name}": 0.5 for split in ("val", "aside") for name in ("accuracy", "loss")}
    metrics |= {f"{name}_standard_error": 0.02 for name in metrics}
    rows: Any = {
        "winner": {**metrics, "parameters": 400.0},
        "random_mean": {**metrics, "parameters": 300.0, "genotypes": 50.0},
        "random_best": {**metrics, "parameters": 350.0, "genotypes": 50.0},
        "largest": {**metrics, "parameters": 1e6, "genotypes": 1.0},
        "retrained": {"test_loss": 0.5, "parameters": 400.0},  # with folds it has seen val
    }
    path = tmp_path / "a.svg"
    told: Any = {"fitness": fitness, "metrics_info": FORMAT_1_METRICS, "controls": rows, "unit": "images"}
    data = plots.search_plot(found.trials, found.front, found.best, path, **told)
    assert data["controls"] == rows
    texts = "".join(ElementTree.fromstring(path.read_bytes()).itertext()) + path.read_text()
    for words in ("mean of 50 random", "best of 50 random", "off the scale", f"winner, set-aside images: {shown}"):
        assert words in texts, words
    assert "winner trained alone" not in texts


@pytest.mark.parametrize(
    ("fitness", "axis", "winner"),
    [
        ("rmse", "validation rmse (lower is better)", "winner: 12.5 ± 0.25 ("),
        ("map", "validation map, %", "winner: -1250.0 ± 25.0 % ("),
        ("score", "score (higher is better)", "winner: -12.5 ± 0.25 ("),
    ],
)
def test_a_score_is_drawn_as_its_metric_says_and_never_by_its_sign(
    fitness: str, axis: str, winner: str, space: BoundSpace, tmp_path: Path
) -> None:
    trial = search(lambda _: Score(-12.5, 0.25), space, settings={"population": 2, "generations": 0}).best
    path, metrics = tmp_path / "a.svg", (MetricInfo("map", True, "percent"), RMSE)
    data = plots.search_plot([trial], [trial], trial, path, fitness=fitness, metrics_info=metrics)
    texts = path.read_text()
    assert axis in texts
    assert winner in texts
    assert data["winner"]["score"] == -12.5


def test_the_layer_plot_tells_every_choice(genotype: Genotype, space: BoundSpace, tmp_path: Path) -> None:
    data = plots.layer_plot(genotype, space, tmp_path / "a.svg")
    assert data["parameters"] == space.count(genotype)
    assert set(data["sites"]) == set(space.sites)
    for site, cells in data["sites"].items():
        assert cells.pop("layer_type") == site.rpartition(".")[2]
        for tensor, options in zip(TENSORS, space.options[site], strict=True):
            assert cells[tensor] == (genotype[site].to_json()[tensor] if len(options) > 1 else None)
    assert data["sites"]["stem.proj"]["E"] is None  # no bias, nothing offered


def test_the_parameters_plot_adds_up(genotype: Genotype, space: BoundSpace, tmp_path: Path) -> None:
    data = plots.parameters_plot(genotype, space, tmp_path / "a.svg")
    kinds = data["layer_types"]
    assert {kind: numbers["sites"] for kind, numbers in kinds.items()} == {"qkv": 3, "proj": 4, "fc1": 3, "fc2": 3}
    assert sum(numbers[tensor] for numbers in kinds.values() for tensor in TENSORS) == space.count(genotype)


@pytest.mark.parametrize(
    ("names", "types"),
    [
        (["fc"], ["fc"]),
        (["0", "2"], ["single sites", "single sites"]),
        (["a.x", "b.x"], ["x", "x"]),
        (["a.0.x", "b.0.x", "y"], ["x", "x", "y"]),
        (["a.x", "b.x", "b", "c.0.d"], ["x", "x", "single sites", "single sites"]),
    ],
)
def test_models_with_any_names_are_drawn_whole(names: list[str], types: list[str], tmp_path: Path) -> None:
    space = SearchSpace().bind({name: Site("linear", 8, 8, True) for name in names})
    sites = plots.layer_plot(space.largest, space, tmp_path / "a.svg")["sites"]
    assert {site: cells["layer_type"] for site, cells in sites.items()} == dict(zip(names, types, strict=True))
    plots.parameters_plot(space.smallest, space, tmp_path / "b.svg")


def test_what_cannot_be_drawn_is_told_and_nothing_is_written(
    found: SearchResult, genotype: Genotype, space: BoundSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"'.gif' is no figure format.*\.svg"):
        plots.parameters_plot(genotype, space, tmp_path / "a.gif")
    with pytest.raises(ConfigError, match=r"fitness='f1'.*accuracy, loss, score"):
        plots.search_plot(found.trials, found.front, found.best, tmp_path / "a.svg", **{**LOSS, "fitness": "f1"})
    with pytest.raises(SpaceError):
        plots.layer_plot(Genotype({}), space, tmp_path / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"glora\[plot\]"):
        plots.layer_plot(genotype, space, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
