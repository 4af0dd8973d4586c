"""The weight-entangled supernet: sample a subnet for a step, hold one for scoring."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

from torch import nn

from glora.adapted import Adapted
from glora.genotype import Genotype

__all__ = ["Supernet"]


class Supernet:
    """An adapted model of which every training step plays one genotype, drawn uniformly.

    Args:
        adapted: The adapted model; all genotypes of its space share its numbers.

    Source: arXiv 2306.07967, Sec. 2.3.
    """

    def __init__(self, adapted: Adapted) -> None:
        self.adapted = adapted

    def sample(self, rng: random.Random) -> Genotype:
        """Draws a genotype for the next step and activates it; equal generators give equal steps."""
        genotype = self.adapted.sample(rng)
        self.adapted.activate(genotype)
        return genotype

    def hold(self, genotype: Genotype) -> AbstractContextManager[nn.Module]:
        """Within it the model plays the genotype with its effective weights built once."""
        return self.adapted.hold(genotype)
