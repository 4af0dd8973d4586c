"""The folder of one run: what its files are called, which stages are done, and whose run it is (no torch).

It holds `config.yaml` (resolved), `state.json` (the stages that are done), `metrics.jsonl`, `supernet.safetensors`,
`search.jsonl` (the journal), `calibration.json` (how strongly subnets play in it), `examples.jsonl` (what winner and
controls do example by example), `winner.json`, `adapter.safetensors`, `result.json`, `test_examples.json` (what the
finished model does on every test example), `test_images/` (small, those it gets most wrong) and `plots/`; while
training runs also `training.safetensors`, with folds a folder for each, `final/`, `retrained/` and `polished/`; of a
learning rate that is chosen `rates.jsonl` (the tries) and, while they run, `tries/`; in `tested/` the results of
winners that were tested before. A model is known by `Outcome.key`, which its adapter and its result carry: what a stop
has left is never taken for what it is not.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from glora.config import FORMAT, Experiment, build_experiment
from glora.errors import ConfigError, RunError, listed
from glora.files import LOCK, append_jsonl, held, read_json, read_jsonl, read_metadata, write_json, write_text
from glora.report.examples import TESTED, TEXTS, THUMBNAILS
from glora.report.outcome import Outcome, digest
from glora.report.result import Result
from glora.settings import flat, read_settings

__all__ = ["ANY_TIME", "RunFolder"]

AFTER = {
    f"search.{name}" for name in ("controls", "control", "polish", "polish_from", "polish_on", "polish_lr")
}  # change no score
FEWEST = "search.min_budget"
GENERATIONS = "search.searcher.generations"
RACES = ("search.racing_level", "search.racing_first")  # change nothing without racing
CHOSEN = ("precision", "lr", "epochs")  # by the run, before it trains
ANEW = "Bring the file back, or start anew with another --out."
LINES: dict[str, dict[str, type]] = {  # stage of a line of the metrics -> what it needs to have
    "begun": {"data": str},
    "train": {"epoch": int},
    "val": {"epoch": int},
    "warning": {"epoch": int, "text": str},
}
FOLDERS = ("retrained", "polished", "final")
ANY_TIME = ("search.workers", "search.cluster", "search.limit", "train.base")  # where numbers are made, not which


class RunFolder:
    """Names and checks of one run's files; making one writes nothing.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.training = self.path / "training.safetensors"
        self.rates = self.path / "rates.jsonl"
        self.tries = self.path / "tries"
        self.supernet = self.path / "supernet.safetensors"
        self.journal = self.path / "search.jsonl"
        self.calibration = self.path / "calibration.json"
        self.adapter = self.path / "adapter.safetensors"
        self.winner = self.path / "winner.json"
        self.tokenizer = self.path / "tokenizer"  # a folder, where a program gave the tokenizer
        self.values = self.path / "examples.jsonl"
        self.stages = self.path / "state.json"
        self.lock = self.path / LOCK  # empty
        self.result = self.path / "result.json"
        self.tested_examples = self.path / TESTED
        self.thumbnails = self.path / THUMBNAILS
        self.texts = self.path / TEXTS
        self.others = self.path / "tested"
        self.plots = self.path / "plots"

    def fold(self, place: int) -> RunFolder:
        """The folder of one fold's supernet."""
        return RunFolder(self.path / f"fold-{place + 1}")

    @property
    def final(self) -> RunFolder:
        """The folder of the training on train and val together."""
        return RunFolder(self.path / "final")

    def retrained(self, genome: Sequence[int]) -> RunFolder:
        """The folder of the genotype trained alone."""
        return RunFolder(self.path / "retrained" / digest(genome))

    def polished(self, key: str) -> RunFolder:
        """The folder of the polished winner of this key."""
        return RunFolder(self.path / "polished" / key)

    def done(self, stage: str) -> dict[str, Any] | None:
        """The facts that a stage has left at its end; None as long as it has not ended.

        Args:
            stage: `trained` or `searched`; or what the run has chosen: `precision`, `lr`, `epochs`.

        Raises:
            RunError: The file is damaged.
        """
        found: dict[str, Any] | None = self._stages().get(stage)
        return found

    def need_trained(self) -> dict[str, Any]:
        """The facts of the training, which is done.

        Raises:
            RunError: It is not.
        """
        facts = self.done("trained")
        if facts is None:
            raise RunError(f"{self.path} is not trained yet.", remedy=f"Run `glora train --out {self.path}` first.")
        return facts

    def trained_file(self) -> Path:
        """What the training has written: a supernet where there is one, else an adapter.

        Raises:
            RunError: It is not done; or it is, and the file is gone.
        """
        file = self.path / str(self.need_trained()["file"])
        if not file.is_file():
            raise RunError(
                f"{self.path} was trained, but its {file.name} is gone.",
                remedy="Bring the file back, or start anew with another --out.",
            )
        return file

    def mark(self, stage: str, **facts: Any) -> None:
        """The stage is done, its files are written."""
        self.need_there()
        write_json(self.stages, {**self._stages(), stage: facts})

    def unmark(self, stage: str) -> None:
        """The stage is not done any more."""
        if stage in (stages := self._stages()):
            write_json(self.stages, {name: facts for name, facts in stages.items() if name != stage})

    def _stages(self) -> dict[str, Any]:
        if not self.stages.is_file():
            return {}
        found = read_json(self.stages, remedy=ANEW)
        if not isinstance(found, dict) or (odd := [name for name, facts in found.items() if not _are_facts(facts)]):
            what = f"the facts of {listed(odd)} are damaged" if isinstance(found, dict) else "it is no mapping"
            raise RunError(f"{self.stages} cannot be read: {what}.", remedy=ANEW)
        return found

    @property
    def tested(self) -> list[Path]:
        """The results of all winners that were tested: of the one shown here, and of those before."""
        return [file for file in (self.result, *sorted(self.others.glob("*.json"))) if file.is_file()]

    def key(self) -> str:
        """Which winner is here, by its outcome and its adapter; empty of a method without a search.

        Raises:
            RunError: The two are not of one model, which a stop between their writing leaves.
        """
        key = Outcome.read(self.winner).key if self.winner.is_file() else ""
        if key:
            self.need(self.adapter, f"glora search {self.path}")
        held = read_metadata(self.adapter).get("info", {}).get("winner", "") if self.adapter.is_file() else ""
        if key != held:
            raise RunError(
                f"{self.adapter} is not the winner in {self.winner.name}.",
                remedy=f"The search writes both again: glora search {self.path} (with --budget for a picked one)",
            )
        return key

    def current_result(self) -> Result | None:
        """The result of the model that is here; None when it was not tested."""
        key = self.key()
        for file in (self.result, self._beside(key)):
            if file.is_file() and (found := Result.read(file)).winner == key:
                return found
        return None

    def archive_result(self) -> None:
        """There is no current result; what there was, is kept in `tested/` under the key of its winner."""
        if self.result.is_file():
            kept = self._beside(Result.read(self.result).winner)
            kept.parent.mkdir(exist_ok=True)
            self.result.replace(kept)

    def restore_result(self, key: str) -> Result | None:
        """The result of this winner is the current one again, where it was tested before."""
        if self._beside(key).is_file():
            self._beside(key).replace(self.result)
        return self.current_result()

    def _beside(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9A-Za-z]*", key):  # it becomes the name of a file
            raise RunError(f"{self.result} is damaged: its winner is {key[:80]!r}.", remedy="Test the winner again.")
        return self.others / f"{key or 'unknown'}.json"

    def forget_search(self) -> None:
        """No winner of an earlier search is here: a new one begins."""
        self.archive_result()
        self.unmark("searched")
        for file in (self.adapter, self.winner, self.calibration):
            file.unlink(missing_ok=True)

    def experiment(self) -> Experiment:
        """The settings of the run in the folder.

        Raises:
            RunError: There is none, or its settings are damaged; tells all that is wrong, with the lines.
        """
        if not self.config.is_file():
            raise RunError(f"{self.path} holds no run.", remedy="Start one: glora fit --data FOLDER --out RUN")
        try:
            data = read_settings(self.config)
        except ConfigError as error:
            raise RunError(error.cause, remedy=ANEW) from error
        if not data:
            raise RunError(f"{self.config} is empty.", remedy=ANEW)
        if data.get("format") != FORMAT:
            raise RunError(
                f"{self.path} is a run of glora 0.1, whose settings have other places.",
                allowed="Its adapter and its result are still read.",
                remedy="Continue it with glora 0.1, or start anew with another --out.",
            )
        try:
            found = build_experiment(data, source=str(self.config))
        except ConfigError as error:
            raise RunError(error.cause, remedy="Mend the file there, or start anew with another --out.") from error
        if found.search.polish and found.search.polish_from is None:  # of before there was a choice
            return found.with_(search={**found.search.model_dump(), "polish_from": "supernet"})
        return found

    @property
    def chosen(self) -> list[str]:
        """What the run has chosen for its training, and why, in sentences."""
        found = [self.done(name) for name in CHOSEN]
        return [str(facts["why"]) for facts in found if facts]

    @property
    def precision(self) -> str:
        """The mixed precision that the run computes in; where that is chosen by the run, float32 before it is."""
        return self.settled_precision(self.experiment())

    def settled_precision(self, experiment: Experiment) -> str:
        """The mixed precision of these settings, the run's own choice where they leave it open."""
        asked = experiment.train.precision
        return str((self.done("precision") or {}).get("chosen", "no")) if asked == "auto" else asked

    def check(self, experiment: Experiment) -> Experiment:
        """The settings, when a run of them may begin or go on here.

        What concerns the search alone may still change as long as nothing was searched or tested; what comes
        after it, polish and comparison, as long as nothing was tested; who does the scoring, at any time.
        Where they leave the fewest numbers open, those of an earlier run stay unless it is another search.

        Raises:
            RunError: The folder holds a run of other settings, or something else, or cannot be written.
        """
        if not self.config.is_file():
            self._check_free()
            return experiment
        theirs, mine = (flat(settings.to_json()) for settings in (self.experiment(), experiment))
        idle = () if mine["search.racing"] or theirs.get("search.racing") else RACES
        differing = [key for key in mine if mine[key] != theirs.get(key) and key not in (*ANY_TIME, *idle)]
        if FEWEST in differing and mine[FEWEST] is None and AFTER.issuperset({*differing} - {FEWEST}):
            settings = {**experiment.search.model_dump(), "min_budget": theirs[FEWEST]}
            return self.check(experiment.with_(search=settings))
        if not differing:
            return experiment
        only_search = all(key.startswith("search.") for key in differing)
        begun, tested = self.begun, bool(self.tested)
        if differing == [GENERATIONS] and begun and not tested and mine[GENERATIONS] <= self._most_generations:
            return experiment  # the same search, ended early
        if only_search and not tested and (not begun or AFTER.issuperset(differing)):
            return experiment
        if not only_search or tested:
            remedy = f"Give the same settings to continue it, or {self.anew}"
        else:
            remedy = (
                f"`glora search {self.path}` continues its search, and when that is finished --budget picks from its "
                f"scores; fewer search.searcher.generations end it early; delete {self.journal} to search anew."
            )
        raise RunError(
            f"{self.path} holds a run of other settings: "
            + listed(f"{key} is {theirs.get(key)!r} there, {mine[key]!r} here" for key in differing)
            + ".",
            remedy=remedy,
        )

    def _check_free(self) -> None:
        if self.path.is_dir():
            inside = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if inside:
                raise RunError(f"{self.path} holds no run, but {listed(inside)}.", remedy="Choose another --out.")
        above = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not above.is_dir():
            raise RunError(f"{above} is a file, not a folder.", remedy="Choose another --out.")
        if not os.access(above, os.W_OK):
            raise RunError(f"{above} cannot be written to.", remedy="Choose another --out.")

    @property
    def anew(self) -> str:
        """How to begin again beside this run, in words: with a folder that is free."""
        others = (self.path.with_name(f"{self.path.name}-{number}") for number in itertools.count(2))
        return f"start anew beside it: --out {next(each for each in others if not each.exists())}"

    def write_config(self, experiment: Experiment) -> None:
        """The settings are in the folder, and what a killed process was writing is not, in it or in a folder of it."""
        self._clear()
        write_text(self.config, yaml.safe_dump(experiment.to_json(), sort_keys=False))

    def _clear(self) -> None:
        for stale in list(self.path.rglob(".*.tmp")):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    def check_data(self, fingerprint: str, parts: Mapping[str, str] | None = None) -> None:
        """Nothing when the examples are those that the run began with.

        Args:
            fingerprint, parts: The task's.

        Raises:
            RunError: They have changed: what was a test example then may be a training example now.
        """
        then, now = self._begun.get("parts"), dict(parts or {})
        then = then if isinstance(then, dict) else {}
        if self._begun.get("data", fingerprint) == fingerprint and (then == now or not then or not now):
            return
        odd = [
            f"{name} ({then.get(name, 'none')} then, {now.get(name, 'none')} now)"
            for name in dict.fromkeys([*then, *now])
            if then.get(name) != now.get(name)
        ]
        raise RunError(
            f"The data has changed since the run in {self.path} began{f': {listed(odd)}' if then and odd else ''}.",
            remedy=f"Bring back the data of then, or {self.anew}",
        )

    def check_base(self, fingerprint: str) -> None:
        """Nothing when the base, its head apart, is the one that the run began with.

        Raises:
            RunError: Its weights are others.
        """
        if self._begun.get("base", fingerprint) != fingerprint:
            raise RunError(
                f"The run in {self.path} began with another model: the weights differ, the head apart.",
                allowed="A layer that starts at random needs the same seed every time, unless it is the head.",
                remedy=f"Bring back the model of then, or {self.anew}",
            )

    @property
    def base(self) -> str:
        """Fingerprint of the base that the run began with; empty where it is not known."""
        return str(self._begun.get("base", ""))

    @property
    def _begun(self) -> dict[str, Any]:
        """What the run began with; empty before."""
        return next((record for record in self._records() if record["stage"] == "begun"), {})

    def _records(self) -> list[dict[str, Any]]:
        """The lines of the metrics.

        Raises:
            RunError: One is damaged; the message has its number.
        """
        records = read_jsonl(self.metrics)
        for number, record in enumerate(records, start=1):
            stage = record.get("stage")
            wanted: dict[str, type] = LINES.get(stage, {}) if isinstance(stage, str) else {"stage": str}
            if odd := [name for name, kind in wanted.items() if type(record.get(name)) is not kind]:
                raise RunError(
                    f"{self.metrics}, line {number}, is damaged: {odd[0]} is {str(record.get(odd[0]))[:80]!r}.",
                    remedy=ANEW,
                )
        return records

    def begin(self, data: str, epoch: int, *, base: str | None = None, parts: Mapping[str, str] | None = None) -> None:
        """The metrics hold what belongs to the first `epoch` epochs and nothing of what a kill has undone.

        Args:
            data: Fingerprint of the examples.
            epoch: Epochs done.
            base: Fingerprint of the base, the head apart; None does not keep it.
            parts: Fingerprints of what the data consists of, by name.
        """
        self.need_there()
        self._clear()
        kept = [r for r in self._records() if r["stage"] in ("train", "val", "warning") and r["epoch"] <= epoch]
        begun: dict[str, Any] = {"stage": "begun", "data": data, **({} if base is None else {"base": base})}
        begun |= {"parts": dict(parts)} if parts else {}
        records = [begun, *kept]
        write_text(self.metrics, "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))

    def record(self, stage: str, values: Mapping[str, Any]) -> None:
        """One more line of the metrics."""
        self.need_there()
        append_jsonl(self.metrics, {"stage": stage, **values})

    def seconds(self) -> dict[str, float]:
        """Wall time of training, and of the scores of the search and of its controls, added up over all workers."""
        seconds = {"train": sum(facts.get("seconds", 0.0) for facts in self._trainings())}
        if rate := self.done("lr"):
            seconds["rate"] = rate["seconds"]
        if final := self.final.done("trained"):
            seconds["final"] = final["seconds"]
        for stage, file in (("search", self.journal), ("check", self.values)):
            if file.is_file():
                every = (record.get("seconds", 0.0) for record in read_jsonl(file))
                seconds[stage] = sum(each for each in every if isinstance(each, int | float))
        return seconds

    def example_steps(self) -> int:
        """Passes of an example forward and backward, of all trainings of supernets or of the baseline."""
        return sum(facts.get("example_steps", 0) for facts in self._trainings())

    def work(self) -> dict[str, int]:
        """The same by stage, with those that have chosen the learning rate, and those on train and val together."""
        stages = {"rate": self.done("lr"), "final": self.final.done("trained")}
        more = {stage: int(facts["example_steps"]) for stage, facts in stages.items() if facts}
        return {"train": self.example_steps(), **more}

    def tokens(self) -> dict[str, int]:
        """Tokens in the passes of every stage of which they are known; empty of examples that have none."""
        facts: dict[str, list[dict[str, Any] | None]]
        facts = {"train": [*self._trainings()], "rate": [self.done("lr")], "final": [self.final.done("trained")]}
        known = {stage: [each["tokens"] for each in some if each and "tokens" in each] for stage, some in facts.items()}
        return {stage: int(sum(counts)) for stage, counts in known.items() if counts}

    def _trainings(self) -> list[dict[str, Any]]:
        """The facts of this training and of those of the folds."""
        folders = [self, *(RunFolder(path) for path in sorted(self.path.glob("fold-*")))]
        return [facts for folder in folders if (facts := folder.done("trained"))]

    @property
    def generations_begun(self) -> int:
        """How many generations the search has begun after the first, random one.

        Raises:
            RunError: It has not begun, or its searcher has no generations.
        """
        lines = read_jsonl(self.journal) if self.begun else []
        settings = lines[0].get("settings") if lines else None
        population = settings.get("population") if isinstance(settings, dict) else None
        asked = sum(line.get("event") == "ask" for line in lines)
        if not asked or type(population) is not int or population < 1 or self._most_generations < 0:
            raise RunError(
                f"The search of {self.path} has no generation that could be its last.",
                remedy=f"A search that has begun goes on: glora search {self.path}",
            )
        last: int = math.ceil(asked / population) - 1
        return last

    @property
    def _most_generations(self) -> int:
        """How many generations the search was begun with; -1 where its searcher has none."""
        settings = read_jsonl(self.journal)[0].get("settings")
        found = settings.get("generations") if isinstance(settings, dict) else None
        return found if type(found) is int else -1

    @property
    def begun(self) -> bool:
        """Whether a search was begun: the journal has its first line."""
        if not self.journal.is_file():
            return False
        with self.journal.open("rb") as file:
            return file.readline().endswith(b"\n")

    def warnings(self, outcome: Outcome | None = None) -> list[str]:
        """What is to be told of the trainings: that one collapsed and began anew, or learned nothing.

        Args:
            outcome: The winner, of whose polish and training alone is told too.
        """
        files = [self.metrics, *sorted(self.path.glob("fold-*/metrics.jsonl")), self.final.metrics]
        folders = (self if file == self.metrics else RunFolder(file.parent) for file in files)
        lines = [each["text"] for folder in folders for each in folder._records() if each["stage"] == "warning"]
        if outcome is not None:
            lines += [f"The polish: {line}" for line in self.polished(outcome.key).warnings()]
            lines += [f"The winner trained alone: {line}" for line in self.retrained(outcome.genome).warnings()]
        return lines

    def need_there(self) -> None:
        """Nothing while the folder of a run that has begun is there: what was removed is not made again.

        Raises:
            RunError: It was removed.
        """
        above = (self.path.parent, self.path.parent.parent)  # of another training in the folder of a run
        if not self.path.is_dir() and not any((folder / self.config.name).is_file() for folder in above):
            raise RunError(
                f"{self.path} was removed while the run went on.",
                remedy="Bring the folder back and give the same command again, or start anew.",
            )

    def held(self) -> AbstractContextManager[None]:
        """Within it no other process may work in the folder, which is made where it is missing.

        Raises:
            RunError: Another does.
        """
        return held(self.path, what=f"the run in {self.path}")

    def owns(self, path: Path) -> bool:
        """Whether a file of this name in the folder, or in a folder of it, is the run's own."""
        path, own = path.resolve(), self.path.resolve()
        files = {file.name for file in vars(self).values() if file != self.path}
        top = path.relative_to(own).parts[:1] if path.is_relative_to(own) else ()
        return bool(top) and (top[0] in files or top[0] in FOLDERS or top[0].startswith("fold-"))

    def need(self, file: Path, command: str) -> None:
        """Nothing when an earlier stage has left its file.

        Raises:
            RunError: It has not; names the command that makes it.
        """
        if not file.is_file():
            raise RunError(f"{self.path} has no {file.name} yet.", remedy=f"Run `{command}` first.")


def _are_facts(facts: Any) -> bool:
    """Whether these are what a stage leaves: numbers that are no less than 0, and names of files in the folder."""
    if not isinstance(facts, dict):
        return False
    numbers = [facts.get(name, 0) for name in ("seconds", "example_steps", "tokens")]
    file = facts.get("file", "")
    return all(type(each) in (int, float) and each >= 0 for each in numbers) and (
        isinstance(file, str) and Path(file).name == file
    )
