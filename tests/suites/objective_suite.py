"""What every objective keeps to. A new one inherits the suite: it gives a toy, and has a line in `OBJECTIVES`."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from glora import registry
from glora.tasks.evaluation import Evaluation, ahead, joined, mean, selection_bias
from glora.tasks.images import ImageSet
from glora.tasks.objective import Batch, Objective, Targets
from glora.tasks.objectives import OBJECTIVES

__all__ = ["ObjectiveSuite", "Toy"]


@dataclass(frozen=True)
class Toy:
    """An easy task of one objective.

    Attributes:
        targets: What the data has, a few dozen rows.
        settings: Settings of the objective.
        best: Metric -> its best possible value.
    """

    targets: Targets
    settings: Mapping[str, Any]
    best: Mapping[str, float]


class ObjectiveSuite:
    """Subclasses set `name` and `toy`, and say how outputs are made of encoded targets.

    Where outputs or the targets of a batch are no plain tensors, they also say how these are made and cut.

    Attributes:
        name: Its name in `OBJECTIVES`.
        toy: An easy task.
        lacks: Which of `chance` and `distance` it has not.
    """

    name: str
    toy: Toy
    lacks: frozenset[str] = frozenset()

    def perfect(self, objective: Objective, encoded: Tensor) -> Any:
        """Outputs of a model that is right and sure on every example."""
        raise NotImplementedError

    def constant(self, objective: Objective, encoded: Tensor) -> Tensor:
        """The outputs that are best where all examples get the same, by hand; of no `chance` any."""
        raise NotImplementedError

    def noisy(self, seed: int = 0, scale: float = 1.0) -> Any:
        """Outputs of a model that knows little."""
        constant = self.constant(*self.fitted())
        return constant + scale * torch.randn(constant.shape, generator=torch.Generator().manual_seed(seed))

    def batch(self, encoded: Tensor, part: slice = slice(None)) -> Batch:
        """The examples of a part, as an objective reads them."""
        return Batch(None, encoded[part])

    def cut(self, output: Any, part: slice) -> Any:
        """The outputs for a part of the examples."""
        return output[part]

    def with_gradient(self, output: Any) -> tuple[Any, Tensor]:
        """The outputs, and the tensor in them that has a gradient."""
        leaf: Tensor = output.requires_grad_()
        return output, leaf

    # -- what the tests share

    @property
    def plain(self) -> Objective:
        objective: Objective = registry.load(OBJECTIVES[self.name])(**self.toy.settings)
        return objective

    def fitted(self) -> tuple[Objective, Tensor]:
        """The objective fitted on the toy, and its encoded targets."""
        named = self.plain.named(self.toy.targets)
        encoded = named.encode(self.toy.targets)
        return named.fitted(encoded), encoded

    def evaluation(self, output: Any) -> Evaluation:
        objective, encoded = self.fitted()
        return Evaluation(objective, objective.values(output, self.batch(encoded)))

    # -- losses and metrics

    def test_it_is_in_the_table_under_its_name(self) -> None:
        assert self.plain.name == self.name
        assert type(self.plain).model_fields["name"].default == self.name
        names = [metric.name for metric in self.plain.metrics]
        assert "loss" in names
        assert len(set(names)) == len(names)
        assert not self.plain.metric("loss").higher
        assert self.plain.metric("loss").per_example
        with pytest.raises(KeyError):
            self.plain.metric("no such metric")

    def test_losses_are_one_per_example_with_gradient(self) -> None:
        objective, encoded = self.fitted()
        output, leaf = self.with_gradient(self.noisy())
        losses = objective.losses(output, self.batch(encoded))
        assert losses.shape == (len(encoded),)
        losses.mean().backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() > 0
        each = [slice(k, k + 1) for k in range(len(encoded))]
        alone = [objective.losses(self.cut(output, part), self.batch(encoded, part)) for part in each]
        torch.testing.assert_close(torch.cat(alone), losses)

    def test_per_example_metrics_are_means_of_their_values_and_reduce_gives_the_others(self) -> None:
        objective, encoded = self.fitted()
        values = objective.values(self.noisy(), self.batch(encoded))
        assert torch.equal(values["loss"], objective.losses(self.noisy(), self.batch(encoded)))
        assert all(len(value) == len(encoded) for value in values.values())
        single = [metric.name for metric in objective.metrics if metric.per_example]
        found = Evaluation(objective, values)
        for name in single:
            assert values[name].shape == (len(encoded),)
            assert found.value(name) == pytest.approx(values[name].double().mean().item())
        others = objective.reduce(values)
        assert others.keys() == {metric.name for metric in objective.metrics} - set(single)
        assert {name: found.value(name) for name in others} == others
        assert all(math.isfinite(found.value(metric.name)) for metric in objective.metrics)

    def test_proportions_are_0_or_1_per_example(self) -> None:
        objective, encoded = self.fitted()
        values = objective.values(self.noisy(), self.batch(encoded))
        for metric in objective.metrics:
            if metric.proportion:
                assert metric.per_example
                assert set(values[metric.name].tolist()) <= {0.0, 1.0}

    def test_perfect_outputs_are_best_and_no_others_are_better(self) -> None:
        objective, encoded = self.fitted()
        best, noisy = self.evaluation(self.perfect(objective, encoded)), self.evaluation(self.noisy())
        assert self.toy.best.keys() == {metric.name for metric in objective.metrics}
        for metric in objective.metrics:
            assert best.value(metric.name) == pytest.approx(self.toy.best[metric.name], abs=1e-4)
            assert best.score(metric.name)[0] > noisy.score(metric.name)[0]

    def test_chance_is_the_loss_of_the_best_constant(self) -> None:
        objective, encoded = self.fitted()
        chance = objective.chance(ImageSet([None] * len(encoded), encoded))  # type: ignore[list-item]
        assert (chance is None) == ("chance" in self.lacks)
        if chance is None:
            return
        constant = self.constant(objective, encoded)
        assert (constant == constant[0]).all()
        assert chance == pytest.approx(self.evaluation(constant).value("loss"), rel=1e-5)
        for seed in range(5):
            shift = torch.randn(1, constant.shape[1], generator=torch.Generator().manual_seed(seed))
            assert self.evaluation(constant + 0.3 * shift).value("loss") > chance

    def test_a_temperature_divides_the_outputs_or_there_is_none(self) -> None:
        objective, _ = self.fitted()
        output = self.noisy()
        tempered = objective.tempered(output, 3.0)
        assert tempered is None or torch.equal(tempered, output / 3)

    def test_the_distance_is_zero_for_equal_outputs_alone_and_has_a_gradient(self) -> None:
        objective, _ = self.fitted()
        (a, leaf), b = self.with_gradient(self.noisy(0)), self.noisy(1)
        distance = objective.distance(a, b)
        assert (distance is None) == ("distance" in self.lacks)
        if distance is None:
            return
        assert distance.shape == (len(a),)
        assert (distance > 0).all()
        same = objective.distance(b, b)
        assert same is not None
        assert torch.equal(same, torch.zeros(len(b)))
        distance.sum().backward()
        assert leaf.grad is not None

    # -- what the data tells it

    def test_what_the_data_tells_it_is_kept_and_encoding_repeats(self) -> None:
        objective, encoded = self.fitted()
        assert len(encoded) == len(self.toy.targets.rows)
        assert objective.named(self.toy.targets) == objective
        assert objective.fitted(encoded[: len(encoded) // 2]) == objective, "fitted once, on the training examples"
        assert torch.equal(objective.encode(self.toy.targets), encoded)
        strata = objective.strata(encoded)
        assert strata is None or len(strata) == len(encoded)
        assert (strata is None) == (not objective.strata_names)
        assert objective.outputs is None or objective.outputs == self.noisy().shape[1]
        assert objective.summary

    def test_it_is_frozen_picklable_and_plain_json(self) -> None:
        objective, _ = self.fitted()
        kind = type(objective)
        assert pickle.loads(pickle.dumps(objective)) == objective
        assert kind.model_validate(objective.model_dump()) == objective
        assert kind.model_validate(json.loads(objective.model_dump_json())) == objective
        with pytest.raises(ValidationError):
            objective.name = "another"
        assert hash(objective) == hash(pickle.loads(pickle.dumps(objective)))

    def test_predictions_are_plain_records_one_per_example(self) -> None:
        objective, encoded = self.fitted()
        found = objective.predictions(self.noisy())
        assert len(found) == len(encoded)
        assert json.loads(json.dumps(found)) == found
        assert all(isinstance(record, dict) and record for record in found)

    # -- the model

    def test_the_model_is_called_with_a_tensor_a_tuple_or_names(self) -> None:
        objective, _ = self.fitted()
        outputs = objective.outputs or 1

        class Model(nn.Module):
            def forward(self, x: Tensor, scale: Tensor) -> Any:
                return {"logits": (x * scale).bfloat16()}

        x, scale = torch.randn(4, outputs), torch.full((4, 1), 2.0)
        whole = objective.forward(nn.Identity(), Batch(x, None), train=False)
        assert torch.equal(whole, x)
        for inputs in ((x, scale), {"scale": scale, "x": x}):
            output = objective.forward(Model(), Batch(inputs, None), train=True)
            assert output.dtype == torch.float32
            torch.testing.assert_close(output, 2 * x, rtol=1e-2, atol=1e-2)

    # -- evaluations

    def test_parts_of_the_examples_are_joined(self) -> None:
        objective, encoded = self.fitted()
        output, half = self.noisy(), len(encoded) // 2
        parts = [
            Evaluation(objective, objective.values(self.cut(output, part), self.batch(encoded, part)))
            for part in (slice(0, half), slice(half, None))
        ]
        whole = self.evaluation(output)
        found = joined(parts)
        assert len(found) == len(encoded)
        assert found.metrics("val") == whole.metrics("val")

    def test_the_numbers_of_a_result_have_standard_errors_where_there_are_any(self) -> None:
        objective, encoded = self.fitted()
        found, n = self.evaluation(self.noisy()), len(encoded)
        numbers = found.metrics("val")
        assert numbers["val_examples"] == n
        for metric in objective.metrics:
            key = f"val_{metric.name}_standard_error"
            if not metric.per_example:
                assert key not in numbers
                assert found.score(metric.name)[1] == 0
                continue
            value, error = numbers[f"val_{metric.name}"], numbers[key]
            assert value is not None and error is not None
            if metric.proportion:
                assert error == pytest.approx(math.sqrt(value * (1 - value) / n))
            else:
                deviation = found.values[metric.name].double().std(correction=1).item()
                assert error == pytest.approx(deviation / math.sqrt(n))
            scores = found.scores(metric.name)
            assert sum(scores) / n == pytest.approx(found.score(metric.name)[0])

    def test_the_better_one_is_ahead_whichever_way_is_better(self) -> None:
        objective, encoded = self.fitted()
        best, noisy = self.evaluation(self.perfect(objective, encoded)), self.evaluation(self.noisy())
        found, back, same = ahead(best, noisy, "test"), ahead(noisy, best, "test"), ahead(noisy, noisy, "test")
        for metric in objective.metrics:
            key = f"test_{metric.name}_ahead"
            gap = abs(best.value(metric.name) - noisy.value(metric.name))
            assert found[key] == pytest.approx(gap, rel=1e-5)
            assert found[key] == -(back[key] or 0)
            assert same[key] == 0
            assert (f"{key}_standard_error" in found) is metric.per_example
            if metric.per_example:
                assert same[f"{key}_standard_error"] == 0

    def test_the_selection_bias_is_how_much_better_val_looks(self) -> None:
        objective, encoded = self.fitted()
        best, noisy = self.evaluation(self.perfect(objective, encoded)), self.evaluation(self.noisy())
        row = {**best.metrics("val"), **noisy.metrics("aside")}
        found = selection_bias(row, objective)
        for metric in objective.metrics:
            gap = abs(best.value(metric.name) - noisy.value(metric.name))
            assert found[f"selection_bias_{metric.name}"] == pytest.approx(gap, rel=1e-5)
            if metric.per_example:
                errors = [row[f"{split}_{metric.name}_standard_error"] or 0 for split in ("val", "aside")]
                assert found[f"selection_bias_{metric.name}_standard_error"] == pytest.approx(math.hypot(*errors))
        assert selection_bias(best.metrics("val"), objective) == {}

    def test_the_mean_over_models_is_taken_example_by_example(self) -> None:
        objective, _ = self.fitted()
        models = [self.evaluation(self.noisy(seed)) for seed in range(3)]
        found = mean(models)
        for metric in objective.metrics:
            expected = sum(each.value(metric.name) for each in models) / 3
            assert found.value(metric.name) == pytest.approx(expected)
            if metric.per_example:
                each = torch.stack([model.values[metric.name] for model in models]).double().mean(0)
                torch.testing.assert_close(found.values[metric.name], each)
