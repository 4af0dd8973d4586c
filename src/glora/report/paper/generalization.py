"""Table 2: trained on 16 images a class of ImageNet, tested on it and on four sets that are shifted (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glora.errors import RunError
from glora.report.paper.rows import INCOMPLETE, SPREAD, captions, our_rows, parameters, printed_lines
from glora.report.paper.vtab import accuracy
from glora.report.published import GENERALIZATION
from glora.report.result import Result
from glora.report.sheet import Column, Line, Sheet
from glora.tasks.data.paper_sets import IMAGENET_TARGETS

__all__ = ["generalization"]

TITLES = {target.name: target.title.removeprefix("-") for target in IMAGENET_TARGETS}
NARROW = [target.name for target in IMAGENET_TARGETS if target.classes]  # of some of the thousand classes
CLASSES = (
    "The paper, as NOAH, scores A and R among all 1000 classes; the columns of 200 classes are the usual figures, "
    "among the classes that the set has."
)


def generalization(results: Sequence[Result]) -> list[Sheet]:
    """Table 2 with the results that were tested on ImageNet or on sets shifted from it.

    Raises:
        RunError: There is none among them.
    """
    found = [result for result in results if result.others or result.task.startswith("imagenet")]
    if results and not found:
        raise RunError(
            "None of the results was tested on a further test set.",
            allowed="Results of ImageNet, with further test sets in `others`.",
        )
    rows = our_rows(found, lambda _: "all")
    values: dict[str, Callable[[Result], float | None]] = {"imagenet": accuracy}
    values |= {name: _other(name, "accuracy") for name in TITLES}
    values |= {f"{name}:200": _other(name, "accuracy_200way") for name in NARROW}
    columns = [Column("parameters", "# param, M", form=".2f"), Column("imagenet", "ImageNet", "source")]
    columns += [Column(name, title, "shifted, of 1000 classes") for name, title in TITLES.items()]
    columns += [Column(f"{name}:200", TITLES[name], "of 200 classes") for name in NARROW]
    lines = printed_lines(GENERALIZATION, lambda _: {})
    for row in rows:
        cells = {name: cell for name, value in values.items() for cell in row.cells({"all": value}).values()}
        lines.append(Line(row.name, {"parameters": parameters(row), **cells}))
    title = "Domain generalization (Table 2, printed: ViT-B/16, 16 shots of ImageNet)"
    told = [SPREAD, CLASSES, INCOMPLETE]
    return [Sheet(title, tuple(columns), tuple(lines), (*told, *captions(rows, GENERALIZATION)))]


def _other(name: str, metric: str) -> Callable[[Result], float | None]:
    """The accuracy in % on a further test set."""

    def read(result: Result) -> float | None:
        value = result.others.get(name, {}).get(metric)
        return None if value is None else 100 * value

    return read
