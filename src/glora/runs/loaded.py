"""A finished run, from its files alone: its plain model, ready to predict, merge, save and evaluate."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from glora.adapt.adapter_file import save_merged
from glora.backbones import load_backbone, read_tokenizer
from glora.backbones.transformers_folder import is_transformers
from glora.config import Experiment
from glora.errors import AdapterFileError, ConfigError, DataError, GloraError, RunError, StateError, whole
from glora.files import read_metadata
from glora.methods.method import Method, Tuned
from glora.registry import load
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.chat import Reply
from glora.runs.folder import RunFolder
from glora.runs.merged_folder import Merged, merged_folder
from glora.runs.reading import naming_of, reading_of
from glora.runs.session import evaluator_of
from glora.runs.text_predictions import MOST, TextPredictor, are_texts
from glora.searchers.frame import journal_frame
from glora.settings import build
from glora.tasks.data.from_python import as_float32, collate, described, inputs_of
from glora.tasks.evaluation import Evaluation
from glora.tasks.images import ImageSet, Preprocess, is_image, pixels_of
from glora.tasks.objective import Batch, Measured, Objective
from glora.tasks.objectives import OBJECTIVES
from glora.tasks.task import DataSettings, source_class
from glora.tasks.texts import TextPreprocess
from glora.training.device import new_accelerator
from glora.version import __version__

__all__ = [
    "FROM_PYTHON",
    "TEXT_FROM_PYTHON",
    "LoadedRun",
    "LoadedTuned",
    "copied",
    "load_run",
    "load_tuned",
    "model_output",
    "objective_of",
]

FROM_PYTHON = "from_python"  # the name of a model or of data that a program gave
TEXT_FROM_PYTHON = "text_from_python"


@dataclass(frozen=True)
class LoadedRun:
    """A finished run.

    Attributes:
        folder: Its files.
        model: The plain model in eval mode; what was learned is merged, where the method can.
        experiment: Its settings.
        objective: What the model predicts.
        info: How its base was built (`backbone`), its `objective`, and how it reads images (`preprocess`).
        new_keys: State-dict keys that the base does not have, a new bias each.
        no_merge: Why what was learned cannot be merged into a plain model; empty where it is.
        preprocess: How the model reads images or texts; None where it was given its inputs ready.
    """

    folder: RunFolder
    model: nn.Module
    experiment: Experiment
    objective: Objective
    info: dict[str, Any]
    new_keys: tuple[str, ...] = ()
    no_merge: str = ""
    preprocess: Preprocess | TextPreprocess | None = None

    @property
    def adapter(self) -> Path:
        """The adapter file: what was learned, without the base."""
        return self.folder.adapter

    @cached_property
    def winner(self) -> Outcome | None:
        """The winner of the search and what it was compared with; None of a method without a search."""
        return Outcome.read(self.folder.winner) if self.folder.winner.is_file() else None

    @cached_property
    def result(self) -> Result | None:
        """The result, where the run was tested; None before."""
        return self.folder.current_result()

    def to_pandas(self) -> Any:
        """A DataFrame with a row per genotype that the search asked for; see `glora.searchers.frame.journal_frame`.

        Raises:
            RunError: Nothing was searched.
            MissingExtraError: pandas is not installed.
        """
        return journal_frame(self.folder.journal)

    def merge(self) -> nn.Module:
        """The plain model: the class and the state-dict keys of the base.

        Raises:
            StateError: What was learned cannot be merged.
        """
        if self.no_merge:
            raise StateError(
                f"{self.experiment.method.title} cannot be merged: {self.no_merge}.",  # type: ignore[attr-defined]
                remedy=f"Play it as it is: run.predict(...), or glora.load_adapter(model, {str(self.adapter)!r}).",
            )
        return self.model

    @property
    def reads_texts(self) -> bool:
        """Whether the model is given texts."""
        return isinstance(self.preprocess, TextPreprocess)

    @property
    def saves_folder(self) -> bool:
        """Whether `save` writes a folder unless the path names a file: for models of transformers."""
        return is_transformers(self.model)

    def save(self, path: str | Path) -> str:
        """Writes the plain model; says how to load it.

        Args:
            path: A file for the plain state dict as safetensors. Of a model of transformers a folder, which its
                `from_pretrained` loads, unless the name ends in `.safetensors`.

        Raises:
            StateError: What was learned cannot be merged.
            BackboneError: The model's class cannot hold the new biases; nothing is written then.
            RunError: The folder holds something else.
        """
        _refuse_run(Path(path).expanduser())
        self._check_path(Path(path).expanduser())
        self.merge()
        _refuse_own(Path(path).expanduser())
        if self.saves_folder and Path(path).suffix != ".safetensors":
            return merged_folder(self._merged(), Path(path).expanduser())
        save_merged(self.model, path, info={**self.info, "new_keys": list(self.new_keys)})
        config = getattr(self.model, "pretrained_cfg", None) or {}
        backbone = self.info["backbone"]
        keys = f", with new keys: {', '.join(self.new_keys)}" if self.new_keys else ""
        if backbone is None or self.saves_folder:
            whose = "your" if backbone is None else "the"
            return f"{path}: the state dict of {whose} {type(self.model).__name__}{keys}"
        name, size = config.get("architecture", backbone["name"]), self.info["preprocess"]["size"][0]
        return f"{path}: the state dict of timm's {name} for {size} px images and {self.objective.summary}{keys}"

    def _check_path(self, path: Path) -> None:
        """Raises RunError where the name is of something else than what is written."""
        if path.suffix.lower() == ".onnx":
            raise RunError(
                f"{path} would hold no ONNX: merge writes safetensors.",
                remedy=f"glora export {self.folder.path} --to onnx --out FOLDER",
            )
        if path.suffix.lower() in (".pth", ".pt", ".bin", ".ckpt", ".gguf"):
            raise RunError(
                f"{path} would hold no {path.suffix} file: merge writes safetensors.",
                remedy=f"Name it {path.with_suffix('.safetensors')}; safetensors.torch.load_file reads it.",
            )
        if path.is_dir() and not self.saves_folder:
            raise RunError(f"{path} is a folder.", remedy=f"Name a file: {path / 'merged.safetensors'}")

    def _merged(self) -> Merged:
        said = {
            "glora": __version__,
            "run": self.folder.path.resolve().name,
            "method": self.experiment.method.title,  # type: ignore[attr-defined]
            "new_keys": list(self.new_keys),
            "data": self.experiment.data.model_dump(mode="json"),
            **self.info,
        }
        base = (self.info["backbone"] or {}).get("name", "")
        return Merged(self.model, self.objective, self.preprocess, self.new_keys, base, said)

    def predict(self, inputs: Any, *, batch_size: int | None = None, max_tokens: int = MOST) -> list[dict[str, Any]]:
        """What the model predicts for new inputs, one record each: a class with probabilities, labels, or values.

        Of questions with choices it is the likeliest one. Of a language model it is what it answers (`reply`), and of a
        row with an answer how well it expects that (`loss`, `perplexity`).

        Args:
            inputs: Image files, PIL images or arrays `(h, w, 3)` uint8, read as the run read its own; a tensor, or a
                tuple or mapping of tensors, examples first, as the model takes them; or a dataset of such, with or
                without targets. Of a model of texts: texts, pairs of them, or rows as its data has them, such as
                `{"instruction": ...}`, `{"messages": [...]}` or `{"question": ..., "choices": [...]}`.
            batch_size: Examples per forward pass; by default the run's.
            max_tokens: Most tokens of a language model's answer; 0: it does not answer.

        Raises:
            DataError: An image cannot be read, or the inputs are none of the model's.
        """
        size = self.experiment.search.batch_size if batch_size is None else batch_size
        whole(size, "batch_size", least=1)
        whole(max_tokens, "max_tokens", least=0)
        accelerator = new_accelerator(self.folder.precision)
        model = self.model.to(accelerator.device).eval()
        if isinstance(self.preprocess, TextPreprocess) and are_texts(inputs):
            reply = Reply(max_tokens) if max_tokens else None
            tokens = self.experiment.search.batch_tokens
            return self._texts(model, accelerator).predict(inputs, size=size, tokens=tokens, reply=reply)
        found: list[dict[str, Any]] = []
        images = self.preprocess if isinstance(self.preprocess, Preprocess) else None
        for batch in _batches(inputs, size, images):
            with accelerator.autocast():
                output = model_output(model, self.objective, send_to_device(batch, accelerator.device))
            found += self.objective.predictions(output)
        return found

    def faults(self, inputs: Any, *, max_tokens: int = MOST) -> dict[int, DataError]:
        """Why texts, or rows of them, cannot be predicted, by their places from 0; see `predict`."""
        reply = Reply(max_tokens) if max_tokens else None
        return self._texts(self.model, new_accelerator(self.folder.precision)).faults(inputs, reply=reply)

    def _texts(self, model: nn.Module, accelerator: Any) -> TextPredictor:
        def output(batch: Batch) -> Any:
            with accelerator.autocast():
                return model_output(model, self.objective, send_to_device(batch, accelerator.device))

        assert isinstance(self.preprocess, TextPreprocess)
        reading, raw = reading_of(self.info)
        naming = naming_of(self.experiment.data)
        return TextPredictor(model, self.objective, self.preprocess, reading, naming, raw, output)

    def evaluate_on(
        self, source: str | Path, settings: Mapping[str, Any] | None = None
    ) -> tuple[Evaluation, list[str]]:
        """What the model does on all labelled examples of another folder, and what a user should be told.

        Args:
            source: A folder, a table, a file of texts.
            settings: Settings of the data that are other than the run's: `{"on_bad_row": "skip"}`.

        Raises:
            ConfigError: A setting is unknown, or wrong.
            DataError: The folder has other classes, no images, or unreadable ones.
        """
        if self.preprocess is None:
            raise DataError(
                "This run's model was given tensors, and does not know how to read images.",
                remedy="Predict on the tensors: run.predict(dataset).",
            )
        data = cast(DataSettings, self.experiment.data)
        kind = source_class({"source": str(source)})
        own = data.model_dump() if isinstance(data, kind) else {}
        given = {**own, **(settings or {}), "source": str(source), "train": None, "val": None}
        examples, notes = build(kind, given, f"the data {str(source)!r}").load_all(self.objective)
        accelerator = new_accelerator(self.folder.precision)
        examples = examples.prepared(self.preprocess)
        if isinstance(examples, Measured):
            notes = [*notes, *examples.notes]
        evaluator = evaluator_of(self.experiment, self.objective, accelerator)
        return evaluator.evaluate(self.model.to(accelerator.device), examples), notes


def _as_written(info: Mapping[str, Any], own: Preprocess | TextPreprocess | None) -> Preprocess | TextPreprocess | None:
    """How the model reads its inputs, as the run did: of images the file says it, of texts the model's own."""
    given = info["preprocess"]
    if given is not None and given.get("kind") == "text":
        return own
    return None if given is None else Preprocess(**{name: _tupled(value) for name, value in given.items()})


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@torch.no_grad()
def model_output(model: nn.Module, objective: Objective, batch: Batch) -> Any:
    """The model's outputs for a batch.

    Raises:
        DataError: It does not take such inputs; says what they are, and what the model said.
    """
    try:
        output = objective.forward(model, batch, train=False)
    except GloraError:
        raise
    except Exception as error:  # whatever the model's own forward refuses
        reason = " ".join(str(error).split()) or "no reason is given"
        what, remedy = described(batch.inputs), "Give what the model takes, transforms included."
        if "uint8" in what:
            remedy = "Make numbers of the pixels: torchvision's ToDtype(torch.float32, scale=True), or x / 255."
        raise DataError(
            f"{type(model).__name__} does not take the inputs, {what}: {type(error).__name__}: {reason.rstrip('.')}.",
            remedy=remedy,
        ) from error
    return output


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model, so that the user's own is left as it is.

    Raises:
        ConfigError: It cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module's own state refuses
        raise ConfigError(
            f"The {type(model).__name__} cannot be copied: {error}",
            allowed="A model that copy.deepcopy takes.",
            remedy="Give it fresh, before a forward pass: tensors with a graph cannot be copied.",
        ) from error


