"""Backbones out of timm: any of its models, with a hub's weights, a local file's, or none."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from glora import registry
from glora.backbones import PACKAGED, PACKAGED_TEXT, Backbone, Spec
from glora.backbones.checkpoint import read_checkpoint
from glora.backbones.weights import without_waiting
from glora.errors import BackboneError, UnknownNameError, listed, nearest
from glora.files import write_json
from glora.tasks.images import Preprocess

__all__ = ["load", "names", "preprocess_of", "save_folder"]

_FOLDER = "local-dir:"  # of a model as a hub has it
_HUB = ("hf-hub:", _FOLDER)


class _Wanted(NamedTuple):
    """What timm is asked to build: see `load_backbone`."""

    name: str
    num_classes: int
    image_size: int | None
    seed: int
    drop_path: float


def load(
    name: str,
    *,
    num_classes: int,
    image_size: int | None,
    checkpoint: Path | None,
    pretrained: bool,
    seed: int,
    drop_path: float = 0.0,
) -> Backbone:
    """The timm model `name` as a backbone; see `load_backbone`.

    Raises:
        BackboneError: The model cannot be built at this size or with drop path, or its weights do not fit or are out
            of reach.
        UnknownNameError: timm has no such model; lists the nearest names.
    """
    from_hub = pretrained and checkpoint is None
    if name.startswith(_FOLDER):  # a run is continued from elsewhere too
        name = _FOLDER + str(Path(name.removeprefix(_FOLDER)).expanduser().resolve())
    wanted = _Wanted(name, num_classes, image_size, seed, drop_path)
    _known(name, from_hub=from_hub)
    notes: tuple[str, ...] = ()
    if from_hub and (image_size is None or name.startswith(_HUB)):
        model = _create_pretrained(wanted)
        _check_size(name, model, image_size)
    else:  # a size that does not fit is told before anything is loaded
        model = _create_bare(wanted)
        _check_size(name, model, image_size)
        if checkpoint is not None:
            tensors, taken = read_checkpoint(checkpoint, names=model.state_dict().keys())
            model, notes = _with_weights(wanted, model, tensors, str(checkpoint))
            notes = (*taken, *notes)
        elif from_hub:
            model = _create_pretrained(wanted)
    spec = Spec(
        name=name,
        image_size=image_size,
        checkpoint=None if checkpoint is None else str(checkpoint),
        pretrained=pretrained,
        seed=seed,
    )
    if drop_path:
        spec["drop_path"] = drop_path
    return Backbone(name, model, _preprocess(name, model, image_size), _head(name, model), spec, notes)


def names() -> list[str]:
    """The names of timm's models, sorted."""
    return cast("list[str]", _timm().list_models())


def _timm() -> Any:
    return registry.optional_import("timm", extra="vision", purpose="A timm backbone")


def _known(name: str, *, from_hub: bool) -> None:
    timm = _timm()
    if name.startswith(_FOLDER):
        _check_folder(Path(name.removeprefix(_FOLDER)))
    if name.startswith(_HUB):
        if from_hub:
            return
        raise BackboneError(
            f"The model {name!r} is described on a hub, which is asked for pretrained weights only.",
            remedy="Give the timm name of its architecture instead.",
        )
    stem, _, tag = name.partition(".")
    every = names()
    if stem in every and (not tag or name in timm.list_pretrained(f"{stem}.*")):
        return
    if stem in every:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{stem}.*")]
        raise UnknownNameError(
            f"The model {stem!r} has no pretrained weights {tag!r}.",
            allowed=f"It has {listed(tags, n=20)}." if tags else "It has none.",
            remedy="Run `glora ls models`.",
        )
    near = nearest(stem, [*PACKAGED, *PACKAGED_TEXT, *every])
    raise UnknownNameError(
        f"There is no model {name!r}.",
        allowed=f"Did you mean {' or '.join(map(repr, near))}?" if near else "",
        remedy="Run `glora ls models`.",
    )


def _check_folder(folder: Path) -> None:
    """Raises BackboneError unless the folder is one of a model of timm."""
    allowed = "A folder as timm's save_for_hf and glora export --to huggingface write it: config.json and weights."
    if not folder.is_dir():
        raise BackboneError(f"There is no folder {str(folder)!r}.", allowed=allowed, remedy="Check the path.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BackboneError(
            f"The folder {str(folder)!r} has no config.json.", allowed=allowed, remedy="Check the path."
        ) from None
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"{str(folder / 'config.json')!r} cannot be read: {error}.", allowed=allowed, remedy="Write it again."
        ) from error
    if not isinstance(config, dict) or "architecture" not in config:
        theirs = isinstance(config, dict) and "model_type" in config
        raise BackboneError(
            f"The config.json of {str(folder)!r} names no architecture of timm.",
            allowed=allowed,
            remedy=f"It is a model of transformers: --model {folder}" if theirs else "Write it again.",
        )


