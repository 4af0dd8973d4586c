"""One or more numbers per example: squared error on standardised targets; RMSE, MAE and R² in the user's units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from glora.errors import DataError
from glora.tasks.objective import Batch, Examples, Metric, Objective, Targets

__all__ = ["Regress"]

ROUNDING = 1e-7  # of float32, relative


class Regress(Objective):
    """Numbers. Outputs are standardised values `(n, columns)`, targets values in the user's units `(n, columns)`.

    The loss is the squared error in standard deviations of the training targets, averaged over the columns, so that
    columns of any unit weigh the same. RMSE, MAE and R² are averaged over the columns too.
    """

    metrics = (
        Metric("rmse", False, ".4g", per_example=False),
        Metric("mae", False, ".4g"),
        Metric("r2", True, ".3f", per_example=False),
        Metric("loss", False, ".3f"),
    )

    name: Literal["regress"] = "regress"
    columns: tuple[str, ...] = Field((), description="Names of the numbers, in the order of the outputs; the data's.")
    mean: tuple[float, ...] = Field((), description="What is subtracted from each number; the training targets' mean.")
    std: tuple[float, ...] = Field((), description="What each is divided by; the training targets' deviation.")

    def named(self, targets: Targets) -> Regress:
        return self if self.columns else self.model_copy(update={"columns": targets.columns})

    def fitted(self, train: Tensor) -> Regress:
        if self.mean and self.std:
            return self
        mean, std = train.double().mean(0), train.double().std(0, correction=0)
        std = torch.where(std > ROUNDING * mean.abs(), std, 1.0)  # a constant column
        return self.model_copy(update={"mean": tuple(mean.tolist()), "std": tuple(std.tolist())})

    def encode(self, targets: Targets) -> Tensor:
        rows = targets.ordered(self.columns)
        found = [[self._number(value, targets, row) for value in values] for row, values in enumerate(rows)]
        return torch.tensor(found, dtype=torch.float32).reshape(len(found), len(self.columns))

    @staticmethod
    def _number(value: Any, targets: Targets, row: int) -> float:
        named = bool(targets.names) and isinstance(value, int) and 0 <= value < len(targets.names)
        value = targets.names[value] if named else value  # the place of a class among others is no measure
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            folders = "; of folders of classes their names are the numbers" * named
            raise DataError(
                f"{targets.where(row)} has {'the class ' * named}{value!r} for a number.",
                allowed=f"A finite number{folders}.",
                remedy="For classes choose --objective classify." if named else "",
            )
        return number

    @property
    def outputs(self) -> int:
        return len(self.columns)

    @property
    def summary(self) -> str:
        return "1 number" if len(self.columns) == 1 else f"{len(self.columns)} numbers"

    def chance(self, train: Examples) -> float:
        """The variance of the standardised targets."""
        variance = self._standardised(train.targets).double().var(0, correction=0).mean().item()
        return variance or 1.0

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(numbers, dtype=like.dtype, device=like.device) for numbers in (self.mean, self.std))
        return mean, std

    def _standardised(self, targets: Tensor) -> Tensor:
        mean, std = self._scale(targets)
        return (targets - mean) / std

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> Tensor:
        """The model's output, `(n, columns)`; of a single column a model may leave that dimension out."""
        output: Tensor = super().forward(model, batch, train=train)
        return output[:, None] if output.dim() == 1 else output

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        return (output - self._standardised(batch.targets)).square().mean(-1)

    def values(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        mean, std = self._scale(output)
        predicted = output * std + mean
        errors = (predicted - batch.targets).abs().mean(-1)
        return {
            "mae": errors,
            "loss": self.losses(output, batch),
            "prediction": predicted,
            "target": batch.targets,
        }

    def reduce(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        predicted, targets = values["prediction"].double(), values["target"].double()
        squares = (predicted - targets).square().mean(0)
        spread = targets.var(0, correction=0)
        explained = torch.where(spread > 0, 1 - squares / spread, torch.nan)
        return {"rmse": squares.sqrt().mean().item(), "r2": explained.nanmean().item()}

    def predictions(self, output: Tensor) -> list[dict[str, Any]]:
        mean, std = self._scale(output)
        return [dict(zip(self.columns, row, strict=True)) for row in (output * std + mean).tolist()]
