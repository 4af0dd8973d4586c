"""What a search ended with: the winner, how it was chosen, what it was compared with, and that in words (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from glora.errors import RunError
from glora.files import write_json

__all__ = ["SPLITS", "Outcome", "Row", "bane", "before_after", "digest", "row_title", "verdict"]

Row = Mapping[str, float | None]
TITLES = {  # name of a row -> what it is
    "winner": "winner",
    "random_mean": "mean of {:,.0f} random",
    "random_best": "best of {:,.0f} random",
    "largest": "largest subnet",
    "unpolished": "winner before polishing",
    "retrained": "winner trained alone",
}
SPLITS = {"test": "test", "aside": "set-aside", "val": "val"}  # from the most to the least honest
LEVEL = 2.0  # paired standard errors between "beats" and "does not beat"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The winner of a search.

    Attributes:
        number: Its trial in the journal. genome: Its genome. parameters: Its trainable numbers, without the head.
        weights: Hash of the supernet whose numbers it plays. polish: How these were trained on; None: not at all.
        sites: Site -> its choices `A` to `E`, None where nothing is offered, and `numbers`, its trainable numbers.
        fitness: What the search read on val. score, standard_error: What it read of the winner; higher is better.
        budget, min_budget: What the winner keeps.
        scored: Genotypes that the search scored. eligible: Those of them that keep the budget.
        rescored: How many of the best were scored again on the images set aside.
        picked: Whether the winner was picked out of the scores of a search for another budget.
        rows: `winner` and every control -> its metrics; empty as long as nothing was compared.
    """

    number: int
    genome: tuple[int, ...]
    weights: str
    polish: Mapping[str, Any] | None
    parameters: int
    sites: Mapping[str, Mapping[str, Any]]
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

    @property
    def key(self) -> str:
        """Which model this is: its adapter, its polish and its result carry the same."""
        return digest(self.genome, self.weights, self.polish)

    @property
    def choice(self) -> str:
        """How the winner was chosen, in a sentence."""
        if self.picked:
            how = "the best on val of those that keep the budget; nothing was scored anew"
            return f"Picked from {self.eligible:,} of {self.scored:,} scored genotypes: {how}."
        if self.rescored:
            how = f"the best {self.rescored} were scored again, and the best of them on val and set-aside images won"
        else:
            how = "the best on val won"
        least = f" of at least {self.min_budget:,} numbers" if self.min_budget else ""
        return f"{self.scored:,} genotypes{least} scored; {how}."

    @property
    def told(self) -> str:
        """What the search read of the winner on val, in a sentence."""
        if self.score is None:
            return "Its score on val was not finite."
        value = self.score if self.fitness == "accuracy" else -self.score
        return f"The winner's {self.fitness} on val, as the search read it: {value:.4f} ± {self.standard_error:.4f}."

    @property
    def verdict(self) -> tuple[str, ...]:
        """How the winner was chosen, how much val flatters it, and whether it beats its controls, in words."""
        compared = verdict(self.rows, fitness=self.fitness, budget=self.budget, rescored=self.rescored)
        chosen = self.rows.get("unpolished", self.rows.get("winner", {}))
        return (self.choice, self.told, *filter(None, [bane(chosen), before_after(self.rows)]), *compared)

    def to_json(self) -> dict[str, Any]:
        """Plain data, a key per field, and the verdict."""
        return {**asdict(self), "verdict": list(self.verdict)}

    def write(self, path: Path) -> None:
        """The file holds this outcome, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """The outcome in the file.

        Raises:
            RunError: It cannot be read.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {item.name: data[item.name] for item in fields(cls)}
            return cls(**known | {"genome": tuple(known["genome"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = "Search again: it takes the journal's scores."
            raise RunError(f"{path} cannot be read: {error}.", remedy=remedy) from error


def digest(*parts: Any) -> str:
    """A short name for plain data: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def row_title(name: str, row: Row) -> str:
    """What a row is, for a table."""
    return TITLES[name].format(row.get("genotypes") or 0)


def verdict(rows: Mapping[str, Row], *, fitness: str, budget: int | None, rescored: int) -> list[str]:
    """In words, whether the winner beats each control, on the images that chose least: test, set-aside, else val.

    The winner beats a control when the search's own measure is better by two paired standard errors; the accuracy
    where only one of them is calibrated.
    """
    lines = []
    for name, row in rows.items():
        split = next((split for split in SPLITS if f"{split}_loss_ahead" in row), None)
        if name == "winner" or split is None:
            continue
        measure = "accuracy" if row.get("by_accuracy") else fitness
        gap, error = (row[f"{split}_{measure}_ahead{end}"] for end in ("", "_standard_error"))
        word = _word(gap, error)
        points, points_error = (100 * (row[f"{split}_accuracy_ahead{end}"] or 0) for end in ("", "_standard_error"))
        loss, loss_error = (row[f"{split}_loss_ahead{end}"] or 0 for end in ("", "_standard_error"))
        numbers = f"accuracy {points:+.1f} ± {points_error:.1f} points, loss {-loss:+.3f} ± {loss_error:.3f}"
        numbers += " (not to be compared: one of them is not calibrated)" if row.get("by_accuracy") else ""
        size = row["parameters"] or 0
        beyond = f" ({size:,.0f} numbers, above the budget)" if budget is not None and size > budget else ""
        images = f"{row[f'{split}_images']:,.0f} {SPLITS[split]} images"
        flattered = ", which also chose it" if split == "val" else ""
        if split == "aside" and rescored > 1:
            flattered = f", which also chose it among the best {rescored}"
        what = row_title(name, row) + (" genotypes" if name.startswith("random") else "")
        lines.append(f"The winner {word} the {what}{beyond} on the {images}{flattered}: {numbers}.")
    return lines


def bane(row: Row) -> str:
    """The winner's curse in a sentence; empty where nothing was set aside."""
    if row.get("curse_accuracy") is None or row.get("curse_loss") is None:
        return ""
    points, points_error = (100 * (row[f"curse_accuracy{end}"] or 0) for end in ("", "_standard_error"))
    loss, loss_error = (row[f"curse_loss{end}"] or 0 for end in ("", "_standard_error"))
    return (
        f"Winner's curse, val minus set-aside: accuracy {points:+.1f} ± {points_error:.1f} points, "
        f"loss {-loss:+.3f} ± {loss_error:.3f}."
    )


def before_after(rows: Mapping[str, Row]) -> str:
    """What polishing did on val, in a sentence; empty where nothing was polished."""
    if "unpolished" not in rows:
        return ""
    before, after = (row.get("val_accuracy") for row in (rows["unpolished"], rows["winner"]))
    was = f"Accuracy on val before polishing {100 * (before or 0):.1f} %"
    if after is None:
        return f"{was}; polishing has seen the val images, so that they tell nothing after it."
    return f"{was}, after it {100 * after:.1f} %."


def _word(gap: float | None, error: float | None) -> str:
    if gap is None or error is None:
        return "cannot be compared with"
    if gap > LEVEL * error:
        return "beats"
    return "does worse than" if gap < -LEVEL * error else "does not beat"
