"""Language models from rows to a folder that plain transformers loads: whole runs, predictions, what Python gives."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import glora
from glora.config import Experiment, build_experiment
from glora.errors import BackboneError, DataError, RunError, StateError
from glora.runs.open_chat import open_chat
from glora.runs.run import Run
from language import CAUSAL, tiny_causal, tiny_encoder, tiny_t5
from suites.toy import Recorder

transformers = pytest.importorskip("transformers")

COLOURS = ("red", "blue", "one")
SMALL = {"searcher": {"name": "evolution", "population": 4, "generations": 1}, "controls": 1}
RELOAD = """
import sys, torch, transformers
kind, folder, inputs, out = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder).eval()
with torch.no_grad():
    torch.save(model(**torch.load(inputs)).logits, out)
assert not any(name.startswith("glora") for name in sys.modules)
"""

KILLED = """
import json, sys
from pathlib import Path
from glora.runs.run import Run
from suites.toy import Recorder
from test_language_runs import experiment
base, data, train, out, kill = sys.argv[1:]
name, at = kill.split("=")
Run(experiment(Path(base), Path(data), train=json.loads(train)), out, Recorder(**{name: int(at)})).fit()
"""


def base_of(folder: Path, kind: str, **changes: Any) -> Path:
    if kind in CAUSAL:
        return tiny_causal(folder, kind, **changes)
    return tiny_t5(folder) if kind == "t5" else tiny_encoder(folder)


def rows_of(kind: str, n: int = 40) -> list[dict[str, Any]]:
    rng = random.Random(0)
    told = [(f"What is {rng.choice(COLOURS)} {place}?", rng.choice(COLOURS)) for place in range(n)]
    if kind == "bert":
        return [{"text": text, "label": word} for text, word in told]
    if kind == "choose":
        return [{"question": text, "choices": list(COLOURS), "answer": COLOURS.index(word)} for text, word in told]
    return [{"instruction": text, "output": f"It is {word}."} for text, word in told]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def experiment(base: Path, data: Path, **more: Any) -> Experiment:
    plain: dict[str, Any] = {
        "model": {"name": str(base)},
        "data": {"source": str(data)},
        "method": {"name": "glora", "ranks": [2]},
        "train": {"epochs": 1, "batch_size": 8},
        "search": SMALL,
    }
    return build_experiment({**plain, **more}, source="the test", problems=[])


def finished(tmp_path: Path, kind: str, **more: Any) -> Path:
    """A finished run on a base of this kind."""
    base = base_of(tmp_path / "base", kind)
    data = written(tmp_path / "data.jsonl", rows_of(kind))
    assert Run(experiment(base, data, **more), tmp_path / "run", Recorder()).fit() is not None
    return tmp_path / "run"


def reloaded(folder: Path, kind: str, inputs: dict[str, torch.Tensor], work: Path) -> torch.Tensor:
    """The logits that plain transformers gives in a process of its own."""
    torch.save(inputs, work / "inputs.pt")
    words = [kind, str(folder), str(work / "inputs.pt"), str(work / "logits.pt")]
    subprocess.run([sys.executable, "-c", RELOAD, *words], check=True, timeout=120)
    found: torch.Tensor = torch.load(work / "logits.pt")
    return found


def check_merged(run: Path, kind: str, work: Path) -> None:
    """The folder of a merged run gives its very logits in plain transformers, and the tokenizer is the base's own."""
    loaded = glora.load(run)
    loaded.save(work / "out")
    base = work / "base"
    for file in (*base.glob("tokenizer*"), *base.glob("chat_template*")):
        assert (work / "out" / file.name).read_bytes() == file.read_bytes()
    inputs = dict(loaded.preprocess.tokenizer(["What is red?"], return_tensors="pt"))  # type: ignore[union-attr]
    if kind == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
    auto = {"t5": "AutoModelForSeq2SeqLM", "bert": "AutoModelForSequenceClassification"}.get(
        kind, "AutoModelForCausalLM"
    )
    assert torch.equal(reloaded(work / "out", auto, inputs, work), expected)
    if kind == "bert":
        config = json.loads((work / "out" / "config.json").read_text())
        assert sorted(config["label2id"]) == sorted(COLOURS)


