"""A batch that holds one example alone, such as the last of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["example_alone"]


@contextmanager
def example_alone(model: nn.Module, rows: int) -> Iterator[None]:
    """Within it BatchNorm reads its running statistics where one row has no others: it refuses to train on one.

    Args:
        model: In training mode.
        rows: How many rows the batch has; with more than one nothing changes.
    """
    norms = [module for module in model.modules() if rows == 1 and isinstance(module, _BatchNorm)]
    changed: list[nn.Module] = []

    def before(module: Any, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        alone = isinstance(x, Tensor) and x.dim() > 1 and x.numel() == x.shape[1]
        if alone and module.training and module.running_mean is not None:
            module.training = False
            changed.append(module)

    def after(module: nn.Module, _: Any, __: Any) -> None:
        if module in changed:
            changed.remove(module)
            module.training = True

    hooks: list[Any] = [module.register_forward_pre_hook(before) for module in norms]
    hooks += [module.register_forward_hook(after, always_call=True) for module in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
