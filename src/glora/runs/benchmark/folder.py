"""The folder of a benchmark: what its files are called, which cells are finished, and whose they are.

It holds `benchmark.yaml` (the file), `results/` (a Result for each finished cell), `examples/` (what its model does on
every test example), `failed/` (why a cell has none), `rates.json` (the learning rates chosen, and from what),
`cells/TASK/LABEL/seedK/` (the run folders), and while rates are chosen `rates/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glora.config import Experiment, build_experiment
from glora.errors import GloraError, RunError
from glora.files import write_json, write_text
from glora.report.examples import TESTED
from glora.report.result import Result
from glora.runs.benchmark.settings import Cell
from glora.runs.folder import ANY_TIME, RunFolder
from glora.runs.resolve import resolve
from glora.settings import flat

__all__ = ["BenchmarkFolder"]

MOST = 5  # cells that an error names
RATE = ("train.lr", "search.polish_lr")  # open as long as it is not chosen


class BenchmarkFolder:
    """Names and checks of one benchmark's files; making one writes nothing.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.file = self.path / "benchmark.yaml"
        self.rates = self.path / "rates.json"
        self.tries = self.path / "rates"
        self.results = self.path / "results"
        self.examples = self.path / "examples"
        self.failed = self.path / "failed"

    def run(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.path.joinpath("cells", *cell.place)

    def trial(self, cell: Cell, rate: float) -> Path:
        """The folder of one try of a learning rate."""
        task, label, _ = cell.place
        return self.tries / task / label / f"{rate:g}"

    def result(self, cell: Cell) -> Path:
        """The Result of a cell."""
        return self.results / f"{cell.name}.json"

    def done(self, cell: Cell) -> bool:
        """Whether a cell is finished."""
        return self.result(cell).is_file()

    def write_result(self, cell: Cell, result: Result) -> None:
        """The cell is finished."""
        examples = self.run(cell) / TESTED
        if examples.is_file():
            write_text(self.examples / f"{cell.name}.json", examples.read_text(encoding="utf-8"))
        result.write(self.result(cell))
        (self.failed / f"{cell.name}.json").unlink(missing_ok=True)

    def write_failure(self, cell: Cell, failure: Mapping[str, Any]) -> None:
        """The cell has no result, and why."""
        write_json(self.failed / f"{cell.name}.json", {"cell": str(cell), **failure})

    def check(self, cells: Iterable[Cell]) -> None:
        """Nothing when what is here was made with the settings of these cells, or not begun.

        Raises:
            RunError: A cell has a result, or a begun run, of other settings.
        """
        wrong = [line for cell in cells for line in self._differing(cell)]
        if wrong:
            shown = [*wrong[:MOST], *([f"and {len(wrong) - MOST} more cells"] if len(wrong) > MOST else [])]
            raise RunError(
                "\n  ".join([f"{self.path} holds cells of other settings:", *shown]) + "\n",
                remedy="Choose another --out or name, or delete the results and run folders of these cells.",
            )

    def _differing(self, cell: Cell) -> list[str]:
        """What the cell has been run with, where that is not what is asked for."""
        mine = resolve(cell.experiment)
        if self.done(cell):
            found = _differences(self._read(cell).config, mine, RATE if cell.tuned else ())
            return [f"{cell}: {'; '.join(found)}"] if found else []
        folder = RunFolder(self.run(cell))
        if cell.tuned or not folder.config.is_file():
            return []
        try:
            folder.check(mine)
        except RunError as error:
            return [f"{cell}: {error.cause}"]
        return []

    def _read(self, cell: Cell) -> Result:
        """The result of a finished cell; raises RunError where its file is damaged."""
        try:
            return Result.read(self.result(cell))
        except RunError as error:
            raise RunError(error.cause, allowed=error.allowed, remedy="Delete it: the cell is run again.") from error


def _differences(theirs: Mapping[str, Any], mine: Experiment, ignored: Sequence[str]) -> list[str]:
    """`setting is 3 there, 4 here` for each that decides the numbers."""
    here = flat(mine.to_json())
    try:
        there = flat(build_experiment(theirs).to_json())  # settings that are new since then have their defaults
    except GloraError:  # such as data of another machine
        there = {key: here.get(key) for key in here} | flat(theirs)
    keys = [key for key in {**here, **there} if key not in (*ANY_TIME, *ignored)]
    missing = object()
    return [
        f"{key} is {there.get(key)!r} there, {here.get(key)!r} here"
        for key in keys
        if not _same(there.get(key, missing), here.get(key, missing))
    ]


def _same(there: Any, here: Any) -> bool:
    """Whether two settings are equal; a folder of another machine is the one of its name here."""
    if there == here or not (isinstance(there, str) and isinstance(here, str)):
        return bool(there == here)
    one, other = Path(there), Path(here)
    return one.is_absolute() and other.is_absolute() and one.name == other.name and not one.exists()
