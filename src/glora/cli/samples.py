"""What is in data: counts by split and class, and some examples to look at."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glora.errors import ConfigError, DataError
from glora.settings import parse_value, put

if TYPE_CHECKING:
    from glora.report.plots.samples import Samples
    from glora.tasks.task import Task

__all__ = ["counts", "lines", "samples", "task_of"]

SHOWN = 20  # classes that are named one by one


def task_of(source: str, objective: str | None, overrides: Sequence[str], *, model: str | None, seed: int) -> Task:
    """The task that a source holds, its texts as tokens of a model where one is named; its weights are not loaded.

    Args:
        source: A name in `SOURCES`, or a path.
        objective: What is learned; None: what is usual for the data.
        overrides: Settings of the data as `key=value`.
        model: The model whose tokens are counted.
        seed: Seed of the split.

    Raises:
        ConfigError: A setting is unknown, or wrong.
        DataError: The data is missing, damaged or cannot be split; or it is no texts, and a model is named.
    """
    from glora.backbones import text_preprocess
    from glora.registry import lookup
    from glora.tasks.objectives import OBJECTIVES
    from glora.tasks.task import load_task, source_class

    given: dict[str, Any] = {"source": source, **settings_of(overrides)}
    name = objective or source_class(given).usual_objective(given)
    kind = lookup(OBJECTIVES, name, kind="objective", remedy="List them: glora ls objectives")
    settings = {key: value for key, value in given.items() if key != "source"}
    task = load_task(source, objective=kind(), **{"seed": seed, **settings})
    return task if model is None else task.prepared(text_preprocess(model, num_classes=task.objective.outputs))


def settings_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the data that `--set` changes.

    Raises:
        ConfigError: One is none.
    """
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.removeprefix("data.").partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is no setting.", allowed="A setting of the data: on_bad_row=skip.")
        put(found, key, parse_value(text))
    return found


def counts(task: Task) -> dict[str, Any]:
    """What a task is and how many examples its splits have, in all and of each class, as plain data."""
    splits = {**task.splits, **task.others}
    return {
        "name": task.name,
        "group": task.group,
        "objective": task.objective.name,
        "summary": task.objective.summary,
        "unit": task.train.unit,
        "splits": {name: {"examples": len(split), "classes": _by_class(task, split)} for name, split in splits.items()},
        "notes": list(task.notes),
    }


def _by_class(task: Task, split: Any) -> dict[str, int]:
    names = task.objective.strata_names
    if not names or split.strata is None:
        return {}
    found = Counter(split.strata)
    return {name: found[place] for place, name in enumerate(names)}


def lines(task: Task) -> list[str]:
    """The same for a person."""
    told = counts(task)
    group = f", {told['group']}" if told["group"] else ""
    found = [f"{told['name']}{group}: {told['objective']}, {told['summary']}"]
    for name, split in told["splits"].items():
        classes = split["classes"]
        if not classes:
            each = ""
        elif len(classes) > SHOWN:
            each = f"  {min(classes.values()):,} to {max(classes.values()):,} of each class"
        else:
            each = "  " + ", ".join(f"{label} {count:,}" for label, count in classes.items())
        found.append(f"  {name:5} {split['examples']:>6,} {told['unit']}{each}")
    return [*found, *(f"  {note}" for note in told["notes"])]


def samples(task: Task, number: int, *, seed: int = 0) -> Samples:
    """Some training images of a task, of as many classes as there are; which, is drawn from a seed.

    Raises:
        DataError: The examples are no images that glora reads.
    """
    from glora.report.plots.samples import Samples
    from glora.tasks.images import ImageSet

    if not isinstance(task.train, ImageSet):
        raise DataError(f"{task.name} has {task.train.unit}, of which there is no picture.", remedy="Leave it out.")
    chosen = _spread(task.train.strata or [0] * len(task.train), number, random.Random(seed))
    names = task.objective.strata_names
    shown = [
        names[task.train.strata[place]] if names and task.train.strata else str(task.train.targets[place].tolist())
        for place in chosen
    ]
    note = "\n".join(filter(None, (task.group, task.objective.summary)))
    return Samples(task.name, note, [task.train.image(place) for place in chosen], shown)


def _spread(strata: Sequence[int], number: int, rng: random.Random) -> list[int]:
    """So many places, in the order of their strata: one of each before there is a second of any."""
    members: dict[int, list[int]] = {}
    for place in rng.sample(range(len(strata)), len(strata)):
        members.setdefault(strata[place], []).append(place)
    rounds: list[tuple[int, float, int]] = [
        (turn, rng.random(), place) for places in members.values() for turn, place in enumerate(places)
    ]
    return sorted((place for *_, place in sorted(rounds)[:number]), key=lambda place: (strata[place], place))
