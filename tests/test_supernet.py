"""A supernet in a loop of one's own: what is drawn, the share of the largest, and the example of its docstring."""

from __future__ import annotations

import inspect
import random
import textwrap

import pytest
import torch
from torch import nn

import glora
from glora.adapt.supernet import copied
from glora.errors import ConfigError
from glora.genotype import Genotype
from glora.tasks.calibration import Calibration
from glora.tasks.objectives.multilabel import MultiLabel
from glora.tasks.objectives.regress import Regress
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


def test_the_example_of_the_docstring_trains_calibrates_searches_and_merges(vit, images):
    model = vit().train()
    held_out = {"val_x": images, "val_y": torch.arange(6) % 3}
    names = {"glora": glora, "torch": torch, "model": model, "batches": [(images, torch.arange(6) % 3)] * 8, **held_out}
    training, calibrating, searching = example().strip().split("\n\n", 2)
    assert len(training.splitlines()) == 8
    exec(training, names)
    adapted = names["adapted"]
    largest = adapted.space.largest
    assert isinstance(adapted.active, tuple)
    assert any(genotype != largest for genotype in adapted.active), "late in training most are random"
    trained = [name for name, support in adapted.supports.items() if any(d.any() for d in support.down.values())]
    assert trained == list(adapted.sites)
    exec(calibrating, names)
    assert model.training
    exec(searching.replace("budget=300_000", "budget=2_000, settings={'population': 4, 'generations': 1}"), names)
    assert names["model"] is model
    assert type(model) is type(vit())
    assert model.state_dict().keys() == vit().state_dict().keys()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(images), held_out["val_y"])
    assert names["result"].best.parameters <= 2_000
    assert -names["result"].best.score.value == pytest.approx(loss.item(), rel=1e-4)


# -- calibration


def sure_supernet(vit, *, changes: float, logits: float):
    """A trained supernet whose changes and logits were multiplied, and 60 held-out examples."""
    model = vit().train()
    adapted = glora.inject(model, glora.SearchSpace(ranks=(2,)))
    supernet = glora.Supernet(adapted)
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(240) % 3
    x = torch.randn(240, 3, 8, 8, generator=generator) + target.view(-1, 1, 1, 1) / 2
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=3e-3)
    for step in range(60):
        mine = torch.randint(180, (32,), generator=generator)
        supernet.draw(32, done=step / 60)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[mine]), target[mine]).backward()
        optimizer.step()
    supernet.scale(changes)
    with torch.no_grad():
        model.head.weight.mul_(logits)
        model.head.bias.mul_(logits)
    return supernet, x[180:], target[180:]


def mean_loss(supernet, genotypes, x, target):
    losses = []
    with torch.no_grad():
        for genotype in genotypes:
            with supernet.hold(genotype) as model:
                losses.append(nn.functional.cross_entropy(model(x), target).item())
    return sum(losses) / len(losses)


def test_calibration_takes_back_what_was_too_strong_and_too_sure(vit):
    supernet, x, target = sure_supernet(vit, changes=1.0, logits=6.0)
    model, space = supernet.adapted.model, supernet.adapted.space
    genotypes = [space.sample(random.Random(seed)) for seed in range(4)]
    before, active = mean_loss(supernet, genotypes, x, target), supernet.adapted.active
    weight = model.head.weight.clone()
    asked = []

    def outputs():
        assert not model.training
        asked.append(len(x))
        return model(x), target

    found = supernet.calibrate(outputs, genotypes=genotypes)
    assert found.temperature > 2
    assert torch.allclose(model.head.weight * found.temperature, weight)
    assert mean_loss(supernet, genotypes, x, target) < before
    assert model.training
    assert supernet.adapted.active == active
    assert len(asked) == 3 + 7 * 4, "seven strengths, four subnets, and what may be divided"
    again = supernet.calibrate(outputs, genotypes=genotypes)
    assert again.temperature == pytest.approx(1, abs=0.2)


def test_calibration_changes_nothing_that_it_cannot_tell(vit):
    supernet, x, target = sure_supernet(vit, changes=1.0, logits=6.0)
    before = copied(supernet.adapted)
    model = supernet.adapted.model

    def unchanged():
        now = copied(supernet.adapted)
        parts = [(now.tensors, before.tensors), (now.head, before.head)]
        return all(torch.equal(new[name], old[name]) for new, old in parts for name in old)

    few = supernet.calibrate(lambda: (model(x[:20]), target[:20]))
    right = supernet.calibrate(lambda: (20 * nn.functional.one_hot(target, 3).float(), target))
    assert few == right == Calibration()
    assert unchanged()

    def broken():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        supernet.calibrate(broken)
    assert unchanged()
    assert model.training


def test_calibration_reads_another_objectives_loss(vit):
    supernet, x, target = sure_supernet(vit, changes=1.0, logits=6.0)
    model = supernet.adapted.model
    hot = nn.functional.one_hot(target, 3).float()
    labels = MultiLabel(labels=("a", "b", "c"))
    before = copied(supernet.adapted)
    found = supernet.calibrate(lambda: (model(x), hot), objective=labels)
    assert found.temperature > 1
    supernet.adapted.load_state(before)
    numbers = Regress(columns=("a", "b", "c")).fitted(hot)
    assert supernet.calibrate(lambda: (model(x), hot), objective=numbers).temperature == 1


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
        "glora.Supernet(adapted).calibrate(None, genotypes=0)",
    ],
)
def test_a_wrong_setting_says_what_is_allowed(vit, call):
    names = {"glora": glora, "adapted": glora.inject(vit(), PAPER)}
    with pytest.raises(ConfigError) as error:
        eval(call, names)
    assert error.value.allowed
