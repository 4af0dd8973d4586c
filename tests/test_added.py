"""Methods that add modules to the blocks of a transformer: their formulas by hand, and that they live in the model."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear, relu
from typer.testing import CliRunner

import glora
from glora.cli.app import app, main
from glora.config import TrainSettings
from glora.errors import AdapterFileError, ConfigError, StateError, TargetError
from glora.methods.method import Tuned, get_method
from glora.runs.run import Run
from glora.training.pace import check_pace
from suites.by_hand import swin_by_hand, vit_by_hand
from suites.toy import Recorder, tiny
from suites.training import make_trainer, run

ALL = {
    "noah": ("adapter", {}),
    "pfeiffer": ("adapter", {"form": "pfeiffer"}),
    "houlsby": ("adapter", {"form": "houlsby"}),
    "linear": ("adapter", {"form": "houlsby", "activation": "identity"}),
    "adaptformer": ("adaptformer", {"scaling": "trained"}),
    "shallow": ("vpt", {"depth": "shallow", "tokens": 3}),
    "deep": ("vpt", {"tokens": 3}),
}
each = pytest.mark.parametrize("which", ALL)


def vit(**changes: Any) -> Any:
    """timm's `test_vit` with weights that matter."""
    return scrambled(timm.create_model("test_vit", img_size=16, patch_size=4, num_classes=3, depth=3, **changes))


def swin(**changes: Any) -> Any:
    """timm's Swin of two stages of two blocks, the second of which shifts its windows; 8 x 8 tokens."""
    shape = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    shape |= {"drop_path_rate": 0.0}
    return scrambled(timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **{**shape, **changes}))


def scrambled(model: nn.Module, std: float = 0.2) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean, std, generator=generator)
    return model.eval()


def head_of(model: Any) -> tuple[str, ...]:
    return ("head.fc",) if hasattr(model, "layers") else ("head",)


def apply(model: nn.Module, which: str, *, seed: int = 0, **changes: Any) -> Any:
    """The method on the model."""
    name, settings = ALL.get(which, (which, {}))
    return get_method(name, {**settings, **changes}).apply(model, head=head_of(model), seed=seed)


