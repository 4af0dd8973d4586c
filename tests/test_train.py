"""The training loop: its schedule, its seeds, what it moves, what survives a kill, several processes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from glora.adapt.adapter_file import fingerprint, read_tensors, save_tensors
from glora.errors import StateError
from glora.genotype import Genotype, LayerConfig
from glora.methods.method import Tuned, get_method
from glora.runs.folder import RunFolder
from glora.runs.reporter import Silent
from glora.runs.stages.train import run_training
from glora.tasks.evaluation import evaluate
from glora.tasks.objectives.classify import Classify
from glora.training.device import device_name
from glora.training.trainer import Progress, Trainer, collapsed
from suites.training import CLASSES, MIXED, adapted, equal, first_gradients, make_trainer, run, toy_images, values
from suites.two_processes import IMAGES, Ranks, train_with_two

HEAD = ("head",)
Vit = Callable[..., nn.Module]


# -- the learning rate


def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine(vit: Vit) -> None:
    trainer = make_trainer(adapted(vit()), epochs=5, batch_size=3, lr=1.0, warmup=0.1)  # 10 steps an epoch
    rates = [trainer.lr_at(step) for step in range(50)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    cosine = [0.5 * (1 + np.cos(np.pi * k / 45)) for k in range(45)]
    assert rates[5:] == pytest.approx(cosine)
    assert trainer.lr_at(50) == pytest.approx(0.0, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_whole_rate(vit: Vit) -> None:
    assert make_trainer(adapted(vit()), lr=0.25, warmup=0).lr_at(0) == 0.25


def test_the_published_schedule_is_set_once_an_epoch_and_lags_by_one(vit: Vit) -> None:
    """The rates that the authors' logs show: epoch -> rate, of 100 epochs at 1e-3."""
    logged = {0: 1e-6, 1: 1e-6, 2: 1.009e-4, 10: 9.001e-4, 20: 9.14405e-4, 50: 5.20548e-4}
    trainer = make_trainer(adapted(vit()), epochs=100, lr=1e-3, schedule="paper")
    steps = trainer.steps_per_epoch
    for epoch, rate in logged.items():
        of_epoch = {trainer.lr_at(step) for step in range(epoch * steps, (epoch + 1) * steps)}
        assert len(of_epoch) == 1
        assert of_epoch.pop() == pytest.approx(rate, rel=1e-5)
    assert min(trainer.lr_at(epoch * steps) for epoch in range(11, 100)) > 1e-5


def test_the_optimizer_is_given_that_rate(vit: Vit) -> None:
    trainer = make_trainer(adapted(vit()), epochs=2)
    used: list[float] = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    )
    run(trainer)
    assert used == [trainer.lr_at(step) for step in range(8)]


def test_every_step_knows_how_much_of_the_training_is_done(vit: Vit) -> None:
    tuned = adapted(vit())
    before, told = tuned.before_step, []

    def watch(*args: Any) -> None:
        before(*args)
        told.append(args[-1])

    tuned.before_step = watch  # type: ignore[method-assign]
    run(make_trainer(tuned, epochs=2))
    assert told == [step / 8 for step in range(8)]


# -- what it does


def test_the_loss_goes_down_and_only_support_tensors_and_head_move(vit: Vit) -> None:
    tuned = adapted(vit())
    before, start = fingerprint(tuned.model, HEAD), values(tuned)
    seen = run(make_trainer(tuned, epochs=30, lr=1e-2))
    assert seen[-1].loss < 0.3 * seen[0].loss
    assert seen[-1].metric > 0.9
    assert fingerprint(tuned.model, HEAD) == before
    moved = [not torch.equal(a, b) for a, b in zip(start, values(tuned), strict=True)]
    assert all(moved)


def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_gives_others(vit: Vit) -> None:
    def trained(seed: int) -> list[Tensor]:
        tuned = adapted(vit())
        torch.manual_seed(random.randrange(10**6))  # the process-wide generator has no say
        run(make_trainer(tuned, seed=seed))
        return values(tuned)

    first = trained(0)
    assert equal(first, trained(0))
    assert not equal(first, trained(1))


