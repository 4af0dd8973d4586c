"""Which layers can be adapted, and attach, detach and merge of ONE of them.

A layer type is one row of `TABLE` and one file that says how it shows its weight as an `(o, i)` matrix.
The effective weight is attached with `torch.nn.utils.parametrize`, so that whoever reads `layer.weight` sees it,
and the layer's own `forward` takes the factored way where that is cheaper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from glora.errors import GloraError, StateError
from glora.genotype import LayerConfig, Site
from glora.registry import load
from glora.support import Support

__all__ = [
    "TABLE",
    "WORDS",
    "LayerKind",
    "attach",
    "base_of",
    "detach",
    "finite",
    "is_plain",
    "kind_of",
    "merge",
    "put_back",
    "state_of",
]

TABLE: dict[type[nn.Module], str] = {  # layer type -> how it shows its weight
    nn.Linear: "glora.layers.linear:Linear",
}
WORDS: dict[str, tuple[type[nn.Module], ...]] = {  # words that `targets` understands -> layer types
    "linear": (nn.Linear,),
}


class LayerKind(Protocol):
    """How one layer type shows its weight as a matrix, and its plain forward."""

    kind: str

    def site(self, layer: Any) -> Site: ...
    def matrix(self, weight: Tensor) -> Tensor: ...
    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor: ...
    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


def kind_of(layer: nn.Module) -> tuple[LayerKind, type[nn.Module]] | None:
    """The layer's row of the table, its kind and its type there; None when it cannot be adapted."""
    for base, path in TABLE.items():
        if isinstance(layer, base):
            kind: LayerKind = load(path)
            return kind, base
    return None


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer's weight is a floating-point parameter of its own, with a shape and not parametrized."""
    weight = layer._parameters.get("weight")
    made = weight is not None and not isinstance(weight, nn.UninitializedParameter)
    return made and weight.is_floating_point() and not parametrize.is_parametrized(layer)  # type: ignore[union-attr]


