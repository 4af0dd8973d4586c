"""Examples of different lengths and weights: which go together, one step in several passes, means and their errors."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.config import TrainSettings
from glora.methods.method import get_method
from glora.tasks.batching import POOL, grouped, lengths_of, passes, weights_of
from glora.tasks.evaluation import Evaluation, Evaluator, ahead, joined, mean_and_error
from glora.tasks.objective import Objective
from glora.tasks.objectives.choose import Choose
from glora.tasks.objectives.language import Language
from glora.training.trainer import Trainer
from language import tiny_causal
from suites.token_rows import random_questions, random_rows
from suites.training import equal, toy_images, values

transformers = pytest.importorskip("transformers")

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
MOST = st.one_of(st.none(), st.integers(1, 12))
TOKENS = st.one_of(st.none(), st.integers(1, 200))


# -- which examples go together


@given(LENGTHS, MOST, TOKENS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_example_is_in_one_pass_that_is_not_too_large(
    lengths: list[int], most: int | None, tokens: int | None, rng: random.Random
) -> None:
    chosen = list(range(len(lengths)))
    rng.shuffle(chosen)
    found = passes(chosen, lengths, most=most, tokens=tokens)
    assert sorted(place for each in found for place in each) == list(range(len(chosen)))
    for each in found:
        longest = max(lengths[chosen[place]] for place in each)
        assert most is None or len(each) <= most
        assert tokens is None or len(each) == 1 or len(each) * longest <= tokens
    order = [lengths[chosen[place]] for each in found for place in each]
    assert order == sorted(order, reverse=True), "the longest first"
    assert passes(chosen, lengths, most=most, tokens=tokens) == found


@given(st.integers(0, 40), MOST, TOKENS)
def test_examples_without_lengths_keep_their_order_and_fill_every_pass(
    n: int, most: int | None, tokens: int | None
) -> None:
    found = passes(range(n), None, most=most, tokens=tokens)
    assert [place for each in found for place in each] == list(range(n))
    assert all(len(each) == (most or n) for each in found[:-1])


@given(LENGTHS, st.integers(1, 8), st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_has_every_example_once_and_full_batches_of_neighbours_in_length(
    lengths: list[int], size: int, seed: int
) -> None:
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    found = grouped(order, lengths, size=size, rng=random.Random(seed))
    assert sorted(found) == sorted(order)
    assert found == grouped(order, lengths, size=size, rng=random.Random(seed))
    batches = [[lengths[index] for index in found[first : first + size]] for first in range(0, len(found), size)]
    assert len(order) <= size * POOL
    ranges = sorted((min(batch), max(batch)) for batch in batches)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges)), "none overlaps"


def test_epochs_differ_in_their_batches_and_in_the_order_of_these() -> None:
    lengths = [1 + k % 7 for k in range(200)]
    found = []
    for seed in range(2):
        order = list(range(200))
        random.Random(seed).shuffle(order)
        every = grouped(order, lengths, size=8, rng=random.Random(seed))
        found.append([tuple(sorted(every[first : first + 8])) for first in range(0, 200, 8)])
    assert found[0] != found[1]
    assert set(found[0]) != set(found[1])
    longest = [max(lengths[index] for index in batch) for batch in found[0]]
    assert longest != sorted(longest)


def test_images_have_neither_lengths_nor_weights() -> None:
    assert lengths_of(toy_images()) is None
    assert weights_of(toy_images()) is None
    rows = random_rows(5)
    assert lengths_of(rows) == rows.lengths
    found = weights_of(rows, [3, 1])
    assert found is not None
    assert found.tolist() == rows.weights[[3, 1]].tolist()
    assert weights_of(random_questions(3)) is None


# -- weighted means


def ratio(values: Sequence[float], weights: Sequence[float], correction: int) -> tuple[float, float]:
    """The ratio Σ w v / Σ w and its error by linearisation, term by term (Cochran, Sampling Techniques, Eq. 6.13)."""
    n, total = len(values), sum(weights)
    found = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    residuals = sum((w * v - found * w) ** 2 for w, v in zip(weights, values, strict=True))
    return found, math.sqrt(residuals / (n - correction) / n) / (total / n) if n > correction else 0.0


PAIRS = st.lists(st.tuples(st.floats(-50, 50), st.integers(1, 500)), min_size=1, max_size=30)


@given(PAIRS, st.sampled_from([0, 1]))
def test_a_weighted_mean_is_a_ratio_with_the_error_of_one(pairs: list[tuple[float, int]], correction: int) -> None:
    some, weights = ([float(each[k]) for each in pairs] for k in range(2))
    found = mean_and_error(torch.tensor(some), torch.tensor(weights).double(), correction=correction)
    exact = torch.tensor(some).tolist()  # as float32 has them
    assert found == pytest.approx(ratio(exact, weights, correction), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.integers(1, 9), st.sampled_from([0, 1]))
def test_equal_weights_are_none(some: list[float], weight: int, correction: int) -> None:
    every = torch.tensor(some)
    weighted = mean_and_error(every, torch.full((len(some),), float(weight)).double(), correction=correction)
    assert weighted == pytest.approx(mean_and_error(every, correction=correction), rel=1e-9, abs=1e-9)


def test_the_error_of_a_ratio_is_how_far_it_spreads() -> None:
    """Many samples of rows, each of another length, whose longer ones have the higher loss."""
    generator = torch.Generator().manual_seed(0)
    found, told = [], []
    for _ in range(400):
        weights = torch.randint(1, 20, (80,), generator=generator).double()
        some = 0.1 * weights + torch.randn(80, generator=generator)
        mean, error = mean_and_error(some, weights)
        found.append(mean)
        told.append(error)
    assert sum(told) / len(told) == pytest.approx(torch.tensor(found).std().item(), rel=0.15)


def evaluation(losses: Tensor, weights: Tensor) -> Evaluation:
    each = {"loss": losses, "token_accuracy": losses.lt(1).float(), "tokens": weights}
    return Evaluation(Language(), each, weights=weights.double())


def test_scores_of_single_rows_add_up_to_the_weighted_score_and_pairs_are_weighted_too() -> None:
    weights, losses = torch.tensor([1, 5, 2, 8]), torch.tensor([3.0, 0.5, 2.0, 1.0])
    one, other = evaluation(losses, weights), evaluation(losses + torch.tensor([0.1, 0.2, -0.3, 0.4]), weights)
    scores = one.scores("loss", unit=weights.double().mean().item())
    assert sum(scores) / 4 == pytest.approx(one.score("loss")[0])
    gap = ahead(one, other, "val")
    assert gap["val_loss_ahead"] == pytest.approx(other.value("loss") - one.value("loss"))
    expected = ratio([0.1, 0.2, -0.3, 0.4], weights.tolist(), 1)
    assert gap["val_loss_ahead_standard_error"] == pytest.approx(expected[1], rel=1e-5)
    assert one.value("perplexity") == pytest.approx(math.exp(one.value("loss")))
    whole = joined([one, other])
    assert whole.value("loss") == pytest.approx((one.value("loss") + other.value("loss")) / 2)


# -- one step in several passes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("model"))


METHODS = {
    "glora": {"ranks": (4, 2), "sampling": "sample", "largest": 0.5},
    "lora": {"rank": 4},
}


def trainer_of(folder: Path, examples: Any, objective: Objective, *, method: str = "glora", **changes: Any) -> Trainer:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    how = {**METHODS[method], **({"sampling": changes.pop("sampling")} if "sampling" in changes else {})}
    tuned = get_method(method, {"targets": ("q_proj", "down_proj"), **how}).apply(
        model, head=(), seed=changes.pop("start", 0)
    )
    with torch.no_grad():  # gradients of both factors
        for parameter in tuned.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(0.1 * noise)
    train = TrainSettings(**{"epochs": 1, "batch_size": 8, "restart": False, **changes})
    return Trainer(tuned, examples, objective, train, lr=1e-2, seed=0, accelerator=Accelerator(cpu=True))


def gradients(trainer: Trainer) -> tuple[list[Tensor | None], int]:
    """The gradients of the first step, and how many forward passes it took."""
    calls: list[int] = []
    found: list[Tensor | None] = []
    hook = trainer.tuned.model.register_forward_pre_hook(lambda *_: calls.append(1), prepend=True)

    def keep(*_: Any) -> None:
        found.extend(None if p.grad is None else p.grad.clone() for p in trainer.parameters)

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    next(iter(trainer.run()))
    hook.remove()
    return found, len(calls)


CUTS = [{"micro_batch": 3}, {"micro_batch": 1}, {"batch_tokens": 30}, {"micro_batch": 4, "batch_tokens": 50}]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("objective", [Language(), Choose()], ids=lambda each: each.name)
@pytest.mark.parametrize("method", list(METHODS))
def test_a_step_in_several_passes_has_the_gradient_of_one_pass(
    folder: Path, method: str, objective: Objective, cut: dict[str, int]
) -> None:
    examples = random_rows(8) if objective.name == "language" else random_questions(8)
    whole, once = gradients(trainer_of(folder, examples, objective, method=method, batch_tokens=None))
    parts, several = gradients(trainer_of(folder, examples, objective, method=method, **{"batch_tokens": None, **cut}))
    assert once == 1
    assert several > 1
    assert any(each is not None and each.abs().max() > 1e-3 for each in whole)
    for one, other in zip(whole, parts, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_tokens(folder: Path) -> None:
    rows = random_rows(8)
    trainer = trainer_of(folder, rows, Language(), method="lora", micro_batch=3)
    model = trainer.tuned.model
    evaluator = Evaluator(Language(), Accelerator(cpu=True), batch_size=8)
    before = evaluator.evaluate(model, rows)
    (progress,) = trainer.run()
    assert progress.loss == pytest.approx(before.value("loss"), rel=1e-4)
    assert progress.metric == pytest.approx(progress.loss)
    plain = before.values["loss"].mean().item()
    assert abs(plain - progress.loss) > 1e-3, "the mean over rows is another"


@pytest.mark.parametrize("sampling", ["sample", "batch"])
def test_genotypes_are_drawn_once_a_step_whatever_the_passes(folder: Path, sampling: str) -> None:
    def drawn(**cut: Any) -> list[dict[tuple[int, ...], Any]]:
        """For each step what every text played."""
        trainer = trainer_of(folder, rows, Language(), sampling=sampling, epochs=2, **cut)
        adapted, active = trainer.tuned.adapted, []  # type: ignore[attr-defined]

        def look(_: Any, args: Any, kwargs: Any) -> None:
            plays = adapted.active if isinstance(adapted.active, tuple) else (adapted.active,)
            ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
            texts = [tuple(row[kept == 1].tolist()) for row, kept in zip(ids, mask, strict=True)]
            active[-1].update(zip(texts, plays if len(plays) == len(texts) else plays * len(texts), strict=True))

        trainer.tuned.model.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
        step = trainer._step
        trainer._step = lambda *args: (active.append({}), step(*args))[1]  # type: ignore[method-assign]
        list(trainer.run())
        return active

    rows = random_rows(20)
    whole, parts = drawn(batch_tokens=None), drawn(micro_batch=3)
    assert len(whole) == 6
    assert whole == parts
    distinct = [len(set(step.values())) for step in whole]
    assert all(count == 1 for count in distinct) if sampling == "batch" else max(distinct) > 3
    assert whole[0] != whole[1]


def test_of_texts_those_of_about_the_same_length_share_a_step(folder: Path) -> None:
    rows = random_rows(64)

    def padding(**changes: Any) -> float:
        trainer, sizes = trainer_of(folder, rows, Language(), method="lora", **changes), []
        trainer.tuned.model.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        list(trainer.run())
        return sum(sizes) / sum(rows.lengths) - 1

    assert padding() < 0.1 < 0.3 < padding(order="random")


# -- going on after a kill


@pytest.mark.parametrize("cut", [{}, {"micro_batch": 3}, {"batch_tokens": 60}], ids=str)
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_training_on_texts_goes_on_to_the_same_bits(
    folder: Path, tmp_path: Path, after: int, cut: dict[str, Any]
) -> None:
    rows = random_rows(20)
    uninterrupted = trainer_of(folder, rows, Language(), epochs=3, **cut)
    ends = list(uninterrupted.run())
    first = trainer_of(folder, rows, Language(), epochs=3, **cut)
    steps = first.run()
    for _ in range(after):
        next(steps)
    save_tensors(tmp_path / "state.safetensors", *first.state())
    second = trainer_of(folder, rows, Language(), epochs=3, start=5, **cut)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    left = list(second.run())
    assert equal(values(second.tuned), values(uninterrupted.tuned))
    assert [(p.step, p.loss, p.lr) for p in left] == [(p.step, p.loss, p.lr) for p in ends[after:]]
