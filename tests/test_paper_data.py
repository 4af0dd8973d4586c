"""The paper's data sets, Hugging Face's and torchvision's, on miniature copies that the tests write."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from glora.cli.listing import listing
from glora.errors import ConfigError, DataError
from glora.report.result import Result
from glora.runs.run import Run
from glora.tasks.data import torchvision_sets
from glora.tasks.data.imagenet import ImageNet
from glora.tasks.data.paper_sets import FEW_SHOT, IMAGENET_TARGETS, VTAB, VTAB_GROUPS, by_name
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objective import Batch
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.multilabel import MultiLabel
from glora.tasks.task import Task, load_task
from suites.toy import Recorder, tiny

Lines = Sequence[tuple[str, int]]


def draw(file: Path, level: int = 128) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), level % 256, dtype=np.uint8)).save(file)


def write_list(file: Path, lines: Lines) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{name} {label}\n" for name, label in lines))


def with_images(folder: Path, lines: Lines) -> None:
    for number, (name, label) in enumerate(lines):
        draw(folder / name, 60 * label + number)


def files_of(split: Any, root: Path) -> list[tuple[str, int]]:
    """Names and labels of a split, in its order."""
    names = [item.relative_to(root).as_posix() for item in split.items]
    return list(zip(names, split.targets.tolist(), strict=True))


# -- VTAB-1K

LABELS = {"train800": [2, 0, 0, 3, 1, 0, 2, 2], "val200": [3, 3, 0, 2], "test": [1, 0, 2, 3, 2, 2]}


def vtab(root: Path, folder: str = "kitti", labels: dict[str, list[int]] | None = None) -> Path:
    """A copy of one task, as the exporter writes it."""
    labels = dict(labels or LABELS)
    labels["train800val200"] = labels["train800"] + labels["val200"]
    for split, every in labels.items():
        lines = [(f"images/{split}/{number:06}.jpg", label) for number, label in enumerate(every)]
        write_list(root / folder / f"{split}.txt", lines)
        with_images(root / folder, lines)
    return root


@pytest.fixture(scope="module")
def vtab_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vtab(tmp_path_factory.mktemp("vtab-1k"))


def test_a_vtab_task_is_exactly_its_lists(vtab_root: Path) -> None:
    task = load_task("vtab", root=vtab_root, task="kitti")
    assert (task.name, task.group, task.objective.outputs) == ("kitti", "structured", 4)
    for split, name in (("train", "train800"), ("val", "val200"), ("test", "test")):
        expected = [(f"images/{name}/{number:06}.jpg", label) for number, label in enumerate(LABELS[name])]
        assert files_of(task.splits[split], vtab_root / "kitti") == expected
    assert "Split as the data says: 8 train, 4 val and 6 test images." in task.notes
    assert "Not the usual copy: kitti/test.txt has 6 images, where 711 are known." in task.notes
    x = task.prepared(Preprocess((4, 4))).test.batch([1, 4])
    assert (x.inputs.shape, x.targets.tolist()) == ((2, 3, 4, 4), [0, 2])


def test_all_thousand_can_be_trained_on_and_val_is_then_said_to_be_known(vtab_root: Path) -> None:
    task = load_task("vtab", root=vtab_root, task="kitti", splits="train800val200")
    assert task.train.targets.tolist() == LABELS["train800"] + LABELS["val200"]
    assert {item.parent.name for item in task.train.items} == {"train800val200"}
    assert task.val.targets.tolist() == LABELS["val200"]
    assert any("val was trained on" in note for note in task.notes)
    plain = load_task("vtab", root=vtab_root, task="kitti")
    assert not any("val was trained on" in note for note in plain.notes)
    assert plain.fingerprint != task.fingerprint
    with pytest.raises(ConfigError, match="folds=2 needs splits=train800"):
        load_task("vtab", root=vtab_root, task="kitti", splits="train800val200", folds=2)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("cifar100", "cifar"), ("CIFAR-100", "cifar"), ("oxford_pet", "oxford_iiit_pet"), ("Pets", "oxford_iiit_pet"),
        ("dspr_loc", "dsprites_loc"), ("dSpr-Ori", "dsprites_ori"), ("sNORB-Azim", "smallnorb_azi"),
        ("KITTI-Dist", "kitti"), ("clevr-count", "clevr_count"), ("retino", "diabetic_retinopathy"),
    ],
)  # fmt: skip
def test_a_task_has_its_aliases(asked: str, found: str) -> None:
    assert by_name(asked, VTAB).name == found


def test_a_task_that_there_is_not_is_refused_with_the_nearest(vtab_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"task: there is no 'kity'; known: cifar, .*Did you mean 'kitti'"):
        load_task("vtab", root=vtab_root, task="kity")


def test_folders_may_have_the_names_of_other_copies(tmp_path: Path) -> None:
    vtab(tmp_path, "oxford_pet")
    assert load_task("vtab", root=tmp_path, task="pets").name == "oxford_iiit_pet"


ELSEWHERE = "/data1/alice/vtab-1k/kitti/images"


def rewritten(root: Path, change: Callable[[str], str]) -> Path:
    """The copy with other lines in its lists."""
    for file in (root / "kitti").glob("*.txt"):
        file.write_bytes("".join(change(line) for line in file.read_text().splitlines()).encode())
    return root


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace("images", ELSEWHERE) + "\n",
        lambda line: f"kitti/{line}\n",
        lambda line: f"./{line}\n",
        lambda line: line.replace(" ", "\t") + "\r\n",
        lambda line: line.replace(" ", "   ") + " \n\n",
        lambda line: line.replace("/", "\\") + "\n",
        lambda line: line.replace("images/", "C:\\vtab\\kitti\\images\\").replace("/", "\\") + "\n",
    ],
    ids=["absolute elsewhere", "from the root", "dot", "tab and CRLF", "spaces and blank lines", "backslash", "drive"],
)
def test_lists_of_other_copies_lead_to_the_same_images(
    tmp_path: Path, vtab_root: Path, change: Callable[[str], str]
) -> None:
    root = rewritten(vtab(tmp_path), change)
    task, plain = (load_task("vtab", root=each, task="kitti") for each in (root, vtab_root))
    for split in ("train", "val", "test"):
        one, other = task.splits[split], plain.splits[split]
        assert files_of(one, tmp_path / "kitti") == files_of(other, vtab_root / "kitti")
    assert task.fingerprint == plain.fingerprint


def test_absolute_paths_that_are_there_are_taken_as_they_are(tmp_path: Path) -> None:
    here = vtab(tmp_path / "here", "images")
    root = rewritten(vtab(tmp_path / "there"), lambda line: f"{here}/images/{line}\n")
    task = load_task("vtab", root=root, task="kitti")
    assert all(item.is_relative_to(here) for item in task.splits["train"].items)


def test_names_that_would_become_one_without_their_folders_are_missing(tmp_path: Path) -> None:
    root = vtab(tmp_path)
    for number in range(8):
        draw(root / "kitti" / f"{number % 4}.jpg")
    lines = "".join(f"/x/{number}/{number % 4}.jpg {number % 4}\n" for number in range(8))
    (root / "kitti" / "train800.txt").write_text(lines)
    with pytest.raises(DataError, match="8 of the 8 images"):
        load_task("vtab", root=root, task="kitti")


@pytest.mark.parametrize(("listed", "there"), [(".jpg", ".JPG"), (".JPG", ".jpg"), (".jpg", ".Jpg")])
def test_the_case_of_a_files_ending_does_not_matter(tmp_path: Path, listed: str, there: str) -> None:
    root = rewritten(vtab(tmp_path), lambda line: line.replace(".jpg", listed) + "\n")
    for file in root.rglob("*.jpg"):
        file.rename(file.with_suffix(there))
    task = load_task("vtab", root=root, task="kitti")
    assert {item.suffix for item in task.splits["train"].items} == {there}
    next(root.glob("kitti/images/train800/000003.*")).unlink()
    with pytest.raises(DataError, match=f"1 of the 8 images.*000003{listed}"):
        load_task("vtab", root=root, task="kitti")


def test_the_table_of_tasks_is_the_papers() -> None:
    assert {group: len(names) for group, names in VTAB_GROUPS.items()} == {
        "natural": 7, "specialized": 4, "structured": 8,
    }  # fmt: skip
    assert [name for names in VTAB_GROUPS.values() for name in names] == [task.name for task in VTAB]
    assert sum(task.classes for task in VTAB) == 940
    titles = [task.title for task in VTAB]
    assert titles[:3] == ["CIFAR-100", "Caltech101", "DTD"]
    assert titles[-2:] == ["sNORB-Azim", "sNORB-Ele"]
    assert sum(task.classes for task in FEW_SHOT) == 536
    code = "import sys, glora.tasks.data.paper_sets; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_missing_of_vtab_is_said_with_where_and_how_to_get_it(tmp_path: Path) -> None:
    def refused(*words: str, root: Path = tmp_path, task: str = "kitti") -> None:
        with pytest.raises(DataError) as caught:
            load_task("vtab", root=root, task=task)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert "NOAH" in caught.value.remedy

    refused("nowhere", "data.root", "KITTI-Dist", root=tmp_path / "nowhere")
    refused("no folder of VTAB's KITTI-Dist", "looked for kitti, kitti_distance", "It has no folders")
    vtab(tmp_path)
    refused("looked for cifar, cifar100", "Its folders are kitti", task="cifar")
    (tmp_path / "kitti" / "val200.txt").rename(tmp_path / "away.txt")
    refused("kitti/val200.txt' is missing")
    (tmp_path / "away.txt").rename(tmp_path / "kitti" / "val200.txt")
    for number in (1, 2, 4, 5):
        (tmp_path / "kitti" / "images" / "test" / f"{number:06}.jpg").unlink()
    refused("4 of the 6 images of test.txt are missing", f"{tmp_path}/kitti", "images/test/000001.jpg, ", "000004.jpg.")
    (tmp_path / "kitti" / "test.txt").write_text("")
    refused("test.txt' is empty")
    (tmp_path / "kitti" / "test.txt").unlink()
    refused("kitti' lacks 'test.txt'")


@pytest.mark.parametrize("line", ["images/test/000001.jpg", "images/test/000001.jpg 4", "images/test/0.jpg x", " 1"])
def test_a_line_that_names_no_image_or_no_class_is_told_with_its_number(tmp_path: Path, line: str) -> None:
    vtab(tmp_path)
    file = tmp_path / "kitti" / "test.txt"
    file.write_text(f"images/test/000000.jpg 1\n\n{line}\n")
    with pytest.raises(DataError, match=rf"test\.txt, line 3, is {line!r}.*a class from 0 to 3"):
        load_task("vtab", root=tmp_path, task="kitti")


@pytest.mark.parametrize("split", ["train800", "val200"])
def test_a_damaged_image_is_told(tmp_path: Path, split: str) -> None:
    vtab(tmp_path)
    (tmp_path / "kitti" / "images" / split / "000002.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"000002\.jpg' cannot be read"):
        load_task("vtab", root=tmp_path, task="kitti")


def test_no_test_image_is_opened_before_all_is_chosen(
    vtab_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = set[str](), Image.open

    def spy(file: Any, *given: Any, **named: Any) -> Any:
        opened.add(Path(file).parent.name)
        return real(file, *given, **named)

    monkeypatch.setattr(Image, "open", spy)
    search = {"searcher": {"name": "evolution", "population": 4, "generations": 1}}
    data = {"root": vtab_root, "task": "kitti"}
    run = Run(tiny(Path("vtab"), data=data, search=search, train={"epochs": 1}), tmp_path / "run", Recorder())
    run.train()
    run.search()
    assert opened == {"train800", "val200"}
    run.fit()
    assert opened == {"train800", "val200", "test"}


def test_fewer_images_than_a_batch_are_trained_on_and_the_group_is_in_the_result(
    vtab_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vtab_root.parent)
    data = {"root": vtab_root.name, "task": "kitti"}
    experiment = tiny(Path("vtab"), method="lora", data=data, train={"epochs": 2, "batch_size": 64})
    run = Run(experiment, tmp_path / "run", Recorder())
    assert run.experiment.data.root == vtab_root.resolve()  # a run folder may be opened from anywhere
    result = run.fit()
    assert result is not None
    assert (result.task, result.group, result.others) == ("kitti", "structured", {})
    assert result.example_steps == {"train": 2 * 8}
    assert result.metrics["test_examples"] == 6


# -- few-shot


def few_shot(root: Path, folder: str, images: str, *, twice: bool = False) -> Path:
    """Lists of two classes and their images, `images` being where the names of the lists count from."""
    train = [("a dog/1.jpg", 0), ("cat/1.jpg", 1)]
    lists = {
        "train_meta.list.num_shot_1.seed_2": train * 2 if twice else train,
        "val_meta.list": [("a dog/2.jpg", 0), ("cat/2.jpg", 1)],
        "test_meta.list": [("cat/3 b.jpg", 1), ("a dog/3.jpg", 0), ("cat/4.jpg", 1)],
    }
    for name, lines in lists.items():
        write_list(root / folder / "annotations" / name, lines)
        with_images(root / images, lines)
    return root


@pytest.mark.parametrize(
    ("folder", "images", "task"),
    [
        ("food101", "food101/images", "food101"),
        ("food-101", "food-101/images", "Food101"),
        ("standford-cars", "standford-cars", "stanford_cars"),
        ("oxford-flowers102", "oxford_flowers/images", "oxford_flowers"),  # lists and images as two copies have them
    ],
)
def test_a_few_shot_set_is_exactly_its_lists(tmp_path: Path, folder: str, images: str, task: str) -> None:
    few_shot(tmp_path, folder, images)
    found = load_task("fewshot", root=tmp_path, task=task, shots=1, list_seed=2)
    assert (found.name, found.group) == (by_name(task, FEW_SHOT).name, "1-shot")
    assert found.objective.outputs == by_name(task, FEW_SHOT).classes
    assert files_of(found.train, tmp_path / images) == [("a dog/1.jpg", 0), ("cat/1.jpg", 1)]
    assert files_of(found.test, tmp_path / images) == [("cat/3 b.jpg", 1), ("a dog/3.jpg", 0), ("cat/4.jpg", 1)]


def test_images_named_twice_count_once_and_that_is_said(tmp_path: Path) -> None:
    few_shot(tmp_path, "oxford-pets", "oxford-pets/images", twice=True)
    task = load_task("fewshot", root=tmp_path, task="pets", shots=1, list_seed=2)
    assert len(task.train) == 2
    words = "train_meta.list.num_shot_1.seed_2 names 2 of its 4 images again: each counts once, 2 are left."
    assert words in task.notes
    write_list(tmp_path / "oxford-pets" / "annotations" / "val_meta.list", [("cat/2.jpg", 1), ("cat/2.jpg", 0)])
    with pytest.raises(DataError, match=r"'cat/2\.jpg' two classes, in lines 1 and 2"):
        load_task("fewshot", root=tmp_path, task="pets", shots=1, list_seed=2)


def test_what_is_missing_of_a_few_shot_set_is_said(tmp_path: Path) -> None:
    few_shot(tmp_path, "fgvc-aircraft", "fgvc-aircraft/images")
    with pytest.raises(DataError, match=r"num_shot_16\.seed_0' is missing.*NOAH"):
        load_task("fewshot", root=tmp_path, task="aircraft")
    with pytest.raises(DataError, match=r"no folder of Food101: looked for food101, food-101.*fgvc-aircraft.*CoOp"):
        load_task("fewshot", root=tmp_path, task="food101")
    with pytest.raises(ConfigError, match="shots: "):
        load_task("fewshot", root=tmp_path, task="food101", shots=3)
    (tmp_path / "fgvc-aircraft" / "images" / "cat" / "4.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 3 images of .*test_meta\.list are missing.*cat/4\.jpg\."):
        load_task("fewshot", root=tmp_path, task="aircraft", shots=1, list_seed=2)


# -- ImageNet and its targets

TARGETS = {  # name -> folder of the images, and the lines of its list
    "imagenetv2": ("imagenetv2-matched-frequency-format-val", [("0/a.jpeg", 0), ("7/b.jpeg", 7)]),
    "imagenet-sketch": ("images", [("n01440764/s.JPEG", 0)]),
    "imagenet-adversarial": ("imagenet-a", [("n01498041/0.001 _ digital clock _ 0.8.jpg", 6), ("n1/b c.jpg", 988)]),
    "imagenet-rendition": ("imagenet-r", [("n01443537/art_0.jpg", 1), ("n2/x.jpg", 988), ("n2/y.jpg", 4)]),
}


def image_net(root: Path, *, listed: str = "", placed: str = "", targets: Sequence[str] = tuple(TARGETS)) -> Path:
    """A copy; `listed` and `placed` go before the names of val images in the list and in val/."""
    train = [("n01440764/1.JPEG", 0), ("n01440764/2.JPEG", 0), ("n01443537/3.JPEG", 1)]
    val = [("n01440764/8.JPEG", 0), ("n01443537/3.JPEG", 1), ("n01443537/9.JPEG", 1)]  # one is trained on
    test = [("ILSVRC2012_val_00000001.JPEG", 6), ("ILSVRC2012_val_00000002.JPEG", 0)]
    folder = root / "imagenet"
    write_list(folder / "annotations" / "train_meta.list.num_shot_16.seed_1", train)
    write_list(folder / "annotations" / "unofficial_val_list_4_shot16seed0", val)
    write_list(folder / "annotations" / "val_meta.list", [(f"{listed}{name}", label) for name, label in test])
    with_images(folder / "train", [*train, *val])
    with_images(folder / "val", [(f"{placed}{name}", label) for name, label in test])
    for name in targets:
        inside, lines = TARGETS[name]
        write_list(root / name / "annotations" / "val_meta.list", lines)
        with_images(root / name / inside, lines)
    return root


@pytest.mark.parametrize(("listed", "placed"), [("", ""), ("n1/", "n1/"), ("", "n1/"), ("n1/", ""), ("val/", "")])
def test_imagenet_is_its_lists_wherever_the_val_images_lie(tmp_path: Path, listed: str, placed: str) -> None:
    image_net(tmp_path, listed=listed, placed=placed)
    task = load_task("imagenet", root=tmp_path, list_seed=1)
    root = tmp_path / "imagenet" / "train"
    assert task.objective.outputs == 1000
    assert [name for name, _ in files_of(task.train, root)] == [
        "n01440764/1.JPEG",
        "n01440764/2.JPEG",
        "n01443537/3.JPEG",
    ]
    assert files_of(task.val, root) == [("n01440764/8.JPEG", 0), ("n01443537/9.JPEG", 1)]
    assert "Left out of val, because they are trained on: 1 images." in task.notes
    assert files_of(task.test, tmp_path / "imagenet" / "val") == [
        (f"{placed}ILSVRC2012_val_00000001.JPEG", 6), (f"{placed}ILSVRC2012_val_00000002.JPEG", 0),
    ]  # fmt: skip


def test_a_target_with_a_class_that_it_has_not_is_refused(tmp_path: Path) -> None:
    """Its labels would be numbers of its own 200 classes, and each would count as wrong."""
    image_net(tmp_path, targets=["imagenet-adversarial"])
    file = tmp_path / "imagenet-adversarial" / "annotations" / "val_meta.list"
    file.write_text(file.read_text().replace(" 6\n", " 5\n"))
    with pytest.raises(DataError, match=r"val_meta\.list has the class 5, which is none of ImageNet-A's 200"):
        load_task("imagenet", root=tmp_path, list_seed=1)


def test_the_targets_are_further_test_sets_and_missing_ones_are_said(tmp_path: Path) -> None:
    image_net(tmp_path, targets=["imagenetv2", "imagenet-adversarial"])
    lines = TARGETS["imagenet-rendition"][1]
    write_list(tmp_path / "imagenet-rendition" / "annotations" / "val_meta.list", lines)  # the list alone
    task = load_task("imagenet", root=tmp_path, list_seed=1)
    assert list(task.others) == ["imagenetv2", "imagenet-adversarial"]
    inside, lines = TARGETS["imagenet-adversarial"]
    assert files_of(task.others["imagenet-adversarial"], tmp_path / "imagenet-adversarial" / inside) == lines
    assert list(task.among) == ["imagenet-adversarial"]
    told = "\n".join(task.notes)
    assert "ImageNet-Sketch is not tested: there is no imagenet-sketch/annotations/val_meta.list." in told
    assert "ImageNet-R is not tested: none of its 3 images is in imagenet-rendition." in told
    train, val, test = (set(split.items) for split in (task.train, task.val, task.test))
    assert not val & (train | test | {item for other in task.others.values() for item in other.items})
    prepared = task.prepared(Preprocess((4, 4)))
    assert prepared.others["imagenetv2"].batch([0, 1]).targets.tolist() == [0, 7]
    (tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / "7" / "b.jpeg").unlink()
    with pytest.raises(DataError, match=r"1 of the 2 images of imagenetv2/annotations/val_meta\.list are missing"):
        load_task("imagenet", root=tmp_path, list_seed=1)


def test_what_is_missing_of_imagenet_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder of ImageNet: looked for imagenet\..*NOAH"):
        load_task("imagenet", root=tmp_path)
    image_net(tmp_path)
    with pytest.raises(DataError, match=r"num_shot_16\.seed_0' is missing"):
        load_task("imagenet", root=tmp_path)
    (tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(DataError, match=r"1 of the 2 images of imagenet/annotations/val_meta\.list are missing"):
        load_task("imagenet", root=tmp_path, list_seed=1)


def test_the_classes_of_a_and_r_are_200_each_and_86_in_common() -> None:
    a, r = (set(target.classes) for target in IMAGENET_TARGETS[2:])
    assert (len(a), len(r), len(a & r)) == (200, 200, 86)
    assert {6, 988} <= a
    assert {1, 988} <= r
    assert max(a | r) < 1000


def test_a_score_among_some_classes_is_that_of_their_outputs_alone() -> None:
    logits = torch.tensor([[5.0, 1, 2, 0], [0, 3, 1, 4], [9, 8, 7, 6]])
    batch = Batch(None, torch.tensor([2, 1, 1]))
    objective, some = Classify(), [1, 2]
    values = objective.values(objective.among(logits, some), batch)
    narrow = logits[:, some]
    assert values["accuracy"].tolist() == [1, 1, 1]
    assert objective.values(logits, batch)["accuracy"].tolist() == [0, 0, 0]
    by_hand = narrow.logsumexp(-1) - torch.tensor([2.0, 3, 8])
    torch.testing.assert_close(values["loss"], by_hand)
    assert MultiLabel().among(logits, some) is None


class CountedReads(ImageSet):
    """Counts how often each image is read, and keeps the order of the sets."""

    reads: Counter[Path]

    def _with(self, *args: Any) -> ImageSet:
        return counted(super()._with(*args), self.reads)

    def batch(self, indices: Any) -> Any:
        self.reads.update(self.items[int(index)] for index in indices)
        return super().batch(indices)


def counted(images: Any, reads: Counter[Path]) -> CountedReads:
    found = CountedReads(images.items, images.targets, strata=images.strata, preprocess=images.preprocess)
    found.reads = reads
    return found


def test_further_test_sets_are_read_once_at_the_end_and_only_by_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_net(tmp_path)
    reads: Counter[Path] = Counter()
    load = ImageNet.load

    def counting(self: ImageNet, objective: Any) -> Task:
        import dataclasses

        task = load(self, objective)
        others = {name: counted(images, reads) for name, images in task.others.items()}
        return dataclasses.replace(task, others=others)

    monkeypatch.setattr(ImageNet, "load", counting)
    data = {"root": str(tmp_path), "list_seed": 1, "aside": 0}
    search = {"rescore": 0, "controls": 2}
    run = Run(tiny(Path("imagenet"), data=data, search=search), tmp_path / "run", Recorder())
    run.train()
    run.search()
    assert not reads
    result = run.evaluate()
    assert result is not None
    assert len(reads) == sum(len(lines) for _, lines in TARGETS.values())
    assert set(reads.values()) == {1}
    assert list(result.others) == list(TARGETS)
    assert Result.read(run.folder.result).others == result.others
    assert "others" not in result.controls
    again = run.evaluate()
    assert again == result
    assert set(reads.values()) == {1}
    check_by_hand(run, result)


def check_by_hand(run: Run, result: Result) -> None:
    """Both accuracies of A and R against the loaded model's logits."""
    model: nn.Module = run.load().model
    for name, classes in ((target.name, target.classes) for target in IMAGENET_TARGETS):
        examples = run.task.others[name]
        x, y, _ = examples.batch(range(len(examples)))
        with torch.no_grad():
            logits = model(x)
        row = result.others[name]
        assert row["examples"] == len(y)
        assert row["accuracy"] == pytest.approx((logits.argmax(-1) == y).float().mean().item())
        if not classes:
            assert "accuracy_200way" not in row
            continue
        narrow = torch.tensor(classes)[logits[:, list(classes)].argmax(-1)]
        assert row["accuracy_200way"] == pytest.approx((narrow == y).float().mean().item())
        places = torch.tensor([classes.index(int(label)) for label in y])
        loss = nn.functional.cross_entropy(logits[:, list(classes)], places).item()
        assert row["loss_200way"] == pytest.approx(loss, rel=1e-4)


