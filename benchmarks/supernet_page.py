"""The page and the pictures of what benchmarks/supernet.py has measured: docs/supernet-measured.md.

python benchmarks/supernet_page.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import supernet
from supernet import (
    ABLATED,
    ABLATIONS,
    BOTH,
    DRAWS,
    GRID,
    RATES,
    ROOT,
    TASKS,
    VARIANTS,
    Cell,
    best,
    finished,
    grid,
    main_figure,
    measured,
    tested,
)

from glora.plots.figures import FRONT, INK, figure, save
from glora.results import Result

PAGE = ROOT / "docs" / "supernet-measured.md"
FIGURES = ROOT / "docs" / "figures"
COLOURS = {"lora": "#0072B2", "sized": FRONT, "largest": "#009E73"}
MARKERS = ("o", "s", "^", "D")
BARS = (  # what, GLoRA's figure, of which variant, and what it is compared with
    ("mean random subnet - LoRA", ("glora", "random"), ("lora", "model")),
    ("mean random subnet of LoRA's size - LoRA", ("glora", "sized"), ("lora", "model")),
    ("searched winner - LoRA", ("glora", "winner"), ("lora", "model")),
    ("searched winner - mean random subnet of its size", ("glora", "winner"), ("glora", "sized")),
    ("searched winner - mean random subnet", ("glora", "winner"), ("glora", "random")),
    ("largest subnet - mean random subnet", ("glora", "largest"), ("glora", "random")),
    ("largest subnet - LoRA", ("glora", "largest"), ("lora", "model")),
    ("polished winner - winner", ("polished", "polished"), ("glora", "winner")),
    ("polished winner - LoRA", ("polished", "polished"), ("lora", "model")),
    ("polished winner of 7 + 3 - LoRA", ("7+3", "polished"), ("lora", "model")),
)


def interval(
    mine: tuple[str, str], other: tuple[str, str], *, tasks: Sequence[str] | None = None, draws: int = DRAWS
) -> tuple[float, float, float]:
    """One accuracy minus another, in points, pooled over tasks and seeds, with its bootstrap 95% interval.

    Paired: a draw takes, for each task, seeds and test images with replacement, the same for both.

    Args:
        mine: Variant and figure.
        other: The same of what it is compared with.
        tasks: Which; all that are finished if not given.
        draws: Number of resamples.
    """
    rng = np.random.default_rng(0)
    gaps = []
    for task, seeds in finished().items():
        if task not in (tasks or TASKS):
            continue
        sides = []
        for variant, name in (mine, other):
            lr = best(task, "lora" if variant == "lora" else "glora")
            sides.append([Cell(task, variant, lr, seed, tested=True).hits()[name] for seed in seeds])
        gaps.append(100 * (np.array(sides[0]) - np.array(sides[1])))  # (seeds, images)
    means = np.empty((len(gaps), draws))
    for row, gap in zip(means, gaps, strict=True):
        for draw in range(draws):
            chosen = gap[rng.integers(len(gap), size=len(gap))].mean(0)
            row[draw] = rng.choice(chosen, len(chosen)).mean()
    low, high = np.quantile(means.mean(0), [0.025, 0.975])
    return float(np.mean([gap.mean() for gap in gaps])), float(low), float(high)


def page() -> str:
    """The Markdown page of the committed results."""
    missing = [task for task in TASKS if task not in finished()]
    return "\n".join(
        [
            "# What the supernet is worth, measured",
            "",
            "Made by `python benchmarks/supernet_page.py` from `results/supernet/`; do not edit.",
            "",
            *(supernet.__doc__ or "").split("\n\n")[2].splitlines(),
            "",
            *([f"Not run yet, and in no figure below: {', '.join(missing)}.", ""] if missing else []),
            *bars(),
            *by_task(),
            *by_rate(),
            *ablations(),
            "",
        ]
    )


def ready() -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """The bars of which every cell was run."""

    def run(variant: str) -> bool:
        lr = "lora" if variant == "lora" else "glora"
        tasks = finished().items()
        return all(
            Cell(t, variant, best(t, lr), seed, tested=True).path.is_file() for t, seeds in tasks for seed in seeds
        )

    return [bar for bar in BARS if run(bar[1][0]) and run(bar[2][0])]


def bars() -> Iterator[str]:
    """What GLoRA is ahead, pooled."""
    yield from ("## Bars", "", "![Differences of test accuracy with their intervals](figures/supernet-bars.svg)", "")
    yield "GLoRA minus the other, points of test accuracy, pooled over tasks and seeds, with the 95%"
    yield "interval of a paired bootstrap over seeds and images. The random subnets are others for every seed. The"
    yield from ("largest has more numbers than LoRA.", "")
    yield from ("| | difference | interval |", "|---|---:|---:|")
    for label, mine, other in ready():
        middle, low, high = interval(mine, other)
        yield f"| {label} | {middle:+.1f} | {low:+.1f} to {high:+.1f} |"


def by_task() -> Iterator[str]:
    """Test accuracy task by task."""
    yield from ("", "## Tasks", "")
    yield "Test accuracy in % at the learning rate that was best on val: mean of the seeds, and each."
    yield from (
        "",
        "| task | LoRA | mean random subnet | of LoRA's size | winner | largest | winner's numbers, LoRA's |",
    )
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for task, seeds in finished().items():
        lora, glora = (tested(task, variant) for variant in BOTH)
        row = [f"{task}, {len(seeds)} seeds"]
        for found, part in ((lora, "model"), *((glora, name) for name in ("random", "sized", "winner", "largest"))):
            values = [100 * (each.metrics[f"{part}_test_accuracy"] or 0) for each in found]
            row.append(f"{np.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})")
        sizes = [each.metrics["winner_parameters"] or 0 for each in glora]
        row.append(f"{np.mean(sizes):,.0f}, {lora[0].parameters:,}")
        yield f"| {' | '.join(row)} |"


def by_rate() -> Iterator[str]:
    """Val accuracy over the learning rates."""
    yield from ("", "## Learning rates", "", "![Accuracy over learning rates](figures/supernet-rates.svg)", "")
    yield "Val accuracy in %, one seed; of GLoRA the mean random subnet of LoRA's size, and the largest."
    yield from ("", f"| task | method | {' | '.join(f'{lr:g}' for lr in GRID)} |", f"|---|---|{'---:|' * len(GRID)}")
    for task in measured():
        for variant in BOTH:
            row = [val(Result.read(cell.path)) if cell.path.is_file() else "" for cell in grid(task, variant)]
            yield f"| {task} | {variant} | {' | '.join(row)} |"
    yield from (
        "",
        "From the best of these rates to the next lower or higher, the worse of both, mean of the tasks:",
        "",
    )
    for variant in BOTH:
        yield f"- {variant}: {np.mean([drop(task, variant) for task in measured()]):.1f} points"


def ablations() -> Iterator[str]:
    """What becomes of one task with parts taken away."""
    yield from (
        "",
        f"## Ablations on {ABLATED}",
        "",
        "As above, and the mean random subnet of any size within the budget. One seed and",
    )
    yield "200 images: a difference below 3 points says little."
    yield from ("", "| | settings | lr | of LoRA's size, largest | any size | any size: numbers | val loss |")
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


def drop(task: str, variant: str) -> float:
    """Points of val accuracy from the best learning rate to the worse of its neighbours in the grid."""
    run = [cell for cell in grid(task, variant) if cell.path.is_file()]
    values = [100 * (Result.read(cell.path).metrics[main_figure(variant)] or 0) for cell in run]
    middle = int(np.argmax(values))
    return max(values[middle] - value for value in values[max(0, middle - 1) : middle + 2])


def val(result: Result) -> str:
    """Val accuracy in %, and the largest subnet's."""
    if "model_val_accuracy" in result.metrics:
        return f"{100 * (result.metrics['model_val_accuracy'] or 0):.1f}"
    sized, largest = (100 * (result.metrics[f"{name}_val_accuracy"] or 0) for name in ("sized", "largest"))
    return f"{sized:.1f}, {largest:.1f}"


