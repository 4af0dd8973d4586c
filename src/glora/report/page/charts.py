"""The charts of one run: learning, the search, numbers by layer type, calibration, confusions (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from glora.report.metrics import RAW_SCORE, MetricInfo
from glora.report.outcome import row_title
from glora.report.page.classes import Classified
from glora.report.page.record import RunRecord, Scored
from glora.report.page.svg import WIDTH, Axis, Chart, Key, Plot, framed, short
from glora.report.page.winner import Numbers
from glora.report.tables import trainable

__all__ = ["calibration_chart", "confusion_chart", "learning_charts", "numbers_chart", "search_chart"]

STYLES = ("s0", "s1", "s2", "s3", "s4")
APART = ("s0", "s1", "s2", "s4", "s3")  # what stand side by side most often differ most
CONTROLS = {  # control -> mark and colour
    "random_mean": ("diamond", "s0"),
    "random_best": ("square", "s0"),
    "largest": ("up", "s3"),
    "retrained": ("right", "s2"),
    "unpolished": ("down", "s2"),
    "before_final": ("down", "s2"),
}
BEYOND = 1.1  # a control this many times as large as anything scored is drawn at the edge
CONFUSED = 40  # classes at most in the picture of confusions
LOSS = MetricInfo("loss", False, ".4g")
CELL_TEXTS = 16  # and with their counts written


def learning_charts(run: RunRecord, name: str) -> list[Chart]:
    """The loss of training over epochs, and the metric beside it where training knows one."""
    found = [_learning(run.curves, "loss", LOSS, f"{name}-loss")]
    metric = next((r["metric_name"] for records in run.curves.values() for r in records if r.get("metric_name")), "")
    if metric and metric != "loss":
        known = {each.name: each for each in run.metrics}.get(metric, MetricInfo(metric, True, ".4g"))
        found.append(_learning(run.curves, "metric", known, f"{name}-metric"))
    return [chart for chart in found if chart is not None]


def _learning(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], field: str, metric: MetricInfo, name: str
) -> Chart | None:
    lines = {
        what: [(_epochs(r), float(r[field])) for r in records if r.get(field) is not None]
        for what, records in curves.items()
    }
    lines = {what: points for what, points in lines.items() if points}
    if not lines:
        return None
    every = [point for points in lines.values() for point in points]
    plot = Plot(
        Axis.over("epochs", [x for x, _ in every], counted=True),
        Axis.over(metric.name, [y for _, y in every], percent=metric.percent, zero=min(y for _, y in every) >= 0),
    )
    keys, told = [], []
    for place, (what, points) in enumerate(lines.items()):
        style = STYLES[place % len(STYLES)]
        plot.line(points, style)
        for x, y in points:
            plot.dot(x, y, "dot", style, f"{what}, epoch {x:g}: {metric.quantity(y)}")
        if len(lines) > 1:
            keys.append(Key("line", style, what))
        first, last = (metric.quantity(points[end][1]) for end in (0, -1))
        told.append(f"{what}: from {first} to {last} in {points[-1][0]:g} epochs")
    rows = tuple((what, f"{x:g}", metric.number(y)) for what, points in lines.items() for x, y in points)
    title = f"Training {metric.name}"
    words = f"{'; '.join(told)}."
    return Chart(title, words, plot.svg(name, title, words), tuple(keys), ("of", "epoch", metric.title), rows)


def _epochs(record: Mapping[str, Any]) -> float:
    """How many epochs were done, a fraction where a record is of a step within one."""
    steps, epochs = record.get("steps") or 0, record.get("epochs") or 0
    return record["step"] * epochs / steps if steps and epochs else float(record.get("epoch") or record["step"])


def search_chart(run: RunRecord, name: str) -> Chart | None:
    """Every scored genotype, score against trainable numbers, with the front, the winner and its controls."""
    scored = [trial for trial in run.trials if trial.score is not None]
    if not scored:
        return None
    metric = _searched_metric(run)
    outcome = run.outcome
    largest = max(trial.parameters for trial in scored)
    controls = _placed_controls(run, metric, BEYOND * max(largest, 0 if outcome is None else outcome.budget or 0))
    heights = [_height(trial, metric) for trial in scored]
    heights += [end for _, _, y, error, _ in controls for end in (y - error, y + error)]
    widths = [float(trial.parameters) for trial in scored] + [x for _, x, *_ in controls]
    budget = None if outcome is None else outcome.budget
    plot = Plot(
        Axis.over("trainable numbers, without the head", [*widths, *([] if budget is None else [float(budget)])]),
        Axis.over(f"{metric.name} on val", heights, percent=metric.percent),
    )
    last = max(trial.generation for trial in scored) or 1
    for trial in scored:
        text = f"{trial.parameters:,} numbers, {metric.quantity(_height(trial, metric))}, generation {trial.generation}"
        plot.dot(
            trial.parameters, _height(trial, metric), "dot", "s0", text, faint=0.25 + 0.6 * trial.generation / last
        )
    front = sorted((trial for trial in run.front if trial.score is not None), key=lambda trial: trial.parameters)
    plot.line([(trial.parameters, _height(trial, metric)) for trial in front], "s1", steps=True)
    for trial in front:
        plot.dot(trial.parameters, _height(trial, metric), "ring", "s1", f"front: {trial.parameters:,} numbers")
    keys = [
        Key("dot", "s0", f"scored genotype ({len(scored):,}); fainter: earlier"),
        Key("ring", "s1", f"front ({len(front)})"),
    ]
    keys += _marks(plot, run, metric, controls, budget)
    told = _search_told(run, scored, front, metric)
    title = "Every genotype that the search has scored"
    rows = tuple((f"{t.parameters:,}", metric.quantity(_height(t, metric)), str(t.generation)) for t in front)
    columns = ("front: trainable numbers", f"{metric.title} on val", "generation")
    return Chart(title, told, plot.svg(name, title, told), tuple(keys), columns, rows)


def _searched_metric(run: RunRecord) -> MetricInfo:
    known = {metric.name: metric for metric in run.metrics}
    return RAW_SCORE if run.outcome is None else known.get(run.outcome.fitness, RAW_SCORE)


def _height(trial: Scored, metric: MetricInfo) -> float:
    """The metric itself, which is the negative of the score where lower is better."""
    return metric.sign * (trial.score or 0.0)


def _placed_controls(run: RunRecord, metric: MetricInfo, reach: float) -> list[tuple[str, float, float, float, str]]:
    """Name, place across, height, standard error and title of every control on val."""
    found = []
    for name, row in ({} if run.outcome is None else run.outcome.rows).items():
        value, size = row.get(f"val_{metric.name}"), row.get("parameters") or 0
        if name in CONTROLS and value is not None:
            far = f" ({size:,.0f} numbers, off the scale)" if size > reach else ""
            error = row.get(f"val_{metric.name}_standard_error") or 0.0
            found.append((name, min(size, reach), value, error, row_title(name, row) + far))
    return found


def _marks(plot: Plot, run: RunRecord, metric: MetricInfo, controls: Any, budget: int | None) -> list[Key]:
    """The controls, the winner and the budget drawn; and their legend."""
    keys = []
    for name, x, y, error, title in controls:
        shape, style = CONTROLS[name]
        shape = "right" if "off the scale" in title else shape
        plot.dot(x, y, shape, style, f"{title}: {metric.quantity(y, error)}", error=error)
        keys.append(Key(shape, style, f"{title}: {metric.quantity(y, error)}"))
    if run.outcome is not None and run.outcome.score is not None:
        value, error = metric.sign * run.outcome.score, run.outcome.standard_error
        text = f"winner: {metric.quantity(value, error or None)}, {run.outcome.parameters:,} numbers"
        plot.dot(run.outcome.parameters, value, "star", "s1", text, error=error)
        keys.append(Key("star", "s1", text))
    if budget is not None:
        plot.upright(budget, "budget")
        keys.append(Key("line", "budget", f"budget: {budget:,} numbers"))
    return keys


def _search_told(run: RunRecord, scored: Sequence[Scored], front: Sequence[Scored], metric: MetricInfo) -> str:
    sizes, heights = [t.parameters for t in scored], [_height(t, metric) for t in scored]
    told = (
        f"{len(scored):,} genotypes of {min(sizes):,} to {max(sizes):,} trainable numbers, {metric.name} on val from "
        f"{metric.quantity(min(heights))} to {metric.quantity(max(heights))}; {len(front)} are on the front."
    )
    if run.outcome is not None and run.outcome.score is not None:
        value = metric.quantity(metric.sign * run.outcome.score)
        told += f" The winner has {run.outcome.parameters:,} numbers and {value}."
    return told + (f" {run.left:,} more left the race early and are not drawn." if run.left else "")


def numbers_chart(types: Mapping[str, Numbers], roles: Mapping[str, str], name: str) -> Chart:
    """The trainable numbers of every layer type, by support tensor; in one piece of records that do not tell them.

    Args:
        types: Layer type -> its numbers.
        roles: Support tensor, or another column -> what it does.
        name: Unique on the page.

    Source: arXiv 2306.07967, Figure 3.
    """
    columns = tuple(dict.fromkeys(column for each in types.values() for column in each.by_column))
    styles = {column: APART[place % len(APART)] for place, column in enumerate(columns)}
    total = sum(each.total for each in types.values()) or 1
    largest = max((each.total for each in types.values()), default=1) or 1
    parts, y = [], 8.0
    for kind, each in types.items():
        parts.append(f'<text x="4" y="{y + 12}">{escape(kind[:60])}</text>')
        parts.append(_bar(kind, each, styles, y + 18, 280 / largest))
        end = f"{10 + 280 * each.total / largest:.1f}"
        parts.append(f'<text x="{end}" y="{y + 30}">{trainable(each.total)}, {100 * each.total / total:.0f} %</text>')
        y += 44
    title = "Trainable numbers by layer type"
    told = f"{'; '.join(_told(kind, each) for kind, each in types.items())}."
    picture = framed(name, title, told, "".join(parts), height=y)
    rows = tuple(
        (kind, str(n.sites), *(f"{n.by_column.get(column, 0):,}" for column in columns), f"{n.total:,}")
        for kind, n in types.items()
    )
    keys = tuple(Key("block", style, f"{column} {roles.get(column, '')}".rstrip()) for column, style in styles.items())
    return Chart(title, told, picture, keys, ("layer type", "sites", *columns, "trainable numbers"), rows)


def _bar(kind: str, numbers: Numbers, styles: Mapping[str, str], y: float, scale: float) -> str:
    """One layer type's bar, a part a column; with a hair between parts, which tells them apart without colours."""
    parts, x = [], 4.0
    for column, count in (numbers.by_column or {"": numbers.total}).items():
        width = count * scale
        told = escape(f"{kind}{', ' * bool(column)}{column}: {count:,}")
        size = f'width="{max(0.0, width - 0.8):.1f}" height="14"'
        if count:
            fill = f'<rect class="fill {styles.get(column, "s0")}" x="{x:.1f}" y="{y}" {size}>'
            parts.append(f"{fill}<title>{told}</title></rect>")
        if len(column) == 1 and width >= 12:
            place = f'x="{x + width / 2 - 0.4:.1f}" y="{y + 11}" text-anchor="middle"'
            parts.append(f'<text class="within" {place}>{escape(column)}</text>')
        x += width
    return "".join(parts)


