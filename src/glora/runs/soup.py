"""Several trained models as one: the base plus the mean of what they change, at the cost of one.

Every effective weight is the base's plus a change, and so is every bias. The mean of k changes is a change again: the
soup is one plain model, as every one of its members is once merged. Heads, trained whole, are averaged too. (Wortsman
et al., arXiv 2203.05482, do it with whole fine-tuned networks.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glora.adapt.adapted import Adapted
from glora.adapt.adapter_file import save_adapter
from glora.adapt.foreign.parts import Layer, Parts, layers_of
from glora.errors import ConfigError, RunError, StateError, listed
from glora.exports.changes import Change, changes_of, cut
from glora.files import read_metadata
from glora.genotype import Choice
from glora.methods.method import Tuned
from glora.runs.folder import RunFolder
from glora.runs.loaded import LoadedRun, load_tuned
from glora.runs.reporter import Reporter
from glora.runs.run import Run
from glora.space import factor_shapes

__all__ = ["Soup", "soup"]

ALIKE = {  # what must be the same in all of them -> what it is called
    "base": "the base",
    "head": "the head",
    "objective": "what is learned, such as the classes",
    "preprocess": "how inputs are read",
}


@dataclass
class _Means:
    """Sums over the members.

    Attributes:
        count: How many there are.
        sums: Name in the state dict -> sum of the effective numbers, float64.
        types: Name -> the type that the model has it in.
        changes: Site -> what every member changes there, where it is known.
        products: Of the members' A with a weight.
        known: Why it is not; empty where it is.
    """

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    types: dict[str, torch.dtype] = field(default_factory=dict)
    changes: dict[str, list[Change]] = field(default_factory=dict)
    products: set[str] = field(default_factory=set)
    unknown: str = ""

    def add(self, tuned: Tuned) -> nn.Module:
        """One more member; its plain model, with its numbers in at least float32."""
        own = {name: value.dtype for name, value in tuned.model.state_dict().items()}
        self._changes(tuned)
        tuned.model.float()  # so that nothing is rounded before the mean is taken
        plain = tuned.merged().eval()
        if tuned.no_merge:
            raise StateError(f"It cannot be in a soup: {tuned.no_merge}.")
        self.count += 1
        for name, value in plain.state_dict().items():
            self.types.setdefault(name, _type_of(name, own))
            if value.is_floating_point():
                self.sums[name] = self.sums.get(name, 0.0) + value.double()  # what one has not is zero there
        return plain

    def _changes(self, tuned: Tuned) -> None:
        adapted = getattr(tuned, "adapted", None)
        if not isinstance(adapted, Adapted):
            self.unknown = f"{type(tuned).__name__} has no support tensors"
            return
        if adapted.statistics:
            self.unknown = "running statistics of BatchNorm were trained"
        for change in changes_of(adapted):
            self.changes.setdefault(change.name, []).append(change)
            if change.vector is not None:
                self.products.add(change.support.space.product)

    @torch.no_grad()
    def put(self, plain: nn.Module) -> None:
        """The plain model has the means, a bias that it lacks among them."""
        own = plain.state_dict()
        for name, total in self.sums.items():
            mean = total / self.count
            if name in own:
                own[name].copy_(mean)
            else:
                module, _, leaf = name.rpartition(".")
                setattr(plain.get_submodule(module), leaf, nn.Parameter(mean.float(), requires_grad=False))
        for name, value in (*plain.named_parameters(), *plain.named_buffers()):
            value.data = value.data.to(self.types.get(name, value.dtype))


def _type_of(name: str, own: Mapping[str, torch.dtype]) -> torch.dtype:
    """The type of a number of the plain model, whose weights had other names; that of a new bias is its weight's."""
    module, _, leaf = name.rpartition(".")
    originals = (name, f"{module}.parametrizations.{leaf}.original", f"{module}.parametrizations.weight.original")
    return next((own[each] for each in (*originals, f"{module}.weight") if each in own), torch.float32)


@dataclass(frozen=True)
class Soup:
    """The mean of several trained models.

    Attributes:
        loaded: Its plain model, as that of a finished run.
        means: What it is made of.
        base: Makes the base anew, untouched.
    """

    loaded: LoadedRun
    means: _Means
    base: Callable[[], nn.Module]

    @property
    def model(self) -> nn.Module:
        """The plain model."""
        return self.loaded.model

    def save(self, path: str | Path) -> str:
        """Writes the plain model, as `LoadedRun.save` does; says how it is loaded."""
        return self.loaded.save(path)

    @torch.no_grad()
    def save_adapter(self, path: str | Path) -> str:
        """Writes the same as an adapter: at every site the mean vector A, a LoRA B of all ranks, and the mean shift.

        Raises:
            StateError: A change is of full rank, or the members are no adapters.
        """
        means = self.means
        full = [name for name, changes in means.changes.items() if any(map(_is_full, changes))]
        several = "the members' products of A with a weight differ" if len(means.products) > 1 else ""
        if means.unknown or full or several:
            why = means.unknown or several or f"{listed(full)} changes by a matrix of full rank"
            raise StateError(f"This soup is no adapter: {why}.", remedy="Write its plain model: --to merged.")
        base, product = self.base(), next(iter(means.products), "matrix")
        parts, layers = Parts(Path(path)), layers_of(base)
        for name, changes in means.changes.items():
            _put_site(parts, layers[name], changes, means.count, product)
        head = tuple(self.loaded.info["head"])
        parts.head_modules = head
        plain = self.model.state_dict()
        parts.head = {name: value for name, value in plain.items() if any(name.startswith(f"{each}.") for each in head)}
        adapted = Adapted.from_state(base, parts.state(base, product=product))
        save_adapter(adapted, path, info=self.loaded.info)
        return f"{path}: loaded by glora.load_adapter(model, {str(path)!r})"


