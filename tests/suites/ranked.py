"""Whole runs by several processes. As a program it is one of them: `ranked.py CASE FOLDER`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from suites.toy import Recorder, free_port, tiny


def launch(
    size: int, case: str, folder: Path, *, file: str | Path = __file__, **env: str
) -> list[subprocess.Popen[str]]:
    """The processes of a program, as torchrun starts them."""
    return started(size, [str(file), case, str(folder)], **env)


def started(size: int, words: list[str], **env: str) -> list[subprocess.Popen[str]]:
    """The processes of any command of Python's."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    port = free_port()
    every = [environment(size, rank, port) | env for rank in range(size)]
    return [subprocess.Popen([sys.executable, *words], env=own, **pipes) for own in every]


def environment(size: int, rank: int, port: int) -> dict[str, str]:
    """A launcher's variables; of one process none."""
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    if size == 1:
        return own
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return own | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def ended(processes: list[subprocess.Popen[str]], timeout: float = 150) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    try:
        texts = [process.communicate(timeout=timeout)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def done(size: int, case: str, folder: Path, **env: str) -> None:
    """The processes, to a good end."""
    found = ended(launch(size, case, folder, **env))
    assert [code for code, _ in found] == [0] * size, [text for _, text in found]


CASES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "sharded": {"train": {"base": "sharded"}},
    "killed": {},  # the main process, after the second epoch
    "long": {"train": {"epochs": 3000}},
    "error": {"train": {"epochs": 3000}},  # in the second process, of its own
}


def run(case: str, folder: Path) -> None:
    """The run in `folder/CASE`, of the images in `folder/photos`."""
    from glora.runs.run import Run

    class Told(Recorder):
        def training(self, progress: Any) -> None:
            super().training(progress)
            os.close(os.open(folder / f"trains-{os.environ.get('RANK', '0')}", os.O_CREAT))

    told = Told(kill_step=8 if case == "killed" else None)
    written: list[str] = []
    sys.addaudithook(lambda event, given: written.extend(changed(event, given, folder)))
    settings = tiny(folder / "photos", **CASES[case])
    made = Run(settings, folder / os.environ.get("OUT", case), told)
    if case == "error" and made.link.rank == 1:
        fail_later(made)
    made.fit()
    facts = {"lines": told.lines, "written": list(written)}
    (folder / f"{case}-{made.link.rank}.json").write_text(json.dumps(facts))


def changed(event: str, given: tuple[Any, ...], folder: Path) -> list[str]:
    """What the process does to files in the folder, of an audit event."""
    changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
    changes |= event == "open" and bool(set(str(given[1] or "")) & set("wax+"))
    return [f"{event} {given[0]}"] if changes and str(given[0]).startswith(str(folder)) else []


def texts(folder: Path) -> None:
    """The run in `folder/OUT` on the language model and the rows in the folder, its blocks checkpointed."""
    from glora.runs.run import Run
    from test_language_runs import experiment

    train = {"epochs": 2, "batch_size": 8, "base": os.environ["BASE"]}
    model = {"name": str(folder / "base"), "activation_checkpointing": True}
    Run(
        experiment(folder / "base", folder / "data.jsonl", train=train, model=model),
        folder / os.environ["OUT"],
        Recorder(),
    ).fit()


def search(folder: Path) -> None:
    """Searches the trained supernet in `folder/OUT`; leaves how many scores this process has made."""
    from glora.runs.run import Run
    from glora.runs.scoring import ValScorer

    scored, score = [], ValScorer.__call__

    def counted(*args: Any) -> Any:
        scored.append(args)
        if found.link.rank == 0:
            time.sleep(0.5)  # so that the other one, which begins later, has something left to do
        return score(*args)

    ValScorer.__call__ = counted  # type: ignore[method-assign]
    found = Run.open(folder / os.environ["OUT"], Recorder())
    found.search()
    (folder / f"scored-{found.link.rank}").write_text(str(len(scored)))


def fail_later(run: Any) -> None:
    """An error in the model of this process, once the training is under way."""
    start, forward = time.monotonic(), run.tuned.model.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        if time.monotonic() - start > 2:
            raise ValueError("something of its own")
        return forward(*args, **kwargs)

    run.tuned.model.forward = failing


if __name__ == "__main__":
    if sys.argv[1] in ("search", "texts"):
        {"search": search, "texts": texts}[sys.argv[1]](Path(sys.argv[2]))
    else:
        run(sys.argv[1], Path(sys.argv[2]))
