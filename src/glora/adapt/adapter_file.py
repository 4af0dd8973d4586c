"""The adapter file: safetensors whose metadata is one JSON header; and the plain merged model.

Before any tensor is read, the header's format, version and base fingerprint and every name and shape are checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from glora.adapt.adapted import Adapted
from glora.adapt.head import fits_head, head_of
from glora.adapt.sites import base_state, holders, site_of
from glora.adapt.state import AdapterState
from glora.adapt.statistics import statistics_of
from glora.errors import AdapterFileError, SpaceError, listed
from glora.files import atomic, read_metadata
from glora.genotype import Genotype, Site
from glora.space import SearchSpace

__all__ = [
    "fingerprint",
    "is_adapter",
    "load_adapter",
    "load_supernet",
    "read_for",
    "read_header",
    "read_metadata",
    "read_tensors",
    "save_adapter",
    "save_merged",
    "save_supernet",
    "save_tensors",
]

FORMAT = "glora-adapter"
VERSIONS = (1, 2)  # read; the last is written. 1 has no running statistics
HEAD, STATISTICS = "head/", "statistics/"  # prefixes of the tensors that are no support tensors; no site name has them


def fingerprint(model: nn.Module, head: Sequence[str]) -> str:
    """The sha256 of the base: names, types, shapes and bytes of its parameters and buffers.

    Args:
        model: Adapted or not.
        head: Names of the modules, and of running statistics, that are the adapter's and not the base's.
    """
    digest = hashlib.sha256()
    for name, value in sorted(base_state(model, head).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapter(adapted: Adapted, path: str | Path, *, info: Mapping[str, Any] | None = None) -> None:
    """Writes the active genotype's numbers, the head and trained running statistics, and nothing else.

    Args:
        adapted: An adapted model that is not merged.
        path: The safetensors file.
        info: Plain JSON that travels with it, such as class names and preprocessing.

    Raises:
        StateError: One genotype per sample is active, or the model is merged or detached.
    """
    _write(adapted, adapted.state(), path, info or {})


def save_supernet(adapted: Adapted, path: str | Path, *, info: Mapping[str, Any] | None = None) -> None:
    """Writes all support tensors, whole, and the head; `load_adapter` gives the supernet back."""
    _write(adapted, adapted.state(whole=True), path, info or {})


def _write(adapted: Adapted, state: AdapterState, path: str | Path, info: Mapping[str, Any]) -> None:
    header = {
        "format": FORMAT,
        "version": VERSIONS[-1],
        "base": fingerprint(adapted.model, (*state.head_modules, *state.statistics)),
        "space": state.space.to_json(),
        "sites": {name: asdict(site) for name, site in state.sites.items()},
        "shared": _shared(adapted.model, state.sites),
        "genotype": None if state.genotype is None else state.genotype.to_json(),
        "scales": state.scales,
        "head": list(state.head_modules),
        "statistics": list(state.statistics),
        "info": dict(info),
    }
    tensors = state.tensors | {HEAD + name: value for name, value in state.head.items()}
    tensors |= {STATISTICS + name: value for name, value in state.statistics.items()}
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata={"glora": json.dumps(header)})


def _shared(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """The names of the layers that share a site's weight, where there are several."""
    return {name: [p.name for p in group] for name, group in holders(model).items() if name in sites and group[1:]}


def save_merged(model: nn.Module, path: str | Path, *, info: Mapping[str, Any] | None = None) -> None:
    """Writes the state dict of a plain (merged) model as safetensors, tied weights once, with plain JSON beside it."""
    with atomic(path) as temporary:
        save_model(model, str(temporary), metadata={"glora": json.dumps(dict(info or {}))})


