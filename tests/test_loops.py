"""Supernets in the loops of others: Lightning's trainer, accelerate, timm's manner, and any loop by `Steps`."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import glora
from glora.errors import AdapterFileError, ConfigError, StateError
from glora.integrations import Steps

ROOT = Path(__file__).parents[1]
Vit = Callable[..., nn.Module]
SPACE = glora.SearchSpace(ranks=(4, 2))


def adapted_vit(vit: Vit, seed: int = 0) -> glora.Adapted:
    return glora.inject(vit(seed), SPACE, head="head")


def trained(steps: Steps, images: Tensor, first: int = 0, last: int = 4, **how: Any) -> Any:
    """The optimizer after some steps of a plain loop."""
    model, adapted = steps.adapted.model, steps.adapted
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
    model.train()
    for number in range(first, last):
        with steps.step(number, rows=len(images), done=number / 4, **how):
            nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def numbers(adapted: glora.Adapted) -> list[Tensor]:
    return [each.detach().clone() for each in adapted.parameters()]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# -- what plays


def test_a_step_plays_its_own_draw_and_the_model_rests_on_the_largest(vit: Vit, images: Tensor) -> None:
    adapted = adapted_vit(vit)
    steps = Steps(adapted, seed=3)
    wanted = steps.supernet.drawn(random.Random("3-7"), 6, 0.5)
    with steps.step(7, rows=6, done=0.5):
        assert adapted.active == wanted or list(adapted.active) == wanted
    assert adapted.active == adapted.space.largest


def test_processes_share_a_draw_and_passes_are_its_parts(vit: Vit, images: Tensor) -> None:
    whole = Steps(adapted_vit(vit)).supernet.drawn(random.Random("0-2"), 12, 0.25)
    found: list[Any] = []
    for rank in range(2):
        steps = Steps(adapted_vit(vit), rank=rank, world=2)
        with steps.step(2, rows=3, done=0.25, passes=2):
            found.append((0, rank, list(steps.adapted.active)))
            steps.next_pass()
            found.append((1, rank, list(steps.adapted.active)))
    assert [each for _, _, part in sorted(found, key=lambda f: f[:2]) for each in part] == whole


def test_a_short_batch_plays_the_first_rows_and_a_long_one_is_an_error(vit: Vit, images: Tensor) -> None:
    steps = Steps(adapted_vit(vit))
    model = steps.adapted.model.train()
    with steps.step(0, rows=6, done=0):
        model(images[:4])
        assert list(steps.adapted.active) == steps.drawn[:4]
    with (
        pytest.raises(StateError, match="A batch of 6 rows came, where 4 were announced"),
        steps.step(0, rows=4, done=0),
    ):
        model(images)
    assert steps.adapted.active == steps.adapted.space.largest


# -- what is saved


def test_the_state_dict_is_the_supernet_and_continues_the_training_bit_for_bit(vit: Vit, images: Tensor) -> None:
    one = Steps(adapted_vit(vit))
    trained(one, images)
    first = Steps(adapted_vit(vit))
    trained(first, images, last=2)
    holder = nn.ModuleDict({"inner": first.adapted.model})
    saved = copy.deepcopy(holder.state_dict())
    assert not any("parametrizations" in name or name.endswith("qkv.weight") for name in saved)
    second = Steps(adapted_vit(vit))
    nn.ModuleDict({"inner": second.adapted.model}).load_state_dict(saved)
    trained(second, images, first=2)
    assert equal(numbers(one.adapted), numbers(second.adapted))


def test_another_base_and_a_plain_state_dict_are_refused(vit: Vit, images: Tensor) -> None:
    steps = Steps(adapted_vit(vit))
    other = Steps(adapted_vit(vit, seed=1))
    with pytest.raises(AdapterFileError, match="trained on another base"):
        other.adapted.model.load_state_dict(steps.adapted.model.state_dict())
    with pytest.raises(AdapterFileError, match="holds no supernet for this TinyViT"):
        steps.adapted.model.load_state_dict(vit().state_dict())


def test_adapters_are_saved_and_models_merged_as_ever(vit: Vit, images: Tensor, tmp_path: Path) -> None:
    steps = Steps(adapted_vit(vit))
    adapted = steps.adapted
    trained(steps, images)
    genotype = adapted.space.smallest
    adapted.activate(genotype)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    y = adapted.model.eval()(images)
    again = glora.load_adapter(vit(), tmp_path / "a.safetensors")
    torch.testing.assert_close(again.model.eval()(images), y)
    copied = copy.deepcopy(adapted.model)
    assert copied.state_dict().keys() == adapted.model.state_dict().keys()
    plain = adapted.merge()
    assert list(plain.state_dict()) == list(vit().state_dict())
    steps.release()
    plain.load_state_dict(vit().state_dict())


# -- Lightning

lightning = pytest.importorskip("lightning", exc_type=ImportError)
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from glora.integrations import LightningCallback  # noqa: E402

quiet = pytest.mark.filterwarnings("ignore")  # Lightning's own, and what it says of few workers


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, model: nn.Module, parameters: Any) -> None:
        super().__init__()
        self.model, self.trained = model, list(parameters)
        self.played: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.model(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.trained, lr=1e-2)


def watched(adapted: glora.Adapted) -> Module:
    module = Module(adapted.model, adapted.parameters())
    adapted.model.register_forward_hook(
        lambda model, *_: (module.played if model.training else module.validated).append(adapted.active)
    )
    return module


def trainer(out: Path, adapted: glora.Adapted, **changes: Any) -> Any:
    given = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given |= {"max_epochs": 2, "default_root_dir": out, "callbacks": [LightningCallback(adapted)], **changes}
    return lightning.Trainer(**given)


def loaders(n: int = 22) -> list[Any]:
    x = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, torch.arange(n) % 3)
    return [DataLoader(data, batch_size=4), DataLoader(data, batch_size=11)]


@quiet
def test_lightning_killed_and_resumed_is_the_uninterrupted_run(vit: Vit, tmp_path: Path) -> None:
    whole = adapted_vit(vit)
    kept = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run = trainer(tmp_path, whole, callbacks=[LightningCallback(whole), kept])
    run.fit(Module(whole.model, whole.parameters()), *loaders())
    file = tmp_path / "epoch=0.ckpt"
    names = torch.load(file, weights_only=True)["state_dict"]
    assert names and not any("parametrizations" in name for name in names)
    second = adapted_vit(vit)
    module = Module(second.model, second.parameters())
    again = trainer(tmp_path, second)
    again.fit(module, *loaders(), ckpt_path=file)
    assert again.global_step == 12 and equal(numbers(whole), numbers(second))


@quiet
def test_lightning_plays_a_draw_a_step_and_validates_the_largest(vit: Vit, tmp_path: Path) -> None:
    adapted = adapted_vit(vit)
    module = watched(adapted).train()
    run = trainer(tmp_path, adapted, max_epochs=1, accumulate_grad_batches=2)
    run.fit(module, *loaders())
    supernet = glora.Supernet(adapted)
    drawn = [supernet.drawn(random.Random(f"0-{step}"), 8, step / 3) for step in range(3)]
    wanted = [part for each in drawn for part in (each[:4], each[4:])]
    wanted[-1] = wanted[-1][:2]  # 22 images
    assert [list(each) for each in module.played] == wanted
    assert module.validated and all(each == adapted.space.largest for each in module.validated)
    assert adapted.active == adapted.space.largest


@quiet
def test_lightning_refuses_what_does_not_go_with_it(vit: Vit, tmp_path: Path) -> None:
    adapted = adapted_vit(vit)
    with pytest.raises(ConfigError, match=r"The optimizer owns \d+ tensors that are not the adapter's"):
        trainer(tmp_path, adapted).fit(Module(adapted.model, adapted.model.parameters()), *loaders())
    with pytest.raises(ConfigError, match="does not hold the model that was injected"):
        trainer(tmp_path, adapted).fit(Module(vit(), adapted.parameters()), *loaders())
    with pytest.raises(ConfigError, match="precision='bf16-true' turns the support tensors"):
        trainer(tmp_path, adapted, precision="bf16-true").fit(Module(adapted.model, adapted.parameters()), *loaders())


# -- the examples


@pytest.mark.parametrize("name", ["lightning_trainer", "accelerate_loop", "timm_train"])
def test_an_example_goes_on_and_merges_the_winner_that_it_scored(tmp_path: Path, name: str) -> None:
    file = ROOT / "examples" / f"{name}.py"
    for epochs in (1, 2):
        command = [sys.executable, str(file), "--out", str(tmp_path), "--epochs", str(epochs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        scored, merged = done.stdout.strip().splitlines()[-1].removeprefix("held-out loss ").split(", merged ")
        assert abs(float(scored) - float(merged)) <= 1e-4
    assert (tmp_path / "winner.safetensors").is_file()


@pytest.mark.slow
def test_accelerate_trains_with_two_processes_and_merges_the_winner_that_it_scored(tmp_path: Path) -> None:
    file = str(ROOT / "examples" / "accelerate_loop.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    command = [*launch, file, "--out", str(tmp_path), "--epochs", "2", "--batch", "8"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}  # `--cpu` would start one process
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    scored, merged = done.stdout.strip().splitlines()[-1].removeprefix("held-out loss ").split(", merged ")
    assert abs(float(scored) - float(merged)) <= 1e-4
