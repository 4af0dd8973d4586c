"""LoRA, FacT, SSF and RepAdapter against a few independent lines of plain torch each; what they refuse and count."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import glora
from glora.adapt.adapter_file import read_tensors
from glora.errors import ConfigError, StateError, TargetError
from glora.methods import METHODS
from glora.methods.method import get_method
from suites.tiny_vit import tiny_vit

HEADS = {"vit": ("head",), "swin": ("head.fc",)}
WIDTH = 12


def swin() -> nn.Module:
    """Two stages of widths 8 and 16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8}
        model = SwinTransformer(depths=(2, 2), num_heads=(1, 2), num_classes=3, **sizes)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                nn.init.normal_(parameter, float(name.endswith("weight")), 0.3)
        return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"vit": tiny_vit, "swin": swin}


def images(kind: str) -> Tensor:
    size = 8 if kind == "vit" else 16
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def tune(name: str, settings: dict[str, Any], kind: str = "vit") -> Any:
    """The method on a tiny model, its numbers random."""
    tuned = get_method(name, settings).apply(MODELS[kind](), head=HEADS[kind], seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        numbers = tuned.numbers.values() if hasattr(tuned, "numbers") else tuned.parameters()
        for parameter in numbers:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return tuned


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def same_function(tuned: Any, plain: nn.Module, kind: str) -> bool:
    """The same unmerged, merged, and as the independent model."""
    x = images(kind)
    with torch.no_grad():
        expected, base = plain(x), MODELS[kind]()(x)
        assert not torch.allclose(expected, base, rtol=1e-3), "the change can be seen"
        played = tuned.model(x)
        return close(played, expected) and close(tuned.merged()(x), expected)


def after(model: nn.Module, name: str, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The layer gives `change(x, y)` for its input x and output y."""
    model.get_submodule(name).register_forward_hook(lambda _, inputs, y: change(inputs[0], y))


# LoRA


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("scaling", ["standard", "rank_stabilized"])
def test_lora_of_q_and_v_changes_their_thirds_alone(scaling: str, alpha: float | None) -> None:
    settings = {"targets": ("attn.qkv",), "parts": ("q", "v"), "rank": 2, "alpha": alpha, "scaling": scaling}
    tuned, plain = tune("lora", settings), tiny_vit()
    scale = (2 if alpha is None else alpha) / (2 if scaling == "standard" else 2**0.5)
    assert tuned.count() == 2 * 2 * 2 * 2 * WIDTH, "two blocks, two parts, two factors"
    for block in range(2):
        own = {part: tuned.numbers[f"lora.blocks.{block}.attn.qkv.{part}"] for part in ("qup", "qdown", "vup", "vdown")}

        def change(x: Tensor, y: Tensor, own: dict[str, Tensor] = own) -> Tensor:
            q = scale * x @ own["qup"].T @ own["qdown"].T
            v = scale * x @ own["vup"].T @ own["vdown"].T
            return y + torch.cat([q, torch.zeros_like(q), v], -1)

        after(plain, f"blocks.{block}.attn.qkv", change)
    assert same_function(tuned, plain, "vit")


def test_lora_of_the_papers_row_is_one_pair_for_qkv_with_its_scale() -> None:
    settings = {"targets": ("attn.qkv",), "rank": 3, "alpha": 6.0, "scaling": "rank_stabilized"}
    tuned, plain = tune("lora", settings), tiny_vit()
    assert tuned.count() == 2 * 3 * (WIDTH + 3 * WIDTH)
    for name, support in tuned.adapted.supports.items():
        down, up = support.down["B"], support.up["B"]
        after(plain, name, lambda x, y, down=down, up=up: y + 6 / 3**0.5 * x @ up.T @ down.T)
    plain.head.load_state_dict(tuned.model.head.state_dict())  # type: ignore[union-attr, operator]
    assert same_function(tuned, plain, "vit")


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"targets": ("attn.qkv",)}, "LoRA"),
        ({}, "LoRA (all linears)"),
        ({"targets": ("attn.qkv",), "parts": ("q", "v")}, "LoRA (qkv, q,v)"),
        ({"targets": ("q_proj", "v_proj")}, "LoRA (q_proj v_proj)"),
        ({"targets": ("attn.qkv",), "scaling": "rank_stabilized"}, "LoRA (rank-stabilized)"),
    ],
)
def test_the_title_says_which_form_of_lora(settings: dict[str, Any], title: str) -> None:
    assert get_method("lora", settings).title == title


def test_parts_without_a_fused_layer_are_refused() -> None:
    with pytest.raises(TargetError, match=r"there is none among .*fc1"):
        tune("lora", {"targets": ("fc1",), "parts": ("q",)})


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_lora_is_that_of_peft(*, rank_stabilized: bool) -> None:
    peft = pytest.importorskip("peft")
    scaling = "rank_stabilized" if rank_stabilized else "standard"
    tuned = tune("lora", {"targets": ("attn.qkv",), "rank": 2, "alpha": 5.0, "scaling": scaling})
    config = peft.LoraConfig(r=2, lora_alpha=5.0, use_rslora=rank_stabilized, target_modules=["qkv"])
    model = peft.get_peft_model(tiny_vit(), config).eval()
    with torch.no_grad():
        for name, support in tuned.adapted.supports.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(support.up["B"])
            layer.lora_B["default"].weight.copy_(support.down["B"])
        model.base_model.model.head.load_state_dict(tuned.model.head.state_dict())
        assert close(tuned.model(images("vit")), model(images("vit")))


# FacT


def fact_by_hand(tuned: Any, plain: nn.Module, blocks: list[tuple[str, int]], prefix: str = "fact") -> None:
    """FacT as its authors' forward passes compute it, with row vectors: u = U x, then a middle factor, then V."""
    own, method = tuned.numbers, tuned.method
    u, v = own[f"{prefix}.U"], own[f"{prefix}.V"]
    r = len(u)

    def middles(first: int, count: int) -> Tensor:  # (count, r, r); z = u @ middle
        if method.form == "tt":
            return own[f"{prefix}.S"][first : first + count].transpose(1, 2)
        core = torch.einsum("abj,jk->abk", own[f"{prefix}.C"], own[f"{prefix}.P"][:, first : first + count])
        return core.permute(2, 0, 1) if method.slices == "interleaved" else core.permute(2, 1, 0)

    for number, (block, width) in enumerate(blocks):
        m, s = middles(12 * number, 12), method.scale

        def wide(x: Tensor, y: Tensor, m: Tensor, s: float = s) -> Tensor:
            return y + s * torch.cat([x @ u.T @ each @ v.T for each in m], -1)

        after(plain, f"{block}.attn.qkv", lambda x, y, m=m: wide(x, y, m[:3]))
        after(plain, f"{block}.attn.proj", lambda x, y, m=m: wide(x, y, m[3:4]))
        if method.slices == "interleaved":  # (r, r, 4) reshaped as it lies in memory
            fc1 = m[4:8].permute(1, 2, 0).reshape(r, 4 * r)
            fc2 = m[8:].permute(1, 2, 0).reshape(r, 4 * r)
        else:
            fc1 = torch.cat(list(m[4:8]), 1)
            fc2 = torch.cat(list(m[8:].transpose(1, 2)), 1)

        def up(x: Tensor, y: Tensor, fc1: Tensor = fc1, s: float = s) -> Tensor:
            z = (x @ u.T @ fc1).unflatten(-1, (4, r))
            return y + s * (z @ v.T).flatten(-2)

        def down(x: Tensor, y: Tensor, fc2: Tensor = fc2, s: float = s, width: int = width) -> Tensor:
            z = (x.unflatten(-1, (4, width)) @ u.T).flatten(-2) @ fc2.T
            return y + s * z @ v.T

        after(plain, f"{block}.mlp.fc1", up)
        after(plain, f"{block}.mlp.fc2", down)


FACTS = [
    {"form": "tt", "rank": 3},
    {"form": "tk", "rank": 3, "scale": 10.0},
    {"form": "tk", "rank": 3, "slices": "interleaved"},
]


@pytest.mark.parametrize("settings", FACTS)
def test_fact_is_that_of_its_authors(settings: dict[str, Any]) -> None:
    tuned, plain = tune("fact", settings), tiny_vit()
    r, slices = 3, 2 * 12
    more = slices * r * r if settings["form"] == "tt" else slices * r + r**3
    assert tuned.count() == 2 * WIDTH * r + more
    fact_by_hand(tuned, plain, [("blocks.0", WIDTH), ("blocks.1", WIDTH)])
    assert same_function(tuned, plain, "vit")


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_every_slice_of_fact_is_the_formula_as_it_is_written(form: str) -> None:
    """`s V S_k U`, S_k of TK the sum of C[:, :, j] P[j, k]; the columns of fc2 are cut, of all others the rows."""
    tuned, plain = tune("fact", {"form": form, "rank": 3, "scale": 2.0}), tiny_vit().state_dict()
    own = {name.removeprefix("fact."): value.detach() for name, value in tuned.numbers.items()}
    merged = tuned.merged().state_dict()
    k = 0
    for layer in (f"blocks.{b}.{name}" for b in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")):
        change = merged[f"{layer}.weight"] - plain[f"{layer}.weight"]
        for part in change.split(WIDTH, dim=1 if layer.endswith("fc2") else 0):
            middle = own["S"][k] if form == "tt" else sum(own["C"][:, :, j] * own["P"][j, k] for j in range(3))
            assert close(part, 2.0 * own["V"] @ middle @ own["U"])
            k += 1
    assert k == 2 * 12


def test_interleaved_slices_are_another_function() -> None:
    x = images("vit")
    exact, other = (tune("fact", {"rank": 3, "slices": slices}).model(x) for slices in ("exact", "interleaved"))
    assert not torch.allclose(exact, other, rtol=1e-3)


@pytest.mark.parametrize("settings", FACTS)
def test_in_swin_fact_has_one_set_of_factors_per_width(settings: dict[str, Any]) -> None:
    tuned, plain = tune("fact", settings, "swin"), swin()
    assert {name.rpartition(".")[0] for name in tuned.numbers} == {"fact.8", "fact.16"}
    for stage, width in enumerate((8, 16)):
        blocks = [(f"layers.{stage}.blocks.{block}", width) for block in range(2)]
        fact_by_hand(tuned, plain, blocks, f"fact.{width}")
    assert same_function(tuned, plain, "swin")


# SSF


@pytest.mark.parametrize("start", ["exact", "authors"])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_ssf_scales_and_shifts_after_every_layer(kind: str, start: str) -> None:
    tuned, plain = tune("ssf", {"start": start}, kind), MODELS[kind]()
    layers = {name.removeprefix("ssf.").rpartition(".")[0] for name in tuned.numbers}
    types = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    wanted = {name for name, layer in plain.named_modules() if isinstance(layer, types)} - set(HEADS[kind])
    assert layers == {name for name in wanted if not name.endswith("reduction")}
    for name in layers:
        gamma, beta = tuned.numbers[f"ssf.{name}.gamma"], tuned.numbers[f"ssf.{name}.beta"]
        shape = (-1, 1, 1) if isinstance(plain.get_submodule(name), nn.Conv2d) else (-1,)
        after(plain, name, lambda _, y, g=gamma, b=beta, shape=shape: y * g.view(shape) + b.view(shape))
    assert same_function(tuned, plain, kind)


class Net(nn.Module):
    """A convolutional network with batch norms, its convolutions without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten()
        )
        self.head = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("new_bias", [False, True])
def test_ssf_of_a_convolutional_network(*, new_bias: bool) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    model.pretrained_cfg = {"input_size": (3, 8, 8)}  # type: ignore[assignment]
    plain = Net().eval()
    plain.load_state_dict(model.state_dict())
    tuned = get_method("ssf", {"new_bias": new_bias}).apply(model, head=("head",), seed=0)
    assert ("ssf.body.0.beta" in tuned.numbers) == new_bias
    assert bool(tuned.notes) != new_bias and ("body.0" in "".join(tuned.notes)) != new_bias
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
        for name, value in tuned.numbers.items():
            value.add_(0.3 * torch.randn(value.shape))
            layer, _, side = name.removeprefix("ssf.").rpartition(".")
            spread = value.detach().clone().view(-1, 1, 1)
            after(plain, layer, (lambda _, y, g=spread: y * g) if side == "gamma" else (lambda _, y, b=spread: y + b))
        expected = plain(x)
        assert close(model(x), expected)
        assert close(tuned.merged()(x), expected)
        assert tuned.new_keys == (("body.0.bias",) if new_bias else ())


# RepAdapter


@pytest.mark.parametrize("where", ["both", "attention"])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_repadapter_is_a_grouped_linear_adapter_before_the_layers(kind: str, where: str) -> None:
    tuned, plain = tune("repadapter", {"scale": 0.5, "hidden": 4, "where": where}, kind), MODELS[kind]()
    adapters = {name.rpartition(".")[0] for name in tuned.numbers}
    assert len(adapters) == (2 if where == "both" else 1) * (2 if kind == "vit" else 4)
    for adapter in adapters:
        down, b_d, up, b_u = (tuned.numbers[f"{adapter}.{name}"] for name in ("W_d", "b_d", "W_u", "b_u"))
        block, _, part = adapter.removeprefix("repadapter.").rpartition(".")

        def before(_: Any, inputs: Any, down=down, b_d=b_d, up=up, b_u=b_u) -> Any:  # type: ignore[no-untyped-def]
            x = inputs[0]
            z = x.reshape(1, -1, x.shape[-1]).transpose(1, 2)  # channels in the middle, as a convolution has them
            z = F.conv1d(F.conv1d(z, down.unsqueeze(-1), b_d), up.unsqueeze(-1), b_u, groups=2)
            return (x + 0.5 * z.transpose(1, 2).reshape(x.shape),)

        layer = f"{block}.{'attn.qkv' if part == 'attention' else 'mlp.fc1'}"
        plain.get_submodule(layer).register_forward_pre_hook(before)
    assert same_function(tuned, plain, kind)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="groups=3 does not divide hidden=8"):
        get_method("repadapter", {"groups": 3})
    with pytest.raises(TargetError, match=r"groups=8 does not divide the 12 inputs of blocks\.0"):
        tune("repadapter", {"groups": 8})


# Language models


def llama(**changes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=30, **{**sizes, "num_key_value_heads": 2, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    return model


def test_in_gpt2_whose_layers_are_transposed_it_is_the_same() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 30, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0}
    tokens = torch.randint(30, (2, 5), generator=torch.Generator().manual_seed(0))
    cases = {"fact": {"rank": 2}, "repadapter": {"hidden": 4}, "ssf": {}, "lora": {"parts": ("q", "v"), "rank": 2}}
    for name, settings in cases.items():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=0)).eval()
        base = model(tokens).logits
        tuned: Any = get_method(name, settings).apply(model, head=(), seed=0)
        assert torch.equal(model(tokens).logits, base)
        with torch.no_grad():
            for value in tuned.numbers.values():
                value.add_(0.3 * torch.randn(value.shape))
            played = model(tokens).logits
            assert not close(played, base)
            assert close(tuned.merged()(tokens).logits, played), name


@pytest.mark.parametrize(("name", "settings"), [("fact", {"rank": 2}), ("repadapter", {"hidden": 4}), ("ssf", {})])
def test_a_decoder_starts_exactly_trains_and_merges(name: str, settings: dict[str, Any]) -> None:
    model, tokens = llama(), torch.randint(30, (2, 5), generator=torch.Generator().manual_seed(0))
    base = model(tokens).logits
    tuned: Any = get_method(name, settings).apply(model, head=("lm_head",), seed=0)
    assert torch.equal(model(tokens).logits, base)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    with torch.no_grad():
        trained = model(tokens).logits
        assert close(tuned.merged()(tokens).logits, trained) and not close(trained, base)
    if name == "repadapter":  # q, k and v read one stream through one adapter; Llama's layers have no biases
        assert tuned.count() == 2 * 2 * (4 * 16 + 2 * 16)
        assert "no biases" in tuned.notes[0]
    if name == "fact":
        assert tuned.count() == 2 * 16 * 2 + 2 * 2 * (4 + 3 * 2) + 2**3, "slices: q, k, v, o, and two each of the MLP's"


def test_where_widths_do_not_fit_fact_names_the_layer() -> None:
    with pytest.raises(TargetError, match=r"slices of 16 x 16, and model.layers.0.mlp.gate_proj is 24 x 16"):
        get_method("fact", {}).apply(llama(intermediate_size=24), head=("lm_head",), seed=0)
    with pytest.raises(TargetError, match=r"model.layers.0.self_attn.k_proj is 8 x 16"):
        get_method("fact", {}).apply(llama(num_key_value_heads=1), head=("lm_head",), seed=0)


# Dropout


def test_fact_drops_out_after_the_middle_factor() -> None:
    tuned = tune("fact", {"form": "tt", "rank": 3, "dropout": 0.5})
    own, qkv, x = tuned.numbers, tuned.model.blocks[0].attn.qkv, torch.randn(5, WIDTH)
    weights = (qkv.parametrizations[name].original for name in ("weight", "bias"))
    plain = F.linear(x, *weights)
    tuned.model.train()
    torch.manual_seed(5)
    found = qkv(x)
    torch.manual_seed(5)
    z = F.dropout(torch.cat([x @ own["fact.U"].T @ own["fact.S"][k].T for k in range(3)], -1), 0.5)
    assert close(found, plain + torch.cat([part @ own["fact.V"].T for part in z.chunk(3, -1)], -1))


def test_repadapter_drops_out_in_the_bottleneck() -> None:
    tuned = tune("repadapter", {"hidden": 4, "dropout": 0.5, "scale": 2.0})
    prefix, qkv, x = "repadapter.blocks.1.attention", tuned.model.blocks[1].attn.qkv, torch.randn(5, WIDTH)
    own = {name: tuned.numbers[f"{prefix}.{name}"] for name in ("W_d", "b_d", "W_u", "b_u")}
    weights = [qkv.parametrizations[name].original for name in ("weight", "bias")]
    tuned.model.train()
    torch.manual_seed(5)
    found = qkv(x)
    torch.manual_seed(5)
    z = F.dropout(x @ own["W_d"].T, 0.5) + own["b_d"]
    up = torch.cat([part @ w.T for part, w in zip(z.chunk(2, -1), own["W_u"].chunk(2), strict=True)], -1)
    assert close(found, F.linear(x + 2 * (up + own["b_u"]), *weights))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fact", {"rank": 3}), ("repadapter", {"hidden": 4}), ("lora", {"parts": ("q",), "dropout": 0.1})],
)
def test_dropout_is_for_training_alone(name: str, settings: dict[str, Any]) -> None:
    tuned, x = tune(name, settings), images("vit")
    with torch.no_grad():
        assert torch.equal(tuned.model(x), tuned.model(x))
        tuned.model.train()
        assert not torch.equal(tuned.model(x), tuned.model(x))


def test_where_nothing_can_drop_out_it_is_noted() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(12, 3))
    tuned = get_method("lora", {"parts": ("q", "v"), "dropout": 0.1}).apply(model, head=("1",), seed=0)
    assert any("No dropout" in note and "in_proj" in note and "linear1" not in note for note in tuned.notes)


# Files


TIED = [
    ("lora", {"parts": ("k", "v"), "rank": 2, "scaling": "rank_stabilized"}),
    ("fact", {"form": "tt", "rank": 2}),
    ("fact", {"rank": 2}),
    ("ssf", {}),
    ("repadapter", {"hidden": 4}),
]


@pytest.mark.parametrize(("name", "settings"), TIED)
def test_as_a_plain_adapter_it_is_the_same_function(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    tuned, x = tune(name, settings), images("vit")
    glora.save_adapter(tuned.adapted, tmp_path / "plain.safetensors")
    loaded = glora.load_adapter(tiny_vit(), tmp_path / "plain.safetensors")
    assert isinstance(loaded, glora.Adapted)
    with torch.no_grad():
        assert close(loaded.model(x), tuned.model(x))
        assert torch.equal(tuned.adapted.detach()(x), tiny_vit()(x)), "and it comes off again"


@pytest.mark.parametrize(("name", "settings"), TIED)
def test_it_plays_beside_the_base_in_one_batch_and_is_not_filled(name: str, settings: dict[str, Any]) -> None:
    tuned, x = tune(name, settings), images("vit")
    with torch.no_grad():
        own, base = tuned.model(x), tiny_vit()(x)
        tuned.adapted.switch(["default", "base", "default"])
        assert close(tuned.model(x), torch.stack([own[0], base[1], own[2]]))
        tuned.adapted.switch("default")
        with tuned.adapted.hold(tuned.adapted.active) as held:
            assert close(held(x), own)
    with pytest.raises(StateError, match="computed from a method's own numbers"):
        tuned.adapted.load_state(tuned.adapted.state())
    assert len(tuned.adapted.parameters()) == len(tuned.parameters())


@pytest.mark.parametrize(("name", "settings"), TIED)
def test_a_file_holds_the_methods_own_numbers_alone(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    tuned = tune(name, settings)
    tuned.save(tmp_path / "own.safetensors", {})
    tensors, _ = read_tensors(tmp_path / "own.safetensors")
    assert sum(value.numel() for key, value in tensors.items() if not key.startswith("head/")) == tuned.count()


LOADER = """
import sys, timm, torch, glora
torch.manual_seed(0)
for name in sys.argv[2:]:
    base = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    base.load_state_dict(torch.load(sys.argv[1] + "/base.pt"))
    base.head.reset_parameters()
    loaded = glora.load_adapter(base, f"{sys.argv[1]}/{name}.safetensors")
    with torch.no_grad():
        y, expected = loaded.model(torch.load(sys.argv[1] + "/x.pt")), torch.load(f"{sys.argv[1]}/{name}.pt")
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max(), name
    print(name)
"""


def test_a_plain_model_in_a_fresh_process_loads_the_file_of_every_method(tmp_path: Path) -> None:
    base = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    x, names = torch.randn(2, 3, 32, 32), sorted(METHODS)
    torch.save(base.state_dict(), tmp_path / "base.pt")
    torch.save(x, tmp_path / "x.pt")
    for name in names:
        model = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
        model.load_state_dict(base.state_dict())
        tuned = get_method(name, {}).apply(model, head=("head",), seed=0)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
            (tuned.save if tuned.space is None else tuned.save_winner)(tmp_path / f"{name}.safetensors", {})
            torch.save(model(x), tmp_path / f"{name}.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path), *names],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names


@pytest.mark.parametrize(("name", "settings"), TIED)
def test_on_quantised_layers_it_trains_and_answers_as_on_what_they_stand_for(
    name: str, settings: dict[str, Any]
) -> None:
    ao = pytest.importorskip("torchao.quantization")
    packed, floats, x = tiny_vit(), tiny_vit(), images("vit")
    ao.quantize_(packed.blocks, ao.Int8WeightOnlyConfig(version=2))  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        for key, layer in packed.blocks.named_modules():  # type: ignore[union-attr]
            if isinstance(layer, nn.Linear):
                floats.blocks.get_submodule(key).weight.copy_(layer.weight.dequantize())  # type: ignore[union-attr, operator]
    answers = []
    for model in (packed, floats):
        tuned: Any = get_method(name, settings).apply(model, head=("head",), seed=0)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for value in tuned.numbers.values():
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
        answers.append(model(x))
        answers[-1].sum().backward()
        assert all(value.grad is not None for value in tuned.numbers.values())
    assert torch.allclose(*answers, rtol=1e-3, atol=1e-4)


def test_new_biases_of_a_language_model_need_no_example() -> None:
    model = llama()
    bare = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    outputs = sum(module.out_features for module in bare)
    settings = {"new_bias": True, "targets": "linear"}
    tuned = get_method("ssf", settings).apply(model, head=("lm_head",), seed=0)
    assert tuned.count() == 2 * outputs
    tuned.merged()
    assert len(tuned.new_keys) == len(bare)
