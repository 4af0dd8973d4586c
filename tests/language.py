"""Tiny language models with a tiny tokenizer, as folders that transformers' `from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

CAUSAL = ("llama", "qwen2", "gemma", "gpt2")
WIDTH, BLOCKS, POSITIONS = 16, 2, 256
STARTS, ENDS = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "What is the capital of France? The capital of France is Paris.",
    "Name a colour of the sky in the morning. Red, and then blue.",
    "system user assistant: You are a helpful assistant, answer the question.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction: ### Input: ### Response: one two three four five six seven eight nine ten",
)


def tiny_tokenizer(folder: Path) -> Any:
    """A byte-level BPE tokenizer with the ChatML template, without a bos; eos = pad = `<|im_end|>`. It is saved."""
    special = {"unk_token": "<|endoftext|>", "bos_token": STARTS, "eos_token": ENDS, "pad_token": ENDS}
    return _tokenizer(folder, special, template=CHATML)


def tiny_causal(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """A folder with a random causal language model of 2 blocks and width 16, and its tokenizer.

    Args:
        folder: Where it is written; it is made.
        kind: One of `CAUSAL`.
        changes: Settings of transformers' configuration, such as `tie_word_embeddings=True`.
    """
    import transformers

    tokenizer = tiny_tokenizer(folder)
    common = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "pad_token_id": None}
    common["eos_token_id"] = tokenizer.eos_token_id
    if kind == "gpt2":
        sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 2, "n_positions": POSITIONS}
        sizes |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    else:
        sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": BLOCKS}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": POSITIONS}
        sizes |= {"head_dim": WIDTH // 2} if kind in ("llama", "gemma") else {}
    config = transformers.AutoConfig.for_model(kind, **{**common, **sizes, "initializer_range": 0.2, **changes})
    return _written(folder, transformers.AutoModelForCausalLM, config)


def tiny_encoder(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """A folder with a random BERT (`bert`) or DistilBERT (`distilbert`) without a classifier, and its tokenizer."""
    import transformers

    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    names = ["input_ids", *(["token_type_ids"] if kind == "bert" else []), "attention_mask"]
    special["mask_token"] = "[MASK]"
    tokenizer = _tokenizer(folder, special, around=("[CLS]", "[SEP]"), model_input_names=names)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind == "distilbert":
        sizes |= {"dim": WIDTH, "hidden_dim": 2 * WIDTH, "n_layers": BLOCKS, "n_heads": 2, "dropout": 0.0}
        sizes |= {"attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    else:
        sizes |= {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": BLOCKS}
        sizes |= {"num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes |= {"max_position_embeddings": POSITIONS, "initializer_range": 0.2}
    return _written(folder, transformers.AutoModel, transformers.AutoConfig.for_model(kind, **{**sizes, **changes}))


def tiny_t5(folder: Path, **changes: Any) -> Path:
    """A folder with a random T5, an encoder-decoder, and its tokenizer, which ends every text with `</s>`."""
    import transformers

    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = _tokenizer(folder, special, around=("", "</s>"))
    sizes = {"d_model": WIDTH, "d_ff": 2 * WIDTH, "d_kv": 8, "num_layers": BLOCKS, "num_heads": 2, "dropout_rate": 0.0}
    ids = {"pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    ids |= {"eos_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    config = transformers.AutoConfig.for_model("t5", **{**sizes, **ids, **changes})
    return _written(folder, transformers.AutoModelForSeq2SeqLM, config)


def tiny_vision(folder: Path, **changes: Any) -> Path:
    """A folder with a random ViT of transformers for images of 16 pixels, without a classifier, and how it reads."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": BLOCKS}
    sizes |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "initializer_range": 0.2}
    found = _written(folder, transformers.AutoModel, transformers.AutoConfig.for_model("vit", **{**sizes, **changes}))
    reading = {"do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "do_normalize": True}
    reading |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    transformers.ViTImageProcessor(**reading).save_pretrained(folder)
    return found


def _tokenizer(
    folder: Path, special: dict[str, str], *, around: tuple[str, str] = ("", ""), template: str = "", **more: Any
) -> Any:
    import tokenizers
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    if any(around):
        ids = [(token, bpe.token_to_id(token)) for token in around if token]
        first, last = (f"{token} " if token else "" for token in around)
        bpe.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{first}$A {last}".strip(), pair=f"{first}$A {last}$B:1 {last.strip()}:1", special_tokens=ids
        )
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=POSITIONS, **special, **more)
    if template:
        found.chat_template = template
    found.save_pretrained(folder)
    return found


def _written(folder: Path, kind: Any, config: Any) -> Path:
    """The folder with the model of this configuration, its weights and biases random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder
