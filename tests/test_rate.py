"""`train.lr: auto`: the ladder and its cost, what is chosen, that a kill changes nothing, and every method alike."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glora.config import build_experiment
from glora.errors import RunError
from glora.files import read_jsonl
from glora.runs import resolve as resolving
from glora.runs.ladder import (
    Ladder,
    best_rate,
    further,
    kept,
    ladder_of,
    smoothed,
    surely_lower,
    survivors,
    training_of,
)
from glora.runs.loaded import load_run
from glora.runs.resolve import resolve
from glora.runs.run import Run
from suites.toy import Recorder, image_folder, tiny
from suites.training import equal, values

TESTS = Path(__file__).parent
AUTO: dict[str, Any] = {"train": {"lr": "auto", "epochs": 6}}


def ladder(n: int = 800, **train: Any) -> Ladder:
    """The ladder of a run with so many training examples."""
    settings = build_experiment({"data": {"source": "digits"}, "method": "lora", "train": {"lr": "auto", **train}})
    data: Any = SimpleNamespace(train=range(n), folds=())
    found = ladder_of(settings, data)
    assert found is not None
    assert training_of(settings, data).epochs == found.left
    return found


# -- the ladder


def test_the_tries_take_a_share_of_the_passes_and_leave_the_rest() -> None:
    found = ladder(epochs=30)
    assert [rung.rates for rung in found.rungs] == [6, 3]
    first, second = (rung.examples * rung.epochs for rung in found.rungs)
    assert second == pytest.approx(3 * first, rel=0.01)
    assert found.passes >= 0.98 * 30 * 800 / 3
    assert found.passes <= 30 * 800 / 3
    assert found.passes + found.left * 800 <= 30 * 800
    assert found.left >= 20
    assert found.own in found.rates
    assert found.rates[0] == pytest.approx(found.own * 10**-2, rel=0.01)
    assert found.rates[-1] == pytest.approx(found.own * 10**0.5, rel=0.01)


def test_a_short_training_keeps_half_of_its_epochs_and_a_try_has_some_steps() -> None:
    found = ladder(epochs=1)
    assert found.left == 1
    [rung] = found.rungs
    assert rung.examples == 4 * 32, "the same again would tell nothing new"
    assert f"{found.passes:,} passes" in found.text.replace("\n", " ")


def test_beyond_an_end_of_the_ladder_some_more_are_tried_while_the_best_is_there() -> None:
    found = ladder(epochs=30)
    losses: dict[float, float | None] = {rate: 9.0 - place for place, rate in enumerate(found.rates)}
    first = further(losses, found)
    assert first == pytest.approx(found.own * 10, rel=0.01)
    assert further({**losses, first: 0.5}, found) is None, "no more than one"
    assert further({**losses, first: 9.0}, found) is None, "the best is inside"
    falling: dict[float, float | None] = {rate: 1.0 + place for place, rate in enumerate(found.rates)}
    assert further(falling, found) == pytest.approx(found.own * 10**-2.5, rel=0.01)
    assert further(dict.fromkeys(found.rates), found) is None


def test_a_given_rate_has_no_ladder() -> None:
    settings = build_experiment({"data": {"source": "digits"}, "train": {"lr": 1e-3}})
    data: Any = SimpleNamespace(train=range(9), folds=())
    assert ladder_of(settings, data) is None
    assert training_of(settings, data) == settings.train


def test_a_lucky_rate_among_bad_ones_is_not_chosen() -> None:
    losses = {1e-4: 0.50, 3e-4: 0.42, 1e-3: 0.45, 3e-3: 2.0, 1e-2: 0.40, 3e-2: 2.0}
    assert survivors(losses, 1) == [3e-4]
    assert 1e-2 not in survivors(losses, 3)
    assert smoothed(losses)[3e-4] == pytest.approx((0.50 + 2 * 0.42 + 0.45) / 4)
    assert smoothed(losses)[1e-4] == pytest.approx((2 * 0.50 + 0.42) / 3)


def test_a_lost_training_counts_as_worse_than_all_others() -> None:
    losses = {1e-3: 0.5, 1e-2: 0.6, 1e-1: None}
    assert survivors(losses, 1) == [1e-3]
    assert smoothed(losses)[1e-1] == pytest.approx((2 * 1.2 + 0.6) / 3)


def test_the_methods_own_rate_stays_where_no_other_is_better_for_certain() -> None:
    found = ladder(epochs=30)
    own = found.own

    def chosen(*rates: float, better: bool = True) -> float | None:
        losses: dict[float, float | None] = {rate: 0.5 + place for place, rate in enumerate(rates)}
        return best_rate(losses, found, lambda rate: better)

    assert chosen(own / 10, own) == own / 10
    assert chosen(own * 3, own) == own * 3
    assert chosen(own, own / 10) == own
    assert chosen(own / 10, own, better=False) == own
    assert best_rate({own: None, own / 10: 0.5}, found, lambda rate: False) == own / 10, "its own was lost"
    assert best_rate({own: None}, found, lambda rate: True) is None


def test_what_is_lower_for_certain_is_so_on_the_same_examples() -> None:
    one, other = [0.9, 2.0, 0.1, 1.0], [1.0, 2.1, 0.2, 1.1]
    assert surely_lower(one, other) and not surely_lower(other, one) and not surely_lower(one, one)
    assert not surely_lower([0.0, 2.0, 1.0], [2.0, 0.5, 1.0]), "the mean is lower, by one example"


def test_the_methods_own_rate_is_tried_once_more_with_the_best() -> None:
    losses: dict[float, float | None] = {1e-5: 0.1, 1e-4: 0.2, 3e-4: 0.4, 1e-3: 9.0, 3e-3: 9.0}
    assert kept(losses, 3, 1e-3) == [1e-5, 1e-4, 1e-3]
    assert kept(losses, 3, 1e-4) == [1e-5, 1e-4, 3e-4]


def test_what_a_run_without_a_rate_takes_is_one_line(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    assert resolve(tiny(photos)).train.lr == 1e-3
    monkeypatch.setattr(resolving, "WITHOUT_RATE", "auto")
    assert resolve(tiny(photos)).train.lr == "auto"
    assert resolve(tiny(photos, train={"lr": 0.1})).train.lr == 0.1
    assert resolve(tiny(photos, preset="paper")).train.lr == 1e-3


# -- whole runs


@pytest.fixture(scope="module", params=["glora", "lora", "linear"])
def chosen(
    request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Any, Any]:
    """A finished run that chose its rate, its result and what was told."""
    run = Run(
        tiny(photos, method=request.param, **AUTO), tmp_path_factory.mktemp("auto") / "run", reporter := Recorder()
    )
    return run, run.fit(), reporter


def test_the_choice_its_cost_and_its_reason_are_told(chosen: tuple[Run, Any, Any]) -> None:
    run, result, reporter = chosen
    facts = run.folder.done("lr")
    assert facts is not None
    tries = read_jsonl(run.folder.rates)[1:]
    assert 5 <= len(tries) <= 9
    assert result.example_steps["rate"] == facts["example_steps"] == sum(each["example_steps"] for each in tries)
    plan = ladder_of(run.experiment, run.session.data)
    assert plan is not None
    assert result.example_steps["train"] == plan.left * len(run.session.data.train)
    assert result.example_steps["rate"] <= plan.passes
    assert "seconds" in facts and result.seconds["rate"] > 0
    assert facts["why"] in result.notes
    before = reporter.lines.index(plan.text)
    assert before < next(place for place, line in enumerate(reporter.lines) if line.startswith("Learning rate "))
    assert result.config["train"]["lr"] == "auto"
    assert not run.folder.tries.exists()


def test_the_training_is_that_of_the_chosen_rate(chosen: tuple[Run, Any, Any], photos: Path, tmp_path: Path) -> None:
    run, result, _ = chosen
    plan = ladder_of(run.experiment, run.session.data)
    assert plan is not None
    train = {"lr": run.session.lr, "epochs": plan.left}
    other = Run(tiny(photos, method=result.method, train=train), tmp_path / "other", Recorder())
    other.train()
    assert equal(values(other.tuned), values(_trained(run).tuned))


def _trained(run: Run) -> Run:
    again = Run.open(run.folder.path, Recorder())
    again.train()
    return again


def test_the_same_command_again_chooses_nothing(chosen: tuple[Run, Any, Any]) -> None:
    run, result, _ = chosen
    again = Run(run.experiment, run.folder.path, reporter := Recorder())
    assert again.fit() == result
    assert not reporter.steps
    assert load_run(run.folder.path).experiment.train.lr == "auto"


def test_a_rate_that_loses_the_training_is_survived_and_all_that_do_are_an_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glora.runs.ladder.STEPS", (2, 40, 42))
    run = Run(tiny(photos, method="lora", **AUTO), tmp_path / "run", Recorder())
    run.train()
    losses = {each["rate"]: each["loss"] for each in read_jsonl(run.folder.rates)[1:]}
    assert losses[max(losses)] is None
    assert losses[min(losses)] is not None
    monkeypatch.setattr("glora.runs.ladder.STEPS", (40, 42))
    with pytest.raises(RunError, match="Every learning rate"):
        Run(tiny(photos, method="lora", **AUTO), tmp_path / "lost", Recorder()).train()


VICTIM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from suites.toy import tiny, Recorder
from glora.runs.run import Run
torch.set_num_threads(1)

class Counting(Recorder):
    def training(self, progress):
        self.kill_step = -1 if len(self.steps) == int(sys.argv[4]) else None
        super().training(progress)

auto = {"train": {"lr": "auto", "epochs": 6}}
Run(tiny(Path(sys.argv[2]), method="glora", **auto), sys.argv[3], Counting()).fit()
"""


