"""Searches as a DataFrame of pandas, a row per trial: for plots and statistics of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glora import registry
from glora.errors import RunError
from glora.files import read_jsonl
from glora.searchers.trials import Trial

__all__ = ["journal_frame", "trials_frame"]

COLUMNS = ("number", "generation", "origin", "parent", "parameters", "score", "standard_error", "seconds")


def trials_frame(trials: Iterable[Trial], front: Iterable[Trial]) -> Any:
    """A DataFrame with a row per trial: its number, where it came from, its size and its score.

    `seen` is the share of the examples it was scored on, `front` whether no other beats it in score and size. Of
    GLoRA's genotypes a column per site and support tensor follows, `"blocks.0.attn.qkv.A"`, with the choice; of other
    spaces one column, `genotype`.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    best = {trial.number for trial in front}
    rows = []
    for trial in trials:
        score, error = trial.score
        own = (
            trial.number,
            trial.generation,
            trial.origin,
            trial.parent,
            trial.parameters,
            score,
            error,
            trial.seconds,
        )
        row = dict(zip(COLUMNS, own, strict=True))
        rows.append({**row, "seen": trial.seen, "front": trial.number in best, **_chosen(trial.genotype)})
    return _frame(rows, ("seen", "front"))


def journal_frame(path: str | Path) -> Any:
    """A DataFrame with a row per genotype in a journal, such as the `search.jsonl` of a run, finished or not.

    `genome` is the option of every gene; `examples` of a race on how many examples it was scored, whose mean is its
    score. A genotype without a score was asked for and not scored.

    Raises:
        RunError: There is no journal, or it is damaged.
        MissingExtraError: pandas is not installed.
    """
    path, rows = Path(path), dict[int, dict[str, Any]]()
    if not path.is_file():
        raise RunError(f"There is no journal {path}.", remedy="Search first, or give the search a journal.")
    for record in read_jsonl(path)[1:]:
        try:
            _take(record, rows)
        except (KeyError, TypeError, IndexError) as error:
            raise RunError(f"{path} is damaged: {record}.") from error
    race = any("values" in row for row in rows.values())
    for row in rows.values():
        values = row.pop("values", [])
        if race:
            row["examples"] = len(values)
            row["score"] = sum(values) / len(values) if values else math.nan
    return _frame(list(rows.values()), ("genome", *(["examples"] if race else [])))


def _take(record: Mapping[str, Any], rows: dict[int, dict[str, Any]]) -> None:
    """A line of the journal."""
    number = record["number"]
    if record["event"] == "ask":
        parent = record["parent"]
        genome = list(record["genome"] if "genome" in record else rows[parent]["genome"])
        changed = record.get("changed", ())
        for gene, option in zip(changed[::2], changed[1::2], strict=True):
            genome[gene] = option
        known = {name: record[name] for name in ("number", "generation", "origin", "parent", "parameters")}
        rows[number] = {**known, "score": math.nan, "standard_error": 0.0, "seconds": 0.0, "genome": tuple(genome)}
    elif record["event"] == "score":
        row = rows[number]
        row["seconds"] += record.get("seconds", 0.0)
        if "values" in record:
            row.setdefault("values", []).extend(math.nan if each is None else each for each in record["values"])
        else:
            row["score"] = -math.inf if record["score"] is None else record["score"]
            row["standard_error"] = record["standard_error"]


def _chosen(genotype: Any) -> dict[str, Any]:
    """The columns of a genotype."""
    plain = genotype.to_json() if hasattr(genotype, "to_json") else None
    if not isinstance(plain, Mapping) or not all(isinstance(each, Mapping) for each in plain.values()):
        return {"genotype": genotype}
    return {f"{site}.{tensor}": choice for site, config in plain.items() for tensor, choice in config.items()}


def _frame(rows: Sequence[Mapping[str, Any]], more: Sequence[str]) -> Any:
    pandas = registry.optional_import("pandas", extra="pandas", purpose="A search as a DataFrame")
    found = pandas.DataFrame(list(rows), columns=None if rows else [*COLUMNS, *more])
    return found.astype({"parent": "Int64"})
