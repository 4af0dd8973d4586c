"""How good a trained supernet is: against LoRA on three tasks, over learning rates, and with parts taken away.

    python benchmarks/supernet.py                 # run the cells that results/supernet lacks; a killed one goes on
    python benchmarks/supernet.py --task textile  # those of one task
    python benchmarks/supernet.py --task textile --seed 7  # what was tested, with another seed; also of another task
    python benchmarks/supernet_page.py            # the page and its pictures in docs/background from results/supernet

A DINOv2 ViT-S/14 at 56 px learns from 800 training and 200 val images, in bfloat16 autocast, for 10 epochs and for 30
(the default): 8,000 and 24,000 image-steps for every cell.

- **Learning rates** are run once, on val alone: three of them; after 30 epochs the best of the short trainings, then
  a third of the best and three times the best until both are run. GLoRA's is chosen by random subnets of LoRA's size,
  which is what its search looks at.
- **Test:** the best rate of each method is run with three seeds and tested on 2,000 images, or on all where there are
  fewer. After 30 epochs these are other images where there are enough (Fashion-MNIST), and LoRA of 10 epochs is
  tested on them too. So are a third of the best rate and three times it after 30 epochs, with the same seeds, search
  and images, once everything is chosen.
- **Budget:** the number of parameters of LoRA of rank 8.
- **Random subnets:** for every seed, 4 others drawn within the budget, and 4 "of LoRA's size", with at least nine
  tenths of it, as they were trained; those of its size also calibrated, as the search plays them.
- **Search:** 500 genotypes of LoRA's size with racing, and otherwise the defaults: on half of val, with the best ten
  scored again on the other half.
- **LoRA, calibrated:** the same two factors chosen for LoRA, on all of val.
- **Ablations:** one seed, val alone, 8 subnets of each kind, not calibrated.
- **Polished**, after 30 epochs: 3 more epochs of the winner alone, on the training images, at a third of the learning
  rate; 2,400 image-steps more than any other.
- **Other tasks**, on which nothing is chosen: three seeds at the learning rates that glora itself gives the methods.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glora.config import Experiment, build_experiment
from glora.genotype import Genotype
from glora.methods.method import get_method
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.calibration import apply_calibration, calibrate_alone
from glora.runs.comparison import random_genomes
from glora.runs.console import ConsoleReporter
from glora.runs.run import Run
from glora.runs.stages.search import Search
from glora.space import SearchSpace
from glora.tasks.calibration import Calibration
from glora.tasks.evaluation import Evaluation
from glora.tasks.objective import Examples

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "supernet"
RUNS = ROOT / "runs" / "supernet"
TASKS = ("fashion_mnist", "textile", "dsprites_ori")
OTHERS = ("digits", "dsprites_loc")  # on which nothing is chosen
RATES = (3e-4, 1e-3, 3e-3)
LADDER = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, *RATES, 1e-2, 3e-2)  # both beside the best are run
SEEDS = (0, 1, 2)
BOTH = ("lora", "glora")
SHORT, LONG = 10, 30  # epochs; 30 are the default of glora
STEPS = (-1, 1)  # up or down the ladder, to the learning rates beside the best
SUBNETS, TEST, RANK, LEAST = 8, 2_000, 8, 0.9
ABLATED = "fashion_mnist"
PUBLISHED = {
    "method": {**SearchSpace.paper().to_json(), "sampling": "batch", "largest": 0.0},
    "train": {"restart": False},
}
VARIANTS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {  # name -> method, settings beside the defaults
    "lora": ("lora", {}),
    "glora": ("glora", {}),
    "polished": ("glora", {"search": {"polish": 3}}),  # as glora, and then
    "published": ("glora", PUBLISHED),
    "unscaled": ("glora", {"method": {"scaling": "none"}, "train": {"restart": False}}),
    "elementwise": ("glora", {"method": {"product": "elementwise"}}),
    "batch": ("glora", {"method": {"sampling": "batch"}}),
    "no-largest": ("glora", {"method": {"largest": 0.0}}),
    "no-decay": ("glora", {"train": {"weight_decay": 0.0}}),
    "lora-pace": ("lora", {"train": {"pace": "full", "epochs": 5}}),  # two passes a step: as many image-steps
    "glora-pace": ("glora", {"train": {"pace": "full", "epochs": 5}}),
    "lora-pace-fast": ("lora", {"train": {"pace": "fast"}}),
    "glora-pace-fast": ("glora", {"train": {"pace": "fast"}}),
    "lora-pace-lazy": ("lora", {"train": {"pace": "lazy"}}),
    "glora-pace-lazy": ("glora", {"train": {"pace": "lazy"}}),
}
NOT_ABLATED = ("lora", "glora", "polished")
ABLATIONS = (
    *(("published", lr) for lr in (3e-5, 1e-4, RATES[0])),
    *((name, 1e-3) for name in VARIANTS if name not in NOT_ABLATED),
)


Subnet = Genotype | nn.Module


@dataclass(frozen=True)
class Cell:
    """One training; with `tested` also the search and test."""

    task: str
    variant: str
    lr: float
    seed: int = 0
    tested: bool = False
    epochs: int = SHORT

    @property
    def name(self) -> str:
        return self._named(self.variant) + (f"-seed{self.seed}" if self.tested else "")

    def _named(self, variant: str) -> str:
        return f"{self.task}-{variant}-{self.lr:g}" + (f"-{self.epochs}epochs" if self.epochs != SHORT else "")

    @property
    def experiment(self) -> Experiment:
        method, changes = VARIANTS[self.variant]
        settings: dict[str, dict[str, Any]] = {
            "model": {"name": "dinov2_vits14", "image_size": 56},
            "data": {"source": self.task, "train": 800, "val": 200},
            "train": {"epochs": self.epochs, "precision": "bf16", "lr": self.lr},
            "search": {"searcher": {"generations": 9}, "racing": True, "controls": 0},
            "method": {"name": method, **({"rank": RANK} if method == "lora" else {})},
        }
        if method == "glora":
            settings["search"] |= {"budget": budget(), "min_budget": round(LEAST * budget())}
        for group, changed in changes.items():
            settings[group] = {**settings.get(group, {}), **changed}
        return build_experiment({"seed": self.seed, **settings})

    @property
    def run(self) -> Path:
        """Where it is trained; what is polished is trained before."""
        variant = "glora" if self.variant == "polished" else self.variant
        return RUNS / f"{self._named(variant)}-{self.seed}"

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    def hits(self) -> dict[str, np.ndarray]:
        """Who is right on which test image, a fraction where it is a mean over several subnets."""
        with np.load(self.path.with_suffix(".npz")) as file:
            return {name: file[name].astype(np.float64) for name in file.files}


def budget() -> int:
    """The numbers of LoRA, which is run first; on every task as many."""
    return Result.read(Cell(TASKS[0], "lora", RATES[0]).path).parameters


def measure(cell: Cell) -> None:
    """Runs the cell and writes what came out."""
    torch.backends.cuda.enable_flash_sdp(False)  # type: ignore[no-untyped-call]  # on a CPU slower with 17 tokens
    with ConsoleReporter() as reporter:
        run = Run(cell.experiment, cell.run, reporter)
        run.train()
        metrics: dict[str, float | None] = {}
        trained = {"train": run.folder.example_steps()}
        hits: dict[str, np.ndarray] = {}
        parameters = run.experiment.search.budget or run.tuned.count()
        lengths = {"": cell.epochs} | ({"_long": LONG} if (cell.variant, cell.epochs) == ("lora", SHORT) else {})
        tests = {each: run.task.test.subset(test_images(len(run.task.test), n)) for each, n in lengths.items()}
        for name, subnets in contenders(run, cell):
            on_val = [evaluated(run, subnet, run.task.val) for subnet in subnets]
            metrics |= figures(f"{name}_val", on_val)
            for images, test in tests.items() if cell.tested else ():
                on_test = [evaluated(run, subnet, test) for subnet in subnets]
                metrics |= figures(f"{name}{images}_test", on_test)
                hits[name + images] = np.mean([each.values["accuracy"].numpy() for each in on_test], axis=0)
            if counts := [run.tuned.space.count(each) for each in subnets if isinstance(each, Genotype)]:
                metrics[f"{name}_parameters"] = float(np.mean(counts))
        if run.folder.calibration.is_file():
            metrics |= asdict(Calibration.read(run.folder.calibration))
        if run.experiment.search.polish:
            trained["polish"] = run.folder.polished(Outcome.read(run.folder.winner).key).example_steps()
    if hits:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with cell.path.with_suffix(".npz").open("wb") as file:
            np.savez_compressed(file, **{name: right.astype(np.float16) for name, right in hits.items()})
    Result.stamped(
        method=cell.variant,
        task=cell.task,
        model=run.experiment.model.name,
        seed=cell.seed,
        config=run.experiment.to_json(),
        parameters=parameters,
        metrics=metrics,
        seconds=run.folder.seconds(),
        example_steps=trained,
        notes=tuple(run.folder.warnings()),
    ).write(cell.path)


def test_images(whole: int, epochs: int) -> list[int]:
    """Which images are tested on: TEST of them, after longer trainings others if there are so many; all where there
    are fewer."""
    first = random.Random(0).sample(range(whole), min(whole, TEST))
    left = sorted(set(range(whole)) - set(first))
    return sorted(first if epochs == SHORT or len(left) < TEST else random.Random(1).sample(left, TEST))


def contenders(run: Run, cell: Cell) -> Iterator[tuple[str, list[Subnet]]]:
    """What is evaluated of a cell, each as it stands when it is given: the one model, or subnets of its supernet."""
    if not run.searches:
        yield "model", [run.tuned.model]
        if cell.tested:
            found = calibrate_alone(run.session, run.tuned, run.task.val)  # where a search has half of val
            apply_calibration(run.tuned, found)
            yield "calibrated", [run.tuned.model]
        return
    if run.experiment.search.polish:
        run.search()
        yield "polished", [run.load().model.to(run.session.accelerator.device)]
        return
    space, most = run.tuned.space, budget()
    assert space is not None
    draws = {}
    for name, least in (("random", 0), ("sized", round(LEAST * most))):
        drawn = random_genomes(space, SUBNETS // (1 + cell.tested), budget=most, min_budget=least, seed=cell.seed)
        draws[name] = [space.decode(genome) for genome in drawn]
    yield "largest", [space.largest]
    yield from draws.items()
    if not cell.tested:
        Search(run.session, run.tuned).calibrate()
        yield "calibrated", draws["sized"]
        return
    outcome = run.search()  # from here on the supernet is calibrated
    assert outcome is not None  # one process
    yield "calibrated", draws["sized"]
    yield "calibrated_largest", [space.largest]
    yield "winner", [space.decode(outcome.genome)]


def evaluated(run: Run, subnet: Subnet, images: Examples) -> Evaluation:
    """What a subnet, or a whole model, does on the images."""
    held: Any = contextlib.nullcontext(subnet)
    if isinstance(subnet, Genotype):
        held = run.tuned.hold(subnet)
    with held as model:
        return run.session.evaluator.evaluate(model, images)


def figures(name: str, found: Sequence[Evaluation]) -> dict[str, float | None]:
    """The mean over the subnets, and the spread between them."""
    accuracies = [each.value("accuracy") for each in found]
    spread = {f"{name}_spread": float(np.std(accuracies, ddof=1))} if len(found) > 1 else {}
    return {
        f"{name}_accuracy": float(np.mean(accuracies)),
        f"{name}_loss": float(np.mean([each.value("loss") for each in found])),
        **spread,
    }


def main_figure(variant: str) -> str:
    """What a learning rate is chosen by."""
    return "sized_val_accuracy" if VARIANTS[variant][0] == "glora" else "model_val_accuracy"


def best(task: str, variant: str, epochs: int = SHORT) -> float:
    """The learning rate that is best on val for the variant's method."""
    figure = main_figure(variant)
    return max(ran(task, variant, epochs), key=lambda cell: Result.read(cell.path).metrics[figure] or 0).lr