def _told(kind: str, numbers: Numbers) -> str:
    parts = ", ".join(f"{column} {count:,}" for column, count in numbers.by_column.items() if count)
    of = f" ({parts})" if parts else ""
    return f"{kind}: {numbers.total:,} in {numbers.sites} sites{of}"


def calibration_chart(found: Classified, name: str) -> Chart:
    """How often predictions are right against how sure they are; on the diagonal the two agree.

    Source: Guo et al., arXiv 1706.04599, Figure 1.
    """
    plot = Plot(
        Axis("mean probability of what is predicted", 0.0, 1.0, True), Axis("share that is right", 0.0, 1.0, True)
    )
    most = max(each.examples for each in found.bins)
    for each in found.bins:
        low = int(min(each.confidence, 0.9999) * 10) / 10
        plot.box((low + 0.01, low + 0.09), (0, 0.25 * each.examples / most), "quiet", f"{each.examples:,} examples")
    plot.line([(0, 0), (1, 1)], "budget")
    plot.line([(each.confidence, each.accuracy) for each in found.bins], "s0")
    for each in found.bins:
        text = f"{each.examples:,} examples: {100 * each.confidence:.1f} % sure, {100 * each.accuracy:.1f} % right"
        plot.dot(each.confidence, each.accuracy, "dot", "s0", text, error=each.error)
    mean = 100 * found.calibration_error
    told = f"Expected calibration error {mean:.1f} points over {len(found.bins)} ranges of probability."
    keys = (
        Key("line", "s0", "the model, with one standard error"),
        Key("line", "budget", "as sure as it is right"),
        Key("block", "quiet", f"how many examples; the highest has {most:,}"),
    )
    rows = tuple((f"{100 * b.confidence:.1f} %", f"{100 * b.accuracy:.1f} %", f"{b.examples:,}") for b in found.bins)
    title = "Calibration"
    return Chart(title, told, plot.svg(name, title, told), keys, ("mean probability", "right", "examples"), rows)


