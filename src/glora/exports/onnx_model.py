"""The merged model as ONNX by torch's exporter, with a dynamic batch, tried with onnxruntime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from glora import registry
from glora.errors import GloraError
from glora.exports.card import Loading
from glora.exports.export import Export, Trained, Written
from glora.exports.merged import Program, Trial, compare, first_line, inputs_told, preprocessing, trial_of
from glora.files import write_json

__all__ = ["Onnx"]

MODEL, PREPROCESS = "model.onnx", "preprocess.json"
INLINE = 1_500_000_000  # bytes of weights that one file holds: protobuf ends at 2 GB


class Onnx(Export):
    """The merged model as ONNX for any batch size, tried with onnxruntime; how inputs are made lies beside it."""

    name: Literal["onnx"] = "onnx"
    opset: int | None = Field(None, ge=18, description="ONNX operator set; torch's own if not given.")
    tolerance: float = Field(
        1e-4, gt=0, description="Largest difference to torch's outputs, as a share of the largest output."
    )

    def write(self, trained: Trained, folder: Path, name: str) -> Written:
        runtime = registry.optional_import("onnxruntime", extra="onnx", purpose="An export as ONNX")
        registry.optional_import("onnxscript", extra="onnx", purpose="An export as ONNX")
        model, _ = trained.plain()
        trial = trial_of(trained, model)
        program = Program(model, trial).eval()
        size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        _export(program, trial, folder / MODEL, self.opset, external=size > INLINE)
        off = self._try(runtime, program, trial, folder / MODEL)
        if known := preprocessing(trained):
            write_json(folder / PREPROCESS, known)
        note = f"onnxruntime's outputs are torch's to {off:.1g} of the largest, at 1 and 3 examples."
        return Written(loading=_loading(trial, name, read=bool(known)), notes=(note,))

    def _try(self, runtime: Any, program: Program, trial: Trial, file: Path) -> float:
        """How far onnxruntime's outputs are from torch's.

        Raises:
            GloraError: Further than they may be, or it cannot run the file.
        """
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        worst = 0.0
        for rows in (1, 3):
            inputs = trial.rows(rows)
            given = {each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)}
            with torch.no_grad():
                wanted = program(*inputs)
            found = torch.from_numpy(session.run(None, given)[0])
            worst = max(worst, compare(wanted, found, f"onnxruntime, at {rows} examples,", self.tolerance))
        return worst


def _export(program: Program, trial: Trial, file: Path, opset: int | None, *, external: bool) -> None:
    shapes = (trial.dynamic(torch.export.Dim("length", min=2)),)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own parts
            torch.onnx.export(
                program, trial.inputs, str(file), dynamo=True, dynamic_shapes=shapes, opset_version=opset,
                input_names=list(trial.names), output_names=["outputs"], external_data=external, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter's errors have no common root
        raise GloraError(
            f"torch cannot export the {type(program.model).__name__} as ONNX: {first_line(error)}",
            remedy="Export to huggingface or torch.",
        ) from error


def _loading(trial: Trial, name: str, *, read: bool) -> Loading:
    given = ", ".join(f"{each!r}: {each}" for each in trial.names)
    code = (
        "import onnxruntime",
        f"session = onnxruntime.InferenceSession({f'{name}/{MODEL}'!r})",
        f"outputs = session.run(None, {{{given}}})[0]",
    )
    comment = inputs_told(trial, "NumPy arrays") + (f", made as `{PREPROCESS}` says." if read else ".")
    return Loading(library="onnx", code=code, tags=("onnx",), comment=comment)
