"""Settings as frozen models; YAML and `key=value` text as plain data; what is wrong with them in words (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from glora.errors import ConfigError, nearest

__all__ = [
    "Count",
    "Settings",
    "build",
    "describe",
    "group_of",
    "merged",
    "parse_count",
    "parse_value",
    "problems_of",
    "put",
    "read_settings",
]

Made = TypeVar("Made", bound="Settings")


class Settings(BaseModel):
    """The base of every group of settings: frozen, and unknown keys are errors.

    Every field has a description, which is its line in `glora ls settings`. A group that is one of several kinds, such
    as a method or a searcher, has a field `name`, by which its table finds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def parse_count(text: Any) -> Any:
    """A count as an int: `300000`, `"300_000"`, `"300k"` and `"0.3M"` are the same; anything else unchanged."""
    if not isinstance(text, str):
        return text
    number, unit = text.strip().replace("_", "").replace(",", ""), 1.0
    for suffix, factor in (("k", 1e3), ("m", 1e6), ("g", 1e9)):
        if number.lower().endswith(suffix):
            number, unit = number[:-1], factor
    try:
        return round(float(number) * unit)
    except (ValueError, OverflowError):
        return text


Count = Annotated[int, BeforeValidator(parse_count)]


def build(model: type[Made], data: Mapping[str, Any], what: str) -> Made:
    """The settings of plain data.

    Args:
        model: The kind of settings.
        data: Values by name.
        what: Whose settings they are, in the error's words: `"the searcher 'random'"`.

    Raises:
        ConfigError: Lists every unknown name and wrong value at once.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        problems = problems_of(error, model)
        names = ", ".join(name for name in model.model_fields if name != "name")
        raise ConfigError(
            f"Wrong settings of {what}:\n  " + "\n  ".join(problems) + "\n",
            allowed=f"It has {names}." if names else "It has none.",
        ) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The plain data of an experiment's YAML file, unchecked.

    Raises:
        ConfigError: It cannot be read or is no YAML mapping.
    """
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
    """`over` laid on `under`, group by group; a group of another `name` takes the place of the one under it."""
    laid = dict(under)
    for key, value in over.items():
        below = laid.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            same = value.get("name", below.get("name")) == below.get("name")
            laid[key] = merged(below, value) if same else value
        else:
            laid[key] = value
    return laid


def put(data: dict[str, Any], key: str, value: Any) -> list[str]:
    """Puts the value where its dotted name says.

    A group that is given by its name alone, `method: lora`, is opened: `method.rank` goes beside that name.

    Returns:
        What is wrong with the name; empty when nothing is.
    """
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if isinstance(inner, str):
            inner = data[parent] = {"name": inner}
        if not isinstance(inner, dict):
            return [f"{key}: {parent!r} is not a group of settings."]
        data = inner
    if isinstance(data.get(leaf), dict) and isinstance(value, str):  # --method lora
        data[leaf]["name"] = value
    else:
        data[leaf] = value
    return []


def parse_value(text: str) -> Any:
    """The value of a `key=value` override, read as YAML; `1e-3` is a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 reads 1e-3 as text
    except ValueError:
        return value


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
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
    """The group of settings that a field holds, if it holds one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def describe(model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per setting: its dotted name, default and description; those of groups inside it too."""
    lines = []
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if group is not None:
            lines += describe(group, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else f" = {yaml.safe_dump(field.default, default_flow_style=True)}"
            lines.append(f"{prefix}{name}{default.removesuffix('...' + chr(10)).rstrip()}  {field.description}")
    return lines
