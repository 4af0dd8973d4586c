"""The callback by which Lightning's Trainer trains a supernet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from glora import registry
from glora.adapt.adapted import Adapted
from glora.adapt.supernet import Supernet
from glora.errors import ConfigError, StateError
from glora.genotype import Genotype
from glora.integrations.steps import Steps, need_optimizer

__all__ = ["LightningCallback"]

PURPOSE = "Training with Lightning"
pytorch: Any = registry.optional_import("lightning.pytorch", extra="lightning", purpose=PURPOSE)
SHARDING = ("FSDP", "DeepSpeed", "ModelParallel")  # in the names of strategies


class LightningCallback(pytorch.Callback):  # type: ignore[misc]
    """Lets Lightning's Trainer train a supernet.

        adapted = glora.inject(module.model, glora.SearchSpace())
        callback = glora.integrations.LightningCallback(adapted, seed=0)
        trainer = lightning.Trainer(max_epochs=10, callbacks=[callback])
        trainer.fit(module, batches)  # or fit(..., ckpt_path="last")

    The module has the adapted model inside, and its `configure_optimizers` gives the optimizer `adapted.parameters()`.
    Every optimizer step plays genotypes of its own, drawn by the seed and the step's number. Validation, and whatever
    comes after the training, plays one genotype, the largest. Checkpoints hold support tensors, head and buffers.

    Args:
        supernet: The supernet, or the adapted model that one is made of. With `sampling="sample"`, its default, every
            row of the batch plays a genotype of its own.
        seed: Where the genotypes come from, together with the step.
        genotype: What plays in validation; the space's largest if not given.

    Raises:
        ConfigError: By the trainer, when it begins: it has settings, or a model, that this cannot train with.
    """

    def __init__(self, supernet: Supernet | Adapted, *, seed: int = 0, genotype: Genotype | None = None) -> None:
        self.steps = Steps(supernet, seed=seed, genotype=genotype)
        self.adapted = self.steps.adapted

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuses what cannot be trained."""
        if stage != "fit":
            return
        if not any(module is self.adapted.model for module in pl_module.modules()):
            raise ConfigError(
                f"{type(pl_module).__name__} does not hold the model that was injected.",
                remedy="Give the module that model: self.model = model.",
            )
        strategy = type(trainer.strategy).__name__
        if any(name in strategy for name in SHARDING):
            raise ConfigError(f"{strategy} shards the weights that support tensors read.", remedy="Train with ddp.")
        if str(trainer.precision).endswith("-true") and str(trainer.precision) not in ("32-true", "64-true"):
            raise ConfigError(
                f"precision={trainer.precision!r} turns the support tensors into half precision.",
                allowed="bf16-mixed, 16-mixed or 32-true.",
            )
        if "DDP" in strategy and not getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters"):
            raise ConfigError(
                "Several processes train, and DDP does not look for parameters that a step leaves unused.",
                remedy='Set strategy="ddp_find_unused_parameters_true".',
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Checks what is optimized."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(f"There are {len(trainer.optimizers)} optimizers.", allowed="One.")
        need_optimizer(trainer.optimizers[0], self.adapted)
        self.steps.rank, self.steps.world = trainer.global_rank, trainer.world_size
        self.steps.attach()
        self.steps.rest()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The first batch of an optimizer step draws what the step plays; the next ones play other rows of it."""
        passes = trainer.accumulate_grad_batches
        if batch_idx % passes == 0:
            done = min(1.0, trainer.global_step / max(trainer.estimated_stepping_batches, 1))
            self.steps.begin(trainer.global_step, rows=_rows(batch), done=done, passes=passes)
        else:
            self.steps.next_pass()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Whatever follows a batch, a validation or a checkpoint, plays one genotype."""
        self.steps.rest()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The training is over: what plays is the caller's again."""
        self.steps.end()
        self.steps.detach()

    def release(self) -> None:
        """Takes off a merged or detached model what the training has left on it.

        Raises:
            StateError: It is neither merged nor detached.
        """
        self.steps.release()


def _rows(batch: Any) -> int:
    """How many rows a batch has: the length of its first tensor.

    Raises:
        StateError: It has none.
    """
    if isinstance(batch, Tensor) and batch.dim():
        return len(batch)
    inner: Iterable[Any] = batch.values() if isinstance(batch, Mapping) else batch if _several(batch) else ()
    for each in inner:
        if (isinstance(each, Tensor) and each.dim()) or isinstance(each, Mapping) or _several(each):
            return _rows(each)
    raise StateError(
        f"A batch is a {type(batch).__name__} without a tensor: its rows cannot be counted.",
        remedy='Draw one genotype a step: Supernet(adapted, sampling="batch").',
    )


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple)
