"""The weight-entangled supernet: draw what a step plays, calibrate, hold a subnet to score it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from glora.adapt.adapted import Adapted
from glora.adapt.state import AdapterState
from glora.errors import ConfigError, need, whole, within
from glora.genotype import Genotype
from glora.tasks.calibration import (
    GENOTYPES,
    Calibration,
    Outputs,
    choose_calibration,
    divide_outputs,
    possible_temperatures,
)
from glora.tasks.objective import Batch, Objective
from glora.tasks.objectives.classify import Classify

__all__ = ["Sampling", "Supernet", "copied", "on_cpu"]


Sampling = Literal["sample", "batch"]


class Supernet:
    """An adapted model that plays random genotypes in training; all of its space share its numbers.

    In a loop of your own:

        adapted = glora.inject(model, glora.SearchSpace())
        supernet = glora.Supernet(adapted, seed=0)
        optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-3)
        for step, (x, y) in enumerate(batches):
            supernet.draw(len(x), done=step / len(batches))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        supernet.calibrate(lambda: (model(val_x), val_y))

        @torch.no_grad()
        def score(genotype):
            with supernet.hold(genotype):
                return -torch.nn.functional.cross_entropy(model(val_x), val_y).item()

        model.eval()
        result = glora.search(score, adapted.space, budget=300_000)
        adapted.activate(result.best.genotype)
        model = adapted.merge()

    Args:
        adapted: The adapted model.
        sampling: `"batch"`: every step plays one genotype, drawn uniformly; `"sample"`: every sample of the batch its
            own, in one pass.
        largest: Share of the samples that play the space's largest genotype instead, at the first step; it falls in
            a line towards none at the last. With `"batch"` the chance of a step.
        seed: Where the genotypes of `draw` come from.

    Source: arXiv 2306.07967, Sec. 2.3, is `sampling="batch", largest=0`.
    """

    def __init__(self, adapted: Adapted, *, sampling: Sampling = "sample", largest: float = 1.0, seed: int = 0) -> None:
        need(adapted, Adapted, ConfigError, "adapted", "what glora.inject returns")
        if sampling not in get_args(Sampling):
            allowed = f"Allowed: {', '.join(get_args(Sampling))}."
            raise ConfigError(f"sampling={sampling!r} is not allowed.", allowed=allowed)
        within(largest, "largest", 0, 1)
        self.adapted = adapted
        self.sampling = sampling
        self.largest = largest
        self._rng = random.Random(seed)

    def draw(self, samples: int, *, done: float) -> None:
        """Draws what the next step plays and activates it: call it before every forward pass of the training.

        Args:
            samples: Samples of the batch.
            done: Share of the training that is done, 0 to 1.
        """
        whole(samples, "samples", least=1)
        within(done, "done", 0, 1)
        self.sample(self._rng, range(samples), samples, done)

    def sample(self, rng: random.Random, positions: Sequence[int], batch_size: int, done: float) -> None:
        """`draw` for a batch that several processes share: equal generators draw equal steps everywhere.

        Args:
            rng: Where the genotypes come from: the same number of draws whatever `positions` is.
            positions: Which samples of the batch this process has, in their order; one that has several rows in the
                model's batch, next to each other, as often.
            batch_size: Samples of the batch, over all processes.
            done: Share of the training that is done, 0 to 1.
        """
        drawn = self.drawn(rng, batch_size, done)
        self.adapted.activate(drawn[0] if self.sampling == "batch" else [drawn[position] for position in positions])

    def drawn(self, rng: random.Random, batch_size: int, done: float) -> list[Genotype]:
        """What `sample` draws, and nothing activated: the genotype of every sample, or the one of the whole batch."""
        space, share = self.adapted.space, self.largest * (1 - done)
        if self.sampling == "batch":
            return [space.largest if rng.random() < share else space.sample(rng)]
        large = round(share * batch_size)
        drawn = [space.largest] * large + [space.sample(rng) for _ in range(batch_size - large)]
        rng.shuffle(drawn)  # a process may have every second sample
        return drawn

    def scale(self, strength: float) -> None:
        """Multiplies the change that every support tensor makes, by its left factors, in place: 1 changes nothing."""
        with torch.no_grad():
            for support in self.adapted.supports.values():
                for down in support.down.values():
                    down.mul_(strength)

    def hold(self, genotype: Genotype) -> AbstractContextManager[nn.Module]:
        """Within it the model plays the genotype with its effective weights built once."""
        return self.adapted.hold(genotype)

    @torch.no_grad()
    def calibrate(
        self,
        outputs: Callable[[], tuple[Tensor, Any]],
        *,
        objective: Objective | None = None,
        genotypes: int | Sequence[Genotype] = GENOTYPES,
        seed: int = 0,
    ) -> Calibration:
        """Sets how strongly subnets play, and how far apart their logits are, by held-out examples; before a search.

        Both are multiplied into the support tensors and the head. Nothing is changed where the examples cannot tell
        that from no change: fewer than 30, none of them wrong, or a gain within two standard errors.

        Args:
            outputs: Called with the model in eval mode, playing a subnet: the model's outputs on all held-out
                examples, `(n, c)`, and their targets.
            objective: Whose loss; by default that of a classifier of c classes.
            genotypes: How many random subnets it is judged by, or which: those of the size that will be searched.
            seed: Draws the random ones.

        Returns:
            The two factors.
        """
        model, space = self.adapted.model, self.adapted.space
        if isinstance(genotypes, int):
            whole(genotypes, "genotypes", least=1)
            rng = random.Random(seed)
            genotypes = [space.sample(rng) for _ in range(genotypes)]
        before, training = copied(self.adapted), model.training
        model.eval()
        try:
            with self.hold(space.largest):
                output, _ = outputs()
                objective = objective or Classify(classes=tuple(map(str, range(output.shape[-1]))))
                allowed = possible_temperatures(model, self.adapted.head, objective, lambda: outputs()[0])

            def measure(strength: float) -> Outputs:
                self.scale(strength)
                found = [self._held(genotype, outputs) for genotype in genotypes]
                self.adapted.load_state(before)
                return found

            chosen = choose_calibration(measure, objective, examples=len(output), temperatures=allowed)
        finally:
            self.adapted.load_state(before)
            model.train(training)
        self.scale(chosen.strength)
        divide_outputs(model, self.adapted.head, chosen.temperature)
        return chosen

    def _held(self, genotype: Genotype, outputs: Callable[[], tuple[Tensor, Any]]) -> tuple[Tensor, Batch]:
        with self.hold(genotype):
            output, targets = outputs()
        return output.float(), Batch(None, targets)


def copied(adapted: Adapted) -> AdapterState:
    """All numbers of the supernet, its head and running statistics as they are now."""
    return _each(adapted.state(whole=True), torch.clone)


def on_cpu(state: AdapterState) -> AdapterState:
    """The same numbers where any other process can read them."""
    return _each(state, Tensor.cpu)


def _each(state: AdapterState, change: Callable[[Tensor], Tensor]) -> AdapterState:
    tensors, head, statistics = (
        {name: change(value) for name, value in part.items()} for part in (state.tensors, state.head, state.statistics)
    )
    return replace(state, tensors=tensors, head=head, statistics=statistics)
