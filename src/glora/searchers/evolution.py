"""The paper's evolutionary search (Sec. 2.3; the numbers are in the authors' code only)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from glora.errors import ConfigError, whole, within
from glora.searchers.operators import Genome, Pool, crossover, mutate
from glora.searchers.trials import Candidate, Origin, Trial

__all__ = ["Evolution", "EvolutionSettings"]

TRIES = 10  # per child wanted: 250 for 25, the authors' limit


@dataclass(frozen=True)
class EvolutionSettings:
    """The settings of `evolution`; the defaults are the paper's: 50 + 20 * 50 = 1,050 scores.

    Attributes:
        population: Number of genotypes per generation.
        generations: Number of generations after the first, random one.
        parents: Number of best genotypes, of all scored so far, that children come from.
        mutations: Number of mutants per generation; None for half of the population.
        crossovers: Number of crossovers per generation; None for half of the population.
        mutation_probability: Of drawing a support tensor's choice anew, in [0, 1].
        legalize: `"repair"` moves a child into the budget; `"reject"` is the authors' way.
    """

    population: int = 50
    generations: int = 20
    parents: int = 10
    mutations: int | None = None
    crossovers: int | None = None
    mutation_probability: float = 0.2
    legalize: Literal["repair", "reject"] = "repair"

    def __post_init__(self) -> None:
        whole(self.population, "population", least=1)
        for name in ("mutations", "crossovers"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.population // 2)
        for name, least in (("generations", 0), ("parents", 1), ("mutations", 0), ("crossovers", 0)):
            whole(getattr(self, name), name, least=least)
        if self.children > self.population:
            raise ConfigError(
                f"mutations={self.mutations} and crossovers={self.crossovers} exceed population={self.population}.",
                allowed="Together they are at most the population; random genotypes fill it up.",
            )
        within(self.mutation_probability, "mutation_probability", 0, 1)
        if self.legalize not in ("repair", "reject"):
            raise ConfigError(f"legalize={self.legalize!r} is not allowed.", allowed="Allowed: repair, reject.")

    @property
    def children(self) -> int:
        """Number of mutants and crossovers per generation."""
        return (self.mutations or 0) + (self.crossovers or 0)


class Evolution:
    """Top parents, mutants, crossovers, filled up with random genotypes; no genotype twice.

    Departures from the authors' code: a child out of budget is repaired (`legalize="reject"` is theirs), ties go
    to the smaller genotype (theirs: to the older), and every generation is ranked (theirs forgets the last).

    Args:
        pool: Where genomes and randomness come from.
        settings: See `EvolutionSettings`.

    Source: arXiv 2306.07967, Sec. 2.3, "Evolutionary search".
    """

    Settings: ClassVar = EvolutionSettings

    def __init__(self, pool: Pool, settings: EvolutionSettings) -> None:
        self.pool = pool
        self.settings = settings
        self.elite = settings.parents
        self.top: list[Trial] = []
        self.generation = 0

    def ask(self) -> list[Candidate]:
        """The next generation; empty after the last, or when every legal genotype was scored."""
        settings, asked = self.settings, list[Candidate]()
        if self.generation > settings.generations:
            return asked
        if self.top:
            asked += self._children("mutation", settings.mutations or 0, self._mutant)
            asked += self._children("crossover", settings.crossovers or 0, self._crossed)
        while len(asked) < settings.population and (fresh := self.pool.draw()):
            asked.append(Candidate(*fresh))
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Rank the generation among the best so far."""
        self.top = sorted([*self.top, *trials], key=lambda trial: trial.rank)[: self.settings.parents]
        self.generation += 1

    def _children(self, origin: Origin, wanted: int, make: Callable[[Trial], Genome]) -> list[Candidate]:
        children: list[Candidate] = []
        for _ in range(TRIES * wanted):
            if len(children) == wanted:
                break
            parent = self.pool.rng.choice(self.top)
            if fresh := self.pool.admit(make(parent)):
                children.append(Candidate(*fresh, origin, parent.number))
        return children

    def _mutant(self, parent: Trial) -> Genome:
        return mutate(parent.genome, self.pool.wheels, self.settings.mutation_probability, self.pool.rng)

    def _crossed(self, parent: Trial) -> Genome:
        return crossover(parent.genome, self.pool.rng.choice(self.top).genome, self.pool.rng)
