"""Which weights of a model are sites, and what is said of those that are not.

`plan_sites` chooses them for `inject`. Below it are the parts: the weights that layers have, those that can be adapted,
which of them `targets` and `skip` name, which layers are called, and what counts as the base.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from glora.adapt import attach, layers
from glora.adapt.head import find_head, is_inside, output_layers
from glora.adapt.layers.quantized import plain_parts
from glora.adapt.sharded import is_sharded, whole
from glora.adapt.wrappers import plain_modules, plain_name
from glora.errors import StateError, TargetError, listed, nearest, several
from glora.genotype import TENSORS, Site
from glora.space import BoundSpace

__all__ = [
    "LayerWeight",
    "adaptable",
    "base_state",
    "called_layers",
    "choose_sites",
    "layer_weights",
    "notes_on_biases",
    "own_example",
    "plan_sites",
    "refuse_adapted",
    "refuse_broken",
    "refuse_offloaded",
    "site_of",
    "weights_by_site",
]

D = TENSORS.index("D")
ALLOWED = f"{', '.join(map(repr, layers.WORDS))}, a regular expression, a list of names"  # as targets and skip


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
    refuse_offloaded(model)
    refuse_broken(model)
    if isinstance(targets, Iterator):  # it is read more than once
        targets = tuple(targets)
    heads, notes = find_head(model, head)
    every = weights_by_site(model)
    chosen = choose_sites(model, targets, skip, heads)
    alone = [name for name in output_layers(model) if name in every and not is_inside(name, heads)]
    if left := [name for name in alone if name not in chosen]:
        notes.append(f"A language model's output layer is no target unless it is named: {listed(left)}.")
    notes += _notes_on_weights(model, every, chosen, heads)
    notes += _notes_on_sharing(model, every, chosen, heads)
    if odd := _odd(model, {site.kind for site in chosen.values()}):
        what = "their weight is quantised in another way than weight-only, parametrized, none, or made later"
        notes.append(f"Not adapted, {what}, or their forward renormalises it or wants sparse gradients: {listed(odd)}.")
    if "all" in ([targets] if isinstance(targets, str) else targets) and (loose := _loose(model, every, heads)):
        notes.append(f"Not adapted, their parameters are of no layer type that is known: {listed(loose)}.")
    if bare := [n for n, site in chosen.items() if not (site.bias or site.diagonal) and every[n][0].view.bias]:
        lone = [every[name][0] for name in bare if len(every[name]) == 1]
        single = [weight.name for weight in lone if weight.view.new_bias and weight.bias is None]
        called = called_layers(model, single, example) if new_bias and single else set()
        chosen |= {name: replace(chosen[name], new_bias=name in called) for name in bare}
    return chosen, heads, tuple(notes)


def _notes_on_weights(
    model: nn.Module, every: Mapping[str, Sequence[LayerWeight]], chosen: Mapping[str, Site], heads: Sequence[str]
) -> list[str]:
    notes = []
    if fresh := _not_loaded(model, heads):
        notes.append(
            f"Random and frozen, the pretrained weights had none: {listed(fresh)}. No adapter file has them: name "
            "their modules in head= too, to be trained whole and saved."
        )
    if experts := _stacked(model, heads):
        share = sum(experts.values()) / max(1, sum(value.numel() for value in model.parameters()))
        notes.append(f"Not adapted, stacks of matrices and no layers, {share:.0%} of the model: {listed(experts)}.")
    return notes


def notes_on_biases(model: nn.Module, space: BoundSpace) -> tuple[str, ...]:
    """Where C, D or E cannot be or D does nothing, of those that the space offers; asked before a model is adapted."""
    every, only = weights_by_site(model), space.rules.only
    notes = []
    bare = [name for name, site in space.sites.items() if not (site.bias or site.new_bias or site.diagonal)]
    shifts = only is None or any(each.kind != "none" for each in (only.C, only.D, only.E))
    if shifts and (silent := [name for name in bare if every[name][0].view.bias]):
        notes.append(f"C, D and E are not offered where the plain layer has no bias of its own: {listed(silent)}.")
    scaled = [name for name, options in space.options.items() if any(each.kind != "none" for each in options[D])]
    if unmoved := [name for name in scaled if space.sites[name].bias and _zero_bias(every[name])]:
        notes.append(f"D scales the plain bias, which is all zeros and stays so whatever D is: {listed(unmoved)}.")
    return tuple(notes)


def _zero_bias(group: Sequence[LayerWeight]) -> bool:
    """Whether a site has a bias whose numbers are all zeros, as fresh norms have."""
    bias = group[0].bias
    return bias is not None and type(bias) is nn.Parameter and not bias.is_meta and not bias.detach().any()


def _not_loaded(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Parameters outside the head that transformers' `from_pretrained` found no weights for, as its marks tell."""
    every = dict(model.named_parameters())
    loaded = {name for name, value in every.items() if getattr(value, "_is_hf_initialized", False)}
    floats = {name for name, value in every.items() if type(value) is nn.Parameter and value.is_floating_point()}
    fresh = floats - loaded if loaded else set()
    return [name for name in every if name in fresh and not is_inside(plain_name(name), heads)]


