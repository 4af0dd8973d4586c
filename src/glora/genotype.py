"""The nouns of a search: Choice -> LayerConfig -> Genotype, and the Site they are chosen for (no torch).

Legend of the whole library: `o` out features, `i` in features, `r` rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from glora.errors import SpaceError, need

__all__ = ["A_GENOTYPE", "KINDS", "NONE", "ROLES", "TENSORS", "Choice", "Genotype", "LayerConfig", "Site", "interned"]

TENSORS = ("A", "B", "C", "D", "E")
KINDS = {  # support tensor -> the kinds of choice it has (Eq. 11); 4 * 4 * 3 * 3 * 3 = 432 at one rank
    "A": ("lora", "vector", "scalar", "none"),
    "B": ("lora", "vector", "scalar", "none"),
    "C": ("lora", "vector", "none"),
    "D": ("vector", "scalar", "none"),
    "E": ("vector", "scalar", "none"),
}

ROLES = {"A": "scales weight", "B": "shifts weight", "C": "prompt", "D": "scales bias", "E": "shifts bias"}

A_GENOTYPE = "a Genotype, or a mapping from every site to its LayerConfig"  # where a genotype is wanted


class Choice(NamedTuple):
    """How one support tensor is read: `lora:4`, `vector`, `scalar` or `none`."""

    kind: str
    rank: int = 0

    @classmethod
    def parse(cls, text: str | Choice) -> Choice:
        """The choice written as `text`, such as `"lora:4"` (rank 4) or `"none"`.

        Raises:
            SpaceError: The text is no choice.
        """
        kind, colon, rank = str(text).partition(":")
        if kind == "lora" and rank.isascii() and rank.isdigit() and int(rank) > 0:
            return cls("lora", int(rank))
        if kind in ("vector", "scalar", "none") and not colon:
            return cls(kind)
        allowed = "Allowed: 'lora:RANK' with RANK >= 1, 'vector', 'scalar', 'none'."
        raise SpaceError(f"{text!r} is no choice.", allowed=allowed)

    def __str__(self) -> str:
        return f"{self.kind}:{self.rank}" if self.kind == "lora" or self.rank else self.kind


NONE = Choice("none")


class _Choices(NamedTuple):
    A: Choice = NONE
    B: Choice = NONE
    C: Choice = NONE
    D: Choice = NONE
    E: Choice = NONE


class LayerConfig(_Choices):
    """The choices of the five support tensors at one site; `LayerConfig(B="lora:4", E="vector")`.

    A scales the weight, B shifts it; C is a constant input, D scales the bias, E shifts it. Each is a `Choice` or its
    text, and `none` where not given.

    Raises:
        SpaceError: A text is no choice, or the support tensor has no such kind (Eq. 11).
    """

    __slots__ = ()

    def __new__(
        cls,
        A: str | Choice = NONE,
        B: str | Choice = NONE,
        C: str | Choice = NONE,
        D: str | Choice = NONE,
        E: str | Choice = NONE,
    ) -> LayerConfig:
        choices = [Choice.parse(text) for text in (A, B, C, D, E)]
        for tensor, choice in zip(TENSORS, choices, strict=True):
            if choice.kind not in KINDS[tensor]:
                raise SpaceError(
                    f"Support tensor {tensor} has no choice {str(choice)!r}.",
                    allowed=f"Its kinds are {', '.join(KINDS[tensor])} (Eq. 11).",
                )
        return super().__new__(cls, *choices)

    def to_json(self) -> dict[str, str]:
        """Plain data: `{"A": "lora:4", "B": "none", ...}`."""
        return {tensor: str(choice) for tensor, choice in zip(TENSORS, self, strict=True)}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> LayerConfig:
        """The configuration that `to_json` wrote; raises SpaceError on an unknown support tensor."""
        need(data, Mapping, SpaceError, "configuration", "a mapping from support tensors to choices")
        if unknown := set(data) - set(TENSORS):
            raise SpaceError(f"Unknown support tensors {sorted(unknown)}.", allowed=f"Allowed: {', '.join(TENSORS)}.")
        return cls(**data)


@lru_cache(maxsize=1 << 16)
def interned(*choices: Choice) -> LayerConfig:
    """The LayerConfig of these five choices, one object for all sites that share it."""
    return LayerConfig(*choices)


class Genotype(Mapping[str, LayerConfig]):
    """Site name -> LayerConfig, immutable and hashable: the paper's layer-wise configuration.

    Raises:
        SpaceError: It is made of something else.
    """

    __slots__ = ("_configs", "_hash")

    def __init__(self, configs: Mapping[str, LayerConfig]) -> None:
        need(configs, Mapping, SpaceError, "genotype", A_GENOTYPE)
        for site, config in configs.items():
            need(config, LayerConfig, SpaceError, site, "a LayerConfig")
        self._configs = dict(configs)
        self._hash: int | None = None

    def __getitem__(self, site: str) -> LayerConfig:
        return self._configs[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._configs.items()))
        return self._hash

    def __reduce__(self) -> tuple[type[Genotype], tuple[dict[str, LayerConfig]]]:
        return Genotype, (self._configs,)  # without the hash, which another process has its own of

    def __repr__(self) -> str:
        """`Genotype(48 sites: B 40 lora:8 + 8 lora:4, E 48 vector)`: how many sites have which choice but `none`."""
        parts = []
        for tensor in TENSORS:
            counts = Counter(str(choice) for config in self.values() if (choice := getattr(config, tensor)) != NONE)
            if counts:
                parts.append(f"{tensor} {' + '.join(f'{count} {choice}' for choice, count in sorted(counts.items()))}")
        return f"Genotype({len(self)} sites: {', '.join(parts) or 'all none'})"

    def to_json(self) -> dict[str, dict[str, str]]:
        """Plain data, one entry per site."""
        return {site: config.to_json() for site, config in self._configs.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, str]]) -> Genotype:
        """The genotype that `to_json` wrote."""
        need(data, Mapping, SpaceError, "genotype", A_GENOTYPE)
        return cls({site: LayerConfig.from_json(config) for site, config in data.items()})


@dataclass(frozen=True, slots=True)
class Site:
    """One affine weight in a model, seen as an `(o, i)` matrix.

    Attributes:
        kind: The row of the layer table, such as `"linear"`.
        out_features: o.
        in_features: i.
        bias: Whether the plain layer has a bias; C, D and E are offered only then.
        new_bias: The plain layer has none and may get one: C and E are offered.
        mixed: How many of the i inputs a matrix-product A mixes: i, but the channels of a convolution, without
            its kernel. 0 means i.
        diagonal: The weight is a vector, `diag(w)`, of a norm: A and B are `vector`, `scalar` or `none`, both
            products are one, and C (`w ∘ c`) is left out, E being the same. o is its length, i is 1.
        fixed: A row of the weight that stays W0's: the padding of an embedding.
    """

    kind: str
    out_features: int
    in_features: int
    bias: bool
    new_bias: bool = False
    mixed: int = 0
    diagonal: bool = False
    fixed: int | None = None

    def __post_init__(self) -> None:
        if not self.mixed:
            object.__setattr__(self, "mixed", self.in_features)
