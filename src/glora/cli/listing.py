"""What there is: models, methods, data, searchers, and the layers of a model that can be adapted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glora import backbones
from glora.adapt.sites import adaptable
from glora.config import Experiment, build_experiment, describe
from glora.errors import ConfigError, UnknownNameError, nearest
from glora.genotype import Site
from glora.methods import METHODS
from glora.searchers import SEARCHERS
from glora.settings import read_settings
from glora.tasks.data import SOURCES
from glora.tasks.objectives import OBJECTIVES

__all__ = ["check", "listing"]

KINDS = ("models", "methods", "objectives", "data", "layers", "searchers", "settings")


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
            f"{name}  {site.kind} {_size(site)}{'' if site.bias else ', no bias'}"
            for name, site in adaptable(backbone.model, backbone.head).items()
        ]
    tables = {"methods": METHODS, "objectives": OBJECTIVES, "data": SOURCES, "searchers": SEARCHERS}
    if what not in tables:
        near = nearest(what, KINDS, n=1)
        raise UnknownNameError(
            f"There is nothing called {what!r} to list.",
            allowed=f"Allowed: {', '.join(KINDS)}.",
            remedy=f"Did you mean {near[0]!r}?" if near else "",
        )
    return sorted(tables[what])


def _size(site: Site) -> str:
    return f"{site.out_features}" if site.diagonal else f"{site.out_features} x {site.in_features}"


def check(path: Path) -> Experiment:
    """The experiment of a file, its names looked up: of method, searcher, model and data set.

    Raises:
        ConfigError: Lists every unknown name, unknown key and wrong value at once, with the nearest ones.
    """
    data = read_settings(path)
    return build_experiment(data, source=str(path), problems=_unknown_names(data))


def _unknown_names(data: Mapping[str, Any]) -> list[str]:
    """The model's name is looked up in timm, which the experiment itself does not load."""
    model = data.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    if not isinstance(name, str) or name.startswith("hf-hub:"):
        return []
    names = backbones.names()
    if name.partition(".")[0] in names:
        return []
    near = nearest(name.partition(".")[0], names)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return [f"model.name: there is no {name!r}.{hint}"]
