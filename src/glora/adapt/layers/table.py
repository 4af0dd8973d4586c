"""The table of layer types: which can be adapted, and how each shows its weights."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from glora.adapt.layers.quantized import is_quantized
from glora.adapt.layers.view import View
from glora.registry import load

__all__ = ["TABLE", "WORDS", "row_of", "views_of"]

TABLE: dict[str, str] = {  # layer type, a pattern for its full name -> how it shows its weight
    "torch.nn.modules.linear.Linear": "glora.adapt.layers.quantized:AnyLinear",
    "transformers.pytorch_utils.Conv1D": "glora.adapt.layers.linear:Conv1D",
    "torch.nn.modules.normalization.LayerNorm": "glora.adapt.layers.norm:LayerNorm",
    "torch.nn.modules.normalization.RMSNorm": "glora.adapt.layers.norm:RMSNorm",
    "torch.nn.modules.normalization.GroupNorm": "glora.adapt.layers.norm:GroupNorm",
    "torch.nn.modules.batchnorm.BatchNorm?d": "glora.adapt.layers.norm:BatchNorm",
    "torch.nn.modules.batchnorm.SyncBatchNorm": "glora.adapt.layers.norm:Norm",
    "torch.nn.modules.instancenorm.InstanceNorm?d": "glora.adapt.layers.norm:Norm",
    "timm.layers.norm.LayerNorm": "glora.adapt.layers.norm:LayerNorm",
    "timm.layers.norm.LayerNorm2d": "glora.adapt.layers.norm:LayerNorm2d",
    "timm.layers.norm.GroupNorm": "glora.adapt.layers.norm:GroupNorm",
    "timm.layers.norm.GroupNorm1": "glora.adapt.layers.norm:GroupNorm",
    "timm.layers.*Norm*": "glora.adapt.layers.norm:Norm",
    "transformers.*LayerNorm*": "glora.adapt.layers.norm:Norm",
    "*RMSNorm*": "glora.adapt.layers.norm:Norm",
    "*RmsNorm*": "glora.adapt.layers.norm:Norm",
    "torch.nn.modules.sparse.Embedding*": "glora.adapt.layers.embedding:Embedding",
    "torch.nn.modules.conv.Conv[123]d": "glora.adapt.layers.conv:Conv",
    "torch.nn.modules.conv.ConvTranspose[123]d": "glora.adapt.layers.conv:ConvTranspose",
    "torch.nn.modules.activation.MultiheadAttention": "glora.adapt.layers.attention:Attention",
    "bitsandbytes.nn.modules.Linear4bit": "glora.adapt.layers.quantized:Linear4bit",
    "bitsandbytes.nn.modules.Linear8bitLt": "glora.adapt.layers.quantized:Linear8bitLt",
}
WORDS: dict[str, tuple[str, ...]] = {  # words that `targets` understands -> kinds of sites
    "linear": ("linear", "attention"),
    "conv": ("conv",),
    "norm": ("norm",),
    "embedding": ("embedding",),
    "all": ("linear", "attention", "conv", "norm", "embedding"),
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

    A weight that is no floating-point parameter of its own, is parametrized, or is not made yet is left out; so is
    a quantised one, which pretends to be floating-point, unless the row's view knows such weights.
    """
    row = row_of(layer)
    if row is None or parametrize.is_parametrized(layer):
        return {}
    floats = {name for name, value in layer._parameters.items() if value is not None and _is_float(value)}
    views = row[0].of(layer, floats)
    return {slot: view for slot, view in views.items() if view.site.out_features and view.site.in_features}


def _is_float(value: nn.Parameter) -> bool:
    made = not isinstance(value, nn.UninitializedParameter)
    return made and value.is_floating_point() and not is_quantized(value)
