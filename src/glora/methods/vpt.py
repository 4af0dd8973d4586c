"""Visual prompt tuning (arXiv 2203.12119): tokens of its own in a frozen ViT or Swin.

`shallow`: p prompts join the tokens before the first block, go through all blocks with them, and are taken out after
the last. `deep`: every block has its own p prompts, taken out after it. Prompts get no position. They start uniform in
+-sqrt(6 / (3 h w + d)), h x w the model's patch size, d the width of its first block. The prompts are keys and values
that the pretrained network has never seen: step 0 is *not* the pretrained network.

In Swin prompts are before the tokens of a stage, and every window sees a copy of them: no relative position and no mask
of the shift is between a prompt and a token, and their outputs are averaged over the windows of an image. At patch
merging shallow prompts are repeated four times along the channels and go through its norm and reduction.

Departures: prompts are taken out before the last norm; the authors' Swin takes the mean over tokens and prompts. A
window of Swin sees the prompts of its own image; from the second block on the authors' code lays the copies out windows
first, tokens images first, so that a window sees those of another image of the batch. The authors keep the network in
eval mode in training; here stochastic depth is what the model has it at (none unless asked for). Dropout draws anew for
every image, also of deep prompts in Swin. `place: end` is where NOAH's variant has them, without its Xavier start, its
position embedding and its prompts that block 1 throws away; where prompts stand makes no difference but in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glora.errors import StateError, TargetError
from glora.methods.added import TunedAdded, place
from glora.methods.blocks import Block, Blocks, find_blocks
from glora.methods.method import Method

__all__ = ["VPT"]

Undo = RemovableHandle | Callable[[], None]
FAMILIES = ("timm.models.vision_transformer.", "transformers.models.vit.", "timm.models.swin_transformer.")


class VPT(Method):
    """Prompts among the image tokens of a ViT or Swin: of the first block, or of every block. They do not merge."""

    lr = 5e-3

    name: Literal["vpt"] = "vpt"
    depth: Literal["shallow", "deep"] = Field("deep", description="shallow: prompts of the first block; deep: of each.")
    tokens: int = Field(10, ge=1, description="Number of prompts, of each block where deep.")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Of the prompts; if not given 0 where shallow, 0.1 where deep."
    )
    place: Literal["after_class", "end"] = Field(
        "after_class", description="Where they stand in a ViT: before the patches, or after them."
    )

    @property
    def title(self) -> str:
        return f"VPT-{self.depth.capitalize()}"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdded:
        found = _find(model)
        made = [self._prompts(model, found, block) for block in found.blocks[: None if self.depth == "deep" else 1]]
        generator = torch.Generator().manual_seed(seed)
        bound = math.sqrt(6 / (3 * math.prod(_patch_size(model)) + found.blocks[0].width))
        for prompts in made:
            nn.init.uniform_(prompts.prompts, -bound, bound, generator=generator)
        hosts, undo = (_in_windows if found.kind == "swin" else _in_tokens)(model, found, made)
        return TunedAdded(
            self,
            model,
            head,
            hosts=hosts,
            undo=undo,
            no_merge="prompts are tokens, and what attention makes of them depends on the image",
        )

    def _prompts(self, model: nn.Module, found: Blocks, block: Block) -> Prompts:
        dropout = (0.1 if self.depth == "deep" else 0.0) if self.dropout is None else self.dropout
        return Prompts(self.tokens, block.width, dropout, found.prefix if self.place == "after_class" else None)


def _find(model: nn.Module) -> Blocks:
    """The blocks of a network whose attention takes more tokens.

    Raises:
        TargetError: It is none.
    """
    found = find_blocks(model, "A prompt")
    kind = type(model.get_submodule(found.blocks[0].name))
    name = f"{kind.__module__}.{kind.__qualname__}"
    if found.kind == "text" or not name.startswith(FAMILIES) or (found.kind == "vit" and len(found.stages) > 1):
        what = "reads text" if found.kind == "text" else f"has blocks of another kind, {name}"
        raise TargetError(
            f"VPT puts prompts among the image tokens of a ViT or a Swin, and {type(model).__name__} {what}.",
            allowed="Known: timm's VisionTransformer and SwinTransformer, transformers' ViT.",
            remedy="Choose a method of any transformer: glora, lora, adapter, adaptformer.",
        )
    return found


def _patch_size(model: nn.Module) -> tuple[int, ...]:
    """Height and width of a patch: timm's patch embedding and transformers' embeddings say it."""
    size: Any = next(each.patch_size for each in model.modules() if hasattr(each, "patch_size"))
    return (size, size) if isinstance(size, int) else tuple(size)


class Prompts(nn.Module):
    """Prompts of a block, and, of a ViT, the hooks that put them in and take them out.

    Args:
        tokens: How many.
        width: Numbers of each.
        dropout: Chance that training leaves out a number.
        first: How many tokens are before them; None: all.
    """

    def __init__(self, tokens: int, width: int, dropout: float, first: int | None) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.zeros(tokens, width))
        self.dropout = dropout
        self.first = first

    def of(self, x: Tensor) -> Tensor:
        """The prompts for a batch x, `(b, p, d)`."""
        prompts = self.prompts.to(x.dtype).expand(len(x), -1, -1)
        return nn.functional.dropout(prompts, self.dropout, self.training)

    def put_in(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The hook before a block: `(b, n, d)` becomes `(b, n + p, d)`."""
        x, *others = args
        if x.dim() != 3:
            raise StateError(f"The tokens of {type(block).__name__} are {tuple(x.shape)}.", allowed="Tokens (b, n, d).")
        first = x.shape[1] if self.first is None else self.first
        return torch.cat([x[:, :first], self.of(x), x[:, first:]], 1), *others

    def take_out(self, _: nn.Module, __: Any, x: Tensor) -> Tensor:
        """The hook after a block: `(b, n + p, d)` becomes `(b, n, d)`."""
        n = x.shape[1] - len(self.prompts)
        first = n if self.first is None else self.first
        return torch.cat([x[:, :first], x[:, first + len(self.prompts) :]], 1)


