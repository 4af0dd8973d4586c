"""A folder of images as a task: `class/*.jpg`, or `train/`, `val/` and `test/` of such folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glora.errors import DataError, listed
from glora.tasks.images import ImageSet, unreadable
from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, OnBadImage, Pool, Task, assemble

__all__ = ["SUFFIXES", "ImageFolder", "image_files", "skipped"]

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
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
        folders = _split_folders(path)
        found = {name: _class_folders(folder, name) for name, folder in folders.items()}
        notes = _strays(path, folders)
        classes = _agreed_classes(path, found)
        bad = unreadable([file for pool in found.values() for files in pool.values() for file in files])
        notes += skipped(bad, path, self.on_bad_image)
        pools = {name: _pool(pool, classes, bad) for name, pool in found.items()}
        for name in pools.keys() - {""}:
            _check_split(path, name, pools[name], classes)
        return assemble(path.name, pools, objective, self, notes=notes, root=path)

    def load_all(self, objective: Objective) -> tuple[ImageSet, list[str]]:
        path, classes = _folder(self.source), list(objective.strata_names)
        found = {name: files for name, files in _class_folders(path).items() if files}
        if unknown := [name for name in found if name not in classes]:
            raise DataError(
                f"{str(path)!r} has the class folders {listed(unknown)}, which the run does not know.",
                allowed=f"Its classes are {listed(classes, n=20)}.",
                remedy="Give the folder that holds class folders of these names.",
            )
        bad = unreadable([file for files in found.values() for file in files])
        notes = _strays(path, {"": path}) + skipped(bad, path, self.on_bad_image)
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
        raise DataError(f"{str(path)!r} is a file, not a folder.", allowed=_LAYOUT)
    return path.resolve()


def _split_folders(path: Path) -> dict[str, Path]:
    """Split name to folder; a folder without splits of its own is `{"": path}`."""
    found: dict[str, Path] = {}
    for folder in _folders(path):
        name = _SPLITS.get(folder.name.lower())
        if name in found:
            raise DataError(
                f"{str(path)!r} has two {name} folders: {found[name].name!r} and {folder.name!r}.",
                remedy="Keep one of them.",
            )
        if name:
            found[name] = folder
    if "train" not in found or (len(found) == 1 and len(_folders(path)) > 1):
        return {"": path}  # a class may be called `train`
    if "test" not in found:
        raise DataError(
            f"{str(path)!r} has a train folder but no test folder.",
            allowed="Either train/, test/ and maybe val/, or one folder for each class.",
            remedy="Add test/, or move the class folders up so that glora makes the split.",
        )
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not _hidden(entry.name))


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))  # __MACOSX, __pycache__


def image_files(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, in the order of their paths."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(_hidden(part) for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _class_folders(folder: Path, split: str = "") -> dict[str, list[Path]]:
    pool = {entry.name: image_files(entry) for entry in _folders(folder)}
    if any(pool.values()):
        return pool
    if image_files(folder):
        raise DataError(f"The images in {str(folder)!r} are in no class folder.", remedy=_LAYOUT)
    raise DataError(
        f"There are no images in {str(folder)!r}.",
        allowed=f"Images end in {', '.join(sorted(SUFFIXES))}.",
        remedy="Add images to val/, or remove the folder: val is then cut from train." if split == "val" else _LAYOUT,
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
                f"The class folder {str(path / split / empty[0])!r} holds no images.",
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
    return (file.relative_to(path) if path and file.is_relative_to(path) else file).as_posix()


def _strays(path: Path, folders: dict[str, Path]) -> list[str]:
    """Sentences on what lies in the folder and is not used."""
    notes = []
    if "" not in folders:
        unused = [entry.name for entry in _folders(path) if entry not in folders.values()]
        if unused:
            notes.append(f"Folders beside train, val and test are not used: {listed(unused)}.")
    for folder in folders.values():
        loose = [e.name for e in sorted(folder.iterdir()) if e.is_file() and e.suffix.lower() in SUFFIXES]
        loose = [name for name in loose if not _hidden(name)]
        if loose:
            notes.append(f"{len(loose)} images of {folder.name} are in no class folder and not used.")
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
