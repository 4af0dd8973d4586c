"""How a backbone wants its images: plain numbers, so that data and backbones need not know each other."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Preprocess"]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Image to network input: resize straight to `size` (aspect ratio not kept, as VTAB does), scale, normalise.

    Attributes:
        size: Height and width in pixels.
        mean: Per-channel mean of the training images, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
        interpolation: Resize filter: `nearest`, `bilinear`, `bicubic` or `lanczos`.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
