"""Where the layers of a model keep the samples of a batch, which one genotype per sample needs.

The shape of a layer's input does not show it: `(l, n, i)`, or the tokens that an expert gets, may have a first
dimension that is a multiple of n by chance. So the model is run on n copies of one sample, of a
few samples in turn, and on all samples. Where every sample has rows of its own, the layer's input is n equal parts on
copies, of the same length whichever sample is copied, and on all samples its part is the one that it has on its copies.
The rows of a sample are next to each other, or every n-th one (`x.repeat(2, 1)`, the two halves of guidance).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from glora.adapt.attach import Adapter, Look, alike
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
    if given is None:
        return
    if given.shape[0] % active:
        raise StateError(
            f"{active} genotypes are active, one per sample, but the batch has {given.shape[0]} samples.",
            allowed="As many samples, or a multiple: those of a genotype next to each other, as beams are.",
            remedy="Activate one genotype per sample of the batch, or a single one.",
        )
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not traced and any(adapter.layout is None for adapter in adapters):
        _look(_Runs(model, adapters, active, given.shape[0], args, kwargs, []))


class _Runs(NamedTuple):
    """A model on other batches of the same samples.

    Attributes:
        model: The model. adapters: Its adapters.
        n: How many genotypes are active. rows: How many rows the batch has.
        args, kwargs: What the model is given.
        outputs: What it gave, latest last.
    """

    model: nn.Module
    adapters: list[Adapter]
    n: int
    rows: int
    args: Any
    kwargs: Any
    outputs: list[Any]

    def on(self, samples: Sequence[int]) -> dict[Adapter, list[Look]]:
        """What every adapter saw of its inputs with these samples in the batch; the model is as before afterwards.

        Args:
            samples: The sample at every place, in its own n-th part of the batch; those that are alike are made
                different before.
        """
        each = self.rows // self.n
        index = [sample * each + row for sample in samples for row in range(each)]

        def taken(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return copy.deepcopy(value)  # a cache would keep them
            if not value.dim() or len(value) != self.rows:
                return value
            return _told_apart(value, self.n)[index]

        args, kwargs = tree_map(taken, (self.args, self.kwargs))
        modes = {module: module.training for module in self.model.modules()}
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        try:
            for adapter in self.adapters:
                adapter.looks = []
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                self.model.eval()
                output = self.model.forward(*args, **kwargs)
            self.outputs.append(output)
            return {adapter: adapter.looks or [] for adapter in self.adapters}
        finally:
            for adapter in self.adapters:
                adapter.looks = None
            for module, training in modes.items():
                module.training = training


def _look(runs: _Runs) -> None:
    """Finds where the layer of every adapter keeps n samples, by forwards on a few batches."""
    n = runs.n
    copies = {sample: runs.on([sample] * n) for sample in sorted({0, n // 2, n - 1})}
    together = runs.on(range(n))
    _look_at_reads(runs)
    for adapter in runs.adapters:
        alone = {sample: run[adapter] for sample, run in copies.items()}
        if not any(alone.values()) and adapter.called_before:  # by generate(), which calls the encoder by itself
            adapter.layout = "next"
            continue
        kept = [layout for layout in ("next", "tiled") if _keeps(layout, alone, together[adapter])]
        adapter.layout = kept[0] if kept else "mixed"


def _look_at_reads(runs: _Runs) -> None:
    """Finds whether anything comes of a weight or bias that is read without a call, of whose type alone some ask."""
    readers = [adapter for adapter in runs.adapters if adapter.read == "read"]
    if not readers:
        return
    for adapter in readers:
        adapter.read = "poisoned"
    try:
        runs.on(range(runs.n))
        floats = [
            each for each in tree_leaves(runs.outputs[-1]) if isinstance(each, Tensor) and each.is_floating_point()
        ]
        used = not floats or any(bool(each.isnan().any()) for each in floats)
    except Exception:  # a model may refuse what is not finite
        used = True
    for adapter in readers:
        adapter.read = "used" if used else "unused"


def _keeps(layout: str, alone: Mapping[int, Sequence[Look]], together: Sequence[Look]) -> bool:
    """Whether every sample has a part of its own in the inputs of a layer.

    Args:
        layout: Where its rows are.
        alone: What was seen of each call on copies of a sample.
        together: On all samples.
    """
    shapes = {tuple((look.length, look.parts) for look in looks) for looks in (*alone.values(), together)}
    calls = [look for looks in alone.values() for look in looks if look.parts]
    if len(shapes) > 1 or not calls or not all(look.equal[layout] for look in calls):
        return False
    return all(
        alike(look.some[layout][sample], mine.some[layout][sample])
        for sample, looks in alone.items()
        for look, mine in zip(looks, together, strict=True)
        if look.parts
    )


def _told_apart(value: Tensor, n: int) -> Tensor:
    """Samples that are all alike, each moved and scaled in its own way; others as they are."""
    if value.dim() < 2 or value.dtype == torch.bool or not alike(parts := value.reshape(n, -1), parts[:1]):
        return value
    moved = [part.roll(place, -1) for place, part in enumerate(value.chunk(n))]
    if value.is_floating_point():
        moved = [part * (1 - place / (2 * n)) for place, part in enumerate(moved)]
    return torch.cat(moved)
