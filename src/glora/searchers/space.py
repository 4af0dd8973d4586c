"""What a search needs of a search space: a small protocol, so that every method can bring a space of its own.

GLoRA's is `glora.space.BoundSpace`. Any other object with the same three members can be searched too, such as one
whose genes are the numbers of prompts in each block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

from glora.errors import ConfigError

__all__ = ["Space", "check_space", "space_hash"]

MEMBERS = ("costs", "decode", "to_json")


class Space(Protocol):
    """A list of genes with a few options each. A genome has one option index per gene, a tuple of ints.

    The trainable numbers of a genome are the sum of its options' costs.
    """

    @property
    def costs(self) -> Sequence[Sequence[int]]:
        """For every gene, the trainable numbers of each of its options."""
        ...

    def decode(self, genome: tuple[int, ...]) -> Any:
        """The genotype that a genome stands for: what the score function is called with.

        With workers it is sent to other processes, so that it must be picklable.
        """
        ...

    def to_json(self) -> Any:
        """Plain data that is the same for two spaces only if every genome means the same in both.

        A journal keeps its hash, and is refused by a search of another space.
        """
        ...


def check_space(space: Any) -> None:
    """Raises ConfigError unless a search can use the space."""
    if missing := [name for name in MEMBERS if not hasattr(space, name)]:
        raise ConfigError(
            f"space is a {type(space).__name__}, which has no {' and no '.join(missing)}.",
            allowed="A bound space, such as adapted.space, or an object with the members of glora.searchers.Space: "
            f"{', '.join(MEMBERS)}.",
            remedy="A SearchSpace is bound to a model's sites by its method `bind`." if hasattr(space, "bind") else "",
        )
    costs = space.costs
    whole = all(len(options) and all(type(cost) is int and cost >= 0 for cost in options) for options in costs)
    if not len(costs) or not whole:
        raise ConfigError(
            "space.costs is not allowed.",
            allowed="At least one gene, and for each at least one option whose cost is an int >= 0.",
        )


def space_hash(space: Space) -> str:
    """The SHA-256 of what the space's genomes mean, as hexadecimal digits.

    Raises:
        ConfigError: `space.to_json()` is no plain data.
    """
    try:
        text = json.dumps(space.to_json(), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"space.to_json() is no plain data: {error}.", allowed="What JSON can hold.") from error
    return hashlib.sha256(text.encode()).hexdigest()
