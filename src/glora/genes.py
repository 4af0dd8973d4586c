"""What any method may offer to a search: a protocol, and a small space of rows, columns and options (no torch).

A genotype is a table: a row for each place of the model, a column for each thing that is chosen there. GLoRA's space
(`glora.space.BoundSpace`: sites x support tensors) and `GeneSpace` (such as blocks x modules) are the two there are.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from glora.errors import SpaceError, listed, need

__all__ = ["AdditiveSpace", "Cell", "GeneSpace", "GenotypeSpace", "Looks", "Option", "PlainGenotype"]

Option = int | float | str  # 0 is nothing
G = TypeVar("G")

TABLE = "a mapping from every row to its columns' options"


class Cell(NamedTuple):
    """One choice of a genotype, as tables and pictures show it.

    Attributes:
        choice: Its text; None where nothing is offered.
        numbers: Trainable numbers that it costs.
    """

    choice: str | None
    numbers: int


class Looks(NamedTuple):
    """How the genotypes of a space are shown.

    Attributes:
        row: What a row is: `"site"`.
        column: What a column is: `"support tensor"`.
        columns: Column -> what it does, in a few words.
        choices: Every choice's text -> a short label for pictures, the largest first; `""`: nothing.
    """

    row: str
    column: str
    columns: Mapping[str, str]
    choices: Mapping[str, str]


class GenotypeSpace(Protocol):
    """What stages, tables and pictures need of the space of a `Tuned`; its genotypes are hashable and picklable.

    Attributes:
        genes: The options of every gene. costs: Trainable numbers of each of them.
        size, log10_size: How many genotypes there are.
        smallest, largest: The genotypes with the fewest and the most trainable numbers.
        looks: How genotypes are shown.
    """

    @property
    def genes(self) -> Sequence[Sequence[Any]]: ...
    @property
    def costs(self) -> Sequence[Sequence[int]]: ...
    @property
    def size(self) -> int: ...
    @property
    def log10_size(self) -> float: ...
    @property
    def smallest(self) -> Any: ...
    @property
    def largest(self) -> Any: ...
    @property
    def looks(self) -> Looks: ...

    def sample(self, rng: random.Random) -> Any:
        """A genotype drawn uniformly."""
        ...

    def count(self, genotype: Any) -> int:
        """Trainable numbers of the genotype, without the head."""
        ...

    def encode(self, genotype: Any) -> tuple[int, ...]:
        """The genotype's genome: the index of every gene's option. Raises SpaceError where it is not of the space."""
        ...

    def decode(self, genome: tuple[int, ...]) -> Any:
        """The genotype of a genome."""
        ...

    def to_json(self) -> Any:
        """Plain data that says what every genome means."""
        ...

    def cells(self, genotype: Any) -> dict[str, dict[str, Cell]]:
        """Row -> column -> what is chosen there."""
        ...


class AdditiveSpace(ABC, Generic[G]):
    """What follows from genes and their costs, where the costs of a genotype's options add up."""

    @property
    @abstractmethod
    def genes(self) -> tuple[tuple[Any, ...], ...]:
        """The options of every gene."""

    @property
    @abstractmethod
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """Trainable numbers of every option of every gene."""

    @abstractmethod
    def encode(self, genotype: Any) -> tuple[int, ...]:
        """The genotype's genome."""

    @abstractmethod
    def decode(self, genome: Sequence[int]) -> G:
        """The genotype of a genome."""

    def sample(self, rng: random.Random) -> G:
        """A genotype drawn uniformly, every gene on its own."""
        return self.decode([rng.randrange(len(options)) for options in self.genes])

    def count(self, genotype: Any) -> int:
        """Trainable numbers of the genotype, without the head."""
        return sum(costs[index] for costs, index in zip(self.costs, self.encode(genotype), strict=True))

    @cached_property
    def size(self) -> int:
        """How many genotypes there are, exactly."""
        return math.prod(len(options) for options in self.genes)

    @property
    def log10_size(self) -> float:
        """log10 of `size`."""
        return math.log10(self.size)

    @cached_property
    def smallest(self) -> G:
        """The genotype with the fewest trainable numbers."""
        return self.decode([costs.index(min(costs)) for costs in self.costs])

    @cached_property
    def largest(self) -> G:
        """The genotype with the most trainable numbers."""
        return self.decode([costs.index(max(costs)) for costs in self.costs])


