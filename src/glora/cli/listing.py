"""What there is: models, methods, data, searchers, and the layers of a model that can be adapted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from glora.tasks.task import DATASETS

__all__ = ["check", "listing"]

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
            f"{name}  {site.kind} {_size(site)}{'' if site.bias else ', no bias'}"
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
    def given(key: str) -> Any:
        group, _, leaf = key.rpartition(".")
        inner = data.get(group, {}) if group else data
        return inner.get(leaf) if isinstance(inner, Mapping) else None

    model = given("model.name")
    asked: list[tuple[str, Any, Iterable[str]]] = [
        ("method", given("method"), METHODS),
        ("search.searcher", given("search.searcher"), SEARCHERS),
    ]
    source = given("data.source")
    if isinstance(source, str) and not Path(source).expanduser().exists():
        asked.append(("data.source", source, DATASETS))
    if isinstance(model, str) and not model.startswith("hf-hub:"):
        asked.append(("model.name", model.partition(".")[0], backbones.names()))
    unknown = [
        (key, name, nearest(name, names)) for key, name, names in asked if isinstance(name, str) and name not in names
    ]
    return [f"{key}: there is no {name!r}." + _hint(near) for key, name, near in unknown]


def _hint(near: list[str]) -> str:
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
