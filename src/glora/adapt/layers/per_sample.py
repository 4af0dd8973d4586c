"""The adapted layer's output with one configuration per sample, in one pass: every sample reads its own numbers.

What the samples read lies side by side: a vector or a LoRA column that any of them reads is one row, and a mask says
which samples play it. Where features are last all of it is one narrow product beside the frozen one,

    y = (1 + s) (W0 (x + a∘x) + b0) + downᵀ (mask ∘ (up x, 1))

with its gradients written by hand: a and s of a sample are what its matrix-product or elementwise vector A reads; the
rows of down are those of B, of W0 A, and, beside no row of up, of the bias. Of an elementwise LoRA A every rank has a
weight of its own, and its samples are computed together.

Shapes: `n` samples, `o` out, `i` in, `r` rows. x has as many samples, or a multiple (windows, those of a sample next to
each other).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from glora.adapt.layers.factored import add_wide, applied, by_hand, fresh, one, rescaled, rows, twice
from glora.adapt.layers.view import Play, View
from glora.adapt.support import Support
from glora.errors import StateError
from glora.genotype import Choice, LayerConfig
from glora.space import factor_shapes

__all__ = ["forward", "in_groups"]

Key = TypeVar("Key", bound=Hashable)
Read = Callable[[Support, Choice], Tensor | None]
Row = tuple[Tensor, list[bool]]  # numbers, and which samples play them
IN_CACHE = 1024  # rows of a batch: what is read several times stays in a processor's caches, and products are as quick


def forward(view: View, plays: Sequence[Play], layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """The adapted layer's output, for one configuration or one per sample.

    Args:
        view: How the layer shows its weight.
        plays: Support tensors and what to read of them, one for all or one for each of the n samples.
        layer: The layer.
        x: Its input, samples first.
        w0: The frozen weight, in the layer's shape.
        b0: The frozen bias, `(o,)`, or None.

    Returns:
        What the plain layer returns, in its dtype.
    """
    own = view.output(plays, layer, x, w0, b0)
    if own is not None:
        return own
    if len(plays) == 1:
        return one(plays[0], view, layer, x, w0, b0)
    drops = layer.training and any(support.dropout for support, _ in plays)
    built = any(config.A.kind == "lora" and not support.is_matrix for support, config in plays)
    if by_hand(view, x, w0, b0) and not drops and not built:
        return _product(plays, view, layer, x, w0, b0)
    return _pieces(plays, view, layer, x, w0, b0)


def _pieces(plays: Sequence[Play], view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """The output put together from what the view has."""

    def of_rows(found: Sequence[Row]) -> Tensor | None:
        numbers = _of_samples(found, x)
        return None if numbers is None else numbers.repeat_interleave(len(x) // len(plays), 0)

    scaled = x
    if (stretch := of_rows(_vectors(plays, "A", is_matrix=True))) is not None:
        scaled = view.stretched(scaled, stretch)
    for down, up, played in _loras(plays, "A", is_matrix=True):
        scaled = view.mixed(scaled, down.T, up, _mask(played, x))
    y = _grouped(plays, view, layer, scaled, w0, b0)
    dtype = y.dtype  # rounded once, at the end
    with torch.autocast(x.device.type, enabled=False):
        shift = of_rows(_shifts(plays, view, w0, b0))
    if (scale := of_rows(_vectors(plays, "A", is_matrix=False))) is not None:
        y = rescaled(view, layer, y, scale, b0, shift)
    elif shift is not None:
        y = y + view.spread(layer, shift, y)
    if (vector := of_rows(_vectors(plays, "B"))) is not None:
        y = y + view.total(layer, x) * view.spread(layer, vector, y)
    for down, up, played in _loras(plays, "B"):
        z = view.narrow(layer, _dropped(plays, layer, x), up, _mask(played, x))
        with torch.autocast(x.device.type, enabled=False):
            y = view.widened(y.to(torch.promote_types(dtype, down.dtype)), z, down.T)
    return y.to(dtype)


def _product(plays: Sequence[Play], view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """The output with gradients written by hand, without autocast."""
    w = view.matrix(w0)
    columns = [(down.to(w.dtype) @ w.T, up, who) for down, up, who in _loras(plays, "A", is_matrix=True)]
    columns += _loras(plays, "B")  # above, W0 A is one more LoRA; below, a vector is one of rank one
    columns += [(down.unsqueeze(0), down.new_ones(1, w.shape[1]), [who]) for down, who in _vectors(plays, "B")]
    scales, shifts = _vectors(plays, "A", is_matrix=False), _shifts(plays, view, w0, b0)
    if b0 is not None:
        shifts += [(-scale * b0, who) for scale, who in scales]
    downs = [down.to(w.dtype) for down, _, _ in columns] + [shift.to(w.dtype).unsqueeze(0) for shift, _ in shifts]
    played = [who for _, _, every in columns for who in every] + [who for _, who in shifts]
    if not played:
        down = up = mask = None
    else:
        down, mask = torch.cat(downs), torch.tensor(played, dtype=w.dtype, device=w.device)
        up = torch.cat([up for _, up, _ in columns]).to(w.dtype) if columns else None
    stretch = _of_samples(_vectors(plays, "A", is_matrix=True), x)
    scale = _of_samples(scales, x)
    if stretch is None and scale is None and mask is None:
        return view.plain(layer, x, w0, b0)
    return applied(_Product, view, layer, x, w0, b0, stretch, scale, down, up, mask)


class _Product(torch.autograd.Function):
    """`(1 + s) (W0 (x + a∘x) + b0) + downᵀ (mask ∘ (up x, 1))`; a `(n, i)`, s `(n, o)`, down `(r, o)`, mask `(r, n)`.

    The first rows of down are those of up; the others are added as they are.
    """

    @staticmethod
    def forward(
        ctx: Any, view: View, layer: Any, x: Tensor, w0: Tensor, b0: Any, a: Any, s: Any, down: Any, up: Any, mask: Any
    ) -> Tensor:
        plain = y = view.plain(layer, x if a is None else _times(x, a), w0, b0)
        if s is not None:
            y = _times(plain, s)
        z = None
        if up is not None:
            z = _spread(mask[: len(up)], x).mul_(up @ rows(x).T)
        if down is not None:
            add_wide(y, _with_constants(z, mask, x), down)
        ctx.view = view
        reads = a is not None or (up is not None and up.requires_grad)
        ctx.save_for_backward(x if reads else None, w0, a, s, plain if s is not None else None, down, up, mask, z)
        return fresh(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if twice():
            raise StateError(
                "Several genotypes are active, and a backward pass is differentiated (create_graph=True).",
                remedy="Activate one genotype, or play it within hold(genotype, train=True).",
            )
        x, w0, a, s, plain, down, up, mask, z = ctx.saved_tensors
        w, flat = ctx.view.matrix(w0), rows(dy)
        samples = next(len(each) for each in (a, s, None if mask is None else mask.T) if each is not None)
        dx = flat.new_empty(len(flat), w.shape[1]) if ctx.needs_input_grad[2] or a is not None else None
        da, ds, d_down = (None if each is None else torch.zeros_like(each) for each in (a, s, down))
        d_up = torch.zeros_like(up) if ctx.needs_input_grad[8] else None
        for some, lines in _parts(samples, len(flat) // samples, flat.device):
            d_plain = part = flat[lines]
            if s is not None and ds is not None:
                ds[some] = _apart(part * rows(plain)[lines], s[some]).sum(1)
                d_plain = _times(part, s[some])
            if dx is not None:
                torch.mm(d_plain, w, out=dx[lines])
            if a is not None and da is not None and dx is not None:
                da[some] = _apart(dx[lines] * rows(x)[lines], a[some]).sum(1)
                _apart(dx[lines], a[some]).mul_((1 + a[some]).to(dx.dtype).unsqueeze(1))
            if d_down is not None:
                d_down.addmm_(_with_constants(None if z is None else z[:, lines], mask[:, some], part), part)
            if up is not None:
                dz = (down[: len(up)] @ part.T).mul_(_spread(mask[: len(up), some], part))
                d_up = None if d_up is None else d_up.addmm_(dz, rows(x)[lines])
                if dx is not None:
                    dx[lines].addmm_(dz.T, up)
        dx = None if dx is None else dx.view(*dy.shape[:-1], dx.shape[-1])
        return None, None, dx, None, None, da, ds, d_down, d_up, None


def _parts(samples: int, each: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Samples, and their rows, that are computed together: all, or on a CPU as many as stay in its caches.

    Args:
        samples: How many there are.
        each: Rows of one.
        device: Where they are.
    """
    step = max(1, IN_CACHE // max(1, each)) if device.type == "cpu" else samples
    for first in range(0, samples, step):
        last = min(first + step, samples)
        yield slice(first, last), slice(first * each, last * each)


def _apart(x: Tensor, samples: Tensor) -> Tensor:
    """x as `(n, rows of a sample, features)`."""
    return x.reshape(len(samples), -1, x.shape[-1])


def _times(x: Tensor, change: Tensor) -> Tensor:
    """`(1 + change) x` of x `(..., m)` and the change of every sample, `(n, m)`; computed in at least float32."""
    return (_apart(x, change) * (1 + change).unsqueeze(1)).to(x.dtype).view(x.shape)


def _spread(mask: Tensor, x: Tensor) -> Tensor:
    """The mask `(r, n)` for every row of x, `(r, rows)`."""
    return mask.repeat_interleave(rows(x).shape[0] // mask.shape[1], 1)


def _with_constants(z: Tensor | None, mask: Tensor, x: Tensor) -> Tensor:
    """z, and below it the ones of the rows that do not read x."""
    constants = mask if z is None else mask[len(z) :]
    if z is not None and not len(constants):
        return z
    ones = _spread(constants, x)
    return ones if z is None else torch.cat([z, ones])


# What the samples read


def _loras(
    plays: Sequence[Play], tensor: str, *, is_matrix: bool | None = None
) -> Iterator[tuple[Tensor, Tensor, list[list[bool]]]]:
    """The factors `(r, o)` and `(r, i)` of every adapter of which a sample plays LoRA, and who plays each column."""
    wanted = [_choice(play, tensor, is_matrix, ("lora",)) for play in plays]
    for support in dict.fromkeys(key[0] for key in wanted if key is not None):
        ranks = [key[1].rank if key is not None and key[0] is support else 0 for key in wanted]
        whole, most = support.whole(tensor), max(ranks)
        up = whole["up"][:most] * support.scale(tensor, Choice("lora"))
        yield whole["down"][:, :most].T, up, [[rank > column for rank in ranks] for column in range(most)]


def _played(
    plays: Sequence[Play],
    tensor: str,
    read: Read,
    kinds: Sequence[str] = ("vector", "scalar"),
    *,
    is_matrix: bool | None = None,
) -> Iterator[Row]:
    """What is read of every distinct choice of these kinds, and who plays it. Samples of the other product do not."""
    wanted = [_choice(play, tensor, is_matrix, kinds) for play in plays]
    for key in dict.fromkeys(wanted):
        if key is not None and (numbers := read(*key)) is not None:
            yield numbers, [other == key for other in wanted]


def _vectors(plays: Sequence[Play], tensor: str, *, is_matrix: bool | None = None) -> list[Row]:
    """Every distinct vector or scalar of A or B, each as a vector."""

    def read(support: Support, choice: Choice) -> Tensor:
        numbers = support.whole(tensor)["down"][:, 0] * support.scale(tensor, choice)
        length = next(iter(factor_shapes(support.site, tensor, Choice("vector"), support.space.product).values()))
        return numbers if choice.kind == "vector" else numbers[0].expand(length[0])

    return list(_played(plays, tensor, read, is_matrix=is_matrix))


def _shifts(plays: Sequence[Play], view: View, w0: Tensor, b0: Tensor | None) -> list[Row]:
    """The shift of the bias, `(o,)`, of every distinct choice of C, D and E."""
    found: list[Row] = []
    for tensor in "CDE":

        def read(support: Support, choice: Choice, tensor: str = tensor) -> Tensor | None:
            return support.shift(view, w0, b0, LayerConfig(**{tensor: choice}))

        found += _played(plays, tensor, read, ("lora", "vector", "scalar"))
    return found


def _choice(play: Play, tensor: str, is_matrix: bool | None, kinds: Sequence[str]) -> tuple[Support, Choice] | None:
    support, config = play
    choice: Choice = getattr(config, tensor)
    return (support, choice) if choice.kind in kinds and is_matrix in (None, support.is_matrix) else None


def _of_samples(found: Sequence[Row], x: Tensor) -> Tensor | None:
    """What every sample reads in sum, `(n, m)`; None where no sample reads anything."""
    if not found:
        return None
    table = torch.stack([numbers for numbers, _ in found])
    return torch.tensor([played for _, played in found], dtype=table.dtype, device=x.device).T @ table


def _mask(played: Sequence[Sequence[bool]], x: Tensor) -> Tensor:
    """Of every row of x which columns it plays, `(rows, r)`."""
    mask = torch.tensor(played, dtype=torch.float32, device=x.device).T
    return mask.repeat_interleave(len(x) // len(mask), 0)


# Pieces that one hand-written product has not


def _dropped(plays: Sequence[Play], layer: Any, x: Tensor) -> Tensor:
    """The input of B's LoRA: in training mode every sample's numbers dropped with its own probability."""
    rates = [support.dropout if support.drops == "input" else 0.0 for support, _ in plays]
    if not layer.training or not any(rates):
        return x
    if len(set(rates)) == 1:
        return F.dropout(x, rates[0])
    kept = torch.tensor([1 - rate for rate in rates], device=x.device).repeat_interleave(x.shape[0] // len(plays))
    kept = kept.view(-1, *[1] * (x.dim() - 1))
    return x * ((torch.rand_like(x, dtype=kept.dtype) < kept) / kept).to(x.dtype)


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
