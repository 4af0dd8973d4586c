"""The main job on packaged weights and real packaged images: linear probe, LoRA and the searched GLoRA, one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glora.config import Experiment, build_experiment
from glora.report.result import Result
from glora.runs.run import Reporter, Run
from glora.space import BoundSpace, Choice, Site, count_parameters

__all__ = ["QUICKLY", "demo_experiment", "lora_rank", "run_demo", "verdict", "winner_and_lora"]

DEMO: dict[str, Any] = {
    "model": {"name": "dinov2_vits14", "image_size": 56},
    "data": {"source": "digits", "train": 400, "val": 200},
    "train": {"epochs": 20, "batch_size": 32},
    "search": {"budget": "0.5M"},
}
QUICKLY = "These were a few steps: they show that everything works, and nothing of which method is better."
QUICK: dict[str, Any] = {
    **DEMO,
    "data": {"source": "digits", "train": 64, "val": 40, "test": 100},
    "train": {"epochs": 1, "batch_size": 32},
    "search": {
        "searcher": {"population": 4, "generations": 1, "parents": 2, "mutations": 2, "crossovers": 2},
        "budget": "0.5M",
    },
}


def demo_experiment(*, quick: bool = False, seed: int = 0) -> Experiment:
    """The demo's GLoRA experiment; `quick` only shows that everything works."""
    return build_experiment({**(QUICK if quick else DEMO), "seed": seed})


def run_demo(folder: str | Path, reporter: Reporter, *, quick: bool = False, seed: int = 0) -> list[Result]:
    """Linear probe, LoRA at the budget of GLoRA's winner, and GLoRA: same images, image-steps and batches.

    LoRA's rank is the smallest whose numbers are not below the winner's. It is trained at its own learning rate, and at
    one that it has chosen within the same image-steps.

    Args:
        folder: Gets a run folder per method; finished ones are not done again.
        reporter: Where to tell what is going on.
        quick: A few steps and candidates only.
        seed: Of everything random.

    Returns:
        Their results, in the table's order.
    """
    folder = Path(folder)
    glora = demo_experiment(quick=quick, seed=seed)
    _, winner, lora = winner_and_lora(glora, folder, reporter)
    reporter.say("LoRA, its learning rate chosen on val")
    train = {**glora.train.model_dump(), "lr": "auto"}
    chosen = Run(glora.with_(method=lora.config["method"], train=train), folder / "lora-auto", reporter).fit()
    reporter.say("Linear probe")
    linear = Run(glora.with_(method="linear"), folder / "linear", reporter).fit()
    assert linear is not None and chosen is not None
    return [linear, lora, chosen, winner]


def winner_and_lora(glora: Experiment, folder: Path, reporter: Reporter) -> tuple[Run, Result, Result]:
    """The run of GLoRA, its result, and that of LoRA at the budget of its winner.

    Args:
        glora: GLoRA's experiment.
        folder: Gets the run folders `glora` and `lora`.
        reporter: Where to tell what is going on.
    """
    reporter.say("GLoRA: train the supernet, search on val, test once")
    run = Run(glora, folder / "glora", reporter)
    winner = run.fit()
    space = run.tuned.space
    assert winner is not None and isinstance(space, BoundSpace)  # one process
    rank = lora_rank(winner.parameters, tuple(space.sites.values()))
    reporter.say(f"LoRA, rank {rank}: the smallest with at least the winner's numbers")
    lora = Run(glora.with_(method={"name": "lora", "rank": rank}), folder / "lora", reporter).fit()
    assert lora is not None
    return run, winner, lora


def lora_rank(parameters: int, sites: Sequence[Site]) -> int:
    """The smallest rank of LoRA on these sites with at least so many trainable numbers; 1 at least."""
    one = sum(count_parameters(site, "B", Choice("lora", 1), "elementwise") for site in sites)
    return max(1, math.ceil(parameters / one))


def verdict(results: Sequence[Result]) -> str:
    """In words, whether the last result's test accuracy beats each of the others'."""
    *others, mine = results
    lines = []
    for other in others:
        gap = 100 * ((mine.metrics["test_accuracy"] or 0) - (other.metrics["test_accuracy"] or 0))
        errors = [result.metrics["test_accuracy_standard_error"] or 0 for result in (mine, other)]
        word = "beats" if gap > 0 else "does not beat"
        lines.append(
            f"{mine.method} {word} {_called(other)} on test: {gap:+.1f} points "
            f"(standard error of the difference at most {100 * math.hypot(*errors):.1f})."
        )
    return "\n".join(lines)


def _called(result: Result) -> str:
    """The method, and whether it has chosen its learning rate."""
    chosen = result.config.get("train", {}).get("lr") == "auto"
    return f"{result.method} at an automatic rate" if chosen else result.method
