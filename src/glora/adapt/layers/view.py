"""How a layer type shows its weight as the `(o, i)` matrix of the formula, and the pieces of its forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from torch import Tensor

from glora.adapt.support import Support
from glora.genotype import LayerConfig, Site

__all__ = ["Play", "View"]

Play = tuple[Support, LayerConfig]  # support tensors, and what to read of them


class View(ABC):
    """One affine weight of a layer. A layer type is a subclass and a line in `TABLE`.

    The first methods say where the weight is and how it is a matrix; with them alone the layer plays through its
    effective weight. From `builds` on they are the pieces of the factored product (`layers/factored.py`), needed by
    layers whose own `forward` it may replace (`called`).

    Shapes: x is the layer's input of n samples, y its output, `o` out, `i` in, `r` rank.

    Attributes:
        site: The weight's site.
        weight: Name of the layer's parameter that is the weight.
        bias: Name of its bias; empty where the layer type knows none.
        new_bias: Whether a layer without a bias may get one: its forward adds whatever `bias` is.
        part: Which numbers of the bias belong to this weight; None for all.
        called: Whether the factored product may replace the layer's own `forward`.
        quantized: Whether the frozen weight is quantised: a held genotype then does not build the effective weight,
            and merging a change of the weight makes it floating-point.
        packed: Whether the layer's own code reads the quantised bytes: the parameter then always shows the frozen
            weight, and no change of it can be merged.
        last: Whether features are last in x and y and the layer is nothing but `W x + b`: its gradients are written
            by hand then (`layers/factored.py`).
    """

    kind: ClassVar[str]
    new_bias: ClassVar[bool] = False
    quantized: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    site: Site
    weight: str = "weight"
    bias: str = "bias"
    part: slice | None = None
    called: bool = False
    last: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, layer: Any) -> None:
        """Reads the site off a plain layer."""

    @classmethod
    def of(cls, layer: Any, floats: Collection[str]) -> dict[str, View]:
        """The affine weights of a layer by the name that each adds to the layer's own; `""` adds none.

        Args:
            layer: A plain layer.
            floats: Names of its parameters that are floating-point tensors with a shape.
        """
        return {"": cls(layer)} if cls.weight in floats else {}

    def matrix(self, weight: Tensor) -> Tensor:
        """The layer's weight as `(o, i)`."""
        return weight

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The `(o, i)` matrix in the shape and order of memory of the layer's weight `like`: others change bits."""
        return matrix

    def times(self, weight: Tensor, column: Tensor) -> Tensor:
        """`W0 c`, `(o,)`, of the layer's weight and a column `(i,)`, in the column's dtype."""
        return self.matrix(weight).to(column.dtype) @ column

    def tells_apart(self, x: Tensor, samples: int) -> bool:
        """Whether x has that many samples, or a multiple (windows), those of a sample next to each other."""
        return x.dim() > 1 and x.shape[0] % samples == 0

    def output(self, plays: Sequence[Play], layer: Any, x: Tensor, w0: Tensor, b0: Tensor | None) -> Tensor | None:
        """The adapted layer's output where it is no factored product; None where it is one (`layers/factored.py`)."""
        return None

    def builds(self, config: LayerConfig, is_matrix: bool) -> bool:
        """Whether the effective weight is the cheaper way for this configuration."""
        return True

    def plain(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The plain layer's output with this weight, in the layer's own shape, and this bias."""
        raise NotImplementedError

    def spread(self, layer: Any, numbers: Tensor, y: Tensor) -> Tensor:
        """One number per output, `(o,)`, or per sample and output, `(n, o)`, shaped to multiply y."""
        raise NotImplementedError

    def total(self, layer: Any, x: Tensor) -> Tensor:
        """The sum of the i inputs of every output, `W x` with all numbers of W 1; shaped to multiply y."""
        raise NotImplementedError

    def narrow(self, layer: Any, x: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        """The plain layer with the rows of `up`, `(r, i)`, for its weight, without bias, times the mask `(n, r)`."""
        raise NotImplementedError

    def widened(self, y: Tensor, z: Tensor, down: Tensor) -> Tensor:
        """`y + down z` for the outputs z of `narrow` and `down`, `(o, r)`."""
        raise NotImplementedError

    def stretched(self, x: Tensor, a: Tensor) -> Tensor:
        """`(1 + A) x` of a matrix-product A that is a vector `(mixed,)` or scalar `(1,)`, or `(n, mixed)`."""
        raise NotImplementedError

    def mixed(self, x: Tensor, down: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(1 + A) x` of a matrix-product A, `down` `(mixed, r)` and `up` `(r, mixed)`; the mask `(n, r)`."""
        raise NotImplementedError
