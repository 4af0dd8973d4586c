"""What a search ended with: the winner, how it was chosen, what it was compared with, and that in words (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from glora.errors import GloraError, RunError
from glora.files import read_json, write_json
from glora.report.metrics import MetricInfo, find_metric
from glora.report.records import checked
from glora.version import __version__

__all__ = ["SPLITS", "Outcome", "Row", "digest", "row_title"]

FORMAT = 2
Row = Mapping[str, float | None]
TITLES = {  # name of a row -> what it is
    "winner": "winner",
    "base": "base",
    "random_mean": "mean of {:,.0f} random",
    "random_best": "best of {:,.0f} random",
    "largest": "largest subnet",
    "unpolished": "winner before polishing",
    "before_final": "winner before it was trained on val too",
    "retrained": "winner trained alone",
}
SPLITS = {"test": "test", "aside": "set-aside", "val": "val"}  # from the most to the least honest, as they are called
LEVEL = 2.0  # paired standard errors between "beats" and "does not beat"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Outcome:
    """The winner of a search, and in words how good it is.

    Attributes:
        number: Its trial in the journal.
        genome: Its genome.
        weights: Hash of the supernet whose numbers it plays.
        polish: How these were trained on, or with `from` how it was trained anew; None: not at all.
        parameters: Its trainable numbers, without the head.
        sites: Row of the genotype, such as a site -> its choices, None where nothing is offered, and `numbers`, its
            trainable numbers.
        metrics_info: The metrics of the objective; tables show the first.
        fitness: Name of the metric that the search read on val.
        score: What it read of the winner, higher is better: the metric, or the negative of one that is better when
            lower. None where it was not finite.
        standard_error: Of the score; 0 where the metric has none.
        budget: The most trainable numbers allowed; None: any.
        min_budget: The fewest.
        scored: Genotypes that the search scored.
        eligible: Those of them that keep the budget.
        rescored: How many of the best were scored again on the examples set aside.
        picked: Whether the winner was picked out of the scores of a search for another budget.
        rows: `winner` and every control -> its metrics, named as in `Result.metrics` and `Result.controls`, and
            `parameters` and `genotypes`, of how many it is the mean or the best. `uncalibrated` is there where one of
            winner and control is calibrated and the other is not, so that their losses cannot be compared. Empty as
            long as nothing was compared.
        unit: What an example is, in the plural: `"examples"`, or what the task calls them.
        row: What a row of the genotype is.
        columns: What is chosen in a row -> what it does; empty of GLoRA in records of before, whose are A to E.
        numbers: Row of the genotype -> column -> its trainable numbers; empty in records of before.
    """

    number: int
    genome: tuple[int, ...]
    weights: str
    polish: Mapping[str, Any] | None
    parameters: int
    sites: Mapping[str, Mapping[str, Any]]
    metrics_info: tuple[MetricInfo, ...]
    fitness: str
    score: float | None
    standard_error: float
    budget: int | None
    min_budget: int
    scored: int
    eligible: int
    rescored: int = 0
    picked: bool = False
    rows: Mapping[str, Row] = field(default_factory=dict)
    unit: str = "examples"
    row: str = "site"
    columns: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Which model this is: its adapter, its polish and its result carry the same."""
        return digest(self.genome, self.weights, self.polish)

    @property
    def verdict(self) -> tuple[str, ...]:
        """How good the model is, how it was chosen, how much val flatters it, and whether it beats its controls."""
        lines = (self.your_model, self.how_chosen, self.search_score, self.selection_bias, self.polish_effect)
        return (*filter(None, lines), *self.comparisons)

    @property
    def your_model(self) -> str:
        """The first metric of the winner on the most honest split, in a sentence; empty as long as it has none."""
        row = self.rows.get("winner", {})
        for metric in self.metrics_info[:1]:
            for split in SPLITS:
                if (value := row.get(f"{split}_{metric.name}")) is not None:
                    chose = self._also_chose(split)
                    return f"Your model: {metric.quantity(value)} {metric.name} on {self._examples(row, split)}{chose}."
        return ""

    @property
    def how_chosen(self) -> str:
        """How the winner was chosen, in a sentence."""
        if self.picked:
            how = "the best on val of those that keep the budget; nothing was scored anew"
            return f"Picked from {self.eligible:,} of {self.scored:,} scored genotypes: {how}."
        how = "the best on val won"
        if self.rescored > 1:
            again = f"the best {self.rescored} were scored again"
            how = f"{again}, and the best of them on val and set-aside {self.unit} won"
        elif self.rescored:
            how = f"{how}, and was scored again on set-aside {self.unit}"
        least = f" of at least {self.min_budget:,} numbers" if self.min_budget else ""
        return f"{self.scored:,} genotypes{least} scored; {how}."

    @property
    def search_score(self) -> str:
        """What the search read of the winner on val, in a sentence."""
        if self.score is None:
            return "Its score on val was not finite."
        value = find_metric(self.metrics_info, self.fitness).sign * self.score
        error = f" ± {self.standard_error:.4f}" if self.standard_error else ""
        return f"The winner's {self.fitness} on val, as the search read it: {value:.4f}{error}."

    @property
    def selection_bias(self) -> str:
        """How much better val looks than the examples set aside, in a sentence; empty where nothing was set aside.

        It is told of what was chosen: the winner as it was before polishing, or before it was trained on val too.
        """
        chosen = next((self.rows[name] for name in ("unpolished", "before_final", "winner") if name in self.rows), {})
        differences = self._differences(chosen, "selection_bias_{}")
        return f"Selection bias, val minus set-aside: {', '.join(differences.values())}." if differences else ""

    @property
    def polish_effect(self) -> str:
        """What polishing did to the first metric on val, in a sentence; empty where nothing was polished."""
        if "unpolished" not in self.rows or not self.metrics_info:
            return ""
        metric = self.metrics_info[0]
        before, after = (self.rows[name].get(f"val_{metric.name}") for name in ("unpolished", "winner"))
        name = metric.name[:1].upper() + metric.name[1:]
        was = f"{name} on val before polishing {'not finite' if before is None else metric.quantity(before)}"
        if after is None:
            return f"{was}; polishing has seen the val {self.unit}, so that they tell nothing after it."
        return f"{was}, after it {metric.quantity(after)}."

    @property
    def comparisons(self) -> tuple[str, ...]:
        """A sentence for each control: whether the winner beats it on the examples that chose least.

        Those are test, else set-aside, else val. The winner beats a control when the metric that decides is better by
        two paired standard errors.
        """
        return tuple(filter(None, (self._comparison(name, row) for name, row in self.rows.items() if name != "winner")))

    def _comparison(self, name: str, row: Row) -> str:
        """Whether the winner beats this control; empty where they were not compared."""
        split = next((each for each in SPLITS if self._differences(row, f"{each}_{{}}_ahead")), None)
        if split is None:
            return ""
        size = row["parameters"] or 0
        beyond = f" ({size:,.0f} numbers, above the budget)" if self.budget is not None and size > self.budget else ""
        what = row_title(name, row) + (" genotypes" if name.startswith("random") else "")
        differences = self._differences(row, f"{split}_{{}}_ahead")
        if row.get("uncalibrated") and "loss" in differences:
            differences["loss"] += " (not to be compared: one of them is not calibrated)"
        examples = f"{self._examples(row, split)}{self._also_chose(split)}"
        numbers = ", ".join(differences.values())
        return f"The winner {self._beats(row, split)} the {what}{beyond} on the {examples}: {numbers}."

    def _beats(self, row: Row, split: str) -> str:
        """The verb between winner and control."""
        name = self._decides(row, split)
        gap, error = (row.get(f"{split}_{name}_ahead{end}") for end in ("", "_standard_error"))
        if gap is None or error is None:
            return "cannot be compared with"
        if gap > LEVEL * error:
            return "beats"
        return "does worse than" if gap < -LEVEL * error else "does not beat"

    def _decides(self, row: Row, split: str) -> str:
        """Name of the metric that decides: what the search read, or the loss where that has no paired standard error.

        Where one of the two is not calibrated their losses do not compare: the first other metric decides.
        """
        paired = [m.name for m in self.metrics_info if row.get(f"{split}_{m.name}_ahead_standard_error") is not None]
        if row.get("uncalibrated"):
            return next((name for name in paired if name != "loss"), "")
        return self.fitness if self.fitness in paired else "loss"

    def _differences(self, row: Row, key: str) -> dict[str, str]:
        """Metric -> its difference with its standard error, in words; `key` is the key of one in the row."""
        keys = {key.format(metric.name): metric for metric in self.metrics_info}
        return {
            metric.name: metric.difference(row[name], row.get(f"{name}_standard_error"))
            for name, metric in keys.items()
            if name in row
        }

    def _examples(self, row: Row, split: str) -> str:
        """Such as `"797 test examples"`."""
        return f"{row.get(f'{split}_examples') or 0:,.0f} {SPLITS[split]} {self.unit}"

    def _also_chose(self, split: str) -> str:
        """What to say of examples that had a part in choosing the winner."""
        if split == "aside" and self.rescored > 1:
            return f", which also chose it among the best {self.rescored}"
        return ", which also chose it" if split == "val" else ""

    def to_json(self) -> dict[str, Any]:
        """Plain data: the format version, a key per field, and the verdict."""
        return {"format": FORMAT, **asdict(self), "verdict": list(self.verdict)}

    def write(self, path: Path) -> None:
        """The file holds this outcome, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """The outcome in the file.

        Raises:
            RunError: It cannot be read, or another version wrote it.
        """
        remedy = "Search again: it takes the journal's scores."
        data = read_json(path, remedy=remedy)
        version = data.get("format", 1) if isinstance(data, Mapping) else None
        if version != FORMAT:
            raise RunError(
                f"{path} is no outcome of a known format: format={version!r}.",
                allowed=f"glora {__version__} reads format {FORMAT}.",
                remedy=remedy,
            )
        try:
            found = checked(cls, {k: v for k, v in data.items() if k not in ("format", "verdict")}, "outcome")
            _ = found.verdict  # what it says needs the metrics that it names
        except GloraError as error:
            raise RunError(f"{path}: {error.cause}", remedy=remedy) from error
        return found


def digest(*parts: Any) -> str:
    """A short name for plain data: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def row_title(name: str, row: Row) -> str:
    """What a row is, for a table."""
    return TITLES[name].format(row.get("genotypes") or 0)
