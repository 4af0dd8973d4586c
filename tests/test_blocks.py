"""Where the blocks of transformers are: what is found is what the model's own forward does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from glora.errors import TargetError
from glora.methods.blocks import find_blocks

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def swin(**changes: Any) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
    return timm.models.swin_transformer.SwinTransformer(**sizes | {"num_classes": 3} | changes)


def of_timm(name: str, **settings: Any) -> nn.Module:
    return timm.create_model(name, img_size=32, num_classes=3, **settings)


def of_transformers(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if kind == "vit":
        config = transformers.ViTConfig(**small, image_size=32, patch_size=8)
        return transformers.ViTForImageClassification(config)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, vocab_size=30))
    if kind == "gemma2":
        gemma = {**small, "num_key_value_heads": 1, "head_dim": 6, "vocab_size": 30}
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**gemma))
    if kind == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**small, vocab_size=30))
    config = transformers.GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=30, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], str, int, int]] = {  # kind, blocks, prefix tokens
    "ViT": (lambda: of_timm("test_vit"), "vit", 6, 1),
    "ViT with a scaled branch": (lambda: of_timm("vit_tiny_patch16_224", depth=2, init_values=0.1), "vit", 2, 1),
    "ViT without a class token": (
        lambda: of_timm("vit_tiny_patch16_224", depth=2, class_token=False, global_pool="avg"), "vit", 2, 0,
    ),
    "ViT without a class token in another model": (
        lambda: nn.Sequential(of_timm("test_vit", depth=2, class_token=False, global_pool="avg")), "vit", 2, 0,
    ),
    "DeiT, distilled": (lambda: of_timm("deit_tiny_distilled_patch16_224", depth=2), "vit", 2, 2),
    "Swin": (swin, "swin", 4, 0),
    "transformers' ViT": (lambda: of_transformers("vit"), "vit", 2, 1),
    "Llama": (lambda: of_transformers("llama"), "text", 2, 0),
    "GPT-2": (lambda: of_transformers("gpt2"), "text", 2, 0),
}  # fmt: skip


def inputs_of(kind: str) -> dict[str, Tensor] | Tensor:
    return torch.arange(10).view(2, 5) if kind == "text" else IMAGES


def seen(model: nn.Module, names: list[str], x: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What goes into the modules of these names, and what comes out, in one forward pass."""
    into: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            into[name] = args[0] if args else next(iter(kwargs.values()))
            out[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return into, out


@pytest.mark.parametrize("name", MODELS)
def test_the_stream_is_what_entered_and_the_branch(name: str) -> None:
    """`x + branch(...)` is what enters the next sublayer, for every sublayer of a stage."""
    make, kind, depth, prefix = MODELS[name]
    torch.manual_seed(0)
    model = make()
    found = find_blocks(model, "A test")
    assert (found.kind, len(found.blocks), found.prefix) == (kind, depth, prefix)
    for blocks in found.stages.values():
        sublayers = [each for block in blocks for each in block.sublayers]
        names = [name for each in sublayers for name in (each.enters, each.branch, *each.reads, each.writes)]
        into, out = seen(model, names, inputs_of(kind))
        for this, following in pairwise(sublayers):
            total = into[this.enters].flatten(1) + out[this.branch].flatten(1)
            torch.testing.assert_close(total, into[following.enters].flatten(1))
        for each in sublayers:
            assert out[each.writes].shape[-1] == blocks[0].width == into[each.reads[0]].shape[-1]


def test_bert_normalises_the_sum() -> None:
    model = of_transformers("bert")
    found = find_blocks(model, "A test")
    assert (found.kind, len(found.blocks), found.prefix) == ("text", 2, 0)
    block = found.blocks[0]
    norm = f"{block.name}.attention.output.LayerNorm"
    names = [block.attention.enters, block.attention.branch, norm, block.mlp.enters]
    into, out = seen(model, names, inputs_of("text"))
    torch.testing.assert_close(into[block.attention.enters] + out[block.attention.branch], into[norm])
    torch.testing.assert_close(into[block.mlp.enters], out[norm])


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("resnet18", num_classes=3),
        lambda: timm.models.swin_transformer_v2.SwinTransformerV2(
            img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,)
        ),
        lambda: timm.models.eva.Eva(embed_dim=8, depth=1, num_heads=2, use_post_norm=True),
        lambda: of_transformers("gemma2"),
        lambda: nn.Sequential(nn.Linear(3, 3)),
    ],
)
def test_other_models_are_refused_with_what_would_do(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(TargetError, match=r"An adapter goes into the blocks of a transformer, and .* has none.*bitfit"):
        find_blocks(make(), "An adapter")
