"""The folder of a run's merged model of transformers: what lies beside the weights, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from glora.backbones.transformers_folder import CARD, Extras, folder_of, save_folder
from glora.tasks.images import Preprocess
from glora.tasks.objective import Objective
from glora.tasks.texts import TextPreprocess

__all__ = ["PROBLEMS", "Merged", "labels_of", "merged_folder"]

PROBLEMS = {  # what transformers calls an objective of a classifier
    "classify": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regress": "regression",
}
CLASSES = {  # how a model is loaded, by its form
    "causal": "AutoModelForCausalLM",
    "encoder_decoder": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True)
class Merged:
    """A merged model of transformers, and what its folder says about it.

    Attributes:
        model: The plain model.
        objective: What it predicts.
        preprocess: How it reads texts or images; None where it is given its inputs ready.
        new_keys: State-dict keys that the base has not: a new bias each.
        base: The name that its base was loaded by; empty where a program gave it.
        card: Plain JSON about where it comes from.
    """

    model: nn.Module
    objective: Objective
    preprocess: Preprocess | TextPreprocess | None
    new_keys: Sequence[str]
    base: str
    card: Mapping[str, Any]


def merged_folder(merged: Merged, path: Path) -> str:
    """Writes the folder; says how it is loaded, and what else a user should be told, a line each.

    Raises:
        BackboneError: The model's class cannot hold the new biases; nothing is written then.
        RunError: The folder holds something else.
    """
    notes = save_folder(merged.model, path, _extras(merged), new_keys=merged.new_keys)
    if getattr(merged.objective, "std", ()):
        notes += (f"Its outputs are standardised: the mean and the deviation are in {path / CARD}.",)
    return "\n".join([f"{path}: loaded by transformers' {_class_of(merged)}.from_pretrained({str(path)!r})", *notes])


def _class_of(merged: Merged) -> str:
    if isinstance(merged.preprocess, TextPreprocess):
        return CLASSES["encoder" if merged.objective.outputs is not None else merged.preprocess.form]
    name = type(merged.model).__name__
    return "AutoModelForImageClassification" if name.endswith("ForImageClassification") else name


def _extras(merged: Merged) -> Extras:
    preprocess = merged.preprocess
    tokenizer = preprocess.tokenizer if isinstance(preprocess, TextPreprocess) else None
    names = (getattr(tokenizer, "name_or_path", ""), merged.base) if merged.base else ()
    classifies = merged.objective.outputs is not None
    return Extras(
        tokenizer=tokenizer,
        source=folder_of(*names),
        preprocess=preprocess if isinstance(preprocess, Preprocess) else None,
        labels=labels_of(merged.objective) if classifies else (),
        problem=PROBLEMS.get(merged.objective.name, "") if classifies else "",
        card=merged.card,
    )


def labels_of(objective: Objective) -> tuple[str, ...]:
    """The names of the outputs, in their order."""
    said = objective.model_dump()
    return next((tuple(said[field]) for field in ("classes", "labels", "columns") if said.get(field)), ())
