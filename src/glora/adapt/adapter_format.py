"""The format of an adapter file: safetensors with one JSON header as its metadata.

It holds an `AdapterState` (versions 1 and 2), or the named numbers of another method (version 3). Reading is strict:
the header's format and version and every name and shape are checked before any tensor is read, then everything against
the model that it is for. docs/reference/adapter-file.md describes the format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glora.adapt.head import fits_head, head_of
from glora.adapt.sites import base_state, site_of, weights_by_site
from glora.adapt.state import AdapterState
from glora.adapt.statistics import statistics_of
from glora.adapt.wrappers import plain_modules
from glora.errors import AdapterFileError, SpaceError, listed
from glora.files import atomic, read_metadata
from glora.genotype import Genotype, Site
from glora.space import SearchSpace

__all__ = [
    "Numbers",
    "fingerprint",
    "is_adapter",
    "read_header",
    "read_method",
    "read_numbers",
    "read_state",
    "state_from",
    "write_numbers",
    "write_state",
]

FORMAT = "glora-adapter"
VERSIONS = (1, 2)  # of support tensors: read; the last is written. 1 has no running statistics
NUMBERS = 3  # the version of files with named numbers
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


def write_state(
    model: nn.Module,
    state: AdapterState,
    path: str | Path,
    *,
    info: Mapping[str, Any] | None = None,
    base_fingerprint: str | None = None,
    marks: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes an adapter file.

    Args:
        model: The adapted model, for the fingerprint of its base.
        state: What is written.
        path: The file; it appears whole or not at all.
        info: Plain JSON that travels with it.
        base_fingerprint: What `fingerprint` gives for this base, where it is known; otherwise it is computed.
        marks: Tensors of the writer's own, which whoever reads the adapter leaves unread.
    """
    header = {
        "format": FORMAT,
        "version": VERSIONS[-1],
        "base": base_fingerprint or _fingerprint_for(model, state),
        "space": state.space.to_json(),
        "sites": {name: asdict(site) for name, site in state.sites.items()},
        "shared": _shared(model, state.sites),
        "genotype": None if state.genotype is None else state.genotype.to_json(),
        "scales": state.scales,
        "head": list(state.head_modules),
        "statistics": list(state.statistics),
        "info": dict(info or {}),
    } | ({"marks": list(marks)} if marks else {})
    tensors = state.tensors | {HEAD + name: value for name, value in state.head.items()} | dict(marks or {})
    tensors |= {STATISTICS + name: value for name, value in state.statistics.items()}
    whole = _apart({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata={"glora": json.dumps(header)})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors; of those in the same memory, such as the factors of tied supports, all but the first are copied."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        found[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return found


def _fingerprint_for(model: nn.Module, state: AdapterState) -> str:
    return fingerprint(model, (*state.head_modules, *state.statistics))


def _shared(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """The names of the layers that share a site's weight, where there are several."""
    return {
        name: [weight.name for weight in group]
        for name, group in weights_by_site(model).items()
        if name in sites and len(group) > 1
    }


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
    if header.get("version") not in (*VERSIONS, NUMBERS):
        raise AdapterFileError(
            f"{path} has format version {header.get('version')!r}.",
            allowed=f"This glora reads the versions {', '.join(map(str, (*VERSIONS, NUMBERS)))}.",
            remedy="Update glora: pip install -U glora",
        )
    return header


def _read(path: str | Path) -> tuple[AdapterState, dict[str, Any]]:
    """The state in the file, its names and shapes checked before any tensor is read."""
    header = read_header(path)
    if header["version"] == NUMBERS:
        raise AdapterFileError(
            f"{path} holds the numbers of the method {header.get('method', {}).get('name')!r}, no support tensors.",
            remedy="Load it with glora.load_adapter.",
        )
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
        marks = {str(name) for name in header.get("marks", ())}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AdapterFileError(f"The header of {path} is damaged: {error}.", remedy="Copy it again.") from error
    with safe_open(Path(path), framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(HEAD) and name not in marks]
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


def state_from(tensors: Mapping[str, Tensor], like: AdapterState, path: str | Path) -> AdapterState:
    """The state of an adapter file's tensors, where they were read without its header.

    Args:
        tensors: All that the file has, but its marks.
        like: A state of the same kind, which says what else the header does.
        path: The file, in the words of an error.

    Raises:
        AdapterFileError: It has other tensors than the state, or a tensor of another shape.
    """
    parts: dict[str, dict[str, Tensor]] = {"": {}, HEAD: {}, STATISTICS: {}}
    wanted = like.tensors | {HEAD + name: value for name, value in like.head.items()}
    wanted |= {STATISTICS + name: value for name, value in like.statistics.items()}
    _same_names(path, wanted, list(tensors))
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise AdapterFileError(
                f"{path}: {name} is of shape {tuple(value.shape)}.",
                allowed=f"The model here asks for {tuple(wanted[name].shape)}.",
                remedy="Inject with the settings that it was trained with.",
            )
        prefix = next((each for each in (HEAD, STATISTICS) if name.startswith(each)), "")
        parts[prefix][name.removeprefix(prefix)] = value
    return replace(like, tensors=parts[""], head=parts[HEAD], statistics=parts[STATISTICS])


def _same_names(path: str | Path, wanted: Iterable[str], names: Sequence[str]) -> None:
    damaged = "The file is damaged; copy it again."
    if missing := sorted(set(wanted) - set(names)):
        raise AdapterFileError(f"{path} lacks {listed(missing)}.", remedy=damaged)
    if extra := sorted(set(names) - set(wanted)):
        raise AdapterFileError(f"{path} has unknown keys {listed(extra)}.", remedy=damaged)


class Numbers(NamedTuple):
    """What a file of version 3 holds.

    Attributes:
        method: The method's settings, plain JSON with its `name`.
        tensors: The numbers by name. head: The head's parameters and buffers. statistics: Trained running statistics.
        head_modules: Names of the modules trained whole.
        base: The fingerprint of the base.
        info: Plain JSON of the writer.
    """

    method: dict[str, Any]
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    statistics: dict[str, Tensor]
    head_modules: tuple[str, ...]
    base: str
    info: dict[str, Any]


def write_numbers(path: str | Path, numbers: Numbers) -> None:
    """Writes the numbers of a method that has no support tensors; the file appears whole or not at all."""
    tensors = numbers.tensors | {HEAD + name: value for name, value in numbers.head.items()}
    tensors |= {STATISTICS + name: value for name, value in numbers.statistics.items()}
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "format": FORMAT,
        "version": NUMBERS,
        "method": numbers.method,
        "base": numbers.base,
        "head": list(numbers.head_modules),
        "tensors": {name: list(value.shape) for name, value in whole.items()},
        "info": numbers.info,
    }
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata={"glora": json.dumps(header)})


