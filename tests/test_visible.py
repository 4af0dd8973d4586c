"""What training and search may see of a task: no test image, and no image in two roles."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from glora.errors import DataError
from glora.tasks.images import ImageSet, Preprocess
from glora.tasks.objectives.classify import Classify
from glora.tasks.task import Task
from glora.tasks.visible import visible

PREPROCESS = Preprocess(size=(2, 2))


def task(train: int = 40, val: int = 20, test: int = 8, classes: int = 3, seed: int = 0) -> Task:
    """Every image has a brightness of its own, so that it can be told apart."""
    rng = random.Random(seed)
    levels = iter(range(256))

    def split(n: int) -> ImageSet:
        images = [np.full((2, 2), next(levels), np.uint8) for _ in range(n)]
        return ImageSet(images, [rng.randrange(classes) for _ in images], preprocess=PREPROCESS)

    return Task("toy", Classify(classes=tuple("abc"[:classes])), split(train), split(val), split(test), fingerprint="f")


def levels(images: ImageSet) -> list[int]:
    return [int(item[0, 0]) for item in images.items if isinstance(item, np.ndarray)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("aside", [0, 1, 7, 19])
def test_val_is_cut_in_two_and_test_is_left_behind(seed: int, aside: int) -> None:
    whole = task(seed=seed)
    found = visible(whole, seed=seed, aside=aside, folds=1)
    assert levels(found.train) == levels(whole.train)
    assert sorted(levels(found.val) + levels(found.aside)) == levels(whole.val)
    assert len(found.aside) == aside
    assert found.scoring == (found.val,)
    again, other = (visible(whole, seed=each, aside=aside, folds=1) for each in (seed, seed + 1))
    assert levels(again.aside) == levels(found.aside)
    assert (levels(other.aside) == levels(found.aside)) == (aside == 0)


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("aside", [0, 6])
def test_every_image_is_scored_once_by_a_supernet_that_has_not_seen_it(folds: int, aside: int) -> None:
    whole = task()
    found = visible(whole, seed=0, aside=aside, folds=folds)
    pool = sorted(levels(whole.train) + levels(whole.val))
    assert sorted(levels(found.train) + levels(found.aside)) == pool
    scored = Counter(level for part in found.scoring for level in levels(part))
    assert scored == Counter(levels(found.train))
    for place, part in enumerate(found.scoring):
        assert sorted(levels(found.training(place)) + levels(part)) == sorted(levels(found.train))
        assert abs(len(part) - len(found.train) / folds) < 1


def test_folds_and_what_is_set_aside_have_every_class_in_its_share() -> None:
    found = visible(task(train=120, val=60), seed=0, aside=30, folds=4)
    labels = Counter(found.train.strata)
    for part in (*found.scoring, found.aside):
        share = Counter(part.strata)
        assert all(abs(share[label] - len(part) * count / len(found.train)) < 2.5 for label, count in labels.items())


def test_what_cannot_be_cut_is_told() -> None:
    with pytest.raises(DataError, match="aside=20 leaves no val images of 20"):
        visible(task(), seed=0, aside=20, folds=1)
    with pytest.raises(DataError, match="folds=61 is more than the 60 images"):
        visible(task(), seed=0, aside=0, folds=61)


def test_a_person_is_told_of_the_cut() -> None:
    told = " ".join(visible(task(), seed=0, aside=10, folds=3).notes)
    assert "10 of the 20 val images are set aside" in told
    assert "3 folds of the 50 images" in told
