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
from glora.report.result import Result
from glora.report.tables import CAPTION, markdown, rich_table, rows, trainable
from glora.searchers import Score, SearchResult, search
from glora.space import BoundSpace, SearchSpace

pytestmark = pytest.mark.figures


def made(method: str, *, seed: int = 0, test: float | None = 0.8, **changes: Any) -> Result:
    metrics: dict[str, float | None] = {"val_accuracy": 0.855, "val_accuracy_standard_error": 0.025}
    metrics |= {"test_accuracy": test, "test_accuracy_standard_error": 0.0126}
    fields: dict[str, Any] = {"task": "digits", "model": "vit", "config": {}, "parameters": 287_104}
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
            "val, %": "85.5 ± 2.5",
            "test, %": "80.0 ± 1.3",
            "train, s": "61",
            "latency": "1.00x",
        }
    ]


def test_what_was_not_measured_is_a_dash() -> None:
    row = rows([made("linear", test=None, latency=None, seconds={})])[0]
    assert [row[title] for title in ("test, %", "latency", "train, s")] == ["–"] * 3


def test_seeds_share_a_row_with_their_mean_and_spread() -> None:
    several = [made("lora", seed=k, test=test) for k, test in enumerate((0.7, 0.8, 0.9))]
    first, second = rows([*several, made("glora")])
    assert (first["method"], first["seeds"], first["test, %"]) == ("lora", "3", "80.0 ± 10.0")
    assert (second["method"], second["seeds"], second["test, %"]) == ("glora", "1", "80.0 ± 1.3")


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


# The pictures


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
        plots.search_plot(found.trials, found.front, found.best, paths[0], fitness="accuracy", budget=900),
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
    data = plots.search_plot(found.trials, found.front, found.best, tmp_path / "a.svg", fitness="loss")
    scores = [(trial.parameters, trial.score.value) for trial in found.trials]
    assert [(trial["parameters"], trial["score"]) for trial in data["trials"]] == scores
    assert -math.inf in [score for _, score in scores]  # a diverged one does not stop the plot
    assert data["winner"] in data["front"]


@pytest.mark.parametrize("fitness", ["accuracy", "loss"])
def test_the_search_plot_has_the_controls_and_the_images_set_aside(
    fitness: Any, found: SearchResult, tmp_path: Path
) -> None:
    metrics = {f"{split}_{name}": 0.5 for split in ("val", "aside") for name in ("accuracy", "loss")}
    rows: Any = {
        "winner": {**metrics, "parameters": 400.0},
        "random_mean": {**metrics, "parameters": 300.0, "genotypes": 50.0},
        "random_best": {**metrics, "parameters": 350.0, "genotypes": 50.0},
        "largest": {**metrics, "parameters": 1e6, "genotypes": 1.0},
        "retrained": {"test_loss": 0.5, "parameters": 400.0},  # with folds it has seen val
    }
    path = tmp_path / "a.svg"
    data = plots.search_plot(found.trials, found.front, found.best, path, fitness=fitness, controls=rows)
    assert data["controls"] == rows
    texts = "".join(ElementTree.fromstring(path.read_bytes()).itertext()) + path.read_text()
    for words in ("mean of 50 random", "best of 50 random", "off the scale", "winner, set-aside images"):
        assert words in texts, words
    assert "winner trained alone" not in texts


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
    with pytest.raises(ConfigError, match=r"fitness='f1'.*accuracy, loss"):
        plots.search_plot(found.trials, found.front, found.best, tmp_path / "a.svg", fitness="f1")  # type: ignore[arg-type]
    with pytest.raises(SpaceError):
        plots.layer_plot(Genotype({}), space, tmp_path / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"glora\[plot\]"):
        plots.layer_plot(genotype, space, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
