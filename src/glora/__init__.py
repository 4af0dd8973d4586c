"""Generalized LoRA (arXiv 2306.07967): adapt every affine layer, search the best configuration, merge it.

Every name is loaded on first use, so that `import glora` and `glora --help` stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glora import registry
from glora.version import __version__ as __version__

if TYPE_CHECKING:
    from glora.adapt.adapted import Adapted, inject
    from glora.adapt.adapter_file import save_adapter
    from glora.adapt.supernet import Supernet
    from glora.errors import GloraError
    from glora.genotype import Choice, Genotype, LayerConfig, Site
    from glora.methods.files import load_adapter
    from glora.report.result import Result
    from glora.runs.exporting import export
    from glora.runs.fit import FitResult, fit, load
    from glora.runs.loaded import LoadedRun
    from glora.searchers import Racing, Score, SearchResult, Trial, search
    from glora.space import BoundSpace, SearchSpace

_WHERE = {
    "Adapted": "glora.adapt.adapted:Adapted",
    "BoundSpace": "glora.space:BoundSpace",
    "Choice": "glora.genotype:Choice",
    "FitResult": "glora.runs.fit:FitResult",
    "Genotype": "glora.genotype:Genotype",
    "GloraError": "glora.errors:GloraError",
    "LayerConfig": "glora.genotype:LayerConfig",
    "LoadedRun": "glora.runs.loaded:LoadedRun",
    "Racing": "glora.searchers:Racing",
    "Result": "glora.report.result:Result",
    "Score": "glora.searchers:Score",
    "SearchResult": "glora.searchers:SearchResult",
    "SearchSpace": "glora.space:SearchSpace",
    "Site": "glora.genotype:Site",
    "Supernet": "glora.adapt.supernet:Supernet",
    "Trial": "glora.searchers:Trial",
    "export": "glora.runs.exporting:export",
    "fit": "glora.runs.fit:fit",
    "inject": "glora.adapt.adapted:inject",
    "load": "glora.runs.fit:load",
    "load_adapter": "glora.methods.files:load_adapter",
    "save_adapter": "glora.adapt.adapter_file:save_adapter",
    "search": "glora.searchers:search",
}

__all__ = [
    "Adapted",
    "BoundSpace",
    "Choice",
    "FitResult",
    "Genotype",
    "GloraError",
    "LayerConfig",
    "LoadedRun",
    "Racing",
    "Result",
    "Score",
    "SearchResult",
    "SearchSpace",
    "Site",
    "Supernet",
    "Trial",
    "export",
    "fit",
    "inject",
    "load",
    "load_adapter",
    "save_adapter",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'glora' has no attribute {name!r}")
    value = globals()[name] = registry.load(_WHERE[name])
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
