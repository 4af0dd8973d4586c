"""Transformers written out by hand, with places where a method comes in: what the real ones must equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, softmax

__all__ = ["swin_by_hand", "vit_by_hand"]

Tokens = Callable[[int, Tensor], Tensor]


def norm(module: Any, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)


def attention(module: Any, x: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Multi-head attention of tokens `(b, n, d)`, one head after the other; bias `(heads, n, n)`."""
    heads, d = module.num_heads, x.shape[-1]
    q, k, v = linear(x, module.qkv.weight, module.qkv.bias).split(d, -1)
    out = []
    for head in range(heads):
        part = slice(head * d // heads, (head + 1) * d // heads)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(d / heads)
        out.append(softmax(scores + (bias[head] if isinstance(bias, Tensor) else bias), -1) @ v[..., part])
    return linear(torch.cat(out, -1), module.proj.weight, module.proj.bias)


def mlp(module: Any, x: Tensor) -> Tensor:
    hidden = gelu(linear(x, module.fc1.weight, module.fc1.bias))
    return linear(hidden, module.fc2.weight, module.fc2.bias)


def vit_by_hand(
    model: Any,
    images: Tensor,
    *,
    before: Tokens = lambda _, x: x,
    attended: Tokens = lambda _, m: m,
    fed: Callable[[int, Tensor, Tensor], Tensor] = lambda _, m, x: m,
    after: Tokens = lambda _, x: x,
) -> Tensor:
    """The logits of timm's `test_vit` without qk-norm.

    Args:
        model: Its weights.
        images: `(b, 3, h, w)`.
        before: Tokens before a block. after: Tokens after it.
        attended: What attention gives to the stream.
        fed: What the MLP gives to the stream, which is its second argument.
    """
    embed = model.patch_embed.proj
    x = conv2d(images, embed.weight, embed.bias, embed.stride).flatten(2).transpose(1, 2)
    extra = [each.expand(len(x), -1, -1) for each in (model.cls_token, model.reg_token) if each is not None]
    x = torch.cat([*extra, x], 1) + model.pos_embed
    for i, block in enumerate(model.blocks):
        x = before(i, x)
        m = attention(block.attn, norm(block.norm1, x)) * getattr(block.ls1, "gamma", 1.0)
        x = x + attended(i, m)
        m = mlp(block.mlp, norm(block.norm2, x)) * getattr(block.ls2, "gamma", 1.0)
        x = x + fed(i, m, x)
        x = after(i, x)
    if model.global_pool == "avg":
        x = norm(model.fc_norm, x[:, model.num_prefix_tokens :].mean(1))
    else:
        x = norm(model.norm, x)[:, 0]
    return linear(x, model.head.weight, model.head.bias)


def swin_by_hand(model: Any, images: Tensor, start: Callable[[int, Tensor | None], Tensor]) -> Tensor:
    """The logits of timm's Swin, window by window, with prompts.

    Args:
        model: Its weights.
        images: `(1, 3, h, w)`: one image, so that its windows are its own.
        start: The prompts `(p, d)` that block i sees, from those that come to it; None comes to the first.
    """
    embed = model.patch_embed
    x = conv2d(images, embed.proj.weight, embed.proj.bias, embed.proj.stride)[0].permute(1, 2, 0)  # (h, w, d)
    x = norm(embed.norm, x)
    prompts: Tensor | None = None
    number = 0
    for stage in model.layers:
        if hasattr(stage.downsample, "reduction"):
            down = stage.downsample
            fours = torch.cat([x[a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)  # Swin's order: columns last
            x = linear(norm(down.norm, fours), down.reduction.weight)
            assert prompts is not None
            prompts = linear(norm(down.norm, torch.cat([prompts] * 4, -1)), down.reduction.weight)
        for block in stage.blocks:
            prompts = start(number, prompts)
            x, prompts = swin_block(block, x, prompts)
            number += 1
    features = norm(model.norm, x).mean((0, 1))
    return linear(features, model.head.fc.weight, model.head.fc.bias)[None]


def swin_block(block: Any, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    (h, w, _), p = x.shape, len(prompts)
    (wh, ww), (sh, sw) = block.window_size, block.shift_size
    normed, normed_prompts = norm(block.norm1, x), norm(block.norm1, prompts)
    table = block.attn.relative_position_bias_table  # ((2 wh - 1) (2 ww - 1), heads)
    attended, of_prompts = torch.empty_like(x), []
    for top in range(0, h, wh):
        for left in range(0, w, ww):
            # the token at (y, x) of a window comes from (y + s) mod h; tokens from beyond the border are apart
            places = [((top + a + sh), (left + b + sw)) for a in range(wh) for b in range(ww)]
            tokens = torch.stack([normed[y % h, z % w] for y, z in places])
            bias = torch.zeros(block.attn.num_heads, p + len(places), p + len(places))
            for i, (y, z) in enumerate(places):
                for j, (v, u) in enumerate(places):
                    bias[:, p + i, p + j] = table[(y - v + wh - 1) * (2 * ww - 1) + z - u + ww - 1]
                    if (y >= h) != (v >= h) or (z >= w) != (u >= w):
                        bias[:, p + i, p + j] -= 100
            out = attention(block.attn, torch.cat([normed_prompts, tokens]), bias)
            of_prompts.append(out[:p])
            for (y, z), each in zip(places, out[p:], strict=True):
                attended[y % h, z % w] = each
    x, prompts = x + attended, prompts + torch.stack(of_prompts).mean(0)
    return x + mlp(block.mlp, norm(block.norm2, x)), prompts + mlp(block.mlp, norm(block.norm2, prompts))
