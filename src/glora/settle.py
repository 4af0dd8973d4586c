"""From settings to what they mean: nothing left open, and the method that they name."""

from __future__ import annotations

from pathlib import Path

from glora.config import Experiment
from glora.data import DATASETS
from glora.methods import Method, get_method, settings_of

__all__ = ["method_of", "settled"]


def settled(experiment: Experiment, method: Method) -> Experiment:
    """The same experiment with nothing left open: absolute paths, the method's own learning rate."""
    data, model = experiment.data, experiment.model
    source = Path(data.source).expanduser()
    if data.source not in DATASETS and source.exists():
        data = data.model_copy(update={"source": str(source.resolve())})
    if model.checkpoint is not None:
        model = model.model_copy(update={"checkpoint": model.checkpoint.expanduser().resolve()})
    train = experiment.train.model_copy(update={"lr": experiment.train.lr or method.lr})
    return experiment.model_copy(update={"data": data, "model": model, "train": train})


def method_of(experiment: Experiment) -> Method:
    """The method with those of the experiment's settings that it has.

    Raises:
        UnknownNameError: There is no such method.
    """
    model = experiment.model
    targets = model.targets if isinstance(model.targets, str) else tuple(model.targets)
    offered = {"space": experiment.space.build(), "rank": experiment.rank}
    offered |= {"sampling": experiment.train.sampling, "largest": experiment.train.largest}
    offered |= {"targets": targets, "skip": tuple(model.skip), "statistics": model.statistics}
    own = settings_of(experiment.method)
    return get_method(experiment.method, {name: value for name, value in offered.items() if name in own})
