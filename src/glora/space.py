"""What may be chosen: the SearchSpace, and the same bound to the sites of one model (no torch).

Legend of the whole library: `o` out features, `i` in features, `r` rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from glora.errors import SpaceError, listed, nearest, need, several
from glora.genes import AdditiveSpace, Cell, Looks
from glora.genotype import KINDS, NONE, ROLES, TENSORS, Choice, Genotype, LayerConfig, Site, interned

__all__ = [
    "NONE",
    "TENSORS",
    "BoundSpace",
    "Choice",
    "Genotype",
    "LayerConfig",
    "SearchSpace",
    "Site",
    "count_parameters",
    "factor_shapes",
    "is_matrix",
]

MOST_RANKS = 128  # which choice spans which is compared in pairs
PRODUCTS = ("elementwise", "matrix")
VARIANTS = ("slim", "lean", "paper")
SCALINGS = ("balanced", "fan_in", "none")


def is_matrix(site: Site, product: str) -> bool:
    """Whether the site's A is read as the matrix product `W0 A`; on a diagonal both products are one."""
    return product == "matrix" and not site.diagonal


def factor_shapes(site: Site, tensor: str, choice: Choice, product: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the factors that one choice of a support tensor reads; empty for `none`.

    `down`, the left factor (the paper's X_d), is what `vector` and `scalar` read; `up` (X_u) is the right one.
    """
    o, i = site.out_features, site.in_features
    if choice.kind == "none":
        return {}
    if tensor in "DE":
        return {"down": (o if choice.kind == "vector" else 1,)}
    mixes = is_matrix(site, product)
    left, right = {"A": (site.mixed, site.mixed) if mixes else (o, i), "B": (o, i), "C": (i, 1)}[tensor]
    if choice.kind == "lora":
        return {"down": (left, choice.rank), "up": (choice.rank, right)}
    return {"down": (left if choice.kind == "vector" else 1, 1)}


def count_parameters(site: Site, tensor: str, choice: Choice, product: str) -> int:
    """Trainable parameters of one choice of a support tensor at a site."""
    return sum(math.prod(shape) for shape in factor_shapes(site, tensor, choice, product).values())


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What is allowed at every site.

    Args:
        ranks: The LoRA ranks offered, each once; kept in descending order.
        product: How `W0 * A` is read: `"elementwise"` or `"matrix"`; never searched.
        variant: `"paper"` offers all choices (432 a layer at one rank); `"lean"` drops a choice when another
            in the space spans at least as much with fewer numbers (ties to E, then B); `"slim"` also drops a
            matrix product's LoRA A without a kernel, a change of low rank as B's is: A is then what B cannot be.
        new_bias: Offer C and E on layers without a bias too; the merged layer then has a new one.
        scaling: The fixed scales of the choices: `"balanced"`, `"fan_in"` (see `support.fixed_scale`) or `"none"`, as
            published.
        only: Offer nothing but this configuration: plain LoRA of rank 8 is `LayerConfig(B="lora:8")`.

    Raises:
        SpaceError: A setting is not one of the allowed ones.
    """

    ranks: tuple[int, ...] = (8, 4)
    product: Literal["elementwise", "matrix"] = "matrix"
    variant: Literal["slim", "lean", "paper"] = "slim"
    new_bias: bool = False
    scaling: Literal["balanced", "fan_in", "none"] = "balanced"
    only: LayerConfig | None = None

    def __post_init__(self) -> None:
        whole = "distinct whole numbers >= 1"
        ranks = several(self.ranks, int, SpaceError, "ranks", whole)
        fine = len(ranks) <= MOST_RANKS and all(type(rank) is int and rank >= 1 for rank in ranks)
        if not fine or len(set(ranks)) < len(ranks):
            allowed = f"Allowed: {whole}, at most {MOST_RANKS} of them."
            raise SpaceError(f"ranks={str(self.ranks)[:200]} is not allowed.", allowed=allowed)
        need(self.only, (LayerConfig, type(None)), SpaceError, "only", "a LayerConfig, or None")
        object.__setattr__(self, "ranks", tuple(sorted(ranks, reverse=True)))
        for field, names in (("product", PRODUCTS), ("variant", VARIANTS), ("scaling", SCALINGS)):
            if getattr(self, field) not in names:
                found = repr(getattr(self, field))[:200]
                raise SpaceError(f"{field}={found} is not allowed.", allowed=f"Allowed: {', '.join(names)}.")

    @classmethod
    def paper(cls, ranks: tuple[int, ...] = (8,)) -> SearchSpace:
        """The space of the published method (`preset: paper`): all choices, scales 1, elementwise, new biases."""
        return cls(ranks=ranks, product="elementwise", variant="paper", new_bias=True, scaling="none")

    def options(self, site: Site) -> tuple[tuple[Choice, ...], ...]:
        """The choices offered at the site, one tuple per support tensor A..E, largest first."""
        if self.only is not None:
            return tuple((c if self._has(site, t, c) else NONE,) for t, c in zip(TENSORS, self.only, strict=True))
        offered = {
            tensor: tuple(
                choice
                for kind in KINDS[tensor]
                for choice in ([Choice("lora", r) for r in self.ranks] if kind == "lora" else [Choice(kind)])
                if kind == "none" or self._has(site, tensor, choice)
            )
            for tensor in TENSORS
        }
        if self.variant == "slim" and is_matrix(site, self.product) and site.mixed == site.in_features:
            offered["A"] = tuple(choice for choice in offered["A"] if choice.kind != "lora")
        if self.variant != "paper":
            offered = _lean(offered, site, self.product)
        return tuple(offered.values())

    def _has(self, site: Site, tensor: str, choice: Choice) -> bool:
        if site.diagonal and (tensor == "C" or choice.kind == "lora"):
            return False
        if tensor in "AB":
            return True
        return site.bias or (site.new_bias and self.new_bias and tensor != "D")

    def bind(self, sites: Mapping[str, Site]) -> BoundSpace:
        """The space at these sites: sample, count, size."""
        return BoundSpace(self, dict(sites))

    def to_json(self) -> dict[str, Any]:
        """Plain data, a key per field."""
        only = {} if self.only is None else {"only": self.only.to_json()}
        fields = ("product", "variant", "new_bias", "scaling")
        return {"ranks": list(self.ranks), **{name: getattr(self, name) for name in fields}, **only}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSpace:
        """The space that `to_json` wrote."""
        need(data, Mapping, SpaceError, "space", "a mapping from names to settings")
        only = LayerConfig.from_json(data["only"]) if data.get("only") else None
        return cls(**{**data, "ranks": tuple(data["ranks"]), "only": only})


def _lean(offered: Mapping[str, tuple[Choice, ...]], site: Site, product: str) -> dict[str, tuple[Choice, ...]]:
    """Without the choices that another one spans with fewer numbers; ties go to E, then B, then the simpler kind."""
    every = [(tensor, choice) for tensor, choices in offered.items() for choice in choices if choice.kind != "none"]

    def order(tensor: str, choice: Choice) -> tuple[int, int, int, int]:
        kind = ("scalar", "vector", "lora").index(choice.kind)
        return count_parameters(site, tensor, choice, product), "EBADC".index(tensor), kind, choice.rank

    def dropped(tensor: str, choice: Choice) -> bool:
        return any(
            order(*other) < order(tensor, choice) and _spans(other, (tensor, choice), site, product) for other in every
        )

    return {t: tuple(c for c in choices if c.kind == "none" or not dropped(t, c)) for t, choices in offered.items()}


def _spans(big: tuple[str, Choice], small: tuple[str, Choice], site: Site, product: str) -> bool:
    """Whether `big` reaches every change that `small` reaches, for weights and biases in general position."""
    (tensor, choice), (other, less) = big, small
    if (tensor in "AB") != (other in "AB"):
        return False  # one changes the weight, the other the bias
    o, i = site.out_features, site.in_features
    if tensor in "CDE":
        full = (choice.kind == "vector" and tensor in "DE") or o == 1  # b0 and e reach all of R^o, W0 c its range
        return full or (tensor == other and (choice.kind == less.kind or less.kind == "scalar" or tensor == "C"))
    mixes, places = tensor == "A" and is_matrix(site, product), i // site.mixed
    if (
        mixes
    ):  # W0 (A ⊗ I): with the kernel's places below each other W0 is (o places, mixed), and A its own right factor
        o, i = o * places, site.mixed
    if _is_full(choice, o, i, mixes):
        return True
    if choice.kind == "lora" and (tensor == "B" or mixes):  # all changes up to this rank; W0 A only in W0's range
        return _rank(other, less, site, product, stacked=mixes) <= choice.rank and (not mixes or other == "A" or o <= i)
    if tensor != other:
        return False
    if choice.kind == "lora":
        return less.kind != "lora" or less.rank <= choice.rank
    length = i if mixes else o  # of a vector
    if choice.kind == "vector" or length == 1:
        return less.kind != "lora" or (mixes and length == 1)
    return less.kind == "scalar"


def _is_full(choice: Choice, o: int, i: int, mixes: bool) -> bool:
    """Whether the choice of A or B reaches every `(o, i)` matrix; `mixes`: it is the A of `W0 A`."""
    if choice.kind == "lora":
        return choice.rank >= (o if mixes else min(o, i)) and (not mixes or o <= i)
    if choice.kind == "vector":  # W0 diag(a) scales columns, every other vector scales or shifts rows
        return (o if mixes else i) == 1
    return o == i == 1


def _rank(tensor: str, choice: Choice, site: Site, product: str, *, stacked: bool) -> int:
    """The largest rank of the weight change that the choice reaches, W0 in general position.

    `stacked`: as a matrix with the places of a kernel below each other, `(o places, mixed)`, not `(o, mixed places)`.
    """
    o, i, places = site.out_features, site.in_features, site.in_features // site.mixed
    smallest = min(o * places, site.mixed) if stacked else min(o, i)
    if choice.kind == "lora" and tensor == "B":
        return min(choice.rank * (places if stacked else 1), smallest)
    if choice.kind == "lora" and is_matrix(site, product):
        return min(choice.rank * (1 if stacked else places), smallest)
    return 1 if tensor == "B" else smallest


class BoundSpace(AdditiveSpace[Genotype]):
    """A search space at the sites of one model. As a genome, a genotype is five option indices per site.

    Args:
        rules: The search space.
        sites: Site name -> Site, in the model's order.
        only: Offer nothing but this genotype.

    Raises:
        SpaceError: There is no site.
    """

    def __init__(self, rules: SearchSpace, sites: Mapping[str, Site], *, only: Genotype | None = None) -> None:
        if not sites:
            raise SpaceError("A search space needs at least one site.")
        self.rules = rules
        self.sites = dict(sites)
        self.only = only
        options = {site: rules.options(site) for site in set(self.sites.values())}
        self.options = {name: options[site] for name, site in self.sites.items()}
        if only is not None:
            self.options = {name: tuple((choice,) for choice in only[name]) for name in self.sites}

    def __repr__(self) -> str:
        """`BoundSpace(48 sites, 10^126.5 genotypes of 0 to 599,040 trainable numbers, SearchSpace(...))`."""
        size = f"{self.size:,}" if self.size < 1_000_000 else f"10^{self.log10_size:.1f}"
        low, high = self.count(self.smallest), self.count(self.largest)
        of = f"genotypes of {low:,} to {high:,}" if self.size > 1 else f"genotype of {high:,}"
        return f"BoundSpace({len(self.sites)} sites, {size} {of} trainable numbers, {self.rules})"

    @cached_property
    def genes(self) -> tuple[tuple[Choice, ...], ...]:
        """The options of every gene: support tensors A..E of the first site, then of the next."""
        return tuple(choices for options in self.options.values() for choices in options)

    @cached_property
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """Trainable numbers of every option of every gene."""
        return tuple(
            tuple(count_parameters(site, tensor, choice, self.rules.product) for choice in choices)
            for name, site in self.sites.items()
            for tensor, choices in zip(TENSORS, self.options[name], strict=True)
        )

    @cached_property
    def looks(self) -> Looks:
        """How genotypes are shown: sites by support tensors."""
        choices = {f"lora:{rank}": f"r{rank}" for rank in self.rules.ranks}
        return Looks("site", "support tensor", ROLES, {**choices, "vector": "vec", "scalar": "sca", "none": ""})

    def cells(self, genotype: Mapping[str, LayerConfig]) -> dict[str, dict[str, Cell]]:
        """Site -> support tensor -> what is chosen there; no choice where only `none` is offered."""
        genome, found = self.encode(genotype), dict[str, dict[str, Cell]]()
        genes = iter(zip(self.genes, self.costs, genome, strict=True))
        for name in self.sites:
            row = {tensor: next(genes) for tensor in TENSORS}
            found[name] = {
                tensor: Cell(str(choices[index]) if len(choices) > 1 else None, costs[index])
                for tensor, (choices, costs, index) in row.items()
            }
        return found

    def encode(self, genotype: Mapping[str, LayerConfig]) -> tuple[int, ...]:
        """The genotype's genome: the index of every support tensor's choice among its options.

        Raises:
            SpaceError: A site is missing or unknown, or a choice is not offered there.
        """
        genotype = genotype if isinstance(genotype, Genotype) else Genotype(genotype)
        if genotype.keys() != self.sites.keys():
            self._wrong_sites(genotype)
        genome = []
        for name, options in self.options.items():
            for tensor, choice, choices in zip(TENSORS, genotype[name], options, strict=True):
                if choice not in choices:
                    raise SpaceError(
                        f"{name}: support tensor {tensor} is not offered {str(choice)!r}.",
                        allowed=f"Offered there: {', '.join(map(str, choices))}.",
                        remedy="variant='paper' offers all choices; C, D and E need a bias.",
                    )
                genome.append(choices.index(choice))
        return tuple(genome)

    def decode(self, genome: Sequence[int]) -> Genotype:
        """The genotype of a genome."""
        chosen = [choices[index] for choices, index in zip(self.genes, genome, strict=True)]
        return Genotype({name: interned(*chosen[5 * k : 5 * k + 5]) for k, name in enumerate(self.sites)})

    def to_json(self) -> list[Any]:
        """Plain data that says what every genome means: the rules, the sites, and the one genotype that is offered."""
        only = [] if self.only is None else [self.only.to_json()]
        return [self.rules.to_json(), [[name, asdict(site)] for name, site in self.sites.items()], *only]

    def _wrong_sites(self, genotype: Mapping[str, LayerConfig]) -> None:
        missing = sorted(self.sites.keys() - genotype.keys())
        unknown = sorted(str(name) for name in genotype if name not in self.sites)
        if unknown:
            near = nearest(unknown[0], self.sites)
            raise SpaceError(
                f"The genotype names sites that are not in the space: {listed(unknown)}.",
                allowed=f"Near {unknown[0]!r}: {listed(near) or listed(self.sites)}.",
            )
        raise SpaceError(f"The genotype lacks the sites {listed(missing)}.", remedy="Give every site a LayerConfig.")
