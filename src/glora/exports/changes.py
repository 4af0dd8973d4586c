"""What a genotype does to every layer: the weight's change as a pair of factors, and the bias's shift.

    W = W0 + W0 * A + B = W0 + down up,   b = b0 + shift            Eq. 13 and 14 of arXiv 2306.07967

Shapes: `o` out, `i` in, `r` rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glora.adapt.adapted import Adapted
from glora.adapt.attach import base_of
from glora.adapt.layers.view import View
from glora.adapt.sites import LayerWeight, weights_by_site
from glora.adapt.support import Support
from glora.errors import GloraError, StateError, listed
from glora.genotype import Genotype, LayerConfig, Site

__all__ = ["Change", "active_genotype", "changes_of", "cut"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the genotype does to one site.

    Attributes:
        name: The site's name.
        site: The site.
        config: Its choices.
        layers: The layer weights that are this parameter, several where it is tied.
        w0: The frozen weight as `(o, i)`.
        b0: The frozen bias, `(o,)`, or None.
        support: Its support tensors.
        pair: `(o, r)` and `(r, i)` whose product is the change of the weight; None: it is none, or of full rank.
        dense: The change of the weight, `(o, i)`, where it is of no low rank; else None.
        vector: A, where it is a vector or scalar, `(n, 1)`: of the matrix product n is the inputs of a place of a
            kernel, of the elementwise one `o`; a scalar's n is 1. None: A is none or a LoRA, or the weight a diagonal.
        added: B as a pair; None: it is none, or the weight a diagonal.
        shift: What is added to the bias, `(o,)`, or None.
        error: The Frobenius norm of what `pair` lacks, as a share of the change's.
    """

    name: str
    site: Site
    config: LayerConfig
    layers: Sequence[LayerWeight]
    w0: Tensor
    b0: Tensor | None
    support: Support
    pair: tuple[Tensor, Tensor] | None
    dense: Tensor | None
    vector: Tensor | None
    added: tuple[Tensor, Tensor] | None
    shift: Tensor | None
    error: float = 0.0

    @property
    def view(self) -> View:
        """How the layer shows the weight."""
        return self.layers[0].view

    @property
    def changes_weight(self) -> bool:
        """Whether the weight is changed."""
        return self.pair is not None or self.dense is not None

    @property
    def rank(self) -> int:
        """Of the pair; 0 without one."""
        return 0 if self.pair is None else self.pair[1].shape[0]

    def full(self) -> Tensor:
        """The change of the weight as `(o, i)`."""
        if self.dense is not None:
            return self.dense
        assert self.pair is not None
        return self.pair[0] @ self.pair[1]


def active_genotype(adapted: Adapted) -> Genotype:
    """The one genotype that plays.

    Raises:
        StateError: The model is merged or detached, or plays one genotype per sample.
    """
    adapted.parameters()  # raises where it is not attached, or several adapters play
    if not isinstance(adapted.active, Genotype):
        raise StateError("One genotype per sample is active.", remedy="Activate the one genotype to export.")
    return adapted.active


@torch.no_grad()
def changes_of(adapted: Adapted) -> list[Change]:
    """What the active genotype does, site by site, in the model's order; sites where it does nothing are left out.

    Raises:
        StateError: As `active_genotype`.
        GloraError: A number is not finite.
    """
    genotype, found = active_genotype(adapted), []
    every = weights_by_site(adapted.model)
    for name, config in genotype.items():
        if all(choice.kind == "none" for choice in config):
            continue
        change = _change(name, adapted.sites[name], config, every[name], adapted.supports[name])
        if change.changes_weight or change.shift is not None:
            found.append(change)
    if broken := [change.name for change in found if not _finite(change)]:
        raise GloraError(
            f"The numbers of {listed(broken)} have a NaN or infinity.", remedy="Train again with a lower learning rate."
        )
    return found


