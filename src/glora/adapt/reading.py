"""Adapters to be read, whoever wrote them: this library, or another; and a supernet that starts from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from glora.adapt import adapter_format
from glora.adapt.foreign import is_foreign, read_foreign
from glora.adapt.state import AdapterState
from glora.adapt.support import Support
from glora.errors import StateError, listed
from glora.genotype import TENSORS, Choice, Genotype, LayerConfig
from glora.space import BoundSpace, is_matrix

__all__ = ["grow", "read_state"]


def read_state(
    model: nn.Module, path: str | Path, *, check_base: bool = True, base_fingerprint: str | None = None
) -> AdapterState:
    """The adapter at the path, checked against the model that it is for.

    Args:
        model: The base, plain or adapted.
        path: An adapter file of this library, a folder of PEFT's, or a checkpoint of the authors' code. The files of
            others know no fingerprint of their base: names and shapes alone are compared.
        check_base, base_fingerprint: As `adapter_format.read_state` has them.

    Raises:
        AdapterFileError: It is damaged, does not fit the model, or has what has no counterpart.
    """
    if is_foreign(path):
        return read_foreign(model, path)
    return adapter_format.read_state(model, path, check_base=check_base, base_fingerprint=base_fingerprint)


def grow(supports: Mapping[str, Support], space: BoundSpace, state: AdapterState) -> Genotype:
    """Writes one genotype's numbers into the larger support tensors of a space, as the slices that it reads there.

    Args:
        supports: Of every site, fresh: what is not written stays.
        space: The space that they belong to.
        state: An adapter of one genotype at some of these sites.

    Returns:
        The genotype of the space that plays what the state plays; elsewhere the sites do nothing.

    Raises:
        StateError: The space has no such site or choice; nothing is written then.
    """
    if state.genotype is None:
        raise StateError("A whole supernet is no start for another.", remedy="Save an adapter of one genotype.")
    if lost := [name for name in state.sites if name not in space.sites]:
        raise StateError(f"The model is not adapted at {listed(lost)}.", remedy="Inject with these among the targets.")
    found = {
        name: _place(name, config, space, state) if (config := state.genotype.get(name)) else LayerConfig()
        for name in space.sites
    }
    with torch.no_grad():
        for name, config in state.genotype.items():
            for tensor in TENSORS:
                if (choice := getattr(config, tensor)).kind != "none":
                    _fill(supports[name], name, tensor, choice, state)
    return Genotype(found)


def _place(name: str, config: LayerConfig, space: BoundSpace, state: AdapterState) -> LayerConfig:
    """The choices of the space that hold a site's: the same, or a LoRA of the next larger rank."""
    site, chosen = space.sites[name], {}
    one, other = (is_matrix(site, product) for product in (state.space.product, space.rules.product))
    if config.A.kind != "none" and one is not other:
        raise StateError(
            f"{name}: its A is read as the {state.space.product} product, not as the {space.rules.product} one.",
            remedy=f"Inject with SearchSpace(product={state.space.product!r}).",
        )
    for tensor, offered in zip(TENSORS, space.options[name], strict=True):
        choice: Choice = getattr(config, tensor)
        larger = [each for each in offered if each.kind == choice.kind and each.rank >= choice.rank]
        if not larger:
            raise StateError(
                f"{name}: the space has no place for {tensor} {choice}.",
                allowed=f"Offered there: {', '.join(map(str, offered))}.",
                remedy="Offer a rank that is as large, and variant='paper' for all choices.",
            )
        chosen[tensor] = str(min(larger, key=lambda each: each.rank))
    return LayerConfig(**chosen)


def _fill(support: Support, name: str, tensor: str, choice: Choice, state: AdapterState) -> None:
    """Writes the factors of one choice, so that with the scale here they are what they were with theirs."""
    theirs = state.scales.get(name, {}).get(f"{tensor}.{choice.kind}", 1.0)
    mine, whole = support.scale(tensor, choice), support.whole(tensor)
    down, up = (state.tensors.get(f"{name}.{tensor}.{side}") for side in ("down", "up"))
    assert down is not None
    if up is None:
        _write(whole["down"], down * (theirs / mine))
        return
    whole["down"].zero_()
    _write(whole["down"], down * theirs)
    _write(whole["up"], up / mine)


def _write(whole: Tensor, part: Tensor) -> None:
    whole[tuple(map(slice, part.shape))] = part.to(whole)
