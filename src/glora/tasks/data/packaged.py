"""Data sets that install by name from a package registry: no hub, no download of our own."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glora import registry
from glora.errors import DataError, MissingExtraError
from glora.tasks.task import ImageSet, OnBadImage, Task, carve_val, load_task, split_in_three

__all__ = ["FASHION_MNIST", "digits", "fashion_mnist", "textile"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it

_GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def digits(*, seed: int, train: int | None, val: int | None, on_bad_image: OnBadImage) -> Task:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: by default 800 train, 200 val, 797 test.

    Args:
        seed: Seed of the stratified split.
        train: Number of training images.
        val: Number of validation images.
        on_bad_image: Of no effect: the images are inside the package.

    Raises:
        DataError: The sizes leave no test.
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = registry.optional_import("sklearn.datasets", extra="demo", purpose="The data set 'digits'")
    pixels, labels = datasets.load_digits(return_X_y=True)  # (1797, 64) in [0, 16]
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    classes = tuple(map(str, range(10)))
    pool = ImageSet(list(images), labels.tolist())
    splits, note = split_in_three(pool, classes, train=train, val=val, seed=seed)
    return Task("digits", classes, *splits, (note,)).stamped()


def textile(*, seed: int, train: int | None, val: int | None, on_bad_image: OnBadImage) -> Task:
    """2,000 textile photographs 250x250, nominal or with a local or global defect.

    Args:
        seed: Seed of the stratified split.
        train: Number of training images, by default 800.
        val: Number of validation images, by default 200.
        on_bad_image: What to do with an unreadable image.

    Raises:
        DataError: The sizes leave no test, or the package is damaged.
        MissingExtraError: The package `conformal-clip-data` is not installed.
    """
    spec = importlib.util.find_spec("conformal_clip_data")  # finds the files without running the package
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "The data set 'textile' needs the package 'conformal-clip-data', which is not installed.",
            remedy="Install it: pip install 'glora[demo]'",
        )
    root = Path(spec.submodule_search_locations[0]) / "data" / "textile_images" / "simulated"
    task = load_task(root, seed=seed, train=train, val=val, on_bad_image=on_bad_image)
    return replace(task, name="textile")


def fashion_mnist(*, seed: int, train: int | None, val: int | None, on_bad_image: OnBadImage) -> Task:
    """Fashion-MNIST: 800 train and 200 val of its 60,000 training images, its own 10,000 test images.

    Args:
        seed: Seed of the stratified split.
        train: Number of training images.
        val: Number of validation images.
        on_bad_image: Of no effect: the images are in one file.

    Raises:
        DataError: Debian's package is not installed or its files are damaged, or the sizes do not fit.
    """
    pool, test = (_idx_set(FASHION_MNIST, part) for part in ("train", "t10k"))
    train = 800 if train is None else train
    val = 200 if val is None else val
    (first, second), note = carve_val(pool, _GARMENTS, train=train, val=val, seed=seed)
    own = f"The test is the data set's own: {len(test):,} images."
    return Task("fashion_mnist", _GARMENTS, first, second, test, (note, own)).stamped()


def _idx_set(folder: Path, part: str) -> ImageSet:
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz")  # (n, 28, 28)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz")  # (n,)
    return ImageSet(list(images), labels.tolist())


def _idx(file: Path) -> npt.NDArray[np.uint8]:
    """An IDX file's bytes in their shape: magic number 0, 0, 8 (uint8), rank; sizes; bytes."""
    if not file.is_file():
        raise DataError(
            f"The data set 'fashion_mnist' needs {str(file)!r}, which is missing.",
            remedy="Install it: apt-get install dataset-fashion-mnist",
        )
    try:
        raw = gzip.decompress(file.read_bytes())
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it is no IDX file of bytes")
        start = 4 + 4 * raw[3]
        shape = tuple(np.frombuffer(raw[4:start], dtype=">u4").tolist())
        return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(
            f"{str(file)!r} is damaged: {error}.",
            remedy="Install it again: apt-get install --reinstall dataset-fashion-mnist",
        ) from error
