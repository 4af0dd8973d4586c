"""The five support tensors of one site and the formula (arXiv 2306.07967, Eq. 10, 13, 14).

    W = W0 + W0 * A + B                       Eq. 13
    b = b0 + W0 C + D∘b0 + E                  Eq. 14

Here is the first way of computing it, the effective weight; `layers/factored.py` has the second.
Shapes: `o` out, `i` in, `r` rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from glora.genotype import TENSORS, Choice, LayerConfig, Site
from glora.space import SearchSpace, factor_shapes, is_matrix

__all__ = ["MatrixView", "Support", "changed", "fixed_scale"]

BLOCK = 2**22  # numbers of a weight that are widened at a time: a wide copy of all could be too much
GAIN = 4.0  # of vectors and scalars of A, D and E, whose steps move an output a fifth to a tenth as far as a LoRA B's
FLOAT: Any = {"dtype": torch.float32, "device": "cpu"}  # of support tensors, whatever torch's defaults are


def fixed_scale(space: SearchSpace, site: Site, tensor: str, choice: Choice) -> float:
    """The number that multiplies what a choice reads, so that one optimizer step means about the same everywhere.

    Adam moves every parameter by about the learning rate; `fan_in` and `balanced` account for what that does to the
    output. The derivation is in docs/background/supernet.md.

    - LoRA's right factor u has numbers of about 1 / sqrt(i), so that a step is the larger a share of it the wider the
      layer. It is held sqrt(i) times as large and divided by that here: a step is the same share whatever i is.
    - A LoRA A of the elementwise product changes `W0_kj` by the `u_j`-fold, where a vector or scalar A changes it by
      its a-fold: it is multiplied by sqrt(i), which leaves 1.
    - A vector or scalar B adds `b_k sum_j x_j`, a sum over i inputs: it is divided by i, but where nothing is summed:
      an embedding looks its rows up.
    - `balanced` multiplies the other vectors and scalars, of A, D and E, by `GAIN` too: what scales and shifts alone
      (SSF, BitFit) wants learning rates several times those of LoRA.
    """
    if "none" in (space.scaling, choice.kind):
        return 1.0
    if choice.kind == "lora":
        if tensor == "A" and not is_matrix(site, space.product):
            return 1.0
        return math.sqrt(1 / factor_shapes(site, tensor, choice, space.product)["up"][1])
    if tensor == "B" and site.kind != "embedding":
        return 1.0 / site.in_features
    return GAIN if space.scaling == "balanced" and tensor in "ADE" else 1.0


class MatrixView(Protocol):
    """How a layer's weight is seen as the `(o, i)` matrix of the formula; `layers/` has one for every layer type."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The layer's weight as `(o, i)`."""
        ...

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The `(o, i)` matrix in the shape of the layer's weight `like`."""
        ...

    def times(self, weight: Tensor, column: Tensor) -> Tensor:
        """`W0 c`, `(o,)`, of the layer's weight and a column `(i,)`."""
        ...


def changed(
    w0: Tensor,
    a: Tensor | None,
    a_up: Tensor | None,
    b: Tensor | None,
    b_up: Tensor | None,
    least: torch.dtype = torch.float32,
) -> Tensor:
    """`W0 + W0 ∘ A + B`, Eq. 13 of the elementwise product, computed in at least that type and rounded once.

    Args:
        w0: `(o, i)`.
        a: `(o, r)`, or where there is no a_up what multiplies W0: `(o, 1)` or `(1, 1)`; None is no A.
        a_up: `(r, i)`, or None.
        b: The same of B, added.
        b_up: `(r, i)`, or None.
        least: The type.

    Returns:
        `(o, i)` in the dtype of w0.
    """
    w = w0.to(torch.promote_types(w0.dtype, least))
    if a is not None:
        w = torch.addcmul(w, w, a) if a_up is None else (a @ a_up).to(w.dtype).mul_(w).add_(w)
    if b is not None and b_up is None:
        w = w + b if w is w0 else w.add_(b)  # in place where w is new
    elif b is not None and b_up is not None:
        b, b_up = b.to(w.dtype), b_up.to(w.dtype)
        w = torch.addmm(w, b, b_up) if w is w0 else w.addmm_(b, b_up)
    return w.to(w0.dtype)


