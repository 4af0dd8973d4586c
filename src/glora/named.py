"""Several adapters on one base: add, switch, remove by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from glora import layers
from glora.errors import StateError, UnknownNameError, listed
from glora.genotype import Genotype, LayerConfig, Site
from glora.layers.head import show_head
from glora.layers.places import Place
from glora.registry import load
from glora.space import BoundSpace
from glora.state import AdapterState, NamedAdapter, fill
from glora.support import Support

__all__ = ["NamedAdapters"]


class NamedAdapters:
    """The part of `Adapted` that keeps several adapters."""

    model: nn.Module
    sites: dict[str, Site]
    space: BoundSpace
    head: tuple[str, ...]
    statistics: bool
    active: Genotype | tuple[Genotype, ...]
    _places: dict[str, list[Place]]
    _adapters: dict[str, NamedAdapter]
    _name: str

    if TYPE_CHECKING:

        def activate(self, genotype: Genotype | Sequence[Genotype]) -> None: ...
        def _need_attached(self, action: str) -> None: ...
        def _own(self) -> dict[str, Tensor]: ...
        def _make_supports(self, space: BoundSpace, seed: int) -> dict[str, Support]: ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters on this base."""
        return tuple(self._adapters)

    def add(self, name: str, path: str | Path) -> None:
        """Puts the adapter of a file beside the others, under a name; `switch` makes it play.

        Raises:
            StateError: The name is taken, or the file adapts sites that this model does not.
            AdapterFileError: The file is damaged or belongs to another base.
        """
        self._need_attached("add")
        if name in self._adapters:
            raise StateError(f"There is an adapter {name!r} already.", remedy="Choose another name, or remove it.")
        # late binding: files live on a higher floor
        state: AdapterState = load("glora.checkpoint:read_for")(self.model, path)
        if state.genotype is None or state.head_modules != self.head:
            what = "a whole supernet" if state.genotype is None else f"the head {state.head_modules}, not {self.head}"
            raise StateError(f"{path} has {what}.", remedy="Save an adapter of one genotype with the same head.")
        if unknown := [site for site in state.sites if self.sites.get(site) != state.sites[site]]:
            raise StateError(
                f"{path} adapts sites that this model does not: {listed(unknown)}.",
                remedy="Inject the targets of both adapters, or load it into a model of its own.",
            )
        self._need_same_statistics(state)
        genotype = Genotype({site: state.genotype.get(site, LayerConfig()) for site in self.sites})
        space = BoundSpace(state.space, self.sites, only=genotype)
        supports = self._make_supports(space, 0)
        fill(supports, state)
        self._adapters[name] = NamedAdapter(space, supports, genotype, state.head | state.statistics)

    def switch(self, name: str) -> None:
        """Makes the named adapter play, with its own genotype and head.

        Raises:
            UnknownNameError: There is no such adapter.
        """
        self._need_attached("switch")
        self._need_adapter(name)
        kept = self._adapters[self._name]
        kept.active = self.active if isinstance(self.active, Genotype) else self.active[0]
        kept.own = {key: value.detach().clone() for key, value in self._own().items()}
        new = self._adapters[name]
        for site, group in self._places.items():
            for place in group:
                layers.state_of(place.layer, place.slot).support = new.supports[site].to(place.weight.device)
        self._name, self.space = name, new.space
        show_head(self.model, new.own or kept.own)
        self.activate(new.active)

    def remove(self, name: str) -> None:
        """Forgets a named adapter that is not playing.

        Raises:
            UnknownNameError: There is no such adapter.
            StateError: It is the one in use.
        """
        self._need_adapter(name)
        if name == self._name:
            raise StateError(f"The adapter {name!r} is in use.", remedy="Switch to another first, or detach.")
        del self._adapters[name]

    def _need_same_statistics(self, state: AdapterState) -> None:
        if bool(state.statistics) != self.statistics:
            has, now = ("", "frozen") if state.statistics else ("no ", "trained")
            raise StateError(
                f"The state has {has}running statistics, and this model's are {now}.",
                remedy=f"Inject with statistics={not self.statistics}.",
            )

    def _need_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise UnknownNameError(f"There is no adapter {name!r}.", allowed=f"Known: {listed(self._adapters, n=10)}.")
