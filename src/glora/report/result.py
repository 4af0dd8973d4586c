"""One run as one JSON record (no torch)."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from glora.errors import RunError
from glora.files import plain_json, read_json, write_json
from glora.report.metrics import MetricInfo
from glora.report.records import checked
from glora.version import __version__

__all__ = ["FORMAT_1_METRICS", "Result", "versions"]

FORMAT = 2
FORMAT_1_METRICS = (MetricInfo("accuracy", True, "percent"), MetricInfo("loss", False, ".3f"))  # all it could hold
STAMPED_PACKAGES = ("torch", "timm", "transformers", "accelerate", "glora")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
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
        objective: Name in the table of objectives: what was learned.
        metrics_info: The metrics of the objective; tables show the first.
        metrics: Metric -> value, for each split val, aside and test: `val_loss`, `test_loss`, and with
            `_standard_error` at the end its standard error. `test_examples` is how many examples the split has. "aside"
            are the examples set aside from the search; `selection_bias_...` is how much better val looks than those.
            None where a number was not finite.
        controls: What the winner of a search was compared with -> its metrics and `parameters`; `test_loss_ahead` is
            how much better the winner is on the same examples, with the paired standard error.
        seconds: Wall time per stage: `train`, `search`, `test`, ...; `search` is the time of the scores, added up over
            all workers.
        example_steps: Forward-and-backward passes of one example, per stage that trains: `train`, `rate`,
            `final`, `polish`.
        tokens: Tokens in those passes, per stage; empty of examples that have none, such as images, and in records of
            before.
        memory_bytes: Peak resident memory of the process; None where the system does not tell.
        latency: The merged model's speed; `ratio` is its time over the plain backbone's. None when not measured.
        notes: What a reader of the numbers must know.
        verdict: Of a search: how good the model is, how it was chosen, and whether it beats its controls, in words.
        versions: Version of Python and of the packages that decide the numbers.
        commit: The git commit of the working folder, "-dirty" at its end where Python files differ, or None.
        device: What it ran on, in words.
        time: When the record was made, UTC, ISO 8601.
        winner: Of a search: which model was tested (`Outcome.key`); empty of a method without one.
        run: Name of the run folder; empty where there was none.
        title: How tables call the method with its settings, such as `"VPT-Deep"`; empty: by its name.
        group: The task's group, where it belongs to one: `natural`, `specialized` or `structured`.
        protocol: Of a benchmark: `"honest"` or `"paper"`.
        others: Further test set -> its metrics, read once with test, and `examples`. Of one that has 200 of the
            classes alone, `accuracy_200way` is among those.
    """

    method: str
    task: str
    model: str
    seed: int
    config: Mapping[str, Any]
    parameters: int
    head_parameters: int = 0
    objective: str = "classify"
    metrics_info: tuple[MetricInfo, ...] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    controls: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    example_steps: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int | None = None
    latency: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    device: str = "cpu"
    time: str = ""
    winner: str = ""
    run: str = ""
    title: str = ""
    group: str = ""
    protocol: str = ""
    others: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @classmethod
    def stamped(cls, **fields: Any) -> Result:
        """The record of a run that ends now.

        Args:
            fields: The fields by name. Versions, commit, peak memory and UTC time are filled in; numbers that are not
                finite become None.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        stamps = {"versions": versions(), "commit": _commit(), "memory_bytes": _peak_memory(), "time": now}
        return cls(**stamps | {name: plain_json(value) for name, value in fields.items()})

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
        """The result that `to_json` wrote, of this version or of format 1.

        Raises:
            RunError: The format version is unknown, or a field is unknown, missing or of another type.
        """
        if not isinstance(data, Mapping) or data.get("format") not in (1, FORMAT):
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise RunError(
                f"This is no result of a known format: format={found!r}.",
                allowed=f"glora {__version__} reads the formats 1 and {FORMAT}.",
                remedy="Upgrade glora, or run the experiment again.",
            )
        fields = {name: value for name, value in data.items() if name != "format"}
        return checked(cls, _from_format_1(fields) if data["format"] == 1 else fields, "result")

    def write(self, path: str | Path) -> None:
        """`path` holds this result, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """The result in the file; the name of its run, where it has none, is that of the folder or of the file.

        Raises:
            RunError: There is no such file, or it is no result; the message names it.
        """
        path = Path(path)
        name = path.absolute().parent.name if path.name == "result.json" else path.stem
        data = read_json(path, remedy="Bring the file back." if path.name == "result.json" else "Name a result file.")
        try:
            found = cls.from_json(data)
            return found if found.run else replace(found, run=name)
        except RunError as error:
            remedy = error.remedy or "Bring the file back, or run the experiment again."
            raise RunError(f"{path}: {error.cause}", allowed=error.allowed, remedy=remedy) from error

    @classmethod
    def read_all(cls, paths: Iterable[str | Path]) -> list[Result]:
        """The results in the files, in their order."""
        return [cls.read(path) for path in paths]


def _from_format_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a result of format 1, which knew classification of images only, under today's names."""
    new = dict(fields)
    if "image_steps" in new:
        new["example_steps"] = new.pop("image_steps")
    if isinstance(metrics := new.get("metrics"), Mapping):
        new["metrics"] = _renamed(metrics)
    if isinstance(controls := new.get("controls"), Mapping):
        new["controls"] = {name: _renamed(row) if isinstance(row, Mapping) else row for name, row in controls.items()}
    return new | {"metrics_info": [asdict(metric) for metric in FORMAT_1_METRICS]}


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    names = {f"{split}_images": f"{split}_examples" for split in ("val", "aside", "test")}
    names |= {"by_accuracy": "uncalibrated"}
    for name in row:
        if name.startswith("curse_"):
            names[name] = f"selection_bias_{name.removeprefix('curse_')}"
    return {names.get(name, name): value for name, value in row.items()}


def versions() -> dict[str, str]:
    """Version of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in STAMPED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


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
