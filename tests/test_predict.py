"""Predicting with a finished run: files, PIL images, arrays, tensors and datasets give the same records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import glora
from glora.errors import ConfigError, DataError, RunError
from glora.runs.loaded import LoadedRun
from glora.runs.run import Run
from suites.toy import Recorder, tiny


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A LoRA of a timm model, trained on files."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    Run(tiny(photos, method="lora"), folder, Recorder()).fit()
    return glora.load(folder)


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))[15:25]


@pytest.fixture(scope="module")
def expected(run: LoadedRun, files: list[Path]) -> list[dict[str, Any]]:
    return run.predict(files)


def opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.copy()


def test_predictions_are_what_evaluation_measures(run: LoadedRun, photos: Path) -> None:
    whole, _ = run.evaluate_on(photos)
    files = sorted(photos.rglob("*.png"), key=lambda file: file.relative_to(photos))
    records = run.predict(files)
    right = [record["class"] == file.parent.name for record, file in zip(records, files, strict=True)]
    assert [bool(value) for value in whole.values["accuracy"]] == right
    losses = [-np.log(record["probabilities"][file.parent.name]) for record, file in zip(records, files, strict=True)]
    assert losses == pytest.approx(whole.values["loss"].tolist(), rel=1e-4, abs=1e-6)
    for record in records:
        assert (
            record["probability"] == record["probabilities"][record["class"]] == max(record["probabilities"].values())
        )


def test_images_in_any_form_are_read_alike(
    run: LoadedRun, files: list[Path], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert run.predict([str(file) for file in files]) == expected
    assert run.predict(iter(files)) == expected
    assert run.predict(tuple(files)) == expected
    assert run.predict([opened(file) for file in files]) == expected
    assert run.predict([np.asarray(opened(file)) for file in files]) == expected
    assert run.predict(np.stack([np.asarray(opened(file)) for file in files])) == expected
    assert run.predict([(opened(file), 0) for file in files]) == expected, "a dataset's targets are not read"
    assert run.predict([{"image": opened(file), "label": 1} for file in files]) == expected
    for one in (files[0], str(files[0]), opened(files[0]), np.asarray(opened(files[0]))):
        assert run.predict(one) == run.predict(files[:1])
    deep = Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16))
    clear = Image.new("RGBA", (8, 8), (200, 100, 50, 128))
    for place, image in enumerate((deep, clear, clear.convert("L"))):
        image.save(tmp_path / f"{place}.png")
        assert run.predict(image) == run.predict(tmp_path / f"{place}.png")


def test_tensors_are_taken_as_the_model_takes_them(
    run: LoadedRun, files: list[Path], expected: list[dict[str, Any]]
) -> None:
    assert run.preprocess is not None
    from glora.tasks.images import ImageSet

    x = ImageSet(files, [0] * len(files), preprocess=run.preprocess).batch(range(len(files))).inputs
    for inputs in (x, (x,), x.double(), x.numpy(), list(x), TensorDataset(x), TensorDataset(x, torch.zeros(len(x)))):
        assert run.predict(inputs) == expected
    with torch.no_grad():
        chances = run.merge()(x).softmax(-1)
    assert [record["probability"] for record in expected] == pytest.approx(chances.amax(-1).tolist(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_change_nothing_but_rounding(
    run: LoadedRun, files: list[Path], expected: list[dict[str, Any]], size: int
) -> None:
    found = run.predict(files, batch_size=size)
    assert [record["class"] for record in found] == [record["class"] for record in expected]
    for record, other in zip(found, expected, strict=True):
        assert record["probability"] == pytest.approx(other["probability"], rel=1e-5)


def test_nothing_is_predicted_of_nothing(run: LoadedRun) -> None:
    assert run.predict([]) == run.predict(torch.zeros(0, 3, 32, 32)) == []


def test_inputs_that_do_not_fit_are_refused(run: LoadedRun, files: list[Path], tmp_path: Path) -> None:
    def refused(inputs: Any, words: str, error: type[Exception] = DataError, **how: Any) -> None:
        with pytest.raises(error, match=words):
            run.predict(inputs, **how)

    text = tmp_path / "text.png"
    text.write_text("no image")
    loader: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(4, 3, 32, 32)))
    refused([*files, tmp_path / "nowhere.png"], r"There is no image .*nowhere\.png")
    refused(text, r"text\.png' cannot be read")
    refused([np.zeros((8, 8, 3))], r"VisionTransformer does not take the inputs, float32 \(1, 8, 8, 3\)")
    refused([np.zeros((8, 8, 4), np.uint8)], r"array of uint8 \(8, 8, 4\) is no image.*\(h, w, 3\)")
    refused([opened(files[0]), "nowhere.png"], "There is no image 'nowhere.png'")
    refused([opened(files[0]), 3], "is no image")
    refused(torch.zeros(2, 3, 5, 5), r"does not take the inputs, float32 \(2, 3, 5, 5\)")
    refused(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"uint8 \(2, 3, 32, 32\).*ToDtype")
    refused(torch.tensor(3.0), r"inputs are float32 \(\)")
    refused((torch.zeros(2, 3), torch.zeros(3, 3)), "same number of examples")
    refused([torch.zeros(3, 4), torch.zeros(3, 5)], r"put together: float32 \(3, 4\) and float32 \(3, 5\)")
    refused(loader, "DataLoader.*loader.dataset")
    refused(7, "inputs are a int")
    refused(files, "batch_size=0", ConfigError, batch_size=0)
    refused([(1, 2, 3, 4)], "does not take|put together")


class Affine(nn.Module):
    """Two inputs; the head ends in `head`."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x * scale).tanh())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def from_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoadedRun, Any]]:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    data = [((each, torch.ones(1)), (float(each.sum()), float(each[0]))) for each in x]
    out = tmp_path_factory.mktemp("python") / "run"
    how: dict[str, Any] = {"objective": "regress", "method": "lora", "epochs": 1, "progress": False}
    yield glora.fit(Affine(), train=data, out=out, **how).run, data