def test_progress_counts_steps_images_and_time(vit: Vit) -> None:
    told: list[Progress] = []
    ends = list(make_trainer(adapted(vit()), epochs=2).run(told.append))
    assert [(p.step, p.epoch) for p in ends] == [(4, 1), (8, 2)]
    assert told[0].step == 1, "the first step is told at once"
    assert replace(told[-1], examples_per_second=ends[-1].examples_per_second) == ends[-1], "but for the clock"
    assert ends[-1].seconds_left == 0
    assert ends[-1].examples_per_second > 0


@pytest.mark.parametrize(("n", "size", "batches"), [(30, 8, [8, 8, 8, 6]), (5, 8, [5]), (9, 8, [8, 1])])
def test_the_last_batch_may_be_smaller_and_every_image_is_seen_once(
    vit: Vit, n: int, size: int, batches: list[int]
) -> None:
    images, seen = toy_images(n), list[list[int]]()
    read = images.batch
    images.batch = lambda indices: (seen.append(list(indices)), read(indices))[1]  # type: ignore[method-assign]
    run(make_trainer(adapted(vit()), images, epochs=2, batch_size=size))
    assert [len(batch) for batch in seen] == 2 * batches
    epochs = seen[: len(batches)], seen[len(batches) :]
    orders = [[index for batch in epoch for index in batch] for epoch in epochs]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders[0] != orders[1]


def test_numbers_that_were_not_played_have_no_gradient_and_do_not_move(vit: Vit) -> None:
    tuned = adapted(vit())
    nothing = {name: LayerConfig() for name in tuned.adapted.sites}
    genotype = Genotype({**nothing, "blocks.0.fc1": LayerConfig(B="lora:2", E="vector")})
    tuned.before_step = lambda *_: tuned.adapted.activate(genotype)  # type: ignore[method-assign]
    before, trainer = values(tuned), make_trainer(tuned, epochs=2, weight_decay=0.5)
    with_gradient: set[int] = set()
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: with_gradient.update(id(p) for p in trainer.parameters if p.grad is not None)
    )
    run(trainer)
    support = tuned.adapted.supports["blocks.0.fc1"]
    played = {id(part) for tensor in "BE" for part in support.whole(tensor).values()}
    played |= {id(p) for p in tuned.adapted.head_parameters()}
    assert with_gradient == played
    for parameter, old in zip(tuned.parameters(), before, strict=True):
        assert torch.equal(parameter, old) == (id(parameter) not in played)


def test_a_nan_loss_stops_with_the_learning_rate_to_lower(vit: Vit) -> None:
    with pytest.raises(
        StateError,
        match=r"(training loss is (nan|inf)|number becomes infinite or NaN) in epoch \d+, step \d+ of \d+, at a "
        r"learning rate of \S+\. In play: Genotype.*lower learning rate than 1e\+30",
    ):
        run(make_trainer(adapted(vit()), lr=1e30, warmup=0))


# -- going on after a kill


@pytest.mark.parametrize("how", [{"sampling": "batch"}, {"sampling": "sample", "largest": 1.0}])
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(vit: Vit, tmp_path: Path, after: int, how: dict[str, Any]) -> None:
    whole = adapted(vit(), **how)
    uninterrupted = make_trainer(whole)
    ends = run(uninterrupted)

    first = make_trainer(adapted(vit(), **how))
    steps = first.run()
    for _ in range(after):
        next(steps)
    save_tensors(tmp_path / "state.safetensors", *first.state())

    tuned = adapted(vit(), seed=5, **how)  # all that it starts with is replaced
    second = make_trainer(tuned)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    assert second.epoch == after
    left = run(second)
    assert equal(values(tuned), values(whole))
    one, other = (trainer.optimizer.state_dict()["state"] for trainer in (second, uninterrupted))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k][name], other[k][name]) for k in one for name in other[k])
    assert [(p.step, p.loss, p.lr) for p in left] == [(p.step, p.loss, p.lr) for p in ends[after:]]
    assert second.seconds > first.seconds


