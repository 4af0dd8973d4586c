"""Which layers can be adapted, and attach, detach and merge of ONE of them.

A layer type is one row of `TABLE` and one class that says how it shows its weight as an `(o, i)` matrix (`View`).
The effective weight is attached with `torch.nn.utils.parametrize`, so that whoever reads `layer.weight` sees it,
and the layer's own `forward` takes the factored way where that is cheaper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from glora.errors import GloraError, StateError
from glora.genotype import LayerConfig
from glora.layers.adapter import Adapter, BiasAdapter
from glora.layers.factored import one, per_sample
from glora.layers.view import View
from glora.registry import load
from glora.support import Support

__all__ = [
    "TABLE",
    "WORDS",
    "Adapter",
    "View",
    "adapters_of",
    "attach",
    "base_of",
    "detach",
    "effective",
    "finite",
    "merge",
    "put_back",
    "state_of",
    "views_of",
]

TABLE: dict[str, str] = {  # layer type, a pattern for its full name -> how it shows its weight
    "torch.nn.modules.linear.Linear": "glora.layers.linear:Linear",
    "transformers.pytorch_utils.Conv1D": "glora.layers.linear:Conv1D",
}
WORDS: dict[str, tuple[str, ...]] = {  # words that `targets` understands -> kinds of sites
    "linear": ("linear",),
    "all": ("linear",),
}


def row_of(layer: nn.Module) -> tuple[type[View], Any] | None:
    """The table's row of a layer's type: its view and the type that the row names; None when it cannot be adapted."""
    layer_type: Any = type(layer)
    return _row(layer_type)


@cache
def _row(layer_type: Any) -> tuple[type[View], Any] | None:
    for base in layer_type.__mro__:
        for pattern, path in TABLE.items():
            if fnmatchcase(f"{base.__module__}.{base.__qualname__}", pattern):
                view: type[View] = load(path)
                return view, base
    return None


def views_of(layer: nn.Module) -> dict[str, View]:
    """The affine weights of a plain layer by the name that each adds to the layer's; empty when it has none.

    A weight that is no floating-point parameter of its own, is parametrized, or is not made yet is left out.
    """
    row = row_of(layer)
    if row is None or parametrize.is_parametrized(layer):
        return {}
    floats = {name for name, value in layer._parameters.items() if value is not None and _is_float(value)}
    return row[0].of(layer, floats)


def _is_float(value: nn.Parameter) -> bool:
    return not isinstance(value, nn.UninitializedParameter) and value.is_floating_point()


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The adapted layer's forward, set on the per-instance class that parametrize makes."""
    if kwargs or len(args) != 1:
        plain: Any = type(self).__bases__[0]
        return plain.forward(self, *args, **kwargs)
    x, adapter = args[0], state_of(self)
    if adapter.held is not None:
        return adapter.view.plain(self, x, *adapter.held)
    if len(adapter.plays) > 1 and x.dim() and x.shape[0] % len(adapter.plays) == 0:
        return per_sample(adapter.plays, adapter.view, self, x, *base_of(self))
    play = adapter.first(f"its input has the shape {tuple(x.shape)}, and samples cannot be told apart")
    return one(play, adapter.view, self, x, *base_of(self))


def is_attached(layer: nn.Module) -> bool:
    """Whether the layer has an adapter."""
    lists = layer._modules.get("parametrizations")
    return lists is not None and any(isinstance(each[0], Adapter) for each in lists.values())  # type: ignore[operator]


def has_new_bias(layer: nn.Module) -> bool:
    """Whether attaching created the layer's bias."""
    return any(adapter.new_bias for adapter in adapters_of(layer).values())


def adapters_of(layer: nn.Module) -> dict[str, Adapter]:
    """The adapters of an attached layer by slot."""
    lists: Any = layer.parametrizations
    return {each[0].slot: each[0] for each in lists.values() if isinstance(each[0], Adapter)}


def state_of(layer: Any, slot: str = "") -> Adapter:
    """The adapter of one weight of an attached layer."""
    if slot:
        return adapters_of(layer)[slot]
    adapter: Adapter = layer.parametrizations.weight[0]
    return adapter


def base_of(layer: Any, slot: str = "") -> tuple[Tensor, Tensor | None]:
    """The frozen weight and bias of an attached layer; the bias is None where the plain layer has none."""
    lists, adapter = layer.parametrizations, state_of(layer, slot)
    view = adapter.view
    bias = lists[view.bias].original if view.bias in lists else layer._parameters.get(view.bias)
    bias = None if adapter.new_bias else bias
    return lists[view.weight].original, bias if bias is None or view.part is None else bias[view.part]


def attach(layer: nn.Module, *supports: Support | None, names: Sequence[str] = ()) -> None:
    """Makes the layer show its effective weights and biases.

    Args:
        layer: A layer of the table, not attached yet. Its parameters stay the same objects, inside.
        supports: The support tensors of its sites in the order of `views_of`; None leaves a weight as it is.
        names: Names of the sites, for messages.

    Raises:
        StateError: The layer is parametrized already.
    """
    if parametrize.is_parametrized(layer):
        raise StateError(
            f"A {type(layer).__name__} is parametrized already.", remedy="Detach or remove that parametrization first."
        )
    row, order = row_of(layer), tuple(layer._parameters)
    assert row is not None
    layer_type: Any = type(layer)
    own_forward = layer_type.forward is row[1].forward
    biases: dict[str, dict[Adapter, parametrize.ParametrizationList]] = {}
    called = True
    for place, ((slot, view), support) in enumerate(zip(views_of(layer).items(), supports, strict=True)):
        if support is None:
            continue
        adapter = Adapter(names[place] if names else "", slot, view, support, order)
        weights = _parametrize(layer, view.weight, adapter)
        if getattr(layer, view.bias, None) is None and support.site.new_bias:  # bias=None cannot be parametrized
            adapter.new_bias = True
            fresh = weights.original.new_zeros(support.site.out_features)
            setattr(layer, view.bias, nn.Parameter(fresh, requires_grad=False))
        if getattr(layer, view.bias, None) is not None and (support.site.bias or adapter.new_bias):
            biases.setdefault(view.bias, {})[adapter] = weights
        called = view.called
    for name, parts in biases.items():
        _parametrize(layer, name, BiasAdapter(parts))
    if own_forward and called:  # a subclass with its own forward reads `weight` itself
        type(layer).forward = _forward


