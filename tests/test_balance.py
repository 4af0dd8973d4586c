"""Classes of unequal size: what counts how much in training, what is drawn how often, and what a user is told."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import glora
from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.config import TrainSettings
from glora.errors import ConfigError, DataError
from glora.tasks.augment import Augmentation
from glora.tasks.balance import Balance
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objectives.regress import Regress
from glora.tasks.task import load_task
from glora.training.trainer import Trainer
from language import tiny_encoder
from suites.toy import image_folder, tiny
from suites.training import CLASSES, adapted, equal, first_gradients, make_trainer, run, toy_images, values

Vit = Callable[..., nn.Module]
WEIGHTS, SAMPLING = Balance("weights"), Balance("sampling")


def unequal(dark: int = 2, light: int = 4, half: int = 8) -> ImageSet:
    """Toy images with so many of each class."""
    images, found = toy_images(60), []
    for label, count in enumerate((dark, light, half)):
        found += [place for place, each in enumerate(images.targets.tolist()) if each == label][:count]
    return images.subset(found)


def trainer_of(tuned: Any, images: ImageSet, balance: Balance, **settings: Any) -> Trainer:
    given = TrainSettings(**{"epochs": 3, "batch_size": 8, **settings})
    parts = make_trainer(tuned, images)
    return Trainer(tuned, images, CLASSES, given, lr=5e-3, seed=0, accelerator=parts.accelerator, balance=balance)


def remove_some(folder: Path, name: str, keep: int) -> None:
    for file in sorted((folder / name).iterdir())[keep:]:
        file.unlink()


# -- weights in the loss


def test_a_weighted_step_is_that_of_the_rare_ones_repeated(vit: Vit) -> None:
    images = unequal()
    repeated = images.subset([*[0, 1] * 4, *range(2, 6), *range(2, 6), *range(6, 14)])
    weighted = trainer_of(adapted(vit()), images, WEIGHTS, batch_size=32)
    plain = trainer_of(adapted(vit()), repeated, Balance(), batch_size=32)
    one, two = first_gradients(weighted), first_gradients(plain)
    first, second = run(weighted)[0], run(plain)[0]
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-3, atol=1e-6)


def test_equal_classes_train_as_without_weights(vit: Vit) -> None:
    one = trainer_of(adapted(vit()), toy_images(), WEIGHTS)
    two = trainer_of(adapted(vit()), toy_images(), Balance())
    assert [each.loss for each in run(one)] == pytest.approx([each.loss for each in run(two)], rel=1e-4)
    assert one.chance == pytest.approx(two.chance)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_power_says_how_much_a_class_counts(power: float) -> None:
    images = unequal(1, 4, 16)
    counts = Balance("weights", power).counting(CLASSES, images)
    assert counts is not None and counts.mean().item() == pytest.approx(1)
    shares = [counts[images.targets == label].sum().item() for label in range(3)]
    assert shares[1] / shares[0] == pytest.approx(4 ** (1 - power))
    assert shares[2] / shares[0] == pytest.approx(16 ** (1 - power))


def test_guessing_has_the_loss_of_the_balanced_shares() -> None:
    assert Balance("weights").chance(unequal()) == pytest.approx(math.log(3))
    assert Balance("weights", 0.0).chance(unequal()) == pytest.approx(CLASSES.chance(unequal()))
    assert Balance("weights", 0.0).counting(CLASSES, unequal()) is None


# -- sampling


def test_sampling_draws_all_classes_as_often(vit: Vit) -> None:
    images = unequal(2, 10, 40)
    trainer = trainer_of(adapted(vit()), images, SAMPLING)
    drawn = Counter[int]()
    for epoch in range(200):
        order = trainer._order(epoch)
        assert len(order) == len(images)
        drawn.update(images.targets[order].tolist())
    for label in range(3):
        assert drawn[label] / drawn.total() == pytest.approx(1 / 3, abs=0.02)
    assert torch.equal(trainer._order(3), trainer_of(adapted(vit()), images, SAMPLING)._order(3))


@pytest.mark.parametrize("balance", [WEIGHTS, SAMPLING], ids=["weights", "sampling"])
def test_a_resumed_training_is_the_whole_one(vit: Vit, tmp_path: Path, balance: Balance) -> None:
    images = unequal(3, 8, 20).augmented(Augmentation("light"))
    whole = adapted(vit())
    run(trainer_of(whole, images, balance))
    first = trainer_of(adapted(vit()), images, balance)
    next(first.run())
    save_tensors(tmp_path / "state.safetensors", *first.state())
    later = adapted(vit())
    second = trainer_of(later, images, balance)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    run(second)
    assert equal(values(whole), values(later))


def test_copies_in_a_batch_look_different_and_the_first_as_ever() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    images = ImageSet([noise] * 3, [0, 1, 2], preprocess=Preprocess((16, 16)), augmentation=Augmentation("light"))
    alone = images.training_batch([1], [0], seed=0, epoch=0).inputs
    x = images.training_batch([1, 0, 1, 1], range(4), seed=0, epoch=0).inputs
    assert torch.equal(x[0], alone[0])
    assert not torch.equal(x[0], x[2]) and not torch.equal(x[2], x[3])
    assert torch.equal(images.training_batch([1, 0, 1, 1], [2], seed=0, epoch=0).inputs[0], x[2])


# -- what a user is told, and what is refused


def test_rare_classes_are_named_with_what_to_do(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", per_class=60, classes=("cat", "dog", "owl"))
    remove_some(folder, "owl", 5)
    notes = " ".join(load_task(folder).notes)
    assert "1 class is rare in train: 'owl' (" in notes and "--set data.balance=weights" in notes
    notes = " ".join(load_task(folder, balance="sampling", balance_power=0.5).notes)
    assert "'owl'" in notes and "--set" not in notes
    assert "their number to the power 0.5, by how often their examples are drawn" in notes
    assert "rare" not in " ".join(load_task(image_folder(tmp_path / "even")).notes)


def test_the_data_is_the_same_however_it_is_balanced(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    assert load_task(folder).fingerprint == load_task(folder, balance="weights").fingerprint


def test_what_has_no_classes_is_not_balanced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.balance=weights is about classes, and the objective 'regress'"):
        WEIGHTS.counting(Regress(), toy_images())
    data = [(torch.zeros(4), 0.5), (torch.ones(4), 1.5)] * 10
    with pytest.raises(DataError, match=r"data.balance=weights"):
        given = {"objective": "regress", "balance": "weights", "progress": False}
        glora.fit(nn.Linear(4, 1), train=data, out=tmp_path / "run", **given)


def test_pace_fast_needs_every_example_in_every_epoch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.pace=fast .* data.balance=sampling"):
        tiny(tmp_path, data={"balance": "sampling"}, train={"pace": "fast"})


@pytest.mark.parametrize("kind", ["weights", "sampling"])
def test_a_rare_class_is_learned_from_a_program(tmp_path: Path, kind: str) -> None:
    """The two classes overlap: without balance the rare one is hardly ever predicted."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(380, 4, generator=generator), torch.randn(20, 4, generator=generator) + 0.8])
    data = list(zip(x, [0] * 380 + [1] * 20, strict=True))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    given = {"epochs": 8, "lr": 0.01, "method": "full", "progress": False}
    found = {
        each: glora.fit(model, train=data, test=data, out=tmp_path / each, balance=each, **given)
        for each in ("none", kind)
    }
    assert any("1 class is rare" in note for note in found[kind].record.notes)
    with torch.no_grad():
        predicted = {each: run.model(x).argmax(1)[380:].float().mean().item() for each, run in found.items()}
    assert predicted["none"] < 0.2 < 0.5 < predicted[kind]


def test_texts_are_balanced_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_encoder(tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = "one two three four five six seven eight nine ten red blue".split()
    rows = [(f"{a} {b}", "much") for a in words for b in words][:110] + [(f"question {a}", "rare") for a in words[:6]]
    given: dict[str, Any] = {"method": "lora", "epochs": 2, "progress": False, "tokenizer": tokenizer}
    kept = {}
    for kind in ("none", "weights", "sampling"):
        run = glora.fit(model, train=rows, out=tmp_path / kind, balance=kind, **given)
        assert any("'rare' (" in note for note in run.record.notes)
        kept[kind] = [tensor for name, tensor in sorted(run.model.state_dict().items()) if "classifier" in name]
    assert not equal(kept["none"], kept["weights"]) and not equal(kept["none"], kept["sampling"])
