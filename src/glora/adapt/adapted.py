"""`inject` adapts a model in place; `Adapted` is the model with its sites: what plays, trains, is saved and merged."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glora.adapt import attach, layers
from glora.adapt.adapter_format import fingerprint
from glora.adapt.attach import WarnOnce
from glora.adapt.float_head import FloatHead
from glora.adapt.guarded import GuardedMethods, need_places
from glora.adapt.head import MixedHead, head_of, is_inside, show_head
from glora.adapt.reading import grow, read_state
from glora.adapt.samples import guard_batch, refuse_sequence_first
from glora.adapt.sharded import refuse_sharded
from glora.adapt.sites import (
    LayerWeight,
    notes_on_biases,
    plan_sites,
    refuse_adapted,
    refuse_offloaded,
    weights_by_site,
)
from glora.adapt.state import AdapterState, NamedAdapter, fill
from glora.adapt.statistics import BaseBuffers, freeze_statistics, statistics_of
from glora.adapt.summary import Summary
from glora.adapt.support import Support
from glora.adapt.wrappers import bare
from glora.errors import (
    ConfigError,
    GloraError,
    SpaceError,
    StateError,
    TargetError,
    UnknownNameError,
    listed,
    need,
    several,
)
from glora.genotype import A_GENOTYPE, NONE, TENSORS, Genotype, LayerConfig, Site
from glora.space import BoundSpace, SearchSpace

__all__ = ["Adapted", "inject"]

BASE = "base"  # the name under which the untouched base plays; no adapter has this name

log = logging.getLogger("glora")


def inject(
    model: nn.Module,
    space: SearchSpace,
    *,
    targets: str | Sequence[str] = "linear",
    skip: str | Sequence[str] = (),
    head: str | Sequence[str] | None = "auto",
    example: Any = None,
    seed: int = 0,
    statistics: bool = False,
) -> Adapted:
    """The model adapted in place: every target layer gets support tensors; fresh, it is the base bit for bit.

    Args:
        model: Any module; everything but support tensors and head is frozen. What `torch.compile` and its like have
            put around it stays there; names are those of the model inside.
        space: What may be chosen at every site.
        targets: A kind of layer (`"linear"`: every Linear outside the head, attention's in-projections too, but for a
            language model's output layer; `"conv"`, `"norm"`, `"embedding"`, `"all"`); a regular expression searched in
            layer names; or a list of words, names or name endings.
        skip: The same, for layers to leave out.
        head: Modules trained whole: `"auto"` (a classifier of timm or transformers, nothing of a language model),
            names, or None.
        example: An input, a tuple or a dict of them, for the probe forward that `new_bias` needs.
        seed: Draws the `up` factors.
        statistics: Let training update the running statistics of norms (BatchNorm) outside the head. They are then
            the adapter's: saved with it, in the merged model, restored by detach. Otherwise they are frozen, and
            other buffers that move in training always are.

    Returns:
        The adapted model. The largest genotype of the space is active, so that an ordinary training loop trains all
        support tensors; `activate` another one for less.

    Raises:
        TargetError: Nothing matches, a name is unknown, or an argument is of another type.
        SpaceError: The space is no SearchSpace.
        StateError: The model is adapted already.

    Source: arXiv 2306.07967, Sec. 2.2-2.3.
    """
    need(model, nn.Module, TargetError, "model", "a torch.nn.Module")
    need(space, SearchSpace, SpaceError, "space", "a SearchSpace")
    model = bare(model)
    sites, heads, notes = plan_sites(
        model, targets=targets, skip=skip, head=head, new_bias=space.new_bias, example=example
    )
    bound = space.bind(sites)
    notes += notes_on_biases(model, bound)
    adapted = Adapted(model, sites, bound, heads, seed=seed, statistics=statistics)
    if statistics and not adapted.statistics:
        notes += ("No layer outside the head keeps running statistics: statistics=True changes nothing.",)
    if idle := [name for name, offered in adapted.space.options.items() if set(offered) == {(NONE,)}]:
        notes += (f"The space offers nothing at {listed(idle)}.",)
    adapted.notes = notes
    for note in notes:
        log.warning(note, extra={"noted": True})  # who shows the notes leaves these out
    return adapted


class Adapted:
    """A model with its sites. Made by `glora.inject` or `glora.load_adapter`.

    It may keep several adapters on the one base, by name: `add`, `switch`, `remove`. The first is `"default"`.

    Args:
        supports: The support tensors of every site, where they are not to be made from the space and the seed.

    Attributes:
        model: The user's own module, adapted in place.
        sites: Site name -> Site, in the model's order.
        space: The search space of the adapter in use, bound to these sites.
        head: Names of the modules trained whole.
        statistics: Whether running statistics are the adapter's, updated in training; else they are frozen.
        active: The genotype that the model plays, or one per sample of the batch.
        notes: What is not offered, and why.
        new_keys: After merge the state-dict keys that the base has not: the bias of a layer that had none.
    """

    active: Genotype | tuple[Genotype, ...]

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        space: BoundSpace,
        head: tuple[str, ...],
        *,
        seed: int = 0,
        statistics: bool = False,
        supports: Mapping[str, Support] | None = None,
    ) -> None:
        refuse_adapted(model)
        self.model = model
        self.sites = dict(sites)
        self.space = space
        self.head = head
        self.statistics = statistics and bool(statistics_of(model, head))
        self.notes: tuple[str, ...] = ()
        self.new_keys: tuple[str, ...] = ()
        every = weights_by_site(model)
        self._weights = {name: every[name] for name in sites}
        self._layers = {weight.module: weight.layer for group in self._weights.values() for weight in group}
        self._total = sum(parameter.numel() for parameter in model.parameters())
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._heads = {name: model.get_submodule(name) for name in head}
        self._base_own = {name: value.detach().clone() for name, value in self._own().items()}
        self._base: dict[str, dict[str, nn.Parameter | None]] | None = None  # the base's parameters after a merge
        self._state = "attached"
        self._held_by = 0  # the id of this object within hold(); a copy made there has another id and is free
        self._recompiles = WarnOnce(RECOMPILES)
        self._nothing_active = WarnOnce(NOTHING_ACTIVE)
        self._batch_guards: list[RemovableHandle] = []
        supports = self._make_supports(space, seed) if supports is None else self._placed(supports)
        self._attach(supports)
        self._adapters = {"default": NamedAdapter(space, supports, space.largest, {})}
        self._in_use = "default"
        self._mixed: tuple[str, ...] = ()  # the name of every sample's adapter, while several play
        self._mixed_head: MixedHead | None = None
        self.activate(space.largest)

    def _make_supports(self, space: BoundSpace, seed: int) -> dict[str, Support]:
        generator = torch.Generator().manual_seed(seed)
        supports = {}
        with torch.inference_mode(False):  # they are trained later
            for name, site in self.sites.items():
                support = Support(site, space.rules, space.options[name], generator=generator)
                supports[name] = _on_device_of(self._weights[name][0], support)
        return supports

    def _placed(self, supports: Mapping[str, Support]) -> dict[str, Support]:
        """Support tensors that are given, every site's on the device of its weight."""
        return {name: supports[name].to(self._weights[name][0].weight.device) for name in self.sites}

    def _attach(self, supports: Mapping[str, Support]) -> None:
        """Freezes the model but its head, and gives every layer its support tensors."""
        self.model.requires_grad_(False)
        for name in self.head:
            self.model.get_submodule(name).requires_grad_(True)
        site_of_weight = {weight.name: name for name, group in self._weights.items() for weight in group}
        for module, layer in self._layers.items():
            names = [site_of_weight.get(".".join(filter(None, (module, slot)))) for slot in layers.views_of(layer)]
            attach.attach(layer, *[supports.get(name or "") for name in names], names=[name or "" for name in names])
        self._statistics_hooks = [] if self.statistics else freeze_statistics(self.model, self.head)
        self._buffers = BaseBuffers(self.model, self.head)
        self._float_head = FloatHead(self.model, self.head)
        self._guarded = GuardedMethods(self.model, self)

    @classmethod
    def from_state(cls, model: nn.Module, state: AdapterState) -> Adapted:
        """The plain model adapted as the state says, its genotype active; of a whole supernet the largest."""
        space = BoundSpace(state.space, state.sites, only=state.genotype)
        adapted = cls(model, state.sites, space, state.head_modules, statistics=bool(state.statistics))
        adapted.load_state(state)
        return adapted

    def __repr__(self) -> str:
        if self._state != "attached":
            return f"Adapted({type(self.model).__name__}, {self._state}, {len(self.sites)} sites)"
        return f"Adapted({type(self.model).__name__}, {self.summary()})"

    def summary(self) -> Summary:
        """What trains and what does not: `print(adapted.summary())` is a line, `adapted.summary().table()` a table."""
        plays = (self.active,) if isinstance(self.active, Genotype) else self.active
        return Summary(
            model=type(self.model).__name__,
            total=self._total,
            active=() if self._mixed else tuple(map(self.space.count, dict.fromkeys(plays))),
            supernet=sum(parameter.numel() for parameter in self._support_parameters()),
            head={name: sum(p.numel() for p in self.model.get_submodule(name).parameters()) for name in self.head},
            sites=tuple(site.kind for site in self.sites.values()),
            adapters=self.adapters,
            notes=self.notes,
        )

    @property
    def merged(self) -> bool:
        """Whether the support tensors are folded into the weights."""
        return self._state == "merged"

    @property
    def attached(self) -> bool:
        """Whether the support tensors are in the model: it is neither merged nor detached."""
        return self._state == "attached"

    @property
    def quantized(self) -> bool:
        """Whether a weight that it adapts is quantised, which a merge would make floating-point."""
        adapters = (each for layer in self._layers.values() for each in attach.adapters_of(layer).values())
        return any(adapter.view.quantized for adapter in adapters)

    @property
    def supports(self) -> dict[str, Support]:
        """Site name -> the support tensors of the adapter in use."""
        return self._adapters[self._in_use].supports

    @property
    def scales(self) -> dict[str, dict[str, float]]:
        """Site name -> the fixed scales of the adapter in use, `TENSOR.kind` -> number, where it is not 1."""
        return {name: dict(support.scales) for name, support in self.supports.items()}

    # What plays

    def sample(self, rng: random.Random) -> Genotype:
        """A genotype of the space, drawn uniformly."""
        return self.space.sample(rng)

    def count(self, genotype: Mapping[str, LayerConfig]) -> int:
        """Trainable numbers of the genotype, without the head."""
        return self.space.count(genotype)

    def activate(self, genotype: Genotype | Sequence[Genotype]) -> None:
        """Makes the model play this genotype, or one genotype per sample of the batch (every layer's first dimension).

        Raises:
            SpaceError: The genotype is not in the space.
            StateError: The model is merged, detached or held, the sequence is empty, or a layer takes sequences first.
        """
        self._need_attached("activate")
        self._need_not_held("activate")
        given = several(genotype, Mapping, SpaceError, "genotype", f"{A_GENOTYPE}; or a list of them, one per sample")
        plays = tuple(each if isinstance(each, Genotype) else Genotype(each) for each in given)
        if not plays:
            raise StateError("No genotype to activate.", allowed="Give one genotype, or one per sample of the batch.")
        if len(plays) > 1:
            refuse_sequence_first(self.model)
        for each in dict.fromkeys(plays):
            self.space.encode(each)
        self._end_mixture()
        self._warn_of_recompilation()
        notice = self._nothing_active if self._is_nothing(*plays) else None
        for name, group in self._weights.items():
            for weight in group:
                adapter = attach.state_of(weight.layer, weight.slot)
                adapter.play([each[name] for each in plays])
                adapter.nothing_active = notice
        self._guard_batch(several=len(plays) > 1)
        self.active = plays if len(plays) > 1 else plays[0]

    def _warn_of_recompilation(self) -> None:
        adapters = [attach.state_of(weight.layer, weight.slot) for group in self._weights.values() for weight in group]
        if any(adapter.traced for adapter in adapters):
            for adapter in adapters:
                adapter.traced = False
            self._recompiles()

    def _is_nothing(self, *plays: Genotype) -> bool:
        """Whether these genotypes have no trainable number, where the space has larger ones."""

        def empty(genotype: Genotype) -> bool:
            return all(choice.kind == "none" for config in genotype.values() for choice in config)

        return all(map(empty, plays)) and not empty(self.space.largest)

    @contextmanager
    def hold(self, genotype: Genotype, *, train: bool = False) -> Iterator[nn.Module]:
        """Within it the model plays this genotype with its effective weights built once: for scoring.

        A compiled model takes them as tensors: another genotype is no recompilation. Until it is left `activate`,
        `switch`, `merge` and `detach` are refused.

        Args:
            genotype: What plays.
            train: Gradients reach the support tensors, through a gradient of the size of every weight; one backward
                pass, since the weights are built once. For `torch.compile` in training; `activate` is cheaper.

        Raises:
            SpaceError: The genotype is not in the space.
        """
        self._need_attached("hold")
        refuse_sharded(self.model, "hold")
        self._need_one_adapter("hold")
        self.space.encode(genotype)
        shared: dict[nn.Parameter, Tensor] = {}
        with ExitStack() as stack:
            for layer in self._layers.values():
                configs = [genotype[adapter.name] for adapter in attach.adapters_of(layer).values()]
                stack.enter_context(attach.holding(layer, *configs, train=train, shared=shared))
            stack.callback(self.__dict__.update, active=self.active, _held_by=self._held_by)
            self.active, self._held_by = genotype, id(self)
            yield self.model

    # Training

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer should own: the support tensors of the adapter in use, and the head."""
        self._need_attached("parameters")
        need_places(self.model, self._layers, "parameters")
        self._need_one_adapter("parameters")
        return self._support_parameters() + self.head_parameters()

    def _support_parameters(self) -> list[nn.Parameter]:
        """Those of the adapter in use, each once: support tensors that are computed may share them."""
        every = (parameter for support in self.supports.values() for parameter in support.parameters())
        return list({id(parameter): parameter for parameter in every}.values())

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the modules trained whole."""
        return [parameter for name in self.head for parameter in self.model.get_submodule(name).parameters()]

    def set_dropout(self, probability: float) -> None:
        """Makes B's LoRA read a dropped-out input in training mode, at every site of the adapter in use.

        Sites whose layer plays through its effective weight alone drop nothing, which is noted and logged.

        Args:
            probability: Of a number to be dropped, from 0 to below 1.
        """
        need(probability, (int, float), ConfigError, "dropout", "a number from 0 to below 1")
        if not 0 <= probability < 1:
            raise ConfigError(f"dropout={probability!r} is not allowed.", allowed="A number from 0 to below 1.")
        for support in self.supports.values():
            support.dropout = float(probability)
        choices = {name: self.space.options[name][TENSORS.index("B")] for name in self.sites}
        self.note_undropped(name for name, of in choices.items() if any(choice.kind == "lora" for choice in of))

    def note_undropped(self, names: Iterable[str]) -> None:
        """Notes and logs which of these sites drop nothing, though asked to: their layer is not called, or looks up."""
        read = [name for name in names if not all(attach.drops_out(weight.layer) for weight in self._weights[name])]
        if read and any(self.supports[name].dropout for name in read):
            note = f"No dropout where a layer's weight is read without a call or looked up: {listed(read)}."
            self.notes += (note,)
            log.warning(note, extra={"noted": True})  # who shows the notes leaves these out

    # Saving

    def state(self, *, whole: bool = False) -> AdapterState:
        """The active genotype's slices, the head and trained running statistics; the whole supernet where asked.

        Raises:
            StateError: Several genotypes are active, or the model is merged or detached.
        """
        self._need_attached("state")
        self._need_whole("state")
        self._need_one_adapter("state")
        self._buffers.put_back()  # the file names the base by its fingerprint
        if not (whole or isinstance(self.active, Genotype)):
            raise StateError("One genotype per sample is active.", remedy="Activate the one genotype to save.")
        genotype = self.active if isinstance(self.active, Genotype) and not whole else None
        if genotype is not None and self._is_nothing(genotype):
            self._nothing_active()
        tensors: dict[str, Tensor] = {}
        for name, support in self.supports.items():
            for tensor in TENSORS:
                parts = support.whole(tensor) if genotype is None else support.slices(tensor, genotype[name])
                tensors |= {f"{name}.{tensor}.{side}": part.detach() for side, part in parts.items()}
        own = {name: value.detach() for name, value in self._own().items()}
        head = {name: own.pop(name) for name in head_of(self.model, self.head)}
        heads = tuple(name for name in self.head if any(is_inside(each, (name,)) for each in head))
        return AdapterState(self.space.rules, self.sites, genotype, self.scales, tensors, head, heads, own)

    def load_state(self, state: AdapterState) -> None:
        """Takes over the numbers, scales, head and running statistics of a state of the same sites.

        Raises:
            StateError: The state has other sites, or a tensor of another shape.
        """
        self._need_same_statistics(state)
        if state.sites != self.sites or state.space != self.space.rules:
            raise StateError("The state is of other sites or another space.", remedy="Inject with the same settings.")
        fill(self.supports, state)
        show_head(self.model, state.head | state.statistics)

    def start_from(self, path: str | Path, *, check_base: bool = True) -> Genotype:
        """Takes over an adapter of one genotype, also of PEFT's, into the larger space: where a supernet starts.

        Its numbers become the slices that the genotype reads; what it does not read stays as it is. The genotype that
        plays the adapter exactly is active afterwards.

        Args:
            path: As `glora.load_adapter` takes it.
            check_base: As `glora.load_adapter` has it.

        Returns:
            The genotype of this space; a rank that it does not offer is the next larger one, filled with zeros.

        Raises:
            StateError: The space has no such site, choice or head; nothing is changed then.
            AdapterFileError: The file is damaged or of another base.
        """
        self._need_attached("start_from")
        self._need_one_adapter("start_from")
        self._need_not_held("start_from")
        state = read_state(self.model, Path(path).expanduser(), check_base=check_base)
        if state.head_modules and state.head_modules != self.head:
            raise StateError(
                f"{path} has the head {state.head_modules}, not {self.head}.", remedy="Inject with its head."
            )
        genotype = grow(self.supports, self.space, state)
        show_head(self.model, state.head)
        self.activate(genotype)
        return genotype

    def base_fingerprint(self) -> str:
        """The sha256 of the base, computed anew; given to `save_adapter` and its kin they need not compute it again."""
        self._buffers.put_back()
        return fingerprint(self.model, (*self.head, *(statistics_of(self.model, self.head) if self.statistics else ())))

    def _own(self) -> dict[str, Tensor]:
        """What the adapter in use has in the model itself: the head, and running statistics that are trained."""
        return head_of(self.model, self.head) | (statistics_of(self.model, self.head) if self.statistics else {})

    # Several adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters on this base."""
        return tuple(self._adapters)

    @property
    def playing(self) -> str | tuple[str, ...]:
        """Name of the adapter that plays, `"base"` for none, or one name per sample of the batch."""
        return BASE if self._mixed == (BASE,) else self._mixed or self._in_use

    def add(self, name: str, path: str | Path, *, base_fingerprint: str | None = None) -> None:
        """Puts the adapter of a file beside the others, under a name; `switch` makes it play.

        Args:
            name: Its name here.
            path: What `save_adapter` wrote, a folder of PEFT's, or a checkpoint of the authors' code.
            base_fingerprint: The base's fingerprint where it is known already, see `save_adapter`.

        Raises:
            StateError: The name is taken or is `"base"`, or the file adapts sites that this model does not.
            AdapterFileError: The file is damaged or belongs to another base.
        """
        self._need_attached("add")
        need(name, str, UnknownNameError, "name", "a text")
        if name in (*self._adapters, BASE):
            raise StateError(f"There is an adapter {name!r} already.", remedy="Choose another name, or remove it.")
        state = read_state(self.model, Path(path).expanduser(), base_fingerprint=base_fingerprint)
        if state.genotype is None or state.head_modules != self.head:
            what = "a whole supernet" if state.genotype is None else f"the head {state.head_modules}, not {self.head}"
            raise StateError(f"{path} has {what}.", remedy="Save an adapter of one genotype with the same head.")
        here = {name: replace(site, new_bias=False) for name, site in self.sites.items()}
        if unknown := [name for name, site in state.sites.items() if here.get(name) != replace(site, new_bias=False)]:
            raise StateError(
                f"{path} adapts sites that this model does not: {listed(unknown)}.",
                remedy="Inject the targets of both adapters, or load it into a model of its own.",
            )
        self._need_new_biases(state, path)
        self._need_same_statistics(state)
        genotype = Genotype({site: state.genotype.get(site, LayerConfig()) for site in self.sites})
        space = BoundSpace(state.space, self.sites, only=genotype)
        supports = self._make_supports(space, 0)
        fill(supports, state)
        self._adapters[name] = NamedAdapter(space, supports, genotype, state.head | state.statistics)

    def switch(self, name: str | Sequence[str]) -> None:
        """Makes the named adapter play, with its own genotype and head; or one adapter per sample of the batch.

        With one name per sample the batch has that many samples, and each goes through its own adapter and head in
        one pass. `"base"` is the untouched base with the head it came with. Where samples cannot be told apart the
        first one's adapter plays for all, with a warning.

        The adapter in use stays in use while several adapters or the base play: `activate`, and `switch` to one
        adapter, end that, and until then `parameters`, `hold`, `merge` and `state` are refused.

        Args:
            name: A name, or one per sample.

        Raises:
            UnknownNameError: There is no such adapter.
            StateError: There is no name, the heads' shapes differ, a layer takes sequences first, or the model is held.
        """
        self._need_attached("switch")
        self._need_not_held("switch")
        if name == BASE or not isinstance(name, str):
            self._mix(several(name, str, UnknownNameError, "name", "a name, or a list of them, one per sample"))
            return
        self._need_adapter(name)
        self._remember_active()
        old, new = self._adapters[self._in_use], self._adapters[name]
        old.own = {key: value.detach().clone() for key, value in self._own().items()}
        for site, group in self._weights.items():
            for weight in group:
                attach.state_of(weight.layer, weight.slot).support = _on_device_of(weight, new.supports[site])
        self._in_use, self.space = name, new.space
        show_head(self.model, new.own or old.own)
        self.activate(new.active)

    def remove(self, name: str) -> None:
        """Forgets a named adapter that is not playing.

        Raises:
            UnknownNameError: There is no such adapter.
            StateError: It is the one in use, or plays for a sample.
        """
        self._need_adapter(name)
        if name in (self._in_use, *self._mixed):
            raise StateError(f"The adapter {name!r} is in use.", remedy="Switch to another first, or detach.")
        del self._adapters[name]

    def _mix(self, names: tuple[str, ...]) -> None:
        """One adapter per sample plays, or one name, which may be the base's, for the whole batch."""
        self._check_names(names)
        mixed_head = MixedHead(self.model, self.head, self._heads_of(names))
        self._remember_active()
        self._end_mixture()
        if self.head:
            mixed_head.install()
            self._mixed_head = mixed_head
        none = Genotype(dict.fromkeys(self.sites, LayerConfig()))
        base = NamedAdapter(self.space, self.supports, none, {})
        adapters = {name: self._adapters.get(name, base) for name in names}
        for site, group in self._weights.items():
            configs = {name: named.active[site] for name, named in adapters.items()}
            for weight in group:
                supports = {name: _on_device_of(weight, named.supports[site]) for name, named in adapters.items()}
                adapter = attach.state_of(weight.layer, weight.slot)
                adapter.play([configs[name] for name in names], [supports[name] for name in names])
                adapter.nothing_active = None
        self._guard_batch(several=len(names) > 1)
        plays = tuple(adapters[name].active for name in names)
        self._mixed, self.active = names, plays if len(plays) > 1 else plays[0]

    def _check_names(self, names: tuple[str, ...]) -> None:
        if not names:
            raise StateError("No adapter to switch to.", allowed="Give one name, or one per sample of the batch.")
        for name in dict.fromkeys(names):
            if name != BASE:
                self._need_adapter(name)
        if len(names) > 1:
            refuse_sequence_first(self.model)
        if self.statistics:
            raise StateError(
                "Trained running statistics are one set for the whole batch.", remedy="Switch to one adapter at a time."
            )

    def _heads_of(self, names: tuple[str, ...]) -> list[dict[str, Tensor] | None]:
        """The values of every sample's head; None for those that the model shows."""
        shown = head_of(self.model, self.head)
        own = {name: adapter.own for name, adapter in self._adapters.items()} | {BASE: self._base_own}
        heads = {name: {key: each[key] for key in shown if key in each} for name, each in own.items()}
        return [None if name == self._in_use else heads[name] for name in names]

    def _end_mixture(self) -> None:
        """One adapter plays again, once `activate` has said so to the layers."""
        if self._mixed_head is not None:
            self._mixed_head.remove()
        self._mixed, self._mixed_head = (), None

    def _remember_active(self) -> None:
        """Keeps the genotype of the adapter in use, to be active again after a `switch` back."""
        if not self._mixed:
            active = self.active if isinstance(self.active, Genotype) else self.active[0]
            self._adapters[self._in_use].active = active

    # Merging, and the way back

    def merge(self, keep_base: bool = True, *, dequantize: bool = False) -> nn.Module:
        """The plain model with the active genotype folded in: its own classes, its own state-dict keys.

        Args:
            keep_base: Keep the base weights beside the model, so that `detach` still works.
            dequantize: Make quantised weights that A or B change floating-point; nothing is quantised again.

        Raises:
            StateError: Several genotypes are active, it is detached or held, or weights would have to be dequantised.
            GloraError: A site has a NaN or infinite number; nothing is changed then.
        """
        if not self.merged:
            with torch.inference_mode(False):  # the merged weights may be trained
                self._merge(dequantize)
        self._base = self._base if keep_base else None
        return self.model

    def _merge(self, dequantize: bool) -> None:
        self._need_attached("merge")
        self._need_whole("merge")
        refuse_sharded(self.model, "merge")
        self._need_not_held("merge")
        self._need_one_adapter("merge")
        if not isinstance(self.active, Genotype):
            raise StateError("One genotype per sample is active.", remedy="Activate the one genotype to merge.")
        floats = self._dequantized(allowed=dequantize)
        shared: dict[nn.Parameter, Tensor] = {}
        played = {name: attach.effective(layer, shared=shared) for name, layer in self._layers.items()}
        if broken := {site: 0 for name, layer in self._layers.items() for site in attach.broken(layer, played[name])}:
            raise GloraError(
                f"The effective weight or bias of {listed(map(repr, broken))} has a NaN or infinity; "
                "nothing was merged.",
                remedy="Train again with a lower learning rate.",
            )
        copies: dict[nn.Parameter, Tensor] = {}  # all of them first: memory may run out
        played = {name: attach.owned(layer, played[name], copies) for name, layer in self._layers.items()}
        self._release()
        merged: dict[nn.Parameter, nn.Parameter] = {}
        base = {name: attach.merge(layer, played[name], merged) for name, layer in self._layers.items()}
        self.new_keys = tuple(
            f"{name}.{key}" for name, layer in self._layers.items() for key in attach.new_keys(layer, base[name])
        )
        if self.new_keys:  # a loader that rebuilds the plain class would drop them silently
            log.warning("The merged state dict has keys that the base has not: %s.", ", ".join(self.new_keys))
        if floats:
            log.warning("Merged to floating-point, no longer quantised: %s.", ", ".join(floats))
        self._base, self._state = base, "merged"

    def _dequantized(self, *, allowed: bool) -> list[str]:
        """Names of the sites whose quantised weight a merge makes floating-point; raises StateError if it may not."""
        if packed := [site for layer in self._layers.values() for site in attach.dequantized(layer, packed=True)]:
            raise StateError(
                f"A layer of bitsandbytes cannot hold floating-point weights: {listed(packed)}; nothing was merged.",
                remedy="Save the adapter and merge it into the floating-point base: load_adapter(check_base=False).",
            )
        floats = [site for layer in self._layers.values() for site in attach.dequantized(layer)]
        if floats and not allowed:
            raise StateError(
                f"A merge would make quantised weights floating-point: {listed(floats)}; nothing was merged.",
                remedy="Play the adapter unmerged, or accept the larger model: merge(dequantize=True).",
            )
        return floats

    def detach(self) -> nn.Module:
        """The untouched base model, bit for bit, its head included.

        What was done to the merged model elsewhere stays: training, and running statistics, of layers that are no
        sites.

        Raises:
            StateError: The base was freed by `merge(keep_base=False)`, the model was adapted anew, or is held.
        """
        self._need_not_held("detach")
        self._need_place_of_head()
        if self.merged and any(attach.is_attached(layer) for layer in self._layers.values()):
            raise StateError("The merged model was adapted anew.", remedy="Detach that adaptation first.")
        if self.merged and self._base is None:
            raise StateError(
                "The base weights were freed by merge(keep_base=False).", remedy="Build the base model anew."
            )
        for name, layer in self._layers.items():
            if self._state == "attached":
                attach.detach(layer)
            elif self._base is not None:
                attach.put_back(layer, self._base[name])
        if self._state == "attached":
            self._release()
        if self._state != "detached":
            for name, module in self._heads.items():  # reset_classifier and its like put another in its place
                parent, _, leaf = name.rpartition(".")
                if self.model.get_submodule(name) is not module:
                    setattr(self.model.get_submodule(parent), leaf, module)
            show_head(self.model, self._base_own)
        self._state, self._base = "detached", None
        return self.model

    def _release(self) -> None:
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        self._guard_batch(several=False)
        self._end_mixture()
        for hook in (*self._statistics_hooks, self._buffers, self._float_head, self._guarded):
            hook.remove()

    def _guard_batch(self, *, several: bool) -> None:
        """Checks the batch while several genotypes play, at the cost of torch's fast path of encoder layers."""
        if several and self._batch_guards:
            return  # the same hook: what plays may change within another hook of the model
        for hook in self._batch_guards:
            hook.remove()
        self._batch_guards = [guard_batch(self.model)] if several else []

    # Refusals

    def _need_attached(self, action: str) -> None:
        if self._state != "attached":
            raise StateError(f"The model is {self._state}: {action} is not possible.", remedy="Inject it again.")

    def _need_whole(self, action: str) -> None:
        need_places(self.model, self._layers, action)
        refuse_offloaded(self.model)

    def _need_not_held(self, action: str) -> None:
        if self._held_by == id(self):
            raise StateError(f"A genotype is held: {action} is not possible.", remedy="Leave hold() first.")

    def _need_one_adapter(self, action: str) -> None:
        if self._mixed:
            what = "The base" if self._mixed == (BASE,) else "One adapter per sample"
            raise StateError(f"{what} plays: {action} is not possible.", remedy="Switch to one adapter first.")

    def _need_place_of_head(self) -> None:
        for name in self.head:
            try:
                self.model.get_submodule(name)
            except AttributeError as error:
                raise StateError(
                    f"The model has no {name!r} any more, where its head was.", remedy="Put a module in that place."
                ) from error

    def _need_adapter(self, name: str) -> None:
        need(name, str, UnknownNameError, "name", "the name of an adapter")
        if name not in self._adapters:
            raise UnknownNameError(
                f"There is no adapter {name!r}.", allowed=f"Known: {listed((*self._adapters, BASE), n=10)}."
            )

    def _need_new_biases(self, state: AdapterState, path: str | Path) -> None:
        """Raises StateError where the state plays a bias that its layers do not have here."""
        played = [name for name, config in (state.genotype or {}).items() if {config.C, config.D, config.E} != {NONE}]
        if lost := [name for name in played if state.sites[name].new_bias and not self.sites[name].new_bias]:
            raise StateError(
                f"{path} gives {listed(lost)} a bias, which these layers have not here.",
                remedy="Inject with SearchSpace(new_bias=True), or load it into a model of its own.",
            )

    def _need_same_statistics(self, state: AdapterState) -> None:
        if bool(state.statistics) != self.statistics:
            has, now = ("", "frozen") if state.statistics else ("no ", "trained")
            raise StateError(
                f"The state has {has}running statistics, and this model's are {now}.",
                remedy=f"Inject with statistics={not self.statistics}.",
            )


def _on_device_of(weight: LayerWeight, support: Support) -> Support:
    """The support tensors on the device of the weight: the model may have moved since they were added."""
    factor = next(support.parameters(), None)
    return support if factor is None or factor.device == weight.weight.device else support.to(weight.weight.device)


RECOMPILES = (
    "The model was compiled while it played a genotype, and will be compiled anew for every other one, until torch "
    "gives up and runs it uncompiled. To compile once, play genotypes within hold(genotype), or "
    "hold(genotype, train=True) to train, or merge first."
)
NOTHING_ACTIVE = (
    "The active genotype has no trainable numbers: the head alone is trained and saved. "
    "Activate a larger one, such as adapted.activate(adapted.space.largest)."
)
