"""One run as one JSON record (no torch)."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from glora.errors import RunError
from glora.files import plain_json, write_json

__all__ = ["Result"]

FORMAT = 1
STAMPED_PACKAGES = ("torch", "timm", "accelerate", "glora")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run as one record: what was run, what came out, and what it was run with.

    Attributes:
        method: Name in the method table, such as `"glora"`.
        task: Name of the data set.
        model: Name of the backbone.
        seed: Seed of the run.
        config: The resolved configuration, plain JSON.
        parameters: Trainable numbers without the head.
        head_parameters: Trainable numbers of the head.
        metrics: Accuracies as fractions in [0, 1] and losses: `val_accuracy`, `test_loss`, ...; the standard
            error of one has its name and `_standard_error`. `aside_...` are images set aside from the search,
            `curse_...` is how much better val looks than those. None where a number was not finite.
        controls: What the winner of a search was compared with -> its metrics and `parameters`; `..._ahead` is how
            much better the winner is on the same images, with the paired standard error.
        seconds: Wall time per stage: `train`, `search`, `test`, ...; `search` is that of the scores, added up over
            all workers.
        image_steps: Forward-and-backward passes of an image, per stage that trains: `train`, `polish`.
        memory_bytes: Peak resident memory of the process; None where the system does not tell.
        latency: The merged model's speed; `ratio` is its time over the plain backbone's. None when not measured.
        notes: What a reader of the numbers must know.
        verdict: Of a search: how the winner was chosen, and whether it beats its controls, in words.
        versions: Version of Python and of the packages that decide the numbers.
        commit: The git commit of the working folder, "-dirty" at its end where Python files differ, or None.
        device: What it ran on, in words.
        time: When the record was made, UTC, ISO 8601.
        winner: Of a search: which model was tested (`Outcome.key`); empty of a method without one.
    """

    method: str
    task: str
    model: str
    seed: int
    config: Mapping[str, Any]
    parameters: int
    head_parameters: int = 0
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    controls: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    image_steps: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int | None = None
    latency: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    device: str = "cpu"
    time: str = ""
    winner: str = ""

    @classmethod
    def stamped(
        cls,
        *,
        method: str,
        task: str,
        model: str,
        seed: int,
        config: Mapping[str, Any],
        parameters: int,
        head_parameters: int = 0,
        metrics: Mapping[str, float | None] | None = None,
        controls: Mapping[str, Mapping[str, float | None]] | None = None,
        seconds: Mapping[str, float] | None = None,
        image_steps: Mapping[str, int] | None = None,
        latency: Mapping[str, float] | None = None,
        notes: Iterable[str] = (),
        verdict: Iterable[str] = (),
        device: str = "cpu",
    ) -> Result:
        """The record of a run that ends now, with versions, commit, peak memory and UTC time filled in."""
        return cls(
            method=method,
            task=task,
            model=model,
            seed=seed,
            config=plain_json(config),
            parameters=parameters,
            head_parameters=head_parameters,
            metrics=plain_json(metrics or {}),
            controls=plain_json(controls or {}),
            seconds=plain_json(seconds or {}),
            image_steps=plain_json(image_steps or {}),
            memory_bytes=_peak_memory(),
            latency=None if latency is None else plain_json(latency),
            notes=tuple(notes),
            verdict=tuple(verdict),
            versions=_versions(),
            commit=_commit(),
            device=device,
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    @property
    def rows(self) -> dict[str, Mapping[str, float | None]]:
        """`winner` and what it was compared with -> its metrics and `parameters`."""
        return {"winner": {**self.metrics, "parameters": self.parameters}, **self.controls}

    def to_json(self) -> dict[str, Any]:
        """Plain data, a key per field and the format version."""
        plain: dict[str, Any] = plain_json({"format": FORMAT} | asdict(self))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The result that `to_json` wrote.

        Raises:
            RunError: The format version is unknown, or a field is unknown, missing or of another type.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise RunError(
                f"This is no result of a known format: format={found!r}.",
                allowed=f"This version of glora reads format {FORMAT}.",
                remedy="Upgrade glora, or run the experiment again.",
            )
        known = {item.name for item in fields(cls)}
        required = {"method", "task", "model", "seed", "config", "parameters"}
        unknown, missing = sorted(set(data) - known - {"format"}), sorted(required - set(data))
        if unknown or missing:
            raise RunError(f"The result has the unknown fields {unknown} and lacks {missing}.")
        expected = {"method": str, "task": str, "model": str, "seed": int, "config": dict, "parameters": int}
        expected |= {
            "head_parameters": int,
            "metrics": dict,
            "controls": dict,
            "seconds": dict,
            "image_steps": dict,
            "notes": list,
            "versions": dict,
        }
        for name, kind in expected.items():
            if name in data and not isinstance(data[name], kind):
                raise RunError(f"The result's {name} is {data[name]!r}.", allowed=f"Allowed: a JSON {kind.__name__}.")
        values = {name: value for name, value in data.items() if name != "format"}
        return cls(**values | {name: tuple(values.get(name, ())) for name in ("notes", "verdict")})

    def write(self, path: str | Path) -> None:
        """`path` holds this result, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """The result in the file.

        Raises:
            RunError: There is no such file, or it is no result; the message names it.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.", remedy="Name a result file.") from error
        except ValueError as error:
            raise RunError(f"{path} is no JSON: {error}.", remedy="Name a result file.") from error
        except RunError as error:
            raise RunError(f"{path}: {error.cause}", allowed=error.allowed, remedy=error.remedy) from error

    @classmethod
    def read_all(cls, paths: Iterable[str | Path]) -> list[Result]:
        """The results in the files, in their order."""
        return [cls.read(path) for path in paths]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in STAMPED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _commit() -> str | None:
    asked = (["rev-parse", "HEAD"], ["diff", "--quiet", "HEAD", "--", ":/*.py"])
    try:
        head, changed = (
            subprocess.run(["git", *each], capture_output=True, text=True, timeout=10, check=False) for each in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("-dirty" if changed.returncode else "")


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
