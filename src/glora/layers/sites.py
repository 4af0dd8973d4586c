"""Which layers of a model are sites, and which modules are its head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from glora import layers
from glora.errors import StateError, TargetError, listed, nearest
from glora.genotype import Site

__all__ = [
    "adaptable",
    "base_state",
    "fits_head",
    "freeze_statistics",
    "head_of",
    "is_inside",
    "plain_site",
    "plan_sites",
    "refuse_adapted",
    "refuse_sequence_first",
    "show_head",
]

HEAD_NAMES = ("head", "fc", "classifier", "heads", "score", "lm_head", "qa_outputs")


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
        StateError: The model is adapted already.
    """
    refuse_adapted(model)
    heads, notes = find_head(model, head)
    chosen = choose_sites(model, targets, skip, heads)
    if tied := [name for name in chosen if is_tied(model, name)]:
        notes.append(f"Not adapted, their weight is shared with another layer: {listed(tied)}.")
        chosen = {name: site for name, site in chosen.items() if name not in tied}
        if not chosen:
            raise TargetError(notes[-1], remedy="Choose other targets.")
    if odd := [n for n, module in model.named_modules() if layers.kind_of(module) and not layers.is_plain(module)]:
        notes.append(f"Not adapted, their weight is parametrized, quantized or not made yet: {listed(odd)}.")
    if bare := [name for name, site in chosen.items() if not site.bias]:
        called = called_layers(model, bare, example) if new_bias else set()
        chosen = {name: replace(site, new_bias=name in called) for name, site in chosen.items()}
        if silent := [name for name in bare if name not in called]:
            notes.append(f"C, D and E are not offered where the plain layer has no bias: {listed(silent)}.")
    return chosen, heads, tuple(notes)


def plain_site(layer: nn.Module) -> Site | None:
    """The layer's site as it was before it was adapted; None when it cannot be adapted."""
    kind = layers.kind_of(layer)
    if kind is None:
        return None
    site = kind[0].site(layer)
    adapted = site.bias and parametrize.is_parametrized(layer)
    return replace(site, bias=False) if adapted and layers.state_of(layer).new_bias else site


def refuse_sequence_first(model: nn.Module) -> None:
    """Nothing, unless a layer says that its first dimension is not the batch; raises StateError then."""
    for name, module in model.named_modules():
        if getattr(module, "batch_first", True) is False:
            kind = type(module).__name__
            raise StateError(
                f"{name or 'The model'}, a {kind}, takes sequences first: samples cannot be told apart.",
                remedy="Activate one genotype for the whole batch, or build the layer with batch_first=True.",
            )


def adaptable(model: nn.Module, head: Sequence[str] = ()) -> dict[str, Site]:
    """Every layer outside the head that can be adapted, name -> Site, in the model's order."""
    found = {}
    for name, module in model.named_modules():
        kind = layers.kind_of(module)
        if kind is not None and not is_inside(name, head) and layers.is_plain(module):
            found[name] = kind[0].site(module)
    return found


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
    for expression in (wanted,) if isinstance(wanted, str) else tuple(wanted):
        if expression in layers.WORDS:
            found = {n for n in every if isinstance(model.get_submodule(n), layers.WORDS[expression])}
        elif isinstance(wanted, str):
            try:
                found = {name for name in every if re.search(expression, name)}
            except re.error as error:
                raise TargetError(f"{argument}={expression!r} is no regular expression: {error}.") from error
        else:
            found = {name for name in every if f".{name}".endswith(f".{expression}")}
        if not found:
            raise _nothing_matches(model, every, expression, argument)
        matched |= found
    if not matched:
        raise TargetError(f"{argument} is empty.", allowed="Allowed: 'linear', a regular expression, a list of names.")
    return matched


def _nothing_matches(model: nn.Module, every: Mapping[str, Site], expression: str, argument: str) -> TargetError:
    modules = dict(model.named_modules())
    if expression in modules:
        kind = type(modules[expression]).__name__
        what = f"{argument} names {expression!r}, a {kind}: it cannot be adapted or is in the head."
    else:
        what = f"No layer of {type(model).__name__} matches {argument}={expression!r}."
    if not every:
        return TargetError(what, allowed=f"It has no layer of the types {listed(t.__name__ for t in layers.TABLE)}.")
    endings = {name.rpartition(".")[2] for name in every}
    near = nearest(expression, endings | every.keys())
    return TargetError(
        what,
        allowed=f"Adaptable layers include {listed(every)}.",
        remedy=f"Did you mean {' or '.join(map(repr, near))}?" if near else "List them with `glora ls layers MODEL`.",
    )


def refuse_adapted(model: nn.Module) -> None:
    """Raises StateError when the model is adapted already."""
    if any(isinstance(module, layers.Adapter) for module in model.modules()):
        raise StateError("The model is adapted already.", remedy="Call detach() or merge() on its Adapted first.")


