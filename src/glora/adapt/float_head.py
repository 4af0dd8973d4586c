"""A head that is trained whole keeps its numbers in float32 while it is adapted, and computes in the base's type.

A step at a usual learning rate is smaller than the distance of two bfloat16 numbers: such a head would hardly move,
and float16 gradients cannot be unscaled. The fresh head computes what the base's does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["FloatHead", "Own", "rounded"]

LOW = (torch.bfloat16, torch.float16)


class FloatHead:
    """Makes the parameters of these modules float32 until `remove`, which rounds them once.

    Args:
        model: The model.
        head: Names of its modules that are trained whole.
    """

    def __init__(self, model: nn.Module, head: Sequence[str]) -> None:
        self._forwards: dict[nn.Module, _Rounded] = {}
        self._types = {}
        for name in head:
            module = model.get_submodule(name)
            types = {key: value.dtype for key, value in module.named_parameters() if value.dtype in LOW}
            if not types:
                continue
            for key, value in module.named_parameters():
                if key in types:
                    self._types[value] = value.dtype
                    value.data = value.data.float()
            self._forwards[module] = module.__dict__["forward"] = _Rounded(module, types)

    def remove(self) -> None:
        """Gives the modules their types and their own forward back."""
        for module, forward in self._forwards.items():
            del module.__dict__["forward"]
            if forward.replaced is not None:
                module.__dict__["forward"] = forward.replaced
        for parameter, dtype in self._types.items():
            parameter.data = parameter.data.to(dtype)
            parameter.grad = None
        self._forwards, self._types = {}, {}


def rounded(model: nn.Module) -> dict[str, Tensor]:
    """The float32 parameters of the model's heads in the types of the base, by their names."""
    found = {}
    for name, module in model.named_modules():
        forward = module.__dict__.get("forward")
        while not isinstance(forward, _Rounded) and forward is not None:
            forward = getattr(forward, "replaced", None)
        if forward is not None:
            for key, value in module.named_parameters():
                if key in forward.types:
                    found[f"{name}.{key}"] = value.detach().to(forward.types[key])
    return found


class _Rounded:
    """The forward of one module; an object, so that a deepcopy of the model has its own."""

    def __init__(self, module: nn.Module, types: dict[str, torch.dtype]) -> None:
        self.replaced = module.__dict__.get("forward")
        self._own = Own(module)
        self.types = types

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self._own.module.named_parameters()
        values = {f"module.{key}": value.to(self.types[key]) for key, value in own if key in self.types}
        return functional_call(self._own, values, args, kwargs)


class Own(nn.Module):
    """A module's own forward, so that `functional_call` runs it without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.own = module.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.own(*args, **kwargs)
