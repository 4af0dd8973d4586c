"""The paper's figures of finished runs and of Results: what is drawn is what the records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from glora.cli.app import app
from glora.cli.figures import FIGURES, draw
from glora.errors import ConfigError, RunError, UnknownNameError
from glora.genotype import TENSORS
from glora.report.outcome import Outcome
from glora.report.plots import Placed, features_plot, fewshot_plot, layers_of_winners, parameters_of_winners
from glora.report.plots.colours import COLOURS, look
from glora.report.published import FEWSHOT, SHOTS
from glora.runs.features import features, placed, test_examples
from glora.runs.loaded import load_run
from glora.runs.reporter import Silent
from glora.runs.run import Run
from glora.tasks.data.paper_sets import FEW_SHOT
from suites.results import made
from suites.toy import image_folder, tiny

pytestmark = pytest.mark.figures


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs on one folder of images: two searches and a linear probe."""
    root = tmp_path_factory.mktemp("runs")
    photos = image_folder(root / "photos")
    changes: dict[str, dict[str, Any]] = {"one": {"seed": 0}, "two": {"seed": 1}, "linear": {"method": "linear"}}
    for name, change in changes.items():
        Run(tiny(photos, **change), root / name, Silent()).fit()
    return {name: root / name for name in changes}


def drawn(path: Path) -> Any:
    """The numbers beside a figure, which is there."""
    ElementTree.parse(path)
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_no_two_series_look_alike_and_no_two_classes() -> None:
    assert len({look(place) for place in range(64)}) == 64
    assert len(set(COLOURS)) == len(COLOURS) == 8


def test_few_shot_curves_are_those_of_the_table(tmp_path: Path) -> None:
    cells = [
        made("GLoRA", task, 0.5 + seed / 50, seed=seed, config={"data": {"shots": shots}})
        for task in [each.name for each in FEW_SHOT]
        for shots in (1, 4)
        for seed in (0, 1)
    ]
    fewshot_plot(cells, tmp_path / "few.svg")
    panels = drawn(tmp_path / "few.svg")["panels"]
    assert len(panels) == len([each.name for each in FEW_SHOT]) + 1
    for curves in panels.values():
        assert set(curves) == {"GLoRA", *(f"{row.name}, printed" for row in FEWSHOT)}
        assert {shots: round(point["accuracy"], 6) for shots, point in curves["GLoRA"].items()} == {"1": 51, "4": 51}
        assert curves["GLoRA"]["1"]["spread"] == pytest.approx(2**0.5)
    assert list(panels["mean"]["NOAH, printed"]) == [str(shots) for shots in SHOTS]


def test_a_curve_with_a_hole_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    cells = [made("SSF", "food101", 0.5, config={"data": {"shots": shots}}) for shots in (1, 16)]
    fewshot_plot(cells, tmp_path / "few.svg")
    panels = drawn(tmp_path / "few.svg")["panels"]
    assert list(panels["Food101"]["SSF"]) == ["1", "16"]
    assert all("SSF" not in curves for name, curves in panels.items() if name != "Food101")


def test_parameters_of_winners_are_those_of_their_sites(runs: dict[str, Path], tmp_path: Path) -> None:
    draw("parameters", [str(runs["one"]), str(runs["two"])], tmp_path / "p.svg", limit=9, seed=0)
    counts = drawn(tmp_path / "p.svg")["winners"]
    for name in ("one", "two"):
        outcome = Outcome.read(runs[name] / "winner.json")
        assert set(counts[name]) == {"qkv", "fc1"}
        assert sum(counts[name].values()) == outcome.parameters
        assert counts[name]["qkv"] == outcome.sites["blocks.0.attn.qkv"]["numbers"]


def test_layers_of_winners_count_their_choices(runs: dict[str, Path], tmp_path: Path) -> None:
    draw("layers", [str(runs["one"]), str(runs["two"])], tmp_path / "l.svg", limit=9, seed=0)
    sites = drawn(tmp_path / "l.svg")["sites"]
    outcomes = [Outcome.read(runs[name] / "winner.json") for name in ("one", "two")]
    assert set(sites) == set(outcomes[0].sites)
    for site, genes in sites.items():
        assert list(genes) == list(TENSORS)
        for gene, counts in genes.items():
            assert sum(counts.values()) == 2
            told = [outcome.sites[site][gene] or "not offered" for outcome in outcomes]
            assert all(counts[choice] == told.count(choice) for choice in told)


def test_parameters_of_one_winner_are_told_by_support_tensor(runs: dict[str, Path], tmp_path: Path) -> None:
    draw("parameters", [str(runs["one"])], tmp_path / "p.svg", limit=9, seed=0)
    found, own = drawn(tmp_path / "p.svg"), drawn(runs["one"] / "plots" / "parameters.svg")["layer_types"]
    assert found["layer_types"] == {kind: {k: n[k] for k in TENSORS} for kind, n in own.items()}
    assert {kind: sum(n.values()) for kind, n in found["layer_types"].items()} == found["winners"]["one"]


def test_figures_of_winners_take_genes_and_choices_of_any_method(tmp_path: Path) -> None:
    sites = {f"blocks.{k}": {"prompts": str(10 * k), "lora": "5", "numbers": 100 * k} for k in range(3)}
    outcome = Outcome(
        number=0, genome=(0,), weights="", polish=None, parameters=300, sites=sites, metrics_info=(), fitness="loss",
        score=0.0, standard_error=0.0, budget=None, min_budget=0, scored=1, eligible=1,
    )  # fmt: skip
    layers_of_winners({"noah": outcome}, tmp_path / "l.svg")
    assert drawn(tmp_path / "l.svg")["sites"]["blocks.2"] == {"prompts": {"20": 1}, "lora": {"5": 1}}
    parameters_of_winners({"noah": outcome}, tmp_path / "p.svg")
    assert drawn(tmp_path / "p.svg")["winners"] == {"noah": {"blocks": 300}}


