"""The five support tensors of one site and the formula (arXiv 2306.07967, Eq. 10, 13, 14), both ways of computing it.

    W = W0 + W0 * A + B                       Eq. 13
    b = b0 + W0 C + D∘b0 + E                  Eq. 14

Shapes: `o` out, `i` in, `r` rank, `n` rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora.errors import StateError
from glora.genotype import NONE, TENSORS, Choice, LayerConfig, Site
from glora.space import SearchSpace, factor_shapes

__all__ = ["Support", "fixed_scale"]

FLOAT: Any = {"dtype": torch.float32, "device": "cpu"}  # of support tensors, whatever torch's defaults are


def fixed_scale(scaling: str, site: Site, tensor: str, choice: Choice) -> float:
    """The number that multiplies what a choice reads, so that one optimizer step means about the same everywhere.

    Adam moves every number by about the learning rate. A vector or scalar B adds `b_i sum_j x_j`, a sum over
    `i` inputs, to the output: `fan_in` divides it by i.
    """
    if scaling == "fan_in" and tensor == "B" and choice.kind in ("vector", "scalar"):
        return 1.0 / site.in_features
    return 1.0


class Support(nn.Module):
    """The support tensors A..E of one site, entangled: every smaller choice is a slice of the largest.

    `down` (left factor, X_d) starts at zero and `up` (right factor, X_u) at random, so that the fresh layer is
    the plain one. Numbers are held only for the choices in `options`; `none` holds nothing.

    Args:
        site: The affine weight they adapt.
        space: Its product and scaling hold for every tensor.
        options: The choices offered, one tuple per support tensor A..E.
        generator: Draws the `up` factors.
    """

    def __init__(
        self, site: Site, space: SearchSpace, options: Sequence[Sequence[Choice]], *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.site = site
        self.space = space
        self.scales: dict[str, float] = {}  # "TENSOR.kind" -> fixed scale, where it is not 1
        self.config = LayerConfig()
        self.batch: tuple[LayerConfig, ...] = ()  # one configuration per sample; empty: `config` for all
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for tensor, choices in zip(TENSORS, options, strict=True):
            for choice in choices:
                if (scale := fixed_scale(space.scaling, site, tensor, choice)) != 1.0:
                    self.scales[f"{tensor}.{choice.kind}"] = scale
            shapes = [factor_shapes(site, tensor, choice, space.product) for choice in choices]
            if downs := [shape["down"] for shape in shapes if shape]:
                self.down[tensor] = nn.Parameter(torch.zeros(*map(max, zip(*downs, strict=True)), **FLOAT))
            if ups := [shape["up"] for shape in shapes if "up" in shape]:
                up = torch.empty(*map(max, zip(*ups, strict=True)), **FLOAT)
                nn.init.xavier_uniform_(up, generator=generator)
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

    def slices(self, tensor: str, config: LayerConfig | None = None) -> dict[str, Tensor]:
        """What the configuration (the active one) reads of one support tensor, contiguous and unscaled."""
        choice: Choice = getattr(config or self.config, tensor)
        shapes = factor_shapes(self.site, tensor, choice, self.space.product)
        # contiguous: a strided slice and its reloaded copy differ in the last bits of a product
        return {
            side: factor[tuple(slice(n) for n in shapes[side])].contiguous()
            for side, factor in self.whole(tensor).items()
            if side in shapes
        }

    def _factors(self, tensor: str, config: LayerConfig | None = None) -> tuple[Tensor | None, Tensor | None]:
        """The scaled `down` and the `up` that the configuration (the active one) reads; None where it has none."""
        parts = self.slices(tensor, config)
        down, up = parts.get("down"), parts.get("up")
        scale = self._scale(tensor, getattr(config or self.config, tensor))
        return (down if down is None or scale == 1.0 else down * scale), up

    def _scale(self, tensor: str, choice: Choice) -> float:
        return self.scales.get(f"{tensor}.{choice.kind}", 1.0)

    @property
    def builds_weight(self) -> bool:
        """Whether the active configuration needs the effective weight: elementwise LoRA A alone does."""
        return self.config.A.kind == "lora" and self.space.product == "elementwise"

    def weight(self, w0: Tensor, config: LayerConfig | None = None) -> Tensor:
        """The effective weight, Eq. 13, computed in at least float32 and rounded once.

        Args:
            w0: The frozen weight, `(o, i)`.
            config: Instead of the active configuration.

        Returns:
            `(o, i)` in the dtype of w0; w0 itself when A and B are `none`.
        """
        (a, a_up), (b, b_up) = self._factors("A", config), self._factors("B", config)
        if a is None and b is None:
            return w0
        w = base = w0.to(torch.promote_types(w0.dtype, torch.float32))
        if a is not None:
            if self.space.product == "elementwise":
                w = torch.addcmul(w, base, a if a_up is None else a @ a_up)  # (o, i) * (o, i), (o, 1) or (1, 1)
            else:
                a, a_up = a.to(w.dtype), None if a_up is None else a_up.to(w.dtype)
                w = w + (base * a.T if a_up is None else (base @ a) @ a_up)  # W0 diag(a), or (W0 A_down) A_up
        if b is not None:
            w = w + b if b_up is None else torch.addmm(w, b.to(w.dtype), b_up.to(w.dtype))
        return w.to(w0.dtype)

    def bias(self, w0: Tensor, b0: Tensor | None) -> Tensor | None:
        """The effective bias, Eq. 14, computed in at least float32 and rounded once.

        Args:
            w0: The frozen weight, `(o, i)`.
            b0: The frozen bias, `(o,)`, or None.

        Returns:
            `(o,)` in the dtype of the base; b0 itself when C, D and E are `none`.
        """
        shift = self._bias_shift(w0, b0)
        if shift is None:
            return b0
        if b0 is None:
            return shift.to(w0.dtype)
        return (b0.to(shift.dtype) + shift).to(b0.dtype)

    def _bias_shift(self, w0: Tensor, b0: Tensor | None, config: LayerConfig | None = None) -> Tensor | None:
        """`W0 C + D∘b0 + E` of Eq. 14, `(o,)` in at least float32; None when C, D and E are `none`."""
        (c, c_up), (d, _), (e, _) = (self._factors(tensor, config) for tensor in "CDE")
        dtype = torch.promote_types(w0.dtype, torch.float32)
        shift: Tensor | None = None
        if c is not None:
            column = c if c_up is None else c @ c_up  # (i, 1)
            shift = w0.to(dtype) @ column.to(dtype).squeeze(-1)  # (o,)
        if d is not None and b0 is not None:
            shift = d * b0.to(dtype) + (0 if shift is None else shift)
        if e is not None:
            shift = e.to(dtype) + (w0.new_zeros(self.site.out_features, dtype=dtype) if shift is None else shift)
        return shift

    def forward(self, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
        """The adapted layer's output by the cheaper way, for the active configuration or one per sample.

        Args:
            x: `(n, ..., i)`.
            w0: The frozen weight, `(o, i)`.
            b0: The frozen bias, `(o,)`, or None.

        Returns:
            `(n, ..., o)` in the dtype that the plain layer returns.
        """
        if self.batch:
            return self._per_sample(x, w0, b0)
        if self.builds_weight:
            with torch.autocast(x.device.type, enabled=False):
                w, b = self.weight(w0), self.bias(w0, b0)
            return F.linear(x, w, b)
        return self._factored(x, w0, b0)

    def _factored(self, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
        """Eq. 13 and 14 without building W: no gradient of the size of W0 is formed."""
        (a, a_up), (b, b_up) = self._factors("A"), self._factors("B")
        matrix = self.space.product == "matrix"
        with torch.autocast(x.device.type, enabled=False):
            shift = self._bias_shift(w0, b0)
        scaled = x
        if matrix and a is not None:  # W0 (x + A x)
            scaled = x * (1 + a.T.to(x.dtype)) if a_up is None else x + _low_rank(x, a, a_up)
        y0 = y = F.linear(scaled, w0, b0)
        if not matrix and a is not None:  # scale the plain output, so that a fresh adapter changes no bit
            y = y0 * (1 + a.squeeze(-1))
            if b0 is not None:
                shift = (0 if shift is None else shift) - a.squeeze(-1) * b0
        if b is not None:
            y = y + (x.sum(-1, keepdim=True, dtype=b.dtype) * b.squeeze(-1) if b_up is None else _low_rank(x, b, b_up))
        if shift is not None:
            y = y + shift.to(y0.dtype)
        return y.to(y0.dtype)

    def _per_sample(self, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor:
        """The factored product with one configuration per sample, in one pass: samples look up their numbers."""
        rows, remainder = divmod(x.shape[0], len(self.batch))
        if remainder:
            raise StateError(
                f"{len(self.batch)} genotypes are active, one per sample, but a layer got {x.shape[0]} rows.",
                allowed="The first dimension must be the batch or a multiple of it (windows).",
                remedy="Activate one genotype per sample of the batch, or a single one.",
            )

        def looked_up(table: Tensor, index: list[int]) -> Tensor:  # (k, m) and (b,) to (n, 1, ..., m)
            found = table[torch.tensor(index, device=x.device).repeat_interleave(rows)]
            return found.reshape(x.shape[0], *[1] * (x.dim() - 2), -1)

        (a, a_mask, a_index), (b, b_mask, b_index) = self._tables("A"), self._tables("B")
        scaled = x
        if self.space.product == "matrix":  # W0 (x + A x)
            scaled = scaled if a is None else scaled + x * looked_up(a, a_index).to(x.dtype)
            if a_mask is not None:
                scaled = scaled + _low_rank(x, *self._largest("A", a_mask), looked_up(a_mask, a_index))
            y0 = y = F.linear(scaled, w0, b0)
        else:
            y0 = y = self._by_scaled_weight(x, w0, b0, rows)
            if a is not None:
                plain = 0 if b0 is None else b0
                y = y0 + (y0 - plain) * looked_up(a, a_index)
        if b is not None:
            y = y + x.sum(-1, keepdim=True, dtype=b.dtype) * looked_up(b, b_index)
        if b_mask is not None:
            y = y + _low_rank(x, *self._largest("B", b_mask), looked_up(b_mask, b_index))
        shifts, index = self._shifts(w0, b0)
        return (y if shifts is None else y + looked_up(shifts, index).to(y0.dtype)).to(y0.dtype)

    def _tables(self, tensor: str) -> tuple[Tensor | None, Tensor | None, list[int]]:
        """Per distinct choice of the batch what its vector or scalar reads, `(k, left)`, and its scale of every
        LoRA column, `(k, r)`, None where no choice is of that kind; and the choice of every sample."""
        choices = [getattr(config, tensor) for config in self.batch]
        distinct = list(dict.fromkeys(choices))
        vectors = mask = None
        if any(choice.kind in ("vector", "scalar") for choice in distinct):
            down = self.down[tensor]
            length = next(iter(factor_shapes(self.site, tensor, Choice("vector"), self.space.product).values()))[0]
            nothing = down.new_zeros(length)
            read = [
                (down[:, 0] if c.kind == "vector" else down[0, 0].expand(length)) * self._scale(tensor, c)
                if c.kind in ("vector", "scalar")
                else nothing
                for c in distinct
            ]
            vectors = torch.stack(read)
        if largest := max(choice.rank for choice in distinct):
            columns = torch.arange(largest, device=self.down[tensor].device)
            mask = torch.stack([(columns < choice.rank) * self._scale(tensor, choice) for choice in distinct])
        return vectors, mask, [distinct.index(choice) for choice in choices]

    def _largest(self, tensor: str, mask: Tensor) -> tuple[Tensor, Tensor]:
        rank = mask.shape[1]
        return self.down[tensor][:, :rank].contiguous(), self.up[tensor][:rank].contiguous()

    def _by_scaled_weight(self, x: Tensor, w0: Tensor, b0: Tensor | None, rows: int) -> Tensor:
        """`(W0 + W0 ∘ A) x + b0` for the samples whose A is LoRA, `W0 x + b0` for the others: by groups of samples."""
        groups: dict[Choice, list[int]] = {}
        for sample, config in enumerate(self.batch):
            choice = config.A if config.A.kind == "lora" else NONE
            groups.setdefault(choice, []).extend(range(sample * rows, (sample + 1) * rows))
        if groups.keys() == {NONE}:
            return F.linear(x, w0, b0)
        outputs = []
        for choice, indices in groups.items():
            with torch.autocast(x.device.type, enabled=False):
                w = self.weight(w0, LayerConfig(A=choice))
            outputs.append(F.linear(x[torch.tensor(indices, device=x.device)], w, b0))
        order = torch.tensor([index for indices in groups.values() for index in indices], device=x.device)
        return torch.cat(outputs)[torch.argsort(order)]

    def _shifts(self, w0: Tensor, b0: Tensor | None) -> tuple[Tensor | None, list[int]]:
        """The bias shift of every distinct C, D, E of the batch, `(k, o)`, and the one of every sample."""
        configs = [LayerConfig(C=config.C, D=config.D, E=config.E) for config in self.batch]
        distinct = list(dict.fromkeys(configs))
        with torch.autocast(w0.device.type, enabled=False):
            shifts = [self._bias_shift(w0, b0, config) for config in distinct]
        if all(shift is None for shift in shifts):
            return None, []
        nothing = w0.new_zeros(self.site.out_features, dtype=torch.promote_types(w0.dtype, torch.float32))
        table = torch.stack([nothing if shift is None else shift for shift in shifts])
        return table, [distinct.index(config) for config in configs]


def _low_rank(x: Tensor, down: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
    """`down (mask ∘ up x)` without forming the product: `(n, i) (i, r) (r, o)`."""
    z = F.linear(x, up.to(x.dtype))
    return F.linear(z if mask is None else z * mask.to(z.dtype), down.to(x.dtype))
