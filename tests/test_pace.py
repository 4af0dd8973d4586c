"""PACE: what is perturbed and by how much, the passes of a step, kills, several processes, and what it is for."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.config import TrainSettings, build_experiment
from glora.errors import ConfigError, StateError
from glora.methods.method import get_method
from glora.runs.run import Run
from glora.training.pace import Noise, example_steps
from suites.toy import Recorder, tiny
from suites.training import adapted, equal, first_gradients, make_trainer, run, toy_images, values
from suites.two_processes import IMAGES, Ranks, train_with_two

CPU = torch.device("cpu")
FORMS = ("full", "fast", "lazy")
Vit = Callable[..., nn.Module]


def tuned_by(method: str, model: nn.Module, **settings: Any) -> Any:
    return get_method(method, {"rank": 2, **settings} if method == "lora" else settings).apply(
        model, head=("head",), seed=0
    )


def moved(tuned: Any, by: float = 0.3) -> Any:
    """The same, its numbers outside the head moved as training would."""
    head = {id(p) for p in tuned.model.head.parameters()}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if id(parameter) not in head:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return tuned


def noisy(noise: Noise, forward: Callable[[], Tensor], n: int, seed: int = 0) -> Tensor:
    with noise:
        noise.draw(seed, range(n), n)
        return forward()


# -- what is perturbed


@pytest.mark.parametrize("method", ["glora", "lora", "biases", "full"])
@pytest.mark.parametrize("targets", ["linear", "all"])
def test_noise_touches_only_what_training_adds(vit: Vit, images: Tensor, method: str, targets: str) -> None:
    tuned = tuned_by(method, vit(), **({"targets": targets} if method != "full" else {}))
    tuned.before_step(random.Random(0), range(6), 6, 1.0)
    plain, noise = tuned.model(images), Noise(tuned, 2.0, CPU)
    assert torch.allclose(noisy(noise, lambda: tuned.model(images), 6), plain, atol=1e-6), "nothing is added yet"
    moved(tuned)
    added = tuned.model(images)
    assert not torch.allclose(added, plain)
    one, other = (noisy(noise, lambda: tuned.model(images), 6, seed) for seed in (1, 2))
    assert not torch.allclose(one, added)
    assert not torch.allclose(one, other)
    assert torch.equal(one, noisy(noise, lambda: tuned.model(images), 6, 1)), "a seed is a noise"
    assert torch.equal(tuned.model(images), added), "nothing stays behind"
    assert noise.left == ()


@pytest.mark.parametrize("sampling", ["batch", "sample"])
def test_one_number_per_sample_and_channel_with_mean_one_and_the_deviation_asked_for(vit: Vit, sampling: str) -> None:
    tuned = tuned_by("glora", vit(), targets=("blocks.0.fc1",), sampling=sampling)
    moved(tuned).before_step(random.Random(3), range(5), 5, 1.0)
    layer, x = tuned.model.blocks[0].fc1, torch.randn(5, 4, 12)
    weight, bias = (layer.parametrizations[name].original for name in ("weight", "bias"))
    plain, whole, noise = F.linear(x, weight, bias), layer(x), Noise(tuned, 0.7, CPU)
    found = []
    for seed in range(400):
        z = (noisy(noise, lambda: layer(x), 5, seed) - plain) / (whole - plain)
        found.append(z[:, 0])
    sure = ((whole - plain).abs() > 1e-2).all(1)  # the last z has the others' rounding errors where little is added
    assert sure.float().mean() > 0.3
    spread = (z - z[:, :1]).abs().amax(1)
    assert spread[sure].max() < 1e-3, "the same for all tokens"
    every = torch.stack(found)[:, sure]
    assert every.mean().item() == pytest.approx(1, abs=0.02)
    assert every.std().item() == pytest.approx(0.7, abs=0.02)
    assert torch.corrcoef(every.T).fill_diagonal_(0).abs().max() < 0.3, "each its own"


def test_the_deviation_falls_in_a_line_with_depth(vit: Vit) -> None:
    tuned = moved(tuned_by("lora", vit()))
    noise = Noise(tuned, 0.8, CPU)
    draws: dict[str, list[Tensor]] = {noisy.name: [] for noisy in noise.layers}
    with noise:
        for seed in range(300):
            noise.draw(seed, range(6), 6)
            for name, z in noise._numbers.items():
                draws[name].append(z)
    deviations = [torch.stack(each).std().item() for each in draws.values()]
    assert next(iter(draws)) == "blocks.0.attn.qkv"
    assert deviations == pytest.approx([0.8 * (8 - k) / 8 for k in range(8)], rel=0.05)


def test_the_noise_of_a_sample_does_not_depend_on_the_process_that_has_it(vit: Vit, images: Tensor) -> None:
    tuned = moved(tuned_by("lora", vit()))
    noise = Noise(tuned, 1.0, CPU)
    whole = noisy(noise, lambda: tuned.model(images), 6)
    with noise:
        noise.draw(0, [1, 3, 5], 6)
        part = tuned.model(images[[1, 3, 5]])
    assert torch.allclose(part, whole[[1, 3, 5]], atol=1e-5)


class Reading(nn.Module):
    """Its first layer is called, the second's weight only read, the third gets no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.table = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(3, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        shift = self.table(torch.ones(1, 3)).mean(0)
        return self.head(F.linear(self.called(x.flatten(1)), self.read.weight) + shift)


