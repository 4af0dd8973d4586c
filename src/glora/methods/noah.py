"""NOAH (arXiv 2206.04673): prompts, LoRA and adapters in every block of a ViT, how many of each found by a search.

    attention    tokens of the block, and p prompts after them;  q, k, v <- q, k, v + B A drop(x)
    MLP          m = branch of the MLP;  x <- x + m + W2 drop(quickgelu(W1 m + b1)) + b2

A gene is the size of one kind of module in one block: none, or one of `sizes`. All sizes share their numbers: size k
reads the first k prompts, the first k ranks of A `(r, d)` and B `(3 d, r)`, the first k rows of W1 and columns of W2.
The supernet plays a genotype drawn uniformly at every step; the winner is trained anew from the pretrained weights. A
block of width d has `p d` numbers of prompts, `4 d r` of LoRA and `2 d h + h + d` of its adapter.

Departures: depth is no gene of its own, as any block may have none (the authors put modules into the first blocks; all
their published subnets of VTAB have them everywhere). B, W2 and b2 start at zero, so that LoRA and adapters change
nothing at step 0; in the authors' code the network's own initialisation overwrites them. Prompts are taken out after
each block, where theirs are replaced in the next, which is the same; what their first block throws away, prompts of
the input with positions, is left out. Their search reads other pixels than their training and mutates depths; here it
is the run's. They train for 500 epochs, and the winner for 100 with twice the rate; here it gets as many as the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glora.errors import TargetError
from glora.genes import GeneSpace, PlainGenotype
from glora.methods.adapter import After
from glora.methods.added import ACTIVATIONS, ADDED, Down, place
from glora.methods.blocks import Block, find_blocks
from glora.methods.method import Polish
from glora.methods.searched import Searched, TunedShared
from glora.methods.vpt import FAMILIES, Prompts

__all__ = ["NOAH"]

KINDS = {"prompts": "tokens of its own", "lora": "rank on q, k, v", "adapter": "width after the MLP"}
NONE = 0


class NOAH(Searched):
    """A supernet of prompts, LoRA and adapters in a ViT; the winner of its search is trained anew. No merging."""

    lr = 5e-4

    name: Literal["noah"] = "noah"
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 10), min_length=1, description="Sizes offered beside none: prompts, ranks, widths of adapters."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Of prompts, of LoRA's input and within adapters.")

    @field_validator("sizes")
    @classmethod
    def _sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(sizes)) < len(sizes):
            raise ValueError("distinct sizes are needed")
        return sizes

    @property
    def title(self) -> str:
        return "NOAH"

    @property
    def polish(self) -> Polish:
        return super().polish._replace(rate=2.0)

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedNOAH:
        blocks = _find(model)
        outs = {block.name: [_outputs(model.get_submodule(name)) for name in block.attention.reads] for block in blocks}
        genes = self.space(blocks, {name: sum(each) for name, each in outs.items()})
        genotype = genes.largest if self.genotype is None else PlainGenotype(self.genotype)
        genes.encode(genotype)
        generator, hooks = torch.Generator().manual_seed(seed), list[RemovableHandle]()
        for block in blocks:
            added = Added(block.width, outs[block.name], genotype[block.name], self.dropout, generator)
            place(model, block.name, added)
            hooks += added.hook(model, block)
        return TunedNOAH(self, model, head, [block.name for block in blocks], genes, hooks)

    def space(self, blocks: Sequence[Block], outs: Mapping[str, int]) -> GeneSpace:
        """What is offered in every block, with its numbers.

        Args:
            blocks: The blocks.
            outs: Block -> outputs of q, k and v together.
        """
        sizes = (*sorted(self.sizes, reverse=True), NONE)
        rows: dict[str, dict[str, dict[Any, int]]] = {}
        for block in blocks:
            d, o = block.width, outs[block.name]
            rows[block.name] = {
                "prompts": {p: p * d for p in sizes},
                "lora": {r: r * (d + o) for r in sizes},
                "adapter": {h: (2 * d * h + h + d) * (h > 0) for h in sizes},
            }
        return GeneSpace(rows, columns=KINDS, row="block", column="module")


def _find(model: nn.Module) -> tuple[Block, ...]:
    """The blocks of a plain ViT, whose attention takes more tokens.

    Raises:
        TargetError: It is none.
    """
    found = find_blocks(model, "NOAH")
    kind = type(model.get_submodule(found.blocks[0].name))
    if found.kind != "vit" or not f"{kind.__module__}.".startswith(FAMILIES) or len(found.stages) > 1:
        raise TargetError(
            f"NOAH puts prompts, LoRA and adapters into a ViT, and the blocks of {type(model).__name__} are "
            f"{kind.__module__}.{kind.__qualname__}.",
            allowed="Known: timm's VisionTransformer and transformers' ViT.",
            remedy="Choose a method of any transformer that is searched: glora, pft.",
        )
    return found.blocks


def _outputs(layer: Any) -> int:
    return int(layer.out_features)


class EntangledPrompts(Prompts):
    """Prompts at the end, the first `used` of which play."""

    used = 0

    def of(self, x: Tensor) -> Tensor:
        prompts = self.prompts[: self.used].to(x.dtype).expand(len(x), -1, -1)
        return nn.functional.dropout(prompts, self.dropout, self.training)

    def take_out(self, _: nn.Module, __: Any, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] - self.used]


class FusedLoRA(nn.Module):
    """`B A drop(x)`, one A for all that read the same x, of the first `used` ranks; B starts at zero.

    Args:
        width: Features of x. outs: Outputs of each layer that reads it.
        rank: Ranks that there are.
        dropout: Chance that training leaves out a feature of x.
        generator: What is drawn comes from it.
    """

    used = 0

    def __init__(self, width: int, outs: Sequence[int], rank: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(sum(outs), rank))
        self.ends = [sum(outs[: k + 1]) for k in range(len(outs))]
        self.outs = tuple(outs)
        self.dropout = dropout
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def follow(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor, *, place: int) -> Tensor:
        """The hook on the layer of this place."""
        if not self.used:
            return output
        end = self.ends[place]
        up = self.up[end - self.outs[place] : end, : self.used].contiguous()
        x = nn.functional.dropout(args[0].to(up.dtype), self.dropout, self.training)
        change = nn.functional.linear(nn.functional.linear(x, self.down[: self.used]), up)
        return output + change.to(output.dtype)


class EntangledAfter(After):
    """An adapter after the MLP, of the first `used` of its hidden features."""

    used = 0
    up: Any

    def __init__(self, width: int, hidden: int, *, dropout: float, generator: torch.Generator) -> None:
        super().__init__(width, hidden, activation="quick_gelu", dropout=dropout, generator=generator)
        self.up = Down(hidden, width)  # no nn.Linear, whose output PACE would wait for: it is read by columns
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        k, down, up = self.used, self.down, self.up
        between = nn.functional.linear(x.to(down.weight.dtype), down.weight[:k], down.bias[:k])
        between = nn.functional.dropout(ACTIVATIONS[self.activation](between), self.dropout, self.training)
        return nn.functional.linear(between, up.weight[:, :k].contiguous(), up.bias).to(x.dtype)

    def follow(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + self(output) if self.used else output


class Added(nn.Module):
    """The three modules of a block; one of size none is left out.

    Args:
        width: d. outs: Outputs of the layers that read the normed stream, q, k and v or all in one.
        sizes: Kind -> its size, the largest that can be played.
        dropout: Of all three.
        generator: What is drawn comes from it.
    """

    def __init__(
        self,
        width: int,
        outs: Sequence[int],
        sizes: Mapping[str, Any],
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        p, r, h = (int(sizes[kind]) for kind in KINDS)
        if p:
            self.prompts = EntangledPrompts(p, width, dropout, None)
            bound = math.sqrt(6 / (p + width))  # Xavier
            nn.init.uniform_(self.prompts.prompts, -bound, bound, generator=generator)
        if r:
            self.lora = FusedLoRA(width, outs, r, dropout, generator)
        if h:
            self.adapter = EntangledAfter(width, h, dropout=dropout, generator=generator)

    def hook(self, model: nn.Module, block: Block) -> list[RemovableHandle]:
        """Puts them where they act; what takes them out."""
        hooks = []
        if hasattr(self, "prompts"):
            host = model.get_submodule(block.name)
            hooks += [host.register_forward_pre_hook(self.prompts.put_in)]
            hooks += [host.register_forward_hook(self.prompts.take_out)]
        if hasattr(self, "lora"):
            for number, name in enumerate(block.attention.reads):
                follow = partial(self.lora.follow, place=number)
                hooks += [model.get_submodule(name).register_forward_hook(follow)]
        if hasattr(self, "adapter"):
            hooks += [model.get_submodule(block.mlp.branch).register_forward_hook(self.adapter.follow)]
        return hooks

    def play(self, sizes: Mapping[str, Any]) -> None:
        """From here on each module has this size."""
        for kind, module in self.named_children():
            assert isinstance(module, EntangledPrompts | FusedLoRA | EntangledAfter)
            module.used = int(sizes[kind])


class TunedNOAH(TunedShared):
    """A ViT with modules of all sizes in its blocks, or with those of one genotype.

    Args:
        method: The settings.
        model: The model, the modules in place.
        head: Names of the modules trained whole.
        hosts: Names of the blocks.
        genes: The space.
        hooks: What takes the modules out again.
    """

    no_merge = "its prompts and adapters do what depends on the image"

    def __init__(
        self,
        method: NOAH,
        model: nn.Module,
        head: Sequence[str],
        hosts: Sequence[str],
        genes: GeneSpace,
        hooks: Sequence[RemovableHandle],
    ) -> None:
        self.added_hooks = list(hooks)
        self.added: dict[str, Any] = {host: model.get_submodule(f"{host}.{ADDED}") for host in hosts}
        self.at: dict[str, tuple[str, str]] = {}  # name of a number -> its block, its kind of module
        numbers = {}
        for host, added in self.added.items():
            for name, parameter in added.named_parameters():
                numbers[f"{host}.{ADDED}.{name}"] = parameter
                self.at[f"{host}.{ADDED}.{name}"] = host, name.partition(".")[0]
        super().__init__(method, model, numbers, head, genes)

    @property
    def new_keys(self) -> tuple[str, ...]:
        return tuple(self.parts())

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The model with the modules of the active genotype alone: they cannot be folded in."""
        parts = self.parts()
        for name, parameter in self.numbers.items():
            if name in parts:
                parameter.data = parts[name].clone()
        self.numbers = {name: parameter for name, parameter in self.numbers.items() if name in parts}
        for added in self.added.values():
            for kind, module in list(added.named_children()):
                if not module.used:
                    delattr(added, kind)
        return super().merged()

    def remove(self) -> None:
        """Takes all modules out: the model plays the base again, but for its head."""
        for hook in self.added_hooks:
            hook.remove()
        for host in self.added:
            parent: Any = self.model.get_submodule(host)
            if ADDED in parent._modules:
                delattr(parent, ADDED)
        self.added_hooks = []

    def play(self, genotype: PlainGenotype) -> None:
        for host, added in self.added.items():
            added.play(genotype[host])

    def part(self, name: str, value: Tensor, genotype: PlainGenotype) -> Tensor | None:
        host, kind = self.at[name]
        size = int(genotype[host][kind])
        if not size:
            return None
        if name.endswith("adapter.up.bias"):
            return value
        return value[:, :size] if name.endswith(("lora.up", "adapter.up.weight")) else value[:size]

    @torch.no_grad()
    def strengthen(self, factor: float) -> None:
        """What LoRA and adapters add is multiplied; prompts, which add no amount of anything, stay."""
        for name, value in self.numbers.items():
            if name.endswith(("lora.up", "adapter.up.weight", "adapter.up.bias")):
                value.mul_(factor)
