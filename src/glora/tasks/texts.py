"""Texts as examples: conversations to learn from, questions with choices, labelled texts; and how a model reads them.

A source (`tasks/data/`) makes rows, and a set of rows is a split. `prepared` makes token ids of them, as the model's
tokenizer says; before, a set knows nothing of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

__all__ = ["IGNORED", "Choices", "TextPreprocess"]

IGNORED = -100  # the target of a token that is not learned


class Choices(NamedTuple):
    """The targets of questions with several choices, n of them with c choices at most.

    Attributes:
        tokens: The tokens that are scored, `(n * c, t)` as the inputs, the choices of a question next to each other;
            `IGNORED` everywhere else, and for choices that are not there.
        answer: The right choice of each, `(n,)`.
        sizes: Characters of each choice, `(n, c)`, as `acc_norm` divides by them; 0 where there is no such choice.
    """

    tokens: Tensor
    answer: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class TextPreprocess:
    """How a model reads texts.

    Attributes:
        tokenizer: transformers' tokenizer of the model.
        name: The folder or name that it was loaded from.
        form: `causal`, one sequence that goes on; `encoder_decoder`, the prompt and then what is said to it; `encoder`,
            a text that is classified.
        max_length: Most tokens of a sequence that the model takes; None: it does not say.
    """

    tokenizer: Any
    name: str
    form: Literal["causal", "encoder_decoder", "encoder"]
    max_length: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What a file tells of it; the tokenizer comes with the model."""
        return {"kind": "text", "tokenizer": self.name, "form": self.form, "max_length": self.max_length}

    @property
    def summary(self) -> str:
        """In a few words, for the plan of a run."""
        return "" if self.max_length is None else f"up to {self.max_length:,} tokens"