@pytest.mark.parametrize("steps", [9, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (3, 15))])
def test_killed_anywhere_it_goes_on_to_the_same_choice(photos: Path, tmp_path: Path, steps: int) -> None:
    words = [sys.executable, "-c", VICTIM, str(TESTS), str(photos), str(tmp_path / "run"), str(steps)]
    killed = subprocess.run(words, check=False, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    settings = tiny(photos, method="glora", **AUTO)
    run = Run(settings, tmp_path / "run", Recorder())
    whole = Run(settings, tmp_path / "whole", Recorder())
    run.train()
    whole.train()
    tries = [
        [(each["rung"], each["rate"], each["loss"], each["example_steps"]) for each in read_jsonl(folder.rates)[1:]]
        for folder in (run.folder, whole.folder)
    ]
    assert tries[0] == tries[1]
    assert run.session.lr == whole.session.lr
    assert run.folder.supernet.read_bytes() == whole.folder.supernet.read_bytes()


def test_tries_on_other_images_are_forgotten(tmp_path: Path) -> None:
    class Stops(Recorder):
        def training(self, progress: Any) -> None:
            super().training(progress)
            if list((tmp_path / "run" / "tries").glob("*/training.safetensors")):
                raise KeyboardInterrupt

    photos = image_folder(tmp_path / "photos")
    settings = tiny(photos, method="lora", train={"lr": "auto", "lr_share": 0.5, "epochs": 40})
    with pytest.raises(KeyboardInterrupt):
        Run(settings, tmp_path / "run", Stops()).train()
    assert (tmp_path / "run" / "tries").is_dir()
    for number in range(10):
        shutil.copy(photos / "light" / f"{number}.png", photos / "dark" / f"{number}.png")
    runs = [Run(settings, tmp_path / name, Recorder()) for name in ("run", "fresh")]
    for each in runs:
        each.train()
    lines = [[(row["rung"], row["rate"], row["loss"]) for row in read_jsonl(each.folder.rates)[1:]] for each in runs]
    assert lines[0] == lines[1]


def test_with_folds_val_of_the_first_judges(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, data={"folds": 2}, **AUTO), tmp_path / "run", Recorder())
    run.train()
    [first, *_] = read_jsonl(run.folder.rates)[1:]
    assert first["loss"] is not None
    assert len(run.session.data.training(0)) < len(run.session.data.train)


def test_a_polish_takes_its_share_of_the_chosen_rate(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, search={"polish": 1}, **AUTO), tmp_path / "run", Recorder())
    run.train()
    outcome = run.search()
    assert outcome is not None and outcome.polish is not None
    assert outcome.polish["lr"] == pytest.approx(run.session.lr / 3)
