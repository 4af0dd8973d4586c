"""What there is: models, methods, data, searchers, and the layers of a model that can be adapted."""

from __future__ import annotations

from glora import backbones
from glora.data import DATASETS
from glora.errors import ConfigError, UnknownNameError, nearest
from glora.layers.sites import adaptable
from glora.methods import METHODS
from glora.searchers import SEARCHERS

__all__ = ["listing"]

KINDS = ("models", "methods", "data", "layers", "searchers")


def listing(what: str, model: str | None = None) -> list[str]:
    """One line per thing of this kind.

    Args:
        what: `models`, `methods`, `data`, `layers` or `searchers`.
        model: For `layers`: the backbone whose adaptable layers are listed.

    Raises:
        UnknownNameError: There is no such kind.
        ConfigError: `layers` without a model.
    """
    if what == "models":
        return list(backbones.names())
    if what == "layers":
        if model is None:
            raise ConfigError("`ls layers` needs a model.", remedy="glora ls layers dinov2_vits14")
        backbone = backbones.load_backbone(model, num_classes=2, pretrained=model in backbones.PACKAGED)
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
