"""How good a trained supernet is: against LoRA on three tasks, over learning rates, and with parts taken away.

    python benchmarks/supernet.py                 # run the cells that results/supernet lacks; a killed one goes on
    python benchmarks/supernet.py --task textile  # those of one task
    python benchmarks/supernet.py --table         # docs/supernet-measured.md from results/supernet

DINOv2 ViT-S/14 at 56 px, 800 training and 200 val images, 10 epochs: 8,000 image-steps for every cell, bfloat16
autocast. Every learning rate is run once, on val alone; the best of each method then with three seeds, and with those
on 1,000 test images, once. The budget is the numbers of LoRA of rank 8. Random subnets: 8 drawn within it, and 8 of
its size, with at least nine tenths of it. The search scores 500 genotypes of its size with racing, and is otherwise as
by default: on half of val, the best ten scored again on the other half. Ablations: one seed, val alone. A first search,
of 1,050 genotypes of any size within the budget, was tested with two seeds of two tasks: by the loss of so few images
it chose subnets of half the size. That larger ones are better shows on val in the cells of the learning rates, so the
search was given the lower bound. It is told as "any size".
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glora.config import Experiment, build_experiment
from glora.controls import random_genomes
from glora.data import ImageSet
from glora.experiment import Run
from glora.genotype import Genotype
from glora.progress import ConsoleReporter
from glora.results import Result
from glora.space import SearchSpace
from glora.train import Evaluation, evaluate

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "supernet"
RUNS = ROOT / "runs" / "supernet"
PAGE = ROOT / "docs" / "supernet-measured.md"
TASKS = ("fashion_mnist", "textile", "dsprites_ori")
RATES, EDGE = (3e-4, 1e-3, 3e-3), 1e-4  # the edge where the lowest is best
GRID = (EDGE, *RATES)
SEEDS = (0, 1, 2)
BOTH = ("lora", "glora")
SUBNETS, TEST, RANK, DRAWS, LEAST = 8, 1_000, 8, 10_000, 0.9
ABLATED = "fashion_mnist"
PUBLISHED = {"space": SearchSpace.paper().to_json(), "train": {"sampling": "batch", "largest": 0.0}}
VARIANTS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {  # name -> method, settings beside the defaults
    "lora": ("lora", {}),
    "glora": ("glora", {}),
    "any-size": ("glora", {}),  # was tested alone
    "published": ("glora", PUBLISHED),
    "unscaled": ("glora", {"space": {"scaling": "none"}}),
    "elementwise": ("glora", {"space": {"product": "elementwise"}}),
    "batch": ("glora", {"train": {"sampling": "batch"}}),
    "no-largest": ("glora", {"train": {"largest": 0.0}}),
    "lora-pace": ("lora", {"train": {"pace": "full", "epochs": 5}}),  # two passes a step: as many image-steps
    "glora-pace": ("glora", {"train": {"pace": "full", "epochs": 5}}),
}
ABLATIONS = (("published", 3e-4), *((name, 1e-3) for name in VARIANTS if name not in ("lora", "glora", "any-size")))


@dataclass(frozen=True)
class Cell:
    """One training; with `tested` also the search and test."""

    task: str
    variant: str
    lr: float
    seed: int = 0
    tested: bool = False

    @property
    def name(self) -> str:
        return f"{self.task}-{self.variant}-{self.lr:g}" + (f"-seed{self.seed}" if self.tested else "")

    @property
    def experiment(self) -> Experiment:
        method, changes = VARIANTS[self.variant]
        settings: dict[str, dict[str, Any]] = {
            "model": {"name": "dinov2_vits14", "image_size": 56},
            "data": {"source": self.task, "train": 800, "val": 200},
            "train": {"epochs": 10, "precision": "bf16", "lr": self.lr},
            "search": {"generations": 9, "racing": True, "controls": 0},
        }
        if method == "glora":
            settings["search"]["budget"] = budget = Result.read(Cell(self.task, "lora", RATES[0]).path).parameters
            settings["search"]["min_budget"] = 0 if self.variant == "any-size" else round(LEAST * budget)
        for group, changed in changes.items():
            settings[group] = {**settings.get(group, {}), **changed}
        return build_experiment({"method": method, "rank": RANK, "seed": self.seed, **settings})

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    def hits(self) -> dict[str, np.ndarray]:
        """Who is right on which test image, a fraction where it is a mean over several subnets."""
        with np.load(self.path.with_suffix(".npz")) as file:
            return {name: file[name].astype(np.float64) for name in file.files}


def measure(cell: Cell) -> None:
    """Runs the cell and writes what came out."""
    torch.backends.cuda.enable_flash_sdp(False)  # type: ignore[no-untyped-call]  # on a CPU slower with 17 tokens
    with ConsoleReporter() as reporter:
        run = Run(cell.experiment, RUNS / f"{cell.task}-{cell.variant}-{cell.lr:g}-{cell.seed}", reporter)
        run.train()
        metrics: dict[str, float | None] = {}
        hits: dict[str, np.ndarray] = {}
        parameters = run.experiment.search.budget or run.tuned.count()
        whole = len(run.task.test)
        test = run.task.test.subset(sorted(random.Random(0).sample(range(whole), min(whole, TEST))))
        for name, genotypes in contenders(run, tested=cell.tested).items():
            on_val = [evaluated(run, genotype, run.task.val) for genotype in genotypes]
            metrics |= figures(f"{name}_val", on_val)
            if cell.tested:
                on_test = [evaluated(run, genotype, test) for genotype in genotypes]
                metrics |= figures(f"{name}_test", on_test)
                hits[name] = np.mean([each.right.numpy() for each in on_test], axis=0)
            if run.searches:
                counts = [run.adapter.adapted.count(genotype) for genotype in genotypes if genotype is not None]
                metrics[f"{name}_parameters"] = float(np.mean(counts))
    if hits:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with cell.path.with_suffix(".npz").open("wb") as file:
            np.savez_compressed(file, **{name: right.astype(np.float16) for name, right in hits.items()})
    Result.stamped(
        method=cell.variant,
        task=cell.task,
        model=run.experiment.model.name,
        seed=cell.seed,
        config=run.experiment.model_dump(mode="json"),
        parameters=parameters,
        metrics=metrics,
        seconds=run.folder.seconds(),
        image_steps={"train": run.folder.image_steps()},
    ).write(cell.path)


def contenders(run: Run, *, tested: bool) -> dict[str, list[Genotype | None]]:
    """What is evaluated of a cell: the one model (None), or subnets of its supernet."""
    if not run.searches:
        return {"model": [None]}
    space = run.adapter.adapted.space
    budget = run.experiment.search.budget
    assert budget is not None
    found: dict[str, list[Genotype | None]] = {"largest": [space.largest]}
    for name, least in (("random", 0), ("sized", round(LEAST * budget))):
        drawn = random_genomes(space, SUBNETS, budget=budget, min_budget=least, seed=0)
        found[name] = [space.decode(genome) for genome in drawn]
    if tested:
        found["winner"] = [space.decode(run.search().genome)]
    return found


def evaluated(run: Run, genotype: Genotype | None, images: ImageSet) -> Evaluation:
    """What a subnet, or the one model, does on the images."""
    held = contextlib.nullcontext(run.tuned.model) if genotype is None else run.adapter.adapted.hold(genotype)
    with held as model:
        return evaluate(model, images, accelerator=run.accelerator, batch_size=run.experiment.search.batch_size)


def figures(name: str, found: Sequence[Evaluation]) -> dict[str, float | None]:
    """The mean over the subnets, and the spread between them."""
    accuracies = [each.accuracy for each in found]
    spread = {f"{name}_spread": float(np.std(accuracies, ddof=1))} if len(found) > 1 else {}
    return {
        f"{name}_accuracy": float(np.mean(accuracies)),
        f"{name}_loss": float(np.mean([each.loss for each in found])),
        **spread,
    }


def main_figure(variant: str) -> str:
    """What a learning rate is chosen by."""
    return "random_val_accuracy" if VARIANTS[variant][0] == "glora" else "model_val_accuracy"


def best(task: str, variant: str) -> float:
    """The learning rate that is best on val."""
    run = [cell for lr in (*RATES, EDGE) if (cell := Cell(task, variant, lr)).path.is_file()]
    return max(run, key=lambda cell: Result.read(cell.path).metrics[main_figure(variant)] or 0).lr


def cells(task: str) -> Iterator[Cell]:
    """All cells of a task, those first that others ask for."""
    for variant in BOTH:
        yield from (Cell(task, variant, lr) for lr in RATES)
        if best(task, variant) == RATES[0]:
            yield Cell(task, variant, EDGE)
    for variant in BOTH:
        yield from (Cell(task, variant, best(task, variant), seed, tested=True) for seed in SEEDS)
    if task == ABLATED:
        yield from (Cell(task, variant, lr) for variant, lr in ABLATIONS)


def interval(mine: str, other: tuple[str, str], *, draws: int = DRAWS) -> tuple[float, float, float]:
    """GLoRA's accuracy minus another's, in points, pooled over tasks and seeds, with its bootstrap 95% interval.

    Paired: a draw takes, for each task, seeds and test images with replacement, the same for both.

    Args:
        mine: Which of GLoRA's figures: `winner`, `random` or `largest`.
        other: Variant and figure that it is compared with.
        draws: Number of resamples.
    """
    rng = np.random.default_rng(0)
    gaps = []
    for task, seeds in finished().items():
        sides = []
        for variant, figure in (("glora", mine), other):
            sides.append([Cell(task, variant, best(task, variant), seed, tested=True).hits()[figure] for seed in seeds])
        gaps.append(100 * (np.array(sides[0]) - np.array(sides[1])))  # (seeds, images)
    means = np.empty((len(gaps), draws))
    for row, gap in zip(means, gaps, strict=True):
        for draw in range(draws):
            chosen = gap[rng.integers(len(gap), size=len(gap))].mean(0)
            row[draw] = rng.choice(chosen, len(chosen)).mean()
    low, high = np.quantile(means.mean(0), [0.025, 0.975])
    return float(np.mean([gap.mean() for gap in gaps])), float(low), float(high)


def page() -> str:
    """The Markdown page of the committed results."""
    missing = [task for task in TASKS if task not in finished()]
    return "\n".join(
        [
            "# What the supernet is worth, measured",
            "",
            "Made by `python benchmarks/supernet.py --table` from `results/supernet/`; do not edit.",
            "",
            *(__doc__ or "").split("\n\n")[2].splitlines(),
            "",
            *([f"Not run yet, and in no figure below: {', '.join(missing)}.", ""] if missing else []),
            *bars(),
            *by_task(),
            *by_rate(),
            *ablations(),
            "",
        ]
    )


def bars() -> Iterator[str]:
    """What GLoRA is ahead, pooled."""
    yield from ("## Bars", "")
    yield "GLoRA minus the other, points of test accuracy, pooled over tasks and seeds, with the 95%"
    yield "interval of a paired bootstrap over seeds and images. The random subnets are the same for all tasks and"
    yield from ("seeds: which they are is not in the interval. The largest has more numbers than LoRA.", "")
    yield from ("| | difference | interval |", "|---|---:|---:|")
    for label, mine, other in (
        ("mean random subnet - LoRA", "random", ("lora", "model")),
        ("searched winner - LoRA", "winner", ("lora", "model")),
        ("searched winner - mean random subnet of its size", "winner", ("glora", "sized")),
        ("searched winner - mean random subnet", "winner", ("glora", "random")),
        ("largest subnet - mean random subnet", "largest", ("glora", "random")),
        ("largest subnet - LoRA", "largest", ("lora", "model")),
    ):
        middle, low, high = interval(mine, other)
        yield f"| {label} | {middle:+.1f} | {low:+.1f} to {high:+.1f} |"


def by_task() -> Iterator[str]:
    """Test accuracy task by task, and the first search's."""
    yield from ("", "## Tasks", "")
    yield "Test accuracy in % at the learning rate that was best on val: mean of the seeds, and each."
    yield from (
        "",
        "| task | LoRA | mean random subnet | of LoRA's size | winner | largest | winner's numbers, LoRA's |",
    )
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for task, seeds in finished().items():
        lora, glora = (tested(task, variant) for variant in BOTH)
        row = [f"{task}, {len(seeds)} seeds"]
        for found, figure in ((lora, "model"), *((glora, name) for name in ("random", "sized", "winner", "largest"))):
            values = [100 * (each.metrics[f"{figure}_test_accuracy"] or 0) for each in found]
            row.append(f"{np.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})")
        sizes = [each.metrics["winner_parameters"] or 0 for each in glora]
        row.append(f"{np.mean(sizes):,.0f}, {lora[0].parameters:,}")
        yield f"| {' | '.join(row)} |"
    yield from ("", 'The first search, "any size": its winner minus random subnets of LoRA\'s size, on test:', "")
    for path in sorted(FOLDER.glob("*-any-size-*.json")):
        result = Result.read(path)
        m = {name: value or 0 for name, value in result.metrics.items()}
        gap = 100 * (m["winner_test_accuracy"] - m["sized_test_accuracy"])
        yield f"- {result.task}, seed {result.seed}: {gap:+.1f} points, with {m['winner_parameters']:,.0f} numbers"


