"""Models of transformers as backbones: what is loaded, what becomes the head, what is told, and what is refused."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import glora
from glora.backbones import Loading, load_backbone, text_preprocess, unknown_name
from glora.errors import BackboneError, ConfigError, MissingExtraError, StateError
from glora.runs.resolve import resolve
from glora.runs.run import Run
from glora.tasks.images import Preprocess
from glora.tasks.texts import TextPreprocess
from language import CAUSAL, POSITIONS, tiny_causal, tiny_encoder, tiny_t5, tiny_vision
from suites.layer_suite import randomize
from suites.toy import Recorder, tiny

transformers = pytest.importorskip("transformers")

MAKERS: dict[str, Callable[[Path], Path]] = {
    **{kind: lambda folder, kind=kind: tiny_causal(folder, kind) for kind in CAUSAL},  # type: ignore[misc]
    "tied": lambda folder: tiny_causal(folder, tie_word_embeddings=True),
    "bert": tiny_encoder,
    "distilbert": lambda folder: tiny_encoder(folder, "distilbert"),
    "t5": tiny_t5,
    "vit": tiny_vision,
}
GENERATING = (*CAUSAL, "t5")
READING = (*CAUSAL, "bert", "distilbert", "t5")
SPACE = glora.SearchSpace(ranks=(4, 2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every kind of model."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


def copied(folder: Path, to: Path) -> Path:
    """A copy of a model's folder, to be changed."""
    return Path(shutil.copytree(folder, to / "copy"))


def changed_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def changed_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def inputs(name: str) -> dict[str, Tensor]:
    """Something that a model of this kind takes."""
    generator = torch.Generator().manual_seed(0)
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    tokens = torch.randint(5, 300, (3, 9), generator=generator)
    tokens[:, -1] = 2  # every tokenizer's end of a text
    return {"input_ids": tokens, **({"labels": tokens} if name == "t5" else {})}


def logits(model: nn.Module, name: str, *, classes: bool = False) -> Tensor:
    given = inputs(name)
    if classes:
        given.pop("labels", None)
    return model(**given).logits


# What is loaded


@pytest.mark.parametrize("name", GENERATING)
def test_a_language_model_is_its_own_in_float32_and_has_no_head(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]), num_classes=None)
    auto = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    plain = auto.from_pretrained(folders[name], dtype=torch.float32)
    assert type(backbone.model) is type(plain)
    assert torch.equal(logits(backbone.model, name), logits(plain, name))
    assert {value.dtype for value in backbone.model.parameters()} == {torch.float32}
    assert backbone.head == () and backbone.notes == ()
    preprocess = backbone.preprocess
    assert isinstance(preprocess, TextPreprocess)
    assert (preprocess.form, preprocess.max_length) == ("encoder_decoder" if name == "t5" else "causal", POSITIONS)
    assert preprocess.tokenizer("What is").input_ids


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("llama", ("score",)),
        ("gpt2", ("score",)),
        ("bert", ("classifier",)),
        ("distilbert", ("pre_classifier", "classifier")),
        ("t5", ("classification_head",)),
        ("vit", ("classifier",)),
    ],
)
def test_what_a_classifier_has_fresh_is_the_head_and_told(
    folders: dict[str, Path], name: str, head: tuple[str, ...]
) -> None:
    backbone = load_backbone(str(folders[name]), num_classes=3)
    assert backbone.head == head
    assert any("Fresh" in note and all(each in note for each in head) for note in backbone.notes)
    assert logits(backbone.model, name, classes=True).shape == (3, 3)
    written = {value.sum().item() for value in load_file(folders[name] / "model.safetensors").values()}
    fresh = [key for key, value in backbone.model.state_dict().items() if value.sum().item() not in written]
    weights = [key for key in fresh if key.endswith("weight")]  # fresh biases are zeros
    assert weights and all(key.startswith(head) for key in weights)
    bare = load_backbone(str(folders[name]), num_classes=3, pretrained=False)
    assert bare.head == head, "a worker builds it without weights"