def _is_full(change: Change) -> bool:
    """Whether the weight's change is of no low rank beside a vector A."""
    return change.dense is not None and change.vector is None and not change.site.diagonal


def _put_site(parts: Parts, layer: Layer, changes: Sequence[Change], count: int, product: str) -> None:
    """The mean change of a site: the mean of vectors A and of diagonals, pairs side by side, the shifts' mean."""
    if diagonals := [each.dense for each in changes if layer.site.diagonal and each.dense is not None]:
        parts.put(layer, "B", Choice("vector"), down=torch.stack(diagonals).double().sum(0) / count)
    pairs = [pair for each in changes if (pair := each.added if each.pair is None else each.pair) is not None]
    if vectors := [each.vector for each in changes if each.vector is not None]:
        shape = factor_shapes(layer.site, "A", Choice("vector"), product)["down"]
        mean = torch.stack([each.double().expand(shape) for each in vectors]).sum(0) / count
        parts.put(layer, "A", Choice("vector"), down=mean)
    if pairs:
        down, up = torch.cat([left / count for left, _ in pairs], 1), torch.cat([right for _, right in pairs])
        most = min(down.shape[0], up.shape[1])
        if down.shape[1] > most:  # more ranks than the matrix has
            down, up = _short(changes[0], down, up, most)
        parts.put(layer, "B", Choice("lora", up.shape[0]), down=down, up=up)
    shifts = [each.shift for each in changes if each.shift is not None]
    if shifts:
        parts.put(layer, "E", Choice("vector"), down=torch.stack(shifts).double().sum(0) / count)


def _short(change: Change, down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product as a pair of this rank, which holds it exactly."""
    pair = cut(replace(change, pair=(down, up), dense=None), rank).pair
    assert pair is not None
    return pair


def soup(
    runs: Sequence[str | Path], reporter: Reporter, *, best: int | None = None, model: nn.Module | None = None
) -> Soup:
    """The mean of the models of several finished runs, or of the best genotypes of one.

    Args:
        runs: Run folders of one base, one head and one task.
        reporter: Where to tell what is going on.
        best: Of one run with a search: so many of its best genotypes on val.
        model: The base, where it came from Python; it is left as it is.

    Raises:
        ConfigError: There are too few of them.
        RunError: A run is not finished, or they do not fit together; it names what differs.
        StateError: A method cannot be merged.
    """
    if best is not None and (len(runs) != 1 or best < 2):
        raise ConfigError(f"The best {best} of {len(runs)} runs are no soup.", allowed="2 or more of one run.")
    if best is None and len(runs) < 2:
        raise ConfigError("One run is no soup.", allowed="Several runs, or one with --best K.")
    folders = [RunFolder(run) for run in runs]
    _check_alike(folders)
    base = copy.deepcopy(model)
    first = load_tuned(runs[0], model=copy.deepcopy(model))
    means, plain, new = _Means(), None, dict[str, None]()
    for tuned in _members(runs, best, reporter, model):
        merged = means.add(tuned)
        plain = merged if plain is None else plain
        new |= dict.fromkeys(tuned.new_keys)
    assert plain is not None
    means.put(plain)
    reporter.say(f"A soup of {means.count} models: the base and the mean of their changes, one plain model.")
    of = {"runs": [folder.path.resolve().name for folder in folders], "of": means.count}
    info = {name: value for name, value in first.info.items() if name not in ("winner", "polish", "final")}
    info["soup"] = of
    loaded = LoadedRun(first.folder, plain, first.experiment, first.objective, info, tuple(new), "", first.preprocess)
    return Soup(loaded, means, lambda: _base_of(runs[0], base))


def _check_alike(folders: Sequence[RunFolder]) -> None:
    """Raises RunError unless all are of one base, one head and one task."""
    first, *others = [(folder, _said(folder)) for folder in folders]
    for folder, said in others:
        odd = [f"{what} ({_short_text(said[key])}, not {_short_text(first[1][key])})"
               for key, what in ALIKE.items() if said[key] != first[1][key]]  # fmt: skip
        if odd:
            raise RunError(
                f"{folder.path} and {first[0].path} are no soup: they differ in {listed(odd)}.",
                remedy="Take runs of the same base, head and task.",
            )


def _said(folder: RunFolder) -> dict[str, Any]:
    """What must be the same in all members."""
    folder.need(folder.adapter, f"glora fit --out {folder.path}")
    info = read_metadata(folder.adapter).get("info", {})
    return {"base": folder.base, **{key: info.get(key) for key in ALIKE if key != "base"}}


def _short_text(value: Any) -> str:
    text = str(value.get("classes") or value) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _members(
    runs: Sequence[str | Path], best: int | None, reporter: Reporter, model: nn.Module | None
) -> Iterator[Tuned]:
    """The models, one after the other."""
    if best is None:
        for path in runs:
            yield load_tuned(path, model=copy.deepcopy(model)).tuned
        return
    run = Run.open(runs[0], reporter)
    search = run.searching()
    trials = sorted((trial for trial in search.finished.trials if trial.seen == 1), key=lambda trial: trial.rank)
    if len(trials) < best:
        raise ConfigError(f"{run.folder.path} has {len(trials)} genotypes that were scored in full, not {best}.")
    search.put_finished()
    for trial in trials[:best]:
        search.tuned.activate(trial.genotype)
        yield search.tuned.alone(run.session.base())


def _base_of(run: str | Path, model: nn.Module | None) -> nn.Module:
    """The run's base, untouched."""
    tuned: Any = load_tuned(run, model=copy.deepcopy(model)).tuned
    base: nn.Module = tuned.adapted.detach()
    return base
