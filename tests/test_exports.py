"""Exports: each is loaded with the other library and gives the same outputs; what a format cannot hold is refused."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import glora
from glora import exports
from glora.backbones import load_backbone
from glora.cli import app as cli
from glora.cli.listing import listing
from glora.config import build_experiment
from glora.errors import GloraError, RunError, StateError
from glora.exports import EXPORTS
from glora.exports.changes import changes_of, cut
from glora.genotype import Genotype, LayerConfig
from glora.runs.run import Run
from language import tiny_causal
from suites.export_suite import ExportSuite, card_of, code_of, played, prepared
from suites.tiny_vit import tiny_vit
from suites.toy import Recorder, tiny

peft = pytest.importorskip("peft", reason="needs the extra bench")
transformers = pytest.importorskip("transformers", reason="needs the extra text")

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]  # PEFT's
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(0))
LOW = glora.SearchSpace(ranks=(4, 2), only=LayerConfig(A="lora:2", B="lora:4", C="vector", D="vector", E="vector"))


def seeded(build: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def llama(**changes: Any) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, initializer_range=0.3, **sizes, **changes)
    found: nn.Module = seeded(lambda: transformers.LlamaForCausalLM(config))
    return found


def vit_of_transformers() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=4, initializer_range=0.3, **sizes)
    found: nn.Module = seeded(lambda: transformers.ViTForImageClassification(config))
    return found


def vit_of_timm() -> nn.Module:
    found: nn.Module = seeded(lambda: timm.create_model("test_vit", img_size=32, num_classes=5))
    return found


class OfVit(ExportSuite):
    """A ViT of timm's classes, which a program built."""

    space = LOW

    def build(self) -> nn.Module:
        return tiny_vit()

    def adapted(self) -> glora.Adapted:
        return prepared(self.build(), self.space)

    def inputs(self) -> Any:
        return IMAGES


class TestPeft(OfVit):
    export = "peft"


class TestPeftGlora(OfVit):
    export = "peft-glora"
    space = glora.SearchSpace(ranks=(4, 2))


class TestPeftOfLlama(ExportSuite):
    export = "peft"

    def build(self) -> nn.Module:
        return llama()

    def adapted(self) -> glora.Adapted:
        return prepared(self.build(), glora.SearchSpace(ranks=(4,), only=LayerConfig(A="lora:4", B="vector")))

    def inputs(self) -> Any:
        return {"input_ids": TOKENS}


class TestPeftOfTransformersVit(ExportSuite):
    export = "peft"

    def build(self) -> nn.Module:
        return vit_of_transformers()

    def adapted(self) -> glora.Adapted:
        return prepared(self.build(), LOW)

    def inputs(self) -> Any:
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


class TestVllm(TestPeftOfLlama):
    export = "vllm"
    runs = False

    def adapted(self) -> glora.Adapted:
        return prepared(self.build(), glora.SearchSpace(ranks=(4,), only=LayerConfig(B="lora:4")), head=None)


class TestOnnx(OfVit):
    export = "onnx"
    near = 1e-4

    def given(self) -> dict[str, Any]:
        return {"inputs": IMAGES.numpy()}

    def outputs(self, names: dict[str, Any]) -> Tensor:
        return torch.from_numpy(names["outputs"])


class TestTorch(OfVit):
    export = "torch"

    def given(self) -> dict[str, Any]:
        return {"inputs": IMAGES}

    def outputs(self, names: dict[str, Any]) -> Tensor:
        found: Tensor = names["outputs"].detach()
        return found


class TestHuggingFaceOfTimm(ExportSuite):
    export = "huggingface"

    def build(self) -> nn.Module:
        return vit_of_timm()

    def adapted(self) -> glora.Adapted:
        return prepared(self.build(), glora.SearchSpace())

    def inputs(self) -> Any:
        return LARGER


def test_every_export_has_a_suite() -> None:
    suites = [each for each in globals().values() if isinstance(each, type) and issubclass(each, ExportSuite)]
    assert {suite.export for suite in suites if hasattr(suite, "export")} == set(EXPORTS)


