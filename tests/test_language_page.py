"""The page of the language models says what their results say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("language_page")


def test_the_page_is_made_from_the_committed_results(page: Any) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.committed())


def test_it_says_who_is_ahead_as_the_pairs_do(page: Any) -> None:
    for tested in page.committed().values():
        tables = {sheet.title.partition(",")[0]: sheet for sheet in page.by_task(tested)}
        for told in page.shown(tested):
            task, _, rest = told.partition(": ")
            other = rest.split(" by the loss")[0].split()[-1]
            (line,) = (line for line in tables[task].lines if line.name == other)
            mean, _, ends = line.cells["loss_ahead"].note.partition(" [")
            low, high = (float(each) for each in ends.rstrip("]").split(", "))
            assert mean in rest
            wanted = "behind" if low > 0 else "ahead of" if high < 0 else "not told apart from"
            assert wanted in rest
