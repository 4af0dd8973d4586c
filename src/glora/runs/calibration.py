"""Calibrating what a run has trained: its supernet before the search, one genotype after a training of its own."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from glora.methods.method import Tuned
from glora.runs.session import Session
from glora.tasks.calibration import (
    Calibration,
    Outputs,
    choose_calibration,
    divide_outputs,
    possible_temperatures,
)
from glora.tasks.objective import Examples

__all__ = ["apply_calibration", "calibrate_alone", "load_calibrated", "temperatures"]


def apply_calibration(tuned: Tuned, calibration: Calibration) -> None:
    """Multiplies strength and temperature into the numbers, in place."""
    tuned.strengthen(calibration.strength)
    divide_outputs(tuned.model, tuned.head, calibration.temperature)


def temperatures(session: Session, tuned: Tuned, examples: Examples) -> tuple[float, ...]:
    """What the logits of the model as it plays now may be divided by; its numbers are as before afterwards."""

    def output() -> Tensor:
        some = range(min(2, len(examples)))
        found: Tensor = next(session.evaluator.outputs(tuned.model, examples, some))[0]
        return found

    return possible_temperatures(tuned.model, tuned.head, session.objective, output)


def calibrate_alone(session: Session, tuned: Tuned, examples: Examples) -> Calibration:
    """The calibration of the one genotype that a model plays; its numbers are as before afterwards.

    Args:
        session: The run.
        tuned: The model.
        examples: Examples that it was not trained on.
    """
    before = tuned.snapshot()

    def measure(strength: float) -> Outputs:
        tuned.strengthen(strength)
        found = list(session.evaluator.outputs(tuned.model, examples))
        tuned.restore(before)
        return found

    allowed = temperatures(session, tuned, examples)
    return choose_calibration(measure, session.objective, examples=len(examples), temperatures=allowed)


def load_calibrated(session: Session, path: Path, examples: Examples | None) -> Tuned:
    """The base with the one genotype of an adapter file, on the session's device, calibrated by itself.

    Args:
        session: The run.
        path: The adapter file.
        examples: Examples that it was not trained on; None leaves it as it is.
    """
    tuned = session.method.load(session.base(), path, base_fingerprint=session.base_fingerprint)
    tuned.model.to(session.accelerator.device)
    if examples is not None:
        apply_calibration(tuned, calibrate_alone(session, tuned, examples))
    return tuned
