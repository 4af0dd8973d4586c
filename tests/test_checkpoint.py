"""The adapter file: the same outputs in a fresh process, strict loading, and no half-written or half-loaded state."""

from __future__ import annotations

import ast
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import glora
from glora.adapt import adapter_file as checkpoint
from glora.adapt import adapter_format
from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.errors import AdapterFileError, StateError
from glora.files import atomic, read_metadata, write_text
from glora.genotype import LayerConfig
from glora.methods.method import get_method
from glora.space import SearchSpace
from test_adapted import FACTORED, FULL, difference, photograph, play, same

PAPER = SearchSpace(ranks=(4, 2), variant="paper")
SRC = Path(glora.__file__).parent


@pytest.fixture
def saved(vit, tmp_path) -> tuple[Path, torch.nn.Module]:
    """An adapter file and the adapted model that wrote it."""
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FACTORED)
    with torch.no_grad():
        model.head.weight.add_(0.3)
    path = tmp_path / "task.safetensors"
    glora.save_adapter(adapted, path, info={"classes": ["a", "b", "c"]})
    return path, model


# round trips

FRESH = """
import sys, torch, glora
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from conftest import TinyViT
torch.manual_seed(77)  # another head than the one trained; then the base
model = TinyViT(3).eval()
model.load_state_dict(torch.load(sys.argv[2], weights_only=True), strict=False)
adapted = glora.load_adapter(model, sys.argv[3])
x = torch.load(sys.argv[4], weights_only=True)
with torch.no_grad():
    out = model(x)
    with adapted.hold(adapted.active):
        held = model(x)
    merged = adapted.merge()(x)
torch.save([out, held, merged], sys.argv[5])
"""


@pytest.mark.slow
@pytest.mark.parametrize("config", [FACTORED, FULL], ids=["factored", "weight"])
@pytest.mark.parametrize("product", ["elementwise", "matrix"])
def test_a_fresh_process_gives_the_same_outputs_to_the_last_bit(vit, images, tmp_path, config, product):
    model = vit()
    base = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head")}
    adapted = glora.inject(model, SearchSpace(ranks=(4, 2), variant="paper", product=product))
    genotype = play(adapted, LayerConfig(**{**config._asdict(), "B": "lora:2"}))
    paths = [tmp_path / name for name in ("base.pt", "task.safetensors", "images.pt", "outputs.pt")]
    torch.save(base, paths[0])
    torch.save(images, paths[2])
    glora.save_adapter(adapted, paths[1])
    with torch.no_grad():
        expected = [model(images)]
        with adapted.hold(genotype):
            expected.append(model(images))
        expected.append(adapted.merge()(images))
    tests = Path(__file__).parent
    subprocess.run([sys.executable, "-c", FRESH, tests, *paths], check=True, timeout=120)
    for name, mine, theirs in zip(
        ("adapted", "held", "merged"), expected, torch.load(paths[3], weights_only=True), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_saving_and_loading_again_writes_the_same_numbers(saved, vit, tmp_path):
    path, _ = saved
    again = tmp_path / "again.safetensors"
    glora.save_adapter(glora.load_adapter(vit(), path), again, info={"classes": ["a", "b", "c"]})
    first, second = load_file(path), load_file(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert checkpoint.read_header(path)["genotype"] == checkpoint.read_header(again)["genotype"]


def test_the_file_is_its_numbers_and_a_small_header(vit, tmp_path):
    adapted = glora.inject(vit(), PAPER)
    path = tmp_path / "task.safetensors"
    glora.save_adapter(adapted, path)
    empty = path.stat().st_size
    genotype = play(adapted, FACTORED)
    glora.save_adapter(adapted, path)
    head = sum(parameter.numel() for parameter in adapted.head_parameters())
    stored = sum(value.numel() for value in load_file(path).values())
    assert stored == adapted.count(genotype) + head
    assert path.stat().st_size - 4 * stored < empty - 4 * head + 120 * len(load_file(path))


def test_the_header_is_plain_json_that_anyone_can_read(saved):
    path, _ = saved
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(json.loads(file.read(size))["__metadata__"]["glora"])
    assert header == checkpoint.read_header(path)
    assert header["format"] == "glora-adapter"
    assert header["version"] == 2
    assert header["space"]["product"] == "matrix"
    assert header["head"] == ["head"]
    assert header["genotype"]["blocks.0.fc1"]["B"] == "lora:4"
    assert header["info"] == {"classes": ["a", "b", "c"]}
    assert re.fullmatch("[0-9a-f]{64}", header["base"])


def test_the_scales_travel_with_the_file(vit, images, tmp_path):
    """A file plays with the scales it was trained with, whatever the library's are now."""
    model = vit()
    adapted = glora.inject(model, SearchSpace(ranks=(4,), variant="paper"))
    play(adapted, LayerConfig(B="vector"))
    for support in adapted.supports.values():
        support.scales["B.vector"] = 0.5
    out = model(images)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = vit()
    glora.load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other(images), out)


def test_a_file_of_before_the_right_factor_was_scaled_plays_as_it_did(vit, images, tmp_path):
    """Then elementwise LoRA A was multiplied by sqrt(i), and LoRA B by nothing."""
    model = vit()
    adapted = glora.inject(model, SearchSpace(ranks=(4,), variant="paper", product="elementwise"))
    play(adapted, LayerConfig(A="lora:4", B="lora:4"))
    with torch.no_grad():
        for support in adapted.supports.values():
            support.scales = {"A.lora": support.site.in_features**0.5}
            for tensor in "AB":
                support.up[tensor] /= support.site.in_features**0.5
    out = model(images)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = vit()
    again = glora.load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other(images), out)
    again.add("second", tmp_path / "a.safetensors")
    again.switch("second")
    assert torch.equal(other(images), out)