# -- Hugging Face

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that save_to_disk wrote: `alone`, `split`, `two`, `plain`."""
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("saved")
    features = datasets.Features({
        "id": datasets.Value("int64"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["zebra", "ant"]),
        "weight": datasets.Value("float32"),
        "tags": datasets.Sequence(datasets.ClassLabel(names=["hot", "cold"])),
    })  # fmt: skip

    def made(count: int) -> Any:
        rows = {
            "id": list(range(count)),
            "picture": [Image.new("RGB", (5, 4), (20 * n, 0, 0)) for n in range(count)],
            "kind": [n % 2 for n in range(count)],
            "weight": [n / 4 for n in range(count)],
            "tags": [[0, 1][: 1 + n % 2] for n in range(count)],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    made(10).save_to_disk(root / "alone")
    datasets.DatasetDict({"train": made(6), "validation": made(4), "test": made(2)}).save_to_disk(root / "split")
    datasets.DatasetDict({"train": made(10), "validation": made(4), "extra": made(2)}).save_to_disk(root / "two")
    made(4).remove_columns(["picture"]).save_to_disk(root / "plain")
    return root


def test_a_folder_of_save_to_disk_is_found_by_itself(saved: Path) -> None:
    task = load_task(saved / "split")
    assert (task.name, task.objective.classes) == ("split", ("zebra", "ant"))
    assert {name: split.targets.tolist() for name, split in task.splits.items()} == {
        "train": [0, 1, 0, 1, 0, 1], "val": [0, 1, 0, 1], "test": [0, 1],
    }  # fmt: skip
    raw = Preprocess((4, 5), (0, 0, 0), (1, 1, 1))
    x = task.prepared(raw).train.batch([0, 3]).inputs
    torch.testing.assert_close(x[:, 0], (torch.tensor([0, 60]) / 255).view(2, 1, 1).expand(2, 4, 5))
    assert load_task(saved / "split").fingerprint == task.fingerprint


def test_parquet_files_that_hold_images_are_read_as_hubs_have_them(saved: Path, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    whole = datasets.load_from_disk(str(saved / "split"))
    for folder in ("hub/data", "flat"):
        (tmp_path / folder).mkdir(parents=True)
        for name, part in whole.items():
            for k in range(2):
                part.shard(2, k).to_parquet(tmp_path / folder / f"{name}-0000{k}-of-00002.parquet")
        task = load_task(tmp_path / folder.partition("/")[0])
        assert {name: len(split) for name, split in task.splits.items()} == {"train": 6, "val": 4, "test": 2}
        assert task.objective.classes == ("zebra", "ant")
    datasets.load_from_disk(str(saved / "alone")).to_parquet(tmp_path / "alone.parquet")
    assert load_task(tmp_path / "alone.parquet", seed=3).fingerprint == load_task(saved / "alone", seed=3).fingerprint
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    draw(tmp_path / "one.png")
    image = {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}  # as pandas writes it: nothing says what it is
    plain = arrow.table({"image": [image] * 10, "label": ["a", "b"] * 5})
    parquet.write_table(plain, tmp_path / "plain.parquet")
    assert load_task(tmp_path / "plain.parquet").objective.classes == ("a", "b")
    parquet.write_table(plain, tmp_path / "flat" / "more.parquet")
    with pytest.raises(DataError, match=r"more.parquet in .*flat' tell no split"):
        load_task(tmp_path / "flat")


def test_one_table_is_cut_as_everywhere_and_splits_go_by_their_names(saved: Path) -> None:
    alone = load_task(saved / "alone", seed=3)
    assert [len(split) for split in alone.splits.values()] == [6, 2, 2]
    two = load_task(saved / "two")
    assert [len(split) for split in two.splits.values()] == [8, 2, 4]
    assert "There is no test split: val is taken for it." in two.notes
    assert "Splits that are not used: extra." in two.notes


def test_columns_are_named_by_settings(saved: Path) -> None:
    weighed = load_task(saved / "split", columns=["weight"], objective=load_objective("regress"))
    assert weighed.train.targets.tolist() == [[n / 4] for n in range(6)]
    tagged = load_task(saved / "split", columns=["tags"], objective=MultiLabel())
    assert tagged.objective.outputs == 2
    assert tagged.train.targets.sum(0).tolist() == [3, 6]  # cold, hot
    with pytest.raises(DataError, match=r"no column 'weigth'.*Did you mean 'weight'"):
        load_task(saved / "split", columns=["weigth"])
    with pytest.raises(DataError, match="no column of images"):
        load_task(saved / "plain")


def load_objective(name: str) -> Any:
    from glora.registry import lookup
    from glora.tasks.objectives import OBJECTIVES

    return lookup(OBJECTIVES, name, kind="objective")()


def test_a_partial_copy_and_an_unknown_name_are_told(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(saved / "split", tmp_path / "part")
    [arrow] = (tmp_path / "part" / "test").glob("*.arrow")
    arrow.unlink()
    with pytest.raises(DataError, match=r"part' cannot be loaded: .*arrow.*Copy the whole folder again"):
        load_task(tmp_path / "part")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'nobody/nothing' cannot be loaded.*Check the name and the network"):
        load_task("nobody/nothing", format="hugging_face")


def test_an_image_that_cannot_be_read_is_told_or_left_out(tmp_path: Path) -> None:
    draw(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    images = [{"bytes": good if n != 4 else good[:40], "path": None} for n in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 5}, features=features)
    datasets.disable_progress_bars()
    rows.save_to_disk(tmp_path / "bad")
    with pytest.raises(DataError, match=r"row\[4\]' cannot be read"):
        load_task(tmp_path / "bad")
    task = load_task(tmp_path / "bad", on_bad_image="skip")
    assert sum(len(split) for split in task.splits.values()) == 9
    assert any("Skipped 1 unreadable image" in note for note in task.notes)


def test_a_run_learns_from_a_saved_folder_and_tests_on_another(saved: Path, tmp_path: Path) -> None:
    run = Run(tiny(saved / "alone", method="lora", train={"epochs": 1}), tmp_path / "run", Recorder())
    assert run.fit() is not None
    found, _ = run.load().evaluate_on(saved / "split")
    assert len(found) == 12
    with pytest.raises(ConfigError, match=r"root: missing"):
        run.load().evaluate_on("vtab")


# -- torchvision


def mnist(root: Path, *, train: int = 20, test: int = 10) -> Path:
    """Raw files in torchvision's layout."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        pixels = np.stack([np.full((28, 28), 10 * n, dtype=np.uint8) for n in range(count)])
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return root


