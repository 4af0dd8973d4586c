"""Which learning rate and product a user gets: every cell trained alike, compared on val; test is never read.

    python benchmarks/defaults.py            # run the cells that results/defaults lacks
    python benchmarks/defaults.py --table    # docs/defaults.md from results/defaults

Task and image-steps are the demo's. GLoRA's figure is the mean over 16 random subnets of the trained supernet, drawn
with their own seed; its `largest` is the subnet with every support tensor at its largest.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

from glora.demo import demo_experiment
from glora.experiment import Run
from glora.progress import ConsoleReporter
from glora.results import Result
from glora.train import evaluate

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "defaults"
PAGE = ROOT / "docs" / "defaults.md"
SUBNETS = 16
CELLS = [
    ("glora", "elementwise", 1e-3),
    ("lora", "", 3e-3),
    ("linear", "", 1e-2),
    ("glora", "matrix", 1e-3),
    ("glora", "elementwise", 3e-3),
    ("lora", "", 1e-2),
    ("linear", "", 3e-2),
    ("linear", "", 1e-1),
    ("glora", "elementwise", 3e-4),
    ("lora", "", 1e-3),
    ("linear", "", 3e-3),
    ("glora", "matrix", 3e-3),
]


def measure(method: str, product: str, lr: float) -> Result:
    """Trains one cell and evaluates it on val."""
    demo = demo_experiment()
    settings = {"method": method, "train": {**demo.train.model_dump(), "lr": lr}}
    if product:
        settings["space"] = {**demo.space.model_dump(), "product": product}
    experiment = demo.with_(**settings)
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


def page(results: list[Result]) -> str:
    """The Markdown page of the committed results."""
    rows = []
    for result in sorted(results, key=lambda r: (r.method, r.config["space"]["product"], r.config["train"]["lr"])):
        product = result.config["space"]["product"] if result.method == "glora" else ""
        spread, largest = result.metrics.get("spread_accuracy"), result.metrics.get("largest_accuracy")
        accuracy = f"{100 * (result.metrics['val_accuracy'] or 0):.1f}"
        rows.append(
            f"| {result.method} | {product} | {result.config['train']['lr']:g} "
            f"| {accuracy}{'' if spread is None else f' (sd {100 * spread:.1f})'} "
            f"| {result.metrics['val_loss']:.3f} | {'' if largest is None else f'{100 * largest:.1f}'} |"
        )
    intro = (__doc__ or "").split("\n\n")[2]
    return "\n".join(
        [
            "# Why these defaults",
            "",
            "Made by `python benchmarks/defaults.py --table` from `results/defaults/`; do not edit.",
            "",
            intro.strip(),
            "",
            "| method | product | lr | val accuracy, % | val loss | largest subnet, % |",
            "|---|---|---:|---:|---:|---:|",
            *rows,
            "",
            "One seed, 200 images. Every method's learning rate is the best of its rows. The products differ by less",
            "than the subnets of one supernet do: the reading of the published code, elementwise, stays the default.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/defaults.md and stop")
    if parser.parse_args().table:
        PAGE.write_text(page(Result.read_all(sorted(FOLDER.glob("*.json")))), encoding="utf-8")
        return
    for method, product, lr in CELLS:
        path = FOLDER / f"{method}{'-' if product else ''}{product}-{lr:g}.json"
        if not path.is_file():
            measure(method, product, lr).write(path)


if __name__ == "__main__":
    main()