# PEFT's LoRA: what is exact, what is cut, what is refused.


def loaded(build: Any, folder: Path) -> nn.Module:
    found: nn.Module = peft.PeftModel.from_pretrained(build(), folder).eval()
    return found


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("targets", ["linear", "all"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("space", [glora.SearchSpace(ranks=(4, 2)), glora.SearchSpace.paper(ranks=(4,))], ids=str)
def test_peft_plays_any_genotype_at_full_rank(tmp_path, space, seed, targets):
    for build, x in ((tiny_vit, IMAGES), (llama, TOKENS)):
        adapted = prepared(build(), space, seed=seed, targets=targets)
        wanted = played(adapted.model, x)
        try:
            glora.export(adapted, "peft", tmp_path / "out", rank=64, example=x)
        except GloraError as error:
            assert "lora_bias" in str(error)  # an embedding beside new biases
            assert targets == "all" and space.new_bias and build is llama
            continue
        assert off(played(loaded(build, tmp_path / "out"), x), wanted) < 1e-5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("product", ["elementwise", "matrix"])
def test_pefts_glora_plays_any_genotype(tmp_path, product, seed):
    space = glora.SearchSpace(ranks=(4, 2), variant="paper", product=product)
    adapted = prepared(tiny_vit(), space, seed=seed)
    wanted = played(adapted.model, IMAGES)
    glora.export(adapted, "peft-glora", tmp_path / "out", example=IMAGES)
    assert off(played(loaded(tiny_vit, tmp_path / "out"), IMAGES), wanted) < 1e-5
    again = glora.load_adapter(tiny_vit(), tmp_path / "out")
    assert isinstance(again, glora.Adapted)
    assert off(played(again.model, IMAGES), wanted) < 1e-5


def test_what_is_written_is_read_back(tmp_path):
    adapted = prepared(tiny_vit(), LOW)
    wanted = played(adapted.model, IMAGES)
    glora.export(adapted, "peft", tmp_path / "out", example=IMAGES)
    again = glora.load_adapter(tiny_vit(), tmp_path / "out")
    assert isinstance(again, glora.Adapted)
    assert off(played(again.model, IMAGES), wanted) < 1e-5


def test_the_configuration_is_the_smallest_that_peft_reads_rightly(tmp_path):
    adapted = glora.inject(llama(), glora.SearchSpace(ranks=(4, 2), product="matrix"), head=None)
    names = list(adapted.sites)
    configs = [LayerConfig(B="lora:4") if place % 2 else LayerConfig(B="lora:2") for place in range(len(names))]
    adapted.activate(Genotype(dict(zip(names, configs, strict=True))))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    glora.export(adapted, "peft", tmp_path / "out", example={"input_ids": TOKENS})
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) == {2}
    assert config["use_rslora"] is False
    assert sorted(config["target_modules"]) == sorted(names)
    assert config["task_type"] == "CAUSAL_LM"
    assert all(name.startswith("base_model.model.") for name in load_file(tmp_path / "out/adapter_model.safetensors"))


def full(seed: int = 0) -> glora.Adapted:
    """A vector A everywhere, which no LoRA of low rank holds."""
    space = glora.SearchSpace(ranks=(2,), product="elementwise", variant="paper", only=LayerConfig(A="vector"))
    return prepared(tiny_vit(), space, seed=seed, head=None)


def test_a_change_of_full_rank_is_cut_only_where_that_is_allowed(tmp_path):
    with pytest.raises(GloraError, match=r"(?s)Rank 4 cannot hold .* at 8 layers.*attn\.qkv: rank 4, error \d") as told:
        glora.export(full(), "peft", tmp_path / "out", rank=4, example=IMAGES)
    assert "peft-glora" in told.value.remedy
    assert re.search(r"In total [\d.]+% of the change is lost", str(told.value))
    assert list(tmp_path.iterdir()) == []
    notes = glora.export(full(), "peft", tmp_path / "out", rank=4, max_error=1.0, example=IMAGES)
    assert len(notes) == 8 + 1
    exact = glora.export(full(), "peft", tmp_path / "exact", rank=64, example=IMAGES)
    assert exact == ()


def test_the_error_that_is_told_is_that_of_the_change():
    change = changes_of(full())[0]
    made = cut(change, 3)
    assert made.pair is not None and change.dense is not None
    lost = (change.dense - made.pair[0] @ made.pair[1]).norm() / change.dense.norm()
    assert made.error == pytest.approx(float(lost), rel=1e-4)
    worse = change.dense.clone()
    worse[:, 3:] = 0  # any other matrix of rank 3 is further off
    assert made.error < float((change.dense - worse).norm() / change.dense.norm())


def test_the_biases_of_layers_beside_an_embedding_are_written_whole(tmp_path):
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(10, 6, padding_idx=0), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.words(x))

    def build() -> nn.Module:
        return seeded(Words)  # type: ignore[no-any-return]

    x = torch.randint(0, 10, (3, 5), generator=torch.Generator().manual_seed(0))
    space = glora.SearchSpace(ranks=(2,), only=LayerConfig(B="lora:2", E="vector"))
    adapted = prepared(build(), space, targets="all", head=None)
    wanted = played(adapted.model, x)
    glora.export(adapted, "peft", tmp_path / "out", example=x)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["bias"] == "lora_only"
    assert off(played(loaded(build, tmp_path / "out"), x), wanted) < 1e-5


