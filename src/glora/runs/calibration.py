"""Before a search: how strongly the subnets of its size play, and how far apart their logits are, chosen on val.

Training leaves subnets to draw that differ in size; those near a budget have more parts than the mean one, each of
them learned to do without the others, and together they go too far, as units do that dropout had left out. One
factor on all support tensors takes that back. Long trained on few images, networks are surer than they are right, each
to another degree, and their loss tells of that more than of what they know; one temperature takes most of that back.
Both are multiplied into numbers that are there: the formula, the files and the merge know nothing of them.

Sources: the factor is dropout's (Srivastava et al. 2014, Sec. 7.5) and WiSE-FT's (arXiv 2109.01903, Eq. 1); the
temperature Guo et al.'s (arXiv 1706.04599, Sec. 4.2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora.adapt.adapted import Adapted
from glora.adapt.adapter_file import load_adapter
from glora.errors import RunError
from glora.files import write_json
from glora.tasks.evaluation import predictions
from glora.tasks.task import ImageSet

__all__ = [
    "FEWEST",
    "GENOTYPES",
    "STRENGTHS",
    "TEMPERATURES",
    "Calibration",
    "calibrated_loss",
    "chosen",
    "chosen_alone",
    "load_calibrated",
    "temperatures",
]

GENOTYPES = 4  # random ones that it is chosen with
STRENGTHS = tuple(2 ** (step / 3) for step in range(-4, 3))
TEMPERATURES = tuple(2 ** (step / 8) for step in range(-8, 33))
FEWEST, LEVEL = 30, 2.0  # images that anything is concluded of; paired standard errors that a gain must have

Measure = Callable[[float], tuple[Tensor, Tensor]]


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
        """What is to be told of it; nothing where nothing is changed."""
        told = f"adaptations times {self.strength:.2f}, logits divided by {self.temperature:.2f}"
        return [] if self == Calibration() else [f"Calibration: {told}."]

    @torch.no_grad()
    def apply(self, adapted: Adapted) -> None:
        """Multiplies both into the supernet's numbers, in place."""
        for support in adapted.supports.values():
            for left in support.down.values():
                left.mul_(self.strength)
        for name in adapted.head:
            for number in _last_numbers(adapted.model.get_submodule(name)):
                number.div_(self.temperature)

    def write(self, path: Path) -> None:
        """The file holds both, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """What the file holds; of a search from before there was one, nothing is changed.

        Raises:
            RunError: It cannot be read.
        """
        if not path.is_file():
            return cls()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if {*found} != {*asdict(cls())}:
                raise ValueError(f"it has {list(asdict(cls()))}, and nothing else")
            if not all(isinstance(value, float) and 0 < value < math.inf for value in found.values()):
                raise ValueError("both are finite numbers above 0")
            return cls(**found)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} cannot be read: {error}.", remedy="Delete search.jsonl and search anew.") from error


def _last_numbers(head: nn.Module) -> Iterable[nn.Parameter]:
    """The numbers of the head's last layer that has any."""
    layers = [layer for layer in head.modules() if list(layer.parameters(recurse=False))]
    return list(layers[-1].parameters(recurse=False)) if layers else []


def temperatures(adapted: Adapted, images: ImageSet, **how: Any) -> tuple[float, ...]:
    """What the logits may be divided by: 1 alone where that cannot be folded into the end of the head.

    Args:
        adapted: The adapted model; its numbers are as before afterwards.
        images: Some images.
        how: Arguments of `predictions`.
    """

    def logits() -> Tensor:
        found, _ = next(predictions(adapted.model, images, indices=range(min(2, len(images))), **how))
        return found

    plain = logits()
    Calibration(temperature=2.0).apply(adapted)
    halved = logits()
    Calibration(temperature=0.5).apply(adapted)  # powers of two round nothing
    return TEMPERATURES if torch.allclose(2 * halved, plain, rtol=1e-3, atol=1e-5) else (1.0,)


def calibrated_loss(
    logits: Tensor, labels: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> tuple[float, float]:
    """The lowest mean cross-entropy over the temperatures, and the temperature.

    Args:
        logits: `(n, classes)`.
        labels: `(n,)`.
        temperatures: What may divide the logits.
    """
    losses = [F.cross_entropy(logits / temperature, labels).item() for temperature in temperatures]
    finite = [(loss, each) for loss, each in zip(losses, temperatures, strict=True) if math.isfinite(loss)]
    return min(finite, default=(math.inf, 1.0))


def chosen(measure: Measure, *, images: int, temperatures: Sequence[float] = TEMPERATURES) -> Calibration:
    """The strength whose calibrated loss is lowest, of equal ones that nearest to 1, with its temperature.

    Nothing is changed where the images cannot tell that from no change: the gain in mean loss is at most two of its
    standard errors, or they are fewer than FEWEST, or every genotype is right on all of them: how sure is too sure,
    only mistakes tell.

    Args:
        measure: Strength -> logits `(k images, classes)` and labels `(k images,)` of k genotypes, one after the other.
        images: How many images.
        temperatures: What may divide the logits.
    """
    if images < FEWEST:
        return Calibration()
    tried = {strength: measure(strength) for strength in STRENGTHS}
    if _flawless(*tried[1.0]):
        return Calibration()
    found = {strength: calibrated_loss(*tried[strength], temperatures) for strength in STRENGTHS}
    best = min(found, key=lambda each: (found[each][0], abs(each - 1)))

    def losses(strength: float, temperature: float) -> Tensor:
        logits, labels = tried[strength]
        every = F.cross_entropy(logits / temperature, labels, reduction="none").double()
        return every.view(-1, images).mean(0)  # another genotype is no other image

    gain = losses(1.0, 1.0) - losses(best, found[best][1])
    error = gain.std(correction=0) / math.sqrt(images)
    return Calibration() if gain.mean() <= LEVEL * error else Calibration(best, found[best][1])


def _flawless(logits: Tensor, labels: Tensor) -> bool:
    return bool((logits.argmax(-1) == labels).all())


def chosen_alone(adapted: Adapted, images: ImageSet, **how: Any) -> Calibration:
    """The same for the one genotype that an adapted model plays; its numbers are as before afterwards.

    Args:
        adapted: The adapted model.
        images: Images that it was not trained on.
        how: Arguments of `predictions`.
    """
    lefts = [left for support in adapted.supports.values() for left in support.down.values()]
    before = [left.detach().clone() for left in lefts]

    def measure(strength: float) -> tuple[Tensor, Tensor]:
        Calibration(strength).apply(adapted)
        logits, labels = map(torch.cat, zip(*predictions(adapted.model, images, **how), strict=True))
        with torch.no_grad():
            for left, was in zip(lefts, before, strict=True):
                left.copy_(was)
        return logits, labels

    return chosen(measure, images=len(images), temperatures=temperatures(adapted, images, **how))


def load_calibrated(model: nn.Module, path: str | Path, images: ImageSet | None, **how: Any) -> Adapted:
    """The plain model with the adapter of a file, on the accelerator's device, calibrated by itself.

    Args:
        model: The base.
        path: The adapter file, of one genotype.
        images: Images that it was not trained on; None leaves it as it is.
        how: Arguments of `predictions`.
    """
    adapted = load_adapter(model, path)
    adapted.model.to(how["accelerator"].device)
    if images is not None:
        chosen_alone(adapted, images, **how).apply(adapted)
    return adapted
