"""The factored product: the adapted layer's output without building its weight. `support.py` builds it.

    y = W0 (x + A x) + B x + b           a matrix-product A
    y = (1 + A) (W0 x + b0) + B x + ...  an elementwise vector or scalar A

No gradient of the size of W0 is formed. An elementwise LoRA A alone needs the effective weight.

Layers with features last have their gradients written by hand (`product` and below), which takes fewer passes and keeps
less for the backward pass: x, or what is smaller. With many rows in the batch it is cheaper to add the low-rank part to
the weight than to the output; the forward then computes what the merged layer computes, and the backward is factored
all the same. Narrow factors are kept as `(r, n)`: as `(n, r)` their products cost up to seven times as much.

Shapes: `n` samples or rows of the batch, `o` out, `i` in, `r` rank. From `product` on `down` is `(r, o)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glora.adapt.layers.view import Play, View
from glora.adapt.support import Support, changed
from glora.errors import StateError
from glora.genotype import NONE, LayerConfig, interned

__all__ = ["add_wide", "applied", "by_hand", "fresh", "one", "rescaled", "rows", "twice"]


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
    if support.dropout and layer.training:
        if config.B.kind == "lora":
            return _with_dropout(play, view, layer, x, w0, b0)
        if config.A.kind == "lora" and support.drops == "narrow":
            return _with_mixing_dropped(play, view, layer, x, w0, b0)
    if by_hand(view, x, w0, b0):
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
        y, dtype = rescaled(view, layer, y0, a.squeeze(-1), b0, shift), y0.dtype
    if b is not None:
        y = y.to(torch.promote_types(dtype, b.dtype))  # rounded once, at the end
    if b is not None and b_up is None:
        y = y + view.total(layer, x) * view.spread(layer, b.squeeze(-1), y)
    elif b is not None and b_up is not None:
        z = view.narrow(layer, x, b_up)
        with torch.autocast(x.device.type, enabled=False):
            y = view.widened(y, z, b)
    return y.to(dtype)


def by_hand(view: View, x: Tensor, w0: Tensor, b0: Tensor | None) -> bool:
    """Whether the layer's gradients can be those written by hand."""
    plain = x.dtype == w0.dtype and not torch.is_autocast_enabled(x.device.type)
    frozen = not (w0.requires_grad or (b0 is not None and b0.requires_grad))  # a user may train the base as well
    transformed = torch._C._are_functorch_transforms_active()  # vmap and grad know no such Function
    return view.last and plain and frozen and not transformed


