"""One experiment: a YAML file and `key=value` overrides -> frozen models; all errors told together (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from glora.errors import ConfigError, nearest
from glora.settings import Count, Settings, merged, parse_value, problems_of, put, read_settings
from glora.settings import describe as _describe
from glora.space import SearchSpace

__all__ = [
    "PRESETS",
    "DataSettings",
    "Experiment",
    "ModelSettings",
    "SearchSettings",
    "SpaceSettings",
    "TrainSettings",
    "build_experiment",
    "describe",
    "load_experiment",
]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {  # the published formulation: all 432 choices, scales 1, a subnet a step, top-1 on val, rejection
        "space": SearchSpace.paper().to_json(),
        "train": {"sampling": "batch", "largest": 0.0, "restart": False},
        "search": {
            "fitness": "accuracy",
            "legalize": "reject",
            "mutation_probability": 0.2,
            "rescore": 0,
            "calibrate": False,
        },
    },
}


Precision = Annotated[  # YAML reads a bare `no` as False
    Literal["no", "bf16", "fp16"], BeforeValidator(lambda value: "no" if value is False else value)
]


Form = Annotated[  # and a bare `off`
    Literal["off", "full", "fast", "lazy"], BeforeValidator(lambda value: "off" if value is False else value)
]


class ModelSettings(Settings):
    """The pretrained network."""

    name: str = Field("dinov2_vits14", description="A packaged backbone or any timm model.")
    checkpoint: Path | None = Field(None, description="A local .safetensors file of weights.")
    pretrained: bool = Field(True, description="Load pretrained weights; False starts at random.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input in pixels.")
    targets: str | list[str] = Field(
        "linear", description="Layers to adapt: linear, conv, norm, embedding, all, an expression, a list."
    )
    skip: list[str] = Field([], description="Layers to leave out: names or name endings.")
    statistics: bool = Field(False, description="Let training update the running statistics of BatchNorm.")


class DataSettings(Settings):
    """The labelled images."""

    source: str = Field(description="A folder of images, or a packaged data set (--data).")
    train: Count | None = Field(None, ge=1, description="Number of training images of the seeded split.")
    val: Count | None = Field(None, ge=1, description="Number of validation images of the seeded split.")
    on_bad_image: Literal["error", "skip"] = Field("error", description="What to do with unreadable images.")
    split_seed: int = Field(0, description="Seed of the split.")
    aside: Count | None = Field(
        None, ge=0, description="Val images set aside from the search; half of them if not given."
    )
    folds: int = Field(1, ge=1, description="Supernets trained, each scoring what it did not see; 1 is a plain split.")


class SpaceSettings(Settings):
    """What may be chosen at every site."""

    ranks: list[Annotated[int, Field(ge=1)]] = Field([8, 4], min_length=1, description="LoRA ranks offered.")
    product: Literal["elementwise", "matrix"] = Field("matrix", description="How W0 * A is read.")
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


class TrainSettings(Settings):
    """The training loop: AdamW, a cosine from `lr` to 0 after a linear warm-up."""

    epochs: int = Field(30, ge=1, description="Passes over the training images.")
    batch_size: int = Field(32, ge=1, description="Images per step, over all processes.")
    lr: float | None = Field(None, gt=0, description="Learning rate at the top; the method's own if not given.")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay per step, times lr.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    restart: bool = Field(True, description="After a collapse begin anew, with a third of the learning rate.")
    precision: Precision = Field("no", description="Mixed precision; 'no' is float32.")
    sampling: Literal["sample", "batch"] = Field(
        "sample", description="A random subnet for every image, or one per step, as published."
    )
    largest: float = Field(
        1.0, ge=0, le=1, description="Share of the images that play the largest subnet at first; it falls to none."
    )
    pace: Form = Field("off", description="PACE: consistency under noise; full, or in fewer passes fast or lazy.")
    pace_noise: float = Field(1.2, ge=0, description="PACE: standard deviation of the noise at the first layer.")
    pace_weight: float = Field(1.0, ge=0, description="PACE: weight of the squared distance between the logits.")
    pace_every: int = Field(2, ge=1, description="PACE lazy: steps from one with two passes to the next.")


class SearchSettings(Settings):
    """The search over genotypes; the defaults are the paper's."""

    searcher: str = Field("evolution", description="Name in the table of searchers.")
    population: int = Field(50, ge=1, description="Genotypes in the first generation and at most in later ones.")
    generations: int = Field(20, ge=0, description="Generations after the first.")
    parents: int = Field(10, ge=1, description="Best genotypes that are varied.")
    mutations: int | None = Field(None, ge=0, description="Mutants per generation; half the population if not given.")
    crossovers: int | None = Field(None, ge=0, description="The same for crossovers.")
    mutation_probability: float | None = Field(
        None, ge=0, le=1, description="Per support tensor; the searcher's own if not given."
    )
    legalize: Literal["repair", "reject"] = Field("repair", description="How a budget is kept; 'reject' as published.")
    budget: Count | None = Field(None, description="Most trainable numbers, without the head: 300000 or 0.3M.")
    min_budget: Count | None = Field(
        None, ge=0, description="Fewest trainable numbers; nine tenths of the most that there may be if not given."
    )
    fitness: Literal["loss", "accuracy"] = Field("loss", description="What the search reads on val.")
    calibrate: bool = Field(
        True, description="First set how strongly subnets play, and how far apart their logits are, by val."
    )
    batch_size: int = Field(100, ge=1, description="Images per forward pass of scoring.")
    rescore: int = Field(10, ge=0, description="Best genotypes scored again on the images set aside.")
    controls: int | None = Field(None, ge=0, description="Random genotypes to compare with; a population if not given.")
    control: Literal["none", "retrain"] = Field("none", description="'retrain' also trains the winner alone.")
    polish: int = Field(0, ge=0, description="Epochs of the winner alone, from the supernet's weights, before test.")
    polish_on: Literal["train", "all"] = Field(
        "train", description="'all': also val and what was set aside; then neither tells of the polished winner."
    )
    polish_lr: float | None = Field(None, gt=0, description="Its learning rate at the top; train.lr / 3 if not given.")
    racing: bool = Field(False, description="Candidates leave when some val images have told that they cannot win.")
    racing_level: float = Field(0.05, gt=0, le=0.5, description="How easily candidates leave the race.")
    racing_first: int = Field(
        10, ge=2, description="Images of the race's first piece; then half as many again, and so on."
    )
    workers: int = Field(0, ge=0, description="Processes that score, a thread each; 0: this one, with its threads.")
    cluster: Literal["ray"] | None = Field(None, description="Where the workers are; not given: on this machine.")
    limit: float = Field(600, gt=0, description="Seconds until a worker that says nothing is replaced.")

    @model_validator(mode="after")
    def _relations(self) -> SearchSettings:
        if self.budget is not None and (self.min_budget or 0) > max(0, self.budget):
            raise ValueError(f"min_budget={self.min_budget} is above budget={self.budget}")
        half = self.population // 2
        mutations = half if self.mutations is None else self.mutations
        crossovers = half if self.crossovers is None else self.crossovers
        if mutations + crossovers > self.population:
            raise ValueError(f"mutations={mutations} and crossovers={crossovers} exceed population={self.population}")
        if self.cluster and not self.workers:
            raise ValueError(f"cluster={self.cluster} needs workers of at least 1")
        return self

    @property
    def candidates(self) -> int:
        """How many genotypes are scored."""
        return self.population * (1 + self.generations)


