"""What racing saves and what it costs: the paper's search (1,050 genotypes, 200 images), raced and in full.

    python benchmarks/racing.py              # run the seeds that results/racing lacks; a killed one goes on
    python benchmarks/racing.py --seeds 1    # only that one
    python benchmarks/racing.py --table      # docs/background/racing.md from results/racing
    python benchmarks/racing.py --record     # the first seed's full search: the table that the tests race on

For each seed, one supernet is trained, searched with racing, and searched in full. Then every genotype of the raced
search is scored in full too, which gives the ranking in which its winner is looked up. The rule of the race and its two
settings were chosen on full searches of seeds 0 and 1 and on the table that the tests use; seed 2 had no part in that.
The supernets are of an earlier schedule, in which a quarter of the images played the largest subnet throughout.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glora.config import Experiment, build_experiment
from glora.files import read_jsonl
from glora.genotype import Genotype
from glora.report.result import Result
from glora.runs.console import ConsoleReporter
from glora.runs.run import Run
from glora.runs.scoring import Part, StoredNumbers, ValScorer
from glora.searchers import Racing, SearchResult, search
from glora.searchers.jobs import Job, JobResult
from glora.searchers.racing import Race

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "racing"
RUNS = ROOT / "runs" / "racing"
PAGE = ROOT / "docs" / "background" / "racing.md"
TABLE = ROOT / "tests" / "data" / "digits_losses.npz"
SEEDS = (0, 1, 2)


def experiment(seed: int) -> Experiment:
    """The demo's task and training, the paper's search."""
    model = {"name": "dinov2_vits14", "image_size": 56}
    data = {"source": "digits", "train": 400, "val": 200}
    settings = {
        "model": model,
        "data": data,
        "train": {"epochs": 20, "precision": "bf16"},
        "search": {"budget": "0.5M"},
    }
    return build_experiment({"seed": seed, **settings})


def scorer_of(run: Run) -> ValScorer:
    """Loss on val."""
    return ValScorer(
        [Part(StoredNumbers(run.tuned), run.task.val)],
        fitness="loss",
        **run.session.how,
    )


class Remembering:
    """The scorer with a memory: what two searches and the ranking share is computed once."""

    def __init__(self, scorer: ValScorer) -> None:
        self.scorer = scorer
        self.values: dict[Genotype, dict[int, float]] = {}
        self.inside = 0.0

    def __call__(self, genotype: Genotype, indices: Sequence[int]) -> list[float]:
        start = time.perf_counter()
        found = self.values.setdefault(genotype, {})
        if missing := [index for index in indices if index not in found]:
            values = self.scorer(genotype, missing)
            assert isinstance(values, list)
            found.update(zip(missing, values, strict=True))
        self.inside += time.perf_counter() - start
        return [found[index] for index in indices]


def searched(
    run: Run, score: Remembering, racing: Racing, journal: Path, budget: int | None
) -> tuple[SearchResult, float | None]:
    """The search, and its seconds outside of the score function over those inside; None when it was continued."""
    score.inside = 0.0

    continued, start = journal.is_file(), time.perf_counter()
    space, seed = run.tuned.space, run.experiment.seed
    assert space is not None
    result = search(score, space, budget=budget, seed=seed, racing=racing, journal=journal)
    return result, None if continued else (time.perf_counter() - start - score.inside) / score.inside


def measure(seed: int) -> Result:
    """One seed."""
    folder = RUNS / f"seed{seed}"
    with ConsoleReporter() as reporter:
        run = Run(experiment(seed), folder, reporter)
        run.train()
    n = len(run.task.val)
    budget = run.experiment.search.budget
    scorer = scorer_of(run)
    score = Remembering(scorer)
    raced, overhead = searched(run, score, Racing(n), folder / "raced.jsonl", budget)
    full, _ = searched(run, score, Racing(n, first=n), folder / "full.jsonl", budget)
    rows = np.array([score(trial.genotype, range(n)) for trial in raced.trials])
    best_of_full = np.array(score(full.best.genotype, range(n)))
    means, winner = rows.mean(axis=1), raced.best.number
    metrics: dict[str, float | None] = {
        "candidates": float(len(raced.trials)),
        "images_raced": round(sum(trial.seen for trial in raced.trials) * n),
        "images_full": float(len(full.trials) * n),
        "winner_rank": float(1 + (means > means[winner]).sum()),
        "winner_loss": -means[winner],
        "full_winner_loss": -best_of_full.mean(),
        "tau": kendall([trial.score.value for trial in raced.trials], means.tolist()),
        "overhead": overhead,
    }
    metrics |= gap("own", rows[means.argmax()] - rows[winner]) | gap("full", best_of_full - rows[winner])
    metrics |= shortcuts(run, scorer)
    return Result.stamped(
        method="glora",
        task=run.task.name,
        model=run.experiment.model.name,
        seed=seed,
        config={**run.experiment.to_json(), "race": dataclasses.asdict(Racing(n))},
        parameters=raced.best.parameters,
        metrics=metrics,
        seconds={"raced": sum(trial.seconds for trial in raced.trials)},
    )


def gap(name: str, differences: np.ndarray) -> dict[str, float | None]:
    """The mean of paired differences and its standard error."""
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return {f"gap_{name}": differences.mean(), f"gap_{name}_standard_error": error}


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-a of two rankings."""
    signs = np.sign(np.subtract.outer(first, first)) * np.sign(np.subtract.outer(second, second))
    return float(signs.sum() / (len(first) * (len(first) - 1)))


