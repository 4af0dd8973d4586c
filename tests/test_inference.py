"""Table 3's measurement, on a tiny transformer: one Result a method, read by the table."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from glora.backbones import Backbone, load_backbone
from glora.methods import METHODS
from glora.report.paper.inference import inference
from glora.report.result import Result

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("inference")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("test_vit", num_classes=5, image_size=32, pretrained=False)


def test_every_method_has_a_label(script: Any) -> None:
    known = {name for name, _ in script.CELLS.values()}
    assert set(METHODS) - {"biases", "hira", "pft"} <= known  # merged, at the cost of full tuning


def test_flops_are_those_of_the_products(script: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(12, 7), torch.nn.GELU(), torch.nn.Linear(7, 3))
    assert script.flops(model, torch.zeros(1, 12)) == 2 * (12 * 7 + 7 * 3)


def test_merged_methods_cost_what_the_plain_network_costs(script: Any, backbone: Backbone, tmp_path: Path) -> None:
    results: list[Result] = script.measure(backbone, ["linear", "bitfit", "lora", "glora"], rounds=2)
    assert [result.title for result in results] == [
        script.get_method(*script.CELLS[label]).title for label in ("linear", "bitfit", "lora", "glora")
    ]
    for result in results:
        latency = result.latency or {}
        assert latency["flops"] == latency["backbone_flops"] > 1e6
        for size in (1, 4, 16):
            key = f"images_per_second_{size}"
            assert 0 < latency[f"{key}_low"] <= latency[key] <= latency[f"{key}_high"]
        result.write(tmp_path / f"{result.run}.json")
    assert results[0].parameters == 0 and results[2].parameters > results[1].parameters > 0
    (sheet,) = inference(Result.read_all(sorted(tmp_path.glob("*.json"))))
    ours = [line for line in sheet.lines if not line.printed]
    assert len(ours) == 4 and all(line.cells["added_gflops"].value == 0 for line in ours)


def test_a_method_that_has_no_place_in_the_model_is_left_out_and_told(
    script: Any, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(script.CELLS, "lora", ("lora", {"targets": "nothing"}))
    results = script.measure(backbone, ["lora", "linear"], rounds=2)
    assert [result.run for result in results] == ["linear"]
    assert "lora: left out." in capsys.readouterr().err


def test_the_command_writes_one_file_a_method(script: Any, tmp_path: Path) -> None:
    words = ["--model", "test_vit", "--image-size", "32", "--methods", "linear", "lora", "--rounds", "2"]
    script.main([*words, "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.json", "lora.json"]
