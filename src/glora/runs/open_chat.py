"""A conversation with the model of a run, of a merged folder, or with any base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glora.backbones import load_backbone
from glora.backbones.transformers_folder import CARD
from glora.errors import RunError
from glora.runs.chat import Chat, Reply
from glora.runs.loaded import load_run
from glora.runs.reading import reading_of
from glora.tasks.rows import TextPreprocess
from glora.training.device import new_accelerator

__all__ = ["open_chat"]


def open_chat(path: str | Path, *, system: str = "", reply: Reply | None = None) -> Chat:
    """A conversation with the merged model of a run, with a merged folder, or with any base.

    Args:
        path: A run folder, a folder of transformers, or the name of a base.
        system: The system message; may be empty.
        reply: How it answers.

    Raises:
        RunError: The run is not finished, or its model reads no texts.
        BackboneError: The base cannot be loaded.
        DataError: The model does not generate.
    """
    path = Path(path).expanduser()
    if path.is_file():
        raise RunError(
            f"{str(path)!r} is a file.", allowed="A run folder, a folder of transformers, or the name of a base."
        )
    said: Mapping[str, Any] = {}
    if (path / "config.yaml").is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        run = load_run(path)
        model, preprocess, said = run.model, run.preprocess, run.info
    else:
        backbone = load_backbone(str(path), num_classes=None)
        model, preprocess = backbone.model, backbone.preprocess
        if (path / CARD).is_file():
            said = json.loads((path / CARD).read_text("utf-8"))
    if not isinstance(preprocess, TextPreprocess):
        raise RunError(f"The model of {str(path)!r} reads no texts.", remedy="Use it so: glora predict RUN FILES.")
    reading, raw = reading_of(said)
    return Chat(model.to(new_accelerator("no").device), preprocess, reading, system=system, reply=reply, raw=raw)
