"""The model card of an export: README.md with the metadata that model hubs read (no torch)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from glora.genotype import TENSORS, Genotype
from glora.report.metrics import MetricInfo
from glora.report.outcome import Outcome
from glora.report.result import Result, versions
from glora.version import __version__

__all__ = ["Base", "Facts", "Loading", "model_card"]

SPLITS = ("test", "aside", "val")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base that was adapted.

    Attributes:
        name: What it is called: on a hub, in timm, or a folder; the class of a model of a program's.
        library: What it is of: `timm`, `transformers` or `pytorch`.
        module: What is imported to build it; empty where a program gave it.
        build: The expression that builds it; empty where a program gave it.
    """

    name: str
    library: str
    module: str = ""
    build: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card tells of what was trained.

    Attributes:
        base: The base.
        method: What it was trained by, such as `"GLoRA"`.
        task: Name of the data; empty where it is not known.
        objective: What was learned, in a word: `"classify"`; empty: unknown.
        genotype: The active genotype; None of a method without one.
        parameters: Trainable numbers in use, without the head.
        head: Numbers of the modules trained whole.
        result: The run's record, where it was tested.
        outcome: The search that chose the genotype, where there was one.
    """

    base: Base
    method: str = "GLoRA"
    task: str = ""
    objective: str = ""
    genotype: Genotype | None = None
    parameters: int | None = None
    head: int = 0
    result: Result | None = None
    outcome: Outcome | None = None
    versions: Mapping[str, str] = field(default_factory=versions)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "glora": __version__,
            "base": self.base.name,
            "method": self.method,
            "task": self.task,
            "objective": self.objective,
            "genotype": None if self.genotype is None else self.genotype.to_json(),
            "parameters": self.parameters,
            "head_parameters": self.head,
            "metrics": {} if self.result is None else dict(self.result.metrics),
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How an export is loaded.

    Attributes:
        library: The hub's `library_name`.
        code: Lines of Python, run in the folder that the export's folder lies in.
        tags: The hub's tags.
        comment: A sentence on names that the lines use; empty where they stand alone.
    """

    library: str
    code: tuple[str, ...]
    tags: tuple[str, ...] = ()
    comment: str = ""


def model_card(facts: Facts, to: str, loading: Loading, notes: Sequence[str]) -> str:
    """The text of README.md: the hub's metadata, then the card."""
    parts = [
        f"# {facts.base.name}{f' for {facts.task}' if facts.task else ''}",
        f"`{facts.base.name}` ({facts.base.library}) adapted with [GLoRA](https://arxiv.org/abs/2306.07967), "
        f"glora {__version__}; the format is `{to}`.",
        _section("How to load", _code(loading)),
        _section("What was trained", _trained(facts)),
        _section("How good it is", _metrics(facts.result)),
        _section("How it was chosen", _chosen(facts)),
        _section("Notes", "\n".join(f"- {note}" for note in notes)),
        _section("Versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + "."),
    ]
    front = yaml.safe_dump(_metadata(facts, loading), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _metadata(facts: Facts, loading: Loading) -> dict[str, Any]:
    """The keys of a hub's card; those of which nothing is known are left out."""
    metrics = [] if facts.result is None else [metric.name for metric in facts.result.metrics_info]
    found = {
        "base_model": facts.base.name,
        "library_name": loading.library,
        "tags": ["glora", *loading.tags],
        "datasets": [facts.task] if facts.task else [],
        "metrics": metrics,
    }
    return {key: value for key, value in found.items() if value}


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _code(loading: Loading) -> str:
    comment = f"\n\n{loading.comment}" if loading.comment else ""
    return "```python\n" + "\n".join(loading.code) + f"\n```{comment}"


def _trained(facts: Facts) -> str:
    lines = [f"- Base: {facts.base.name}", f"- Method: {facts.method}"]
    if facts.task:
        lines.append(f"- Task: {facts.task}{f' ({facts.objective})' if facts.objective else ''}")
    if facts.parameters is not None:
        lines.append(f"- Trainable numbers: {facts.parameters:,}, and {facts.head:,} of the head")
    text = "\n".join(lines)
    return text if facts.genotype is None else f"{text}\n\n{_genotype(facts.genotype)}"


def _genotype(genotype: Genotype) -> str:
    """How many layers have which choice of every support tensor; site by site it is in the card's file."""
    rows = []
    for tensor in TENSORS:
        counts = Counter(str(getattr(config, tensor)) for config in genotype.values())
        shown = ", ".join(f"{count} {choice}" for choice, count in sorted(counts.items()) if choice != "none")
        rows.append(f"| {tensor} | {shown or 'none'} |")
    head = f"The genotype: choices of the support tensors at {len(genotype)} layers (`glora.json` has each).\n\n"
    return head + "\n".join(["| support tensor | layers and choices |", "|---|---|", *rows])


def _metrics(result: Result | None) -> str:
    """A table of the metrics with their standard errors, from the most honest split on."""
    if result is None:
        return ""
    rows = [
        f"| {metric.title} | {split} | {_number(metric, result.metrics, split)} | "
        f"{result.metrics.get(f'{split}_examples') or 0:,.0f} |"
        for split in SPLITS
        for metric in result.metrics_info
        if result.metrics.get(f"{split}_{metric.name}") is not None
    ]
    header = "| metric | split | value ± standard error | examples |\n|---|---|---|---|\n"
    return header + "\n".join(rows) if rows else ""


def _number(metric: MetricInfo, metrics: Mapping[str, float | None], split: str) -> str:
    value, error = (metrics.get(f"{split}_{metric.name}{end}") for end in ("", "_standard_error"))
    assert value is not None
    return metric.number(value, error if error is None or math.isfinite(error) else None)


def _chosen(facts: Facts) -> str:
    found = facts.outcome or facts.result
    return "" if found is None else "\n".join(f"- {line}" for line in found.verdict)
