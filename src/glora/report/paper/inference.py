"""Table 3: what the deployed form of every method costs (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from glora.errors import RunError
from glora.report.paper.rows import doubtful, our_rows, parameters, printed_lines
from glora.report.published import INFERENCE
from glora.report.result import Result
from glora.report.sheet import Column, Line, Sheet

__all__ = ["inference"]

SIZES = (1, 4, 16)  # images of a batch
PAIR = 2  # a multiplication and an addition, which the results count one each
KEYS = ("flops", "backbone_flops", *(f"images_per_second_{size}" for size in SIZES))
WHAT = (
    "Images per second by the size of the batch. FLOPs are those of one image, as the paper counts them: a "
    "multiplication with its addition is one; added are those beyond the plain network's."
)
NOT_ALIKE = "Printed speeds are of the paper's machine, and its trainable numbers are not those of Table 1."


def inference(results: Sequence[Result]) -> list[Sheet]:
    """Table 3 with the results that `benchmarks/inference.py` has measured.

    Raises:
        RunError: There is none among them.
    """
    found = [result for result in results if any(key in (result.latency or {}) for key in KEYS)]
    if results and not found:
        raise RunError(
            "None of the results has a speed by batch size.",
            allowed="Results of benchmarks/inference.py.",
            remedy="Measure: python benchmarks/inference.py",
        )
    rows = our_rows(found, lambda _: "all")
    values: dict[str, Callable[[Result], float | None]] = {"gflops": _giga("flops"), "added_gflops": _added}
    values |= {f"images_per_second_{size}": _speed(size) for size in SIZES}
    columns = [Column("parameters", "# param, M", form=".2f"), Column("gflops", "GFLOPs", form=".2f")]
    columns += [Column("added_gflops", "added", form=".2f")]
    columns += [Column(f"images_per_second_{size}", str(size), "images per second at batch") for size in SIZES]
    lines = printed_lines(INFERENCE, lambda _: {})
    for row in rows:
        cells = {name: cell for name, value in values.items() for cell in row.cells({"all": value}).values()}
        lines.append(Line(row.name, {"parameters": parameters(row), **cells}))
    told = [WHAT, NOT_ALIKE, *_machines(found), *doubtful(INFERENCE)]
    return [Sheet("Inference (Table 3, printed: ViT-B/16)", tuple(columns), tuple(lines), tuple(told))]


def _machines(results: Sequence[Result]) -> list[str]:
    """What ours were measured on."""
    told = dict.fromkeys(f"{result.model} on {result.device}" for result in results)
    return [f"Measured: {'; '.join(told)}."] if told else []


def _latency(result: Result) -> Mapping[str, float]:
    return result.latency or {}


def _giga(key: str) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        value = _latency(result).get(key)
        return None if value is None else value / PAIR / 1e9

    return read


def _added(result: Result) -> float | None:
    mine, plain = (_latency(result).get(key) for key in ("flops", "backbone_flops"))
    return None if mine is None or plain is None else (mine - plain) / PAIR / 1e9


def _speed(size: int) -> Callable[[Result], float | None]:
    return lambda result: _latency(result).get(f"images_per_second_{size}")