def test_an_interrupted_run_on_augmented_images_goes_on_to_the_same_bits(vit: Vit, tmp_path: Path) -> None:
    whole = adapted(vit())
    run(make_trainer(whole, toy_images().augmented(MIXED)))
    first = make_trainer(adapted(vit()), toy_images().augmented(MIXED))
    next(first.run())
    save_tensors(tmp_path / "state.safetensors", *first.state())
    tuned = adapted(vit(), seed=5)
    second = make_trainer(tuned, toy_images().augmented(MIXED))
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    run(second)
    assert equal(values(tuned), values(whole))


def test_gradient_descent_with_momentum_goes_on_to_the_same_bits_too(vit: Vit, tmp_path: Path) -> None:
    whole, settings = adapted(vit()), {"optimizer": "sgd", "lr": 1e-2}
    run(uninterrupted := make_trainer(whole, **settings))
    assert isinstance(uninterrupted.optimizer.optimizer, torch.optim.SGD)
    state = uninterrupted.optimizer.state_dict()["state"]
    assert any(kept["momentum_buffer"].abs().sum() > 0 for kept in state.values())
    first = make_trainer(adapted(vit()), **settings)
    next(first.run())
    save_tensors(tmp_path / "state.safetensors", *first.state())
    tuned = adapted(vit(), seed=5)
    second = make_trainer(tuned, **settings)
    second.restore(*read_tensors(tmp_path / "state.safetensors"))
    run(second)
    assert equal(values(tuned), values(whole))
    forgetful = adapted(vit(), seed=5)
    third = make_trainer(forgetful, **settings)
    third.restore(*read_tensors(tmp_path / "state.safetensors"))
    third.optimizer.state.clear()
    run(third)
    assert not equal(values(forgetful), values(whole)), "the momentum matters"


@pytest.mark.parametrize("told", [True, False])
def test_a_training_of_other_fixed_scales_does_not_go_on(vit: Vit, tmp_path: Path, told: bool) -> None:
    first = make_trainer(adapted(vit()))
    for support in first.tuned.adapted.supports.values():
        support.scales.pop("B.lora")  # as it was before
    next(first.run())
    tensors, meta = first.state()
    if not told:  # by versions that knew no other
        del meta["constants"]
    save_tensors(tmp_path / "state.safetensors", tensors, meta)
    tuned = adapted(vit(), seed=5)
    before = values(tuned)
    with pytest.raises(StateError, match=r"other fixed scales.*Finish it with that version"):
        make_trainer(tuned).restore(*read_tensors(tmp_path / "state.safetensors"))
    assert equal(values(tuned), before)


# -- a collapse


@pytest.mark.parametrize(
    ("losses", "last", "lost"),
    [
        ([2.2, 1.0, 0.5], 2, False),
        ([1.5, 0.8, 3.2, 2.9], 2, True),
        ([1.5, 0.8, 3.2], 2, False),  # one bad epoch may be chance
        ([1.5, 0.8, 3.2, 1.5], 2, False),  # it has come back
        ([1.5, 0.8, 1.6, 1.5], 2, False),  # half of what guessing has above 0.8 is at 1.55
        ([1.5, 0.8, 1.6, 1.6], 2, True),
        ([1.5, 0.8, 1.6, 1.6], 3, False),
        ([2.3, 2.2, 2.4, 2.5], 2, False),  # nothing to speak of was learned
        ([2.3, 2.2, 2.6, 2.7], 2, True),  # clearly worse than guessing
        ([4.3, 8.1, 15.4, 15.5], 3, True),
        ([4.3, 3.9, 3.8, 3.7], 3, False),  # above guessing, but on its way
        ([2.9, 2.9], 2, False),
        ([2.9], 2, False),
    ],
)
def test_a_training_has_collapsed_when_its_last_epochs_lost_half_of_what_it_knew(
    losses: list[float], last: int, lost: bool
) -> None:
    assert collapsed(losses, last, chance=2.3) is lost


def dropping(vit: Vit, drop: float) -> Tuned:
    """A supernet on a backbone with drop-out, if there is any."""
    model = vit()
    if drop:
        model.head = nn.Sequential(nn.Dropout(drop), model.head)
    return adapted(model, sampling="sample", largest=1.0)


