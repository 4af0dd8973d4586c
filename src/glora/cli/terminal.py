"""What the command line prints of runs: results, winners, comparisons. All heavy imports wait until they are needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

__all__ = ["print_evaluation", "print_results", "reporting", "search_or_pick", "search_settings", "show"]


@contextmanager
def reporting() -> Iterator[Any]:
    """A reporter on stderr for the time of a command."""
    logging.getLogger("glora").addHandler(logging.NullHandler())
    from glora.runs.console import ConsoleReporter

    with ConsoleReporter() as reporter:
        yield reporter


def print_results(*results: Any, as_json: bool) -> None:
    """One table of the results, or JSON; of a single search also what its winner was compared with."""
    from rich.console import Console

    from glora.report.tables import rich_table

    if as_json:
        plain = [result.to_json() for result in results]
        typer.echo(json.dumps(plain if len(plain) > 1 else plain[0]))
        return
    console = Console()
    console.print(rich_table(results))
    if len(results) == 1 and results[0].controls:
        _print_comparison(console, results[0])


def _print_comparison(console: Any, found: Any) -> None:
    """The winner and its controls, of a result or an outcome, as a table and in words."""
    from glora.report.tables import comparison_table

    console.print()
    console.print(comparison_table(found.rows, found.metrics_info))
    for line in found.verdict:
        console.print(line, markup=False, highlight=False)


def print_evaluation(found: Any, data: Path, *, as_json: bool) -> None:
    """The accuracy on other images."""
    if as_json:
        typer.echo(json.dumps(found.metrics("other")))
        return
    error = 100 * found.accuracy_standard_error
    typer.echo(f"accuracy {100 * found.accuracy:.1f} ± {error:.1f} % on the {len(found.losses):,} images of {data}")


def search_settings(options: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the search that options and `--set` change, without the group's name.

    Raises:
        ConfigError: An override is none, or of another group.
    """
    from glora.errors import ConfigError
    from glora.settings import parse_value

    found = dict(options)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.startswith("search."):
            raise ConfigError(
                f"{override!r} is no setting of the search.",
                remedy="Give search.NAME=VALUE; everything else was settled when the run was trained.",
            )
        found[key] = parse_value(text)
    return {key.removeprefix("search."): value for key, value in found.items()}


def search_or_pick(run: Path, changes: Mapping[str, Any], reporter: Any) -> Any:
    """Searches a run, or picks from a finished search when the budget is another; then the rest is for the picked."""
    from glora.runs.folder import RunFolder
    from glora.runs.run import Run

    folder = RunFolder(run)
    experiment = folder.experiment()
    wanted = experiment.with_(search={**experiment.search.model_dump(), **changes}).search
    own = experiment.search
    another = (wanted.budget, wanted.min_budget) != (own.budget, own.min_budget)
    if folder.done("searched") is not None and another:
        rest = {name: value for name, value in changes.items() if name not in ("budget", "min_budget")}
        return Run.open(run, reporter, search=rest).pick(budget=wanted.budget, min_budget=wanted.min_budget)
    return Run.open(run, reporter, search=dict(changes)).search()


def show(run: Path, *, as_json: bool) -> None:
    """The winner site by site, what it was compared with, and that in words.

    Raises:
        RunError: The run has no finished search.
    """
    from rich.console import Console

    from glora.report.outcome import Outcome
    from glora.report.tables import winner_table
    from glora.runs.folder import RunFolder

    folder = RunFolder(run)
    folder.experiment()  # tells when there is no run
    folder.need(folder.winner, f"glora search {run}")
    folder.key()  # tells when a stop has left two winners
    outcome = Outcome.read(folder.winner)
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))
        return
    console = Console()
    console.print(winner_table(outcome))
    if outcome.rows:
        _print_comparison(console, outcome)
    else:
        for line in outcome.verdict:
            console.print(line, markup=False, highlight=False)
