"""PFT, partial fine-tuning (arXiv 2102.03983): which blocks learn, and how fast, found by a search.

    W = W0 + rate * Delta

A gene is the learning rate of a block, as a multiple of the run's; 0 freezes it. All genotypes share one Delta per
weight: a supernet, drawn uniformly at every step. Delta learns with the run's rate; under Adam, whose steps do not
depend on the size of a gradient, W then learns with `rate` times it. The winner is trained anew from the pretrained
weights. It merges trivially, and only the units that learn are saved.

The units are the blocks of the network; what stands before the first of them (patch embedding, class token, positions)
is one more unit, `stem`, what stands after the last (the final norm) is `tail`, and what stands between two blocks,
such as Swin's patch merging, belongs to the later one. Blocks are those of a known transformer, or the layers of the
network's outermost lists (`nn.Sequential`, `nn.ModuleList`), such as the residual blocks of a ResNet or the stages of a
ConvNeXt, or, where there is no list, its own children. A note of the run says which they are.

Departures: the paper's first stage trains networks of random rates one by one and its rates are a finer grid; here they
share a supernet and a search, which is what `rates` is short for. AdamW's decay pulls Delta, and so W towards W0, not
towards 0. Running statistics of batch norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from glora.adapt.adapter_format import fingerprint
from glora.adapt.float_numbers import plain_again
from glora.adapt.head import is_inside
from glora.adapt.layers.quantized import is_quantized
from glora.errors import TargetError
from glora.genes import GeneSpace, PlainGenotype
from glora.methods.blocks import find_blocks
from glora.methods.searched import Searched, TunedShared

__all__ = ["PFT", "units_of"]

STEM, TAIL = "stem", "tail"


class PFT(Searched):
    """Partial fine-tuning: a search over which blocks learn and how fast; the winner is trained anew. It merges."""

    lr = 1e-4

    name: Literal["pft"] = "pft"
    rates: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0, 0.1, 1),
        min_length=1,
        description="Learning rates offered to each block, as multiples of the run's; 0 freezes.",
    )

    @field_validator("rates")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(rates)) < len(rates) or not any(rates):
            raise ValueError("distinct rates are needed, one of them above 0")
        return rates

    @property
    def title(self) -> str:
        return "PFT"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedPFT:
        units = units_of(model, head)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        genes = GeneSpace(
            {
                unit: {"rate": {rate: sum(sizes[name] for name in names) * (rate > 0) for rate in self._offered}}
                for unit, names in units.items()
            },
            columns={"rate": "learning rate, as a multiple of the run's"},
            row="unit",
            column="setting",
        )
        genotype = self.genotype
        if genotype is not None:
            genes.encode(genotype)
            units = {unit: names for unit, names in units.items() if genotype[unit]["rate"]}
        return TunedPFT(self, model, head, units, genes)

    @property
    def _offered(self) -> tuple[float, ...]:
        """The rates, the largest first."""
        return tuple(sorted(self.rates, reverse=True))


class Shift(nn.Module):
    """The parametrization of a weight: `W0 + rate * Delta`; W0 itself where the rate is 0, in the dtype of W0.

    Args:
        w0: The pretrained weight. Delta has its shape, and at least float32.
    """

    def __init__(self, w0: Tensor) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(w0, dtype=torch.promote_types(w0.dtype, torch.float32)))
        self.rate = 1.0

    def forward(self, w0: Tensor) -> Tensor:
        if not self.rate:
            return w0
        return (w0 + (self.delta if self.rate == 1 else self.rate * self.delta)).to(w0.dtype)


class TunedPFT(TunedShared):
    """A model whose weights are `W0 + rate * Delta`, a rate for each unit.

    Args:
        method: The settings.
        model: The plain model; its weights are parametrized.
        head: Names of the modules trained whole.
        units: Unit that may learn -> names of its parameters.
        genes: The space.
    """

    def __init__(
        self, method: PFT, model: nn.Module, head: Sequence[str], units: Mapping[str, Sequence[str]], genes: GeneSpace
    ) -> None:
        shown = _places(model)
        self.unit = {name: unit for unit, names in units.items() for name in names}
        self.shifts: dict[str, Shift] = {}
        self.places: dict[str, list[tuple[nn.Module, str]]] = {}
        self.order: dict[nn.Module, tuple[str, ...]] = {}  # of the parameters of a layer, put back in the end
        for name in self.unit:
            places = shown[name]
            shift = self.shifts[name] = Shift(getattr(*places[0]))
            for module, leaf in places:
                self.order.setdefault(module, tuple(module._parameters))
                parametrize.register_parametrization(module, leaf, shift, unsafe=True)
            self.places[name] = places
        super().__init__(method, model, {name: shift.delta for name, shift in self.shifts.items()}, head, genes)
        self.notes = (f"PFT has {len(genes.rows)} units: {', '.join(genes.rows)}.",)

    def play(self, genotype: PlainGenotype) -> None:
        for name, shift in self.shifts.items():
            shift.rate = float(genotype[self.unit[name]]["rate"])

    def part(self, name: str, value: Tensor, genotype: PlainGenotype) -> Tensor | None:
        return value if genotype[self.unit[name]]["rate"] else None

    @contextmanager
    def hold(self, genotype: PlainGenotype) -> Iterator[nn.Module]:
        with super().hold(genotype) as model, parametrize.cached():  # every weight is added up once
            yield model

    @torch.no_grad()
    def strengthen(self, factor: float) -> None:
        for delta in self.numbers.values():
            delta.mul_(factor)

    def base_fingerprint(self) -> str:
        return fingerprint(self.model, self.head)  # W0 is in the model

    @torch.no_grad()
    def merged(self) -> nn.Module:
        for name, shift in self.shifts.items():
            (module, leaf), *_ = self.places[name]
            original: Any = module.parametrizations[leaf].original  # type: ignore[union-attr, index]
            original.copy_(shift(original))
        for module, order in self.order.items():
            plain_again(module, order)
        self.shifts, self.order = {}, {}
        return super().merged()


def _places(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Name of a parameter, the first where it is shared -> the modules that have it, and what they call it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(names[parameter], []).append((module, leaf))
    return found


def units_of(model: nn.Module, head: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The units of a network, first to last -> names of their parameters; each parameter outside the head is in one.

    Left out, and so frozen, are quantised and whole-number parameters, those of recurrent layers, whose kernels read
    them elsewhere, and those that the head shares or somebody has parametrized.

    Raises:
        TargetError: Nothing is left to be trained.
    """
    names = _trainable(model, head)
    blocks = _blocks(model, head)
    inside = {name: next((each for each in blocks if name.startswith(f"{each}.")), "") for name in names}
    following, after = dict[str, str](), TAIL
    for name in reversed(names):
        following[name] = after = inside[name] or after
    found: dict[str, list[str]] = {}
    begun = False
    for name in names:
        begun = begun or bool(inside[name])
        found.setdefault(following[name] if begun else STEM, []).append(name)
    if not found:
        raise TargetError(f"PFT trains blocks, and {type(model).__name__} has no parameter outside its head.")
    return {unit: tuple(each) for unit, each in found.items()}


