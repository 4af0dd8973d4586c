"""How good a trained supernet is: against LoRA on three tasks, over learning rates, and with parts taken away.

    python benchmarks/supernet.py                 # run the cells that results/supernet lacks; a killed one goes on
    python benchmarks/supernet.py --task textile  # those of one task
    python benchmarks/supernet_page.py            # docs/supernet-measured.md and its pictures from results/supernet

DINOv2 ViT-S/14 at 56 px, 800 training and 200 val images, 10 epochs: 8,000 image-steps for every cell, bfloat16
autocast. Every learning rate is run once, on val alone; the best of each method then with three seeds, and with those
on 2,000 test images, or all where there are fewer. An earlier table, of another schedule and of supernets that these
replace, was tested on 1,000 test images before this one was made. GLoRA's rate is chosen by random subnets of LoRA's
size, which is what its search looks at. The budget is the numbers of LoRA of rank 8. Random subnets: for every seed 8
others drawn within it, and 8 of its size, with at least nine tenths of it. The search scores 500 genotypes of its size
with racing, and is otherwise as by default: on half of val, the best ten scored again on the other half. Ablations: one
seed, val alone. Polished: 3 more epochs of the winner alone, on the training images, at a third of the learning rate;
2,400 image-steps more than any other. "Of 7 + 3": as many image-steps as any other, 7 epochs of a supernet and 3 of
polish.
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
from torch import nn

from glora.config import Experiment, build_experiment
from glora.controls import random_genomes
from glora.data import ImageSet
from glora.experiment import Run
from glora.genotype import Genotype
from glora.outcome import Outcome
from glora.progress import ConsoleReporter
from glora.results import Result
from glora.space import SearchSpace
from glora.train import Evaluation, evaluate
from glora.winner import load_winner

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "supernet"
RUNS = ROOT / "runs" / "supernet"
TASKS = ("fashion_mnist", "textile", "dsprites_ori")
RATES, EDGE = (3e-4, 1e-3, 3e-3), 1e-4  # the edge where the lowest is best
GRID = (EDGE, *RATES)
SEEDS = (0, 1, 2)
BOTH = ("lora", "glora")
SUBNETS, TEST, RANK, DRAWS, LEAST = 8, 2_000, 8, 10_000, 0.9
ABLATED = "fashion_mnist"
PUBLISHED = {"space": SearchSpace.paper().to_json(), "train": {"sampling": "batch", "largest": 0.0}}
VARIANTS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {  # name -> method, settings beside the defaults
    "lora": ("lora", {}),
    "glora": ("glora", {}),
    "polished": ("glora", {"search": {"polish": 3}}),  # as glora, and then
    "7+3": ("glora", {"train": {"epochs": 7}, "search": {"polish": 3}}),
    "published": ("glora", PUBLISHED),
    "unscaled": ("glora", {"space": {"scaling": "none"}}),
    "elementwise": ("glora", {"space": {"product": "elementwise"}}),
    "batch": ("glora", {"train": {"sampling": "batch"}}),
    "no-largest": ("glora", {"train": {"largest": 0.0}}),
    "lora-pace": ("lora", {"train": {"pace": "full", "epochs": 5}}),  # two passes a step: as many image-steps
    "glora-pace": ("glora", {"train": {"pace": "full", "epochs": 5}}),
}
NOT_ABLATED = ("lora", "glora", "polished", "7+3")
SEARCHED = ("glora", "polished", "7+3")
ABLATIONS = (("published", 3e-4), *((name, 1e-3) for name in VARIANTS if name not in NOT_ABLATED))


Subnet = Genotype | nn.Module


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
            settings["search"]["min_budget"] = round(LEAST * budget)
        for group, changed in changes.items():
            settings[group] = {**settings.get(group, {}), **changed}
        return build_experiment({"method": method, "rank": RANK, "seed": self.seed, **settings})

    @property
    def run(self) -> Path:
        """Where it is trained; what is polished is trained before."""
        variant = "glora" if self.variant == "polished" else self.variant
        return RUNS / f"{self.task}-{variant}-{self.lr:g}-{self.seed}"

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
        run = Run(cell.experiment, cell.run, reporter)
        run.train()
        metrics: dict[str, float | None] = {}
        trained = {"train": run.folder.image_steps()}
        hits: dict[str, np.ndarray] = {}
        parameters = run.experiment.search.budget or run.tuned.count()
        whole = len(run.task.test)
        test = run.task.test.subset(sorted(random.Random(0).sample(range(whole), min(whole, TEST))))
        found = contenders(run, cell)
        if run.experiment.search.polish:
            trained["polish"] = run.folder.polished(Outcome.read(run.folder.winner).key).image_steps()
        for name, subnets in found.items():
            on_val = [evaluated(run, subnet, run.task.val) for subnet in subnets]
            metrics |= figures(f"{name}_val", on_val)
            if cell.tested:
                on_test = [evaluated(run, subnet, test) for subnet in subnets]
                metrics |= figures(f"{name}_test", on_test)
                hits[name] = np.mean([each.right.numpy() for each in on_test], axis=0)
            if counts := [run.adapter.adapted.count(each) for each in subnets if isinstance(each, Genotype)]:
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
        image_steps=trained,
    ).write(cell.path)


def contenders(run: Run, cell: Cell) -> dict[str, list[Subnet]]:
    """What is evaluated of a cell: the one model, or subnets of its supernet."""
    if not run.searches:
        return {"model": [run.tuned.model]}
    if run.experiment.search.polish:
        run.search()
        return {"polished": [load_winner(run.folder).model.to(run.accelerator.device)]}
    space = run.adapter.adapted.space
    budget = run.experiment.search.budget
    assert budget is not None
    found: dict[str, list[Subnet]] = {"largest": [space.largest]}
    for name, least in (("random", 0), ("sized", round(LEAST * budget))):
        drawn = random_genomes(space, SUBNETS, budget=budget, min_budget=least, seed=cell.seed)
        found[name] = [space.decode(genome) for genome in drawn]
    if cell.tested:
        found["winner"] = [space.decode(run.search().genome)]
    return found


def evaluated(run: Run, subnet: Subnet, images: ImageSet) -> Evaluation:
    """What a subnet, or a whole model, does on the images."""
    held: Any = contextlib.nullcontext(subnet)
    if isinstance(subnet, Genotype):
        held = run.adapter.adapted.hold(subnet)
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
    return "sized_val_accuracy" if VARIANTS[variant][0] == "glora" else "model_val_accuracy"


def best(task: str, variant: str) -> float:
    """The learning rate that is best on val for the variant's method."""
    run = [cell for lr in (*RATES, EDGE) if (cell := Cell(task, VARIANTS[variant][0], lr)).path.is_file()]
    return max(run, key=lambda cell: Result.read(cell.path).metrics[main_figure(variant)] or 0).lr


def cells(task: str) -> Iterator[Cell]:
    """All cells of a task, those first that others ask for."""
    for variant in BOTH:
        yield from (Cell(task, variant, lr) for lr in RATES)
        if best(task, variant) == RATES[0]:
            yield Cell(task, variant, EDGE)
    for seed in SEEDS:
        yield from (Cell(task, variant, best(task, variant), seed, tested=True) for variant in ("lora", *SEARCHED))
    if task == ABLATED:
        yield from (Cell(task, variant, lr) for variant, lr in ABLATIONS)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="one task alone")
    given = parser.parse_args()
    for task in [given.task] if given.task else TASKS:
        for cell in cells(task):
            if not cell.path.is_file():
                measure(cell)


if __name__ == "__main__":
    main()