def struck(vit: Vit, *, epochs: int = 8, after: int = 3, drop: float = 0.0, **how: Any) -> tuple[Tuned, Trainer]:
    """A trainer of 10 steps an epoch, whose head is thrown far off when it has learned for some epochs."""
    tuned = dropping(vit, drop)
    trainer = make_trainer(tuned, epochs=epochs, **{"batch_size": 3, "lr": 3e-2, **how})
    judge = trainer._judge

    def judged() -> None:
        judge()
        if trainer.epoch == after:
            with torch.no_grad():
                for module in tuned.model.head.modules():
                    if isinstance(module, nn.Linear):
                        module.weight.mul_(-300)

    trainer._judge = judged  # type: ignore[method-assign]
    return tuned, trainer


def test_a_collapsed_training_begins_anew_as_one_of_the_epochs_left_at_a_third_of_the_rate(vit: Vit) -> None:
    tuned, trainer = struck(vit)
    told = [(trainer.warning, p) for p in trainer.run()]
    assert [bool(news) for news, _ in told] == [epoch == 5 for epoch in range(1, 9)]
    assert "collapsed by epoch 5" in told[4][0] and "anew at 0.01, for the epochs that are left: 3" in told[4][0]
    assert [(p.step, p.steps, p.epoch) for _, p in told] == [(10 * epoch, 80, epoch) for epoch in range(1, 9)]
    assert trainer.example_steps == 8 * 30

    fresh = adapted(vit(), sampling="sample", largest=1.0)
    other = make_trainer(fresh, epochs=3, batch_size=3, lr=3e-2 / 3)
    rest = run(other)
    assert equal(values(tuned), values(fresh))
    assert [p.loss for _, p in told[5:]] == [p.loss for p in rest]
    assert [p.lr for _, p in told[5:]] == [p.lr for p in rest]


def test_what_is_dropped_out_begins_anew_too(vit: Vit, tmp_path: Path) -> None:
    tuned, trainer = struck(vit, drop=0.1)
    session: Any = SimpleNamespace(
        reporter=Silent(), data=SimpleNamespace(fingerprint="", parts={}), base_fingerprint=""
    )
    run_training(session, trainer, RunFolder(tmp_path))
    assert trainer.began == 5
    fresh = dropping(vit, 0.1)
    other = make_trainer(fresh, epochs=3, batch_size=3, lr=3e-2 / 3)
    torch.manual_seed(0)  # as a run does with its seed
    run(other)
    assert equal(values(tuned), values(fresh))


def test_a_kill_around_a_collapse_changes_nothing(vit: Vit, tmp_path: Path) -> None:
    whole, uninterrupted = struck(vit)
    ends = []
    for progress in uninterrupted.run():
        ends.append(progress)
        save_tensors(tmp_path / f"{progress.epoch}.safetensors", *uninterrupted.state())
    for after in (4, 5, 6):
        tuned = adapted(vit(), sampling="sample", largest=1.0)
        second = make_trainer(tuned, epochs=8, batch_size=3, lr=3e-2)
        second.restore(*read_tensors(tmp_path / f"{after}.safetensors"))
        left = run(second)
        assert (second.began, second.lr) == (5, pytest.approx(0.01)), after
        assert equal(values(tuned), values(whole)), after
        assert [(p.step, p.loss, p.lr) for p in left] == [(p.step, p.loss, p.lr) for p in ends[after:]], after


def test_a_training_that_may_not_begin_anew_goes_on(vit: Vit) -> None:
    _, trainer = struck(vit, restart=False)
    assert run(trainer)[-1].epoch == 8
    assert (trainer.began, trainer.lr) == (0, 3e-2)
    assert "learned next to nothing" in trainer.warning


def test_a_training_that_has_learned_nothing_says_so_at_its_end(vit: Vit) -> None:
    trainer = make_trainer(adapted(vit()), epochs=2, lr=1e-9)
    told = [(trainer.warning, progress.loss) for progress in trainer.run()]
    assert [bool(news) for news, _ in told] == [False, True]
    assert "learned next to nothing" in told[1][0] and "another learning rate than 1e-09" in told[1][0]
    learned = make_trainer(adapted(vit()), epochs=30, lr=1e-2)
    run(learned)
    assert learned.warning == ""


