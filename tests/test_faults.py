"""Faults that users of such libraries have met: each kind by its smallest inputs, with the right value."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import glora
from glora.adapt.adapter_file import load_supernet, save_merged, save_supernet
from glora.adapt.layers import factored
from glora.config import build_experiment
from glora.errors import AdapterFileError, ConfigError, StateError, TargetError
from glora.genotype import Genotype, LayerConfig
from glora.methods import METHODS
from glora.methods.method import get_method
from glora.runs.folder import RunFolder
from glora.space import SearchSpace
from glora.training.alone import example_alone
from glora.training.device import check_precision
from suites.training import adapted as adapt_for_training
from suites.training import make_trainer, run

SPACE = SearchSpace(ranks=(4, 2))


class Net(nn.Module):
    """The smallest model with a layer to adapt and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


def net(kind: Callable[[], nn.Module] = Net) -> Any:
    torch.manual_seed(0)
    return kind()


def inputs(rows: int = 4) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def moved(adapted: glora.Adapted, size: float = 0.2) -> glora.Adapted:
    """The same, as after some training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return adapted


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# Wrapper names are not model names


def compiled_layer() -> Net:
    model = net()
    model.body = torch.compile(model.body, backend="eager")
    return model


def compiled_head() -> Net:
    model = net()
    model.head = torch.compile(model.head, backend="eager")
    return model


def checkpointed_layer() -> Net:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = net()
    model.body = checkpoint_wrapper(model.body)
    return model


WRAPPED = {
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "data parallel": lambda: nn.DataParallel(net()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()),
    "compiled data parallel": lambda: torch.compile(nn.DataParallel(net()), backend="eager"),
    "compiled layer": compiled_layer,
    "compiled head": compiled_head,
    "checkpointed layer": checkpointed_layer,
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@torch.no_grad()  # torch's own compiler warns of a compiled part of a model with gradients
def test_an_adapter_of_a_wrapped_model_is_one_of_the_model(tmp_path: Path, wrapped: Any) -> None:
    model, x = wrapped(), inputs()
    plain = model(x)
    adapted = glora.inject(model, SPACE)
    assert (list(adapted.sites), adapted.head) == (["body"], ("head",))
    assert torch.equal(model(x), plain)
    y = moved(adapted).model(x)
    torch.testing.assert_close(model(x), y)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = glora.load_adapter(net(), tmp_path / "a.safetensors")
    torch.testing.assert_close(other.model(x), y)
    third = wrapped()
    glora.load_adapter(third, tmp_path / "a.safetensors")
    torch.testing.assert_close(third(x), y)
    assert same_state(glora.inject(net(), SPACE).merge(), other.detach()), "the base, bit for bit"


def test_what_synchronises_the_parameters_it_had_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=(tmp_path / "group").as_uri())
    try:
        model = nn.parallel.DistributedDataParallel(net())
        with pytest.raises(StateError, match=r"in a DistributedDataParallel.*Adapt the model that is inside"):
            glora.inject(model, SPACE)
        adapted = glora.inject(model.module, SPACE)
        moved(adapted)
        assert torch.equal(nn.parallel.DistributedDataParallel(adapted.model)(inputs()), adapted.model(inputs()))
    finally:
        torch.distributed.destroy_process_group()


def test_adapters_of_peft_are_not_adapted_themselves() -> None:
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(net(), peft.LoraConfig(target_modules=["body"]))
    for model in (tuned, tuned.base_model.model):
        with pytest.raises(StateError, match=r"adapters of PEFT's already, in .*body.*merge_and_unload"):
            glora.inject(model, SPACE)
    assert list(glora.inject(tuned.merge_and_unload(), SPACE).sites) == ["body"]


# What counts as the base


class Scaled(Net):
    """Its own running scale, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def move(self, h: Tensor) -> None:
        self.scale.mul_(0.9).add_(0.1 * h.detach().std())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.move(h)
        return self.head(h / self.scale)


class Rebound(Scaled):
    """A new tensor in the old one's place."""

    def move(self, h: Tensor) -> None:
        self.scale = 0.9 * self.scale + 0.1 * h.detach().std()


class Within(Net):
    """A part with a step counter and a codebook, as vector quantisers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Codes()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.body(x)))


class Codes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("codes", torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            self.steps += 1
            self.codes.index_add_(0, nearest, 0.1 * x.detach())
        return x + self.codes[nearest].detach()


class Spectral(Net):
    """torch's own: every pass in training is one step of the power method."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extra(self.body(x)))


