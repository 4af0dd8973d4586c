"""What a candidate and a message cost, and what more workers would give.

    python benchmarks/workers.py            # measure what results/workers lacks; wants two quiet cores
    python benchmarks/workers.py --table    # docs/background/workers.md from results/workers

A *candidate* is one genotype of the demo's supernet (ViT-S/14, 56 px), scored on 200 images by one worker with one
thread. A *message* is what the search itself costs per candidate: the time of a whole search by one worker whose
score is a constant, journal and fsync included, over its number of candidates. It is measured at the 48 sites of a
ViT and at the 224 linear layers of a 7B language model.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

from glora.genotype import Genotype, Site
from glora.report.result import Result
from glora.runs.console import ConsoleReporter
from glora.runs.demo import demo_experiment
from glora.runs.run import Run
from glora.runs.scoring import recipe_of
from glora.runs.stages.search import Search
from glora.searchers import Racing, search
from glora.space import BoundSpace, SearchSpace

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "workers"
PAGE = ROOT / "docs" / "background" / "workers.md"
POPULATION = 50
CANDIDATES = 40
PASSES = {  # model -> sites, parameters, tokens per example: 2 x parameters x tokens FLOPs, 200 examples a candidate
    "ViT-S/14, 56 px (measured)": (48, 22e6, 17),
    "ViT-B/16, 224 px": (48, 86e6, 197),
    "7B language model, 512 tokens": (224, 6.7e9, 512),
}
EXAMPLES = 200


def constant(genotype: Genotype) -> float:
    """The cheapest score."""
    return 0.5


def space_of(sites: int) -> BoundSpace:
    """A space of so many layers."""
    return SearchSpace().bind({f"blocks.{k}.attn.qkv": Site("linear", 1024, 1024, True) for k in range(sites)})


def message(sites: int, cluster: str | None) -> float:
    """Seconds per candidate of a search whose score costs nothing."""
    settings = {"candidates": 400}
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        search(
            constant,
            space_of(sites),
            searcher="random",
            settings=settings,
            workers=1,
            cluster=cluster,
            journal=Path(folder) / "search.jsonl",
            on_trial=lambda trial: ends.append(time.perf_counter()),
        )
    return (ends[-1] - ends[0]) / (len(ends) - 1)  # the first waits for the worker to start


def candidates(run: Run, workers: int) -> float:
    """Seconds per candidate with so many workers, their start not counted."""
    ends: list[float] = []
    searching = Search(run.session, run.tuned)
    search(
        recipe_of(run.session, run.tuned, searching.parts),
        searching.space,
        searcher="random",
        settings={"candidates": CANDIDATES},
        workers=workers,
        on_trial=lambda trial: ends.append(time.perf_counter()),
    )
    return (ends[-1] - ends[workers - 1]) / (len(ends) - workers)


def elsewhere(run: Run, racing: bool) -> float:
    """Share of a search's time that is not the network's forward passes: drawing, building weights, the journal."""
    searching = Search(run.session, run.tuned)
    inside, begun = 0.0, 0.0

    def begin(*_: object) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def end(*_: object) -> None:
        nonlocal inside
        inside += time.perf_counter() - begun

    model = run.tuned.model
    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    settings = {"population": 20, "generations": 3, "parents": 5}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        search(
            searching.scorer,
            searching.space,
            settings=settings,
            racing=Racing(len(run.session.data.val)) if racing else None,
            journal=Path(folder) / "search.jsonl",
        )
        whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return (whole - inside) / whole


def measure(cluster: str | None) -> Result:
    """One kind of worker."""
    demo = demo_experiment()
    train = {**demo.train.model_dump(), "epochs": 1}  # the time does not depend on the weights
    experiment = demo.with_(train=train, search={**demo.search.model_dump(), "rescore": 0})  # all of val is scored
    with tempfile.TemporaryDirectory() as folder, ConsoleReporter() as reporter:
        run = Run(experiment, folder, reporter)
        metrics: dict[str, float | None] = {f"message_{sites}": message(sites, cluster) for sites in (48, 224)}
        if cluster is None:
            run.train()
            metrics |= {f"candidate_{workers}": candidates(run, workers) for workers in (1, 2)}
            metrics |= {"elsewhere": elsewhere(run, racing=False), "elsewhere_racing": elsewhere(run, racing=True)}
        return Result.stamped(
            method="glora",
            task=run.task.name,
            model=experiment.model.name,
            seed=experiment.seed,
            config={**experiment.to_json(), "cluster": cluster},
            parameters=0,
            metrics=metrics,
        )


def page(local: Result, ray: Result | None) -> str:
    """The Markdown page of the committed results."""
    m = {name: value or 0.0 for name, value in local.metrics.items()}
    one, two = m["candidate_1"], m["candidate_2"]
    base = next(iter(PASSES.values()))
    rows = []
    for name, (sites, parameters, tokens) in PASSES.items():
        cost = one * parameters * tokens / (base[1] * base[2])
        gains = []
        for workers in (8, 64, 512):
            seconds = math.ceil(POPULATION / workers) * cost + POPULATION * m[f"message_{sites}"]
            gains.append(f"{POPULATION * cost / seconds:.1f}x")
        fed = cost / m[f"message_{sites}"]
        rows.append(f"| {name} | {cost:,.1f} | {fed:,.0f} | {' | '.join(gains)} |")
    messages = [("processes", local), *([("Ray", ray)] if ray else [])]
    return "\n".join(
        [
            "# What more workers give",
            "",
            "This page is made by `python benchmarks/workers.py --table` from `results/workers/`; do not edit it.",
            "",
            *(__doc__ or "").split("\n\n")[2].splitlines(),
            "",
            "| | message at 48 sites, ms | at 224 sites, ms |",
            "|---|---:|---:|",
            *(
                f"| {name} | {1e3 * (r.metrics['message_48'] or 0):.2f} | {1e3 * (r.metrics['message_224'] or 0):.2f} |"
                for name, r in messages
            ),
            "",
            f"One worker takes {one:.2f} s per candidate, two take {two:.2f} s: an efficiency of",
            f"{one / (2 * two):.2f}.",
            "",
            f"The next table says how much faster n workers are than one, for a generation of {POPULATION} whose end",
            f"all wait for. It takes ceil({POPULATION} / n) candidates one after the other, and the searching",
            "process handles messages one at a time. A candidate's seconds on one CPU thread are computed from the",
            "measured one by FLOPs (2 x parameters x tokens, 200 examples).",
            "",
            "| model | candidate, s | candidate / message | 8 workers | 64 | 512 |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"Workers beyond the population of {POPULATION} have nothing to do: for 64 or 512 workers, raise",
            "`population` to that number. One searching process can feed candidate / message workers.",
            "",
            "In one process, the share of a search's time that is not forward passes (drawing, building effective",
            f"weights, reading images, journal and fsync) is {100 * m['elsewhere']:.1f}% when every candidate sees",
            f"all images, and {100 * m['elsewhere_racing']:.1f}% in a race, whose pieces are small.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/background/workers.md and stop")
    paths = {None: FOLDER / "local.json", "ray": FOLDER / "ray.json"}
    if parser.parse_args().table:
        ray = Result.read(paths["ray"]) if paths["ray"].is_file() else None
        PAGE.write_text(page(Result.read(paths[None]), ray), encoding="utf-8")
        return
    for cluster, path in paths.items():
        if not path.is_file():
            measure(cluster).write(path)


if __name__ == "__main__":
    main()