def test_names_that_end_alike_are_told_apart(tmp_path):
    def build() -> nn.Module:
        return seeded(  # type: ignore[no-any-return]
            lambda: nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), nn.Linear(6, 3))
        )

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    space = glora.SearchSpace(ranks=(3, 1), product="matrix")
    adapted = glora.inject(build(), space, targets=["0", "2"], head=None)
    adapted.activate(Genotype({"0": LayerConfig(B="lora:3"), "1.0": LayerConfig(), "2": LayerConfig(B="lora:1")}))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    wanted = played(adapted.model, x)
    glora.export(adapted, "peft", tmp_path / "out", example=x)
    assert off(played(loaded(build, tmp_path / "out"), x), wanted) < 1e-5


def test_a_tied_weight_is_adapted_in_all_its_layers(tmp_path):
    def build() -> nn.Module:
        return llama(tie_word_embeddings=True)

    adapted = prepared(build(), glora.SearchSpace(ranks=(4,), only=LayerConfig(B="lora:4")), targets="all", head=None)
    assert "lm_head" in adapted.notes[0]
    wanted = played(adapted.model, TOKENS)
    glora.export(adapted, "peft", tmp_path / "out")
    assert off(played(loaded(build, tmp_path / "out"), TOKENS), wanted) < 1e-5
    again = glora.load_adapter(build(), tmp_path / "out")
    assert isinstance(again, glora.Adapted)
    assert off(played(again.model, TOKENS), wanted) < 1e-5
    with pytest.raises(GloraError, match=r"embed_tokens: PEFT's GLoRA adapts nn\.Linear alone"):
        glora.export(adapted, "peft-glora", tmp_path / "out")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x)[0]
        return found


@pytest.mark.parametrize("to", ["peft", "peft-glora"])
def test_layers_that_peft_plays_wrongly_are_all_named(tmp_path, to):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    adapted = prepared(seeded(Attention), glora.SearchSpace(ranks=(2,), only=LayerConfig(B="lora:2")), head=None)
    with pytest.raises(GloraError, match=r"(?s)at 2 layers.*attention\.in_proj: .*attention\.out_proj: .*without"):
        glora.export(adapted, to, tmp_path / "out", example=x)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_read_without_a_call_is_refused(tmp_path):
    model = seeded(Reads)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    adapted = prepared(model, glora.SearchSpace(ranks=(2,), only=LayerConfig(B="lora:2")), head=None)
    with pytest.raises(GloraError, match="reads its weight without calling it"):
        glora.export(adapted, "peft", tmp_path / "out", example=x)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.read = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x), self.read.weight)