def trained(adapted: glora.Adapted, steps: int = 3) -> None:
    adapted.model.train()
    optimizer = torch.optim.SGD(adapted.parameters(), 0.1)
    for step in range(steps):
        adapted.model(inputs() + step).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [Scaled, Rebound, Within, Spectral])
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
def test_buffers_that_move_in_training_stay_the_bases(
    tmp_path: Path, kind: Any, compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain = net(kind), net(kind)
    adapted = glora.inject(model, SPACE, targets=["body"])
    if compiled:
        model.compile(backend="eager")
    trained(adapted)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    y = model.eval()(inputs())
    if not compiled:
        assert "put back after every pass" in caplog.text
    other = glora.load_adapter(net(kind), tmp_path / "a.safetensors")
    torch.testing.assert_close(other.model.eval()(inputs()), y)
    trained(adapted)
    assert same_state(copy.deepcopy(adapted).detach(), plain)
    assert same_state(adapted.detach(), plain)


def test_a_copy_of_a_model_keeps_its_own_buffers() -> None:
    adapted = glora.inject(net(Scaled), SPACE)
    other = copy.deepcopy(adapted)
    adapted.model.scale.fill_(7)
    other.model.train()(inputs())
    assert (adapted.model.scale, other.model.scale) == (7, 1)


def test_a_cache_may_move_in_evaluation() -> None:
    model = net(Scaled)
    adapted = glora.inject(model, SPACE)
    model.eval()
    model.scale.fill_(2)
    model(inputs())
    assert model.scale == 2
    assert adapted.detach().scale == 1


@pytest.mark.parametrize("statistics", [False, True])
def test_norms_of_others_keep_statistics_like_torchs(tmp_path: Path, statistics: bool) -> None:
    layers = pytest.importorskip("timm.layers")

    def make() -> nn.Module:
        return net(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), layers.EvoNorm2dB0(8), nn.Flatten(), nn.Linear(8 * 36, 3)))

    model = make()
    adapted = glora.inject(model, SPACE, targets="conv", head=["3"], statistics=statistics)
    x = torch.randn(4, 3, 8, 8)
    model.train()(x)
    assert torch.equal(model[1].running_var, make()[1].running_var) is not statistics
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    again = glora.load_adapter(make(), tmp_path / "a.safetensors")
    torch.testing.assert_close(again.model.eval()(x), model.eval()(x))
    assert same_state(adapted.detach(), make())


@pytest.mark.parametrize("average", ["AveragedModel", "ModelEmaV2", "ModelEmaV3"])
def test_a_copy_that_follows_the_parameters_plays_them(average: str) -> None:
    model = net()
    adapted = glora.inject(model, SPACE)
    if average == "AveragedModel":
        shadow: Any = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda _, new, __: new)
        update = shadow.update_parameters
    else:
        shadow = getattr(pytest.importorskip("timm.utils"), average)(model, decay=0.0)
        update = shadow.update
    moved(adapted)
    update(model)
    y = model.eval()(inputs())
    assert torch.equal(shadow.module.eval()(inputs()), y)
    assert not torch.equal(net()(inputs()), y)


def test_layers_that_the_checkpoint_lacks_are_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.BertConfig(**sizes, num_attention_heads=2)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    notes = glora.inject(model, SPACE).notes
    assert any("Random and frozen" in note and "bert.pooler.dense.weight" in note for note in notes)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    adapted = glora.inject(model, SPACE, head=["bert.pooler", "classifier"])
    assert not any("Random and frozen" in note for note in adapted.notes)
    glora.save_adapter(moved(adapted), tmp_path / "a.safetensors")
    other = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    glora.load_adapter(other, tmp_path / "a.safetensors")
    ids = torch.arange(8)[None]
    torch.testing.assert_close(other.eval()(ids).logits, model.eval()(ids).logits)
    plain = glora.inject(transformers.BertForSequenceClassification(config), SPACE)
    assert not any("Random and frozen" in note for note in plain.notes), "all of it is random, and says so"


# The head that is trained whole


