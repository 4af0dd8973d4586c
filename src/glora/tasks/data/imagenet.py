"""ImageNet with 16 images a class, and the four test sets that the model is carried over to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from glora.errors import DataError
from glora.tasks.data.lists import ImageList, check_images, expected, folder_of, place_of, pool_of, read_list
from glora.tasks.data.paper_sets import IMAGENET_TARGETS, ImageNetTarget
from glora.tasks.objective import Objective
from glora.tasks.task import DataSettings, Pool, Task, assemble

__all__ = ["ImageNet"]

CLASSES, SHOTS = 1_000, 16
VAL = "unofficial_val_list_4_shot16seed0"
SIZES = {"train": CLASSES * SHOTS, "val": 2_959, "test": 50_000}
GET = (
    "The lists are in data/few-shot and data/domain-generalization of NOAH's repository"
    " (github.com/ZhangYuanhan-AI/NOAH), the images are got as DATASETS.md of CoOp (github.com/KaiyangZhou/CoOp) says;"
    " put both under data.root: docs/guide/data.md."
)


class ImageNet(DataSettings):
    """ImageNet, 16 images a class; tested on its val list and carried over to V2, Sketch, A and R.

    Val, which chooses, are other training images of ImageNet: no target is looked at before the end.

    Source: NOAH (arXiv 2206.04673), Sec. 4.3.
    """

    root: Path = Field(description="The folder of the folders imagenet, imagenetv2, ...")
    list_seed: Literal[0, 1, 2] = Field(0, description="Which of the three draws of training images.")

    def load(self, objective: Objective) -> Task:
        folder = folder_of(self.root, ("imagenet",), "ImageNet", inside="annotations", remedy=GET)
        lists, notes = self._lists(folder / "annotations")
        names = _class_names(lists["train"])
        bases = (folder / "train", folder / "images" / "train", folder, folder / "images")
        places: dict[str, Callable[[str], Path]] = {
            split: place_of(lists[split], bases) or bases[0].joinpath for split in ("train", "val")
        }
        places["test"] = _val_images(folder, lists["test"])
        pools = {
            split: pool_of(found, places[split], names=names, root=folder.parent, remedy=GET)
            for split, found in lists.items()
        }
        check_images(pools)
        others, among = dict[str, Pool](), dict[str, tuple[int, ...]]()
        for target in IMAGENET_TARGETS:
            pool, told = _target(folder.parent, target, names)
            notes += told
            if pool is not None:
                others[target.name] = pool
                among |= {target.name: target.classes} if target.classes else {}
        return assemble("imagenet", pools, objective, self, notes=notes, root=folder.parent, others=others, among=among)

    def _lists(self, annotations: Path) -> tuple[dict[str, ImageList], list[str]]:
        """The lists of train, val and test, and what a user should be told of them."""
        files = {
            "train": f"train_meta.list.num_shot_{SHOTS}.seed_{self.list_seed}",
            "val": VAL,
            "test": "val_meta.list",
        }
        lists, notes = dict[str, ImageList](), list[str]()
        for split, name in files.items():
            found = read_list(annotations / name, classes=CLASSES, remedy=GET)
            lists[split], again = found.once()
            notes += again
        notes += expected((files[split], len(lists[split]), known) for split, known in SIZES.items())
        trained = {Path(name).name for name in lists["train"].names}  # the two lists may or may not say train/
        free = [place for place, name in enumerate(lists["val"].names) if Path(name).name not in trained]
        if len(free) < len(lists["val"]):  # it was drawn beside the training list of seed 0 alone
            notes.append(f"Left out of val, because they are trained on: {len(lists['val']) - len(free)} images.")
            lists["val"] = lists["val"].kept(free)
        return lists, notes


def _class_names(train: ImageList) -> tuple[str, ...]:
    """The WordNet id of every class, which the folders of the training images tell; else their numbers."""
    folders = {label: Path(name).parent.name for name, label in zip(train.names, train.labels, strict=True)}
    told = len(set(folders.values()) - {""}) == CLASSES
    return tuple(folders[label] if told else str(label) for label in range(CLASSES))


def _val_images(folder: Path, found: ImageList) -> Callable[[str], Path]:
    """Where an image of the val list is: as the list says, or under val/, flat or in folders of classes."""
    bases = (folder / "val", folder, folder / "images" / "val", folder / "images")
    if (place := place_of(found, bases)) is not None:
        return place
    below = next((each for each in bases if each.name == "val" and each.is_dir()), folder / "val")
    files = {file.name: file for file in sorted(below.rglob("*")) if file.is_file()} if below.is_dir() else {}
    return lambda name: files.get(Path(name).name, below / Path(name).name)


def _target(root: Path, target: ImageNetTarget, names: tuple[str, ...]) -> tuple[Pool | None, list[str]]:
    """A further test set; None where it is not there, and what is to be told of it."""
    folder = root / target.name
    file = folder / "annotations" / "val_meta.list"
    if not file.is_file():
        return None, [f"ImageNet{target.title} is not tested: there is no {target.name}/annotations/val_meta.list."]
    found, notes = read_list(file, classes=CLASSES, remedy=GET).once()
    if target.classes and (odd := sorted({*found.labels} - {*target.classes})):
        raise DataError(
            f"{file} has the class {odd[0]}, which is none of ImageNet{target.title}'s {len(target.classes)}.",
            allowed="Labels are ImageNet's own, 0 to 999, not numbers of the set's classes.",
            remedy=GET,
        )
    place = place_of(found, [folder, *(folder / each for each in target.folders), folder / "images"])
    if place is None:
        return None, [f"ImageNet{target.title} is not tested: none of its {len(found):,} images is in {target.name}."]
    pool = pool_of(found, place, names=names, root=root, remedy=GET)
    return pool, [*notes, *expected([(f"{target.name}/annotations/val_meta.list", len(found), target.test)])]
