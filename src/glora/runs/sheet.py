"""What single genotypes do image by image, kept in a file, and what follows from two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from glora.files import append_jsonl, read_jsonl
from glora.tasks.evaluation import Evaluation

__all__ = ["Genome", "Sheet", "Splits", "ahead", "curse", "joined", "mean"]

Genome = tuple[int, ...]
Splits = Mapping[str, Evaluation]  # "val", "aside", "test"


def joined(parts: Iterable[Evaluation]) -> Evaluation:
    """One model's evaluation on several sets of images together."""
    every = list(parts)
    return Evaluation(torch.cat([each.losses for each in every]), torch.cat([each.right for each in every]))


def mean(several: Sequence[Evaluation]) -> Evaluation:
    """The mean over models, image by image."""
    losses = torch.stack([each.losses for each in several]).double().mean(0)
    return Evaluation(losses, torch.stack([each.right for each in several]).double().mean(0))


def ahead(winner: Evaluation, control: Evaluation, split: str) -> dict[str, float | None]:
    """How much better the winner is than a control on the same images, with paired standard errors.

    Both differences are positive where the winner is better: `{split}_accuracy_ahead`, `{split}_loss_ahead`.
    """
    found: dict[str, float | None] = {}
    for name, difference in (
        ("accuracy", winner.right.double() - control.right.double()),
        ("loss", control.losses.double() - winner.losses.double()),
    ):
        error = difference.std().item() / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
        found |= {f"{split}_{name}_ahead": difference.mean().item(), f"{split}_{name}_ahead_standard_error": error}
    return found


def curse(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """The winner's curse: how much better val looks than the images set aside, which did not find the winner.

    Empty where nothing was set aside; the standard error is that of a difference between two sets of images.
    """
    found: dict[str, float | None] = {}
    for name, sign in (("accuracy", 1), ("loss", -1)):
        val, aside = metrics.get(f"val_{name}"), metrics.get(f"aside_{name}")
        if val is None or aside is None:
            continue
        errors = [metrics.get(f"{split}_{name}_standard_error") or 0.0 for split in ("val", "aside")]
        found |= {f"curse_{name}": sign * (val - aside), f"curse_{name}_standard_error": math.hypot(*errors)}
    return found


class Sheet:
    """The evaluations of genotypes on each split: every genotype is measured once, a kill loses at most one.

    Args:
        path: An append-only file with a line per genotype.
        header: What they depend on, plain data; a file with another header is begun anew.
        measure: Genome -> its evaluation on each split.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], measure: Callable[[Genome], Splits]) -> None:
        self.path = path
        self.header = dict(header)
        self.measure = measure
        records = read_jsonl(path)
        mine = records[1:] if records[:1] == [self.header] else []
        self._found = {tuple(record["genome"]): _read(record) for record in mine}

    def __contains__(self, genome: object) -> bool:
        return genome in self._found

    def __call__(self, genome: Genome) -> Splits:
        """The genotype's evaluation on each split, from the file or made now."""
        if genome in self._found:
            return self._found[genome]
        if not self._found:
            self.path.unlink(missing_ok=True)
            append_jsonl(self.path, self.header)
        start = time.perf_counter()
        found = self._found[genome] = dict(self.measure(genome))
        record = {"genome": list(genome), "seconds": round(time.perf_counter() - start, 6)}
        append_jsonl(self.path, record | {name: _written(part) for name, part in found.items()})
        return found


def _written(found: Evaluation) -> dict[str, Any]:
    losses = [float(f"{loss:.9g}") for loss in found.losses.tolist()]  # nine digits give a float32 back
    return {"losses": losses, "right": "".join(map(str, found.right.int().tolist()))}


def _read(record: Mapping[str, Any]) -> dict[str, Evaluation]:
    found = {}
    for split in (name for name in record if name not in ("genome", "seconds")):
        losses = [math.nan if loss is None else loss for loss in record[split]["losses"]]  # JSON has no NaN
        right = [digit == "1" for digit in record[split]["right"]]
        found[split] = Evaluation(torch.tensor(losses), torch.tensor(right))
    return found