def test_a_supernet_comes_back_whole(vit, images, tmp_path):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FULL)
    path = tmp_path / "supernet.safetensors"
    checkpoint.save_supernet(adapted, path)
    other = vit()
    loaded = glora.load_adapter(other, path)
    assert loaded.space.size == adapted.space.size
    for genotype in (adapted.space.largest, loaded.space.smallest):
        adapted.activate(genotype)
        loaded.activate(genotype)
        assert torch.equal(model(images), other(images))
    third = glora.inject(vit(), PAPER, seed=5)
    checkpoint.load_supernet(third, path)
    assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), third.parameters(), strict=True))
    with pytest.raises(StateError, match="another space"):
        checkpoint.load_supernet(glora.inject(vit(), SearchSpace(ranks=(2,))), path)
    with pytest.raises(StateError, match="supernet"):
        loaded.add("whole", path)


def test_the_merged_model_is_an_ordinary_state_dict(vit, images, tmp_path):
    adapted = glora.inject(vit(), PAPER)
    play(adapted, FULL)
    merged = adapted.merge()
    out = merged(images)
    checkpoint.save_merged(merged, tmp_path / "merged.safetensors")
    with safe_open(tmp_path / "merged.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt", "transformers refuses a file without"
    plain = vit(seed=9)
    assert list(plain.state_dict()) == list(merged.state_dict())
    plain.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    assert torch.equal(plain(images), out)


def test_a_head_of_another_width_is_loaded(saved, vit, images):
    path, model = saved
    wide = vit(classes=11)
    adapted = glora.load_adapter(wide, path)
    assert torch.equal(wide(images), model(images))
    assert wide.head.out_features == 3
    adapted.detach()
    assert wide.head.out_features == 11


def test_a_new_bias_travels(images, tmp_path, vit):
    model = vit()
    adapted = glora.inject(model, SearchSpace.paper(), example=images)
    play(adapted, LayerConfig(B="lora:8", E="vector"))
    out = model(images)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = vit()
    loaded = glora.load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other(images), out)
    assert "blocks.0.fc2.bias" in loaded.merge().state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_adapter_of_another_type_of_base(vit, images, tmp_path, dtype):
    model, x = vit().to(dtype), images.to(dtype)
    adapted = glora.inject(model, PAPER)
    play(adapted, FACTORED)
    out = model(x)
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = vit().to(dtype)
    glora.load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other(x), out)
    with pytest.raises(AdapterFileError, match="dtype"):
        glora.load_adapter(vit(), tmp_path / "a.safetensors")
    glora.load_adapter(vit(), tmp_path / "a.safetensors", check_base=False)


def test_a_model_moved_to_another_type_while_adapted_is_saved_and_loaded(vit, images, tmp_path):
    model = vit()
    adapted = glora.inject(model, PAPER)
    play(adapted, FACTORED)
    model.bfloat16()
    out = model(images.bfloat16())
    glora.save_adapter(adapted, tmp_path / "a.safetensors")
    other = vit().bfloat16()
    glora.load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other(images.bfloat16()), out)