def test_a_set_of_torchvision_by_name(tmp_path: Path) -> None:
    task = load_task("torchvision", name="MNIST", root=mnist(tmp_path), val=10)
    assert (task.name, task.objective.outputs) == ("mnist", 10)
    assert task.objective.classes[1] == "1 - one"
    assert [len(split) for split in task.splits.values()] == [10, 10, 10]
    assert task.test.targets.tolist() == list(range(10))
    x = task.prepared(Preprocess((28, 28), (0, 0, 0), (1, 1, 1))).test.batch([3]).inputs
    torch.testing.assert_close(x, torch.full((1, 3, 28, 28), 30 / 255))


def test_files_that_torchvision_finds_are_read_as_files(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        for number in range(10):
            draw(tmp_path / "eurosat" / "2750" / name / f"{name}_{number}.jpg", number)
    task = load_task("torchvision", name="EuroSAT", root=tmp_path)
    assert task.objective.classes == ("Forest", "River")
    assert [len(split) for split in task.splits.values()] == [13, 3, 4]
    named = [
        (item.name.partition("_")[0], label) for item, label in zip(task.test.items, task.test.targets, strict=True)
    ]
    assert all(task.objective.classes[label] == name for name, label in named)
    (tmp_path / "eurosat" / "2750" / "River" / "River_3.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"River_3\.jpg' cannot be read"):
        load_task("torchvision", name="EuroSAT", root=tmp_path)


def test_images_that_torchvision_alone_can_read_are_read_by_it(tmp_path: Path) -> None:
    for name, level in (("ant", 20), ("bee", 200)):
        for number in range(1, 11):
            draw(tmp_path / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04}.jpg", level)
    for folder in ("Annotations", "101_ObjectCategories/BACKGROUND_Google"):
        (tmp_path / "caltech101" / folder).mkdir()
    task = load_task("torchvision", name="Caltech101", root=tmp_path)
    assert task.objective.classes == ("ant", "bee")
    x, y, _ = task.prepared(Preprocess((4, 4), (0, 0, 0), (1, 1, 1))).test.batch(range(4))
    assert ((x.mean((1, 2, 3)) > 0.5).long() == y).all()
    assert load_task("torchvision", name="Caltech101", root=tmp_path).fingerprint == task.fingerprint


def test_what_is_missing_of_torchvisions_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"CIFAR100 cannot be read in '{re.escape(str(tmp_path))}'.*data\.download=true"
    ):
        load_task("torchvision", name="CIFAR100", root=tmp_path)
    with pytest.raises(DataError, match=r"MNIST cannot be read in '.*nowhere'.*no such folder"):
        load_task("torchvision", name="MNIST", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"StanfordCars .*torchvision does not download StanfordCars"):
        load_task("torchvision", name="StanfordCars", root=tmp_path)
    with pytest.raises(DataError, match=r"no data set 'cifar-100'.*Did you mean 'CIFAR100'"):
        load_task("torchvision", name="cifar-100", root=tmp_path)
    with pytest.raises(DataError, match=r"no argument 'partitoin'.*Did you mean 'partition'"):
        load_task("torchvision", name="DTD", root=tmp_path, options={"partitoin": 2})


def test_every_set_of_the_table_is_torchvisions_and_takes_what_it_is_called_with() -> None:
    import inspect

    import torchvision.datasets

    for name, parts in torchvision_sets.SETS.items():
        known = inspect.signature(getattr(torchvision.datasets, name)).parameters
        others = {"train"} if "kwargs" in known else set()  # of MNIST, whose subclasses hand them on
        assert all(argument in {*known, *others} for given in parts.values() for argument in given), name
        assert "download" in known or "kwargs" in known or name in torchvision_sets.NO_DOWNLOAD, name
        assert set(parts) in ({""}, {"train", "test"}, {"train", "val", "test"}), name


# -- all of them


def test_the_sources_are_listed_with_a_line_each() -> None:
    lines = {line.split()[0]: line for line in listing("data")}
    for name in ("vtab", "fewshot", "imagenet", "hugging_face", "torchvision"):
        assert len(lines[name].split()) > 5, name


def test_a_setting_that_is_missing_is_told_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"data\.root: missing"):
        tiny(Path("vtab"), data={"task": "dtd"})
    config = json.loads(tiny(Path("vtab"), data={"task": "dtd", "root": "x"}).model_dump_json())
    assert config["data"]["task"] == "dtd"
