"""PACE (arXiv 2409.17137): passes over one example must agree however the adapters' outputs are perturbed.

In training every adapted layer gives `plain(x) + z ∘ (adapted(x) - plain(x))`. plain(x) is the output of its pretrained
weights; z is normal with mean 1, one number per sample and output channel, the same at every token or position of a
sample. The standard deviation of z falls linearly with depth, from sigma at the first layer. The loss is that of one
such noisy pass plus lambda times the distance between the outputs of two of them (in a classification the squared
distance of the logits, summed over the classes), averaged over the examples. Both passes have a gradient, and the
same drop-out and drop-path.

    full  two passes at every step
    lazy  two passes, of the first half of the batch, at every `pace_every`-th step; one pass at the others
    fast  one pass; the other is that of the epoch before, whose outputs are kept

Form, schedule over depth and defaults (sigma 1.2, lambda 1: what the authors give for CIFAR-100 of VTAB-1K) are those
of their code, github.com/MaxwellYaoNi/PACE; its advice is a larger lambda for lazy, a larger sigma and smaller lambda
for fast. Departures: the depth is counted in layers, not in blocks; the first block is perturbed as well; the head is
not, whose whole output their code multiplies; fast begins with the second epoch, not with a distance to zeros.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from glora.adapt import attach, layers
from glora.adapt.head import is_inside
from glora.adapt.layers.view import View
from glora.config import TrainSettings
from glora.errors import ConfigError, StateError, listed
from glora.methods.method import Tuned
from glora.tasks.objective import Objective

__all__ = ["Pace", "StepExamples", "check_pace", "example_steps"]


class StepExamples(NamedTuple):
    """The examples of a step.

    Attributes:
        batch: Their indices, `(n,)`, those of all processes.
        positions: Which of them this process takes, in their order.
        step: The step, from 0.
        mine: Whether what this process takes counts: with fewer examples than processes, one repeats the first.
    """

    batch: Tensor
    positions: Sequence[int]
    step: int
    mine: bool = True


@dataclass(frozen=True)
class _NoisyLayer:
    """A layer that is perturbed; `copy` has its pretrained weight and bias where training writes into its own."""

    name: str
    layer: Any
    view: View
    copy: tuple[Tensor, Tensor | None] | None

    def plain(self, x: Tensor) -> Tensor:
        """The output of the pretrained weights."""
        weight, bias = attach.base_of(self.layer) if self.copy is None else self.copy
        return self.view.plain(self.layer, x, weight, bias)


def _trained_layers(tuned: Tuned) -> dict[str, tuple[Any, View | None]]:
    """Every layer outside the head that training changes, by name, with its view where its output can be perturbed."""
    found: dict[str, tuple[Any, View | None]] = {}
    for name, layer in tuned.model.named_modules():
        if is_inside(name, tuned.head):
            continue
        attached = attach.is_attached(layer)
        if attached:
            views = {slot: adapter.view for slot, adapter in attach.adapters_of(layer).items()}
        else:
            views = layers.views_of(layer) if any(p.requires_grad for p in layer.parameters(recurse=False)) else {}
        if views:
            found[name] = (layer, views[""] if _fits(layer, views, attached) else None)
    return found


def _fits(layer: Any, views: dict[str, View], attached: bool) -> bool:
    """Whether the layer's output is that of its one weight, as the view computes it, and has no other effect."""
    kind: Any = type(layer).__bases__[0] if attached else type(layer)
    row, view = layers.row_of(layer), views.get("")
    own = row is not None and kind.forward is row[1].forward  # a subclass's own forward may do more
    spreads = view is not None and view.called and type(view).spread is not View.spread
    return own and spreads and not getattr(layer, "track_running_stats", False)


def check_pace(tuned: Tuned) -> None:
    """Nothing when training changes a layer whose output can be perturbed.

    Raises:
        ConfigError: Nothing but the head is trained, or only layers that cannot be perturbed.
    """
    found = _trained_layers(tuned)
    if not any(view for _, view in found.values()):
        alone = "no layer outside the head trains" if tuned.count() else "only the head trains"
        what = f"none of the layers that train can be perturbed: {listed(found)}" if found else alone
        raise ConfigError(
            f"train.pace perturbs what training adds to the layers' outputs, and {what}.",
            remedy="Leave out train.pace, or train with another method.",
        )


