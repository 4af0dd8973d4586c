"""`glora eval --tasks`: base, other runs and winner in lm-evaluation-harness; its record and `glora table language`."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from glora.cli.app import app
from glora.errors import RunError
from glora.report.harness import HARNESS, Evaluated, HarnessRow, read_evaluations
from glora.report.paper.language import language
from glora.report.published import LANGUAGE
from glora.report.sheet import as_csv, as_latex, as_markdown
from suites.language_runs import Saying, language_run

pytest.importorskip("transformers")

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: questions.jsonl
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{q}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
"""
QUESTIONS = [
    {"q": f"What comes after {first}?", "choices": ["red", second, "morning sky"], "answer": 1}
    for first, second in zip(
        ["one", "two", "three", "four", "five"], ["two", "three", "four", "five", "six"], strict=True
    )
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A searched run, and one of LoRA with the same base."""
    folder = tmp_path_factory.mktemp("language")
    few = ["search.searcher.population=2", "search.searcher.generations=0", "search.controls=2", "train.epochs=1"]
    language_run(folder, "glora", *few)[0].fit()
    language_run(folder, "lora", "method=lora", "train.epochs=1")[0].fit()
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks and their questions."""
    for name in ("words", "more_words"):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    return tmp_path


def test_base_other_runs_and_winner_are_measured_alike(runs: Path, tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    from glora.runs.lm_eval import Asked, evaluate_run

    before = random.getstate(), torch.get_rng_state(), Path.cwd()
    asked = Asked((str(tasks / "words.yaml"), "more_words"), tasks)
    found = evaluate_run(runs / "glora", asked, Saying(), others=[runs / "lora"])
    assert [row.kind for row in found.rows] == ["base", "run", "winner"]
    assert [row.title for row in found.rows] == ["Base", "LoRA (all linears)", "GLoRA"]
    assert found.rows[0].parameters == 0 < found.rows[2].parameters <= 2000
    assert found.examples == {"words": 5, "more_words": 5} and set(found.shots.values()) == {0}
    for row in found.rows:
        value, error = row.scores["words"]["acc"]
        assert value is not None and error is not None
        assert row.scores["words"].keys() == {"acc", "acc_norm"} and round(5 * value) == pytest.approx(5 * value)
        assert error == pytest.approx((value * (1 - value) / 4) ** 0.5)
    assert read_evaluations(runs / "glora" / HARNESS) == [found]
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1]) and Path.cwd() == before[2]

    said = Saying()
    assert evaluate_run(runs / "glora", asked, said, others=[runs / "lora"]) == found
    assert len(said.lines) == 3 and all("already" in line for line in said.lines)

    sheets = language([str(runs / "glora")])
    assert len(sheets) == 1 and not any(line.printed for line in sheets[0].lines)
    assert [line.name for line in sheets[0].lines] == ["Base", "LoRA (all linears)", "GLoRA"]
    assert "0 shots, 5 questions" in " ".join(sheets[0].caption)