class Wide(Net):
    """A head of several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))


@pytest.mark.parametrize("kind", [Net, Wide])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_of_a_half_precision_base_trains_in_float32(tmp_path: Path, kind: Any, dtype: torch.dtype) -> None:
    model, base, x = net(kind).to(dtype), net(kind).to(dtype), inputs().to(dtype)
    plain = model(x)
    adapted = glora.inject(model, SPACE)
    assert torch.equal(model(x), plain), "the fresh model is the base, bit for bit"
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.float32}
    before = [parameter.detach().clone() for parameter in adapted.head_parameters()]
    optimizer = torch.optim.AdamW(adapted.parameters(), 1e-5)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(20):
        scaler.scale(model(x + step / 20).float().square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    for parameter, first in zip(adapted.head_parameters(), before, strict=True):
        assert (parameter != first).all(), "every number moves, at a rate below what the base's type can show"
    y = model(x)
    assert y.dtype == dtype
    shadow = copy.deepcopy(model)
    assert torch.equal(shadow(x), y)
    for parameter in adapted.head_parameters():
        parameter.data.zero_()
    assert torch.equal(shadow(x), y), "a copy has its own head"
    adapted = glora.inject(net(kind).to(dtype), SPACE)
    moved(adapted)
    y = adapted.model(x)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = glora.load_adapter(net(kind).to(dtype), tmp_path / "a.safetensors")
    assert torch.equal(other.model(x), y)
    other.add("b", tmp_path / "a.safetensors")
    other.switch(["default", "base", "b", "b"])
    rounded = {"rtol": 0.1, "atol": 0.02}  # per sample other sums are rounded
    torch.testing.assert_close(other.model(x)[[0, 2, 3]], y[[0, 2, 3]], **rounded)
    torch.testing.assert_close(other.model(x)[1], plain[1], **rounded)
    other.switch("default")
    merged = other.merge()
    assert list(merged.state_dict()) == list(base.state_dict())
    assert {value.dtype for value in merged.state_dict().values()} == {dtype}
    assert "forward" not in merged.head.__dict__
    torch.testing.assert_close(merged(x), y, **rounded)
    assert same_state(other.detach(), base)


def test_a_head_of_a_half_precision_base_can_be_compiled() -> None:
    model, x = net().bfloat16(), inputs().bfloat16()
    moved(glora.inject(model, SPACE))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_a_head_that_is_taken_off_comes_back(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")

    def make(classes: int = 5) -> Any:
        return net(lambda: timm.create_model("test_vit", num_classes=classes))

    x = torch.randn(2, 3, 160, 160)
    for classes in (0, 7):
        for merge in (False, True):
            model = make()
            adapted = glora.inject(model, SPACE)
            model.reset_classifier(classes)
            moved(adapted)
            y = model.eval()(x)
            glora.save_adapter(adapted, tmp_path / "a.safetensors")
            base = make(classes)
            base.load_state_dict(
                {k: v for k, v in make().state_dict().items() if not k.startswith("head.")}, strict=False
            )
            torch.testing.assert_close(glora.load_adapter(base, tmp_path / "a.safetensors").model.eval()(x), y)
            if merge:
                torch.testing.assert_close(adapted.merge()(x), y, rtol=1e-4, atol=1e-4)
            assert same_state(adapted.detach(), make())


def test_a_head_whose_place_is_gone_is_said_before_anything_changes() -> None:
    model = net()
    adapted = glora.inject(model, SPACE)
    moved(adapted)
    y, head = model(inputs()), model.head
    del model.head
    with pytest.raises(StateError, match=r"no 'head' any more, where its head was\. Put a module in that place"):
        adapted.detach()
    model.head = head
    assert torch.equal(model(inputs()), y)
    assert same_state(adapted.detach(), net())


def test_an_adapter_with_a_head_says_that_the_model_has_none(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=5)
    glora.save_adapter(glora.inject(model, SPACE), tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match=r"has a head, head of 5 outputs, .*has none\. Build it.*num_classes=5"):
        glora.load_adapter(timm.create_model("test_vit", num_classes=0), tmp_path / "a.safetensors")


def test_batch_norm_reads_its_statistics_for_an_example_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    x = inputs()
    model(x)
    statistics = model[1].running_mean.clone()
    with example_alone(model, 4):
        model(x)
    statistics = model[1].running_mean.clone()
    with example_alone(model, 1):
        y = model(x[:1])
        with pytest.raises(ValueError, match="Expected more than 1 value"):
            model[1].running_mean = None
            model[1](x[:1])
        model[1].running_mean = statistics
    assert model.training and model[1].training
    assert not model[1]._forward_hooks and not model[1]._forward_pre_hooks
    assert torch.equal(model[1].running_mean, statistics)
    assert torch.equal(model.eval()(x[:1]), y)


class Normed(nn.Module):
    """A head with BatchNorm, as levit's and many a user's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(192, 8)
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


