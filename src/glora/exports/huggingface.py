"""The merged model as a folder that `from_pretrained` (transformers) or timm's `local-dir:` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from glora import registry
from glora.backbones.transformers_folder import Extras, folder_of, save_folder
from glora.errors import GloraError
from glora.exports.card import Loading
from glora.exports.export import Export, Trained, Written
from glora.tasks.images import Preprocess
from glora.tasks.texts import TextPreprocess

__all__ = ["HuggingFace"]

_TIMM = "glora.backbones.timm_source"


class HuggingFace(Export):
    """The merged model as a folder that transformers or timm loads, with its labels and how it reads images."""

    name: Literal["huggingface"] = "huggingface"

    def write(self, trained: Trained, folder: Path, name: str) -> Written:
        library = trained.facts.base.library
        if library not in ("timm", "transformers"):
            raise GloraError(
                f"A folder is loaded by transformers or timm, and {trained.facts.base.name} is of neither.",
                remedy="Export with --to torch or onnx, or write the state dict: glora merge RUN --out m.safetensors",
            )
        model, new_keys = trained.plain()
        write = _write_timm if library == "timm" else _write_transformers
        return write(trained, model, new_keys, folder, name)


def _write_timm(trained: Trained, model: nn.Module, new_keys: tuple[str, ...], folder: Path, name: str) -> Written:
    preprocess = trained.preprocess if isinstance(trained.preprocess, Preprocess) else None
    registry.load(f"{_TIMM}:save_folder")(
        model, folder, labels=trained.labels, preprocess=preprocess, new_keys=new_keys
    )
    line = f"model = timm.create_model({'local-dir:' + name!r}, pretrained=True).eval()"
    return Written(loading=Loading(library="timm", code=("import timm", line), tags=("timm", "image-classification")))


def _write_transformers(
    trained: Trained, model: nn.Module, new_keys: tuple[str, ...], folder: Path, name: str
) -> Written:
    reads = trained.preprocess
    tokenizer = reads.tokenizer if isinstance(reads, TextPreprocess) else None
    extras = Extras(
        tokenizer=tokenizer,
        source=folder_of(*filter(None, (getattr(tokenizer, "name_or_path", ""), trained.facts.base.name))),
        preprocess=reads if isinstance(reads, Preprocess) else None,
        labels=trained.labels,
        problem=trained.problem,
        card=trained.facts.to_json(),
    )
    notes = save_folder(model, folder, extras, new_keys=new_keys)
    line = f"model = transformers.{type(model).__name__}.from_pretrained({name!r}).eval()"
    loading = Loading(library="transformers", code=("import transformers", line), tags=_tags("transformers", model))
    return Written(loading=loading, notes=notes)


def _tags(library: str, model: nn.Module) -> tuple[str, ...]:
    """The hub's words for the library and for what the model does, as far as its class tells."""
    words = {
        "ForCausalLM": "text-generation",
        "ForSequenceClassification": "text-classification",
        "ForImageClassification": "image-classification",
    }
    return library, *(word for end, word in words.items() if type(model).__name__.endswith(end))
