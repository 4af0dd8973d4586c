"""Classes of texts by a causal language model: a class is a word, as likely as the model says after the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor, nn
from typing_extensions import Self

from glora.errors import DataError, did_you_mean, listed
from glora.tasks.likelihood import choice_scores
from glora.tasks.objective import Batch, Targets
from glora.tasks.objectives.choose import Normalise, normalised
from glora.tasks.objectives.classify import Classes

__all__ = ["Verbalize"]

ONE, TWO = "Text: {text}\nClass:", "First: {text}\nSecond: {pair}\nClass:"
FIELDS = re.compile(r"\{(text|pair)\}")

Words = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(lambda given: tuple(given.items()) if isinstance(given, Mapping) else given),
]


class Verbalize(Classes):
    """One class per text. Outputs are log-likelihoods of the classes' words `(n, classes)`, targets `Choices`.

    Every text becomes a question (`question`), whose choices are the words of all classes in the order of the classes.
    """

    name: Literal["verbalize"] = "verbalize"
    prompt: str | None = Field(
        None, description=f"What the model reads, with {{text}} and of pairs {{pair}}; {ONE!r} if not given."
    )
    words: Words = Field((), description="The word or phrase of each class, {CLASS: WORD}; else the class's name.")
    normalise: Normalise = Field(
        "none", description="The score of a class: the log-likelihood of its word, or this per character."
    )

    @field_validator("prompt")
    @classmethod
    def _has_text(cls, prompt: str | None) -> str | None:
        if prompt is not None and "{text}" not in prompt:
            raise ValueError(f"{prompt!r} has no place for the text: write {{text}} there")
        return prompt

    def named(self, targets: Targets) -> Self:
        named = super().named(targets)
        for name, _ in self.words:
            if name not in named.classes:
                raise DataError(
                    f"objective.words has a word of the class {name!r}, which is not in the data.",
                    allowed=f"The classes: {listed(named.classes, n=20)}.",
                    remedy=did_you_mean(name, named.classes),
                )
        words = named.choices
        if twice := sorted({word for word in words if words.count(word) > 1}):
            raise DataError(
                f"Several classes have the word {twice[0]!r}: they cannot be told apart.",
                remedy="Give each a word of its own in objective.words.",
            )
        return named

    @property
    def outputs(self) -> None:
        return None

    @property
    def choices(self) -> tuple[str, ...]:
        """The word of every class, in their order."""
        words = dict(self.words)
        return tuple(words.get(name, name) for name in self.classes)

    def question(self, text: str, pair: str | None = None) -> str:
        """What the model reads of a text, or of two; what follows it is one of `choices`.

        Raises:
            DataError: There are two texts and the prompt has one place, or the other way round.
        """
        prompt = self.prompt or (ONE if pair is None else TWO)
        if ("{pair}" in prompt) != (pair is not None):
            raise DataError(
                f"The text {text[:40]!r} has {'no second text' if pair is None else 'a second text'}, and "
                f"objective.prompt has {'a place' if pair is None else 'no place'} for one.",
                remedy=f"Write objective.prompt {'without' if pair is None else 'with'} {{pair}}.",
            )
        return FIELDS.sub(lambda field: text if field[1] == "text" else str(pair), prompt)

    def right(self, batch: Batch) -> Tensor:
        found: Tensor = batch.targets.answer
        return found

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> Tensor:
        return normalised(choice_scores(model, batch, train=train), batch.targets.sizes, self.normalise)

    def tempered(self, output: Tensor, t: float) -> Any:
        return None
