"""What plays in the steps of somebody else's loop: genotypes drawn by a seed and the step's number.

The same for every loop: a step that is done again, after a kill or in another process, plays the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from glora.adapt.adapted import Adapted
from glora.adapt.supernet import Supernet
from glora.errors import ConfigError, StateError, need, whole, within
from glora.genotype import Genotype
from glora.integrations.checkpoints import SupernetState

__all__ = ["Playing", "Steps", "need_optimizer"]


class Playing:
    """What the forward passes of a step play; every integration has one.

    Args:
        supernet: The supernet, or the adapted model that one is made of.
        seed: Where the genotypes come from, together with the step.
        genotype: What plays outside of steps; the space's largest if not given.
        rank: The number of this process, of `world`: all draw the same, and each plays its own rows.
        world: How many processes share a step.

    Attributes:
        drawn: What the step that runs plays: of all its rows, over all processes.
    """

    def __init__(
        self,
        supernet: Supernet | Adapted,
        *,
        seed: int = 0,
        genotype: Genotype | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        need(supernet, (Supernet, Adapted), ConfigError, "supernet", "a glora.Supernet, or what glora.inject returns")
        whole(seed, "seed")
        self.supernet = supernet if isinstance(supernet, Supernet) else Supernet(supernet, seed=seed)
        self.adapted = adapted = self.supernet.adapted
        self.seed = seed
        self.genotype = adapted.space.largest if genotype is None else genotype
        adapted.space.encode(self.genotype)
        self.rank, self.world = rank, world
        self.drawn: list[Genotype] = []
        self._pass = 0  # which of the step's forward and backward passes is next
        self._rows = 1  # of a pass of this process
        self._playing: tuple[int, int] | None = None  # the pass and the rows that the active genotypes are for
        self._hook: Any = None

    # A step

    def begin(self, number: int, *, rows: int, done: float, passes: int = 1) -> None:
        """Draws what a step plays, and plays the rows of its first pass.

        Args:
            number: The optimizer step, from 0.
            rows: Rows of a forward pass of this process; the last one may have fewer.
            done: Share of the training that is done, 0 to 1.
            passes: Forward and backward passes of the step, whose gradients are added up.
        """
        whole(rows, "rows", least=1)
        whole(passes, "passes", least=1)
        within(done, "done", 0, 1)
        rng = random.Random(f"{self.seed}-{number}")
        self.drawn = self.supernet.drawn(rng, rows * self.world * passes, done)
        self._pass, self._rows = 0, rows
        self._play(rows)

    def next_pass(self) -> None:
        """The step's next pass has other rows."""
        self._pass += 1
        self._play(self._rows)

    def rest(self) -> None:
        """The one genotype plays, between two passes of a step as well."""
        self.adapted.activate(self.genotype)
        self._playing = None

    def end(self) -> None:
        """The step is over, and the one genotype plays."""
        self.drawn = []
        self.rest()

    def _play(self, rows: int) -> None:
        first = (self._pass * self.world + self.rank) * self._rows
        one = self.supernet.sampling == "batch"
        self.adapted.activate(self.drawn[0] if one else self.drawn[first : first + rows])
        self._playing = self._pass, rows

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Activates the genotypes of the rows that a pass of the training really has: the last batch may be short."""
        if not (self.drawn and self._playing) or self.supernet.sampling == "batch":
            return
        rows = next(len(each) for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.dim())
        if rows > self._rows:
            raise StateError(
                f"A batch of {rows} rows came, where {self._rows} were announced.",
                remedy='Announce them, or draw one genotype a step: Supernet(adapted, sampling="batch").',
            )
        if self._playing != (self._pass, rows):
            self._play(rows)

    # The model

    def attach(self) -> None:
        """The model asks before every forward pass which rows it has."""
        self.detach()
        self._hook = self.adapted.model.register_forward_pre_hook(
            self._before_forward, prepend=True, with_kwargs=True
        )  # before what refuses another number of rows

    def detach(self) -> None:
        """The training is over, or interrupted: what plays is the caller's again."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self.drawn = None, []


class Steps(Playing):
    """Draws what each optimizer step of a loop of yours plays.

        adapted = glora.inject(model, glora.SearchSpace())
        steps = glora.integrations.Steps(adapted, seed=0)
        optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-3)
        for step, (x, y) in enumerate(batches):
            with steps.step(step, rows=len(x), done=step / len(batches)):
                loss_of(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    Outside of a step the model plays one genotype, the largest: evaluate it there. While it is adapted, the model's
    `state_dict` holds support tensors, head and buffers, under names of their own, and its `load_state_dict` takes them
    back: whatever a loop saves and loads is small, and is no plain model by mistake.

    Args:
        supernet: The supernet, or the adapted model that one is made of. With `sampling="sample"`, its default, every
            row of the batch plays a genotype of its own.
        seed: Where the genotypes come from, together with the step.
        genotype: What plays outside of steps; the space's largest if not given.
        rank: The number of this process, of `world`: all draw the same, and each plays its own rows.
        world: How many processes share a step.
    """

    def __init__(self, supernet: Supernet | Adapted, **options: Any) -> None:
        super().__init__(supernet, **options)
        self.saved = SupernetState(self.adapted)
        self.attach()

    @contextmanager
    def step(self, number: int, *, rows: int, done: float, passes: int = 1) -> Iterator[Steps]:
        """Within it the model plays what the step draws. With several passes call `next_pass` between them.

        The arguments are those of `begin`.
        """
        self.begin(number, rows=rows, done=done, passes=passes)
        try:
            yield self
        finally:
            self.end()

    def release(self) -> None:
        """Takes off a merged or detached model what the training has left on it: after this it is plain.

        Raises:
            StateError: It is neither merged nor detached.
        """
        if self.adapted.attached:
            raise StateError("The model is still adapted.", remedy="Merge or detach it first.")
        self.detach()
        self.saved.remove()


def need_optimizer(optimizer: Any, adapted: Adapted) -> None:
    """Raises ConfigError unless the optimizer owns the adapter's tensors and nothing else."""
    owned = {id(each) for group in optimizer.param_groups for each in group["params"]}
    wanted = {id(each) for each in adapted.parameters()}
    if owned != wanted:
        raise ConfigError(
            f"The optimizer owns {len(owned - wanted)} tensors that are not the adapter's, and lacks "
            f"{len(wanted - owned)} that are.",
            remedy="Give it adapted.parameters(), and leave requires_grad as inject has set it.",
        )
