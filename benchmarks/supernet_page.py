"""The page and the pictures of what benchmarks/supernet.py has measured: docs/background/supernet-measured.md.

python benchmarks/supernet_page.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import supernet
from pages import interval, spelled
from supernet import (
    ABLATED,
    ABLATIONS,
    BOTH,
    FOLDER,
    LONG,
    OTHERS,
    RATES,
    ROOT,
    SEEDS,
    SHORT,
    TASKS,
    VARIANTS,
    Cell,
    beside,
    best,
    budget,
    finished,
    main_figure,
    measured,
    ran,
    tested,
    untuned,
)

from glora.report.plots.figures import FRONT, INK, figure, save
from glora.report.result import Result

PAGE = ROOT / "docs" / "background" / "supernet-measured.md"
FIGURES = ROOT / "docs" / "background" / "figures"
LINES = {  # colour and marker
    "LoRA": ("#0072B2", "o"),
    "random subnets of LoRA's size": (FRONT, "s"),
    "largest": ("#009E73", "^"),
    "winner": (INK, "D"),
}
DULL = "textile"
RATED = {  # whose accuracy is told beside the best learning rate
    "searched winner": ("glora", "winner"),
    "random subnets of LoRA's size, calibrated": ("glora", "calibrated"),
    "the same as trained": ("glora", "sized"),
    "largest subnet, calibrated": ("glora", "calibrated_largest"),
    "LoRA": ("lora", "model"),
    "LoRA, calibrated": ("lora", "calibrated"),
}
BESIDE = {-1: "a third of it", 1: "three times it"}
MARKERS = ("o", "s", "^", "D")
LORA, SHORTER = ("lora", "model"), ("lora", "model_long")  # the latter of 10 epochs, on the images of 30
ESTIMATE, LOWER = "estimate at or above", "lower end above"
BARS = (  # what, GLoRA's figure, of which variant, what it is compared with, and what was asked of the difference
    ("mean random subnet, as trained - LoRA", ("glora", "random"), LORA, (ESTIMATE, -1)),
    ("the same of LoRA's size - LoRA", ("glora", "sized"), LORA, (ESTIMATE, -1)),
    ("the same calibrated - LoRA", ("glora", "calibrated"), LORA, (ESTIMATE, -1)),
    ("searched winner - LoRA", ("glora", "winner"), LORA, (LOWER, 0)),
    (f"searched winner - LoRA of {SHORT} epochs", ("glora", "winner"), SHORTER, None),
    ("searched winner - LoRA, calibrated too", ("glora", "winner"), ("lora", "calibrated"), None),
    ("searched winner - mean random subnet, as trained", ("glora", "winner"), ("glora", "random"), (LOWER, 0)),
    (
        "searched winner - mean random subnet of its size, calibrated too",
        ("glora", "winner"),
        ("glora", "calibrated"),
        (LOWER, 0),
    ),
    ("largest subnet - mean random subnet, as trained", ("glora", "largest"), ("glora", "random"), (ESTIMATE, 0)),
    (
        "largest subnet - mean random subnet of LoRA's size, calibrated both",
        ("glora", "calibrated_largest"),
        ("glora", "calibrated"),
        (ESTIMATE, 0),
    ),
    ("polished winner - winner", ("polished", "polished"), ("glora", "winner"), None),
    ("polished winner - LoRA", ("polished", "polished"), LORA, None),
)
MOST = 2  # points that a learning rate beside the best was asked to cost at most


def gaps(mine: tuple[str, str], other: tuple[str, str], epochs: int) -> dict[str, np.ndarray]:
    """One accuracy minus another, in points, by task: (seeds, test images), of the seeds that both were tested with."""
    found = {}
    for task, seeds in finished(epochs).items():
        rows = []
        for seed in seeds:
            sides = [hits(task, *side, seed, epochs) for side in (mine, other)]
            if sides[0] is not None and sides[1] is not None:
                rows.append(100 * (sides[0] - sides[1]))
        if rows:
            found[task] = np.array(rows)
    return found


def lost(side: tuple[str, str], step: int, epochs: int) -> dict[str, np.ndarray]:
    """The accuracy at the best learning rate minus that beside it, as `gaps`."""
    found = {}
    for task, seeds in finished(epochs).items():
        pairs = [(hits(task, *side, seed, epochs), hits(task, *side, seed, epochs, step)) for seed in seeds]
        if rows := [100 * (at - off) for at, off in pairs if at is not None and off is not None]:
            found[task] = np.array(rows)
    return found


def hits(task: str, variant: str, name: str, seed: int, epochs: int, step: int = 0) -> np.ndarray | None:
    """Who is right on the test images of trainings of a length; None where it was not tested on them."""
    if (variant, name) == SHORTER:
        cell = tested(task, variant, seed, SHORT, step) if epochs == LONG else None
    else:
        cell = tested(task, variant, seed, epochs, step)
    return cell.hits().get(name) if cell else None


def page() -> str:
    """The Markdown page of the committed results."""
    missing = [task for task in TASKS if task not in finished()]
    return "\n".join(
        [
            "# What the supernet is worth, measured",
            "",
            "This page is made by `python benchmarks/supernet_page.py` from `results/supernet/`; do not edit it.",
            "",
            *"\n\n".join((supernet.__doc__ or "").strip().split("\n\n")[2:]).splitlines(),
            "",
            *([f"Not run yet, and in no figure below: {', '.join(missing)}.", ""] if missing else []),
            *bars(),
            *by_task(),
            *by_rate(),
            *at_own_rates(),
            *ablations(),
            *stamps(),
            "",
        ]
    )


def stamps() -> Iterator[str]:
    """Which code the cells were trained with."""
    every = [result for path in sorted(FOLDER.glob("*.json")) if (result := Result.read(path)).seed in SEEDS]
    found = Counter(str(result.commit)[:7] for result in every)
    told = ", ".join(f"{commit} ({count})" for commit, count in found.most_common())
    yield from ("", "## Code", "", f"The cells were trained at these commits: {told}.")
    yield "A cell is kept as long as later changes do not affect its training. Calibration, search and test of"
    yield "those at 32d1cfe were done by later code. The learning rates of textile below 3e-5 were run on val only"
    yield "after tests at 1e-5, a third of the best, had shown that the grid ended too early."


def ready(epochs: int) -> dict[str, dict[str, np.ndarray]]:
    """The bars of which every task has a seed."""
    found = {label: gaps(mine, other, epochs) for label, mine, other, _ in BARS}
    return {label: by for label, by in found.items() if by and by.keys() == finished(epochs).keys()}


def lengths() -> list[int]:
    """The lengths of training, in epochs, that were tested."""
    return [epochs for epochs in (SHORT, LONG) if finished(epochs)]


def bars() -> Iterator[str]:
    """What GLoRA is ahead, pooled."""
    yield from ("## Bars", "", "![Differences of test accuracy with their intervals](figures/supernet-bars.svg)", "")
    yield "GLoRA minus the other, in points of test accuracy, pooled over tasks and seeds, with the 95% interval of"
    yield "a paired bootstrap over seeds and images. With three seeds this interval is rather too narrow. Every"
    yield "seed has its own random subnets. The largest subnet has more parameters than LoRA. *Asked* is what this"
    yield f"project set out for, over all tasks. The last two columns leave out {DULL}: at 56 px, one of its three"
    yield "classes, a quarter of its images, is hardly ever recognised by any subnet."
    for epochs in lengths():
        yield from ("", f"### After {epochs} epochs", "")
        yield from (
            f"| | seeds | difference | interval | asked | without {DULL} | interval |",
            "|---|---:|---:|---:|---|---:|---:|",
        )
        for label, by in ready(epochs).items():
            whole = interval(list(by.values()))
            row = [", ".join(sorted({str(len(gap)) for gap in by.values()})), *spelled(whole), judged(label, whole)]
            if rest := [gap for task, gap in by.items() if task != DULL]:
                row += spelled(interval(rest))
            yield f"| {label} | {' | '.join(row)} |"


def judged(label: str, found: tuple[float, float, float]) -> str:
    """What was asked of a bar, and whether it is so."""
    asked = {name: asked for name, *_, asked in BARS}[label]
    if asked is None:
        return ""
    kind, limit = asked
    met = found[0] >= limit if kind == ESTIMATE else found[1] > limit
    return f"{kind} {limit}: {'met' if met else 'missed'}"


def by_task() -> Iterator[str]:
    """Test accuracy and loss task by task."""
    yield from ("", "## Tasks", "")
    yield "On test, at the learning rate that was best on val: the mean of the seeds, and each seed. A search goes"
    yield "by the loss. The largest is as trained. Calibrated losses are at one temperature: compare them only with"
    yield "each other."
    columns = {"LoRA": LORA, "calibrated": ("lora", "calibrated"), "mean random subnet": ("glora", "random")}
    columns |= {"of LoRA's size": ("glora", "sized"), "these calibrated": ("glora", "calibrated")}
    columns |= {"winner": ("glora", "winner"), "polished": ("polished", "polished"), "largest": ("glora", "largest")}
    columns |= {"it calibrated": ("glora", "calibrated_largest")}
    yield from ("", f"| task | epochs | | {' | '.join(columns)} |", f"|---|---:|---|{'---:|' * len(columns)}")
    for task, epochs in product(finished(), lengths()):
        for told, kind, factor, digits in (("accuracy, %", "accuracy", 100, 1), ("loss", "loss", 1, 2)):
            row = [task, str(epochs), told]
            for variant, part in columns.values():
                values = [factor * value for value in figures(task, variant, f"{part}_test_{kind}", epochs)]
                each_one = ", ".join(f"{value:.{digits}f}" for value in values)
                row.append(f"{np.mean(values):.{digits}f} ({each_one})" if values else "")
            yield f"| {' | '.join(row)} |"
    yield from (
        "",
        "Learning rates of LoRA and of GLoRA, and trainable parameters of the winners, mean of the seeds:",
        "",
    )
    for task, epochs in ((task, epochs) for task, epochs in product(finished(), lengths()) if task in finished(epochs)):
        chosen = " and ".join(f"{best(task, variant, epochs):g}" for variant in BOTH)
        mean = np.mean(figures(task, "glora", "winner_parameters", epochs))
        yield f"- {task}, {epochs} epochs: {chosen}; {mean:,.0f} (LoRA {budget():,})"


def figures(task: str, variant: str, name: str, epochs: int) -> list[float]:
    """A figure of the seeds that were tested."""
    cells = [tested(task, variant, seed, epochs) for seed in finished(epochs).get(task, [])]
    found = [Result.read(cell.path).metrics.get(name) for cell in cells if cell]
    return [value for value in found if value is not None]


def by_rate() -> Iterator[str]:
    """Val accuracy over the learning rates."""
    yield from ("", "## Learning rates", "", "![Accuracy over learning rates](figures/supernet-rates.svg)", "")
    yield "Val accuracy in %, one seed. For GLoRA: the mean random subnet of LoRA's size, and the largest, as trained."
    yield "A star marks a training that collapsed and started again at a third of the rate"
    yield "([more](supernet.md#when-it-collapses))."
    rows = {
        (task, epochs, variant): {cell.lr: val(Result.read(cell.path)) for cell in ran(task, variant, epochs)}
        for task, epochs, variant in product(measured(), lengths(), BOTH)
    }
    columns = sorted({lr for row in rows.values() for lr in row})
    yield from ("", f"| task | epochs | method | {' | '.join(f'{lr:g}' for lr in columns)} |")
    yield f"|---|---:|---|{'---:|' * len(columns)}"
    for (task, epochs, variant), row in rows.items():
        yield f"| {task} | {epochs} | {variant} | {' | '.join(row.get(lr, '') for lr in columns)} |"
    yield from beside_the_best()


def beside_the_best() -> Iterator[str]:
    """What a learning rate beside the best one costs on test."""
    found = {label: [lost(side, step, LONG) for step in BESIDE] for label, side in RATED.items()}
    found = {label: by for label, by in found.items() if all(each.keys() == finished(LONG).keys() for each in by)}
    if not found:
        return
    yield from (
        "",
        f"Points of test accuracy lost after {LONG} epochs by a learning rate that is {' or '.join(BESIDE.values())}",
    )
    yield f"instead of the rate of the tests above, pooled as there; in brackets {', '.join(finished(LONG))}:"
    heads = " | ".join(f"{told} | interval" for told in BESIDE.values())
    asked = f"the worse of both, asked: under {MOST}"
    yield from ("", f"| | seeds | {heads} | {asked} |", f"|---|---:|{'---:|' * (2 * len(BESIDE) + 1)}")
    for label, by in found.items():
        row = [", ".join(sorted({str(len(gap)) for each in by for gap in each.values()}))]
        for each in by:
            middle, low, high = interval(list(each.values()))
            row += [f"{middle:+.1f} ({own(list(map(np.mean, each.values())))})", f"{low:+.1f} to {high:+.1f}"]
        worse = [max(each[task].mean() for each in by) for task in by[0]]
        met = "met" if np.mean(worse) < MOST else "missed"
        yield f"| {label} | {' | '.join(row)} | {np.mean(worse):+.1f} ({own(worse)}): {met} |"
    yield from ("", f"Collapsed and started again, so at rates nearer the best: {', '.join(anew()) or 'none'}.")


def anew() -> Iterator[str]:
    """The trainings beside the best learning rate that began anew."""
    for task, variant, (step, told) in product(finished(LONG), BOTH, BESIDE.items()):
        cells = [cell for seed in SEEDS if (cell := tested(task, variant, seed, LONG, step))]
        if stars := [cell for cell in cells if mark(Result.read(cell.path))]:
            yield f"{variant} on {task} at {told} ({len(stars)} of {len(cells)})"


def own(values: Sequence[float]) -> str:
    """Each task's."""
    return ", ".join(f"{value:+.1f}" for value in values)