def draw_bars() -> None:
    """Every difference with its interval, and each task's own."""
    drawing = figure(7, 3.6)
    axes = drawing.add_subplot()
    data = []
    for row, (label, mine, other) in enumerate(ready()):
        middle, low, high = interval(mine, other)
        own = {task: interval(mine, other, tasks=[task], draws=1)[0] for task in finished()}
        data.append({"label": label, "difference": middle, "low": low, "high": high, "tasks": own})
        axes.plot([low, high], [row, row], color=INK, linewidth=2, zorder=2)
        axes.plot(middle, row, "o", color=INK, zorder=4, label="pooled, 95% interval" if row == 0 else None)
        for task, marker in zip(own, MARKERS, strict=False):
            told = task if row == 0 else None
            axes.plot(own[task], row, marker, color=FRONT, markersize=5, fillstyle="none", zorder=3, label=told)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(ready())), [label for label, *_ in ready()])
    axes.invert_yaxis()
    axes.set_xlabel("points of test accuracy")
    drawing.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save(drawing, FIGURES / "supernet-bars.svg", {"bars": data})


def draw_rates() -> None:
    """Val accuracy over the learning rates, a panel per task."""
    tasks = measured()
    drawing = figure(3 * len(tasks), 2.8)
    data: dict[str, dict[str, dict[float, float]]] = {}
    for axes, task in zip(np.atleast_1d(drawing.subplots(1, len(tasks))), tasks, strict=True):
        lines = {
            "LoRA": ("lora", "model"),
            "random subnets of LoRA's size": ("glora", "sized"),
            "largest": ("glora", "largest"),
        }
        for (label, (variant, name)), marker in zip(lines.items(), MARKERS, strict=False):
            found = {
                cell.lr: 100 * (Result.read(cell.path).metrics[f"{name}_val_accuracy"] or 0)
                for cell in grid(task, variant)
                if cell.path.is_file()
            }
            data.setdefault(task, {})[label] = found
            colour = COLOURS["lora" if variant == "lora" else name]
            axes.plot(list(found), list(found.values()), color=colour, marker=marker, markersize=4, label=label)
        axes.set_xscale("log")
        axes.set_xticks(GRID, [f"{lr:g}" for lr in GRID], fontsize=8)
        axes.minorticks_off()
        axes.set_title(task, fontsize=9)
        axes.set_xlabel("learning rate")
    drawing.axes[0].set_ylabel("val accuracy, %")
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save(drawing, FIGURES / "supernet-rates.svg", {"val": data})


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    draw_bars()
    draw_rates()
    PAGE.write_text(page(), encoding="utf-8")
