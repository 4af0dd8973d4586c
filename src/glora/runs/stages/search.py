"""The search stage: the best genotype of a trained supernet on val, and what it is compared with. It sees no test."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from glora.errors import BudgetError, MissingExtraError, RunError
from glora.files import plain_json, sha256
from glora.genes import GenotypeSpace
from glora.methods.method import Tuned
from glora.report import plots
from glora.report.metrics import MetricInfo, find_metric
from glora.report.outcome import Outcome, Row, digest
from glora.runs.calibration import apply_calibration, temperatures
from glora.runs.comparison import (
    Contender,
    ExampleValues,
    Genome,
    Splits,
    best_again,
    compare,
    controls,
    random_genomes,
)
from glora.runs.cost import planned
from glora.runs.resolve import polish_info
from glora.runs.scoring import Part, ValScorer, calibrated_parts, load_numbers, recipe_of
from glora.runs.session import Session
from glora.searchers import Racing, SearchResult, Trial, search
from glora.searchers.link import Link
from glora.searchers.ranks import RankPool
from glora.tasks.batching import weights_of
from glora.tasks.calibration import Calibration, Outputs, choose_calibration

__all__ = ["BEFORE", "Search"]

TELL_EVERY = 10.0  # seconds of silence while controls are measured
BEFORE = "before_final"  # the row of the winner as it was chosen, where it is then trained on val too


class Search:
    """Searches a trained supernet on val, compares the winner with its controls, and keeps what a person wants to see.

    Args:
        session: The run.
        tuned: The supernet, on its device; its numbers are read from the folder.

    Raises:
        RunError: A supernet is not trained yet.
    """

    def __init__(self, session: Session, tuned: Tuned) -> None:
        assert tuned.space is not None
        self.session = session
        self.tuned = tuned
        self.space: GenotypeSpace = tuned.space
        self.settings = session.experiment.search
        self.plan = planned(session.experiment, session.data, self.space)
        self.bounds: dict[str, Any] = {"budget": self.plan.budget, "min_budget": self.plan.min_budget}
        self.again = session.trains_again(searches=True)
        self.polish = polish_info(session.experiment, session.lr)
        self._snapshots = load_numbers(session, tuned)
        folder = session.folder
        self._load(Calibration.read(folder.calibration) if folder.begun else Calibration())

    def _load(self, calibration: Calibration) -> None:
        """The supernets are in place, calibrated, with what knows them."""
        data, folder = self.session.data, self.session.folder
        self.calibration = calibration
        self.parts, self.final = calibrated_parts(self.session, self.tuned, self._snapshots, calibration)
        self.scorer = self._scorer(self.parts)
        files = [folder.fold(place).supernet for place in range(len(data.folds))] or [folder.supernet]
        self.context = {"data": data.fingerprint, "aside": len(data.aside), "supernet": [sha256(f) for f in files]}
        self.weights = sha256(folder.supernet)
        if calibration != Calibration():
            self.context["calibration"] = asdict(calibration)
            self.weights = digest(self.weights, self.context["calibration"])
        header = {"event": "examples", **self.context, "winner": self.weights}
        self.values = ExampleValues(folder.values, header, self.session.objective, self._measured, self._weights())

    def _weights(self) -> dict[str, Tensor]:
        """How much each example of val, part after part, and of those set aside counts, where they have weights."""
        parts = {"val": [part.examples for part in self.parts], "aside": [self.session.data.aside]}
        found = {split: [weights_of(each) for each in some if len(each)] for split, some in parts.items()}
        known = {split: [each for each in some if each is not None] for split, some in found.items()}
        return {split: torch.cat(some) for split, some in known.items() if some}

    @property
    def _metrics(self) -> tuple[MetricInfo, ...]:
        return tuple(MetricInfo(**metric.to_json()) for metric in self.session.objective.metrics)

    def _scorer(self, parts: Sequence[Part]) -> ValScorer:
        return ValScorer(parts, self.session.evaluator, fitness=self.settings.fitness)

    def calibrate(self) -> None:
        """Chooses on val how strongly the supernets play and how far apart their logits are, and keeps it."""
        session, val = self.session, self.session.data.val
        n = self.plan.extent.calibrate
        genomes = random_genomes(self.space, n, **self.bounds, seed=session.experiment.seed + 1)

        def measure(strength: float) -> Outputs:
            parts, _ = calibrated_parts(session, self.tuned, self._snapshots, Calibration(strength))
            scorer = self._scorer(parts)
            return [each for genome in genomes for each in scorer.outputs(self.space.decode(genome))]

        calibrated_parts(session, self.tuned, self._snapshots, Calibration())
        with self.tuned.hold(self.space.largest):
            allowed = temperatures(session, self.tuned, val)
        found = choose_calibration(measure, session.objective, examples=len(val), temperatures=allowed)
        found.write(session.folder.calibration)
        self._load(found)
        for note in found.notes or [f"Calibration: none; on {len(val):,} val {val.unit} nothing is surely better."]:
            session.reporter.say(note)
        if found.notes and len(allowed) == 1:
            session.reporter.say("The way the head ends, its outputs take no divisor.")

    def run(self, link: Link | None = None) -> Outcome:
        """Searches, or goes on; the winner's adapter, what it was compared with, and the pictures are in the folder.

        Args:
            link: The other processes of the run, which wait to score.
        """
        folder, reporter = self.session.folder, self.session.reporter
        if self.plan.extent.calibrate and not folder.begun:
            self.calibrate()
        folder.need_there()  # the journal would make it again
        best: list[Trial] = []
        seen: list[float] = []
        total = self.plan.candidates
        reporter.search_begins(find_metric(self._metrics, self.settings.fitness))

        def report(trial: Trial) -> None:
            best[:] = [min((*best, trial), key=lambda each: each.rank)]
            seen.append(trial.seen)
            saved = 1 - sum(seen) / len(seen) if self.plan.extent.racing else None
            reporter.trial(trial, best[0], total, saved)

        found = self._search(self._spread(link), report, workers=self.settings.workers)
        winner, rescored = self._chosen(found)
        rows = self.rows(winner.genome)
        scored = len(found.trials)
        outcome = self._outcome(winner, **self.bounds, scored=scored, eligible=scored, rescored=rescored, rows=rows)
        self._keep(outcome, found, winner)
        return outcome

    def pick(self, *, budget: int | None, min_budget: int | None = None) -> Outcome:
        """The best scored genotype that keeps another budget, by its score on val; nothing is scored.

        Raises:
            BudgetError: No scored genotype keeps it; the message has the smallest and the largest scored.
            RunError: The search is not finished.
        """
        found = self.finished
        low = self.plan.min_budget if min_budget is None else min_budget
        high = float("inf") if budget is None else budget
        scored = [trial for trial in found.trials if trial.seen == 1]
        kept = [trial for trial in scored if low <= trial.parameters <= high]
        if not kept:
            sizes = [trial.parameters for trial in scored]
            limits = [f"at least {low:,}"] * bool(min_budget) + [f"at most {high:,}"] * (budget is not None)
            wanted = " and ".join(limits)
            raise BudgetError(
                f"None of the {len(sizes):,} genotypes of {self.session.folder.path} that were scored on all of val "
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

    def rows(self, winner: Genome) -> dict[str, Row]:
        """The winner and its controls on val and on the examples set aside; what is known is not measured again."""
        own, others = self.contender(winner), self.controls(**self.bounds)
        if self.again:  # val and what was set aside are among its training examples
            own, others = Contender(own.parameters, {}), {BEFORE: own, **others}
        return compare(own, others, self.session.objective)

    def complete(self, outcome: Outcome, rows: Mapping[str, Row]) -> Outcome:
        """The outcome with all that was compared, in the folder and in the picture."""
        outcome = replace(outcome, rows=rows)
        outcome.write(self.session.folder.winner)
        found = self.finished
        self._pictures(outcome, found, found.trials[outcome.number])
        return outcome

    def contender(self, genome: Genome, splits: Splits | None = None) -> Contender:
        """One genotype of the supernet as a row of the comparison."""
        parameters = self.space.count(self.space.decode(genome))
        return Contender(parameters, {**self.values(genome), **(splits or {})}, genome=genome)

    def controls(self, *, budget: int | None, min_budget: int, picked: bool = False) -> dict[str, Contender]:
        """The controls that cost no training, chosen as the winner was; none where the settings want none."""
        settings, seed = self.settings, self.session.experiment.seed
        wanted = self.plan.extent.controls
        if not wanted:
            return {}
        sizes = random_genomes(self.space, wanted, budget=budget, min_budget=min_budget, seed=seed)
        if any(genome not in self.values for genome in sizes):
            self.session.reporter.say(f"Controls: {len(sizes):,} random genotypes and the largest")
            self._measure_all(sizes)
        rescore = 0 if picked else self.plan.extent.rescore
        return controls(self.space, self.values, sizes, fitness=settings.fitness, rescore=rescore)

    def _measure_all(self, genomes: Collection[Genome]) -> None:
        """Every genotype is measured; from time to time it is told how many."""
        told = time.monotonic()
        for number, genome in enumerate(genomes, start=1):
            self.values(genome)
            if time.monotonic() - told >= TELL_EVERY and number < len(genomes):
                self.session.reporter.say(f"Controls: {number:,} of {len(genomes):,} are measured")
                told = time.monotonic()

    @cached_property
    def finished(self) -> SearchResult:
        """The finished search, from its journal alone; nothing is scored and nothing written.

        Raises:
            RunError: It is not finished.
        """
        return self._search(None, None)

    def current(self) -> Outcome:
        """The winner in the folder, which this finished search has found and the settings ask for.

        Raises:
            RunError: The search is not finished, or the winner is another search's or polished in another way.
        """
        folder = self.session.folder
        outcome, remedy = Outcome.read(folder.winner), f"Run `glora search {folder.path}` first."
        if outcome.polish != self.polish:
            raise RunError(
                f"The adapter in {folder.path} was polished with {outcome.polish}, and the settings say {self.polish}.",
                remedy=remedy,
            )
        theirs = [trial.genome for trial in self.finished.trials if trial.number == outcome.number]
        if theirs != [outcome.genome] or outcome.weights != self.weights:
            raise RunError(f"{folder.winner} is of another search than {folder.journal}.", remedy=remedy)
        return outcome

    def _spread(self, link: Link | None) -> Any:
        """What scores: this process, or all of the run."""
        return self.scorer if link is None or link.size == 1 else RankPool(self.scorer, link, self.settings.limit)

    def _search(self, score: Any, report: Any, *, workers: int = 0) -> SearchResult:
        settings, session = self.settings, self.session
        racing = Racing(len(session.data.val), level=settings.racing_level, first=settings.racing_first)
        if workers and session.accelerator.num_processes > 1:
            raise RunError(
                "Search workers are started by one process, not by several.",
                remedy=f"Leave search.workers at 0: the {session.accelerator.num_processes} processes score together.",
            )
        return search(
            recipe_of(session, self.tuned, self.parts) if workers else score,
            self.space,
            searcher=self.plan.searcher,
            settings=self.plan.settings,
            budget=self.plan.budget,
            min_budget=self.plan.min_budget,
            seed=session.experiment.seed,
            racing=racing if self.plan.extent.racing else None,
            workers=workers,
            cluster=settings.cluster if workers else None,
            limit=settings.limit,
            most=self.plan.extent.most,
            journal=session.folder.journal,
            context=self.context,
            on_trial=report,
        )

    def _measured(self, genome: Genome) -> Splits:
        genotype = self.space.decode(genome)
        found = {"val": self.scorer.evaluation(genotype)}
        if len(self.session.data.aside):
            found["aside"] = self.scorer.on(Part(self.final, self.session.data.aside), genotype)
        return found

    def _chosen(self, found: SearchResult) -> tuple[Trial, int]:
        """The winner, and how many of the best were scored again to find it."""
        aside = self.session.data.aside
        if not (self.plan.extent.rescore and len(aside)):
            return found.best, 0
        finished = [trial for trial in found.trials if trial.seen == 1]  # none that has left a race
        best = sorted(finished, key=lambda trial: trial.rank)[: self.plan.extent.rescore]
        self.session.reporter.say(f"The best {len(best)} once more, on {len(aside):,} {aside.unit} set aside")
        by_genome = {trial.genome: trial for trial in best}
        sizes = {genome: trial.parameters for genome, trial in by_genome.items()}
        return by_genome[best_again(sizes, self.values, fitness=self.settings.fitness)], len(best)

    def _outcome(self, winner: Trial, budget: int | None, min_budget: int, **facts: Any) -> Outcome:
        rows = self.space.cells(winner.genotype)
        numbers = {name: {column: cell.numbers for column, cell in row.items()} for name, row in rows.items()}
        sites: dict[str, dict[str, Any]] = {}
        for name, row in rows.items():
            cells = {column: cell.choice for column, cell in row.items()}
            sites[name] = {**cells, "numbers": sum(numbers[name].values())}
        return Outcome(
            number=winner.number,
            genome=winner.genome,
            weights=self.weights,
            polish=self.polish,
            parameters=winner.parameters,
            sites=sites,
            row=self.space.looks.row,
            columns=dict(self.space.looks.columns),
            numbers=numbers,
            fitness=self.settings.fitness,
            metrics_info=self._metrics,
            unit=self.session.data.val.unit,
            score=winner.score.value,
            standard_error=winner.score.standard_error,
            budget=budget,
            min_budget=min_budget,
            **facts,
        )

    def _keep(self, outcome: Outcome, found: SearchResult, winner: Trial) -> None:
        """The winner's adapter and the outcome are in the folder, and the pictures where they can be drawn."""
        session, folder = self.session, self.session.folder
        folder.archive_result()
        if self.polish:  # the adapter of this run is the polished one
            folder.adapter.unlink(missing_ok=True)
        else:
            self.put_finished()
            self.tuned.activate(winner.genotype)
            info = {**session.info, "winner": outcome.key, "metrics": plain_json(outcome.rows.get("winner", {}))}
            info |= {"final": "all"} if self.again else {}
            self.tuned.save_winner(folder.adapter, info, base_fingerprint=session.base_fingerprint)
        outcome.write(folder.winner)
        folder.mark("searched", winner=outcome.key)
        for line in outcome.verdict:
            session.reporter.say(line)
        self._pictures(outcome, found, winner)

    def put_finished(self) -> None:
        """The model has the numbers of the finished run: with `final: all` those of train and val, calibrated alike."""
        session = self.session
        if not self.again:
            self.final.put()
            return
        self.tuned.load(session.folder.final.trained_file(), base_fingerprint=session.base_fingerprint)
        apply_calibration(self.tuned, self.calibration)

    def _pictures(self, outcome: Outcome, found: SearchResult, winner: Trial) -> None:
        try:
            self._draw(outcome, found.trials, found.front, winner)
        except MissingExtraError as error:  # the search is done; its pictures can be had later
            self.session.reporter.say(f"No pictures: {error}")

    def _draw(self, outcome: Outcome, trials: Sequence[Trial], front: Sequence[Trial], winner: Trial) -> None:
        folder = self.session.folder.plots
        facts: dict[str, Any] = {"budget": outcome.budget, "controls": outcome.rows, "unit": outcome.unit}
        facts |= {"fitness": outcome.fitness, "metrics_info": self._metrics}
        plots.search_plot(trials, front, winner, folder / "search.svg", **facts)
        plots.layer_plot(winner.genotype, self.space, folder / "layers.svg")
        plots.parameters_plot(winner.genotype, self.space, folder / "parameters.svg")