# what is refused


def edited(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """The file with its header and tensors changed in place, and the checksum that they have then."""
    header, tensors = checkpoint.read_header(path), load_file(path)
    change(header, tensors)
    header[adapter_format.CHECKSUM] = adapter_format.checksum(header, tensors, tensors.__getitem__)
    save_file(tensors, path, metadata={"glora": json.dumps(header)})
    return path


def refused(model: nn.Module, path: Path, message: str) -> AdapterFileError:
    before = photograph(model)
    with pytest.raises(AdapterFileError, match=message) as error:
        glora.load_adapter(model, path)
    same(before, photograph(model))
    assert str(path) in str(error.value)
    assert error.value.remedy or error.value.allowed, "an error says what to do"
    return error.value


KEY = "blocks.0.fc1.B.down"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: t.pop(KEY), r"lacks blocks\.0\.fc1\.B\.down"),
        (lambda h, t: t.update({"blocks.0.fc1.F.down": torch.zeros(1)}), "unknown keys"),
        (lambda h, t: t.update({"other": torch.zeros(1)}), "unknown keys other"),
        (lambda h, t: t.update({KEY: torch.zeros(3, 3)}), r"is F32 \(3, 3\)"),
        (lambda h, t: t.update({KEY: t[KEY].double()}), "is F64"),
        (lambda h, t: t.update({KEY: t[KEY].half()}), "is F16"),
        (lambda h, t: t.pop("head/head.bias"), r"lacks head\.bias"),
        (lambda h, t: t.update({"head/head.scale": torch.zeros(1)}), r"unknown keys head\.scale"),
        (lambda h, t: t.update({"head/head.weight": torch.zeros(3, 7)}), r"head\.weight.*shape"),
        (lambda h, t: h.update(version=9), r"version '9'.*reads the versions 1, 2, 3.*[Uu]pdate"),
        (lambda h, t: h.update(version="1"), "version '1'"),
        (lambda h, t: h.update(format="lora"), "not a glora adapter"),
        (lambda h, t: h.update(base="0" * 64), "another base"),
        (lambda h, t: h.pop("base"), "another base|damaged"),
        (lambda h, t: h["genotype"].pop("blocks.0.fc1"), "sites, scales and genotype differ"),
        (lambda h, t: h["genotype"]["blocks.0.fc1"].update(B="lora:3"), "'lora:3', which its space does not offer"),
        (lambda h, t: h["genotype"]["blocks.0.fc1"].update(B="loro"), "'loro' is no choice"),
        (lambda h, t: h["genotype"]["blocks.0.fc1"].update(F="none"), "header"),
        (lambda h, t: h["space"].update(product="both"), "header"),
        (lambda h, t: h["space"].update(surprise=1), "header"),
        (lambda h, t: h["scales"].update({"blocks.7": {"B.vector": 1.0}}), "header|scales"),
        (lambda h, t: h["scales"]["blocks.0.fc1"].update({"B.vector": "much"}), "header"),
        (lambda h, t: h["sites"]["blocks.0.fc1"].update(extra=1), "header"),
        (lambda h, t: h["sites"]["blocks.0.fc1"].update(out_features="many"), "header|fc1"),
        (lambda h, t: h.update(head=["classifier"]), "classifier"),
        (lambda h, t: h.update(head=[3]), "header|no 3"),
        (lambda h, t: h.update(head=None), "header"),
        (lambda h, t: h.update(sites=[]), "header"),
    ],
)
def test_a_changed_file_is_refused_and_the_model_is_untouched(saved, vit, change, message):
    refused(vit(), edited(saved[0], change), message)


@pytest.mark.parametrize("part", ["space", "sites", "genotype", "scales", "head", "base"])
@pytest.mark.parametrize("value", ["absent", None, 3, "text", [], {}, [3], {"a": 3}])
def test_any_damage_of_the_header_is_one_clear_error(saved, vit, part, value):
    if (part, value) == ("genotype", None):
        pytest.skip("a whole supernet has no genotype; its shapes are refused by the test above")

    def change(header: dict[str, Any], _: Any) -> None:
        header.update({part: value})
        if value == "absent":
            del header[part]

    refused(vit(), edited(saved[0], change), ".")