def _in_tokens(model: nn.Module, found: Blocks, made: Sequence[Prompts]) -> tuple[list[str], list[Undo]]:
    """Puts the prompts into a ViT; who hosts them, and what takes them out."""
    undo: list[Undo] = []
    hosts = [block.name for block in found.blocks[: len(made)]]
    lasts = hosts if len(made) > 1 else [found.blocks[-1].name]
    for host, last, prompts in zip(hosts, lasts, made, strict=True):
        place(model, host, prompts)
        undo.append(model.get_submodule(host).register_forward_pre_hook(prompts.put_in))
        undo.append(model.get_submodule(last).register_forward_hook(prompts.take_out))
    return hosts, undo


# Swin. A window attention sees other tokens than the block's stream has, so blocks, their attention and patch merging
# get a forward of their own. Between modules the prompts are further rows of the stream, filled up with zeros: nothing
# is kept outside it, and gradient checkpointing may repeat any module.


def pack(x: Tensor, prompts: Tensor) -> Tensor:
    """`(b, h, w, d)` with `(b, p, d)` in rows below, `(b, h + ceil(p / w), w, d)`."""
    w = x.shape[2]
    rows = nn.functional.pad(prompts, (0, 0, 0, -prompts.shape[1] % w)).reshape(len(x), -1, w, x.shape[3])
    return torch.cat([x, rows], 1)


