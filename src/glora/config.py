"""One experiment: a YAML file and `key=value` overrides -> frozen models; all errors told together (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from glora.errors import ConfigError, nearest
from glora.space import SearchSpace

__all__ = [
    "PRESETS",
    "DataSettings",
    "Experiment",
    "ModelSettings",
    "SearchSettings",
    "SpaceSettings",
    "TrainSettings",
    "load_experiment",
    "parse_count",
]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {  # the published method, for comparison: all 432 choices, scales 1, top-1 on val, rejection
        "space": {
            "ranks": [8],
            "product": "elementwise",
            "variant": "paper",
            "new_bias": True,
            "scaling": "none",
        },
        "train": {"epochs": 500, "batch_size": 64, "lr": 5e-4, "warmup": 0.02},
        "search": {"fitness": "accuracy", "legalize": "reject"},
    },
}


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


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSettings(_Settings):
    """The pretrained network."""

    name: str = Field("dinov2_vits14", description="A packaged backbone or any timm model.")
    checkpoint: Path | None = Field(None, description="A local .safetensors file of weights.")
    pretrained: bool = Field(True, description="Load pretrained weights; False starts at random.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input in pixels.")
    targets: str | list[str] = Field("linear", description="Layers to adapt: 'linear', a regular expression, a list.")
    skip: list[str] = Field([], description="Layers to leave out: names or name endings.")


class DataSettings(_Settings):
    """The labelled images."""

    source: str = Field(description="A folder of images, or a packaged data set.")
    train: Count | None = Field(None, ge=1, description="Number of training images of the seeded split.")
    val: Count | None = Field(None, ge=1, description="Number of validation images of the seeded split.")
    on_bad_image: Literal["error", "skip"] = Field("error", description="What to do with unreadable images.")
    split_seed: int = Field(0, description="Seed of the split.")


class SpaceSettings(_Settings):
    """What may be chosen at every site."""

    ranks: list[int] = Field([8, 4], min_length=1, description="LoRA ranks offered.")
    product: Literal["elementwise", "matrix"] = Field("elementwise", description="How W0 * A is read.")
    variant: Literal["lean", "paper"] = Field("lean", description="'paper' offers all choices.")
    new_bias: bool = Field(False, description="Offer C and E on layers without a bias too.")
    scaling: Literal["fan_in", "none"] = Field("fan_in", description="Fixed scales of the choices.")

    def build(self) -> SearchSpace:
        """The search space."""
        return SearchSpace(**{**self.model_dump(), "ranks": tuple(self.ranks)})

    @model_validator(mode="after")
    def _valid(self) -> SpaceSettings:
        self.build()
        return self


class TrainSettings(_Settings):
    """The training loop: AdamW, a cosine from `lr` to 0 after a linear warm-up."""

    epochs: int = Field(30, ge=1, description="Passes over the training images.")
    batch_size: int = Field(32, ge=1, description="Images per step, over all processes.")
    lr: float | None = Field(None, gt=0, description="Learning rate at the top; the method's own if not given.")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay per step, times lr.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="Mixed precision; 'no' is float32.")


class SearchSettings(_Settings):
    """The search over genotypes; the defaults are the paper's."""

    searcher: str = Field("evolution", description="Name in the table of searchers.")
    population: int = Field(50, ge=1, description="Genotypes in the first generation and at most in later ones.")
    generations: int = Field(20, ge=0, description="Generations after the first.")
    parents: int = Field(10, ge=1, description="Best genotypes that are varied.")
    mutations: int = Field(25, ge=0, description="Mutants per generation.")
    crossovers: int = Field(25, ge=0, description="Crossovers per generation.")
    mutation_probability: float = Field(0.2, ge=0, le=1, description="Per support tensor.")
    legalize: Literal["repair", "reject"] = Field("repair", description="How a budget is kept; 'reject' as published.")
    budget: Count | None = Field(None, ge=0, description="Most trainable numbers, without the head: 300000 or 0.3M.")
    min_budget: Count = Field(0, ge=0, description="Fewest trainable numbers.")
    fitness: Literal["loss", "accuracy"] = Field("loss", description="What the search reads on val.")
    batch_size: int = Field(100, ge=1, description="Images per forward pass of scoring.")

    @model_validator(mode="after")
    def _relations(self) -> SearchSettings:
        if self.budget is not None and self.min_budget > self.budget:
            raise ValueError(f"min_budget={self.min_budget} is above budget={self.budget}")
        if self.mutations + self.crossovers > self.population:
            raise ValueError(
                f"mutations={self.mutations} and crossovers={self.crossovers} exceed population={self.population}"
            )
        return self

    @property
    def candidates(self) -> int:
        """How many genotypes are scored."""
        return self.population * (1 + self.generations)

    def settings(self) -> dict[str, Any]:
        """The searcher's own settings."""
        if self.searcher == "random":
            return {"candidates": self.candidates}
        names = ("population", "generations", "parents", "mutations", "crossovers", "mutation_probability", "legalize")
        return {name: getattr(self, name) for name in names}