def test_another_base_or_another_model_is_refused(saved, vit):
    path, _ = saved
    assert "differ" in str(refused(vit(seed=1), path, "another base"))
    nudged = vit()
    with torch.no_grad():
        nudged.blocks[1].norm1.bias[0] += 1e-6
    refused(nudged, path, "another base")
    refused(nn.Sequential(nn.Linear(3, 3)), path, "another model: Sequential has no")
    wider = vit()
    wider.blocks[0].fc1 = nn.Linear(12, 30)
    error = refused(wider, path, r"blocks\.0\.fc1")
    assert "30" in str(error)
    assert "24" in str(error)
    unlike = vit()
    unlike.blocks[0].fc1 = nn.Identity()
    refused(unlike, path, "fc1")


def test_even_unchecked_an_adapter_of_other_shapes_is_refused(saved, vit):
    wider = vit()
    wider.blocks[0].fc1 = nn.Linear(12, 30)
    before = photograph(wider)
    with pytest.raises(AdapterFileError, match="fc1"):
        glora.load_adapter(wider, saved[0], check_base=False)
    same(before, photograph(wider))


def test_the_fingerprint_is_of_the_base_alone(vit):
    model = vit()
    plain = checkpoint.fingerprint(model, ("head",))
    adapted = glora.inject(model, SearchSpace.paper(), example=torch.zeros(1, 3, 8, 8))
    play(adapted, LayerConfig(B="lora:8", E="vector"))
    with torch.no_grad():
        model.head.weight.zero_()
    assert checkpoint.fingerprint(model, ("head",)) == plain
    adapted.merge()
    assert checkpoint.fingerprint(model, ("head",)) != plain
    adapted.detach()
    assert checkpoint.fingerprint(model, ("head",)) == plain
    assert checkpoint.fingerprint(vit(seed=1), ("head",)) != plain


def test_files_that_are_no_adapters_are_refused(saved, vit, tmp_path):
    path, _ = saved
    whole = path.read_bytes()
    refused(vit(), tmp_path / "nothing.safetensors", "no adapter file")
    refused(vit(), tmp_path, "no adapter_config.json")
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(vit(), path, "damaged")
    path.write_bytes(b"\x80\x04not safetensors at all" * 20)
    refused(vit(), path, "damaged")
    save_file({"a": torch.zeros(3)}, path)
    refused(vit(), path, "not a glora adapter")
    save_file({"a": torch.zeros(3)}, path, metadata={"glora": "{"})
    refused(vit(), path, "damaged")
    save_file({"a": torch.zeros(3)}, path, metadata={"glora": "[]"})
    refused(vit(), path, "not a glora adapter")


def test_loading_into_an_adapted_model_is_refused_and_changes_nothing(saved, images):
    path, model = saved
    out, before = model(images), photograph(model)
    with pytest.raises(StateError, match="adapted already"):
        glora.load_adapter(model, path, check_base=False)
    assert torch.equal(model(images), out)
    same(before, photograph(model))


def test_loading_into_a_merged_model_is_refused(saved, vit):
    path, _ = saved
    model = vit()
    glora.load_adapter(model, path).merge()
    refused(model, path, "another base")


# files


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(saved, vit, monkeypatch):
    path, _ = saved
    whole = path.read_bytes()
    adapted = glora.inject(vit(), PAPER)

    def full(tensors: Any, temporary: Path, **_: Any) -> None:
        Path(temporary).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(adapter_format, "save_file", full)
    with pytest.raises(OSError, match="space"):
        glora.save_adapter(adapted, path)
    monkeypatch.undo()
    with pytest.raises(TypeError):
        glora.save_adapter(adapted, path, info={"not": object()})
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_nothing_is_pickled_and_of_pickled_files_the_tensors_alone_are_read():
    readers = set()
    for file in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"dill", "joblib", "cloudpickle", "shelve"} & set(imported), file
            used = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert used != "torch.save", file
            assert not used.startswith("pickle.") or used == "pickle.UnpicklingError", file
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in map(ast.unparse, node.keywords), file
                readers.add(file.name)
    assert readers == {"checkpoint.py"}


def test_a_difference_is_seen(saved, vit, images):
    """The comparison itself can fail: another number in the file gives another output."""
    path, model = saved

    def nudge(_: Any, tensors: dict[str, torch.Tensor]) -> None:
        tensors[KEY][0, 0] += 1.0

    other = vit()
    glora.load_adapter(other, edited(path, nudge))
    assert difference(other(images), model(images)) > 1e-5


