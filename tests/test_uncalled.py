"""Models that read a layer's weight and never call the layer: training, evaluation and the merged model agree."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import glora
from glora.genotype import Genotype, LayerConfig
from glora.space import SearchSpace
from suites.layer_suite import PRODUCTS, difference, randomize

NEAR = 1e-4  # max|difference| / max|output| of a whole model

ENCODER = {"dropout": 0.0, "batch_first": True}
TIMM = {
    "swinv2_tiny_window8_256": {
        "img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)
    },
    "beit_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "eva_giant_patch14_224": {"img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 48, "num_heads": 3},
}  # fmt: skip


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    silent: tuple[str, ...]  # endings of the weights that are read without a call


def tokens(name: str = "src", **more: Any) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(3, 5, 12), **more}


def image() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 3, 32, 32)}


def from_timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        timm = pytest.importorskip("timm")
        model = timm.create_model(name, pretrained=False, num_classes=4, drop_path_rate=0.0, **TIMM[name])
        for parameter in model.parameters():  # some heads and layer scales start at zero
            nn.init.normal_(parameter, std=0.2)
        return model

    return make


def encoder(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: nn.TransformerEncoderLayer(12, 2, 24, **ENCODER | settings)


def stack(**settings: Any) -> Callable[[], nn.Module]:
    layer = {"norm_first": settings.pop("norm_first", False)}
    return lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(12, 2, 24, **ENCODER | layer), 2, nn.LayerNorm(12), **settings
    )


def transformer(**settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return nn.Transformer(12, 2, 1, 1, 24, **ENCODER | settings)

    return make


PADDED = {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])}
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.bool)
BLOCK = ("in_proj", "out_proj", "linear1", "linear2")
CASES = {
    "encoder layer": Case(encoder(), tokens(), BLOCK),
    "encoder layer, gelu, norm first": Case(encoder(activation="gelu", norm_first=True), tokens(), BLOCK),
    "encoder layer, masked": Case(encoder(), tokens(src_mask=CAUSAL), BLOCK),
    "encoder layer, no bias": Case(encoder(bias=False), tokens(), BLOCK),
    "encoder layer, sequence first": Case(encoder(batch_first=False), tokens(), BLOCK),
    "encoder": Case(stack(enable_nested_tensor=False), tokens(), BLOCK),
    "encoder, nested tensors": Case(stack(), tokens(**PADDED), BLOCK),
    "encoder, norm first": Case(stack(norm_first=True, enable_nested_tensor=False), tokens(), BLOCK),
    "transformer": Case(transformer(), lambda: {"src": torch.randn(3, 5, 12), "tgt": torch.randn(3, 4, 12)}, BLOCK),
    "transformer, padded, norm first": Case(
        transformer(norm_first=True), lambda: {"src": torch.randn(3, 5, 12), "tgt": torch.randn(3, 4, 12), **PADDED},
        BLOCK,
    ),
    "swinv2": Case(from_timm("swinv2_tiny_window8_256"), image, ("attn.qkv",)),
    "beit": Case(from_timm("beit_base_patch16_224"), image, ("attn.qkv",)),
    "eva02": Case(from_timm("eva02_tiny_patch14_224"), image, ()),
    "eva": Case(from_timm("eva_giant_patch14_224"), image, ("attn.qkv",)),
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]
by_case = pytest.mark.parametrize("case", CASES)


def build(case: str) -> tuple[nn.Module, dict[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = CASES[case].make(), CASES[case].inputs()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False), x


def inject(model: nn.Module, product: str) -> glora.Adapted:
    return glora.inject(model, SearchSpace(ranks=(4,), variant="paper", product=product), head=None)


def genotypes(adapted: glora.Adapted) -> list[Genotype]:
    every = LayerConfig(A="lora:4", B="lora:4", C="vector", D="scalar", E="vector")
    rich = {
        name: LayerConfig(*(c if c in offered else "none" for c, offered in zip(every, options, strict=True)))
        for name, options in adapted.space.options.items()
    }
    return [Genotype(rich), adapted.sample(random.Random(0))]


def outputs(model: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """In training, in evaluation with gradients, and without: torch's fast path, where it has one."""
    found = {"train": model.train()(**x)}
    found["eval"] = model.eval()(**x)
    with torch.no_grad():
        found["no_grad"] = model(**x)
    return found


@by_case
@pytest.mark.parametrize("product", PRODUCTS)
def test_fresh_it_is_the_base_bit_for_bit(case, product):
    model, x = build(case)
    plain = outputs(model, x)
    adapted = inject(model, product)
    with torch.no_grad():
        assert torch.equal(model.train()(**x), plain["train"])
        for genotype in genotypes(adapted):
            adapted.activate(genotype)
            assert torch.equal(model.eval()(**x), plain["no_grad"])
    model.requires_grad_(True)  # as torch chooses its kernels where a gradient is wanted
    wanted = model.train()(**x)
    adapted.detach()
    model.requires_grad_(True)
    assert torch.equal(model.train()(**x), wanted)


@by_case
@pytest.mark.parametrize("product", PRODUCTS)
def test_training_evaluation_and_the_merged_model_agree(case, product):
    model, x = build(case)
    plain = outputs(model, x)
    adapted = inject(model, product)
    for k, support in enumerate(adapted.supports.values()):
        randomize(support, seed=k, size=0.05)
    for genotype in genotypes(adapted):
        adapted.activate(genotype)
        played = outputs(model, x)
        with torch.no_grad(), adapted.hold(genotype):
            played["held"] = model(**x)
        assert difference(played["train"], plain["train"]) > 1e-3
        for way, out in played.items():
            mask = ~x.get("src_key_padding_mask", torch.zeros(())).bool()  # torch fills padding with zeros or not
            one, other = (t[mask] if mask.dim() and t.shape[:2] == mask.shape else t for t in (out, played["train"]))
            assert difference(one, other) < NEAR, way
    merged = adapted.merge()
    with torch.no_grad():
        assert torch.equal(merged(**x), played["held"])
    adapted.detach()
    for way, out in outputs(model, x).items():
        assert torch.equal(out, plain[way]), way


@by_case
def test_every_weight_that_is_read_alone_plays_and_trains(case):
    """Each silent site by itself moves the output and gets its gradient."""
    model, x = build(case)
    for ending in CASES[case].silent:
        with torch.no_grad():
            plain = model(**x)
        adapted = glora.inject(
            model, SearchSpace(only=LayerConfig(B="lora:2"), ranks=(2,)), head=None, targets=[ending]
        )
        for k, support in enumerate(adapted.supports.values()):
            randomize(support, seed=k)
        assert all(name.endswith(ending) for name in adapted.sites)
        with torch.no_grad():
            assert difference(model(**x), plain) > 1e-4, ending
        model.train()(**x).square().sum().backward()
        assert all(support.down["B"].grad.abs().sum() > 0 for support in adapted.supports.values())
        model.eval()
        adapted.detach()
