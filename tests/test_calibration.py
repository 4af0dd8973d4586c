"""Calibration: what it multiplies, what it chooses by, and that a search, its resume and its winner keep to it."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from torch import nn

import glora
from glora.adapt import attach
from glora.config import build_experiment
from glora.errors import RunError
from glora.genotype import LayerConfig
from glora.methods.glora import TunedAdapter
from glora.methods.method import Tuned
from glora.report.outcome import Outcome
from glora.runs.calibration import apply_calibration, calibrate_alone, load_calibrated, temperatures
from glora.runs.comparison import random_genomes
from glora.runs.folder import RunFolder
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.runs.session import Session
from glora.space import SearchSpace
from glora.tasks.calibration import (
    FEWEST,
    GENOTYPES,
    STRENGTHS,
    TEMPERATURES,
    Calibration,
    Outputs,
    choose_calibration,
    is_flawless,
    lowest_loss,
)
from glora.tasks.evaluation import Evaluator
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objective import Batch, Examples
from glora.tasks.objectives.classify import Classify
from glora.tasks.task import load_task
from glora.training.device import new_accelerator
from suites.toy import Recorder, tiny

FEW = {"rescore": 2, "controls": 2}
SPACES = [SearchSpace(), SearchSpace(product="elementwise"), SearchSpace.paper()]


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """The toys have few images, and all of them are right."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("glora.tasks.calibration.FEWEST", 1)
        patched.setattr("glora.tasks.calibration.is_flawless", lambda *_: False)
        yield


@pytest.fixture
def toys(photos: Path) -> ImageSet:
    """Some of them as the tiny transformer takes them."""
    size = Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")
    return load_task(str(photos), seed=0).val.prepared(size)


def moved(adapted: glora.Adapted, seed: int = 0) -> None:
    """Numbers as after a training: none is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number in adapted.parameters():
            number.add_(0.1 * torch.randn(number.shape, generator=generator))


@pytest.mark.parametrize("space", SPACES, ids=["matrix", "elementwise", "paper"])
@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_the_strength_multiplies_all_that_a_genotype_changes(
    space: SearchSpace, strength: float, vit: Callable[..., nn.Module], images: torch.Tensor
) -> None:
    adapted = glora.inject(vit(), space, targets="linear", example=images)
    moved(adapted)
    sites = {name: adapted.model.get_submodule(name) for name in adapted.sites}
    genotypes = [adapted.space.largest, adapted.sample(random.Random(1))]

    def changes() -> list[torch.Tensor]:
        found = []
        for genotype in genotypes:
            with adapted.hold(genotype):
                for layer in sites.values():
                    for now, base in zip((layer.weight, layer.bias), attach.base_of(layer), strict=True):
                        if now is not None:
                            found.append(now.detach() - (0 if base is None else base))
        return found

    before = changes()
    apply_calibration(TunedAdapter(adapted), Calibration(strength))
    for was, now in zip(before, changes(), strict=True):
        torch.testing.assert_close(now, strength * was, atol=1e-6, rtol=1e-5)
    assert any(was.any() for was in before)


def session_of() -> Session:
    """As much of a session as a calibration asks for."""
    return cast(
        Session, SimpleNamespace(objective=Classify(), evaluator=Evaluator(Classify(), new_accelerator("no"), 4))
    )


SMALL = {  # head linear, head of norm and linear, head of pooling and linear
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 1},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "depths": (1, 1, 1, 1),
        "embed_dim": 24,
        "num_heads": (1, 1, 2, 2),
        "window_size": 2,
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_the_temperature_divides_the_logits(name: str) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=3, **SMALL[name]).eval()
    adapted = glora.inject(model, SearchSpace(), targets="conv" if name == "convnext_atto" else "linear")
    moved(adapted)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), adapted.hold(adapted.space.largest):
        before = model(x)
    apply_calibration(TunedAdapter(adapted), Calibration(temperature=2.0))
    with torch.no_grad(), adapted.hold(adapted.space.largest):
        torch.testing.assert_close(model(x), before / 2, atol=1e-5, rtol=1e-4)


class TwoLinears(nn.Module):
    """Logits that two layers add up."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.one(x) + self.two(x)
        return logits


