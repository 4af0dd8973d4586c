"""What each of several GPUs holds while it trains a language model, by part, from the model's config alone.

    python benchmarks/layout.py
    python benchmarks/layout.py --config FOLDER --processes 2 --rows 1 --tokens 512

No number is made, only shapes. Without --config it is a LLaMA of 7 billion numbers. The table
of docs/guide/processes.md is made by it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import glora
from glora.training.layout import Layout, flash_attention, layout, shapes_alone

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = {
    "blocks": "frozen weights of the blocks, its part",
    "block": "one block, brought together",
    "others": "embeddings, output layer, norms",
    "trained": "support tensors, float32",
    "gradients": "their gradients",
    "moments": "AdamW's two moments",
    "summed": "gradients on their way to the others",
    "inputs": "activations: the inputs of all blocks",
    "inside": "activations: one block, computed again",
    "outside": "logits and loss, with their gradient",
}


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **options: Any) -> tuple[Tensor, None]:
    """Causal attention that keeps no matrix of tokens by tokens, as the kernels of GPUs: on any device."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) if groups > 1 else each for each in (key, value))
    return flash_attention(query, key, value, options.get("scaling")).transpose(1, 2).contiguous(), None


def built(folder: str | None, dtype: torch.dtype) -> nn.Module:
    """The model."""
    import transformers

    transformers.AttentionInterface.register("layout", attention)
    if folder is None:
        config = transformers.LlamaConfig(dtype=dtype)
    else:
        config = transformers.AutoConfig.from_pretrained(folder, dtype=dtype)
    config.use_cache = False
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="layout")


def of(model: nn.Module, options: argparse.Namespace, *, sharded: bool) -> Layout:
    """The layout of an adapted model of these rows, tokens and learned tokens."""
    adapted = glora.inject(model, glora.SearchSpace(ranks=tuple(options.ranks)), head=None)
    x = torch.zeros(options.rows, options.tokens, dtype=torch.long)

    def loss(model: nn.Module) -> Tensor:
        logits = model(input_ids=x, logits_to_keep=options.learned).logits
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), x[:, -options.learned :].flatten())

    try:
        return layout(model, adapted.parameters(), loss, processes=options.processes, sharded=sharded)
    finally:
        adapted.detach()


def table(found: dict[str, Layout]) -> str:
    """The layouts as Markdown, in GB."""
    lines = ["| part | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    for name, what in PARTS.items():
        lines.append(f"| {what} | " + " | ".join(f"{asdict(each)[name] / 1e9:.2f}" for each in found.values()) + " |")
    return "\n".join([*lines, "| total | " + " | ".join(f"{each.total / 1e9:.2f}" for each in found.values()) + " |"])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a folder of transformers, of which the config is read")
    parser.add_argument("--processes", type=int, default=8, help="one a GPU")
    parser.add_argument("--rows", type=int, default=4, help="of a process's share of a batch")
    parser.add_argument("--tokens", type=int, default=1024, help="of a row")
    parser.add_argument("--learned", type=int, default=256, help="tokens of a row that are learned, its last ones")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the frozen weights")
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    options = parsed()
    names = {"whole": False, f"spread over {options.processes}": True}
    with shapes_alone():
        model = built(options.config, DTYPES[options.dtype])
        found = {name: of(model, options, sharded=sharded) for name, sharded in names.items()}
    print(table(found))


if __name__ == "__main__":
    main()
