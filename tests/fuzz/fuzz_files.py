"""Breaks good files at random and reads them: each is read as it was, or refused with one error of ours.

    python tests/fuzz/fuzz_files.py --cases 100000 --seed 1

Half of the cases are adapter files, a tenth training states, the others files of a run folder. Of an adapter that is
refused the model must be as before, and one with a checksum that is taken must play what it played. Every case that
breaks a promise is printed, with the file kept; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.config import build_experiment
from glora.errors import AdapterFileError, RunError
from glora.files import write_json, write_text
from glora.methods.files import load_adapter
from glora.report.examples import ByExample, beside
from glora.report.harness import read_evaluations
from glora.report.metrics import MetricInfo
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.comparison import ExampleValues
from glora.runs.folder import RunFolder
from glora.searchers.journal import Journal
from glora.tasks.calibration import Calibration
from glora.tasks.objectives.classify import Classify

FROZEN = Path(__file__).parents[1] / "data" / "frozen"
SLOWEST, LARGEST = 5.0, 100_000_000  # seconds of a case, bytes of memory more than at the beginning
VALUES = (  # what is put in the place of a value
    None, True, False, 0, -1, 1, 10**39, 10**401, -(10**6), 1e38, 1e-300, 0.5, "nan", "../../x", "/etc/passwd",
    "lora:4", "lora:99999999999999999999", "x" * 5000, [], {}, [[]], [{}], [0] * 3000, {"a": {}},
    "\ud800", "\u0000", "é",
)  # fmt: skip


class Small(nn.Module):
    """The model of the frozen files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.body, self.head = nn.Linear(4 * 36, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.tanh(self.body(x.flatten(1))))


def base() -> Small:
    """With the weights that the frozen files were made on."""
    model = Small()
    model.load_state_dict(load_file(FROZEN / "base.safetensors"))
    return model.eval()


def images() -> Tensor:
    """What the outputs of the frozen files are for."""
    return torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


