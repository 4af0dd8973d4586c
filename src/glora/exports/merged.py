"""What exports of the merged model share: inputs to try it on, the model with plain inputs and one output."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glora.adapt.sites import own_example
from glora.errors import GloraError, RunError, TargetError
from glora.exports.export import Trained
from glora.tasks.images import Preprocess

__all__ = ["Program", "Trial", "compare", "first_line", "inputs_told", "preprocessing", "trial_of"]

ROWS = 2  # examples of a trial: of one the exporters take a fixed batch


class Trial(NamedTuple):
    """Inputs that a model is exported with.

    Attributes:
        names: Of the inputs.
        inputs: Tensors, examples first.
        by_name: Whether the model takes them by their names.
    """

    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    by_name: bool

    def dynamic(self, length: Any) -> tuple[dict[int, Any], ...]:
        """Sides of the inputs that may be any: the batch, and of token ids their number, as `length` has it."""
        batch = torch.export.Dim("batch")
        tokens = [self.by_name and value.dim() == 2 and not value.is_floating_point() for value in self.inputs]
        return tuple({0: batch, 1: length} if each else {0: batch} for each in tokens)

    def rows(self, number: int) -> tuple[Tensor, ...]:
        """The same inputs with this many examples."""
        return tuple(torch.cat([each] * number)[:number] for each in self.inputs)


class Program(nn.Module):
    """A model that takes its inputs in their order and gives one tensor.

    Args:
        model: The plain model.
        trial: Its inputs.
    """

    def __init__(self, model: Any, trial: Trial) -> None:
        super().__init__()
        self.model = model
        self.names = trial.names if trial.by_name else ()
        cache = hasattr(getattr(model, "config", None), "use_cache")
        self.more: dict[str, Any] = {"use_cache": False} if cache and trial.by_name else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True)) if self.names else {}
        output = self.model(**named, **self.more) if named else self.model(*inputs)
        if isinstance(output, Tensor):
            return output
        found = output.logits if hasattr(output, "logits") else output[0]
        assert isinstance(found, Tensor)
        return found


def trial_of(trained: Trained, model: nn.Module) -> Trial:
    """Inputs to export the model with: those that are given, or as it tells itself.

    Raises:
        RunError: None are given, and it tells none.
    """
    example = trained.example
    if example is None and isinstance(trained.preprocess, Preprocess):
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(ROWS, 3, *trained.preprocess.size, generator=generator)
        if trained.facts.base.library == "transformers":
            example = {"pixel_values": example}
    if example is None:
        try:
            example = own_example(model)
        except TargetError as error:
            raise RunError(
                f"It is not known what a {type(model).__name__} takes.",
                remedy="Give an input, examples first: glora.export(..., example=x).",
            ) from error
        example = _masked(example, model)
    named = isinstance(example, Mapping)
    inputs = tuple(example.values()) if named else example if isinstance(example, tuple) else (example,)
    names = tuple(example) if named else ("images",) if isinstance(trained.preprocess, Preprocess) else ()
    names = names or tuple(f"input_{place}" for place in range(len(inputs)))
    if len(inputs) == 1 and not named and not isinstance(trained.preprocess, Preprocess):
        names = ("inputs",)
    trial = Trial(names, inputs, named)
    return trial._replace(inputs=trial.rows(ROWS))


def _masked(example: Any, model: nn.Module) -> Any:
    """Token ids together with the mask that tells them from padding, where the model takes one.

    The last token of the last example is masked, so that a program which does not heed the mask is found out.
    """
    takes = "attention_mask" in inspect.signature(model.forward).parameters
    if not (takes and isinstance(example, Mapping) and "input_ids" in example) or "attention_mask" in example:
        return example
    ids = torch.cat([example["input_ids"]] * ROWS)[:ROWS]
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    others = {name: torch.cat([each] * ROWS)[:ROWS] for name, each in example.items() if name != "input_ids"}
    return {"input_ids": ids, "attention_mask": mask, **others}


def preprocessing(trained: Trained) -> dict[str, Any]:
    """How inputs are made, and what outputs mean, as plain data; empty where neither is known."""
    found: dict[str, Any] = {}
    if trained.preprocess is not None:
        found = {"preprocess": trained.preprocess.to_json()}
    return found | ({"labels": list(trained.labels)} if trained.labels else {})


def compare(wanted: Tensor, found: Tensor, what: str, tolerance: float) -> float:
    """The largest difference as a share of the largest output.

    Raises:
        GloraError: It is larger than it may be.
    """
    off = float((wanted.float() - found.float()).abs().max() / wanted.float().abs().max().clamp_min(1e-12))
    if found.shape != wanted.shape or not off <= tolerance:
        raise GloraError(
            f"{what} gives other outputs than torch: off by {off:.2g} of the largest.",
            allowed=f"At most {tolerance:g}.",
            remedy="Export to another format, or allow more: tolerance=...",
        )
    return off


def first_line(error: Exception) -> str:
    """What an exporter says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def inputs_told(trial: Trial, kind: str) -> str:
    """What the inputs are, in words, without the full stop."""
    told = [
        f"`{name}` {str(value.dtype).removeprefix('torch.')} ({', '.join(['n', *map(str, value.shape[1:])])})"
        for name, value in zip(trial.names, trial.inputs, strict=True)
    ]
    return f"The inputs are {kind}: {', '.join(told)}"
