"""What a model's modules change themselves in training, outside the head: it is frozen, as all of the base is.

The running statistics of norms are frozen, or trained with the adapter and saved with it. Other buffers that a forward
pass in training moves (the codes of a quantiser, a module's own scale) are put back after it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glora.adapt.head import is_inside
from glora.adapt.wrappers import plain_modules
from glora.errors import listed

__all__ = ["BaseBuffers", "freeze_statistics", "statistics_of"]

SMALL = 65_536  # numbers; larger integer buffers are packed weights, which nothing moves and a copy would double

log = logging.getLogger("glora")


class _Removable(Protocol):
    def remove(self) -> None: ...


def _tracking(model: nn.Module, head: Sequence[str]) -> dict[str, nn.Module]:
    """The modules outside the head that keep running statistics, by name: torch's norms, and those made like them."""

    def tracks(module: nn.Module) -> bool:
        own = not module._modules and any(name.startswith("running_") for name in module._buffers)
        return bool(getattr(module, "track_running_stats", own))

    return {name: module for name, module in plain_modules(model) if tracks(module) and not is_inside(name, head)}


def statistics_of(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The running statistics outside the head, `num_batches_tracked` included, by their names in the model."""
    return {
        f"{name}.{key}" if name else key: value
        for name, module in _tracking(model, head).items()
        for key, value in module.named_buffers(recurse=False)
    }


def freeze_statistics(model: nn.Module, head: Sequence[str]) -> list[_Removable]:
    """Hooks under which running statistics outside the head stay as they are, whatever mode the model is in."""
    modes: list[bool] = []

    def before(module: nn.Module, _: Any) -> None:
        modes.append(module.training)
        module.training = False

    def after(module: nn.Module, _: Any, __: Any) -> None:
        module.training = modes.pop()

    tracking = _tracking(model, head).values()
    calls: list[_Removable] = [module.register_forward_hook(after, always_call=True) for module in tracking]
    return calls + [module.register_forward_pre_hook(before) for module in tracking]


class BaseBuffers:
    """Keeps the base's buffers as they are: what a forward pass in training moves is put back after it, and said once.

    Not the running statistics of norms, which `freeze_statistics` is for, nor the head's, nor what no file holds. In
    evaluation buffers may move, as caches do, until `put_back`.
    """

    def __init__(self, model: nn.Module, head: Sequence[str]) -> None:
        tracking = _tracking(model, head).values()
        self._keepers: list[tuple[nn.Module, _Keeper]] = []
        for name, module in plain_modules(model):
            if module in tracking or is_inside(name, head):
                continue
            kept = {key: value for key, value in module._buffers.items() if _may_move(module, key, value)}
            if kept:
                self._keepers.append((module, _Keeper(name, kept)))
        self._hooks = [module.register_forward_hook(keeper, always_call=True) for module, keeper in self._keepers]

    def put_back(self) -> None:
        """The base's numbers, whatever has moved them."""
        for module, keeper in self._keepers:
            keeper.put_back(module)

    def remove(self) -> None:
        """Puts them back for the last time."""
        self.put_back()
        for hook in self._hooks:
            hook.remove()


def _may_move(module: nn.Module, name: str, value: Tensor | None) -> bool:
    plain = type(value) is Tensor and not value.is_meta and name not in module._non_persistent_buffers_set
    return plain and value is not None and (value.is_floating_point() or value.numel() <= SMALL)


class _Keeper:
    """The hook of one module; it refers to no module, so that a deepcopy of the model has its own."""

    def __init__(self, module: str, buffers: dict[str, Any]) -> None:
        self._module = module
        self._seen = {name: (value, value._version) for name, value in buffers.items()}
        self._kept = {name: value.detach().clone() for name, value in buffers.items()}
        self._said = False

    def __call__(self, module: nn.Module, _: Any, __: Any) -> None:
        if not module.training or torch.compiler.is_compiling():
            return
        if (moved := self.put_back(module)) and not self._said:
            self._said = True
            log.warning(
                "%s moves in training. It is the base's, which stays as it is: it is put back after every pass.",
                listed(f"{self._module}.{name}".removeprefix(".") for name in moved),
            )

    def put_back(self, module: nn.Module) -> list[str]:
        """Names of the buffers that had moved: the module has new ones, since a backward pass may need the moved."""
        moved = []
        for name, kept in self._kept.items():
            now = module._buffers.get(name)
            seen, version = self._seen[name]
            if now is None or (now is seen and now._version == version):
                continue
            if now.shape != kept.shape or not torch.equal(now, kept.to(now)):
                moved.append(name)
                now = module._buffers[name] = kept.to(now, copy=True)
            self._seen[name] = now, now._version
        return moved
