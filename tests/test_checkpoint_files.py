"""Checkpoints as people have them: files and folders, wrappers, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glora.backbones import load_backbone
from glora.backbones.checkpoint import read_checkpoint, read_pickled
from glora.errors import BackboneError
from language import tiny_causal

VIT = "test_vit"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    model = load_backbone(VIT, num_classes=3, image_size=32, pretrained=False, seed=7).model
    return {name: value.clone() for name, value in model.state_dict().items()}


def loaded(file: Path, **changes: Any) -> Any:
    return load_backbone(VIT, **{"num_classes": 3, "image_size": 32, "checkpoint": file, **changes})


def same(model: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt", ".ckpt", ".safetensors"])
def test_every_kind_of_file_is_read(tmp_path, weights, suffix):
    file = tmp_path / f"vit{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    backbone = loaded(file)
    assert same(backbone.model, weights)
    assert backbone.notes == ()


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_as_hubs_have_it_is_read(tmp_path, weights, kind, sharded):
    write: Callable[..., None] = save_file if kind.endswith("safetensors") else torch.save
    names = sorted(weights)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]] if sharded else [names]
    files = [f"part-{place}-{kind}" if sharded else kind for place in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        write({name: weights[name] for name in part}, tmp_path / file)
    if sharded:
        places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (tmp_path / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same(loaded(tmp_path).model, weights)
    if sharded:
        (tmp_path / files[1]).unlink()
        with pytest.raises(BackboneError, match=f"lacks {files[1]}"):
            loaded(tmp_path)


@pytest.mark.parametrize(
    "wrap, said",
    [
        (lambda w: {"state_dict": w, "epoch": 3}, ["'state_dict'"]),
        (lambda w: {"model": w, "optimizer": {}}, ["'model'"]),
        (lambda w: {f"module.{name}": value for name, value in w.items()}, ["'module.'"]),
        (lambda w: {f"_orig_mod.module.{name}": value for name, value in w.items()}, ["'_orig_mod.'", "'module.'"]),
        (
            lambda w: {"state_dict": {f"model.{name}": value for name, value in w.items()}},
            ["'state_dict'", "'model.'"],
        ),
    ],
)
def test_wrappers_are_taken_off_and_said(tmp_path, weights, wrap, said):
    torch.save(wrap(weights), tmp_path / "vit.pth")
    backbone = loaded(tmp_path / "vit.pth")
    assert same(backbone.model, weights)
    told = " ".join(backbone.notes)
    assert all(word in told for word in said)


def test_the_averaged_weights_are_taken_and_the_others_named(tmp_path, weights):
    other = {name: value + 1 for name, value in weights.items()}
    torch.save({"state_dict": other, "state_dict_ema": weights}, tmp_path / "vit.pth.tar")
    backbone = loaded(tmp_path / "vit.pth.tar")
    assert same(backbone.model, weights)
    assert "'state_dict_ema' (not 'state_dict')" in backbone.notes[0]


def test_a_lightning_checkpoint_with_other_modules_is_read(tmp_path, weights):
    inside = {f"model.{name}": value for name, value in weights.items()} | {"criterion.weight": torch.ones(3)}
    torch.save({"state_dict": inside}, tmp_path / "lightning.ckpt")
    found, notes = read_checkpoint(tmp_path / "lightning.ckpt", names=weights)
    assert found.keys() == weights.keys()
    assert any("'model.'" in note for note in notes)


def test_a_prefix_that_the_model_has_too_stays(tmp_path):
    tensors = {"model.layers.0.weight": torch.ones(2), "model.norm.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "llama.safetensors")
    found, notes = read_checkpoint(tmp_path / "llama.safetensors", names=tensors)
    assert found.keys() == tensors.keys()
    assert notes == ()


def test_position_embeddings_are_resized_as_timm_does(tmp_path, weights):
    torch.save(weights, tmp_path / "vit.pth")
    larger = loaded(tmp_path / "vit.pth", image_size=64).model
    assert larger.pos_embed.shape[1] > weights["pos_embed"].shape[1]
    assert torch.equal(larger.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("held", [Runs(), nn.Linear(2, 2)], ids=["code", "module"])
def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, monkeypatch, held):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(2), "more": held}, tmp_path / "bad.pth")
    with pytest.raises(BackboneError, match=r"more than weights, \w.*would run its code.*weights_only=True"):
        read_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"never opened", b"hello\n", b"", b"\x80", pickle.dumps({"weight": 1}, protocol=4)]
)
def test_a_damaged_file_is_told(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(BackboneError, match="damaged"):
        read_pickled(tmp_path / "bad.pth")


def test_a_folder_that_is_no_model_of_timm_is_told(tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(BackboneError, match=r"no folder .*nowhere'.*save_for_hf.*Check the path"):
        load_backbone(f"local-dir:{tmp_path / 'nowhere'}", num_classes=2)
    with pytest.raises(BackboneError, match=r"has no config.json"):
        load_backbone(f"local-dir:{tmp_path}", num_classes=2)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"config.json' cannot be read"):
        load_backbone(f"local-dir:{tmp_path}", num_classes=2)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BackboneError, match=r"names no architecture of timm.*a model of transformers: --model"):
        load_backbone(f"local-dir:{tmp_path}", num_classes=2)


def test_what_holds_no_weights_is_told(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "bad.pth")
    with pytest.raises(BackboneError, match="holds no weights, but epoch"):
        read_checkpoint(tmp_path / "bad.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BackboneError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    (tmp_path / "weights").write_bytes(b"x")
    with pytest.raises(BackboneError, match=r"of no known kind.*\.pth"):
        read_checkpoint(tmp_path / "weights")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BackboneError, match="is empty"):
        read_checkpoint(tmp_path / "folder")


def test_a_model_of_transformers_takes_them_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    base = tiny_causal(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    weights = {name: value + 0.1 for name, value in model.state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "other.pth")
    backbone = load_backbone(str(base), num_classes=None, checkpoint=tmp_path / "other.pth")
    assert same(backbone.model, weights)
    assert any("'module.'" in note for note in backbone.notes)
