"""Lists of labelled images, a line each: `PATH LABEL`, as the authors' train, val and test lists are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from glora.errors import DataError, listed
from glora.tasks.data.paper_sets import UNUSUAL
from glora.tasks.images import unreadable
from glora.tasks.objective import Targets
from glora.tasks.task import Pool

__all__ = ["ImageList", "check_images", "expected", "folder_of", "place_of", "pool_of", "read_list"]


@dataclass(frozen=True)
class ImageList:
    """The lines of a list.

    Attributes:
        path: The file.
        names: What each line calls its image.
        labels: The class of each.
        lines: The number of each line in the file.
    """

    path: Path
    names: Sequence[str]
    labels: Sequence[int]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.names)

    def kept(self, places: Iterable[int]) -> ImageList:
        """The lines at these places."""
        chosen = list(places)
        parts = {name: [getattr(self, name)[place] for place in chosen] for name in ("names", "labels", "lines")}
        return replace(self, names=parts["names"], labels=parts["labels"], lines=parts["lines"])

    def once(self) -> tuple[ImageList, list[str]]:
        """Every image once, in the order of the list; and what is to be told of those named again.

        Raises:
            DataError: An image has two labels.
        """
        first: dict[str, int] = {}
        for place, name in enumerate(self.names):
            before = first.setdefault(name, place)
            if self.labels[before] != self.labels[place]:
                lines = f"lines {self.lines[before]} and {self.lines[place]}"
                raise DataError(
                    f"{self.path} gives the image {name!r} two classes, in {lines}.", remedy="Get the list again."
                )
        if len(first) == len(self):
            return self, []
        what = f"{self.path.name} names {len(self) - len(first)} of its {len(self)} images again"
        return self.kept(first.values()), [f"{what}: each counts once, {len(first)} are left."]


def folder_of(root: Path, names: Sequence[str], what: str, *, inside: str, remedy: str) -> Path:
    """The folder of a data set in `root`: the first of these names that is there.

    Args:
        root: Where it is looked for.
        names: The names it may have.
        what: The data set, in the error's words.
        inside: A file or folder that it holds.
        remedy: How to get it.

    Raises:
        DataError: There is no root, or no such folder in it.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise DataError(f"There is no folder {str(root)!r} (data.root), where {what} was looked for.", remedy=remedy)
    folders = [root / name for name in dict.fromkeys(names)]
    for folder in folders:
        if (folder / inside).exists():
            return folder.resolve()
    for folder in folders:
        if folder.is_dir():
            raise DataError(f"{str(folder)!r} lacks {inside!r}: it is no copy of {what}.", remedy=remedy)
    beside = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    raise DataError(
        f"{str(root)!r} holds no folder of {what}: looked for {', '.join(folder.name for folder in folders)}.",
        allowed=f"Its folders are {listed(beside, n=20)}." if beside else "It has no folders.",
        remedy=remedy,
    )


