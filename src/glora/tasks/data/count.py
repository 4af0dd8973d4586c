"""A task of VTAB's structured group, drawn anew: how many shapes there are. It stands in for Clevr-Count."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, Pool, Task, assemble

__all__ = ["FEWEST", "KINDS", "MOST", "SIDE", "Count", "Shape", "image", "scene"]

SIDE, POOL = 64, 4_000
FEWEST, MOST = 3, 10  # shapes in an image, as in Clevr-Count
SMALLEST, LARGEST = 3.5, 8.0  # radius of the circle around a shape, in pixels: the smallest are 6 pixels wide at 56
GAP = 1.5  # between the circles
FINE = 4  # points per pixel and direction, for soft edges
CONTRAST = 0.25  # at least between a shape and the ground, of the range of brightness
TRIES = 40  # a shape, before a crowded scene is begun anew

Mask = npt.NDArray[np.bool_]
Grid = npt.NDArray[np.float64]


def _polygon(corners: int) -> Callable[[Grid, Grid], Mask]:
    """The inside of a regular polygon in the unit circle."""

    def inside(u: Grid, v: Grid) -> Mask:
        turn = 2 * np.pi / corners
        angle = np.mod(np.arctan2(v, u), turn) - turn / 2
        found: Mask = np.hypot(u, v) * np.cos(angle) <= math.cos(turn / 2)
        return found

    return inside


KINDS: dict[str, Callable[[Grid, Grid], Mask]] = {  # each fills most of the unit circle
    "disc": lambda u, v: u**2 + v**2 <= 1,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.35) & (np.maximum(abs(u), abs(v)) <= 0.93),
}


class Shape(NamedTuple):
    """One shape: its kind, middle and radius in pixels, turn in radians, and colour in [0, 1]."""

    kind: str
    x: float
    y: float
    radius: float
    turn: float
    colour: tuple[float, ...]

    def meets(self, other: Shape) -> bool:
        """Whether the circles around both come nearer than `GAP`."""
        return math.hypot(self.x - other.x, self.y - other.y) < self.radius + other.radius + GAP

    def paint(self, image: Grid) -> None:
        """Draws it into pixels `(h, w, 3)`."""
        left, top, size = int(self.x - self.radius), int(self.y - self.radius), int(2 * self.radius) + 3
        rows, columns = (np.mgrid[: size * FINE, : size * FINE] + 0.5) / FINE
        right, down = (columns + left - self.x) / self.radius, (rows + top - self.y) / self.radius
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        inside = KINDS[self.kind](cosine * right + sine * down, cosine * down - sine * right)
        cover = inside.reshape(size, FINE, size, FINE).mean((1, 3))
        place = image[top : top + size, left : left + size]
        place += cover[: len(place), : place.shape[1], None] * (np.array(self.colour) - place)


class Count(DataSettings):
    """How many shapes, 3 to 10, of any kind, size and colour: by default 800 train, 200 val, 3,000 test.

    Stands in for Clevr-Count of VTAB (arXiv 1910.04867), whose 8 classes are the same numbers.
    """

    def load(self, objective: Objective) -> Task:
        rng, numbers = random.Random("count"), range(FEWEST, MOST + 1)
        rows = [(place % len(numbers),) for place in range(POOL)]
        images = [image(*scene(rng, numbers[label])) for (label,) in rows]
        targets = Targets(("shapes",), rows, names=tuple(map(str, numbers)))
        own = f"{POOL:,} images, drawn anew."
        return assemble("count", {"": Pool(images, targets)}, objective, self, notes=[own], group="structured")


def scene(rng: random.Random, number: int) -> tuple[float, list[Shape]]:
    """The brightness of the ground, in [0, 1], and so many shapes that do not touch; how large differs by scene."""
    ground, largest = rng.random(), rng.uniform((SMALLEST + LARGEST) / 2, LARGEST)
    while True:
        found: list[Shape] = []
        radii = sorted((rng.uniform(SMALLEST, largest) for _ in range(number)), reverse=True)
        for _ in range(TRIES * number):  # the large ones first
            shape = _shape(rng, radii[len(found)], ground)
            if not any(shape.meets(other) for other in found):
                found.append(shape)
            if len(found) == number:
                return ground, found


def _shape(rng: random.Random, radius: float, ground: float) -> Shape:
    kind, turn = rng.choice(sorted(KINDS)), rng.uniform(0, 2 * math.pi)
    x, y = (rng.uniform(radius + 1, SIDE - radius - 1) for _ in "xy")
    while True:
        colour = rng.random(), rng.random(), rng.random()
        if abs(sum(colour) / len(colour) - ground) >= CONTRAST:
            return Shape(kind, x, y, radius, turn, colour)


def image(ground: float, shapes: Sequence[Shape]) -> npt.NDArray[np.uint8]:
    """The picture of a scene, `(64, 64, 3)`."""
    pixels = np.full((SIDE, SIDE, 3), ground)
    for shape in shapes:
        shape.paint(pixels)
    found: npt.NDArray[np.uint8] = np.rint(255 * pixels).astype(np.uint8)
    return found
