"""The five fine-grained few-shot sets of the paper: NOAH's lists beside the images as CoOp keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from glora.tasks.data.lists import ImageList, check_images, expected, folder_of, place_of, pool_of, read_list
from glora.tasks.data.paper_sets import FEW_SHOT, FewShotSet, by_name
from glora.tasks.objective import Objective
from glora.tasks.task import DataSettings, Task, assemble

__all__ = ["FewShot"]

GET = (
    "The lists are in data/few-shot of NOAH's repository (github.com/ZhangYuanhan-AI/NOAH), the images are got as"
    " DATASETS.md of CoOp (github.com/KaiyangZhou/CoOp) says; put both under data.root: docs/guide/data.md."
)


class FewShot(DataSettings):
    """Food101, Cars, Flowers102, Pets or Aircraft with 1 to 16 images a class, as NOAH's lists have them.

    Source: NOAH (arXiv 2206.04673), Sec. 4.2.
    """

    root: Path = Field(description="The folder of the five folders: food101, stanford_cars, ...")
    task: Annotated[str, AfterValidator(lambda name: by_name(name, FEW_SHOT).name)] = Field(
        description="food101, stanford_cars, oxford_flowers, oxford_pets or fgvc_aircraft."
    )
    shots: Literal[1, 2, 4, 8, 16] = Field(16, description="Training images of each class.")
    list_seed: Literal[0, 1, 2] = Field(0, description="Which of the three draws of training images.")

    def load(self, objective: Objective) -> Task:
        task = by_name(self.task, FEW_SHOT)
        assert isinstance(task, FewShotSet)
        aliases = (task.name, *task.others)
        folder = folder_of(self.root, aliases, task.title, inside="annotations", remedy=GET)
        beside = [folder.parent / name for name in aliases if (folder.parent / name).is_dir()]
        bases = [base for each in dict.fromkeys((folder, *beside)) for base in (each / "images", each)]
        lists, notes = self._lists(folder / "annotations", task)
        names = tuple(map(str, range(task.classes)))
        pools = {
            split: pool_of(
                found, place_of(found, bases) or bases[0].joinpath, names=names, root=folder.parent, remedy=GET
            )
            for split, found in lists.items()
        }
        check_images(pools)
        group = f"{self.shots}-shot"
        return assemble(task.name, pools, objective, self, notes=notes, root=folder.parent, group=group)

    def _lists(self, annotations: Path, task: FewShotSet) -> tuple[dict[str, ImageList], list[str]]:
        """The lists of train, val and test, and what a user should be told of them."""
        files = {
            "train": f"train_meta.list.num_shot_{self.shots}.seed_{self.list_seed}",
            "val": "val_meta.list",
            "test": "test_meta.list",
        }
        lists, notes = dict[str, ImageList](), list[str]()
        for split, name in files.items():
            found = read_list(annotations / name, classes=task.classes, remedy=GET)
            lists[split], again = found.once()
            notes += again
        known = {"train": task.classes * self.shots, "val": task.val, "test": task.test}
        return lists, [*notes, *expected((files[split], len(lists[split]), known[split]) for split in known)]
