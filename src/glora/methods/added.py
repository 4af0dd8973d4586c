"""Modules added to the blocks of a transformer, beside its own: what adapters, AdaptFormer and prompts share.

They are a block's child of the name `added`: they move, copy and save with the model, and their hooks are methods of
their own, so that those of a copied model are the copy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glora.errors import StateError
from glora.methods.method import Method
from glora.methods.numbers import TunedNumbers

__all__ = ["ACTIVATIONS", "ADDED", "Bottleneck", "TunedAdded", "place"]

ADDED = "added"


def quick_gelu(x: Tensor) -> Tensor:
    """`x sigmoid(1.702 x)`, of the shape of x."""
    return x * torch.sigmoid(1.702 * x)


def identity(x: Tensor) -> Tensor:
    """x."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "quick_gelu": quick_gelu,
    "relu": nn.functional.relu,
    "identity": identity,
}


class Down(nn.Module):
    """`x W^T + b`, of fewer features. No `nn.Linear`: PACE perturbs what an adapter adds, which is what `up` gives."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, width))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Bottleneck(nn.Module):
    """`up drop(activation(down x))`, `(..., width)` of `(..., width)`; made so that it gives zeros.

    The random factor is Kaiming-uniform with a = sqrt(5), as `nn.Linear` is; `up` and both biases are zero.

    Args:
        width: Features in and out.
        hidden: Features between.
        activation: A name of `ACTIVATIONS`.
        dropout: Chance that training leaves out a feature between.
        generator: What is drawn comes from it.
    """

    def __init__(self, width: int, hidden: int, *, activation: str, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = dropout
        self.down = Down(width, hidden)
        self.up: nn.Linear = nn.utils.skip_init(nn.Linear, hidden, width)  # type: ignore[no-untyped-call]
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        between = ACTIVATIONS[self.activation](self.down(x.to(self.down.weight.dtype)))
        y: Tensor = self.up(nn.functional.dropout(between, self.dropout, self.training))
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.activation}, dropout={self.dropout:g}"


def place(model: nn.Module, host: str, module: nn.Module) -> None:
    """Makes a module the child `added` of another, on its device, in its mode, in float32 or, where it has it, float64.

    Args:
        model: The model.
        host: Name of the module that gets the child: no container, whose forward would call it.
        module: The child.

    Raises:
        StateError: There is such a child already.
    """
    parent = model.get_submodule(host)
    if hasattr(parent, ADDED):
        raise StateError(
            f"{host} has modules of a method already.", remedy="Build the model anew, or remove() what was added."
        )
    some = next(parent.parameters())
    dtype = torch.float64 if some.dtype == torch.float64 else torch.float32
    parent.add_module(ADDED, module.to(some.device, dtype).train(parent.training))


class TunedAdded(TunedNumbers):
    """A model that is trained in the modules added to it, and nothing but them and the head.

    Args:
        method: The settings.
        model: The model, the modules in place.
        head: Names of the modules trained whole.
        hosts: Names of the modules that have a child `added`.
        undo: What takes the hooks out again.
        own: The model's own parameters that are trained as well, by name.
        no_merge: Why it cannot be merged; empty where it can.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        head: Sequence[str],
        *,
        hosts: Sequence[str],
        undo: Sequence[RemovableHandle | Callable[[], None]],
        own: Mapping[str, nn.Parameter] | None = None,
        no_merge: str = "",
    ) -> None:
        added = {
            f"{host}.{ADDED}.{name}": parameter
            for host in hosts
            for name, parameter in model.get_submodule(f"{host}.{ADDED}").named_parameters()
        }
        super().__init__(method, model, {**(own or {}), **added}, head)
        self.no_merge = no_merge
        self.hosts = tuple(hosts)
        self.added = tuple(added)
        self._undo = list(undo)

    @property
    def new_keys(self) -> tuple[str, ...]:
        return self.added if self.no_merge else ()

    def merged(self) -> nn.Module:
        if not self.no_merge and self._undo:
            self.fold()
            self.remove()
        return super().merged()

    def fold(self) -> None:
        """Writes what the added modules do into the model's own weights, where it can be merged."""
        raise NotImplementedError

    def remove(self) -> None:
        """Takes all that was added out of the model: it plays as before, but for head and own parameters trained."""
        for each in self._undo:
            if isinstance(each, RemovableHandle):
                each.remove()
            else:
                each()
        self._undo = []
        for host in self.hosts:
            parent: Any = self.model.get_submodule(host)
            if ADDED in parent._modules:
                delattr(parent, ADDED)
