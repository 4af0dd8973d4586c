"""One split's images: decoded on use, resized once, kept as bytes in memory."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glora import registry
from glora.errors import DataError, listed, shown
from glora.files import sha256
from glora.tasks.augment import Augmentation, drawing, mixing, transform
from glora.tasks.objective import Batch, Mixed
from glora.tasks.rows import TextPreprocess

__all__ = [
    "NORMALISATIONS",
    "ImageSet",
    "Item",
    "Preprocess",
    "Resize",
    "StoredImage",
    "checked",
    "is_image",
    "is_image_file",
    "pixels_of",
    "read_image",
    "unreadable",
]

Resize: TypeAlias = Literal["straight", "crop"]
NORMALISATIONS = {  # name -> mean and standard deviation of every channel
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Image to network input: resize, scale, normalise.

    Attributes:
        size: Height and width in pixels.
        mean: Per-channel mean of the training images, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
        interpolation: Resize filter: `nearest`, `bilinear`, `bicubic` or `lanczos`.
        resize: `straight` to `size` (aspect ratio not kept, as VTAB does); `crop`: the shorter side to 8/7 of it (256
            for 224), then the middle.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    resize: Resize = "straight"

    def to_json(self) -> dict[str, Any]:
        """What a file tells of it."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """In a few words, for the plan of a run."""
        return f"at {self.size[1]} x {self.size[0]} px"

    def normalised(self, name: str) -> Preprocess:
        """The same with another mean and standard deviation: a key of `NORMALISATIONS`; `model` keeps its own."""
        if name == "model":
            return self
        mean, std = NORMALISATIONS[name]
        return replace(self, mean=mean, std=std)


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

UPRIGHT = 1  # EXIF's orientation of an image that need not be turned
_CACHE_BYTES = 2 * 1024**3
_MARGIN = 8 / 7  # 256 pixels for a crop of 224
_CONTENTS = frozenset("AVIF BMP DIB GIF JPEG JPEG2000 MPO PNG PPM TGA TIFF WEBP".split())  # Pillow's names of formats
_FILTERS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}


class ImageSet:
    """The images of one split with what is to be predicted of them.

    Args:
        items: Files, uint8 pixels `(h, w)` or `(h, w, 3)`, or images that another library keeps.
        targets: Encoded targets, `(n, ...)`, one each: class indices, or what the objective reads.
        strata: What splits keep in proportion; by default the targets, where they are whole numbers.
        preprocess: How the backbone wants its images; without it nothing can be read yet.
        cache_bytes: How much memory the decoded images may take; the rest is decoded every time.
        augmentation: What training batches go through; no other batch does.

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
        augmentation: Augmentation | None = None,
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
        self.augmentation = augmentation or Augmentation()
        self._cache: dict[int, Tensor] = {}  # index -> (3, h, w) uint8, resized
        self._whole: dict[int, npt.NDArray[np.uint8]] = {}  # index -> a file's (h, w, 3), of its own size

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Normalised images `(b, 3, h, w)` float32 and targets `(b, ...)` of several indices at once.

        Args:
            indices: Places in this set, `(b,)`, at least one.

        Raises:
            DataError: An image cannot be read (names the file), or the set has no `preprocess`.
        """
        places = [int(index) for index in indices]
        return Batch(self._read(places), self.targets[torch.tensor(places)])

    @property
    def mixes(self) -> bool:
        """Whether the images of training batches are mixed with each other."""
        return self.augmentation.mixes

    def training_batch(self, batch: Sequence[int], positions: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Some images of a training batch, augmented; what an image gets hangs on seed, epoch and its index alone.

        One that is in the batch more than once looks another way each time.
        Where images are mixed, each is with the one as far from the batch's other end, in one share for all.

        Args:
            batch: Places in this set of the whole batch, `(b,)`.
            positions: Which of them are wanted, at least one.
            seed: Decides what is drawn. epoch: Together with it.

        Raises:
            DataError: An image cannot be read (names the file), or the set has no `preprocess`.
        """
        places = [int(batch[position]) for position in positions]
        if self.augmentation == Augmentation():
            return self.batch(places)
        targets, copies = self.targets[torch.tensor(places)], _copies(batch)
        if not self.mixes:
            return Batch(self._varied([copies[position] for position in positions], f"{seed} {epoch}"), targets)
        opposite = [len(batch) - 1 - position for position in positions]
        others = [int(batch[position]) for position in opposite]
        both = list(dict.fromkeys(copies[position] for position in (*positions, *opposite)))
        x = self._varied(both, f"{seed} {epoch}")
        own, other = (x[[both.index(copies[position]) for position in some]] for some in (positions, opposite))
        with drawing(f"mix {seed} {epoch} {int(batch[0])}"):
            mixed = mixing(self.augmentation, self._needed.size)
        return Batch(mixed(own, other), Mixed(targets, self.targets[torch.tensor(others)], mixed.share))

    @property
    def _needed(self) -> Preprocess:
        if self.preprocess is None:
            raise DataError(
                "This image set does not know yet how its backbone wants the images.",
                remedy="Use task.prepared(backbone.preprocess).",
            )
        return self.preprocess

    def _read(self, places: list[int]) -> Tensor:
        return _normalised(torch.stack(self._pixels(places, self._needed)), self._needed)  # (b, 3, h, w)

    def _varied(self, copies: list[tuple[int, int]], drawn: str) -> Tensor:
        """The augmented images `(b, 3, h, w)`, each given by its index and which of its copies in the batch it is."""
        kind, preprocess, places = self.augmentation.kind, self._needed, [place for place, _ in copies]
        if kind == "none":  # they are mixed
            return self._read(places)
        change = transform(kind, preprocess.size, preprocess.mean, preprocess.std, preprocess.interpolation)
        found = []
        for (place, copy), image in zip(copies, self._images(places), strict=True):
            with drawing(f"augment {drawn} {place}" + (f" {copy}" if copy else "")):
                found.append(change(image))
        return torch.stack(found)

    def _images(self, places: list[int]) -> list[Any]:
        """The images in their own size, of which random parts are taken; files are decoded once while there is room."""
        kept = [place for place in places if place in self._whole or isinstance(self.items[place], np.ndarray)]
        missing = [place for place in places if place not in kept]
        decoded = _in_threads(self.image, missing)
        fresh = dict(zip(missing, decoded, strict=True))
        room = self.cache_bytes - sum(pixels.nbytes for pixels in self._whole.values())
        room -= sum(pixels.nbytes for pixels in self._cache.values())
        for place, pixels in fresh.items():
            if pixels.nbytes <= room:
                self._whole[place], room = pixels, room - pixels.nbytes
        whole = {**self._whole, **fresh}
        return [_opened(whole.get(place, self.items[place])) for place in places]

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """One image as it is, `(h, w, 3)`.

        Raises:
            DataError: It cannot be read.
        """
        return np.array(_opened(self.items[index]))

    def _pixels(self, places: list[int], preprocess: Preprocess) -> list[Tensor]:
        missing = [place for place in dict.fromkeys(places) if place not in self._cache]
        decoded = _in_threads(lambda place: _decoded(self.items[place], preprocess), missing)
        fresh: dict[int, Tensor] = dict(zip(missing, decoded, strict=True))
        height, width = preprocess.size
        room = self.cache_bytes // (3 * height * width) - len(self._cache)
        self._cache.update(list(fresh.items())[: max(room, 0)])
        return [fresh[place] if place in fresh else self._cache[place] for place in places]

    def prepared(self, preprocess: Any) -> ImageSet:
        """The same images, read as `preprocess` says.

        Raises:
            DataError: It is of a model that reads texts.
        """
        if isinstance(preprocess, TextPreprocess):
            raise DataError(
                f"The data is images, and the model {preprocess.name!r} reads texts.",
                remedy="Choose a model of images, or data of texts.",
            )
        return self._with(self.items, self.targets, self.strata, preprocess)

    def augmented(self, augmentation: Augmentation) -> ImageSet:
        """The same images, their training batches augmented."""
        found = self._with(self.items, self.targets, self.strata, self.preprocess)
        found.augmentation = augmentation
        return found

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
        own: dict[str, Any] = {"cache_bytes": self.cache_bytes, "augmentation": self.augmentation}
        return ImageSet(items, targets, strata=strata, preprocess=preprocess, **own)

    def identify(self, digest: Any, root: Path | None) -> None:
        """Adds names, contents and targets to a hash; file names count relative to `root`."""
        for item, content, target in zip(self.items, self.contents, self.targets.tolist(), strict=True):
            if isinstance(item, Path):
                name = item.relative_to(root) if root and item.is_relative_to(root) else item
                digest.update(os.fsencode(name.as_posix()))
            digest.update(f"\0{content}\0{target}\n".encode())

    @cached_property
    def contents(self) -> list[str]:
        """A hash of each image's file, or of its pixels where it is none: equal for equal images."""
        return _in_threads(_content, self.items)

    def names(self, places: Sequence[int]) -> list[str]:
        """What some images are called in messages."""
        files = [self.items[place] for place in places]
        named = zip(places, files, strict=True)
        return [f"image {place}" if isinstance(file, np.ndarray) else _short(file) for place, file in named]


