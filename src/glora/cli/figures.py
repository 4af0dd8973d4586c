"""`glora plot NAME RUNS`: the paper's figures, of run folders and of Results (no torch but for features)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from glora.errors import RunError, UnknownNameError, did_you_mean, listed
from glora.files import read_json
from glora.report import plots
from glora.report.folders import read_results
from glora.report.outcome import Outcome
from glora.report.plots.figures import figure_file

__all__ = ["draw"]


def draw(name: str, runs: Sequence[str], out: Path, *, limit: int, seed: int) -> None:
    """The figure of this name, in its file; the numbers drawn are beside it as JSON.

    Args:
        name: A key of `FIGURES`.
        runs: Run folders; for few shots also Result files, or folders of either.
        out: The file, `.svg`, `.png` or `.pdf`.
        limit: Most images of a picture of features.
        seed: Of what is drawn at random.

    Raises:
        UnknownNameError: There is no such figure.
        ConfigError: The file's suffix is that of no format.
        RunError: A run lacks what the figure shows.
    """
    if name not in FIGURES:
        raise UnknownNameError(
            f"There is no figure {name!r}.",
            allowed=f"Known: {', '.join(FIGURES)}.",
            remedy=did_you_mean(name, FIGURES),
        )
    if name != "fewshot" and not runs:
        raise RunError(f"The figure {name!r} needs a run.", remedy=f"glora plot {name} RUN --out {out}")
    FIGURES[name](runs, figure_file(out), limit=limit, seed=seed)  # a wrong suffix is told before any work


def _fewshot(runs: Sequence[str], out: Path, **_: Any) -> None:
    plots.fewshot_plot(read_results(runs), out)


def _layers(runs: Sequence[str], out: Path, **_: Any) -> None:
    plots.layers_of_winners(_winners(runs), out)


def _parameters(runs: Sequence[str], out: Path, **_: Any) -> None:
    plots.parameters_of_winners(_winners(runs), out)


def _search(runs: Sequence[str], out: Path, **_: Any) -> None:
    found = {name: _searched(path) for name, path in _named(runs).items()}
    if len(found) > 1:
        plots.fronts_plot({name: data for name, (data, _) in found.items()}, out)
        return
    data, outcome = next(iter(found.values()))
    trials, front, winner = (
        [_trial(each) for each in some] for some in (data["trials"], data["front"], [data["winner"]])
    )
    facts = {"fitness": data["fitness"], "budget": data["budget"], "controls": data["controls"], "unit": outcome.unit}
    plots.search_plot(trials, front, winner[0], out, metrics_info=outcome.metrics_info, **facts)


def _features(runs: Sequence[str], out: Path, *, limit: int, seed: int) -> None:
    from glora.runs.features import placed

    plots.features_plot({name: placed(path, limit=limit, seed=seed) for name, path in _named(runs).items()}, out)


FIGURES: dict[str, Callable[..., None]] = {
    "fewshot": _fewshot,
    "layers": _layers,
    "parameters": _parameters,
    "search": _search,
    "features": _features,
}


def _named(runs: Sequence[str]) -> dict[str, Path]:
    """Label -> run folder: the folder's name, or more of its path where that does not tell them apart."""
    paths = list(dict.fromkeys(Path(run).expanduser().absolute() for run in runs))
    for path in paths:
        _refuse_benchmark(path)
    for depth in range(1, max(len(path.parts) for path in paths)):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(paths):
            return dict(zip(labels, paths, strict=True))
    return {str(path): path for path in paths}


def _refuse_benchmark(path: Path) -> None:
    """Raises RunError where the folder is a benchmark's, or its cells: a figure is of some of the runs in it."""
    cells = path if path.name == "cells" else path / "cells"
    if (cells.parent / "benchmark.yaml").is_file() and cells.is_dir():
        found = [*sorted(cells.glob("*/*/seed*/winner.json")), *sorted(cells.glob("*/*/seed*/result.json"))]
        raise RunError(
            f"{path} holds the runs of a benchmark, and the figure is of some of them.",
            remedy=f"Name run folders in it, such as {found[0].parent if found else cells / 'TASK/LABEL/seed0'}.",
        )


def _winners(runs: Sequence[str]) -> dict[str, Outcome]:
    return {name: _outcome(path) for name, path in _named(runs).items()}


def _outcome(path: Path) -> Outcome:
    if (path / "winner.json").is_file():
        return Outcome.read(path / "winner.json")
    if (path / "result.json").is_file():
        raise RunError(f"{path} is finished without a search: its method has nothing to search.")
    raise RunError(f"{path} has no winner of a search.", remedy=f"Run `glora search {path}` first.")


def _searched(path: Path) -> tuple[Mapping[str, Any], Outcome]:
    """The numbers of a search's picture, and its winner."""
    outcome, file = _outcome(path), path / "plots" / "search.json"
    try:
        data = read_json(file, remedy=f"Run `glora search {path}` again.")
        missing = [key for key in ("trials", "front", "winner", "fitness", "budget", "controls") if key not in data]
        if missing:
            raise ValueError(f"it has no {listed(missing)}")
    except (TypeError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}.", remedy=f"Run `glora search {path}` again.") from error
    return data, outcome


def _trial(record: Mapping[str, Any]) -> Any:
    """A trial of a picture's data as the picture takes it."""
    value = float("nan") if record["score"] is None else record["score"]
    score = SimpleNamespace(value=value, standard_error=record["standard_error"])
    return SimpleNamespace(
        parameters=record["parameters"], generation=record["generation"], seen=record["seen"], score=score
    )
