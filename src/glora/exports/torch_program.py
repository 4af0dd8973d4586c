"""The merged model as a program of `torch.export`, with a dynamic batch: it runs without the model's own code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from glora.errors import GloraError
from glora.exports.card import Loading
from glora.exports.export import Export, Trained, Written
from glora.exports.merged import Program, compare, first_line, inputs_told, preprocessing, trial_of
from glora.files import write_json

__all__ = ["TorchProgram"]

MODEL, PREPROCESS = "model.pt2", "preprocess.json"


class TorchProgram(Export):
    """The merged model as torch.export's .pt2 for any batch size: it runs with torch alone."""

    name: Literal["torch"] = "torch"
    tolerance: float = Field(
        1e-5, gt=0, description="Largest difference to the model's own outputs, as a share of the largest output."
    )

    def write(self, trained: Trained, folder: Path, name: str) -> Written:
        model, _ = trained.plain()
        trial = trial_of(trained, model)
        program = Program(model, trial).eval()
        shapes = (trial.dynamic(torch.export.Dim.DYNAMIC),)  # up to what a model of learned positions takes
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter's own parts
                exported = torch.export.export(program, trial.inputs, dynamic_shapes=shapes)
                torch.export.save(exported, folder / MODEL)
                again = torch.export.load(folder / MODEL).module()
        except Exception as error:  # the exporter's errors have no common root
            raise GloraError(
                f"torch cannot export the {type(model).__name__}: {first_line(error)}", remedy="Export to huggingface."
            ) from error
        with torch.no_grad():
            for rows in (1, 3):
                inputs = trial.rows(rows)
                compare(program(*inputs), again(*inputs), f"The program, at {rows} examples,", self.tolerance)
        if known := preprocessing(trained):
            write_json(folder / PREPROCESS, known)
        code = (
            "import torch",
            f"model = torch.export.load({f'{name}/{MODEL}'!r}).module()",
            f"outputs = model({', '.join(trial.names)})",
        )
        comment = inputs_told(trial, "tensors") + (f", made as `{PREPROCESS}` says." if known else ".")
        return Written(loading=Loading(library="pytorch", code=code, tags=("pytorch",), comment=comment))
