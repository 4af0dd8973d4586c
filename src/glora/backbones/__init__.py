"""Backbones: a pretrained network with a head for the task, and how it wants its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from torch import nn
from typing_extensions import NotRequired

from glora import registry
from glora.errors import BackboneError, nearest
from glora.tasks.images import NORMALISATIONS, Preprocess
from glora.tasks.texts import TextPreprocess

__all__ = ["PACKAGED", "Backbone", "Spec", "load_backbone", "names", "preprocess_of", "unknown_name"]

PACKAGED = {"dinov2_vits14": "glora.backbones.packaged:dinov2_vits14"}

_TIMM = "glora.backbones.timm_source"


class Spec(TypedDict):
    """What rebuilds a backbone up to its head: `load_backbone(**spec, num_classes=10)`."""

    name: str
    image_size: int | None
    checkpoint: str | None
    pretrained: bool
    seed: int  # of what is not pretrained
    normalise: NotRequired[str]  # where it is not the model's own
    drop_path: NotRequired[float]  # where there is some


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network ready to be adapted.

    Attributes:
        name: The name it was loaded by.
        model: Images `(b, 3, h, w)` to logits `(b, num_classes)`.
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
    cache_dir: Path | None = None,
) -> Backbone:
    """The backbone called `name`, with a head of `num_classes` outputs.

    The head is fresh, but for weights that already have a head of this many classes: it is kept.

    Args:
        name: A name in `PACKAGED` or any timm model's.
        num_classes: Outputs of the head; what an objective without outputs of its own leaves open (None) is refused.
        image_size: Side of the square input in pixels; None is the backbone's own.
        checkpoint: A `.safetensors` file of weights to use instead of the pretrained ones.
        pretrained: Whether to load pretrained weights; no hub is asked when False or with a checkpoint.
        seed: Seed of everything that is initialised at random.
        normalise: Mean and standard deviation of its images: `model`, its own, or one of `NORMALISATIONS`.
        drop_path: Share of the examples whose last block is left out in training; it rises from 0 in a line.
        cache_dir: Where converted packaged weights are kept; None is `~/.cache/glora`.

    Raises:
        BackboneError: The model cannot be built at this size or with drop path, or its weights do not fit or are out
            of reach.
        MissingExtraError: timm, or the package of the packaged weights, is not installed.
        UnknownNameError: There is no such model; lists the nearest names.
    """
    if num_classes is None or num_classes < 1:
        raise BackboneError(f"num_classes={num_classes} leaves no output.", allowed="At least 1.")
    if image_size is not None and image_size < 1:
        raise BackboneError(f"image_size={image_size} is no size.", allowed="A number of pixels, at least 1.")
    settings = {
        "num_classes": num_classes,
        "image_size": image_size,
        "checkpoint": None if checkpoint is None else Path(checkpoint).expanduser().resolve(),
        "pretrained": pretrained,
        "seed": seed,
        "drop_path": drop_path,
    }
    if normalise not in ("model", *NORMALISATIONS):
        raise BackboneError(
            f"normalise={normalise!r} is not known.", allowed=f"Allowed: model, {', '.join(NORMALISATIONS)}."
        )
    backbone: Backbone
    if name in PACKAGED:
        backbone = registry.load(PACKAGED[name])(**settings, cache_dir=cache_dir)
    else:
        backbone = registry.load(f"{_TIMM}:load")(name, **settings)
    return backbone if normalise == "model" else _normalised(backbone, normalise)


def _normalised(backbone: Backbone, normalise: str) -> Backbone:
    assert isinstance(backbone.preprocess, Preprocess) and backbone.spec is not None  # it has a name
    preprocess = backbone.preprocess.normalised(normalise)
    return replace(backbone, preprocess=preprocess, spec={**backbone.spec, "normalise": normalise})


def preprocess_of(model: nn.Module) -> Preprocess | None:
    """How a timm model that a program has built wants its images; None where the model does not tell."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or not {"input_size", "mean", "std"} <= config.keys():
        return None
    preprocess: Preprocess = registry.load(f"{_TIMM}:preprocess_of")(model)
    return preprocess


def names() -> list[str]:
    """Every name `load_backbone` takes: the packaged ones, then timm's.

    Raises:
        MissingExtraError: timm is not installed.
    """
    return [*PACKAGED, *registry.load(f"{_TIMM}:names")()]


def unknown_name(name: str) -> str:
    """What is wrong with a name that no backbone has, with the nearest ones; empty where there is such a one."""
    plain, known = name.partition(".")[0], names()
    if name.startswith("hf-hub:") or plain in known:
        return ""
    near = nearest(plain, known)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"there is no {name!r}.{hint}"
