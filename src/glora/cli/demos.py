"""The demos, one function each: a folder and a reporter in; results, what is said of them, and a table or None out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from glora.runs.demo_language import Answer

__all__ = ["DEMOS"]

DEMOS = {"images": "glora.cli.demos:images", "language": "glora.cli.demos:language"}


def images(folder: Path, reporter: Any, *, quick: bool, seed: int) -> tuple[list[Any], list[str], None]:
    """Linear probe, LoRA and GLoRA on digits."""
    from glora.runs.demo import QUICKLY, run_demo, verdict

    results = run_demo(folder, reporter, quick=quick, seed=seed)
    return results, [QUICKLY if quick else verdict(results), f"Pictures: {folder / 'glora' / 'plots'}"], None


def language(folder: Path, reporter: Any, *, quick: bool, seed: int) -> tuple[list[Any], list[str], Table]:
    """The base, LoRA and GLoRA on what words mean, and some answers."""
    from glora.runs.demo import QUICKLY
    from glora.runs.demo_language import run_demo, verdict

    results, answers = run_demo(folder, reporter, quick=quick, seed=seed)
    told = [QUICKLY if quick else verdict(results, folder), f"Talk with it: glora chat {folder / 'glora'}"]
    return results, told, _table(answers)


def _table(answers: Sequence[Answer]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Words that it was not tuned on", caption="WordNet's answer is one of many.", show_lines=True)
    for column in ("question", "base", "GLoRA", "WordNet"):
        table.add_column(column, overflow="fold")
    for each in answers:
        table.add_row(*map(Text, (each.question, each.before, each.after, each.right)))
    return table
