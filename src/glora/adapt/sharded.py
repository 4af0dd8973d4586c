"""Frozen weights spread over processes by torch's `fully_shard` (FSDP2); what is trained stays whole in each of them.

Every process plays genotypes of its own examples, so that gradients differ in which numbers have any: they are summed
by whoever trains. The frozen weights have none. A block's are brought together for its forward and its backward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glora.adapt.layers.quantized import is_quantized
from glora.errors import StateError, listed

__all__ = ["Held", "blocks_of", "held_bytes", "is_sharded", "refuse_sharded", "sharded", "whole"]

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")
MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


class Held(NamedTuple):
    """Bytes that a process holds of a model's numbers.

    Attributes:
        frozen: Of weights that are not trained: its part of those that are spread, all of the others.
        trained: Of those that are.
        buffers: Of running statistics and the like.
    """

    frozen: int
    trained: int
    buffers: int


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> block: the repeated parts of a model, outermost first; what stands in a list of modules of one class."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        children = dict(module.named_children())
        same = len({type(child) for child in children.values()}) == 1
        inside = any(name.startswith(f"{block}.") for block in found)
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(children) > 1 and same and not inside:
            named = {".".join(filter(None, (name, each))): child for each, child in children.items()}
            found |= {each: child for each, child in named.items() if any(True for _ in child.parameters())}
    return found


def held_bytes(model: nn.Module, trained: Iterable[nn.Parameter]) -> Held:
    """What this process holds of a model, whose weights may be spread.

    Args:
        model: Between two steps.
        trained: The parameters that are trained.
    """
    own = {id(parameter) for parameter in trained}
    every = {id(parameter): parameter for parameter in model.parameters()}
    sizes = {key: _local(parameter).numel() * parameter.element_size() for key, parameter in every.items()}
    held = sum(size for key, size in sizes.items() if key in own)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return Held(sum(sizes.values()) - held, held, buffers)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds but a part of some weight."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor, of which all processes bring their parts together where each has but one."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def refuse_sharded(model: nn.Module, action: str) -> None:
    """Raises StateError where weights that are read by themselves are in other processes."""
    if is_sharded(model):
        raise StateError(
            f"The weights are spread over processes: {action} is not possible.",
            remedy="Save the adapter, on all processes, and load it into the plain base; or leave "
            "glora.integrations.sharded first.",
        )


def _local(tensor: Any) -> Tensor:
    """This process's part of a tensor."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


@contextmanager
def sharded(model: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[nn.Module]:
    """Within it every process holds a part of the frozen weights of each block; after it all of them, to the last bit.

    All processes enter and leave it together. Within it the model can be trained and saved, all processes together,
    but not held or merged. After an error other than StateError, which all processes have, the weights stay spread.

    Args:
        model: An adapted model on its device, with torch's process group.
        trained: The parameters that are trained: they stay whole.

    Raises:
        StateError: There is no process group, no block, a quantised weight, or torch is too old.
    """
    blocks = blocks_of(model)
    _check(model, blocks)
    own = set(trained)
    kept = [_Block(block, type(block), _frozen(block, own)) for block in blocks.values()]
    from torch.distributed.device_mesh import init_device_mesh

    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for each in kept:
        _fully_shard()(each.block, mesh=mesh, reshard_after_forward=True, ignored_params=own)
    for parameter in (place.parameter for each in kept for place in each.weights):
        # others know it: its numbers go, itself comes back
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    try:
        yield model
    except StateError:
        _bring_together(kept)
        raise
    _bring_together(kept)


def _check(model: nn.Module, blocks: dict[str, nn.Module]) -> None:
    if not torch.distributed.is_initialized():
        raise StateError(
            "Weights are spread over the processes of torch's process group, and there is none.",
            remedy="Start with torchrun or accelerate launch.",
        )
    if not blocks:
        raise StateError(
            f"{type(model).__name__} has no blocks whose weights could be spread over processes.",
            allowed="Repeated modules of one class, in a ModuleList or a Sequential.",
            remedy="Leave the weights whole: train.base=whole.",
        )
    if odd := [name for name, parameter in model.named_parameters() if is_quantized(parameter)]:
        raise StateError(f"Quantised weights cannot be spread: {listed(odd)}.", remedy="Use train.base=whole.")
    if "ignored_params" not in inspect.signature(_fully_shard()).parameters:
        raise StateError(f"torch {torch.__version__} cannot leave weights whole.", remedy="Install torch 2.8 or later.")


def _fully_shard() -> Any:
    from torch.distributed.fsdp import fully_shard

    return fully_shard


class _Place(NamedTuple):
    """Where a frozen weight is."""

    module: nn.Module
    name: str
    parameter: nn.Parameter


class _Block(NamedTuple):
    """A block as it was: its class and its frozen weights."""

    block: Any
    kind: type[nn.Module]
    weights: list[_Place]


def _frozen(block: nn.Module, own: set[nn.Parameter]) -> list[_Place]:
    return [
        _Place(module, name, parameter)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter not in own
    ]


def _bring_together(kept: list[_Block]) -> None:
    """The blocks as they were, with the same parameter objects."""
    whole: dict[nn.Parameter, Tensor] = {}
    for block, _, weights in kept:
        block.reshard()
        for module, name, parameter in weights:
            if parameter not in whole:
                whole[parameter] = module._parameters[name].full_tensor().detach()  # type: ignore[union-attr]
    for parameter, numbers in whole.items():
        parameter.data = numbers
    for block, kind, weights in kept:
        for module, name, parameter in weights:
            module._parameters[name] = parameter
        _forget(block, kind)


def _forget(block: Any, kind: type[nn.Module]) -> None:
    """The block is as if it had never been spread, and can be spread again; torch has no way back."""
    from torch.distributed import _composable_state as states
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY

    block.__class__ = kind
    states._module_state_mapping.pop(block, None)
    for module in block.modules():
        for hooks in (getattr(module, name) for name in HOOKS):
            for key in [key for key, hook in hooks.items() if _is_torchs(hook)]:
                del hooks[key]
        for name in (STATE_KEY, REGISTRY_KEY, *MARKS):
            module.__dict__.pop(name, None)


def _is_torchs(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.distributed")
