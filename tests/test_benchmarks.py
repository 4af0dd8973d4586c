"""The benchmarks: all import, by public names alone, and their pages are made of the committed results."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from glora.report.result import Result
from language import tiny_causal

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
PAGES = ("conditioning", "defaults", "errors", "fitness", "racing", "workers")  # `supernet_page` has a test of its own


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_they_use_public_names_alone() -> None:
    """Also those that no run reaches."""
    for script in SCRIPTS:
        code = re.sub(r'""".*?"""|"[^"\n]*"|#.*', "", script.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"\w+\._(?!_)\w+|import _\w+", code), script.name


def test_they_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for script in SCRIPTS:
        module: Any = importlib.import_module(script.stem)
        if hasattr(module, "main"):
            monkeypatch.setattr(sys, "argv", [script.name, "--help"])
            with pytest.raises(SystemExit) as end:
                module.main()
            assert end.value.code == 0
            assert f"python benchmarks/{script.name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_from_the_committed_results(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module: Any = importlib.import_module(name)
    committed = module.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--table"])
    module.main()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == committed


def test_the_table_of_steps_is_made_from_the_committed_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module: Any = importlib.import_module("step")
    monkeypatch.setattr(sys, "argv", ["step.py", "--table"])
    module.main()
    assert "| vit_s14 | supernet-matrix |" in capsys.readouterr().out


def test_steps_on_texts_have_a_result_for_each_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    module: Any = importlib.import_module("language_step")
    model = tiny_causal(tmp_path / "tiny")
    options = ["--rows", "2", "--tokens", "12", "--learned", "3", "--rounds", "2", "--no-memory"]
    monkeypatch.setattr(sys, "argv", ["language_step.py", "--model", str(model), *options, "--out", str(tmp_path)])
    module.main()
    found = {result.method: result for result in Result.read_all(sorted(tmp_path.glob("*.json")))}
    assert found.keys() == module.METHODS.keys()
    assert found["lora"].parameters == found["peft-lora"].parameters < found["glora-sample"].parameters
    kept = {method: float(result.metrics["saved_bytes"] or 0) for method, result in found.items()}
    assert 0 < kept["frozen"] < kept["peft-lora"] < kept["peft-lora-full"]  # logits of all positions
    table = module.table(list(found.values())).splitlines()
    assert len(table) == 2 + len(found)


def test_every_cell_of_the_supernets_is_an_experiment() -> None:
    supernet: Any = importlib.import_module("supernet")
    for variant, (method, _) in supernet.VARIANTS.items():
        experiment = supernet.Cell("digits", variant, 1e-3).experiment
        assert experiment.method.name == method
    published = supernet.Cell("digits", "published", 1e-3).experiment.method
    assert (published.variant, published.sampling, published.largest) == ("paper", "batch", 0.0)
    assert supernet.Cell("digits", "lora", 1e-3).experiment.method.rank == supernet.RANK
