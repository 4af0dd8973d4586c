"""PEFT's LoRA folder, every scaling 1.

Exact where the change of a weight is of low rank: B, and a LoRA A of the matrix product. A vector or scalar A, and the
elementwise product's LoRA A, change the whole spectrum: they are cut by SVD, and refused where that loses much. The
shifts of biases, C, D and E, are PEFT's `lora_bias`; with embeddings, which have none, the biases are written whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from glora.adapt.layers.conv import Conv, ConvTranspose
from glora.adapt.layers.embedding import Embedding
from glora.adapt.layers.linear import Conv1D
from glora.adapt.sites import LayerWeight
from glora.errors import GloraError, listed
from glora.exports.changes import Change, cut
from glora.exports.export import Trained
from glora.exports.peft_folder import OTHERWISE, Contents, PeftFolder, module_of, plain_name

__all__ = ["PeftLora"]

SHOWN = 200  # layers whose error is told one by one


class PeftLora(PeftFolder):
    """PEFT's LoRA folder: the change of every weight as one pair, biases, norms and the head; exact, or by SVD."""

    name: Literal["peft"] = "peft"
    rank: int = Field(64, ge=1, description="Largest rank of a layer's pair; what is of a larger one is cut by SVD.")
    max_error: float = Field(
        0.01, ge=0, le=1, description="Largest share of a layer's change (Frobenius norm) that the cut may lose."
    )

    def place(self, change: Change) -> str:
        return place_of(change)

    def contents(self, trained: Trained, changes: Sequence[Change]) -> Contents:
        made = [cut(change, self.rank) for change in changes]
        told = _errors(made)
        self._refuse_errors(made, told)
        biases, tensors = _biases(made), dict[str, Tensor]()
        for change in made:
            for weight in change.layers:
                tensors |= _factors(change, weight) | biases.tensors(change, weight.module)
        ranks = {module: max(1, change.rank) for change in made for module in module_of(change)}
        largest = max(ranks.values(), default=1)
        patterns = _patterns({module: rank for module, rank in ranks.items() if rank != largest}, ranks)
        settings = {
            "peft_type": "LORA",
            "r": largest,
            "lora_alpha": largest,
            "lora_dropout": 0.0,
            "use_rslora": False,
            "fan_in_fan_out": any(isinstance(change.view, Conv1D) for change in made),
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            **biases.settings,
        }
        errors = {change.name: {"rank": change.rank, "error": change.error} for change in made}
        return Contents(settings, tensors, tuple(ranks), told, {"layers": errors})

    def _refuse_errors(self, made: Sequence[Change], told: Sequence[str]) -> None:
        """Raises GloraError where the cut loses more of a layer than it may."""
        bad = {change.name: change.error for change in made if change.error > self.max_error}
        if bad:
            raise GloraError(
                f"Rank {self.rank} cannot hold what was trained at {len(bad)} layers:\n  "
                + "\n  ".join(told)
                + f"\nThe largest error that is allowed is {self.max_error:.2%}: max_error={self.max_error:g}.\n",
                remedy="Give a larger rank, or export to peft-glora, which holds it exactly, or the merged model: "
                "huggingface, onnx, torch. A larger max_error loses accuracy: measure it.",
            )


def place_of(change: Change) -> str:
    """Where PEFT's LoRA has a place for a change, see `PeftFolder.place`; one for all layers of a tied weight."""
    places = {_place_of(change, weight) for weight in change.layers}
    return places.pop() if len(places) == 1 else "its weight is shared by layers of which PEFT adapts not all"


def _place_of(change: Change, weight: LayerWeight) -> str:
    layer, view = weight.layer, weight.view
    if change.site.kind == "attention":
        return "PEFT adds what it learned in an nn.MultiheadAttention twice"
    if plain_name(layer) == "NonDynamicallyQuantizableLinear":
        return "nn.MultiheadAttention reads its output projection without calling it"
    if isinstance(view, Embedding) and not isinstance(layer, nn.Embedding):
        return f"PEFT has no {plain_name(layer)}"
    if change.site.diagonal or isinstance(view, ConvTranspose):
        return "whole"
    if isinstance(view, Conv) and (view.groups > 1 or set(layer.dilation) != {1} or layer.padding_mode != "zeros"):  # type: ignore[arg-type]
        return "whole"  # PEFT does not merge grouped ones, and fails on dilated ones
    return "adapter"