def learned(tuned: Tuned, std: float = 0.3) -> Any:
    """The model with random numbers in all that was added to it."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in tuned.numbers.values():  # type: ignore[attr-defined]
            nn.init.normal_(parameter, 0.1, std, generator=generator)
    return tuned.model


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# Formulas

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "noah": lambda z: z * torch.sigmoid(1.702 * z),
    "pfeiffer": relu,
    "houlsby": gelu,
    "linear": lambda z: z,
}


@pytest.mark.parametrize("changes", [{}, {"init_values": 0.5}, {"class_token": False, "global_pool": "avg"}])
@pytest.mark.parametrize("which", FORMS)
def test_an_adapter_follows_its_sublayer(which: str, changes: dict[str, Any]) -> None:
    model = learned(apply(vit(**changes), which))

    def follow(side: str, i: int, m: Tensor) -> Tensor:
        if side not in model.blocks[i].added:
            return m
        down, up = model.blocks[i].added[side].down, model.blocks[i].added[side].up
        return m + FORMS[which](m @ down.weight.T + down.bias) @ up.weight.T + up.bias

    by_hand = vit_by_hand(
        model, images(), attended=lambda i, m: follow("attention", i, m), fed=lambda i, m, x: follow("mlp", i, m)
    )
    near(model(images()), by_hand)
    sides = {side for block in model.blocks for side in block.added}
    assert sides == ({"attention", "mlp"} if which in ("houlsby", "linear") else {"mlp"})


@pytest.mark.parametrize("scaling", ["fixed", "trained"])
def test_adaptformer_reads_the_stream_without_its_norm(scaling: str) -> None:
    tuned = apply(vit(init_values=0.5), "adaptformer", scaling=scaling, scale=0.7)
    assert all(
        float(torch.as_tensor(block.added["mlp"].scale).detach()) == pytest.approx(0.7) for block in tuned.model.blocks
    )
    model = learned(tuned)

    def fed(i: int, m: Tensor, x: Tensor) -> Tensor:
        mine = model.blocks[i].added["mlp"]
        branch = relu(x @ mine.down.weight.T + mine.down.bias) @ mine.up.weight.T + mine.up.bias
        return m + (0.7 if scaling == "fixed" else mine.scale) * branch

    near(model(images()), vit_by_hand(model, images(), fed=fed))
    assert ("blocks.0.added.mlp.scale" in tuned.numbers) == (scaling == "trained")


@pytest.mark.parametrize("which", ["noah", "houlsby", "adaptformer"])
def test_in_a_block_of_swin(which: str) -> None:
    block = learned(apply(swin(), which)).layers[0].blocks[1]
    x = torch.randn(2, 8, 8, 16)
    plain = {"attention": lambda m, _: m, "mlp": lambda m, _: m}
    follow = {side: lambda m, _, side=side: m + block.added[side](m) for side in block.added}
    if which == "adaptformer":
        follow = {"mlp": lambda m, stream: m + block.added["mlp"].scale * block.added["mlp"](stream)}
    come = {**plain, **follow}
    between = x + come["attention"](block._attn(block.norm1(x)), x)
    near(block(x), between + come["mlp"](block.mlp(block.norm2(between)), between))


TOKENS = [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}]


@pytest.mark.parametrize("changes", TOKENS)
@pytest.mark.parametrize("place", ["after_class", "end"])
def test_shallow_prompts_go_through_all_blocks(changes: dict[str, Any], place: str) -> None:
    base = vit(**changes)
    count, plain = base.num_prefix_tokens, vit_by_hand(base, images())
    model = learned(apply(base, "shallow", place=place), 1.0)
    prompts, last = model.blocks[0].added.prompts, len(model.blocks) - 1

    def before(i: int, x: Tensor) -> Tensor:
        new = prompts[None].expand(len(x), -1, -1)
        return x if i else torch.cat([x[:, :count], new, x[:, count:]], 1)

    def after(i: int, x: Tensor) -> Tensor:
        return x if i != last else torch.cat([x[:, :count], x[:, count + len(prompts) :]], 1)

    near(model(images()), vit_by_hand(model, images(), before=before, after=after))
    assert (model(images()) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("changes", TOKENS)
@pytest.mark.parametrize("place", ["after_class", "end"])
def test_deep_prompts_are_each_blocks_own(changes: dict[str, Any], place: str) -> None:
    model = learned(apply(vit(**changes), "deep", place=place), 1.0)
    keep = model.patch_embed.num_patches + model.num_prefix_tokens

    def before(i: int, x: Tensor) -> Tensor:  # at the end, in both: where prompts are makes no difference
        return torch.cat([x[:, :keep], model.blocks[i].added.prompts[None].expand(len(x), -1, -1)], 1)

    near(model(images()), vit_by_hand(model, images(), before=before, after=lambda _, x: x[:, :keep]))


@pytest.mark.parametrize("tokens", [3, 8, 11])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_prompts_in_swin_are_seen_by_every_window(depth: str, tokens: int) -> None:
    model = learned(apply(swin(), depth, tokens=tokens), 1.0)
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert [block.shift_size[0] for block in blocks] == [0, 2, 0, 0], "one of them shifts its windows"

    def start(i: int, prompts: Tensor | None) -> Tensor:
        if depth == "shallow" and prompts is not None:
            return prompts
        own: Tensor = blocks[i].added.own.prompts
        return own

    with torch.no_grad():
        by_hand = torch.cat([swin_by_hand(model, image[None], start) for image in images()])
        near(model(images()), by_hand)


def test_prompts_in_swin_where_windows_do_not_fit() -> None:
    """6 x 6 tokens in windows of 4: they are filled up with zeros; 3 x 3 tokens after the merging are one window."""
    for depth in ("shallow", "deep"):
        model = apply(swin(img_size=12), depth).model
        assert model(torch.randn(2, 3, 12, 12)).shape == (2, 3)


# Starts

STARTS = ["noah", "pfeiffer", "houlsby", "linear", "adaptformer"]


@pytest.mark.parametrize("build", [vit, swin])
@pytest.mark.parametrize("which", STARTS)
def test_untrained_it_is_the_base_bit_for_bit_though_one_map_is_random(which: str, build: Any) -> None:
    model = build()
    plain = model(images())
    tuned = apply(model, which)
    assert torch.equal(model.train()(images()), plain), "in training, too: there is no stochastic depth"
    downs = [value for name, value in tuned.numbers.items() if name.endswith("down.weight")]
    assert downs and all(bool(down.any()) for down in downs)
    assert not any(bool(value.any()) for name, value in tuned.numbers.items() if ".up." in name)


@pytest.mark.parametrize("start", ["exact", "authors"])
@pytest.mark.parametrize("form", ["noah", "pfeiffer", "houlsby"])
def test_never_both_maps_of_an_adapter_are_zero(form: str, start: str) -> None:
    adapters = [each for each in apply(vit(), form, start=start).model.modules() if hasattr(each, "down")]
    assert all(adapter.down.weight.any() for adapter in adapters)
    stds = {"exact": 0.0, "authors": 1e-3 if form == "houlsby" else 0.02}
    for adapter in adapters:
        assert float(adapter.up.weight.detach().std()) == pytest.approx(0.88 * stds[start], rel=0.2)
        assert not adapter.up.bias.any() and not adapter.down.bias.any()


@pytest.mark.parametrize("build", [vit, swin])
def test_prompts_start_uniform_by_the_size_of_a_patch(build: Any) -> None:
    base = build()
    width, patch = base.embed_dim, base.patch_embed.patch_size[0]
    numbers = torch.cat([each.detach().flatten() for each in apply(base, "deep", tokens=50).numbers.values()])
    bound = (6 / (3 * patch**2 + width)) ** 0.5
    assert float(numbers.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(numbers.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


@each
def test_the_seed_alone_decides_and_no_global_draw_is_made(which: str) -> None:
    models = [vit() for _ in range(3)]
    state = torch.get_rng_state()
    one, same, other = (apply(model, which, seed=seed).numbers for model, seed in zip(models, (0, 0, 1), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


# Sizes, of methods.md


@pytest.mark.parametrize(
    ("which", "changes", "on_vit", "on_swin"),
    [  # per block 2 d h + h + d; Swin-B's widths 128, 256, 512, 1024 in 2, 2, 18, 2 blocks sum to 12,032
        ("noah", {}, 12 * (2 * 768 * 8 + 8 + 768), 17 * 12_032 + 24 * 8),
        ("pfeiffer", {}, 156_768, 204_736),
        ("houlsby", {"norms": "frozen"}, 313_536, 409_472),
        ("houlsby", {}, 313_536 + 25 * 2 * 768, 409_472 + 57_600),
        ("adaptformer", {"scaling": "fixed"}, 156_768, 204_736),
        ("adaptformer", {}, 156_768 + 12, 204_736 + 24),
        ("adaptformer", {"scaling": "fixed", "hidden": 64}, 1_189_632, 1_553_664),
        ("shallow", {"tokens": 10}, 7_680, 1_280),
        ("deep", {"tokens": 10}, 92_160, 120_320),
    ],
)
def test_sizes_on_vit_b_and_swin_b(which: str, changes: dict[str, Any], on_vit: int, on_swin: int) -> None:
    for name, count in (("vit_base_patch16_224", on_vit), ("swin_base_patch4_window7_224", on_swin)):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=10)
        assert apply(model, which, **changes).count() == count


# Living in the model


def train(tuned: Tuned, x: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
    tuned.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(tuned.model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    tuned.model.eval()


@pytest.mark.parametrize("build", [vit, swin])
@each
def test_after_two_steps_every_number_has_learned(which: str, build: Any) -> None:
    tuned = apply(build(), which, **({} if which == "linear" else {"dropout": 0.0}))
    before = {name: value.detach().clone() for name, value in tuned.numbers.items()}
    train(tuned, images(6), 2)
    for name, value in tuned.numbers.items():
        assert (value != before[name]).float().mean() > 0.5, name  # units of ReLU that no example wakes do not
        assert value.grad is not None and bool(value.grad.any()), name


@pytest.mark.parametrize("build", [vit, swin])
@each
def test_the_bases_keys_stay_and_what_is_removed_leaves_the_base(which: str, build: Any) -> None:
    model = build()
    plain, before = model(images()), {key: value.clone() for key, value in model.state_dict().items()}
    tuned = apply(model, which, **({"norms": "frozen"} if which in ("houlsby", "linear") else {}))
    after = dict(learned(tuned).state_dict())
    added = [key for key in after if key not in before]
    assert [key for key in after if key in before] == list(before)
    assert added == list(tuned.numbers) and all(".added." in key for key in added)
    assert tuned.new_keys == (() if which == "linear" else tuple(added))
    assert not torch.equal(model(images()), plain)
    tuned.remove()
    assert list(model.state_dict()) == list(before)
    assert torch.equal(model(images()), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any({"forward", "_get_rel_pos_bias"} & module.__dict__.keys() for module in model.modules())


@pytest.mark.parametrize("build", [vit, swin])
@each
def test_a_copy_of_the_model_plays_its_own_numbers(which: str, build: Any) -> None:
    model = learned(apply(build(), which))
    y = model(images())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if ".added." in name:
                parameter.zero_()
    assert torch.equal(model(images()), y)
    assert not torch.allclose(twin(images()), y)
    zeroed = twin(images())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(images()), zeroed), "nothing of it is the original's"


@pytest.mark.parametrize("build", [vit, swin])
@each
def test_it_plays_the_same_in_every_mode_of_autograd_and_type(which: str, build: Any) -> None:
    model = learned(apply(build(), which))
    y = model(images()).detach()
    with torch.no_grad():
        assert torch.equal(model(images()), y)
    with torch.inference_mode():
        assert torch.equal(model(images()), y)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(model(images()).float(), y, rtol=0.2, atol=0.3)
    torch.testing.assert_close(model.double()(images().double()).float(), y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.bfloat16()(images().bfloat16()).float(), y, rtol=0.2, atol=0.3)


@each
def test_on_a_base_of_half_precision_the_numbers_are_whole(which: str) -> None:
    tuned = apply(vit().bfloat16(), which)
    assert all(value.dtype == torch.float32 for name, value in tuned.numbers.items() if ".added." in name)
    assert learned(tuned)(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("build", [vit, swin])
@each
def test_gradient_checkpointing_gives_the_same_gradients(which: str, build: Any) -> None:
    grads = []
    for checkpointing in (False, True):
        tuned = apply(build(), which)
        model = learned(tuned)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)  # dropout
        cross_entropy(model.train()(images()), torch.tensor([0, 1])).backward()
        grads.append([value.grad for value in tuned.numbers.values()])
        assert not any(isinstance(getattr(m, "_stream", None), Tensor) for m in model.modules())
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_forward_that_breaks_off_leaves_no_stream() -> None:
    tuned = apply(vit(), "adaptformer")

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = tuned.model.blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tuned.model(images())
    handle.remove()
    assert all(block.added["mlp"]._stream is None for block in tuned.model.blocks)
    copy.deepcopy(tuned.model)


@each
def test_dropout_is_of_training_alone(which: str) -> None:
    if which == "linear":
        which, settings = "linear", {"dropout": 0.5}
    else:
        settings = {"dropout": 0.5}
    model = learned(apply(vit(), which, **settings))
    assert torch.equal(model(images()), model(images()))
    model.train()
    assert not torch.equal(model(images()), model(images()))


def test_each_form_has_its_own_dropout_norms_and_activation() -> None:
    def told(**settings: Any) -> tuple[str, float, bool]:
        tuned = get_method("adapter", settings).apply(vit(), head=("head",), seed=0)
        mine = tuned.model.blocks[0].added["mlp"]
        return mine.activation, mine.dropout, "norm.weight" in tuned.numbers

    assert told() == ("quick_gelu", 0.1, False)
    assert told(form="pfeiffer") == ("relu", 0.0, False)
    assert told(form="houlsby") == ("gelu", 0.0, True)
    assert told(form="houlsby", activation="relu", dropout=0.2, norms="frozen") == ("relu", 0.2, False)


def test_an_adapter_acts_on_a_branch_that_is_dropped() -> None:
    model = learned(apply(vit(drop_path_rate=0.5), "noah", dropout=0.0))
    block = model.blocks[-1].train()
    block.drop_path2.drop_prob = 1 - 1e-12  # as good as always
    seen: list[Tensor] = []
    block.norm2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block.drop_path1.drop_prob = 0.0
    x, mine = torch.randn(4, 17, 64), block.added["mlp"]
    y = block(x)
    near(y, seen[0] + mine(torch.zeros_like(x)))
    assert float((y - seen[0]).detach().abs().max()) > 1e-2


# Merging


def merged_is_the_same(tuned: Any, x: Any, logits: Callable[[Any], Tensor] = lambda y: y) -> nn.Module:
    with torch.no_grad():
        y = logits(learned(tuned)(x))
        merged: nn.Module = tuned.merged().eval()
        near(logits(merged(x)), y)
    assert not any(hasattr(module, "down") for module in merged.modules())
    return merged


@pytest.mark.parametrize("form", ["noah", "houlsby"])
@pytest.mark.parametrize("changes", [{}, {"init_values": 0.5}, {"init_values": 1e-6}, {"drop_path_rate": 0.2}])
def test_a_linear_adapter_merges_layer_scale_first(form: str, changes: dict[str, Any]) -> None:
    model = vit(**changes)
    for block in model.blocks:
        if "init_values" in changes:
            nn.init.constant_(block.ls2.gamma, changes["init_values"])
            nn.init.zeros_(block.ls2.gamma[3:5].data)  # where it is zero it cannot be divided by
    merged_is_the_same(apply(model, form, activation="identity"), images())


def test_a_linear_adapter_merges_in_swin() -> None:
    merged_is_the_same(apply(swin(), "linear"), images())


def test_a_linear_adapter_merges_where_the_factors_are_the_block_s_own() -> None:
    model = timm.create_model(
        "beit_base_patch16_224", img_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=3, init_values=0.5
    )
    merged = merged_is_the_same(apply(scrambled(model), "linear"), images())
    assert all(bool((block.gamma_1 == 1).all()) for block in merged.blocks)  # type: ignore[union-attr]


def test_a_linear_adapter_merges_as_the_formula_says() -> None:
    model = vit()
    layer = model.blocks[0].mlp.fc2
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    tuned = apply(model, "noah", activation="identity")
    learned(tuned)
    down, up = (getattr(model.blocks[0].added["mlp"], name) for name in ("down", "up"))
    with torch.no_grad():
        near(tuned.merged().blocks[0].mlp.fc2.weight, w + up.weight @ down.weight @ w)
        near(layer.bias, b + up.weight @ (down.weight @ b + down.bias) + up.bias)


def test_a_layer_without_bias_gets_one_and_it_is_told() -> None:
    model = vit(proj_bias=False)
    tuned = apply(model, "noah", activation="identity")
    assert tuned.new_keys == tuple(f"blocks.{k}.mlp.fc2.bias" for k in range(3))
    merged_is_the_same(tuned, images())
    assert set(tuned.new_keys) <= set(model.state_dict())


def test_where_it_is_not_exact_a_linear_adapter_does_not_merge() -> None:
    model = vit()
    model.blocks[1].mlp.fc2.weight = model.blocks[0].mlp.fc2.weight
    assert "blocks.0.mlp.fc2 is shared" in apply(model, "linear").no_merge
    model = vit()
    model.blocks[2].more = nn.Linear(2, 2)
    assert apply(model, "linear").no_merge == "it is not known where blocks.2 uses more"
    with torch.device("meta"):
        model = timm.create_model("xcit_nano_12_p16_224", num_classes=3)
    assert "uses gamma1" in apply(model, "linear").no_merge


# Other models

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def text_model(kind: str) -> tuple[Any, tuple[str, ...]]:
    config = {
        "gpt2": lambda: transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2),
        "llama": lambda: transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, **SMALL),
        "bert": lambda: transformers.BertConfig(vocab_size=40, **SMALL),
    }[kind]()
    config.pad_token_id = 0
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return scrambled(model), ("classifier",) if kind == "bert" else ("score",)


TEXT = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("which", STARTS)
def test_language_models_are_adapted(which: str, kind: str, tmp_path: Path) -> None:
    model, head = text_model(kind)
    plain = model(TEXT).logits
    name, settings = ALL[which]
    tuned: Any = get_method(name, settings).apply(model, head=head, seed=0)
    assert torch.equal(model(TEXT).logits, plain)
    learned(tuned)
    changed = model(TEXT).logits
    assert not torch.allclose(changed, plain)
    changed.sum().backward()
    assert all(value.grad is not None for value in tuned.numbers.values())
    tuned.save(tmp_path / "a.safetensors", {})
    loaded: Any = glora.load_adapter(text_model(kind)[0], tmp_path / "a.safetensors")
    assert torch.equal(loaded.model(TEXT).logits, changed)
    if which == "linear":
        merged_is_the_same(tuned, TEXT, lambda y: y.logits)


def test_bert_s_adapter_by_hand() -> None:
    """Between the layer that writes and the norm after the sum, as Houlsby's figure has it."""
    model, head = text_model("bert")
    tuned = get_method("adapter", {"form": "houlsby"}).apply(model, head=head, seed=0)
    learned(tuned)
    layer: Any = model.bert.encoder.layer[0]
    x, read = torch.randn(1, 5, 16), torch.randn(1, 5, 24)
    m = linear(read, layer.output.dense.weight, layer.output.dense.bias)
    mine = layer.added["mlp"]
    m = m + gelu(m @ mine.down.weight.T + mine.down.bias) @ mine.up.weight.T + mine.up.bias
    norm = layer.output.LayerNorm
    near(layer.output(read, x), nn.functional.layer_norm(m + x, (16,), norm.weight, norm.bias, norm.eps))


