"""A model with its sites: activate, hold, count, merge, detach."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glora.adapt import attach, layers
from glora.adapt.head import head_of, show_head
from glora.adapt.mixture import NamedAdapters
from glora.adapt.samples import guard_batch, refuse_sequence_first
from glora.adapt.sites import holders, plan_sites, refuse_adapted
from glora.adapt.state import AdapterState, NamedAdapter, fill
from glora.adapt.statistics import freeze_statistics, statistics_of
from glora.adapt.support import Support
from glora.errors import GloraError, SpaceError, StateError, TargetError, listed, need, several
from glora.genotype import A_GENOTYPE, NONE, TENSORS, Genotype, LayerConfig, Site
from glora.space import BoundSpace, SearchSpace

__all__ = ["Adapted", "inject"]


log = logging.getLogger("glora")


class Adapted(NamedAdapters):
    """A model with its sites. Made by `glora.inject` or `glora.load_adapter`.

    Attributes:
        model: The user's own module, adapted in place.
        sites: Site name -> Site, in the model's order.
        space: The search space bound to these sites.
        head: Names of the modules trained whole.
        statistics: Whether running statistics are the adapter's, updated in training; else they are frozen.
        active: The genotype that the model plays, or one per sample of the batch.
        notes: What is not offered, and why.
        new_keys: After merge the state-dict keys that the base has not: the bias of a layer that had none.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        space: BoundSpace,
        head: tuple[str, ...],
        *,
        seed: int = 0,
        statistics: bool = False,
    ) -> None:
        refuse_adapted(model)
        self.model = model
        self.sites = dict(sites)
        self.space = space
        self.head = head
        self.statistics = statistics and bool(statistics_of(model, head))
        self.notes: tuple[str, ...] = ()
        self.new_keys: tuple[str, ...] = ()
        at = holders(model)
        self._places = {name: at[name] for name in sites}
        self._layers = {place.module: place.layer for group in self._places.values() for place in group}
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._base_own = {name: value.detach().clone() for name, value in self._own().items()}
        self._base: dict[str, dict[str, nn.Parameter | None]] | None = None
        self._state = "attached"
        self._holder = 0  # the id of this object within hold(), which a copy made there has not
        self._said = False  # that it was compiled while it played a genotype
        model.requires_grad_(False)
        for name in head:
            model.get_submodule(name).requires_grad_(True)
        supports = self._make_supports(space, seed)
        site_at = {place.name: name for name, group in self._places.items() for place in group}
        for module, layer in self._layers.items():
            names = [site_at.get(".".join(filter(None, (module, slot)))) for slot in layers.views_of(layer)]
            attach.attach(layer, *[supports.get(name or "") for name in names], names=[name or "" for name in names])
        self._hooks = [] if self.statistics else freeze_statistics(model, head)
        self._guards: list[RemovableHandle] = []
        self._name = "default"
        self._adapters = {"default": NamedAdapter(space, supports, space.smallest, {})}
        self.activate(space.smallest)

    def _make_supports(self, space: BoundSpace, seed: int) -> dict[str, Support]:
        generator = torch.Generator().manual_seed(seed)
        supports = {}
        with torch.inference_mode(False):  # they are trained later
            for name, site in self.sites.items():
                support = Support(site, space.rules, space.options[name], generator=generator)
                supports[name] = support.to(self._places[name][0].weight.device)
        return supports

    def _own(self) -> dict[str, Tensor]:
        """What the adapter in use has in the model itself: the head, and running statistics that are trained."""
        return head_of(self.model, self.head) | (statistics_of(self.model, self.head) if self.statistics else {})

    @property
    def merged(self) -> bool:
        """Whether the support tensors are folded into the weights."""
        return self._state == "merged"

    @property
    def supports(self) -> dict[str, Support]:
        """Site name -> the support tensors of the adapter in use."""
        return self._adapters[self._name].supports

    @property
    def scales(self) -> dict[str, dict[str, float]]:
        """Site name -> the fixed scales of the adapter in use, `TENSOR.kind` -> number, where it is not 1."""
        return {name: dict(support.scales) for name, support in self.supports.items()}

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
        self._need_free("activate")
        given = several(genotype, Mapping, SpaceError, "genotype", f"{A_GENOTYPE}; or a list of them, one per sample")
        plays = tuple(each if isinstance(each, Genotype) else Genotype(each) for each in given)
        if not plays:
            raise StateError("No genotype to activate.", allowed="Give one genotype, or one per sample of the batch.")
        if len(plays) > 1:
            refuse_sequence_first(self.model)
        for each in dict.fromkeys(plays):
            self.space.encode(each)
        self._unmix()
        self._say_recompilation()
        for name, group in self._places.items():
            for place in group:
                attach.state_of(place.layer, place.slot).play([each[name] for each in plays])
        self._guard(several=len(plays) > 1)
        self.active: Genotype | tuple[Genotype, ...] = plays if len(plays) > 1 else plays[0]

    def _say_recompilation(self) -> None:
        adapters = [attach.state_of(place.layer, place.slot) for group in self._places.values() for place in group]
        if any(adapter.traced for adapter in adapters):
            for adapter in adapters:
                adapter.traced = False
            if not self._said:
                log.warning(
                    "The model was compiled while it played a genotype, and will be compiled anew for "
                    "every other one, until torch gives up and runs it uncompiled. To compile once, play genotypes "
                    "within hold(genotype), or hold(genotype, train=True) to train, or merge first."
                )
            self._said = True

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
        self._need_one("hold")
        self.space.encode(genotype)
        known: dict[nn.Parameter, Tensor] = {}
        with ExitStack() as stack:
            for layer in self._layers.values():
                configs = [genotype[adapter.name] for adapter in attach.adapters_of(layer).values()]
                stack.enter_context(attach.holding(layer, *configs, train=train, known=known))
            stack.callback(self.__dict__.update, active=self.active, _holder=self._holder)
            self.active, self._holder = genotype, id(self)
            yield self.model

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer should own: the support tensors of the adapter in use, and the head."""
        self._need_attached("parameters")
        self._need_one("parameters")
        supports = [parameter for support in self.supports.values() for parameter in support.parameters()]
        return supports + self.head_parameters()

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the modules trained whole."""
        return [parameter for name in self.head for parameter in self.model.get_submodule(name).parameters()]

    def merge(self, keep_base: bool = True, *, dequantize: bool = False) -> nn.Module:
        """The plain model with the active genotype folded in: its own classes, its own state-dict keys.

        Args:
            keep_base: Keep the base weights beside the model, so that `detach` still works.
            dequantize: Make quantised weights that A or B change floating-point; nothing is quantised again.

        Raises:
            StateError: Several genotypes are active, it is detached or held, or weights would have to be dequantised.
            GloraError: A site has a NaN or infinite number; nothing is changed then.
        """
        if self.merged:
            self._base = self._base if keep_base else None
            return self.model
        with torch.inference_mode(False):  # the merged weights may be trained
            self._merge(dequantize)
        self._base = self._base if keep_base else None
        return self.model

    def _merge(self, dequantize: bool) -> None:
        self._need_attached("merge")
        self._need_free("merge")
        self._need_one("merge")
        if not isinstance(self.active, Genotype):
            raise StateError("One genotype per sample is active.", remedy="Activate the one genotype to merge.")
        floats = [site for layer in self._layers.values() for site in attach.dequantized(layer)]
        if packed := [site for layer in self._layers.values() for site in attach.dequantized(layer, packed=True)]:
            raise StateError(
                f"A layer of bitsandbytes cannot hold floating-point weights: {listed(packed)}; nothing was merged.",
                remedy="Save the adapter and merge it into the floating-point base: load_adapter(check_base=False).",
            )
        if floats and not dequantize:
            raise StateError(
                f"A merge would make quantised weights floating-point: {listed(floats)}; nothing was merged.",
                remedy="Play the adapter unmerged, or accept the larger model: merge(dequantize=True).",
            )
        known: dict[nn.Parameter, Tensor] = {}
        played = {name: attach.effective(layer, known=known) for name, layer in self._layers.items()}
        if broken := {site: 0 for name, layer in self._layers.items() for site in attach.broken(layer, played[name])}:
            raise GloraError(
                f"The effective weight or bias of {listed(map(repr, broken))} has a NaN or infinity; "
                "nothing was merged.",
                remedy="Train again with a lower learning rate.",
            )
        copies: dict[nn.Parameter, Tensor] = {}  # all of them first: memory may run out
        played = {name: attach.owned(layer, played[name], copies) for name, layer in self._layers.items()}
        self._release()
        shared: dict[nn.Parameter, nn.Parameter] = {}
        base = {name: attach.merge(layer, played[name], shared) for name, layer in self._layers.items()}
        self.new_keys = tuple(
            f"{name}.{key}" for name, layer in self._layers.items() for key in attach.new_keys(layer, base[name])
        )
        if self.new_keys:  # a loader that rebuilds the plain class would drop them silently
            log.warning("The merged state dict has keys that the base has not: %s.", ", ".join(self.new_keys))
        if floats:
            log.warning("Merged to floating-point, no longer quantised: %s.", ", ".join(floats))
        self._base, self._state = base, "merged"

    def detach(self) -> nn.Module:
        """The untouched base model, bit for bit, its head included.

        What was done to the merged model elsewhere stays: training, and running statistics, of layers that are no
        sites.

        Raises:
            StateError: The base was freed by `merge(keep_base=False)`, the model was adapted anew, or is held.
        """
        self._need_free("detach")
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
            show_head(self.model, self._base_own)
        self._state, self._base = "detached", None
        return self.model

    def _release(self) -> None:
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        for hook in self._hooks:
            hook.remove()
        self._guard(several=False)
        self._unmix()

    def _guard(self, *, several: bool) -> None:
        """Checks the batch where several genotypes play: torch's encoder layers leave their fast path for it."""
        for hook in self._guards:
            hook.remove()
        self._guards = [guard_batch(self.model)] if several else []

    def state(self, *, whole: bool = False) -> AdapterState:
        """The active genotype's slices, the head and trained running statistics; the whole supernet where asked.

        Raises:
            StateError: Several genotypes are active, or the model is merged or detached.
        """
        self._need_attached("state")
        self._need_one("state")
        if not (whole or isinstance(self.active, Genotype)):
            raise StateError("One genotype per sample is active.", remedy="Activate the one genotype to save.")
        genotype = self.active if isinstance(self.active, Genotype) and not whole else None
        tensors: dict[str, Tensor] = {}
        for name, support in self.supports.items():
            for tensor in TENSORS:
                parts = support.whole(tensor) if genotype is None else support.slices(tensor, genotype[name])
                tensors |= {f"{name}.{tensor}.{side}": part.detach() for side, part in parts.items()}
        own = {name: value.detach() for name, value in self._own().items()}
        head = {name: own.pop(name) for name in head_of(self.model, self.head)}
        return AdapterState(self.space.rules, self.sites, genotype, self.scales, tensors, head, self.head, own)

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

    @classmethod
    def from_state(cls, model: nn.Module, state: AdapterState) -> Adapted:
        """The plain model adapted as the state says, its genotype active."""
        space = BoundSpace(state.space, state.sites, only=state.genotype)
        adapted = cls(model, state.sites, space, state.head_modules, statistics=bool(state.statistics))
        adapted.load_state(state)
        return adapted

    def _need_attached(self, action: str) -> None:
        if self._state != "attached":
            raise StateError(f"The model is {self._state}: {action} is not possible.", remedy="Inject it again.")

    def _need_free(self, action: str) -> None:
        if self._holder == id(self):
            raise StateError(f"A genotype is held: {action} is not possible.", remedy="Leave hold() first.")


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
    """The model adapted in place: every target layer gets its support tensors; fresh, it is the base bit for bit.

    Args:
        model: Any module; everything but support tensors and head is frozen.
        space: What may be chosen at every site.
        targets: A kind of layer (`"linear"`: every Linear outside the head, attention's in-projections too; `"conv"`,
            `"norm"`, `"embedding"`, `"all"`); a regular expression searched in layer names; or a list of words, names
            or name endings.
        skip: The same, for layers to leave out.
        head: Modules trained whole: `"auto"` (timm's classifier, transformers' output head), names, or None.
        example: An input, a tuple or a dict of them, for the probe forward that `new_bias` needs.
        seed: Draws the `up` factors.
        statistics: Let training update the running statistics of norms (BatchNorm) outside the head. They are then
            the adapter's: saved with it, in the merged model, restored by detach. Otherwise they are frozen.

    Returns:
        The adapted model; its smallest genotype is active.

    Raises:
        TargetError: Nothing matches, a name is unknown, or an argument is of another type.
        SpaceError: The space is none.
        StateError: The model is adapted already.

    Source: arXiv 2306.07967, Sec. 2.2-2.3.
    """
    need(model, nn.Module, TargetError, "model", "a torch.nn.Module")
    need(space, SearchSpace, SpaceError, "space", "a SearchSpace")
    chosen, heads, notes = plan_sites(
        model, targets=targets, skip=skip, head=head, new_bias=space.new_bias, example=example
    )
    adapted = Adapted(model, chosen, space.bind(chosen), heads, seed=seed, statistics=statistics)
    if statistics and not adapted.statistics:
        notes += ("No layer outside the head keeps running statistics: statistics=True changes nothing.",)
    if idle := [name for name, offered in adapted.space.options.items() if set(offered) == {(NONE,)}]:
        notes += (f"The space offers nothing at {listed(idle)}.",)
    adapted.notes = notes
    for note in notes:
        log.warning(note)
    return adapted
