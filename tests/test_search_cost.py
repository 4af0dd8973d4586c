"""What a search costs is told beforehand; by default it costs a tenth of the training, and it can be resumed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glora import Racing, Score
from glora.config import load_experiment
from glora.files import read_jsonl
from glora.runs.cost import Work, extent_of, planned, search_cost
from glora.runs.reporter import plan
from glora.runs.resolve import Extent, resolve
from glora.runs.scoring import recipe_of
from glora.runs.stages.search import Search
from glora.searchers import new_searcher, search
from glora.searchers.table import SEARCHERS, build_settings
from glora.tasks.calibration import GENOTYPES, STRENGTHS
from suites.language_runs import language_run
from suites.searcher_suite import toy_score, toy_space

pytest.importorskip("transformers")

SMALL = ("search.searcher.population=4", "search.searcher.generations=1", "search.controls=2", "search.share=any")


class Plain(list[int]):
    """So many examples without lengths."""

    def __init__(self, n: int) -> None:
        super().__init__(range(n))


def toy() -> Any:
    """A space of many genotypes."""
    return toy_space(6)


score = toy_score(toy_space(6))


@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("most", [1, 7, 60, 500])
def test_no_searcher_scores_more_than_it_may(searcher: str, most: int) -> None:
    settings = build_settings(searcher, None).shaped(most)
    found = search(score, toy(), searcher=searcher, settings=settings, most=most)
    assert len(found.trials) == min(most, settings.candidates)
    again = search(score, toy(), searcher=searcher, settings=settings, most=most)
    assert [trial.genome for trial in again.trials] == [trial.genome for trial in found.trials]


@pytest.mark.parametrize("searcher", ["evolution", "nsga2"])
def test_a_short_search_still_has_several_generations(searcher: str) -> None:
    settings: Any = build_settings(searcher, None)
    assert settings.shaped(5000) == settings
    few = settings.shaped(40)
    assert few.population == 8 and few.candidates >= 40
    found = search(score, toy(), searcher=searcher, settings=few, most=40)
    assert {trial.generation for trial in found.trials} == set(range(5))
    assert settings.shaped(2).population == 1


def test_a_search_with_a_limit_goes_on_from_its_journal_and_refuses_another_limit(tmp_path: Path) -> None:
    from glora.errors import RunError

    path, calls = tmp_path / "search.jsonl", []

    def counted(genotype: Any) -> float:
        calls.append(genotype)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return score(genotype)

    settings: Any = build_settings("evolution", None).shaped(30)
    options: dict[str, Any] = {"settings": settings, "most": 30, "journal": path}
    with pytest.raises(KeyboardInterrupt):
        search(counted, toy(), **options)
    found = search(counted, toy(), **options)
    assert len(calls) == 31 and [t.genome for t in found.trials] == [
        t.genome for t in search(score, toy(), settings=settings, most=30).trials
    ]
    with pytest.raises(RunError):
        search(score, toy(), settings=settings, most=31, journal=path)


def test_a_race_spends_what_it_saves_on_more_genotypes() -> None:
    def values(genotype: Any, indices: Any) -> list[float]:
        return [score(genotype) + (index % 3) for index in indices]

    settings: Any = build_settings("evolution", None).shaped(60)
    found = search(values, toy(), settings=settings, most=60, racing=Racing(200))
    spent = math.fsum(trial.seen for trial in found.trials)
    assert spent <= 60 < len(found.trials)


@pytest.mark.parametrize(
    ("given", "share"), [((), 0.1), (("search.share=auto",), 0.5), (("search.searcher.population=60",), 0.5)]
)
def test_a_search_on_texts_costs_at_most_its_share_of_the_training(
    tmp_path: Path, given: tuple[str, ...], share: float
) -> None:
    run, _ = language_run(tmp_path, "run", "train.epochs=60", *given, rows=130)
    data, experiment, space = run.session.data, run.experiment, run.tuned.space
    chosen = planned(experiment, data, space)  # type: ignore[arg-type]
    cost, told = search_cost(chosen, experiment, data)
    tokens = sum(data.train.lengths)  # type: ignore[attr-defined]
    assert cost.training.size == pytest.approx(3 * 60 * tokens)
    assert cost.training.examples == pytest.approx(3 * 60 * len(data.train))
    assert 0.6 * share < cost.share <= share and chosen.full_scores < experiment.search.searcher.candidates  # type: ignore[attr-defined]
    assert any(f"search.share={share} lets it score" in line for line in told)
    lines = plan(experiment, run.task, data, run.session.backbone, run.tuned)
    assert lines[-len(told) :] == told and f"{cost.work.tokens:,.0f} tokens" in told[0]
    more = planned(experiment.with_(search={**experiment.search.model_dump(), "share": 2.0}), data, space)  # type: ignore[arg-type]
    assert more.full_scores > 2 * chosen.full_scores


def test_any_share_leaves_the_search_as_it_is_and_the_explicit_controls_stay(tmp_path: Path) -> None:
    run, _ = language_run(tmp_path, "run")
    data, search_settings = run.session.data, run.experiment.search.model_dump()
    free = run.experiment.with_(search={**search_settings, "share": "any"})
    assert extent_of(free, data) == Extent(None, GENOTYPES, 10, 50, True)
    asked = run.experiment.with_(search={**search_settings, "controls": 9})
    assert extent_of(asked, data).controls == 9
    assert extent_of(asked, data).most == extent_of(run.experiment, data).most  # they may change after the search


def test_a_calibration_takes_half_of_a_limited_search_at_most_and_is_left_out_where_that_is_too_little(
    tmp_path: Path,
) -> None:
    def genotypes(epochs: int) -> int:
        run, _ = language_run(tmp_path, str(epochs), "data.aside=0", "search.rescore=0", f"train.epochs={epochs}")
        data = run.session.data
        assert len(data.val) == 40
        extent = extent_of(run.experiment, data)
        cost, lines = search_cost(planned(run.experiment, data, run.tuned.space), run.experiment, data)  # type: ignore
        assert cost.calibration.examples == extent.calibrate * len(STRENGTHS) * 40
        assert cost.calibration.size <= cost.work.size / 2
        assert any("no calibration" in line for line in lines) is not bool(extent.calibrate)
        return extent.calibrate

    found = [genotypes(epochs) for epochs in (1, 60, 300)]
    assert found[0] == 0 and found[-1] == GENOTYPES and found == sorted(found)


def test_work_counts_examples_where_they_have_no_lengths() -> None:
    assert Work.sum([Work(3, 10.0), Work(2, 5.0)]) == Work(5, 15)
    assert Work.sum([Work(3), Work(2, 5.0)]) == Work(5, None)
    assert Work(3).times(2).size == 6 and "tokens" not in Work(3).text("images")


@pytest.mark.parametrize(
    ("given", "limited", "racing"),
    [
        ((), True, True),
        (("search.searcher=random",), True, True),
        (("search.searcher=nsga2",), True, False),  # none may leave a race
        (("objective=regress", "search.fitness=r2"), True, False),  # no mean over examples
        (("search.searcher.generations=3",), False, False),  # as many as were asked for, in full
        (("search.searcher.generations=3", "search.racing=true", "search.share=0.2"), True, True),
        (("preset=paper",), False, False),
    ],
)
def test_a_search_of_no_given_size_is_a_tenth_of_the_training_and_races_where_it_can(
    tmp_path: Path, given: tuple[str, ...], limited: bool, racing: bool
) -> None:
    run, _ = language_run(tmp_path, "run")
    asked = resolve(load_experiment(None, ["data.source=digits", *given]))
    photos = replace(run.session.data, train=Plain(800), val=Plain(100), aside=Plain(100))  # type: ignore[arg-type]
    extent = extent_of(asked, photos)
    assert (extent.most is not None, extent.racing) == (limited, racing)


def test_a_share_is_a_number_above_zero() -> None:
    with pytest.raises(Exception, match="share"):
        load_experiment(None, ["data.source=digits", "search.share=0"])
    assert new_searcher(toy(), searcher="evolution", budget=None, min_budget=0, seed=0, settings=None).ask()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is searched in this process."""
    folder = tmp_path_factory.mktemp("searched")
    language_run(folder, "here", *SMALL)[0].fit()
    return folder