@each
def test_transformers_vit(which: str) -> None:
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=3, hidden_dropout_prob=0.0, **SMALL)
    model = scrambled(transformers.ViTForImageClassification(config))
    plain = model(images()).logits
    name, settings = ALL[which]
    tuned: Any = get_method(name, settings).apply(model, head=("classifier",), seed=0)
    assert torch.equal(model(images()).logits, plain) == (name != "vpt")
    y = learned(tuned)(images()).logits
    assert y.shape == (2, 3) and not torch.allclose(y, plain)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()(images()).logits.sum().backward()
    assert all(bool(value.grad.any()) for value in tuned.numbers.values())
    model.eval()
    tuned.remove()
    if name == "vpt":
        assert torch.equal(model(images()).logits, plain)


def test_prompts_in_transformers_vit_are_those_of_timms() -> None:
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=3, **SMALL)
    model: Any = scrambled(transformers.ViTForImageClassification(config))
    tuned = get_method("vpt", {"tokens": 3}).apply(model, head=("classifier",), seed=0)
    learned(tuned, 1.0)
    inputs: list[Tensor] = []
    for layer in model.vit.layers:
        layer.layernorm_before.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    model(images())
    for x, layer in zip(inputs, model.vit.layers, strict=True):
        assert x.shape == (2, 1 + 3 + 16, 16)
        assert torch.equal(x[0, 1:4], layer.added.prompts)


