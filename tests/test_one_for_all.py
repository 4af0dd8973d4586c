"""One for all, as far as it holds: trained LoRA, BitFit in linears, FacT, SSF and RepAdapter are GLoRA configurations.

Each method is trained for a few steps on random images. By algebra alone, a closed formula or a singular value
decomposition, its result is then written into a plain `glora.inject` model, which answers the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.genotype import Choice, Genotype, LayerConfig
from glora.methods.method import get_method
from suites.method_suite import step
from suites.tiny_vit import tiny_vit

Factors = dict[str, dict[str, Tensor]]  # support tensor -> "down" and "up" -> numbers


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained(name: str, settings: dict[str, Any], images: Tensor) -> Any:
    tuned = get_method(name, settings).apply(tiny_vit(), head=("head",), seed=0)
    step(tuned, images, lr=5e-2, times=4)
    return tuned


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer for name, layer in found.items() if name != "head"}


def glora_model(
    configs: Mapping[str, tuple[LayerConfig, Factors]], head: nn.Module, *, product: Any = "elementwise"
) -> nn.Module:
    """A plain model that plays these configurations with these numbers, and has this head."""
    ranks = {choice.rank for config, _ in configs.values() for choice in config if choice.kind == "lora"}
    space = glora.SearchSpace(ranks=tuple(ranks) or (1,), product=product, variant="paper", scaling="none")
    adapted = glora.inject(tiny_vit(), space, targets=list(configs), head=("head",))
    with torch.no_grad():
        for name, (config, factors) in configs.items():
            support = adapted.supports[name]
            for tensor, parts in factors.items():
                for side, value in parts.items():
                    getattr(support, side)[tensor][tuple(map(slice, value.shape))] = value
            assert set(factors) == {t for t in "ABCDE" if getattr(config, t).kind != "none"}
        adapted.model.head.load_state_dict({key: value.float() for key, value in head.state_dict().items()})  # type: ignore[union-attr, operator]
    adapted.activate(Genotype({name: config for name, (config, _) in configs.items()}))
    return adapted.model


def decomposed(tuned: Any) -> dict[str, tuple[LayerConfig, Factors]]:
    """B and E of every linear layer from what it has become: the change's singular vectors, and the bias's change."""
    after, before = linears(tuned.model.double() and tuned.merged()), linears(tiny_vit().double())
    found = {}
    for name, layer in after.items():
        u, s, vh = torch.linalg.svd((layer.weight - before[name].weight).detach())
        rank = int((s > 1e-9).sum())
        shift = (layer.bias - before[name].bias).detach()
        factors: Factors = {}
        if rank:
            factors["B"] = {"down": u[:, :rank] * s[:rank].sqrt(), "up": s[:rank].sqrt()[:, None] * vh[:rank]}
        if shift.abs().max() > 1e-9:
            factors["E"] = {"down": shift}
        choices = {"B": Choice("lora", rank) if rank else Choice("none"), "E": "vector" if "E" in factors else "none"}
        found[name] = (LayerConfig(**choices), factors)
    return found


def same(model: nn.Module, expected: Tensor, images: Tensor) -> bool:
    with torch.no_grad():
        answer, base = model(images), tiny_vit()(images)
    assert (expected - base).abs().max() > 1e-2 * base.abs().max(), "training changed something"
    return bool((answer - expected).abs().max() <= 1e-5 * expected.abs().max())


QKV = {"targets": ("attn.qkv",)}


@pytest.mark.parametrize(
    ("name", "settings", "rank"),
    [
        ("lora", {**QKV, "rank": 2}, 2),
        ("lora", {"rank": 2, "alpha": 3.0, "scaling": "rank_stabilized"}, 2),
        ("lora", {**QKV, "rank": 2, "parts": ("q", "v")}, 4),
        ("lora", {**QKV, "rank": 2, "parts": ("q", "k", "v")}, 6),
        ("biases", {}, 0),
        ("fact", {"form": "tt", "rank": 3}, 3),
        ("fact", {"form": "tk", "rank": 3, "scale": 10.0}, 3),
        ("fact", {"form": "tk", "rank": 3, "slices": "interleaved", "scale": 10.0}, 3),
        ("repadapter", {"hidden": 4}, 4),
    ],
)
def test_it_is_a_low_rank_b_and_a_shift_e(name: str, settings: dict[str, Any], rank: int, images: Tensor) -> None:
    """LoRA of q and v with factors of their own needs twice their rank; FacT and RepAdapter no more than theirs."""
    tuned = trained(name, settings, images)
    with torch.no_grad():
        expected = tuned.model(images)
    configs = decomposed(tuned)
    assert max(config.B.rank for config, _ in configs.values()) == rank
    assert same(glora_model(configs, tuned.model.head), expected, images)


def test_bitfit_is_e_but_for_the_patch_embedding(images: Tensor) -> None:
    """Shifts of a norm go through the linear layer after it, `W d`; the last norm's goes into the head."""
    tuned = trained("bitfit", {}, images)
    base = tiny_vit()
    shift = {
        name: (parameter - base.get_parameter(name)).detach()
        for name, parameter in tuned.model.named_parameters()
        if name.endswith("bias") and not name.startswith("head")
    }
    assert all(bool(value.abs().max() > 0) for value in shift.values())
    with torch.no_grad():
        tuned.model.patch_embed.proj.bias.copy_(base.patch_embed.proj.bias)  # type: ignore[union-attr, arg-type]
        expected = tuned.model(images)
        configs = {}
        for name, layer in linears(base).items():
            e, block = shift[f"{name}.bias"], name.rsplit(".", 2)[0]
            if norm := {"qkv": "norm1", "fc1": "norm2"}.get(name.rpartition(".")[2]):
                e = e + layer.weight @ shift[f"{block}.{norm}.bias"]
            configs[name] = (LayerConfig(E="vector"), {"E": {"down": e}})
        head = tuned.model.head
        head.bias += head.weight @ shift["norm.bias"]
    assert same(glora_model(configs, head), expected, images)