def beside(task: str, variant: str, epochs: int, step: int) -> float:
    """The learning rate so many steps above the best, each three times as much."""
    return LADDER[LADDER.index(best(task, variant, epochs)) + step]


def ran(task: str, variant: str, epochs: int) -> list[Cell]:
    """What was run on val alone of the variant's method, a cell for every learning rate, from the lowest."""
    every = [Cell(task, VARIANTS[variant][0], lr, epochs=epochs) for lr in LADDER]
    return [cell for cell in every if cell.path.is_file()]


def rates(task: str, variant: str, epochs: int) -> Iterator[float]:
    """The learning rates to run; each is to be run before the next is asked for, which depends on what they gave."""
    yield from RATES if epochs == SHORT else [best(task, variant)]

    def untried() -> set[float]:
        return {beside(task, variant, epochs, step) for step in STEPS} - {c.lr for c in ran(task, variant, epochs)}

    while left := untried():
        yield max(left)


def cells(task: str, epochs: int = SHORT) -> Iterator[Cell]:
    """All cells of a task with trainings of a length, those first that others ask for."""
    for variant in BOTH:
        yield from (Cell(task, variant, lr, epochs=epochs) for lr in rates(task, variant, epochs))
    for seed in SEEDS:
        yield from seeded(task, epochs, seed)
    for seed, variant, step in product(SEEDS, BOTH, STEPS if epochs == LONG else ()):
        yield Cell(task, variant, beside(task, variant, epochs, step), seed, tested=True, epochs=epochs)
    if task == ABLATED and epochs == SHORT:
        yield from (Cell(task, variant, lr) for variant, lr in ABLATIONS)