def _parametrize(layer: nn.Module, name: str, parametrization: nn.Module) -> Any:
    parametrize.register_parametrization(layer, name, parametrization, unsafe=True)
    return layer.parametrizations[name]  # type: ignore[index]


def detach(layer: nn.Module) -> None:
    """Gives the layer back as it was before `attach`: class, parameter objects and their order.

    By hand: `parametrize.remove_parametrizations` changes the class, which a deepcopy of the layer shares, and its
    `leave_parametrized=True` would write into W0.
    """
    adapters = list(adapters_of(layer).values())
    lists: Any = layer.parametrizations
    parameters = layer._parameters | {name: each.original for name, each in lists.items()}
    parameters |= {adapter.view.bias: None for adapter in adapters if adapter.new_bias}
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    layer._parameters.clear()
    layer._parameters.update({name: parameters[name] for name in (*adapters[0].order, *parameters)})


def effective(layer: nn.Module) -> dict[str, Tensor | None]:
    """The weights and biases that the layer plays by name; None for a new bias that is not played.

    Computed in at least float32 and rounded once, without gradient.
    """
    lists: Any = layer.parametrizations
    with torch.no_grad():
        played: dict[str, Tensor | None] = {name: getattr(layer, name) for name in lists}
        for slot, adapter in adapters_of(layer).items():
            support, config = adapter.plays[0]
            if adapter.new_bias and support.bias(adapter.view, *base_of(layer, slot), config) is None:
                played[adapter.view.bias] = None
    return played


def finite(played: Mapping[str, Tensor | None]) -> bool:
    """Whether every number of an effective weight and bias is finite."""
    values = (value for value in played.values() if value is not None)
    # a sum is one pass and finite where every number is, unless it overflows
    return all(bool(value.sum().isfinite()) or bool(value.isfinite().all()) for value in values)


def merge(
    layer: nn.Module,
    played: Mapping[str, Tensor | None] | None = None,
    shared: dict[nn.Parameter, nn.Parameter] | None = None,
) -> dict[str, nn.Parameter | None]:
    """Writes the effective weights and biases into the plain layer, computed in at least float32, rounded once.

    Args:
        layer: An attached layer.
        played: What `effective` gave, checked to be finite already; None computes and checks it.
        shared: Base parameters merged so far and what they became: one that several layers share is merged once.

    Returns:
        The base parameters by name; put back, they restore the plain layer bit for bit.

    Raises:
        GloraError: The effective weight or bias has a number that is not finite.
    """
    shared = {} if shared is None else shared
    with torch.inference_mode(False):  # the merged weights may be trained
        if played is None:
            played = effective(layer)
            if not finite(played):
                raise GloraError("An effective weight or bias is NaN or infinite.", remedy="Use a lower lr.")
        detach(layer)
        base = dict(layer._parameters)
        for name, value in played.items():
            plain = base[name]
            if value is not None:
                flag = plain is not None and plain.requires_grad
                merged = None if plain is None else shared.get(plain)
                if merged is None:  # the base keeps its own numbers; an inference tensor cannot be trained
                    shares = plain is not None and value.data_ptr() == plain.data_ptr()
                    new = value.detach().clone() if shares or value.is_inference() else value.detach()
                    merged = nn.Parameter(new, requires_grad=flag)
                layer._parameters[name] = merged
                if plain is not None:
                    shared[plain] = merged
    return base


def put_back(layer: nn.Module, base: dict[str, nn.Parameter | None]) -> None:
    """Undoes `merge`: the base parameters in their order, with the device and type that the layer has now."""
    for name, parameter in base.items():
        now = layer._parameters[name]
        if parameter is not None and now is not None:
            parameter.data = parameter.data.to(now)
    layer._parameters.clear()
    layer._parameters.update(base)


def new_keys(layer: nn.Module, base: dict[str, nn.Parameter | None]) -> list[str]:
    """Parameters that the merged layer has and the base, as `merge` returned it, has not."""
    return [name for name, value in layer._parameters.items() if value is not None and base.get(name) is None]


@contextmanager
def holding(layer: nn.Module, *configs: LayerConfig) -> Iterator[None]:
    """Within it the layer plays these configurations, one per slot, with its effective weights built once."""
    adapters = list(adapters_of(layer).values())
    kept = [(adapter.plays, adapter.held) for adapter in adapters]
    for adapter, config in zip(adapters, configs, strict=True):
        adapter.play([config])
    try:
        played = effective(layer)
        for adapter in adapters:
            name = adapter.view.bias
            weight, bias = played[adapter.view.weight], played[name] if name in played else getattr(layer, name)
            assert weight is not None
            adapter.held = weight, bias if bias is None or adapter.view.part is None else bias[adapter.view.part]
        yield
    finally:
        for adapter, (plays, held) in zip(adapters, kept, strict=True):
            adapter.plays, adapter.held = plays, held


def activate(layer: nn.Module, configs: Sequence[LayerConfig], slot: str = "") -> None:
    """Makes one weight of the layer play one configuration, or one per sample when there are several."""
    state_of(layer, slot).play(configs)