def _copies(batch: Sequence[int]) -> list[tuple[int, int]]:
    """Each index of the batch with the number of times that it came before."""
    seen: Counter[int] = Counter()
    found = []
    for index in map(int, batch):
        found.append((index, seen[index]))
        seen[index] += 1
    return found


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
    return checked(files)[0]


def checked(files: Sequence[File]) -> tuple[dict[File, str], list[str]]:
    """As `unreadable`; and what a user should be told of the others: that some are of a single colour."""
    found = _in_threads(_check, list(files))
    bad = {file: each for file, each in zip(files, found, strict=True) if isinstance(each, str)}
    flat = [_short(file) for file, each in zip(files, found, strict=True) if each is True]
    some = "images are" if len(flat) > 1 else "image is"
    return bad, [f"{len(flat):,} {some} of a single colour: {listed(flat)}."] if flat else []


def _content(item: Item) -> str:
    if isinstance(item, Path):
        try:
            return sha256(item)
        except OSError as error:
            raise DataError(f"The image {shown(str(item))!r} cannot be read: {error.strerror}.") from error
    if isinstance(item, np.ndarray):
        return hashlib.sha256(f"{item.shape}".encode() + item.tobytes()).hexdigest()
    return hashlib.sha256(item.identity()).hexdigest()


