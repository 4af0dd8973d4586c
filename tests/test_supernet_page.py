"""The page on what the supernet is worth says what the committed results say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("supernet_page")


@pytest.mark.slow
def test_the_page_is_made_from_the_committed_results(page: Any) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_an_interval_is_that_of_seeds_and_images(page: Any) -> None:
    rng = np.random.default_rng(0)
    certain = np.full((3, 50), 2.0)
    assert page.interval([certain, certain]) == pytest.approx((2.0, 2.0, 2.0))
    images = np.tile(rng.normal(size=1_000), (3, 1))  # alike with every seed
    middle, low, high = page.interval([images])
    assert middle == pytest.approx(images.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * images.std() / np.sqrt(1_000), rel=0.1)
    seeds = np.tile(rng.normal(size=(20, 1)), (1, 1_000))  # alike for every image
    _, low, high = page.interval([seeds])
    assert (high - low) / 2 == pytest.approx(1.96 * seeds.std() / np.sqrt(20), rel=0.1)
    pooled = page.interval([images, rng.permutation(images, axis=1)])  # of two tasks half the variance
    assert (pooled[2] - pooled[1]) / 2 == pytest.approx(1.96 * images.std() / np.sqrt(2_000), rel=0.1)


def test_what_was_asked_is_met_or_missed(page: Any) -> None:
    ahead, size = "searched winner - LoRA", "the same of LoRA's size - LoRA"
    assert page.judged(ahead, (1.0, 0.1, 1.9)).endswith(": met")
    assert page.judged(ahead, (1.0, -0.1, 1.9)).endswith(": missed")
    assert page.judged(size, (-1.0, -3.0, 1.0)).endswith(": met")
    assert page.judged(size, (-1.1, -3.0, 1.0)).endswith(": missed")