def _create(wanted: _Wanted, *, pretrained: bool = False, overlay: dict[str, Any] | None = None) -> nn.Module:
    """timm's model; what starts at random is drawn from its seed.

    Raises:
        BackboneError: It has no drop path, and some is wanted.
    """
    timm, name = _timm(), wanted.name
    settings: dict[str, Any] = {}
    cfg = None if name.startswith(_HUB) else timm.get_pretrained_cfg(name)
    if wanted.image_size is not None and (cfg is None or cfg.fixed_input_size):
        settings["img_size"] = wanted.image_size
    if overlay is not None:
        settings["pretrained_cfg_overlay"] = overlay
    if wanted.drop_path:
        settings["drop_path_rate"] = wanted.drop_path
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(wanted.seed)  # torch.manual_seed would reseed the accelerators too
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=wanted.num_classes, **settings)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            raise _no_drop_path(wanted) from error
    if wanted.drop_path and not any(getattr(module, "drop_prob", 0) for module in model.modules()):
        raise _no_drop_path(wanted)
    return cast(nn.Module, model)


def _no_drop_path(wanted: _Wanted) -> BackboneError:
    return BackboneError(
        f"drop_path={wanted.drop_path:g} is asked for, and {wanted.name!r} has no block that it could leave out.",
        remedy="Leave model.drop_path out, or choose another model.",
    )


def _create_bare(wanted: _Wanted) -> nn.Module:
    try:
        return _create(wanted)
    except BackboneError:
        raise
    except Exception as error:  # whatever the architecture's own constructor refuses
        size = "" if wanted.image_size is None else f" for images of {wanted.image_size} pixels"
        raise BackboneError(
            f"timm cannot build {wanted.name!r}{size}: {error or type(error).__name__}.",
            remedy="Leave image_size out for the model's own." if size else "Choose another model.",
        ) from error


def _create_pretrained(wanted: _Wanted) -> nn.Module:
    try:
        with without_waiting("vision"):
            return _create(wanted, pretrained=True)
    except BackboneError:
        raise
    except Exception as error:  # the hub client's errors have no common root
        reason = " ".join(str(error).split())
        raise BackboneError(
            f"The pretrained weights of {wanted.name!r} could not be loaded: {reason or type(error).__name__}",
            allowed="They come from a model hub, which needs a network or a warm cache.",
            remedy="Use --checkpoint FILE.safetensors, --model dinov2_vits14 (packaged), or --no-pretrained.",
        ) from error


def _with_weights(
    wanted: _Wanted, bare: nn.Module, tensors: dict[str, Tensor], source: str
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with these weights, loaded strictly by timm's own means, and notes on the head.

    A head that the weights lack, or have in another shape, is put in from `bare`, so that every other key
    must be there. timm renames keys and resamples position embeddings as the architecture needs.
    """
    fresh = {
        key: value
        for head in _head(wanted.name, bare)
        for key, value in bare.state_dict().items()
        if key.startswith(f"{head}.")
    }
    dropped = [key for key, value in fresh.items() if key not in tensors or tensors[key].shape != value.shape]
    stale = [key for key in dropped if key in tensors]
    overlay = {
        "state_dict": {**tensors, **{key: fresh[key] for key in dropped}},
        "num_classes": wanted.num_classes,  # equal to the model's: timm then loads strictly
        "label_offset": 0,
    }
    try:
        model = _create(wanted, pretrained=True, overlay=overlay)
    except Exception as error:  # a filter written for other weights can fail in any way
        raise BackboneError(
            f"The checkpoint {source!r} does not fit {wanted.name!r}: {_misfit(error)}.",
            allowed="Apart from the classifier, every weight must be there and have the model's shape.",
            remedy="Give the model the checkpoint was saved from.",
        ) from error
    model.pretrained_cfg = model.default_cfg = cast(Any, bare).pretrained_cfg  # the overlay holds every tensor
    shapes = [f"{key} {tuple(tensors[key].shape)} where {tuple(fresh[key].shape)} is needed" for key in stale]
    note = f"The checkpoint's classifier was left out, the head is fresh: {listed(shapes)}."
    return model, (note,) if stale else ()


def _misfit(error: Exception) -> str:
    """torch's report on a state dict in one line, with at most three keys of a kind."""
    text = str(error)
    kinds = {
        "missing": re.findall(r'"([^"]+)"', "".join(re.findall(r"Missing key\(s\)[^\n]*", text))),
        "unexpected": re.findall(r'"([^"]+)"', "".join(re.findall(r"Unexpected key\(s\)[^\n]*", text))),
        "of another shape": re.findall(r"size mismatch for ([\w.]+):", text),
    }
    summary = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in kinds.items() if keys)
    return summary or f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def _check_size(name: str, model: nn.Module, image_size: int | None) -> None:
    """Nothing when the model takes images of this side; timm would silently cut off a partial patch."""
    if image_size is None:
        return
    layers = registry.optional_import("timm.layers", extra="vision", purpose="A timm backbone")
    embed = next((m for m in model.modules() if isinstance(m, layers.PatchEmbed)), None)
    patch = 1 if embed is None else int(cast(Any, embed).patch_size[0])
    if image_size % patch == 0 and _runs(model, image_size):
        return
    own = cast(Any, model).pretrained_cfg["input_size"][-1]
    below = image_size // patch * patch
    near = [str(size) for size in (below, below + patch) if patch > 1 and 0 < size != image_size]
    raise BackboneError(
        f"The model {name!r} does not take images of {image_size} pixels.",
        allowed=f"The side must be a multiple of its patch size, {patch}." if patch > 1 else "",
        remedy=f"Try {' or '.join(near)}." if near else f"Leave image_size out for the model's own, {own}.",
    )


