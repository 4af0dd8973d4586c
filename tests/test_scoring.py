"""Scores are those of the merged model on val, bit for bit, and nothing else is looked at."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from glora.adapt.adapted import Adapted
from glora.genotype import Genotype
from glora.runs.scoring import Part, StoredNumbers, ValScorer
from glora.tasks.evaluation import Evaluation, Evaluator, evaluate
from glora.tasks.objectives.classify import Classify
from suites.training import adapted, make_trainer, run, toy_images


def scorer(tuned: Any, fitness: str = "loss") -> ValScorer:
    parts = (Part(StoredNumbers(tuned, tuned.snapshot()), toy_images(20)),)
    return ValScorer(parts, Evaluator(Classify(), Accelerator(cpu=True), 8), fitness=fitness)


def evaluated(model: nn.Module, batch_size: int) -> Evaluation:
    how: dict[str, Any] = {"accelerator": Accelerator(cpu=True), "batch_size": batch_size}
    return evaluate(model, toy_images(20), objective=Classify(), **how)


def some(adapted_model: Adapted, n: int) -> list[Genotype]:
    rng = random.Random(2)
    return [adapted_model.space.smallest, adapted_model.space.largest, *(adapted_model.sample(rng) for _ in range(n))]


@pytest.fixture
def trained(vit: Callable[..., nn.Module]) -> Any:
    tuned = adapted(vit())
    run(make_trainer(tuned, epochs=2, lr=2e-2))
    return tuned


def test_a_score_is_the_merged_models_bit_for_bit(trained: Any, vit: Callable[..., nn.Module]) -> None:
    genotypes = some(trained.adapted, 4)
    scores = [scorer(trained)(genotype) for genotype in genotypes]
    assert len({score.value for score in scores}) > 3
    for genotype, score in zip(genotypes, scores, strict=True):
        other = adapted(vit())
        other.adapted.load_state(trained.adapted.state(whole=True))
        other.adapted.activate(genotype)
        found = evaluated(other.merged(), 8)
        assert score.value == -found.value("loss")
        assert score.standard_error == found.standard_error("loss") > 0


def test_accuracy_is_the_papers_fitness(trained: Any) -> None:
    genotype = trained.adapted.space.largest
    score = scorer(trained, "accuracy")(genotype)
    with trained.adapted.hold(genotype) as model:
        found = evaluated(model, 20)
    assert score == (found.value("accuracy"), found.standard_error("accuracy"))


def test_scoring_leaves_the_supernet_as_it_was(trained: Any) -> None:
    active, before = trained.adapted.active, [p.detach().clone() for p in trained.parameters()]
    first = [scorer(trained)(genotype) for genotype in some(trained.adapted, 3)]
    again = [scorer(trained)(genotype) for genotype in some(trained.adapted, 3)]
    assert first == again, "no score depends on those before it"
    assert trained.adapted.active == active
    assert all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))


def test_only_val_is_given_to_a_scorer(trained: Any) -> None:
    asked: list[int] = []
    score = scorer(trained)
    (part,) = score.parts
    read = part.examples.batch
    part.examples.batch = lambda indices: (asked.extend(indices), read(indices))[1]  # type: ignore[method-assign]
    score(trained.adapted.space.smallest)
    assert asked == list(range(20))
    assert not hasattr(score, "task")


def test_some_images_are_scored_one_by_one(trained: Any) -> None:
    genotype, indices = trained.adapted.space.largest, [7, 3, 11]
    with trained.adapted.hold(genotype) as model:
        whole = evaluated(model, 20).values
    values = scorer(trained)(genotype, indices)
    assert values == pytest.approx([-whole["loss"][index].item() for index in indices], rel=1e-5)
    assert scorer(trained, "accuracy")(genotype, indices) == [whole["accuracy"][index].item() for index in indices]