def at_own_rates() -> Iterator[str]:
    """What a user gets who chooses nothing, on tasks that nothing was chosen on and on those above."""
    groups = {"on which nothing was chosen": OTHERS, "those above": TASKS}
    ready = {task: [seed for seed in SEEDS if all(map(on_file, pair(task, seed)))] for task in (*OTHERS, *TASKS)}
    yield from ("", "## At glora's own learning rates", "")
    rates = " and ".join(f"{untuned(OTHERS[0], variant, 0).lr:g}" for variant in BOTH)
    yield f"Test accuracy in % after {LONG} epochs at the learning rates that glora itself gives LoRA and GLoRA,"
    yield f"{rates}: the mean of the seeds, and each seed; stars as above. On the first {len(OTHERS)} tasks nothing"
    yield "was chosen."
    heads = {"LoRA": LORA, "calibrated": ("lora", "calibrated"), "winner": ("glora", "winner")}
    heads |= {"mean random subnet of its size": ("glora", "calibrated")}
    yield from ("", f"| task | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}")
    right = {
        (task, label): np.array([untuned(task, variant, seed).hits()[name] for seed in seeds])
        for (task, seeds), (label, (variant, name)) in product(ready.items(), heads.items())
        if seeds
    }
    for task, seeds in ((task, seeds) for task, seeds in ready.items() if seeds):
        row = []
        for label, (variant, _) in heads.items():
            marks = [mark(Result.read(untuned(task, variant, seed).path)) for seed in seeds]
            told = [f"{100 * each.mean():.1f}{star}" for each, star in zip(right[task, label], marks, strict=True)]
            row.append(f"{100 * right[task, label].mean():.1f} ({', '.join(told)})")
        yield f"| {task} | {' | '.join(row)} |"
    yield from ("", "Differences as above:", "")
    yield from ("| tasks | winner - LoRA | interval | - LoRA calibrated | interval |", "|---|---:|---:|---:|---:|")
    for told_of, tasks in groups.items():
        if here := [task for task in tasks if ready[task]]:
            gaps_of = [[100 * (right[task, "winner"] - right[task, of]) for task in here] for of in [*heads][:2]]
            yield f"| {told_of} | {' | '.join(cell for each in gaps_of for cell in spelled(interval(each)))} |"