def mutated(good: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut out, put in or doubled."""
    found = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        place = rng.randrange(len(found) + 1) if rng.random() < 0.5 else rng.randrange(min(len(found), 4000) + 1)
        kind = rng.randrange(7)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            del found[place : place + rng.choice((1, 1, 8, 100))]
        elif kind == 3:
            found[place:place] = rng.choice(
                (b"[", b"{", b'"', b"9" * 400, b",", b"\n", b"\0", b"\xff", b"e999", b"NaN")
            )
        elif kind == 4:
            found[place:] = b"" if rng.random() < 0.5 else found[place : place + 50]
        elif kind == 5:
            found[place:place] = found[place : place + rng.choice((3, 30, 300))]
        else:
            found[:8] = rng.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(found)


def changed(data: Any, rng: random.Random) -> Any:
    """The plain data with a value replaced, a key lost, renamed or added, somewhere in it."""
    if not isinstance(data, (dict, list)) or not data or rng.random() < 0.2:
        return rng.choice(VALUES)
    if isinstance(data, list):
        place = rng.randrange(len(data))
        kind = rng.randrange(3)
        changes = {0: [changed(data[place], rng)], 1: [], 2: [data[place], data[place]]}[kind]
        return [*data[:place], *changes, *data[place + 1 :]]
    key, kind = rng.choice(sorted(data)), rng.randrange(5)
    rest = {name: value for name, value in data.items() if name != key}
    if kind == 0:
        return rest
    if kind == 1:
        return rest | {rng.choice(("", "x", "..", "/", key + "x")): data[key]}
    return data | {key: changed(data[key], rng)}


def tensors_changed(good: bytes, rng: random.Random, *, checked: bool) -> bytes:
    """A safetensors file with its own header changed as data, or that of safetensors; the checksum is taken off."""
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    if rng.random() < 0.7:
        inner = json.loads(header["__metadata__"]["glora"])
        if not checked:
            inner.pop("sha256", None)
        header["__metadata__"]["glora"] = json.dumps(changed(inner, rng))
    else:
        header = changed(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + good[8 + length :]


class Adapters:
    """Adapter files and a model that they are for."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "adapter.safetensors"
        self.good = {file.stem: file.read_bytes() for file in sorted(FROZEN.glob("*_[123]*.safetensors"))}
        self.outputs = json.loads((FROZEN / "outputs.json").read_text())
        self._fresh()

    def _fresh(self) -> None:
        self.model = base()
        self.before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.shape = self._shape()

    def _shape(self) -> list[Any]:
        return [
            (name, type(each), sorted(each.__dict__), len(each._forward_hooks), len(each._forward_pre_hooks))
            for name, each in self.model.named_modules()
        ]

    def read(self, content: bytes, name: str) -> str:
        """What became of the file; raises where a promise is broken."""
        self.file.write_bytes(content)
        try:
            tuned = load_adapter(self.model, self.file)
        except AdapterFileError as error:
            assert str(self.file) in str(error), f"the file is not named: {error}"
            assert len(str(error)) < 3000, "the message is too long"
            after = self.model.state_dict()
            assert after.keys() == self.before.keys(), "the model has other tensors"
            assert all(torch.equal(after[key], value) for key, value in self.before.items()), "the base has changed"
            assert self._shape() == self.shape, "the model has other modules or hooks"
            return "refused"
        model = tuned.model.eval()
        with torch.no_grad():
            outputs = model(images())
        self._fresh()
        if name.endswith("_checked") and b"sha256" in content:
            same = torch.allclose(outputs, torch.tensor(self.outputs[name]), atol=1e-6)
            assert same, "a damaged file plays something else"
        return "taken"


def good_run(folder: Path) -> dict[str, Callable[[], object]]:
    """Writes the files of a run; file name -> its reader."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    run.write_config(build_experiment({"data": {"source": "digits"}}))
    run.begin("ab", 0, base="cd")
    run.record("train", {"epoch": 1, "loss": 0.5})
    run.record("warning", {"epoch": 1, "lr": 0.1, "text": "It began anew."})
    run.mark("trained", file="supernet.safetensors", seconds=1.5, example_steps=100)
    metrics = (MetricInfo("accuracy", True, ".1%"), MetricInfo("loss", False, ".3f"))
    row = {"parameters": 100.0, "genotypes": 50.0, "val_accuracy": 0.5, "val_examples": 9.0}
    sites = {"fc": {"A": "lora:4", "E": None, "numbers": 90}}
    fields: dict[str, Any] = {"number": 7, "genome": (1, 0, 2), "weights": "ab", "polish": None, "parameters": 90}
    fields |= {"sites": sites, "budget": None, "min_budget": 0, "metrics_info": metrics, "fitness": "loss"}
    fields |= {"score": -0.25, "standard_error": 0.01, "scored": 50, "eligible": 50}
    outcome = Outcome(**fields, rows={"winner": row, "largest": row})
    outcome.write(run.winner)
    result = Result(method="glora", task="t", model="m", seed=0, config={"lr": 0.1}, parameters=9, winner=outcome.key,
                    metrics={"test_accuracy": 0.5})  # fmt: skip
    result.write(run.result)
    ByExample(winner=outcome.key, data="ab", values={"accuracy": (1.0, None, 0.0)}).write(run.tested_examples)
    Calibration(0.8, 1.25).write(run.calibration)
    header = {"searcher": "random", "seed": 0, "racing": None}
    with_journal = Journal(run.journal, header)
    with_journal.write("ask", 0, genome=[0, 1])
    with_journal.write("start", 0)
    with_journal.write("score", 0, seconds=0.1, score=0.5, standard_error=0.1)
    with_journal.close()
    objective = Classify(classes=("a", "b"))
    values = {"genome": [0, 1], "seconds": 0.1, "splits": {"val": {"accuracy": [1.0, 0.0], "loss": [0.1, None]}}}
    write_text(run.values, "".join(json.dumps(each) + "\n" for each in ({"data": "ab"}, values)))
    write_json(folder / "harness.json", {"format": 1, "evaluations": []})
    generator = torch.Generator().manual_seed(0)
    save_tensors(run.training, {"0.value": torch.randn(4, 4, generator=generator)}, {"epoch": 1, "losses": [0.5]})

    def journal() -> None:
        Journal(run.journal, header).close()

    def facts() -> None:
        run.done("trained"), run.seconds(), run.example_steps()

    def notes() -> None:
        run.warnings(), run.check_data("ab"), run.check_base("cd")

    return {
        "config.yaml": run.experiment,
        "state.json": facts,
        "metrics.jsonl": notes,
        "winner.json": lambda: Outcome.read(run.winner).verdict,
        "result.json": lambda: Result.read(run.result).verdict,
        "test_examples.json": lambda: beside(result, run.result),
        "calibration.json": lambda: Calibration.read(run.calibration),
        "search.jsonl": journal,
        "examples.jsonl": lambda: ExampleValues(run.values, {"data": "ab"}, objective, lambda _: {}),
        "harness.json": lambda: read_evaluations(folder / "harness.json"),
        "training.safetensors": lambda: read_tensors(run.training),
    }


class RunFiles:
    """The files of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.readers = good_run(self.folder)
        self.good = {name: (self.folder / name).read_bytes() for name in self.readers}

    def read(self, content: bytes, name: str) -> str:
        file = self.folder / name
        file.write_bytes(content)
        try:
            self.readers[name]()
        except (RunError, AdapterFileError) as error:
            assert str(file) in str(error) or str(self.folder) in str(error), f"the file is not named: {error}"
            assert len(str(error)) < 20_000, "the message is too long"
            assert error.remedy or error.allowed, f"no remedy: {error}"
            return "refused"
        finally:
            file.write_bytes(self.good[name])
        return "taken"


def case(good: bytes, name: str, rng: random.Random) -> bytes:
    """A damaged file."""
    kind = rng.random()
    if name.endswith(".jsonl") and kind < 0.4:
        lines = good.splitlines()
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(changed(json.loads(lines[place]), rng)).encode()
        return b"\n".join(lines) + b"\n"
    if name.endswith(".json") and kind < 0.5:
        return json.dumps(changed(json.loads(good), rng)).encode()
    if good[:2] not in (b"{\n", b'{"') and not name.endswith((".yaml", ".jsonl")) and kind < 0.4:
        return tensors_changed(good, rng, checked=name.endswith("_checked") and rng.random() < 0.5)
    return mutated(good, rng)


def fuzz(
    cases: int, seed: int, *, slowest: float = float("inf"), told: Callable[[str], object] = print
) -> tuple[Counter[str], list[str]]:
    """What became of the cases, by file; and every promise that was broken, in words."""
    rng, found, broken = random.Random(seed), Counter[str](), list[str]()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    adapters, run = Adapters(folder), RunFiles(folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(cases):
        target: Adapters | RunFiles = adapters if rng.random() < 0.5 else run
        name = rng.choice(sorted(target.good))
        content = case(target.good[name], name, rng)
        start = time.monotonic()
        try:
            found[f"{name} {target.read(content, name)}"] += 1
        except Exception as error:
            kept = folder / f"case-{number}-{name}"
            kept.write_bytes(content)
            broken.append(f"case {number} of seed {seed}, {name}: {type(error).__name__}: {str(error)[:300]} ({kept})")
            told(broken[-1])
            adapters._fresh()
        if (seconds := time.monotonic() - start) > slowest:
            broken.append(f"case {number} of seed {seed}, {name}: {seconds:.1f} s")
            told(broken[-1])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    if grown > LARGEST:
        broken.append(f"memory grew by {grown:,} bytes")
        told(broken[-1])
    if not broken:
        shutil.rmtree(folder)
    return found, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    found, broken = fuzz(options.cases, options.seed, slowest=SLOWEST)
    for name, count in sorted(found.items()):
        print(f"{name}: {count:,}")
    print(f"{options.cases:,} cases of seed {options.seed} in {time.monotonic() - start:.0f} s: {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
