"""Calibration: what it multiplies, what it chooses by, and that a search, its resume and its winner keep to it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import glora
from glora import layers
from glora.calibration import STRENGTHS, TEMPERATURES, Calibration, calibrated_loss, chosen, chosen_alone
from glora.data import load_task
from glora.device import new_accelerator
from glora.errors import RunError
from glora.experiment import Run
from glora.genotype import LayerConfig
from glora.outcome import Outcome
from glora.preprocess import Preprocess
from glora.space import SearchSpace
from glora.winner import load_winner
from suites.toy import Recorder, tiny

FEW = {"rescore": 2, "controls": 2}
SPACES = [SearchSpace(), SearchSpace(product="elementwise"), SearchSpace.paper()]


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
                    for now, base in zip((layer.weight, layer.bias), layers.base_of(layer), strict=True):
                        if now is not None:
                            found.append(now.detach() - (0 if base is None else base))
        return found

    before = changes()
    Calibration(strength).apply(adapted)
    for was, now in zip(before, changes(), strict=True):
        torch.testing.assert_close(now, strength * was, atol=1e-6, rtol=1e-5)
    assert any(was.any() for was in before)


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
    Calibration(temperature=2.0).apply(adapted)
    with torch.no_grad(), adapted.hold(adapted.space.largest):
        torch.testing.assert_close(model(x), before / 2, atol=1e-5, rtol=1e-4)


def test_a_head_that_does_not_end_in_a_linear_layer_is_left_alone(vit: Callable[..., nn.Module]) -> None:
    model = vit()
    model.head = nn.Sequential(nn.Linear(12, 3), nn.LayerNorm(3))
    adapted = glora.inject(model, SearchSpace(), targets="linear", head="head")
    before = [number.clone() for number in adapted.head_parameters()]
    Calibration(temperature=2.0).apply(adapted)
    assert all(map(torch.equal, before, adapted.head_parameters()))


def test_twice_as_sure_is_the_same_loss_at_twice_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2_000, 4, generator=generator)
    labels = torch.distributions.Categorical(logits=logits).probs.multinomial(1, generator=generator).flatten()
    loss, temperature = calibrated_loss(logits, labels)
    assert 0.8 < temperature < 1.25, "drawn from these very probabilities"
    again, hotter = calibrated_loss(2 * logits, labels)
    assert hotter == pytest.approx(2 * temperature)
    assert again == pytest.approx(loss)


def test_the_strength_of_the_lowest_loss_is_chosen_and_of_equal_ones_the_least_change() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    right, wrong = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0])
    better = STRENGTHS[1]
    assert chosen(lambda strength: (logits, right if strength == better else wrong)).strength == better
    assert chosen(lambda strength: (0 * logits, wrong)).strength == 1.0
    broken = torch.full((3, 2), float("nan"))
    assert chosen(lambda strength: (logits if strength == better else broken, right)).strength == better
    assert chosen(lambda strength: (broken, right)) == Calibration()


def test_alone_the_numbers_are_tried_and_put_back(vit: Callable[..., nn.Module], photos: Path) -> None:
    task = load_task(str(photos), seed=0)
    images = task.val.prepared(Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear"))
    adapted = glora.inject(vit(classes=2), SearchSpace(only=LayerConfig(B="lora:4")), targets="linear")
    moved(adapted)
    before = [number.clone() for number in adapted.parameters()]
    found = chosen_alone(adapted, images, accelerator=new_accelerator("no"), batch_size=4)
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
    adapted, model = run.adapter.adapted, load_winner(run.folder).model
    x, _ = run.known.val.batch(range(2))
    with torch.no_grad(), adapted.hold(adapted.space.decode(outcome.genome)) as held:
        torch.testing.assert_close(model(x), held(x))


def test_without_calibration_nothing_is_changed(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    for name in ("search.jsonl", "calibration.json", "images.jsonl", "winner.json", "adapter.safetensors"):
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
    for name in ("search.jsonl", "calibration.json", "images.jsonl", "winner.json", "adapter.safetensors"):
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
