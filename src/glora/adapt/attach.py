"""Attach, hold, merge and detach for ONE layer; `adapted.py` does it for a model.

The effective weight is attached with `torch.nn.utils.parametrize`, so that whoever reads `layer.weight` sees it, and
the layer's own `forward` is replaced by one that computes the factored product where that is cheaper. The
parametrization of a weight is an `Adapter`, which owns the support tensors and knows what plays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from glora.adapt.layers import per_sample
from glora.adapt.layers.quantized import is_quantized
from glora.adapt.layers.table import row_of, views_of
from glora.adapt.layers.view import View
from glora.adapt.support import Support
from glora.errors import GloraError, StateError
from glora.genotype import LayerConfig

__all__ = [
    "Adapter",
    "BiasAdapter",
    "Look",
    "WarnOnce",
    "adapters_of",
    "alike",
    "attach",
    "base_of",
    "broken",
    "dequantized",
    "detach",
    "drops_out",
    "effective",
    "holding",
    "is_attached",
    "is_new_bias",
    "merge",
    "new_keys",
    "owned",
    "plain_parameter",
    "put_back",
    "state_of",
]


log = logging.getLogger("glora")


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
    for number, ((slot, view), support) in enumerate(zip(views_of(layer).items(), supports, strict=True)):
        if support is None:
            continue
        adapter = Adapter(names[number] if names else "", slot, view, support, order)
        weights = _parametrize(layer, view.weight, adapter)
        if getattr(layer, view.bias, None) is None and support.site.new_bias:  # bias=None cannot be parametrized
            adapter.new_bias = True
            w0 = weights.original
            fresh = torch.zeros(support.site.out_features, dtype=w0.dtype, device=w0.device)
            setattr(layer, view.bias, nn.Parameter(fresh, requires_grad=False))
        if getattr(layer, view.bias, None) is not None and (support.site.bias or adapter.new_bias):
            biases.setdefault(view.bias, {})[adapter] = weights
        called = view.called
    for name, parts in biases.items():
        _parametrize(layer, name, BiasAdapter(parts))
    for parametrizations in layer.get_submodule("parametrizations").children():  # made in training mode
        parametrizations.train(layer.training)
    layer_type = type(layer)  # parametrize has made one for this layer
    layer_type.__getstate__ = _no_pickle
    if own_forward:  # a subclass with its own forward reads `weight` itself
        type(layer).forward = _forward if called else _forward_reading


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


@contextmanager
def holding(
    layer: nn.Module, *configs: LayerConfig, train: bool = False, shared: dict[nn.Parameter, Tensor] | None = None
) -> Iterator[None]:
    """Within it the layer plays these configurations, one per slot, with its effective weights built once.

    Args:
        layer: An attached layer.
        configs: What its weights play.
        train: Gradients reach the support tensors in one backward pass.
        shared: What `effective` takes.
    """
    adapters = list(adapters_of(layer).values())
    kept = [(adapter.plays, adapter.held, adapter.nothing_active) for adapter in adapters]
    for adapter, config in zip(adapters, configs, strict=True):
        adapter.play([config])
        adapter.nothing_active = None
    try:
        if not any(adapter.view.quantized for adapter in adapters):  # their base stays quantised
            _hold(layer, effective(layer, train=train, shared=shared))
        yield
    finally:
        for adapter, (plays, held, nothing_active) in zip(adapters, kept, strict=True):
            adapter.plays, adapter.held, adapter.nothing_active = plays, held, nothing_active


def effective(
    layer: nn.Module, *, train: bool = False, shared: dict[nn.Parameter, Tensor] | None = None
) -> dict[str, Tensor | None]:
    """The weights and biases that the layer plays by name; None for a new bias that is not played.

    Computed in float64, where the device has it, and rounded once, without gradient.

    Args:
        layer: An attached layer.
        train: All of them have a gradient, and are computed in at least float32; a new bias that is not played is
            zero, so that every configuration looks the same to a compiler.
        shared: Base parameters and what is played for them: one that several layers share is computed once.
    """
    lists: Any = layer.parametrizations
    shared = {} if shared is None else shared
    played: dict[str, Tensor | None] = {}
    with torch.set_grad_enabled(train), ExitStack() as stack:
        for adapter in adapters_of(layer).values() if not train else ():
            stack.enter_context(adapter.exactly())
        for name, each in lists.items():
            if each.original not in shared:
                shared[each.original] = getattr(layer, name)
            played[name] = shared[each.original]
        if train:
            return {name: _with_grad(value) for name, value in played.items()}
        for slot, adapter in adapters_of(layer).items():
            support, config = adapter.plays[0]
            if adapter.new_bias and support.bias(adapter.view, *base_of(layer, slot), config) is None:
                played[adapter.view.bias] = None
    return played


def _with_grad(value: Any) -> Tensor:
    grown: Tensor = value if value.requires_grad else value.detach().requires_grad_()
    return grown


def _hold(layer: Any, shown: Mapping[str, Tensor | None]) -> None:
    """Makes the adapters show these weights and biases."""
    for adapter in adapters_of(layer).values():
        adapter.held = _shown(adapter, layer, shown)


def _shown(adapter: Adapter, layer: Any, shown: Mapping[str, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """An adapter's weight and its part of the bias, out of a layer's by name."""
    name, part = adapter.view.bias, adapter.view.part
    weight, bias = shown[adapter.view.weight], shown.get(name, layer._parameters.get(name))
    assert weight is not None
    return weight, bias if bias is None or part is None else bias[part]


def merge(
    layer: nn.Module,
    played: Mapping[str, Tensor | None] | None = None,
    shared: dict[nn.Parameter, nn.Parameter] | None = None,
) -> dict[str, nn.Parameter | None]:
    """Writes the effective weights and biases into the plain layer, computed in at least float32, rounded once.

    Args:
        layer: An attached layer.
        played: What `effective` gave, checked to be finite already, as `owned`; None computes and checks it.
        shared: Base parameters merged so far and what they became: one that several layers share is merged once.

    Returns:
        The base parameters by name; put back, they restore the plain layer bit for bit.

    Raises:
        GloraError: The effective weight or bias has a number that is not finite.
    """
    shared = {} if shared is None else shared
    if played is None:
        played = effective(layer)
        if broken(layer, played):
            raise GloraError("An effective weight or bias is NaN or infinite.", remedy="Use a lower lr.")
        played = owned(layer, played, {})
    detach(layer)
    base = dict(layer._parameters)
    for name, value in played.items():
        plain = base[name]
        if value is not None:
            flag = plain is not None and plain.requires_grad
            merged = None if plain is None else shared.get(plain)
            if merged is None:  # nothing changed a quantised one, and nothing can train it
                merged = plain if is_quantized(value) else nn.Parameter(value.detach(), requires_grad=flag)
            layer._parameters[name] = merged
            if plain is not None and merged is not None:
                shared[plain] = merged
    return base


def owned(
    layer: nn.Module, played: Mapping[str, Tensor | None], copies: dict[nn.Parameter, Tensor]
) -> dict[str, Tensor | None]:
    """What `effective` gave as tensors that can be merged: not the base's, which keeps its numbers, nor inference's.

    Args:
        layer: An attached layer.
        played: What `effective` gave.
        copies: Base parameters copied so far and their copies: one that several layers share is copied once.
    """
    found = dict(played)
    for name, value in played.items():
        plain = plain_parameter(layer, name)
        kept = value is None or is_quantized(value)
        if value is not None and not kept and (value.data_ptr() == plain.data_ptr() or value.is_inference()):
            copies[plain] = found[name] = copies[plain] if plain in copies else value.detach().clone()
    return found


def broken(layer: nn.Module, played: Mapping[str, Tensor | None]) -> list[str]:
    """Names of the sites of an attached layer whose effective weight or bias has a number that is not finite."""
    names = []
    for adapter in adapters_of(layer).values():
        weight, bias = _shown(adapter, layer, played)
        floats = [value for value in (weight, bias) if value is not None and not is_quantized(value)]
        # a sum is one pass and finite where every number is, unless it overflows
        if not all(bool(value.sum().isfinite()) or bool(value.isfinite().all()) for value in floats):
            names.append(adapter.name)
    return names


def dequantized(layer: nn.Module, *, packed: bool = False) -> list[str]:
    """Names of the sites of an attached layer whose quantised weight a merge would make floating-point.

    Args:
        layer: An attached layer.
        packed: Only those that the layer cannot hold then.
    """
    quantized = [adapter for adapter in adapters_of(layer).values() if adapter.view.quantized]
    adapters = [adapter for adapter in quantized if adapter.view.packed or not packed]
    return [each.name for each in adapters if {each.plays[0][1].A.kind, each.plays[0][1].B.kind} != {"none"}]


def put_back(layer: nn.Module, base: dict[str, nn.Parameter | None]) -> None:
    """Undoes `merge`: the base parameters in their order, with the device and type that the layer has now."""
    for name, parameter in base.items():
        now = layer._parameters[name]
        if parameter is None or now is None:
            continue
        if not is_quantized(parameter):
            parameter.data = parameter.data.to(now)
        elif parameter.device != now.device:  # its type is its own
            parameter.data = parameter.data.to(now.device)
    layer._parameters.clear()
    layer._parameters.update(base)


def new_keys(layer: nn.Module, base: dict[str, nn.Parameter | None]) -> list[str]:
    """Parameters that the merged layer has and the base, as `merge` returned it, has not."""
    return [name for name, value in layer._parameters.items() if value is not None and base.get(name) is None]


def is_attached(layer: nn.Module) -> bool:
    """Whether the layer has an adapter."""
    lists = layer._modules.get("parametrizations")
    return lists is not None and any(isinstance(each[0], Adapter) for each in lists.values())  # type: ignore[operator]


def adapters_of(layer: nn.Module) -> dict[str, Adapter]:
    """The adapters of an attached layer by slot."""
    lists: Any = layer.parametrizations
    return {each[0].slot: each[0] for each in lists.values() if isinstance(each[0], Adapter)}


def state_of(layer: Any, slot: str = "") -> Adapter:
    """The adapter of one weight of an attached layer."""
    lists = layer.parametrizations
    if slot or "weight" not in lists:
        return adapters_of(layer)[slot]
    adapter: Adapter = lists.weight[0]
    return adapter


def base_of(layer: Any, slot: str = "") -> tuple[Tensor, Tensor | None]:
    """The frozen weight and bias, `(o,)`, of an attached layer; the bias is None where the plain layer has none."""
    adapter = state_of(layer, slot)
    view = adapter.view
    weight, bias = plain_parameter(layer, view.weight), plain_parameter(layer, view.bias)
    bias = None if adapter.new_bias or bias is None else bias.flatten()
    return weight, bias if bias is None or view.part is None else bias[view.part]


def plain_parameter(layer: Any, name: str) -> Any:
    """A parameter of a layer, attached or not, as the plain layer has it; None where it has none."""
    lists = layer._modules.get("parametrizations", {})
    return lists[name].original if name in lists else layer._parameters.get(name)


def is_new_bias(layer: nn.Module, name: str) -> bool:
    """Whether the parameter of this name is a bias that attaching created."""
    return any(adapter.new_bias and adapter.view.bias == name for adapter in adapters_of(layer).values())


def drops_out(layer: nn.Module) -> bool:
    """Whether `Support.dropout` has an effect: the attached layer computes the factored product when it is called."""
    forward: Any = type(layer).forward
    return forward is _forward and type(state_of(layer).view).output is View.output


class Adapter(nn.Module):
    """The parametrization of a weight: owns the support tensors and gives the effective weight.

    Attributes:
        name: The site's name, for messages.
        slot: The name that the weight adds to the layer's.
        view: How the layer shows the weight.
        support: The support tensors.
        least: The type in which weight and bias are computed, unless the base's is wider.
        plays: What the layer plays, support tensors and configuration, or one of them per sample.
        held: The effective weight and bias while a genotype is held for scoring, else None.
        last_played: What it played in the latest forward pass.
        new_bias: Whether attaching created the bias.
        warned: In which cases, "read" or "called", it has warned that the first sample's genotype plays for all.
        nothing_active: Warns of training while nothing that could be trained plays; None while something does.
        traced: Whether a compiler has read what it plays, which is then part of the compiled code.
        layout: Where the layer's input has the rows of a sample: `"next"` to each other, `"tiled"` (every n-th one), or
            `"mixed"`: nowhere. None until `samples.py` has looked.
        looks: While `samples.py` looks, what it sees of every input; else None.
        read: `"read"` where `samples.py` saw the weight or bias read without a call; it is `"poisoned"` then, to see
            whether it is `"used"` or `"unused"`. Else empty.
        called_before: Whether the layer was called for several samples before that.
        order: The plain layer's parameter names in their order.
    """

    def __init__(self, name: str, slot: str, view: View, support: Support, order: tuple[str, ...]) -> None:
        super().__init__()
        self.name = name
        self.slot = slot
        self.view = view
        self.support = support
        self.new_bias = False
        self.order = order
        self.least = torch.float32
        self.plays: tuple[tuple[Support, LayerConfig], ...] = ((support, LayerConfig()),)
        self.held: tuple[Tensor, Tensor | None] | None = None
        self.last_played: tuple[tuple[Support, LayerConfig], ...] = self.plays
        self.warned: tuple[str, ...] = ()
        self.nothing_active: WarnOnce | None = None
        self.traced = False
        self.layout: str | None = None
        self.looks: list[Look] | None = None
        self.called_before = False
        self.read = ""

    def play(self, configs: Sequence[LayerConfig], supports: Sequence[Support] = ()) -> None:
        """Makes the layer play one configuration, or one per sample, of its own support tensors or of these."""
        self.held = None
        self.plays = tuple(zip(supports or [self.support] * len(configs), configs, strict=True))

    def before_forward(self) -> None:
        """Remembers what a forward pass plays, so that gradient checkpointing cannot repeat it with something else.

        Raises:
            StateError: It is the backward pass, and another genotype plays than in the latest forward pass.
        """
        if torch.compiler.is_dynamo_compiling():
            if self.held is None:
                self.traced = True
            return
        if torch._C._current_graph_task_id() == -1:  # not within a backward pass
            self.last_played = self.plays
        elif self.last_played != self.plays:
            raise StateError(
                f"{self.name or 'A layer'} plays another genotype in the backward pass than in the forward pass, which "
                "gradient checkpointing repeats.",
                remedy="Activate, switch, or leave hold() after backward().",
            )
        if self.nothing_active is not None and self.training and torch.is_grad_enabled():
            self.nothing_active()

    def forward(self, original: Tensor) -> Tensor:
        self.before_forward()
        if self.held is not None:
            return self.held[0]
        if self.view.packed:
            return original
        if self.looks is not None:
            self.read = self.read or "read"
            if self.read == "poisoned":
                return torch.full_like(original, float("nan"))
        support, config = self.first()
        if any(factor.is_meta is not original.is_meta for factor in support.parameters()):
            raise self.offloaded()
        with torch.autocast(original.device.type, enabled=False):
            return support.weight(self.view, original, config, self.least_on(original))

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Within it weight and bias are computed in float64 and rounded once, as what is kept should be."""
        self.least = torch.float64
        try:
            yield
        finally:
            self.least = torch.float32

    def least_on(self, original: Tensor) -> torch.dtype:
        """The type in which the weight or bias of these numbers is computed; Apple's GPUs have no float64."""
        return torch.float32 if original.device.type == "mps" else self.least

    def offloaded(self) -> StateError:
        """The error where accelerate brings a layer's tensors back one by one."""
        return StateError(
            f"The weights of {self.name or 'a layer'} are offloaded one by one.",
            remedy="Offload adapted layers whole: cpu_offload(..., preload_module_classes=['ParametrizedLinear']).",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        if self.held is not None:  # it follows the model
            weight, bias = self.held
            self.held = fn(weight), None if bias is None else fn(bias)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        if any(value is not None and not value.is_leaf for value in self.held or ()):
            raise StateError(
                f"{self.name or 'A layer'} is held for training: it cannot be copied.", remedy="Leave hold() first."
            )
        return self.__dict__

    def __prepare_scriptable__(self) -> NoReturn:
        raise StateError("torch.jit.script cannot read an adapted model.", remedy="Merge first, or use torch.export.")

    def _replicate_for_data_parallel(self) -> NoReturn:  # a replica would play the original's support tensors
        raise StateError(
            "nn.DataParallel cannot copy an adapted model to several devices.",
            remedy="Use torch's DistributedDataParallel or accelerate, or merge first.",
        )

    def playing(self, x: Tensor) -> tuple[tuple[Support, LayerConfig], ...]:
        """What is played for the input of a call: one for all, or one per sample."""
        n = len(self.plays)
        if n == 1:
            return self.plays
        apart = self.view.tells_apart(x, n)
        if self.looks is not None:
            self.looks.append(look_at(x, n if apart and x.numel() else 0))
            return self.plays[:1]
        if not apart or self.layout == "mixed":
            return (self.first(x),)
        self.called_before = True
        return self.plays * (len(x) // n) if self.layout == "tiled" else self.plays

    def first(self, x: Tensor | None = None) -> tuple[Support, LayerConfig]:
        """What the first sample plays; warns when the others play something else.

        Args:
            x: The input of a call. None where the weight or bias is read without one; the layer may be called, too.
        """
        case = "read" if x is None else "called"
        if x is None and (self.read == "unused" or self.looks is not None):
            return self.plays[0]  # nothing comes of it, or that is being found out
        if case not in self.warned and any(play != self.plays[0] for play in self.plays[1:]):
            why = "where its weight or bias is read without a call"
            if x is not None:
                why = f"because samples cannot be told apart in an input of the shape {tuple(x.shape)}"
            log.warning("%s plays the first sample's genotype for the whole batch %s.", self.name or "A layer", why)
            self.warned += (case,)
        return self.plays[0]


class Look(NamedTuple):
    """What `samples.py` sees of a layer's input for n samples, by the layout that their rows may have.

    Attributes:
        length: The input's first dimension.
        parts: n, or 0 where the input has no n parts.
        equal: Whether the parts are alike.
        some: Some numbers of every part, `(n, at most 256)`.
    """

    length: int
    parts: int
    equal: dict[str, bool]
    some: dict[str, Tensor]


def look_at(x: Tensor, n: int) -> Look:
    """A look at an input of n samples; 0 where it has no n parts."""
    length = len(x) if x.dim() else 0
    if not n:
        nothing = x.new_zeros(0, 0)
        return Look(length, 0, {"next": False, "tiled": False}, {"next": nothing, "tiled": nothing})
    x = x.detach()
    parts = {
        "next": x.reshape(n, -1),
        "tiled": x.reshape(length // n, n, -1).transpose(0, 1).reshape(n, -1),
    }
    some = {name: each[:, :: max(1, each.shape[1] // 256)][:, :256] for name, each in parts.items()}
    return Look(length, n, {name: alike(each, each[:1]) for name, each in parts.items()}, some)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether the tensors are equal but for rounding, which most kernels do alike in all samples."""
    other = other.expand_as(one)
    different = (one - other).abs() > 0.1 * torch.maximum(one.abs(), other.abs())
    allowed = 0.3 if one.dtype in (torch.float16, torch.bfloat16) else 0.02
    return int(different.sum()) <= allowed * int(((one != 0) | (other != 0)).sum())


class BiasAdapter(nn.Module):
    """The parametrization of a bias; the support tensors belong to those of the weights."""

    def __init__(self, parts: Mapping[Adapter, parametrize.ParametrizationList]) -> None:
        super().__init__()
        # past nn.Module's registration: the same tensors must not appear twice in a state dict
        object.__setattr__(self, "parts", dict(parts))

    def forward(self, original: Tensor) -> Tensor:
        flat = changed = original.flatten()  # a norm's bias may have several dimensions
        for adapter, weights in self.__dict__["parts"].items():
            part = adapter.view.part
            own = flat if part is None else flat[part]
            bias = self._of(adapter, weights, own)
            if part is None:
                return original if bias is None else bias.view_as(original)
            if bias is not None and bias is not own:
                changed = torch.cat([changed[: part.start], bias, changed[part.stop :]])
        return original if changed is flat else changed.view_as(original)

    @staticmethod
    def _of(adapter: Adapter, weights: Any, original: Tensor) -> Tensor | None:
        if adapter.held is not None:
            return adapter.held[1]
        if adapter.looks is not None:
            adapter.read = adapter.read or "read"
            if adapter.read == "poisoned":
                return torch.full_like(original, float("nan"))
        support, config = adapter.first()
        b0, least = None if adapter.new_bias else original, adapter.least_on(original)
        with torch.autocast(original.device.type, enabled=False):
            return support.bias(adapter.view, weights.original, b0, config, least)


def _no_pickle(self: Any) -> NoReturn:
    raise StateError(
        "An adapted model cannot be pickled, as torch.save(model) and process pools do.",
        remedy="Write it with glora.save_adapter, or merge first.",
    )


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The adapted layer's forward, set on the per-instance class that parametrize makes."""
    if not args and kwargs.keys() == {"input"}:
        args, kwargs = (kwargs["input"],), {}
    if kwargs or len(args) != 1:
        plain: Any = type(self).__bases__[0]
        return plain.forward(self, *args, **kwargs)
    x, adapter = args[0], state_of(self)
    adapter.before_forward()
    if adapter.held is not None:
        return adapter.view.plain(self, x, *adapter.held)
    w0, b0 = base_of(self)
    if w0.is_meta and not x.is_meta:
        raise adapter.offloaded()
    return per_sample.forward(adapter.view, adapter.playing(x), self, x, w0, b0)


def _forward_reading(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of an adapted layer that reads its weights itself, some more than once: each is built once."""
    plain: Any = type(self).__bases__[0]
    adapters = list(adapters_of(self).values())
    kept = [adapter.held for adapter in adapters]
    try:
        _hold(self, {name: getattr(self, name) for name in self.parametrizations})
        return plain.forward(self, *args, **kwargs)
    finally:
        for adapter, held in zip(adapters, kept, strict=True):
            adapter.held = held


class WarnOnce:
    """Logs a warning the first time that it is called."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.given = False

    def __call__(self) -> None:
        if not self.given:
            self.given = True
            log.warning(self.message)
