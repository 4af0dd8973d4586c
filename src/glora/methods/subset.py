"""Methods that train a subset of the model's own parameters: the head alone, every bias, or everything.

Departures: a bias of BitFit is a parameter called `bias`, or `q_bias`, `v_bias` and `in_proj_bias` of attention. Code
that looks for the text `bias` also trains Swin's tables of relative positions. Weight decay is the run's for all
numbers; BitFit's authors use none for biases. The rows of the paper's Table 1 are VPT's: SGD with a grid of rates and
decays for each task, the network of Linear and BitFit in eval mode while it trains; here optimizer and rate are the
run's, and the network is in training mode, which changes dropout and stochastic depth, where the model has some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from glora.adapt.adapter_format import fingerprint
from glora.adapt.head import is_inside
from glora.adapt.statistics import statistics_of
from glora.errors import TargetError
from glora.methods.blocks import refuse_tuned
from glora.methods.method import Method
from glora.methods.numbers import TunedNumbers

__all__ = ["BitFit", "Full", "LinearProbe", "Subset"]


class Subset(Method):
    """The base of methods that train parameters that the model has; a subclass says which: `trained` or `numbers`."""

    def trained(self, name: str) -> bool:
        """Whether the parameter of this name, outside the head, is trained."""
        raise NotImplementedError

    @property
    def trains_statistics(self) -> bool:
        """Whether running statistics outside the head are trained with them."""
        return False

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedNumbers:
        refuse_tuned(model)
        return TunedNumbers(self, model, self.numbers(model, head), head, statistics=self.trains_statistics)

    def base_fingerprint(self, model: nn.Module, head: Sequence[str]) -> str:
        statistics = statistics_of(model, head) if self.trains_statistics else ()
        return fingerprint(model, (*head, *self.numbers(model, head), *statistics))

    def numbers(self, model: nn.Module, head: Sequence[str]) -> dict[str, nn.Parameter]:
        """The parameters outside the head that are trained, by name; what the head shares is trained as the head's."""
        heads = {id(parameter) for name in head for parameter in model.get_submodule(name).parameters()}
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
            and not is_inside(name, head)
            and id(parameter) not in heads
            and self.trained(name)
        }


class LinearProbe(Subset):
    """Only the head is trained (arXiv 2306.07967, Table 1: Linear)."""

    lr = 3e-2

    name: Literal["linear"] = "linear"

    @property
    def title(self) -> str:
        return "Linear"

    def trained(self, name: str) -> bool:
        return False


class BitFit(Subset):
    """BitFit (arXiv 2106.10199): every bias of the network, those of norms and of the patch embedding included."""

    lr = 1e-3

    name: Literal["bitfit"] = "bitfit"

    @property
    def title(self) -> str:
        return "BitFit"

    def trained(self, name: str) -> bool:
        return name.rpartition(".")[2] in ("bias", "q_bias", "v_bias", "in_proj_bias")

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedNumbers:
        refuse_tuned(model)
        if not self.numbers(model, head):
            raise TargetError(
                f"BitFit trains biases, and {type(model).__name__} has none outside its head.",
                remedy="Choose a method that changes weights: glora, lora.",
            )
        return super().apply(model, head=head, seed=seed)


class Full(Subset):
    """Every parameter is trained. It needs a far smaller learning rate than the adapters."""

    lr = 1e-4

    name: Literal["full"] = "full"

    @property
    def title(self) -> str:
        return "Full"

    @property
    def trains_statistics(self) -> bool:
        return True

    def trained(self, name: str) -> bool:
        return True
