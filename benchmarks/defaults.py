"""Which learning rate LoRA and the linear probe get: every cell on the same images; test is never read.

    python benchmarks/defaults.py            # run the cells that results/defaults lacks
    python benchmarks/defaults.py --table    # docs/background/learning-rates.md from results/defaults

Task and number of image-steps are the demo's, with one seed and the 200 images of val. The seconds were measured while
the machine had other work. GLoRA's learning rates, on three other tasks, are in supernet-measured.md beside this page.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from glora.report.result import Result
from glora.runs.console import ConsoleReporter
from glora.runs.demo import demo_experiment
from glora.runs.run import Run

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "defaults"
PAGE = ROOT / "docs" / "background" / "learning-rates.md"
CELLS = {  # name -> method, learning rate
    **{f"lora-{lr:g}": ("lora", lr) for lr in (1e-3, 3e-3, 1e-2)},
    **{f"linear-{lr:g}": ("linear", lr) for lr in (3e-3, 1e-2, 3e-2, 1e-1)},
}


def measure(method: str, lr: float) -> Result:
    """Trains one cell and evaluates it on val."""
    plain = demo_experiment()
    experiment = plain.with_(method=method, train={**plain.train.model_dump(), "lr": lr})
    with tempfile.TemporaryDirectory() as folder, ConsoleReporter() as reporter:
        run = Run(experiment, folder, reporter)
        run.train()
        found = run.session.evaluate(run.tuned.model, run.task.val)
        return Result.stamped(
            method=method,
            task=run.task.name,
            model=experiment.model.name,
            seed=experiment.seed,
            config=run.experiment.to_json(),
            parameters=run.tuned.count(),
            metrics={f"val_{name}": found.value(name) for name in ("accuracy", "loss")},
            seconds=run.folder.seconds(),
        )


def page(results: dict[str, Result]) -> str:
    """The Markdown page of the committed results."""
    rows = [
        f"| {result.method} | {result.config['train']['lr']:g} | {100 * (result.metrics['val_accuracy'] or 0):.1f} "
        f"| {result.metrics['val_loss']:.3f} | {result.seconds['train']:.0f} |"
        for result in (results[name] for name in CELLS if name in results)
    ]
    link = "[the supernet's table](supernet-measured.md#learning-rates)"
    intro = (__doc__ or "").split("\n\n")[2].replace("supernet-measured.md beside this page", link)
    return "\n".join(
        [
            "# Learning rates of LoRA and the linear probe",
            "",
            "This page is made by `python benchmarks/defaults.py --table` from `results/defaults/`; do not edit it.",
            "",
            *intro.strip().splitlines(),
            "",
            "| method | lr | val accuracy, % | val loss | train, s |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/background/learning-rates.md and stop")
    if parser.parse_args().table:
        PAGE.write_text(page({path.stem: Result.read(path) for path in FOLDER.glob("*.json")}), encoding="utf-8")
        return
    for name, cell in CELLS.items():
        path = FOLDER / f"{name}.json"
        if not path.is_file():
            measure(*cell).write(path)


if __name__ == "__main__":
    main()
