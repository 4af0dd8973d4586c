"""What the suites stand on: cases in one test, and the few configurations that stand for all."""

from __future__ import annotations

import itertools

import pytest

from glora.genotype import Site
from suites.cases import every
from suites.layer_suite import everything, swept, triples


def test_every_case_runs_and_all_that_fail_are_told() -> None:
    seen: list[tuple[str, int]] = []

    @every(word="ab", number=[1, 2])
    def check(word: str, number: int) -> None:
        seen.append((word, number))
        assert number == 1 or word == "a"
        if number == 1 and word == "b":
            with pytest.raises(KeyError):
                pass

    with pytest.raises(AssertionError, match=r"2 of 4 cases failed") as told:
        check()
    assert seen == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert "word=b, number=1: Failed" in str(told.value)
    assert "word=b, number=2: AssertionError" in str(told.value)
    assert isinstance(told.value.__cause__, pytest.fail.Exception)


def test_a_test_is_skipped_when_every_case_is() -> None:
    ran: list[int] = []

    @every(number=[1, 2])
    def check(number: int, most: int) -> None:
        if number > most:
            pytest.skip("too large")
        ran.append(number)

    check(most=1)
    assert ran == [1]
    with pytest.raises(pytest.skip.Exception, match="too large"):
        check(most=0)


@pytest.mark.parametrize(("ranks", "few"), [((4,), 60), ((4, 2), 110)])
def test_a_few_configurations_show_every_three_choices(ranks: tuple[int, ...], few: int) -> None:
    options = everything(ranks, "matrix").options(Site("linear", 6, 10, True))
    whole, some = swept(options, "all"), swept(options, "triples")
    assert set(some) < set(whole)
    assert len(some) == len(set(some)) < few
    for places in itertools.combinations(range(5), 3):
        wanted = set(itertools.product(*(options[place] for place in places)))
        assert {tuple(config[place] for place in places) for config in some} == wanted
    assert triples(whole) == some