class Support(nn.Module):
    """The support tensors A..E of one site, entangled: every smaller choice is a slice of the largest.

    `down` (left factor, X_d) starts at zero and `up` (right factor, X_u) at random, so that the fresh layer is
    the plain one. Numbers are held only for the choices in `options`; `none` holds nothing.

    Args:
        site: The affine weight they adapt.
        space: Its product and scaling hold for every tensor.
        options: The choices offered, one tuple per support tensor A..E.
        generator: Draws the `up` factors.

    Attributes:
        scales: `TENSOR.kind` -> the fixed scale of a choice, where it is not 1; saved with the numbers.
        dropout: The probability with which a number is dropped while the layer is in training mode. Where the effective
            weight is built, or of `narrow` samples play several adapters, nothing is dropped. Not saved: it matters in
            training alone.
        drops: What is dropped: `"input"`, a number that B's LoRA reads; `"narrow"`, one between the factors of B's
            LoRA, or of a matrix-product A's.
        computed: Whether `whole` computes the tensors from other numbers, so that they cannot be written.
    """

    drops: Literal["input", "narrow"] = "input"
    computed = False

    def __init__(
        self, site: Site, space: SearchSpace, options: Sequence[Sequence[Choice]], *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.site = site
        self.space = space
        self.scales: dict[str, float] = {}
        self.dropout = 0.0
        self.is_matrix = is_matrix(site, space.product)
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for tensor, choices in zip(TENSORS, options, strict=True):
            for choice in choices:
                if (scale := fixed_scale(space, site, tensor, choice)) != 1.0:
                    self.scales[f"{tensor}.{choice.kind}"] = scale
            shapes = [factor_shapes(site, tensor, choice, space.product) for choice in choices]
            if downs := [shape["down"] for shape in shapes if shape]:
                self.down[tensor] = nn.Parameter(torch.zeros(*map(max, zip(*downs, strict=True)), **FLOAT))
            if ups := [shape["up"] for shape in shapes if "up" in shape]:
                up = torch.empty(*map(max, zip(*ups, strict=True)), **FLOAT)
                nn.init.xavier_uniform_(up, generator=generator)
                if space.scaling != "none":
                    up *= math.sqrt(up.shape[1])  # and `fixed_scale` divides by it
                self.up[tensor] = nn.Parameter(up)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Support:
        def keep_type(tensor: Tensor) -> Tensor:  # model.half() is for the base: they stay float32
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_type, recurse)  # type: ignore[no-untyped-call]
        return self

    def whole(self, tensor: str) -> dict[str, Tensor]:
        """The factors of one support tensor, as large as held: `{"down": ..., "up": ...}`."""
        sides = (("down", self.down), ("up", self.up))
        return {side: factors[tensor] for side, factors in sides if tensor in factors}

    def slices(self, tensor: str, config: LayerConfig) -> dict[str, Tensor]:
        """What the configuration reads of one support tensor, contiguous and unscaled."""
        choice: Choice = getattr(config, tensor)
        shapes = factor_shapes(self.site, tensor, choice, self.space.product)
        whole = self.whole(tensor) if shapes else {}
        # contiguous: a strided slice and its reloaded copy differ in the last bits of a product
        return {
            side: whole[side] if whole[side].shape == shape else whole[side][tuple(map(slice, shape))].contiguous()
            for side, shape in shapes.items()
        }

    def factors(
        self, tensor: str, config: LayerConfig, least: torch.dtype = torch.float32
    ) -> tuple[Tensor | None, Tensor | None]:
        """The `down` and `up` that the configuration reads, the last of them scaled in that type; None: it has none."""
        choice = getattr(config, tensor)
        if choice.kind == "none":
            return None, None
        parts = self.slices(tensor, config)
        down, up = parts["down"], parts.get("up")
        dtype = torch.promote_types(down.dtype, least)
        down, up = down.to(dtype), None if up is None else up.to(dtype)
        scale = self.scale(tensor, choice)
        if scale == 1.0:
            return down, up
        # the factor held large is made small before it meets an activation: fp16 ends at 65,504
        return (down * scale, None) if up is None else (down, up * scale)

    def dropping(self, tensor: str, config: LayerConfig) -> tuple[Tensor, Tensor]:
        """The factors of a LoRA between or before which numbers are dropped; their product is that of `factors`."""
        down, up = self.factors(tensor, config)
        assert down is not None and up is not None
        return down, up

    def scale(self, tensor: str, choice: Choice) -> float:
        """The fixed number that multiplies what the choice reads."""
        return self.scales.get(f"{tensor}.{choice.kind}", 1.0)

    def weight(self, view: MatrixView, w0: Tensor, config: LayerConfig, least: torch.dtype = torch.float32) -> Tensor:
        """The effective weight, Eq. 13, computed in at least that type and rounded once.

        Args:
            view: How the layer shows its weight as a matrix.
            w0: The frozen weight in the layer's own shape.
            config: The choices.
            least: float32, or float64 for a weight that is kept: what is left then is the one rounding.

        Returns:
            The shape and dtype of w0; w0 itself when A and B are `none`.
        """
        if config.A.kind == config.B.kind == "none":
            return w0
        matrix = view.matrix(w0)
        if least == torch.float32 or matrix.numel() <= BLOCK:
            return view.unmatrix(self._changed(matrix, config, least=least), w0)
        index, step = torch.arange(len(matrix), device=matrix.device), max(1, BLOCK // matrix.shape[1])
        parts = (slice(start, start + step) for start in range(0, len(matrix), step))
        return view.unmatrix(torch.cat([self._changed(matrix[k], config, index[k], least) for k in parts]), w0)

    def rows(self, w0: Tensor, index: Tensor, config: LayerConfig) -> Tensor:
        """Some rows of the effective weight, Eq. 13, without the others.

        Args:
            w0: These rows of the frozen `(o, i)` weight: `(n, i)`.
            index: Which they are, `(n,)`.
            config: The choices.

        Returns:
            `(n, i)` in the dtype of w0; the site's fixed row as it is.
        """
        return self._changed(w0, config, index)

    def _changed(
        self, w0: Tensor, config: LayerConfig, index: Tensor | None = None, least: torch.dtype = torch.float32
    ) -> Tensor:
        (a, a_up), (b, b_up) = self.factors("A", config, least), self.factors("B", config, least)
        if index is not None:  # one number per row, unless one for all
            a = a[index] if a is not None and not self.is_matrix and config.A.kind != "scalar" else a
            b = b[index] if b is not None and config.B.kind != "scalar" else b
        if a is not None and self.is_matrix:  # (W0 A_down) A_up, or W0 diag(a), at every position of a kernel
            w = w0.to(torch.promote_types(w0.dtype, least))
            positions = w.reshape(len(w), self.site.mixed, -1).transpose(1, 2)  # (o, k, mixed)
            a = a.to(w.dtype)
            change = positions * a.T if a_up is None else (positions @ a) @ a_up.to(w.dtype)
            w = changed(w + change.transpose(1, 2).flatten(1), None, None, b, b_up, least).to(w0.dtype)
        else:
            w = changed(w0, a, a_up, b, b_up, least)
        if self.site.fixed is not None:
            row = torch.arange(len(w), device=w.device) if index is None else index
            w = torch.where((row == self.site.fixed).unsqueeze(-1), w0, w)
        return w

    def bias(
        self,
        view: MatrixView,
        w0: Tensor,
        b0: Tensor | None,
        config: LayerConfig,
        least: torch.dtype = torch.float32,
    ) -> Tensor | None:
        """The effective bias, Eq. 14, computed in at least that type and rounded once.

        Args:
            view: How the layer shows its weight as a matrix.
            w0: The frozen weight in the layer's own shape.
            b0: The frozen bias, `(o,)`, or None.
            config: The choices.
            least: As in `weight`.

        Returns:
            `(o,)` in the dtype of the base; b0 itself when C, D and E are `none`.
        """
        shift = self.shift(view, w0, b0, config, least)
        if shift is None:
            return b0
        if b0 is None:
            return shift.to(w0.dtype)
        return (b0.to(shift.dtype) + shift).to(b0.dtype)

    def shift(
        self,
        view: MatrixView,
        w0: Tensor,
        b0: Tensor | None,
        config: LayerConfig,
        least: torch.dtype = torch.float32,
    ) -> Tensor | None:
        """`W0 C + D∘b0 + E` of Eq. 14, `(o,)` in at least that type; None when C, D and E are `none`."""
        (c, c_up), (d, _), (e, _) = (self.factors(tensor, config, least) for tensor in "CDE")
        dtype = torch.promote_types(w0.dtype, least)
        shift: Tensor | None = None
        if c is not None:
            column = c if c_up is None else c @ c_up  # (i, 1)
            shift = view.times(w0, column.to(dtype).squeeze(-1))
        if d is not None and b0 is not None:
            shift = d * b0.to(dtype) + (0 if shift is None else shift)
        if e is not None:
            nothing = torch.zeros(self.site.out_features, dtype=dtype, device=w0.device)
            shift = e.to(dtype) + (nothing if shift is None else shift)
        return shift
