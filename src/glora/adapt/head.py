"""Which modules of a model are its head, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from glora.adapt.float_head import Own
from glora.adapt.layers.quantized import is_quantized
from glora.adapt.wrappers import plain_modules, plain_name
from glora.errors import StateError, TargetError, listed, nearest, several

__all__ = ["MixedHead", "alike", "find_head", "fits_head", "head_of", "is_inside", "output_layers", "show_head"]

Values = Mapping[str, Tensor] | None
HEAD_NAMES = ("head", "fc", "classifier", "heads", "score", "qa_outputs", "classification_head")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OUTPUT_NAME = "lm_head"  # of a language model that is none of transformers'


def find_head(model: nn.Module, head: str | Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """The names of the modules trained whole, and what to say about them.

    Raises:
        TargetError: A name is no module of the model.
    """
    if head is None:
        return (), []
    if head == "auto":
        names = _automatic_head(model)
        if not names and (output := output_layers(model)):
            note = (
                f"The output layer of a language model, {listed(output)}, is not trained whole unless head= names it."
            )
            return (), [note]
        if tied := [name for name in names if _is_tied(model, name)]:
            note = f"The head {listed(tied)} shares its weight with another layer and is not trained whole."
            return tuple(name for name in names if name not in tied), [note]
        if quantized := [name for name in names if _is_quantized(model, name)]:
            note = f"The head {listed(quantized)} is quantised and cannot be trained whole: it is a layer like others."
            return tuple(name for name in names if name not in quantized), [note]
        return names, [] if names else ["No head was found to be trained whole; name its modules with head=."]
    modules = dict(plain_modules(model))
    allowed = "'auto', module names, or None"
    names = several(head, str, TargetError, "head", allowed)
    for name in names:
        if name not in modules or not name:
            near = nearest(name, modules)
            raise TargetError(
                f"{type(model).__name__} has no module {name!r} to be the head.",
                allowed=f"Allowed: {allowed}.",
                remedy=f"Near: {listed(near)}." if near else "",
            )
        if _is_quantized(model, name):
            raise TargetError(f"The head {name!r} is quantised and cannot be trained.", allowed="Floating-point heads.")
    return names, []


def _is_quantized(model: nn.Module, head: str) -> bool:
    return any(map(is_quantized, model.get_submodule(head).parameters()))


def _automatic_head(model: Any) -> tuple[str, ...]:
    """timm's classifier, all that transformers puts beside the body, or a child with a head's usual name."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    names = config.get("classifier") if isinstance(config, Mapping) else None
    if names is None and output_layers(model):
        return ()
    if names is None:
        children = dict(model.named_children())
        names = tuple(name for name in HEAD_NAMES if name in children)[:1]
        body = getattr(model, "base_model_prefix", None)
        if names and body in children:  # a pre_classifier goes before the classifier, and came with it
            names = tuple(name for name in children if name != body)
    names = (names,) if isinstance(names, str) else tuple(names)
    modules = dict(plain_modules(model))
    return tuple(name for name in names if name in modules and list(modules[name].parameters()))


def output_layers(model: Any) -> tuple[str, ...]:
    """The names of the layer that gives a language model's next token; empty where the model is none."""
    if not hasattr(model, "get_output_embeddings"):
        return (OUTPUT_NAME,) if OUTPUT_NAME in dict(model.named_children()) else ()
    output = model.get_output_embeddings()
    return tuple(name for name, module in plain_modules(model) if output is not None and module is output)


def _is_tied(model: nn.Module, head: str) -> bool:
    """Whether a parameter of the head is also a parameter of a module outside it."""
    inside = {id(parameter) for parameter in model.get_submodule(head).parameters()}
    outside = (module for name, module in plain_modules(model) if not is_inside(name, (head,)))
    return any(id(parameter) in inside for module in outside for parameter in module._parameters.values())


