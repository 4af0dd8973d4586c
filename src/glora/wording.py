"""Settings as text: YAML files and overrides as plain data, and what is wrong with them in words (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from glora.errors import ConfigError, nearest

__all__ = ["group_of", "merged", "parsed", "put", "read_settings", "told"]


def read_settings(path: Path) -> dict[str, Any]:
    """The plain data of an experiment's YAML file, unchecked; raises ConfigError when it is none."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy="Name a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is no YAML: {reason}.", remedy="Mend the file at that place.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is no experiment.", remedy="Write a YAML mapping such as `data: {source: digits}`.")
    return data


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping."""
    laid = dict(under)
    for key, value in over.items():
        below = laid.get(key)
        laid[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return laid


def put(data: dict[str, Any], key: str, value: Any) -> list[str]:
    """Puts the value where its dotted name says; what is wrong with the name."""
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            return [f"{key}: {parent!r} is not a group of settings."]
        data = inner
    data[leaf] = value
    return []


def parsed(text: str) -> Any:
    """The value of an override, read as YAML; `1e-3` is a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 reads 1e-3 as text
    except ValueError:
        return value


def told(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per wrong setting of the model."""
    lines: dict[str, str] = {}
    for each in error.errors():
        path: list[str] = []
        group = model
        for part in map(str, each["loc"]):  # beyond the setting's own name come pydantic's names of union members
            path.append(part)
            inner = group_of(group.model_fields[part].annotation) if part in group.model_fields else None
            if inner is None:
                break
            group = inner
        key = ".".join(path)
        if each["type"] == "extra_forbidden":
            near = nearest(path[-1], group.model_fields, n=1)
            text = "no such setting." + (f" Did you mean {near[0]!r}?" if near else "")
        elif each["type"] == "missing":
            path = path if path[-1] in group.model_fields else [*path, "source"]  # the one setting without a default
            key, text = ".".join(path), f"missing. {group.model_fields[path[-1]].description}"
        else:
            got = f" (got {each['input']!r})" if not isinstance(each["input"], Mapping) else ""
            text = f"{each['msg'].removeprefix('Value error, ').rstrip('.')}{got}."
        lines.setdefault(key, f"{key or 'settings'}: {text}")
    return list(lines.values())


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds; None when it is a single setting."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
