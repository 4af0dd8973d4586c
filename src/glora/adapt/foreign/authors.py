"""What the authors' code saves: the supernet's tensors by layer, and the configurations of their search.

A checkpoint is a flat dictionary: `SITE.Ad` `(o, r)`, `.Au` `(r, i)`, the same of B, `.Cd` `(i, r)`, `.Cu` `(r, 1)`,
`.D` and `.E` `(o,)`, and the head's own names. Of a layer without a bias C and E make a new one, and D does nothing.
`checkpoint-N.pth.tar` of the search has configurations: for every layer in the model's order `LoRA_r`, `vector`,
`constant` or `none`.

Source: arXiv 2306.07967, the code at github.com/Arnav0400/ViT-Slim, GLoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glora.adapt.foreign.parts import Parts, layers_of, refuse
from glora.adapt.state import AdapterState
from glora.backbones.checkpoint import PICKLED, read_pickled
from glora.errors import AdapterFileError, BackboneError, listed
from glora.genotype import Choice, Genotype, LayerConfig
from glora.space import BoundSpace, SearchSpace

__all__ = ["AuthorsCheckpoint", "read_genotypes"]

FACTORS = {f"{tensor}{side}": (tensor, way) for tensor in "ABC" for side, way in (("d", "down"), ("u", "up"))}
FACTORS |= {"D": ("D", "down"), "E": ("E", "down")}
WORDS = {"vector": "vector", "constant": "scalar", "none": "none"}


class AuthorsCheckpoint:
    """Reads a checkpoint of the authors' code."""

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether the file is a pickled one."""
        return path.is_file() and path.suffix.lower() in PICKLED

    @staticmethod
    def read(model: nn.Module, path: Path) -> AdapterState:
        """The supernet in the file, as a state of all its choices.

        Raises:
            AdapterFileError: It is damaged, or not of this model.
        """
        found, parts = _load(path), Parts(path)
        if "keep_top_k" in found or "candidates" in found:
            refuse(path, "it holds configurations of a search, and no numbers.",
                   remedy="Load the supernet's checkpoint, then read_genotypes(adapted.space, path).")  # fmt: skip
        head = {name: value for name, value in found.items() if name.rpartition(".")[2] not in FACTORS}
        layers, ranks = layers_of(model), set()
        for name, value in found.items():
            if name in head:
                continue
            module, _, part = name.rpartition(".")
            tensor, side = FACTORS[part]
            if module not in layers:
                refuse(path, f"{type(model).__name__} has no {module!r} to adapt.", remedy="Build its base.")
            layer = layers[module]
            if part in ("Ad", "Bd"):
                ranks.add(value.shape[-1])
            if tensor == "D" and not layer.site.bias:  # their code keeps it, and does not use it
                continue
            choice = Choice("vector") if tensor in "DE" else Choice("lora", value.shape[-1 if side == "down" else 0])
            parts.put(layer, tensor, choice, **{side: value})
        if len(ranks) != 1:
            refuse(path, f"its layers have the ranks {sorted(ranks) or 'of nothing'}, where one holds for all.")
        parts.head = {name: value.float() for name, value in head.items()}
        parts.head_modules = _modules(model, path, head)
        return parts.state(model, product="elementwise", whole=SearchSpace.paper(ranks=(ranks.pop(),)))


def _load(path: Path) -> Mapping[str, Any]:
    try:
        found = read_pickled(path)
    except BackboneError as error:
        raise AdapterFileError(error.cause, allowed=error.allowed, remedy=error.remedy) from error
    if not isinstance(found, Mapping) or not found:
        refuse(path, f"it holds a {type(found).__name__}, not tensors by name.")
    if "keep_top_k" in found or "candidates" in found:
        return found
    if odd := [str(name) for name, value in found.items() if not isinstance(value, Tensor)]:
        refuse(path, f"it is no checkpoint of the authors' code: {listed(odd)} is no tensor.")
    if not any(str(name).rpartition(".")[2] in FACTORS for name in found):
        refuse(path, "it is no checkpoint of the authors' code: no name ends in Ad, Au, ..., D, E.",
               remedy="Weights of a whole model are loaded with --checkpoint.")  # fmt: skip
    return found


def _modules(model: nn.Module, path: Path, head: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The modules of the tensors that are no support tensors."""
    modules, names = dict(model.named_modules()), tuple(dict.fromkeys(name.rpartition(".")[0] for name in head))
    if lost := [name for name in names if not name or name not in modules]:
        refuse(path, f"{type(model).__name__} has no {listed(map(repr, lost))}, which it holds too.")
    return names


def read_genotypes(space: BoundSpace, path: str | Path) -> list[Genotype]:
    """The configurations that the authors' search kept, best first; those of its population where it kept none.

    Args:
        space: The space of the supernet, `adapted.space`: its sites in the model's order.
        path: Their `checkpoint-N.pth.tar`.

    Raises:
        AdapterFileError: It is damaged, of another model, or holds no configurations.
    """
    path = Path(path)
    found = _load(path)
    kept = found.get("keep_top_k") or {}
    lists = list(kept.values()) if isinstance(kept, Mapping) else [kept]
    chosen = max(lists, key=len, default=[]) or found.get("candidates") or []
    if not chosen:
        refuse(path, "it holds no configurations of a search.")
    return [_genotype(space, path, each) for each in chosen]


def _genotype(space: BoundSpace, path: Path, layers: Sequence[Mapping[str, str]]) -> Genotype:
    if len(layers) != len(space.sites):
        refuse(path, f"it has configurations of {len(layers)} layers, and the model has {len(space.sites)}.")
    configs = {}
    for (name, site), given in zip(space.sites.items(), layers, strict=True):
        choices = {tensor: _choice(path, str(given[tensor])) for tensor in "ABCDE"}
        if not site.bias:
            choices["D"] = "none"
        configs[name] = LayerConfig(**choices)
    genotype = Genotype(configs)
    space.encode(genotype)
    return genotype


def _choice(path: Path, text: str) -> str:
    if text in WORDS:
        return WORDS[text]
    kind, _, rank = text.partition("_")
    if kind != "LoRA" or not rank.isdigit():
        refuse(path, f"{text!r} is no choice of the authors' code.")
    return f"lora:{rank}"