ENDS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "linear": (lambda: nn.Linear(12, 3), True),
    "norm": (lambda: nn.Sequential(nn.Linear(12, 3), nn.LayerNorm(3)), True),
    "dropout": (lambda: nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.5)), True),
    "activation": (lambda: nn.Sequential(nn.Linear(12, 3), nn.Tanh()), False),
    "bare norm": (lambda: nn.Sequential(nn.Linear(12, 3), nn.LayerNorm(3, elementwise_affine=False)), False),
    "two": (TwoLinears, False),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_logits_are_divided_where_the_end_of_the_head_can_take_it(
    end: str, vit: Callable[..., nn.Module], toys: ImageSet
) -> None:
    make, divides = ENDS[end]
    model = vit()
    model.head = make()
    adapted = glora.inject(model.eval(), SearchSpace(), targets="linear", head="head")
    moved(adapted)
    before = [number.clone() for number in adapted.parameters()]
    found = temperatures(session_of(), TunedAdapter(adapted), toys)
    assert found == (TEMPERATURES if divides else (1.0,))
    assert all(map(torch.equal, before, adapted.parameters()))


def made(logits: torch.Tensor, labels: torch.Tensor) -> Outputs:
    """Outputs of a model that there is none of."""
    return [(logits, Batch(None, labels))]


def choose(measure: Callable[[float], tuple[torch.Tensor, torch.Tensor]], **how: Any) -> Calibration:
    return choose_calibration(lambda strength: made(*measure(strength)), Classify(), **how)


def test_twice_as_sure_is_the_same_loss_at_twice_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2_000, 4, generator=generator)
    labels = torch.distributions.Categorical(logits=logits).probs.multinomial(1, generator=generator).flatten()

    def lowest(logits: torch.Tensor) -> tuple[float, float]:
        return lowest_loss(lambda t: Classify().losses(logits / t, Batch(None, labels)), TEMPERATURES)

    loss, temperature = lowest(logits)
    assert 0.8 < temperature < 1.25, "drawn from these very probabilities"
    again, hotter = lowest(2 * logits)
    assert hotter == pytest.approx(2 * temperature)
    assert again == pytest.approx(loss)