def test_layers_that_cannot_be_perturbed_are_told_once() -> None:
    trainer = make_trainer(tuned_by("lora", Reading()), epochs=2, pace="full")
    run(trainer)
    told = trainer.pace.warning()
    assert told.startswith("PACE perturbs 1 of 3 layers; not read, table: ")
    assert trainer.pace.warning() == ""
    silent = make_trainer(tuned_by("lora", Reading()), epochs=1)
    run(silent)
    assert silent.pace.warning() == ""


def test_running_statistics_are_read_as_before_and_updated_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    tuned = get_method("full", {}).apply(model.train(), head=("3",), seed=0)
    noise = Noise(tuned, 1.0, CPU)
    noisy(noise, lambda: tuned.model(torch.randn(5, 3, 8, 8)), 5)
    assert model[1].num_batches_tracked.item() == 1
    assert noise.left == ("1",)


def test_gradient_checkpointing_is_refused(vit: Vit, images: Tensor) -> None:
    tuned = moved(tuned_by("lora", vit()))
    blocks = tuned.model.blocks.forward
    tuned.model.blocks.forward = lambda x: checkpoint(blocks, x, use_reentrant=False)
    with pytest.raises(StateError, match=r"gradient checkpointing repeats.*without train\.pace"):
        run(make_trainer(tuned, pace="full"))


@pytest.mark.parametrize("method", ["glora", "full"])
def test_it_trains_in_mixed_precision(vit: Vit, images: Tensor, method: str) -> None:
    tuned = moved(tuned_by(method, vit()), 0.1)
    noise = Noise(tuned, 1.0, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        half = noisy(noise, lambda: tuned.model(images), 6)
    assert torch.allclose(half.float(), noisy(noise, lambda: tuned.model(images), 6), atol=0.1)
    half.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tuned.parameters())


# -- the passes of a step


def test_with_no_noise_the_full_form_is_the_plain_training(vit: Vit) -> None:
    def trained(**settings: Any) -> tuple[list[Tensor], list[float]]:
        tuned = adapted(vit())
        ends = run(make_trainer(tuned, **settings))
        return values(tuned), [p.loss for p in ends]

    plain, losses = trained()
    mine, same = trained(pace="full", pace_noise=0.0, pace_weight=5.0)
    assert equal(mine, plain), "both passes are the same and their distance 0"
    assert same == losses


def test_both_passes_have_the_same_drop_out(vit: Vit) -> None:
    def losses(**settings: Any) -> list[float]:
        torch.manual_seed(0)
        model = vit()
        model.blocks = nn.Sequential(model.blocks, nn.Dropout(0.5))
        return [p.loss for p in run(make_trainer(adapted(model), **settings))]

    assert losses(pace="full", pace_noise=0.0, pace_weight=100.0) == losses()


