"""AdaptFormer (arXiv 2205.13535): a small network beside the MLP of every block of a transformer.

    out = x' + MLP(norm(x')) + s (W2 relu(W1 x' + b1) + b2),  x' the stream after attention

W1 is Kaiming-uniform with a = sqrt(5); W2, b1 and b2 are zero: step 0 is the pretrained network.

Departures: none from the authors' code. It feeds the branch x' itself, where Eq. 3 of the paper (and of GLoRA's) has
norm(x'); the branch is outside stochastic depth. The hidden width is 8, which gives the 0.16 M of GLoRA's Table 1;
the code's default is 64. The BatchNorm that the authors put before the head is not part of the method here. A trained
scale starts at `scale`, one number a block, where theirs starts at 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from glora.errors import TargetError
from glora.methods.added import Bottleneck, TunedAdded, place
from glora.methods.blocks import Block, find_blocks
from glora.methods.method import Method

__all__ = ["AdaptFormer"]


class Beside(Bottleneck):
    """A bottleneck that reads what goes into one module and is added, times a scale, to what comes out of a later one.

    Between the two, which is within one forward of their block, it holds the stream.
    """

    scale: float | nn.Parameter
    _stream: Tensor | None = None

    def read(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """The hook before the first module of the sublayer."""
        self._stream = args[0]

    def join(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """The hook after the module whose output goes to the stream."""
        assert self._stream is not None
        added: Tensor = self.scale * self(self._stream)
        self._stream = None
        return output + added.to(output.dtype)

    def forget(self, _: nn.Module, __: Any, ___: Any) -> None:
        """The hook after the block, also where its forward is broken off, as gradient checkpointing does."""
        self._stream = None


class AdaptFormer(Method):
    """A bottleneck beside each MLP of a transformer, which reads the stream without its norm. It does not merge."""

    lr = 1e-3

    name: Literal["adaptformer"] = "adaptformer"
    hidden: int = Field(8, ge=1, description="Width of the bottleneck.")
    scale: float = Field(0.1, gt=0, description="What the bottleneck's output is multiplied by, s.")
    scaling: Literal["fixed", "trained"] = Field(
        "fixed", description="trained: s is a number of each block, which starts at `scale`."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="In the bottleneck, after its activation.")

    @property
    def title(self) -> str:
        return "AdaptFormer"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdded:
        blocks = find_blocks(model, "AdaptFormer").blocks
        generator = torch.Generator().manual_seed(seed)
        hooks = []
        for block in blocks:
            _check_width(model, block)
        for block in blocks:
            beside = Beside(block.width, self.hidden, activation="relu", dropout=self.dropout, generator=generator)
            beside.scale = nn.Parameter(torch.tensor([self.scale])) if self.scaling == "trained" else self.scale
            place(model, block.name, nn.ModuleDict({"mlp": beside}))
            hooks += [
                model.get_submodule(block.mlp.enters).register_forward_pre_hook(beside.read),
                model.get_submodule(block.mlp.branch).register_forward_hook(beside.join),
                model.get_submodule(block.name).register_forward_hook(beside.forget, always_call=True),
            ]
        return TunedAdded(
            self,
            model,
            head,
            hosts=[block.name for block in blocks],
            undo=hooks,
            no_merge="it goes around the norm and the MLP, and its activation is not linear",
        )


def _check_width(model: nn.Module, block: Block) -> None:
    """Raises TargetError where the MLP gives tokens of another width than it gets: the branch could not be added."""
    reads: Any = model.get_submodule(block.mlp.reads[0])
    width = getattr(reads, "in_features", None) or reads.nx  # of transformers' Conv1D
    if width != block.width:
        raise TargetError(
            f"AdaptFormer reads what it adds to, and {block.name} makes {block.width} numbers a token of {width}.",
            allowed="A network whose width changes between its blocks.",
            remedy="Choose another method: adapter, lora, glora.",
        )