def pair(task: str, seed: int) -> list[Cell]:
    """LoRA and GLoRA at the rates that glora gives them."""
    return [untuned(task, variant, seed) for variant in BOTH]


def on_file(cell: Cell) -> bool:
    """Whether it was run."""
    return cell.path.is_file()


def ablations() -> Iterator[str]:
    """What becomes of one task with parts taken away."""
    yield from (
        "",
        f"## Ablations on {ABLATED}",
        "",
        "The columns are as above, with the mean random subnet of any size within the budget. With one seed and 200",
    )
    yield "images, a difference below 3 points says little."
    yield from ("", "| | settings | lr | of LoRA's size, largest | any size | any size: parameters | val loss |")
    yield "|---|---|---:|---:|---:|---:|---:|"
    for variant, lr in (*((variant, lr) for variant in BOTH for lr in RATES), *ABLATIONS):
        if not (path := Cell(ABLATED, variant, lr).path).is_file():
            continue
        result, settings = Result.read(path), VARIANTS[variant][1]
        told = ", ".join(f"{key}: {value}" for group in settings.values() for key, value in group.items())
        m = {name: value or 0 for name, value in result.metrics.items()}
        of_any = f"{100 * m['random_val_accuracy']:.1f}" if "random_val_accuracy" in m else ""
        size = f"{m.get('random_parameters', result.parameters):,.0f}"
        loss = result.metrics[main_figure(variant).replace("accuracy", "loss")]
        shown = "diverged" if loss is None else f"{loss:.3f}"
        yield f"| {variant} | {told} | {lr:g} | {val(result)} | {of_any} | {size} | {shown} |"


