"""Augmentation: what an image gets hangs on seed, epoch and index alone, only training sees it, and timm's formulas."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from glora.errors import ConfigError, DataError
from glora.runs.reporter import Silent
from glora.runs.run import Run
from glora.tasks.augment import Augmentation, drawing, mixing, transform
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objective import Batch, Mixed
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.regress import Regress
from glora.tasks.task import load_task
from glora.tasks.visible import visible
from suites.toy import image_folder, tiny
from suites.training import MIXED, adapted, make_trainer, run, toy_images

timm_data = pytest.importorskip("timm.data")

PREPROCESS = Preprocess((16, 20), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
FEW_SHOT = Augmentation("few_shot", mixup=0.8, cutmix=1.0)


def noise(count: int = 9, side: int = 24) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (side, side + 7, 3), dtype=np.uint8) for _ in range(count)]


def image_set(augmentation: Augmentation, items: Any = None, **more: Any) -> ImageSet:
    items = noise() if items is None else items
    return ImageSet(items, list(range(len(items))), preprocess=PREPROCESS, augmentation=augmentation, **more)


def drawn(images: ImageSet, batch: list[int], positions: Any = None, seed: int = 0, epoch: int = 0) -> Batch:
    return images.training_batch(batch, range(len(batch)) if positions is None else positions, seed=seed, epoch=epoch)


# -- what is drawn


@pytest.mark.parametrize("kind", ["light", "few_shot"])
def test_an_image_gets_what_seed_epoch_and_index_say(kind: Any) -> None:
    images = image_set(Augmentation(kind))
    x = drawn(images, [0, 1, 2, 3]).inputs
    assert x.shape == (4, 3, 16, 20)
    other = drawn(image_set(Augmentation(kind)), [7, 3, 1]).inputs  # another batch, another set, another order
    assert torch.equal(other[1], x[3]) and torch.equal(other[2], x[1])
    assert not torch.equal(drawn(images, [0, 1, 2, 3], epoch=1).inputs, x)
    assert not torch.equal(drawn(images, [0, 1, 2, 3], seed=1).inputs, x)


def test_without_settings_a_training_batch_is_the_batch() -> None:
    images = image_set(Augmentation())
    assert torch.equal(drawn(images, [4, 2, 0], [0, 2]).inputs, images.batch([4, 0]).inputs)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_two_processes_draw_what_one_would(size: int) -> None:
    batch = list(range(size))
    whole = drawn(image_set(FEW_SHOT), batch)
    for rank in range(2):
        places = range(size)[rank::2]
        part = drawn(image_set(FEW_SHOT), batch, places)
        assert torch.equal(part.inputs, whole.inputs[list(places)])
        assert torch.equal(part.targets.own, whole.targets.own[list(places)])
        assert torch.equal(part.targets.others, whole.targets.others[list(places)])
        assert part.targets.share == whole.targets.share


def test_global_randomness_is_left_where_it_was() -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()
    drawn(image_set(FEW_SHOT), list(range(8)))
    with pytest.raises(RuntimeError), drawing("x"):
        raise RuntimeError
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2][1])


def test_what_is_drawn_does_not_hang_on_global_randomness() -> None:
    x = drawn(image_set(FEW_SHOT), list(range(8))).inputs
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert torch.equal(drawn(image_set(FEW_SHOT), list(range(8))).inputs, x)


# -- the recipe


def test_the_few_shot_recipe_is_timms_own() -> None:
    built = transform("few_shot", (16, 20), PREPROCESS.mean, PREPROCESS.std, "bicubic")
    names = [type(step).__name__ for step in built.transforms]
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert names[-2:] == ["Normalize", "RandomErasing"]
    assert "ColorJitter" not in names, "timm leaves it out beside RandAugment"
    crop, augment, erasing = built.transforms[0], built.transforms[2], built.transforms[-1]
    assert crop.scale == (0.08, 1.0) and crop.interpolation.value == "bicubic"
    assert (augment.num_layers, augment.ops[0].magnitude, augment.ops[0].magnitude_std) == (2, 9, 0.5)
    assert (erasing.probability, erasing.mode) == (0.25, "pixel")


def test_light_crops_and_flips_and_nothing_else() -> None:
    grey = [np.full((24, 24, 3), 100, np.uint8)]
    images = image_set(Augmentation("light"), grey)
    assert torch.allclose(drawn(images, [0]).inputs, images.batch([0]).inputs, atol=1e-6)
    ramp = [np.tile(np.linspace(0, 255, 24).astype(np.uint8), (24, 1))]
    seen = [drawn(image_set(Augmentation("light"), ramp), [0], epoch=epoch).inputs[0, 0, 8] for epoch in range(20)]
    rising = [bool(row[-1] > row[0]) for row in seen]
    assert 2 < sum(rising) < 18  # a flip turns the ramp
    assert len({round(float((row[-1] - row[0]).abs()), 2) for row in seen}) > 10  # a crop takes a part of it


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mixing_is_timms_mixup_and_cutmix(seed: int, mixup: float, cutmix: float) -> None:
    x, y = torch.rand(6, 3, 16, 20, generator=torch.Generator().manual_seed(seed)), torch.arange(6) % 4
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    theirs = timm_data.Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=4)
    with drawing(f"{seed}"):
        expected, soft = theirs(x.clone(), y)
    kept = x.clone()
    with drawing(f"{seed}"):
        np.random.rand()  # timm asks whether to mix at all
        mixed = mixing(Augmentation("none", mixup, cutmix), (16, 20))
    assert torch.allclose(mixed(x, x.flip(0)), expected, atol=1e-6)
    assert torch.equal(x, kept)
    batch = Batch(expected, Mixed(y, y.flip(0), mixed.share))
    ours = Classify(classes=tuple("abcd"), smoothing=0.1).training_losses(logits, batch)
    assert torch.allclose(ours, F.cross_entropy(logits, soft, reduction="none"), atol=1e-5)


def test_smoothing_is_for_training_alone() -> None:
    plain, smooth = Classify(classes=tuple("abc")), Classify(classes=tuple("abc"), smoothing=0.3)
    logits, batch = torch.randn(5, 3), Batch(None, torch.tensor([0, 1, 2, 0, 1]))
    assert torch.equal(plain.training_losses(logits, batch), plain.losses(logits, batch))
    assert torch.equal(smooth.values(logits, batch)["loss"], plain.losses(logits, batch))
    uniform = -logits.log_softmax(-1).mean(-1)
    expected = 0.7 * plain.losses(logits, batch) + 0.3 * uniform
    assert torch.allclose(smooth.training_losses(logits, batch), expected, atol=1e-6)


def test_numbers_are_mixed_by_their_losses() -> None:
    objective = Regress(columns=("x",), mean=(0.0,), std=(1.0,))
    output, own, others = torch.randn(4, 1), torch.randn(4, 1), torch.randn(4, 1)
    mixed = objective.training_losses(output, Batch(None, Mixed(own, others, 0.25)))
    first, second = (objective.losses(output, Batch(None, targets)) for targets in (own, others))
    assert torch.allclose(mixed, 0.25 * first + 0.75 * second)


# -- who sees it


def test_only_training_batches_are_augmented(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    settings = {"augment": "few_shot", "mixup": 0.8, "cutmix": 1.0}
    plain, task = (load_task(folder, **more).prepared(PREPROCESS) for more in ({}, settings))
    assert task.train.augmentation == FEW_SHOT
    assert task.val.augmentation == task.test.augmentation == Augmentation()
    for split, images in plain.splits.items():
        places = range(len(images))
        assert torch.equal(images.batch(places).inputs, task.splits[split].batch(places).inputs)
    assert task.fingerprint == plain.fingerprint, "the data is the same"
    seen = visible(task, seed=0, aside=2, folds=2)
    assert seen.training(0).augmentation == FEW_SHOT, "parts of it are augmented too"
    assert torch.equal(seen.scoring[0].batch([0, 1]).inputs, seen.val.batch(seen.folds[0][:2]).inputs)


def test_the_data_is_the_same_whatever_the_smoothing(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    found = [load_task(folder, objective=Classify(smoothing=share)).fingerprint for share in (0.0, 0.1)]
    assert found[0] == found[1]


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_stored_pixels_stay_as_they_are(tmp_path: Path, cache_bytes: int) -> None:
    (pixels,) = noise(1)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    images = image_set(FEW_SHOT, [tmp_path / "one.png", pixels, pixels], cache_bytes=cache_bytes)
    kept, first = pixels.copy(), images.batch([0, 1]).inputs.clone()
    assert torch.equal(first[0], first[1])
    for epoch in range(3):
        drawn(images, [0, 1, 2], epoch=epoch)
        x = images.batch([0, 1]).inputs
        assert torch.equal(x, first)
        x.zero_()  # what is given out is the caller's
    again = drawn(images, [0, 1, 2], epoch=1).inputs
    assert torch.equal(again, drawn(image_set(FEW_SHOT, list(images.items)), [0, 1, 2], epoch=1).inputs)
    assert np.array_equal(pixels, kept)


def test_a_file_is_decoded_once_where_there_is_room(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file, pixels in zip(files, noise(2), strict=True):
        Image.fromarray(pixels).save(file)
    both, one = (image_set(Augmentation("light"), files, cache_bytes=room) for room in (10**6, noise(1)[0].nbytes))
    first = [drawn(images, [0, 1]).inputs for images in (both, one)]
    for file in files:
        file.unlink()
    assert torch.equal(drawn(both, [0, 1]).inputs, first[0])
    assert torch.equal(drawn(one, [0]).inputs, first[1][:1])
    with pytest.raises(DataError, match=r"1\.png"):
        drawn(one, [1])


# -- in training


def test_training_on_mixed_images_learns_and_has_no_metric(vit: Any) -> None:
    trainer = make_trainer(adapted(vit()), toy_images().augmented(MIXED), epochs=20, lr=1e-2)
    ends = run(trainer)
    assert [progress.metric for progress in ends] == [None] * 20
    assert ends[-1].loss < 0.9 * ends[0].loss


def test_augmented_images_that_are_not_mixed_have_a_metric(vit: Any) -> None:
    ends = run(make_trainer(adapted(vit()), toy_images().augmented(Augmentation("light")), epochs=1))
    assert 0 <= ends[0].metric <= 1


def test_every_epoch_is_augmented_anew(vit: Any) -> None:
    images, seen = toy_images(8).augmented(Augmentation("light")), list[Tensor]()
    read = images.training_batch

    def watch(batch: Any, positions: Any, **drawn: Any) -> Batch:
        found = read(batch, positions, **drawn)
        seen.append(found.inputs[torch.tensor(batch).argsort()])
        return found

    images.training_batch = watch  # type: ignore[method-assign]
    run(make_trainer(adapted(vit()), images, epochs=2))
    assert len(seen) == 2 and not torch.equal(*seen)


# -- how images are resized


@pytest.mark.parametrize("shape", [(40, 30), (31, 77), (300, 260), (256, 256)])
def test_crop_is_the_few_shot_recipes_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    steps = [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    expected = transforms.Compose([*steps, transforms.ToTensor()])(image)
    images = ImageSet([np.asarray(image)], [0], preprocess=Preprocess((224, 224), resize="crop").normalised("none"))
    assert torch.allclose(images.batch([0]).inputs[0], expected, atol=1e-6)


# -- settings


def test_a_run_reads_images_as_its_settings_say(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    data = {"source": str(folder), "resize": "crop", "augment": "light"}
    experiment = tiny(folder, data=data, model={"normalise": "none", "drop_path": 0.1})
    made = Run(experiment, tmp_path / "run", Silent())
    assert made.session.info["preprocess"] | {"interpolation": ""} == {
        "size": (32, 32), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "", "resize": "crop",
    }  # fmt: skip
    assert made.session.info["backbone"]["normalise"] == "none"
    assert made.session.info["backbone"]["drop_path"] == 0.1
    assert made.task.val.preprocess == made.session.data.train.preprocess == made.session.backbone.preprocess
    assert made.task.test.batch([0]).inputs.min() >= 0, "nothing is subtracted"


@pytest.mark.slow
def test_a_run_on_augmented_images_is_loaded_with_its_preprocessing(tmp_path: Path) -> None:
    import glora

    folder = image_folder(tmp_path / "photos")
    data = {"source": str(folder), "resize": "crop", "augment": "few_shot", "mixup": 0.8, "cutmix": 1.0}
    model = {"normalise": "imagenet", "drop_path": 0.1}
    experiment = tiny(folder, data=data, model=model, objective={"name": "classify", "smoothing": 0.1})
    made = Run(experiment, tmp_path / "run", Silent())
    result = made.fit()
    loaded = glora.load(tmp_path / "run")
    assert loaded.preprocess == made.session.backbone.preprocess
    assert loaded.objective.smoothing == 0.1
    assert result is not None and result.config["data"]["augment"] == "few_shot"


def test_what_are_no_images_cannot_be_augmented(tmp_path: Path) -> None:
    import glora

    data = [(torch.zeros(4), 0), (torch.ones(4), 1)] * 10
    with pytest.raises(DataError, match=r"data.augment and data.mixup .* images.*examples"):
        glora.fit(torch.nn.Linear(4, 2), train=data, out=tmp_path / "run", augment="light", mixup=0.2, progress=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"augment": "heavy"}}, "data.augment"),
        ({"data": {"mixup": -1}}, "data.mixup"),
        ({"data": {"resize": "pad"}}, "data.resize"),
        ({"model": {"normalise": "mean"}}, "model.normalise"),
        ({"model": {"drop_path": 1}}, "model.drop_path"),
        ({"objective": {"name": "classify", "smoothing": 1}}, "objective.smoothing"),
        ({"objective": {"name": "regress", "smoothing": 0.1}}, "objective.smoothing"),
        ({"data": {"mixup": 0.2}, "train": {"pace": "fast"}}, "train.pace=fast .* data.mixup mixes it"),
    ],
)
def test_wrong_settings_are_told_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny(tmp_path, **changes)
