"""A loop of your own with accelerate trains a supernet, glora searches it, and the winner is merged.

    python examples/accelerate_loop.py            # a tiny random vision transformer, no network, a few seconds
    accelerate launch --num_processes 2 examples/accelerate_loop.py

Run again with the same --out, it goes on from the last epoch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from tiny_images import pictures, search_and_merge, tiny_vit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import glora
from glora.integrations import Steps

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("out-accelerate"))
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--batch", type=int, default=16)
options = parser.parse_args()

set_seed(0)
unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # no step plays all support tensors
accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
x, y = pictures()
adapted = glora.inject(tiny_vit(), glora.SearchSpace(ranks=(4, 2)))
optimizer = torch.optim.AdamW(adapted.parameters(), lr=3e-3)
loader = DataLoader(TensorDataset(x[:80], y[:80]), batch_size=options.batch, shuffle=True)
steps = Steps(adapted, seed=0, rank=accelerator.process_index, world=accelerator.num_processes)
model, optimizer, loader = accelerator.prepare(adapted.model, optimizer, loader)
total = options.epochs * len(loader)

checkpoints = sorted(options.out.glob("epoch-*"))
if checkpoints:
    accelerator.load_state(str(checkpoints[-1]))  # the supernet, as the model's state dict has it
for epoch in range(len(checkpoints), options.epochs):
    model.train()
    for place, (inputs, targets) in enumerate(loader):
        step = epoch * len(loader) + place
        with steps.step(step, rows=options.batch, done=step / total):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(options.out / f"epoch-{epoch:03}"))

if accelerator.is_main_process:
    adapted.model.to("cpu")
    search_and_merge(adapted, options.out, x=x[80:], y=y[80:])
