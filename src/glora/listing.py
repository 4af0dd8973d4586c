"""What there is: models, methods, data, searchers, and the layers of a model that can be adapted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from glora import backbones
from glora.config import Experiment, describe
from glora.data import DATASETS
from glora.errors import ConfigError, UnknownNameError, nearest
from glora.layers.sites import adaptable
from glora.methods import METHODS
from glora.searchers import SEARCHERS

__all__ = ["check_names", "listing"]

KINDS = ("models", "methods", "data", "layers", "searchers", "settings")


def listing(what: str, model: str | None = None, *, image_size: int | None = None) -> list[str]:
    """One line per thing of this kind.

    Args:
        what: `models`, `methods`, `data`, `layers`, `searchers` or `settings`.
        model: For `layers`: the backbone whose adaptable layers are listed; for `models`: a part of the name.
        image_size: For `layers`: side of the backbone's input in pixels.

    Raises:
        UnknownNameError: There is no such kind.
        ConfigError: `layers` without a model.
    """
    if what == "models":
        return [name for name in backbones.names() if (model or "") in name]
    if what == "settings":
        return describe()
    if what == "layers":
        if model is None:
            raise ConfigError("`ls layers` needs a model.", remedy="For example: glora ls layers dinov2_vits14")
        backbone = backbones.load_backbone(model, num_classes=2, image_size=image_size, pretrained=False)
        return [
            f"{name}  {site.kind} {site.out_features} x {site.in_features}{'' if site.bias else ', no bias'}"
            for name, site in adaptable(backbone.model, backbone.head).items()
        ]
    tables = {"methods": METHODS, "data": DATASETS, "searchers": SEARCHERS}
    if what not in tables:
        near = nearest(what, KINDS, n=1)
        raise UnknownNameError(
            f"There is nothing called {what!r} to list.",
            allowed=f"Allowed: {', '.join(KINDS)}.",
            remedy=f"Did you mean {near[0]!r}?" if near else "",
        )
    return sorted(tables[what])


def check_names(experiment: Experiment, *, source: str) -> None:
    """Nothing when the method, searcher, model and data set of an experiment exist.

    Args:
        experiment: Settings whose types are right.
        source: Where they come from, for the error.

    Raises:
        ConfigError: Lists every unknown name at once, with the nearest ones.
    """
    model = experiment.model.name
    asked: list[tuple[str, str, Iterable[str]]] = [
        ("method", experiment.method, METHODS),
        ("search.searcher", experiment.search.searcher, SEARCHERS),
    ]
    if not Path(experiment.data.source).expanduser().exists():
        asked.append(("data.source", experiment.data.source, DATASETS))
    if not model.startswith("hf-hub:"):
        asked.append(("model.name", model.partition(".")[0], backbones.names()))
    unknown = [(key, name, nearest(name, names)) for key, name, names in asked if name not in names]
    if unknown:
        lines = [f"{key}: there is no {name!r}." + _hint(near) for key, name, near in unknown]
        count = f"{len(lines)} errors" if len(lines) > 1 else "1 error"
        raise ConfigError(f"{count} in {source}:\n  " + "\n  ".join(lines), remedy="`glora ls` lists what there is.")


def _hint(near: list[str]) -> str:
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
