"""Many quick cases in one test."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def every(**axes: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test on every combination of these arguments and tells all that fail; the first has its traceback.

    For cases of milliseconds, where an item of pytest's for each takes as long as the case. The fixtures are made
    once: not for a test that changes them.
    """
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **fixtures: Any) -> None:
            failed, skipped = dict[str, BaseException](), list[BaseException]()
            for case in combinations:
                try:
                    test(*args, **fixtures, **case)
                except pytest.skip.Exception as skip:
                    skipped.append(skip)
                except (Exception, pytest.fail.Exception) as error:
                    failed[", ".join(f"{name}={value}" for name, value in case.items())] = error
            if failed:
                told = [f"{case}: {type(error).__name__}: {error}" for case, error in failed.items()]
                text = "\n".join([f"{len(failed)} of {len(combinations)} cases failed:", *told])
                raise AssertionError(text) from next(iter(failed.values()))
            if len(skipped) == len(combinations):
                raise skipped[0]

        signature = inspect.signature(test)
        kept = [parameter for name, parameter in signature.parameters.items() if name not in axes]
        run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run

    return decorate