def over_rates(task: str, variant: str, name: str) -> dict[float, float]:
    """Val accuracy in % of the learning rates that were run, from the lowest."""
    found = {cell.lr: Result.read(cell.path).metrics for cell in ran(task, variant, SHORT)}
    return {lr: 100 * (metrics[f"{name}_val_accuracy"] or 0) for lr, metrics in found.items()}


def around_the_best(task: str, variant: str, name: str) -> dict[float, float]:
    """Test accuracy in % at the best learning rate and beside it, mean of the seeds that all three have."""
    steps = (-1, 0, 1)
    every = [[hits(task, variant, name, seed, LONG, step) for step in steps] for seed in finished(LONG).get(task, [])]
    right = [[100 * each.mean() for each in row if each is not None] for row in every]
    means = np.mean([row for row in right if len(row) == len(steps)] or np.empty((1, 0)), axis=0)
    rates = [beside(task, variant, LONG, step) for step in steps]
    return dict(zip(rates, means.tolist(), strict=False))


def val(result: Result) -> str:
    """Val accuracy in %, and the largest subnet's; starred where the training began anew."""
    if "model_val_accuracy" in result.metrics:
        return f"{100 * (result.metrics['model_val_accuracy'] or 0):.1f}{mark(result)}"
    sized, largest = (100 * (result.metrics[f"{name}_val_accuracy"] or 0) for name in ("sized", "largest"))
    return f"{sized:.1f}, {largest:.1f}{mark(result)}"


