"""Adapters: small networks between a sublayer of a transformer and the stream, in the forms of three papers.

    m = branch of the sublayer,  x <- x + m + W2 act(W1 m + b1) + b2

`noah` (arXiv 2206.04673, the row "Adapter" of GLoRA's Table 1) and `pfeiffer` (arXiv 2005.00247) follow the MLP,
`houlsby` (arXiv 1902.00751) follows attention and MLP. Without an activation an adapter merges into the layer that
writes the branch, `W <- W + W2 W1 W` and `b <- b + W2 (W1 b + b1) + b2`, LayerScale's gamma folded first.

Departures: by default W2 = b1 = b2 = 0 and W1 is Kaiming-uniform, so that step 0 is the pretrained network; `start:
authors` is what the authors' code starts with, which is not (NOAH's own Xavier weights are overwritten there by a
truncated normal of 0.02). Both maps are never zero: nothing but the biases would learn then. Every form follows
stochastic depth, as NOAH's does, so that an adapter acts on a dropped branch as well; where a model drops out the
branch's output after the layer that writes (transformers' ViT and the attention of GPT-2), the adapter comes before.
`houlsby` trains every norm outside the head, as its authors do; `norms: frozen` leaves them.
Pfeiffer's original activation is the one that its authors' search chose, ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glora.adapt.adapter_format import fingerprint
from glora.adapt.head import is_inside
from glora.methods.added import ADDED, Bottleneck, TunedAdded, place
from glora.methods.blocks import Block, Sublayer, find_blocks
from glora.methods.method import Method

__all__ = ["Adapter"]

Activation = Literal["gelu", "quick_gelu", "relu", "identity"]
OWN: dict[str, dict[str, Any]] = {  # what a form is unless told otherwise; `std` is that of its authors' weights
    "noah": {"activation": "quick_gelu", "dropout": 0.1, "norms": "frozen", "std": 0.02},
    "pfeiffer": {"activation": "relu", "dropout": 0.0, "norms": "frozen", "std": 0.02},
    "houlsby": {"activation": "gelu", "dropout": 0.0, "norms": "trained", "std": 1e-3},
}


class After(Bottleneck):
    """A bottleneck added to the output of the module that it follows."""

    def follow(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """The hook on that module."""
        added: Tensor = self(output)
        return output + added


class Adapter(Method):
    """Adapters after the sublayers of a transformer: `m + up activation(down m)`. Merges where it is linear."""

    lr = 1e-3

    name: Literal["adapter"] = "adapter"
    form: Literal["noah", "pfeiffer", "houlsby"] = Field(
        "noah", description="noah and pfeiffer: one after each MLP; houlsby: after attention and MLP."
    )
    hidden: int = Field(8, ge=1, description="Width of the bottleneck.")
    activation: Activation | None = Field(
        None, description="In the bottleneck; the form's own if not given: quick_gelu, relu, gelu. identity merges."
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="In the bottleneck; the form's own if not given: 0.1 of noah, else 0."
    )
    norms: Literal["trained", "frozen"] | None = Field(
        None, description="The network's own norms; the form's own if not given: trained of houlsby, else frozen."
    )
    start: Literal["exact", "authors"] = Field(
        "exact", description="exact: step 0 is the pretrained network; authors: random maps, as in the authors' code."
    )

    @property
    def title(self) -> str:
        return "Adapter" if self.form == "noah" else f"Adapter ({self.form.capitalize()})"

    def apply(self, model: nn.Module, *, head: Sequence[str], seed: int) -> TunedAdapters:
        blocks = find_blocks(model, "An adapter").blocks
        generator = torch.Generator().manual_seed(seed)
        places, hooks = list[Place](), []
        for block in blocks:
            sides = ("attention", "mlp") if self.form == "houlsby" else ("mlp",)
            made = {side: self._adapter(block.width, generator) for side in sides}
            place(model, block.name, nn.ModuleDict(made))
            for side, adapter in made.items():
                sublayer: Sublayer = getattr(block, side)
                hooks.append(model.get_submodule(sublayer.branch).register_forward_hook(adapter.follow))
                places.append(Place(block, sublayer, adapter))
        return TunedAdapters(self, model, head, places, hooks, own=self._norms(model, head))

    def base_fingerprint(self, model: nn.Module, head: Sequence[str]) -> str:
        return fingerprint(model, (*head, *self._norms(model, head)))

    def chosen(self, setting: str) -> Any:
        """The setting of this name, or the form's own."""
        given = getattr(self, setting)
        return OWN[self.form][setting] if given is None else given

    def _adapter(self, width: int, generator: torch.Generator) -> After:
        made = After(
            width,
            self.hidden,
            activation=self.chosen("activation"),
            dropout=self.chosen("dropout"),
            generator=generator,
        )
        if self.start == "authors":
            std = OWN[self.form]["std"]
            for weight in (made.down.weight, made.up.weight):
                nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        return made

    def _norms(self, model: nn.Module, head: Sequence[str]) -> dict[str, nn.Parameter]:
        """The norms' parameters outside the head, where they are trained."""
        if self.chosen("norms") == "frozen":
            return {}
        norms = {name for name, module in model.named_modules() if "Norm" in type(module).__name__}
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.rpartition(".")[0] in norms and parameter.dim() == 1 and not is_inside(name, head)
        }


