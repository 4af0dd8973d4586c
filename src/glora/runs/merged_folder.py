"""The folder of a run's merged model of transformers: what lies beside the weights, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glora.backbones.transformers_folder import Extras, folder_of, save_folder
from glora.tasks.images import Preprocess
from glora.tasks.texts import TextPreprocess
from glora.version import __version__

if TYPE_CHECKING:
    from glora.runs.loaded import LoadedRun

__all__ = ["merged_folder"]

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


def merged_folder(run: LoadedRun, path: Path) -> str:
    """Writes the folder; says how it is loaded, and what else a user should be told.

    Raises:
        BackboneError: The model's class cannot hold the new biases; nothing is written then.
        RunError: The folder holds something else.
    """
    notes = save_folder(run.model, path, _extras(run), new_keys=run.new_keys)
    if getattr(run.objective, "std", ()):
        notes += (f"Its outputs are standardised: the mean and deviation are in {path / 'glora.json'}.",)
    return "\n".join([f"{path}: transformers' {_class_of(run)}.from_pretrained({str(path)!r}) loads it.", *notes])


def _class_of(run: LoadedRun) -> str:
    if isinstance(run.preprocess, TextPreprocess):
        return CLASSES["encoder" if run.objective.outputs is not None else run.preprocess.form]
    name = type(run.model).__name__
    return "AutoModelForImageClassification" if name.endswith("ForImageClassification") else name


def _extras(run: LoadedRun) -> Extras:
    backbone, preprocess = run.info["backbone"], run.preprocess
    tokenizer = preprocess.tokenizer if isinstance(preprocess, TextPreprocess) else None
    names = () if backbone is None else (getattr(tokenizer, "name_or_path", ""), backbone["name"])
    return Extras(
        tokenizer=tokenizer,
        source=folder_of(*names),
        preprocess=preprocess if isinstance(preprocess, Preprocess) else None,
        labels=_labels(run) if run.objective.outputs is not None else (),
        problem=PROBLEMS.get(run.objective.name, "") if run.objective.outputs is not None else "",
        card=_card(run),
    )


def _labels(run: LoadedRun) -> tuple[str, ...]:
    """The names of the outputs, in their order."""
    names: dict[str, Any] = run.objective.model_dump()
    return next((tuple(names[field]) for field in ("classes", "labels", "columns") if names.get(field)), ())


def _card(run: LoadedRun) -> dict[str, Any]:
    """Where the model comes from, and what its objective and its data say."""
    return {
        "glora": __version__,
        "run": run.folder.path.resolve().name,
        "method": run.experiment.method.title,  # type: ignore[attr-defined]
        "new_keys": list(run.new_keys),
        "data": run.experiment.data.model_dump(mode="json"),  # type: ignore[attr-defined]
        **run.info,
    }
