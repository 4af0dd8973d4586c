"""A task: what is learned from which examples; and the table of data sources that make one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

from pydantic import Field

from glora import registry
from glora.errors import DataError, UnknownNameError, nearest
from glora.settings import Count, Settings, build
from glora.tasks.augment import Augment, Augmentation
from glora.tasks.balance import Balance, Kind, imbalance
from glora.tasks.data import SOURCES
from glora.tasks.images import ImageSet, Resize
from glora.tasks.objective import Examples, Fixed, Measured, Objective, Targets
from glora.tasks.objectives.classify import Classify
from glora.tasks.splits import carve_val, sampled, split_in_three

__all__ = ["DataSettings", "OnBadImage", "Pool", "Task", "assemble", "augmented", "joined", "load_task", "source_class"]

OnBadImage: TypeAlias = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Task:
    """Three splits and an objective: training sees `train`, the search `val`, the last line `test`.

    Attributes:
        name: What it is called in results.
        objective: What is learned and how it is measured.
        train: Examples to train on.
        val: Examples that choose between candidates.
        test: Examples that only the final result sees; None where there are none.
        notes: What a user should be told: the split that was chosen, the files skipped.
        fingerprint: sha256 over the objective and the examples of each split; changes when the data does.
        parts: What can change -> its own state, in words that differ then: `{"val": "20 images, 5f3e..."}`.
        group: The group of tasks that it belongs to, where there is one: natural, specialized, structured.
        others: Further test sets by name, read once at the end, as test is.
        among: Of further test sets that have some of the classes alone: which; they are also scored among those.
    """

    name: str
    objective: Objective
    train: Examples
    val: Examples
    test: Examples | None
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    others: Mapping[str, Examples] = field(default_factory=dict)
    among: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits that there are, by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}

    def prepared(self, preprocess: Any) -> Task:
        """The same task, its examples read as `preprocess` (a backbone's) says, with what that leaves out as notes."""
        prepared: dict[str, Any] = {name: split.prepared(preprocess) for name, split in self.splits.items()}
        others = {name: split.prepared(preprocess) for name, split in self.others.items()}
        left = [
            f"{name}: {note}"
            for name, split in {**prepared, **others}.items()
            if isinstance(split, Measured)
            for note in split.notes
        ]
        return replace(self, **prepared, others=others, notes=(*self.notes, *left))

    def stamped(self, root: Path | None = None) -> Task:
        """The same task with its fingerprint; file names count relative to `root`."""
        said = self.objective.model_dump_json(exclude=set(self.objective.of_training))
        digest = hashlib.sha256(said.encode())
        parts = {"objective": hashlib.sha256(said.encode()).hexdigest()[:8]}
        for name, split in {**self.splits, **self.others}.items():
            digest.update(f"split {len(split)}\n".encode())
            split.identify(digest, root)
            own = hashlib.sha256()
            split.identify(own, root)
            if isinstance(split, Fixed):
                split.identify_inputs(own)
            parts[name] = f"{len(split)} {split.unit}, {own.hexdigest()[:8]}"
        return replace(self, fingerprint=digest.hexdigest(), parts=parts)


class DataSettings(Settings):
    """Where the examples come from. One more source is a subclass in a file of its own and a line in `SOURCES`."""

    reads_paths: ClassVar[bool] = False

    source: str = Field(description="A folder or file of labelled examples, or a packaged data set (--data).")
    train: Count | None = Field(None, ge=1, description="Number of training examples of the seeded split.")
    val: Count | None = Field(None, ge=1, description="Number of validation examples of the seeded split.")
    split_seed: int = Field(0, description="Seed of the split.")
    aside: Count | None = Field(
        None, ge=0, description="Val examples set aside from the search; half of them if not given."
    )
    folds: int = Field(1, ge=1, description="Supernets trained, each scoring what it did not see; 1 is a plain split.")
    augment: Augment = Field(
        "none",
        description="Of training images: light: crop and flip; randaug: RandAugment too; few_shot: and random erasing.",
    )
    balance: Kind = Field(
        "none", description="Classes of unequal size in training: weights in the loss, or sampling of rare ones more."
    )
    balance_power: float = Field(
        1.0, ge=0, le=1, description="How far data.balance goes: 1, all classes count the same; 0.5, by square roots."
    )
    mixup: float = Field(0.0, ge=0, description="Alpha of mixup: training images averaged in pairs; 0 is never.")
    cutmix: float = Field(0.0, ge=0, description="Alpha of cutmix: a box from another training image; 0 is never.")
    resize: Resize = Field(
        "straight", description="To the model's size: straight; crop, the middle after the shorter side to 8/7."
    )

    @property
    def augmentation(self) -> Augmentation:
        """What training images go through."""
        return Augmentation(self.augment, self.mixup, self.cutmix)

    @property
    def balancing(self) -> Balance:
        """How much the examples of a class count in training."""
        return Balance(self.balance, self.balance_power)

    @classmethod
    def detects(cls, path: Path) -> bool:
        """Whether what lies at the path is of this format; asked where `reads_paths`."""
        return False

    @classmethod
    def usual_objective(cls, given: Mapping[str, Any]) -> str:
        """The objective where none is named, a name in `OBJECTIVES`; a source of texts looks into its data."""
        return "classify"

    def load(self, objective: Objective) -> Task:
        """The task that the source holds.

        Raises:
            DataError: The data is missing, damaged, cannot be split, or is none of the objective's.
        """
        raise NotImplementedError

    def load_all(self, objective: Objective) -> tuple[Examples, list[str]]:
        """All labelled examples together, for an objective that is fitted already; and what a user should be told.

        Raises:
            DataError: The data is missing, damaged, or is none of the objective's.
        """
        raise DataError(f"{self.source!r} is a packaged data set.", allowed="A folder or file of labelled examples.")


class Pool(NamedTuple):
    """Examples of one split, or of all of them, as a source found them."""

    items: Sequence[Any]
    targets: Targets


def joined(pools: Mapping[str, Pool], objective: Objective, *, make: Callable[..., Any]) -> Any:
    """The examples of all pools, one set of those that `make` makes of items and encoded targets."""
    sets = (make(pool.items, objective.encode(pool.targets)) for pool in pools.values())
    return reduce(lambda one, other: one.joined(other), sets)


def assemble(
    name: str,
    pools: Mapping[str, Pool],
    objective: Objective,
    settings: DataSettings,
    *,
    make: Callable[..., Examples] = ImageSet,
    notes: Sequence[str] = (),
    root: Path | None = None,
    group: str = "",
    others: Mapping[str, Pool] | None = None,
    among: Mapping[str, tuple[int, ...]] | None = None,
) -> Task:
    """The task out of what a source found: the objective fitted, the targets encoded, the splits made.

    Args:
        name: What it is called in results.
        pools: `{"": everything}`, from which three splits are cut; or `train`, `test` and maybe `val`.
        objective: What is to be learned.
        settings: Sizes and seed of the splits.
        make: Makes a split of items, encoded targets and `strata`.
        notes: What a user should be told.
        root: What file names in the fingerprint are relative to.
        group: The group of tasks that it belongs to.
        others: Further test sets by name.
        among: The classes of those that do not have all, by name.

    Raises:
        DataError: The targets are none of the objective's, or the splits cannot be made.
    """
    every = [pool.targets for pool in pools.values()]
    rows, lines, places = (
        [each for targets in every for each in getattr(targets, name)] for name in ("rows", "lines", "places")
    )
    objective = objective.named(replace(every[0], rows=rows, lines=lines, places=places))
    found, further = (
        {split: _examples(pool, objective, make) for split, pool in some.items()} for some in (pools, others or {})
    )
    train, val, test, split_notes = _split(found, objective.strata_names, settings)
    objective = objective.fitted(train.targets)
    train = augmented(train, settings)
    repeated = _repeated({"train": train, "val": val, "test": test})
    told = (*notes, *repeated, *split_notes, *imbalance(train, objective, settings.balancing))
    task = Task(name, objective, train, val, test, told, group=group, others=further, among=among or {})
    return task.stamped(root)


def _repeated(splits: Mapping[str, Examples]) -> list[str]:
    """What a user should be told of images that are in two splits, by their content."""
    notes, seen = [], dict[str, tuple[str, int]]()
    for split, examples in splits.items():
        if not isinstance(examples, ImageSet):
            continue
        twice = [(place, *seen[each]) for place, each in enumerate(examples.contents) if each in seen]
        seen |= {each: (split, place) for place, each in enumerate(examples.contents) if each not in seen}
        for other in dict.fromkeys(first for _, first, _ in twice):
            pairs = [(place, its) for place, first, its in twice if first == other]
            own, others = examples.names([pairs[0][0]]), cast(ImageSet, splits[other]).names([pairs[0][1]])
            notes.append(
                f"{len(pairs):,} of the {len(examples):,} {split} images are in {other} too, the same to the byte: "
                f"{own[0]} is {others[0]}. What is measured on them flatters."
            )
    return notes


def _examples(pool: Pool, objective: Objective, make: Callable[..., Examples]) -> Examples:
    encoded = objective.encode(pool.targets)
    return make(pool.items, encoded, strata=objective.strata(encoded))


def augmented(train: Examples, settings: DataSettings) -> Examples:
    """The training examples, augmented as the settings say.

    Raises:
        DataError: The settings ask for it, and the examples are no images that glora reads.
    """
    augmentation = settings.augmentation
    if augmentation == Augmentation():
        return train
    if isinstance(train, ImageSet):
        return train.augmented(augmentation)
    asked = [f"data.{name}" for name in ("augment", "mixup", "cutmix") if getattr(settings, name) not in ("none", 0)]
    raise DataError(
        f"{' and '.join(asked)} changes images, and {settings.source!r} has {train.unit}.", remedy="Leave it out."
    )


def _split(
    found: Mapping[str, Examples], names: Sequence[str], settings: DataSettings
) -> tuple[Examples, Examples, Examples, list[str]]:
    """Train, val and test, and how they came about."""
    sizes: dict[str, Any] = {"train": settings.train, "val": settings.val, "seed": settings.split_seed}
    if "test" not in found:
        (train, val, test), note = split_in_three(found[""], names, **sizes)
        return train, val, test, [note]
    for split, examples in found.items():
        if not len(examples):
            raise DataError(f"The {split} split is empty.", remedy=f"Add {examples.unit} to it.")
    if "val" not in found:
        (train, val), note = carve_val(found["train"], names, **sizes)
        return train, val, found["test"], [f"There is no val split: {note}"]
    seed = settings.split_seed
    train = sampled(found["train"], settings.train, names=names, what="train", seed=seed)
    val = sampled(found["val"], settings.val, names=names, what="val", seed=seed)
    counts = f"{len(train)} train, {len(val)} val and {len(found['test'])} test {train.unit}"
    return train, val, found["test"], [f"Split as the data says: {counts}."]


def load_task(source: str | Path, *, objective: Objective | None = None, seed: int = 0, **settings: Any) -> Task:
    """The task called `source`, or the one that a path holds.

    Args:
        source: A name in `SOURCES`, or a path (`./digits` is a folder with such a name).
        objective: What is to be learned; by default `Classify()`.
        seed: Seed of the split.
        settings: The source's other settings by name, such as `train`, `val` and `on_bad_image`.

    Raises:
        ConfigError: The source has no such setting.
        DataError: The data is missing, damaged or cannot be split.
        UnknownNameError: `source` is neither a known name nor a path; lists the nearest names.
    """
    given = {"source": str(source), "split_seed": seed, **settings}
    kind = source_class({**given, "source": source})
    return build(kind, given, f"the data {str(source)!r}").load(objective or Classify())


def source_class(given: Mapping[str, Any]) -> type[DataSettings]:
    """The settings class of the data that a group of settings names: by its source, its format, or what lies there.

    Raises:
        DataError: There is nothing at the path, or nothing that can be read.
        UnknownNameError: There is no data set, no format or no path of this name.
    """
    source, found = given.get("source", ""), given.get("format")
    kind: type[DataSettings]
    if found is not None:
        kind = registry.lookup(SOURCES, str(found), kind="data format", remedy="List them: glora ls data")
        return kind
    if isinstance(source, str) and source in SOURCES and not registry.load(SOURCES[source]).reads_paths:
        kind = registry.load(SOURCES[source])
        return kind
    if not isinstance(source, str | Path):
        return DataSettings  # which says what a source is
    path = Path(source).expanduser()
    if str(source) == "" or not path.exists():
        raise _nowhere(source)
    formats: list[type[DataSettings]] = [registry.load(place) for place in SOURCES.values()]
    readers = [each for each in formats if each.reads_paths]
    return next((each for each in readers if each.detects(path)), readers[-1])


def _nowhere(source: str | Path) -> DataError | UnknownNameError:
    path = Path(source).expanduser()
    is_file = bool(path.suffix)
    is_path = is_file or isinstance(source, Path) or len(path.parts) > 1 or str(source).startswith((".", "~"))
    sets = [n for n, place in SOURCES.items() if n != "from_python" and not registry.load(place).reads_paths]
    allowed = f"Known data sets: {', '.join(sets)}; anything else is the path of labelled examples."
    entries = list(path.parent.iterdir()) if path.parent.is_dir() else []
    beside = [entry.name for entry in entries if entry.is_dir() or (is_file and entry.suffix == path.suffix)]
    near = nearest(path.name, beside, n=1) if is_path else nearest(str(source), [*sets, *beside], n=1)
    hint = f"Did you mean {str(path.parent / near[0]) if is_path else near[0]!r}?" if near else ""
    if is_path:
        what = "file" if is_file else "folder"
        return DataError(f"There is no {what} {str(source)!r}.", allowed=allowed, remedy=hint or "Check the path.")
    return UnknownNameError(
        f"There is no data set and no folder {str(source)!r}.",
        allowed=allowed,
        remedy=f"{hint} Run `glora ls data`.".strip(),
    )
