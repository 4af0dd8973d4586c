"""Short runs that glora 0.1 recorded in `data/replay.json` are made again: the same choices, the same numbers.

Genomes, sizes and accuracies are equal; losses and scores agree to 1e-5, since other processors and versions of torch
round otherwise. Where the record was made, all of it is equal bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glora.files import read_jsonl
from glora.runs.run import Run
from suites.toy import Recorder, image_folder, tiny

RECORD = json.loads((Path(__file__).parent / "data" / "replay.json").read_text())
THEN: dict[str, Any] = {"name": "glora", "variant": "lean", "scaling": "fan_in"}  # the defaults of then
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"method": THEN, "data": {"val": 40}},
    "folds": {"method": THEN, "data": {"folds": 2, "val": 40}, "search": {"racing": True, "polish": 1}},
    "pace": {"method": THEN, "train": {"pace": "full"}, "search": {"control": "retrain"}},
    "lora": {"method": {"name": "lora", "rank": 2}},
    "linear": {"method": "linear"},
}
EXACT = ("_accuracy", "_examples", "parameters", "genotypes", "uncalibrated")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the record."""
    return image_folder(tmp_path_factory.mktemp("replay") / "photos", per_class=40, classes=("dark", "grey", "light"))


def close(value: Any) -> Any:
    """The recorded value, to be compared as closely as processors agree."""
    if isinstance(value, list):
        return [close(each) for each in value]
    return value if value is None else pytest.approx(value, rel=1e-5, abs=1e-7)


def row(recorded: dict[str, Any]) -> dict[str, Any]:
    """The recorded row, to be compared; a difference of two losses is as uncertain as they are."""
    found = {}
    for name, value in recorded.items():
        if name.endswith(EXACT):
            found[name] = value if value is None else pytest.approx(value, rel=1e-8, abs=0)
        elif "_ahead" in name or name.startswith("selection_bias"):
            found[name] = value if value is None else pytest.approx(value, rel=1e-5, abs=1e-5)
        else:
            found[name] = close(value)
    return found


@pytest.mark.parametrize("case", RECORD)
def test_a_recorded_run_comes_out_the_same(photos: Path, tmp_path: Path, case: str) -> None:
    recorded = RECORD[case]
    run = Run(tiny(photos, **SETTINGS[case]), tmp_path / case, Recorder())
    result = run.fit()
    assert result is not None
    epochs = [record["loss"] for record in read_jsonl(run.folder.metrics) if record["stage"] == "train"]
    assert epochs == close(recorded["losses"]), "the training"
    lines = read_jsonl(run.folder.journal)
    asks = [line.get("genome", line.get("changed")) for line in lines if line["event"] == "ask"]
    assert asks == recorded["asks"], "what the search asks for"
    scores = [line.get("score", line.get("values")) for line in lines if line["event"] == "score"]
    assert scores == close(recorded["scores"])
    assert result.parameters == recorded["parameters"]
    assert result.metrics == row(recorded["metrics"])
    assert result.controls.keys() == recorded["controls"].keys()
    for name, control in recorded["controls"].items():
        assert result.controls[name] == row(control), name
