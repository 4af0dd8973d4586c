"""Folders of images as people have them: nothing is dropped, misread or taken for something else without a word."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glora.errors import DataError
from glora.tasks.data.scan import scan
from glora.tasks.images import Preprocess, read_image
from glora.tasks.task import load_task


def picture(seed: int = 0, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def fill(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        picture(first + place).save(folder / f"{place}.png")
    return folder


def two_classes(root: Path, count: int = 10, *, first: int = 0) -> Path:
    fill(root / "cat", count, first=first)
    fill(root / "dog", count, first=first + count)
    return root


# What is found


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("TRAIN", "Holdout"), ("train", "test"), ("Train", "hold-out")]
)
def test_splits_are_known_by_any_usual_name(tmp_path: Path, names: tuple[str, str]) -> None:
    two_classes(tmp_path / names[0], 12)
    two_classes(tmp_path / names[1], 3, first=100)
    two_classes(tmp_path / "Dev", 2, first=200)
    task = load_task(tmp_path)
    assert task.objective.strata_names == ("cat", "dog")
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 24, "val": 4, "test": 6}


def test_files_that_are_no_images_are_counted_by_suffix(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "cat" / "a.txt").write_text("x")
    (tmp_path / "cat" / "b.TXT").write_text("x")
    (tmp_path / "dog" / "c").write_text("x")
    assert "3 files are not used, no image that can be opened: 2 .txt, 1 without a suffix." in load_task(tmp_path).notes


def test_an_image_is_known_by_its_content(tmp_path: Path) -> None:
    two_classes(tmp_path)
    picture(50).save(tmp_path / "cat" / "without", "PNG")
    picture(51).save(tmp_path / "dog" / "odd.data", "JPEG")
    assert sum(map(len, load_task(tmp_path).splits.values())) == 22


def test_a_linked_folder_is_followed_once(tmp_path: Path) -> None:
    two_classes(tmp_path / "pets")
    fill(tmp_path / "more", 5, first=60)
    (tmp_path / "pets" / "cat" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "pets" / "cat" / "loop").symlink_to(tmp_path / "pets" / "cat")
    (tmp_path / "pets" / "bird").symlink_to(fill(tmp_path / "birds", 8, first=80))
    task = load_task(tmp_path / "pets")
    assert task.objective.strata_names == ("bird", "cat", "dog")
    assert sum(map(len, task.splits.values())) == 10 + 5 + 10 + 8


def test_a_link_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    assert any("links that lead nowhere: gone.png" in note for note in load_task(tmp_path).notes)


@pytest.mark.parametrize("name", ["@eaDir", "thumbnails", ".AppleDouble", "__MACOSX", "System Volume Information"])
def test_what_systems_make_is_no_class_and_holds_no_image(tmp_path: Path, name: str) -> None:
    two_classes(tmp_path)
    fill(tmp_path / name, 3, first=70)
    fill(tmp_path / "cat" / name, 3, first=70)
    task = load_task(tmp_path)
    assert task.objective.strata_names == ("cat", "dog")
    assert sum(map(len, task.splits.values())) == 20
    assert any("hidden or made by a system" in note and name in note for note in task.notes)


def test_hidden_copies_of_images_are_said(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for name in ("._0.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    assert "Not used, hidden or made by a system: .DS_Store, ._0.png, Thumbs.db." in load_task(tmp_path).notes


def test_a_class_may_begin_with_underscores(tmp_path: Path) -> None:
    two_classes(tmp_path)
    fill(tmp_path / "__background__", 8, first=60)
    assert "__background__" in load_task(tmp_path).objective.strata_names


def test_the_folder_of_a_run_is_no_class(tmp_path: Path) -> None:
    two_classes(tmp_path)
    run = tmp_path / "run"
    (run / "plots").mkdir(parents=True)
    (run / "config.yaml").write_text("format: 2\n")
    (run / "state.json").write_text("{}")
    task = load_task(tmp_path)
    assert task.objective.strata_names == ("cat", "dog")
    assert "Not used, the folder of a run: run." in task.notes


def test_names_are_equal_that_look_equal(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for split, name in (("train", composed), ("test", apart)):
        fill(tmp_path / split / name, 6, first=len(split))
        fill(tmp_path / split / "tea", 6, first=20 + len(split))
    assert load_task(tmp_path).objective.strata_names == (composed, "tea")


def test_two_folders_that_look_alike_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        fill(tmp_path / unicodedata.normalize(form, "café"), 6)
    with pytest.raises(DataError, match="two class folders 'café', spelled with other code points"):
        load_task(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses such names")
def test_names_that_are_no_utf8_are_written_out(tmp_path: Path) -> None:
    two_classes(tmp_path)
    odd = os.fsdecode(b"caf\xe9")
    fill(tmp_path / odd, 8, first=60)
    (tmp_path / odd / os.fsdecode(b"b\xe4d.png")).write_bytes(b"no image")
    task = load_task(tmp_path, on_bad_image="skip")
    assert "caf\\xe9" in task.objective.strata_names
    assert task.fingerprint
    for note in task.notes:
        note.encode()
    with pytest.raises(DataError, match=r"d.png' cannot be read") as caught:
        load_task(tmp_path)
    str(caught.value).encode()


def test_images_in_two_splits_are_said(tmp_path: Path) -> None:
    two_classes(tmp_path / "train", 12)
    two_classes(tmp_path / "val", 3, first=300)
    two_classes(tmp_path / "test", 3, first=100)
    (tmp_path / "test" / "dog" / "copy.png").write_bytes((tmp_path / "train" / "cat" / "4.png").read_bytes())
    notes = [note for note in load_task(tmp_path).notes if "same to the byte" in note]
    assert notes == [
        "1 of the 7 test images are in train too, the same to the byte: dog/copy.png is cat/4.png. "
        "What is measured on them flatters."
    ]


def test_an_image_that_is_changed_at_equal_size_changes_the_fingerprint(tmp_path: Path) -> None:
    two_classes(tmp_path)
    before = load_task(tmp_path).fingerprint
    file = tmp_path / "cat" / "0.png"
    content = bytearray(file.read_bytes())
    other = picture(500)
    for quality in range(2000):  # another picture of the same size in bytes
        other = picture(500 + quality)
        other.save(tmp_path / "other.png")
        if (tmp_path / "other.png").stat().st_size == len(content):
            break
    file.write_bytes((tmp_path / "other.png").read_bytes())
    (tmp_path / "other.png").unlink()
    assert file.stat().st_size == len(content)
    assert load_task(tmp_path).fingerprint != before


def test_a_scan_tells_what_it_left_out(tmp_path: Path) -> None:
    found = scan(fill(tmp_path / "a", 2))
    assert ([file.name for file in found.images], found.notes) == (["0.png", "1.png"], [])


# Pixels


SIZE = Preprocess((8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="nearest")


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return (read_image(image, SIZE) * 255).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_the_camera_was_held(tmp_path: Path, orientation: int) -> None:
    seen = np.asarray(picture(3))
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen, 1),
        7: seen.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(seen, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert (read(tmp_path / "a.png") == seen).all()


def test_numbers_of_more_than_8_bits_are_read_by_their_range(tmp_path: Path) -> None:
    ramp = np.arange(64).reshape(8, 8)
    cases = {
        "fractions": ((ramp / 63).astype("float32"), np.rint(ramp / 63 * 255)),
        "floats": ((ramp * 4).astype("float32"), ramp * 4),
        "bytes": ((ramp * 4).astype("int32"), ramp * 4),
        "shorts": ((ramp * 1024).astype("int32"), ramp * 4),
        "16": ((ramp * 1024).astype("uint16"), ramp * 4),
    }
    for name, (pixels, expected) in cases.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.tif")
        assert (read(tmp_path / f"{name}.tif")[..., 0] == expected).all(), name


@pytest.mark.parametrize("value", [-0.5, 300.0, np.nan])
def test_numbers_that_are_no_colours_are_refused_by_name(tmp_path: Path, value: float) -> None:
    two_classes(tmp_path)
    pixels = np.full((8, 8), value, "float32")
    pixels[0] = 0
    Image.fromarray(pixels).save(tmp_path / "cat" / "odd.tif")
    with pytest.raises(DataError, match=r"odd.tif' cannot be read: its pixels go from"):
        load_task(tmp_path)
    assert any("odd.tif" in note for note in load_task(tmp_path, on_bad_image="skip").notes)


def test_images_of_a_single_colour_are_noted(tmp_path: Path) -> None:
    two_classes(tmp_path)
    Image.new("RGB", (8, 8), (7, 7, 7)).save(tmp_path / "cat" / "grey.png")
    assert "1 image is of a single colour: cat/grey.png." in load_task(tmp_path).notes