def by_rate() -> Iterator[str]:
    """Val accuracy over the learning rates."""
    yield from ("", "## Learning rates", "")
    yield "Val accuracy in %, one seed; of GLoRA the mean random subnet, and the largest."
    yield from ("", f"| task | method | {' | '.join(f'{lr:g}' for lr in GRID)} |", f"|---|---|{'---:|' * len(GRID)}")
    for task in measured():
        for variant in BOTH:
            row = [val(Result.read(cell.path)) if cell.path.is_file() else "" for cell in grid(task, variant)]
            yield f"| {task} | {variant} | {' | '.join(row)} |"
    yield from (
        "",
        "From the best of these rates to the next lower or higher, the worse of both, mean of the tasks:",
        "",
    )
    for variant in BOTH:
        yield f"- {variant}: {np.mean([drop(task, variant) for task in measured()]):.1f} points"


def ablations() -> Iterator[str]:
    """What becomes of one task with parts taken away."""
    yield from (
        "",
        f"## Ablations on {ABLATED}",
        "",
        "As above, and the mean random subnet of LoRA's size, since random",
    )
    yield "subnets of other spaces have other sizes. One seed and 200 images: a difference below 3 points says little."
    yield from ("", "| | settings | lr | of LoRA's size | random, largest | random: numbers | val loss |")
    yield "|---|---|---:|---:|---:|---:|---:|"
    for variant, lr in (*((variant, lr) for variant in BOTH for lr in RATES), *ABLATIONS):
        if not (path := Cell(ABLATED, variant, lr).path).is_file():
            continue
        result, settings = Result.read(path), VARIANTS[variant][1]
        told = ", ".join(f"{key}: {value}" for group in settings.values() for key, value in group.items())
        m = {name: value or 0 for name, value in result.metrics.items()}
        sized = f"{100 * m['sized_val_accuracy']:.1f}" if "sized_val_accuracy" in m else ""
        size = f"{m.get('random_parameters', result.parameters):,.0f}"
        loss = result.metrics[main_figure(variant).replace("accuracy", "loss")]
        shown = "diverged" if loss is None else f"{loss:.3f}"
        yield f"| {variant} | {told} | {lr:g} | {sized} | {val(result)} | {size} | {shown} |"