@pytest.mark.parametrize("settings", [{"batch_size": 29}, {"batch_size": 8, "micro_batch": 1}], ids=str)
def test_an_epoch_may_end_with_one_example(settings: dict[str, int]) -> None:
    tuned = adapt_for_training(net(Normed))
    assert len(run(make_trainer(tuned, **settings))) == 3


# What is trained of a half-precision base itself


def timm_model(dtype: torch.dtype) -> Any:
    timm = pytest.importorskip("timm")
    return net(lambda: timm.create_model("test_vit", img_size=8, patch_size=4, num_classes=3)).to(dtype).eval()


def pictures(dtype: torch.dtype) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_method_trains_float32_numbers_on_a_half_precision_base(tmp_path: Path, name: str, dtype: Any) -> None:
    model, x = timm_model(dtype), pictures(dtype)
    classes, plain = [type(module) for module in model.modules()], model(x)
    tuned = get_method(name).apply(model, head=("head",), seed=0)
    if name not in ("vpt", "noah"):  # which have prompts
        assert torch.equal(tuned.model(x), plain), "the fresh model is the base, bit for bit"
    assert {parameter.dtype for parameter in tuned.parameters()} == {torch.float32}
    before = [parameter.detach().clone() for parameter in tuned.parameters()]
    optimizer = torch.optim.AdamW(tuned.parameters(), 1e-5, weight_decay=0)
    for _ in range(3):
        nn.functional.cross_entropy(tuned.model(x).float(), torch.arange(4) % 3).backward()
        reached = [parameter.grad is not None and (parameter.grad != 0) for parameter in tuned.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    for parameter, first, where in zip(tuned.parameters(), before, reached, strict=True):
        moved = (parameter[where] != first[where]).float()
        assert not moved.numel() or moved.mean() > 0.9, "at a rate below what the base's type can show"
    y = tuned.model(x)
    assert y.dtype == dtype
    tuned.save(tmp_path / "a.safetensors", {})
    other = get_method(name).apply(timm_model(dtype), head=("head",), seed=5)
    other.load(tmp_path / "a.safetensors")
    if tuned.space is not None:
        other.activate(tuned.space.largest)
    assert torch.equal(other.model(x), y)
    merged = tuned.merged()
    torch.testing.assert_close(merged(x), y, rtol=0.1, atol=0.02)
    kept = {key: value for key, value in merged.state_dict().items() if key not in tuned.new_keys}
    assert list(kept) == list(timm_model(dtype).state_dict())
    assert {value.dtype for value in kept.values()} == {dtype}
    if not tuned.no_merge:
        assert [type(module) for module in merged.modules()] == classes


def test_biases_that_are_rounded_once_are_the_mean_of_small_steps() -> None:
    """A thousandth of a bfloat16's distance, five hundred times: nothing of it where every step is rounded."""
    model = net().bfloat16()
    tuned = get_method("bitfit").apply(model, head=("head",), seed=0)
    (bias,) = (parameter for parameter in tuned.parameters() if parameter.shape == (6,))
    first = bias.detach().clone()
    with torch.no_grad():
        for _ in range(500):
            bias += first.abs() * 2**-10 / 8
    merged = tuned.merged().body.bias
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.float(), first + 500 * first.abs() * 2**-10 / 8, rtol=2**-8, atol=0)


def test_tied_and_recurrent_numbers_of_a_half_precision_base() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 32}
    ids = torch.arange(8)[None]

    def tied() -> Any:
        return net(lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))).bfloat16().eval()

    for head in ((), ("lm_head",)):
        model = tied()
        plain = model(ids).logits
        tuned = get_method("full").apply(model, head=head, seed=0)
        assert torch.equal(model(ids).logits, plain)
        assert {parameter.dtype for parameter in tuned.parameters()} == {torch.float32}
        model(ids).logits.float().square().mean().backward()
        assert all(parameter.grad is not None for parameter in tuned.parameters())
        assert same_state(tuned.merged(), tied())

    class Recurrent(Net):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.GRU(6, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.memory(x[None])[0][0])

    model = net(Recurrent).bfloat16()
    x = inputs().bfloat16()
    plain = model(x)
    tuned = get_method("full").apply(model, head=("head",), seed=0)
    assert torch.equal(model(x), plain)
    assert any("Trained in half precision" in note and "memory.weight_ih_l0" in note for note in tuned.notes)


# One genotype per sample