def mark(result: Result) -> str:
    """A star where the training began anew."""
    return "*" if any("begins anew" in note for note in result.notes) else ""


def draw_bars() -> None:
    """Every difference with its interval, and each task's own, a panel for each length of training."""
    drawing = figure(4.4 + 3.2 * len(lengths()), 3.8)
    panels = np.atleast_1d(drawing.subplots(1, len(lengths()), sharey=True, sharex=True))
    data = []
    labels = [label for label, *_ in BARS]
    for axes, epochs in zip(panels, lengths(), strict=True):
        for label, by in ready(epochs).items():
            row = labels.index(label)
            middle, low, high = interval(list(by.values()))
            own = {task: float(gap.mean()) for task, gap in by.items()}
            told = {"epochs": epochs, "label": label, "difference": middle, "low": low, "high": high, "tasks": own}
            data.append(told)
            axes.plot([low, high], [row, row], color=INK, linewidth=2, zorder=2)
            axes.plot(middle, row, "o", color=INK, zorder=4, label=None if row else "pooled, 95% interval")
            for task, marker in zip(own, MARKERS, strict=False):
                of = None if row else task
                axes.plot(own[task], row, marker, color=FRONT, markersize=5, fillstyle="none", zorder=3, label=of)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(f"{epochs} epochs", fontsize=9)
        axes.set_xlabel("points of test accuracy")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    drawing.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    save(drawing, FIGURES / "supernet-bars.svg", {"bars": data})


def draw_rates() -> None:
    """Accuracy over the learning rates, a panel per task: on val after short trainings, on test after long ones."""
    tasks = measured()
    drawing = figure(3 * len(tasks), 5)
    panels = drawing.subplots(2, len(tasks), squeeze=False, sharex=True)
    short = {
        "LoRA": ("lora", "model"),
        "random subnets of LoRA's size": ("glora", "sized"),
        "largest": ("glora", "largest"),
    }
    long = {"LoRA": LORA, "random subnets of LoRA's size": ("glora", "calibrated"), "winner": ("glora", "winner")}
    data: dict[str, dict[str, dict[str, dict[float, float]]]] = {"val": {}, "test": {}}
    for column, task in zip(panels.T, tasks, strict=True):
        data["val"][task] = {label: over_rates(task, *of) for label, of in short.items()}
        data["test"][task] = {label: around_the_best(task, *of) for label, of in long.items()}
        for axes, split in zip(column, data, strict=True):
            for label, found in data[split][task].items():
                colour, marker = LINES[label]
                axes.plot(list(found), list(found.values()), color=colour, marker=marker, markersize=4, label=label)
            axes.set_xscale("log")
        column[0].set_title(task, fontsize=9)
        column[1].set_xlabel("learning rate")
    panels[0, 0].set_ylabel(f"val accuracy, %\n{SHORT} epochs, as trained")
    panels[1, 0].set_ylabel(f"test accuracy, %\n{LONG} epochs, calibrated")
    entries = {
        label: line for axes in panels[:, 0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    drawing.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=len(entries), frameon=False, fontsize=8
    )
    save(drawing, FIGURES / "supernet-rates.svg", data)


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    draw_bars()
    draw_rates()
    PAGE.write_text(page(), encoding="utf-8")