def read_list(path: Path, *, classes: int, remedy: str) -> ImageList:
    """The list in the file. A line is split at its last space or tab: names may have spaces; `\\` separates as `/`.

    Args:
        path: The file.
        classes: How many classes there are; labels count from 0.
        remedy: How to get it.

    Raises:
        DataError: It is missing, empty, or a line has no name or no label of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"The list {str(path)!r} is missing.", remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {str(path)!r} cannot be read: {error}.", remedy=remedy) from error
    names, labels, lines = list[str](), list[int](), list[int]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        *before, label = line.rsplit(maxsplit=1)
        if not before or not label.isdecimal() or int(label) >= classes:
            raise DataError(
                f"{path}, line {number}, is {line!r}.",
                allowed=f"A line is a path, a space and a class from 0 to {classes - 1}.",
                remedy=remedy,
            )
        names.append(before[0].strip().replace("\\", "/"))
        labels.append(int(label))
        lines.append(number)
    if not names:
        raise DataError(f"The list {str(path)!r} is empty.", remedy=remedy)
    return ImageList(path, names, labels, lines)


def place_of(found: ImageList, bases: Sequence[Path]) -> Callable[[str], Path] | None:
    """Name in the list -> file, by the earliest image that is there; None: none is.

    Names are relative to one of the folders, or absolute. Where no image is found so, a list made elsewhere may begin
    its paths with folders that are not here, such as `/data/vtab-1k/cifar/images/...`: they are left out, as many from
    all of its names, as long as that takes no two images for one.

    Args:
        found: The list.
        bases: Folders that the names may be relative to.
    """
    for name in found.names:
        for base in bases:
            if (base / name).is_file():
                return base.joinpath
    for name in found.names:
        parts = PurePosixPath(name).parts
        for first in range(1, len(parts)):
            for base in bases:
                if base.joinpath(*parts[first:]).is_file():
                    return _without(found, base, first)
    return None


def _without(found: ImageList, base: Path, first: int) -> Callable[[str], Path] | None:
    """Name -> file below a folder, without the first parts of the name; None where names would become one."""

    def place(name: str) -> Path:
        return base.joinpath(*PurePosixPath(name).parts[first:])

    return place if len(set(map(place, found.names))) == len(set(found.names)) else None


def pool_of(found: ImageList, place: Callable[[str], Path], *, names: tuple[str, ...], root: Path, remedy: str) -> Pool:
    """The images of a list and their classes, in its order; every image is there. None is opened.

    Args:
        found: The list.
        place: Name in the list -> file.
        names: The name of every class.
        root: What messages name files relative to.
        remedy: How to get what is missing.

    Raises:
        DataError: Images are missing (the first few and how many).
    """
    files = [place(name) for name in found.names]
    spelled = _as_spelled(lacking := [file for file in files if not file.is_file()])
    files = [spelled.get(file, file) for file in files]
    where = found.path.relative_to(root) if found.path.is_relative_to(root) else found.path
    if missing := [file for file in lacking if file not in spelled]:
        shown = listed([str(file.relative_to(root) if file.is_relative_to(root) else file) for file in missing])
        raise DataError(
            f"{len(missing):,} of the {len(files):,} images of {where.as_posix()} are missing in {str(root)!r}: "
            f"{shown.partition(', ... (')[0]}.",
            allowed="All images of a list are needed: a part of a data set is another task.",
            remedy=remedy,
        )
    rows = [(label,) for label in found.labels]
    return Pool(files, Targets(("class",), rows, names=names, what=where.as_posix(), lines=list(found.lines)))


def _as_spelled(missing: Iterable[Path]) -> dict[Path, Path]:
    """Of these files those that the disk has in other case, as it spells them: `1.jpg` that is there as `1.JPG`."""
    folders: dict[Path, dict[str, list[Path]]] = {}
    found = {}
    for file in missing:
        if file.parent not in folders:
            names = folders[file.parent] = {}
            for entry in sorted(file.parent.iterdir()) if file.parent.is_dir() else ():
                names.setdefault(entry.name.lower(), []).append(entry)
        same = folders[file.parent].get(file.name.lower(), [])
        if len(same) == 1 and same[0].is_file():
            found[file] = same[0]
    return found


def check_images(pools: Mapping[str, Pool]) -> None:
    """Nothing when every image of train and val decodes to the end; those of test are first opened when all is chosen.

    Raises:
        DataError: One does not.
    """
    files = [file for split in ("train", "val") for file in pools[split].items]
    if bad := unreadable(list(dict.fromkeys(files))):
        file, reason = next(iter(bad.items()))
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataError(
            f"The image {str(file)!r} cannot be read: {reason.rstrip('.')}{others}.",
            allowed="All images of a list are needed: a part of a data set is another task.",
            remedy="Copy it again.",
        )


def expected(sizes: Iterable[tuple[str, int, int]]) -> list[str]:
    """What is to be told of lists that have not as many images as they are known to have: name, found, known."""
    return [
        f"{UNUSUAL}{name} has {found:,} images, where {known:,} are known."
        for name, found, known in sizes
        if found != known
    ]