class Guided(Net):
    """Repeats its batch, or puts another beside it, as guidance within the model does."""

    def __init__(self, twice: Callable[[Tensor], Tensor], once: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.twice, self.once = twice, once

    def forward(self, x: Tensor) -> Tensor:
        return self.once(super().forward(self.twice(x)))


TWICE: dict[str, Any] = {
    "repeat": (lambda x: x.repeat(2, 1), lambda y: y.chunk(2)[0]),
    "cat": (lambda x: torch.cat([x, 0.5 * x]), lambda y: 2 * y.chunk(2)[0] - y.chunk(2)[1]),
    "negative": (lambda x: torch.cat([x, torch.zeros_like(x)]), lambda y: y.chunk(2)[0] - y.chunk(2)[1]),
    "three times": (lambda x: x.repeat(3, 1), lambda y: y.chunk(3)[2]),
    "interleaved": (lambda x: x.repeat_interleave(2, 0), lambda y: y[::2]),
    "tokens": (lambda x: x.unsqueeze(1).repeat(2, 3, 1), lambda y: y.mean(1).chunk(2)[1]),
}


@pytest.mark.parametrize("how", TWICE.values(), ids=TWICE)
@pytest.mark.parametrize("batch", ["different", "equal", "two"])
def test_samples_that_a_model_repeats_play_their_own_genotypes(how: Any, batch: str) -> None:
    adapted = moved(glora.inject(net(lambda: Guided(*how)), SPACE), 0.5)
    x = inputs(2 if batch == "two" else 4)
    x = x[:1].expand(4, -1).contiguous() if batch == "equal" else x
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(len(x))]
    adapted.activate(genotypes)
    together = adapted.model(x)
    for sample, genotype in enumerate(genotypes):
        adapted.activate(genotype)
        torch.testing.assert_close(together[sample], adapted.model(x)[sample])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_beams_of_a_sample_play_its_genotype(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = net(lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes, **tokens)))
    elif kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
        model = net(lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=32, **sizes, **tokens)))
    else:
        sizes = {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8, "decoder_start_token_id": 0}
        config = transformers.T5Config(vocab_size=32, **sizes, **tokens)
        model = net(lambda: transformers.T5ForConditionalGeneration(config))
    adapted = moved(glora.inject(model.eval(), SPACE), 0.3)
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(3)]
    ids = torch.randint(3, 32, (3, 5), generator=torch.Generator().manual_seed(3))
    options = {"attention_mask": torch.ones_like(ids), "num_beams": 4, "max_new_tokens": 6, "do_sample": False}
    for _ in range(2):
        adapted.activate(genotypes)
        together = model.generate(ids, **options)
        for sample, genotype in enumerate(genotypes):
            adapted.activate(genotype)
            alone = model.generate(ids, **options)[sample]
            width = max(len(alone), together.shape[1])
            a, b = (F.pad(each, (0, width - len(each))) for each in (alone, together[sample]))
            assert a.tolist() == b.tolist()


def test_a_batch_that_is_no_multiple_is_refused() -> None:
    adapted = glora.inject(net(), SPACE)
    adapted.activate([adapted.space.largest] * 3)
    with pytest.raises(StateError, match=r"3 genotypes are active.*the batch has 4 samples.*or a multiple"):
        adapted.model(inputs())


class Asking(Net):
    """Asks for the type of a weight, as T5 does, or computes with it besides calling the layer."""

    def __init__(self, uses: bool = False) -> None:
        super().__init__()
        self.uses = uses

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.to(self.body.weight.dtype))
        return y + self.body.weight.sum() + self.body.bias.sum() if self.uses else y


@pytest.mark.parametrize("uses", [False, True])
def test_a_weight_of_which_the_type_alone_is_asked_is_no_warning(uses: bool, caplog: pytest.LogCaptureFixture) -> None:
    adapted = moved(glora.inject(net(lambda: Asking(uses)), SPACE))
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(4)]
    adapted.activate(genotypes)
    together = adapted.model(inputs())
    assert ("plays the first sample's genotype" in caplog.text) == uses
    for sample, genotype in enumerate(genotypes if not uses else []):
        adapted.activate(genotype)
        torch.testing.assert_close(together[sample], adapted.model(inputs())[sample])


