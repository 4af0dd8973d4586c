"""Which learning rate, product and sampling a user gets: every cell on the same images; test is never read.

    python benchmarks/defaults.py            # run the cells that results/defaults lacks
    python benchmarks/defaults.py --table    # docs/defaults.md from results/defaults

Task and image-steps are the demo's; one seed, the 200 images of val. GLoRA's figure is the mean over 16 random subnets
of the trained supernet, drawn with their own seed, sd the spread between them; its `largest` is the subnet with every
support tensor at its largest. `sampling: batch, largest: 0, scaling: none` trains as published. Seconds were measured
beside other load.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from glora.demo import demo_experiment
from glora.experiment import Run
from glora.progress import ConsoleReporter
from glora.results import Result
from glora.train import evaluate

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "defaults"
PAGE = ROOT / "docs" / "defaults.md"
SUBNETS = 16
PUBLISHED = {"train": {"sampling": "batch", "largest": 0.0}, "space": {"scaling": "none"}}
CELLS: dict[str, tuple[str, float, dict[str, dict[str, Any]]]] = {  # name -> method, learning rate, other settings
    "glora": ("glora", 3e-3, {}),
    "glora-low": ("glora", 1e-3, {}),
    "glora-high": ("glora", 1e-2, {}),
    "glora-matrix": ("glora", 3e-3, {"space": {"product": "matrix"}}),
    "glora-batch": ("glora", 3e-3, {"train": {"sampling": "batch"}}),
    "glora-no-largest": ("glora", 3e-3, {"train": {"largest": 0.0}}),
    "glora-published": ("glora", 1e-3, PUBLISHED),
    **{f"lora-{lr:g}": ("lora", lr, {}) for lr in (1e-3, 3e-3, 1e-2)},
    **{f"linear-{lr:g}": ("linear", lr, {}) for lr in (3e-3, 1e-2, 3e-2, 1e-1)},
}


def measure(method: str, lr: float, changes: dict[str, dict[str, Any]]) -> Result:
    """Trains one cell and evaluates it on val."""
    plain = demo_experiment().model_dump()
    settings = {group: {**plain[group], **changes.get(group, {})} for group in ("train", "space")}
    settings["train"]["lr"] = lr
    experiment = demo_experiment().with_(method=method, **settings)
    with tempfile.TemporaryDirectory() as folder, ConsoleReporter() as reporter:
        run = Run(experiment, folder, reporter)
        run.train()
        size = {"accelerator": run.accelerator, "batch_size": experiment.search.batch_size}
        metrics: dict[str, float | None] = {}
        if run.searches:
            adapted, found = run.adapter.adapted, []
            rng = random.Random("defaults")
            for _ in range(SUBNETS):
                with adapted.hold(adapted.sample(rng)) as model:
                    found.append(evaluate(model, run.task.val, **size))
            with adapted.hold(adapted.space.largest) as model:
                metrics["largest_accuracy"] = evaluate(model, run.task.val, **size).accuracy
            metrics["spread_accuracy"] = statistics.stdev(each.accuracy for each in found)
        else:
            found = [evaluate(run.tuned.model, run.task.val, **size)]
        metrics["val_accuracy"] = statistics.fmean(each.accuracy for each in found)
        metrics["val_loss"] = statistics.fmean(each.loss for each in found)
        return Result.stamped(
            method=method,
            task=run.task.name,
            model=experiment.model.name,
            seed=experiment.seed,
            config=experiment.model_dump(mode="json"),
            parameters=run.tuned.count(),
            metrics=metrics,
            seconds=run.folder.seconds(),
        )


def page(results: dict[str, Result]) -> str:
    """The Markdown page of the committed results."""
    rows = []
    for name in CELLS:
        if (result := results.get(name)) is None:
            continue
        spread, largest = result.metrics.get("spread_accuracy"), result.metrics.get("largest_accuracy")
        accuracy = f"{100 * (result.metrics['val_accuracy'] or 0):.1f}"
        told = ", ".join(f"{key}: {value}" for group in CELLS[name][2].values() for key, value in group.items())
        rows.append(
            f"| {result.method} | {told} | {result.config['train']['lr']:g} "
            f"| {accuracy}{'' if spread is None else f' (sd {100 * spread:.1f})'} "
            f"| {result.metrics['val_loss']:.3f} | {'' if largest is None else f'{100 * largest:.1f}'} "
            f"| {result.seconds['train']:.0f} |"
        )
    intro = (__doc__ or "").split("\n\n")[2]
    return "\n".join(
        [
            "# Why these defaults",
            "",
            "Made by `python benchmarks/defaults.py --table` from `results/defaults/`; do not edit.",
            "",
            *intro.strip().splitlines(),
            "",
            "| method | not the default | lr | val accuracy, % | val loss | largest subnet, % | train, s |",
            "|---|---|---:|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/defaults.md and stop")
    if parser.parse_args().table:
        PAGE.write_text(page({path.stem: Result.read(path) for path in FOLDER.glob("*.json")}), encoding="utf-8")
        return
    for name, cell in CELLS.items():
        path = FOLDER / f"{name}.json"
        if not path.is_file():
            measure(*cell).write(path)


if __name__ == "__main__":
    main()