def refuse_adapted(model: nn.Module) -> None:
    """Raises StateError when the model is adapted already."""
    if any(isinstance(module, attach.Adapter) for module in model.modules()):
        raise StateError("The model is adapted already.", remedy="Call detach() or merge() on its Adapted first.")


def refuse_unmade(model: nn.Module) -> None:
    """Raises StateError when a lazy layer has seen no input yet: its parameters cannot be frozen."""
    if names := [name for name, each in model.named_parameters() if isinstance(each, nn.UninitializedParameter)]:
        raise StateError(
            f"Parameters are not made yet: {listed(names)}.", remedy="Call the model once on an input, then inject."
        )


def refuse_broken(model: nn.Module) -> None:
    """Raises StateError when a parameter has a NaN or infinity: nothing that is learned on it could be used."""
    for name, value in model.named_parameters():
        if type(value) is not nn.Parameter or value.is_meta or not value.is_floating_point():
            continue
        # a sum is one pass and finite where every number is, unless it overflows
        if not value.detach().sum().isfinite() and (count := int((~value.detach().isfinite()).sum())):
            raise StateError(
                f"The model's {plain_name(name)} has {count:,} NaN or infinite of {value.numel():,} numbers.",
                remedy="Load its weights again: the checkpoint is damaged, or was written by a training that diverged.",
            )


def refuse_offloaded(model: nn.Module) -> None:
    """Raises StateError where accelerate has taken weights off, and brings them back for a forward alone."""
    away = [
        name
        for name, module in plain_modules(model)
        if any(value.is_meta for value in module.parameters(recurse=False)) and hasattr(module, "_hf_hook")
    ]
    if away:
        raise StateError(
            f"The weights of {listed(away)} are offloaded: they cannot be adapted, saved or merged.",
            allowed="Weights in memory.",
            remedy="Take accelerate's hooks off, remove_hook_from_module(model, recurse=True); adapted, the model can "
            "be offloaded with preload_module_classes=['ParametrizedLinear'], to be run.",
        )


def _notes_on_sharing(
    model: nn.Module, every: Mapping[str, Sequence[LayerWeight]], chosen: Mapping[str, Site], heads: Sequence[str]
) -> list[str]:
    notes = []
    if tied := [" = ".join(weight.name for weight in every[name]) for name in chosen if len(every[name]) > 1]:
        notes.append(f"A shared weight is one site, adapted in all its layers, A and B alone: {listed(tied)}.")
    names: dict[nn.Module, list[str]] = {}
    for name, module in plain_modules(model, remove_duplicate=False):
        names.setdefault(module, []).append(name)
    twice = [
        " = ".join(names[weight.layer]) for site in chosen for weight in every[site] if len(names[weight.layer]) > 1
    ]
    if twice:
        notes.append(f"A layer used under several names is one site: {listed(twice)}.")
    kinds = {site.kind for site in chosen.values()}
    fit = adaptable(model, heads)
    other = [
        " = ".join(weight.name for weight in every[name])
        for name in fit
        if name not in chosen and kinds & {weight.site.kind for weight in every[name][1:]}
    ]
    if other:
        notes.append(f"Not adapted, their weight is another layer's too; name it to adapt it in both: {listed(other)}.")
    lone = [n for n, group in every.items() if n not in fit and not any(is_inside(p.module, heads) for p in group)]
    if lone:
        notes.append(f"Not adapted, their weight is shared with what cannot be adapted: {listed(lone)}.")
    return notes


def _odd(model: nn.Module, kinds: set[str]) -> list[str]:
    """The layers of these kinds that hold something themselves, but no weight to adapt."""

    def holds(module: nn.Module) -> bool:
        own = (*module._parameters.values(), *module._buffers.values())
        return is_parametrized(module) or any(value is not None for value in own)

    rows = ((name, module, layers.row_of(module)) for name, module in plain_modules(model))
    return [n for n, m, row in rows if row and row[0].kind in kinds and holds(m) and not layers.views_of(m)]


