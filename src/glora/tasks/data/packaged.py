"""Data sets that install by name from a package registry: no hub, no download of our own."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from glora import scikit
from glora.errors import DataError, MissingExtraError
from glora.settings import Count
from glora.tasks.data.image_folder import ImageFolder
from glora.tasks.objective import Objective, Targets
from glora.tasks.task import DataSettings, OnBadImage, Pool, Task, assemble

__all__ = ["FASHION_MNIST", "Digits", "FashionMNIST", "Textile"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it

_GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class Digits(DataSettings):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: by default 800 train, 200 val, 797 test."""

    test: Count | None = Field(None, ge=1, description="Most test images; all that are left if not given.")

    def load(self, objective: Objective) -> Task:
        pixels, labels = scikit.digits()  # (1797, 64) in [0, 16]
        images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        targets = Targets(("digit",), [(label,) for label in labels.tolist()], names=tuple(map(str, range(10))))
        task = assemble("digits", {"": Pool(list(images), targets)}, objective, self, group="natural")
        if self.test is None or task.test is None or len(task.test) <= self.test:
            return task
        return replace(task, test=task.test.subset(range(self.test))).stamped(None)


class Textile(DataSettings):
    """2,000 textile photographs 250x250, nominal or with a local or global defect."""

    on_bad_image: OnBadImage = Field("error", description="What to do with unreadable images.")

    def load(self, objective: Objective) -> Task:
        spec = importlib.util.find_spec("conformal_clip_data")  # finds the files without running the package
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(
                "The data set 'textile' needs the package 'conformal-clip-data', which is not installed.",
                remedy="Install it: pip install 'glora[demo]'",
            )
        root = Path(spec.submodule_search_locations[0]) / "data" / "textile_images" / "simulated"
        settings = self.model_dump() | {"source": str(root)}
        return replace(ImageFolder(**settings).load(objective), name="textile", group="specialized")


class FashionMNIST(DataSettings):
    """Fashion-MNIST: 800 train and 200 val of its 60,000 training images, its own 10,000 test images."""

    def load(self, objective: Objective) -> Task:
        pools = {split: _idx_pool(FASHION_MNIST, part) for split, part in (("train", "train"), ("test", "t10k"))}
        sizes = {"train": self.train or 800, "val": self.val or 200}
        own = f"The test is the data set's own: {len(pools['test'].items):,} images."
        settings = self.model_copy(update=sizes)
        return assemble("fashion_mnist", pools, objective, settings, notes=[own], group="natural")


def _idx_pool(folder: Path, part: str) -> Pool:
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz")  # (n, 28, 28)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz")  # (n,)
    return Pool(list(images), Targets(("garment",), [(label,) for label in labels.tolist()], names=_GARMENTS))


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
