"""Searches as DataFrames: a row per trial, with what the journal has of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

import glora
from glora.errors import RunError
from glora.searchers.frame import journal_frame

pytest.importorskip("pandas")
SPACE = glora.SearchSpace(ranks=(4, 2)).bind(
    {"a": glora.Site("linear", 6, 5, True), "b": glora.Site("linear", 4, 6, False)}
)
SETTINGS = {"population": 6, "generations": 2}


def score(genotype: glora.Genotype) -> glora.Score:
    rng = random.Random(str(genotype.to_json()))
    return glora.Score(rng.random(), 0.1)


def test_a_result_is_a_row_per_trial(tmp_path: Path) -> None:
    result = glora.search(score, SPACE, settings=SETTINGS, journal=tmp_path / "s.jsonl")
    found = result.to_pandas()
    assert found["number"].tolist() == [trial.number for trial in result.trials]
    assert found["score"].tolist() == [trial.score.value for trial in result.trials]
    assert found.loc[found["score"].idxmax(), "number"] == result.best.number
    assert set(found.loc[found["front"], "number"]) == {trial.number for trial in result.front}
    for trial, row in zip(result.trials, found.to_dict("records"), strict=True):
        assert row["b.B"] == str(trial.genotype["b"].B) and row["a.D"] == str(trial.genotype["a"].D)


def test_the_journal_says_the_same(tmp_path: Path) -> None:
    result = glora.search(score, SPACE, settings=SETTINGS, journal=tmp_path / "s.jsonl")
    found, other = journal_frame(tmp_path / "s.jsonl"), result.to_pandas()
    for column in ("number", "generation", "origin", "parent", "parameters", "score", "standard_error"):
        assert found[column].equals(other[column])
    assert found["genome"].tolist() == [trial.genome for trial in result.trials]


def test_a_race_has_the_mean_of_what_was_seen(tmp_path: Path) -> None:
    def values(genotype: glora.Genotype, indices: list[int]) -> list[float]:
        return [random.Random(f"{genotype.to_json()} {index}").random() for index in indices]

    racing = glora.Racing(examples=40, first=10)
    result = glora.search(values, SPACE, settings=SETTINGS, journal=tmp_path / "s.jsonl", racing=racing)
    found = journal_frame(tmp_path / "s.jsonl")
    assert found["score"].tolist() == pytest.approx([trial.score.value for trial in result.trials])
    assert (found["examples"] / 40).tolist() == [trial.seen for trial in result.trials]


def test_a_finished_fit_gives_its_search(tmp_path: Path) -> None:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = list(zip(x, (x[:, 0] > 0).long().tolist(), strict=True))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    given = {"epochs": 1, "generations": 1, "population": 4, "progress": False}
    result = glora.fit(model, train=data, out=tmp_path / "run", **given)
    assert result.winner is not None
    found = result.to_pandas()
    assert len(found) == result.winner.scored and result.winner.number in found["number"].tolist()
    lora = glora.fit(model, train=data, out=tmp_path / "lora", method="lora", epochs=1, progress=False)
    with pytest.raises(RunError, match=r"There is no journal"):
        lora.to_pandas()
