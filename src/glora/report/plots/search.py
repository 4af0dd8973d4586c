"""The picture of a search: every candidate, the front, the winner and its controls (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from glora.errors import ConfigError
from glora.report.metrics import RAW_SCORE, MetricInfo
from glora.report.outcome import Row, row_title
from glora.report.plots.figures import FRONT, INK, count_axis, figure, save, whole_numbers

__all__ = ["search_plot"]

CONTROL_LOOKS = {  # control -> marker and colour
    "random_mean": ("D", "#0072B2"),
    "random_best": ("s", "#0072B2"),
    "largest": ("^", "#CC79A7"),
    "retrained": ("P", "#009E73"),
    "unpolished": ("v", "#009E73"),
    "before_final": ("v", "#009E73"),
}
BEYOND = 1.3  # a control this many times as large as anything scored is drawn at the edge


class Scored(Protocol):
    """What a plot reads of a trial: `glora.searchers.Trial` is one."""

    @property
    def parameters(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def score(self) -> Any: ...
    @property
    def seen(self) -> float: ...


def search_plot(
    trials: Sequence[Scored],
    front: Sequence[Scored],
    winner: Scored,
    path: str | Path,
    *,
    fitness: str = "score",
    metrics_info: Sequence[MetricInfo] = (),
    budget: int | None = None,
    controls: Mapping[str, Row] | None = None,
    unit: str = "examples",
    title: str = "",
) -> dict[str, Any]:
    """Every scored genotype, score against trainable numbers, with the front, the winner and its controls.

    Args:
        trials: What the search scored; trials without a finite score are counted but not drawn.
        front: The trials that no other beats in both.
        winner: The trial chosen.
        path: The figure's file, `.svg`, `.png` or `.pdf`.
        fitness: Name of the metric that was searched; `"score"` draws the scores as they are.
        metrics_info: The metrics, that of `fitness` among them. The score of one that is better when lower is its
            negative; drawn is the metric itself.
        budget: Drawn as a line when given.
        controls: The rows of an `Outcome`: what the winner was compared with, on val, and the winner on the examples
            set aside; not drawn with the fitness `"score"`.
        unit: What an example is, in the plural.
        title: Instead of the plot's own title.

    Returns:
        The numbers drawn; scores as the search knew them.

    Raises:
        ConfigError: The suffix or the fitness is unknown.
        MissingExtraError: matplotlib is not installed.
    """
    metrics = {"score": RAW_SCORE} | {each.name: each for each in metrics_info}
    if fitness not in metrics:
        raise ConfigError(f"fitness={fitness!r} is not allowed.", allowed=f"Allowed: {', '.join(sorted(metrics))}.")
    metric = metrics[fitness]
    drawing = figure(7.6, 5.2)
    axes = drawing.subplots()
    dots = _trials(axes, trials, metric)
    _front(axes, [trial for trial in front if math.isfinite(trial.score.value)], metric)
    rows = dict(controls or {})
    if metric is not RAW_SCORE:
        reach = BEYOND * max([budget or 0, *(trial.parameters for trial in trials)])
        _controls(axes, {name: row for name, row in rows.items() if name in CONTROL_LOOKS}, metric, reach)
        _aside(axes, winner, rows.get("winner", {}), metric, unit)
    _winner(axes, winner, metric)
    if budget is not None:
        axes.axvline(budget, color=INK, linewidth=1, linestyle=":", label=f"budget: {budget:,} numbers")
    if len({trial.generation for trial in trials}) > 1:
        drawing.colorbar(dots, ax=axes, label="generation", ticks=whole_numbers(), pad=0.02)
    axes.set(xlabel="trainable numbers, without the head", ylabel=_axis_title(metric))
    axes.set_title(title or f"Every genotype of the search: {len(trials):,} scored, {len(front)} on the front")
    count_axis(axes.xaxis)
    axes.margins(0.06)
    axes.grid(alpha=0.25)
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    data: dict[str, Any] = {"fitness": fitness, "budget": budget, "winner": _record(winner), "controls": rows}
    data |= {"trials": [_record(trial) for trial in trials], "front": [_record(trial) for trial in front]}
    return save(drawing, path, data)


def _axis_title(metric: MetricInfo) -> str:
    if metric is RAW_SCORE:
        return "score (higher is better)"
    return f"validation {metric.title}" + ("" if metric.higher else " (lower is better)")


def _drawn(score: float, metric: MetricInfo) -> float:
    """The height of a score: the metric itself, in % where it is shown so."""
    return metric.sign * metric.scaled(score)


def _record(trial: Scored) -> dict[str, Any]:
    record = {"parameters": trial.parameters, "score": trial.score.value, "seen": trial.seen}
    return record | {"standard_error": trial.score.standard_error, "generation": trial.generation}


def _trials(axes: Any, trials: Sequence[Scored], metric: MetricInfo) -> Any:
    """The dots. What has left a race was scored on fewer examples, compares with no other, and is only counted."""
    finite = [trial for trial in trials if math.isfinite(trial.score.value)]
    every = [trial.generation for trial in finite]
    style = {"s": 20, "alpha": 0.75, "linewidths": 0, "cmap": "cividis"}
    style |= {"vmin": min(every, default=0), "vmax": max(every, default=1)}
    shown = [trial for trial in finite if trial.seen == 1]
    x, y = [trial.parameters for trial in shown], [_drawn(trial.score.value, metric) for trial in shown]
    text = f"scored genotype ({len(shown):,})"
    dots = axes.scatter(x, y, c=[trial.generation for trial in shown], label=text, **style)
    if left := len(finite) - len(shown):
        axes.scatter([], [], c=[], label=f"left the race, not drawn ({left:,})", **style)
    return dots


def _front(axes: Any, front: Sequence[Scored], metric: MetricInfo) -> None:
    ordered = sorted(front, key=lambda trial: trial.parameters)
    x, y = [trial.parameters for trial in ordered], [_drawn(trial.score.value, metric) for trial in ordered]
    style = {"color": FRONT, "linewidth": 1.4, "marker": "o", "markersize": 5, "markerfacecolor": "none"}
    axes.plot(x, y, drawstyle="steps-post", label=f"front ({len(front)})", zorder=3, **style)


def _controls(axes: Any, rows: Mapping[str, Row], metric: MetricInfo, reach: float) -> None:
    """Each control on val with its standard error; one far larger than what was scored at the right edge."""
    right = max([axes.get_xlim()[1], *(row["parameters"] or 0 for row in rows.values() if _within(row, reach))])
    for name, row in rows.items():
        value, error = (row.get(f"val_{metric.name}{end}") for end in ("", "_standard_error"))
        if value is None:
            continue
        marker, colour = CONTROL_LOOKS[name]
        far = "" if _within(row, reach) else f" ({row['parameters']:,.0f} numbers, off the scale)"
        style = {"marker": ">" if far else marker, "color": colour, "markersize": 7, "markeredgecolor": INK}
        x = right if far else row["parameters"]
        bars = {"yerr": metric.scaled(error or 0), "capsize": 2, "elinewidth": 1, "linestyle": "none", "zorder": 4}
        axes.errorbar(x, metric.scaled(value), label=f"{row_title(name, row)}{far}", clip_on=not far, **style, **bars)


def _within(row: Row, reach: float) -> bool:
    return (row["parameters"] or 0) <= reach


def _aside(axes: Any, winner: Scored, row: Row, metric: MetricInfo, unit: str) -> None:
    """A bar at what the winner does on the examples set aside."""
    value, error = (row.get(f"aside_{metric.name}{end}") for end in ("", "_standard_error"))
    if value is None:
        return
    label = f"winner, set-aside {unit}: {metric.quantity(value, error)}"
    style = {"marker": "_", "markersize": 22, "markeredgewidth": 2, "color": INK, "linestyle": "none"}
    axes.plot(winner.parameters, metric.scaled(value), label=label, zorder=7, **style)


def _winner(axes: Any, winner: Scored, metric: MetricInfo) -> None:
    error = winner.score.standard_error or None
    text = metric.quantity(metric.sign * winner.score.value, error)
    label = f"winner: {text} ({winner.parameters:,} numbers)"
    star = {"fmt": "*", "markersize": 15, "color": FRONT, "markeredgecolor": INK}
    bar = {"yerr": metric.scaled(error) if error else None, "ecolor": INK, "elinewidth": 1, "capsize": 3}
    axes.errorbar(winner.parameters, _drawn(winner.score.value, metric), label=label, zorder=6, **star, **bar)
