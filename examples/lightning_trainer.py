"""Lightning's Trainer trains a supernet, glora searches it, and the winner is merged into a plain model.

    python examples/lightning_trainer.py          # a tiny random vision transformer, no network, a few seconds

Run again with the same --out, it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_images import pictures, search_and_merge, tiny_vit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import glora
from glora.integrations import LightningCallback

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("out-lightning"))
parser.add_argument("--epochs", type=int, default=5)
options = parser.parse_args()


class Classifier(lightning.LightningModule):
    """An ordinary module: it knows nothing of glora but which parameters to train."""

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.model, self.trained = model, parameters

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained, lr=3e-3)


lightning.seed_everything(0, verbose=False)
x, y = pictures()
train, val = TensorDataset(x[:80], y[:80]), TensorDataset(x[80:], y[80:])
adapted = glora.inject(tiny_vit(), glora.SearchSpace(ranks=(4, 2)))
module = Classifier(adapted.model, adapted.parameters())
trainer = lightning.Trainer(
    max_epochs=options.epochs,
    callbacks=[LightningCallback(adapted, seed=0), ModelCheckpoint(options.out, save_last=True)],
    default_root_dir=options.out,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
last = options.out / "last.ckpt"
loaders = [DataLoader(train, batch_size=16, shuffle=True), DataLoader(val, batch_size=40)]
trainer.fit(module, *loaders, ckpt_path=str(last) if last.is_file() else None)
search_and_merge(adapted, options.out, x=x[80:], y=y[80:])