def test_a_base_whose_fingerprint_is_known_is_not_hashed_again_and_still_checked(vit, tmp_path, monkeypatch):
    adapted = glora.inject(vit(), PAPER)
    play(adapted, FULL)
    base = adapted.base_fingerprint()
    assert base == checkpoint.fingerprint(vit(), ("head",))
    one, whole = tmp_path / "one.safetensors", tmp_path / "whole.safetensors"

    def hashed(*_: Any) -> str:
        raise AssertionError("the base is hashed")

    with monkeypatch.context() as known:
        known.setattr(adapter_format, "fingerprint", hashed)
        glora.save_adapter(adapted, one, base_fingerprint=base)
        checkpoint.save_supernet(adapted, whole, base_fingerprint=base)
        glora.load_adapter(vit(), one, base_fingerprint=base)
        checkpoint.load_supernet(adapted, whole, base_fingerprint=base)
        adapted.add("one", one, base_fingerprint=base)
        for load in (glora.load_adapter, adapter_format.read_state):
            with pytest.raises(AdapterFileError, match="another base"):
                load(vit(), one, base_fingerprint="0" * 64)
        with pytest.raises(AdapterFileError, match="another base"):
            checkpoint.load_supernet(adapted, whole, base_fingerprint="0" * 64)
    glora.load_adapter(vit(), one)
    assert checkpoint.read_header(one)["base"] == base


# Files of named numbers: the methods without support tensors


def trained_biases(vit: Any, path: Path) -> nn.Module:
    model = vit()
    tuned = get_method("bitfit").apply(model, head=("head",), seed=0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.5)
    tuned.save(path, {"of": "mine"})
    return model


def test_a_file_of_numbers_is_loaded_by_its_own_settings(vit: Any, images: torch.Tensor, tmp_path: Path) -> None:
    model = trained_biases(vit, tmp_path / "biases")
    loaded = glora.load_adapter(vit(), tmp_path / "biases")
    assert torch.equal(loaded.model(images), model(images))
    header = read_metadata(tmp_path / "biases")
    assert header["version"] == 3 and header["method"] == {"name": "bitfit"} and header["info"] == {"of": "mine"}


def test_a_file_of_numbers_of_another_base_is_refused(vit: Any, tmp_path: Path) -> None:
    trained_biases(vit, tmp_path / "biases")
    other = vit()
    with torch.no_grad():
        other.patch.weight[0, 0, 0, 0] += 1  # type: ignore[index, union-attr]
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(AdapterFileError, match="trained on another base"):
        glora.load_adapter(other, tmp_path / "biases")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    glora.load_adapter(other, tmp_path / "biases", check_base=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: t.pop("norm.bias"), "lacks norm.bias"),
        (lambda h, t: t.update(extra=torch.zeros(1)), "unknown keys extra"),
        (lambda h, t: t.update({"norm.bias": torch.zeros(3)}), "norm.bias is not of shape"),
        (lambda h, t: h["tensors"].pop("norm.bias"), "unknown keys norm.bias"),
        (lambda h, t: (h["tensors"].pop("norm.bias"), t.pop("norm.bias")), "norm.bias do not fit"),
        (lambda h, t: h["method"].update(name="lora", rank=2), "of the method 'lora', no support tensors"),
        (lambda h, t: h["method"].update(nonsense=1), "nonsense: no such setting"),
        (lambda h, t: h.pop("head"), "header .* is damaged"),
    ],
)
def test_a_changed_file_of_numbers_is_refused(vit: Any, tmp_path: Path, change: Any, message: str) -> None:
    trained_biases(vit, tmp_path / "biases")
    tensors, header = read_tensors(tmp_path / "biases")
    change(header, tensors)
    save_tensors(tmp_path / "biases", tensors, header)
    with pytest.raises(glora.GloraError, match=message):
        glora.load_adapter(vit(), tmp_path / "biases")


def test_a_file_of_other_settings_is_refused_by_the_method(vit: Any, tmp_path: Path) -> None:
    trained_biases(vit, tmp_path / "biases")
    with pytest.raises(AdapterFileError, match=r"of other settings: name='bitfit'.*Here: name='full'"):
        get_method("full").load(vit(), tmp_path / "biases")
