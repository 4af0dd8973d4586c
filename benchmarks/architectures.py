"""Does glora hold on architectures that it was not written for? Every check below, on dozens of them; nothing is timed.

    python benchmarks/architectures.py                  # all of MODELS; writes results/architectures/table.json
    python benchmarks/architectures.py swin llama       # those whose name has one of these; prints only

Random weights, tiny sizes, no network. To add a model, add a line to MODELS. For every word of `targets`:
fresh: the output is the frozen base's bit for bit;
agree: adapted, held and merged outputs of a random genotype, relative to the largest number: at most 1e-4, or ten
times what one part in ten million of its weights changes in a base that amplifies more than that;
differs: what the merged model has not as the base: classes, state-dict keys in their order, parameters, FLOPs;
detached: outputs and state dict are the base's bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import glora
from glora.adapt import layers
from glora.errors import TargetError
from glora.files import write_json

PATH = Path(__file__).parent.parent / "results" / "architectures" / "table.json"
RTOL = 1e-4
Built = tuple[nn.Module, dict[str, Any]]  # a model and the inputs of its forward


def vision(name: str, size: int = 64, **settings: Any) -> Callable[[], Built]:
    """A timm model of that name, square images of that size."""

    def make() -> Built:
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=4, **settings)
        return model, {"x": torch.randn(2, 3, size, size)}

    return make


TINY = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 4,
}  # fmt: skip


def text(kind: str, config: str, inputs: str = "tokens", **settings: Any) -> Callable[[], Built]:
    """A transformers model class and its config class; `inputs` is tokens, seq2seq, pixels, both, speech, or mel."""

    def make() -> Built:
        import transformers

        given = {key: value for key, value in {**TINY, **settings}.items() if value is not None}
        model = getattr(transformers, kind)(getattr(transformers, config)(**given))
        tokens = torch.randint(3, 99, (2, 12))
        size = given.get("image_size", 32)
        pixels = torch.randn(2, 3, size, size)
        fed: dict[str, dict[str, Any]] = {
            "tokens": {"input_ids": tokens},
            "seq2seq": {"input_ids": tokens, "decoder_input_ids": tokens[:, :7]},
            "pixels": {"pixel_values": pixels},
            "both": {"input_ids": tokens, "pixel_values": pixels},
            "speech": {"input_values": torch.randn(2, 2000)},
            "mel": {"input_features": torch.randn(2, given.get("num_mel_bins", 16), 40), "decoder_input_ids": tokens},
        }
        return model, fed[inputs]

    return make


VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
IMAGE = {"image_size": 32, "patch_size": 8}
STAGES = {"depths": [1, 1], "num_heads": [2, 4], "hidden_sizes": [16, 32], "embed_dim": 16, "window_size": 4}

MODELS: dict[str, Callable[[], Built]] = {
    "timm/vit": vision("vit_tiny_patch16_224", 32, **VIT),
    "timm/deit": vision("deit_tiny_distilled_patch16_224", 32, **VIT),
    "timm/deit3": vision("deit3_small_patch16_224", 32, **VIT),
    "timm/beit": vision("beit_base_patch16_224", 32, **VIT),
    "timm/beitv2": vision("beitv2_base_patch16_224", 32, **VIT),
    "timm/eva": vision("eva02_tiny_patch14_224", 32, **VIT),
    "timm/dinov2": vision("vit_small_patch14_reg4_dinov2", 32, **VIT),
    "timm/siglip": vision("vit_base_patch16_siglip_224", 32, **VIT),
    "timm/vit_relpos": vision("vit_relpos_small_patch16_224", 32, **VIT),
    "timm/vit_parallel": vision("vit_small_patch16_18x2_224", 32, **VIT),
    "timm/swin": vision(
        "swin_tiny_patch4_window7_224", 32, img_size=32, window_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 4)
    ),
    "timm/swinv2": vision(
        "swinv2_tiny_window8_256", 32, img_size=32, window_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 4)
    ),
    "timm/swinv2_cr": vision(
        "swinv2_cr_tiny_224", 32, img_size=32, window_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 4)
    ),
    "timm/cait": vision("cait_xxs24_224", 32, **VIT),
    "timm/xcit": vision("xcit_nano_12_p16_224", 32, **VIT),
    "timm/convit": vision("convit_tiny", 32, **{**VIT, "num_heads": 4}),
    "timm/crossvit": vision("crossvit_9_240", 240),
    "timm/coat": vision("coat_lite_tiny", 224),
    "timm/pit": vision("pit_ti_224", 224),
    "timm/pvt": vision("pvt_v2_b0", 64),
    "timm/twins": vision("twins_svt_small", 64, img_size=64),
    "timm/tnt": vision("tnt_s_legacy_patch16_224", 32, img_size=32, depth=2),
    "timm/volo": vision("volo_d1_224", 64, img_size=64),
    "timm/levit": vision("levit_128s", 224),
    "timm/mvit": vision("mvitv2_tiny", 64, img_size=64),
    "timm/nest": vision("nest_tiny", 64, img_size=64),
    "timm/gcvit": vision("gcvit_xxtiny", 224),
    "timm/davit": vision("davit_tiny", 64, depths=(1, 1, 1, 1)),
    "timm/hiera": vision("hiera_tiny_224", 64, img_size=64),
    "timm/maxvit": vision("test_maxvit", 160),
    "timm/coatnet": vision("test_coatnet", 160),
    "timm/tiny_vit": vision("tiny_vit_5m_224", 224),
    "timm/mixer": vision("mixer_s32_224", 64, img_size=64),
    "timm/gmlp": vision("gmlp_ti16_224", 64, img_size=64),
    "timm/resmlp": vision("resmlp_12_224", 64, img_size=64),
    "timm/sequencer": vision("sequencer2d_s", 64, layers=(1, 1, 1, 1)),
    "timm/convmixer": vision("convmixer_768_32", 64),
    "timm/poolformer": vision("poolformer_s12", 64),
    "timm/caformer": vision("caformer_s18", 64),
    "timm/mambaout": vision("test_mambaout", 96),
    "timm/convnext": vision("convnext_tiny", 64, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)),
    "timm/convnextv2": vision("convnextv2_atto", 64, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)),
    "timm/edgenext": vision("edgenext_xx_small", 64),
    "timm/inception_next": vision("inception_next_atto", 64),
    "timm/focalnet": vision("focalnet_tiny_srf", 64),
    "timm/fastvit": vision("fastvit_t8", 64),
    "timm/efficientformer": vision("efficientformer_l1", 224),
    "timm/efficientvit_mit": vision("efficientvit_b0", 64),
    "timm/efficientvit_msra": vision("efficientvit_m0", 224),
    "timm/mobilevit": vision("mobilevit_xxs", 64),
    "timm/mobilevitv2": vision("mobilevitv2_050", 64),
    "timm/mobilenetv3": vision("mobilenetv3_small_050", 64),
    "timm/mobilenetv4": vision("mobilenetv4_conv_small_035", 64),
    "timm/mobileone": vision("mobileone_s0", 64),
    "timm/efficientnet": vision("test_efficientnet", 64),
    "timm/efficientnet_gn": vision("test_efficientnet_gn", 64),
    "timm/efficientnet_evos": vision("test_efficientnet_evos", 64),
    "timm/tinynet": vision("tinynet_e", 64),
    "timm/ghostnet": vision("ghostnet_050", 64),
    "timm/repvit": vision("repvit_m0_9", 64),
    "timm/repghost": vision("repghostnet_050", 64),
    "timm/rexnet": vision("rexnet_100", 64),
    "timm/hgnet": vision("hgnetv2_b0", 64),
    "timm/starnet": vision("starnet_s1", 64),
    "timm/resnet": vision("resnet10t", 64),
    "timm/resnetv2": vision("resnetv2_18", 64),
    "timm/resnest": vision("resnest14d", 64),
    "timm/seresnext": vision("skresnet18", 64),
    "timm/nfnet": vision("test_nfnet", 64),
    "timm/regnet": vision("regnety_002", 64),
    "timm/densenet": vision("densenet121", 64, block_config=(2, 2, 2, 2)),
    "timm/dla": vision("dla46_c", 64),
    "timm/hrnet": vision("hrnet_w18_small", 64),
    "timm/vovnet": vision("ese_vovnet19b_slim", 64),
    "timm/xception": vision("xception41", 64),
    "timm/inception_v3": vision("inception_v3", 96),
    "timm/cspnet": vision("cspresnet50", 64),
    "hf/bert": text("BertForSequenceClassification", "BertConfig"),
    "hf/bert_mlm": text("BertForMaskedLM", "BertConfig"),
    "hf/roberta": text("RobertaForSequenceClassification", "RobertaConfig", type_vocab_size=2),
    "hf/distilbert": text(
        "DistilBertForSequenceClassification", "DistilBertConfig", dim=32, hidden_dim=48, n_layers=2, n_heads=4
    ),
    "hf/albert": text("AlbertForSequenceClassification", "AlbertConfig", embedding_size=16),
    "hf/electra": text("ElectraForSequenceClassification", "ElectraConfig", embedding_size=16),
    "hf/deberta": text(
        "DebertaV2ForSequenceClassification", "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "hf/mpnet": text("MPNetForSequenceClassification", "MPNetConfig"),
    "hf/modernbert": text("ModernBertForSequenceClassification", "ModernBertConfig", cls_token_id=1, sep_token_id=2),
    "hf/xlnet": text(
        "XLNetForSequenceClassification", "XLNetConfig", max_position_embeddings=None, n_layer=2, n_head=4, d_inner=48
    ),
    "hf/gpt2": text("GPT2LMHeadModel", "GPT2Config"),
    "hf/gpt_neo": text(
        "GPTNeoForCausalLM", "GPTNeoConfig", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
    "hf/gpt_neox": text("GPTNeoXForCausalLM", "GPTNeoXConfig"),
    "hf/gptj": text("GPTJForCausalLM", "GPTJConfig", rotary_dim=4),
    "hf/opt": text("OPTForCausalLM", "OPTConfig", ffn_dim=48, word_embed_proj_dim=32),
    "hf/bloom": text("BloomForCausalLM", "BloomConfig"),
    "hf/falcon": text("FalconForCausalLM", "FalconConfig"),
    "hf/llama": text("LlamaForCausalLM", "LlamaConfig"),
    "hf/llama_tied": text("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True),
    "hf/mistral": text("MistralForCausalLM", "MistralConfig"),
    "hf/mixtral": text("MixtralForCausalLM", "MixtralConfig", num_local_experts=2),
    "hf/qwen2": text("Qwen2ForCausalLM", "Qwen2Config"),
    "hf/qwen3": text("Qwen3ForCausalLM", "Qwen3Config", head_dim=8),
    "hf/gemma": text("GemmaForCausalLM", "GemmaConfig", head_dim=8),
    "hf/gemma2": text("Gemma2ForCausalLM", "Gemma2Config", head_dim=8),
    "hf/phi": text("PhiForCausalLM", "PhiConfig"),
    "hf/phi3": text("Phi3ForCausalLM", "Phi3Config"),
    "hf/olmo": text("OlmoForCausalLM", "OlmoConfig"),
    "hf/stablelm": text("StableLmForCausalLM", "StableLmConfig"),
    "hf/cohere": text("CohereForCausalLM", "CohereConfig"),
    "hf/mamba": text("MambaForCausalLM", "MambaConfig", state_size=4),
    "hf/t5": text(
        "T5ForConditionalGeneration",
        "T5Config",
        "seq2seq",
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    "hf/bart": text("BartForConditionalGeneration", "BartConfig", "seq2seq"),
    "hf/marian": text("MarianMTModel", "MarianConfig", "seq2seq", decoder_start_token_id=0),
    "hf/vit": text("ViTForImageClassification", "ViTConfig", "pixels", **IMAGE),
    "hf/beit": text("BeitForImageClassification", "BeitConfig", "pixels", **IMAGE),
    "hf/dinov2": text("Dinov2ForImageClassification", "Dinov2Config", "pixels", **IMAGE),
    "hf/swin": text("SwinForImageClassification", "SwinConfig", "pixels", **{**IMAGE, **STAGES, "patch_size": 4}),
    "hf/convnext": text(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        "pixels",
        num_hidden_layers=None,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
    ),
    "hf/resnet": text(
        "ResNetForImageClassification", "ResNetConfig", "pixels", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]
    ),
    "hf/segformer": text(
        "SegformerForImageClassification",
        "SegformerConfig",
        "pixels",
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
        num_attention_heads=[1, 1, 2, 2],
    ),
    "hf/clip": text(
        "CLIPModel", "CLIPConfig", "both", text_config=dict(TINY), vision_config={**TINY, **IMAGE}, projection_dim=16
    ),
    "hf/wav2vec2": text(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        "speech",
        conv_dim=[8, 8],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    ),
    "hf/whisper": text(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        "mel",
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=20,
        decoder_start_token_id=1,
    ),
    "torch/transformer": lambda: (
        nn.Transformer(16, 2, 1, 1, 24, batch_first=True),
        {"src": torch.randn(2, 5, 16), "tgt": torch.randn(2, 3, 16)},
    ),
    "torch/encoder": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2),
        {"src": torch.randn(2, 5, 16)},
    ),
}


def output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The model's logits, or its first tensor, in evaluation without gradient."""
    with torch.no_grad():
        found = model(**inputs) if "x" not in inputs else model(inputs["x"])
    if not isinstance(found, Tensor):
        logits = (
            [found[name] for name in ("logits", "logits_per_text") if name in found] if "keys" in dir(found) else []
        )
        found = (logits or [each for each in found if isinstance(each, Tensor)])[0]
    return found