def _passes(settings: TrainSettings, step: int) -> int:
    return 2 if settings.pace == "full" or _halves(settings, step) else 1


def _halves(settings: TrainSettings, step: int) -> bool:
    return settings.pace == "lazy" and step % settings.pace_every == 0


def _examples(settings: TrainSettings, step: int, n: int) -> int:
    return max(1, n // 2) if _halves(settings, step) else n


def example_steps(settings: TrainSettings, examples: int) -> int:
    """Forward-and-backward passes of an example in a whole training on so many examples."""
    size = settings.batch_size
    batches = [min(size, examples - first) for first in range(0, examples, size)] * settings.longest
    return sum(_examples(settings, step, n) * _passes(settings, step) for step, n in enumerate(batches))


class Noise:
    """Perturbs the layers of a model within a `with`, once numbers are drawn.

    Every process draws the numbers of the whole batch and takes its own samples', so that the noise of an
    example does not depend on the number of processes.

    Args:
        tuned: The model, as it is before training.
        sigma: Standard deviation at the first layer; it falls in a line to `sigma / layers` at the last.
        device: Where the model is.

    Raises:
        ConfigError: There is nothing to perturb.
    """

    def __init__(self, tuned: Tuned, sigma: float, device: torch.device) -> None:
        check_pace(tuned)
        every = _trained_layers(tuned)
        self.names = tuple(every)
        self.layers = [
            _NoisyLayer(name, layer, view, None if attach.is_attached(layer) else _copied(layer, view))
            for name, (layer, view) in every.items()
            if view is not None
        ]
        self.generator = torch.Generator(device)
        self.touched: set[str] = set()
        self.widths = [noisy.view.site.out_features for noisy in self.layers]
        depths = torch.arange(len(self.layers)) / len(self.layers)
        sigmas = [value * sigma for value in (1 - depths).tolist()]
        self._sigmas = torch.tensor(sigmas, device=device).repeat_interleave(torch.tensor(self.widths, device=device))
        self._numbers: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.silent = sigma == 0

    def __enter__(self) -> Noise:
        if not self.silent:  # before a layer's other hooks, which may change its output
            self._handles = [
                noisy.layer.register_forward_hook(self._hook(noisy), with_kwargs=True, prepend=True)
                for noisy in self.layers
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._numbers = {}

    def draw(self, seed: int, positions: Sequence[int], batch_size: int) -> None:
        """The numbers z of the next pass, those of these samples out of a batch of so many."""
        device = self.generator.device
        self.generator.manual_seed(seed)
        normal = torch.randn(batch_size, len(self._sigmas), generator=self.generator, device=device)
        z = 1 + self._sigmas * normal[torch.tensor(list(positions), device=device)]
        self._numbers = dict(zip((noisy.name for noisy in self.layers), torch.split(z, self.widths, 1), strict=True))

    def _hook(self, noisy: _NoisyLayer) -> Callable[..., Tensor | None]:
        def perturbed(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
            if attach.is_attached(layer) and attach.state_of(layer).looks is not None:  # copies of a sample stay equal
                return None
            if torch._C._current_graph_task_id() != -1:  # within a backward pass
                raise StateError(
                    f"PACE perturbs {noisy.name}, whose forward gradient checkpointing repeats: the numbers differ.",
                    remedy="Train without gradient checkpointing, or without train.pace.",
                )
            z = self._numbers[noisy.name]
            inputs = [*args, *kwargs.values()]
            if len(inputs) != 1 or kwargs.keys() - {"input"} or not noisy.view.tells_apart(inputs[0], len(z)):
                return None
            self.touched.add(noisy.name)
            plain = noisy.plain(inputs[0])
            z = z.to(y.dtype).repeat_interleave(len(y) // len(z), 0)  # windows of a sample are next to each other
            return plain + noisy.view.spread(layer, z, y) * (y - plain)

        return perturbed

    @property
    def left(self) -> tuple[str, ...]:
        """The layers that the passes so far have not perturbed, though training changes them."""
        return () if self.silent else tuple(name for name in self.names if name not in self.touched)


def _copied(layer: Any, view: View) -> tuple[Tensor, Tensor | None]:
    bias = layer._parameters.get(view.bias)
    weight = layer._parameters[view.weight].detach().clone()
    return weight, None if bias is None else bias.detach().clone().flatten()


class Pace:
    """The passes of a training step, perturbed and compared as the settings say; `off` is one plain pass.

    Args:
        tuned: The model, as it is before training.
        objective: What tells how far two outputs are apart.
        settings: `pace` and its numbers.
        examples: How many training examples there are.
        seed: Decides the noise.
        accelerator: Device and processes.

    Attributes:
        noise: What perturbs the layers; None for `off`.
        rng: Draws the seeds of the noise in the epoch under way.
        outputs: Of `fast` the outputs for every training example in its latest pass, `(examples, ...)`.

    Raises:
        ConfigError: There is nothing to perturb.
    """

    def __init__(
        self,
        tuned: Tuned,
        objective: Objective,
        settings: TrainSettings,
        *,
        examples: int,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.objective = objective
        self.settings = settings
        self.count = examples
        self.seed = seed
        self.accelerator = accelerator
        self.noise = None if settings.pace == "off" else Noise(tuned, settings.pace_noise, accelerator.device)
        self.outputs: Tensor | None = None
        self._epoch = 0
        self.rng = random.Random()
        self._said = False

    def begin(self, epoch: int, rng: random.Random | None = None) -> None:
        """From here on it is this epoch, from 0; with a generator it goes on where that stands."""
        self._epoch, self.rng = epoch, rng or random.Random(f"noise {self.seed} {epoch}")

    def examples(self, step: int, n: int) -> int:
        """How many examples of a batch of n the step takes."""
        return _examples(self.settings, step, n)

    def passes(self, step: int) -> int:
        """How often the step takes each of them forward and backward."""
        return _passes(self.settings, step)

    def around(self) -> Any:
        """Within it, which holds forward and backward of a step, the layers are perturbed."""
        return nullcontext() if self.noise is None else self.noise

    def run(self, forward: Callable[[], Any], taken: StepExamples) -> tuple[Any, Tensor | float]:
        """The outputs for this process's examples, and what the loss has in addition for them.

        Args:
            forward: One pass over the examples.
            taken: Which they are.
        """
        if self.noise is None:
            return forward(), 0.0
        if self.passes(taken.step) == 1:
            output = self._pass(forward, taken)
            return output, self._fast(output, taken) if self.settings.pace == "fast" else 0.0
        device = self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the same masks in both passes
            output = self._pass(forward, taken)
        return output, self._penalty(output, self._pass(forward, taken))

    def _pass(self, forward: Callable[[], Any], taken: StepExamples) -> Any:
        assert self.noise is not None
        self.noise.draw(self.rng.getrandbits(63), taken.positions, len(taken.batch))
        return forward()

    def _penalty(self, first: Any, second: Any) -> Tensor:
        distance = self.objective.distance(first, second)
        if distance is None:
            raise self._no_distance()
        return self.settings.pace_weight * distance.mean()

    def _no_distance(self) -> ConfigError:
        return ConfigError(
            f"train.pace={self.settings.pace} needs a distance between two outputs, and the objective "
            f"{self.objective.name!r} has none.",
            remedy="Leave out train.pace.",
        )

    def _fast(self, output: Any, taken: StepExamples) -> Tensor | float:
        """The distance to the epoch before; these outputs, of all processes, are kept for the next one."""
        if not torch.is_tensor(output) or self.objective.distance(output, output) is None:
            raise self._no_distance()
        device, positions = output.device, torch.tensor(list(taken.positions), device=output.device)
        if self.outputs is None:
            self.outputs = torch.zeros(self.count, *output.shape[1:], device=device)
        batch = taken.batch.to(device)
        found = self._penalty(output, self.outputs[batch[positions]]) if self._epoch else 0.0
        mine = torch.zeros(len(batch), *output.shape[1:], device=device)
        if taken.mine:
            mine[positions] = output.detach()
        self.outputs[batch] = self.accelerator.reduce(mine, "sum")
        return found

    def warning(self) -> str:
        """After some steps, once: the layers that are not perturbed; empty when all are."""
        if self._said or self.noise is None or not self.noise.touched or not (left := self.noise.left):
            return ""
        self._said = True
        return (
            f"PACE perturbs {len(self.noise.touched)} of {len(self.noise.names)} layers; not {listed(left)}: their "
            "weight is read without calling them, they have running statistics, or their samples cannot be told apart."
        )