def shortcuts(run: Run, scorer: ValScorer) -> dict[str, float | None]:
    """Seconds of CPU for the images of one batch: held, not held, and several genotypes sharing the batch."""
    tuned, size, rng = run.tuned, min(100, len(run.task.val)), random.Random(0)
    assert tuned.space is not None
    genotypes = [tuned.space.sample(rng) for _ in range(4)]
    x = run.task.val.batch(range(size)).inputs.to(run.session.accelerator.device)

    def seconds(work: Any) -> float:
        taken = []
        for _ in range(4):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return statistics.median(taken[1:])

    def held() -> None:
        for genotype in genotypes:
            with tuned.hold(genotype) as model:
                model(x)

    def active() -> None:
        for genotype in genotypes:
            tuned.activate(genotype)
            tuned.model(x)

    def together() -> None:
        quarter = size // 4
        tuned.adapted.activate([genotype for genotype in genotypes for _ in range(quarter)])
        for _ in genotypes:
            tuned.model(x[: 4 * quarter])

    tuned.model.eval()
    with torch.no_grad():
        return {"held": seconds(held), "not_held": seconds(active), "sharing": seconds(together)}


def page(results: list[Result]) -> str:
    """The Markdown page of the committed results."""
    rows = []
    for result in sorted(results, key=lambda each: each.seed):
        m = {name: value or 0.0 for name, value in result.metrics.items()}
        rows.append(
            f"| {result.seed} | {m['images_full'] / m['images_raced']:.1f}x | {m['winner_rank']:.0f} of "
            f"{m['candidates']:.0f} | {m['gap_own']:.4f} ± {m['gap_own_standard_error']:.4f} | {m['gap_full']:.4f} ± "
            f"{m['gap_full_standard_error']:.4f} | {m['tau']:.2f} | {m['not_held'] / m['held']:.2f}x | "
            f"{m['held'] / m['sharing']:.2f}x | {overhead(result)} |"
        )
    return "\n".join(
        [
            "# What racing saves",
            "",
            "This page is made by `python benchmarks/racing.py --table` from `results/racing/`; do not edit it.",
            "",
            *(__doc__ or "").split("\n\n")[2].splitlines(),
            "",
            "| seed | fewer images | winner's rank | behind the best of its own | behind the full search's winner "
            "| tau | holding | sharing a pass | overhead |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
            "- *Fewer images*: the images of the full search over those of the raced one; this is what racing saves.",
            "- *Behind*: the gap in mean loss on the same images ± its paired standard error. Where it is negative,",
            "  the raced winner is better.",
            "- *tau*: Kendall's, between the scores at which candidates dropped out or finished and their full",
            "  scores. A candidate that dropped out has a score on the images that good candidates differ on most,",
            "  so tau need not be high.",
            "- *Holding*: the time of scoring with the genotype only activated over that with it held.",
            "- *Sharing a pass*: the time of one genotype after the other over that of four in one batch. Below 1 it",
            "  costs time, so the search does not do it.",
            "- *Overhead*: the share of the raced search's time outside of the score function.",
            "",
        ]
    )


def overhead(result: Result) -> str:
    """The share in per cent; empty where the search went on after a stop and was not timed."""
    share = result.metrics["overhead"]
    return "" if share is None else f"{100 * share:.1f}%"


def record() -> None:
    """A table of real values: all candidates of the first seed's full search, on all images in their order."""
    lines = read_jsonl(RUNS / f"seed{SEEDS[0]}" / "full.jsonl")
    values = {line["number"]: line["values"] for line in lines if line["event"] == "score"}
    generations: dict[int, dict[int, Genotype]] = {}
    for line in lines:
        if line["event"] == "ask":
            generations.setdefault(line["generation"], {})[line["number"]] = Genotype({})
    n = len(values[0])
    losses = np.empty((len(values), n), dtype=np.float32)
    race = Race(Racing(n, first=n), lines[0]["settings"]["parents"], SEEDS[0])

    def run_jobs(jobs: Iterable[Job]) -> Iterator[JobResult]:  # in the order in which they were asked for
        for job in jobs:
            losses[job.number, list(job.indices)] = [-value for value in values[job.number]]
            yield JobResult(job, values[job.number], 0.0)

    for generation in generations.values():
        for _ in race.run(generation, run_jobs):
            pass
    np.savez_compressed(TABLE, losses=losses.astype(np.float16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/background/racing.md and stop")
    parser.add_argument("--record", action="store_true", help="write the tests' table and stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args()
    if given.table:
        PAGE.write_text(page(Result.read_all(sorted(FOLDER.glob("*.json")))), encoding="utf-8")
    elif given.record:
        record()
    else:
        for seed in given.seeds:
            path = FOLDER / f"seed{seed}.json"
            if not path.is_file():
                measure(seed).write(path)


if __name__ == "__main__":
    main()