def scores(run: Path) -> list[float]:
    return [line["value"] for line in read_jsonl(run / "search.jsonl") if "value" in line]


def test_a_run_searches_as_much_as_it_said(tmp_path: Path) -> None:
    run, said = language_run(tmp_path, "run", "train.epochs=8", "search.searcher.population=50")
    result = run.fit()
    assert result is not None
    limit = next(int(found[1]) for line in said.lines if (found := re.search(r"lets it score (\d+) of", line)))
    assert len(said.trials) == limit
    assert result.controls.keys() == {"base", "random_mean", "random_best", "largest"}
    assert sum("The search costs" in line for line in said.lines) == 1


@pytest.mark.slow
def test_a_worker_scores_texts_as_the_run_itself(searched: Path) -> None:
    run, said = language_run(searched, "workers", *SMALL, "search.workers=1")
    run.fit()
    here, _ = language_run(searched, "here", *SMALL)
    own = Search(here.session, here.tuned).finished
    assert [trial.genome for trial in said.trials] == [trial.genome for trial in own.trials]
    assert [trial.score.value for trial in said.trials] == pytest.approx([t.score.value for t in own.trials], rel=1e-5)


def test_a_race_that_sees_every_row_has_the_score_of_the_full_evaluation(searched: Path) -> None:
    run, _ = language_run(searched, "here", *SMALL)
    stage = Search(run.session, run.tuned)
    genotype = stage.finished.best.genotype
    full: Any = stage.scorer(genotype)
    n = len(run.session.data.val)
    order = [*range(1, n, 2), *range(0, n, 2)]  # in pieces, as a race asks for them
    pieces: Any = [stage.scorer(genotype, order[start : start + 7]) for start in range(0, n, 7)]
    rows = [value for piece in pieces for value in piece]
    assert isinstance(full, Score) and math.fsum(rows) / n == pytest.approx(full.value, rel=1e-5)
    weights = run.session.data.val.weights  # type: ignore[attr-defined]
    assert len(set(weights.tolist())) > 1  # else a plain mean would do as well