def _batches(inputs: Any, size: int, preprocess: Preprocess | None) -> Iterator[Batch]:
    """The inputs in batches of this size, as the model takes them."""
    if isinstance(inputs, DataLoader):
        raise DataError("The inputs are a DataLoader.", remedy="Give its dataset: loader.dataset.")
    if isinstance(inputs, np.ndarray) and (preprocess is None or inputs.dtype != np.uint8):
        inputs = torch.as_tensor(inputs)
    if isinstance(inputs, Tensor | Mapping) or (
        isinstance(inputs, tuple) and inputs and all(isinstance(each, Tensor) for each in inputs)
    ):
        yield from _cut(inputs, size)
        return
    items = _items(inputs)
    files = [Path(each).expanduser() for each in items if isinstance(each, str | Path)] if type(items) is list else []
    if missing := [str(file) for file in files if not file.is_file()]:
        raise DataError(f"There is no image {missing[0]!r}.", remedy="Check the path.")
    for start in range(0, len(items), size):
        some = [_unlabelled(items[place]) for place in range(start, min(start + size, len(items)))]
        yield Batch(_together(some, preprocess), None)


def _cut(inputs: Any, size: int) -> Iterator[Batch]:
    """A tensor, or a tuple or mapping of them, examples first, cut into batches."""
    named: dict[Any, Any] = dict(inputs) if isinstance(inputs, Mapping) else {}
    if not named:
        named = dict(enumerate(inputs if isinstance(inputs, tuple) else (inputs,)))
    tensors = {name: torch.as_tensor(value) for name, value in named.items()}
    lengths = {len(tensor) if tensor.dim() else 0 for tensor in tensors.values()}
    if len(lengths) != 1 or not all(tensor.dim() for tensor in tensors.values()):
        raise DataError(f"The inputs are {described(inputs)}.", allowed="Tensors of the same number of examples.")
    for start in range(0, lengths.pop(), size):
        parts = {name: as_float32(tensor[start : start + size]) for name, tensor in tensors.items()}
        if isinstance(inputs, Mapping):
            yield Batch(parts, None)
        else:
            yield Batch(tuple(parts.values()) if isinstance(inputs, tuple) else parts[0], None)


