"""The format of an adapter file: safetensors with one JSON header as its metadata.

It holds an `AdapterState` (versions 1 and 2), or the named numbers of another method (version 3). Strangers write such
files too, so reading is strict: header, names, shapes and dtypes are checked by themselves and against the model before
any tensor is read, then the checksum, and that every number is finite. docs/reference/adapter-file.md describes the
format.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glora.adapt.head import fits_head, head_of
from glora.adapt.sharded import is_sharded, whole
from glora.adapt.sites import base_state, site_of, weights_by_site
from glora.adapt.state import AdapterState
from glora.adapt.statistics import statistics_of
from glora.adapt.wrappers import plain_modules
from glora.errors import AdapterFileError, SpaceError, StateError, listed
from glora.files import atomic, read_metadata, read_tensor_layout
from glora.genotype import Genotype, Site
from glora.space import SearchSpace
from glora.tensor_file import Layout
from glora.version import __version__

__all__ = [
    "CHECKSUM",
    "Numbers",
    "checksum",
    "fingerprint",
    "is_adapter",
    "read_header",
    "read_method",
    "read_numbers",
    "read_state",
    "state_from",
    "tensors_of",
    "write_numbers",
    "write_state",
]

FORMAT = "glora-adapter"
VERSIONS = (1, 2)  # of support tensors: read; the last is written. 1 has no running statistics
NUMBERS = 3  # the version of files with named numbers
HEAD, STATISTICS = "head/", "statistics/"  # prefixes of the tensors that are no support tensors; no site name has them
CHECKSUM = "sha256"  # the header's field; files of before there was one have none
SCALES = 1e-9, 1e9  # what a fixed scale may be: 1 / sqrt(width), or alpha / rank, times a strength
SCALED = re.compile(r"[ABCDE]\.(lora|vector|scalar)")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DAMAGED = "The file is damaged; copy it again."


def fingerprint(model: nn.Module, head: Sequence[str]) -> str:
    """The sha256 of the base: names, types, shapes and bytes of its parameters and buffers.

    Args:
        model: Adapted or not.
        head: Names of the modules, and of running statistics, that are the adapter's and not the base's.
    """
    digest = hashlib.sha256()
    for name, value in sorted(base_state(model, head).items()):
        _hash(digest, name, value)
    return digest.hexdigest()


def checksum(header: Mapping[str, Any], names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """The sha256 of a file: of its header without this field, and of names, dtypes, shapes and bytes of its tensors.

    Args:
        header: Plain JSON.
        names: Of all tensors in the file.
        tensor: Name -> tensor; asked for one at a time.
    """
    said = {key: value for key, value in json.loads(json.dumps(header)).items() if key != CHECKSUM}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(names):
        _hash(digest, name, tensor(name))
    return digest.hexdigest()


def _hash(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _write(path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The file has the header, its checksum, and the tensors; it appears whole or not at all.

    Raises:
        StateError: A number is not finite: the file could not be read again.
    """
    if odd := [name for name, value in tensors.items() if not _finite(value)]:
        raise StateError(
            f"{listed(odd)} has numbers that are not finite: {path} is not written.",
            remedy="Go back to the last good state, and train with a lower learning rate.",
        )
    said = {**header, "made": {"glora": __version__, "torch": torch.__version__}}
    whole = {**said, CHECKSUM: checksum(said, tensors, tensors.__getitem__)}
    with atomic(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"glora": json.dumps(whole)})


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


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
    tensors = tensors_of(state) | dict(marks or {})
    plain = {name: whole(value.detach()).cpu().contiguous() for name, value in tensors.items()}
    if not is_sharded(model) or torch.distributed.get_rank() == 0:  # all have brought their parts; one writes
        _write(path, header, _apart(plain))


def tensors_of(state: AdapterState) -> dict[str, Tensor]:
    """All tensors of a state under the names that they have in an adapter file."""
    head = {HEAD + name: value for name, value in state.head.items()}
    return {**state.tensors, **head, **{STATISTICS + name: value for name, value in state.statistics.items()}}


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
    if type(version := header.get("version")) is not int or version not in (*VERSIONS, NUMBERS):
        raise AdapterFileError(
            f"{path} has format version {str(version)[:40]!r}.",
            allowed=f"This glora reads the versions {', '.join(map(str, (*VERSIONS, NUMBERS)))}.",
            remedy="Update glora: pip install -U glora",
        )
    return header


