"""Running statistics of norms outside the head: frozen, or trained with the adapter and saved with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glora.adapt.head import is_inside
from glora.adapt.wrappers import plain_modules

__all__ = ["freeze_statistics", "statistics_of"]


def _tracking(model: nn.Module, head: Sequence[str]) -> dict[str, nn.Module]:
    """The modules outside the head that keep running statistics, by name."""
    return {
        name: module
        for name, module in plain_modules(model)
        if getattr(module, "track_running_stats", False) and not is_inside(name, head)
    }


def statistics_of(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The running statistics outside the head, `num_batches_tracked` included, by their names in the model."""
    return {
        f"{name}.{key}" if name else key: value
        for name, module in _tracking(model, head).items()
        for key, value in module.named_buffers(recurse=False)
    }


def freeze_statistics(model: nn.Module, head: Sequence[str]) -> list[RemovableHandle]:
    """Hooks under which running statistics outside the head stay as they are, whatever mode the model is in."""
    modes: list[bool] = []

    def before(module: nn.Module, _: Any) -> None:
        modes.append(module.training)
        module.training = False

    def after(module: nn.Module, _: Any, __: Any) -> None:
        module.training = modes.pop()

    tracking = _tracking(model, head).values()
    calls = [module.register_forward_hook(after, always_call=True) for module in tracking]
    return calls + [module.register_forward_pre_hook(before) for module in tracking]
