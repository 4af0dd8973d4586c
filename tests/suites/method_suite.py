"""What every method must do: subclass `MethodSuite`, name the method, inherit the tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

import pytest
import timm
import torch
from torch import Tensor, nn

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.errors import ConfigError
from glora.methods import METHODS
from glora.methods.method import Method, Tuned, get_method
from glora.registry import load
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.settings import describe
from suites.toy import Recorder, tiny
from suites.training import equal, make_trainer, run, values

HEAD = ("head",)
Vit = Callable[..., nn.Module]


class Normed(nn.Sequential):
    """A convolution, a batch norm, a Linear layer and a head."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 8), nn.Linear(8, 3))


def timm_vit(seed: int = 0, classes: int = 3) -> nn.Module:
    """timm's tiny transformer for 8 x 8 images: equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model("test_vit", img_size=8, patch_size=4, num_classes=classes)
    return model.eval()


def step(tuned: Tuned, x: Tensor, *, lr: float = 1e-2, times: int = 1) -> list[nn.Parameter]:
    """Trains for so many steps; the parameters that had a gradient in the last."""
    parameters, rng, trained = tuned.parameters(), random.Random(0), list[nn.Parameter]()
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    tuned.model.train()
    for _ in range(times):
        optimizer.zero_grad()
        tuned.before_step(rng, range(len(x)), len(x), 1.0)
        nn.functional.cross_entropy(tuned.model(x), torch.arange(len(x)) % 3).backward()
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        optimizer.step()
    tuned.model.eval()
    return trained


def numbers(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@torch.no_grad()
def play_one(tuned: Tuned) -> None:
    """Of several genotypes one plays, to be saved and merged."""
    if tuned.space is not None:
        tuned.activate(tuned.space.sample(random.Random(4)))


class MethodSuite:
    """The conformance of a method, on the tiny transformer of `conftest`, whose `fc2` has no bias."""

    method: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    fresh_is_base: ClassVar[bool] = True  # untrained it plays the base bit for bit
    merges_plain: ClassVar[bool] = True  # it can be merged: merged it has the classes and state-dict keys of the base
    statistics_stay: ClassVar[bool] = True  # running statistics outside the head are the base's after training

    def normed(self) -> nn.Module:
        """A model whose second module has running statistics and whose fifth is the head."""
        return Normed()

    def make(self, **changes: Any) -> Method:
        return get_method(self.method, {**self.settings, **changes})

    def apply(self, model: nn.Module, *, head: tuple[str, ...] = HEAD, seed: int = 0, **changes: Any) -> Tuned:
        return self.make(**changes).apply(model, head=head, seed=seed)

    # Settings

    def test_its_settings_are_described(self) -> None:
        kind: type[Method] = load(METHODS[self.method])
        assert kind.__doc__ and 0 < kind.lr < 1
        name = kind.model_fields["name"].annotation
        assert get_origin(name) is Literal and get_args(name) == (self.method,), "the table's name"
        for field, info in kind.model_fields.items():
            assert info.description or field == "name", f"{field} has no description"
            assert not info.is_required(), f"{field} has no default: `method: {self.method}` alone would be an error"
        told = "\n".join(describe(kind))
        assert all(field in told for field in kind.model_fields if field != "name")

    def test_they_are_plain_data_and_back(self) -> None:
        method = self.make()
        assert method == get_method(self.method, method.model_dump())
        assert method == get_method(self.method, method.model_dump(mode="json"))

    def test_an_unknown_setting_is_refused_with_the_nearest(self) -> None:
        fields = [name for name in load(METHODS[self.method]).model_fields if name != "name"]
        with pytest.raises(ConfigError, match=r"the method '.*\n  nonsense: no such setting") as caught:
            self.make(nonsense=1)
        assert all(field in caught.value.allowed for field in fields)
        for field in fields:
            with pytest.raises(
                ConfigError, match=rf"{field}x: no such setting of '{self.method}'\. Did you mean '{field}'\?"
            ):
                self.make(**{f"{field}x": 1})

    # Training

    def test_it_starts_as_the_base_and_trains_what_it_owns(self, vit: Vit, images: Tensor) -> None:
        model = vit()
        plain = model(images)
        tuned = self.apply(model)
        assert torch.equal(tuned.model(images), plain) or not self.fresh_is_base
        assert all(parameter.requires_grad for parameter in tuned.parameters())
        assert not any(p.requires_grad for p in set(model.parameters()) - set(tuned.parameters()))
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        step(tuned, images)
        assert not torch.equal(tuned.model(images), plain)
        owned = {id(parameter) for parameter in tuned.parameters()}
        moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
        assert moved <= {key for key, parameter in model.named_parameters() if id(parameter) in owned}
        assert {"head.weight", "head.bias"} <= moved

    def test_the_seed_decides(self, vit: Vit) -> None:
        first, again = (values(self.apply(vit(), seed=3)) for _ in range(2))
        assert equal(first, again)

    def test_it_counts_what_it_trains_and_what_it_saves(self, vit: Vit, images: Tensor, tmp_path: Path) -> None:
        tuned, path = self.apply(vit()), tmp_path / "numbers.safetensors"
        head = numbers(tuned.model.head.parameters())  # type: ignore[operator, union-attr]
        trained = step(tuned, images, times=4)
        if tuned.space is None:
            assert numbers(tuned.parameters()) - head == tuned.count() == numbers(trained) - head
            tuned.save(path, {})
        else:
            assert numbers(trained) - head >= tuned.count() >= 0
            play_one(tuned)
            assert tuned.count() > 0
            tuned.save_winner(path, {})
        assert sum(value.numel() for value in read_tensors(path)[0].values()) - head == tuned.count()
        assert f"{tuned.count():,}" in tuned.summary or tuned.space is not None

    def test_an_interrupted_training_goes_on_to_the_same_bits(self, vit: Vit, tmp_path: Path) -> None:
        whole = self.apply(vit())
        uninterrupted = make_trainer(whole, epochs=2)
        steps = uninterrupted.run()
        next(steps)
        save_tensors(tmp_path / "state.safetensors", *uninterrupted.state())
        drawn = torch.get_rng_state()  # drop-out draws from it; a run keeps it beside the trainer's state
        (end,) = steps
        tuned = self.apply(vit(), seed=5)  # all that it starts with is replaced
        again = make_trainer(tuned, epochs=2)
        again.restore(*read_tensors(tmp_path / "state.safetensors"))
        torch.set_rng_state(drawn)
        assert [p.loss for p in run(again)] == [end.loss]
        assert equal(values(tuned), values(whole))

    def test_running_statistics_of_a_frozen_base_stay(self, images: Tensor) -> None:
        model = self.normed().eval()
        before = {key: value.clone() for key, value in model.named_buffers()}
        tuned = self.apply(model, head=("4",))
        step(tuned, images)
        same = [torch.equal(value, before[key]) for key, value in model.named_buffers()]
        assert same == [self.statistics_stay] * 3
        play_one(tuned)
        tuned.merged().train()(images)
        assert model[1].num_batches_tracked == 1 + (not self.statistics_stay), "the model is the user's own again"

    # Saving and merging

    def test_merged_it_answers_the_same(self, vit: Vit, images: Tensor) -> None:
        model = vit()
        keys, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
        tuned = self.apply(model)
        step(tuned, images, times=2)
        play_one(tuned)
        with torch.no_grad():
            out = tuned.model(images)
            merged = tuned.merged()
            assert near(merged.eval()(images), out)
        assert [key for key in merged.state_dict() if key not in tuned.new_keys] == keys
        assert self.merges_plain == (not tuned.no_merge)
        if self.merges_plain:
            assert [type(module) for module in merged.modules()] == kinds

    def test_what_is_saved_is_loaded_by_the_method_and_merges_to_the_same(
        self, vit: Vit, images: Tensor, tmp_path: Path
    ) -> None:
        tuned, path = self.apply(vit()), tmp_path / "adapter.safetensors"
        step(tuned, images, times=2)
        play_one(tuned)
        (tuned.save if tuned.space is None else tuned.save_winner)(path, {"of": "mine"})
        assert read_tensors(path)[1]["info"] == {"of": "mine"}
        base = vit()
        nn.init.normal_(base.head.weight)  # type: ignore[union-attr, arg-type]  # a fresh head is random
        loaded = self.make().load(base, path)
        with torch.no_grad():
            expected = tuned.model(images)
            assert near(loaded.merged().eval()(images), expected)
            assert torch.equal(loaded.model(images), tuned.merged().eval()(images))
        assert loaded.new_keys == tuned.new_keys

    def test_what_was_trained_is_taken_over_from_its_file(self, vit: Vit, images: Tensor, tmp_path: Path) -> None:
        tuned, other = self.apply(vit()), self.apply(vit(), seed=5)
        step(tuned, images, times=2)
        tuned.save(tmp_path / "trained.safetensors", {})
        other.load(tmp_path / "trained.safetensors")
        assert equal(values(other), values(tuned))
        for each in (tuned, other):
            play_one(each)
        assert torch.equal(other.model(images), tuned.model(images))

    # A run

    def test_a_short_run_trains_and_tests_it(self, photos: Path, tmp_path: Path) -> None:
        method = {"name": self.method, **self.settings}
        run = Run(tiny(photos, method=method, train={"epochs": 1}, search={"controls": 0}), tmp_path, Recorder())
        result = run.fit()
        assert result is not None and result.method == self.method
        loaded, test = load_run(tmp_path), run.task.test
        assert test is not None and result.metrics["test_examples"] == len(test)
        found = run.session.evaluator.evaluate(loaded.model, test)
        assert found.value("loss") == pytest.approx(result.metrics["test_loss"], rel=1e-5)

    # A search

    def test_where_it_is_searched_it_can_be_held_copied_and_put_back(self, vit: Vit, images: Tensor) -> None:
        tuned = self.apply(vit())
        if tuned.space is None:
            pytest.skip("nothing is searched")
        step(tuned, images, times=2)
        genotype = tuned.space.sample(random.Random(4))
        tuned.activate(genotype)
        with torch.no_grad():
            plays = tuned.model(images)
            with tuned.hold(genotype) as held:
                assert near(held(images), plays)
            snapshot = tuned.snapshot()
            tuned.strengthen(0.5)
            assert not torch.equal(tuned.model(images), plays)
            tuned.restore(snapshot)
            assert torch.equal(tuned.model(images), plays)
            alone = tuned.alone(vit())
            assert alone.space is None and alone.count() == tuned.count()
            assert torch.equal(alone.model(images), plays)


class OnBlocks:
    """Before `MethodSuite`: of a method that goes into the blocks of a transformer that it knows, timm's."""

    @pytest.fixture
    def vit(self) -> Vit:
        return timm_vit

    def normed(self) -> nn.Module:
        backbone = timm_vit(classes=0)
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Identity(), backbone, nn.Linear(64, 3))