def _items(inputs: Any) -> Any:
    """The inputs one by one: a list, or a dataset as it is."""
    if isinstance(inputs, str | Path) or is_image(inputs):
        return [inputs]
    if isinstance(inputs, np.ndarray) and (inputs.ndim == 2 or (inputs.ndim == 3 and inputs.shape[-1] == 3)):
        return [inputs]  # one image
    if hasattr(inputs, "iloc") and hasattr(inputs, "columns"):  # a DataFrame, as glora.fit takes it
        return list(inputs[inputs.columns[0]])
    if not hasattr(inputs, "__len__") or not hasattr(inputs, "__getitem__"):
        try:
            return list(inputs)
        except TypeError:
            raise DataError(f"The inputs are a {type(inputs).__name__}.", allowed="See LoadedRun.predict.") from None
    return list(inputs) if isinstance(inputs, list | tuple | np.ndarray) else inputs


def _unlabelled(item: Any) -> Any:
    """The inputs of a dataset's item, without its target."""
    pair = isinstance(item, tuple) and len(item) == 2
    return inputs_of(item) if pair or isinstance(item, Mapping) else item


def _together(items: list[Any], preprocess: Preprocess | None) -> Any:
    """Inputs of some examples as the model takes them."""
    first = items[0]
    pixels = preprocess is not None and isinstance(first, np.ndarray) and first.dtype == np.uint8
    if not pixels and not isinstance(first, str | Path) and not is_image(first):
        return collate(items)
    if preprocess is None:
        raise DataError(
            "This run's model was given tensors: it is not known how it reads images.",
            remedy="Give tensors, made as for the training.",
        )
    images = [Path(each).expanduser() if isinstance(each, str | Path) else pixels_of(each) for each in items]
    return ImageSet(images, [0] * len(images), preprocess=preprocess, cache_bytes=0).batch(range(len(images))).inputs


