"""`glora.export`: an adapted model, or a finished run, in the format of another library."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from glora.adapt.adapted import Adapted
from glora.backbones import PACKAGED, PACKAGED_TEXT, preprocess_of
from glora.errors import ConfigError, StateError
from glora.exports.card import Base, Facts
from glora.exports.changes import active_genotype
from glora.exports.export import Trained, write_export
from glora.genotype import Genotype
from glora.methods.method import Tuned
from glora.report.outcome import Outcome
from glora.runs.fit import FitResult
from glora.runs.loaded import LoadedRun, LoadedTuned, copied, load_tuned
from glora.runs.merged_folder import PROBLEMS, labels_of
from glora.tasks.objective import Objective

__all__ = ["export"]


def export(
    what: Adapted | Tuned | LoadedRun | FitResult | str | Path,
    to: str,
    path: str | Path,
    *,
    model: nn.Module | None = None,
    example: Any = None,
    **settings: Any,
) -> tuple[str, ...]:
    """Writes what was trained as a folder that another library loads, with a model card; whole or not at all.

    Args:
        what: An adapted model, its active genotype; or a finished run: its folder, or what `load` or `fit` gave.
        to: `"peft"`, `"vllm"`, `"peft-glora"`, `"huggingface"`, `"onnx"` or `"torch"`: `glora ls exports`.
        path: The folder. One that an export has written is replaced.
        model: The base of a run, where it came from Python and cannot be rebuilt from a name. It is left as it is.
        example: Inputs as the model takes them, examples first: a tensor, a tuple or a mapping. Needed where the model
            does not tell itself what it takes.
        settings: The format's own: `rank` and `max_error` of `"peft"`, `opset` of `"onnx"`.

    Returns:
        What a user should be told, such as the error of every layer whose change was cut by SVD.

    Raises:
        UnknownNameError: There is no such format.
        ConfigError: A setting is unknown or wrong.
        GloraError: The format cannot hold what was trained: everything that it cannot is listed.
        RunError: Something else lies at the path, or the run is not finished.
    """
    if isinstance(what, FitResult):
        what = what.run
    if isinstance(what, Adapted):
        trained = _of_adapted(what, example)
    elif isinstance(what, Tuned):
        trained = _of_tuned(what, example)
    elif isinstance(what, LoadedRun | str | Path):
        trained = _of_run(what, model, example)
    else:
        raise ConfigError(
            f"A {type(what).__name__} cannot be exported.",
            allowed="An adapted model, a run folder, or what glora.load or glora.fit gave.",
        )
    return write_export(trained, to, path, settings)


def _of_adapted(adapted: Adapted, example: Any) -> Trained:
    model = adapted.model
    if adapted.merged:
        facts = Facts(base=_base_of(model), method="")
        why = "the model is merged: export before merging"
        plain: Callable[[], tuple[nn.Module, tuple[str, ...]]] = lambda: (_copied(model), adapted.new_keys)  # noqa: E731
        return Trained(
            adapted=None, why=why, plain=plain, facts=facts, preprocess=preprocess_of(model), example=example
        )
    genotype = active_genotype(adapted)
    facts = Facts(
        base=_base_of(model),
        genotype=genotype,
        parameters=adapted.count(genotype),
        head=sum(parameter.numel() for parameter in adapted.head_parameters()),
    )
    return Trained(
        adapted=adapted,
        plain=lambda: _merged_copy(adapted),
        facts=facts,
        preprocess=preprocess_of(model),
        example=example,
    )


def _merged_copy(adapted: Adapted) -> tuple[nn.Module, tuple[str, ...]]:
    """The merged model, the adapted one left as it is."""
    own = copy.deepcopy(adapted)
    return own.merge(keep_base=False).eval(), own.new_keys


def _copied(model: nn.Module) -> nn.Module:
    return copied(model).eval()


def _of_tuned(tuned: Tuned, example: Any) -> Trained:
    adapted = getattr(tuned, "adapted", None)
    if isinstance(adapted, Adapted):
        return _of_adapted(adapted, example)
    raise StateError(
        f"What {type(tuned).__name__} trained is not held by support tensors.",
        remedy="Export its run: glora export RUN --to huggingface.",
    )


def _of_run(what: LoadedRun | str | Path, model: nn.Module | None, example: Any) -> Trained:
    if isinstance(what, LoadedRun):
        if model is None and not what.info["backbone"]:
            return _of_merged_run(what, example)
        what = what.folder.path
    found = load_tuned(Path(what).expanduser(), model=None if model is None else copied(model))
    tuned = found.tuned
    title: str = found.experiment.method.title  # type: ignore[attr-defined]
    adapted = getattr(tuned, "adapted", None)
    own = adapted.active if isinstance(adapted, Adapted) else None
    facts = Facts(
        base=_base_of_run(found.info, tuned.model, found.objective.outputs),
        genotype=own if isinstance(own, Genotype) else None,
        parameters=tuned.count(),
        head=sum(each.numel() for name in tuned.head for each in tuned.model.get_submodule(name).parameters()),
    )

    def plain() -> tuple[nn.Module, tuple[str, ...]]:
        if tuned.no_merge:
            raise StateError(
                f"{title} cannot be merged: {tuned.no_merge}.",
                remedy="Play it as it is: glora.load(RUN).predict(...).",
            )
        return tuned.merged().eval(), tuned.new_keys

    return Trained(
        adapted=adapted if isinstance(adapted, Adapted) else None,
        why=f"{title} has no support tensors",
        plain=plain,
        facts=_facts_of_run(found, facts),
        preprocess=found.preprocess,
        **_said(found.objective),
        example=example,
    )


def _of_merged_run(run: LoadedRun, example: Any) -> Trained:
    """A run whose base came from Python: the merged model is all that is left of it."""
    return Trained(
        adapted=None,
        why="the base of the run came from Python: give it again, glora.export(RUN, ..., model=...)",
        plain=lambda: (_copied(run.merge()), run.new_keys),
        facts=_facts_of_run(run, Facts(base=_base_of(run.model))),
        preprocess=run.preprocess,
        **_said(run.objective),
        example=example,
    )


def _facts_of_run(run: LoadedRun | LoadedTuned, facts: Facts) -> Facts:
    """The facts with what the run's folder tells."""
    folder, experiment, objective = run.folder, run.experiment, run.objective
    result = folder.current_result()
    outcome = Outcome.read(folder.winner) if folder.winner.is_file() else None
    return Facts(
        base=facts.base,
        method=experiment.method.title,  # type: ignore[attr-defined]
        task=result.task if result is not None else Path(str(getattr(experiment.data, "source", ""))).name,
        objective=objective.name,
        genotype=facts.genotype,
        parameters=facts.parameters if facts.parameters is not None or result is None else result.parameters,
        head=facts.head if facts.head or result is None else result.head_parameters,
        result=result,
        outcome=outcome,
    )


