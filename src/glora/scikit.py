"""Where scikit-learn is met: its digits and its t-SNE (no torch)."""

from __future__ import annotations

from typing import Any

from glora.registry import optional_import

__all__ = ["digits", "tsne"]

PERPLEXITY = 30.0  # t-SNE's usual number of neighbours; fewer points than three times as many have fewer
EXTRA = "demo"


def digits() -> tuple[Any, Any]:
    """The 1,797 handwritten digits: pixels `(n, 64)` in [0, 16], and labels `(n,)`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = optional_import("sklearn.datasets", extra=EXTRA, purpose="The data set 'digits'")
    found: tuple[Any, Any] = datasets.load_digits(return_X_y=True)
    return found


def tsne(points: Any, *, seed: int) -> Any:
    """Points of the plane, `(n, 2)`, whose neighbours are those of the points given.

    Args:
        points: `(n, d)`, at least 4.
        seed: Of what is drawn; equal seeds give equal points.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Source: van der Maaten and Hinton 2008.
    """
    manifold = optional_import("sklearn.manifold", extra=EXTRA, purpose="A picture of features")
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    fitting = manifold.TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed)
    return fitting.fit_transform(points)