def test_a_model_from_python_predicts_on_its_own_inputs(from_python: tuple[LoadedRun, Any]) -> None:
    run, data = from_python
    expected = run.predict(data)
    x, ones = torch.stack([inputs[0] for inputs, _ in data]), torch.ones(30, 1)
    assert run.predict((x, ones)) == expected
    assert run.predict({"scale": ones, "x": x}) == expected
    assert run.predict({"scale": ones.numpy(), "x": x.double().numpy()}, batch_size=30) == expected
    assert set(expected[0]) == {"target0", "target1"}
    objective = run.objective.model_dump()
    with torch.no_grad():
        values = run.model(x, ones) * torch.tensor(objective["std"]) + torch.tensor(objective["mean"])
    assert [list(record.values()) for record in expected] == [
        pytest.approx(row, rel=1e-4, abs=1e-5) for row in values.tolist()
    ]
    assert len(values) == len(data)


def test_a_model_from_python_reads_no_images_that_it_was_not_taught(
    from_python: tuple[LoadedRun, Any], files: list[Path], photos: Path
) -> None:
    run, _ = from_python
    for inputs in (files, opened(files[0])):
        with pytest.raises(DataError, match=r"not known how it reads images.*Give tensors"):
            run.predict(inputs)
    with pytest.raises(DataError, match="does not know how to read images"):
        run.evaluate_on(photos)
    with pytest.raises(DataError, match=r"does not take the inputs, float32 \(2, 4\): TypeError"):
        run.predict(torch.zeros(2, 4))


def test_a_run_that_is_not_there_or_not_done_says_what_to_do(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        glora.load(tmp_path)
    run = Run(tiny(photos, search={"controls": 0}), tmp_path / "run", Recorder())
    run.folder.path.mkdir()
    run.folder.write_config(run.experiment)
    with pytest.raises(RunError, match="not trained yet"):
        glora.load(tmp_path / "run")
