"""HF's Trainer trains a supernet, glora searches it, and the winner is merged into a plain model.

    python examples/hf_trainer.py                     # a tiny random model, no network, a few seconds
    python examples/hf_trainer.py --model FOLDER      # any causal language model of transformers
    torchrun --nproc-per-node 2 examples/hf_trainer.py

Run again with the same --out, it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tiny import sums, tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import glora
from glora.integrations import TrainerCallback

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a folder or hub name; a tiny random model if not given")
parser.add_argument("--out", type=Path, default=Path("out-trainer"))
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--batch", type=int, default=8)
options = parser.parse_args()

if options.model:
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
else:
    model, tokenizer = tiny_model()


def encode(row: dict[str, str]) -> dict[str, list[int]]:
    """The tokens of a row; its completion and the end are learned, its prompt is not."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


train, val = ([encode(row) for row in rows] for rows in sums())
pad = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)

# Train the supernet: every row of a batch plays a configuration of its own.
set_seed(0)
adapted = glora.inject(model, glora.SearchSpace(ranks=(4, 2)), skip=["lm_head"], head=None)
args = TrainingArguments(
    output_dir=str(options.out),
    per_device_train_batch_size=options.batch,
    max_steps=options.steps,
    learning_rate=3e-3,
    lr_scheduler_type="cosine",
    eval_strategy="steps",
    eval_steps=10,
    save_steps=10,
    logging_steps=10,
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
callback = TrainerCallback(adapted, seed=0, args=args)
trainer = Trainer(model, args, data_collator=pad, train_dataset=train, eval_dataset=val, callbacks=[callback])
trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir) if options.out.is_dir() else None)

if trainer.is_world_process_zero():
    # Search: the loss on rows that were not trained on says which configuration is best.
    model.eval()
    batch = {name: value.to(model.device) for name, value in pad(val).items()}

    @torch.no_grad()
    def score(genotype: glora.Genotype) -> float:
        with adapted.hold(genotype):
            return -model(**batch).loss.item()

    budget = adapted.count(adapted.space.largest) // 2
    found = glora.search(score, adapted.space, budget=budget, settings={"population": 8, "generations": 2})
    print(f"the best of {len(found.trials)} configurations has {found.best.parameters:,} parameters")

    # Merge: a plain model of transformers, in a folder that from_pretrained loads.
    adapted.activate(found.best.genotype)
    glora.save_adapter(adapted, options.out / "winner.safetensors")
    adapted.merge()
    callback.release()
    model.save_pretrained(options.out / "merged")
    tokenizer.save_pretrained(options.out / "merged")
    plain = AutoModelForCausalLM.from_pretrained(options.out / "merged").to(model.device).eval()
    with torch.no_grad():
        print(f"held-out loss {-found.best.score.value:.4f}, merged and loaded {plain(**batch).loss.item():.4f}")
