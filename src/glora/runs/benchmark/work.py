"""What a worker does of a benchmark: one cell, or one try of a learning rate; plain data in, plain data out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glora.config import build_experiment
from glora.errors import GloraError
from glora.runs.benchmark.rates import measure
from glora.runs.reporter import Reporter, Silent
from glora.runs.run import Run

__all__ = ["Job", "Work"]

KEY = "A new key of the merged model: "  # of notes that are one a layer


@dataclass(frozen=True, eq=False)
class Job:
    """One call of a worker's function.

    Attributes:
        what: The cell or the try that it is of.
        kind: `cell` or `rate`.
        data: What that needs, plain data.
    """

    what: Any
    kind: str
    data: Mapping[str, Any]

    @property
    def arguments(self) -> tuple[str, Mapping[str, Any]]:
        """What the function is called with."""
        return self.kind, self.data


@dataclass(frozen=True)
class Work:
    """Makes the function that does a job, in this process or in a worker.

    Attributes:
        reporter: Where runs report; None where they are in other processes.
    """

    reporter: Reporter | None = None

    def build(self) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
        """Kind and data -> `{"done": ...}`, or `{"failed": ...}` with what went wrong; no error leaves it."""
        reporter = self.reporter or Silent()
        kinds: dict[str, Callable[..., dict[str, Any]]] = {"cell": _cell, "rate": _rate}

        def do(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
            try:
                return {"done": kinds[kind](data, reporter)}
            except GloraError as error:
                return {"failed": {"error": type(error).__name__, "message": str(error)}}
            except Exception as error:  # of one cell; hours of others go on
                told = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
                return {"failed": told}

        return do


def _rate(data: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    return measure(build_experiment(data["experiment"]), Path(data["folder"]), reporter)


def _cell(data: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """The Result of a cell, from its run folder, in which a killed one goes on."""
    run = Run(build_experiment(data["experiment"]), data["folder"], reporter)
    result = run.fit()
    assert result is not None  # one process
    if not data["keep"]:
        _clean(run.folder.path, kept=run.folder.adapter)
    new = [note for note in result.notes if note.startswith(KEY)]
    notes = [note for note in result.notes if note not in new]
    if new:
        notes.append(f"New keys of the merged model: {len(new)}, such as {new[0].removeprefix(KEY)}")
    named = {"run": data["name"], "title": data["label"], "protocol": data["protocol"]}
    return replace(result, **named, notes=(*data["notes"], *notes)).to_json()


def _clean(folder: Path, *, kept: Path) -> None:
    """Nothing large is left of a finished run but the adapter."""
    for file in folder.rglob("*.safetensors"):
        if file != kept:
            file.unlink()