def confusion_chart(found: Classified, name: str) -> Chart | None:
    """Which class is taken for which: a row a class, a column a prediction; None of more classes than can be seen."""
    count = len(found.names)
    if count > CONFUSED:
        return None
    left, top = 84, 44
    side = (WIDTH - left - 8) / count
    parts = [f'<text x="{left}" y="14">columns: predicted; rows: the class</text>']
    for row, (kind, counts) in enumerate(zip(found.names, found.confusion, strict=True)):
        y = top + row * side
        if side >= 9:
            cut = kind if len(kind) <= 13 else kind[:12] + "…"
            parts.append(f'<text x="{left - 5}" y="{y + side / 2 + 4:.1f}" text-anchor="end">{escape(cut)}</text>')
        for column, number in enumerate(counts):
            parts.append(_cell(found, row, column, number, left + column * side, y, side))
    if count <= CELL_TEXTS:
        for k, kind in enumerate(found.names):
            x = f"{left + (k + 0.5) * side:.1f}"
            parts.append(f'<text x="{x}" y="{top - 6}" text-anchor="middle">{escape(_abbreviated(kind, side))}</text>')
    worst = [f"“{kind}” is taken for “{taken}” {number} times" for kind, taken, number in found.confused[:3]]
    told = f"{count} classes. {'; '.join(worst) or 'No example is wrong'}."
    title = "Confusion matrix"
    picture = framed(name, title, told, "".join(parts), height=top + count * side + 8)
    rows = tuple((kind, taken, f"{number:,}") for kind, taken, number in found.confused[:20])
    return Chart(title, told, picture, (), ("class", "taken for", "examples"), rows)


def _abbreviated(kind: str, side: float) -> str:
    most = max(1, int(side / 7.5))
    return kind if len(kind) <= most else kind[: max(1, most - 1)] + "…"


def _cell(found: Classified, row: int, column: int, number: int, x: float, y: float, side: float) -> str:
    """One cell of a confusion matrix: the darker, the larger its share of the row."""
    share = number / max(1, sum(found.confusion[row]))
    told = escape(f"{found.names[row]} taken for {found.names[column]}: {number:,}")
    style = "s2" if row == column else "s1"
    fill = f'<rect class="cellbox" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
    fill += (
        f'<rect class="fill {style}" opacity="{0.75 * share:.3f}" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" '
        f'height="{side:.1f}"><title>{told}</title></rect>'
        if number
        else ""
    )
    if number and len(found.names) <= CELL_TEXTS:
        fill += f'<text x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle">{short(number)}</text>'
    return fill
