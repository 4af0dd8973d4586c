"""Parameters of a half-precision base that are trained themselves keep their numbers in float32 meanwhile.

The step of a usual learning rate is smaller than the distance of two bfloat16 numbers, and would be lost. The layers go
on reading the base's type: the untrained model computes what the base does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from glora.adapt.float_head import LOW
from glora.adapt.head import is_inside
from glora.errors import listed

__all__ = ["FloatNumbers", "low_types", "plain_again"]


def low_types(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, torch.dtype]:
    """Those of the parameters that are bfloat16 or float16, and which of the two."""
    return {each: each.dtype for each in parameters if each.dtype in LOW}


class FloatNumbers:
    """Makes parameters float32 until `remove`, which rounds them once.

    Args:
        model: The model.
        types: The parameters, and the types that their layers go on reading.
        head: Names of the modules trained whole, which round their own (`FloatHead`).

    Attributes:
        notes: What a user should be told of it. Kernels of recurrent layers read their parameters elsewhere: those stay
            as they are.
    """

    def __init__(self, model: nn.Module, types: Mapping[nn.Parameter, torch.dtype], head: Sequence[str]) -> None:
        self._types: dict[nn.Parameter, torch.dtype] = {}
        self._order: dict[nn.Module, tuple[str, ...]] = {}
        left: list[str] = []
        for name, module in list(model.named_modules()):
            for leaf, parameter in list(module._parameters.items()):
                if parameter not in types or is_inside(name, head):
                    continue
                if isinstance(module, nn.RNNBase):
                    left.append(f"{name}.{leaf}")
                    continue
                self._order.setdefault(module, tuple(module._parameters))
                self._types[parameter] = types[parameter]
                parametrize.register_parametrization(module, leaf, _Rounded(types[parameter]), unsafe=True)
        for parameter in self._types:
            parameter.data = parameter.data.float()
        self.notes: tuple[str, ...] = ()
        if self._types:
            self.notes += ("What is trained of this half-precision base is kept in float32 until it is merged.",)
        if left:
            self.notes += (f"Trained in half precision, in which small steps are lost: {listed(left)}.",)

    def remove(self) -> None:
        """Gives the layers their classes, their parameters and their types back."""
        for module, order in self._order.items():
            plain_again(module, order)
        for parameter, dtype in self._types.items():
            parameter.data = parameter.data.to(dtype)
            parameter.grad = None
        self._order, self._types = {}, {}


def plain_again(module: Any, order: Sequence[str]) -> None:
    """The module as it was before it was parametrized: class, parameter objects and their order.

    By hand, as `glora.adapt.attach.detach` does and says why.
    """
    parameters = module._parameters | {name: each.original for name, each in module.parametrizations.items()}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    module._parameters.clear()
    module._parameters.update({name: parameters[name] for name in order})


class _Rounded(nn.Module):
    """The parametrization: the numbers in the base's type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.dtype)
