"""The search of one trained run. It is handed what training and search may know; no path leads to a test image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from glora.adapt.adapter_file import save_adapter
from glora.adapt.supernet import StoredSupernet, on_cpu
from glora.config import SearchSettings
from glora.errors import BudgetError, MissingExtraError, RunError
from glora.files import sha256
from glora.genotype import TENSORS
from glora.methods import Method
from glora.methods.glora import GLoRA, TunedAdapter
from glora.report import plots
from glora.report.outcome import Outcome, Row, digest
from glora.runs.calibration import GENOTYPES, Calibration, chosen, temperatures
from glora.runs.comparison import Contender, best_again, compared, controls, random_genomes
from glora.runs.folder import RunFolder
from glora.runs.reporter import Reporter
from glora.runs.resolve import search_arguments
from glora.runs.scoring import Part, Recipe, ValScorer, load_parts, shared_weights
from glora.runs.sheet import Genome, Sheet, Splits
from glora.searchers import Racing, SearchResult, Trial, search
from glora.space import numbers
from glora.tasks.visible import Known

__all__ = ["Search"]


class Search:
    """Searches a trained supernet on val, compares the winner with its controls, and keeps what a person wants to see.

    Args:
        known: The images, without test.
        tuned: The supernet, on its device; its numbers are read from the folder.
        method: What made it, so that workers can make it too.
        folder: The run folder.
        settings: Searcher, budget, and what comes after the search.
        seed: The run's.
        accelerator: Device and precision.
        reporter: Where to tell what is going on.
        info: What travels with the adapter file.
        polish: How the winner is trained on, None where it is not.

    Raises:
        RunError: A supernet is not trained yet.
    """

    def __init__(
        self,
        known: Known,
        tuned: TunedAdapter,
        method: Method,
        folder: RunFolder,
        settings: SearchSettings,
        *,
        seed: int,
        accelerator: Accelerator,
        reporter: Reporter,
        info: Mapping[str, Any],
        polish: Mapping[str, Any] | None = None,
    ) -> None:
        self.known = known
        self.method = method
        self.accelerator = accelerator
        self.adapted = tuned.adapted
        self.space = tuned.adapted.space
        self.folder = folder
        self.settings = settings
        self.seed = seed
        self.reporter = reporter
        self.how = search_arguments(settings, self.space)
        self.info = info
        self.polish = polish
        begun = folder.begun
        self.calibrated = settings.calibrate and (folder.calibration.is_file() or not begun)  # None in old searches
        self._load(Calibration.read(folder.calibration) if begun else Calibration())

    def _load(self, calibration: Calibration) -> None:
        """The supernets are in place, calibrated, with what knows them."""
        known, folder = self.known, self.folder
        self.parts, self.final = load_parts(self.adapted, known, folder, calibration)
        self.scorer = self._scorer(self.parts)
        files = [folder.fold(place).supernet for place in range(len(known.folds))] or [folder.supernet]
        self.context = {"data": known.fingerprint, "aside": len(known.aside), "supernet": [sha256(f) for f in files]}
        self.weights = sha256(folder.supernet)
        if calibration != Calibration():
            self.context["calibration"] = asdict(calibration)
            self.weights = digest(self.weights, self.context["calibration"])
        header = {"event": "images", **self.context, "winner": self.weights}
        self.sheet = Sheet(folder.sheet, header, self._measured)

    def _scorer(self, parts: Sequence[Part]) -> ValScorer:
        settings = self.settings
        return ValScorer(parts, fitness=settings.fitness, accelerator=self.accelerator, batch_size=settings.batch_size)

    def _calibrate(self) -> None:
        """The supernets play as strongly, with logits as far apart, as is best on val for genotypes of the search."""
        bounds = {name: self.how[name] for name in ("budget", "min_budget")}
        genomes = random_genomes(self.space, GENOTYPES, **bounds, seed=self.seed + 1)

        def measure(strength: float) -> tuple[Tensor, Tensor]:
            parts, _ = load_parts(self.adapted, self.known, self.folder, Calibration(strength))
            scorer = self._scorer(parts)
            logits, labels = zip(*(scorer.logits(self.space.decode(genome)) for genome in genomes), strict=True)
            return torch.cat(logits), torch.cat(labels)

        load_parts(self.adapted, self.known, self.folder, Calibration())
        how = {"accelerator": self.accelerator, "batch_size": self.settings.batch_size}
        with self.adapted.hold(self.space.largest):
            allowed = temperatures(self.adapted, self.known.val, **how)
        images = len(self.known.val)
        found = chosen(measure, images=images, temperatures=allowed)
        found.write(self.folder.calibration)
        self._load(found)
        for told in found.notes or [f"Calibration: none; on {images:,} val images nothing is surely better."]:
            self.reporter.say(told)
        if found.notes and len(allowed) == 1:
            self.reporter.say("The way the head ends, its logits take no divisor.")

    def run(self) -> Outcome:
        """Searches, or goes on; the winner's adapter, what it was compared with, and the pictures are in the folder."""
        if self.calibrated and not self.folder.begun:
            self._calibrate()
        best: list[Trial] = []
        seen: list[float] = []

        def tell(trial: Trial) -> None:
            best[:] = [min((*best, trial), key=lambda each: each.rank)]
            seen.append(trial.seen)
            saved = 1 - sum(seen) / len(seen) if self.settings.racing else None
            self.reporter.trial(trial, best[0], self.settings.candidates, saved)

        found = self._search(self.scorer, tell, workers=self.settings.workers)
        winner, rescored = self._chosen(found)
        bounds = {name: self.how[name] for name in ("budget", "min_budget")}
        rows = self.rows(winner.genome, **bounds)
        scored = len(found.trials)
        outcome = self._outcome(winner, **bounds, scored=scored, eligible=scored, rescored=rescored, rows=rows)
        self._keep(outcome, found, winner)
        return outcome

    def pick(self, *, budget: int | None, min_budget: int | None = None) -> Outcome:
        """The best scored genotype that keeps another budget, by its score on val; nothing is scored.

        Raises:
            BudgetError: No scored genotype keeps it; the message has the smallest and the largest scored.
            RunError: The search is not finished.
        """
        found = self.finished
        low = self.how["min_budget"] if min_budget is None else min_budget
        high = float("inf") if budget is None else budget
        scored = [trial for trial in found.trials if trial.seen == 1]
        kept = [trial for trial in scored if low <= trial.parameters <= high]
        if not kept:
            sizes = [trial.parameters for trial in scored]
            bounds = [f"at least {low:,}"] * bool(min_budget) + [f"at most {high:,}"] * (budget is not None)
            wanted = " and ".join(bounds)
            raise BudgetError(
                f"None of the {len(sizes):,} genotypes of {self.folder.path} that were scored on all of val "
                f"has {wanted} trainable numbers.",
                allowed=f"The smallest has {min(sizes):,}, the largest {max(sizes):,}.",
                remedy="Ask for what there is, or train and search under another --out: with that budget, or with "
                "search.searcher=nsga2 for every size at once.",
            )
        winner = min(kept, key=lambda trial: trial.rank)
        counts = {"scored": len(found.trials), "eligible": len(kept)}
        outcome = self._outcome(winner, budget, low, **counts, picked=True)
        self._keep(outcome, found, winner)
        return outcome

    def rows(self, winner: Genome, *, budget: int | None, min_budget: int) -> dict[str, Row]:
        """The winner and its controls on val and on the images set aside; what the sheet has is not measured again."""
        return compared(self.contender(winner), self.controls(budget=budget, min_budget=min_budget))

    def complete(self, outcome: Outcome, rows: Mapping[str, Row]) -> Outcome:
        """The outcome with all that was compared, in the folder and in the picture."""
        outcome = replace(outcome, rows=rows)
        outcome.write(self.folder.winner)
        found = self.finished
        self._pictures(outcome, found, found.trials[outcome.number])
        return outcome

    def contender(self, genome: Genome, splits: Splits | None = None) -> Contender:
        """One genotype of the supernet as a row of the comparison."""
        parameters = self.space.count(self.space.decode(genome))
        return Contender(parameters, {**self.sheet(genome), **(splits or {})}, genome=genome)

    def controls(self, *, budget: int | None, min_budget: int, picked: bool = False) -> dict[str, Contender]:
        """The controls that cost no training, chosen as the winner was; none where the settings want none."""
        settings = self.settings
        wanted = settings.population if settings.controls is None else settings.controls
        if not wanted:
            return {}
        sizes = random_genomes(self.space, wanted, budget=budget, min_budget=min_budget, seed=self.seed)
        if any(genome not in self.sheet for genome in sizes):
            self.reporter.say(f"Controls: {len(sizes):,} random genotypes and the largest")
        return controls(
            self.space, self.sheet, sizes, fitness=settings.fitness, rescore=0 if picked else settings.rescore
        )

    @cached_property
    def finished(self) -> SearchResult:
        """The finished search, from its journal alone; nothing is scored and nothing written.

        Raises:
            RunError: It is not finished.
        """
        return self._search(None, None)

    def shown(self) -> Outcome:
        """The winner in the folder, which this finished search has found and the settings ask for.

        Raises:
            RunError: The search is not finished, or the winner is another search's or polished in another way.
        """
        outcome, remedy = Outcome.read(self.folder.winner), f"Run `glora search {self.folder.path}` first."
        if outcome.polish != self.polish:
            raise RunError(
                f"The adapter in {self.folder.path} was polished with {outcome.polish}, and the settings say "
                f"{self.polish}.",
                remedy=remedy,
            )
        theirs = [trial.genome for trial in self.finished.trials if trial.number == outcome.number]
        if theirs != [outcome.genome] or outcome.weights != self.weights:
            raise RunError(f"{self.folder.winner} is of another search than {self.folder.journal}.", remedy=remedy)
        return outcome

    def _search(self, score: Any, tell: Any, *, workers: int = 0) -> SearchResult:
        settings = self.settings
        racing = Racing(len(self.known.val), level=settings.racing_level, first=settings.racing_first)
        return search(
            self.recipe() if workers else score,
            self.space,
            seed=self.seed,
            **self.how,
            racing=racing if settings.racing else None,
            workers=workers,
            cluster=settings.cluster if workers else None,
            limit=settings.limit,
            journal=self.folder.journal,
            context=self.context,
            on_trial=tell,
        )

    def recipe(self) -> Recipe:
        """How worker processes make the scorer."""
        if self.accelerator.num_processes > 1:
            raise RunError(
                "Search workers are started by one process, not by several.",
                remedy=f"Train with several, then: glora search {self.folder.path}",
            )
        assert isinstance(self.method, GLoRA)
        supernets = [part.supernet for part in self.parts]
        return Recipe(
            spec=self.info["backbone"],
            classes=len(self.known.classes),
            method=self.method,
            weights=shared_weights(self.adapted.model),
            images=tuple(part.images for part in self.parts),
            scales=self.adapted.scales,
            states=tuple(on_cpu(each.state) for each in supernets if isinstance(each, StoredSupernet)),
            fitness=self.settings.fitness,
            precision=self.accelerator.mixed_precision,
            batch_size=self.settings.batch_size,
        )

    def _measured(self, genome: Genome) -> Splits:
        genotype = self.space.decode(genome)
        found = {"val": self.scorer.evaluation(genotype)}
        if len(self.known.aside):
            found["aside"] = self.scorer.on(Part(self.final, self.known.aside), genotype)
        return found

    def _chosen(self, found: SearchResult) -> tuple[Trial, int]:
        """The winner, and how many of the best were scored again to find it."""
        if not (self.settings.rescore and len(self.known.aside)):
            return found.best, 0
        finished = [trial for trial in found.trials if trial.seen == 1]  # none that has left a race
        best = sorted(finished, key=lambda trial: trial.rank)[: self.settings.rescore]
        self.reporter.say(f"The best {len(best)} once more, on {len(self.known.aside):,} images set aside")
        by_genome = {trial.genome: trial for trial in best}
        sizes = {genome: trial.parameters for genome, trial in by_genome.items()}
        return by_genome[best_again(sizes, self.sheet, fitness=self.settings.fitness)], len(best)

    def _outcome(self, winner: Trial, budget: int | None, min_budget: int, **facts: Any) -> Outcome:
        sites: dict[str, dict[str, Any]] = {}
        for name, config in winner.genotype.items():
            site, written, offered = self.space.sites[name], config.to_json(), self.space.options[name]
            cells = {t: written[t] if len(o) > 1 else None for t, o in zip(TENSORS, offered, strict=True)}
            counts = [numbers(site, t, c, self.space.rules.product) for t, c in zip(TENSORS, config, strict=True)]
            sites[name] = {**cells, "numbers": sum(counts)}
        return Outcome(
            number=winner.number,
            genome=winner.genome,
            weights=self.weights,
            polish=self.polish,
            parameters=winner.parameters,
            sites=sites,
            fitness=self.settings.fitness,
            score=winner.score.value,
            standard_error=winner.score.standard_error,
            budget=budget,
            min_budget=min_budget,
            **facts,
        )

    def _keep(self, outcome: Outcome, found: SearchResult, winner: Trial) -> None:
        """The winner's adapter and the outcome are in the folder, and the pictures where they can be drawn."""
        folder = self.folder
        genotype = winner.genotype
        folder.put_away()
        self.final.put()
        self.adapted.activate(genotype)
        if self.polish:  # the adapter of this run is the polished one
            folder.adapter.unlink(missing_ok=True)
        else:
            save_adapter(self.adapted, folder.adapter, info={**self.info, "winner": outcome.key})
        outcome.write(folder.winner)
        for line in outcome.verdict:
            self.reporter.say(line)
        self._pictures(outcome, found, winner)

    def _pictures(self, outcome: Outcome, found: SearchResult, winner: Trial) -> None:
        try:
            self._draw(outcome, found.trials, found.front, winner)
        except MissingExtraError as error:  # the search is done; its pictures can be had later
            self.reporter.say(f"No pictures: {error}")

    def _draw(self, outcome: Outcome, trials: Sequence[Trial], front: Sequence[Trial], winner: Trial) -> None:
        folder, fitness = self.folder.plots, self.settings.fitness
        facts: dict[str, Any] = {"fitness": fitness, "budget": outcome.budget, "controls": outcome.rows}
        plots.search_plot(trials, front, winner, folder / "search.svg", **facts)
        plots.layer_plot(winner.genotype, self.space, folder / "layers.svg")
        plots.parameters_plot(winner.genotype, self.space, folder / "parameters.svg")