def test_without_an_input_it_is_told_that_one_is_needed(tmp_path):
    adapted = prepared(seeded(Reads), glora.SearchSpace(ranks=(2,)), head=None)
    for to in ("peft", "onnx", "torch"):
        with pytest.raises(GloraError, match="example=x"):
            glora.export(adapted, to, tmp_path / "out")


def test_trained_running_statistics_go_with_their_norms(tmp_path):
    def layers() -> nn.Module:
        convolutions = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=2)
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 3))

    def build() -> nn.Module:
        return seeded(layers)  # type: ignore[no-any-return]

    space = glora.SearchSpace(ranks=(2,), only=LayerConfig(A="vector", B="lora:2", E="vector"))
    adapted = prepared(build(), space, targets="all", head=["4"], statistics=True)
    adapted.model.train()(IMAGES)
    adapted.model.eval()
    wanted = played(adapted.model, IMAGES)
    glora.export(adapted, "peft", tmp_path / "out", rank=64, example=IMAGES)
    assert off(played(loaded(build, tmp_path / "out"), IMAGES), wanted) < 1e-5


# vLLM, by its own rules (it cannot be installed everywhere): what its reader accepts, restated.

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_refuses(folder: Path, max_lora_rank: int) -> list[str]:
    """What vLLM's reader of LoRA folders would say."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    said = [name for name in ("r", "lora_alpha", "target_modules") if not config.get(name)]
    said += ["lora_bias"] if config.get("lora_bias") else []
    said += ["bias"] if config.get("bias", "none") != "none" else []
    said += ["use_dora"] if config.get("use_dora") else []
    said += [name for name in config.get("modules_to_save") or () if name not in ("classifier", "score")]
    said += ["rank"] if max_lora_rank not in RANKS or config["r"] > max_lora_rank else []
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    said += ["patterns"] if ranks != alphas else []
    said += [name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    return said


@pytest.mark.parametrize("rank", RANKS[1:4])
def test_vllm_takes_what_is_written_for_it(tmp_path, rank):
    space = glora.SearchSpace(ranks=(8, 2), only=None)
    adapted = prepared(llama(), space, head=None)
    genotype = {name: LayerConfig(B="lora:2" if "q_proj" in name else "lora:8") for name in adapted.sites}
    adapted.activate(Genotype(genotype))
    wanted = played(adapted.model, TOKENS)
    glora.export(adapted, "vllm", tmp_path / "out", rank=rank)
    assert vllm_refuses(tmp_path / "out", rank) == []
    assert off(played(loaded(llama, tmp_path / "out"), TOKENS), wanted) < 1e-5
    assert f"max_lora_rank={rank}" in "".join(code_of(tmp_path / "out"))


def test_what_vllm_refuses_is_refused(tmp_path):
    lora = glora.SearchSpace(ranks=(4,), only=LayerConfig(B="lora:4"))
    with pytest.raises(GloraError, match="lm_head of LlamaForCausalLM was trained whole"):
        glora.export(prepared(llama(), lora, head=["lm_head"]), "vllm", tmp_path / "out")
    with pytest.raises(GloraError, match="this is a norm"):
        glora.export(prepared(llama(), glora.SearchSpace(ranks=(4,)), targets="all", head=None), "vllm", tmp_path / "o")
    biased = prepared(llama(attention_bias=True), LOW, targets=["q_proj"], head=None)
    with pytest.raises(GloraError, match="its bias is shifted"):
        glora.export(biased, "vllm", tmp_path / "out")
    with pytest.raises(GloraError, match="rank"):
        glora.export(prepared(llama(), lora, head=None), "vllm", tmp_path / "out", rank=5)
    assert list(tmp_path.iterdir()) == []


# Merged models.


def bert() -> nn.Module:
    """A classifier of texts with learned positions: it takes no more than 40 tokens."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=40, num_labels=3, **sizes)
    found: nn.Module = seeded(lambda: transformers.BertForSequenceClassification(config)).eval()
    return found


