"""By which score on few images a search finds good subnets: the loss, the accuracy, or the loss at a temperature.

    python benchmarks/fitness.py            # read the trained supernets of benchmarks/supernet.py that are in runs/
    python benchmarks/fitness.py --table    # docs/background/fitness.md from results/fitness

For every supernet that `benchmarks/supernet.py` tests, 24 random subnets of any size within the budget and 36 of nine
tenths of it or more are run on 600 images that did not train it. Then, 300 times, 100 of these images score the
subnets, and the accuracy on the others says how good they are. "Rank" is Spearman's correlation of the two, over all
60 subnets or the 36 near the budget. "Gain" says by how many points of accuracy, on the others, the best by the score
is above the mean subnet. The temperature is one number for all subnets by which the logits are divided: the one with
the lowest mean loss on the scoring images.

The supernets are of an earlier schedule, in which a quarter of the images played the largest subnet throughout. Textile
and dsprites_ori are cut from one pool each: two thirds of the 600 images there are test images of
`benchmarks/supernet.py`, so the decision to search near the budget by default was made with some of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from supernet import LEAST, SEEDS, TASKS, Cell, best
from torch import Tensor

from glora.genotype import Genotype
from glora.report.result import Result
from glora.runs.comparison import random_genomes
from glora.runs.reporter import Silent
from glora.runs.run import Run
from glora.tasks.images import ImageSet
from glora.tasks.task import load_task

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "fitness"
PAGE = ROOT / "docs" / "background" / "fitness.md"
SUBNETS = {"any": 24, "near": 36}
IMAGES, SCORING, DRAWS = 600, 100, 300
TEMPERATURES = np.geomspace(0.3, 10, 36)
SCORES = ("loss", "accuracy", "loss at a temperature")


def measure(cell: Cell) -> Result:
    """All subnets of one supernet."""
    torch.backends.cuda.enable_flash_sdp(False)  # type: ignore[no-untyped-call]  # on a CPU slower with 17 tokens
    run = Run.open(cell.run, Silent())
    run.train()  # is trained
    space, budget = run.tuned.space, cell.experiment.search.budget
    assert space is not None and budget is not None
    genotypes, near = [], []
    for name, number in SUBNETS.items():
        least = round(LEAST * budget) if name == "near" else 0
        drawn = random_genomes(space, number, budget=budget, min_budget=least, seed=1)
        genotypes += [space.decode(genome) for genome in drawn]
        near += [name == "near"] * len(drawn)
    logits, labels = logits_of(run, genotypes, unseen(run))
    sizes = np.array([space.count(genotype) for genotype in genotypes])
    return Result.stamped(
        method="glora",
        task=cell.task,
        model=run.experiment.model.name,
        seed=cell.seed,
        config=run.experiment.to_json(),
        parameters=budget,
        metrics=figures(logits.numpy().astype(np.float64), labels.numpy(), np.array(near), sizes),
    )


def unseen(run: Run) -> ImageSet:
    """More val images than the run has, of the same split."""
    data = run.experiment.data
    task = load_task(data.source, seed=data.split_seed, train=data.train, val=IMAGES).prepared(
        run.session.backbone.preprocess
    )
    every = range(len(task.train))
    assert torch.equal(task.train.batch(every).inputs, run.task.train.batch(every).inputs), (
        "they trained on the same images"
    )
    return task.val


def logits_of(run: Run, genotypes: list[Genotype], images: ImageSet) -> tuple[Tensor, Tensor]:
    """Logits of every subnet on every image, and the labels."""
    every = []
    x, labels, _ = images.batch(range(len(images)))
    for genotype in genotypes:
        with run.tuned.hold(genotype) as model, torch.no_grad(), run.session.accelerator.autocast():
            every.append(torch.cat([model.eval()(part).float() for part in x.split(SCORING)]))
    return torch.stack(every), labels


def figures(logits: Any, labels: Any, near: Any, sizes: Any) -> dict[str, float | None]:
    """For each score and all subnets or those near the budget: rank, gain, and the chosen one's numbers."""
    shown = logits[None] / TEMPERATURES[:, None, None, None]
    shown -= np.log(np.exp(shown - shown.max(-1, keepdims=True)).sum(-1, keepdims=True)) + shown.max(-1, keepdims=True)
    losses = -np.take_along_axis(shown, labels[None, None, :, None], -1)[..., 0]  # (temperature, subnet, image)
    plain = losses[np.abs(TEMPERATURES - 1).argmin()]
    right = logits.argmax(-1) == labels
    rng, found = np.random.default_rng(0), dict[str, list[float]]()
    for _ in range(DRAWS):
        order = rng.permutation(len(labels))
        mine, other = order[:SCORING], order[SCORING:]
        warmest = losses[:, :, mine].mean((1, 2)).argmin()
        scores = (-plain[:, mine].mean(1), right[:, mine].mean(1), -losses[warmest][:, mine].mean(1))
        found.setdefault("temperature", []).append(TEMPERATURES[warmest])
        for which, chosen in (("all", np.full(len(near), True)), ("near", near)):
            truth = right[chosen][:, other].mean(1)
            for name, score in zip(SCORES, scores, strict=True):
                tied = np.lexsort((sizes[chosen], -score[chosen]))[0]  # as in a search: the smaller
                for figure, value in (
                    ("rank", rank(score[chosen], truth)),
                    ("gain", 100 * (truth[tied] - truth.mean())),
                    ("size", sizes[chosen][tied]),
                ):
                    found.setdefault(f"{which}, {name}, {figure}", []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def rank(score: Any, truth: Any) -> float:
    """Spearman's correlation; 0 where all are equal."""
    return float(spearmanr(score, truth).statistic) if np.ptp(score) and np.ptp(truth) else 0.0


def page() -> str:
    """The Markdown page of the committed results."""
    results = Result.read_all(sorted(FOLDER.glob("*.json")))
    return "\n".join(
        [
            "# Which score to search by",
            "",
            "This page is made by `python benchmarks/fitness.py --table` from `results/fitness/`; do not edit it.",
            "",
            *"\n\n".join((__doc__ or "").strip().split("\n\n")[2:]).splitlines(),
            "",
            "Each figure is the mean of the seeds, with the seeds in brackets.",
            "",
            "| task | subnets | score | rank | gain, points | parameters of the chosen |",
            "|---|---|---|---:|---:|---:|",
            *rows(results),
            "",
            f"Best temperatures: {', '.join(f'{task} {warm:.1f}' for task, warm in temperatures(results).items())}.",
            "",
            "A temperature above 1 says that the supernet is overconfident. Larger subnets are then more so than",
            "smaller ones. The loss holds this against them, so a search by loss over all sizes takes small subnets",
            "although larger ones are right more often; with one temperature for all it does not. Near the budget,",
            "subnets are alike in size and confidence, and no score on 100 images tells much. That is why a run",
            "searches near the budget by default, and by loss. A search over all sizes, such as `nsga2`, ranks no",
            "worse by `search.fitness=accuracy` on any of these tasks.",
            "",
        ]
    )


def temperatures(results: list[Result]) -> dict[str, float]:
    """Task -> the temperature that suits its supernets, mean of the seeds."""
    by_task: dict[str, list[float]] = {}
    for each in results:
        by_task.setdefault(each.task, []).append(each.metrics["temperature"] or 0)
    return {task: float(np.mean(values)) for task, values in by_task.items()}


def rows(results: list[Result]) -> Iterator[str]:
    """One per task, set of subnets, and score."""
    for task in TASKS:
        mine = [each for each in results if each.task == task]
        for which, label in (("all", "all sizes"), ("near", "near the budget")) if mine else ():
            for score in SCORES:
                cells = []
                for figure, form in (("rank", ".2f"), ("gain", "+.1f"), ("size", ",.0f")):
                    values = [each.metrics[f"{which}, {score}, {figure}"] or 0 for each in mine]
                    seeds = "" if figure == "size" else f" ({', '.join(f'{value:{form}}' for value in values)})"
                    cells.append(f"{np.mean(values):{form}}{seeds}")
                yield f"| {task} | {label} | {score} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/background/fitness.md and stop")
    if parser.parse_args().table:
        PAGE.write_text(page(), encoding="utf-8")
        return
    for task in TASKS:
        for seed in SEEDS:
            cell = Cell(task, "glora", best(task, "glora"), seed, tested=True)
            path = FOLDER / f"{task}-seed{seed}.json"
            if cell.run.is_dir() and not path.is_file():
                measure(cell).write(path)


if __name__ == "__main__":
    main()