def _short(file: Path | StoredImage) -> str:
    return "/".join(shown(part) for part in file.parts[-2:]) if isinstance(file, Path) else str(file)


def is_image_file(file: Path) -> bool:
    """Whether the file's content is that of an image, whatever its name says; its pixels are not read."""
    try:
        with _pillow().open(file) as image:
            return image.format in _CONTENTS
    except Exception:  # as in _check
        return False


def _pillow() -> Any:
    return registry.optional_import("PIL.Image", extra="vision", purpose="Reading images")


def _in_threads(work: Any, jobs: Sequence[Any]) -> list[Any]:
    if len(jobs) <= 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter lock
        return list(pool.map(work, jobs))


def _check(file: Path | StoredImage) -> str | bool:
    """Why an image cannot be read; or whether it is of a single colour."""
    try:
        with _open(file) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            return all(low == high for low, high in _rgb(image).getextrema())
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return str(error) or type(error).__name__


def _open(item: Path | StoredImage) -> Any:
    return _pillow().open(item) if isinstance(item, Path) else item.open()


def _decoded(item: Item, preprocess: Preprocess) -> Tensor:
    """The image as `(3, h, w)` uint8 at the size of `preprocess`."""
    image, (height, width) = _opened(item), preprocess.size
    resample = getattr(_pillow().Resampling, _FILTERS[preprocess.interpolation])
    if preprocess.resize == "crop":
        factor = max(int(height * _MARGIN) / image.height, int(width * _MARGIN) / image.width)
        grown = [max(side, int(factor * have + 1e-6)) for side, have in ((width, image.width), (height, image.height))]
        left, top = round((grown[0] - width) / 2), round((grown[1] - height) / 2)
        image = image.resize(tuple(grown), resample).crop((left, top, left + width, top + height))
    else:
        image = image.resize((width, height), resample)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (h, w, 3) -> (3, h, w)


def _opened(item: Item) -> Any:
    """The whole image, in RGB."""
    if isinstance(item, np.ndarray):
        return _pillow().fromarray(item).convert("RGB")
    try:
        with _open(item) as opened:
            return _rgb(opened)
    except Exception as error:  # as in _complaint
        raise DataError(
            f"The image {str(item)!r} cannot be read: {error}.",
            remedy="Replace or remove it; class folders and tables leave such images out with --on-bad-image skip.",
        ) from error


def _rgb(image: Any) -> Any:
    """The image in RGB, turned as its camera was held.

    Raises:
        ValueError: It has numbers that are no colours, or a mode that has no RGB.
    """
    if _orientation(image) != UPRIGHT:
        image = registry.optional_import("PIL.ImageOps", extra="vision", purpose="Reading images").exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips them at 255
        return _pillow().fromarray(_grey(np.asarray(image), image.mode)).convert("RGB")
    if "transparency" in image.info:  # a palette's transparency must pass through RGBA
        image = image.convert("RGBA")
    return image.convert("RGB")


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(0x0112, UPRIGHT))
    except Exception:  # damaged metadata is no damaged image
        return UPRIGHT


def _grey(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Grey values of more than 8 bits as 8 bits.

    `I;16` goes to 65,535; whole numbers of 32 bits to 255 or, where one is larger, to 65,535; fractions to 1 or 255.

    Raises:
        ValueError: They are outside of that.
    """
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    tops = (65535,) if mode.startswith("I;16") else (255, 65535) if mode == "I" else (1, 255)
    top = next((top for top in tops if high <= top), None)
    if not low >= 0 or top is None:  # NaN is neither
        raise ValueError(f"its pixels go from {low:g} to {high:g}, and {mode!r} is read from 0 to {tops[-1]}")
    scaled = values // 256 if top == 65535 else values * (255 / top)
    return np.rint(scaled).astype(np.uint8)
