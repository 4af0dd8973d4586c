"""Several adapters on one base: add, switch, remove by name; one plays, or one per sample of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from glora.adapt import attach
from glora.adapt.head import MixedHead, head_of, show_head
from glora.adapt.samples import refuse_sequence_first
from glora.adapt.sites import Place
from glora.adapt.state import AdapterState, NamedAdapter, fill
from glora.adapt.support import Support
from glora.errors import StateError, UnknownNameError, listed, need, several
from glora.genotype import Genotype, LayerConfig, Site
from glora.registry import load
from glora.space import BoundSpace

__all__ = ["BASE", "NamedAdapters"]

BASE = "base"  # what samples of the untouched base are called; no adapter has this name


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
    _base_own: dict[str, Tensor]
    _name: str
    _mixed: tuple[str, ...] = ()
    _mixed_head: MixedHead | None = None

    if TYPE_CHECKING:

        def activate(self, genotype: Genotype | Sequence[Genotype]) -> None: ...
        def _need_attached(self, action: str) -> None: ...
        def _need_free(self, action: str) -> None: ...
        def _guard(self, *, several: bool) -> None: ...
        def _own(self) -> dict[str, Tensor]: ...
        @property
        def supports(self) -> dict[str, Support]: ...
        def _make_supports(self, space: BoundSpace, seed: int) -> dict[str, Support]: ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters on this base."""
        return tuple(self._adapters)

    @property
    def playing(self) -> str | tuple[str, ...]:
        """Name of the adapter that plays, or one per sample of the batch."""
        return self._mixed or self._name

    def add(self, name: str, path: str | Path) -> None:
        """Puts the adapter of a file beside the others, under a name; `switch` makes it play.

        Raises:
            StateError: The name is taken or is `"base"`, or the file adapts sites that this model does not.
            AdapterFileError: The file is damaged or belongs to another base.
        """
        self._need_attached("add")
        need(name, str, UnknownNameError, "name", "a text")
        if name in (*self._adapters, BASE):
            raise StateError(f"There is an adapter {name!r} already.", remedy="Choose another name, or remove it.")
        # late binding: files live on a higher floor
        state: AdapterState = load("glora.adapt.adapter_file:read_for")(self.model, path)
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

    def switch(self, name: str | Sequence[str]) -> None:
        """Makes the named adapter play, with its own genotype and head; or one adapter per sample of the batch.

        With one name per sample the batch has that many samples, and each goes through its own adapter and head in
        one pass; `"base"` is the untouched base with the head it came with. Where samples cannot be told apart the
        first one's adapter plays for all, said aloud. The adapter in use stays in use: `activate` and `switch` to one
        name end the mixture, and until then `parameters`, `hold`, `merge` and `state` are refused.

        Args:
            name: A name, or one per sample.

        Raises:
            UnknownNameError: There is no such adapter.
            StateError: There is no name, the heads' shapes differ, a layer takes sequences first, or the model is held.
        """
        self._need_attached("switch")
        self._need_free("switch")
        if not isinstance(name, str):
            self._mix(several(name, str, UnknownNameError, "name", "a name, or a list of them, one per sample"))
            return
        self._need_adapter(name)
        self._keep()
        kept, new = self._adapters[self._name], self._adapters[name]
        kept.own = {key: value.detach().clone() for key, value in self._own().items()}
        for site, group in self._places.items():
            for place in group:
                attach.state_of(place.layer, place.slot).support = _beside(place, new.supports[site])
        self._name, self.space = name, new.space
        show_head(self.model, new.own or kept.own)
        self.activate(new.active)

    def _keep(self) -> None:
        """Remembers the genotype of the adapter in use."""
        if not self._mixed:
            active = self.active if isinstance(self.active, Genotype) else self.active[0]
            self._adapters[self._name].active = active

    def _mix(self, names: tuple[str, ...]) -> None:
        if not names:
            raise StateError("No adapter to switch to.", allowed="Give one name, or one per sample of the batch.")
        for name in dict.fromkeys(names):
            if name != BASE:
                self._need_adapter(name)
        refuse_sequence_first(self.model)
        if self.statistics:
            raise StateError(
                "Trained running statistics are one set for the whole batch.", remedy="Switch to one adapter at a time."
            )
        shown = head_of(self.model, self.head)
        own = {name: adapter.own for name, adapter in self._adapters.items()} | {BASE: self._base_own}
        heads = {name: {key: each[key] for key in shown if key in each} for name, each in own.items()}
        played = [None if name == self._name else heads[name] for name in names]
        mixed_head = MixedHead(self.model, self.head, played)
        self._keep()
        self._unmix()
        if self.head:
            mixed_head.install()
            self._mixed_head = mixed_head
        none = Genotype(dict.fromkeys(self.sites, LayerConfig()))
        base = NamedAdapter(self.space, self.supports, none, {})
        adapters = {name: self._adapters.get(name, base) for name in names}
        for site, group in self._places.items():
            configs = {name: adapter.active[site] for name, adapter in adapters.items()}
            for place in group:
                supports = {name: _beside(place, adapter.supports[site]) for name, adapter in adapters.items()}
                state = attach.state_of(place.layer, place.slot)
                state.play([configs[name] for name in names], [supports[name] for name in names])
        self._guard(several=len(names) > 1)
        self._mixed, self.active = names, tuple(adapters[name].active for name in names)

    def _unmix(self) -> None:
        """One adapter plays again; the layers are told by `activate`."""
        if self._mixed_head is not None:
            self._mixed_head.remove()
        self._mixed, self._mixed_head = (), None

    def _need_one(self, action: str) -> None:
        """Raises StateError while a batch is mixed."""
        if self._mixed:
            raise StateError(
                f"One adapter per sample plays: {action} is not possible.", remedy="Switch to one adapter first."
            )

    def remove(self, name: str) -> None:
        """Forgets a named adapter that is not playing.

        Raises:
            UnknownNameError: There is no such adapter.
            StateError: It is the one in use, or plays for a sample.
        """
        self._need_adapter(name)
        if name in (self._name, *self._mixed):
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
        need(name, str, UnknownNameError, "name", "the name of an adapter")
        if name not in self._adapters:
            raise UnknownNameError(
                f"There is no adapter {name!r}.",
                allowed=f"Known: {listed(self._adapters, n=10)}; {BASE!r} alone only in a list, one name per sample.",
            )


def _beside(place: Place, support: Support) -> Support:
    """The support tensors on the device of the weight: the model may have moved since they were added."""
    factor = next(iter(support.down.values()), None)
    return support if factor is None or factor.device == place.weight.device else support.to(place.weight.device)