def _said_state(path: str | Path, header: Mapping[str, Any]) -> AdapterState:
    """The state that the header tells of, without its tensors.

    Raises:
        AdapterFileError: The header is damaged.
    """
    if header["version"] == NUMBERS:
        method = header["method"].get("name") if isinstance(header.get("method"), dict) else None
        raise AdapterFileError(
            f"{path} holds the numbers of the method {str(method)[:40]!r}, no support tensors.",
            allowed="glora.load_adapter reads it where the method is none of support tensors.",
            remedy=DAMAGED,
        )
    try:
        space = SearchSpace.from_json(header["space"])
        sites = {name: Site(**site) for name, site in header["sites"].items()}
        genotype = None if header["genotype"] is None else Genotype.from_json(header["genotype"])
        scales = {site: {key: _scale(site, key, value) for key, value in of.items()}
                  for site, of in header["scales"].items()}  # fmt: skip
        statistics = () if header["version"] == 1 else _texts(header, "statistics")
        state = AdapterState(space, sites, genotype, scales, {}, {}, _texts(header, "head"),
                             dict.fromkeys(statistics, torch.empty(0)))  # fmt: skip
        _texts(header, "marks")
        _check_kinds(header, base=str, info=dict)
        if not sites or sites.keys() != scales.keys() or (genotype is not None and sites.keys() != genotype.keys()):
            raise SpaceError("sites, scales and genotype differ")
        if odd := [
            name for name, site in sites.items() if type(site.new_bias) is not bool or site.new_bias > (not site.bias)
        ]:
            raise SpaceError(f"new_bias of {listed(odd)} is no truth value, or there is a bias")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise _bad_header(path, error) from error
    return state


def _bad_header(path: str | Path, error: Exception) -> AdapterFileError:
    reason = f"it has no {error}" if type(error) is KeyError else str(error).rstrip(".")
    return AdapterFileError(f"The header of {path} is damaged: {reason[:400]}.", remedy="Copy it again.")


def _scale(site: str, key: str, value: Any) -> float:
    low, high = SCALES
    if not SCALED.fullmatch(key) or type(value) not in (int, float) or not low <= value <= high:
        raise SpaceError(f"scales of {site[:80]!r} has {key[:40]!r}: {str(value)[:40]!r}")
    return float(value)