class Experiment(_Settings):
    """Everything that decides a run."""

    preset: str = Field("default", description="'paper' is the published method; settings given beside it win.")
    method: str = Field("glora", description="Name in the table of methods.")
    rank: int = Field(8, ge=1, description="Rank of method 'lora'.")
    model: ModelSettings = ModelSettings()
    data: DataSettings
    space: SpaceSettings = SpaceSettings()
    train: TrainSettings = TrainSettings()
    search: SearchSettings = SearchSettings()
    seed: int = Field(0, ge=0, description="Seed of head, support tensors, batches, subnets and search.")

    def with_(self, **changes: Any) -> Experiment:
        """The same experiment with some top-level settings changed, checked again."""
        return Experiment.model_validate({**self.model_dump(), **changes})


def load_experiment(
    path: str | Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment of a YAML file, with `values` by dotted name and then `key=value` overrides laid on it.

    Raises:
        ConfigError: Lists every unknown key and wrong value at once.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy="Name a YAML file.") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is no YAML: {error}.") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} is no experiment.", allowed="A YAML mapping such as `data: {source: digits}`.")
    for key, value in (values or {}).items():
        _set(data, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{override!r} is no override.", allowed="Overrides are key=value, such as train.lr=1e-3."
            )
        _set(data, key, _parsed(text))
    return build_experiment(data, source=str(path or "the settings"))


def build_experiment(data: Mapping[str, Any], *, source: str = "the settings") -> Experiment:
    """The experiment of plain data, its preset underneath; raises ConfigError with every error at once."""
    preset = data.get("preset", "default")
    if preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}.", allowed=f"Known: {', '.join(PRESETS)}.")
    try:
        return Experiment.model_validate(_merged(PRESETS[preset], data))
    except ValidationError as error:
        raise ConfigError(_told(error, source), remedy="`glora check FILE` tells every error at once.") from error


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent!r} is not a group of settings.")
        data = inner
    data[leaf] = value


def _parsed(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value  # YAML 1.1 reads 1e-3 as text
    except (ValueError, yaml.YAMLError):
        return text


def _told(error: ValidationError, source: str) -> str:
    lines = []
    for each in error.errors():
        key = ".".join(str(part) for part in each["loc"])
        if each["type"] == "extra_forbidden":
            near = nearest(str(each["loc"][-1]), _names(each["loc"][:-1]), n=1)
            lines.append(f"{key}: no such setting." + (f" Did you mean {near[0]!r}?" if near else ""))
        else:
            lines.append(f"{key or 'settings'}: {each['msg'].removeprefix('Value error, ')} (got {each['input']!r}).")
    count = f"{len(lines)} errors" if len(lines) > 1 else "1 error"
    return f"{count} in {source}:\n  " + "\n  ".join(lines) + "\n"


def _names(loc: Sequence[int | str]) -> list[str]:
    model: Any = Experiment
    for part in loc:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))