def head_of(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The head's parameters and persistent buffers, by their names in the model."""
    return {
        f"{name}.{plain_name(key)}" if name else plain_name(key): value
        for name in head
        for key, value in model.get_submodule(name).state_dict(keep_vars=True).items()
    }


def fits_head(model: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the head can show a value: one of its own shape, or a Linear's of another width, of a like dtype."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    current = getattr(module, leaf)
    if not alike(current.dtype, value.dtype):
        return False
    wider = isinstance(module, nn.Linear) and value.dim() == current.dim() and value.shape[:1] != (0,)
    return bool(current.shape == value.shape or (wider and current.shape[1:] == value.shape[1:]))


def alike(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether numbers of one dtype may be taken for those of the other: both are floating-point, or they are one."""
    return one == other or (one in FLOATS and other in FLOATS)


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


class MixedHead:
    """While it is installed every sample of a batch goes through its own values of the head, in groups of equal ones.

    Args:
        model: The model.
        head: Names of the head's modules.
        values: For every sample the head's values by their names in the model, equal objects for equal heads; None:
            those that the model shows.

    Raises:
        StateError: The values have not the shapes of the model's own: one batch has one width.
    """

    def __init__(self, model: nn.Module, head: Sequence[str], values: Sequence[Values]) -> None:
        self._model, self._head, self._samples = model, head, len(values)
        self._forwards: dict[nn.Module, _GroupedForward] = {}
        groups: dict[int, tuple[Values, list[int]]] = {}
        for sample, each in enumerate(values):
            groups.setdefault(id(each), (each, []))[1].append(sample)
        self._groups = list(groups.values())
        shown = head_of(model, head)
        for each, samples in self._groups:
            if odd := [name for name, value in (each or {}).items() if value.shape != shown[name].shape]:
                raise StateError(
                    f"The head of sample {samples[0]} has another shape than the head in use: {listed(odd)}.",
                    allowed="The heads of one batch are equally wide.",
                    remedy="Run adapters with heads of another width in a batch of their own.",
                )

    def install(self) -> None:
        """Replaces the forward of the head's modules until `remove`."""
        for name in self._head:
            module = self._model.get_submodule(name)
            forward = self._forwards[module] = _GroupedForward(name, module, self._samples, self._groups)
            module.__dict__["forward"] = forward
        self._hook = self._model.register_forward_hook(self._check)

    def _check(self, *_: Any) -> None:
        if silent := [forward.name for forward in self._forwards.values() if not forward.called]:
            raise StateError(
                f"The model does not call its head {listed(silent)}: its samples' own values did not play.",
                remedy="Switch to one adapter for the whole batch.",
            )

    def remove(self) -> None:
        """Gives the head's modules their own forward back."""
        self._hook.remove()
        for module, forward in self._forwards.items():
            del module.__dict__["forward"]
            if forward.replaced is not None:
                module.__dict__["forward"] = forward.replaced


class _GroupedForward:
    def __init__(self, name: str, module: nn.Module, samples: int, groups: Sequence[tuple[Values, list[int]]]) -> None:
        self.name = name
        self.called = False
        self.replaced = module.__dict__.get("forward")
        self._plain = Own(module)
        self._samples = samples
        own = dict(module.state_dict(keep_vars=True))
        self._groups = [
            ({f"module.{key}": values[f"{name}.{key}"].to(now) for key, now in own.items()} if values else {}, members)
            for values, members in groups
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.called = True
        rows = next((len(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), 0)
        if not rows or rows % self._samples:
            raise StateError(
                f"The head {self.name!r} gets {rows} rows for {self._samples} samples: they cannot be told apart.",
                remedy="Switch to one adapter for the whole batch.",
            )
        outputs, order = [], []
        for values, members in self._groups:
            each = rows // self._samples
            mine = [row for sample in members for row in range(sample * each, (sample + 1) * each)]
            order += mine

            def some(value: Any, mine: list[int] = mine) -> Any:
                whole = isinstance(value, Tensor) and value.dim() and len(value) == rows
                return value[torch.tensor(mine, device=value.device)] if whole else value

            given = [some(value) for value in args], {key: some(value) for key, value in kwargs.items()}
            outputs.append(functional_call(self._plain, values, tuple(given[0]), given[1]))
        if not all(isinstance(output, Tensor) and output.dim() for output in outputs):
            kind = type(outputs[0]).__name__
            raise StateError(f"The head {self.name!r} gives a {kind}, not a tensor.", remedy="Switch to one adapter.")
        together = torch.cat(outputs)
        return together[torch.argsort(torch.tensor(order, device=together.device))]


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether the module or tensor of this name is one of the modules or within it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