def objective_of(info: dict[str, Any]) -> Objective:
    """The objective in a file's info; adapters of glora 0.1 have the classes alone."""
    plain = info.get("objective") or {"name": "classify", "classes": info["classes"]}
    kind: type[Objective] = load(OBJECTIVES[plain["name"]])
    return kind.model_validate(plain)


@dataclass(frozen=True)
class LoadedTuned:
    """A finished run before anything is merged.

    Attributes:
        folder: Its files.
        tuned: The base made trainable, with the numbers that the run learned.
        experiment, objective, info, preprocess: As in `LoadedRun`.
    """

    folder: RunFolder
    tuned: Tuned
    experiment: Experiment
    objective: Objective
    info: dict[str, Any]
    preprocess: Preprocess | TextPreprocess | None


def load_run(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    base_fingerprint: str | None = None,
    preprocess: Preprocess | TextPreprocess | None = None,
) -> LoadedRun:
    """A finished run, read from its folder, what it learned merged: its training data is not needed.

    The arguments and errors are those of `load_tuned`.
    """
    found = load_tuned(path, model=model, base_fingerprint=base_fingerprint, preprocess=preprocess)
    tuned = found.tuned
    plain = tuned.merged().eval()
    own = (found.experiment, found.objective, found.info)
    return LoadedRun(found.folder, plain, *own, tuned.new_keys, tuned.no_merge, found.preprocess)