# Where torch itself would have given up


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    """What a gradient penalty minimises."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.tanh(model(x)).sum(), x, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize("product", ["matrix", "elementwise"])
@pytest.mark.parametrize("seed", range(12))
def test_a_backward_pass_may_be_differentiated(product: str, seed: int) -> None:
    space = SearchSpace(ranks=(4, 2), variant="paper", product=product)
    model = net(lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))).double()
    adapted = moved(glora.inject(model, space, head=["4"]), 0.3)
    x = inputs().double()
    genotype = adapted.space.largest if seed == 0 else adapted.sample(random.Random(seed))
    with adapted.hold(genotype, train=True):
        expected = penalty(model, x)
        expected.backward()
    gradients = [parameter.grad for parameter in adapted.parameters()]
    adapted.model.zero_grad()
    adapted.activate(genotype)
    found = penalty(model, x)
    torch.testing.assert_close(found, expected)
    found.backward()
    for parameter, gradient in zip(adapted.parameters(), gradients, strict=True):
        zeros = torch.zeros_like(parameter)
        one, other = (zeros if each is None else each for each in (parameter.grad, gradient))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("product", ["matrix", "elementwise"])
@pytest.mark.parametrize("seed", range(8))
def test_a_gradient_of_support_tensors_is_differentiated_right_or_not_at_all(
    product: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As meta-learning does, which goes through the inner step."""
    space = SearchSpace(ranks=(4, 2), variant="paper", product=product)
    adapted = moved(glora.inject(net().double(), space), 0.3)
    x = inputs().double()

    def outer() -> list[Tensor | None]:
        x_in = (x * adapted.head_parameters()[0].mean()).tanh()
        numbers = adapted.parameters()
        inner = torch.tanh(adapted.model(x_in)).square().sum()
        steps = torch.autograd.grad(inner, numbers, create_graph=True, allow_unused=True)
        loss = sum((step.square().sum() for step in steps if step is not None), torch.zeros(()))
        return list(torch.autograd.grad(loss, numbers, allow_unused=True))

    genotype = adapted.sample(random.Random(seed))
    adapted.activate(genotype)
    with monkeypatch.context() as patch:
        patch.setattr(factored, "by_hand", lambda *_: False)  # autograd alone
        expected = outer()
    try:
        found = outer()
    except StateError as error:
        assert "hold(genotype, train=True)" in str(error)
        return
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_backward_pass_of_several_genotypes_says_that_it_cannot_be_differentiated() -> None:
    adapted = moved(glora.inject(net(), SPACE))
    adapted.activate([adapted.space.largest, adapted.space.smallest, adapted.space.largest, adapted.space.largest])
    with pytest.raises(StateError, match=r"Several genotypes are active, and a backward pass is differentiated.*hold"):
        penalty(adapted.model, inputs())


def test_offloaded_weights_are_refused_before_anything_changes() -> None:
    accelerate = pytest.importorskip("accelerate")
    cpu = torch.device("cpu")
    model = accelerate.cpu_offload(net(), execution_device=cpu)
    with pytest.raises(StateError, match=r"of body, head are offloaded.*remove_hook_from_module"):
        glora.inject(model, SPACE)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    adapted = moved(glora.inject(model, SPACE))
    y = model(inputs())
    accelerate.cpu_offload(model, execution_device=cpu, preload_module_classes=["ParametrizedLinear"])
    assert torch.equal(model(inputs()), y)
    for action in (adapted.merge, adapted.state):
        with pytest.raises(StateError, match="are offloaded"):
            action()
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    accelerate.cpu_offload(model, execution_device=cpu)
    with pytest.raises(StateError, match=r"offloaded one by one.*preload_module_classes"):
        model(inputs())
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    torch.testing.assert_close(adapted.merge()(inputs()), y)


def llama(tied: bool = False) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, tie_word_embeddings=tied, **sizes)
    return net(lambda: transformers.LlamaForCausalLM(config)).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["all", "linear"])
def test_embeddings_are_resized_before_a_model_is_adapted(tied: bool, targets: str) -> None:
    model = llama(tied)
    adapted = glora.inject(model, SPACE, targets=targets)
    with pytest.raises(StateError, match=r"cannot be resized.*Detach, resize, then inject again"):
        model.resize_token_embeddings(40)
    plain = adapted.detach()
    plain.resize_token_embeddings(40)
    glora.inject(plain, SPACE, targets=targets).merge().resize_token_embeddings(41)


@pytest.mark.parametrize("place", ["body", "block.0", "block"])
def test_a_layer_in_another_ones_place_is_told(tmp_path: Path, place: str) -> None:
    model = net()
    model.block = nn.Sequential(nn.Linear(6, 6))
    adapted = glora.inject(model, SPACE)
    parent, _, leaf = place.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Linear(6, 6))
    for action in (adapted.merge, adapted.state, adapted.parameters):
        with pytest.raises(StateError, match=rf"in the place of {place}.* since it was adapted"):
            action()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["all", "linear"])
