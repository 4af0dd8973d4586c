"""TRL's SFTTrainer trains a supernet, glora searches it, and the winner is merged into a plain model.

python examples/trl_sft.py                     # a tiny random model, no network, a few seconds
python examples/trl_sft.py --model FOLDER      # any causal language model of transformers
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from tiny import sums, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import glora
from glora.integrations import TrainerCallback

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a folder or hub name; a tiny random model if not given")
parser.add_argument("--out", type=Path, default=Path("out-sft"))
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

if options.model:
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
else:
    model, tokenizer = tiny_model()
train, val = map(Dataset.from_list, sums())

# Train the supernet: every row of a batch plays a configuration of its own, so rows are padded and not packed.
adapted = glora.inject(model, glora.SearchSpace(ranks=(4, 2)), skip=["lm_head"], head=None)
args = SFTConfig(
    output_dir=str(options.out),
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    max_steps=options.steps,
    learning_rate=3e-3,
    eval_strategy="steps",
    eval_steps=10,
    save_steps=10,
    logging_steps=10,
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
callback = TrainerCallback(adapted, seed=0, args=args)
trainer = SFTTrainer(
    model, args, train_dataset=train, eval_dataset=val, processing_class=tokenizer, callbacks=[callback]
)
trainer.train()


def score(genotype: glora.Genotype) -> float:
    """Minus the loss on rows that were not trained on, as the trainer computes it."""
    adapted.activate(genotype)
    return -trainer.evaluate()["eval_loss"]


# Search, and merge the winner into a plain model, in a folder that from_pretrained loads.
budget = adapted.count(adapted.space.largest) // 2
found = glora.search(score, adapted.space, budget=budget, settings={"population": 4, "generations": 1})
adapted.activate(found.best.genotype)
glora.save_adapter(adapted, options.out / "winner.safetensors")
adapted.merge()
callback.release()
model.save_pretrained(options.out / "merged")
tokenizer.save_pretrained(options.out / "merged")
print(f"held-out loss {-found.best.score.value:.4f} with {found.best.parameters:,} parameters")