def test_a_search_is_drawn_again_as_its_run_has_drawn_it(runs: dict[str, Path], tmp_path: Path) -> None:
    draw("search", [str(runs["one"])], tmp_path / "s.svg", limit=9, seed=0)
    assert drawn(tmp_path / "s.svg") == drawn(runs["one"] / "plots" / "search.svg")
    draw("search", [str(runs["one"]), str(runs["two"])], tmp_path / "both.svg", limit=9, seed=0)
    searches = drawn(tmp_path / "both.svg")["searches"]
    assert {name: found["winner"] for name, found in searches.items()} == {
        name: drawn(runs[name] / "plots" / "search.svg")["winner"] for name in ("one", "two")
    }


def test_features_are_what_the_head_is_given(runs: dict[str, Path]) -> None:
    for name in ("one", "linear"):
        run = load_run(runs[name])
        examples = test_examples(run)
        found = features(run, examples, [3, 0, 5])
        head = run.model.get_submodule(run.info["head"][-1])
        assert isinstance(head, nn.Linear) and found.shape == (3, head.in_features)
        with torch.no_grad():
            logits = run.model(examples.batch([3, 0, 5]).inputs)
            torch.testing.assert_close(head(found), logits)
    assert not head._forward_pre_hooks


def test_points_are_the_same_with_the_same_seed_and_labels_those_of_the_examples(runs: dict[str, Path]) -> None:
    one, again = (placed(runs["linear"], limit=6, seed=3) for _ in range(2))
    assert one == again
    assert len(one.points) == len(one.labels) == 6 and set(one.labels) <= {"dark", "light"} == set(one.classes)
    assert placed(runs["linear"], limit=6, seed=4).points != one.points
    whole = placed(runs["linear"], limit=10_000, seed=0)
    assert len(whole.points) == len(test_examples(load_run(runs["linear"])))
    assert whole.note.startswith("test accuracy ")
    with pytest.raises(ConfigError, match="2 images are too few"):
        placed(runs["linear"], limit=2, seed=0)


def test_a_picture_of_features_has_a_panel_for_each_run_and_the_most_frequent_classes(tmp_path: Path) -> None:
    classes = [str(k) for k in range(20)]
    labels = [name for k, name in enumerate(classes) for _ in range(k + 1)]
    points = [(float(k), float(-k)) for k in range(len(labels))]
    features_plot({"a": Placed(points, labels, classes), "b": Placed(points, labels, classes)}, tmp_path / "f.svg")
    models = drawn(tmp_path / "f.svg")["models"]
    assert list(models) == ["a", "b"]
    assert {name: len(found) for name, found in models["a"].items()} == {name: int(name) + 1 for name in classes}
    assert "16 most frequent of 20 classes" in (tmp_path / "f.svg").read_text(encoding="utf-8")


def test_the_command_draws_and_names_its_file(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "features.svg"
    words = ["plot", "features", str(runs["one"]), str(runs["linear"]), "--out", str(out), "--limit", "6"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0 and told.stdout.strip() == str(out)
    assert set(drawn(out)["models"]) == {"one", "linear"}


@pytest.mark.parametrize("name", list(FIGURES))
def test_what_a_run_lacks_is_named(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"holds no|has no winner"):
        draw(name, [str(tmp_path / "empty")], tmp_path / "x.svg", limit=9, seed=0)
    if name in ("layers", "parameters", "search"):
        with pytest.raises(RunError, match="its method has nothing to search"):
            draw(name, [str(runs["linear"])], tmp_path / "x.svg", limit=9, seed=0)
    if name != "fewshot":
        with pytest.raises(RunError, match="needs a run"):
            draw(name, [], tmp_path / "x.svg", limit=9, seed=0)


@pytest.mark.parametrize("name", ["layers", "parameters", "search", "features"])
def test_of_a_benchmark_the_runs_in_it_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "benchmark.yaml").touch()
    (folder := tmp_path / "cells" / "digits" / "GLoRA" / "seed0").mkdir(parents=True)
    (tmp_path / "cells" / "digits" / "LoRA" / "seed0").mkdir(parents=True)
    (folder / "winner.json").touch()
    for path in (tmp_path, tmp_path / "cells"):
        with pytest.raises(RunError, match=f"holds the runs of a benchmark.*such as {folder}"):
            draw(name, [str(path)], tmp_path / "a.svg", limit=10, seed=0)


def test_an_unknown_figure_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no figure .layer..*layers"):
        draw("layer", ["run"], tmp_path / "x.svg", limit=9, seed=0)


def test_a_wrong_suffix_is_told_before_a_run_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'.gif' is no figure format"):
        draw("features", ["nowhere"], tmp_path / "x.gif", limit=9, seed=0)


def test_runs_of_one_name_are_told_apart_by_their_folders(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "run").mkdir(parents=True)
        text = (runs["one"] / "winner.json").read_text(encoding="utf-8")
        (tmp_path / folder / "run" / "winner.json").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    draw("layers", ["a/run", "b/run", "a/run"], tmp_path / "l.svg", limit=9, seed=0)
    assert drawn(tmp_path / "l.svg")["winners"] == ["a/run", "b/run"]