def test_a_pooler_that_the_weights_lack_is_trained_too(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["bert"], tmp_path)
    changed_weights(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if "pooler" in key] and None)
    assert load_backbone(str(folder), num_classes=3).head == ("bert.pooler", "classifier")


def test_a_classifier_of_as_many_classes_is_kept_another_is_left_out_with_a_note(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    first = load_backbone(str(folders["distilbert"]), num_classes=3, seed=1)
    folder = copied(folders["distilbert"], tmp_path)
    first.model.save_pretrained(folder)
    kept = load_backbone(str(folder), num_classes=3)
    assert kept.notes == () and kept.head == first.head
    assert all(torch.equal(value, kept.model.state_dict()[key]) for key, value in first.model.state_dict().items())
    other = load_backbone(str(folder), num_classes=4)
    assert "left out" in other.notes[0] and "(3, 16) where (4, 16)" in other.notes[0]
    assert torch.equal(other.model.pre_classifier.weight, first.model.pre_classifier.weight)


def test_the_seed_decides_and_global_randomness_is_left_alone(folders: dict[str, Path]) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        load_backbone(str(folders["bert"]), num_classes=3, seed=seed).model.classifier.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    bare = [load_backbone(str(folders["llama"]), num_classes=None, pretrained=False, seed=s).model for s in (1, 1, 2)]
    assert torch.equal(bare[0].lm_head.weight, bare[1].lm_head.weight)
    assert not torch.equal(bare[0].lm_head.weight, bare[2].lm_head.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_transformers_logs_is_as_it_was(folders: dict[str, Path]) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_backbone(str(folders["bert"]), num_classes=3)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_spec_is_plain_json_and_rebuilds(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders["llama"].parent)
    backbone = load_backbone(f"./{folders['llama'].name}", num_classes=3, seed=1, dtype="bfloat16")
    spec = json.loads(json.dumps(backbone.spec))
    assert spec["name"] == str(folders["llama"]) and spec["dtype"] == "bfloat16"
    monkeypatch.chdir("/")
    rebuilt = load_backbone(**spec, num_classes=3)
    theirs = rebuilt.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in backbone.model.state_dict().items())
    assert (rebuilt.head, rebuilt.notes) == (backbone.head, backbone.notes)


def test_weights_of_a_file_take_the_place_of_the_pretrained(folders: dict[str, Path], tmp_path: Path) -> None:
    other = load_backbone(str(folders["gpt2"]), num_classes=None, pretrained=False, seed=5).model
    transformers.PreTrainedModel.save_pretrained(other, tmp_path)
    backbone = load_backbone(str(folders["gpt2"]), num_classes=None, checkpoint=tmp_path / "model.safetensors")
    assert torch.equal(logits(backbone.model, "gpt2"), logits(other.eval(), "gpt2"))
    with pytest.raises(BackboneError, match=r"checkpoint.*do not fit: missing"):
        load_backbone(str(folders["llama"]), num_classes=None, checkpoint=tmp_path / "model.safetensors")


def test_a_model_for_images_says_how_it_reads_them(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["vit"]), num_classes=2)
    assert backbone.preprocess == Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3, "bilinear")
    assert load_backbone(str(folders["vit"]), num_classes=2, normalise="none").preprocess.std == (1.0,) * 3
    assert load_backbone(str(folders["vit"]), num_classes=2, image_size=16).preprocess.size == (16, 16)
    with pytest.raises(BackboneError, match=r"24 pixels.*image_size"):
        load_backbone(str(folders["vit"]), num_classes=2, image_size=24)
    with pytest.raises(BackboneError, match="drop_path"):
        load_backbone(str(folders["vit"]), num_classes=2, drop_path=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", ", quantize='int8'"])
def test_loading_says_nothing_of_what_libraries_think_of_each_other(folders: dict[str, Path], more: str) -> None:
    pytest.importorskip("torchao")
    load = (
        f"from glora.backbones import load_backbone; load_backbone({str(folders['llama'])!r}, num_classes=None{more})"
    )
    ended = subprocess.run([sys.executable, "-c", load], check=True, capture_output=True, text=True, timeout=300)
    assert not ended.stderr and not ended.stdout


# Padding


def test_a_tokenizer_without_padding_gets_some_and_it_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["gpt2"], tmp_path)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))
    backbone = load_backbone(str(folder), num_classes=3)
    assert backbone.preprocess.tokenizer.pad_token == "<|im_end|>"
    assert any("no padding token" in note for note in backbone.notes)
    assert backbone.model.config.pad_token_id == backbone.preprocess.tokenizer.pad_token_id
    assert "pad_token" not in json.loads(file.read_text()), "the base's own files are as they were"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_changes_no_class(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]), num_classes=3)
    assert any("pad_token_id" in note for note in backbone.notes)
    tokenizer = backbone.preprocess.tokenizer
    short, long = "What is the capital?", "What is the capital of France? The capital of France is Paris."
    with torch.no_grad():
        alone = backbone.model(**tokenizer(short, return_tensors="pt")).logits
        both = backbone.model(**tokenizer([short, long], padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(both[:1], alone)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["llama"], tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match=r"321 tokens.*embeddings for 320.*resize_token_embeddings"):
        load_backbone(str(folder), num_classes=None)


def test_positions_that_are_counted_from_the_padding_token_leave_fewer_for_tokens(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path, "roberta")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "model_max_length"}))
    backbone = load_backbone(str(folder), num_classes=2)
    tokenizer, most = backbone.preprocess.tokenizer, backbone.preprocess.max_length
    assert most == backbone.model.config.max_position_embeddings - tokenizer.pad_token_id - 1
    with torch.no_grad():
        backbone.model(**tokenizer("red " * 500, truncation=True, max_length=most, return_tensors="pt"))
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            backbone.model(**tokenizer("red " * 500, truncation=True, max_length=most + 1, return_tensors="pt"))


