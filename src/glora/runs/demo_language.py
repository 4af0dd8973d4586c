"""The main job on a packaged language model and real packaged text: the base, LoRA and the searched GLoRA, one table.

Then what the base and the tuned model answer to three words that neither was tuned on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from glora.config import Experiment, build_experiment
from glora.report.folders import read_tested
from glora.report.metrics import MetricInfo
from glora.report.result import Result
from glora.runs.by_task import SURE, Pairs
from glora.runs.chat import Reply
from glora.runs.demo import winner_and_lora
from glora.runs.open_chat import open_chat
from glora.runs.run import Reporter
from glora.tasks.texts import DialogSet

__all__ = ["Answer", "base_row", "demo_experiment", "run_demo", "verdict"]

TEMPLATE = (  # the model's own, without the system message that it puts before all: half of a short row
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEMO: dict[str, Any] = {
    "model": {"name": "smollm2_135m"},
    "data": {"source": "wordnet_words", "train": 240, "val": 64, "test": 120, "template": TEMPLATE},
    "train": {"epochs": 2, "batch_size": 8},
    "search": {
        "searcher": {"population": 6, "generations": 1, "parents": 2, "mutations": 2, "crossovers": 2},
        "rescore": 3,
        "controls": 0,
        "calibrate": False,
        "budget": "1.2M",
    },
}
QUICK: dict[str, Any] = {
    **DEMO,
    "data": {**DEMO["data"], "train": 8, "val": 8, "test": 8},
    "train": {"epochs": 1, "batch_size": 8},
    "search": {
        **DEMO["search"],
        "searcher": {"population": 2, "generations": 0, "parents": 2, "mutations": 0, "crossovers": 0},
    },
}
ANSWERS, LONGEST = 3, 32  # questions, and tokens of an answer


class Answer(NamedTuple):
    """A question of the test split.

    Attributes:
        question: What is asked.
        right: What WordNet says.
        before: What the base says.
        after: What the tuned model says.
    """

    question: str
    right: str
    before: str
    after: str


def demo_experiment(*, quick: bool = False, seed: int = 0, model: str = "") -> Experiment:
    """The demo's GLoRA experiment; `quick` only shows that everything works.

    Args:
        quick: A few steps and candidates only.
        seed: Of everything random.
        model: Another causal model than the demo's.
    """
    given = QUICK if quick else DEMO
    return build_experiment({**given, "model": {"name": model or given["model"]["name"]}, "seed": seed})


def run_demo(
    folder: str | Path, reporter: Reporter, *, quick: bool = False, seed: int = 0, model: str = ""
) -> tuple[list[Result], list[Answer]]:
    """The base, LoRA at the budget of GLoRA's winner, and GLoRA: same rows, passes and batches; and some answers.

    LoRA's rank is the smallest whose numbers are not below the winner's.

    Args:
        folder: Gets a run folder per method; finished ones are not done again.
        reporter: Where to tell what is going on.
        quick: A few steps and candidates only.
        seed: Of everything random.
        model: Another causal model than the demo's.

    Returns:
        Their results, in the table's order, and answers of the base and of GLoRA's winner.
    """
    folder = Path(folder)
    glora = demo_experiment(quick=quick, seed=seed, model=model)
    run, winner, lora = winner_and_lora(glora, folder, reporter)
    reporter.say(f"Answers of the base and of GLoRA to {ANSWERS} words of the test")
    answers = _answers(cast(DialogSet, run.task.test), glora.model.name, folder / "glora")
    return [base_row(winner), lora, winner], answers


def base_row(tuned: Result) -> Result:
    """The pretrained model as a run of its own, as the run of a tuned one has measured it."""
    base = tuned.controls["base"]
    metrics = {name: value for name, value in base.items() if name.startswith("test_") and "_ahead" not in name}
    nothing: dict[str, Any] = {"parameters": 0, "latency": None, "seconds": {}, "example_steps": {}, "tokens": {}}
    nothing["controls"] = {}
    return replace(tuned, method="base", title="Base", winner="", verdict=(), metrics=metrics, **nothing)


def _answers(test: DialogSet, base: str, tuned: Path) -> list[Answer]:
    rows = [row.messages for row in test.rows[:ANSWERS]]
    every = []
    for source in (base, tuned):
        chat = open_chat(source, reply=Reply(most=LONGEST))
        every.append([_one_line(chat.reply_to([question])) for question, _ in rows])
    return [
        Answer(question.text, right.text, before, after)
        for (question, right), before, after in zip(rows, *every, strict=True)
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def verdict(results: Sequence[Result], folder: str | Path) -> str:
    """In words, whether the searched GLoRA is better on test than the base and than LoRA, with 95% intervals.

    Args:
        results: What `run_demo` gave.
        folder: Its folder.
    """
    base, lora, glora = results
    metric: MetricInfo = glora.metrics_info[0]
    ahead = [glora.controls["base"][f"test_{metric.name}_ahead{end}"] or 0.0 for end in ("", "_standard_error")]
    every = [found for _, found in read_tested(Path(folder) / name for name in ("glora", "lora")) if found is not None]
    pairs = {
        base.title: Pairs(metric.sign * ahead[0], ahead[1]),
        lora.title: Pairs.of(every[:1], every[1:], metric.name),
    }
    return "\n".join(_told(glora.title, name, found, metric) for name, found in pairs.items() if found is not None)


def _told(mine: str, other: str, pairs: Pairs, metric: MetricInfo) -> str:
    better = metric.sign * pairs.mean
    verb = (
        "beats" if better > SURE * pairs.error else "is worse than" if better < -SURE * pairs.error else "is as good as"
    )
    return f"{mine} {verb} {other} on test: {metric.title} {pairs.text(metric)}"
