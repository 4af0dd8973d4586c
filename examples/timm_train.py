"""A loop in the manner of timm's train.py trains a supernet, glora searches it, and the winner is merged.

    python examples/timm_train.py                 # a tiny random vision transformer, no network, a few seconds

Its optimizer, schedule, mixup and checkpoints are timm's. Run again with the same --out, it goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver
from tiny_images import pictures, search_and_merge, tiny_vit
from torch.utils.data import DataLoader, TensorDataset

import glora
from glora.integrations import Steps

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("out-timm"))
parser.add_argument("--epochs", type=int, default=5)
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

torch.manual_seed(0)
x, y = pictures()
loader = DataLoader(TensorDataset(x[:80], y[:80]), batch_size=16, shuffle=True)
adapted = glora.inject(tiny_vit(), glora.SearchSpace(ranks=(4, 2)))
model, steps = adapted.model, Steps(adapted, seed=0)
optimizer = create_optimizer_v2(adapted.parameters(), opt="adamw", lr=3e-3, weight_decay=1e-4)
schedule = CosineLRScheduler(optimizer, t_initial=options.epochs)
mixup = Mixup(mixup_alpha=0.2, num_classes=3)
criterion = SoftTargetCrossEntropy()
saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(options.out), recovery_dir=str(options.out))
last = options.out / "last.pth.tar"
first = resume_checkpoint(model, str(last), optimizer, log_info=False) or 0 if last.is_file() else 0

for epoch in range(first, options.epochs):
    model.train()
    schedule.step(epoch)
    for place, batch in enumerate(loader):
        inputs, targets = mixup(*batch)
        step = epoch * len(loader) + place
        with steps.step(step, rows=len(inputs), done=step / (options.epochs * len(loader))):
            criterion(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    saver.save_checkpoint(epoch)  # the state dict holds the supernet alone

search_and_merge(adapted, options.out, x=x[80:], y=y[80:])
