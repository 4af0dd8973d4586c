"""A model that is as it was when what was tried on it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["as_before_on_error"]


@contextmanager
def as_before_on_error(model: nn.Module) -> Iterator[None]:
    """Modules, hooks, classes, tensors and what is trained are those of before, should the body raise.

    No tensor is copied: numbers that the body writes into a tensor of before stay written.
    """
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    modules = [(module, type(module), *_kept(module)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind, own, inside in modules:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(own)
            for name, entries in inside.items():
                own[name].clear()
                own[name].update(entries)
        for parameter, data, trained in parameters:
            parameter.data = data
            parameter.requires_grad_(trained)
        raise


def _kept(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[Any, Any]]]:
    """The attributes of the module, and the entries of those that are dictionaries: hooks hold on to them."""
    own = dict(module.__dict__)
    return own, {name: dict(value) for name, value in own.items() if isinstance(value, dict)}
