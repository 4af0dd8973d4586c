"""What there is: models, methods, objectives, data, searchers, exports, loggers, settings, and the layers of a model.

Heavy imports wait until they are needed, so that a short list is quick.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glora.config import TABLES, build_experiment, describe
from glora.errors import ConfigError, UnknownNameError, did_you_mean
from glora.registry import load
from glora.settings import is_benchmark, read_written

if TYPE_CHECKING:
    from glora.genotype import Site

__all__ = ["KINDS", "check", "listing"]

KINDS = ("models", "methods", "objectives", "data", "layers", "searchers", "exports", "loggers", "settings", "runs")
GROUPS = {"methods": "method", "objectives": "objective", "data": "data", "searchers": "search.searcher"}


def listing(what: str, name: str | None = None, *, image_size: int | None = None) -> list[str]:
    """One line per thing of this kind.

    Args:
        what: One of `KINDS`.
        name: For `layers`: the backbone whose adaptable layers are listed; for `settings`: whose; for all others: a
            part of the name.
        image_size: For `layers`: side of the backbone's input in pixels.

    Raises:
        UnknownNameError: There is no such kind, or there are no settings of this name.
        ConfigError: `layers` without a model.
    """
    if what in GROUPS:
        return _described(load(TABLES[GROUPS[what]]), name or "")
    if what == "exports":
        from glora.exports import EXPORTS

        return _described(EXPORTS, name or "")
    if what == "loggers":
        from glora.report.loggers import LOGGERS

        return [each for each in LOGGERS if (name or "") in each]
    if what == "models":
        from glora import backbones

        return [each for each in backbones.names() if (name or "") in each]
    if what == "settings":
        return describe(name) or [f"{name} has no settings."]
    if what == "layers":
        return _layers(name, image_size)
    raise UnknownNameError(
        f"There is nothing called {what!r} to list.",
        allowed=f"Allowed: {', '.join(KINDS)}.",
        remedy=did_you_mean(what, KINDS),
    )


def _described(table: Mapping[str, str], part: str) -> list[str]:
    """The names of a table with this part, each with the first line of what it makes."""
    names = sorted(name for name in table if part in name)
    width = max(map(len, names), default=0)
    return [f"{name:{width}}  {(inspect.getdoc(load(table[name])) or '').partition(chr(10))[0]}" for name in names]


def _layers(model: str | None, image_size: int | None) -> list[str]:
    if model is None:
        raise ConfigError("`ls layers` needs a model.", remedy="For example: glora ls layers dinov2_vits14")
    from glora.adapt.sites import adaptable
    from glora.backbones import load_backbone

    backbone = load_backbone(model, num_classes=2, image_size=image_size, pretrained=False)
    return [
        f"{name}  {site.kind} {_size(site)}{'' if site.bias else ', no bias'}"
        for name, site in adaptable(backbone.model, backbone.head).items()
    ]


def _size(site: Site) -> str:
    return f"{site.out_features}" if site.diagonal else f"{site.out_features} x {site.in_features}"


def check(path: Path) -> str:
    """What a file is, in words: an experiment or a benchmark, all of its names looked up.

    Raises:
        ConfigError: Lists every unknown name, unknown key and wrong value at once, with the nearest ones.
    """
    data = read_written(path)
    if is_benchmark(data):
        from glora.runs.benchmark.settings import build_benchmark

        return build_benchmark(data, source=str(path)).summary
    build_experiment(data, source=str(path), problems=_unknown_model(data))
    return "ok"


def _unknown_model(data: Mapping[str, Any]) -> list[str]:
    """The model's name is looked up in timm, which the experiment itself does not load."""
    model = data.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    if not isinstance(name, str):
        return []
    from glora import backbones

    problem = backbones.unknown_name(name)
    return [f"model.name: {problem}"] if problem else []
