"""What others put around a model or a layer: compilers, checkpointing, several devices, averages, PEFT.

A wrapper changes the names in `named_modules()` and `state_dict()`, not the model: `torch.compile(model)` has
`_orig_mod.head` where the model has `head`. Sites and files have the model's own names.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from glora.errors import StateError, listed

__all__ = ["PARTS", "bare", "plain_modules", "plain_name"]

PARTS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile and activation checkpointing, at any depth
AROUND = ("DataParallel", "AveragedModel")  # they have the model as `module`
SYNCHRONISED = ("DistributedDataParallel", "FullyShardedDataParallel")  # of the parameters that they were made with


def bare(model: nn.Module) -> nn.Module:
    """The model itself, without what is around it.

    Raises:
        StateError: It is wrapped for several processes already, or has adapters of PEFT's.
    """
    while True:
        kinds = {kind.__name__ for kind in type(model).__mro__}
        if wrapped := kinds.intersection(SYNCHRONISED):
            raise StateError(
                f"The model is in a {wrapped.pop()}, which synchronises only the parameters that it had when it was "
                "made.",
                remedy="Adapt the model that is inside, then wrap it.",
            )
        inner = next((model._modules[name] for name in PARTS if name in model._modules), None)
        if inner is None and kinds.intersection(AROUND):
            inner = model._modules["module"]
        if inner is None:
            break
        model = inner
    _refuse_peft(model)
    return model


def _refuse_peft(model: nn.Module) -> None:
    tuned = [name for name, module in model.named_modules() if type(module).__module__.startswith("peft.tuners.")]
    if tuned:
        raise StateError(
            f"The model has adapters of PEFT's already, in {listed(name or type(model).__name__ for name in tuned)}.",
            remedy="Take them off first: model = model.merge_and_unload(), or model.unload().",
        )


def plain_name(name: str) -> str:
    """A module's or tensor's name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in PARTS)


def plain_modules(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` by plain names; a wrapper itself is left out, what it wraps is not."""
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        if not any(part in module._modules for part in PARTS):
            yield plain_name(name), module
