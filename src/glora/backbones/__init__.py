"""Backbones: a pretrained network with a head for the task, and how it reads images or texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from torch import nn
from typing_extensions import NotRequired

from glora import registry
from glora.errors import BackboneError, MissingExtraError, nearest
from glora.tasks.images import NORMALISATIONS, Preprocess
from glora.tasks.texts import TextPreprocess

__all__ = [
    "PACKAGED",
    "PACKAGED_TEXT",
    "Backbone",
    "Loading",
    "Spec",
    "load_backbone",
    "names",
    "preprocess_of",
    "read_tokenizer",
    "text_preprocess",
    "text_preprocess_of",
    "unknown_name",
]

PACKAGED = {"dinov2_vits14": "glora.backbones.packaged:dinov2_vits14"}
PACKAGED_TEXT = {  # name -> what gives its folder, which transformers reads
    "smollm2_135m": "glora.backbones.packaged_language:smollm2_135m",
    "minilm_l6": "glora.backbones.packaged_language:minilm_l6",
}
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("int8", "int4", "bnb_int8", "bnb_nf4")

_TIMM = "glora.backbones.timm_source"
_TRANSFORMERS = "glora.backbones.transformers_source"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name


class Spec(TypedDict):
    """What rebuilds a backbone up to its head: `load_backbone(**spec, num_classes=10)`."""

    name: str
    image_size: int | None
    checkpoint: str | None
    pretrained: bool
    seed: int  # of what is not pretrained
    normalise: NotRequired[str]  # where it is not the model's own
    drop_path: NotRequired[float]  # where there is some
    dtype: NotRequired[str]  # where it is not float32, as the next ones
    activation_checkpointing: NotRequired[bool]
    quantize: NotRequired[str]
    trust_remote_code: NotRequired[bool]


@dataclass(frozen=True, slots=True)
class Loading:
    """How a model of transformers is loaded.

    Attributes:
        dtype: Type of its numbers, one of `DTYPES`; what is trained beside it stays float32.
        activation_checkpointing: Whether training keeps the inputs of the blocks alone and computes the rest anew in
            the backward pass: less memory, about a third more time.
        quantize: How the weights of its Linear layers are kept: one of `QUANTIZED`, of torchao or bitsandbytes.
        trust_remote_code: Whether to run Python code that comes with the model.
    """

    dtype: str = "float32"
    activation_checkpointing: bool = False
    quantize: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raises BackboneError where a value is none of those allowed."""
        if self.dtype not in DTYPES:
            raise BackboneError(f"dtype={self.dtype!r} is not known.", allowed=f"Allowed: {', '.join(DTYPES)}.")
        if self.quantize is not None and self.quantize not in QUANTIZED:
            allowed = f"Allowed: {', '.join(QUANTIZED)}, or None."
            raise BackboneError(f"quantize={self.quantize!r} is not known.", allowed=allowed)

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not the usual ones."""
        usual = asdict(Loading())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network ready to be adapted.

    Attributes:
        name: The name it was loaded by.
        model: Images `(b, 3, h, w)` to logits `(b, num_classes)`; or a model of transformers.
        preprocess: How it wants its images or texts; None where a program gives its inputs ready.
        head: Names of the modules to train whole.
        spec: Plain JSON that rebuilds it, the head apart; None where a program gave the model.
        notes: What a user should be told, such as a classifier of the checkpoint that was left out.
    """

    name: str
    model: nn.Module
    preprocess: Preprocess | TextPreprocess | None
    head: tuple[str, ...]
    spec: Spec | None
    notes: tuple[str, ...] = ()


