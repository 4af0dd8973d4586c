"""Kills real `glora fit` processes at random moments, and gives the same command again until the run is finished.

    python tests/fuzz/kill_runs.py --kills 50 --seed 1

A process is killed as by `kill -9`, SIGTERM or Ctrl-C, some by a second Ctrl-C soon after. It saves its state at a
cadence of its own, from every step to never within an epoch, and reads images in a number of threads of its own. Every
finished run must have the adapter file of a run that nothing disturbed, byte for byte, and the supernet, journal and
winner too; a process that has caught its signal must end with 143 or 130 and one line that says how to go on. What
breaks a promise is printed, with the folder kept; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from language import tiny_causal  # noqa: E402
from suites.toy import SEARCHER, image_folder  # noqa: E402

CADENCES = (0.0, 0.1, 0.5, 30.0)  # seconds between two states within an epoch
PATIENCE = 300.0  # seconds that a process may take
GOES_ON = {signal.SIGTERM: "Terminated.", signal.SIGINT: "Interrupted."}
EACH = (2, 8)  # kills of a run
READERS = (1, 2, 5)  # threads that read images
COMMAND = """
import os, signal, sys
readers = int(sys.argv[3])
os.cpu_count = lambda: readers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from glora.runs import saving
saving.EVERY = saving.LONGEST = float(sys.argv[1])
saving.SHARE = float(sys.argv[2])
sys.argv = ["glora", *sys.argv[4:]]
from glora.cli import app
app.main()
"""
SEARCH = [f"search.searcher.{name}={value}" for name, value in SEARCHER.items()]
CASES: dict[str, Sequence[str]] = {  # what is set beside the data and the model
    "rate": [
        "train.lr=auto", "train.epochs=auto", "train.most_epochs=6", "train.patience=2", "train.average=0.5",
        "data.augment=light", "data.mixup=0.4", "data.balance=sampling", "train.micro_batch=3", "search.controls=4",
    ],
    "polish": [
        "train.epochs=8", "train.pace=fast", "train.optimizer=sgd", "search.polish=2", "search.control=retrain",
        "search.controls=2", "search.workers=2",
    ],
    "final": ["train.epochs=6", "train.final=all", "method=glora", "method.sampling=sample", "search.racing=true"],
    "language": ["train.epochs=5", "search.controls=2", "method.ranks=[2]", "train.average=0.3"],
}  # fmt: skip


@dataclass
class Killing:
    """What came of it.

    Attributes:
        kills: How many processes were killed.
        counts: Of each kind.
        broken: The promises that were, in words.
    """

    kills: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def inputs(folder: Path) -> dict[str, list[str]]:
    """The words that give data and model of each case, the files made in the folder."""
    images = image_folder(folder / "photos", per_class=20)
    for number in range(12, 20):  # classes of unequal size
        (images / "dark" / f"{number}.png").unlink()
    language = folder / "rows.jsonl"
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n % 5}."} for n in range(40)]
    language.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_causal(folder / "base")
    words = ["--data", str(images), "--model", "test_vit", "--set", "model.pretrained=false"]
    words += ["--set", "model.image_size=32"]
    texts = ["--data", str(language), "--model", str(folder / "base")]
    return {name: texts if name == "language" else words for name in CASES}


def command(case: str, given: Sequence[str], out: Path, cadence: float, readers: int = 1) -> list[str]:
    """A real process: `glora fit`, whose state is saved as often as that, and so many threads read images."""
    words = [word for setting in (*CASES[case], *SEARCH, "train.batch_size=8") for word in ("--set", setting)]
    share = "0.05" if cadence == CADENCES[-1] else "1e9"
    return [sys.executable, "-c", COMMAND, str(cadence), share, str(readers), "fit", *given, *words, "--out", str(out)]


def started(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    here = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(list(words), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=here)


def ends(out: Path) -> dict[str, Any]:
    """What a finished run must have like another, by name."""
    found: dict[str, Any] = {
        name: (out / name).read_bytes() for name in ("adapter.safetensors", "supernet.safetensors", "config.yaml")
    }
    lines = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    found["search.jsonl"] = sorted(json.dumps(line, sort_keys=True) for line in lines)  # workers add them in any order
    found["winner.json"] = json.loads((out / "winner.json").read_text())
    found["metrics"] = json.loads((out / "result.json").read_text())["metrics"]
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("examples_per_second", "seconds_left")
    found["metrics.jsonl"] = [{k: v for k, v in each.items() if k not in timed} for each in epochs]
    return found


def killed(process: subprocess.Popen[bytes], log: Path, how: str, rng: random.Random) -> str:
    """The process is killed; what is wrong with how it ended, else an empty text."""
    numbers = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "twice": signal.SIGINT}
    number, before = numbers[how], log.stat().st_size
    process.send_signal(number)
    if how == "twice":
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(number)
    try:
        code = process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"{how}: it has not ended in {PATIENCE:.0f} s"
    said = log.read_bytes()[before:].decode(errors="replace").strip()
    if number == signal.SIGKILL or code == -number or code == 0:  # at once: before it listens, or the second
        return "" if number != signal.SIGKILL or code in (0, -number) else f"kill: code {code}"
    if code != 128 + number:
        return f"{how}: code {code}, {said[-300:]!r}"
    last = said.splitlines()[-1] if said else ""
    whole = f"{GOES_ON[number]} The same command continues the run."
    return "" if last == whole or "KeyboardInterrupt" in said else f"{how}: it said {said[-300:]!r}"


def looks(out: Path) -> frozenset[tuple[str, int, int]]:
    """The files of a run as they are now: another set after every change."""
    found = set()
    for inside, _, names in os.walk(out):  # which passes over folders that are gone meanwhile
        for file in (Path(inside, name) for name in names):
            with suppress(OSError):
                told = file.stat()
                found.add((str(file), told.st_size, told.st_mtime_ns))
    return frozenset(found)


def changes(process: subprocess.Popen[bytes], out: Path, most: float = math.inf) -> int:
    """Waits for the end of the process, or for so many changes in its folder; how many there were."""
    seen, count, end = looks(out), 0, time.monotonic() + PATIENCE
    while process.poll() is None and count < most and time.monotonic() < end:
        time.sleep(0.002)
        if (now := looks(out)) != seen:
            seen, count = now, count + 1
    return count


def finished(
    case: str, given: Sequence[str], out: Path, found: Killing, kills: int, rng: random.Random, whole: int
) -> dict[str, Any] | None:
    """Starts and kills the run in this folder until it is finished, while there are kills left; what it ended in.

    A process is killed a little after some change in its folder, of about as many as a whole run makes; a few are
    killed at any moment since their start. After some kills a run is left to finish.
    """
    log, last = out.with_suffix(".log"), min(kills, found.kills + rng.randint(*EACH))
    while True:
        words = command(case, given, out, rng.choice(CADENCES), rng.choice(READERS))
        start, process = time.monotonic(), started(words, log)
        if found.kills >= last:
            process.wait(timeout=PATIENCE)
        elif rng.random() < 0.15:
            while process.poll() is None and time.monotonic() < start + rng.uniform(0, 5):
                time.sleep(0.01)
        else:
            changes(process, out, rng.randint(1, max(2, whole // 3)))
            time.sleep(rng.choice((0, rng.uniform(0, 0.05), rng.uniform(0, 1))))
        if process.poll() is None:
            how, at = rng.choice(("kill", "kill", "term", "int", "twice")), stage(out)
            found.kills += 1
            found.counts[f"{how}, {at}"] += 1
            if wrong := killed(process, log, how, rng):
                found.broken.append(f"{case}: {wrong}")
        elif process.returncode:
            found.broken.append(f"{case}: code {process.returncode}: {log.read_text(errors='replace')[-600:]}")
            return None
        if process.returncode == 0:
            return ends(out)


def stage(out: Path) -> str:
    """Where a run is, in a word."""
    if not (out / "config.yaml").is_file():
        return "start"
    for name, word in (("result.json", "end"), ("winner.json", "after search"), ("search.jsonl", "search")):
        if (out / name).is_file():
            return word
    if (out / "supernet.safetensors").is_file():
        return "calibration"
    return "training" if (out / "metrics.jsonl").is_file() else "rate"


def kill_runs(
    kills: int, seed: int, folder: Path, *, cases: Sequence[str] = tuple(CASES), told: Callable[[str], object] = print
) -> Killing:
    """Runs of each case in turn are killed and go on, until so many processes were killed.

    Args:
        kills: How many.
        seed: Decides moments, signals and cadences.
        folder: Where the runs are; those that end as they should are removed.
        cases: Which, names of `CASES`.
        told: Gets a line for every run.
    """
    rng, found, given = random.Random(seed), Killing(), inputs(folder)
    undisturbed: dict[str, tuple[dict[str, Any], int]] = {}
    number = 0
    while found.kills < kills:
        case = cases[number % len(cases)]
        number += 1
        if case not in undisturbed:
            start, out = time.monotonic(), folder / f"whole-{case}"
            process = started(command(case, given[case], out, CADENCES[-1]), out.with_suffix(".log"))
            count = changes(process, out)
            assert process.wait(timeout=PATIENCE) == 0, out.with_suffix(".log").read_text()
            undisturbed[case] = ends(out), count
            told(f"{case}: undisturbed in {time.monotonic() - start:.1f} s, with {count} changes of its folder")
        expected, count = undisturbed[case]
        out, before, wrong = folder / f"run-{number}", found.kills, len(found.broken)
        end = finished(case, given[case], out, found, kills, rng, count)
        differing = [] if end is None else [name for name, value in expected.items() if end[name] != value]
        left = [file.name for pattern in (".*.tmp", "**/training.safetensors") for file in out.glob(pattern)]
        found.broken += [f"{case}, {out}: {name} is another" for name in differing]
        found.broken += [f"{case}, {out}: {name} is left" for name in left]
        told(f"{case}: {found.kills - before} kills, {'as undisturbed' if wrong == len(found.broken) else 'BROKEN'}")
        if wrong == len(found.broken):
            shutil.rmtree(out)
    for line in found.broken:
        told(re.sub(r"\s+", " ", line))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", choices=list(CASES), action="append")
    options = parser.parse_args()
    folder, start = Path(tempfile.mkdtemp(prefix="kills-")), time.monotonic()
    found = kill_runs(options.kills, options.seed, folder, cases=options.case or tuple(CASES))
    for name, count in sorted(found.counts.items()):
        print(f"{name}: {count}")
    print(
        f"{found.kills} kills of seed {options.seed} in {time.monotonic() - start:.0f} s: {len(found.broken)} broken"
        + (f" ({folder})" if found.broken else "")
    )
    if not found.broken:
        shutil.rmtree(folder)
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(main())
