"""Whether the layers of a model keep the samples of a batch apart, which one genotype per sample needs.

The shape of a layer's input does not show it: `(l, n, i)`, or the tokens that an expert gets, may have a first
dimension that is a multiple of n by chance. So the model is run on n copies of one sample. Where every sample has rows
of its own, next to each other, the layer's input is n equal parts then, and of the same length whichever sample is
copied.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from glora.adapt.attach import Adapter
from glora.errors import StateError

__all__ = ["guard_batch", "refuse_sequence_first"]


def refuse_sequence_first(model: nn.Module) -> None:
    """Raises StateError when a layer takes sequences first (`batch_first=False`)."""
    for name, module in model.named_modules():
        if getattr(module, "batch_first", True) is False:
            kind = type(module).__name__
            raise StateError(
                f"{name or 'The model'}, a {kind}, takes sequences first: samples cannot be told apart.",
                remedy="Activate one genotype for the whole batch, or build the layer with batch_first=True.",
            )


def guard_batch(model: nn.Module) -> RemovableHandle:
    """A hook for the time that several genotypes are active, one per sample.

    It refuses a batch of another size, and before the model's first batch finds the layers that mix samples.
    """
    return model.register_forward_pre_hook(_guard, with_kwargs=True)


def _guard(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    if kwargs is None:
        return  # torch calls, without keywords, a hook that another hook of the same pass has removed
    adapters = [inner for inner in model.modules() if isinstance(inner, Adapter)]
    active = len(adapters[0].plays)
    given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()), None)
    if active == 1:
        return
    if given is not None and given.shape[0] != active:
        raise StateError(
            f"{active} genotypes are active, one per sample, but the batch has {given.shape[0]} samples.",
            remedy="Activate one genotype per sample of the batch, or a single one.",
        )
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not traced and any(adapter.mixes_samples is None for adapter in adapters):
        _check(model, adapters, active, args, kwargs)


def _check(model: nn.Module, adapters: list[Adapter], n: int, args: Any, kwargs: Any) -> None:
    """Finds the adapters whose layers do not keep n samples apart, by a forward on copies of each of a few samples."""
    runs = [_run(model, adapters, n, each, args, kwargs) for each in sorted({0, n // 2, n - 1})]
    for adapter in adapters:
        first = runs[0][adapter]
        kept = {same for _, same in first}
        adapter.mixes_samples = any(run[adapter] != first for run in runs) or True not in kept or False in kept


def _run(
    model: nn.Module, adapters: list[Adapter], n: int, sample: int, args: Any, kwargs: Any
) -> dict[Adapter, list[tuple[int, bool | None]]]:
    """What every adapter records of its inputs on n copies of a sample; the model is as before afterwards."""

    def copies(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)  # a cache would keep them
        return value[[sample] * n] if value.dim() and len(value) == n else value

    args, kwargs = tree_map(copies, (args, kwargs))
    modes = {module: module.training for module in model.modules()}
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    try:
        for adapter in adapters:
            adapter.probe = []
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.eval()
            model.forward(*args, **kwargs)
        return {adapter: adapter.probe or [] for adapter in adapters}
    finally:
        for adapter in adapters:
            adapter.probe = None
        for module, training in modes.items():
            module.training = training