# Options


def test_a_base_of_two_bytes_trains_support_tensors_of_four(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["llama"]), num_classes=None, dtype="bfloat16")
    assert {value.dtype for value in backbone.model.parameters()} == {torch.bfloat16}
    adapted = glora.inject(backbone.model, SPACE, head=None)
    assert {value.dtype for value in adapted.parameters()} == {torch.float32}
    x = inputs("llama")["input_ids"]
    backbone.model(x, labels=x).loss.backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in adapted.parameters())


def test_activation_checkpointing_gives_the_same_gradients_with_a_genotype_a_sample(folders: dict[str, Path]) -> None:
    x, found = inputs("llama")["input_ids"], []
    for checkpointing in (False, True):
        settings = {"num_classes": None, "activation_checkpointing": checkpointing}
        model: Any = load_backbone(str(folders["llama"]), **settings).model.train()
        adapted = glora.inject(model, SPACE, head=None)
        for support in adapted.supports.values():
            randomize(support)
        rng = random.Random(0)
        adapted.activate([adapted.sample(rng) for _ in x])
        loss = model(x, labels=x, use_cache=False).loss
        again: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, again=again: again.append(1))
        loss.backward()
        gradients = [value.grad for value in adapted.parameters()]
        assert len(again) == checkpointing, "the block is run again in the backward pass"
        found.append((loss, gradients))
    (plain, first), (repeated, second) = found
    torch.testing.assert_close(repeated, plain)
    assert [g is None for g in first] == [g is None for g in second]
    for a, b in zip(first, second, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_a_quantised_base_keeps_its_output_layer_and_trains(folders: dict[str, Path], how: str) -> None:
    pytest.importorskip("torchao")
    backbone = load_backbone(str(folders["llama"]), num_classes=None, quantize=how)
    model: Any = backbone.model
    assert f"14 Linear layers are quantised to {how}" in backbone.notes[0]
    assert type(model.lm_head.weight) is nn.Parameter
    exact = load_backbone(str(folders["llama"]), num_classes=None).model
    fine = model.model.layers[0].mlp.up_proj.weight.dequantize() - exact.model.layers[0].mlp.up_proj.weight
    assert 0 < fine.abs().max() < (0.02 if how == "int8" else 0.2)
    plain = logits(model, "llama")
    adapted = glora.inject(model, SPACE, head=None)
    assert len(adapted.sites) == 14 and torch.equal(logits(model, "llama"), plain)
    x = inputs("llama")["input_ids"]
    model(x, labels=x).loss.backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in adapted.parameters())


