"""Training glora's models in the loops of others: HF's Trainer and the trainers of TRL, by a callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glora import registry

if TYPE_CHECKING:
    from glora.integrations.transformers_callback import TrainerCallback

__all__ = ["TrainerCallback"]

_WHERE = {"TrainerCallback": "glora.integrations.transformers_callback:TrainerCallback"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'glora.integrations' has no attribute {name!r}")
    value = globals()[name] = registry.load(_WHERE[name])
    return value
