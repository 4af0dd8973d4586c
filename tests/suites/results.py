"""Results that a benchmark might have written, of numbers given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glora.report.metrics import MetricInfo
from glora.report.result import Result

METRICS = (MetricInfo("accuracy", True, "percent"), MetricInfo("loss", False, ".3f"))
OFFLINE = {  # a suite in VTAB's manner: task -> group
    "fashion_mnist": "natural", "digits": "natural", "textile": "specialized", "dsprites_loc": "structured",
    "dsprites_ori": "structured",
}  # fmt: skip


def made(title: str, task: str, test: float | None = 0.8, **changes: Any) -> Result:
    """One cell of a benchmark: a title, a task and its test accuracy; other fields by name."""
    fields: dict[str, Any] = {"method": title.lower(), "model": "vit_base_patch16_224", "seed": 0, "title": title}
    fields |= {"config": {"model": {"image_size": 224}}, "parameters": 290_000, "example_steps": {"train": 80_000}}
    fields |= {"metrics": {"test_accuracy": test, "val_accuracy": 0.5}, "metrics_info": METRICS, "protocol": "honest"}
    return Result(task=task, **fields | changes)


def suite(
    title: str,
    tests: Mapping[str, float | None],
    *,
    groups: Mapping[str, str],
    seeds: Sequence[int] = (0,),
    **more: Any,
) -> list[Result]:
    """The cells of one method on every task; each seed is 0.01 better than the one before."""
    return [
        made(title, task, None if test is None else test + 0.01 * seed, seed=seed, group=groups.get(task, ""), **more)
        for task, test in tests.items()
        for seed in seeds
    ]
