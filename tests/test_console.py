"""What a person sees while a run works: the bar of a training, the table of a search, and plain lines elsewhere."""

from __future__ import annotations

import io
import math
import re
import time
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from glora.report.metrics import MetricInfo
from glora.runs.console import ConsoleReporter, SearchView
from glora.searchers import Score, Trial

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LOSS = MetricInfo("loss", False, ".3f")


class Progress(NamedTuple):
    """What the trainer tells of a training."""

    step: int
    steps: int = 1000
    epoch: int = 1
    epochs: int = 20
    loss: float = 2.3025
    metric: float | None = 0.125
    metric_name: str = "accuracy"
    examples_per_second: float = 312.4
    seconds_left: float = 3725.0


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_the_bar_is_one_line_that_fits(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    with ConsoleReporter(console) as reporter:
        for step in (1, 500, 1000):
            reporter.training(Progress(step))
            reporter.training(Progress(step))  # too soon after the last: not drawn
            time.sleep(0.15)
        reporter.say("A sentence that is quite a bit longer than thirty characters [not markup].")
    lines = [line for line in re.split(r"[\r\n]+", ANSI.sub("", file.getvalue())) if line.strip()]
    assert all(len(line.rstrip()) <= width for line in lines), lines
    bars = [line for line in lines if line.startswith("train")]
    assert {"1/1000", "500/1000", "1000/1000"} <= {word for line in bars for word in line.split()}
    assert ("312 examples/s" in file.getvalue()) == (width >= 100)
    assert ("1:02:05 left" in file.getvalue()) == (width >= 60)
    assert "[not markup]" in " ".join(lines)


def test_elsewhere_there_are_plain_lines_and_not_too_many() -> None:
    file = io.StringIO()
    with ConsoleReporter(Console(file=file, width=80)) as reporter:
        reporter.say("x" * 100)
        for step in range(1, 1001):
            reporter.training(Progress(step))
    lines = file.getvalue().splitlines()
    assert lines[0] == "x" * 100
    assert lines[1:] == [
        "train 1/1000  loss 2.303  accuracy 0.125  1:02:05 left  epoch 1/20  312 examples/s",
        "train 1000/1000  loss 2.303  accuracy 0.125  1:02:05 left  epoch 1/20  312 examples/s",
    ]
    assert "\x1b" not in file.getvalue()


def made_trials(n: int, generation_size: int, scores: list[Score] | None = None) -> list[Trial]:
    space: Any = None
    scores = scores or [Score(-1.0 / (1 + k), 0.01) for k in range(n)]
    return [
        Trial(k, (), 1000 - k, score, k // generation_size, "random", None, space, 1.0)
        for k, score in enumerate(scores)
    ]


@pytest.mark.parametrize("width", [45, 80])
def test_the_search_is_a_table_with_a_row_per_generation(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    trials = made_trials(60, 5)
    with ConsoleReporter(console) as reporter:
        reporter.search_begins(LOSS)
        for k, trial in enumerate(trials):
            reporter.trial(trial, trial, 60, saved=k / 100)
            time.sleep(0.01)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", ANSI.sub("", file.getvalue())) if line.strip()]
    assert all(len(line) <= width for line in lines), lines
    *table, spinner = lines[-10:]
    assert spinner.endswith("working")
    assert table[0].split() == ["gen", "best", "val", "loss", "median", "front", "saved"]
    assert [int(line.split()[0]) for line in table[1:]] == list(range(4, 12)), "the last eight"
    assert table[-1].split()[1:] == ["0.0167", "±", "0.0100", "0.0172", "1", "59", "%"]


def test_elsewhere_a_search_is_a_few_plain_lines() -> None:
    file = io.StringIO()
    with ConsoleReporter(Console(file=file, width=80)) as reporter:
        reporter.search_begins(LOSS)
        for trial in made_trials(60, 5):
            reporter.trial(trial, trial, 60)
    first, last = file.getvalue().splitlines()
    assert first.startswith("search 1/60  generation 0  best val loss 1.0000 ± 0.0100  median 1.0000  front 1  ")
    assert last.startswith("search 60/60  generation 11  best val loss 0.0167 ± 0.0100  median 0.0172  front 1  ")
    assert last.endswith(" left")


def test_a_training_without_a_metric_shows_its_loss_alone() -> None:
    file = io.StringIO()
    with ConsoleReporter(Console(file=file, width=80)) as reporter:
        reporter.training(Progress(1000, metric=None, metric_name=""))
    assert file.getvalue() == "train 1000/1000  loss 2.303  1:02:05 left  epoch 1/20  312 examples/s\n"


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        (MetricInfo("r2", True, ".3f"), -0.5, "best val r2 -0.5000 ± 0.0100"),
        (LOSS, -0.5, "best val loss 0.5000 ± 0.0100"),
        (LOSS, 0.5, "best val loss -0.5000 ± 0.0100"),
        (MetricInfo("mae", False, ".4g"), -12345.678, "best val mae 12345.7 ± 0.0100"),
        (LOSS, -math.inf, "best val loss – ± 0.0100"),
    ],
)
def test_the_view_is_told_the_metric_and_never_guesses_by_a_sign(metric: MetricInfo, value: float, shown: str) -> None:
    (trial,) = made_trials(1, 1, [Score(value, 0.01)])
    view = SearchView(metric)
    view.add(trial, trial, None)
    assert view.summary()[1] == shown
    assert view.table().columns[1].header == f"best val {metric.name}"
    assert view.summary()[2] == f"median {shown.split()[3]}"


def test_a_second_search_begins_anew() -> None:
    file = io.StringIO()
    with ConsoleReporter(Console(file=file, width=80)) as reporter:
        for metric in (LOSS, MetricInfo("accuracy", True, "percent")):
            reporter.search_begins(metric)
            for trial in made_trials(2, 2):
                reporter.trial(trial, trial, 2)
    lines = file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["search 1/2", "search 2/2"] * 2
    assert [line.split("  ")[2].split()[:3] for line in lines[1::2]] == [
        ["best", "val", "loss"],
        ["best", "val", "accuracy"],
    ]