def test_where_vpt_or_an_adapter_cannot_be_it_is_said() -> None:
    gpt2, head = text_model("gpt2")
    with pytest.raises(TargetError, match=r"image tokens of a ViT or a Swin, and GPT2For\w+ reads text\."):
        get_method("vpt", {}).apply(gpt2, head=head, seed=0)
    resnet = timm.create_model("test_resnet", num_classes=3)
    for which, what in (("deep", "A prompt"), ("noah", "An adapter"), ("adaptformer", "AdaptFormer")):
        with pytest.raises(TargetError, match=f"{what} goes into the blocks of a transformer, and ResNet has none"):
            apply(resnet, which)
    with torch.device("meta"):
        beit, pit = (timm.create_model(name) for name in ("beit_base_patch16_224", "pit_ti_224"))
    with pytest.raises(TargetError, match=r"Beit has blocks of another kind, timm\.models\.beit\.Block"):
        apply(beit, "deep")
    with pytest.raises(TargetError, match="PoolingVisionTransformer has blocks of another kind"):
        apply(pit, "shallow")
    for base in (beit, pit):
        assert not any("added" in name for name, _ in base.named_modules()), "it is left as it was"


def test_adaptformer_needs_a_stream_of_one_width() -> None:
    model = vit()
    model.blocks[1].mlp.fc1 = nn.Linear(32, 192)
    with pytest.raises(TargetError, match=r"reads what it adds to, and blocks\.1 makes 64 numbers a token of 32\."):
        apply(model, "adaptformer")
    assert not any("added" in name for name, _ in model.named_modules())