def _trainable(model: nn.Module, head: Sequence[str]) -> list[str]:
    odd = [m for m in model.modules() if isinstance(m, nn.RNNBase) or parametrize.is_parametrized(m)]
    skipped = {id(p) for each in odd for p in each.parameters()}
    skipped |= {id(p) for name in head for p in model.get_submodule(name).parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and not is_quantized(parameter)
        and id(parameter) not in skipped
        and not is_inside(name, head)
    ]


def _blocks(model: nn.Module, head: Sequence[str]) -> list[str]:
    """Names of the blocks: of a known transformer, else what the outermost lists of the network hold."""
    try:
        return [block.name for block in find_blocks(model, "PFT").blocks]
    except TargetError:
        pass
    name = ""
    while True:
        children = _children(model, name, head)
        lists = [name] if isinstance(model.get_submodule(name), LISTS) else []
        lists = lists or [key for key, child in children.items() if isinstance(child, LISTS)]
        if lists:
            opened = {key: child for each in lists for key, child in _opened(model, each, head)}
            deep = [key for key, child in opened.items() if any(map(_numbers, child.children()))]
            return deep or list(opened)  # layers of a stem are no blocks beside blocks
        sizes = {key: _numbers(child) for key, child in children.items()}
        name = max(sizes, key=sizes.__getitem__, default="")
        if not sizes or 2 * sizes[name] < sum(sizes.values()):
            return list(_children(model, "", head))  # no list is found: a network of named stages


LISTS = (nn.Sequential, nn.ModuleList)


def _children(model: nn.Module, name: str, head: Sequence[str]) -> dict[str, nn.Module]:
    """The modules in a module that have parameters outside the head, by their names in the model."""
    found = {f"{name}.{key}" if name else key: child for key, child in model.get_submodule(name).named_children()}
    return {key: child for key, child in found.items() if _numbers(child) and not is_inside(key, head)}


def _opened(model: nn.Module, name: str, head: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """What a list holds, and the lists in it."""
    for key, child in _children(model, name, head).items():
        if isinstance(child, LISTS):
            yield from _opened(model, key, head)
        else:
            yield key, child


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
