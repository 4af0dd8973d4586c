"""What the reports know of a metric: its name, which way is better, and how it is written (no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glora.errors import RunError, listed

__all__ = ["RAW_SCORE", "MetricInfo", "find_metric"]

PERCENT = "percent"


@dataclass(frozen=True)
class MetricInfo:
    """One metric, for tables, sentences and plots.

    Attributes:
        name: Such as `"loss"`; numbers of a record are named after it: `test_loss`, `test_loss_standard_error`.
        higher: Whether higher is better.
        show: `"percent"` for a fraction in [0, 1], which is shown times 100 with one digit; else a format of Python
            for the value itself, such as `".3f"`.
    """

    name: str
    higher: bool
    show: str

    def __post_init__(self) -> None:
        """Raises ValueError where `show` is no format."""
        format(0.0, self._format)

    @property
    def percent(self) -> bool:
        """Whether the value is a fraction that is shown times 100."""
        return self.show == PERCENT

    @property
    def title(self) -> str:
        """The name with its unit, for a column or an axis: `"recall, %"`, `"loss"`."""
        return f"{self.name}, %" if self.percent else self.name

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is: scores and leads are in the direction that is better."""
        return 1 if self.higher else -1

    def scaled(self, value: float) -> float:
        """The value as it is shown: 0.963 -> 96.3 for a percentage, else unchanged."""
        return 100 * value if self.percent else value

    def number(self, value: float, error: float | None = None) -> str:
        """The value without its unit, with its standard error where it has one: `"96.3 ± 0.5"`."""
        shown = [format(self.scaled(each), self._format) for each in (value, error) if each is not None]
        return " ± ".join(shown)

    def quantity(self, value: float, error: float | None = None) -> str:
        """The value with its unit: `"96.3 %"`, `"0.105"`."""
        return self.number(value, error) + (" %" if self.percent else "")

    def difference(self, value: float | None, error: float | None) -> str:
        """A difference with its name: `"recall +1.0 ± 2.4 points"`, `"loss -0.011"`.

        Args:
            value: How much better the first is than the second, positive whichever way is better. What is written is
                the first minus the second, so that of a loss it is negative where the first is better.
            error: Its standard error; None where it has none.
        """
        if value is None:
            return f"{self.name} not finite"
        shown = format(self.scaled(self.sign * value), f"+{self._format}")
        spread = "" if error is None else f" ± {format(self.scaled(error), self._format)}"
        return f"{self.name} {shown}{spread}{' points' if self.percent else ''}"

    @property
    def _format(self) -> str:
        return ".1f" if self.percent else self.show


RAW_SCORE = MetricInfo("score", True, ".3g")  # a score of which nothing else is known


def find_metric(metrics: Iterable[MetricInfo], name: str) -> MetricInfo:
    """The metric of this name.

    Raises:
        RunError: It is not among them.
    """
    every = {metric.name: metric for metric in metrics}
    if name not in every:
        raise RunError(f"There is no metric {name!r} in the record.", allowed=f"It has {listed(every, n=10)}.")
    return every[name]