def find_head(model: nn.Module, head: str | Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """The names of the modules trained whole, and what to say about them.

    Raises:
        TargetError: A name is no module of the model.
    """
    if head is None:
        return (), []
    if head == "auto":
        names = _automatic_head(model)
        if tied := [name for name in names if any(is_tied(model, n) for n in _within(model, name))]:
            note = f"The head {listed(tied)} shares its weight with another layer and stays frozen."
            return tuple(name for name in names if name not in tied), [note]
        return names, [] if names else ["No head was found to be trained whole; name its modules with head=."]
    modules = dict(model.named_modules())
    names = (head,) if isinstance(head, str) else tuple(head)
    for name in names:
        if name not in modules or not name:
            near = nearest(name, modules)
            raise TargetError(
                f"{type(model).__name__} has no module {name!r} to be the head.",
                allowed="Allowed: 'auto', module names, or None.",
                remedy=f"Near: {listed(near)}." if near else "",
            )
    return names, []


def _automatic_head(model: Any) -> tuple[str, ...]:
    """timm's classifier, transformers' output embeddings, or a child with a head's usual name."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    names = config.get("classifier") if isinstance(config, Mapping) else None
    if names is None and hasattr(model, "get_output_embeddings"):
        output = model.get_output_embeddings()
        names = tuple(name for name, module in model.named_modules() if output is not None and module is output) or None
    if names is None:
        children = dict(model.named_children())
        names = tuple(name for name in HEAD_NAMES if name in children)[:1]
    names = (names,) if isinstance(names, str) else tuple(names)
    modules = dict(model.named_modules())
    return tuple(name for name in names if name in modules and list(modules[name].parameters()))


def is_tied(model: nn.Module, name: str) -> bool:
    """Whether the layer's weight is also a parameter of another module."""
    weight = model.get_submodule(name)._parameters.get("weight")
    owners = [module for module in model.modules() for parameter in module._parameters.values() if parameter is weight]
    return weight is not None and len(owners) > 1


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


def head_of(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The head's parameters and persistent buffers, by their names in the model."""
    return {
        f"{name}.{key}" if name else key: value
        for name in head
        for key, value in model.get_submodule(name).state_dict(keep_vars=True).items()
    }


def fits_head(model: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the head can show a value: one of its own shape, or a Linear's of another width."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    shape = getattr(module, leaf).shape
    return shape == value.shape or (isinstance(module, nn.Linear) and shape[1:] == value.shape[1:])


def show_head(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Writes values into the model's head; a Linear head of another width takes the new shape.

    Raises:
        StateError: A value has another shape and its module is no Linear; nothing is written then.
    """
    if odd := [name for name, value in values.items() if not fits_head(model, name, value)]:
        raise StateError(f"The head's {listed(odd)} has another shape.", allowed="Only a Linear's width may differ.")
    with torch.no_grad():
        for name, value in values.items():
            owner, _, leaf = name.rpartition(".")
            module: Any = model.get_submodule(owner)
            current = getattr(module, leaf)
            if current.shape == value.shape:
                current.copy_(value)
            else:
                current.data = value.detach().clone().to(current)
                current.grad = None
                module.out_features = value.shape[0]


def freeze_statistics(model: nn.Module, head: Sequence[str]) -> list[RemovableHandle]:
    """Hooks under which running statistics outside the head stay as they are, whatever mode the model is in."""
    modes: list[bool] = []

    def before(module: nn.Module, _: Any) -> None:
        modes.append(module.training)
        module.training = False

    def after(module: nn.Module, _: Any, __: Any) -> None:
        module.training = modes.pop()

    tracking = [
        module
        for name, module in model.named_modules()
        if getattr(module, "track_running_stats", False) and not is_inside(name, head)
    ]
    calls = [module.register_forward_hook(after, always_call=True) for module in tracking]
    return calls + [module.register_forward_pre_hook(before) for module in tracking]


def base_state(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The base's parameters and persistent buffers by their plain names, adapted or not, without the head."""
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        plain = re.sub(r"\.?parametrizations\.(\w+)\.original$", r".\1", key).removeprefix(".")
        added = plain != key and _is_new(model, key)
        if not re.search(r"(^|\.)parametrizations\.", plain) and not added and not is_inside(plain, head):
            found[plain] = value.detach()
    return found


def _is_new(model: nn.Module, key: str) -> bool:
    """Whether the key of an attached layer is the bias that attaching created."""
    layer, _, rest = key.partition("parametrizations.")
    return rest.startswith("bias.") and layers.state_of(model.get_submodule(layer.rstrip("."))).new_bias


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether the module or tensor of this name is one of the modules or within it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _within(model: nn.Module, name: str) -> list[str]:
    return [inner for inner, _ in model.named_modules() if is_inside(inner, (name,))]