def load_tuned(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    base_fingerprint: str | None = None,
    preprocess: Preprocess | TextPreprocess | None = None,
) -> LoadedTuned:
    """A finished run, read from its folder, as it was trained.

    Args:
        path: The run folder.
        model: The base, where it came from Python and cannot be rebuilt from a name: the same object or an equal one.
            It is adapted in place.
        base_fingerprint: `Method.base_fingerprint` of this base, where it is known already.
        preprocess: How this base reads texts, where it is given and does.

    Raises:
        RunError: An earlier stage is missing, a stop has left two winners, the base must be given, or it is another
            one than the run began with.
        AdapterFileError: A file is damaged, or of another base.
    """
    folder = RunFolder(path)
    experiment = folder.experiment()
    if folder.need_trained()["file"] == folder.adapter.name:
        folder.trained_file()
    else:  # the winner's; the supernet itself is needed no more
        folder.need(folder.adapter, f"glora search {folder.path}")
    folder.key()
    info = read_metadata(folder.adapter).get("info", {})
    if "backbone" not in info:
        raise AdapterFileError(
            f"{folder.adapter} is for another model: no run has written it.", remedy="Bring back the run's own file."
        )
    objective = objective_of(info)
    base, preprocess = _base(folder, info, objective, model, preprocess)
    method = cast(Method, experiment.method)
    if base_fingerprint is None and "head" in info:
        base_fingerprint = method.base_fingerprint(base, info["head"])
        folder.check_base(base_fingerprint)
    tuned = method.load(base, folder.adapter, base_fingerprint=base_fingerprint)
    return LoadedTuned(folder, tuned, experiment, objective, info, _as_written(info, preprocess))


def _refuse_own(path: Path) -> None:
    """Raises RunError where the path is a file of a run."""
    path = path.resolve()
    runs = (RunFolder(folder) for folder in path.parents if (folder / "config.yaml").is_file())
    if owner := next((run for run in runs if run.owns(path)), None):
        raise RunError(
            f"{path} is the run's own file: the merged model would take its place.",
            remedy=f"Choose another --out, such as {owner.path / 'merged.safetensors'}.",
        )


def _refuse_run(path: Path) -> None:
    """Raises RunError where the path is a run's folder."""
    if RunFolder(path).config.is_file():
        raise RunError(f"{path} is a run.", remedy=f"Choose another --out, such as {path / 'merged'}.")


def _base(
    folder: RunFolder,
    info: Mapping[str, Any],
    objective: Objective,
    model: nn.Module | None,
    preprocess: Preprocess | TextPreprocess | None,
) -> tuple[nn.Module, Preprocess | TextPreprocess | None]:
    """The base that is given, or rebuilt from its name; and how it reads its inputs.

    Raises:
        RunError: It came from Python, and is not given.
    """
    if model is not None:
        said = info["preprocess"] or {}
        if preprocess is None and said.get("kind") == "text":
            tokenizer = read_tokenizer(folder.tokenizer)
            preprocess = TextPreprocess(tokenizer, said["tokenizer"], said["form"], said["max_length"])
        return model, preprocess
    if info["backbone"] is None:
        raise RunError(
            f"The base of {folder.path} came from Python, a {info['model']}: it cannot be rebuilt from a name.",
            remedy="Give it again: glora.load(RUN, model=...).",
        )
    backbone = load_backbone(**info["backbone"], num_classes=objective.outputs)
    return backbone.model, backbone.preprocess
