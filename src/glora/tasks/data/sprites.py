"""Two tasks of VTAB's structured group, drawn anew from the five factors that define dSprites."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, Pool, Task, assemble

__all__ = ["ORIENTATIONS", "PLACES", "SCALES", "SHAPES", "DSpritesLoc", "DSpritesOri", "sprite"]

SIDE, POOL, BINS = 64, 4_000, 16
SHAPES = ("square", "ellipse", "heart")
SCALES, ORIENTATIONS, PLACES = 6, 40, 32
FACTORS = (len(SHAPES), SCALES, ORIENTATIONS, PLACES, PLACES)
ALL = math.prod(FACTORS)


class DSpritesLoc(DataSettings):
    """dSpr-Loc: the horizontal place of a sprite in 16 bins; by default 800 train, 200 val, 3,000 test.

    Source: VTAB (arXiv 1910.04867) bins the 32 places of dSprites two by two.
    """

    def load(self, objective: Objective) -> Task:
        return _task("dsprites_loc", lambda factors: factors[3] * BINS // PLACES, objective, self)


class DSpritesOri(DataSettings):
    """dSpr-Ori: the orientation of a sprite in 16 bins; otherwise as `DSpritesLoc`.

    A square looks the same four times a turn and an ellipse twice: no model is right on more than about 58%.

    Source: VTAB (arXiv 1910.04867) bins the 40 orientations of dSprites by `orientation * 16 // 40`.
    """

    def load(self, objective: Objective) -> Task:
        return _task("dsprites_ori", lambda factors: factors[2] * BINS // ORIENTATIONS, objective, self)


def sprite(shape: int, scale: int, orientation: int, x: int, y: int) -> npt.NDArray[np.uint8]:
    """One image, 64x64, white on black.

    Args:
        shape: Place in `SHAPES`.
        scale: 0 to 5: from half to whole size.
        orientation: 0 to 39, counter-clockwise in steps of 9 degrees.
        x: 0 to 31 from left to right. y: 0 to 31 from top to bottom.
    """
    size = SIDE / 6 * (0.5 + scale / (2 * (SCALES - 1)))
    low, high = SIDE / 4, SIDE * 3 / 4  # of the middle: no sprite is cut
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    right = columns - (low + (high - low) * x / (PLACES - 1))
    up = (low + (high - low) * y / (PLACES - 1)) - rows
    angle = 2 * np.pi * orientation / ORIENTATIONS
    u = (np.cos(angle) * right + np.sin(angle) * up) / size
    v = (np.cos(angle) * up - np.sin(angle) * right) / size
    inside: dict[str, npt.NDArray[np.bool_]] = {
        "square": np.maximum(abs(u), abs(v)) <= 0.8,
        "ellipse": u**2 + (2 * v) ** 2 <= 1,
        "heart": (u**2 + v**2 - 0.6) ** 3 <= u**2 * v**3,
    }
    image: npt.NDArray[np.uint8] = inside[SHAPES[shape]].astype(np.uint8) * np.uint8(255)
    return image


def _task(name: str, label: Callable[[tuple[int, ...]], int], objective: Objective, settings: DataSettings) -> Task:
    chosen = random.Random("dsprites").sample(range(ALL), POOL)
    factors = [tuple(int(k) for k in np.unravel_index(number, FACTORS)) for number in chosen]
    targets = Targets(("bin",), [(label(each),) for each in factors], names=tuple(map(str, range(BINS))))
    own = f"{POOL:,} of dSprites' {ALL:,} images, drawn anew from its factors."
    pool = Pool([sprite(*each) for each in factors], targets)
    return assemble(name, {"": pool}, objective, settings, notes=[own], group="structured")
