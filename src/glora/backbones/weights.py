"""Where weights come from: a file that a user gives, an installed package, or a hub that may be out of reach."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glora import registry
from glora.errors import BackboneError

__all__ = ["cache_folder", "content_sha256", "package_file", "read_weights", "without_waiting"]

_CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; w = torch.load('{file}', "
    "weights_only=True); save_file({{k: v.clone() for k, v in w.items()}}, '{stem}.safetensors')\""
)


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file by name.

    Raises:
        BackboneError: It is of another kind, missing or damaged.
    """
    if checkpoint.suffix.lower() != ".safetensors":
        raise BackboneError(
            f"The checkpoint {str(checkpoint)!r} is no .safetensors file.",
            allowed="Pickled files (.pth, .pt, .bin, .ckpt) can run code and are not read.",
            remedy="Convert it once: " + _CONVERT.format(file=checkpoint.name, stem=checkpoint.stem),
        )
    if not checkpoint.is_file():
        raise BackboneError(f"There is no checkpoint {str(checkpoint)!r}.", remedy="Check the path.")
    try:
        return load_file(checkpoint)
    except (SafetensorError, OSError) as error:
        raise BackboneError(
            f"The checkpoint {str(checkpoint)!r} is damaged: {error}.", remedy="Write or download it again."
        ) from error


@contextlib.contextmanager
def without_waiting(extra: str) -> Iterator[None]:
    """Within it the hub client asks only its cache when no network is there; it would retry for 46 s.

    Args:
        extra: The extra of this library that brings the client.
    """
    hub = registry.optional_import("huggingface_hub", extra=extra, purpose="Pretrained weights").constants
    before = hub.HF_HUB_OFFLINE
    try:
        if not getproxies():  # behind a proxy, names need not resolve here
            socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def package_file(package: str, *parts: str) -> Path | None:
    """A file or folder inside an installed package, which is not imported; None where it is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    found = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    return found if found.exists() else None


def cache_folder(given: Path | None) -> Path:
    """Where converted packaged weights are kept: `~/.cache/glora`, or the folder that is given."""
    return Path.home() / ".cache" / "glora" if given is None else given


def content_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names, shapes, types and numbers, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
