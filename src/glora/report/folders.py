"""The Results that paths lead to: of a run, of one file, or of a folder of either (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from glora.errors import RunError
from glora.report.examples import ByExample, beside
from glora.report.result import Result

__all__ = ["read_results", "read_tested"]


def read_results(paths: Iterable[str | Path]) -> list[Result]:
    """Every result that the paths lead to, a file once.

    Args:
        paths: Run folders, Result files, folders of Result files, of run folders, or of a benchmark, whose `results/`
            has one for each cell.

    Raises:
        RunError: A path leads to none, or a file is no result.
    """
    return [Result.read(file) for file in _every(paths)]


def read_tested(paths: Iterable[str | Path]) -> list[tuple[Result, ByExample | None]]:
    """As `read_results`, each with what its model does on every test example, where that is kept.

    Raises:
        RunError: A path leads to no result, or a file is none.
    """
    found = [(Result.read(file), file) for file in _every(paths)]
    return [(result, beside(result, file)) for result, file in found]


def _every(paths: Iterable[str | Path]) -> list[Path]:
    """The files of results that the paths lead to, each once."""
    files = {file.absolute(): file for path in paths for file in _files(Path(path).expanduser())}
    return list(files.values())


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path  # reading it tells when it is not there
        return
    if (path / "result.json").is_file():
        yield path / "result.json"
        return
    inside = path / "results" if (path / "results").is_dir() else path
    found = [*sorted(inside.glob("*.json")), *sorted(inside.glob("*/result.json"))]
    if not found:
        raise RunError(
            f"{path} holds no result.",
            allowed="A run folder with a result.json, a result file, or a folder of either.",
            remedy=f"Finish the run: glora eval {path}",
        )
    yield from found
