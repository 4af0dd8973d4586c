"""Worker processes: as many as you like, the same search; what one of them loses another does again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glora.errors import ConfigError, RunError, UnknownNameError
from glora.files import read_jsonl
from glora.genotype import Genotype
from glora.searchers import Racing, SearchResult, search, workers
from glora.searchers.jobs import Job
from suites.scores import EXAMPLES, SPACE, PromptTrouble, Trouble, score, values
from suites.searcher_suite import SOURCE, TESTS, PromptSpace, plain

SETTINGS = {"population": 6, "generations": 2, "parents": 3}


def run(score: Any = score, **options: Any) -> SearchResult:
    return search(score, SPACE, **{"settings": SETTINGS, "budget": 400} | options)


def lines(journal: Path) -> set[str]:
    """What a journal says, in no order and without times."""
    records = [{key: value for key, value in line.items() if key != "seconds"} for line in read_jsonl(journal)]
    found = {json.dumps(record) for record in records}
    assert len(found) == len(records), "every line is said once"
    return found


@pytest.fixture
def alone(tmp_path: Path) -> tuple[Any, set[str]]:
    """What this process finds, and its journal."""
    journal = tmp_path / "alone.jsonl"
    return plain(run(journal=journal)), lines(journal)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_any_number_of_workers_makes_the_same_search(tmp_path: Path, alone: Any, number: int) -> None:
    journal = tmp_path / "search.jsonl"
    assert plain(run(workers=number, journal=journal)) == alone[0]
    assert lines(journal) == alone[1]


def test_a_race_with_workers_is_the_same_race(tmp_path: Path) -> None:
    racing = Racing(EXAMPLES, first=10, level=0.01)
    one, two = (tmp_path / f"{number}.jsonl" for number in (0, 2))
    assert plain(run(values, racing=racing, journal=one)) == plain(run(values, racing=racing, journal=two, workers=2))
    assert lines(one) == lines(two)


@pytest.mark.parametrize("what", ["kill", "hang", "stop"])
def test_a_worker_that_dies_or_hangs_loses_nothing_but_time(
    tmp_path: Path, alone: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = tmp_path / "search.jsonl"
    trouble = Trouble(tmp_path, what, times=2)
    assert plain(run(trouble, workers=2, limit=600 if what == "kill" else 6, journal=journal)) == alone[0]
    assert lines(journal) == alone[1]
    assert caplog.text.count("A worker was lost") >= 2
    assert len(list(tmp_path.glob("pid-*"))) >= 3


def test_a_killed_search_goes_on_with_another_number_of_workers_and_leaves_none_behind(
    tmp_path: Path, alone: Any
) -> None:
    journal = tmp_path / "search.jsonl"
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, signal, sys\n"
        "from glora.searchers import search\n"
        "from suites.scores import SPACE, Trouble\n"
        "def kill(trial, left=[int(sys.argv[2])]):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    folder = pathlib.Path(sys.argv[1])\n"
        f"    search(Trouble(folder, pause=0.05), SPACE, settings={SETTINGS}, budget=400, workers=int(sys.argv[3]),\n"
        "           journal=folder / 'search.jsonl', on_trial=kill)\n"
    )
    paths = os.pathsep.join([str(TESTS), str(SOURCE)])
    for trials, number in ((2, 2), (9, 3), (14, 1)):
        words = [sys.executable, str(script), str(tmp_path), str(trials), str(number)]
        ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": paths}, check=False)
        assert ended.returncode == -signal.SIGKILL
    assert plain(run(workers=2, journal=journal)) == alone[0]
    assert lines(journal) == alone[1]
    wait = time.monotonic() + 30
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    while any(map(_lives, pids)) and time.monotonic() < wait:
        time.sleep(0.1)
    assert len(pids) >= 4
    assert not any(map(_lives, pids))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_score_that_fails_ends_the_search_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)failed in a worker.*ValueError: this genotype cannot be scored"):
        run(Trouble(tmp_path, "raise", times=1), workers=2)
    with pytest.raises(RunError, match="ValueError: no weights here"):
        run("suites.scores:cannot_build", workers=2)


def test_a_genotype_that_ends_every_worker_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOSSES", 2)
    with pytest.raises(RunError, match=r"2 workers were lost over one job.*ended with code -9"):
        run(Trouble(tmp_path, "kill", times=99), workers=1)


def test_a_script_without_the_line_that_workers_need_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from glora.searchers import workers\nworkers.LOSSES = 2\n"
        "from glora.searchers import search\nfrom suites.scores import SPACE, score\n"
        "search(score, SPACE, workers=1)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(SOURCE)])}
    ended = subprocess.run([sys.executable, str(script)], env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "2 workers were lost before one was ready" in ended.stderr
    assert "if __name__ == '__main__':" in ended.stderr


class Crowded(workers.WorkerPool):
    """Room for one worker, which does a job in the time of two deadlines; the others wait for a place."""

    class Worker(workers.Worker):
        def __init__(self, waiting: bool) -> None:
            self.waiting, self.said = waiting, workers.Message("ready")

        def send(self, arguments: tuple[Any, ...]) -> None:
            self.said = workers.Message("done", *arguments)

        def stop(self) -> None:
            raise AssertionError("nobody is lost here")

    def start(self) -> workers.Worker:
        return self.Worker(waiting=bool(self.starting))

    def listen(self, those: Sequence[workers.Worker], seconds: float) -> list[tuple[workers.Worker, workers.Message]]:
        time.sleep(2 * self.limit)
        return [(each, each.said) for each in those if isinstance(each, self.Worker) and not each.waiting]


def test_workers_without_a_place_yet_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    jobs = [Job(number, Genotype({})) for number in range(2 * workers.LOSSES)]
    found = [job for job, *_ in Crowded(lambda: score, size=3, limit=0.001).run(iter(jobs))]
    assert found == jobs
    assert "waits for a free CPU" in caplog.text and "was lost" not in caplog.text


def test_genotypes_of_another_space_need_not_be_hashable(tmp_path: Path) -> None:
    space = PromptSpace(4)
    alone, shared = (
        search(PromptTrouble(tmp_path, times=times), space, settings=SETTINGS, workers=2 * times) for times in (0, 1)
    )
    assert plain(alone) == plain(shared)
    assert (tmp_path / "kill-0").exists()


class Unsendable(PromptSpace):
    def decode(self, genome: tuple[int, ...]) -> Any:
        return lambda: genome


def test_a_genotype_that_cannot_be_sent_to_a_worker_is_told() -> None:
    with pytest.raises(ConfigError, match=r"genotype cannot be sent to a worker.*space\.decode"):
        search(score, Unsendable(2), settings=SETTINGS, workers=1)


def test_a_builder_makes_the_score_function_in_every_worker() -> None:
    class Built:
        build = staticmethod(lambda: score)

    assert plain(run("suites.scores:build")) == plain(run("suites.scores:build", workers=2)) == plain(run(Built()))


def test_a_score_function_that_no_other_process_can_find_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"cannot be sent to a worker.*top of a module.*'module:function'"):
        run(lambda genotype: 0.5, workers=2)


@pytest.mark.parametrize("options", [{"workers": -1}, {"workers": 2, "limit": 0}, {"cluster": "ray"}])
def test_wrong_numbers_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="workers at least 0, on a cluster at least 1"):
        run(**options)


def test_an_unknown_cluster_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no cluster 'slurm'.*ray"):
        run(workers=2, cluster="slurm")


def test_a_finished_search_starts_no_worker(tmp_path: Path) -> None:
    journal = tmp_path / "search.jsonl"
    found = plain(run(journal=journal))
    assert plain(run(Trouble(tmp_path, "kill", times=99), workers=2, journal=journal)) == found
    assert not list(tmp_path.glob("pid-*"))