def _finite(change: Change) -> bool:
    every = (*(change.pair or ()), change.dense, change.shift)
    return all(bool(value.isfinite().all()) for value in every if value is not None)


def _change(name: str, site: Site, config: LayerConfig, layers: Sequence[LayerWeight], support: Support) -> Change:
    one = layers[0]
    weight, b0 = (None if value is None else _plain(value) for value in base_of(one.layer, one.slot))
    assert weight is not None
    w0 = one.view.matrix(weight)
    pair = dense = None
    (a, a_up), (b, b_up) = support.factors("A", config), support.factors("B", config)
    added = None if site.diagonal else _added(site, b, b_up)
    if site.diagonal or (a is not None and not (support.is_matrix and a_up is not None)):
        dense = one.view.matrix(support.weight(one.view, weight, config)) - w0
    else:
        pair = _together(_scaled(site, w0, a, a_up), added)
    if dense is not None and not dense.any():
        dense = None
    for each in (pair, added):
        if each is not None and site.fixed is not None:  # its row stays the base's
            each[0][site.fixed] = 0
    vector = a if a_up is None and not site.diagonal else None
    shift = support.shift(one.view, weight, b0, config)
    parts: dict[str, Any] = {"name": name, "site": site, "config": config, "layers": layers, "support": support}
    parts |= {"pair": pair, "dense": dense, "vector": vector, "added": added}
    return Change(**parts, w0=w0, b0=b0, shift=None if shift is None else shift.float())


def _plain(value: Tensor) -> Tensor:
    """In at least float32; of a quantised weight its numbers."""
    value = value.detach()
    if hasattr(value, "dequantize") and type(value) is not torch.nn.Parameter and type(value) is not Tensor:
        value = value.dequantize()
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _scaled(site: Site, w0: Tensor, a: Tensor | None, a_up: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """`W0 A` of the matrix product with a LoRA A, `(W0 A_down) A_up` at every place of a kernel, as one pair."""
    if a is None or a_up is None:
        return None
    places = site.in_features // site.mixed
    by_place = w0.reshape(len(w0), site.mixed, places).transpose(1, 2)  # (o, k, mixed)
    down = (by_place @ a.to(w0.dtype)).flatten(1)  # (o, k r)
    one = torch.eye(places, dtype=a_up.dtype, device=a_up.device)
    up = torch.einsum("rm,kp->krmp", a_up, one).reshape(-1, site.in_features)  # (k r, i)
    return down, up.to(w0.dtype)


def _added(site: Site, b: Tensor | None, b_up: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """B as a pair: a vector or scalar is of rank one."""
    if b is None:
        return None
    if b_up is None:
        return b.expand(site.out_features, 1).clone(), torch.ones(1, site.in_features, device=b.device)
    return b.clone(), b_up.clone()


def _together(*pairs: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """The sum of the products, as one pair: the ranks add."""
    given = [pair for pair in pairs if pair is not None]
    if not given:
        return None
    return torch.cat([down.float() for down, _ in given], 1), torch.cat([up.float() for _, up in given])


@torch.no_grad()
def cut(change: Change, rank: int) -> Change:
    """The same change with a pair of at most this rank: exact where it fits, else the nearest in the Frobenius norm.

    Source: Eckart and Young, 1936: the first singular vectors.
    """
    if change.dense is None and change.rank <= rank:
        return change
    left, values, right = torch.linalg.svd(change.full().double(), full_matrices=False)
    tiny = values[0] * max(change.full().shape) * torch.finfo(torch.float32).eps
    kept = min(rank, max(1, int((values > tiny).sum())))
    error = float((values[kept:].square().sum() / values.square().sum()).sqrt()) if values[0] > 0 else 0.0
    root = values[:kept].sqrt()
    pair = ((left[:, :kept] * root).float(), (root[:, None] * right[:kept]).float())
    return replace(change, pair=pair, dense=None, error=error if error > torch.finfo(torch.float32).eps else 0.0)
