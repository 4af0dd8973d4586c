"""VTAB-1K in the layout that NOAH's exporter writes, which FacT, RepAdapter, SSF and GLoRA share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from glora.tasks.data.lists import ImageList, check_images, expected, folder_of, place_of, pool_of, read_list
from glora.tasks.data.paper_sets import VTAB, VtabTask, by_name
from glora.tasks.objective import Objective
from glora.tasks.task import DataSettings, Task, assemble

__all__ = ["Vtab"]

GET = (
    "Get vtab-1k as the README of NOAH (github.com/ZhangYuanhan-AI/NOAH) or RepAdapter"
    " (github.com/luogen1996/RepAdapter) says, unpack it, and set data.root to the folder that holds cifar/,"
    " caltech101/, ...: docs/guide/data.md."
)


class Vtab(DataSettings):
    """VTAB-1K: 19 tasks of 800 train and 200 val images, in the shared layout under a root.

    Source: arXiv 1910.04867; the copy of NOAH (arXiv 2206.04673), whose files are JPEGs of quality 75.
    """

    root: Path = Field(description="The folder of the 19 folders: cifar, caltech101, ...")
    task: Annotated[str, AfterValidator(lambda name: by_name(name, VTAB).name)] = Field(
        description="One of the 19 tasks: cifar, caltech101, ..., or as the paper calls it."
    )
    splits: Literal["train800", "train800val200"] = Field(
        "train800", description="What is trained on; train800val200 is all 1,000, val among them."
    )

    @model_validator(mode="after")
    def _folds(self) -> Vtab:
        if self.splits == "train800val200" and self.folds > 1:
            raise ValueError(f"folds={self.folds} needs splits=train800: with train800val200 val is in train twice")
        return self

    def load(self, objective: Objective) -> Task:
        task = by_name(self.task, VTAB)
        assert isinstance(task, VtabTask)
        inside = "test.txt"
        folder = folder_of(self.root, (task.name, *task.others), f"VTAB's {task.title}", inside=inside, remedy=GET)
        files = {"train": self.splits, "val": "val200", "test": "test"}
        lists = {
            split: read_list(folder / f"{name}.txt", classes=task.classes, remedy=GET) for split, name in files.items()
        }
        names = tuple(map(str, range(task.classes)))
        places = {split: place_of(found, (folder, folder.parent)) or folder.joinpath for split, found in lists.items()}
        pools = {
            split: pool_of(found, places[split], names=names, root=folder, remedy=GET) for split, found in lists.items()
        }
        check_images(pools)
        notes = self._notes(task, lists)
        return assemble(task.name, pools, objective, self, notes=notes, root=folder, group=task.group)

    def _notes(self, task: VtabTask, lists: dict[str, ImageList]) -> list[str]:
        known = {"train": 800 if self.splits == "train800" else 1_000, "val": 200, "test": task.test}
        notes = expected((f"{task.name}/{lists[split].path.name}", len(lists[split]), known[split]) for split in known)
        if self.splits == "train800val200":
            notes.append("val was trained on (splits=train800val200): what is measured on val tells nothing.")
        return notes
