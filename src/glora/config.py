"""One experiment: a YAML file and `key=value` overrides -> frozen settings; all errors told together (no torch).

Method, objective, data and searcher are groups of one kind out of a table, found by name; each kind's settings stand
in its own file and are bound on use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, create_model, model_validator

from glora import settings as texts
from glora.errors import ConfigError, GloraError, UnknownNameError, nearest
from glora.registry import load, lookup
from glora.settings import (
    Count,
    Settings,
    Written,
    flat,
    group_of,
    line_of,
    merged,
    opened,
    parse_value,
    problems_of,
    put,
    read_written,
)

__all__ = [
    "FORMAT",
    "KINDS",
    "PRESETS",
    "Experiment",
    "ModelSettings",
    "SearchSettings",
    "TrainSettings",
    "all_errors",
    "build_experiment",
    "describe",
    "description",
    "group_fields",
    "load_experiment",
    "try_experiment",
]

LONGEST, MOST = 400, 40  # characters of an error, and errors, that are told at once
FORMAT = 2  # of a run folder's config; 1 was glora 0.1, whose settings had other places
TABLES = {  # group -> the table of its kinds
    "method": "glora.methods:METHODS",
    "objective": "glora.tasks.objectives:OBJECTIVES",
    "search.searcher": "glora.searchers:SEARCHERS",
    "data": "glora.tasks.data:SOURCES",
}
KINDS = {"method": "method", "objective": "objective", "search.searcher": "searcher", "data": "data set"}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {  # the published formulation: all 432 choices, scales 1, a subnet a step, top-1 on val, rejection
        "method": {
            "name": "glora",
            "ranks": [8],
            "product": "elementwise",
            "variant": "paper",
            "new_bias": True,
            "scaling": "none",
            "sampling": "batch",
            "largest": 0.0,
        },
        "train": {"restart": False},
        "search": {
            "searcher": {"name": "evolution", "legalize": "reject", "mutation_probability": 0.2},
            "fitness": "accuracy",
            "rescore": 0,
            "calibrate": False,
            "share": "any",
            "racing": False,
        },
    },
}

Precision = Annotated[  # YAML reads a bare `no` as False
    Literal["no", "bf16", "fp16", "auto"], BeforeValidator(lambda value: "no" if value is False else value)
]
Form = Annotated[  # and a bare `off`
    Literal["off", "full", "fast", "lazy"], BeforeValidator(lambda value: "off" if value is False else value)
]


class ModelSettings(Settings):
    """The pretrained network."""

    name: str = Field(
        "dinov2_vits14",
        description="A packaged backbone, any timm model, or of transformers a folder or a hub's owner/name.",
    )
    checkpoint: Path | None = Field(None, description="Local weights: .safetensors, .pth, .bin, or a folder of shards.")
    pretrained: bool = Field(True, description="Load pretrained weights; False starts at random.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input in pixels.")
    normalise: Literal["model", "imagenet", "half", "none"] = Field(
        "model", description="Mean and std of its images: the model's own, ImageNet's, 0.5 and 0.5, or 0 and 1."
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="Drop path in training: the last block's rate, from 0 in a line; images' models."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of transformers: type of the base's numbers; support tensors stay float32."
    )
    activation_checkpointing: bool = Field(
        False, description="Of transformers: keep less of each training pass, and compute it again; saves memory."
    )
    quantize: Literal["int8", "int4", "bnb_int8", "bnb_nf4"] | None = Field(
        None, description="Of transformers: quantise the base's Linear layers, by torchao or bitsandbytes (bnb_)."
    )
    trust_remote_code: bool = Field(False, description="Of transformers: run Python code that the model brings.")


class TrainSettings(Settings):
    """The training loop: by default AdamW, a cosine from `lr` to 0 after a linear warm-up."""

    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        30, description="Passes over the training examples; auto: until val gets no better, the best state is kept."
    )
    most_epochs: int = Field(30, ge=1, description="Of epochs auto: most passes; the learning rate is 0 after them.")
    patience: int = Field(5, ge=1, description="Of epochs auto: epochs without a better val loss that end it.")
    batch_size: int = Field(32, ge=1, description="Examples per step, over all processes.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Most examples per forward pass; the gradients of a step are added up. All if not given.",
    )
    batch_tokens: Count | None = Field(
        8192, ge=1, description="Of texts: most tokens per forward pass of a step, padding included."
    )
    order: Literal["length", "random"] = Field(
        "length", description="Which examples share a step: of texts those of about the same length, or any."
    )
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] | None = Field(
        None, description="Learning rate at the top; auto: chosen on val; the method's own if not given."
    )
    lr_share: float = Field(
        1 / 3, gt=0, le=0.5, description="Of lr auto: share of the training's passes that choosing the rate may take."
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="What moves the numbers; sgd has momentum 0.9.")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay per step, times lr; or SGD's.")
    schedule: Literal["cosine", "paper"] = Field(
        "cosine", description="How the learning rate goes: a cosine to 0, or as the published codes set it each epoch."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate, of the cosine.")
    average: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the steps, at the end, whose moving mean the training ends in; 0: none.",
    )
    final: Literal["train", "all"] = Field(
        "train", description="'all': once all is chosen, train anew on train and val together; no val tells of it then."
    )
    restart: bool = Field(True, description="After a collapse begin anew, with a third of the learning rate.")
    precision: Precision = Field(
        "no", description="Mixed precision; 'no' is float32, auto: bf16 where a training step is quicker with it."
    )
    base: Literal["whole", "sharded"] = Field(
        "whole", description="Of several processes: each trains with all frozen weights, or holds a part of each block."
    )
    pace: Form = Field("off", description="PACE: consistency under noise; full, or in fewer passes fast or lazy.")
    pace_noise: float = Field(1.2, ge=0, description="PACE: standard deviation of the noise at the first layer.")
    pace_weight: float = Field(1.0, ge=0, description="PACE: weight of the squared distance between the outputs.")
    pace_every: int = Field(2, ge=1, description="PACE lazy: steps from one with two passes to the next.")

    @property
    def longest(self) -> int:
        """Passes over the training examples, at most."""
        return self.most_epochs if self.epochs == "auto" else self.epochs

    def lasting(self, epochs: int) -> TrainSettings:
        """The same with at most so many passes."""
        return self.model_copy(update={"most_epochs" if self.epochs == "auto" else "epochs": epochs})

    @model_validator(mode="after")
    def _judged_whole(self) -> TrainSettings:
        if self.base == "sharded" and self.epochs == "auto":
            raise ValueError("epochs=auto looks at val during the training, which base=sharded cannot")
        return self

    @model_validator(mode="after")
    def _whole_steps(self) -> TrainSettings:
        if self.pace != "off" and self.micro_batch is not None:
            raise ValueError(f"pace={self.pace} compares whole steps: it cannot be with micro_batch={self.micro_batch}")
        return self


class SearchSettings(Settings):
    """The search over genotypes."""

    searcher: SerializeAsAny[Settings] = Field(description="Which searcher: `glora ls searchers`.")
    budget: Count | None = Field(None, description="Most trainable numbers, without the head: 300000 or 0.3M.")
    min_budget: Count | None = Field(
        None,
        ge=0,
        description="Fewest trainable numbers; if not given nine tenths of the most there may be, 0 of noah and pft.",
    )
    fitness: str = Field("loss", description="The metric of the objective that the search reads on val.")
    calibrate: bool = Field(
        True, description="First choose, on val, how strongly subnets change the base, and a temperature."
    )
    batch_size: int = Field(100, ge=1, description="Examples per forward pass of scoring.")
    batch_tokens: Count | None = Field(
        16384, ge=1, description="Of texts: most tokens per forward pass of scoring, padding included."
    )
    share: Annotated[float, Field(gt=0)] | Literal["auto", "any"] | None = Field(
        None,
        description="Most that the search costs, of the training's passes; auto: 0.5 of texts, else any. If not given "
        "0.1, and auto where the searcher is told how many genotypes it scores.",
    )
    rescore: int = Field(10, ge=0, description="Best genotypes scored again on the examples set aside.")
    controls: int | None = Field(
        None, ge=0, le=100_000, description="Random genotypes to compare with; 50 if not given."
    )
    control: Literal["none", "retrain"] = Field("none", description="'retrain' also trains the winner alone.")
    polish: int | None = Field(
        None, ge=0, description="Epochs of the winner alone, before test; the method's own if not given, 0 of glora."
    )
    polish_from: Literal["supernet", "base"] | None = Field(
        None, description="It starts from the supernet's weights or the pretrained; the method's own if not given."
    )
    polish_on: Literal["train", "all"] = Field(
        "train", description="'all': also val and what was set aside; then neither tells of the polished winner."
    )
    polish_lr: float | None = Field(
        None, gt=0, description="Its learning rate at the top; train.lr / 3 from the supernet's weights if not given."
    )
    racing: bool | None = Field(
        None,
        description="Drop candidates once the val examples seen show that they cannot win. If not given, where they "
        "can race and the searcher is not told how many genotypes it scores.",
    )
    racing_level: float = Field(0.05, gt=0, le=0.5, description="How easily candidates leave the race.")
    racing_first: int = Field(
        10, ge=2, description="Examples of the race's first piece; then half as many again, and so on."
    )
    workers: int = Field(0, ge=0, description="Processes that score, a thread each; 0: this one, with its threads.")
    cluster: Literal["ray"] | None = Field(None, description="Where the workers are; not given: on this machine.")
    limit: float = Field(600, gt=0, description="Seconds without an answer after which a worker is replaced.")

    @model_validator(mode="after")
    def _relations(self) -> SearchSettings:
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget={self.budget} leaves nothing to search; method=linear trains the head alone")
        if self.budget is not None and (self.min_budget or 0) > max(0, self.budget):
            raise ValueError(f"min_budget={self.min_budget} is above budget={self.budget}")
        if self.cluster and not self.workers:
            raise ValueError(f"cluster={self.cluster} needs workers of at least 1")
        return self


class Experiment(Settings):
    """Everything that decides a run."""

    preset: str = Field("default", description="'paper' is the published method; settings given beside it win.")
    method: SerializeAsAny[Settings] = Field(description="Which method: `glora ls methods`.")
    model: ModelSettings = ModelSettings()
    data: SerializeAsAny[Settings] = Field(description="Which data: `glora ls data`.")
    objective: SerializeAsAny[Settings] = Field(description="Which objective: `glora ls objectives`.")
    train: TrainSettings = TrainSettings()
    search: SearchSettings
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of head, support tensors, batches, subnets and search.")

    @model_validator(mode="after")
    def _stopping(self) -> Experiment:
        folds = getattr(self.data, "folds", 1)
        if self.train.epochs == "auto" and folds > 1:
            raise ValueError(f"train.epochs=auto needs val examples that no training sees; data.folds={folds} has none")
        return self

    @model_validator(mode="after")
    def _set_aside(self) -> Experiment:
        aside = getattr(self.data, "aside", None)
        if aside == 0 and self.search.rescore:
            raise ValueError(f"search.rescore={self.search.rescore} needs examples set aside, but data.aside=0")
        return self

    @model_validator(mode="after")
    def _sharing(self) -> Experiment:
        if self.model.quantize and self.search.workers:
            raise ValueError(
                f"search.workers={self.search.workers} share one base in memory, and a quantised one, "
                f"model.quantize={self.model.quantize}, cannot be shared"
            )
        return self

    @model_validator(mode="after")
    def _mixing(self) -> Experiment:
        asked = [f"data.{name}" for name in ("mixup", "cutmix") if getattr(self.data, name, 0)]
        if asked and self.train.pace == "fast":
            raise ValueError(
                f"train.pace=fast compares an example with itself an epoch before, and {' and '.join(asked)} mixes it "
                "with another one each time"
            )
        return self

    @model_validator(mode="after")
    def _drawing(self) -> Experiment:
        if getattr(self.data, "balance", None) == "sampling" and self.train.pace == "fast":
            raise ValueError(
                "train.pace=fast compares an example with itself an epoch before, and data.balance=sampling draws some "
                "more than once an epoch, and others not at all"
            )
        return self

    @model_validator(mode="after")
    def _fitness(self) -> Experiment:
        objective: Any = self.objective
        metrics = {metric.name: metric for metric in objective.metrics}
        fitness = self.search.fitness
        if fitness not in metrics:
            raise ValueError(f"search.fitness={fitness} is no metric of {objective.name}: {', '.join(metrics)}")
        if self.search.racing and not metrics[fitness].per_example:
            single = ", ".join(name for name, metric in metrics.items() if metric.per_example)
            raise ValueError(f"search.racing needs a mean over examples; search.fitness={fitness} is none ({single})")
        return self

    @property
    def balancing(self) -> Any:
        """How classes of unlike numbers of examples count, as the data has it: a `glora.tasks.balance.Balance`."""
        return self.data.balancing  # type: ignore[attr-defined]

    def with_(self, **changes: Any) -> Experiment:
        """The same experiment with some top-level settings changed, checked again; raises ConfigError."""
        return build_experiment({**self.model_dump(), **changes})

    def to_json(self) -> dict[str, Any]:
        """Plain data, as a run folder and a result keep it."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return {"format": FORMAT, **plain}