class PlainGenotype(Mapping[str, Mapping[str, Option]]):
    """Row -> column -> option, immutable and hashable, of plain numbers and texts.

    Raises:
        SpaceError: It is made of something else.
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: Mapping[str, Mapping[str, Option]]) -> None:
        need(rows, Mapping, SpaceError, "genotype", TABLE)
        for row, options in rows.items():
            need(options, Mapping, SpaceError, str(row), "a mapping from columns to options")
            for column, option in options.items():
                need(option, int | float | str, SpaceError, f"{row}.{column}", "a number or a text")
        self._rows = {row: MappingProxyType(dict(options)) for row, options in rows.items()}

    def __getitem__(self, row: str) -> Mapping[str, Option]:
        return self._rows[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __hash__(self) -> int:
        return hash(frozenset((row, frozenset(options.items())) for row, options in self._rows.items()))

    def __reduce__(self) -> tuple[type[PlainGenotype], tuple[dict[str, dict[str, Option]]]]:
        return PlainGenotype, (self.to_json(),)

    def __repr__(self) -> str:
        """`PlainGenotype(12 rows: prompts 3 none + 9 10, lora 12 5)`: how many rows have which option."""
        found: dict[str, Counter[str]] = {}
        for options in self.values():
            for column, option in options.items():
                found.setdefault(column, Counter())[_text(option)] += 1
        parts = (f"{column} {' + '.join(f'{n} {text}' for text, n in each.items())}" for column, each in found.items())
        return f"PlainGenotype({len(self)} rows: {', '.join(parts)})"

    def to_json(self) -> dict[str, dict[str, Option]]:
        """Plain data, one entry per row."""
        return {row: dict(options) for row, options in self._rows.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Option]]) -> PlainGenotype:
        """The genotype that `to_json` wrote."""
        return cls(data)


def _text(option: Option) -> str:
    """An option in tables and pictures."""
    if not option:
        return "none"
    return option if isinstance(option, str) else f"{option:g}"


class GeneSpace(AdditiveSpace[PlainGenotype]):
    """A space whose genes are the cells of a table.

    Args:
        rows: Row -> column -> option -> its trainable numbers, the largest option first; 0 is nothing. A row may lack
            columns.
        columns: Column -> what it does, in a few words.
        row: What a row is, such as `"block"`.
        column: What a column is, such as `"module"`.

    Raises:
        SpaceError: There is no gene, or one without options.
    """

    def __init__(
        self,
        rows: Mapping[str, Mapping[str, Mapping[Option, int]]],
        *,
        columns: Mapping[str, str],
        row: str,
        column: str,
    ) -> None:
        self.rows = {
            name: {each: dict(options) for each, options in cells.items()} for name, cells in rows.items() if cells
        }
        self.columns = dict(columns)
        self.row, self.column = row, column
        if not self.rows or not all(options for cells in self.rows.values() for options in cells.values()):
            raise SpaceError("A search space needs at least one gene, and each gene an option.")

    def __repr__(self) -> str:
        """`GeneSpace(12 blocks, 10^21.7 genotypes of 0 to 654,456 trainable numbers)`."""
        size = f"{self.size:,}" if self.size < 1_000_000 else f"10^{self.log10_size:.1f}"
        low, high = self.count(self.smallest), self.count(self.largest)
        return f"GeneSpace({len(self.rows)} {self.row}s, {size} genotypes of {low:,} to {high:,} trainable numbers)"

    @cached_property
    def genes(self) -> tuple[tuple[Option, ...], ...]:
        """The options of every gene: the columns of the first row, then of the next."""
        return tuple(tuple(options) for cells in self.rows.values() for options in cells.values())

    @cached_property
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """Trainable numbers of every option of every gene."""
        return tuple(tuple(options.values()) for cells in self.rows.values() for options in cells.values())

    @cached_property
    def looks(self) -> Looks:
        """How genotypes are shown."""
        every = dict.fromkeys(_text(option) for options in self.genes for option in options)
        return Looks(self.row, self.column, self.columns, {text: "" if text == "none" else text for text in every})

    def encode(self, genotype: Any) -> tuple[int, ...]:
        """The genotype's genome: the index of every cell's option.

        Raises:
            SpaceError: A row or a column is missing or unknown, or an option is not offered there.
        """
        need(genotype, Mapping, SpaceError, "genotype", TABLE)
        self._check_names(genotype, self.rows, f"{self.row}s")
        genome = []
        for name, cells in self.rows.items():
            need(genotype[name], Mapping, SpaceError, name, "a mapping from columns to options")
            self._check_names(genotype[name], cells, f"{self.column}s of {name}")
            for each, options in cells.items():
                option = genotype[name][each]
                if isinstance(option, bool) or option not in options:
                    raise SpaceError(
                        f"{name}: {each} is not offered {option!r}.",
                        allowed=f"Offered there: {', '.join(map(str, options))}.",
                    )
                genome.append(list(options).index(option))
        return tuple(genome)

    def decode(self, genome: Sequence[int]) -> PlainGenotype:
        """The genotype of a genome."""
        chosen = iter([options[index] for options, index in zip(self.genes, genome, strict=True)])
        return PlainGenotype({name: {each: next(chosen) for each in cells} for name, cells in self.rows.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain data that says what every genome means: row -> column -> every option with its cost."""
        rows = [
            [name, [[each, [list(pair) for pair in options.items()]] for each, options in cells.items()]]
            for name, cells in self.rows.items()
        ]
        return {"rows": rows}

    def cells(self, genotype: Any) -> dict[str, dict[str, Cell]]:
        """Row -> column -> what is chosen there."""
        self.encode(genotype)
        return {
            name: {each: self._cell(cells.get(each), genotype[name].get(each)) for each in self.columns}
            for name, cells in self.rows.items()
        }

    def _cell(self, options: Mapping[Option, int] | None, option: Any) -> Cell:
        if options is None:
            return Cell(None, 0)
        return Cell(_text(option) if len(options) > 1 else None, options[option])

    def _check_names(self, given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
        if given.keys() != known.keys():
            missing, unknown = sorted(known.keys() - given.keys()), sorted(map(str, given.keys() - known.keys()))
            found = f"lacks {listed(missing)}" if missing else f"has {listed(unknown)}, which the model has not"
            raise SpaceError(f"The genotype {found}.", allowed=f"The {what} are {listed(known)}.")
