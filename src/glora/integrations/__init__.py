"""Training glora's models in the loops of others: HF's Trainer and TRL's, Lightning, and loops of one's own.

`TrainerCallback` and `LightningCallback` are for those trainers; `Steps` is for plain loops, with accelerate or as in
timm's `train.py`. All draw what a step plays by a seed and the step's number.

Of several processes: within `sharded` each holds a part of the frozen weights, `held_bytes` counts what it holds, and
within `watched` one that ends ends the others with a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glora import registry

if TYPE_CHECKING:
    from glora.adapt.sharded import held_bytes, sharded
    from glora.integrations.lightning_callback import LightningCallback
    from glora.integrations.steps import Steps
    from glora.integrations.transformers_callback import TrainerCallback
    from glora.integrations.watching import watched

__all__ = ["LightningCallback", "Steps", "TrainerCallback", "held_bytes", "sharded", "watched"]

_WHERE = {
    "LightningCallback": "glora.integrations.lightning_callback:LightningCallback",
    "Steps": "glora.integrations.steps:Steps",
    "TrainerCallback": "glora.integrations.transformers_callback:TrainerCallback",
    "held_bytes": "glora.adapt.sharded:held_bytes",
    "sharded": "glora.adapt.sharded:sharded",
    "watched": "glora.integrations.watching:watched",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'glora.integrations' has no attribute {name!r}")
    value = globals()[name] = registry.load(_WHERE[name])
    return value
