"""A LoRA folder within the limits of vLLM: pairs of linear layers alone, of a rank that its server allows.

Its rules (vLLM 0.33): it refuses `lora_bias`, `bias: lora_only`, modules that are saved whole other than `classifier`
and `score`, and ranks above its `max_lora_rank`; `rank_pattern` without `alpha_pattern` plays with wrong numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from glora.errors import GloraError, listed
from glora.exports.card import Loading
from glora.exports.changes import Change
from glora.exports.export import Trained
from glora.exports.peft_folder import OTHERWISE
from glora.exports.peft_lora import PeftLora, place_of

__all__ = ["Vllm"]

MODULES = ("classifier", "score")  # that it loads whole


class Vllm(PeftLora):
    """A LoRA folder that vLLM serves: linear layers alone, no new biases, no trained head."""

    name: Literal["vllm"] = "vllm"  # type: ignore[assignment]
    rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(
        16, description="The server's max_lora_rank; what is of a larger rank is cut by SVD."
    )

    def place(self, change: Change) -> str:
        place = place_of(change)
        if change.site.kind != "linear":
            return f"vLLM has LoRA in linear layers alone, and this is {_a(change.site.kind)}"
        if change.shift is not None:
            return "its bias is shifted (C, D or E), and vLLM takes no biases"
        return place if place != "whole" else "vLLM takes no layers that are saved whole"

    def check_whole(self, trained: Trained, modules: Sequence[str]) -> None:
        adapted = trained.need_adapted(self.export_name)
        if odd := [name for name in modules if name.rpartition(".")[2] not in MODULES]:
            raise GloraError(
                f"{listed(odd)} of {type(adapted.model).__name__} was trained whole, and vLLM takes no such module.",
                allowed=f"It takes {' and '.join(MODULES)}.",
                remedy=f"Train with head=None, or export the merged model. {OTHERWISE}",
            )

    def loading(self, trained: Trained, name: str) -> Loading:
        base = trained.facts.base.name
        code = (
            "import vllm, vllm.lora.request",
            f"model = vllm.LLM({base!r}, enable_lora=True, max_lora_rank={self.rank})",
            f"model.generate(['Hello'], lora_request=vllm.lora.request.LoRARequest('glora', 1, {name!r}))",
        )
        return Loading(library="peft", code=code, tags=("peft", "lora", "vllm"))


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