def answers(strength: float, *, best: float, images: int, genotypes: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits 10 times too sure, of which more are wrong the further the strength is from the best."""
    labels = torch.arange(images) % 2
    wrong = torch.arange(images) < images * (0.1 + abs(math.log(strength / best)) / 5)
    logits = 20 * (nn.functional.one_hot(torch.where(wrong, 1 - labels, labels), 2) - 0.5)
    return logits.repeat(genotypes, 1), labels.repeat(genotypes)


@pytest.mark.parametrize("best", STRENGTHS)
def test_the_strength_of_the_lowest_loss_is_chosen_with_its_temperature(best: float) -> None:
    found = choose(lambda strength: answers(strength, best=best, images=200), examples=200)
    assert found.strength == best
    assert found.temperature == pytest.approx(20 / math.log(9), rel=0.1), "nine of ten are right"
    assert choose(lambda s: answers(s, best=best, images=200), examples=200, temperatures=(1.0,)).temperature == 1.0


def test_of_equal_strengths_the_least_change_is_chosen_and_what_diverged_is_not() -> None:
    logits, labels = answers(1.0, best=1.0, images=200)
    assert choose(lambda strength: (logits, labels), examples=200).strength == 1.0
    broken = torch.full_like(logits, float("nan"))
    better = STRENGTHS[1]
    found = choose(lambda s: (logits / 8 if s == better else logits if s == 1 else broken, labels), examples=200)
    assert found != Calibration()
    assert choose(lambda strength: (broken, labels), examples=200) == Calibration()


@pytest.mark.parametrize("genotypes", [1, 4])
def test_a_gain_that_hangs_on_one_image_changes_nothing(genotypes: int) -> None:
    """Whatever is gained, and however many genotypes agree on it."""
    labels = torch.zeros(100, dtype=torch.long)
    logits = torch.tensor([[6.0, 0.0]]).repeat(100, 1)
    logits[0] = torch.tensor([0.0, 6.0])  # one is wrong, and surely

    def measure(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        found = logits.clone()
        found[0] *= strength / 1.5  # the less of it the better
        return found.repeat(genotypes, 1), labels.repeat(genotypes)

    assert choose(measure, examples=100) == Calibration()


def test_where_every_image_is_right_nothing_tells_how_sure_is_too_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surer is better for each of them, whatever other images would say."""
    monkeypatch.setattr("glora.tasks.calibration.is_flawless", is_flawless)
    labels = torch.arange(100) % 2
    right = nn.functional.one_hot(labels, 2).float()
    sure = torch.linspace(1, 6, 100)[:, None]
    assert choose(lambda strength: (strength * sure * right, labels), examples=100) == Calibration()
    some = torch.where(torch.arange(100)[:, None] % 4 == 0, 1 - right, right)
    found = choose(lambda strength: (strength * sure * some, labels), examples=100)
    assert found != Calibration(), "or nothing is tested"


def test_what_gains_nothing_changes_nothing() -> None:
    labels = torch.arange(60) % 2
    assert choose(lambda strength: (torch.zeros(60, 2), labels), examples=60) == Calibration()


def test_of_few_images_nothing_is_concluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glora.tasks.calibration.FEWEST", FEWEST)
    assert choose(lambda s: answers(s, best=STRENGTHS[0], images=FEWEST - 1), examples=FEWEST - 1) == Calibration()
    assert choose(lambda s: answers(s, best=STRENGTHS[0], images=FEWEST), examples=FEWEST) != Calibration()


def test_a_search_of_few_images_is_not_calibrated_and_says_so(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glora.tasks.calibration.FEWEST", FEWEST)
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    (folder / "search.jsonl").unlink()
    reporter = Recorder()
    run = Run.open(folder, reporter)
    run.search()
    assert Calibration.read(folder / "calibration.json") == Calibration()
    assert any("Calibration: none; on" in line for line in reporter.lines)
    assert not any("Calibration" in line for line in run.evaluate().notes)


def test_alone_the_numbers_are_tried_and_put_back(vit: Callable[..., nn.Module], toys: ImageSet) -> None:
    adapted = glora.inject(vit(classes=2), SearchSpace(only=LayerConfig(B="lora:4")), targets="linear")
    moved(adapted)
    session, tuned = session_of(), TunedAdapter(adapted)
    answers = [logits.argmax(1) for logits, _ in session.evaluator.outputs(adapted.model, toys)]
    toys = ImageSet(toys.items, torch.cat(answers).tolist(), preprocess=toys.preprocess)  # of which it is too unsure
    before = [number.clone() for number in adapted.parameters()]
    found = calibrate_alone(session, tuned, toys)
    assert found != Calibration(), "or nothing is tested"
    assert all(map(torch.equal, before, adapted.parameters()))
    assert found.strength in STRENGTHS
    assert found.temperature in TEMPERATURES


@pytest.fixture(scope="module")
def searched(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tiny(photos, search=FEW), tmp_path_factory.mktemp("runs") / "run", Recorder())
    run.train()
    run.search()
    return run.folder.path


def test_the_winner_plays_as_its_search_did_and_its_resume_too(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    first = Calibration.read(folder / "calibration.json")
    assert first != Calibration(), "or nothing is tested"
    (folder / "calibration.json").write_text(json.dumps({"strength": 0.25, "temperature": 3.0}))
    with pytest.raises(glora.GloraError):
        Run.open(folder, Recorder()).search()  # the journal is of another calibration
    first.write(folder / "calibration.json")
    reporter = Recorder()
    run = Run.open(folder, reporter)
    outcome = run.search()
    assert not any("Calibration" in line for line in reporter.lines), "it is chosen once"
    adapted, model = run.tuned.adapted, load_run(run.folder.path).model
    x = run.session.data.val.batch(range(2)).inputs
    with torch.no_grad(), adapted.hold(adapted.space.decode(outcome.genome)) as held:
        torch.testing.assert_close(model(x), held(x))
    told = f"adaptations times {first.strength:.2f}, logits divided by {first.temperature:.2f}"
    assert f"Calibration: {told}." in run.evaluate().notes


def test_without_calibration_nothing_is_changed(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    for name in ("search.jsonl", "calibration.json", "examples.jsonl", "winner.json", "adapter.safetensors"):
        (folder / name).unlink()
    reporter = Recorder()
    run = Run.open(folder, reporter, search={"calibrate": False})
    plain = run.search()
    assert not (folder / "calibration.json").exists()
    assert not any("Calibration" in line for line in reporter.lines)
    assert plain.weights != Outcome.read(searched / "winner.json").weights, "another model"


def test_a_search_from_before_calibration_goes_on_without(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    for name in ("search.jsonl", "calibration.json", "examples.jsonl", "winner.json", "adapter.safetensors"):
        (folder / name).unlink()
    plain = Run.open(folder, Recorder(), search={"calibrate": False}).search()
    config = (folder / "config.yaml").read_text()
    assert config.count("  calibrate: false\n") == 1
    (folder / "config.yaml").write_text(config.replace("  calibrate: false\n", ""))
    assert Run.open(folder, Recorder()).search().key == plain.key
    assert not (folder / "calibration.json").exists()


def test_a_new_search_is_calibrated_anew(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    (folder / "search.jsonl").unlink()
    (folder / "calibration.json").write_text("{")
    Run.open(folder, Recorder()).search()
    assert Calibration.read(folder / "calibration.json") == Calibration.read(searched / "calibration.json")
    assert (folder / "search.jsonl").read_text().splitlines()[0] == (
        searched / "search.jsonl"
    ).read_text().splitlines()[0]
    (folder / "calibration.json").write_text("{")
    with pytest.raises(RunError, match=r"calibration\.json cannot be read.*search anew"):
        Run.open(folder, Recorder()).search()


def test_every_strength_is_tried_on_genotypes_of_the_search(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    (folder / "search.jsonl").unlink()
    tried: dict[float, torch.Tensor] = {}

    def watched(measure: Callable[[float], Outputs], objective: Any, **how: Any) -> Calibration:
        tried.update({each: torch.cat([logits for logits, _ in measure(each)]) for each in (1.0, 0.5)})
        assert objective is run.session.objective
        assert how == {"examples": len(run.session.data.val), "temperatures": TEMPERATURES}
        return Calibration(0.5, 2.0)

    monkeypatch.setattr("glora.runs.stages.search.choose_calibration", watched)
    run = Run.open(folder, Recorder())
    budget = run.tuned.adapted.space.count(run.tuned.adapted.space.largest) // 2
    sizes: list[int] = []
    decode = run.tuned.adapted.space.decode
    run = Run.open(folder, Recorder(), search={"budget": budget})
    run.search()
    adapted = run.tuned.adapted
    genomes = random_genomes(
        adapted.space, GENOTYPES, budget=budget, min_budget=math.ceil(0.9 * budget), seed=run.experiment.seed + 1
    )
    sizes = [adapted.space.count(decode(genome)) for genome in genomes]
    assert max(sizes) <= budget
    assert len(genomes) * len(run.session.data.val) == len(tried[1.0])
    x = run.session.data.val.batch(range(len(run.session.data.val))).inputs
    for place, genome in enumerate(genomes):  # the supernet plays with 0.5 and 2.0 now
        with torch.no_grad(), adapted.hold(decode(genome)) as held:
            mine = tried[0.5][place * len(x) : (place + 1) * len(x)]
            torch.testing.assert_close(held(x), mine / 2, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tried[0.5], tried[1.0], atol=1e-3)


DAMAGED = [
    "{",
    "[]",
    "{}",
    '{"strength": 1.5}',
    '{"strength": "1.5", "temperature": 1.0}',
    '{"strength": null, "temperature": 1.0}',
    '{"strength": 1.0, "temperature": NaN}',
    '{"strength": -1.0, "temperature": 1.0}',
    '{"strength": 1.0, "temperature": 1.0, "offset": 1.0}',
]


def test_a_file_that_holds_no_two_numbers_is_refused(searched: Path, tmp_path: Path) -> None:
    for text in DAMAGED:
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(RunError, match=r"calibration\.json cannot be read.*search anew"):
            Calibration.read(tmp_path / "calibration.json")
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    (folder / "calibration.json").write_text(DAMAGED[0])
    with pytest.raises(RunError, match=r"calibration\.json cannot be read.*search anew"):
        Run.open(folder, Recorder()).search()


def test_a_search_killed_before_its_first_line_is_calibrated(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    (folder / "search.jsonl").write_text("")
    (folder / "calibration.json").unlink()
    Run.open(folder, Recorder()).search()
    assert Calibration.read(folder / "calibration.json") == Calibration.read(searched / "calibration.json")


def test_of_a_new_search_nothing_old_is_left(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    RunFolder(folder).forget_search()
    assert not {"calibration.json", "winner.json", "adapter.safetensors"} & {file.name for file in folder.iterdir()}


def test_the_published_method_is_not_calibrated(photos: Path) -> None:
    assert not build_experiment({"preset": "paper", "data": {"source": str(photos)}}).search.calibrate


@pytest.mark.slow
@pytest.mark.parametrize("folds", [1, 2])
@pytest.mark.parametrize("calibrate", [True, False])
def test_the_winner_trained_alone_is_calibrated_or_compared_by_its_accuracy(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int, calibrate: bool
) -> None:
    given: list[Examples | None] = []

    def watched(session: Session, path: Path, images: Examples | None) -> Tuned:
        given.append(images)
        return load_calibrated(session, path, images)

    monkeypatch.setattr("glora.runs.stages.polish.load_calibrated", watched)
    search = {**FEW, "controls": 0, "control": "retrain", "calibrate": calibrate}
    run = Run(tiny(photos, data={"folds": folds}, search=search), tmp_path / "run", Recorder())
    result = run.fit()
    on_val = calibrate and folds == 1
    assert all((images is not None) == on_val for images in given)
    assert not on_val or given[-1] is run.session.data.val
    (line,) = [line for line in result.verdict if "trained alone" in line]
    assert ("one of them is not calibrated" in line) == (calibrate and folds == 2)