@each
def test_a_model_has_one_method(which: str) -> None:
    model = vit()
    tuned = apply(model, which)
    with pytest.raises(StateError, match=r"blocks\.0 has modules of a method already\. .*remove\(\)"):
        apply(model, "noah")
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(StateError):
        apply(model, "adaptformer")
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    tuned.remove()
    apply(model, "noah")


# PACE


def test_pace_perturbs_what_adapters_add_and_refuses_prompts() -> None:
    for which in STARTS:
        check_pace(apply(vit(), which))
    with pytest.raises(ConfigError, match="no layer outside the head trains"):
        check_pace(apply(vit(), "deep"))


@pytest.mark.parametrize("which", ["noah", "adaptformer"])
def test_a_training_with_pace_perturbs_each_adapter_once(which: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=8, patch_size=4, num_classes=3)
    trainer = make_trainer(apply(model, which), epochs=1, pace="full")
    run(trainer)
    noise = trainer.pace.noise
    assert noise is not None and len(noise.names) == 6 and not noise.left
    assert all(name.endswith(".added.mlp.up") for name in noise.names)
    assert isinstance(trainer.settings, TrainSettings)


# Files and runs


@each
def test_a_file_is_of_its_method_and_base(which: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    tuned = apply(vit(), which)
    learned(tuned)
    tuned.save(path, {})
    loaded: Any = glora.load_adapter(vit(), path)
    assert torch.equal(loaded.model(images()), tuned.model(images()))
    other = vit()
    with torch.no_grad():
        other.blocks[0].attn.qkv.weight[0, 0] += 1
    with pytest.raises(AdapterFileError, match="was trained on another base"):
        glora.load_adapter(other, path)
    with pytest.raises(AdapterFileError, match="is of other settings"):
        size = {"tokens": 2} if "tokens" in type(tuned.method).model_fields else {"hidden": 2}
        apply(vit(), which, **size).load(path)


@pytest.mark.parametrize(
    "which", ["deep", *(pytest.param(each, marks=pytest.mark.slow) for each in ("houlsby", "adaptformer", "shallow"))]
)
def test_a_run_is_played_but_not_merged(
    which: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name, settings = ALL[which]
    folder = tmp_path / "run"
    Run(tiny(photos, method={"name": name, **settings}, train={"epochs": 1}), folder, Recorder()).fit()
    loaded = glora.load(folder)
    title = re.escape(loaded.experiment.method.title)  # type: ignore[attr-defined]
    files = sorted(photos.glob("*/*.png"))[:3]
    assert [set(record) for record in loaded.predict(files)] == [set(loaded.predict(files[:1])[0])] * 3
    with pytest.raises(StateError, match=f"{title} cannot be merged: .*Play it as it is"):
        loaded.merge()

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["glora", "merge", str(folder), "--out", str(tmp_path / "merged.safetensors")])
        with pytest.raises(SystemExit) as ended:
            main()
    told = capfd.readouterr().err
    assert ended.value.code == 2 and "cannot be merged" in told and "\nTIP: Play it as it is" in told
    assert not (tmp_path / "merged.safetensors").exists()
    assert CliRunner().invoke(app, ["predict", str(folder), str(files[0])]).exit_code == 0
    assert CliRunner().invoke(app, ["eval", str(folder)]).exit_code == 0
    again = CliRunner().invoke(app, ["fit", "--out", str(folder)])
    assert again.exit_code == 0 and again.stderr.endswith(f"Next: glora predict {folder} FILES\n")

    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.save(loaded.model.cpu()(x), tmp_path / "here.pt")
    torch.save(x, tmp_path / "x.pt")
    code = f"""
        import glora, torch
        from glora.backbones import load_backbone
        base = load_backbone(**{loaded.info["backbone"]!r}, num_classes=2).model.eval()
        model = glora.load_adapter(base, {str(loaded.adapter)!r}).model.eval()
        with torch.no_grad():
            y = model(torch.load({str(tmp_path / "x.pt")!r}))
        assert torch.equal(y, torch.load({str(tmp_path / "here.pt")!r}))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_a_run_of_a_linear_adapter_is_merged(photos: Path, tmp_path: Path) -> None:
    method = {"name": "adapter", "activation": "identity"}
    Run(tiny(photos, method=method, train={"epochs": 1}), tmp_path / "run", Recorder()).fit()
    merged = glora.load(tmp_path / "run").merge()
    assert not any("added" in key for key in merged.state_dict())
