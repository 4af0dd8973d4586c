"""Small pictures of the test images that a model gets most wrong, for a person who looks at the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from glora.files import atomic
from glora.registry import optional_import
from glora.tasks.images import ImageSet
from glora.tasks.objective import Examples

__all__ = ["thumbnails"]

SIDE = 96  # pixels of the longer side


def thumbnails(examples: Examples | None, places: Sequence[int], folder: Path) -> None:
    """The folder holds these images and no others, `PLACE.png` each; there is none where they are no images.

    Args:
        examples: The split.
        places: Which of it.
        folder: Where; an earlier one is removed.
    """
    if folder.is_dir():
        shutil.rmtree(folder)
    if not isinstance(examples, ImageSet) or not places:
        return
    pillow = optional_import("PIL.Image", extra="vision", purpose="Writing thumbnails")
    folder.mkdir()
    for place in places:
        image = pillow.fromarray(examples.image(place))
        scale = SIDE / max(image.size)
        filter_ = pillow.Resampling.LANCZOS if scale < 1 else pillow.Resampling.NEAREST
        with atomic(folder / f"{place}.png") as temporary:
            small = image.resize(tuple(max(1, round(side * scale)) for side in image.size), filter_)
            small.save(temporary, format="PNG", optimize=True)