def load_backbone(
    name: str,
    *,
    num_classes: int | None,
    image_size: int | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    seed: int = 0,
    normalise: str = "model",
    drop_path: float = 0.0,
    dtype: str = "float32",
    activation_checkpointing: bool = False,
    quantize: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: Path | None = None,
) -> Backbone:
    """The backbone called `name`, with a head of `num_classes` outputs, or of its own.

    The head is fresh, but for weights that already have a head of this many classes: it is kept.

    Args:
        name: A name in `PACKAGED` or `PACKAGED_TEXT`, any timm model's, or of transformers a folder or `owner/name`.
        num_classes: Outputs of the head; None: the model's own, of a language model, which generates texts.
        image_size: Side of the square input in pixels; None is the backbone's own.
        checkpoint: Weights to use instead of the pretrained ones: a `.safetensors` file, a pickled one of which tensors
            alone are read, or a folder of them, sharded or not; see `backbones/checkpoint.py`.
        pretrained: Whether to load pretrained weights; no hub is asked for them when False or with a checkpoint.
        seed: Seed of everything that is initialised at random.
        normalise: Mean and standard deviation of its images: `model`, its own, or one of `NORMALISATIONS`.
        drop_path: Share of the examples whose last block is left out in training; it rises from 0 in a line.
        dtype, activation_checkpointing, quantize, trust_remote_code: Of models of transformers alone: see `Loading`.
        cache_dir: Where converted packaged weights are kept; None is `~/.cache/glora`.

    Raises:
        BackboneError: The model cannot be built so, or its weights do not fit or are out of reach.
        MissingExtraError: timm, transformers, or the package of the packaged weights, is not installed.
        UnknownNameError: There is no such model; lists the nearest names.
    """
    if num_classes is not None and num_classes < 1:
        raise BackboneError(f"num_classes={num_classes} leaves no output.", allowed="At least 1.")
    if image_size is not None and image_size < 1:
        raise BackboneError(f"image_size={image_size} is no size.", allowed="A number of pixels, at least 1.")
    if normalise not in ("model", *NORMALISATIONS):
        raise BackboneError(
            f"normalise={normalise!r} is not known.", allowed=f"Allowed: model, {', '.join(NORMALISATIONS)}."
        )
    given = {
        "num_classes": num_classes,
        "image_size": image_size,
        "checkpoint": None if checkpoint is None else Path(checkpoint).expanduser().resolve(),
        "pretrained": pretrained,
        "seed": seed,
        "drop_path": drop_path,
    }
    loading = Loading(dtype, activation_checkpointing, quantize, trust_remote_code)
    backbone = _load(name, given, loading, cache_dir)
    return backbone if normalise == "model" else _normalised(backbone, normalise)


def _load(name: str, given: Mapping[str, Any], loading: Loading, cache_dir: Path | None) -> Backbone:
    """The backbone by those who have it."""
    backbone: Backbone
    if _is_of_transformers(name):
        folder = registry.load(PACKAGED_TEXT[name])(cache_dir) if name in PACKAGED_TEXT else None
        backbone = registry.load(f"{_TRANSFORMERS}:load")(name, **given, loading=loading, folder=folder)
        return backbone
    if given["num_classes"] is None:
        _need_known(name)
        raise BackboneError(
            f"The model {name!r} reads images, and this objective trains a language model.",
            remedy="Choose a language model, such as --model smollm2_135m, or another objective.",
        )
    if loading.changed:
        what = ", ".join(f"{setting}={value}" for setting, value in loading.changed.items())
        raise BackboneError(f"{what} is about models of transformers, and {name!r} is none.", remedy="Leave it out.")
    if name in PACKAGED:
        backbone = registry.load(PACKAGED[name])(**given, cache_dir=cache_dir)
    else:
        backbone = registry.load(f"{_TIMM}:load")(name, **given)
    return backbone


def text_preprocess(
    name: str, *, num_classes: int | None, trust_remote_code: bool = False, cache_dir: Path | None = None
) -> TextPreprocess:
    """How a model reads texts; its weights are not loaded.

    Args:
        name: As of `load_backbone`.
        num_classes: Outputs of its head; None: the model's own, a text.
        trust_remote_code: Whether to run Python code that comes with the model.
        cache_dir: Where converted packaged weights are kept; None is `~/.cache/glora`.

    Raises:
        BackboneError: It reads no texts, is of another kind, or out of reach.
        MissingExtraError: transformers is not installed.
    """
    found: Preprocess | TextPreprocess | None = None
    if _is_of_transformers(name):
        folder = registry.load(PACKAGED_TEXT[name])(cache_dir) if name in PACKAGED_TEXT else None
        loading = Loading(trust_remote_code=trust_remote_code)
        found = registry.load(f"{_TRANSFORMERS}:preprocess_of")(
            name, num_classes=num_classes, loading=loading, folder=folder
        )
    if not isinstance(found, TextPreprocess):
        _need_known(name)
        raise BackboneError(
            f"The model {name!r} reads images, not texts.", remedy="Name a model of texts, such as smollm2_135m."
        )
    return found