def test_a_llama_from_rows_to_a_folder(tmp_path: Path) -> None:
    run = finished(tmp_path, "llama")
    check_merged(run, "llama", tmp_path)
    loaded = glora.load(run)
    both = loaded.predict(["What is red?", {"instruction": "What is red?", "output": "It is red."}], max_tokens=6)
    assert both[0]["reply"] == both[1]["reply"]
    whole, _ = loaded.evaluate_on(tmp_path / "data.jsonl")
    every = loaded.predict(rows_of("llama"), max_tokens=0, batch_size=7)
    assert [row["loss"] for row in every] == pytest.approx(whole.values["loss"].tolist(), rel=1e-4)
    assert "reply" not in every[0]
    asked = open_chat(run).answer("What is red?")
    assert asked == open_chat(tmp_path / "out").answer("What is red?")
    assert asked.startswith(both[0]["reply"][:3])
    assert json.loads((tmp_path / "out" / "glora.json").read_text())["objective"]["name"] == "language"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*CAUSAL[1:], "bert", "t5"])
def test_every_kind_from_rows_to_a_folder(tmp_path: Path, kind: str) -> None:
    check_merged(finished(tmp_path, kind), kind, tmp_path)


@pytest.mark.slow
def test_new_biases_of_a_llama_are_kept_and_those_of_a_qwen_refused(tmp_path: Path) -> None:
    paper = {"method": {"name": "glora", "variant": "paper", "new_bias": True, "ranks": [2]}}
    for kind in ("llama", "qwen2"):
        work = tmp_path / kind
        work.mkdir()
        loaded = glora.load(finished(work, kind, **paper))
        assert loaded.new_keys
        if kind == "qwen2":
            with pytest.raises(BackboneError, match="no place for"):
                loaded.save(work / "out")
            assert not (work / "out").exists()
            loaded.save(work / "out.safetensors")
            assert (work / "out.safetensors").is_file()
            continue
        loaded.save(work / "out")
        inputs = dict(loaded.preprocess.tokenizer(["What is red?"], return_tensors="pt"))  # type: ignore[union-attr]
        with torch.no_grad():
            expected = loaded.model(**inputs).logits
        found = reloaded(work / "out", "AutoModelForCausalLM", inputs, work)
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_model(tmp_path: Path) -> None:
    base, data = base_of(tmp_path / "base", "llama"), written(tmp_path / "data.jsonl", rows_of("llama"))
    settings = {"epochs": 4, "batch_size": 4}
    whole = experiment(base, data, train=settings)
    Run(whole, tmp_path / "whole", Recorder()).fit()
    for kill in ("kill_step=5", "kill_trial=2"):
        words = [str(base), str(data), json.dumps(settings), str(tmp_path / "cut"), kill]
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        ended = subprocess.run([sys.executable, "-c", KILLED, *words], check=False, timeout=300, env=here)
        assert ended.returncode == -9
    Run(whole, tmp_path / "cut", Recorder()).fit()
    one, two = (glora.load(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_questions_are_predicted_with_and_without_their_answers(tmp_path: Path) -> None:
    base, data = base_of(tmp_path / "base", "llama"), written(tmp_path / "data.jsonl", rows_of("choose"))
    how = {"method": {"name": "lora", "rank": 2}}
    Run(experiment(base, data, **how), tmp_path / "run", Recorder()).fit()
    run = glora.load(tmp_path / "run")
    rows = rows_of("choose")
    found = run.predict(rows)
    whole, _ = run.evaluate_on(data)
    right = [record["choice"] == row["answer"] for record, row in zip(found, rows, strict=True)]
    assert right == [bool(value) for value in whole.values["acc"]]
    bare = run.predict([{"question": "What is red?", "choices": ["red", "blue"]}, rows[0]])
    assert bare[0]["answer"] in ("red", "blue")
    assert len(bare[0]["probabilities"]) == 2
    assert sum(bare[0]["probabilities"]) == pytest.approx(1)
    assert bare[1]["choice"] == found[0]["choice"]
    with pytest.raises(DataError, match=r"Input 1 is 'What is red\?'.*choices"):
        run.predict("What is red?")


def test_a_model_its_tokenizer_and_rows_from_python(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [
        {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
        for row in rows_of("llama")
    ]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    how: dict[str, Any] = {"method": "lora", "epochs": 1, "batch_size": 8, "progress": False}
    found = glora.fit(model, train=rows, tokenizer=tokenizer, out=tmp_path / "run", **how)
    assert found.record.objective == "language"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    again = glora.load(tmp_path / "run", model=model)
    assert found.predict("What is red?", max_tokens=5) == again.predict("What is red?", max_tokens=5)
    again.save(tmp_path / "out")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.chat_template == tokenizer.chat_template
    with pytest.raises(RunError, match="came from Python"):
        glora.load(tmp_path / "run")


def test_a_text_classifier_from_python(tmp_path: Path) -> None:
    import datasets

    folder = tiny_encoder(tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    names = datasets.ClassLabel(names=list(COLOURS))
    rows = [{"text": row["text"], "label": COLOURS.index(row["label"])} for row in rows_of("bert")]
    data = datasets.Dataset.from_list(rows, features=datasets.Features(text=datasets.Value("string"), label=names))
    how: dict[str, Any] = {"method": "lora", "epochs": 1, "batch_size": 8, "progress": False, "tokenizer": tokenizer}
    found = glora.fit(model, train=data, out=tmp_path / "run", **how)
    assert found.record.objective == "classify"
    assert found.predict("What is red?")[0]["class"] in COLOURS
    pairs = [(row["text"], COLOURS[row["label"]]) for row in rows]
    other = glora.fit(model, train=pairs, test=pairs[:6], out=tmp_path / "two", **how)
    assert "test_accuracy" in other.metrics
    with pytest.raises(DataError, match="gives 3 outputs, and the data has 2 classes"):
        glora.fit(
            model, train=[(f"What is {place}", "xy"[place % 2]) for place in range(20)], out=tmp_path / "three", **how
        )
    with pytest.raises(BackboneError, match="is no model of transformers"):
        glora.fit(torch.nn.Linear(2, 2), train=pairs, out=tmp_path / "four", **how)


def test_what_cannot_be_merged_says_why(tmp_path: Path) -> None:
    run = finished(tmp_path, "llama", method={"name": "adapter"})
    with pytest.raises(StateError, match="cannot be merged"):
        glora.load(run).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_reads_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from glora.cli.app import app

    run = finished(tmp_path, "bert", method={"name": "lora", "rank": 2})
    (tmp_path / "texts.txt").write_text("What is red?\n\nWhat is blue?\n")
    call = CliRunner().invoke

    def out(*words: str) -> str:
        found = call(app, list(map(str, words)))
        assert found.exit_code == 0, found.output
        return found.stdout

    lines = out("predict", str(run), str(tmp_path / "texts.txt"), "What is one").splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["texts.txt, line 1", "texts.txt, line 3", "What is one"]
    assert all(any(colour in line for colour in COLOURS) for line in lines)
    rows = json.loads(out("predict", str(run), str(tmp_path / "data.jsonl"), "--json"))
    assert len(rows) == len(rows_of("bert"))
    assert rows[0]["text"] == "data.jsonl, line 1"
    header = out("predict", str(run), "What is one", "--csv").splitlines()[0]
    assert header.startswith("text,class,probability")
    assert out("merge", str(run), "--out", str(tmp_path / "out")).strip() == str(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()
    gone = call(app, ["predict", str(run), "nowhere.txt"])
    assert isinstance(gone.exception, DataError)
    (tmp_path / "bad.jsonl").write_text('{"text": "What is red?"}\n{"text": 4}')
    predict = ["predict", str(run), str(tmp_path / "bad.jsonl")]
    with pytest.raises(DataError, match=r"bad.jsonl, line 2 has 'text' as a number.*--on-bad-row skip"):
        call(app, predict, catch_exceptions=False)
    assert len(out(*predict, "--on-bad-row", "skip").splitlines()) == 1
    with pytest.raises(DataError, match="is a folder"):
        call(app, ["predict", str(run), str(tmp_path)], catch_exceptions=False)
    (tmp_path / "bad.jsonl").write_text((tmp_path / "data.jsonl").read_text() + "\n{}")
    evaluate = ["eval", str(run), "--data", str(tmp_path / "bad.jsonl")]
    with pytest.raises(DataError, match=r"bad\.jsonl, line 41"):
        call(app, evaluate, catch_exceptions=False)
    assert "on the 40 examples" in out(*evaluate, "--set", "data.on_bad_row=skip")
