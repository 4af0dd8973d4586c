"""Which examples go through the model together: so many at most, of about the same length, so many tokens at most.

Examples without lengths, such as images, keep their order and fill every batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from glora.tasks.objective import Examples, Measured

__all__ = ["grouped", "lengths_of", "passes", "weights_of"]

POOL = 50  # batches that are sorted together: their examples are of about the same length, and still drawn at random


def lengths_of(examples: Examples) -> Sequence[int] | None:
    """The length of every example; None where they have none."""
    return examples.lengths if isinstance(examples, Measured) else None


def weights_of(examples: Examples, indices: Sequence[int] | None = None) -> Tensor | None:
    """How much each of these examples counts, `(n,)`; None where all count the same."""
    weights = examples.weights if isinstance(examples, Measured) else None
    if weights is None:
        return None
    return weights.double() if indices is None else weights[list(indices)].double()


def passes(
    chosen: Sequence[int], lengths: Sequence[int] | None, *, most: int | None, tokens: int | None = None
) -> list[list[int]]:
    """Places in `chosen`, cut into the forward passes that take them.

    Args:
        chosen: Indices of examples.
        lengths: The length of every example of the split; None: they have none, and keep their order.
        most: Most examples in a pass; None for no limit.
        tokens: Most tokens in a pass, padding included; an example that is longer goes alone. None for no limit.
    """
    places = list(range(len(chosen)))
    most = most or max(1, len(places))
    if lengths is None:
        return [places[first : first + most] for first in range(0, len(places), most)]
    places.sort(key=lambda place: -lengths[chosen[place]])  # the longest first: what does not fit is known at once
    found: list[list[int]] = []
    for place in places:
        last = found[-1] if found else []
        longest = lengths[chosen[last[0]]] if last else 0
        if not last or len(last) == most or (tokens is not None and (len(last) + 1) * longest > tokens):
            found.append([place])
        else:
            last.append(place)
    return found


def grouped(order: Sequence[int], lengths: Sequence[int], *, size: int, rng: random.Random) -> list[int]:
    """The examples in another random order, in which every batch of `size` has examples of about the same length."""
    batches: list[list[int]] = []
    for first in range(0, len(order), size * POOL):
        pool = sorted(order[first : first + size * POOL], key=lambda index: lengths[index])
        batches += [pool[start : start + size] for start in range(0, len(pool), size)]
    short = [batch for batch in batches if len(batch) < size]  # only the last batch of an epoch is not full
    batches = [batch for batch in batches if len(batch) == size]
    rng.shuffle(batches)
    return [index for batch in (*batches, *short) for index in batch]
