"""Methods on tasks of any kind, a table for each task: every metric, and differences in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glora.errors import RunError
from glora.report.examples import ByExample
from glora.report.metrics import MetricInfo
from glora.report.paper.rows import OurRow, our_rows
from glora.report.result import Result
from glora.report.sheet import Cell, Column, Line, Sheet
from glora.report.tables import trainable
from glora.tasks.evaluation import mean_and_error

__all__ = ["SURE", "Pairs", "by_task"]

SURE = 1.96  # standard errors on either side of a 95% interval
SPREAD = "On test; ± is the standard deviation between seeds, or of one seed the standard error over the examples."
PAIRED = (
    "{0} minus it has the 95% interval of the difference over the test examples, in pairs and averaged over the seeds "
    "that both have."
)
STAGES = ("train", "search")


@dataclass(frozen=True)
class Pairs:
    """The difference of two models, example by example.

    Attributes:
        mean: The first minus the second.
        error: Its standard error.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, first: Sequence[ByExample], second: Sequence[ByExample], name: str) -> Pairs | None:
        """The mean difference in a metric over examples, of the means over runs; None where it is not known.

        Args:
            first: What models of one row do, a seed each. second: Those of the other, of the same seeds.
            name: The metric.
        """
        every = [*first, *second]
        known = [each.values.get(name, ()) for each in every]
        same = len({(each.data, each.weights) for each in every}) == 1 and len({*map(len, known)}) == 1
        if not (first and same and known[0]) or any(value is None for values in known for value in values):
            return None
        means = [_means([each.values[name] for each in some]) for some in (first, second)]
        weights = None if first[0].weights is None else torch.tensor(first[0].weights, dtype=torch.float64)
        return cls(*mean_and_error(means[0] - means[1], weights))

    def text(self, metric: MetricInfo) -> str:
        """Such as `"-0.12 [-0.20, -0.04]"`, in the metric's own unit or in points."""
        ends = (self.mean, self.mean - SURE * self.error, self.mean + SURE * self.error)
        digits = ".1f" if metric.percent else ".3f"
        mean, low, high = (format(metric.scaled(each), f"+{digits}") for each in ends)
        return f"{mean} [{low}, {high}]"


def _means(runs: Sequence[Sequence[float | None]]) -> Tensor:
    """The mean over runs of each example, `(n,)`."""
    return torch.tensor(runs, dtype=torch.float64).mean(0)


Tested = tuple[Result, ByExample | None]


def by_task(tested: Iterable[Tested]) -> list[Sheet]:
    """A table for every task: rows are methods, columns the metrics, and how far the searched method is ahead.

    The pretrained model, where it can do the task as it is, is a row of its own.

    Args:
        tested: The runs, each with what it does on every test example, where that is kept.

    Raises:
        RunError: None of them was tested.
    """
    every = list(tested)
    found = [each for each in every if any(name.startswith("test_") for name in each[0].metrics)]
    if not found:
        raise RunError(f"None of the {len(every)} results has a metric on test.", remedy="Test them: glora eval RUN")
    left = len(every) - len(found)
    told = [f"{left} results have no metric on test and are left out."] if left else []
    tasks = dict.fromkeys((result.task, result.objective) for result, _ in found)
    return [_sheet([each for each in found if (each[0].task, each[0].objective) == task], told) for task in tasks]


def _sheet(tested: Sequence[Tested], told: Sequence[str]) -> Sheet:
    examples = {id(result): found for result, found in tested}
    results = [result for result, _ in tested]
    rows = our_rows(results, lambda result: "")
    metrics = results[0].metrics_info
    reference = _reference(rows)
    pairs = {row.name: _pairs(reference, row, metrics, examples) for row in rows if reference and row is not reference}
    paired = [m for m in metrics if m in metrics[:1] or m.name == "loss"]
    paired = [metric for metric in paired if any(metric.name in found for found in pairs.values())]
    columns = [Column("parameters", "trainable"), Column("seeds", "seeds", form=".0f")]
    columns += [Column(m.name, m.title, form=".1f" if m.percent else m.show) for m in metrics]
    columns += [Column(f"{m.name}_ahead", f"{reference.name} minus it, {m.title}") for m in paired if reference]
    columns += [Column(stage, f"{stage}, s", form=",.0f") for stage in STAGES]
    lines = _base(results, metrics)
    lines += [Line(row.name, {**_cells(row, metrics), **_shown(pairs.get(row.name, {}), metrics)}) for row in rows]
    caption = (SPREAD, *([PAIRED.format(reference.name)] if reference and paired else []), *told)
    models = ", ".join(dict.fromkeys(result.model for result in results))
    return Sheet(f"{results[0].task}, {models}", tuple(columns), tuple(lines), caption)


def _reference(rows: Sequence[OurRow]) -> OurRow | None:
    """The first row that was searched, of several rows."""
    searched = [row for row in rows if any(result.winner for result in row.every())]
    return searched[0] if searched and len(rows) > 1 else None


def _pairs(
    reference: OurRow, row: OurRow, metrics: Sequence[MetricInfo], examples: Mapping[int, ByExample | None]
) -> dict[str, Pairs]:
    """Metric -> how far the reference is from a row."""
    of = [{run.seed: examples[id(run)] for run in each.every()} for each in (reference, row)]
    seeds = [seed for seed in of[0] if of[0][seed] is not None and of[1].get(seed) is not None]
    first, second = ([found for seed in seeds if (found := runs[seed]) is not None] for runs in of)
    every = {metric.name: Pairs.of(first, second, metric.name) for metric in metrics}
    return {name: found for name, found in every.items() if found is not None}


def _shown(pairs: Mapping[str, Pairs], metrics: Sequence[MetricInfo]) -> dict[str, Cell]:
    return {f"{m.name}_ahead": Cell(note=pairs[m.name].text(m)) for m in metrics if m.name in pairs}


def _cells(row: OurRow, metrics: Sequence[MetricInfo]) -> dict[str, Cell]:
    runs = row.every()
    counts = sorted({result.parameters for result in runs})
    cells = {"parameters": Cell(note=" to ".join(map(trainable, dict.fromkeys((counts[0], counts[-1])))))}
    for metric in metrics:
        cells[metric.name] = _measured([result.metrics for result in runs], metric)
    for stage in STAGES:
        cells[stage] = Cell.over([result.seconds[stage] for result in runs if stage in result.seconds])
    return {**cells, "seeds": Cell(len(runs))}


def _base(results: Sequence[Result], metrics: Sequence[MetricInfo]) -> list[Line]:
    """The row of the pretrained model, which every run of a language model has measured alike."""
    found = next((result.controls["base"] for result in results if "base" in result.controls), None)
    if found is None:
        return []
    return [Line("Base", {"parameters": Cell(note="0"), **{m.name: _measured([found], m) for m in metrics}})]


def _measured(rows: Sequence[Mapping[str, float | None]], metric: MetricInfo) -> Cell:
    """The mean over runs with their spread; of one run with its standard error."""
    values = [value for row in rows if (value := row.get(f"test_{metric.name}")) is not None]
    if len(values) == 1:
        error = rows[0].get(f"test_{metric.name}_standard_error")
        return Cell(metric.scaled(values[0]), None if error is None else metric.scaled(error))
    return Cell.over([metric.scaled(value) for value in values])