def _loose(model: nn.Module, every: Mapping[str, Sequence[LayerWeight]], heads: Sequence[str]) -> list[str]:
    """Modules outside the head with parameters of their own that are neither a weight nor a bias of a site."""
    adapted = {id(tensor) for group in every.values() for each in group for tensor in (each.weight, each.bias)}
    return [
        name or type(module).__name__
        for name, module in plain_modules(model)
        if not is_inside(name, heads) and not layers.row_of(module)
        if any(value is not None and id(value) not in adapted for value in module._parameters.values())
    ]


def _stacked(model: nn.Module, heads: Sequence[str]) -> dict[str, int]:
    """The parameters outside the head that are stacks of matrices, a mixture's experts; and how many numbers each has.

    Not tokens and positions, whose first dimension is 1.
    """
    return {
        ".".join(filter(None, (name, key))): value.numel()
        for name, module in plain_modules(model)
        if not is_inside(name, heads) and not layers.row_of(module)
        for key, value in module._parameters.items()
        if value is not None and value.dim() == 3 and min(value.shape) > 1
    }


def called_layers(model: nn.Module, names: Sequence[str], example: Any) -> set[str]:
    """Which of the layers the model really calls, by one probe forward.

    Args:
        example: An input, a tuple or a dict of inputs; None: an image of the size that a timm model tells, or the
            example text of transformers.

    Raises:
        TargetError: There is no example and the model tells none.
    """
    if example is None:
        example = own_example(model)
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


def own_example(model: Any) -> Any:
    """An input that the model itself tells: timm's image size, transformers' token ids or image size."""
    like = next(model.parameters())
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    config = getattr(model, "pretrained_cfg", None) or {}
    if size := (3, *size) if size else config.get("input_size"):
        return torch.zeros(1, *size, dtype=like.dtype, device=like.device)
    inputs, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if inputs == "pixel_values" and isinstance(side, int):
        return {inputs: torch.zeros(1, channels, side, side, dtype=like.dtype, device=like.device)}
    told = getattr(model, "dummy_inputs", None)
    if isinstance(told, Mapping) and inputs == "input_ids" and "input_ids" in told:
        return {"input_ids": torch.zeros_like(torch.as_tensor(told["input_ids"]), device=like.device)}
    raise TargetError(
        "new_bias=True needs one forward pass to find the layers that the model calls.",
        remedy="Give an input: inject(..., example=x), or leave new_bias out.",
    )


class LayerWeight(NamedTuple):
    """One affine weight of one layer.

    Attributes:
        module: The layer's name in the model.
        slot: What the weight adds to it; `""` for a layer's only one.
        layer: The layer.
        view: How it shows the weight.
        site: The weight's site, as the plain layer has it.
        weight: The weight's parameter, the frozen one of an adapted layer.
        bias: The same of the layer's bias, or None.
    """

    module: str
    slot: str
    layer: nn.Module
    view: layers.View
    site: Site
    weight: Any
    bias: Any

    @property
    def name(self) -> str:
        """The site's name."""
        return ".".join(part for part in (self.module, self.slot) if part)


def layer_weights(model: nn.Module) -> dict[str, LayerWeight]:
    """Every affine weight that can be adapted or is, site name -> LayerWeight, in the model's order.

    A bias that another module has too is none of the site's: C, D and E would change it there.
    """
    owners = _owners(model)
    found = {}
    for module, layer in plain_modules(model):
        if attach.is_attached(layer):
            views = {slot: adapter.view for slot, adapter in attach.adapters_of(layer).items()}
        else:
            views = layers.views_of(layer)
        for slot, view in views.items():
            weight, bias = (attach.plain_parameter(layer, name) for name in (view.weight, view.bias))
            site = replace(view.site, bias=view.site.bias and owners[id(bias)] == 1)
            one = LayerWeight(module, slot, layer, view, site, weight, bias)
            found[one.name] = one
    return found


def _owners(model: nn.Module) -> Counter[int]:
    """How many modules have a parameter, by its id."""
    return Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())


def weights_by_site(model: nn.Module) -> dict[str, list[LayerWeight]]:
    """Site name -> the layer weights that are one parameter, several where it is tied, in the model's order."""
    groups: dict[int, list[LayerWeight]] = {}
    for weight in layer_weights(model).values():
        groups.setdefault(id(weight.weight), []).append(weight)
    return {group[0].name: group for group in groups.values()}


def adaptable(model: nn.Module, head: Sequence[str] = ()) -> dict[str, Site]:
    """Every site of a plain model outside the head, name -> Site, in the model's order.

    A weight shared by several layers is one site, without the biases, which differ: A and B alone. It is none where
    a layer that cannot be adapted, or the head, shares it too, or where the layers see it as different matrices.
    """
    owners = _owners(model)
    found = {}
    for name, group in weights_by_site(model).items():
        alone = owners[id(group[0].weight)] == len(group) and not any(is_inside(p.module, head) for p in group)
        if alone and (len(group) == 1 or len(set(map(_matrix, group))) == 1):
            found[name] = site_of(group)
    return found