def test_a_shifted_patch_embedding_is_not_inside(images: Tensor) -> None:
    """Every configuration treats all tokens alike; this shift reaches the patches and not the class token."""
    base, moved = tiny_vit(), tiny_vit()
    with torch.no_grad():
        moved.patch_embed.proj.bias += 1  # type: ignore[union-attr, operator, misc]
        seen = [each.norm_pre(each._pos_embed(each.patch_embed(images))) for each in (base, moved)]  # type: ignore[operator]
    difference = seen[1] - seen[0]
    assert torch.equal(difference[:, 0], torch.zeros_like(difference[:, 0]))
    assert torch.allclose(difference[:, 1:], torch.ones(()), atol=1e-5)


def test_ssf_in_linear_layers_is_a_d_and_e(images: Tensor) -> None:
    tuned = trained("ssf", {"targets": "linear"}, images)
    with torch.no_grad():
        expected = tuned.model(images)
        configs = {}
        for name in linears(tiny_vit()):
            gamma, beta = tuned.numbers[f"ssf.{name}.gamma"], tuned.numbers[f"ssf.{name}.beta"]
            factors = {"A": {"down": (gamma - 1)[:, None]}, "D": {"down": gamma - 1}, "E": {"down": beta}}
            configs[name] = (LayerConfig(A="vector", D="vector", E="vector"), factors)
    assert same(glora_model(configs, tuned.model.head), expected, images)


def test_ssf_after_norms_too_is_an_a_of_rank_two(images: Tensor) -> None:
    """`diag(g) W diag(h) = W + W * A` with `A = g hᵀ - 1`; the norm's shift is in E. Without patch embedding."""
    tuned, base = trained("ssf", {"targets": ("linear", "norm")}, images), tiny_vit()
    own = {name: value.detach() for name, value in tuned.numbers.items()}
    with torch.no_grad():
        expected = tuned.model(images)
        configs = {}
        for name, layer in linears(base).items():
            gamma, beta = own[f"ssf.{name}.gamma"], own[f"ssf.{name}.beta"]
            norm = {"qkv": "norm1", "fc1": "norm2"}.get(name.rpartition(".")[2])
            if norm:
                before = f"ssf.{name.rsplit('.', 2)[0]}.{norm}"
                h, shift = own[f"{before}.gamma"], own[f"{before}.beta"]
            else:
                h, shift = torch.ones(layer.in_features), torch.zeros(layer.in_features)
            ones = torch.ones_like
            factors = {
                "A": {"down": torch.stack([gamma, -ones(gamma)], 1), "up": torch.stack([h, ones(h)])},
                "D": {"down": gamma - 1},
                "E": {"down": beta + gamma * (layer.weight @ shift)},
            }
            configs[name] = (LayerConfig(A="lora:2", D="vector", E="vector"), factors)
        head = tuned.model.head
        head.bias += head.weight @ own["ssf.norm.beta"]
        head.weight *= own["ssf.norm.gamma"]
    assert same(glora_model(configs, head), expected, images)


def test_repadapter_is_a_matrix_product_a_and_c(images: Tensor) -> None:
    tuned = trained("repadapter", {"hidden": 4, "scale": 0.5}, images)
    with torch.no_grad():
        expected = tuned.model(images)
        configs = {}
        for block in range(2):
            for part, name in (("attention", "attn.qkv"), ("mlp", "mlp.fc1")):
                prefix = f"repadapter.blocks.{block}.{part}"
                own = {key: tuned.numbers[f"{prefix}.{key}"].detach() for key in ("W_d", "b_d", "W_u", "b_u")}
                wide = torch.zeros(12, 4)
                wide[:6, :2], wide[6:, 2:] = own["W_u"][:6], own["W_u"][6:]
                c = 0.5 * (wide @ own["b_d"] + own["b_u"])
                factors = {"A": {"down": 0.5 * wide, "up": own["W_d"]}, "C": {"down": c[:, None]}}
                configs[f"blocks.{block}.{name}"] = (LayerConfig(A="lora:4", C="vector"), factors)
    assert same(glora_model(configs, tuned.model.head, product="matrix"), expected, images)
