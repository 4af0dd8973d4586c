"""The one adapter file of any method: `load_adapter` puts what it holds into a plain model."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from glora.adapt import adapter_file
from glora.adapt.adapted import Adapted
from glora.adapt.adapter_format import NUMBERS, read_header, read_numbers
from glora.adapt.foreign import is_foreign
from glora.adapt.rollback import as_before_on_error
from glora.adapt.wrappers import bare
from glora.errors import AdapterFileError, ConfigError, SpaceError, TargetError, UnknownNameError, listed, need
from glora.methods.method import Tuned, get_method

__all__ = ["load_adapter"]


def load_adapter(
    model: nn.Module, path: str | Path, *, check_base: bool = True, base_fingerprint: str | None = None
) -> Adapted | Tuned:
    """The plain model with what the file holds, its head in place.

    Args:
        model: The base that it was trained on; its head may be fresh, of any width.
        path: What `glora.save_adapter`, or a run of any method, wrote; a folder of PEFT's, LoRA or GLoRA; or a
            checkpoint of the authors' code, which is a whole supernet.
        check_base: Compare the base's fingerprint; False accepts, for instance, the same base in another dtype.
        base_fingerprint: The base's fingerprint where it is known already, so that the weights are not hashed again.

    Returns:
        An `Adapted` of support tensors, its genotype active; of any other method a `Tuned`: `.model` plays, and
        `.merged()` is the plain model where the method can be merged.

    Raises:
        AdapterFileError: The file is damaged or does not fit the model.
        ConfigError: The model is no module, or the path no path.
    """
    need(model, nn.Module, ConfigError, "model", "the plain base, a torch.nn.Module")
    need(path, (str, os.PathLike), ConfigError, "path", "a file or folder, as a text or a Path")
    model, path = bare(model), Path(path).expanduser()
    if is_foreign(path) or read_header(path)["version"] != NUMBERS:
        return adapter_file.load_adapter(model, path, check_base=check_base, base_fingerprint=base_fingerprint)
    found = read_numbers(path)  # all of it is known to be whole before the model is touched
    if missing := [name for name in found.head_modules if name not in dict(model.named_modules())]:
        raise AdapterFileError(f"{path} is for another model: {type(model).__name__} has no {listed(missing)}.")
    try:
        method = get_method(found.method["name"], found.method)
    except (ConfigError, UnknownNameError, SpaceError) as error:
        raise AdapterFileError(
            f"{path}: its method is none of this version's: {error.cause[:400]}",
            remedy="Update glora, or copy it again.",
        ) from error
    known = base_fingerprint if check_base else found.base
    with as_before_on_error(model):
        try:
            return method.load(model, path, base_fingerprint=known)
        except (SpaceError, ConfigError, TargetError, KeyError, TypeError) as error:
            raise AdapterFileError(
                f"{path} does not fit this {type(model).__name__}: {str(error)[:400]}",
                remedy="Build the base it was trained on.",
            ) from error
