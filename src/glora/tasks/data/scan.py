"""What lies in a folder of images: every image below it, and what else is there, so that nothing is left out unsaid."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from glora.errors import listed, shown
from glora.tasks.images import is_image_file

__all__ = ["SUFFIXES", "Scan", "direct_images", "folders", "is_run_folder", "plain_name", "scan"]

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
SYSTEM = frozenset(  # folders and files that file systems, viewers and indexers make; a name in lower case
    ("system volume information", *"@eadir #recycle $recycle.bin desktop.ini lost+found thumbnails thumbs.db".split())
)


@dataclass
class Scan:
    """What was found below a folder.

    Attributes:
        images: The image files, in the order of their paths.
        unread: What is no image: suffix -> files; `""` counts those without one.
        hidden: Names of what is hidden or made by a system, whatever it holds.
        broken: Links that lead nowhere.
    """

    images: list[Path] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, other: Scan) -> None:
        """Takes over what else another scan found, its images apart."""
        self.unread += other.unread
        self.hidden += other.hidden
        self.broken += other.broken

    @property
    def notes(self) -> list[str]:
        """Sentences on what is not used."""
        notes = []
        if count := sum(self.unread.values()):
            kinds = [f"{files:,} {suffix or 'without a suffix'}" for suffix, files in self.unread.most_common()]
            notes.append(f"{_files(count)} not used, no image that can be opened: {listed(kinds, n=6)}.")
        if self.hidden:
            names = sorted(set(self.hidden))
            notes.append(f"Not used, hidden or made by a system: {listed(names, n=6)}.")
        if self.broken:
            notes.append(f"{_files(len(self.broken))} not used, links that lead nowhere: {listed(self.broken)}.")
        return notes


def scan(folder: Path) -> Scan:
    """Everything below a folder. Linked folders are followed, each once, so that a loop ends.

    A file is an image by its suffix; without a suffix of an image it is opened, as viewers do.
    """
    found = Scan()
    seen: set[tuple[int, int]] = set()
    for root, inner, names in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found.hidden += [shown(name) for name in inner if _hidden(name)]
        inner[:] = sorted(name for name in inner if not _hidden(name))
        for name in names:
            _sort(found, Path(root) / name)
    found.images.sort()
    return found


def _sort(found: Scan, file: Path) -> None:
    suffix = file.suffix.lower()
    if _hidden(file.name):
        found.hidden.append(shown(file.name))
    elif not file.exists():
        found.broken.append(shown(file.name))
    elif suffix in SUFFIXES or is_image_file(file):
        found.images.append(file)
    else:
        found.unread[shown(suffix)] += 1


def direct_images(folder: Path) -> list[Path]:
    """The images that lie in a folder itself, by their suffix, in order."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and entry.is_file() and not _hidden(entry.name)
    )


def folders(path: Path) -> list[Path]:
    """The folders in a folder, linked ones too, without those that are hidden or made by a system, in order."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not _hidden(entry.name))


def is_run_folder(path: Path) -> bool:
    """Whether it is the folder of a run, by the files that every run has."""
    return (path / "config.yaml").is_file() and (path / "state.json").is_file()


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX", "__pycache__")) or name.lower() in SYSTEM


def plain_name(path: Path) -> str:
    """The name of a file or folder as text: composed, and bytes that are no UTF-8 written out."""
    return unicodedata.normalize("NFC", shown(path.name))


def _files(count: int) -> str:
    return f"{count:,} file{'s are' if count > 1 else ' is'}"
