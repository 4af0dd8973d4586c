"""What every export keeps to. A new one inherits the suite: it gives a model, and has a line in `EXPORTS`."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor, nn

import glora
from glora import registry
from glora.errors import ConfigError, RunError
from glora.exports import EXPORTS
from suites.layer_suite import randomize

__all__ = ["ExportSuite", "card_of", "code_of", "played", "prepared"]


def prepared(model: nn.Module, space: glora.SearchSpace, *, seed: int = 0, **where: Any) -> glora.Adapted:
    """The model adapted, all numbers random, its head trained, a random genotype active."""
    adapted = glora.inject(model, space, **where)
    randomize_all(adapted, seed)
    adapted.activate(adapted.sample(random.Random(seed)))
    return adapted


def randomize_all(adapted: glora.Adapted, seed: int) -> None:
    for place, support in enumerate(adapted.supports.values()):
        randomize(support, seed=seed + place)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.head_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def played(model: Any, x: Any) -> Tensor:
    """The model's output as a tensor."""
    with torch.no_grad():
        found = model(**x) if isinstance(x, dict) else model(x)
    tensor: Tensor = found if isinstance(found, Tensor) else found.logits
    return tensor


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a model card."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def code_of(folder: Path) -> list[str]:
    """The lines of Python by which the card says to load it."""
    found = re.search(r"```python\n(.*?)\n```", card_of(folder)[1], re.DOTALL)
    assert found is not None
    return found[1].splitlines()


class ExportSuite:
    """Subclasses set what is below.

    Attributes:
        export: Its name in the table.
        settings: Settings to write with.
        near: The largest difference to the adapted model, as a share of the largest output.
        runs: Whether the card's code can be run here.
    """

    export: str
    settings: ClassVar[dict[str, Any]] = {}
    near = 1e-5
    runs = True

    def build(self) -> nn.Module:
        """The base, the same every time."""
        raise NotImplementedError

    def adapted(self) -> glora.Adapted:
        """It adapted, with numbers that change its outputs."""
        raise NotImplementedError

    def inputs(self) -> Any:
        """Inputs for it, more rows than it was exported with."""
        raise NotImplementedError

    def given(self) -> dict[str, Any]:
        """Names that the card's code uses and says what they are."""
        return {"base": self.build()}

    def outputs(self, names: dict[str, Any]) -> Tensor:
        """What the loaded model gives for the inputs, from the names that the card's code has left."""
        return played(names["model"], self.inputs())

    def written(self, folder: Path, adapted: glora.Adapted | None = None) -> Path:
        example = self.inputs()
        glora.export(adapted or self.adapted(), self.export, folder, example=example, **self.settings)
        return folder

    def test_it_is_in_the_table_and_its_settings_are_described(self) -> None:
        kind = registry.load(EXPORTS[self.export])
        assert kind.__doc__
        assert kind.model_fields["name"].default == self.export
        assert all(field.description for name, field in kind.model_fields.items() if name != "name")

    def test_the_lines_of_its_card_load_it_and_it_gives_the_same(self, tmp_path, monkeypatch) -> None:
        adapted = self.adapted()
        wanted = played(adapted.model, self.inputs())
        assert not torch.allclose(wanted, played(self.build().eval(), self.inputs()), atol=1e-3)
        lines = code_of(self.written(tmp_path / "out", adapted))
        assert len(lines) <= 3
        if not self.runs:
            compile("\n".join(lines), "card", "exec")
            return
        monkeypatch.chdir(tmp_path)
        names = self.given()
        exec("\n".join(lines), names)
        found = self.outputs(names)
        assert float((found - wanted).abs().max() / wanted.abs().max()) <= self.near

    def test_the_model_is_left_as_it_is(self, tmp_path) -> None:
        adapted = self.adapted()
        before, genotype = played(adapted.model, self.inputs()), adapted.active
        self.written(tmp_path / "out", adapted)
        assert torch.equal(played(adapted.model, self.inputs()), before)
        assert adapted.active == genotype

    def test_its_card_has_the_metadata_of_hubs(self, tmp_path) -> None:
        metadata, text = card_of(self.written(tmp_path / "out"))
        assert metadata["base_model"]
        assert metadata["library_name"]
        assert "glora" in metadata["tags"]
        for word in ("How to load", "What was trained", "Trainable numbers", "Versions", "torch"):
            assert word in text

    def test_it_is_written_whole_or_not_at_all(self, tmp_path) -> None:
        adapted, out = self.adapted(), tmp_path / "out"
        with pytest.raises(glora.GloraError):
            glora.export(adapted, self.export, out, example=self.inputs(), no_such_setting=1)
        assert list(tmp_path.iterdir()) == []
        self.written(out)
        first = {file.name: file.read_bytes() for file in out.iterdir()}
        with pytest.raises(ConfigError, match="no_such_setting"):
            glora.export(adapted, self.export, out, example=self.inputs(), no_such_setting=1)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == first
        assert list(tmp_path.iterdir()) == [out]

    def test_numbers_that_are_not_finite_are_refused(self, tmp_path) -> None:
        adapted = self.adapted()
        with torch.no_grad():
            for support in adapted.supports.values():
                for factor in support.parameters():
                    factor.fill_(float("nan"))
        with pytest.raises(glora.GloraError, match="NaN"):
            self.written(tmp_path / "out", adapted)
        assert list(tmp_path.iterdir()) == []

    def test_something_else_is_not_overwritten_and_an_export_is(self, tmp_path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        with pytest.raises(RunError, match="holds something else"):
            self.written(out)
        assert [file.name for file in out.iterdir()] == ["mine.txt"]
        (out / "mine.txt").unlink()
        self.written(out)
        self.written(out)
        with pytest.raises(RunError, match="called like a file"):
            self.written(tmp_path / "model.onnx")
