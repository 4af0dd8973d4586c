"""Settings as frozen models; YAML and `key=value` text as plain data; what is wrong with them in words (no torch)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from glora.errors import ConfigError, nearest

__all__ = [
    "Count",
    "Settings",
    "Written",
    "build",
    "describe",
    "flat",
    "group_of",
    "is_benchmark",
    "line_of",
    "merged",
    "opened",
    "parse_count",
    "parse_value",
    "problems_of",
    "put",
    "read_settings",
    "read_written",
]

Made = TypeVar("Made", bound="Settings")

LONGEST, MOST_VALUES = 2_000_000, 200_000  # characters and values of a file of settings
NAMED_BY = {"method": "name", "objective": "name", "searcher": "name", "data": "source"}  # of groups of several kinds


class Settings(BaseModel):
    """The base of every group of settings: frozen, and unknown keys are errors.

    Every field has a description, which is its line in `glora ls settings`. A group that is one of several kinds, such
    as a method or a searcher, has a field `name`, by which its table finds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def parse_count(text: Any) -> Any:
    """A count as an int: `300000`, `"300_000"`, `"300k"` and `"0.3M"` are the same; another type unchanged.

    Raises:
        ValueError: The text is none.
    """
    if not isinstance(text, str):
        return text
    number, unit = text.strip().replace("_", "").replace(",", ""), 1.0
    for suffix, factor in (("k", 1e3), ("m", 1e6), ("g", 1e9)):
        if number.lower().endswith(suffix):
            number, unit = number[:-1], factor
    try:
        return round(float(number) * unit)
    except (ValueError, OverflowError):
        raise ValueError("a number is needed, such as 300000, 300k or 0.3M") from None


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


class Written(dict[str, Any]):
    """The plain data of a YAML file.

    Attributes:
        lines: Dotted name of a setting -> its line. In a list a row's name is its number.
        twice: What is wrong with the file itself: the keys that it has twice, one a line.
    """

    def __init__(self, data: Mapping[str, Any], lines: Mapping[str, int], twice: Sequence[str]) -> None:
        super().__init__(data)
        self.lines = dict(lines)
        self.twice = list(twice)


def read_settings(path: Path) -> dict[str, Any]:
    """The plain data of an experiment's YAML file, unchecked.

    Raises:
        ConfigError: It cannot be read, is no YAML mapping, or has a key twice.
    """
    found = read_written(path)
    if found.twice:
        raise ConfigError(f"{path}: " + " ".join(found.twice[:20]), remedy="Put what belongs to one key in one place.")
    return found


def read_written(path: Path) -> Written:
    """As `read_settings`, with the lines, and keys that are there twice for whoever tells all errors at once.

    Raises:
        ConfigError: It cannot be read, or is no YAML mapping.
    """
    lines, twice, data = dict[str, int](), list[str](), None
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > LONGEST:
            raise ValueError(f"it has {len(text):,} characters, of {LONGEST:,} that are allowed")
        loader = yaml.SafeLoader(text)
        if (node := loader.get_single_node()) is not None:
            _walk(node, lines, twice)
            data = loader.construct_document(node)
        data = data or {}
        _check_size(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy="Name a YAML file.") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # also of dates that are none, and keys
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is no YAML: {reason[:400]}.", remedy="Mend the file at that place.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is no experiment.", remedy="Write a YAML mapping such as `data: {source: digits}`.")
    return Written(data, lines, twice)


def _check_size(data: Any) -> None:
    """Raises ValueError where there are more values than a file of that length has: a few aliases can stand for any."""
    left, count = [data], 0
    while left:
        each = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values")
        if isinstance(each, dict):
            left += [*each, *each.values()]
        elif isinstance(each, (list, tuple, set)):
            left += each


def _walk(root: yaml.Node, lines: dict[str, int], twice: list[str]) -> None:
    """Fills in the line of every key, by its dotted name, and the keys that are there twice: YAML keeps the last."""
    left, seen = [("", root)], set[int]()
    while left:
        prefix, node = left.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += [(f"{prefix}{place}.", row) for place, row in enumerate(node.value)]
        own: dict[str, int] = {}
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                name, line = f"{prefix}{key.value}", key.start_mark.line + 1
                if name in own:
                    twice.append(f"{name}: the key is there twice, in line {own[name]} and in line {line}.")
                own.setdefault(name, line)
                left.append((f"{name}.", value))
        lines |= own


def line_of(setting: str, lines: Mapping[str, int]) -> int | None:
    """The line of the setting of this dotted name, else of the innermost group that it is in; None: of none."""
    while setting and setting not in lines:
        setting = setting.rpartition(".")[0]
    return lines.get(setting)


def is_benchmark(data: Mapping[str, Any]) -> bool:
    """Whether plain data is a benchmark's, not an experiment's."""
    return "methods" in data or "tasks" in data