def read_numbers(path: str | Path) -> Numbers:
    """What `write_numbers` wrote, its names and shapes checked before any tensor is read.

    Raises:
        AdapterFileError: Damaged, or of support tensors.
    """
    found, shapes = _said(path)
    parts = {"": found.tensors, HEAD: found.head, STATISTICS: found.statistics}
    with safe_open(Path(path), framework="pt") as file:
        _same_names(path, shapes, list(file.keys()))
        for name, shape in shapes.items():
            if tuple(file.get_slice(name).get_shape()) != shape:
                raise AdapterFileError(f"{path}: {name} is not of shape {shape}.", remedy="Copy the file again.")
        for name in shapes:
            prefix = next((each for each in (HEAD, STATISTICS) if name.startswith(each)), "")
            parts[prefix][name.removeprefix(prefix)] = file.get_tensor(name)
    return found


def read_method(path: str | Path) -> Numbers:
    """What `read_numbers` gives, without any tensor: the header alone is read.

    Raises:
        AdapterFileError: The header is damaged, or the file is of support tensors.
    """
    return _said(path)[0]


def _said(path: str | Path) -> tuple[Numbers, dict[str, tuple[int, ...]]]:
    """What the header says, and the shape of every tensor."""
    header = read_header(path)
    if header["version"] != NUMBERS:
        raise AdapterFileError(f"{path} holds support tensors.", remedy="Load it with glora.load_adapter.")
    try:
        shapes = {str(name): tuple(map(int, shape)) for name, shape in header["tensors"].items()}
        method, modules, base, info = (
            dict(header["method"]),
            tuple(header["head"]),
            header["base"],
            dict(header["info"]),
        )
        method["name"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AdapterFileError(f"The header of {path} is damaged: {error}.", remedy="Copy it again.") from error
    return Numbers(method, {}, {}, {}, modules, base, info), shapes


def read_state(
    model: nn.Module, path: str | Path, *, check_base: bool = True, base_fingerprint: str | None = None
) -> AdapterState:
    """The adapter in the file, checked against the model that it is for.

    Args:
        model: The base, plain or adapted.
        path: The file.
        check_base: Compare the fingerprint of the base.
        base_fingerprint: What `fingerprint` gives for this base, where it is known; otherwise it is computed.

    Raises:
        AdapterFileError: Damaged, or of another base, or its sites or head do not exist in the model.
    """
    state, header = _read(path)
    _check_sites(model, path, state, header)
    _need_head(model, path, state, header)
    _check_own(model, path, state, header)
    if check_base and (base_fingerprint or _fingerprint_for(model, state)) != header.get("base"):
        raise AdapterFileError(
            f"{path} was trained on another base: the weights of this {type(model).__name__} differ.",
            allowed="Architecture, pretrained weights, input size and dtype must be those of its training.",
            remedy=_which_base(header),
        )
    return state


def _check_sites(model: nn.Module, path: str | Path, state: AdapterState, header: Mapping[str, Any]) -> None:
    """Raises AdapterFileError unless the model has the sites, and the same layers share a weight."""
    modules = dict(plain_modules(model))
    here = {name: site_of(group) for name, group in weights_by_site(model).items()}
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


def _need_head(model: nn.Module, path: str | Path, state: AdapterState, header: Mapping[str, Any]) -> None:
    """Raises AdapterFileError where the model was built without the head that the file has."""
    if state.head and not head_of(model, state.head_modules):
        outputs = [len(value) for value in state.head.values() if value.dim()][-1:]
        of, does = (f" of {outputs[0]} outputs", f", as num_classes={outputs[0]} does") if outputs else ("", "")
        raise AdapterFileError(
            f"{path} has a head, {listed(state.head_modules)}{of}, and this {type(model).__name__} has none.",
            remedy=f"Build it with a head{does}. {_which_base(header)}",
        )


def _check_own(model: nn.Module, path: str | Path, state: AdapterState, header: Mapping[str, Any]) -> None:
    """Raises AdapterFileError unless head and running statistics fit the model's."""
    _same_names(path, head_of(model, state.head_modules), list(state.head))
    if state.statistics:
        _same_names(path, statistics_of(model, state.head_modules), list(state.statistics))
    own = state.head | state.statistics
    if odd := [name for name, value in own.items() if not fits_head(model, name, value)]:
        raise AdapterFileError(f"{path}: the head's {listed(odd)} has another shape.", remedy=_which_base(header))


def _which_base(header: Mapping[str, Any]) -> str:
    backbone = header["info"].get("backbone") if isinstance(header.get("info"), dict) else None
    return f"Build the base it was trained on{f': {json.dumps(backbone)}' if backbone else ''}."
