"""What a method is: settings that make a backbone trainable, and all that a run needs of what they made."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from glora import registry
from glora.adapt.adapter_format import fingerprint, read_method
from glora.errors import StateError
from glora.genes import GenotypeSpace
from glora.methods import METHODS
from glora.settings import Settings, build

__all__ = ["Method", "Polish", "Tuned", "get_method"]


class Tuned(ABC):
    """A backbone made trainable.

    The first half is what every method has; the second half is asked only where `space` is not None: several genotypes
    share the numbers, and a search chooses one.

    Attributes:
        model: The module whose forward is trained and evaluated.
        head: Names of the modules that are trained whole and not counted.
        notes: What a user should be told: what is not adapted, and why.
        no_merge: Why it cannot be merged into a plain model; empty where it can.
    """

    model: nn.Module
    head: tuple[str, ...]
    notes: tuple[str, ...] = ()
    no_merge: str = ""

    @property
    def space(self) -> GenotypeSpace | None:
        """What is searched after the training; None where nothing is."""
        return None

    @property
    def summary(self) -> str:
        """What is trained, in a few words, for the plan of a run."""
        return f"{self.count():,} trainable numbers and the head"

    def before_step(self, rng: random.Random, positions: Sequence[int], batch_size: int, done: float) -> None:
        """Called before every training step, on every process with an equal generator.

        Args:
            rng: What is drawn comes from it, and is the same on every process.
            positions: The example of the step's batch that each row of the forward pass belongs to, in their order:
                those that this process takes, each as often as it has rows.
            batch_size: Examples of the step's batch, over all processes.
            done: Share of the steps that are done, from 0 to below 1.
        """
        return

    @property
    def playing(self) -> list[Any]:
        """The genotypes in play, each once; empty where there is one for ever."""
        return []

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer owns."""

    @abstractmethod
    def count(self) -> int:
        """Trainable numbers in use, without the head."""

    @property
    def constants(self) -> dict[str, Any]:
        """Plain data without which the numbers mean something else, such as fixed scales."""
        return {}

    def use_constants(self, constants: Mapping[str, Any]) -> None:
        """Takes over what `constants` was where the numbers come from."""
        return

    @abstractmethod
    def save(self, path: str | Path, info: Mapping[str, Any], *, base_fingerprint: str | None = None) -> None:
        """Writes all that was trained.

        Args:
            path: The file.
            info: Plain JSON that travels with it.
            base_fingerprint: `Method.base_fingerprint` of the base where it is known already, so that the weights are
                not hashed again; methods whose files know no base do not use it.
        """

    @abstractmethod
    def load(self, path: str | Path, *, base_fingerprint: str | None = None) -> None:
        """Takes over what `save` wrote.

        Args:
            path: The file.
            base_fingerprint: As in `save`.

        Raises:
            AdapterFileError: The file is damaged, or of another base.
        """

    @abstractmethod
    def merged(self) -> nn.Module:
        """The plain model with what was learned folded in; a method that cannot gives its model as it is."""

    @property
    def new_keys(self) -> tuple[str, ...]:
        """After `merged` the state-dict keys that the base does not have."""
        return ()

    # Of a space with several genotypes.

    def activate(self, genotype: Any) -> None:
        """Makes the model play the genotype."""
        raise self._nothing_to_choose()

    def hold(self, genotype: Any) -> AbstractContextManager[nn.Module]:
        """Within it the model plays the genotype, as quickly as it can."""
        raise self._nothing_to_choose()

    def save_winner(self, path: str | Path, info: Mapping[str, Any], *, base_fingerprint: str | None = None) -> None:
        """Writes the active genotype alone, which `Method.load` reads; the arguments are those of `save`."""
        self.save(path, info, base_fingerprint=base_fingerprint)

    def alone(self, model: nn.Module) -> Tuned:
        """The active genotype by itself on a plain model, with the numbers that it has now."""
        raise self._nothing_to_choose()

    def snapshot(self, *, cpu: bool = False) -> Any:
        """A copy of all numbers that training changes; on the CPU it can be sent to any other process."""
        raise self._nothing_to_choose()

    def restore(self, snapshot: Any) -> None:
        """Puts the numbers of a snapshot in place."""
        raise self._nothing_to_choose()

    def strengthen(self, factor: float) -> None:
        """Multiplies all that the method adds to the base by the factor, in place."""
        raise self._nothing_to_choose()

    def _nothing_to_choose(self) -> StateError:
        return StateError(f"{type(self).__name__} has one genotype: there is nothing to choose.")


class Polish(NamedTuple):
    """How the winner of a method's search is trained by itself, unless told otherwise.

    Attributes:
        start: Its first numbers: the supernet's, or those of a fresh start on the pretrained `base`.
        epochs: As a share of the training's; 0: it is not.
        rate: Its learning rate, as a multiple of the training's.
    """

    start: Literal["supernet", "base"] = "supernet"
    epochs: float = 0.0
    rate: float = 1 / 3  # the start is trained already


class Method(Settings):
    """Settings of one method. One more method is a subclass in a file of its own and a line in `METHODS`.

    Attributes:
        lr: The learning rate that it is trained with unless told otherwise.
        least: Of a method that is searched: the fewest numbers where they are left open, as a share of the most.
    """

    lr: ClassVar[float]
    least: ClassVar[float] = 0.9  # few val examples prefer small subnets, docs/background/search.md
    name: str

    @property
    def polish(self) -> Polish:
        """How a winner of its search is trained by itself, unless told otherwise."""
        return Polish()

    @property
    def title(self) -> str:
        """What tables call the method with these settings, as the paper does."""
        return self.name

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> Tuned:
        """The model made trainable in place, the modules `head` trained whole."""
        raise NotImplementedError

    def load(self, model: nn.Module, path: str | Path, *, base_fingerprint: str | None = None) -> Tuned:
        """The plain model with what a run of this method has saved: its winner, or all of it.

        Args:
            model: The base; it is changed in place.
            path: The file.
            base_fingerprint: As in `Tuned.save`.

        Raises:
            AdapterFileError: The file is damaged, of other settings, or of another base.
        """
        tuned = self.apply(model, head=read_method(path).head_modules, seed=0)
        tuned.load(path, base_fingerprint=base_fingerprint)
        return tuned

    def base_fingerprint(self, model: nn.Module, head: Sequence[str]) -> str:
        """The hash of an untouched base by which a run and its files know it.

        Args:
            model: The base.
            head: Names of the modules trained whole, which are not the base's.
        """
        return fingerprint(model, head)


def get_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of this name with its settings.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: It has no such setting, or not with that value.
    """
    kind: type[Method] = registry.lookup(METHODS, name, kind="method", remedy="List them with `glora ls methods`.")
    return build(kind, settings or {}, f"the method {name!r}")
