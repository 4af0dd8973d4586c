"""A folder of images as a task: `class/*.jpg`, or `train/`, `val/` and `test/` of such folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glora.errors import DataError, listed
from glora.tasks.task import (
    ImageSet,
    Item,
    OnBadImage,
    Task,
    carve_val,
    sampled,
    split_in_three,
    unreadable,
)

__all__ = ["labelled", "load"]

_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LAYOUT = "Put the images of each class in a folder of its own: cat/1.jpg, dog/1.jpg."


def load(path: Path, *, seed: int, train: int | None, val: int | None, on_bad_image: OnBadImage) -> Task:
    """The task that a folder of images holds; every image has been decoded once before it returns.

    Args:
        path: A folder with one folder for each class, or with `train`, `test` and maybe `val` of such.
        seed: Seed of the stratified split.
        train: Number of training images; None takes the default, or the whole `train` folder.
        val: Number of validation images; None takes the default, or the whole `val` folder.
        on_bad_image: What to do with an unreadable image: `error` or `skip`.

    Raises:
        DataError: No images, one class, a class too small, an empty or missing split, unequal classes,
            or an unreadable image.
    """
    if not path.is_dir():
        raise DataError(f"{str(path)!r} is a file, not a folder.", allowed=_LAYOUT)
    path = path.resolve()
    folders = _split_folders(path)
    pools = {name: _class_folders(folder, name) for name, folder in folders.items()}
    notes = _strays(path, folders)
    classes = _agreed_classes(path, pools)
    bad = unreadable([file for pool in pools.values() for files in pool.values() for file in files])
    notes += _skipped(bad, path, on_bad_image)
    images = {name: _images(pool, classes, bad) for name, pool in pools.items()}
    if "test" not in images:
        (first, second, third), note = split_in_three(images[""], classes, train=train, val=val, seed=seed)
        notes.append(note)
    else:
        third = images["test"]
        first, second, more = _given_splits(images, classes, train=train, val=val, seed=seed)
        notes += more
        for name, split in (("train", first), ("val", second), ("test", third)):
            _check_split(path, name, split, classes)
    return Task(path.name, tuple(classes), first, second, third, tuple(notes)).stamped(path)


def labelled(path: Path, classes: Sequence[str], *, on_bad_image: OnBadImage) -> tuple[ImageSet, list[str]]:
    """All images of a folder whose class folders are called as `classes`, and what a user should be told.

    Args:
        path: A folder with one folder for each class; a class may be missing.
        classes: The name of each label.
        on_bad_image: What to do with an unreadable image: `error` or `skip`.

    Raises:
        DataError: No images, a class that is none of `classes`, or an unreadable image.
    """
    if not path.is_dir():
        raise DataError(f"There is no folder {str(path)!r}.", allowed=_LAYOUT)
    path = path.resolve()
    pool = {name: files for name, files in _class_folders(path).items() if files}
    if unknown := [name for name in pool if name not in classes]:
        raise DataError(
            f"{str(path)!r} has the class folders {listed(unknown)}, which the run does not know.",
            allowed=f"Its classes are {listed(classes, n=20)}.",
            remedy="Give the folder that holds class folders of these names.",
        )
    bad = unreadable([file for files in pool.values() for file in files])
    notes = _strays(path, {"": path}) + _skipped(bad, path, on_bad_image)
    if missing := [name for name in classes if name not in pool]:
        notes.append(f"There are no images of {listed(missing, n=20)}.")
    images = _images({name: pool.get(name, []) for name in classes}, list(classes), bad)
    if not len(images):
        raise DataError(f"No image of {str(path)!r} can be read.", remedy="Check the files.")
    return images, notes


def _given_splits(
    images: dict[str, ImageSet], classes: list[str], *, train: int | None, val: int | None, seed: int
) -> tuple[ImageSet, ImageSet, list[str]]:
    if "val" not in images:
        (first, second), note = carve_val(images["train"], classes, train=train, val=val, seed=seed)
        return first, second, [f"There is no val folder: {note}"]
    first = sampled(images["train"], train, classes=classes, what="train", seed=seed)
    second = sampled(images["val"], val, classes=classes, what="val", seed=seed)
    sizes = f"{len(first)} train, {len(second)} val and {len(images['test'])} test images"
    return first, second, [f"Split as the folders say: {sizes}."]


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


def _files(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, in the order of their paths."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES
        and not any(_hidden(part) for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _class_folders(folder: Path, split: str = "") -> dict[str, list[Path]]:
    pool = {entry.name: _files(entry) for entry in _folders(folder)}
    if any(pool.values()):
        return pool
    if _files(folder):
        raise DataError(f"The images in {str(folder)!r} are in no class folder.", remedy=_LAYOUT)
    raise DataError(
        f"There are no images in {str(folder)!r}.",
        allowed=f"Images end in {', '.join(sorted(_SUFFIXES))}.",
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


def _images(pool: dict[str, list[Path]], classes: list[str], bad: dict[Path, str]) -> ImageSet:
    items: list[Item] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        good = [file for file in pool[name] if file not in bad]
        items += good
        labels += [label] * len(good)
    return ImageSet(items, labels)


def _skipped(bad: dict[Path, str], path: Path, on_bad_image: OnBadImage) -> list[str]:
    if not bad:
        return []
    if on_bad_image == "error":
        file, reason = next(iter(bad.items()))
        others = f" (and {len(bad) - 1} more: {listed(map(str, list(bad)[1:]))})" if len(bad) > 1 else ""
        raise DataError(
            f"The image {str(file)!r} cannot be read: {reason.rstrip('.')}{others}.",
            remedy="Replace or remove it, or leave such images out with --on-bad-image skip.",
        )
    names = ", ".join(file.relative_to(path).as_posix() for file in bad)
    return [f"Skipped {len(bad)} unreadable image{'s' if len(bad) > 1 else ''}: {names}."]


def _strays(path: Path, folders: dict[str, Path]) -> list[str]:
    """Sentences on what lies in the folder and is not used."""
    notes = []
    if "" not in folders:
        unused = [entry.name for entry in _folders(path) if entry not in folders.values()]
        if unused:
            notes.append(f"Folders beside train, val and test are not used: {listed(unused)}.")
    for folder in folders.values():
        loose = [e.name for e in sorted(folder.iterdir()) if e.is_file() and e.suffix.lower() in _SUFFIXES]
        loose = [name for name in loose if not _hidden(name)]
        if loose:
            notes.append(f"{len(loose)} images of {folder.name} are in no class folder and not used.")
    return notes


def _check_split(path: Path, name: str, split: ImageSet, classes: list[str]) -> None:
    """Every class of a given split still has an image, after the unreadable ones are gone."""
    have = set(split.labels)
    if not have:
        raise DataError(f"The {name} split of {str(path)!r} is empty.", remedy=f"Add images to {name}/.")
    lacking = [classes[label] for label in range(len(classes)) if label not in have]
    if name == "train" and lacking:
        raise DataError(
            f"Class {lacking[0]!r} of {str(path)!r} has too few images: none is left in train.",
            remedy="Add images, or remove the class folder.",
        )
