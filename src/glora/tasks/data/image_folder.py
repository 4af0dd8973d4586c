"""A folder of images as a task: `class/*.jpg`, or `train/`, `val/` and `test/` of such folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glora.errors import DataError, listed, shown
from glora.tasks.data.scan import Scan, direct_images, folders, is_run_folder, plain_name, scan
from glora.tasks.images import ImageSet, checked
from glora.tasks.objective import Objective, Targets
from glora.tasks.splits import SPLITS
from glora.tasks.task import DataSettings, OnBadImage, Pool, Task, assemble

__all__ = ["TABLES", "ImageFolder", "skipped"]

TABLES = (".csv", ".tsv", ".parquet")
_LAYOUT = "Put the images of each class in a folder of its own: cat/1.jpg, dog/1.jpg."


class ImageFolder(DataSettings):
    """`class/*.jpg`, or `train/`, `val/` and `test/` of such folders; every image is decoded once at loading."""

    reads_paths = True

    format: Literal["image_folder"] = Field("image_folder", description="A folder of images for each class.")
    on_bad_image: OnBadImage = Field("error", description="What to do with unreadable images.")

    @classmethod
    def detects(cls, path: Path) -> bool:
        return path.is_dir()

    def load(self, objective: Objective) -> Task:
        path = _folder(self.source)
        splits = _split_folders(path)
        rest = Scan()
        found = {name: _class_folders(folder, rest, name) for name, folder in splits.items()}
        notes = [*_strays(path, splits), *rest.notes]
        classes = _agreed_classes(path, found)
        bad, flat = checked([file for pool in found.values() for files in pool.values() for file in files])
        notes += [*skipped(bad, path, self.on_bad_image), *flat]
        pools = {name: _pool(pool, classes, bad) for name, pool in found.items()}
        for name in pools.keys() - {""}:
            _check_split(path, name, pools[name], classes)
        return assemble(path.name, pools, objective, self, notes=notes, root=path)

    def load_all(self, objective: Objective) -> tuple[ImageSet, list[str]]:
        path, classes = _folder(self.source), list(objective.strata_names)
        rest = Scan()
        found = {name: files for name, files in _class_folders(path, rest).items() if files}
        if unknown := [name for name in found if name not in classes]:
            raise DataError(
                f"{str(path)!r} has the class folders {listed(unknown)}, which the run does not know.",
                allowed=f"Its classes are {listed(classes, n=20)}.",
                remedy="Give the folder that holds class folders of these names.",
            )
        bad, flat = checked([file for files in found.values() for file in files])
        notes = [*_strays(path, {"": path}), *rest.notes, *skipped(bad, path, self.on_bad_image), *flat]
        if missing := [name for name in classes if name not in found]:
            notes.append(f"There are no images of {listed(missing, n=20)}.")
        pool = _pool({name: found.get(name, []) for name in classes}, classes, bad)
        if not pool.items:
            raise DataError(f"No image of {str(path)!r} can be read.", remedy="Check the files.")
        return ImageSet(pool.items, objective.encode(pool.targets)), notes


def _folder(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"There is no folder {str(path)!r}.", allowed=_LAYOUT)
    if not path.is_dir():
        raise DataError(
            f"{str(path)!r} is a file of no kind that is known.",
            allowed=f"{_LAYOUT} Texts are in files that end in .json, .jsonl, .csv, .tsv, .parquet or .txt.",
            remedy="Rename the file, or name its format: --set data.format=text",
        )
    return path.resolve()


def _split_folders(path: Path) -> dict[str, Path]:
    """Split name to folder; a folder without splits of its own is `{"": path}`."""
    found: dict[str, Path] = {}
    for folder in folders(path):
        name = SPLITS.get(folder.name.lower())
        if name in found:
            raise DataError(
                f"{str(path)!r} has two {name} folders: {found[name].name!r} and {folder.name!r}.",
                remedy="Keep one of them.",
            )
        if name:
            found[name] = folder
    if "train" not in found or (len(found) == 1 and len(folders(path)) > 1):
        return {"": path}  # a class may be called `train`
    if "test" not in found:
        raise DataError(
            f"{str(path)!r} has a train folder but no test folder.",
            allowed="Either train/, test/ and maybe val/, or one folder for each class.",
            remedy="Add test/, or move the class folders up so that glora makes the split.",
        )
    return found


def _class_folders(folder: Path, rest: Scan, split: str = "") -> dict[str, list[Path]]:
    """The images of each class; what else there is goes to `rest`.

    Raises:
        DataError: There are no images, or none in a class folder; two folders have names that look the same.
    """
    pool: dict[str, list[Path]] = {}
    for entry in folders(folder):
        if is_run_folder(entry):
            continue  # told by _strays
        found, name = scan(entry), plain_name(entry)
        if name in pool:
            raise DataError(
                f"{shown(str(folder))!r} has two class folders {name!r}, spelled with other code points.",
                remedy="Put their images into one.",
            )
        pool[name] = found.images
        rest.add(found)
    if any(pool.values()):
        return pool
    if scan(folder).images:
        raise DataError(f"The images in {str(folder)!r} are in no class folder.", remedy=_LAYOUT)
    tables = sorted(each.name for each in folder.iterdir() if each.suffix.lower() in TABLES)
    named = f"Name the table: --data {folder / tables[0]}" if tables else _LAYOUT
    raise DataError(
        f"There are no images in {str(folder)!r}{f', but {listed(tables)}' if tables else ''}.",
        allowed="An image is whatever Pillow opens as a picture: JPEG, PNG, TIFF, WebP, ...",
        remedy="Add images to val/, or remove the folder: val is then cut from train." if split == "val" else named,
    )


def _agreed_classes(path: Path, pools: dict[str, dict[str, list[Path]]]) -> list[str]:
    every = sorted({name for pool in pools.values() for name in pool})
    for split, pool in pools.items():
        lacking = [name for name in every if name not in pool]
        if lacking:
            raise DataError(
                f"The splits of {str(path)!r} have different classes: {split} lacks {listed(lacking)}.",
                allowed="Every split needs the same class folders.",
                remedy=f"Add images of the class to {split}/, or remove it from the others.",
            )
        empty = [name for name in every if not pool[name]]
        if empty:
            raise DataError(
                f"The class folder {empty[0]!r} of {split or str(path)!r} holds no images.",
                remedy="Add images, or remove the folder.",
            )
    if len(every) < 2:
        raise DataError(
            f"{str(path)!r} holds only one class, {every[0]!r}.",
            allowed="A classifier needs at least two classes.",
            remedy=_LAYOUT,
        )
    return every


def _pool(found: dict[str, list[Path]], classes: list[str], bad: dict[Path, str]) -> Pool:
    """The readable images, class by class."""
    good = [(file, label) for label, name in enumerate(classes) for file in found[name] if file not in bad]
    rows = [(label,) for _, label in good]
    return Pool([file for file, _ in good], Targets(("class",), rows, names=tuple(classes)))


def skipped(bad: Mapping[Any, str], path: Path | None, on_bad_image: str) -> list[str]:
    """What is to be told of unreadable images, named relative to the path where they are in it.

    Raises:
        DataError: There are some, and they are not to be skipped.
    """
    if not bad:
        return []
    if on_bad_image == "error":
        file, reason = next(iter(bad.items()))
        others = f" (and {len(bad) - 1} more: {listed(map(str, list(bad)[1:]))})" if len(bad) > 1 else ""
        raise DataError(
            f"The image {str(file)!r} cannot be read: {reason.rstrip('.')}{others}.",
            remedy="Replace or remove it, or leave such images out with --on-bad-image skip.",
        )
    names = ", ".join(_name(file, path) for file in bad)
    return [f"Skipped {len(bad)} unreadable image{'s' if len(bad) > 1 else ''}: {names}."]


def _name(file: Any, path: Path | None) -> str:
    if not isinstance(file, Path):
        return str(file)
    return shown((file.relative_to(path) if path and file.is_relative_to(path) else file).as_posix())


def _strays(path: Path, splits: dict[str, Path]) -> list[str]:
    """Sentences on what lies in the folder and is not used."""
    notes = []
    runs = [plain_name(entry) for entry in folders(path) if is_run_folder(entry)]
    if "" not in splits:
        unused = [plain_name(entry) for entry in folders(path) if entry not in splits.values()]
        if unused:
            notes.append(f"Folders beside train, val and test are not used: {listed(unused)}.")
    elif runs:
        notes.append(f"Not used, the folder of a run: {listed(runs)}.")
    for folder in splits.values():
        if loose := direct_images(folder):
            some = "images" if len(loose) > 1 else "image"
            notes.append(f"{len(loose)} {some} of {plain_name(folder)} in no class folder: not used.")
    return notes


def _check_split(path: Path, name: str, pool: Pool, classes: list[str]) -> None:
    """Every class of a given split still has an image, after the unreadable ones are gone."""
    have = {label for (label,) in pool.targets.rows}
    if not have:
        raise DataError(f"The {name} split of {str(path)!r} is empty.", remedy=f"Add images to {name}/.")
    lacking = [classes[label] for label in range(len(classes)) if label not in have]
    if name == "train" and lacking:
        raise DataError(
            f"Class {lacking[0]!r} of {str(path)!r} has too few images: none is left in train.",
            remedy="Add images, or remove the class folder.",
        )