def test_bitsandbytes_rounds_and_says_so_once(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = load_backbone(str(folders["llama"]), num_classes=None, quantize="bnb_int8")
    assert any("to float16" in note for note in backbone.notes)
    backbone.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes.autograd")]


def test_quantising_leaves_a_classifiers_head_alone(folders: dict[str, Path]) -> None:
    pytest.importorskip("torchao")
    backbone = load_backbone(str(folders["distilbert"]), num_classes=3, quantize="int8")
    assert type(backbone.model.pre_classifier.weight) is nn.Parameter
    assert type(backbone.model.distilbert.transformer.layer[0].ffn.lin1.weight) is not nn.Parameter


def test_bitsandbytes_where_it_is_not_installed_has_the_install_line(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'glora\[bitsandbytes\]'"):
        load_backbone(str(folders["llama"]), num_classes=None, quantize="bnb_nf4")


@pytest.mark.parametrize(
    ("given", "words"),
    [({"dtype": "float64"}, "float32, bfloat16, float16"), ({"quantize": "int2"}, "int8, int4, bnb_int8, bnb_nf4")],
)
def test_an_unknown_option_names_the_known(given: dict[str, str], words: str) -> None:
    with pytest.raises(BackboneError, match=words):
        Loading(**given)


@pytest.fixture
def with_code(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder of a model that comes with code, which leaves a file when it is run."""
    folder = copied(folders["llama"], tmp_path)
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    changed_config(folder, model_type="own_llama", architectures=["OwnModel"], auto_map=auto_map)
    return folder


def test_a_models_own_code_is_run_only_where_that_is_said(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"Python code of its own.*model\.trust_remote_code=true"):
        load_backbone(str(with_code), num_classes=None)
    assert not (tmp_path / "ran").exists()
    backbone = load_backbone(str(with_code), num_classes=None, trust_remote_code=True)
    assert (tmp_path / "ran").exists() and type(backbone.model).__name__ == "OwnModel"
    assert any("trust_remote_code" in note for note in backbone.notes)
    assert backbone.spec["trust_remote_code"] is True


# What is refused


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit"])
def test_a_model_that_generates_no_text_is_no_language_model(folders: dict[str, Path], name: str) -> None:
    with pytest.raises(BackboneError, match=r"generates no text.*smollm2_135m"):
        load_backbone(str(folders[name]), num_classes=None)


def test_a_name_that_no_model_has_is_told_where_texts_are_read() -> None:
    with pytest.raises(BackboneError, match=r"There is no 'smollm2'.*smollm2_135m"):
        text_preprocess("smollm2", num_classes=None)
    with pytest.raises(BackboneError, match="'test_vit' reads images, not texts"):
        text_preprocess("test_vit", num_classes=None)


def test_timms_models_are_no_language_models_and_have_no_options_of_transformers() -> None:
    with pytest.raises(BackboneError, match="reads images"):
        load_backbone("test_vit", num_classes=None, pretrained=False)
    for load in (load_backbone, text_preprocess):
        with pytest.raises(BackboneError, match=r"There is no 'nowhere'.*or name a folder of transformers"):
            load("nowhere", num_classes=None)
    with pytest.raises(BackboneError, match=r"dtype=bfloat16, quantize=int8 is about models of transformers"):
        load_backbone("test_vit", num_classes=2, pretrained=False, dtype="bfloat16", quantize="int8")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_size": 32}, "image_size=32"),
        ({"drop_path": 0.1}, "drop_path=0.1"),
        ({"normalise": "half"}, "normalise"),
    ],
)
def test_what_is_about_images_is_refused_for_texts(folders: dict[str, Path], given: dict[str, Any], words: str) -> None:
    with pytest.raises(BackboneError, match=rf"{words}.*texts"):
        load_backbone(str(folders["llama"]), num_classes=None, **given)


def test_weights_that_do_not_fit_are_refused_with_their_names(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["llama"], tmp_path)

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"], tensors["lm_head.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)

    changed_weights(folder, change)
    with pytest.raises(BackboneError) as caught:
        load_backbone(str(folder), num_classes=None)
    message = str(caught.value)
    assert "missing: lm_head.weight, model.norm.weight" in message
    assert "up_proj.weight (3, 3) where (32, 16) is needed" in message
    assert "without a place in the model: model.layers.0.self_attn.q_proj.bias" in message and "\n" not in message


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (shutil.rmtree, "no folder"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json.*save_pretrained"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "resnet18"}'), "model of timm"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: changed_config(folder, model_type="no_such"), "no_such"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), "weights of .* could not be loaded"),
    ],
)
def test_a_folder_with_a_fault_is_told(
    folders: dict[str, Path], tmp_path: Path, write: Callable[[Path], Any], words: str
) -> None:
    folder = copied(folders["llama"], tmp_path)
    write(folder)
    with pytest.raises(BackboneError, match=words):
        load_backbone(str(folder), num_classes=None)


def test_pickled_weights_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["llama"], tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="safetensors"):
        load_backbone(str(folder), num_classes=None)


def test_a_folder_without_a_tokenizer_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["llama"], tmp_path)
    for file in (*folder.glob("tokenizer*"), folder / "chat_template.jinja"):
        file.unlink()
    with pytest.raises(BackboneError, match="tokenizer"):
        load_backbone(str(folder), num_classes=None)


def test_an_unreachable_hub_is_told_at_once_with_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    before, start = constants.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(BackboneError, match=r"'no-owner/no-model'.*network.*smollm2_135m"):
        load_backbone("no-owner/no-model", num_classes=None)
    assert before == constants.HF_HUB_OFFLINE and time.monotonic() - start < 20


def test_names_that_might_be_a_hubs_are_not_called_unknown(folders: dict[str, Path], tmp_path: Path) -> None:
    assert not unknown_name("owner/name") and not unknown_name("smollm2_135m") and not unknown_name(str(folders["t5"]))
    assert "no folder" in unknown_name(str(tmp_path / "none"))
    assert "config.json" in unknown_name(str(tmp_path))
    assert "smollm2_135m" in unknown_name("smollm2_135")


# Adapted


@pytest.mark.parametrize("name", [*GENERATING, "tied"])
def test_the_output_layer_is_neither_head_nor_target_unless_it_is_named(folders: dict[str, Path], name: str) -> None:
    def model() -> nn.Module:
        return load_backbone(str(folders[name]), num_classes=None).model

    adapted = glora.inject(model(), SPACE)
    assert adapted.head == () and not [site for site in adapted.sites if "lm_head" in site or "embed" in site]
    assert any("output layer" in note and "lm_head" in note for note in adapted.notes)
    assert not any(value.requires_grad for key, value in adapted.model.named_parameters() if "original" in key)
    assert len(glora.inject(model(), SPACE, targets=["linear", "lm_head"]).sites) == len(adapted.sites) + 1
    if name in ("llama", "qwen2"):  # it shares its weight with nothing
        assert "lm_head" not in glora.inject(model(), SPACE, targets="all").sites
        named = glora.inject(model(), SPACE, head="lm_head")
        assert named.head == ("lm_head",) and named.model.lm_head.weight.requires_grad


@pytest.mark.parametrize("name", READING)
def test_inject_finds_the_head_that_loading_found(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]), num_classes=3)
    assert glora.inject(backbone.model, SPACE).head == backbone.head


@pytest.mark.parametrize("product", ["matrix", "elementwise"])
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_every_model_starts_exactly_merges_and_is_given_back(
    folders: dict[str, Path], name: str, classes: int | None, product: Any
) -> None:
    if classes is None and name in ("bert", "distilbert", "vit"):
        return
    backbone = load_backbone(str(folders[name]), num_classes=classes)
    model, of = backbone.model, {"classes": classes is not None}
    bits = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        plain = logits(model, name, **of)
    space = glora.SearchSpace(ranks=(4,), product=product, variant="paper")
    adapted = glora.inject(model, space, targets="linear", head=backbone.head)
    with torch.no_grad():
        assert adapted.sites and torch.equal(logits(model, name, **of), plain)
    for support in adapted.supports.values():
        randomize(support)
    adapted.activate(adapted.space.largest)
    with torch.no_grad():
        played = logits(model, name, **of)
    assert not torch.allclose(played, plain, atol=1e-2 * float(plain.abs().max()))
    merged = adapted.merge()
    assert list(merged.state_dict()) == list(bits)
    with torch.no_grad():
        torch.testing.assert_close(logits(merged, name, **of), played, rtol=1e-4, atol=1e-4 * float(played.abs().max()))
    adapted.detach()
    assert all(torch.equal(value, bits[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(logits(model, name, **of), plain)


def test_a_copy_of_a_checkpointed_model_can_be_adapted(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["gpt2"]), num_classes=None, activation_checkpointing=True)
    model = copy.deepcopy(backbone.model).train()
    adapted = glora.inject(model, SPACE)
    x = inputs("gpt2")["input_ids"]
    model(x, labels=x, use_cache=False).loss.backward()
    assert any(value.grad is not None for value in adapted.parameters())
    assert not re.search("cache", " ".join(backbone.notes))


# Whole runs


def finished(folders: dict[str, Path], out: Path, photos: Path, **changes: Any) -> Run:
    """A run on images with the tiny ViT, trained, searched and tested."""
    model = {"name": str(folders["vit"]), "pretrained": True, "image_size": None, **changes.pop("model", {})}
    given = {"method": {"name": "glora", "targets": "linear"}, "model": model, "train": {"epochs": 1}}
    run = Run(tiny(photos, **{**given, **changes}), out, Recorder())
    run.fit()
    return run


@pytest.mark.slow
def test_a_run_with_workers_searches_alike(folders: dict[str, Path], tmp_path: Path, photos: Path) -> None:
    results = []
    for workers in (0, 2):
        run = finished(folders, tmp_path / str(workers), photos, search={"workers": workers})
        result = run.folder.current_result()
        assert result is not None
        results.append((result.winner, result.metrics))
    assert results[0] == results[1]
    again = glora.load(tmp_path / "0")
    assert (
        again.model.state_dict().keys() == load_backbone(str(folders["vit"]), num_classes=2).model.state_dict().keys()
    )


@pytest.mark.slow
def test_a_run_on_a_quantised_base_is_played_unmerged(folders: dict[str, Path], tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("torchao")
    finished(folders, tmp_path / "run", photos, model={"quantize": "int8"})
    run = glora.load(tmp_path / "run")
    assert "quantised" in run.no_merge
    with pytest.raises(StateError, match=r"cannot be merged.*check_base=False"):
        run.merge()
    assert run.predict([photos / "dark" / "0.png"])
    base = load_backbone(str(folders["vit"]), num_classes=2).model
    glora.load_adapter(base, tmp_path / "run" / "adapter.safetensors", check_base=False).merge()


def test_a_quantised_base_is_not_shared_with_workers(folders: dict[str, Path], photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.workers=2.*model\.quantize=int8"):
        tiny(photos, model={"name": str(folders["vit"]), "quantize": "int8"}, search={"workers": 2})


def test_a_folder_is_kept_by_its_absolute_path(
    folders: dict[str, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["vit"].parent)
    experiment = tiny(photos, model={"name": f"./{folders['vit'].name}"})
    assert resolve(experiment).model.name == str(folders["vit"])
