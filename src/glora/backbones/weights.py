"""Where weights come from: an installed package, or a hub that may be out of reach."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor

from glora import registry

__all__ = ["cache_folder", "content_sha256", "package_file", "without_waiting"]


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