@pytest.mark.parametrize(
    ("form", "sizes"),
    [("off", [8, 8, 8, 6]), ("fast", [8, 8, 8, 6]), ("full", [8, 8] * 3 + [6, 6]), ("lazy", [4, 4, 8, 4, 4, 6])],
)
def test_a_step_takes_as_many_passes_as_its_form_and_counts_them(vit: Vit, form: str, sizes: list[int]) -> None:
    trainer = make_trainer(adapted(vit(), sampling="sample"), epochs=2, pace=form)
    seen: list[int] = []
    trainer.tuned.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    ends = run(trainer)
    assert seen == 2 * sizes
    assert trainer.example_steps == sum(seen) == example_steps(trainer.settings, 30)
    assert ends[-1].seconds_left == 0
    assert 0 <= ends[-1].metric <= 1


def test_the_loss_is_that_of_one_pass_and_the_weighted_distance_of_two(vit: Vit) -> None:
    def first(weight: float) -> tuple[float, list[Tensor]]:
        trainer = make_trainer(moved(adapted(vit())), epochs=1, batch_size=30, pace="full", pace_weight=weight)
        logits: list[Tensor] = []
        trainer.tuned.model.register_forward_hook(lambda _, __, y: logits.append(y.detach()))
        (end,) = run(trainer)
        return end.loss, logits

    (alone, passes), (with_it, again) = first(0.0), first(0.5)
    assert equal(passes, again)
    distance = (passes[0] - passes[1]).square().sum(1).mean().item()
    assert distance > 0
    assert with_it - alone == pytest.approx(0.5 * distance, rel=1e-4)


