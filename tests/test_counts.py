"""One number everywhere: what is shown, what a search keeps its budget by, what has a gradient, what is in a file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glora.adapt.adapter_file import read_tensors
from glora.methods import METHODS
from glora.methods.method import Tuned, get_method
from glora.searchers import search
from suites.method_suite import timm_vit

SETTINGS: dict[str, list[dict[str, Any]]] = {  # of each method some, beside its defaults
    "glora": [
        {"ranks": (3, 1)},
        {"variant": "paper", "product": "elementwise", "new_bias": True, "targets": "all"},
        {"variant": "paper", "ranks": (2,), "skip": ("mlp.fc1",)},
    ],
    "lora": [{"rank": 1}, {"rank": 3, "parts": ("q", "v")}],
    "hira": [{"rank": 3}],
    "fact": [{"form": "tt", "rank": 2}, {"rank": 3}],
    "repadapter": [{"hidden": 4}],
    "adapter": [{"form": "houlsby", "hidden": 3}, {"form": "pfeiffer"}],
    "adaptformer": [{"hidden": 3, "scaling": "trained"}],
    "vpt": [{"tokens": 3}, {"depth": "deep", "tokens": 2}],
    "noah": [{"sizes": [1, 3]}],
    "pft": [{"rates": (0, 1)}],
}


def model() -> Any:
    """A network in which no number is zero, so that every trained one has a gradient."""
    made, generator = timm_vit(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


@contextmanager
def outputs_of(tuned: Tuned) -> Iterator[list[Tensor]]:
    """What all modules give: some numbers, such as a shift of keys, do not reach the logits."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            found.append(output)

    hooks = [module.register_forward_hook(keep) for module in tuned.model.modules()]
    yield found
    for hook in hooks:
        hook.remove()


def reached(tuned: Tuned) -> int:
    """Numbers outside the head that have a gradient."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))  # more, and a GELU shuts units off
    tuned.model.zero_grad()
    with outputs_of(tuned) as found:
        tuned.model.eval()(torch.randn(4, 3, 8, 8, generator=generator))
        drawn = [torch.randn(output.shape, generator=generator) for output in found]
        loss = torch.stack([(output * each).sum() for output, each in zip(found, drawn, strict=True)]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    heads = {id(p) for name in tuned.head for p in tuned.model.get_submodule(name).parameters()}
    grads = [p.grad for p in tuned.parameters() if id(p) not in heads and p.grad is not None]
    if tuned.space is None:  # whole tensors: what a ReLU shuts off has a gradient of zeros
        return sum(grad.numel() for grad in grads)
    return sum(int((grad != 0).sum()) for grad in grads)


def in_file(tuned: Tuned, path: Path) -> int:
    """Numbers outside the head in what is written."""
    (tuned.save if tuned.space is None else tuned.save_winner)(path, {})
    tensors, _ = read_tensors(path)
    head = sum(p.numel() for name in tuned.head for p in tuned.model.get_submodule(name).parameters())
    return sum(value.numel() for value in tensors.values()) - head


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 10**9))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_that_counts_trainable_numbers_agrees(name: str, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    method = get_method(name, rng.choice([{}, *SETTINGS.get(name, [])]))
    tuned = method.apply(model(), head=("head",), seed=0)
    space = tuned.space
    if space is None:
        assert f"{tuned.count():,}" in tuned.summary
    else:
        genotype = rng.choice([space.sample(rng), space.sample(rng), space.smallest, space.largest])
        assert all(f"{space.count(end):,}" in tuned.summary for end in (space.smallest, space.largest))
        tuned.activate(genotype)
        assert space.count(genotype) == tuned.count()
    assert reached(tuned) == tuned.count()
    assert in_file(tuned, tmp_path / "numbers.safetensors") == tuned.count()


@pytest.mark.parametrize("name", [name for name in METHODS if name in ("glora", "noah", "pft")])
@given(seed=st.integers(0, 10**9))
@settings(max_examples=4, deadline=None)
def test_the_search_keeps_its_budget_by_that_number(name: str, seed: int) -> None:
    rng = random.Random(seed)
    tuned = get_method(name, {}).apply(model(), head=("head",), seed=0)
    space = tuned.space
    assert space is not None
    budget = space.count(space.sample(rng))
    found = search(
        lambda genotype: float(hash(str(genotype)) % 97),
        space,
        searcher="evolution",
        settings={"population": 6, "generations": 2, "parents": 2, "mutations": 2, "crossovers": 2},
        budget=budget,
        min_budget=0,
        seed=seed % 1000,
    )
    for trial in found.trials:
        tuned.activate(trial.genotype)
        assert tuned.count() == trial.parameters <= budget