def seeded(task: str, epochs: int, seed: int) -> Iterator[Cell]:
    """What is tested of a task at the best learning rates."""
    for variant in (*BOTH, *(["polished"] if epochs == LONG else [])):
        yield Cell(task, variant, best(task, variant, epochs), seed, tested=True, epochs=epochs)


def untuned(task: str, variant: str, seed: int) -> Cell:
    """A cell at the learning rate that glora gives the method itself."""
    return Cell(task, variant, get_method(variant, {}).lr, seed, tested=True, epochs=LONG)


def measured() -> list[str]:
    """The tasks of which every learning rate was run."""
    return [task for task in TASKS if all(Cell(task, each, lr).path.is_file() for each in BOTH for lr in RATES)]


def finished(epochs: int = SHORT) -> dict[str, list[int]]:
    """The seeds of every task that both methods were tested with."""
    found: dict[str, list[int]] = {}
    for task in measured():
        for seed in SEEDS:
            if all(tested(task, variant, seed, epochs) for variant in BOTH):
                found.setdefault(task, []).append(seed)
    return found


def tested(task: str, variant: str, seed: int, epochs: int = SHORT, step: int = 0) -> Cell | None:
    """The cell of a seed at the best learning rate, or beside it, if it was tested."""
    if not ran(task, variant, epochs):
        return None
    cell = Cell(task, variant, beside(task, variant, epochs, step), seed, tested=True, epochs=epochs)
    return cell if cell.path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help="one task alone")
    parser.add_argument("--seed", type=int, help="what is tested, with this seed alone")
    given = parser.parse_args()
    tasks = [given.task] if given.task else [*TASKS, *OTHERS]
    tuned = [task for task in tasks if task in TASKS]
    for epochs, task in product((SHORT, LONG), tuned):
        for cell in cells(task, epochs) if given.seed is None else seeded(task, epochs, given.seed):
            run(cell)
    for seed, task, variant in product(SEEDS if given.seed is None else [given.seed], tasks, BOTH):
        run(untuned(task, variant, seed))


def run(cell: Cell) -> None:
    """Measures it unless that was done; says what its test came to."""
    if not cell.path.is_file():
        measure(cell)
    end, metrics = "_test_accuracy", Result.read(cell.path).metrics
    told = [f"{name.removesuffix(end)} {100 * (value or 0):.1f}" for name, value in metrics.items() if end in name]
    print(f"{cell.name}: {', '.join(told) or 'val alone'}")


if __name__ == "__main__":
    main()