def unpack(x: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """What was packed: `(b, h, w, d)` and `(b, p, d)`."""
    rows = math.ceil(tokens / x.shape[2])
    return x[:, :-rows], x[:, -rows:].flatten(1, 2)[:, :tokens]


class InBlock(nn.Module):
    """Plays a Swin block with prompts.

    Args:
        block: The block.
        tokens: How many prompts.
        own: The block's own prompts; None: those of the stream.
        after: `pass` them on in the stream, or `drop` them.
    """

    block: Any

    def __init__(self, block: nn.Module, tokens: int, own: Prompts | None, after: Literal["pass", "drop"]) -> None:
        super().__init__()
        self.__dict__["block"] = block  # its parent: no child
        self.tokens = tokens
        self.own = own
        self.after = after
        self._between: Tensor | None = None  # within a forward: the normed prompts, then their outputs, (b, p, d)

    def forward(self, x: Tensor) -> Tensor:
        """The block's forward: `(b, h, w, d)`, packed where the prompts are the stream's."""
        block, p = self.block, self.tokens
        x, prompts = unpack(x, p) if self.own is None else (x, self.own.of(x))
        both = torch.cat([prompts, x.flatten(1, 2)], 1)  # (b, p + h w, d)
        normed = block.norm1(both)
        try:
            self._between = normed[:, :p]
            attended = block._attn(normed[:, p:].reshape(x.shape)).flatten(1, 2)
            attended = torch.cat([self._between, attended], 1)
        finally:
            self._between = None
        both = both + block.drop_path1(attended)
        both = both + block.drop_path2(block.mlp(block.norm2(both)))
        x = both[:, p:].reshape(x.shape)
        return pack(x, both[:, :p]) if self.after == "pass" else x

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The forward of the block's attention: `(b windows, n, d)`, the windows of an image next to each other."""
        assert self._between is not None
        b, attention = len(self._between), self.block.attn
        prompts = self._between.repeat_interleave(len(x) // b, 0)
        wide = None if mask is None else nn.functional.pad(mask, (self.tokens, 0, self.tokens, 0))
        y: Tensor = type(attention).forward(attention, torch.cat([prompts, x], 1), wide)
        self._between = y[:, : self.tokens].reshape(b, -1, self.tokens, y.shape[2]).mean(1)
        return y[:, self.tokens :]

    def bias(self) -> Tensor:
        """The relative position bias of the attention, zero for prompts, `(1, heads, p + n, p + n)`."""
        attention = self.block.attn
        own: Tensor = type(attention)._get_rel_pos_bias(attention)
        return nn.functional.pad(own, (self.tokens, 0, self.tokens, 0))


class InMerging(nn.Module):
    """Plays a patch merging on a packed stream."""

    merging: Any

    def __init__(self, merging: nn.Module, tokens: int) -> None:
        super().__init__()
        self.__dict__["merging"] = merging  # its parent: no child
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        """`(b, h, w, d)` packed becomes `(b, h / 2, w / 2, 2 d)` packed."""
        merging = self.merging
        x, prompts = unpack(x, self.tokens)
        merged = type(merging).forward(merging, x)
        return pack(merged, merging.reduction(merging.norm(prompts.repeat(1, 1, 4))))


def _in_windows(model: nn.Module, found: Blocks, made: Sequence[Prompts]) -> tuple[list[str], list[Undo]]:
    """Puts the prompts into a Swin; who hosts them, and what takes them out."""
    tokens, deep = len(made[0].prompts), len(made) > 1
    hosts, undo = [], list[Undo]()
    for k, block in enumerate(found.blocks):
        host: Any = model.get_submodule(block.name)
        last = deep or block is found.blocks[-1]
        inside = InBlock(host, tokens, made[k] if k < len(made) else None, "drop" if last else "pass")
        place(model, block.name, inside)
        undo.append(_replace(host, "forward", inside.forward))
        undo.append(_replace(host.attn, "forward", inside.attend))
        undo.append(_replace(host.attn, "_get_rel_pos_bias", inside.bias))
        hosts.append(block.name)
    for name, merging in [] if deep else list(model.named_modules()):
        if type(merging).__name__ == "PatchMerging":
            between = InMerging(merging, tokens)
            place(model, name, between)
            undo.append(_replace(merging, "forward", between.forward))
            hosts.append(name)
    return hosts, undo


def _replace(module: nn.Module, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """The module has another method of this name; what gives it its own back. A deep copy has that of its own child."""
    module.__dict__[name] = method
    return lambda: module.__dict__.pop(name, None)