class Experiment(Settings):
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

    @model_validator(mode="after")
    def _set_aside(self) -> Experiment:
        if self.data.aside == 0 and self.search.rescore:
            raise ValueError(f"search.rescore={self.search.rescore} needs images set aside, but data.aside=0")
        return self

    def with_(self, **changes: Any) -> Experiment:
        """The same experiment with some top-level settings changed, checked again; raises ConfigError."""
        return build_experiment({**self.model_dump(), **changes})


def load_experiment(
    path: str | Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment of a YAML file, with `values` by dotted name and then `key=value` overrides laid on it.

    Raises:
        ConfigError: Lists every unknown key and wrong value at once.
    """
    data = {} if path is None else read_settings(Path(path))
    problems: list[str] = []
    for key, value in (values or {}).items():
        problems += put(data, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if equals and key:
            problems += put(data, key, parse_value(text))
        else:
            problems.append(f"{override!r} is no override: they are key=value, such as train.lr=1e-3.")
    return build_experiment(data, source=str(path or "the settings"), problems=problems)


def build_experiment(
    data: Mapping[str, Any], *, source: str = "the settings", problems: Sequence[str] = ()
) -> Experiment:
    """The experiment of plain data, its preset underneath.

    Args:
        data: The settings, nested as in the YAML file.
        source: Where they come from, for the error.
        problems: Errors found before, told with the others.

    Raises:
        ConfigError: Lists every error at once.
    """
    found, preset = list(problems), data.get("preset", "default")
    known = isinstance(preset, str) and preset in PRESETS
    if not known:
        near = nearest(str(preset), PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        found.append(f"preset: there is no preset {preset!r}; known: {', '.join(PRESETS)}.{hint}")
    experiment = None
    try:
        experiment = Experiment.model_validate(merged(PRESETS[preset] if known else {}, data))
    except ValidationError as error:
        found += problems_of(error, Experiment)
    if experiment is None or found:
        count = f"{len(found)} errors" if len(found) > 1 else "1 error"
        raise ConfigError(
            f"{count} in {source}:\n  " + "\n  ".join(found), remedy="`glora ls settings` lists every setting."
        )
    return experiment


def describe() -> list[str]:
    """One line per setting: its dotted name, default and description."""
    return _describe(Experiment)