def drop(task: str, variant: str) -> float:
    """Points of val accuracy from the best learning rate to the worse of its neighbours in the grid."""
    run = [cell for cell in grid(task, variant) if cell.path.is_file()]
    values = [100 * (Result.read(cell.path).metrics[main_figure(variant)] or 0) for cell in run]
    middle = int(np.argmax(values))
    return max(values[middle] - value for value in values[max(0, middle - 1) : middle + 2])


def grid(task: str, variant: str) -> list[Cell]:
    """A cell for every learning rate, from the lowest, run or not."""
    return [Cell(task, variant, lr) for lr in GRID]


def measured() -> list[str]:
    """The tasks of which every learning rate was run."""
    return [task for task in TASKS if all(Cell(task, each, lr).path.is_file() for each in BOTH for lr in RATES)]


def finished() -> dict[str, list[int]]:
    """The seeds of every task that both methods were tested with."""
    found: dict[str, list[int]] = {}
    for task in measured():
        for seed in SEEDS:
            if all(Cell(task, variant, best(task, variant), seed, tested=True).path.is_file() for variant in BOTH):
                found.setdefault(task, []).append(seed)
    return found


def tested(task: str, variant: str) -> list[Result]:
    """The results of these seeds."""
    seeds = finished()[task]
    return [Result.read(Cell(task, variant, best(task, variant), seed, tested=True).path) for seed in seeds]


def val(result: Result) -> str:
    """Val accuracy in %, and the largest subnet's."""
    if "model_val_accuracy" in result.metrics:
        return f"{100 * (result.metrics['model_val_accuracy'] or 0):.1f}"
    random, largest = (100 * (result.metrics[f"{name}_val_accuracy"] or 0) for name in ("random", "largest"))
    return f"{random:.1f}, {largest:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="one task alone")
    parser.add_argument("--table", action="store_true", help="write docs/supernet-measured.md and stop")
    given = parser.parse_args()
    if given.table:
        PAGE.write_text(page(), encoding="utf-8")
        return
    for task in [given.task] if given.task else TASKS:
        for cell in cells(task):
            if not cell.path.is_file():
                measure(cell)


if __name__ == "__main__":
    main()
