"""Linked processes. As a program it is one of them: `linked.py RANK SIZE FOLDER WHAT`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from glora.searchers import link as link_module
from glora.searchers import search
from glora.searchers.link import Link, end_process
from glora.searchers.ranks import RankPool, dismiss, serve
from suites.searcher_suite import PromptSpace, plain, prompt_score


def start(size: int, folder: Path, what: str) -> list[subprocess.Popen[str]]:
    """The processes."""
    script = [sys.executable, __file__]
    return [
        subprocess.Popen(
            [*script, str(rank), str(size), str(folder), what],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def linked(rank: int, size: int, folder: Path) -> Link:
    """This process's link, by a file in the folder."""
    file = folder / "link.json"

    def share(value: Any) -> Any:
        if value is not None:
            port, token = value
            (folder / "link.tmp").write_text(json.dumps([port, token.hex()]))
            (folder / "link.tmp").replace(file)
            return value
        while not file.is_file():
            time.sleep(0.01)
        port, token = json.loads(file.read_text())
        return port, bytes.fromhex(token)

    return Link(rank, size, host="127.0.0.1", share=share, ending=end_process)


def score(genotype: Any) -> float:
    """That of the toy; leaves a note of which process was asked."""
    (Path(sys.argv[3]) / f"scored-{sys.argv[1]}").touch()
    time.sleep(30 if sys.argv[4] == "slow" else 0.005)
    return prompt_score(genotype)


OPTIONS: dict[str, Any] = {"settings": {"population": 6, "generations": 3, "parents": 3}, "seed": 4}


def searched(link: Link, folder: Path) -> None:
    """Searches with all processes, or helps."""
    if link.rank:
        serve(link, lambda: score)
        return
    found = search(RankPool(score, link, 30), PromptSpace(4), **OPTIONS, journal=folder / "search.jsonl")
    (folder / "found.json").write_text(json.dumps(plain(found)))
    dismiss(link)


def main(rank: int, size: int, folder: Path, what: str) -> None:
    link_module.SILENT, link_module.GRACE, link_module.NOTICE = 3, 1.0, 2.0
    link = linked(rank, size, folder)
    with link.telling():
        (folder / f"ready-{rank}").touch()
        if what in ("search", "slow"):
            searched(link, folder)
        elif what == "error" and rank == 1:
            time.sleep(0.5)
            raise ValueError("something of its own")
        elif what == "collective" and rank == 0:  # whose operation fails because the other is gone
            while not (folder / "gone").exists():
                time.sleep(0.05)
            raise RuntimeError("Connection closed by peer")
        elif what == "done" and rank == 1:
            pass
        else:
            time.sleep(3 if what == "done" else 60)
    link.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