def is_adapter(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata is the header of an adapter file, of whatever version."""
    return metadata.get("format") == FORMAT


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of an adapter file: space, sites, genotype, head, base fingerprint, info.

    Raises:
        AdapterFileError: No such file, damaged, not an adapter file, or of an unknown version.
    """
    header = read_metadata(path)
    if not is_adapter(header):
        raise AdapterFileError(f"{path} is not a glora adapter.", allowed="Such files are written by save_adapter.")
    if header.get("version") not in VERSIONS:
        raise AdapterFileError(
            f"{path} has format version {header.get('version')!r}.",
            allowed=f"This glora reads versions {' and '.join(map(str, VERSIONS))}.",
            remedy="Update glora: pip install -U glora",
        )
    return header


def _read(path: str | Path) -> tuple[AdapterState, dict[str, Any]]:
    """The state in the file, its names and shapes checked before any tensor is read."""
    header = read_header(path)
    try:
        space = SearchSpace.from_json(header["space"])
        sites = {name: Site(**site) for name, site in header["sites"].items()}
        genotype = None if header["genotype"] is None else Genotype.from_json(header["genotype"])
        scales = {site: {key: float(value) for key, value in of.items()} for site, of in header["scales"].items()}
        state = AdapterState(space, sites, genotype, scales, {}, {}, tuple(map(str, header["head"])))
        if sites.keys() != scales.keys() or (genotype is not None and sites.keys() != genotype.keys()):
            raise SpaceError("sites, scales and genotype differ")
        shapes = state.shapes()
        statistics = [STATISTICS + name for name in ([] if header["version"] == 1 else header["statistics"])]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AdapterFileError(f"The header of {path} is damaged: {error}.", remedy="Copy it again.") from error
    with safe_open(Path(path), framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(HEAD)]
        _same_names(path, [*shapes, *statistics], names)
        for name, shape in shapes.items():
            found = file.get_slice(name)
            if tuple(found.get_shape()) != shape or found.get_dtype() != "F32":
                raise AdapterFileError(
                    f"{path}: {name} is {found.get_dtype()} {tuple(found.get_shape())}.",
                    allowed=f"Its header asks for F32 {shape}.",
                    remedy="The file is damaged; copy it again.",
                )
        state.tensors.update({name: file.get_tensor(name) for name in shapes})
        state.statistics.update({name.removeprefix(STATISTICS): file.get_tensor(name) for name in statistics})
        heads = (name for name in file.keys() if name.startswith(HEAD))
        state.head.update({name.removeprefix(HEAD): file.get_tensor(name) for name in heads})
    return state, header


def _same_names(path: str | Path, wanted: Any, names: Sequence[str]) -> None:
    damaged = "The file is damaged; copy it again."
    if missing := sorted(set(wanted) - set(names)):
        raise AdapterFileError(f"{path} lacks {listed(missing)}.", remedy=damaged)
    if extra := sorted(set(names) - set(wanted)):
        raise AdapterFileError(f"{path} has unknown keys {listed(extra)}.", remedy=damaged)


def read_for(model: nn.Module, path: str | Path, *, check_base: bool = True) -> AdapterState:
    """The adapter in the file, checked against the model that it is for.

    Raises:
        AdapterFileError: Damaged, or of another base, or its sites or head do not exist in the model.
    """
    state, header = _read(path)
    modules = dict(model.named_modules())
    here = {name: site_of(group) for name, group in holders(model).items()}
    missing = [name for name in state.sites if name not in here]
    if unknown := missing + [name for name in state.head_modules if name not in modules]:
        raise AdapterFileError(
            f"{path} is for another model: {type(model).__name__} has no {listed(unknown)} to adapt.",
            remedy=_which_base(header),
        )
    for name, site in state.sites.items():
        if here[name] != replace(site, new_bias=False):
            raise AdapterFileError(
                f"{path} is for another model: {name} is {here[name]} here.",
                allowed=f"The file has {site}.",
                remedy=_which_base(header),
            )
    if (shared := _shared(model, state.sites)) != header.get("shared", {}):
        raise AdapterFileError(
            f"{path} is for another model: the layers that share a weight are {shared} here.",
            allowed=f"The file has {header.get('shared')}.",
            remedy="Tie the weights as they were in training.",
        )
    _same_names(path, head_of(model, state.head_modules).keys(), list(state.head))
    if state.statistics:
        _same_names(path, statistics_of(model, state.head_modules).keys(), list(state.statistics))
    own = state.head | state.statistics
    if odd := [name for name, value in own.items() if not fits_head(model, name, value)]:
        raise AdapterFileError(f"{path}: the head's {listed(odd)} has another shape.", remedy=_which_base(header))
    if check_base and fingerprint(model, (*state.head_modules, *state.statistics)) != header.get("base"):
        raise AdapterFileError(
            f"{path} was trained on another base: the weights of this {type(model).__name__} differ.",
            allowed="Architecture, pretrained weights, input size and dtype must be those of its training.",
            remedy=_which_base(header),
        )
    return state


def _which_base(header: Mapping[str, Any]) -> str:
    backbone = header["info"].get("backbone") if isinstance(header.get("info"), dict) else None
    return f"Build the base it was trained on{f': {json.dumps(backbone)}' if backbone else ''}."


def load_adapter(model: nn.Module, path: str | Path, *, check_base: bool = True) -> Adapted:
    """The plain model adapted as the file says, its genotype active and its head in place.

    Args:
        model: The base that the adapter was trained on; its head may be fresh, of any width.
        path: What `save_adapter` wrote.
        check_base: Compare the base's fingerprint; False accepts, for instance, the same base in another dtype.

    Raises:
        AdapterFileError: The file is damaged or does not fit the model; the model is untouched then.
    """
    return Adapted.from_state(model, read_for(model, path, check_base=check_base))


def load_supernet(adapted: Adapted, path: str | Path) -> None:
    """Fills an adapted model of the same space and base with what `save_supernet` wrote.

    Raises:
        AdapterFileError: The file is damaged or of another base.
        StateError: It is of other sites or another space.
    """
    adapted.load_state(read_for(adapted.model, path))


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and plain data of an unfinished run as safetensors, atomically."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata={"glora": json.dumps(dict(meta))})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        AdapterFileError: The file is damaged.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {})["glora"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise AdapterFileError(f"{path} is damaged: {error}.", remedy="Delete it; its stage starts again.") from error