def _texts(header: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of different texts; `marks` may be missing."""
    found = header.get(key, []) if key == "marks" else header[key]
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found) or len({*found}) < len(found):
        raise TypeError(f"{key} is no list of different names: {str(found)[:80]}")
    return tuple(found)


def _check_kinds(header: Mapping[str, Any], **kinds: type) -> None:
    for key, kind in kinds.items():
        if not isinstance(header[key], kind):
            raise TypeError(f"{key} is {str(header[key])[:80]!r}")


def _fill_state(path: str | Path, state: AdapterState, header: Mapping[str, Any], layout: Layout) -> None:
    """Reads the tensors, whose names, shapes and dtypes are checked, into the state."""
    marks = set(_texts(header, "marks"))
    with safe_open(Path(path), framework="pt") as file:
        _check_sum(path, header, layout, file.get_tensor)
        for name in layout.tensors:
            if name in marks:
                continue
            value = file.get_tensor(name)
            if not _finite(value):
                raise _not_finite(path, name)
            if name.startswith(HEAD):
                state.head[name.removeprefix(HEAD)] = value
            elif name.startswith(STATISTICS):
                state.statistics[name.removeprefix(STATISTICS)] = value
            else:
                state.tensors[name] = value


def _check_sum(path: str | Path, header: Mapping[str, Any], layout: Layout, tensor: Callable[[str], Tensor]) -> None:
    if CHECKSUM in header and header[CHECKSUM] != checksum(header, layout.tensors, tensor):
        raise AdapterFileError(
            f"{path} is damaged: what it holds does not have the checksum in its header.",
            remedy="Copy it again from its source.",
        )


def _not_finite(path: str | Path, name: str) -> AdapterFileError:
    return AdapterFileError(f"{path}: {name} has numbers that are not finite.", remedy="Save or copy it again.")


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
    wanted = tensors_of(like)
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
    if missing := sorted(set(wanted) - set(names)):
        raise AdapterFileError(f"{path} lacks {listed(missing)}.", remedy=DAMAGED)
    if extra := sorted(set(names) - set(wanted)):
        raise AdapterFileError(f"{path} has unknown keys {listed(extra)}.", remedy=DAMAGED)


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
    _write(path, header, whole)


def read_numbers(path: str | Path) -> Numbers:
    """What `write_numbers` wrote, its names and shapes checked before any tensor is read.

    Raises:
        AdapterFileError: Damaged, or of support tensors.
    """
    found, shapes = _said(path)
    parts = {"": found.tensors, HEAD: found.head, STATISTICS: found.statistics}
    layout = read_tensor_layout(path)
    _same_names(path, shapes, list(layout.tensors))
    if odd := [name for name, shape in shapes.items() if layout.tensors[name][1] != shape]:
        raise AdapterFileError(f"{path}: {odd[0]} is not of shape {shapes[odd[0]]}.", remedy="Copy the file again.")
    with safe_open(Path(path), framework="pt") as file:
        _check_sum(path, read_header(path), layout, file.get_tensor)
        for name in shapes:
            prefix = next((each for each in (HEAD, STATISTICS) if name.startswith(each)), "")
            value = parts[prefix][name.removeprefix(prefix)] = file.get_tensor(name)
            if not _finite(value):
                raise _not_finite(path, name)
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
        _check_kinds(header, tensors=dict, method=dict, base=str, info=dict)
        shapes = {name: tuple(shape) for name, shape in header["tensors"].items()}
        if odd := [name for name, shape in shapes.items() if not all(type(each) is int for each in shape)]:
            raise TypeError(f"the shape of {listed(odd)} is no list of whole numbers")
        method, modules, base, info = header["method"], _texts(header, "head"), header["base"], header["info"]
        if not isinstance(method["name"], str):
            raise TypeError("the method has no name")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _bad_header(path, error) from error
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
    header = read_header(path)
    state = _said_state(path, header)
    _check_sites(model, path, state, header)  # first: what it takes time to check is then as small as the model
    layout = read_tensor_layout(path)
    _check_layout(path, state, layout, _texts(header, "marks"), checked=CHECKSUM in header)
    _need_head(model, path, state, layout, header)
    _check_own(model, path, state, layout, header)
    _fill_state(path, state, header, layout)
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
                allowed=f"The file has {str(site)[:300]}.",
                remedy=_which_base(header),
            )
    if (shared := _shared(model, state.sites)) != header.get("shared", {}):
        raise AdapterFileError(
            f"{path} is for another model: the layers that share a weight are {shared} here.",
            allowed=f"The file has {str(header.get('shared'))[:300]}.",
            remedy="Tie the weights as they were in training.",
        )


def _need_head(
    model: nn.Module, path: str | Path, state: AdapterState, layout: Layout, header: Mapping[str, Any]
) -> None:
    """Raises AdapterFileError where the model was built without the head that the file has."""
    shapes = [shape for name, (_, shape) in layout.tensors.items() if name.startswith(HEAD)]
    if shapes and not head_of(model, state.head_modules):
        outputs = [shape[0] for shape in shapes if shape][-1:]
        of, does = (f" of {outputs[0]} outputs", f", as num_classes={outputs[0]} does") if outputs else ("", "")
        raise AdapterFileError(
            f"{path} has a head, {listed(state.head_modules)}{of}, and this {type(model).__name__} has none.",
            remedy=f"Build it with a head{does}. {_which_base(header)}",
        )


def _check_layout(
    path: str | Path, state: AdapterState, layout: Layout, marks: Sequence[str], *, checked: bool
) -> None:
    """Raises AdapterFileError unless the genotype is one of the space's, and every support tensor is as it reads it.

    Files of before there was a checksum may have a choice that a lean space drops: methods with tied support tensors
    wrote such.
    """
    space = state.space if checked else replace(state.space, variant="paper", only=None)
    options = {site: space.options(site) for site in set(state.sites.values())}
    for name, config in (state.genotype or {}).items():
        for choice, offered in zip(config, options[state.sites[name]], strict=True):
            if choice not in offered:
                raise AdapterFileError(
                    f"{path}: {name} has the choice {str(choice)[:40]!r}, which its space does not offer there.",
                    remedy=DAMAGED,
                )
    shapes = state.shapes()
    names = [name for name in layout.tensors if not name.startswith(HEAD) and name not in marks]
    _same_names(path, [*shapes, *(STATISTICS + name for name in state.statistics)], names)
    for name, shape in shapes.items():
        if layout.tensors[name] != ("F32", shape):
            raise AdapterFileError(
                f"{path}: {name} is {' '.join(map(str, layout.tensors[name]))}.",
                allowed=f"Its header asks for F32 {shape}.",
                remedy=DAMAGED,
            )


def _check_own(
    model: nn.Module, path: str | Path, state: AdapterState, layout: Layout, header: Mapping[str, Any]
) -> None:
    """Raises AdapterFileError unless head and running statistics are of the model's names, shapes and dtypes."""
    own = {
        name.removeprefix(prefix): layout.tensors[name]
        for name in layout.tensors
        for prefix in (HEAD, STATISTICS)
        if name.startswith(prefix)
    }
    _same_names(path, head_of(model, state.head_modules), [name for name in own if name not in state.statistics])
    if state.statistics:
        _same_names(path, statistics_of(model, state.head_modules), list(state.statistics))
    odd = [name for name, (dtype, shape) in own.items() if dtype not in DTYPES or not fits_head(
        model, name, torch.empty(shape, dtype=DTYPES[dtype], device="meta"))]  # fmt: skip
    if odd:
        dtype, shape = own[odd[0]]
        raise AdapterFileError(
            f"{path}: the head's {listed(odd)} has another shape or dtype: {dtype} {shape}.", remedy=_which_base(header)
        )
    widths = {name.rpartition(".")[0]: set[int]() for name in own}
    for name, (_, shape) in own.items():
        if isinstance(model.get_submodule(owner := name.rpartition(".")[0]), nn.Linear):
            widths[owner].add(shape[0])
    if uneven := [name for name, found in widths.items() if len(found) > 1]:
        raise AdapterFileError(f"{path}: weight and bias of {listed(uneven)} differ in width.", remedy=DAMAGED)


def _which_base(header: Mapping[str, Any]) -> str:
    backbone = header["info"].get("backbone") if isinstance(header.get("info"), dict) else None
    return f"Build the base it was trained on{f': {json.dumps(backbone)[:300]}' if backbone else ''}."