def flops(model: nn.Module, inputs: dict[str, Any]) -> int:
    model = copy.deepcopy(model).requires_grad_(False)  # torch's counter fails on trained parameters as inputs
    with FlopCounterMode(display=False) as counter:
        output(model, inputs)
    return int(counter.get_total_flops())


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def facts(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """What merging must leave as it is."""
    return {
        "classes": [type(module) for module in model.modules()],
        "keys": list(model.state_dict()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": flops(model, inputs),
    }


def noise(model: nn.Module, inputs: dict[str, Any]) -> float:
    """How much the output changes by one part in ten million of every weight."""
    plain = output(model, inputs)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape))
    return apart(output(twin, inputs), plain)


def check(base: nn.Module, inputs: dict[str, Any], word: str, product: str) -> dict[str, Any]:
    """One row of the table: what was found for a word of `targets`."""
    model = copy.deepcopy(base)
    before, plain = facts(model, inputs), output(model, inputs)
    frozen = output(copy.deepcopy(base).requires_grad_(False), inputs)  # torch may choose another kernel for it
    values = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        adapted = glora.inject(model, glora.SearchSpace(ranks=(4,), variant="paper", product=product), targets=word)
    except TargetError as error:
        return {"sites": 0, "passed": None, "why": str(error)}
    found: dict[str, Any] = {"sites": len(adapted.sites), "fresh": torch.equal(output(model, inputs), frozen)}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for support in adapted.supports.values():
            for factor in support.parameters():
                factor.copy_(0.05 * torch.randn(factor.shape, generator=generator))
    rng = random.Random(0)
    for _ in range(9):  # a genotype may change nothing, such as a scale before a norm
        genotype = adapted.sample(rng)
        adapted.activate(genotype)
        played = output(model, inputs)
        if not torch.equal(played, plain):
            break
    with adapted.hold(genotype):
        held = output(model, inputs)
    merged = output(adapted.merge(), inputs)
    found["changed"] = apart(played, plain)
    found["apart"] = max(apart(held, played), apart(merged, played))
    found["noise"] = noise(base, inputs) if found["apart"] > RTOL else 0.0
    found["agree"] = found["apart"] <= max(RTOL, 10 * found["noise"]) and found["changed"] > 0
    now = facts(model, inputs)
    found["differs"] = [name for name in before if before[name] != now[name]]
    adapted.detach()
    after = model.state_dict()
    found["detached"] = (
        torch.equal(output(model, inputs), plain)
        and list(after) == list(values)
        and all(torch.equal(after[name], value) for name, value in values.items())
    )
    found["passed"] = found["fresh"] and found["agree"] and not found["differs"] and found["detached"]
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without what timm, transformers and glora say of these models."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of one model; an error is a row too."""
    torch.manual_seed(0)
    try:
        base, inputs = MODELS[name]()
        with torch.no_grad():
            for parameter in base.parameters():  # some heads, gates and layer scales start at zero
                if parameter.is_floating_point():
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        base.eval()
        output(base, inputs)
    except Exception as error:
        return [{"model": name, "passed": False, "why": f"not built: {type(error).__name__}: {str(error)[:300]}"}]
    rows = []
    for word in layers.WORDS:
        for product in ("elementwise", "matrix") if word == "all" else ("elementwise",):
            try:
                row = check(base, inputs, word, product)
            except Exception as error:
                row = {"passed": False, "why": f"{type(error).__name__}: {str(error)[:300]}"}
            rows.append({"model": name, "targets": word, "product": product, **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names; all models where there is none")
    names = parser.parse_args().names
    table: list[dict[str, Any]] = []
    for name in MODELS:
        if not names or any(part in name for part in names):
            with quiet():
                table += rows_of(name)
            gc.collect()
            mine = [row for row in table if row["model"] == name]
            bad = [row for row in mine if row["passed"] is False]
            print(f"{name}: {sum(row['passed'] is True for row in mine)} passed, {len(bad)} failed", flush=True)
            for row in bad:
                print("   ", {key: value for key, value in row.items() if key != "model"}, flush=True)
    failed = [row for row in table if row["passed"] is False]
    print(f"{len({row['model'] for row in table})} models, {len(table)} rows, {len(failed)} failed")
    if not names:
        write_json(PATH, {"torch": torch.__version__, "rtol": RTOL, "failed": len(failed), "rows": table})
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
