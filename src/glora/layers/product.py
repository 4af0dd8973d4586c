"""The factored product of layers with features last, with gradients by hand: fewer passes, and little is saved.

Where the batch has more rows than a weight has numbers per feature, adding the low-rank part to the weight is cheaper
than to the output, so forward is what the merged layer computes; backward is factored either way and forms no gradient
of the size of W0, except under an elementwise LoRA A, which needs it. Saved is x at most, or what is needed instead.
Narrow factors are multiplied lying, `(r, n)`: standing ones cost up to seven times as much.

Shapes: `n` rows of the batch, `o` out, `i` in, `r` rank. Here `down` lies too, `(r, o)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glora.genotype import LayerConfig
from glora.support import Support, changed

if TYPE_CHECKING:
    from glora.layers.view import View

__all__ = ["product"]


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
        return _apply(_Outputs, view, layer, x, w0, b0, a.squeeze(-1), shift, b, b_up)
    bias = support.bias(view, w0, b0, config)
    if a is not None and a_up is not None:
        return _apply(_Built, view, layer, x, w0, bias, a, a_up, b, b_up)
    if a is None and b is None:
        return view.plain(layer, x, w0, bias)
    return _apply(_Inputs, view, layer, x, w0, bias, None if a is None else a.T, b, b_up)


def _apply(function: Any, *args: Any) -> Tensor:
    y: Tensor = function.apply(*args)
    return y


def _fresh(y: Tensor) -> Tensor:
    """y as no view: what follows the layer may change it in place."""
    fresh: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
    return fresh


def _rows(x: Tensor) -> Tensor:
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
            z = up.to(x.dtype) @ _rows(x).T  # (r, n)
        n = x.numel() // x.shape[-1]
        if w.dtype in (torch.float32, torch.float64) and n * sum(w.shape) > w.numel():
            w = w if a is None else torch.addcmul(w, w, a.to(w.dtype))
            w = w if down is None else torch.addmm(w, down.T.to(w.dtype), up.to(w.dtype))
            y = view.plain(layer, x, view.unmatrix(w, w0), bias)
        else:
            scaled = x if a is None else torch.addcmul(x, x, a.squeeze(0).to(x.dtype))
            y = view.plain(layer, scaled, w0, bias)
            if down is not None:
                _widen(y, up.to(x.dtype) @ _rows(x).T if z is None else z, down)
        ctx.view = view
        ctx.save_for_backward(x if a is not None or wide else None, w0, a, down, up, z)
        return _fresh(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, a, down, up, z = ctx.saved_tensors
        grads: dict[str, Tensor] = {}
        shape, dy = dy.shape, _rows(dy)
        dx = dy @ ctx.view.matrix(w0) if ctx.needs_input_grad[2] or a is not None else None
        if dx is not None and a is not None:
            both = (dx * _rows(x)).sum(0, keepdim=True)
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
            z = up.to(x.dtype) @ _rows(x).T
            _widen(y, z, down)
        ctx.view, ctx.layer = view, layer
        # where x is saved anyway the plain output is had again from it
        ctx.save_for_backward(x if wide else None, w0, b0, a, down, up, None if wide else z, None if wide else plain)
        return _fresh(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, b0, a, down, up, z, plain = ctx.saved_tensors
        plain = ctx.view.plain(ctx.layer, x, w0, b0) if plain is None else plain
        grads: dict[str, Tensor] = {}
        shape, dy = dy.shape, _rows(dy)
        w = ctx.view.matrix(w0)
        dx = dy @ torch.addcmul(w, w, a[:, None].to(w.dtype)) if ctx.needs_input_grad[2] else None
        if down is not None:
            _narrow_gradients(grads, dx, dy, x, down, up, z)
        da = (dy * _rows(plain)).sum(0)
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
        return _fresh(view.plain(layer, x, view.unmatrix(w, w0), bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, a, a_up, down, up = ctx.saved_tensors
        shape, dy, w0 = dy.shape, _rows(dy), ctx.view.matrix(w0)
        w = changed(w0, a, a_up, None if down is None else down.T, up)
        dx = dy @ w if ctx.needs_input_grad[2] else None
        dw = (dy.T @ _rows(x)).to(a.dtype)
        d_down = d_up = None
        if down is not None:
            d_down = up @ dw.T
            d_up = down @ dw if ctx.needs_input_grad[8] else None
        dw *= w0
        bias = dy.sum(0) if ctx.needs_input_grad[4] else None
        dx = None if dx is None else dx.view(*shape[:-1], dx.shape[-1])
        return None, None, dx, None, bias, (a_up @ dw.T).T, a.T @ dw, d_down, d_up


def _widen(y: Tensor, z: Tensor, down: Tensor) -> None:
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
        z = up @ _rows(x).T
    dz = down.to(dy.dtype) @ dy.T  # (r, n)
    grads["down"] = z @ dy
    if x is not None:
        grads["up"] = dz @ _rows(x)
    if dx is not None:
        dx.addmm_(dz.T, up)