def _matrix(weight: LayerWeight) -> tuple[Site, tuple[int, ...]]:
    """Which matrix a layer sees in its weight: its sizes, and where its numbers are."""
    like = torch.empty_like(weight.weight, device="meta")
    return replace(weight.site, kind="", bias=False, fixed=None), weight.view.matrix(like).stride()


def site_of(group: Sequence[LayerWeight]) -> Site:
    """The site of a weight that these layers have; a shared row is never fixed, an output head trains it too."""
    return group[0].site if len(group) == 1 else replace(group[0].site, bias=False, fixed=None)


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
    """The sites that an expression names; a word means no language model's output layer, unless it is tied."""
    matched: set[str] = set()
    at = weights_by_site(model)
    output = output_layers(model)
    for expression in several(wanted, str, TargetError, argument, ALLOWED):
        if expression in layers.WORDS:
            kinds = layers.WORDS[expression]
            found = {name for name, site in every.items() if site.kind in kinds and not is_inside(name, output)}
        elif isinstance(wanted, str):
            try:
                found = {name for name in every if any(re.search(expression, p.name) for p in at[name])}
            except re.error as error:
                raise TargetError(f"{argument}={expression!r} is no regular expression: {error}.") from error
        else:
            ending = f".{expression}"  # of a weight's name, or of its layer's: an attention has several weights
            names = {
                name: [f".{each}" for weight in at[name] for each in (weight.name, weight.module)] for name in every
            }
            found = {name for name in every if any(each.endswith(ending) for each in names[name])}
        if not found:
            raise _nothing_matches(model, every, expression, argument)
        matched |= found
    if not matched:
        raise TargetError(f"{argument} is empty.", allowed=f"Allowed: {ALLOWED}.")
    return matched


def _nothing_matches(model: nn.Module, every: Mapping[str, Site], expression: str, argument: str) -> TargetError:
    modules = dict(plain_modules(model))
    if expression in modules:
        kind = type(modules[expression]).__name__
        what = f"{argument} names {expression!r}, a {kind}: it cannot be adapted or is in the head."
    elif stacked := [name for name in _stacked(model, ()) if re.search(re.escape(expression), name)]:
        return TargetError(
            f"{argument}={expression!r} names {listed(stacked)}, stacks of matrices of several experts and no layers: "
            "they cannot be adapted.",
            allowed=f"Adaptable layers include {listed(every)}.",
        )
    else:
        what = f"No layer of {type(model).__name__} matches {argument}={expression!r}."
    if not every:
        return TargetError(
            what, allowed=f"It has no layer of the types {listed(name.rpartition('.')[2] for name in layers.TABLE)}."
        )
    if expression in layers.WORDS:
        kinds = {site.kind for site in every.values()}
        words = [f"{argument}={word!r}" for word in layers.WORDS if kinds & set(layers.WORDS[word])]
        return TargetError(what, allowed=f"Its layers are matched by {' or '.join(words)}.")
    endings = {name.rpartition(".")[2] for name in every}
    near = nearest(expression, endings | every.keys())
    return TargetError(
        what,
        allowed=f"Adaptable layers include {listed(every)}.",
        remedy=f"Did you mean {' or '.join(map(repr, near))}?" if near else "List them with `glora ls layers MODEL`.",
    )


def base_state(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The base's parameters and persistent buffers by their plain names, adapted or not, without the head.

    Of a quantised tensor its plain inner ones. What a module of the head shares with one outside is the head's.
    """
    every: dict[str, Any] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        plain = re.sub(r"\.?parametrizations\.(\w+)\.original$", r".\1", key).removeprefix(".")
        added = plain != key and _is_new(model, key)
        plain = plain_name(plain)
        if not re.search(r"(^|\.)parametrizations\.", plain) and not added:
            every[plain] = value
    own = {id(value) for name, value in every.items() if is_inside(name, head)}
    found: dict[str, Tensor] = {}
    sharded = is_sharded(model)
    for name, value in every.items():
        if id(value) not in own:
            tensor = whole(value).cpu() if sharded else value
            found |= {part: inner.detach() for part, inner in plain_parts(name, tensor)}
    return found


def _is_new(model: nn.Module, key: str) -> bool:
    """Whether the key of an attached layer is the bias that attaching created."""
    layer, _, rest = key.partition("parametrizations.")
    return attach.is_new_bias(model.get_submodule(layer.rstrip(".")), rest.partition(".")[0])
