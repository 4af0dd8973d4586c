"""From a plain model to an adapted one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from glora.adapted import Adapted
from glora.errors import SpaceError, TargetError, listed, need
from glora.genotype import NONE
from glora.layers.sites import plan_sites
from glora.space import SearchSpace

__all__ = ["inject"]

log = logging.getLogger("glora")


def inject(
    model: nn.Module,
    space: SearchSpace,
    *,
    targets: str | Sequence[str] = "linear",
    skip: str | Sequence[str] = (),
    head: str | Sequence[str] | None = "auto",
    example: Any = None,
    seed: int = 0,
    statistics: bool = False,
) -> Adapted:
    """The model adapted in place: every target layer gets its support tensors; fresh, it is the base bit for bit.

    Args:
        model: Any module; everything but support tensors and head is frozen.
        space: What may be chosen at every site.
        targets: A kind of layer (`"linear"`: every Linear outside the head, attention's in-projections too; `"conv"`,
            `"norm"`, `"embedding"`, `"all"`); a regular expression searched in layer names; or a list of words, names
            or name endings.
        skip: The same, for layers to leave out.
        head: Modules trained whole: `"auto"` (timm's classifier, transformers' output head), names, or None.
        example: An input, a tuple or a dict of them, for the probe forward that `new_bias` needs.
        seed: Draws the `up` factors.
        statistics: Let training update the running statistics of norms (BatchNorm) outside the head. They are then
            the adapter's: saved with it, in the merged model, restored by detach. Otherwise they are frozen.

    Returns:
        The adapted model; its smallest genotype is active.

    Raises:
        TargetError: Nothing matches, a name is unknown, or an argument is of another type.
        SpaceError: The space is none.
        StateError: The model is adapted already.

    Source: arXiv 2306.07967, Sec. 2.2-2.3.
    """
    need(model, nn.Module, TargetError, "model", "a torch.nn.Module")
    need(space, SearchSpace, SpaceError, "space", "a SearchSpace")
    chosen, heads, notes = plan_sites(
        model, targets=targets, skip=skip, head=head, new_bias=space.new_bias, example=example
    )
    adapted = Adapted(model, chosen, space.bind(chosen), heads, seed=seed, statistics=statistics)
    if statistics and not adapted.statistics:
        notes += ("No layer outside the head keeps running statistics: statistics=True changes nothing.",)
    if idle := [name for name, offered in adapted.space.options.items() if set(offered) == {(NONE,)}]:
        notes += (f"The space offers nothing at {listed(idle)}.",)
    adapted.notes = notes
    for note in notes:
        log.warning(note)
    return adapted