def test_the_values_of_a_search_read_again_are_those_measured(searched: Path) -> None:
    stages = [Search(run.session, run.tuned) for run, _ in (language_run(searched, "here", *SMALL) for _ in range(2))]
    genome = stages[0].finished.best.genome
    read, measured = stages[0].values(genome), stages[1].values.measure(genome)
    assert genome in stages[0].values and read.keys() == measured.keys() == {"val", "aside"}
    for split, found in read.items():
        assert found.metrics(split) == pytest.approx(measured[split].metrics(split), rel=1e-5)


def test_a_result_tells_more_than_the_loss_beside_base_random_and_largest(searched: Path) -> None:
    from rich.console import Console

    from glora.report.outcome import Outcome
    from glora.report.tables import comparison_table

    run, _ = language_run(searched, "here", *SMALL)
    result = run.evaluate()
    assert result is not None and result.controls["base"]["parameters"] == 0
    table = comparison_table(result.rows, result.metrics_info)
    titles = [str(column.header) for column in table.columns]
    assert titles == ["", "trainable", "val loss", "set-aside loss", "test loss", "test perplexity", titles[-1]]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table)
    assert all(name in shown.get() for name in ("base", "mean of 2 random", "largest subnet"))
    verdict = Outcome.read(run.folder.winner).verdict
    assert any("the base on the" in line for line in verdict)


def test_a_recipe_pickles_and_scores_alike(searched: Path) -> None:
    import pickle

    run, _ = language_run(searched, "here", *SMALL)
    stage = Search(run.session, run.tuned)
    genotype = stage.finished.best.genotype
    recipe = pickle.loads(pickle.dumps(recipe_of(run.session, run.tuned, stage.parts)))
    assert recipe.build()(genotype).value == pytest.approx(stage.scorer(genotype).value, rel=1e-6)  # type: ignore[union-attr]