def test_fast_compares_with_the_epoch_before(vit: Vit) -> None:
    def ends(weight: float) -> tuple[list[float], list[Tensor], list[list[int]]]:
        images, order, logits = toy_images(), list[list[int]](), list[Tensor]()
        read = images.batch
        images.batch = lambda indices: (order.append(list(indices)), read(indices))[1]  # type: ignore[method-assign]
        tuned = moved(adapted(vit()))
        trainer = make_trainer(tuned, images, epochs=2, batch_size=30, lr=1e-12, pace="fast", pace_weight=weight)
        tuned.model.register_forward_hook(lambda _, __, y: logits.append(y.detach()))
        return [p.loss for p in run(trainer)], logits, order

    (alone, *_), (with_it, logits, order) = ends(0.0), ends(1.0)
    assert with_it[0] == alone[0], "the first epoch has nothing to compare with"
    sorted_by_image = [y[torch.tensor(batch).argsort()] for y, batch in zip(logits, order, strict=True)]
    distance = (sorted_by_image[0] - sorted_by_image[1]).square().sum(1).mean().item()
    assert with_it[1] - alone[1] == pytest.approx(distance, rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampling", ["batch", "sample"])
def test_an_interrupted_run_goes_on_to_the_same_bits(vit: Vit, tmp_path: Path, form: str, sampling: Any) -> None:
    whole = adapted(vit(), sampling=sampling)
    uninterrupted = make_trainer(whole, pace=form)
    ends = run(uninterrupted)
    first = make_trainer(adapted(vit(), sampling=sampling), pace=form)
    steps = first.run()
    next(steps)
    save_tensors(tmp_path / "state.safetensors", *first.state())
    tuned = adapted(vit(), seed=5, sampling=sampling)
    second = make_trainer(tuned, pace=form)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    left = run(second)
    assert equal(values(tuned), values(whole))
    assert [p.loss for p in left] == [p.loss for p in ends[1:]]
    assert second.example_steps == uninterrupted.example_steps


@pytest.mark.parametrize("form", FORMS)
def test_the_seed_decides_the_noise(vit: Vit, form: str) -> None:
    def losses(seed: int) -> list[float]:
        torch.manual_seed(random.randrange(10**6))
        return [p.loss for p in run(make_trainer(moved(tuned_by("lora", vit())), pace=form, batch_size=30, seed=seed))]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.fixture(scope="module")
def by_two(vit: Vit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    return train_with_two(vit(), tmp_path_factory.mktemp("two"), *(f"sample-{form}" for form in FORMS))


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_train_as_one(vit: Vit, by_two: dict[str, Ranks], form: str) -> None:
    (first, meta), (second, _) = by_two[f"sample-{form}"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    trainer = make_trainer(adapted(vit(), sampling="sample"), toy_images(IMAGES), epochs=2, pace=form)
    gradients, ends = first_gradients(trainer), run(trainer)
    assert {name for name in first if name.startswith("gradient")} == gradients.keys()
    for name, value in gradients.items():
        assert torch.allclose(first[name], value, rtol=1e-4, atol=1e-6), name
    assert meta["losses"] == pytest.approx([p.loss for p in ends], rel=1e-2)


# -- what it is for


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_lowers_the_distance_between_two_noisy_passes(vit: Vit, form: str, method: str) -> None:
    def distance(weight: float) -> float:
        tuned = tuned_by(method, vit())
        settings = {"epochs": 30, "pace": form, "pace_noise": 0.5, "pace_weight": weight}
        run(make_trainer(tuned, lr=1e-2 if method == "lora" else 3e-3, **settings))
        fresh = tuned_by(method, vit())  # for a copy of the pretrained weights
        noise = Noise(fresh, 0.5, CPU)
        for mine, theirs in zip(fresh.parameters(), tuned.parameters(), strict=True):
            mine.data.copy_(theirs.data)
        x, _, _ = toy_images().batch(range(30))
        passes = [noisy(noise, lambda: fresh.model.eval()(x), 30, seed).detach() for seed in range(10)]
        return (
            torch.stack([(a - b).square().sum(1).mean() for a, b in zip(passes[::2], passes[1::2], strict=True)])
            .mean()
            .item()
        )

    assert distance(1.0) < 0.6 * distance(0.0)


# -- as a setting


@pytest.mark.parametrize("method", ["glora", "lora", "biases", "full"])
def test_a_run_says_and_counts_its_passes(photos: Path, tmp_path: Path, method: str) -> None:
    reporter, train = Recorder(), {"epochs": 2, "pace": "full", "batch_size": 8}
    found = Run(tiny(photos, method=method, train=train, search={"controls": 0}), tmp_path / "run", reporter)
    result = found.fit()
    steps = 2 * 2 * len(found.session.data.train)
    assert result.example_steps == {"train": steps}
    assert any(f"{steps:,} passes of an example" in line and line.endswith("PACE full") for line in reporter.lines)
    assert not any("PACE perturbs" in line for line in reporter.lines), "nothing is left out"


def test_a_run_counts_the_example_steps_of_folds(photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": {"folds": 2}, "train": {"epochs": 1, "pace": "lazy", "batch_size": 5}}
    reporter = Recorder()
    result = Run(tiny(photos, search={"controls": 0}, **settings), tmp_path / "run", reporter).fit()
    assert any(f"{result.example_steps['train']:,} passes of an example" in line for line in reporter.lines)


def test_without_an_adapter_there_is_nothing_to_perturb(photos: Path, tmp_path: Path, vit: Vit) -> None:
    with pytest.raises(ConfigError, match=r"train\.pace perturbs what training adds.*only the head trains"):
        Run(tiny(photos, method="linear", train={"pace": "fast"}), tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="only the head trains"):
        make_trainer(tuned_by("linear", vit()), pace="full")


@pytest.mark.parametrize(
    "wrong", [{"pace": "slow"}, {"pace_noise": -1}, {"pace_weight": -0.1}, {"pace_every": 0}, {"pace": True}]
)
def test_wrong_settings_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"train\.{next(iter(wrong))}"):
        build_experiment({"data": {"source": "photos"}, "train": wrong})


def test_yaml_reads_a_bare_off_as_false() -> None:
    assert TrainSettings(pace=False).pace == "off"  # type: ignore[arg-type]
