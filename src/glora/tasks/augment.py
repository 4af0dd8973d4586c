"""What training images go through: timm's own transforms, mixup and cutmix, each drawn from a seed of its own.

    light     a random resized crop and a flip
    randaug   these two and RandAugment `rand-m9-mstd0.5-inc1` (arXiv 1909.13719)
    few_shot  the few-shot recipe of NOAH's baselines (arXiv 2206.04673): these two, RandAugment `rand-m9-mstd0.5-inc1`,
              and random erasing of a quarter of the images; with mixup 0.8, cutmix 1.0 and label smoothing 0.1

The recipe's colour jitter of 0.4 is handed to timm, which leaves it out beside RandAugment: in the authors' runs too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from glora import registry

__all__ = ["Augment", "Augmentation", "Mixing", "drawing", "mixing", "transform"]

Augment: TypeAlias = Literal["none", "light", "randaug", "few_shot"]
Color: TypeAlias = tuple[float, float, float]

KINDS: dict[str, dict[str, Any]] = {  # arguments of timm.data.create_transform
    "light": {"color_jitter": None},
    "randaug": {"color_jitter": None, "auto_augment": "rand-m9-mstd0.5-inc1"},
    "few_shot": {
        "color_jitter": 0.4,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.25,
        "re_mode": "pixel",
    },
}
SWITCH = 0.5  # with both mixup and cutmix, the share of batches that are cut


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to training images alone.

    Attributes:
        kind: What one image goes through.
        mixup: Both parameters of the Beta distribution of the shares in which two images are mixed; 0: never.
        cutmix: That of the area that one image leaves to another; 0: never.
    """

    kind: Augment = "none"
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with each other."""
        return bool(self.mixup or self.cutmix)


class Mixing(NamedTuple):
    """How the images of a batch are mixed, each with one other.

    Attributes:
        share: How much of an image, and of its target, is its own.
        box: Rows and columns `(top, bottom, left, right)` that come from the other; None: all pixels are averaged.
    """

    share: float
    box: tuple[int, int, int, int] | None

    def __call__(self, own: Tensor, others: Tensor) -> Tensor:
        """The mixed images `(n, 3, h, w)`; what comes in stays as it is."""
        if self.box is None:
            return self.share * own + (1 - self.share) * others
        top, bottom, left, right = self.box
        mixed = own.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed


@contextlib.contextmanager
def drawing(key: str) -> Iterator[None]:
    """Within it every global generator on the CPU is seeded by the key; afterwards they are where they were.

    timm's transforms draw from those of Python, numpy and torch.
    """
    rng = random.Random(key)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.getrandbits(63))  # torch.manual_seed would reseed the accelerators too
        np.random.set_state(np.random.RandomState(rng.getrandbits(32)).get_state())
        random.setstate(rng.getstate())
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@lru_cache(maxsize=16)
def transform(kind: Augment, size: tuple[int, int], mean: Color, std: Color, interpolation: str) -> Any:
    """timm's transform of a PIL image to normalised pixels `(3, h, w)`; to be called within `drawing`.

    Args:
        kind: A key of `KINDS`.
        size: Height and width in pixels.
        mean: Per-channel mean, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
        interpolation: Resize filter of the crop and of RandAugment's turns.
    """
    return _timm_data().create_transform(
        size, is_training=True, mean=mean, std=std, interpolation=interpolation, **KINDS[kind]
    )


def mixing(augmentation: Augmentation, size: tuple[int, int]) -> Mixing:
    """The mixing of the next batch of images of this size; to be called within `drawing`.

    Source: mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899), once per batch as timm's `Mixup` draws them.
    """
    alpha, cut = augmentation.mixup, augmentation.mixup == 0
    if augmentation.mixup and augmentation.cutmix:
        cut = bool(np.random.rand() < SWITCH)
    if cut:
        alpha = augmentation.cutmix
    share = float(np.random.beta(alpha, alpha))
    if not cut:
        return Mixing(share, None)
    box, share = _timm_data().mixup.cutmix_bbox_and_lam((3, *size), share)
    top, bottom, left, right = map(int, box)
    return Mixing(float(share), (top, bottom, left, right))


def _timm_data() -> Any:
    return registry.optional_import("timm.data", extra="vision", purpose="Augmentation")
