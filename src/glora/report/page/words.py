"""What a page says of a run: what was asked, the verdict, its cost, its settings, how to load it (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glora.report.outcome import SPLITS, TITLES, row_title
from glora.report.page.record import RunRecord
from glora.report.tables import trainable

__all__ = ["asked", "cost", "loading", "measured", "verdict"]

STATES = {
    "begun": "It has begun.",
    "training": "It is training.",
    "trained": "It is trained, and neither searched nor tested.",
    "searching": "Its search is going on, or was stopped.",
    "searched": "It is searched, and not tested yet.",
    "tested": "It is tested.",
}
STAGES = {  # as a page calls them
    "train": "training",
    "rate": "choosing the learning rate",
    "final": "training on train and val",
    "check": "winner and controls on val",
}
OF_TEXTS = ("language", "choose", "verbalize")  # objectives
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def asked(run: RunRecord) -> list[tuple[str, str]]:
    """What was asked, a name and a value each."""
    settings = run.settings
    result = run.result
    found = {
        "Task": result.task if result else _at(settings, "data.source"),
        "Objective": _at(settings, "objective.name"),
        "Model": result.model if result else _at(settings, "model.name"),
        "Method": (result.title or result.method) if result else _at(settings, "method.name"),
        "Training": _training(settings),
        "Budget": _budget(run),
        "Seed": _at(settings, "seed"),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _training(settings: Mapping[str, Any]) -> str:
    epochs, size = _at(settings, "train.epochs"), _at(settings, "train.batch_size")
    if epochs == "auto":
        return f"epochs by val, at most {_at(settings, 'train.most_epochs')}, in batches of {size}"
    return "" if epochs is None else f"{epochs} epochs in batches of {size}"


def _budget(run: RunRecord) -> str:
    if run.outcome is None:
        return ""
    budget, least = run.outcome.budget, run.outcome.min_budget
    if budget is None:
        return "any number of trainable numbers"
    return f"{least:,} to {budget:,} trainable numbers" if least else f"at most {budget:,} trainable numbers"


def _at(settings: Mapping[str, Any], key: str) -> Any:
    """The setting at a dotted name; None where there is none."""
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def verdict(run: RunRecord) -> list[str]:
    """How good the model is and whether searching was worth it: two sentences."""
    first = _how_good(run) or STATES[run.state]
    if run.outcome is not None:
        second = run.outcome.comparisons
        random = [line for line in second if "random genotypes" in line]
        best = [line for line in random if "best of" in line]
        return [first, (best or random or list(second) or [run.outcome.how_chosen])[0]]
    if run.result is None:
        return [first]
    size = (
        f"{trainable(run.result.parameters)} trainable numbers beside a head of {trainable(run.result.head_parameters)}"
    )
    return [first, f"Nothing was searched: {run.result.title or run.result.method} has {size}."]


def _how_good(run: RunRecord) -> str:
    """The first metric on the most honest split, with its standard error; empty as long as there is none."""
    numbers = run.result.metrics if run.result else run.outcome.rows.get("winner", {}) if run.outcome else {}
    for metric in run.metrics[:1]:
        for split, called in SPLITS.items():
            value = numbers.get(f"{split}_{metric.name}")
            if value is not None:
                error = numbers.get(f"{split}_{metric.name}_standard_error")
                many = f"{numbers.get(f'{split}_examples') or 0:,.0f} {called} {run.unit}"
                return f"Your model: {metric.name} {metric.quantity(value, error)} on {many}."
    return ""


def measured(run: RunRecord) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table: every metric on every split of the model and of what it was compared with."""
    result = run.result
    rows = result.rows if result else run.outcome.rows if run.outcome else {}
    every = [(metric, split) for metric in run.metrics for split in SPLITS]
    shown = [(m, s) for m, s in every if any(row.get(f"{s}_{m.name}") is not None for row in rows.values())]
    titles = ["", "trainable", *(f"{SPLITS[split]} {metric.title}" for metric, split in shown)]
    found = []
    for name, row in rows.items():
        title = "model" if name == "winner" and run.outcome is None else _title(name, row)
        cells = [title, trainable(row.get("parameters") or 0)]
        for metric, split in shown:
            value = row.get(f"{split}_{metric.name}")
            error = row.get(f"{split}_{metric.name}_standard_error")
            cells.append("–" if value is None else metric.number(value, error))
        found.append(cells)
    return titles, found


def _title(name: str, row: Mapping[str, float | None]) -> str:
    return row_title(name, row) if name in TITLES else name


def cost(run: RunRecord) -> list[tuple[str, str]]:
    """What the run took: time, passes over examples, memory, and the merged model's speed."""
    result = run.result
    if result is None:
        return []
    found = [(f"Time, {STAGES.get(stage, stage)}", _duration(seconds)) for stage, seconds in result.seconds.items()]
    found += [
        (f"Passes of an example, {STAGES.get(stage, stage)}", f"{steps:,}")
        for stage, steps in result.example_steps.items()
    ]
    found += [(f"Tokens, {STAGES.get(stage, stage)}", f"{tokens:,}") for stage, tokens in result.tokens.items()]
    if result.memory_bytes is not None:
        found.append(("Peak memory of the process", f"{result.memory_bytes / 2**30:.2f} GiB"))
    if result.latency and result.latency.get("ratio"):
        found.append(("Time of the merged model over the plain backbone's", f"{result.latency['ratio']:.2f}"))
    return [*found, ("Device", result.device)]


def _duration(seconds: float) -> str:
    for limit, unit in UNITS:
        if seconds >= limit:
            return f"{seconds / limit:.1f} {unit}"
    return f"{seconds:.1f} s"


def loading(run: RunRecord) -> list[tuple[str, str]]:
    """How the model is used: a title and lines of code each; none of a run whose adapter is not here."""
    if not (run.path / "adapter.safetensors").is_file():
        return []
    folder = run.path.name
    base = "" if _at(run.settings, "model.name") != "from_python" else ", model=model"
    objective = _at(run.settings, "objective.name")
    reads_texts = objective in OF_TEXTS or bool(run.texts)
    what, merged = ('"A TEXT"', "merged") if reads_texts else ("FILES", "merged.safetensors")
    given = what if reads_texts else '"FILE"'
    python = f'import glora\n\nrun = glora.load("{folder}"{base})\nrun.predict([{given}])\nrun.model  # plain, merged'
    chat = f"glora chat {folder}\n" if objective == "language" else ""
    return [
        ("In the shell", f"{chat}glora predict {folder} {what}\nglora merge {folder} --out {merged}"),
        ("In Python", python),
    ]
