"""Tar shards as the package webdataset writes them: what is read, in which order, and what is told of damaged ones."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glora.errors import DataError
from glora.runs.reporter import Silent
from glora.runs.run import Run
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objectives.multilabel import MultiLabel
from glora.tasks.objectives.regress import Regress
from glora.tasks.task import Task, load_task, source_class
from suites.toy import tiny

Members = Iterable[tuple[str, bytes]]


def picture(number: int, label: int) -> bytes:
    rng = np.random.default_rng(number)
    pixels = (40 + 120 * label + rng.normal(0, 10, (12, 12, 3))).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(number: int, label: int, **others: Any) -> list[tuple[str, bytes]]:
    """The members of an example: its image, its class, or what is given instead of that."""
    targets = others or {"cls": label}
    found = [(f"{number:05}.png", picture(number, label))]
    for ending, value in targets.items():
        text = json.dumps(value) if ending == "json" else str(value)
        found.append((f"{number:05}.{ending}", text.encode()))
    return found


def shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shards(folder: Path, *, each: int = 20, many: int = 2, prefix: str = "data") -> Path:
    for place in range(many):
        numbers = range(place * each, (place + 1) * each)
        shard(folder / f"{prefix}-{place:06}.tar", [m for n in numbers for m in example(n, n % 2)])
    return folder


def whole(task: Task) -> list[str]:
    return [name for split in task.splits.values() for name in split.names(range(len(split)))]  # type: ignore[attr-defined]


def images_of(task: Task) -> ImageSet:
    found = task.train.prepared(Preprocess((12, 12)))
    assert isinstance(found, ImageSet)
    return found


def test_a_folder_of_shards_is_a_data_set(tmp_path: Path) -> None:
    folder = shards(tmp_path / "toys")
    task = load_task(folder)
    assert task.name == "toys" and task.objective.classes == ("0", "1")
    assert sum(map(len, task.splits.values())) == 40
    assert task.train.names([0])[0].startswith("000") and " in data-00000" in task.train.names([0])[0]
    images = images_of(task)
    for place, label in enumerate(images.targets.tolist()):
        assert abs(images.image(place).mean() - (40 + 120 * label)) < 10


def test_order_and_fingerprint_hang_on_names_and_contents_alone(tmp_path: Path) -> None:
    one, two = shards(tmp_path / "one"), tmp_path / "two"
    for file in sorted(one.iterdir(), reverse=True):  # made in another order, at another place
        with tarfile.open(file) as archive:
            shard(two / file.name, [(each.name, archive.extractfile(each).read()) for each in archive])  # type: ignore[union-attr]
    first, second = load_task(one), load_task(two)
    assert whole(first) == whole(second) and first.fingerprint == second.fingerprint
    shard(two / "data-000001.tar", [m for n in range(20, 40) for m in example(n, (n + 1) % 2)])
    assert load_task(two).fingerprint != first.fingerprint


def test_one_file_alone_is_a_data_set_too(tmp_path: Path) -> None:
    file = shard(tmp_path / "few.tar", [m for n in range(30) for m in example(n, n % 3)])
    task = load_task(file)
    assert task.name == "few" and len(task.objective.classes) == 3


@pytest.mark.parametrize("name", ["{}-{:04}.tar", "{}/{:04}.tar", "toys-{}-{:04}.tar"])
def test_splits_are_known_by_the_names_of_shards_and_folders(tmp_path: Path, name: str) -> None:
    for split, many in (("train", 12), ("val", 6), ("test", 4)):
        shard(tmp_path / "d" / name.format(split, 0), [m for n in range(many) for m in example(n, n % 2)])
    shard(tmp_path / "d" / "other.tar", example(1, 1))
    task = load_task(tmp_path / "d")
    assert [len(split) for split in task.splits.values()] == [12, 6, 4]
    assert any("not used: other.tar" in note for note in task.notes)


def test_classes_have_names_where_a_file_has_them(tmp_path: Path) -> None:
    folder = shards(tmp_path / "toys")
    (folder / "classnames.txt").write_text("dark\nlight\n")
    task = load_task(folder)
    assert task.objective.classes == ("dark", "light")
    (folder / "classnames.txt").write_text("dark\n")
    with pytest.raises(DataError, match=r"00001.cls in data-000000.tar has the class '1', and classnames.txt has 1"):
        load_task(folder)


def test_classes_may_be_texts_or_fields(tmp_path: Path) -> None:
    words = ("dark", "light")
    shard(tmp_path / "t" / "a.tar", [m for n in range(20) for m in example(n, n % 2, txt=words[n % 2])])
    assert load_task(tmp_path / "t").objective.classes == words
    rows = [m for n in range(20) for m in example(n, n % 2, json={"label": words[n % 2], "size": n / 7, "is": ["a"]})]
    file = shard(tmp_path / "j" / "a.tar", rows)
    assert load_task(file).objective.classes == words
    sizes = load_task(file, objective=Regress(), columns=["size"])
    assert sizes.train.targets.std() > 0.1
    assert load_task(file, objective=MultiLabel(), columns=["is"]).train.targets.shape[1] == 1
    with pytest.raises(DataError, match=r"00000.json in a.tar has no field 'sizes'.*Did you mean 'size'\?"):
        load_task(file, columns=["sizes"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the library leaves its files open
def test_the_library_reads_and_writes_the_same(tmp_path: Path) -> None:
    """What its ShardWriter writes is read here in its order, image by image."""
    webdataset = pytest.importorskip("webdataset")
    pattern = str(tmp_path / "w" / "train-%04d.tar")
    (tmp_path / "w").mkdir()
    with webdataset.ShardWriter(pattern, maxcount=15, verbose=0) as writer:
        for n in range(40):
            writer.write({"__key__": f"k{n:04}", "png": picture(n, n % 2), "cls": n % 2})
    files = sorted(map(str, (tmp_path / "w").glob("*.tar")))
    theirs = list(webdataset.WebDataset(files, shardshuffle=False))
    gc.collect()
    from glora.tasks.data.webdataset import WebDataset

    images, notes = WebDataset(source=str(tmp_path / "w")).load_all(load_task(tmp_path / "w").objective)
    assert len(files) == 3 and len(images) == len(theirs) == 40 and not notes
    assert images.targets.tolist() == [int(each["cls"]) for each in theirs]
    for place, each in enumerate(theirs):
        assert np.array_equal(images.image(place), np.array(Image.open(io.BytesIO(each["png"]))))


def test_what_is_no_example_is_told_or_left_out(tmp_path: Path) -> None:
    members = [m for n in range(20) for m in example(n, n % 2)]
    members += [("90000.cls", b"1"), ("__meta.json", b"{}"), ("README", b"hello"), ("._00001.png", b"x")]
    task = load_task(shard(tmp_path / "d.tar", members))
    assert sum(map(len, task.splits.values())) == 20
    assert any("1 example has no image, and are not used" in n or "90000 in d.tar" in n for n in task.notes)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([*example(0, 0), ("00001.png", picture(1, 1))], r"00001 in d.tar has no class beside .png"),
        ([*example(0, 0), ("00000.cls", b"1")], r"d.tar has 00000.cls twice for one example"),
        (
            [*example(0, 0), ("00001.png", picture(1, 1)), ("00001.cls", b"\xff\x00")],
            r"00001.cls in d.tar is no text",
        ),
        ([*example(0, 0), ("00001.png", picture(1, 1)), ("00001.json", b"{")], r"00001.json in d.tar is no JSON"),
        ([("a.cls", b"1"), ("b.cls", b"2")], r"There are no images in d.tar"),
        ([*example(0, 0), ("00001.png", b"no image"), ("00001.cls", b"1")], r"00001.png in d.tar' cannot be read"),
    ],
    ids=["class", "twice", "text", "json", "images", "image"],
)
def test_faults_name_shard_and_member(tmp_path: Path, members: Members, said: str) -> None:
    content = [(name, text) for name, text in members]
    with pytest.raises(DataError, match=said):
        load_task(shard(tmp_path / "d.tar", content))


@pytest.mark.parametrize("left", [0.3, 0.5, 0.97])
def test_a_shard_that_is_cut_off_is_an_error_wherever(tmp_path: Path, left: float) -> None:
    file = shard(tmp_path / "d.tar", [m for n in range(20) for m in example(n, n % 2)])
    content = file.read_bytes().rstrip(b"\0")
    for size in (int(left * len(content)), int(left * len(content)) // 512 * 512):
        file.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"d.tar is (cut off or damaged at|damaged after) \d{5}\.(png|cls)"):
            load_task(file)


def test_damage_in_the_middle_names_the_member_before(tmp_path: Path) -> None:
    file = shard(tmp_path / "d.tar", [m for n in range(20) for m in example(n, n % 2)])
    with tarfile.open(file) as archive:
        place = archive.getmember("00007.png").offset
    content = bytearray(file.read_bytes())
    content[place : place + 512] = b"\xa5" * 512
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"d.tar is (cut off or damaged at|damaged after) 00006.cls"):
        load_task(file)


def test_a_compressed_shard_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a.tar.gz is compressed"):
        load_task(tmp_path / "d")


def test_other_folders_are_what_they_were(tmp_path: Path, photos: Path) -> None:
    assert source_class({"source": photos}).__name__ == "ImageFolder"
    assert source_class({"source": shards(tmp_path / "s")}).__name__ == "WebDataset"


def test_a_run_trains_on_shards_and_predicts_others(tmp_path: Path) -> None:
    folder = shards(tmp_path / "toys")
    experiment = tiny(folder, method="lora", train={"epochs": 1})
    result = Run(experiment, tmp_path / "run", Silent()).fit()
    assert result is not None and torch.isfinite(torch.tensor(result.metrics["test_accuracy"]))


def test_an_ending_that_is_named_and_not_there_is_told(tmp_path: Path) -> None:
    file = shard(tmp_path / "d.tar", [*example(0, 0), *example(1, 1)])
    with pytest.raises(DataError, match=r"has no .json \(data.target\), but .png, .cls. Name one of these"):
        load_task(file, target="json")
