"""A merged model of transformers as a folder: what plain transformers reads is the model, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import glora
from glora.backbones.transformers_folder import CARD, Extras, save_folder
from glora.errors import BackboneError, RunError
from glora.tasks.images import Preprocess
from language import tiny_causal, tiny_encoder, tiny_t5, tiny_vision
from suites.layer_suite import randomize

transformers = pytest.importorskip("transformers")


def loaded(folder: Path, kind: str = "AutoModelForCausalLM", **how: Any) -> Any:
    return getattr(transformers, kind).from_pretrained(folder, **how).eval()


def merged(
    model: nn.Module, seed: int = 0, targets: Any = "linear", new_bias: bool = False, **space: Any
) -> tuple[Any, tuple[str, ...]]:
    """The model with random numbers in every support tensor merged into it, and the keys that are new."""
    space = {"variant": "paper" if new_bias else "lean", **space}
    found = glora.SearchSpace(ranks=(2,), new_bias=new_bias, **space)
    how = {"skip": "lm_head" if targets == "linear" else (), "example": tokens(model) if new_bias else None}
    adapted = glora.inject(model, found, targets=targets, head=None, **how)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for support in adapted.supports.values():
            randomize(support)
    return adapted.merge(), adapted.new_keys


def tokens(model: Any) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))


def test_a_reload_gives_every_bit(tmp_path: Path, kind: str = "llama") -> None:
    base = tiny_causal(tmp_path / "base", kind)
    model, _ = merged(loaded(base))
    before = dict(vars(model.config))
    notes = save_folder(model, tmp_path / "out", Extras(source=base, card={"from": "here"}))
    assert notes == ()
    assert vars(model.config) == before
    again = loaded(tmp_path / "out")
    assert type(again) is type(model)
    state = model.state_dict()
    assert list(again.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert torch.equal(again(tokens(model)).logits, model(tokens(model)).logits)
    assert not torch.equal(again(tokens(model)).logits, loaded(base)(tokens(model)).logits)
    assert json.loads((tmp_path / "out" / CARD).read_text()) == {"from": "here"}


@pytest.mark.parametrize("kind", ["qwen2", "gemma", "gpt2"])
def test_other_causal_models_too(tmp_path: Path, kind: str) -> None:
    test_a_reload_gives_every_bit(tmp_path, kind)


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", tie_word_embeddings=True)
    model, _ = merged(loaded(base), targets="embedding")
    save_folder(model, tmp_path / "out", Extras(source=base))
    again = loaded(tmp_path / "out")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, loaded(base).lm_head.weight)


def test_the_files_of_the_tokenizer_are_the_bases_own(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base")
    (base / "LICENSE.txt").write_text("free")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (base / "optimizer.pt").write_text("not this")
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6,  "do_sample": false}')
    save_folder(loaded(base), tmp_path / "out", Extras(source=base))
    files = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE.txt"]
    for name in (*files, "additional_chat_templates/tool.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes(), name
    assert not (tmp_path / "out" / "optimizer.pt").exists()


def test_a_tokenizer_from_python_writes_its_own_files(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ messages[0].content }}"
    save_folder(loaded(base), tmp_path / "out", Extras(tokenizer=tokenizer))
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == tokenizer.chat_template
    assert again("What is red?").input_ids == tokenizer("What is red?").input_ids


def test_large_weights_are_cut_into_files(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base")
    model = loaded(base)
    save_folder(model, tmp_path / "out", Extras(source=base), shard="20KB")
    files = sorted(tmp_path.glob("out/*.safetensors"))
    assert len(files) > 2
    assert set(json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"].values()) == {
        file.name for file in files
    }
    assert torch.equal(loaded(tmp_path / "out")(tokens(model)).logits, model(tokens(model)).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_type_of_the_weights_is_kept(tmp_path: Path, dtype: str) -> None:
    base = tiny_causal(tmp_path / "base")
    model, _ = merged(loaded(base, dtype=getattr(torch, dtype)))
    assert save_folder(model, tmp_path / "out", Extras(source=base)) == ()
    again = loaded(tmp_path / "out", dtype="auto")
    assert {value.dtype for value in again.state_dict().values()} == {getattr(torch, dtype)}
    assert torch.equal(again(tokens(model)).logits, model(tokens(model)).logits)


def test_weights_that_a_reload_rounds_are_told(tmp_path: Path) -> None:
    base = tiny_encoder(tmp_path / "base")
    model = loaded(base, "AutoModelForSequenceClassification", num_labels=2, dtype=torch.bfloat16)
    model.classifier.float()
    (note,) = save_folder(model, tmp_path / "out", Extras(source=base))
    assert "2 of float32 as bfloat16" in note


def new_biases(tmp_path: Path, **changes: Any) -> tuple[Path, Any, tuple[str, ...]]:
    base = tiny_causal(tmp_path / "base", **changes)
    return base, *merged(loaded(base), new_bias=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_new_biases_are_in_the_configuration(tmp_path: Path) -> None:
    base, model, new = new_biases(tmp_path)
    assert len(new) == 14
    notes = save_folder(model, tmp_path / "out", Extras(source=base), new_keys=new)
    assert notes == ("The configuration has attention_bias=true and mlp_bias=true for the new biases.",)
    again = loaded(tmp_path / "out")
    assert again.config.attention_bias and again.config.mlp_bias and not model.config.mlp_bias
    torch.testing.assert_close(again(tokens(model)).logits, model(tokens(model)).logits)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_biases_that_come_with_the_new_ones_are_zero(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base")
    model, new = merged(loaded(base), targets=["q_proj"], new_bias=True)
    notes = save_folder(model, tmp_path / "out", Extras(source=base), new_keys=new)
    assert notes[0].startswith("The configuration has attention_bias=true for")
    assert notes[1].startswith("6 biases")
    again = loaded(tmp_path / "out")
    assert not again.config.mlp_bias
    assert not again.model.layers[0].self_attn.k_proj.bias.any()
    torch.testing.assert_close(again(tokens(model)).logits, model(tokens(model)).logits)


@pytest.mark.parametrize(("kind", "key"), [("qwen2", "mlp.down_proj.bias"), ("gemma", "mlp.down_proj.bias")])
def test_new_biases_without_a_place_are_refused_before_anything_is_written(tmp_path: Path, kind: str, key: str) -> None:
    base, model, new = new_biases(tmp_path, kind=kind)
    with pytest.raises(BackboneError, match=rf"no place for \d+ of the .*{key}.*new_bias=false") as caught:
        save_folder(model, tmp_path / "out", Extras(source=base), new_keys=new)
    assert ("attention_bias covers the others" in str(caught.value)) == (kind == "gemma")
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


def test_an_encoder_knows_its_labels(tmp_path: Path) -> None:
    base = tiny_encoder(tmp_path / "base")
    model = loaded(base, "AutoModelForSequenceClassification", num_labels=3)
    extras = Extras(source=base, labels=("bad", "good", "ugly"), problem="single_label_classification")
    save_folder(model, tmp_path / "out", extras)
    again = loaded(tmp_path / "out", "AutoModelForSequenceClassification")
    assert again.config.id2label == {0: "bad", 1: "good", 2: "ugly"}
    assert again.config.label2id["good"] == 1
    assert again.config.problem_type == "single_label_classification"
    assert torch.equal(again(tokens(model)).logits, model(tokens(model)).logits)
    pipe = transformers.pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    assert pipe("What is red?")[0]["label"] in extras.labels
    with pytest.raises(BackboneError, match="has other weights: classifier"):
        save_folder(model, tmp_path / "two", Extras(source=base, labels=("bad", "good")))


def test_an_encoder_decoder_is_written_too(tmp_path: Path) -> None:
    base = tiny_t5(tmp_path / "base")
    model, _ = merged(loaded(base, "AutoModelForSeq2SeqLM"))
    save_folder(model, tmp_path / "out", Extras(source=base))
    again, ids = loaded(tmp_path / "out", "AutoModelForSeq2SeqLM"), tokens(model)
    assert torch.equal(again(ids, decoder_input_ids=ids).logits, model(ids, decoder_input_ids=ids).logits)


@pytest.mark.parametrize("resize", ["straight", "crop"])
def test_an_image_classifier_says_how_it_reads(tmp_path: Path, resize: Any) -> None:
    base = tiny_vision(tmp_path / "base")
    model = loaded(base, "AutoModelForImageClassification", num_labels=2)
    preprocess = Preprocess((16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bilinear", resize)
    save_folder(model, tmp_path / "out", Extras(source=base, preprocess=preprocess, labels=("a", "b")))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    image = torch.randint(256, (3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    from PIL import Image

    from glora.tasks.images import read_image

    ours = read_image(Image.fromarray(image.permute(1, 2, 0).numpy()), preprocess)
    assert theirs.shape == (1, 3, 16, 16)
    assert (theirs[0] - ours).abs().mean() < 0.1
    again = loaded(tmp_path / "out", "AutoModelForImageClassification")
    assert torch.equal(again(theirs).logits, model(theirs).logits)


def test_a_folder_of_ours_is_replaced_and_others_are_left(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base")
    model, out = loaded(base), tmp_path / "out"
    out.mkdir()
    save_folder(model, out, Extras(source=base, card={"run": 1}))
    (out / "more.txt").write_text("old")
    save_folder(model, out, Extras(source=base, card={"run": 2}))
    assert json.loads((out / CARD).read_text()) == {"run": 2}
    assert not (out / "more.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    for place in (other, other / "precious.txt", base):
        with pytest.raises(RunError, match="new or empty"):
            save_folder(model, place, Extras(source=base))
    assert (other / "precious.txt").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "other", "out"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base")
    model, out = loaded(base), tmp_path / "out"
    save_folder(model, out, Extras(source=base, card={"run": 1}))
    model.generation_config.temperature = -1.0
    with pytest.raises(BackboneError, match=r"cannot write the LlamaForCausalLM.*temperature"):
        save_folder(model, out, Extras(card={"run": 2}))
    assert json.loads((out / CARD).read_text()) == {"run": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "out"]
    model.lm_head = nn.Linear(16, 7)
    with pytest.raises(BackboneError, match=r"has other weights: lm_head\.bias, lm_head\.weight"):
        save_folder(model, out, Extras(source=base))
