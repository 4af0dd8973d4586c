"""The factored product: the adapted layer's output without building its weight. The other way is in `support.py`.

    y = W0 (x + A x) + B x + b           a matrix-product A
    y = (1 + A) (W0 x + b0) + B x + ...  an elementwise vector or scalar A

No gradient of the size of W0 is formed. An elementwise LoRA A alone needs the effective weight.
Shapes: `n` samples, `o` out, `i` in, `r` rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from glora.genotype import Choice, LayerConfig
from glora.layers.product import product
from glora.space import factor_shapes
from glora.support import Support

if TYPE_CHECKING:
    from glora.layers.view import View

__all__ = ["Play", "in_groups", "one", "per_sample"]

Play = tuple[Support, LayerConfig]
Key = TypeVar("Key", bound=Hashable)


def one(play: Play, view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """The output for one configuration, by the cheaper way.

    Args:
        play: Support tensors and what to read of them.
        view: How the layer shows its weight.
        layer: The layer.
        x: Its input.
        w0: The frozen weight, in the layer's shape.
        b0: The frozen bias, `(o,)`, or None.

    Returns:
        What the plain layer returns, in its dtype.
    """
    support, config = play
    plain = x.dtype == w0.dtype and not torch.is_autocast_enabled(x.device.type)
    frozen = not (w0.requires_grad or (b0 is not None and b0.requires_grad))  # a user may train the base as well
    transformed = torch._C._are_functorch_transforms_active()  # vmap and grad know no such Function
    if view.last and plain and frozen and not transformed:
        return product(play, view, layer, x, w0, b0)
    if view.builds(config, support.is_matrix):
        with torch.autocast(x.device.type, enabled=False):
            w, b = support.weight(view, w0, config), support.bias(view, w0, b0, config)
        return view.plain(layer, x, w, b)
    (a, a_up), (b, b_up) = support.factors("A", config), support.factors("B", config)
    if a is None or support.is_matrix:
        with torch.autocast(x.device.type, enabled=False):
            bias = support.bias(view, w0, b0, config)
        scaled = x
        if a is not None:
            scaled = view.stretched(x, a.squeeze(-1)) if a_up is None else view.mixed(x, a, a_up)
        y = view.plain(layer, scaled, w0, bias)
        dtype = y.dtype
    else:  # scale the plain output, so that a fresh adapter changes no bit
        with torch.autocast(x.device.type, enabled=False):
            shift = support.shift(view, w0, b0, config)
        y0 = view.plain(layer, x, w0, b0)
        y, dtype = _scaled(view, layer, y0, a.squeeze(-1), b0, shift), y0.dtype
    if b is not None:
        y = y.to(torch.promote_types(dtype, b.dtype))  # rounded once, at the end
    if b is not None and b_up is None:
        y = y + view.total(layer, x) * view.spread(layer, b.squeeze(-1), y)
    elif b is not None and b_up is not None:
        z = view.narrow(layer, x, b_up)
        with torch.autocast(x.device.type, enabled=False):
            y = view.widened(y, z, b)
    return y.to(dtype)


def _scaled(view: View, layer: Any, y0: Tensor, scale: Tensor, b0: Tensor | None, shift: Tensor | None) -> Tensor:
    """`(1 + scale) (y0 - b0) + b0 + shift` in at least float32, with `1 + scale` applied to the whole of y0."""
    if b0 is not None:
        shift = (0 if shift is None else shift) - scale * b0
    factor = view.spread(layer, 1 + scale, y0)
    exact = y0.to(torch.promote_types(y0.dtype, factor.dtype))
    return exact * factor if shift is None else torch.addcmul(view.spread(layer, shift, y0), exact, factor)


def per_sample(plays: Sequence[Play], view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """The output with one configuration per sample, in one pass: every sample looks up its own numbers.

    Args:
        plays: Support tensors and configuration of every sample; x has as many samples, or a multiple (windows,
            those of a sample next to each other).
        view: How the layer shows its weight.
        layer: The layer.
        x: Its input, samples first.
        w0: The frozen weight, in the layer's shape.
        b0: The frozen bias, `(o,)`, or None.

    Returns:
        What the plain layer returns, in its dtype.
    """
    device, rows = x.device, x.shape[0] // len(plays)

    def of_samples(table: Tensor, index: Sequence[int]) -> Tensor:  # (k, m) to (n, m)
        return table[torch.tensor(index, device=device).repeat_interleave(rows)]

    scaled = x
    if found := _vectors(plays, "A", is_matrix=True):
        scaled = view.stretched(scaled, of_samples(*found))
    if columns := _columns(plays, "A", is_matrix=True):
        down, up, mask = columns
        scaled = view.mixed(scaled, down, up, of_samples(mask, range(len(plays))))
    y = _grouped(plays, view, layer, scaled, w0, b0)
    dtype = y.dtype  # rounded once, at the end
    with torch.autocast(device.type, enabled=False):
        shifts = _shifts(plays, view, w0, b0)
    shift = None if shifts is None else of_samples(*shifts)
    if found := _vectors(plays, "A", is_matrix=False):
        y = _scaled(view, layer, y, of_samples(*found), b0, shift)
    elif shift is not None:
        y = y + view.spread(layer, shift, y)
    if found := _vectors(plays, "B"):
        y = y + view.total(layer, x) * view.spread(layer, of_samples(*found), y)
    if columns := _columns(plays, "B"):
        down, up, mask = columns
        z = view.narrow(layer, x, up, of_samples(mask, range(len(plays))))
        with torch.autocast(device.type, enabled=False):
            y = view.widened(y.to(torch.promote_types(dtype, down.dtype)), z, down)
    return y.to(dtype)


def _vectors(plays: Sequence[Play], tensor: str, *, is_matrix: bool | None = None) -> tuple[Tensor, list[int]] | None:
    """What every distinct vector or scalar of the samples reads, `(k, m)`, zeros for other choices, and the row of
    every sample; None where no sample has one. Samples of the other product have none."""
    wanted = [_choice(play, tensor, is_matrix, ("vector", "scalar")) for play in plays]
    distinct = list(dict.fromkeys(wanted))
    read = {}
    for key in distinct:
        if key is not None:
            support, choice = key
            down = support.down[tensor][:, 0] * support.scale(tensor, choice)
            length = next(iter(factor_shapes(support.site, tensor, Choice("vector"), support.space.product).values()))
            read[key] = down if choice.kind == "vector" else down[0].expand(length[0])
    if not read:
        return None
    nothing = torch.zeros_like(next(iter(read.values())))
    table = torch.stack([nothing if key is None else read[key] for key in distinct])
    return table, _rows(distinct, wanted)


def _columns(
    plays: Sequence[Play], tensor: str, *, is_matrix: bool | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The LoRA factors that the samples read, side by side, `(m, R)` and `(R, m)`, and which columns of them are every
    sample's own: `(samples, R)` of 1 and 0; None where no sample has LoRA."""
    wanted = [_choice(play, tensor, is_matrix, ("lora",)) for play in plays]
    ranks: dict[Support, int] = {}
    for key in wanted:
        if key is not None:
            ranks[key[0]] = max(ranks.get(key[0], 0), key[1].rank)
    if not ranks:
        return None
    downs = torch.cat([support.down[tensor][:, :rank] for support, rank in ranks.items()], 1)
    lora = Choice("lora")
    ups = torch.cat([support.up[tensor][:rank] * support.scale(tensor, lora) for support, rank in ranks.items()])
    first = dict(zip(ranks, itertools.accumulate(ranks.values(), initial=0), strict=False))
    mask = torch.zeros(len(plays), downs.shape[1])
    for sample, key in enumerate(wanted):
        if key is not None:
            start = first[key[0]]
            mask[sample, start : start + key[1].rank] = 1
    return downs, ups, mask.to(downs.device)


