"""Which two numbers make the subnets of a trained supernet better on held-out examples, before a search.

The subnets drawn in training differ in size. Those near a budget are larger than the average one; their parts were
trained to work without each other, and together they overshoot, as units do that dropout had left out. One factor on
all support tensors takes that back. Networks trained long on few examples are more confident than they are right,
each to another degree, and their loss shows the overconfidence more than what they know; one temperature takes most of
that back. Both are multiplied into numbers that are there already: the formula, the files and the merge know nothing
of them.

Sources: the factor is dropout's (Srivastava et al. 2014, Sec. 7.5) and WiSE-FT's (arXiv 2109.01903, Eq. 1); the
temperature is that of Guo et al. (arXiv 1706.04599, Sec. 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glora.errors import RunError
from glora.files import read_json, write_json
from glora.tasks.evaluation import Evaluation, joined
from glora.tasks.objective import Batch, Objective

__all__ = [
    "FEWEST",
    "GENOTYPES",
    "STRENGTHS",
    "TEMPERATURES",
    "Calibration",
    "Outputs",
    "choose_calibration",
    "divide_outputs",
    "lowest_loss",
    "possible_temperatures",
]

REMEDY = "Delete search.jsonl and search anew."
GENOTYPES = 4  # random ones that it is chosen with
STRENGTHS = tuple(2 ** (step / 3) for step in range(-4, 3))
TEMPERATURES = tuple(2 ** (step / 8) for step in range(-8, 33))
FEWEST, LEVEL = 30, 2.0  # examples that anything is concluded of; paired standard errors that a gain must have

Outputs = Sequence[tuple[Any, Batch]]  # outputs of a model, each with its batch


@dataclass(frozen=True)
class Calibration:
    """Two numbers by which a trained supernet is changed before its search.

    Attributes:
        strength: Multiplies every left factor, and so all that the support tensors change.
        temperature: Divides the logits.
    """

    strength: float = 1.0
    temperature: float = 1.0

    @property
    def notes(self) -> list[str]:
        """What a user should be told of it; nothing where nothing is changed."""
        changes = f"adaptations times {self.strength:.2f}, logits divided by {self.temperature:.2f}"
        return [] if self == Calibration() else [f"Calibration: {changes}."]

    def write(self, path: Path) -> None:
        """The file holds both, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """What the file holds; nothing is changed where there is none.

        Raises:
            RunError: It cannot be read.
        """
        if not path.is_file():
            return cls()
        try:
            found = read_json(path, remedy=REMEDY)
            if not isinstance(found, dict) or {*found} != {*asdict(cls())}:
                raise ValueError(f"it has {list(asdict(cls()))}, and nothing else")
            if not all(isinstance(value, float) and 0 < value < math.inf for value in found.values()):
                raise ValueError("both are finite numbers above 0")
            return cls(**found)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} cannot be read: {error}.", remedy=REMEDY) from error


def choose_calibration(
    measure: Callable[[float], Outputs],
    objective: Objective,
    *,
    examples: int,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Calibration:
    """The strength whose lowest loss over the temperatures is lowest, with its temperature; of equals that nearest 1.

    Nothing is changed where the examples cannot tell that from no change: the gain in mean loss is at most two of its
    standard errors, they are fewer than FEWEST, or every genotype is right on all of them: how much confidence is too
    much, only mistakes can tell.

    Args:
        measure: Strength -> outputs of k genotypes on the same examples, one genotype after the other.
        objective: Whose loss.
        examples: How many examples each genotype saw.
        temperatures: What may divide the logits.
    """
    if examples < FEWEST:
        return Calibration()
    tried = {strength: measure(strength) for strength in STRENGTHS}
    if is_flawless(tried[1.0], objective):
        return Calibration()

    def losses(strength: float, temperature: float) -> Tensor:
        return _losses(tried[strength], objective, temperature)

    found = {each: lowest_loss(partial(losses, each), temperatures) for each in STRENGTHS}
    best = min(found, key=lambda each: (found[each][0], abs(each - 1)))
    plain, better = (losses(*each).double().view(-1, examples).mean(0) for each in ((1.0, 1.0), (best, found[best][1])))
    gain = plain - better  # per example: another genotype is no other example
    error = gain.std(correction=0) / math.sqrt(examples)
    return Calibration() if gain.mean() <= LEVEL * error else Calibration(best, found[best][1])


def lowest_loss(losses: Callable[[float], Tensor], temperatures: Sequence[float]) -> tuple[float, float]:
    """The lowest finite mean loss over the temperatures, and the temperature; infinity and 1 where there is none."""
    means = [(losses(temperature).mean().item(), temperature) for temperature in temperatures]
    return min([each for each in means if math.isfinite(each[0])], default=(math.inf, 1.0))


def _losses(outputs: Outputs, objective: Objective, temperature: float) -> Tensor:
    """The loss of every example with the logits divided by the temperature, `(n,)`."""
    every = [
        objective.losses(output if temperature == 1.0 else objective.tempered(output, temperature), batch)
        for output, batch in outputs
    ]
    return torch.cat(every)


def is_flawless(outputs: Outputs, objective: Objective) -> bool:
    """Whether every prediction is right, as far as the objective knows right from wrong."""
    return joined(Evaluation(objective, objective.values(output, batch)) for output, batch in outputs).flawless


@torch.no_grad()
def divide_outputs(model: nn.Module, head: Sequence[str], temperature: float) -> None:
    """Divides the numbers of the head's last layer, and so the logits where the head ends in a linear layer."""
    for name in head:
        for number in _last_numbers(model.get_submodule(name)):
            number.div_(temperature)


def _last_numbers(head: nn.Module) -> Iterable[nn.Parameter]:
    """The numbers of the head's last layer that has any."""
    layers = [layer for layer in head.modules() if list(layer.parameters(recurse=False))]
    return list(layers[-1].parameters(recurse=False)) if layers else []


def possible_temperatures(
    model: nn.Module, head: Sequence[str], objective: Objective, output: Callable[[], Tensor]
) -> tuple[float, ...]:
    """What the logits may be divided by: 1 alone where that cannot be folded into the end of the head.

    Args:
        model: The model; its numbers are as before afterwards.
        head: Names of its head's modules.
        objective: Whether there is a temperature at all.
        output: The model's output for some examples.
    """
    plain = output()
    if objective.tempered(plain, 2.0) is None:
        return (1.0,)
    divide_outputs(model, head, 2.0)
    halved = output()
    divide_outputs(model, head, 0.5)  # powers of two round nothing
    return TEMPERATURES if torch.allclose(2 * halved, plain, rtol=1e-3, atol=1e-5) else (1.0,)
