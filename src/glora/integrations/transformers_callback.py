"""The callback by which HF's Trainer, and the trainers of TRL, train a supernet."""

from __future__ import annotations

from typing import Any

from glora import registry
from glora.adapt.adapted import Adapted
from glora.adapt.supernet import Supernet
from glora.errors import ConfigError, StateError
from glora.genotype import Genotype
from glora.integrations.checkpoints import Checkpoints
from glora.integrations.steps import Playing, need_optimizer

__all__ = ["TrainerCallback"]

PURPOSE = "Training with HF's Trainer"
callbacks: Any = registry.optional_import("transformers.trainer_callback", extra="trainer", purpose=PURPOSE)
REFUSED = {  # arguments of the trainer, and why they do not go with support tensors
    "fsdp": "shards the weights that support tensors read",
    "deepspeed": "shards the weights that support tensors read",
    "fp16_full_eval": "turns the support tensors into half precision",
    "bf16_full_eval": "turns the support tensors into half precision",
    "use_liger_kernel": "leaves other forward methods in the model, which would not be plain after the merge",
}
PACKED = ("packing", "padding_free")
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")  # the new name, and the one before 5.0


class TrainerCallback(callbacks.TrainerCallback):  # type: ignore[misc]
    """Lets HF's Trainer, or one of TRL's, train a supernet.

        adapted = glora.inject(model, glora.SearchSpace(), head=None)
        callback = glora.integrations.TrainerCallback(adapted, seed=0)
        trainer = transformers.Trainer(model, args, train_dataset=rows, callbacks=[callback])
        trainer.train()  # or train(resume_from_checkpoint=True)

    Every optimizer step plays genotypes of its own, drawn by the seed and the step's number: a run that was killed
    and resumed is the uninterrupted one, bit for bit, and all processes draw the same. Evaluations in the training,
    and checkpoints, play one genotype, the largest. From the moment it is made until the model is merged or detached
    `save_pretrained`, and so every checkpoint, writes adapter files: `model.safetensors`, the supernet, and
    `adapter.safetensors`, the active genotype.

    Args:
        supernet: The supernet, or the adapted model that one is made of. With `sampling="sample"`, its default, every
            row of the batch plays a genotype of its own; rows that are packed into one need `sampling="batch"`.
        seed: Where the genotypes come from, together with the step.
        genotype: What evaluations in the training play; the space's largest if not given.
        args: The trainer's arguments, where several processes train with checkpointed activations: the trainer reads
            what they need, `ddp_find_unused_parameters=True`, before it calls any callback. It is set in them here.

    Raises:
        ConfigError: By the trainer, when it is made: it has arguments, or a model, that this cannot train with.
    """

    def __init__(
        self,
        supernet: Supernet | Adapted,
        *,
        seed: int = 0,
        genotype: Genotype | None = None,
        args: Any = None,
    ) -> None:
        self.playing = Playing(supernet, seed=seed, genotype=genotype)
        self.supernet, self.adapted = self.playing.supernet, self.playing.adapted
        adapted = self.adapted
        if not hasattr(adapted.model, "save_pretrained"):
            raise ConfigError(
                f"{type(adapted.model).__name__} is no model of transformers.",
                remedy="Train it in a loop of your own, with glora.Supernet, or with glora.fit.",
            )
        self.checkpoints = Checkpoints(adapted)
        self._forward = adapted.model.__dict__.get("forward")
        self._rows = 1  # of a pass of this process
        if args is not None:
            args.ddp_find_unused_parameters = True

    # What the trainer calls

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **others: Any) -> None:
        """Refuses what cannot be trained, and sets what must be."""
        self._need_model(model)
        _refuse(args)
        if self.supernet.sampling == "sample" and (packed := [name for name in PACKED if getattr(args, name, False)]):
            raise ConfigError(
                f"{packed[0]}=True puts several rows into one, which plays one genotype: they cannot each have theirs.",
                remedy=f'Set {packed[0]}=False, or draw one genotype a step: Supernet(adapted, sampling="batch").',
            )
        self._set_checkpointing(args)
        self._set_unused(args)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        """Checks what was resumed and what is optimized."""
        self._need_model(model)
        if state.global_step and not self.checkpoints.restored:
            raise StateError(
                f"The training goes on at step {state.global_step}, but no supernet was loaded: "
                "the checkpoint was written without this callback.",
                remedy="Make the callback before the trainer, and start the training again.",
            )
        need_optimizer(optimizer, self.adapted)
        if self.supernet.sampling == "sample":
            _refuse_flattening(others.get("train_dataloader"))
        self._rows = state.train_batch_size or args.per_device_train_batch_size
        self.playing.rank, self.playing.world = args.process_index, args.world_size
        self.playing.attach()
        self.playing.rest()

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Draws what the step plays: of all its rows, which several passes and processes may share."""
        done = min(1.0, state.global_step / max(state.max_steps, 1))
        self.playing.begin(state.global_step, rows=self._rows, done=done, passes=args.gradient_accumulation_steps)

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The step's next pass has other rows."""
        self.playing.next_pass()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Whatever follows the step, an evaluation or a checkpoint, plays one genotype."""
        self.playing.end()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The training is over: what plays is the caller's again."""
        self.playing.detach()
        self.checkpoints.restored = False

    def release(self) -> None:
        """Takes off a merged or detached model what the training has left on it: after this it is plain.

        The trainer has changed the model's `forward` for mixed precision, and TRL's trainers for their loss, which
        is why they cannot evaluate it any more. What a model of transformers can be asked for stays as it is, such as
        checkpointed activations.

        Raises:
            StateError: It is neither merged nor detached.
        """
        if self.adapted.attached:
            raise StateError("The model is still adapted.", remedy="Merge or detach it first.")
        self.playing.detach()
        self.checkpoints.remove()
        own = self.adapted.model.__dict__
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            own.pop(name, None)
        if self._forward is not None:
            own["forward"] = self._forward

    # Refusals and settings

    def _need_model(self, model: Any) -> None:
        if model is not self.adapted.model:
            raise ConfigError(
                f"The trainer has another model, a {type(model).__name__}, than the callback's.",
                remedy="Give it the model that was injected, as it is: without model_init, peft_config or a wrapper.",
            )

    def _set_checkpointing(self, args: Any) -> None:
        """Activations are computed again without a new graph: the reentrant way loses gradients of frozen layers."""
        if not any(getattr(args, name, False) for name in CHECKPOINTING):
            return
        for name in (f"{each}_kwargs" for each in CHECKPOINTING if hasattr(args, f"{each}_kwargs")):
            options = dict(getattr(args, name) or {})
            if options.setdefault("use_reentrant", False):
                raise ConfigError(
                    f"{name}={options!r} is not allowed: the embeddings are frozen, so nothing would get a gradient.",
                    allowed="use_reentrant=False.",
                )
            setattr(args, name, options)

    def _set_unused(self, args: Any) -> None:
        """A step's genotypes may leave a support tensor unused: DistributedDataParallel must look for them."""
        checkpointing = any(getattr(args, name, False) for name in CHECKPOINTING)
        late = args.ddp_find_unused_parameters is None and checkpointing  # the trainer has taken that for False
        if args.world_size > 1 and (late or args.ddp_find_unused_parameters is False):
            raise ConfigError(
                "Several processes train, and the trainer does not look for parameters that a step leaves unused.",
                remedy="Set ddp_find_unused_parameters=True, or give the arguments to the callback: args=args.",
            )
        args.ddp_find_unused_parameters = True


def _refuse(args: Any) -> None:
    for name, why in REFUSED.items():
        if getattr(args, name, None):
            raise ConfigError(f"{name}={getattr(args, name)!r} {why}.", remedy=f"Train without {name}.")
    if args.n_gpu > 1:
        raise ConfigError(
            f"The trainer would copy the model to {args.n_gpu} GPUs in one process, without its support tensors.",
            remedy="Start it with torchrun or accelerate launch, or let it see one GPU.",
        )


def _refuse_flattening(loader: Any) -> None:
    """Raises ConfigError where a collator puts all rows of a batch into one."""
    collator = getattr(loader, "collate_fn", None)
    collator = getattr(collator, "data_collator", collator)  # within what drops unused columns
    if "Flattening" in type(collator).__name__ or getattr(collator, "padding_free", False):
        raise ConfigError(
            f"{type(collator).__name__} puts all rows of a batch into one, which plays one genotype.",
            remedy='Pad the rows instead, or draw one genotype a step: Supernet(adapted, sampling="batch").',
        )