def _runs(model: nn.Module, image_size: int) -> bool:
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError):  # torch's shape errors and timm's own checks
        return False
    finally:
        model.train(training)
    return True


def _preprocess(name: str, model: nn.Module, image_size: int | None) -> Preprocess:
    data = registry.optional_import("timm.data", extra="vision", purpose="A timm backbone")
    config = data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != len("RGB"):
        raise BackboneError(f"The model {name!r} takes {channels} channels.", allowed="Images here have 3.")
    size = (height, width) if image_size is None else (image_size, image_size)
    known = ("nearest", "bilinear", "bicubic", "lanczos")
    interpolation = config["interpolation"] if config["interpolation"] in known else "bicubic"
    return Preprocess(size, tuple(config["mean"]), tuple(config["std"]), interpolation)


def preprocess_of(model: nn.Module) -> Preprocess:
    """How a model of timm wants its images, at the size that it was built for."""
    found = _preprocess(type(model).__name__, model, None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return replace(found, size=(int(size[0]), int(size[1]))) if isinstance(size, tuple | list) else found


def _head(name: str, model: nn.Module) -> tuple[str, ...]:
    """The names of timm's classifier modules, such as `head` or `head.fc`; two in a distilled model."""
    classifier = cast(Any, model).get_classifier()
    wanted = classifier if isinstance(classifier, tuple | list) else (classifier,)
    found = tuple(key for key, module in model.named_modules() if any(module is part for part in wanted))
    if not found or not any(True for part in wanted for _ in part.parameters()):
        raise BackboneError(f"The model {name!r} has no classifier to replace.", remedy="Choose another model.")
    return found


def save_folder(
    model: nn.Module,
    folder: Path,
    *,
    labels: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    new_keys: Sequence[str] = (),
) -> None:
    """Writes a model of timm as a folder that `timm.create_model("local-dir:FOLDER")` loads, and loads it to see.

    Args:
        model: The plain model.
        folder: Where; it is there.
        labels: Names of the outputs.
        preprocess: How it reads images; the model's own if not given.
        new_keys: Keys that the base has not, which timm would not make.

    Raises:
        BackboneError: timm does not build the model again, to the bit.
    """
    if new_keys:
        raise BackboneError(
            f"timm builds {type(model).__name__} without {listed(new_keys)}: new biases would be lost.",
            allowed="Without new biases any model of timm can be written as a folder.",
            remedy="Train with --set method.new_bias=false, or export to onnx or torch.",
        )
    try:
        _timm().models.save_for_hf(model, str(folder), safe_serialization=True)
        _describe(folder / "config.json", model, labels, preprocess)
        with torch.random.fork_rng(devices=[]):
            again = _timm().create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # whatever timm refuses
        reason = " ".join(str(error).split())
        raise BackboneError(
            f"timm cannot write the {type(model).__name__} as a folder: {reason[:300] or type(error).__name__}",
            remedy="Export to onnx or torch.",
        ) from error
    state, found = model.state_dict(), again.state_dict()
    if odd := [key for key in {**state, **found} if key not in state or not torch.equal(state[key], found[key])]:
        raise BackboneError(f"timm does not read back {listed(odd)} as written.", remedy="Export to onnx or torch.")


def _describe(file: Path, model: nn.Module, labels: Sequence[str], preprocess: Preprocess | None) -> None:
    """Puts labels, preprocessing and the input size into timm's configuration."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if labels:
        config["label_names"] = list(labels)
    if preprocess is not None:
        crop = {"crop_pct": 7 / 8} if preprocess.resize == "crop" else {"crop_pct": 1.0, "crop_mode": "squash"}
        config["pretrained_cfg"] |= {
            "input_size": [3, *preprocess.size],
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            **crop,
        }
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None and config["pretrained_cfg"].get("fixed_input_size"):
        config["model_args"] = {**config.get("model_args", {}), "img_size": list(size)}
    write_json(file, config)