def opened(key: str, value: Any) -> Any:
    """A group that is given by its name alone, `method: lora`, as a mapping; anything else as it is."""
    return {NAMED_BY[key]: value} if key in NAMED_BY and isinstance(value, str) else value


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, group by group; a method, objective or searcher of another name replaces the one below.

    Mappings are copied; groups that are given by their name alone are opened.
    """
    laid = dict(under)
    for key, value in over.items():
        below, above = opened(key, laid.get(key)), opened(key, value)
        if isinstance(above, Mapping):
            base = below if isinstance(below, Mapping) else {}
            other = NAMED_BY.get(key) == "name" and above.get("name", base.get("name")) != base.get("name")
            laid[key] = merged({} if other else base, above)
        else:
            laid[key] = above
    return laid


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of nested settings."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def put(data: dict[str, Any], key: str, value: Any) -> list[str]:
    """Puts the value where its dotted name says; a group that is given by its name alone is opened.

    Returns:
        What is wrong with the name; empty when nothing is.
    """
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = opened(parent, data.setdefault(parent, {}))
        if not isinstance(inner, dict):
            return [f"{key}: {parent!r} is not a group of settings."]
        data[parent] = inner
        data = inner
    below, above = data.get(leaf), opened(leaf, value)
    if (
        isinstance(below, dict) and isinstance(value, str) and isinstance(above, dict)
    ):  # method.rank=8, then method=lora
        below.update(above)
    else:
        data[leaf] = above
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
        path, group = _place(each["loc"], model)
        key = ".".join(path)
        if each["type"] == "extra_forbidden":
            found = _unknown(path, each["input"], group, model)
        elif each["type"] == "missing":
            path = path if path[-1] in group.model_fields else [*path, "source"]  # the one setting without a default
            found = {".".join(path): f"missing. {group.model_fields[path[-1]].description}"}
        else:
            found = {key: _wrong(each)}
        for name, text in found.items():
            lines.setdefault(name, f"{name or 'settings'}: {text}")
    return list(lines.values())


def _place(location: Iterable[Any], model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """The parts of a setting's dotted name, and the group it is in; a row of a list of groups is its number."""
    path: list[str] = []
    group, rows = model, None
    for part in map(str, location):  # beyond the setting's own name come pydantic's names of union members
        path.append(part)
        if rows is not None:
            group, rows = rows, None
            continue
        annotation = group.model_fields[part].annotation if part in group.model_fields else None
        inner, rows = group_of(annotation), _rows_of(annotation)
        if inner is None and rows is None:
            break
        group = inner or group
    return path, group


def _wrong(problem: Any) -> str:
    """What is wrong with a value."""
    value = problem["input"]
    got = f" (got {value!r})" if not isinstance(value, Mapping) else ""
    if problem["type"] in ("list_type", "tuple_type") and isinstance(value, int | float | str):
        return f"a list is needed{got}. Did you mean [{value}]?"
    if problem["type"] == "too_short":
        least = problem["ctx"]["min_length"]
        return f"at least {least} {'is' if least == 1 else 'are'} needed{got}."
    near = nearest(value, _allowed(problem), n=1) if isinstance(value, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{problem['msg'].removeprefix('Value error, ').rstrip('.')}{got}.{hint}"


def _allowed(problem: Any) -> list[str]:
    """The texts that a setting may be, where it is one of a few."""
    expected = problem["ctx"]["expected"] if problem["type"] == "literal_error" else ""
    return re.findall(r"'([^']*)'", expected)


def _unknown(path: list[str], value: Any, group: type[BaseModel], model: type[BaseModel]) -> dict[str, str]:
    """Setting -> what is said of it, for a setting or a whole group that there is not."""
    every = list(_dotted(model))

    def elsewhere(leaf: str) -> list[str]:
        return [name for name in every if leaf != "name" and name.rpartition(".")[2] == leaf]

    if isinstance(value, Mapping) and any(elsewhere(str(leaf)) for leaf in value):
        return {".".join([*path, str(leaf)]): _no_such(elsewhere(str(leaf))) for leaf in value}
    near = elsewhere(path[-1]) or nearest(path[-1], group.model_fields, n=1)
    return {".".join(path): _no_such(near, _kind(group, known=bool(near)))}


def _kind(group: type[BaseModel], *, known: bool) -> str:
    """Whose settings a group has, where it is one of several kinds; and all of them, where no near one is known."""
    named = group.model_fields.get("name")
    if named is None or get_origin(named.annotation) is not Literal:
        return ""
    others = ", ".join(name for name in group.model_fields if name != "name")
    return f" of {named.default!r}" + ("" if known else f", which has {others or 'none'}")


def _no_such(near: list[str], kind: str = "") -> str:
    return f"no such setting{kind}." + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")


def _dotted(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if group is None:
            yield f"{prefix}{name}"
        else:
            yield from _dotted(group, f"{prefix}{name}.")


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one; also where it may be None."""
    if isinstance(annotation, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        annotation = kinds[0] if len(kinds) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _rows_of(annotation: Any) -> type[BaseModel] | None:
    """The kind of group that a field holds a tuple of, if it does."""
    return group_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def describe(model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per setting: its dotted name, default and description; those of groups inside it too.

    The name of a kind, which a table has, is left out.
    """
    lines = []
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        if group is not None and group.model_fields:
            lines += describe(group, f"{prefix}{name}.")
        elif field.description:
            default = "" if field.is_required() else f" = {_as_yaml(field.default)}"
            lines.append(f"{prefix}{name}{default}  {field.description}")
    return lines


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").rstrip()