def test_save_pretrained_writes_what_plays(tmp_path: Path, tied: bool, targets: str) -> None:
    model, ids = llama(tied), torch.arange(8)[None]
    adapted = glora.inject(model, SPACE, targets=targets)
    adapted.model.save_pretrained(tmp_path / "fresh")
    y = model(ids).logits
    torch.testing.assert_close(type(model).from_pretrained(tmp_path / "fresh").eval()(ids).logits, y)
    moved(adapted)
    assert not torch.allclose(model(ids).logits, y, atol=1e-2)
    y = model(ids).logits
    model.save_pretrained(tmp_path / "moved", state_dict=model.state_dict())  # as HF's Trainer calls it
    torch.testing.assert_close(type(model).from_pretrained(tmp_path / "moved").eval()(ids).logits, y)
    assert torch.equal(model(ids).logits, y), "the model stays adapted"
    adapted.activate([adapted.space.largest] * 2)
    with pytest.raises(StateError, match="Activate the one genotype"):
        model.save_pretrained(tmp_path / "several")
    assert not (tmp_path / "several").exists()
    adapted.activate(adapted.space.largest)
    adapted.merge().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(type(model).from_pretrained(tmp_path / "merged").eval()(ids).logits, y)


def test_save_pretrained_writes_the_head_in_the_bases_type(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.BertConfig(num_attention_heads=2, **sizes)
    model = net(lambda: transformers.BertForSequenceClassification(config)).bfloat16().eval()
    moved(glora.inject(model, SPACE))
    model.save_pretrained(tmp_path)
    other = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert {value.dtype for value in other.state_dict().values()} == {torch.bfloat16}
    ids = torch.arange(8)[None]
    torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=0.05, atol=0.05)


def test_what_cannot_be_pickled_or_scripted_says_what_to_do(tmp_path: Path) -> None:
    adapted = glora.inject(net(), SPACE)
    with pytest.raises(StateError, match=r"cannot be pickled.*save_adapter, or merge"):
        torch.save(adapted.model, tmp_path / "a.pt")
    with pytest.raises(StateError, match=r"torch\.jit\.script cannot read.*Merge first"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(adapted.model)
    torch.save(copy.deepcopy(adapted).merge(), tmp_path / "a.pt")


def test_a_trace_plays_the_adapter() -> None:
    model = moved(glora.inject(net(), SPACE)).model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs())
    torch.testing.assert_close(traced(inputs()), model(inputs()))
    exported = torch.export.export(model, (inputs(),)).module()
    torch.testing.assert_close(exported(inputs()), model(inputs()))


# Texts, paths, remedies


def test_home_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    adapted = moved(glora.inject(net(), SPACE))
    glora.save_adapter(adapted, "~/a")
    save_supernet(adapted, "~/s")
    other = glora.load_adapter(net(), "~/a")
    other.add("b", "~/a")
    load_supernet(glora.inject(net(), SPACE), "~/s")
    glora.inject(net(), SPACE).start_from("~/a")
    save_merged(adapted.merge(), "~/m")
    assert RunFolder("~/run").path == tmp_path / "home" / "run"
    assert not list((tmp_path / "here").iterdir())
    assert sorted(each.name for each in (tmp_path / "home").iterdir()) == ["a", "m", "s"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["body.weight", "head.bias"])
def test_a_base_that_is_not_finite_is_named(where: str, value: float) -> None:
    model = net()
    model.get_parameter(where).data.view(-1)[1] = value
    with pytest.raises(StateError, match=rf"model's {where} has 1 NaN or infinite of \d+ numbers\. Load its weights"):
        glora.inject(model, SPACE)


def test_numbers_whose_sum_overflows_are_finite() -> None:
    model = net().half()
    model.body.weight.data.fill_(6e4)
    glora.inject(model, SPACE)


def test_experts_that_are_no_layers_are_named() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=32, num_key_value_heads=2, num_local_experts=4, **sizes)
    model = transformers.MixtralForCausalLM(config)
    adapted = glora.inject(model, SPACE)
    assert any(
        note.startswith("Not adapted, stacks of matrices and no layers, 7") and "mlp.experts.gate_up_proj" in note
        for note in adapted.notes
    )
    adapted.detach()
    for targets in ("gate_up_proj", ["experts"], "mlp.experts.down_proj"):
        with pytest.raises(TargetError, match=r"stacks of matrices of several experts.*cannot be adapted"):
            glora.inject(model, SPACE, targets=targets)