def _with_dropout(play: Play, view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """The output whose B, a LoRA, drops numbers of its input or between its factors; all else reads all of x."""
    support, config = play
    y = one((support, interned(config.A, NONE, *config[2:])), view, layer, x, w0, b0)
    b, b_up = support.dropping("B", config)
    if support.drops == "input":
        z = view.narrow(layer, F.dropout(x, support.dropout), b_up)
    else:
        z = F.dropout(view.narrow(layer, x, b_up), support.dropout)
    with torch.autocast(x.device.type, enabled=False):
        return view.widened(y.to(torch.promote_types(y.dtype, b.dtype)), z, b).to(y.dtype)


def _with_mixing_dropped(play: Play, view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
    """The output whose A, a matrix-product LoRA, drops numbers between its factors; features are last, B is `none`."""
    support, config = play
    a, a_up = support.dropping("A", config)
    z = F.dropout(view.narrow(layer, x, a_up), support.dropout)
    with torch.autocast(x.device.type, enabled=False):
        mixed = view.widened(x, z, a)
    return one((support, interned(NONE, *config[1:])), view, layer, mixed, w0, b0)


def rescaled(view: View, layer: Any, y0: Tensor, scale: Tensor, b0: Tensor | None, shift: Tensor | None) -> Tensor:
    """`(1 + scale) (y0 - b0) + b0 + shift` in at least float32, with `1 + scale` applied to the whole of y0."""
    if b0 is not None:
        shift = (0 if shift is None else shift) - scale * b0
    factor = view.spread(layer, 1 + scale, y0)
    exact = y0.to(torch.promote_types(y0.dtype, factor.dtype))
    return exact * factor if shift is None else torch.addcmul(view.spread(layer, shift, y0), exact, factor)


def product(
    play: tuple[Support, LayerConfig], view: View, layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None
) -> Tensor:
    """The layer's output for one configuration, without autocast; the arguments are those of `factored.one`."""
    support, config = play
    (a, a_up), (b, b_up) = support.factors("A", config), support.factors("B", config)
    w = view.matrix(w0)
    if b is not None:
        b_up = b.new_ones(1, w.shape[1]) if b_up is None else b_up  # a vector or scalar is of rank one
        b = b.expand(len(w), -1).T.contiguous()
    if a is not None and a_up is not None and support.is_matrix:  # W0 A is one more LoRA
        folded = a.T.contiguous().to(w.dtype) @ w.T
        b = folded if b is None else torch.cat([folded, b.to(w.dtype)])
        b_up = a_up if b_up is None else torch.cat([a_up, b_up])
        a = a_up = None
    if a is not None and config.A.kind == "vector" and not support.is_matrix:
        shift = support.shift(view, w0, b0, config)
        if b0 is not None:
            shift = (0 if shift is None else shift) - a.squeeze(-1) * b0
        return applied(_Outputs, view, layer, x, w0, b0, a.squeeze(-1), shift, b, b_up)
    bias = support.bias(view, w0, b0, config)
    if a is not None and a_up is not None:
        return applied(_Built, view, layer, x, w0, bias, a, a_up, b, b_up)
    if a is None and b is None:
        return view.plain(layer, x, w0, bias)
    return applied(_Inputs, view, layer, x, w0, bias, None if a is None else a.T, b, b_up)


def applied(function: Any, *args: Any) -> Tensor:
    y: Tensor = function.apply(*args)
    return y


def fresh(y: Tensor) -> Tensor:
    """y as no view: what follows the layer may change it in place."""
    fresh: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
    return fresh


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _Inputs(torch.autograd.Function):
    """`W0 (x + a∘x) + downᵀ up x + bias`, a `(1, i)` or `(1, 1)`."""

    @staticmethod
    def forward(
        ctx: Any, view: View, layer: Any, x: Tensor, w0: Tensor, bias: Any, a: Any, down: Any, up: Any
    ) -> Tensor:
        w, z = view.matrix(w0), None
        wide = down is not None and up.requires_grad  # its gradient needs x
        if down is not None and not wide:
            z = up.to(x.dtype) @ rows(x).T  # (r, n)
        n = x.numel() // x.shape[-1]
        if w.dtype in (torch.float32, torch.float64) and n * sum(w.shape) > w.numel():
            w = w if a is None else torch.addcmul(w, w, a.to(w.dtype))
            w = w if down is None else torch.addmm(w, down.T.to(w.dtype), up.to(w.dtype))
            y = view.plain(layer, x, view.unmatrix(w, w0), bias)
        else:
            scaled = x if a is None else torch.addcmul(x, x, a.squeeze(0).to(x.dtype))
            y = view.plain(layer, scaled, w0, bias)
            if down is not None:
                add_wide(y, up.to(x.dtype) @ rows(x).T if z is None else z, down)
        ctx.view = view
        ctx.save_for_backward(x if a is not None or wide else None, w0, a, down, up, z)
        return fresh(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, a, down, up, z = ctx.saved_tensors
        if twice():
            w = _changed(ctx.view.matrix(w0), a, down, up)
            kept = (z, None)
            dx, da, d_down, d_up = _again(dy, x, w, lambda: rows(x) @ w.T, a, down, up, kept=kept)
            return None, None, dx, None, rows(dy).sum(0), da, d_down, d_up
        grads: dict[str, Tensor] = {}
        shape, dy = dy.shape, rows(dy)
        dx = dy @ ctx.view.matrix(w0) if ctx.needs_input_grad[2] or a is not None else None
        if dx is not None and a is not None:
            both = (dx * rows(x)).sum(0, keepdim=True)
            grads["a"] = both if a.numel() > 1 else both.sum(1, keepdim=True)
            dx = dx.addcmul_(dx, a.to(dx.dtype))
        if down is not None:
            _narrow_gradients(grads, dx, dy, x, down, up, z)
        bias = dy.sum(0) if ctx.needs_input_grad[4] else None
        dx = None if dx is None else dx.view(*shape[:-1], dx.shape[-1])
        return None, None, dx, None, bias, grads.get("a"), grads.get("down"), grads.get("up")


class _Outputs(torch.autograd.Function):
    """`(1 + a) (W0 x + b0) + shift + downᵀ up x`, a and shift `(o,)`."""

    @staticmethod
    def forward(
        ctx: Any, view: View, layer: Any, x: Tensor, w0: Tensor, b0: Any, a: Tensor, shift: Any, down: Any, up: Any
    ) -> Tensor:
        plain = view.plain(layer, x, w0, b0)
        exact = plain.to(torch.promote_types(plain.dtype, a.dtype))
        factor = (1 + a).to(exact.dtype)
        y = exact * factor if shift is None else torch.addcmul(shift.to(exact.dtype), exact, factor)
        y, z = y.to(plain.dtype), None
        wide = down is not None and up.requires_grad
        if down is not None:
            z = up.to(x.dtype) @ rows(x).T
            add_wide(y, z, down)
        ctx.view, ctx.layer = view, layer
        # where x is saved anyway the plain output is had again from it
        ctx.save_for_backward(x if wide else None, w0, b0, a, down, up, None if wide else z, None if wide else plain)
        return fresh(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, b0, a, down, up, z, plain = ctx.saved_tensors
        if twice():
            w = _changed(ctx.view.matrix(w0), a[:, None], down, up)
            shift = a if b0 is None else a * b0
            kept = (z, plain)
            dx, da, d_down, d_up = _again(dy, x, w, lambda: rows(x) @ w.T + shift, a, down, up, kept=kept)
            return None, None, dx, None, None, da, rows(dy).sum(0), d_down, d_up
        plain = ctx.view.plain(ctx.layer, x, w0, b0) if plain is None else plain
        grads: dict[str, Tensor] = {}
        shape, dy = dy.shape, rows(dy)
        w = ctx.view.matrix(w0)
        dx = dy @ torch.addcmul(w, w, a[:, None].to(w.dtype)) if ctx.needs_input_grad[2] else None
        if down is not None:
            _narrow_gradients(grads, dx, dy, x, down, up, z)
        da = (dy * rows(plain)).sum(0)
        shift = dy.sum(0) if ctx.needs_input_grad[6] else None
        down, up = grads.get("down"), grads.get("up")
        dx = None if dx is None else dx.view(*shape[:-1], dx.shape[-1])
        return None, None, dx, None, None, da, shift, down, up


class _Built(torch.autograd.Function):
    """`(W0 ∘ (1 + a a_up) + downᵀ up) x + bias`: the elementwise LoRA A, whose gradient is of the size of W0."""

    @staticmethod
    def forward(
        ctx: Any, view: View, layer: Any, x: Tensor, w0: Tensor, bias: Any, a: Tensor, a_up: Tensor, down: Any, up: Any
    ) -> Tensor:
        ctx.view = view
        ctx.save_for_backward(x, w0, a, a_up, down, up)
        w = changed(view.matrix(w0), a, a_up, None if down is None else down.T, up)
        return fresh(view.plain(layer, x, view.unmatrix(w, w0), bias))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, a, a_up, down, up = ctx.saved_tensors
        if twice():
            w = changed(ctx.view.matrix(w0), a, a_up, None if down is None else down.T, up)
            dx, da, da_up, d_down, d_up = _again(dy, x, w, lambda: rows(x) @ w.T, a, a_up, down, up)
            return None, None, dx, None, rows(dy).sum(0), da, da_up, d_down, d_up
        shape, dy, w0 = dy.shape, rows(dy), ctx.view.matrix(w0)
        w = changed(w0, a, a_up, None if down is None else down.T, up)
        dx = dy @ w if ctx.needs_input_grad[2] else None
        dw = (dy.T @ rows(x)).to(a.dtype)
        d_down = d_up = None
        if down is not None:
            d_down = up @ dw.T
            d_up = down @ dw if ctx.needs_input_grad[8] else None
        dw *= w0
        bias = dy.sum(0) if ctx.needs_input_grad[4] else None
        dx = None if dx is None else dx.view(*shape[:-1], dx.shape[-1])
        return None, None, dx, None, bias, (a_up @ dw.T).T, a.T @ dw, d_down, d_up


def twice() -> bool:
    """Whether this backward pass is differentiated again: it must be of operations that autograd knows, then."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _again(
    dy: Tensor,
    x: Tensor | None,
    w: Tensor,
    output: Callable[[], Tensor],
    *numbers: Tensor | None,
    kept: tuple[Tensor | None, Tensor | None] = (None, None),
) -> list[Tensor | None]:
    """The gradients of x and of these numbers, so that they have gradients themselves.

    Args:
        dy: The output's.
        x: The input; None where it was not kept, as a backward pass that is not differentiated does not need it: the
            gradients of the numbers, `a` and `down`, then have none.
        w: The effective weight, `(o, i)`.
        output: The output in rows.
        numbers: What else has a gradient.
        kept: Without x, what the gradient of `down` is made of, and that of `a`.
    """
    if x is None:
        z, plain = kept
        flat = rows(dy)
        da = None if plain is None else _Final.apply((flat * rows(plain)).sum(0))
        d_down = None if z is None else _Final.apply(z @ flat)
        return [(flat @ w).view(*dy.shape[:-1], w.shape[1]), da, d_down, None]
    wanted = (x, *numbers)
    some = [each for each in wanted if each is not None and each.requires_grad]
    found = iter(torch.autograd.grad(output(), some, rows(dy), create_graph=True, allow_unused=True))
    return [next(found) if each is not None and each.requires_grad else None for each in wanted]


class _Final(torch.autograd.Function):
    """A gradient that has none itself: whoever asks for it is told, instead of getting a wrong one."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Tensor:
        raise StateError(
            "The gradient of a support tensor is differentiated (create_graph=True), and the layer kept too little for "
            "that.",
            remedy="Play the genotype within hold(genotype, train=True) for it.",
        )


def _changed(w: Tensor, a: Tensor | None, down: Tensor | None, up: Tensor | None) -> Tensor:
    """`W0 + W0 ∘ a + downᵀ up`, a of one row or column."""
    y = w if a is None else w + w * a.to(w.dtype)
    return y if down is None or up is None else y + down.T.to(w.dtype) @ up.to(w.dtype)


def add_wide(y: Tensor, z: Tensor, down: Tensor) -> None:
    """Adds `downᵀ z` to the output y."""
    y.view(-1, y.shape[-1]).addmm_(z.T, down.to(y.dtype))


def _narrow_gradients(
    grads: dict[str, Tensor],
    dx: Tensor | None,
    dy: Tensor,
    x: Tensor | None,
    down: Tensor,
    up: Tensor,
    z: Tensor | None,
) -> None:
    """Those of `downᵀ up x`; its part of dx is added in place."""
    up = up.to(dy.dtype)
    if z is None:
        assert x is not None
        z = up @ rows(x).T
    dz = down.to(dy.dtype) @ dy.T  # (r, n)
    grads["down"] = z @ dy
    if x is not None:
        grads["up"] = dz @ rows(x)
    if dx is not None:
        dx.addmm_(dz.T, up)
