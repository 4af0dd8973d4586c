"""PEFT's GLoRA folder: `W0 + W0 ∘ A + B` and `b0 + W0 C + D∘b0 + E` on linear layers, exact for every genotype.

One setting and one rank hold for all layers there: A and B are written as `lora` of the largest rank that a layer
needs, filled up with zeros, C, D and E as vectors. PEFT's product is the elementwise one: a matrix-product vector A
scales columns, `W0 diag(a) = W0 ∘ (1 aᵀ)`, and its LoRA A moves into B, `(W0 A_down) A_up`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from glora.adapt.layers.linear import Conv1D
from glora.exports.changes import Change
from glora.exports.export import Trained
from glora.exports.peft_folder import Contents, PeftFolder, module_of, plain_name

__all__ = ["PeftGlora"]

Pair = tuple[Tensor, Tensor]


class PeftGlora(PeftFolder):
    """PEFT's GLoRA folder: every genotype exactly, on linear layers without new biases."""

    name: Literal["peft-glora"] = "peft-glora"

    def place(self, change: Change) -> str:
        if change.site.diagonal:
            return "whole"
        for weight in change.layers:
            kind = plain_name(weight.layer)
            if weight.site.kind != "linear" or isinstance(weight.view, Conv1D):
                return f"PEFT's GLoRA adapts nn.Linear alone, and this is a {kind}"
            if kind == "NonDynamicallyQuantizableLinear":
                return "nn.MultiheadAttention reads its output projection without calling it"
        if change.shift is not None and change.b0 is None:
            return "it has a new bias, and PEFT's GLoRA adds to biases that there are"
        return "adapter"

    def contents(self, trained: Trained, changes: Sequence[Change]) -> Contents:
        made = {change.name: _products(change) for change in changes}
        rank = max((up.shape[0] for pairs in made.values() for _, up in pairs), default=1) or 1
        tensors, targets = dict[str, Tensor](), list[str]()
        for change in changes:
            for module in module_of(change):
                targets.append(module)
                for tensor, pair in zip("AB", made[change.name], strict=True):
                    down, up = _filled(pair, rank)
                    tensors |= {f"{module}.glora_{tensor}.Xd": down, f"{module}.glora_{tensor}.Xu": up}
                tensors |= {f"{module}.glora_{tensor}.X": value for tensor, value in _vectors(change).items()}
        settings = {
            "peft_type": "GLORA",
            "r": rank,
            "config_A_B": "lora",
            "config_C": "vector",
            "config_D_E": "vector",
        }
        return Contents(settings, tensors, tuple(targets))


@torch.no_grad()
def _products(change: Change) -> tuple[Pair, Pair]:
    """A and B of the elementwise product as pairs, of rank 0 where there is none."""
    o, i = change.site.out_features, change.site.in_features
    ones = torch.ones
    (a, a_up), (b, b_up) = change.support.factors("A", change.config), change.support.factors("B", change.config)
    scale, added = [_none(o, i)], [_none(o, i)]
    if b is not None:
        added.append((b.expand(o, b.shape[1]), ones(1, i) if b_up is None else b_up))
    if a is not None and a_up is not None and change.support.is_matrix:
        added.append((change.w0.float() @ a, a_up))
    elif a is not None and a_up is not None:
        scale.append((a, a_up))
    elif a is not None and change.support.is_matrix:
        scale.append((ones(o, 1), a.T.expand(1, i)))
    elif a is not None:
        scale.append((a.expand(o, 1), ones(1, i)))
    return _sum(scale), _sum(added)


def _none(o: int, i: int) -> Pair:
    return torch.zeros(o, 0), torch.zeros(0, i)


def _sum(pairs: Sequence[Pair]) -> Pair:
    return torch.cat([down for down, _ in pairs], 1), torch.cat([up for _, up in pairs])


def _filled(pair: Pair, rank: int) -> Pair:
    """The pair with zeros up to this rank."""
    down, up = pair
    lacks = rank - up.shape[0]
    return torch.cat([down, torch.zeros(len(down), lacks)], 1), torch.cat([up, torch.zeros(lacks, up.shape[1])])


@torch.no_grad()
def _vectors(change: Change) -> dict[str, Tensor]:
    """C `(i, 1)`, D and E `(o,)`, zeros where there is none."""
    o, i = change.site.out_features, change.site.in_features
    (c, c_up), (d, _), (e, _) = (change.support.factors(tensor, change.config) for tensor in "CDE")
    column = torch.zeros(i, 1) if c is None else c if c_up is None else c @ c_up
    rows = {tensor: torch.zeros(o) if each is None else each.expand(o) for tensor, each in (("D", d), ("E", e))}
    return {"C": column, **rows}
