"""What the examples run on where no model is given: a random Llama of two blocks, which reads bytes, and sums."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def tiny_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The same random model every time, and a tokenizer whose tokens are the 256 bytes and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*alphabet, "<end>"])}, []))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<end>")
    end = tokenizer.eos_token_id
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, bos_token_id=None, eos_token_id=end, initializer_range=0.2,
                         pad_token_id=end, max_position_embeddings=128)  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config), tokenizer


def sums() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """100 sums as prompt and completion: 80 to train on, and 20 that are held out."""
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(10) for b in range(10)]
    return [row for n, row in enumerate(rows) if n % 5], rows[::5]