def _is_of_transformers(name: str) -> bool:
    """Whether transformers has the model: a packaged one of texts, a folder, or an `owner/name` that is not timm's.

    Raises:
        BackboneError: It is a path, and no folder of a model is there.
    """
    if name in PACKAGED_TEXT:
        return True
    if problem := _wrong_folder(name):
        raise BackboneError(problem[0], allowed=problem[1], remedy=problem[2])
    return Path(name).expanduser().is_dir() if _is_path(name) else _is_hub_name(name)


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not name.startswith("timm/")


def _is_path(name: str) -> bool:
    """Whether a model is named by a path: one that is there, or begins as paths do."""
    return name.startswith(("/", "./", "../", "~")) or ("/" in name and Path(name).is_dir()) or _has_config(Path(name))


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _wrong_folder(name: str) -> tuple[str, str, str] | None:
    """Cause, what is allowed and remedy, where the name is a path without a model of transformers."""
    if not _is_path(name):
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"There is no folder {name!r}.", "", "Check the path."
    allowed = "A folder that transformers' save_pretrained wrote, with config.json, weights and tokenizer."
    if not _has_config(folder):
        return f"The folder {name!r} has no config.json.", allowed, "Check the path."
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{str(folder / 'config.json')!r} cannot be read: {error}.", allowed, "Write it again."
    if isinstance(config, dict) and ("model_type" in config or "auto_map" in config):
        return None
    timms = isinstance(config, dict) and "architecture" in config
    remedy = f"It is a model of timm: --model local-dir:{name}" if timms else ""
    return f"The config.json of {name!r} names no model_type of transformers.", allowed, remedy


def _normalised(backbone: Backbone, normalise: str) -> Backbone:
    assert backbone.spec is not None  # it has a name
    if not isinstance(backbone.preprocess, Preprocess):
        raise BackboneError(
            f"normalise={normalise} is about images, and {backbone.name!r} reads texts.", remedy="Leave it out."
        )
    preprocess = backbone.preprocess.normalised(normalise)
    return replace(backbone, preprocess=preprocess, spec={**backbone.spec, "normalise": normalise})


def preprocess_of(model: nn.Module) -> Preprocess | None:
    """How a timm model that a program has built wants its images; None where the model does not tell."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or not {"input_size", "mean", "std"} <= config.keys():
        return None
    preprocess: Preprocess = registry.load(f"{_TIMM}:preprocess_of")(model)
    return preprocess


def text_preprocess_of(
    model: nn.Module, tokenizer: Any, *, num_classes: int | None
) -> tuple[TextPreprocess, list[str]]:
    """How a model of transformers that a program has built reads texts with a tokenizer, and what to say of it.

    Raises:
        BackboneError: The model is none of transformers, or has fewer embeddings than the tokenizer has tokens.
    """
    if not hasattr(model, "config") or not hasattr(model, "get_input_embeddings"):
        raise BackboneError(
            f"A tokenizer is given, and {type(model).__name__} is no model of transformers.",
            allowed="Language models, encoder-decoders and sequence classifiers of transformers.",
            remedy="Give a dataset of what your model takes, without a tokenizer.",
        )
    found: tuple[TextPreprocess, list[str]] = registry.load(f"{_TRANSFORMERS}:preprocess_with")(
        model, tokenizer, num_classes=num_classes
    )
    return found


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of transformers that a folder holds."""
    return registry.load(f"{_TRANSFORMERS}:read_tokenizer")(folder)


def names() -> list[str]:
    """Every name `load_backbone` takes, but for folders and hub names: the packaged ones, then timm's.

    Raises:
        MissingExtraError: timm is not installed.
    """
    return [*PACKAGED, *PACKAGED_TEXT, *registry.load(f"{_TIMM}:names")()]


def _need_known(name: str) -> None:
    """Raises BackboneError where there is no model of this name."""
    try:
        problem = unknown_name(name)
    except MissingExtraError:  # timm is not here, and whatever it has is for images
        problem = f"there is no language model {name!r}."
    if problem:
        raise BackboneError(
            f"{problem[0].upper()}{problem[1:]}", remedy="Run `glora ls models`, or name a folder of transformers."
        )


def unknown_name(name: str) -> str:
    """What is wrong with a name that no backbone has, with the nearest ones; empty where there is such a one."""
    if name in PACKAGED_TEXT or name in PACKAGED:
        return ""
    if problem := _wrong_folder(name):
        return " ".join(filter(None, problem))
    if _is_path(name) or _is_hub_name(name) or name.startswith(("hf-hub:", "local-dir:")):
        return ""
    plain, known = name.partition(".")[0], names()
    if plain in known:
        return ""
    near = nearest(plain, known)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"there is no {name!r}.{hint}"
