"""What a score function may return, as plain floats; anything else is an error that says what is allowed."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from glora.errors import ConfigError
from glora.searchers.trials import Score

__all__ = ["checked_score", "checked_values"]

LARGEST = 1e150  # of a value in a race: its square is finite
A_SCORE = (
    "A score is a number, higher is better, or glora.Score(value, standard_error): NaN and -inf count as the worst, "
    "inf is not allowed, and a standard error is at least 0."
)
VALUES = (
    "With racing it is called with a genotype and indices, and returns one number per index, such as a list of floats, "
    f"each at most {LARGEST:g}; NaN and -inf count as the worst."
)


def checked_score(returned: Any) -> Score:
    """The score as two floats. NaN becomes the worst score, for a diverged candidate must not win.

    Raises:
        ConfigError: It is no score.
    """
    pair = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, 0.0)
    value, error = (_float(each, returned, A_SCORE) for each in pair)
    if value == math.inf or error < 0:
        raise _wrong(returned, A_SCORE)
    return Score(-math.inf if math.isnan(value) else value, error if math.isfinite(error) else 0.0)


def checked_values(returned: Any, examples: int) -> list[float]:
    """One value per example as floats; NaN becomes the worst.

    Raises:
        ConfigError: They are not so many numbers.
    """
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
        raise _wrong(returned, VALUES)
    if len(returned) != examples:
        raise ConfigError(
            f"The score function returned {len(returned)} values for {examples} examples.", allowed=VALUES
        )
    values = [_float(value, returned, VALUES) for value in returned]
    if any(value > LARGEST or -math.inf < value < -LARGEST for value in values):
        raise _wrong(returned, VALUES)
    return [-math.inf if math.isnan(value) else value for value in values]


def _float(value: Any, returned: Any, allowed: str) -> float:
    """A number of any library as a float; raises ConfigError for text, booleans and other things that convert."""
    kind = type(value).__name__.lower()
    try:
        if not hasattr(value, "__float__") or "bool" in kind or "bool" in str(getattr(value, "dtype", "")):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor of several numbers, 10**400, ...
        raise _wrong(returned, allowed) from None


def _wrong(returned: Any, allowed: str) -> ConfigError:
    return ConfigError(f"The score function returned {reprlib.repr(returned)}.", allowed=allowed)
