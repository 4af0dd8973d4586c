"""Where the blocks of a transformer are: for methods that put something beside or between its sublayers.

Module names are absolute and those of the plain model. One more architecture is one line in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from glora.adapt.sites import refuse_adapted
from glora.errors import StateError, TargetError, listed

__all__ = ["Block", "Blocks", "Sublayer", "find_blocks", "refuse_tuned"]


@dataclass(frozen=True, slots=True)
class Sublayer:
    """Attention or MLP of one block: `x + branch(...)`, or `norm(x + branch(...))` where norms come after.

    Attributes:
        enters: The first module of the sublayer: its input is the stream x. In pre-norm blocks it is the norm.
        reads: The linear layers that read the (normed) stream: qkv, or q, k and v, or fc1.
        writes: The linear layer that makes the branch's output: proj, or fc2.
        branch: The module whose output is added to the stream: drop-path where there is one.
    """

    enters: str
    reads: tuple[str, ...]
    writes: str
    branch: str


@dataclass(frozen=True, slots=True)
class Block:
    """One block.

    Attributes:
        name: Its module.
        width: Numbers per token in the stream.
        attention, mlp: Its two sublayers, in this order.
    """

    name: str
    width: int
    attention: Sublayer
    mlp: Sublayer

    @property
    def sublayers(self) -> tuple[Sublayer, Sublayer]:
        """Attention, then MLP."""
        return self.attention, self.mlp


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a model, first to last.

    Attributes:
        blocks: Each of them.
        kind: `"vit"`: image tokens `(b, n, d)`; `"swin"`: windows, `(b, h, w, d)`, widths that grow by stages;
            `"text"`: tokens of a language model.
        prefix: Tokens before the first patch, such as the class token; 0 where there are none.
    """

    blocks: tuple[Block, ...]
    kind: str
    prefix: int = 0

    @property
    def stages(self) -> dict[int, tuple[Block, ...]]:
        """Width -> the blocks of that width, in order: one entry but for networks in stages."""
        widths = dict.fromkeys(block.width for block in self.blocks)
        return {width: tuple(block for block in self.blocks if block.width == width) for width in widths}


Part = tuple[str, tuple[str, ...], str, str]  # enters, reads, writes, branch; relative to the block

LAYOUTS: dict[str, tuple[str, Part, Part]] = {  # kind, attention, MLP
    "timm's ViT": (
        "vit",
        ("norm1", ("attn.qkv",), "attn.proj", "drop_path1"),
        ("norm2", ("mlp.fc1",), "mlp.fc2", "drop_path2"),
    ),
    "timm's ViT with a gated MLP": (
        "vit",
        ("norm1", ("attn.qkv",), "attn.proj", "drop_path1"),
        ("norm2", ("mlp.fc1_g", "mlp.fc1_x"), "mlp.fc2", "drop_path2"),
    ),
    "transformers' ViT": (
        "vit",
        (
            "layernorm_before",
            ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "attention.o_proj",
            "attention.o_proj",
        ),
        ("layernorm_after", ("mlp.fc1",), "mlp.fc2", "mlp"),
    ),
    "Llama": (
        "text",
        (
            "input_layernorm",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.o_proj",
            "self_attn.o_proj",
        ),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "mlp"),
    ),
    "GPT-2": (
        "text",
        ("ln_1", ("attn.c_attn",), "attn.c_proj", "attn.c_proj"),
        ("ln_2", ("mlp.c_fc",), "mlp.c_proj", "mlp"),
    ),
    "BERT": (
        "text",
        (
            "attention.self",
            ("attention.self.query", "attention.self.key", "attention.self.value"),
            "attention.output.dense",
            "attention.output.dropout",
        ),
        ("intermediate", ("intermediate.dense",), "output.dense", "output.dropout"),
    ),
}
NORM_AFTER = (  # a norm that the layout takes to read x reads the branch
    "SwinTransformerV2Block",
    "SwinTransformerV2CrBlock",
    "ResPostBlock",
    "ResPostRelPosBlock",
    "EvaBlockPostNorm",
    "Gemma2DecoderLayer",
    "Gemma3DecoderLayer",
    "Glm4DecoderLayer",
)


def find_blocks(model: nn.Module, what: str) -> Blocks:
    """The blocks of a ViT or Swin of timm, or of a transformer of `LAYOUTS`.

    Args:
        model: The plain model.
        what: The method that asks, in the error's words: `"An adapter"`.

    Raises:
        TargetError: No block of a known layout is in the model.
        StateError: Another method shows its weights changed.
    """
    refuse_tuned(model)
    every = dict(model.named_modules())
    found: list[Block] = []
    kinds = set()
    for name, module in every.items():
        if type(module).__name__ in NORM_AFTER or any(name.startswith(f"{block.name}.") for block in found):
            continue
        if layout := _layout_of(every, name):
            kind, *parts = layout
            attention, mlp = (_absolute(name, part) for part in parts)
            found.append(Block(name, _width(every[mlp.writes]), attention, mlp))
            kinds.add("swin" if type(module).__name__ == "SwinTransformerBlock" else kind)
    if len(kinds) != 1:
        raise TargetError(
            f"{what} goes into the blocks of a transformer, and {type(model).__name__} has none that are known.",
            allowed=f"Known: timm's Swin, {listed(LAYOUTS, n=9)}.",
            remedy="Choose a method that adapts layers of any model: glora, lora, bitfit, ssf.",
        )
    (kind,) = kinds
    return Blocks(tuple(found), kind, _prefix(model) if kind == "vit" else 0)


def refuse_tuned(model: nn.Module) -> None:
    """Raises StateError where a method shows weights of the model changed.

    The base's fingerprint knows the weights below: what is trained on top would be taken for a file of the plain base.
    """
    refuse_adapted(model)
    shown = (each for module in model.modules() if isinstance(module, ParametrizationList) for each in module)
    if any(type(each).__module__.startswith("glora.") for each in shown):
        raise StateError(
            f"This {type(model).__name__} has weights of a method already.",
            remedy="Build the model anew, or merge what was trained: merged().",
        )


def _layout_of(every: dict[str, nn.Module], name: str) -> tuple[str, Part, Part] | None:
    """The layout whose modules all are below this one."""
    for layout in LAYOUTS.values():
        if all(each in every for part in layout[1:] for each in _names(_absolute(name, part))):
            return layout
    return None


def _names(part: Sublayer) -> Sequence[str]:
    return (part.enters, *part.reads, part.writes, part.branch)


def _absolute(name: str, part: Part) -> Sublayer:
    def at(leaf: str) -> str:
        return f"{name}.{leaf}" if name else leaf

    enters, reads, writes, branch = part
    return Sublayer(at(enters), tuple(map(at, reads)), at(writes), at(branch))


def _width(writes: Any) -> int:
    """Outputs of the linear layer that writes to the stream; GPT-2's Conv1D calls them nf."""
    return int(getattr(writes, "out_features", 0) or getattr(writes, "nf", 0))


def _prefix(model: Any) -> int:
    """Tokens before the first patch: timm says how many, transformers' ViT has its class token."""
    said = (module.num_prefix_tokens for module in model.modules() if hasattr(module, "num_prefix_tokens"))
    return int(next(said, 1))