def load_experiment(
    path: str | Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment of a YAML file, with `values` by dotted name and then `key=value` overrides laid on it.

    Raises:
        ConfigError: Lists every unknown key and wrong value at once.
    """
    data = {} if path is None else read_written(Path(path))
    given: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in (values or {}).items():
        problems += put(given, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if equals and key:
            problems += put(given, key, parse_value(text))
        else:
            problems.append(f"{override!r} is no override: they are key=value, such as train.lr=1e-3.")
    return build_experiment(data, given, source=str(path or "the settings"), problems=problems)


def build_experiment(
    *layers: Mapping[str, Any], source: str = "the settings", problems: Sequence[str] = ()
) -> Experiment:
    """The experiment of plain data, its preset underneath.

    Args:
        layers: Settings, nested as in the YAML file, each laid on those before it.
        source: Where they come from, for the error.
        problems: Errors found before, told with the others.

    Raises:
        ConfigError: Lists every error at once.
    """
    experiment, found = try_experiment(*layers)
    file = next((layer for layer in layers if isinstance(layer, Written)), Written({}, {}, ()))
    found = [*problems, *found]
    if experiment is None or found or file.twice:
        over = {name for layer in layers if layer is not file for name in flat(layer)}
        raise all_errors(found, source, file, over=over)
    return experiment


def all_errors(
    problems: Sequence[str], source: str, file: Mapping[str, Any] | None = None, *, over: Collection[str] = ()
) -> ConfigError:
    """The error that lists them all, one a line.

    Args:
        problems: `train.lr: what is wrong`.
        source: Where the settings come from.
        file: What was read, with the lines where it is `Written`.
        over: Names of settings that were given elsewhere, and have no line.
    """
    if isinstance(file, Written):
        names = [problem.partition(": ")[0] for problem in problems]
        lines = [None if name in over else line_of(name, file.lines) for name in names]
        problems = [
            *file.twice,
            *(f"line {n}: {each}" if n else each for n, each in zip(lines, problems, strict=True)),
        ]
    count = f"{len(problems)} errors" if len(problems) > 1 else "1 error"
    told = [each if len(each) <= LONGEST else f"{each[:LONGEST]}..." for each in problems[:MOST]]
    return ConfigError(
        f"{count} in {source}:\n  " + "\n  ".join(told), remedy="`glora ls settings` lists every setting."
    )


def try_experiment(*layers: Mapping[str, Any]) -> tuple[Experiment | None, list[str]]:
    """The experiment of plain data as `build_experiment` makes it, None where that is wrong; and all that is wrong."""
    found: list[str] = []
    preset = next((layer["preset"] for layer in reversed(layers) if "preset" in layer), "default")
    known = isinstance(preset, str) and preset in PRESETS
    if not known:
        near = nearest(str(preset), PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        found.append(f"preset: there is no preset {preset!r}; known: {', '.join(PRESETS)}.{hint}")
    laid = merged(_DEFAULTS, PRESETS[preset] if known else {})
    for layer in layers:
        laid = merged(laid, {key: value for key, value in layer.items() if key != "format"})
    kinds, unknown = _kinds(laid)
    if not unknown and not any("name" in _opened_objective(layer) for layer in layers):
        kinds, laid = _usual_objective(kinds, laid)
    found += unknown
    experiment = None
    model = _experiment_class(*(kinds[group] for group in TABLES))
    try:
        experiment = model.model_validate(laid)
    except ValidationError as error:
        found += [each for each in problems_of(error, model) if not any(_inside(each, said) for said in unknown)]
    return experiment, found


def _opened_objective(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    given = opened("objective", layer.get("objective"))
    return given if isinstance(given, Mapping) else {}


def _usual_objective(
    kinds: dict[str, type[Settings]], laid: dict[str, Any]
) -> tuple[dict[str, type[Settings]], dict[str, Any]]:
    """The kinds and the settings with the objective that is usual for the data, where none is named."""
    data: Any = kinds["data"]
    try:
        usual = data.usual_objective(laid.get("data", {}))
    except GloraError:  # told when the data is loaded
        return kinds, laid
    if usual == laid["objective"]["name"]:
        return kinds, laid
    own = {name: value for name, value in laid["objective"].items() if name != "name"}
    laid = {**laid, "objective": {"name": usual, **own}}
    return _kinds(laid)[0], laid


_DEFAULTS: dict[str, Any] = {
    "method": {"name": "glora"},
    "objective": {"name": "classify"},
    "search": {"searcher": {"name": "evolution"}},
}


def _kinds(data: Mapping[str, Any]) -> tuple[dict[str, type[Settings]], list[str]]:
    """The settings class of every group of `TABLES`, and what is wrong with their names."""
    kinds, problems = {}, []
    for group in TABLES:
        inner: Any = data
        for part in group.split("."):
            inner = inner.get(part, {}) if isinstance(inner, Mapping) else {}
        inner = inner if isinstance(inner, Mapping) else {}
        try:
            kinds[group] = _kind(group, inner)
        except GloraError as error:
            kinds[group] = Settings
            leaf = "data.source" if group == "data" else group
            problems.append(f"{leaf}: {error}")
    return kinds, problems


def _kind(group: str, data: Mapping[str, Any]) -> type[Settings]:
    kind: type[Settings]
    if group == "data":
        find: Callable[[Mapping[str, Any]], type[Settings]] = load("glora.tasks.task:source_class")
        kind = find(data) if "source" in data else load("glora.tasks.task:DataSettings")
    else:
        kind = _settings_of(lookup(load(TABLES[group]), str(data.get("name")), kind=KINDS[group]))
    return kind


def _settings_of(row: Any) -> type[Settings]:
    """The settings that a row of a table brings: itself, or those of what it makes."""
    kind: type[Settings] = getattr(row, "Settings", row)
    return kind


def _inside(problem: str, said: str) -> bool:
    """Whether a problem is of a group whose kind is unknown, which has been said already."""
    group = said.partition(":")[0].removesuffix(".source")
    return problem.startswith((f"{group}:", f"{group}."))


@lru_cache(maxsize=64)
def _experiment_class(
    method: type[Settings], objective: type[Settings], searcher: type[Settings], data: type[Settings]
) -> type[Experiment]:
    """The experiment with the groups of these kinds, so that all errors are found and named together."""
    search = create_model("SearchSettings", __base__=SearchSettings, searcher=(searcher, ...))
    groups: dict[str, Any] = {"method": method, "objective": objective, "search": search, "data": data}
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in groups.items()}
    made: type[Experiment] = create_model("Experiment", __base__=Experiment, **fields)
    return made


def group_fields(data: Mapping[str, Any]) -> dict[str, set[str]]:
    """Group -> the names of its settings, the groups being of the kinds that the plain data names."""
    kinds, _ = _kinds(merged(_DEFAULTS, data))
    every: dict[str, type[Settings]] = {
        **kinds,
        "train": TrainSettings,
        "search": SearchSettings,
        "model": ModelSettings,
    }
    return {group: set(kind.model_fields) for group, kind in every.items()}


def description(setting: str) -> str:
    """What a setting is, by its dotted name; of a kind's own settings those of the default kind."""
    kind: Any = Experiment
    *groups, leaf = setting.split(".")
    for place, group in enumerate(groups, 1):
        path = ".".join(groups[:place])
        if path in TABLES:
            kind = _settings_of(load(load(TABLES[path])[_default(path)]))
        else:
            kind = group_of(kind.model_fields[group].annotation)
    return str(kind.model_fields[leaf].description)


def _default(group: str) -> str:
    """The name of the kind that a group is where nothing else is said."""
    inner: Any = _DEFAULTS
    for part in group.split("."):
        inner = inner[part]
    return str(inner["name"])


def describe(name: str | None = None) -> list[str]:
    """One line per setting: its dotted name, default and description; those of every kind, below the common ones.

    Args:
        name: Only those of this kind (`lora`, `image_table`), group (`train`, `search.searcher`) or name (`train.lr`).

    Raises:
        UnknownNameError: There is no such kind, group or setting; lists the nearest names.
    """
    if name is None:
        return [*_common(), *(line for group in TABLES for line in _kinds_lines(group))]
    for group, table in TABLES.items():
        if name in load(table):
            return _own(group, name)
    lines = [line for line in _common() if line.split()[0] == name or line.startswith(f"{name}.")]
    lines += _kinds_lines(name) if name in TABLES else []
    if lines:
        return lines
    every = {kind for table in TABLES.values() for kind in load(table)} | {line.split()[0] for line in _common()}
    every |= {setting.rpartition(".")[0] for setting in every} - {""}
    near = nearest(name, every)
    raise UnknownNameError(
        f"There are no settings of {name!r}.",
        allowed=f"Did you mean {' or '.join(map(repr, near))}?" if near else "",
        remedy="`glora ls settings` lists every setting.",
    )


def _common() -> list[str]:
    """The lines of the settings that every experiment has; of a group of several kinds, which kind it is by default."""
    lines = []
    for line in texts.describe(Experiment):
        name, _, text = line.partition("  ")
        if name == "data":
            lines += texts.describe(load("glora.tasks.task:DataSettings"), "data.")
        else:
            lines.append(f"{name} = {_default(name)}  {text}" if name in TABLES else line)
    return lines


def _kinds_lines(group: str) -> list[str]:
    """The lines of every kind of a group, a heading above them."""
    common = _common() if group == "data" else []
    return [
        line
        for name in load(TABLES[group])
        for line in (f"{KINDS[group]} {name}:", *(f"  {own}" for own in _own(group, name) if own not in common))
    ]


def _own(group: str, name: str) -> list[str]:
    """The lines of one kind of a group."""
    return texts.describe(_settings_of(load(load(TABLES[group])[name])), f"{group}.")