def test_tokens_of_a_vision_model_are_no_experts() -> None:
    timm = pytest.importorskip("timm")
    assert not any("stacks" in note for note in glora.inject(timm.create_model("test_vit"), SPACE).notes)


@pytest.mark.parametrize("text", ["0.5 MB", "a lot", "1e400"])
def test_a_count_says_how_it_is_written(text: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.budget: a number is needed, such as 300000, 300k or 0\.3M"):
        build_experiment({"data": {"source": "digits"}, "search": {"budget": text}})


@pytest.mark.parametrize("budget", [0, -5, "0M"])
def test_a_budget_of_nothing_is_refused(budget: Any) -> None:
    with pytest.raises(ConfigError, match=r"budget=-?\d leaves nothing to search; method=linear trains the head alone"):
        build_experiment({"data": {"source": "digits"}, "search": {"budget": budget}})


def test_float16_on_a_processor_is_refused() -> None:
    class On:
        device, mixed_precision = torch.device("cpu"), "fp16"

    with pytest.raises(ConfigError, match=r"train\.precision=fp16: a processor would train in float32"):
        check_precision(On())  # type: ignore[arg-type]
    On.device = torch.device("cuda")
    check_precision(On())  # type: ignore[arg-type]


# Beside its peers


class Bare(Net):
    """A layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6, bias=False)


def test_adapters_with_and_without_new_biases_go_together(tmp_path: Path) -> None:
    x = inputs()
    outputs = {}
    for new_bias in (False, True):
        adapted = glora.inject(net(Bare), SearchSpace(ranks=(2,), new_bias=new_bias), example=x)
        outputs[new_bias] = moved(adapted).model(x)
        glora.save_adapter(adapted, tmp_path / str(new_bias))
    adapted = glora.inject(net(Bare), SearchSpace(ranks=(2,), new_bias=True), example=x)
    for new_bias, y in outputs.items():
        adapted.add(f"{new_bias}", tmp_path / str(new_bias))
        adapted.switch(f"{new_bias}")
        torch.testing.assert_close(adapted.model(x), y)
    adapted.switch(["True", "False", "False", "True"])
    torch.testing.assert_close(adapted.model(x)[[0, 3]], outputs[True][[0, 3]])
    torch.testing.assert_close(adapted.model(x)[1:3], outputs[False][1:3])
    plain = glora.inject(net(Bare), SPACE)
    with pytest.raises(StateError, match=r"gives body a bias, which these layers have not here.*new_bias=True"):
        plain.add("b", tmp_path / "True")
    assert plain.adapters == ("default",)


def test_a_new_bias_that_is_not_played_is_no_hindrance(tmp_path: Path) -> None:
    adapted = glora.inject(net(Bare), SearchSpace(ranks=(2,), new_bias=True), example=inputs())
    genotype = {name: LayerConfig(A=config.A, B=config.B) for name, config in adapted.space.largest.items()}
    adapted.activate(Genotype(genotype))
    y = moved(adapted).model(inputs())
    glora.save_adapter(adapted, tmp_path / "a")
    other = glora.inject(net(Bare), SPACE)
    other.add("b", tmp_path / "a")
    other.switch("b")
    torch.testing.assert_close(other.model(inputs()), y)


def test_a_bias_of_zeros_under_d_is_noted() -> None:
    model = net(lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)))
    adapted = glora.inject(model, SPACE, targets="all", head=["2"])
    assert "D scales the plain bias, which is all zeros and stays so whatever D is: 0." in adapted.notes


@pytest.mark.parametrize("config", [LayerConfig(B="lora:2"), LayerConfig(E="vector")])
def test_of_a_tensor_that_is_not_offered_nothing_is_noted(config: LayerConfig) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3))
    nn.init.zeros_(model[0].bias)
    notes = glora.inject(model, SearchSpace(only=config), head=["2"]).notes
    assert not any(note.startswith("D scales") for note in notes)
    assert any(note.startswith("C, D and E are not offered") for note in notes) == (config.E.kind == "vector")


def test_the_lean_space_that_drops_d_notes_nothing_of_it() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    nn.init.zeros_(model[0].bias)
    adapted = glora.inject(model, SearchSpace(ranks=(2,)), head=["1"])
    offered = any(choice.kind != "none" for choice in adapted.space.options["0"][3])
    assert any(note.startswith("D scales") for note in adapted.notes) == offered
