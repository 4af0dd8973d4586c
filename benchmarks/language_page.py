"""The page of what language models have measured: language-measured.md, from results/language and results/commonsense.

python benchmarks/language_page.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pages import rates, stamps, table, wrapped

from glora.report.examples import ByExample
from glora.report.folders import read_tested
from glora.report.paper.rows import our_rows
from glora.report.result import Result
from glora.runs.by_task import SURE, Pairs, by_task

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "background" / "language-measured.md"
OURS = "GLoRA"
BENCHMARKS = {
    "language": "LoRA, the best of three learning rates, against the searched GLoRA at its own rate, at equal "
    "trainable numbers and equal token-steps (`experiments/language.yaml`).",
    "commonsense": "The three settings that decide PEFT's own table of language models, in small: LoRA and HiRA, which "
    "is GLoRA's elementwise A alone, of rank 32 on q and v, and a GLoRA searched among genotypes that HiRA is one of; "
    "each with the best of three learning rates (`experiments/commonsense.yaml`).",
}

Tested = Sequence[tuple[Result, ByExample | None]]


def page(found: Mapping[str, Tested]) -> str:
    """The Markdown page of the results of each benchmark."""
    lines = ["# Language models measured", ""]
    lines += ["This page is made by `python benchmarks/language_page.py` from `results/`; do not edit it.", ""]
    for name, tested in found.items():
        results = [result for result, _ in tested]
        lines += [f"## {name.capitalize()}", "", *wrapped(BENCHMARKS[name]), ""]
        lines += [line for told in shown(tested) for line in wrapped(told, "- ")] + [""]
        for sheet in by_task(tested):
            lines += [f"### {sheet.title}", "", *table(sheet)]
        lines += [*wrapped(cost(results)), "", *rates(our_rows(results, lambda result: result.task)), ""]
        lines += [*[line for told in stamps(results) for line in wrapped(told, "- ")], ""]
    return "\n".join(lines)


def shown(tested: Tested) -> Iterator[str]:
    """What the paired differences say, a sentence for each task and method."""
    for task in dict.fromkeys(result.task for result, _ in tested):
        runs: dict[str, dict[int, ByExample]] = {}
        for result, examples in tested:
            if result.task == task and examples is not None:
                runs.setdefault(result.title or result.method, {})[result.seed] = examples
        ours = runs.pop(OURS, {})
        for other, theirs in runs.items():
            seeds = sorted(ours.keys() & theirs.keys())
            if gap := Pairs.of([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], "loss"):
                sure = abs(gap.mean) > SURE * gap.error
                told = ("ahead of" if gap.mean < 0 else "behind") if sure else "not told apart from"
                yield f"{task}: GLoRA is {told} {other} by the loss on test, {gap.mean:+.3f} ± {SURE * gap.error:.3f}."


def cost(results: Sequence[Result]) -> str:
    """What the searches took beside the trainings."""
    ours = [result for result in results if result.seconds.get("search")]
    share = sum(result.seconds["search"] for result in ours) / sum(result.seconds["train"] for result in ours)
    return f"The searches took {100 * share:.0f}% of the seconds of the trainings before them."


def committed() -> dict[str, Tested]:
    """The results of the benchmarks that have some."""
    folders = {name: ROOT / "results" / name for name in BENCHMARKS}
    return {name: list(read_tested([folder])) for name, folder in folders.items() if (folder / "results").is_dir()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(committed()), encoding="utf-8")


if __name__ == "__main__":
    main()