def _rows(distinct: Sequence[Any], wanted: Sequence[Any]) -> list[int]:
    """Where each is among the distinct ones; `list.index` does not compile."""
    rows = {key: row for row, key in enumerate(distinct)}
    return [rows[key] for key in wanted]


def _choice(play: Play, tensor: str, is_matrix: bool | None, kinds: Sequence[str]) -> tuple[Support, Choice] | None:
    support, config = play
    choice: Choice = getattr(config, tensor)
    return (support, choice) if choice.kind in kinds and is_matrix in (None, support.is_matrix) else None


def _grouped(plays: Sequence[Play], view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """`(W0 + W0 ∘ A) x + b0` for the samples whose A is an elementwise LoRA, `W0 x + b0` for the others."""

    def output(key: tuple[Support, Choice] | None, some: Tensor) -> Tensor:
        w = w0
        if key is not None:
            with torch.autocast(x.device.type, enabled=False):
                w = key[0].weight(view, w0, LayerConfig(A=key[1]))
        return view.plain(layer, some, w, b0)

    return in_groups([_choice(play, "A", False, ("lora",)) for play in plays], x, output)


def in_groups(keys: Sequence[Key], x: Tensor, output: Callable[[Key, Tensor], Tensor]) -> Tensor:
    """The outputs of the samples, computed together for all samples of one key.

    Args:
        keys: Every sample's key.
        x: The input, samples first, or a multiple of them.
        output: The output of a key and the input of its samples.
    """
    rows = x.shape[0] // len(keys)
    groups: dict[Key, list[int]] = {}
    for sample, key in enumerate(keys):
        groups.setdefault(key, []).extend(range(sample * rows, (sample + 1) * rows))
    if len(groups) == 1:
        return output(keys[0], x)
    outputs = [output(key, x[torch.tensor(indices, device=x.device)]) for key, indices in groups.items()]
    order = torch.tensor([index for indices in groups.values() for index in indices], device=x.device)
    return torch.cat(outputs)[torch.argsort(order)]


def _shifts(plays: Sequence[Play], view: View, w0: Tensor, b0: Tensor | None) -> tuple[Tensor, list[int]] | None:
    """The shift of the bias of every distinct C, D, E of the samples, `(k, o)`, and the row of every sample."""
    wanted = [(support, LayerConfig(C=config.C, D=config.D, E=config.E)) for support, config in plays]
    distinct = list(dict.fromkeys(wanted))
    shifts = [support.shift(view, w0, b0, config) for support, config in distinct]
    known = next((shift for shift in shifts if shift is not None), None)
    if known is None:
        return None
    table = torch.stack([torch.zeros_like(known) if shift is None else shift for shift in shifts])
    return table, _rows(distinct, wanted)
