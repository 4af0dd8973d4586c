"""The paper's evolutionary search (Sec. 2.3; its numbers are in the authors' code only) and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from glora.searchers.operators import Genome, GenomeSampler, crossover, mutate
from glora.searchers.searcher import Candidate, SearcherSettings, small_generation
from glora.searchers.trials import Origin, Trial

__all__ = ["Evolution", "EvolutionSettings"]

TRIES = 10  # per child wanted: 250 for 25, the authors' limit


class EvolutionSettings(SearcherSettings):
    """The settings of `evolution`; by default, as in the paper, 50 + 20 * 50 = 1,050 genotypes are scored."""

    races: ClassVar[bool] = True

    name: Literal["evolution"] = "evolution"
    population: int = Field(50, ge=1, description="Genotypes per generation.")
    generations: int = Field(20, ge=0, description="Generations after the first, random one.")
    parents: int = Field(10, ge=1, description="Best genotypes of all scored so far, from which children are made.")
    mutations: int | None = Field(None, ge=0, description="Mutants per generation; half the population if not given.")
    crossovers: int | None = Field(
        None, ge=0, description="Crossovers per generation; half the population if not given."
    )
    mutation_probability: float = Field(0.2, ge=0, le=1, description="Of drawing each gene of a mutant anew.")
    legalize: Literal["repair", "reject"] = Field(
        "repair", description="How a budget is kept: 'repair' moves genotypes into it, 'reject' is as published."
    )

    @model_validator(mode="after")
    def _children_fit(self) -> EvolutionSettings:
        mutants, crossed = self.children
        if mutants + crossed > self.population:
            raise ValueError(
                f"mutations={mutants} and crossovers={crossed} exceed population={self.population}; "
                "together they are at most the population, and random genotypes fill it up"
            )
        return self

    @property
    def children(self) -> tuple[int, int]:
        """Number of mutants and number of crossovers per generation."""
        half = self.population // 2
        return half if self.mutations is None else self.mutations, half if self.crossovers is None else self.crossovers

    @property
    def candidates(self) -> int:
        """How many genotypes are scored at most."""
        return self.population * (1 + self.generations)

    def shaped(self, most: int) -> EvolutionSettings:
        """Smaller generations, so that there are several; of their genotypes at most half are parents."""
        population = small_generation(self.population, self.candidates, most)
        if population == self.population:
            return self
        parents = max(1, min(self.parents, population // 2))
        changes = {"population": population, "parents": parents, "mutations": None, "crossovers": None}
        return self.model_copy(update=changes)

    def resolved(self) -> dict[str, Any]:
        """The values in force; mutations and crossovers are numbers."""
        mutants, crossed = self.children
        return super().resolved() | {"mutations": mutants, "crossovers": crossed}


class Evolution:
    """Mutants and crossovers of the best genotypes so far, filled up with random ones; no genotype twice.

    Departures from the authors' code: a child out of budget is repaired (`legalize="reject"` is theirs), ties go
    to the smaller genotype (theirs: to the older), and every generation is ranked (theirs forgets the last).

    Args:
        sampler: Gives legal genomes and randomness.
        settings: See `EvolutionSettings`.

    Source: arXiv 2306.07967, Sec. 2.3, "Evolutionary search".
    """

    Settings: ClassVar = EvolutionSettings

    def __init__(self, sampler: GenomeSampler, settings: EvolutionSettings) -> None:
        self.sampler = sampler
        self.settings = settings
        self.top_k = settings.parents
        self.parents: list[Trial] = []  # the best so far, best first
        self.generation = 0

    def ask(self) -> list[Candidate]:
        """The next generation; empty after the last, or when every legal genotype was scored."""
        settings, asked = self.settings, list[Candidate]()
        if self.generation > settings.generations:
            return asked
        if self.parents:
            mutants, crossed = settings.children
            asked += self._children("mutation", mutants, self._mutant)
            asked += self._children("crossover", crossed, self._crossed)
        while len(asked) < settings.population and (fresh := self.sampler.sample()):
            asked.append(Candidate(*fresh))
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Rank the generation among the best so far."""
        self.parents = sorted([*self.parents, *trials], key=lambda trial: trial.rank)[: self.settings.parents]
        self.generation += 1

    def _children(self, origin: Origin, wanted: int, make: Callable[[Trial], Genome]) -> list[Candidate]:
        """So many children that were never asked for; fewer when `TRIES` per child do not find them."""
        children: list[Candidate] = []
        for _ in range(TRIES * wanted):
            if len(children) == wanted:
                break
            parent = self.sampler.rng.choice(self.parents)
            if fresh := self.sampler.accept(make(parent)):
                children.append(Candidate(*fresh, origin, parent.number))
        return children

    def _mutant(self, parent: Trial) -> Genome:
        sampler = self.sampler
        return mutate(parent.genome, sampler.wheels, self.settings.mutation_probability, sampler.rng)

    def _crossed(self, parent: Trial) -> Genome:
        rng = self.sampler.rng
        return crossover(parent.genome, rng.choice(self.parents).genome, rng)
