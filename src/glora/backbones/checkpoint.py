"""Checkpoints as people have them: safetensors, sharded folders, pickled files whose tensors alone are read.

A pickled file is read through torch's `weights_only=True`: it holds plain data and tensors, and what would run code is
refused. Wrappers around the weights, such as `state_dict` or `module.`, are taken off, and said.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glora.errors import BackboneError, listed

__all__ = ["PICKLED", "read_checkpoint", "read_pickled"]

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder, best first; with shards NAME.index.json tells them
NESTED = (  # keys that hold the weights; the averaged ones first, as timm takes them
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "module",
)  # fmt: skip
_CODE = re.compile(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)")  # in what torch says of a class or function
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning


def read_checkpoint(path: Path, *, names: Collection[str] = ()) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights in a file or folder by their names, and notes on what was taken off.

    Args:
        path: A `.safetensors` or pickled file, or a folder of them as hubs have it, sharded or not.
        names: Names that the model itself has: a prefix that it has too stays.

    Raises:
        BackboneError: There is no such file, it is damaged, would run code, or holds no weights.
    """
    if path.is_dir():
        found: Mapping[str, Any] = _folder(path)
    elif not path.is_file():
        raise BackboneError(f"There is no checkpoint {str(path)!r}.", remedy="Check the path.")
    else:
        found = _file(path)
    return _unwrapped(found, path, names)


def _file(path: Path) -> Mapping[str, Any]:
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise BackboneError(
                f"The checkpoint {str(path)!r} is damaged: {error}.", remedy="Write or download it again."
            ) from error
    if path.suffix.lower() not in PICKLED:
        raise BackboneError(
            f"The checkpoint {str(path)!r} is of no known kind.",
            allowed=f"Known: .safetensors, {', '.join(PICKLED)}, and folders of them.",
            remedy="Save the weights: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        )
    found = read_pickled(path)
    if not isinstance(found, Mapping):
        raise BackboneError(
            f"The checkpoint {str(path)!r} holds a {type(found).__name__}, not weights by name.",
            remedy="Save model.state_dict().",
        )
    return found


def read_pickled(path: Path) -> Any:
    """What torch.save wrote, plain data and tensors alone: nothing in the file is run.

    Raises:
        BackboneError: It is damaged, or would run code.
    """
    try:
        with warnings.catch_warnings():  # of the protocol of a file that is no file of torch.save
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = _CODE.search(str(error))
        if code is None:
            raise BackboneError(
                f"{str(path)!r} is damaged, or no file of torch.save.", remedy="Write or download it again."
            ) from error
        raise BackboneError(
            f"{str(path)!r} holds more than weights, {code[1]}: reading it would run its code.",
            allowed="Tensors and plain data alone are read: torch.load(weights_only=True).",
            remedy="If you trust its source, load it in its own program and save model.state_dict() alone.",
        ) from error
    except Exception as error:  # bytes that are no pickle make the unpickler raise anything
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"{str(path)!r} is damaged: {reason or type(error).__name__}.", remedy="Download it again."
        ) from error


def _folder(path: Path) -> dict[str, Any]:
    """The weights of a folder as hubs have it; of several files where an index tells them."""
    for name in WEIGHTS:
        index = path / f"{name}.index.json"
        if index.is_file():
            return _shards(path, index)
        if (path / name).is_file():
            return dict(_file(path / name))
    inside = sorted(each.name for each in path.iterdir())
    raise BackboneError(
        f"The folder {str(path)!r} holds no weights but {listed(inside)}." if inside else f"{str(path)!r} is empty.",
        allowed=f"It must hold {' or '.join(WEIGHTS)}, or the .index.json of their shards.",
    )


def _shards(path: Path, index: Path) -> dict[str, Any]:
    try:
        places = {str(key): str(name) for key, name in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BackboneError(f"{str(index)!r} is damaged: {error}.", remedy="Download it again.") from error
    files = sorted(set(places.values()))
    if odd := [name for name in files if Path(name).name != name]:
        raise BackboneError(f"{str(index)!r} names {odd[0]!r}, which is not in its folder.")
    if missing := [name for name in files if not (path / name).is_file()]:
        raise BackboneError(f"{str(path)!r} lacks {listed(missing)}.", remedy="Download what is missing.")
    found: dict[str, Any] = {}
    for name in files:
        found |= _file(path / name)
    if lost := sorted(places.keys() - found.keys()):
        raise BackboneError(f"The shards of {str(path)!r} lack {listed(lost)}.", remedy="Download them again.")
    return found


def _unwrapped(
    found: Mapping[str, Any], path: Path, names: Collection[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights without what is around them, and what that was."""
    taken = []
    while key := next((key for key in NESTED if isinstance(found.get(key), Mapping)), ""):
        others = [name for name in NESTED if name != key and isinstance(found.get(name), Mapping)]
        taken.append(f"{key!r}{f' (not {listed(map(repr, others))})' if others else ''}")
        found = found[key]
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise BackboneError(
            f"The checkpoint {str(path)!r} holds no weights, but {listed(map(str, found)) or 'nothing'}.",
            remedy="Save model.state_dict().",
        )
    notes = [f"The checkpoint's weights were taken from {' / '.join(taken)}."] if taken else []
    while prefix := next((each for each in PREFIXES if _wraps(each, tensors, names)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        notes.append(f"The prefix {prefix!r} was taken off the names of the checkpoint's weights.")
    return tensors, tuple(notes)


def _wraps(prefix: str, tensors: Mapping[str, Tensor], names: Collection[str]) -> bool:
    """Whether all weights have the prefix, or those that the model has do, and its own names have not."""
    if any(name.startswith(prefix) for name in names):
        return False
    inside = [name for name in tensors if name.startswith(prefix)]
    known = {name for name in tensors if name in names}
    return bool(inside) and (
        len(inside) == len(tensors)
        or (
            prefix == "model."
            and not known
            and bool(names)
            and any(name.removeprefix(prefix) in names for name in inside)
        )
    )
