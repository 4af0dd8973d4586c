"""One split's images: decoded on use, resized once, kept as bytes in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glora import registry
from glora.errors import DataError
from glora.tasks.objective import Batch

__all__ = ["ImageSet", "Item", "Preprocess", "StoredImage", "is_image", "pixels_of", "read_image", "unreadable"]


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


class StoredImage(Protocol):
    """An image that another library keeps, opened when it is needed; its text names it in messages."""

    def open(self) -> Any:
        """It as a PIL image."""
        ...

    def identity(self) -> bytes:
        """What changes when the image does."""
        ...


Item: TypeAlias = Union[Path, "npt.NDArray[np.uint8]", StoredImage]  # a file, pixels (h, w) or (h, w, 3), or another's

File = TypeVar("File", bound=Path | StoredImage)

_CACHE_BYTES = 2 * 1024**3
_FILTERS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}


class ImageSet:
    """The images of one split with what is to be predicted of them.

    Args:
        items: Files, uint8 pixels `(h, w)` or `(h, w, 3)`, or images that another library keeps.
        targets: Encoded targets, `(n, ...)`, one each: class indices, or what the objective reads.
        strata: What splits keep in proportion; by default the targets, where they are whole numbers.
        preprocess: How the backbone wants its images; without it nothing can be read yet.
        cache_bytes: How much memory the resized images may take; the rest is decoded every time.

    Raises:
        DataError: As many targets as items are needed.
    """

    unit = "images"

    def __init__(
        self,
        items: Sequence[Item],
        targets: Sequence[int] | Tensor,
        *,
        strata: Sequence[int] | None = None,
        preprocess: Preprocess | None = None,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        if len(items) != len(targets):
            raise DataError(f"{len(items)} images came with {len(targets)} targets.", allowed="One each.")
        self.items = tuple(items)
        self.targets = targets if isinstance(targets, Tensor) else torch.tensor(targets, dtype=torch.int64)
        whole = self.targets.dim() == 1 and not self.targets.is_floating_point()
        self.strata: tuple[int, ...] | None = tuple(self.targets.tolist()) if strata is None and whole else None
        self.strata = self.strata if strata is None else tuple(strata)
        self.preprocess = preprocess
        self.cache_bytes = cache_bytes
        self._cache: dict[int, Tensor] = {}  # index -> (3, h, w) uint8, resized

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Normalised images `(b, 3, h, w)` float32 and targets `(b, ...)` of several indices at once.

        Args:
            indices: Places in this set, `(b,)`, at least one.

        Raises:
            DataError: An image cannot be read (names the file), or the set has no `preprocess`.
        """
        if self.preprocess is None:
            raise DataError(
                "This image set does not know yet how its backbone wants the images.",
                remedy="Use task.prepared(backbone.preprocess).",
            )
        places = [int(index) for index in indices]
        x = _normalised(torch.stack(self._pixels(places, self.preprocess)), self.preprocess)  # (b, 3, h, w)
        return Batch(x, self.targets[torch.tensor(places)])

    def _pixels(self, places: list[int], preprocess: Preprocess) -> list[Tensor]:
        missing = [place for place in dict.fromkeys(places) if place not in self._cache]
        decoded = _in_threads(lambda place: _decoded(self.items[place], preprocess), missing)
        fresh: dict[int, Tensor] = dict(zip(missing, decoded, strict=True))
        height, width = preprocess.size
        room = self.cache_bytes // (3 * height * width) - len(self._cache)
        self._cache.update(list(fresh.items())[: max(room, 0)])
        return [fresh[place] if place in fresh else self._cache[place] for place in places]

    def prepared(self, preprocess: Preprocess) -> ImageSet:
        """The same images, read as `preprocess` says."""
        return self._with(self.items, self.targets, self.strata, preprocess)

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images of these indices, in their order."""
        chosen = torch.tensor(list(indices), dtype=torch.int64)
        strata = None if self.strata is None else [self.strata[index] for index in indices]
        return self._with([self.items[index] for index in indices], self.targets[chosen], strata, self.preprocess)

    def joined(self, other: ImageSet) -> ImageSet:
        """These images, then those of another set."""
        strata = None if self.strata is None or other.strata is None else (*self.strata, *other.strata)
        targets = torch.cat([self.targets, other.targets])
        return self._with((*self.items, *other.items), targets, strata, self.preprocess)

    def _with(
        self, items: Sequence[Item], targets: Tensor, strata: Sequence[int] | None, preprocess: Preprocess | None
    ) -> ImageSet:
        return ImageSet(items, targets, strata=strata, preprocess=preprocess, cache_bytes=self.cache_bytes)

    def identify(self, digest: Any, root: Path | None) -> None:
        """Adds names, sizes, pixels and targets to a hash; file names count relative to `root`."""
        for item, target in zip(self.items, self.targets.tolist(), strict=True):
            if isinstance(item, Path):
                name = item.relative_to(root) if root and item.is_relative_to(root) else item
                digest.update(f"{name.as_posix()}\0{item.stat().st_size}\0{target}\n".encode())
            elif isinstance(item, np.ndarray):
                digest.update(f"{item.shape}\0{target}\n".encode() + item.tobytes())
            else:
                digest.update(f"stored\0{target}\n".encode() + item.identity())


def is_image(value: Any) -> bool:
    """Whether it is a PIL image."""
    return hasattr(value, "convert") and hasattr(value, "getbands")


def pixels_of(image: Any) -> npt.NDArray[np.uint8]:
    """The pixels of a PIL image, read as a file's are, or of an array.

    Raises:
        DataError: It is neither.
    """
    array = np.asarray(_rgb(image) if is_image(image) else image)
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or not array.size:
        kind = type(image).__name__ if array.dtype == object else f"an array of {array.dtype} {array.shape}"
        raise DataError(f"{kind} is no image.", allowed="A file, a PIL image, uint8 pixels (h, w) or (h, w, 3).")
    return array


def read_image(image: Any, preprocess: Preprocess) -> Tensor:
    """A PIL image or an array of pixels as the backbone wants it, `(3, h, w)` float32."""
    return _normalised(_decoded(pixels_of(image), preprocess), preprocess)


def _normalised(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Pixels `(..., 3, h, w)` in [0, 255] as float32, scaled and normalised."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return pixels.float().mul_((1 / (255 * std)).view(3, 1, 1)).sub_((mean / std).view(3, 1, 1))


def unreadable(files: Sequence[File]) -> dict[File, str]:
    """The files, or images that another library keeps, that do not decode to the end, each with the decoder's reason.

    Every file is decoded, JPEG at an eighth of its size: Pillow's own `verify` passes a truncated JPEG.
    """
    reasons = _in_threads(_complaint, list(files))
    return {file: reason for file, reason in zip(files, reasons, strict=True) if reason}


def _pillow() -> Any:
    return registry.optional_import("PIL.Image", extra="vision", purpose="Reading images")


def _in_threads(work: Any, jobs: Sequence[Any]) -> list[Any]:
    if len(jobs) <= 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter lock
        return list(pool.map(work, jobs))


def _complaint(file: Path | StoredImage) -> str:
    try:
        with _open(file) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return str(error) or type(error).__name__
    return ""


def _open(item: Path | StoredImage) -> Any:
    return _pillow().open(item) if isinstance(item, Path) else item.open()


def _decoded(item: Item, preprocess: Preprocess) -> Tensor:
    """The image as `(3, h, w)` uint8 at the size of `preprocess`."""
    pillow = _pillow()
    height, width = preprocess.size
    resample = getattr(pillow.Resampling, _FILTERS[preprocess.interpolation])
    if isinstance(item, np.ndarray):
        image = pillow.fromarray(item).convert("RGB")
    else:
        try:
            with _open(item) as opened:
                image = _rgb(opened)
        except Exception as error:  # as in _complaint
            raise DataError(
                f"The image {str(item)!r} cannot be read: {error}.",
                remedy="Replace or remove it, or leave such images out with --on-bad-image skip.",
            ) from error
    image = image.resize((width, height), resample)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (h, w, 3) -> (3, h, w)


def _rgb(image: Any) -> Any:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it at 255
        grey = np.asarray(image).astype(np.int64) >> 8
        return _pillow().fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:  # a palette's transparency must pass through RGBA
        image = image.convert("RGBA")
    return image.convert("RGB")