@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize(("build", "head"), [(llama, None), (bert, "classifier")])
def test_a_model_of_texts_takes_any_batch_and_length_and_heeds_its_mask(tmp_path, build, head, to):
    adapted = prepared(build(), glora.SearchSpace(ranks=(2,)), head=head)
    glora.export(adapted, to, tmp_path / "out")
    tokens = torch.randint(1, 40, (5, 13), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0
    with torch.no_grad():
        wanted = adapted.model(input_ids=tokens, attention_mask=mask).logits
    if to == "torch":
        found = torch.export.load(tmp_path / "out/model.pt2").module()(tokens, mask)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
        given = {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()}
        found = torch.from_numpy(session.run(None, given)[0])
    heeded = mask.bool() if head is None else slice(None)  # what a masked token gives means nothing
    assert off(found.detach()[heeded], wanted[heeded]) < 1e-4


def test_a_folder_of_timm_has_labels_and_preprocessing(finished, tmp_path):
    glora.export(finished, "huggingface", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["label_names"] == ["dark", "light"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["pretrained_cfg"]["crop_mode"] == "squash"


def test_new_biases_are_not_lost_in_a_folder(tmp_path):
    space = glora.SearchSpace(ranks=(2,), new_bias=True, only=LayerConfig(E="vector"))
    model = seeded(lambda: timm.create_model("test_vit", img_size=32, num_classes=5, qkv_bias=False))
    adapted = prepared(model, space, targets=["attn.qkv"])
    with pytest.raises(GloraError, match="new biases would be lost"):
        glora.export(adapted, "huggingface", tmp_path / "out")


def test_a_model_of_a_program_has_no_folder(tmp_path):
    with pytest.raises(GloraError, match="by transformers or timm, and VisionTransformer is of neither"):
        glora.export(prepared(tiny_vit(), LOW), "huggingface", tmp_path / "out")


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_a_folder_of_transformers_gives_the_same(tmp_path, monkeypatch, kind):
    pytest.importorskip("glora.backbones.transformers_folder")
    build = llama if kind == "llama" else vit_of_transformers
    x = TOKENS if kind == "llama" else torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    adapted = prepared(build(), glora.SearchSpace(ranks=(2,)))
    wanted = played(adapted.model, x)
    glora.export(adapted, "huggingface", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(code_of(tmp_path / "out")), names)
    assert off(played(names["model"], x), wanted) < 1e-5


def test_a_merged_model_is_exported_and_has_no_adapter(tmp_path):
    adapted = prepared(tiny_vit(), LOW)
    wanted = played(adapted.model, IMAGES)
    adapted.merge()
    glora.export(adapted, "torch", tmp_path / "out", example=IMAGES)
    found = torch.export.load(tmp_path / "out/model.pt2").module()(IMAGES)
    assert off(found.detach(), wanted) < 1e-5
    with pytest.raises(RunError, match="export before merging"):
        glora.export(adapted, "peft", tmp_path / "peft")


def test_several_genotypes_are_no_export(tmp_path):
    adapted = prepared(tiny_vit(), glora.SearchSpace())
    adapted.activate([adapted.sample(random.Random(seed)) for seed in range(3)])
    with pytest.raises(StateError, match="One genotype per sample"):
        glora.export(adapted, "peft", tmp_path / "out", example=IMAGES)


# Finished runs.


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "run"
    Run(tiny(photos), folder, Recorder()).fit()
    return folder


@pytest.mark.parametrize("to", ["peft", "peft-glora", "huggingface", "onnx", "torch"])
def test_a_run_is_exported_with_its_card(finished, tmp_path, monkeypatch, capsys, to):
    options = ["--rank", "512"] if to == "peft" else []
    monkeypatch.setattr(
        "sys.argv", ["glora", "export", str(finished), "--to", to, "--out", str(tmp_path / "out"), *options]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    metadata, text = card_of(tmp_path / "out")
    assert metadata["datasets"] == [finished_task(finished)]
    assert metadata["metrics"] == ["accuracy", "loss"]
    assert re.search(r"accuracy, % \| test \| [\d.]+ ± [\d.]+", text)
    assert "12 genotypes" in text
    run = glora.load(finished)
    wanted = played(run.model, LARGER)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"images": LARGER.numpy() if to == "onnx" else LARGER}
    exec("\n".join(code_of(tmp_path / "out")), names)
    found = names["outputs"] if "outputs" in names else played(names["model"], LARGER)
    assert off(torch.as_tensor(found).detach(), wanted) < 1e-4
    if to in ("onnx", "torch"):
        known = json.loads((tmp_path / "out" / "preprocess.json").read_text())
        assert known["labels"] == ["dark", "light"]
        assert known["preprocess"]["size"] == [32, 32]


def finished_task(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["task"])


def test_hubs_read_the_card(finished, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    glora.export(finished, "torch", tmp_path / "out")
    card = hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "pytorch"
    assert card.data.metrics == ["accuracy", "loss"]


def test_a_run_of_a_model_of_a_program(tmp_path):
    data = torch.utils.data.TensorDataset(IMAGES.repeat(8, 1, 1, 1), torch.arange(24) % 3)
    options: dict[str, Any] = {"method": "lora", "epochs": 1, "progress": False, "batch_size": 4}
    result = glora.fit(tiny_vit(), train=data, test=data, out=tmp_path / "run", **options)
    wanted = played(result.model, IMAGES)
    with pytest.raises(GloraError, match="model="):
        glora.export(result, "peft", tmp_path / "out", example=IMAGES)
    glora.export(tmp_path / "run", "peft", tmp_path / "out", model=tiny_vit(), example=IMAGES)
    assert off(played(loaded(tiny_vit, tmp_path / "out"), IMAGES), wanted) < 1e-5
    glora.export(result, "torch", tmp_path / "program", example=IMAGES)
    found = torch.export.load(tmp_path / "program/model.pt2").module()(IMAGES)
    assert off(found.detach(), wanted) < 1e-5


@pytest.fixture(scope="module")
def finished_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of a tiny Llama, which learned to answer."""
    folder = tmp_path_factory.mktemp("language")
    base = tiny_causal(folder / "base")
    rows = [{"instruction": f"What is colour {place}?", "output": "It is blue."} for place in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "model": {"name": str(base)},
        "data": {"source": str(folder / "rows.jsonl")},
        "method": {"name": "lora", "rank": 8},
        "train": {"epochs": 1, "batch_size": 8},
    }
    Run(build_experiment(settings), folder / "run", Recorder()).fit()
    return folder / "run"


@pytest.mark.parametrize("to", ["peft", "vllm", "huggingface", "torch"])
def test_a_run_of_a_language_model_is_exported(finished_language, tmp_path, monkeypatch, to):
    run = glora.load(finished_language)
    tokens = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    wanted = played(run.model, tokens)
    glora.export(run, to, tmp_path / "out")
    metadata, _ = card_of(tmp_path / "out")
    assert metadata["base_model"] == str(finished_language.parent / "base")
    if to == "vllm":
        assert vllm_refuses(tmp_path / "out", 16) == []
        base = transformers.AutoModelForCausalLM.from_pretrained(finished_language.parent / "base")
        assert off(played(loaded(lambda: base, tmp_path / "out"), tokens), wanted) < 1e-5
        return
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    exec("\n".join(code_of(tmp_path / "out")), names)
    found = names["outputs"].detach() if "outputs" in names else played(names["model"], tokens)
    assert off(found, wanted) < 1e-5
    if to == "huggingface":
        read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert read.chat_template
    if to == "peft":  # transformers itself finds the base
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert off(played(model.eval(), tokens), wanted) < 1e-5


@pytest.mark.parametrize("method", ["ssf", "fact", "biases"])
def test_other_methods_of_support_tensors_are_exact_too(tmp_path, method):
    data = torch.utils.data.TensorDataset(LARGER.repeat(8, 1, 1, 1), torch.arange(24) % 3)
    options: dict[str, Any] = {"method": method, "epochs": 1, "progress": False, "batch_size": 8}
    result = glora.fit(vit_of_timm_for(3), train=data, test=data, out=tmp_path / "run", **options)
    glora.export(tmp_path / "run", "peft", tmp_path / "out", model=vit_of_timm_for(3), rank=512)
    assert (
        off(played(loaded(lambda: vit_of_timm_for(3), tmp_path / "out"), LARGER), played(result.model, LARGER)) < 1e-5
    )


def vit_of_timm_for(classes: int) -> nn.Module:
    found: nn.Module = seeded(lambda: timm.create_model("test_vit", img_size=32, num_classes=classes))
    return found


def test_what_cannot_be_merged_and_has_no_support_tensors_says_why(tmp_path):
    data = torch.utils.data.TensorDataset(LARGER.repeat(8, 1, 1, 1), torch.arange(24) % 3)
    options: dict[str, Any] = {"method": "vpt", "epochs": 1, "progress": False, "batch_size": 8}
    glora.fit(vit_of_timm_for(3), train=data, test=data, out=tmp_path / "run", **options)
    with pytest.raises(GloraError, match=r"VPT.* has no support tensors"):
        glora.export(tmp_path / "run", "peft", tmp_path / "out", model=vit_of_timm_for(3))
    with pytest.raises(GloraError, match=r"VPT.* cannot be merged"):
        glora.export(tmp_path / "run", "onnx", tmp_path / "out", model=vit_of_timm_for(3))


FRESH = """
import sys, torch
images = torch.load(sys.argv[1])
images = images.numpy() if sys.argv[3] == "onnx" else images
exec(sys.stdin.read())
found = outputs if "outputs" in dir() else model(images)
torch.save(torch.as_tensor(found).detach(), sys.argv[2])
assert not any(name.startswith("glora") for name in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["huggingface", "onnx", "torch"])
def test_a_fresh_process_without_glora_gives_the_same(finished, tmp_path, to):
    glora.export(finished, to, tmp_path / "out")
    torch.save(LARGER, tmp_path / "images.pt")
    words = [sys.executable, "-c", FRESH, "images.pt", "found.pt", to]
    subprocess.run(words, input="\n".join(code_of(tmp_path / "out")), text=True, cwd=tmp_path, check=True, timeout=300)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert off(found, played(glora.load(finished).model, LARGER)) < 1e-4


def test_the_folder_of_an_export_is_a_model_again(finished, tmp_path):
    glora.export(finished, "huggingface", tmp_path / "out")
    backbone = load_backbone(f"local-dir:{tmp_path / 'out'}", num_classes=2)
    assert off(played(backbone.model.eval(), LARGER), played(glora.load(finished).model, LARGER)) == 0
    assert backbone.preprocess is not None
    assert backbone.preprocess.size == (32, 32)  # type: ignore[union-attr]


def test_the_list_of_exports_tells_what_each_is():
    lines = listing("exports")
    assert [line.split()[0] for line in lines] == sorted(EXPORTS)
    assert all(line.endswith(".") for line in lines)


def test_unknown_formats_are_told(tmp_path):
    with pytest.raises(GloraError, match=r"no export 'onx'.*Did you mean 'onnx'"):
        glora.export(prepared(tiny_vit(), LOW), "onx", tmp_path / "out")


# The page on one more export.


def test_one_more_export_is_one_file_and_one_line(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/contributing/export.md").read_text(encoding="utf-8")
    code, line = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[:2]
    ((name, place),) = re.findall(r'^    "(\w+)": "(glora\.exports\.\w+:\w+)",$', line, re.MULTILINE)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "arrays.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(exports, "__path__", [*exports.__path__, str(tmp_path / "code")])
    monkeypatch.delitem(sys.modules, place.partition(":")[0], raising=False)
    monkeypatch.setitem(EXPORTS, name, place)
    adapted = prepared(tiny_vit(), LOW)
    assert glora.export(adapted, name, tmp_path / "out", half=True) == (f"{len(tiny_vit().state_dict())} arrays.",)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(code_of(tmp_path / "out")), names)
    assert names["weights"].keys() == tiny_vit().state_dict().keys()