def test_the_winner_scores_as_its_merged_model_in_the_harness_alone(runs: Path, tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    import glora
    from glora.runs.lm_eval import Asked, _inside, _quiet, evaluate_run

    found = evaluate_run(runs / "glora", Asked((str(tasks / "words.yaml"),), limit=4), Saying())
    loaded: Any = glora.load(runs / "glora")
    harness, models, own = map(importlib.import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks"))
    with _quiet(), _inside(tasks):
        alone = models.HFLM(pretrained=loaded.merge(), tokenizer=loaded.preprocess.tokenizer, batch_size=8)
        manager = own.TaskManager(include_path=str(tasks), include_defaults=False)
        theirs = harness.simple_evaluate(model=alone, tasks=["words"], task_manager=manager, limit=4)["results"][
            "words"
        ]
    assert found.rows[-1].scores["words"]["acc"][0] == theirs["acc,none"]
    assert found.rows[-1].scores["words"]["acc_norm"][0] == theirs["acc_norm,none"]


def test_the_command_prints_a_table_and_the_record(runs: Path, tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    words = ["eval", str(runs / "glora"), "--tasks", "words", "--tasks-dir", str(tasks), "--limit", "2"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "the first 2 questions" in " ".join(shown.stdout.split())
    record = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert record["settings"]["limit"] == 2 and len(record["rows"]) == 2
    refused = CliRunner().invoke(app, ["eval", str(runs / "glora"), "--limit", "2"])
    assert refused.exit_code == 2


def test_a_file_without_a_task_and_a_folder_that_is_not_there_are_told(runs: Path, tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    from glora.runs.lm_eval import Asked, _names

    (tasks / "none.yaml").write_text("dataset_path: json\n", encoding="utf-8")
    with pytest.raises(RunError, match="names no task"):
        _names(Asked((str(tasks / "none.yaml"),)))
    with pytest.raises(RunError, match="There is no folder"):
        _names(Asked(("words",), tasks / "nowhere"))


def evaluated(shots: int = 25, **settings: object) -> Evaluated:
    """An evaluation of two models on the leaderboard's tasks."""
    values = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm", "mmlu": "acc", "truthfulqa_mc2": "acc"}
    scores = {task: {metric: (0.4, 0.01)} for task, metric in values.items()}
    known: list[Any] = [("base", "Base", "", 0), ("winner", "GLoRA", "run", 2_000_000)]
    rows = [
        HarnessRow(kind=kind, key=kind, title=title, run=run, model="llama", parameters=n, scores=scores)
        for kind, title, run, n in known
    ]
    counts = {"arc_challenge": shots, "hellaswag": 10, "mmlu_anatomy": 5, "truthfulqa_mc2": 0}
    own = {"versions": {"lm_eval": "0.4.13"}, "precision": "no", "limit": None, **settings}
    return Evaluated(settings=own, shots=counts, rows=tuple(rows))


def written(folder: Path, found: Evaluated) -> str:
    from glora.report.harness import with_evaluation

    folder.mkdir()
    with_evaluation(folder / HARNESS, found)
    return str(folder)


def test_printed_rows_stand_beside_measured_ones_with_what_differs(tmp_path: Path) -> None:
    (sheet,) = language([written(tmp_path / "run", evaluated())])
    assert [(line.name, line.printed) for line in sheet.lines[-2:]] == [("Base", False), ("GLoRA", False)]
    assert sum(line.printed for line in sheet.lines) == 3
    assert sheet.lines[-1].cells["arc"].text(".1f") == "40.0 ± 1.0"
    assert sheet.lines[-1].cells["mean"].value == pytest.approx(40)
    told = " ".join(sheet.caption)
    assert "June 2023" in told and "0.4.13" in told and "shots here" not in told
    for form, word in ((as_markdown, "| GLoRA"), (as_csv, "arc_spread"), (as_latex, r"\midrule")):
        assert word in form(sheet)


def test_other_shots_and_a_limit_are_said(tmp_path: Path) -> None:
    (sheet,) = language([written(tmp_path / "run", evaluated(0, limit=10))])
    told = " ".join(sheet.caption)
    assert "ARC was asked with 0 shots here, and with 25 in print." in told and "the first 10 questions" in told


def test_the_printed_rows_alone_and_a_folder_without_an_evaluation(tmp_path: Path) -> None:
    (sheet,) = language([])
    assert all(line.printed for line in sheet.lines)
    assert [line.cells["mean"].value for line in sheet.lines] == pytest.approx(
        [row.average for row in LANGUAGE], abs=0.06
    )
    with pytest.raises(RunError, match="no evaluation"):
        language([str(tmp_path)])


def test_an_evaluation_replaces_one_with_the_same_settings_alone(tmp_path: Path) -> None:
    from glora.report.harness import with_evaluation

    path = tmp_path / HARNESS
    for found in (evaluated(), evaluated(limit=3), evaluated(0)):
        with_evaluation(path, found)
    assert [each.settings["limit"] for each in read_evaluations(path)] == [3, None]
    assert read_evaluations(path)[1].shots["arc_challenge"] == 0
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be read"):
        read_evaluations(path)
