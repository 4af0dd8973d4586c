"""A supernet in a loop of one's own: what is drawn, the share of the largest, and the example of its docstring."""

from __future__ import annotations

import inspect
import random
import textwrap

import pytest
import torch
from torch import nn

import glora
from glora.errors import ConfigError
from glora.genotype import Genotype
from suites.layer_suite import difference
from test_adapted import PAPER, play


def drawn(supernet: glora.Supernet, samples: int, steps: int) -> list[tuple[Genotype, ...]]:
    """What every step of a training plays, one genotype per sample."""
    found = []
    for step in range(steps):
        supernet.draw(samples, done=step / steps)
        active = supernet.adapted.active
        found.append((active,) * samples if isinstance(active, Genotype) else active)
    return found


def example() -> str:
    """The code in the docstring of Supernet."""
    _, _, rest = inspect.getdoc(glora.Supernet).partition("In a loop of your own:")
    return textwrap.dedent(rest.partition("Args:")[0].strip("\n"))


def test_the_example_of_the_docstring_trains_the_supernet(vit, images):
    model = vit().train()
    names = {"glora": glora, "torch": torch, "model": model, "batches": [(images, torch.arange(6) % 3)] * 8}
    assert len(example().strip().splitlines()) == 8
    exec(example(), names)
    adapted = names["adapted"]
    largest = adapted.space.largest
    assert isinstance(adapted.active, tuple)
    assert any(genotype != largest for genotype in adapted.active), "late in training most are random"
    trained = [name for name, support in adapted.supports.items() if any(d.any() for d in support.down.values())]
    assert trained == list(adapted.sites)


def test_the_largest_plays_first_and_its_share_falls_to_none(vit):
    adapted = glora.inject(vit(), PAPER)
    steps = drawn(glora.Supernet(adapted), 10, 10)
    shares = [sum(genotype == adapted.space.largest for genotype in step) for step in steps]
    assert shares == list(range(10, 0, -1))
    uniform = drawn(glora.Supernet(adapted, largest=0.0), 10, 3)
    assert len({genotype for step in uniform for genotype in step}) == 30


def test_a_batch_may_play_one_genotype(vit, images):
    adapted = glora.inject(vit(), PAPER)
    steps = drawn(glora.Supernet(adapted, sampling="batch", largest=0.5), 6, 40)
    assert all(len(set(step)) == 1 for step in steps)
    largest = [step[0] == adapted.space.largest for step in steps]
    assert any(largest[:20])
    assert sum(largest[:20]) > sum(largest[20:])
    adapted.model(images[:2])


def test_equal_seeds_draw_the_same_and_the_global_generator_is_not_used(vit):
    random.seed(3)
    expected = random.getstate()
    one, two, other = (drawn(glora.Supernet(glora.inject(vit(), PAPER), seed=s), 4, 4) for s in (1, 1, 2))
    assert random.getstate() == expected
    assert one == two != other


def test_draw_is_sample_on_one_process(vit):
    adapted = glora.inject(vit(), PAPER)
    by_draw = drawn(glora.Supernet(adapted, seed=5), 6, 4)
    rng, supernet = random.Random(5), glora.Supernet(adapted)
    for step, expected in enumerate(by_draw):
        supernet.sample(rng, range(6), 6, step / 4)
        assert adapted.active == expected


@pytest.mark.parametrize("product", ["elementwise", "matrix"])
def test_scale_multiplies_what_the_support_tensors_change(product):
    layer, x = nn.Linear(6, 5), torch.randn(4, 6)
    plain = layer(x)
    space = glora.SearchSpace(ranks=(2,), variant="paper", product=product)
    adapted = glora.inject(layer, space, head=None)
    play(adapted, glora.LayerConfig(B="lora:2", E="vector"))
    change = layer(x) - plain
    supernet = glora.Supernet(adapted)
    supernet.scale(0.5)
    assert difference(layer(x) - plain, 0.5 * change) < 1e-5
    supernet.scale(2.0)
    assert torch.allclose(layer(x) - plain, change, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        "glora.Supernet(adapted, sampling='image')",
        "glora.Supernet(adapted, largest=2)",
        "glora.Supernet(adapted).draw(0, done=0)",
        "glora.Supernet(adapted).draw(4, done=1.5)",
    ],
)
def test_a_wrong_setting_says_what_is_allowed(vit, call):
    names = {"glora": glora, "adapted": glora.inject(vit(), PAPER)}
    with pytest.raises(ConfigError) as error:
        eval(call, names)
    assert error.value.allowed
