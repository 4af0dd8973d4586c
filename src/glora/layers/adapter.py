"""The parametrizations through which an attached layer shows its effective weight and bias."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from glora.errors import StateError
from glora.genotype import LayerConfig
from glora.layers.view import View
from glora.support import Support

__all__ = ["Adapter", "BiasAdapter"]

log = logging.getLogger("glora")


class Adapter(nn.Module):
    """The parametrization of a weight: owns the support tensors and gives the effective weight.

    Attributes:
        name: The site's name, for messages.
        slot: The name that the weight adds to the layer's.
        view: How the layer shows the weight.
        support: The support tensors.
        plays: What the layer plays, support tensors and configuration, or one of them per sample.
        held: The effective weight and bias while a genotype is held for scoring, else None.
        said: Of which ways, "read" or "called", it was said that the first sample's genotype plays for the whole batch.
        traced: Whether a compiler has read what it plays, which is then part of the compiled code.
        ran: What it played in the latest forward pass.
        mixes: Whether the layer's input was found not to keep samples apart; None before any look (`samples.py`).
        seen: During that look the length of every input, and whether it was equal for all samples, else None.
        new_bias: Whether attaching created the bias.
        order: The plain layer's parameter names in their order.
    """

    def __init__(self, name: str, slot: str, view: View, support: Support, order: tuple[str, ...]) -> None:
        super().__init__()
        self.name = name
        self.slot = slot
        self.view = view
        self.support = support
        self.new_bias = False
        self.order = order
        self.plays: tuple[tuple[Support, LayerConfig], ...] = ((support, LayerConfig()),)
        self.held: tuple[Tensor, Tensor | None] | None = None
        self.said: tuple[str, ...] = ()
        self.traced = False
        self.mixes: bool | None = None
        self.seen: list[tuple[int, bool | None]] | None = None
        self.ran: tuple[tuple[Support, LayerConfig], ...] = self.plays

    def play(self, configs: Sequence[LayerConfig], supports: Sequence[Support] = ()) -> None:
        """Makes the layer play one configuration, or one per sample, of its own support tensors or of these."""
        self.held = None
        self.plays = tuple(zip(supports or [self.support] * len(configs), configs, strict=True))

    def mark(self) -> None:
        """Notes what a forward pass plays; refuses to play something else when gradient checkpointing repeats it.

        Raises:
            StateError: It is the backward pass, and another genotype plays than in the latest forward pass.
        """
        if torch.compiler.is_dynamo_compiling():
            if self.held is None:
                self.traced = True
        elif torch._C._current_graph_task_id() == -1:  # not within a backward pass
            self.ran = self.plays
        elif self.ran != self.plays:
            raise StateError(
                f"{self.name or 'A layer'} plays another genotype in the backward pass than in the forward pass, which "
                "gradient checkpointing repeats.",
                remedy="Activate, switch, or leave hold() after backward().",
            )

    def forward(self, original: Tensor) -> Tensor:
        self.mark()
        if self.held is not None:
            return self.held[0]
        if self.view.packed:
            return original
        support, config = self.first()
        with torch.autocast(original.device.type, enabled=False):
            return support.weight(self.view, original, config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        if self.held is not None:  # it follows the model
            weight, bias = self.held
            self.held = fn(weight), None if bias is None else fn(bias)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        if any(value is not None and not value.is_leaf for value in self.held or ()):
            raise StateError(
                f"{self.name or 'A layer'} is held for training: it cannot be copied.", remedy="Leave hold() first."
            )
        return self.__dict__

    def _replicate_for_data_parallel(self) -> NoReturn:  # a replica would play the original's support tensors
        raise StateError(
            "nn.DataParallel cannot copy an adapted model to several devices.",
            remedy="Use torch's DistributedDataParallel or accelerate, or merge first.",
        )

    def playing(self, x: Tensor) -> tuple[tuple[Support, LayerConfig], ...]:
        """What is played for the input of a call: one for all, or one per sample."""
        n = len(self.plays)
        if n == 1:
            return self.plays
        apart = self.view.tells_apart(x, n)
        if self.seen is not None:
            self.seen.append((len(x) if x.dim() else 0, _copies(x, n) if apart and x.numel() else None))
            return self.plays[:1]
        return self.plays if apart and not self.mixes else (self.first(x),)

    def first(self, x: Tensor | None = None) -> tuple[Support, LayerConfig]:
        """What the first sample plays; says it aloud when the others play something else.

        Args:
            x: The input of a call. None where the weight or bias is read without one; the layer may be called, too.
        """
        way = "read" if x is None else "called"
        if way not in self.said and any(play != self.plays[0] for play in self.plays[1:]):
            why = "where its weight or bias is read without a call"
            if x is not None:
                why = f"because samples cannot be told apart in an input of the shape {tuple(x.shape)}"
            log.warning("%s plays the first sample's genotype for the whole batch %s.", self.name or "A layer", why)
            self.said += (way,)
        return self.plays[0]


def _copies(x: Tensor, n: int) -> bool:
    """Whether the n parts of x, next to each other, are equal but for rounding, which most kernels do alike in all."""
    parts = x.detach().reshape(n, -1)
    first = parts[:1].expand_as(parts)
    different = (parts - first).abs() > 0.1 * torch.maximum(parts.abs(), first.abs())
    allowed = 0.3 if x.dtype in (torch.float16, torch.bfloat16) else 0.02
    return int(different.sum()) <= allowed * int(((parts != 0) | (first != 0)).sum())


class BiasAdapter(nn.Module):
    """The parametrization of a bias; the support tensors belong to those of the weights."""

    def __init__(self, parts: Mapping[Adapter, parametrize.ParametrizationList]) -> None:
        super().__init__()
        # past nn.Module's registration: the same tensors must not appear twice in a state dict
        object.__setattr__(self, "parts", dict(parts))

    def forward(self, original: Tensor) -> Tensor:
        flat = changed = original.flatten()  # a norm's bias may have several dimensions
        for adapter, weights in self.__dict__["parts"].items():
            part = adapter.view.part
            own = flat if part is None else flat[part]
            bias = self._of(adapter, weights, own)
            if part is None:
                return original if bias is None else bias.view_as(original)
            if bias is not None and bias is not own:
                changed = torch.cat([changed[: part.start], bias, changed[part.stop :]])
        return original if changed is flat else changed.view_as(original)

    @staticmethod
    def _of(adapter: Adapter, weights: Any, original: Tensor) -> Tensor | None:
        if adapter.held is not None:
            return adapter.held[1]
        support, config = adapter.first()
        with torch.autocast(original.device.type, enabled=False):
            return support.bias(adapter.view, weights.original, None if adapter.new_bias else original, config)