def _said(objective: Objective) -> dict[str, Any]:
    """What an export says about the outputs; nothing about a language model's own."""
    if objective.outputs is None:
        return {}
    return {"labels": labels_of(objective), "problem": PROBLEMS.get(objective.name, "")}


def _base_of_run(info: Any, model: nn.Module, outputs: int | None) -> Base:
    """The base of a run, with the expression that builds it."""
    spec = info["backbone"]
    if spec is None:
        return _base_of(model)
    own = _base_of(model)
    given = {key for key, value in spec.items() if value not in (None, 0)}
    simple = "pretrained" in given and given <= {"name", "pretrained", "image_size"}
    simple = simple and spec["name"] not in (*PACKAGED, *PACKAGED_TEXT)
    if own.library == "transformers" and simple and outputs is None and own.build:
        return own
    if own.library == "timm" and simple:
        size = f", img_size={spec['image_size']}" if spec["image_size"] else ""
        build = f"timm.create_model({spec['name']!r}, pretrained=True, num_classes={outputs}{size})"
        return Base(name=own.name, library="timm", module="timm", build=build)
    arguments = ", ".join(f"{key}={value!r}" for key, value in spec.items() if value is not None)
    build = f"glora.backbones.load_backbone({arguments}, num_classes={outputs}).model"
    return Base(name=spec["name"], library=own.library, module="glora.backbones", build=build)


def _base_of(model: Any) -> Base:
    """What a model is, as far as it tells itself."""
    kind = type(model).__name__
    if isinstance(config := getattr(model, "pretrained_cfg", None), dict):
        return Base(name=config.get("hf_hub_id") or config.get("architecture") or kind, library="timm")
    own = getattr(model, "config", None)
    if hasattr(own, "to_dict") and hasattr(model, "save_pretrained"):
        name = str(getattr(own, "_name_or_path", "") or "")
        if not name:
            return Base(name=kind, library="transformers")
        build = f"transformers.{kind}.from_pretrained({name!r})"
        return Base(name=name, library="transformers", module="transformers", build=build)
    return Base(name=kind, library="pytorch")