def test_a_training_that_collapses_at_its_end_says_so(vit: Vit) -> None:
    _, trainer = struck(vit, epochs=5)
    run(trainer)
    assert "No epoch is left: train with a lower one." in trainer.warning
    assert trainer.began == 0


@pytest.mark.parametrize(("images", "size", "last"), [(30, 30, 20), (30, 8, 5), (30, 3, 2), (30, 1, 2)])
def test_as_many_epochs_are_looked_at_as_have_twenty_steps(
    vit: Vit, monkeypatch: pytest.MonkeyPatch, images: int, size: int, last: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("glora.training.trainer.collapsed", lambda losses, last, chance: bool(asked.append(last)))
    run(make_trainer(adapted(vit()), toy_images(images), epochs=1, batch_size=size))
    assert asked == [last]


def test_a_collapse_is_judged_by_the_cross_entropy_alone(vit: Vit) -> None:
    """What PACE adds to the loss is no sign of it."""
    trainer = make_trainer(adapted(vit(), sampling="sample", largest=1.0), epochs=2, pace="full", pace_weight=100.0)
    told = run(trainer)
    assert told[-1].loss > trainer.losses[-1] + 0.01
    assert trainer.losses[-1] < 1.5


def test_guessing_knows_how_often_each_class_is(vit: Vit) -> None:
    images = toy_images(30)
    few = images.subset([place for place in range(30) if images.targets[place] == 0 or place < 6])  # 10, 2 and 2
    trainer = make_trainer(adapted(vit()), few)
    assert trainer.chance == pytest.approx(-sum(share * math.log(share) for share in (10 / 14, 2 / 14, 2 / 14)))
    assert make_trainer(adapted(vit()), images).chance == pytest.approx(math.log(3))
    one = images.subset([place for place in range(30) if images.targets[place] == 0])
    assert make_trainer(adapted(vit()), one).chance > 0


@pytest.mark.parametrize(("loss", "told"), [(0.95, True), (0.85, False)])
def test_a_tenth_below_guessing_is_something(vit: Vit, loss: float, told: bool) -> None:
    trainer = make_trainer(adapted(vit()), epochs=1)
    run(trainer)
    trainer.losses = [loss * math.log(3)]
    trainer._judge()
    assert bool(trainer.warning) is told


def test_running_statistics_begin_anew_too() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(192), nn.Linear(192, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(x.flatten(1)))
            return out

    torch.manual_seed(0)
    tuned = get_method("full", {}).apply(Normed(), head=HEAD, seed=0)
    trainer = make_trainer(tuned, epochs=2)
    first = [value.clone() for value in (*tuned.parameters(), *tuned.model.buffers())]
    next(trainer.run())
    assert not equal(first, [*tuned.parameters(), *tuned.model.buffers()])
    trainer._begin_anew()
    assert equal(first, [*tuned.parameters(), *tuned.model.buffers()])


# -- evaluate


class Fixed(nn.Module):
    """Logits from the mean brightness."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        return torch.stack([-level, level], 1)


def test_evaluation_is_per_image_in_order_whatever_the_batch() -> None:
    images = toy_images(12).subset([0, 1, 3, 4, 0, 1, 3])  # labels 0 1 0 1 0 1 0
    images.targets = torch.tensor([0, 1, 0, 1, 0, 1, 1])  # the last is wrong
    how: dict[str, Any] = {"objective": Classify(classes=("dark", "light")), "accelerator": Accelerator(cpu=True)}
    found = evaluate(Fixed(), images, batch_size=3, **how)
    assert found.values["accuracy"].tolist() == [1] * 6 + [0]
    assert found.value("accuracy") == pytest.approx(6 / 7)
    assert found.standard_error("accuracy") == pytest.approx((6 / 7 * 1 / 7 / 7) ** 0.5)
    x, y, _ = images.batch(range(7))
    losses = nn.functional.cross_entropy(Fixed()(x), y, reduction="none")
    assert torch.allclose(found.values["loss"], losses)
    assert found.value("loss") == pytest.approx(losses.mean().item())
    assert found.standard_error("loss") == pytest.approx(losses.std().item() / 7**0.5)
    assert found.metrics("val")["val_examples"] == 7


def test_evaluation_leaves_no_gradient_and_eval_mode(vit: Vit) -> None:
    model = vit().train()
    evaluate(model, toy_images(4), objective=CLASSES, accelerator=Accelerator(cpu=True), batch_size=4)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


# -- several processes


@pytest.fixture(scope="module")
def by_two(vit: Vit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    return train_with_two(vit(), tmp_path_factory.mktemp("two"), "batch-off", "sample-off", "batch-off-mixed")


def test_two_processes_augment_and_mix_as_one(vit: Vit, by_two: dict[str, Ranks]) -> None:
    (first, meta), (second, other) = by_two["batch-off-mixed"]
    assert meta["judged"] == other["judged"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    trainer = make_trainer(adapted(vit()), toy_images(IMAGES).augmented(MIXED), epochs=2)
    gradients, ends = first_gradients(trainer), run(trainer)
    for name, value in gradients.items():
        assert torch.allclose(first[name], value, rtol=1e-4, atol=1e-7), name
    assert meta["losses"] == pytest.approx([p.loss for p in ends], rel=1e-3)
    assert meta["metrics"] == [None, None]


@pytest.mark.parametrize("sampling", ["batch", "sample"])
def test_two_processes_train_as_one_and_play_the_same_genotypes(
    vit: Vit, by_two: dict[str, Ranks], sampling: str
) -> None:
    (first, meta), (second, other) = by_two[f"{sampling}-off"]
    if sampling == "batch":
        assert meta["genotypes"] == other["genotypes"]
    played = {str(genotype) for each in (meta, other) for genotype in each["genotypes"]}
    assert len(played) == (6 if sampling == "batch" else 2 * 17)  # of 6 steps, 34 samples
    assert meta["moments"] == other["moments"]
    assert meta["judged"] == other["judged"], "or one of them begins anew alone"
    assert all(torch.equal(first[name], second[name]) for name in first)

    trainer = make_trainer(adapted(vit(), sampling=sampling), toy_images(IMAGES), epochs=2)
    start = values(trainer.tuned)
    gradients, ends = first_gradients(trainer), run(trainer)
    assert {name for name in first if name.startswith("gradient")} == gradients.keys()
    for name, value in gradients.items():
        assert torch.allclose(first[name], value, rtol=1e-4, atol=1e-7), name
    theirs = torch.cat([first[str(k)].flatten() for k in range(len(start))])
    mine, before = (torch.cat([value.flatten() for value in every]) for every in (values(trainer.tuned), start))
    # not each number: Adam makes whole steps out of the rounding errors of keys' biases, whose gradient is 0
    assert (theirs - mine).norm() < 0.1 * (mine - before).norm()
    assert ((theirs - mine).abs() < 1e-4).float().mean() > 0.95
    assert meta["losses"] == pytest.approx([p.loss for p in ends], rel=1e-3)
    assert meta["metrics"] == pytest.approx([p.metric for p in ends])
    assert meta["moments"] == sorted(trainer.optimizer.state_dict()["state"])  # what was never played has none


def test_the_runs_seed_decides_the_subnets(vit: Vit) -> None:
    """Also apart from the batches, which it decides too."""
    played: list[list[Genotype]] = []
    for seed in (0, 0, 1):
        tuned = adapted(vit())
        genotypes: list[Genotype] = []
        before = tuned.before_step

        def watch(*args: Any, before: Any = before, tuned: Any = tuned, into: Any = genotypes) -> None:
            before(*args)
            into.append(tuned.adapted.active)

        tuned.before_step = watch  # type: ignore[method-assign]
        for _ in make_trainer(tuned, seed=seed, epochs=1).run():
            pass
        played.append(genotypes)
    assert played[0] == played[1]
    assert not set(played[0]) & set(played[2])


@pytest.mark.parametrize(("precision", "told"), [("highest", "A GPU"), ("high", "A GPU, matrix products in TF32")])
def test_a_gpu_that_rounds_the_factors_of_its_matrix_products_says_so(
    monkeypatch: pytest.MonkeyPatch, precision: str, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    assert device_name(torch.device("cuda")) == told
