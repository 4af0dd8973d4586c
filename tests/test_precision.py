"""`train.precision: auto`: which devices have bf16 units, what a timing decides, and that a resumed run keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from glora.runs.folder import RunFolder
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.training import precision
from glora.training.precision import Step, bf16_units, chosen_precision, slowdown
from suites.toy import Recorder, tiny
from suites.training import CLASSES, adapted, equal, toy_images, values

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def open_precision() -> Iterator[None]:
    """A process has one precision; here every test has its own."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def units(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx512_bf16": there, "avx2": True})


@pytest.mark.parametrize(
    ("flags", "has"),
    [({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"amx_bf16": False}, False)],
)
def test_a_processor_has_units_where_it_says_so(
    flags: dict[str, bool], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    assert bf16_units(CPU) == has
    assert not bf16_units(torch.device("meta"))


@pytest.mark.parametrize(("took", "chosen"), [(0.5, "bf16"), (0.97, "no"), (3.0, "no")])
def test_a_clear_gain_in_time_chooses_bf16(took: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    units(monkeypatch, there=True)
    found = chosen_precision({"no": 1.0, "bf16": took}.__getitem__, CPU)
    assert found.precision == chosen
    assert f"takes {took:.2f} times" in found.why


def test_without_units_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    units(monkeypatch, there=False)
    found = chosen_precision(lambda each: pytest.fail(f"{each} is timed"), CPU)
    assert found.precision == "no"
    assert "no units" in found.why


def test_what_the_process_computes_in_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    units(monkeypatch, there=True)
    Accelerator(mixed_precision="no")
    assert chosen_precision({"no": 1.0, "bf16": 0.1}.__getitem__, CPU).precision == "no"


def test_a_timed_step_changes_nothing(vit) -> None:
    tuned = adapted(vit())
    before, genotype, random = values(tuned), tuned.adapted.active, torch.get_rng_state()
    step = Step(tuned, toy_images(), CLASSES, tiny(Path()).train, CPU)
    assert step.seconds("no") > 0
    assert step.seconds("bf16", most=2) > 0
    assert equal(before, values(tuned))
    assert tuned.adapted.active == genotype
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in tuned.parameters())


def test_a_run_keeps_its_choice_in_its_folder_and_goes_on_with_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units(monkeypatch, there=True)
    monkeypatch.setattr(Step, "seconds", lambda self, each, **_: {"no": 1.0, "bf16": 0.5}[each])
    settings = tiny(photos, method="lora", train={"precision": "auto"})
    run = Run(settings, tmp_path / "run", reporter := Recorder())
    run.train()
    assert any("bfloat16; a step in bfloat16 takes 0.50 times" in line for line in reporter.lines)
    assert run.folder.precision == "bf16"
    assert RunFolder(tmp_path / "run").experiment().train.precision == "auto"
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(Step, "seconds", lambda *_, **__: pytest.fail("it is timed again"))
    again = Run(settings, tmp_path / "run", Recorder())
    assert again.session.accelerator.mixed_precision == "bf16"
    result = again.fit()
    assert result is not None
    assert any("bfloat16" in note for note in result.notes)
    assert load_run(tmp_path / "run").predict(photos / "dark" / "0.png")


def test_an_explicit_bf16_without_units_says_how_slow_it_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units(monkeypatch, there=False)
    run = Run(tiny(photos, method="lora", train={"precision": "bf16"}), tmp_path / "run", reporter := Recorder())
    run.train()
    [line] = [line for line in reporter.lines if "no units for bfloat16" in line]
    assert "times as long as in float32" in line
    assert run.session.accelerator.mixed_precision == "bf16"


def test_the_slowdown_is_measured() -> None:
    assert "takes 100 times as long" in slowdown({"no": 0.1, "bf16": 10.0}.__getitem__)
