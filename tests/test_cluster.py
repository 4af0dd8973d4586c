"""Workers on a real Ray cluster of this machine; skipped only where Ray is not installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glora.errors import RunError
from suites.scores import Trouble, score
from suites.searcher_suite import SOURCE, TESTS
from suites.toy import image_folder
from test_bench import GLORA, LORA, Told, benchmark, numbers, written
from test_bench import run as bench
from test_workers import lines, plain, run

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        paths = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(TESTS), str(SOURCE)])}}
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    yield
    ray.shutdown()


@pytest.fixture
def alone(tmp_path: Path) -> tuple[Any, set[str]]:
    """What this process finds, and its journal."""
    journal = tmp_path / "alone.jsonl"
    return plain(run(journal=journal)), lines(journal)


@pytest.mark.slow
def test_ray_workers_make_the_same_search_and_lose_nothing_when_one_dies(
    tmp_path: Path, alone: Any, caplog: pytest.LogCaptureFixture
) -> None:
    journal = tmp_path / "search.jsonl"
    trouble = Trouble(tmp_path, "kill", times=1)
    assert plain(run(trouble, workers=2, cluster="ray", journal=journal)) == alone[0]
    assert lines(journal) == alone[1]
    assert caplog.text.count("A worker was lost") == 1


@pytest.mark.slow
def test_a_ray_worker_that_hangs_is_replaced(tmp_path: Path, alone: Any) -> None:
    trouble = Trouble(tmp_path, "hang", times=1)
    assert plain(run(trouble, workers=1, cluster="ray", limit=20)) == alone[0]


@pytest.mark.slow
def test_a_score_that_fails_on_ray_ends_the_search(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="this genotype cannot be scored"):
        run(Trouble(tmp_path, "raise", times=1), workers=1, cluster="ray")
    with pytest.raises(RunError, match="no weights here"):
        run("suites.scores:cannot_build", workers=1, cluster="ray")


def test_a_search_does_not_end_a_cluster_that_it_has_not_started() -> None:
    run(score, workers=1, cluster="ray")
    assert ray.is_initialized()


@pytest.mark.slow
def test_cells_of_a_benchmark_on_ray_are_those_of_this_process(tmp_path: Path) -> None:
    rows = [{"label": "LoRA", "method": LORA}, {"label": "GLoRA", "method": GLORA, "train": {"lr": 1e-3}}]
    data = benchmark(image_folder(tmp_path / "photos"), methods=rows, rates={"grid": [1e-3, 1e-2], "epochs": 1})
    file = written(tmp_path, data)
    bench(file, tmp_path / "alone")
    found = bench(file, tmp_path / "ray", view := Told(), workers=2, cluster="ray")
    assert not view.failures
    assert len(found.results) == 2
    assert numbers(tmp_path / "ray" / "results") == numbers(tmp_path / "alone" / "results")
