"""Which layers of a model are sites."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from glora import layers
from glora.errors import StateError, TargetError, listed, nearest, several
from glora.genotype import Site
from glora.layers.head import find_head
from glora.layers.places import Place, adaptable, holders, is_inside

__all__ = ["choose_sites", "plan_sites", "refuse_adapted"]

WORDS = ", ".join(map(repr, layers.WORDS))


def plan_sites(
    model: nn.Module,
    *,
    targets: str | Sequence[str],
    skip: str | Sequence[str],
    head: str | Sequence[str] | None,
    new_bias: bool,
    example: Any,
) -> tuple[dict[str, Site], tuple[str, ...], tuple[str, ...]]:
    """The sites, the head's modules, and notes on what is not offered; the arguments are those of `glora.inject`.

    Raises:
        TargetError: Nothing matches, or a name is unknown.
        StateError: The model is adapted already, or has parameters that are not made yet.
    """
    refuse_adapted(model)
    refuse_unmade(model)
    if isinstance(targets, Iterator):  # it is read more than once
        targets = tuple(targets)
    heads, notes = find_head(model, head)
    every = holders(model)
    chosen = choose_sites(model, targets, skip, heads)
    notes += _notes_on_sharing(model, every, chosen, heads)
    if odd := _odd(model, {site.kind for site in chosen.values()}):
        what = "their weight is quantised in another way than weight-only, parametrized, none, or made later"
        notes.append(f"Not adapted, {what}, or their forward renormalises it or wants sparse gradients: {listed(odd)}.")
    if "all" in ([targets] if isinstance(targets, str) else targets) and (loose := _loose(model, every, heads)):
        notes.append(f"Not adapted, their parameters are of no layer type that is known: {listed(loose)}.")
    if bare := [n for n, site in chosen.items() if not (site.bias or site.diagonal) and every[n][0].view.bias]:
        lone = [every[name][0] for name in bare if len(every[name]) == 1]
        single = [place.name for place in lone if place.view.new_bias and place.bias is None]
        called = called_layers(model, single, example) if new_bias and single else set()
        chosen |= {name: replace(chosen[name], new_bias=name in called) for name in bare}
        if silent := [name for name in bare if name not in called]:
            notes.append(f"C, D and E are not offered where the plain layer has no bias of its own: {listed(silent)}.")
    return chosen, heads, tuple(notes)


def _loose(model: nn.Module, every: Mapping[str, Sequence[Place]], heads: Sequence[str]) -> list[str]:
    """Modules outside the head with parameters of their own that are neither a weight nor a bias of a site."""
    known = {id(tensor) for group in every.values() for place in group for tensor in (place.weight, place.bias)}
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if not is_inside(name, heads) and not layers.row_of(module)
        if any(value is not None and id(value) not in known for value in module._parameters.values())
    ]


def _odd(model: nn.Module, kinds: set[str]) -> list[str]:
    """The layers of these kinds that hold something themselves, but no weight to adapt."""

    def holds(module: nn.Module) -> bool:
        own = (*module._parameters.values(), *module._buffers.values())
        return is_parametrized(module) or any(value is not None for value in own)

    rows = ((name, module, layers.row_of(module)) for name, module in model.named_modules())
    return [n for n, m, row in rows if row and row[0].kind in kinds and holds(m) and not layers.views_of(m)]


def _notes_on_sharing(
    model: nn.Module, every: Mapping[str, Sequence[Place]], chosen: Mapping[str, Site], heads: Sequence[str]
) -> list[str]:
    notes = []
    if tied := [" = ".join(place.name for place in every[name]) for name in chosen if len(every[name]) > 1]:
        notes.append(f"A shared weight is one site, adapted in all its layers, A and B alone: {listed(tied)}.")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    twice = [" = ".join(names[place.layer]) for site in chosen for place in every[site] if len(names[place.layer]) > 1]
    if twice:
        notes.append(f"A layer used under several names is one site: {listed(twice)}.")
    kinds = {site.kind for site in chosen.values()}
    fit = adaptable(model, heads)
    other = [
        " = ".join(place.name for place in every[name])
        for name in fit
        if name not in chosen and kinds & {place.site.kind for place in every[name][1:]}
    ]
    if other:
        notes.append(f"Not adapted, their weight is another layer's too; name it to adapt it in both: {listed(other)}.")
    lone = [n for n, group in every.items() if n not in fit and not any(is_inside(p.module, heads) for p in group)]
    if lone:
        notes.append(f"Not adapted, their weight is shared with what cannot be adapted: {listed(lone)}.")
    return notes


def refuse_adapted(model: nn.Module) -> None:
    """Raises StateError when the model is adapted already."""
    if any(isinstance(module, layers.Adapter) for module in model.modules()):
        raise StateError("The model is adapted already.", remedy="Call detach() or merge() on its Adapted first.")


def refuse_unmade(model: nn.Module) -> None:
    """Raises StateError when a lazy layer has seen no input yet: its parameters cannot be frozen."""
    if names := [name for name, each in model.named_parameters() if isinstance(each, nn.UninitializedParameter)]:
        raise StateError(
            f"Parameters are not made yet: {listed(names)}.", remedy="Call the model once on an input, then inject."
        )


def choose_sites(
    model: nn.Module, targets: str | Sequence[str], skip: str | Sequence[str], head: Sequence[str]
) -> dict[str, Site]:
    """The layers that `targets` names and `skip` does not, name -> Site, in the model's order.

    Raises:
        TargetError: An expression is no regular expression, or matches nothing.
    """
    every = adaptable(model, head)
    chosen = _matching(model, every, targets, "targets")
    left_out = _matching(model, every, skip, "skip") if skip else set()
    if not chosen - left_out:
        raise TargetError(f"skip={skip!r} leaves out every layer that targets={targets!r} matches.")
    return {name: site for name, site in every.items() if name in chosen and name not in left_out}


def _matching(model: nn.Module, every: Mapping[str, Site], wanted: str | Sequence[str], argument: str) -> set[str]:
    matched: set[str] = set()
    at = holders(model)
    for expression in several(wanted, str, TargetError, argument, f"{WORDS}, a regular expression, a list of names"):
        if expression in layers.WORDS:
            found = {name for name, site in every.items() if site.kind in layers.WORDS[expression]}
        elif isinstance(wanted, str):
            try:
                found = {name for name in every if any(re.search(expression, p.name) for p in at[name])}
            except re.error as error:
                raise TargetError(f"{argument}={expression!r} is no regular expression: {error}.") from error
        else:
            found = {name for name in every if any(f".{p.name}".endswith(f".{expression}") for p in at[name])}
        if not found:
            raise _nothing_matches(model, every, expression, argument)
        matched |= found
    if not matched:
        raise TargetError(f"{argument} is empty.", allowed=f"Allowed: {WORDS}, a regular expression, a list of names.")
    return matched


def _nothing_matches(model: nn.Module, every: Mapping[str, Site], expression: str, argument: str) -> TargetError:
    modules = dict(model.named_modules())
    if expression in modules:
        kind = type(modules[expression]).__name__
        what = f"{argument} names {expression!r}, a {kind}: it cannot be adapted or is in the head."
    else:
        what = f"No layer of {type(model).__name__} matches {argument}={expression!r}."
    if not every:
        return TargetError(
            what, allowed=f"It has no layer of the types {listed(name.rpartition('.')[2] for name in layers.TABLE)}."
        )
    endings = {name.rpartition(".")[2] for name in every}
    near = nearest(expression, endings | every.keys())
    return TargetError(
        what,
        allowed=f"Adaptable layers include {listed(every)}.",
        remedy=f"Did you mean {' or '.join(map(repr, near))}?" if near else "List them with `glora ls layers MODEL`.",
    )


def called_layers(model: nn.Module, names: Sequence[str], example: Any) -> set[str]:
    """Which of the layers the model really calls, by one probe forward.

    Args:
        example: An input, a tuple or a dict of inputs; None: an image of the size that a timm model tells.

    Raises:
        TargetError: There is no example and the model tells no input size.
    """
    if example is None:
        like = next(model.parameters())
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        config = getattr(model, "pretrained_cfg", None) or {}
        size = (3, *size) if size else config.get("input_size")
        if not size:
            raise TargetError(
                "new_bias=True needs one forward pass to find the layers that the model calls.",
                remedy="Give an input: inject(..., example=x).",
            )
        example = torch.zeros(1, *size, dtype=like.dtype, device=like.device)
    called: set[str] = set()
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, __, name=name: called.add(name)) for name in names
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return called