def _factors(change: Change, weight: LayerWeight) -> dict[str, Tensor]:
    """PEFT's `lora_A` and `lora_B` of a layer; of one whose bias alone is shifted zeros of rank one."""
    site, module, view = change.site, weight.module, weight.view
    down, up = change.pair or (torch.zeros(site.out_features, 1), torch.zeros(1, site.in_features))
    if isinstance(view, Embedding):
        return {f"{module}.lora_embedding_A": down.T, f"{module}.lora_embedding_B": up.T}
    if isinstance(view, Conv):
        kernel = view.size
        up, down = up.reshape(len(up), -1, *kernel), down.reshape(*down.shape, *[1] * len(kernel))
    return {f"{module}.lora_A.weight": up, f"{module}.lora_B.weight": down}


class _Shifted:
    """Biases as PEFT's `lora_bias`, which every layer with an adapter then has."""

    settings: Mapping[str, Any] = {"lora_bias": True}

    def tensors(self, change: Change, module: str) -> dict[str, Tensor]:
        nothing = torch.zeros(change.site.out_features)
        return {f"{module}.lora_B.bias": nothing if change.shift is None else change.shift}


class _Whole(_Shifted):
    """Biases written whole: `bias: lora_only`."""

    settings: Mapping[str, Any] = {"bias": "lora_only"}

    def tensors(self, change: Change, module: str) -> dict[str, Tensor]:
        if change.b0 is None:
            return {}
        return {f"{module}.base_layer.bias": change.b0 + (0 if change.shift is None else change.shift)}


class _Unchanged(_Shifted):
    """No bias is changed."""

    settings: Mapping[str, Any] = {}

    def tensors(self, change: Change, module: str) -> dict[str, Tensor]:
        return {}


def _biases(changes: Sequence[Change]) -> _Shifted:
    """How the shifts of biases are written.

    Raises:
        GloraError: There are new biases, and an embedding beside them, which allows none.
    """
    shifted = [change for change in changes if change.shift is not None]
    if not shifted:
        return _Unchanged()
    if not any(isinstance(change.view, Embedding) for change in changes):
        return _Shifted()
    if new := [change.name for change in shifted if change.b0 is None]:
        raise GloraError(
            f"PEFT's LoRA of an embedding allows no lora_bias, without which {listed(new)} cannot have a new bias.",
            remedy=OTHERWISE,
        )
    return _Whole()


def _patterns(wanted: Mapping[str, int], every: Mapping[str, int]) -> dict[str, int]:
    """PEFT's `rank_pattern`: names of layers, anchored where one would match another layer too."""
    anchored = {f"^{re.escape(name)}": rank for name, rank in wanted.items()}

    def first(layer: str) -> str | None:  # as PEFT looks a layer up
        return next((name for name in wanted if re.match(rf"(.*\.)?({name})$", layer)), None)

    plain = all(first(name) == (name if name in wanted else None) for name in every)
    return dict(wanted) if plain else anchored


def _errors(made: Sequence[Change]) -> tuple[str, ...]:
    """What the cut loses, layer by layer and in total; nothing where all is exact."""
    cuts = [change for change in made if change.error]
    if not cuts:
        return ()
    lines = [f"{change.name}: rank {change.rank}, error {change.error:.2%} of its change" for change in cuts[:SHOWN]]
    norms = {change.name: _norm(change) for change in made}
    lost = math.sqrt(sum((change.error * norms[change.name]) ** 2 for change in made))
    total = math.sqrt(sum(norm**2 for norm in norms.values()))
    return (*lines, f"In total {lost / total:.2%} of the change is lost, at {len(cuts)} of {len(made)} layers.")


def _norm(change: Change) -> float:
    """The Frobenius norm of the change before the cut."""
    if change.pair is None:
        return 0.0
    kept = float(change.full().norm())
    return kept / math.sqrt(1 - min(change.error, 1 - 1e-9) ** 2)