class Adapter(nn.Module):
    """The parametrization of `weight`: owns the support tensors and gives the effective weight.

    Attributes:
        support: The support tensors.
        held: The effective weight and bias while a genotype is held for scoring, else None.
        new_bias: Whether attaching created the bias.
        order: The plain layer's parameter names in their order.
    """

    def __init__(self, kind: LayerKind, support: Support, *, new_bias: bool, order: tuple[str, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.support = support
        self.new_bias = new_bias
        self.order = order
        self.held: tuple[Tensor, Tensor | None] | None = None

    def forward(self, original: Tensor) -> Tensor:
        if self.held is not None:
            return self.held[0]
        if self.support.batch:
            raise StateError(
                "A layer's weight is read without calling the layer while one genotype per sample is active.",
                allowed="Such a layer plays one genotype a batch.",
                remedy="Activate a single genotype, or leave the layer out with skip=.",
            )
        with torch.autocast(original.device.type, enabled=False):
            return self.kind.unmatrix(self.support.weight(self.kind.matrix(original)), original)


class _BiasAdapter(nn.Module):
    """The parametrization of `bias`; the support tensors belong to the one of `weight`."""

    def __init__(self, adapter: Adapter, weights: parametrize.ParametrizationList) -> None:
        super().__init__()
        # past nn.Module's registration: the same tensors must not appear twice in a state dict
        object.__setattr__(self, "adapter", adapter)
        object.__setattr__(self, "weights", weights)

    def forward(self, original: Tensor) -> Tensor:
        adapter: Adapter = self.__dict__["adapter"]
        if adapter.held is not None:
            return original if adapter.held[1] is None else adapter.held[1]
        with torch.autocast(original.device.type, enabled=False):
            w0 = adapter.kind.matrix(self.__dict__["weights"].original)
            bias = adapter.support.bias(w0, None if adapter.new_bias else original)
        return original if bias is None else bias


def _forward(self: Any, x: Tensor) -> Tensor:
    """The adapted layer's forward, set on the per-instance class that parametrize makes."""
    adapter = state_of(self)
    if adapter.held is not None:
        return adapter.kind.plain(self, x, *adapter.held)
    w0, b0 = base_of(self)
    return adapter.support(x, w0, b0)  # type: ignore[no-any-return]


def state_of(layer: nn.Module) -> Adapter:
    """The adapter of an attached layer."""
    adapter = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    assert isinstance(adapter, Adapter)
    return adapter


def base_of(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The frozen weight and bias of an attached layer; the bias is None where the plain layer has none."""
    parametrizations = layer.parametrizations
    bias = parametrizations.bias.original if "bias" in parametrizations else None
    return parametrizations.weight.original, None if parametrizations.weight[0].new_bias else bias


def attach(layer: nn.Module, support: Support) -> None:
    """Makes the layer show its effective weight and bias.

    Args:
        layer: A layer of the table, not attached yet. Its parameters stay the same objects, inside.
        support: The support tensors of its site.

    Raises:
        StateError: The layer is parametrized already.
    """
    if parametrize.is_parametrized(layer):
        raise StateError(
            f"A {type(layer).__name__} is parametrized already.", remedy="Detach or remove that parametrization first."
        )
    found = kind_of(layer)
    assert found is not None
    kind, base = found
    order = tuple(layer._parameters)
    new_bias = layer.bias is None and support.site.new_bias
    own_forward = type(layer).forward is base.forward  # a subclass with its own forward reads `weight` itself
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if new_bias:  # bias=None cannot be parametrized
        layer.bias = nn.Parameter(weight.new_zeros(support.site.out_features), requires_grad=False)
    adapter = Adapter(kind, support, new_bias=new_bias, order=order)
    parametrize.register_parametrization(layer, "weight", adapter, unsafe=True)
    if layer.bias is not None:
        weights = layer.parametrizations.weight  # type: ignore[union-attr]
        assert isinstance(weights, parametrize.ParametrizationList)
        parametrize.register_parametrization(layer, "bias", _BiasAdapter(adapter, weights), unsafe=True)
    if own_forward:
        type(layer).forward = _forward


def detach(layer: nn.Module) -> None:
    """Gives the layer back as it was before `attach`: class, parameter objects and their order.

    By hand: `parametrize.remove_parametrizations` changes the class, which a deepcopy of the layer shares, and its
    `leave_parametrized=True` would write into W0.
    """
    adapter = state_of(layer)
    lists: Any = layer.parametrizations
    parameters = layer._parameters | {name: each.original for name, each in lists.items()}
    if adapter.new_bias:
        parameters["bias"] = None
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    layer._parameters.clear()
    layer._parameters.update({name: parameters[name] for name in (*adapter.order, *parameters)})


def effective(layer: nn.Module) -> dict[str, Tensor | None]:
    """The weight and bias that the layer plays; the bias is None where neither the layer nor its configuration has one.

    Computed in at least float32 and rounded once, without gradient.
    """
    adapter = state_of(layer)
    with torch.no_grad():
        played: dict[str, Tensor | None] = {name: getattr(layer, name) for name in ("weight", "bias")}
        if adapter.new_bias and adapter.support.bias(*base_of(layer)) is None:
            played["bias"] = None
    return played


def finite(played: Mapping[str, Tensor | None]) -> bool:
    """Whether every number of an effective weight and bias is finite."""
    return all(bool(value.isfinite().all()) for value in played.values() if value is not None)


def merge(layer: nn.Module, played: Mapping[str, Tensor | None] | None = None) -> dict[str, nn.Parameter | None]:
    """Writes the effective weight and bias into the plain layer, computed in at least float32, rounded once.

    Args:
        layer: An attached layer.
        played: What `effective` gave, checked to be finite already; None computes and checks it.

    Returns:
        The base parameters by name; put back, they restore the plain layer bit for bit.

    Raises:
        GloraError: The effective weight or bias has a number that is not finite.
    """
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
                layer._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=flag)
    return base


def put_back(layer: nn.Module, base: dict[str, nn.Parameter | None]) -> None:
    """Undoes `merge`: the base parameters in their order, with the device and type that the layer has now."""
    for name, parameter in base.items():
        now = layer._parameters[name]
        if parameter is not None and now is not None:
            parameter.data = parameter.data.to(now)
    layer._parameters.clear()
    layer._parameters.update(base)


def is_new(layer: nn.Module, base: dict[str, nn.Parameter | None]) -> bool:
    """Whether the merged layer has a bias that the base, as `merge` returned it, has not."""
    return base.get("bias") is None and layer._parameters.get("bias") is not None


@contextmanager
def holding(layer: nn.Module, config: LayerConfig) -> Iterator[None]:
    """Within it the layer plays this configuration with its effective weight built once."""
    adapter = state_of(layer)
    kept = adapter.support.config, adapter.support.batch, adapter.held
    adapter.support.config, adapter.support.batch, adapter.held = config, (), None
    try:
        played = effective(layer)
        assert played["weight"] is not None
        adapter.held = (played["weight"], played["bias"])
        yield
    finally:
        adapter.support.config, adapter.support.batch, adapter.held = kept


def activate(layer: nn.Module, configs: Sequence[LayerConfig]) -> None:
    """Makes the layer play one configuration, or one per sample when there are several."""
    adapter = state_of(layer)
    adapter.held = None
    adapter.support.config = configs[0]
    adapter.support.batch = tuple(configs) if len(configs) > 1 else ()