class Place(NamedTuple):
    """An adapter and where it is."""

    block: Block
    sublayer: Sublayer
    adapter: After


class TunedAdapters(TunedAdded):
    """Adapters in their places; linear ones merge.

    Args:
        method, model, head, own: As in `TunedAdded`.
        places: The adapters.
        hooks: Theirs.
    """

    def __init__(
        self,
        method: Adapter,
        model: nn.Module,
        head: Sequence[str],
        places: Sequence[Place],
        hooks: Sequence[RemovableHandle],
        own: Mapping[str, nn.Parameter],
    ) -> None:
        why = "" if method.chosen("activation") == "identity" else "its activation is not linear"
        why = why or next(filter(None, (why_not(model, each.block, each.sublayer) for each in places)), "")
        hosts = list(dict.fromkeys(each.block.name for each in places))
        super().__init__(method, model, head, hosts=hosts, undo=hooks, own=own, no_merge=why)
        self.places = tuple(places)
        writes = [each.sublayer.writes for each in places]
        self._new = tuple(f"{name}.bias" for name in writes if model.get_submodule(name).bias is None)

    @property
    def new_keys(self) -> tuple[str, ...]:
        return super().new_keys if self.no_merge else self._new

    @torch.no_grad()
    def fold(self) -> None:
        for block, sublayer, adapter in self.places:
            layer: Any = self.model.get_submodule(sublayer.writes)
            across = hasattr(layer, "nf")  # transformers' Conv1D, whose weight is (i, o)
            weight = (layer.weight.T if across else layer.weight).double()  # (o, i)
            bias = torch.zeros(len(weight)).to(weight) if layer.bias is None else layer.bias.double()
            if (gamma := gamma_of(self.model, block, sublayer)) is not None:
                weight, bias = gamma.double()[:, None] * weight, gamma.double() * bias
                gamma.fill_(1)
            down, up = adapter.down, adapter.up
            product = up.weight.double() @ down.weight.double()  # (o, o)
            weight = weight + product @ weight
            bias = bias + product @ bias + up.weight.double() @ down.bias.double() + up.bias.double()
            layer.weight.copy_(weight.T if across else weight)
            if layer.bias is None:
                layer.bias = nn.Parameter(bias.to(layer.weight))
            else:
                layer.bias.copy_(bias)


def gamma_of(model: nn.Module, block: Block, sublayer: Sublayer) -> Tensor | None:
    """LayerScale's factors `(width)` between the layer that writes and the stream, where there are some."""
    host: Any = model.get_submodule(block.name)
    number = "1" if sublayer is block.attention else "2"
    scale = getattr(host, f"ls{number}", None)
    found = getattr(host, f"gamma_{number}", None) if scale is None else getattr(scale, "gamma", None)
    return found if isinstance(found, Tensor) else None


PLAIN = {"norm1", "norm2", "attn", "mlp", "ls1", "ls2", "drop_path1", "drop_path2", ADDED}


def why_not(model: nn.Module, block: Block, sublayer: Sublayer) -> str:
    """Why a linear adapter after this sublayer does not merge into the layer that writes; empty where it does."""
    host = model.get_submodule(block.name)
    weight: Any = getattr(model.get_submodule(sublayer.writes), "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or type(weight.data) is not Tensor:
        return f"the weight of {sublayer.writes} cannot be written"
    if sum(each is weight for module in model.modules() for each in module._parameters.values()) > 1:
        return f"the weight of {sublayer.writes} is shared with another layer"
    if sublayer.branch == sublayer.writes or not sublayer.branch.rpartition(".")[2].startswith("drop_path"):
        return ""  # of transformers: nothing but dropout is between
    others = {name for name, child in host.named_children() if any(True for _ in child.parameters())} - PLAIN
    others |= {name for name, _ in host.named_parameters(recurse=False)} - {"gamma_1", "gamma_2"}
    return f"it is not known where {block.name} uses {min(others)}" if others else ""
