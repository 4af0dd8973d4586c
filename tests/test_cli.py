"""The command line as a person meets it: help, errors, streams, exit codes, Ctrl-C, the bar."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from glora.cli import app as cli
from glora.cli.listing import listing
from glora.cli.options import OPTIONS
from glora.config import describe, description
from glora.files import read_jsonl
from suites.toy import TARGETS, image_folder

VERBS = ("fit", "train", "search", "eval", "predict", "merge", "ls", "data", "check", "table", "plot", "bench", "demo")
TINY = ["--model", "test_vit", "--no-pretrained", "--image-size", "32", "--epochs", "1"]
SMALL_SEARCH = ["--population", "4", "--generations", "1", "--set", "search.searcher.parents=2"]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def glora(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs `glora WORDS...` through its entry point, within this process."""

    def call(*words: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["glora", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "photos")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after `glora train`, whose images are beside it."""
    root = tmp_path_factory.mktemp("trained")
    image_folder(root / "photos")
    words = ["train", "--data", str(root / "photos"), *TINY, "--out", str(root / "run")]
    targets = [word for name in TARGETS for word in ("--targets", name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["glora", *words, *targets])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return root / "run"


# -- data


def test_data_tells_what_is_in_each_split_and_draws_some(glora: Any, photos: Path, tmp_path: Path) -> None:
    done = glora("data", photos, "count", "--picture", tmp_path / "some.svg", "--samples", "5")
    assert done.code == 0
    assert re.search(r"photos: classify, 2 classes\n  train +26 images  dark 13, light 13\n", done.out)
    assert re.search(r"count, structured: .*\n.*\n  val +200 images  3 25, 4 25", done.out)
    first, second = json.loads((tmp_path / "some.json").read_text())["rows"]
    assert sorted(first["labels"]) == ["dark", "dark", "light", "light", "light"] or len(set(first["labels"])) == 2
    assert len(set(second["labels"])) == 5, "as many classes as there is room for"


def test_the_picture_of_the_guide_is_the_commands(glora: Any, tmp_path: Path) -> None:
    figure = Path(__file__).parents[1] / "docs" / "guide" / "figures" / "offline-suite.json"
    rows = {row["title"]: row for row in json.loads(figure.read_text())["rows"]}
    assert len(rows) == 7
    drawn = ["dsprites_loc", "dsprites_ori", "count"]  # those that need no package
    glora("data", *drawn, "--picture", tmp_path / "some.png")
    assert json.loads((tmp_path / "some.json").read_text())["rows"] == [rows[name] for name in drawn]


def test_data_as_json(glora: Any, photos: Path) -> None:
    (told,) = json.loads(glora("data", photos, "--json").out)
    assert {name: split["examples"] for name, split in told["splits"].items()} == {"train": 26, "val": 6, "test": 8}
    assert told["splits"]["test"]["classes"] == {"dark": 4, "light": 4}


@pytest.mark.figures
def test_a_picture_of_samples_is_drawn(glora: Any, photos: Path, tmp_path: Path) -> None:
    assert glora("data", photos, "--picture", tmp_path / "some.png").code == 0
    assert (tmp_path / "some.png").read_bytes()[:4] == b"\x89PNG"


def test_data_that_is_not_there(glora: Any) -> None:
    done = glora("data", "digit")
    assert done.code == 2 and "Did you mean 'digits'?" in done.err


# -- help


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "--help"], ["bench", "--help"], ["ls", "searchers"]], ids=" ".join
)
def test_what_needs_no_torch_loads_none(words: list[str]) -> None:
    code = "import sys; from glora.cli.app import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = {
        "--help": VERBS,
        "fit": ("--budget", "--method"),
        "bench": ("--workers", "--cluster"),
        "ls": ("evolution", "nsga2", "random"),
    }
    assert all(word in done.stdout for word in said[words[0]])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_ends_with_an_example_that_parses(
    verb: str, glora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    told = glora(verb, "--help")
    assert told.code == 0
    example = re.search(rf"Example: (glora {verb}.*?)\s*$", told.out, re.MULTILINE)
    assert example, told.out
    command = next(c for c in cli.app.registered_commands if (c.name or c.callback.__name__) == verb)  # type: ignore[union-attr]
    assert (command.callback.__doc__ or "").strip().endswith(example[1].strip())
    words = shlex.split(example[1])[2:]
    commands()[verb].make_context(verb, words)  # raises on what it does not know


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    found: dict[str, Any] = group.commands
    return found


def test_options_are_settings_and_have_their_help() -> None:
    settings = {line.split()[0] for line in describe()}
    fit, train, search = (commands()[verb] for verb in ("fit", "train", "search"))
    for command in (fit, train, search):
        command.make_context(command.name, ["run"], resilient_parsing=True)
    has = {command.name: {each.name: each for each in command.params} for command in (fit, train, search)}
    for name, option in OPTIONS.items():
        assert option.name in settings
        assert has["fit"][name].help == (option.help or description(option.name))
        of_search = option.name.startswith("search.")
        assert (name in has["search"], name in has["train"]) == (of_search, not of_search)
    assert not [each.name for each in fit.params if not each.help]


# -- errors


def bad_data(tmp_path: Path, kind: str) -> Path:
    root = tmp_path / kind
    if kind == "empty":
        root.mkdir()
    elif kind == "one class":
        image_folder(root, classes=("only",))
    elif kind == "corrupt":
        image_folder(root)
        (root / "dark" / "3.png").write_bytes(b"no image")
    elif kind == "val empty":
        for split, count in (("train", 4), ("val", 0), ("test", 4)):
            image_folder(root / split, per_class=count)
    return root


@pytest.mark.parametrize(
    ("kind", "cause", "tip"),
    [
        ("empty", "There are no images in", "Put the images of each class in a folder of its own"),
        ("one class", "holds only one class, 'only'", "Put the images of each class"),
        ("corrupt", "dark/3.png' cannot be read", "--on-bad-image skip"),
        ("val empty", "There are no images in", "remove the folder: val is then cut from train"),
        ("nowhere", "There is no folder", ""),
    ],
)
def test_bad_data_is_one_error_with_the_remedy(glora: Any, tmp_path: Path, kind: str, cause: str, tip: str) -> None:
    data = bad_data(tmp_path, kind)
    assert_one_error(glora("fit", "--data", data, *TINY, "--out", tmp_path / "run"), cause, tip)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "cause", "tip"),
    [
        (["--model", "vit_tinny_patch16_224"], "There is no model 'vit_tinny_patch16_224'", "glora ls models"),
        (["--targets", "qkvv"], "targets='qkvv'", "Did you mean 'qkv'?"),
        (["--budget", "0"], None, None),  # allowed: the smallest genotype has no numbers
        (["--set", "search.min_budget=1G"], "above the largest genotype", "Change budget or min_budget"),
        (["--method", "lorra"], "There is no method 'lorra'. Did you mean 'lora'", "glora ls settings"),
        (["--objective", "clasify"], "There is no objective 'clasify'. Did you mean 'classify'", "glora ls settings"),
        (["--method", "lora", "--set", "method.rnk=8"], "no such setting of 'lora'. Did you mean 'rank'?", ""),
        (["--set", "space.ranks=[4]"], "space.ranks: no such setting. Did you mean 'method.ranks'?", ""),
        (["--set", "lr=0.1"], "lr: no such setting. Did you mean 'train.lr'?", "glora ls settings"),
        (["--set", "search.searcher=random", "--population", "20"], "population: no such setting of 'random'", ""),
        (["--data", "digitz"], "There is no data set and no folder 'digitz'", "glora ls settings"),
        (["--data", "digitz"], "Did you mean 'digits'? Run `glora ls data`.", "glora ls settings"),
        (["--data", "chats.jsonl"], "There is no file 'chats.jsonl'", "glora ls settings"),
        (["--set", "train.epoch=3"], "train.epoch: no such setting. Did you mean 'epochs'?", "glora ls settings"),
        (["--set", "train.lr"], "'train.lr' is no override", "glora ls settings"),
        (["--budget", "much"], "search.budget: ", "glora ls settings"),
        (["--precision", "int4"], "train.precision: ", "glora ls settings"),
        (["--val-size", "0"], "data.val: ", "glora ls settings"),
        (["--preset", "papre"], "Did you mean 'paper'?", "glora ls settings"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read", "Name a YAML file"),
        (["--checkpoint", "nowhere.safetensors"], "There is no checkpoint", "Check the path"),
        (["--pretrained"], "could not be loaded", "--no-pretrained"),
        (["--out", "photos"], "holds no run, but dark", "Choose another --out"),
    ],
)
def test_wrong_options_are_one_error_with_the_remedy(
    glora: Any, photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], cause: str | None, tip: str | None
) -> None:
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if cause is None:
        assert glora("train", "--data", photos, *TINY, "--out", "run").code == 0
        return
    assert_one_error(glora("fit", "--data", photos, *TINY, "--out", "run", *words), cause, tip or "")
    assert sorted(entry.name for entry in photos.parent.iterdir()) == ["photos"]


def assert_one_error(told: Outcome, cause: str, tip: str = "") -> None:
    """One `Error:` and at most one `TIP:` on stderr, nothing on stdout, exit code 2, no traceback."""
    assert told.code == 2, told
    assert told.out == ""
    assert told.err.count("Error: ") == 1
    assert cause in told.err
    assert "Traceback" not in told.err
    lines = told.err.rstrip("\n").splitlines()
    tips = [line for line in lines if line.startswith("TIP: ")]
    assert len(tips) == 1
    assert lines[-1] == tips[0]
    assert tip in tips[0]


@pytest.mark.slow
def test_an_error_of_a_real_process_has_its_stream_and_code(photos: Path, tmp_path: Path) -> None:
    words = ["fit", "--data", str(photos), "--metod", "x"]
    done = subprocess.run([sys.executable, "-m", "glora", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such option" in done.stderr
    words = ["search", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "glora", *words], capture_output=True, text=True, check=False)
    assert_one_error(Outcome(done.returncode, done.stdout, done.stderr), "holds no run", "glora fit --data FOLDER")


def test_a_bad_image_is_left_out_counted_and_listed_when_asked(glora: Any, tmp_path: Path) -> None:
    data = bad_data(tmp_path, "corrupt")
    told = glora("train", "--data", data, *TINY, "--on-bad-image", "skip", "--out", tmp_path / "run")
    assert told.code == 0
    assert "Skipped 1 unreadable image: dark/3.png." in told.err
    assert "26 train" in told.err or "25 train" in told.err


@pytest.mark.parametrize("verb", ["search", "eval", "merge"])
def test_a_folder_that_is_no_run_is_told(glora: Any, photos: Path, verb: str) -> None:
    assert_one_error(glora(verb, photos), "holds no run", "glora fit --data FOLDER --out RUN")


@pytest.mark.parametrize("verb", ["eval", "merge"])
def test_a_missing_stage_names_its_command(
    glora: Any, trained: Path, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(trained.iterdir())
    assert_one_error(glora(verb, trained), "has no adapter.safetensors yet", f"Run `glora search {trained}` first.")
    assert sorted(trained.iterdir()) == before
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_is_told(glora: Any, trained: Path, tmp_path: Path) -> None:
    import timm

    from glora import SearchSpace, inject, save_adapter

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    other = timm.create_model("test_vit2", num_classes=2, img_size=32)
    save_adapter(inject(other, SearchSpace()), run / "adapter.safetensors")
    assert_one_error(glora("eval", run), "is for another model")
    assert_one_error(glora("merge", run, "--out", tmp_path / "merged.safetensors"), "is for another model")
    assert not (run / "result.json").exists()
    assert not (tmp_path / "merged.safetensors").exists()
    (run / "adapter.safetensors").write_bytes(b"damaged")
    assert_one_error(glora("eval", run), "is damaged")


def test_check_tells_every_error_at_once(glora: Any, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("data: {source: digits}\ntrain: {epochs: 0}\nsaerch: {}\n")
    told = glora("check", file)
    assert_one_error(told, "2 errors in")
    assert "train.epochs" in told.err
    assert "Did you mean 'search'?" in told.err
    file.write_text("data: {source: digist}\nmethod: glroa\nmodel: {name: dinov2_vits15}\nsearch: {searcher: evo}\n")
    told = glora("check", file)
    assert_one_error(told, "4 errors in", "glora ls")
    assert all(name in told.err for name in ("'digits'", "'glora'", "'dinov2_vits14'", "search.searcher"))
    file.write_text("data: {source: digits}\ntrain: {lr: 1}\nseed: 1\ntrain: {epochs: 2}\n")
    assert_one_error(glora("check", file), "train: the key is there twice, in line 2 and in line 4")
    file.write_text("data: {source: digits}\n")
    assert glora("check", file)[:2] == (0, "")


def test_a_full_disk_is_one_line(glora: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "config.yaml")

    monkeypatch.setattr("glora.runs.folder.write_text", full)
    told = glora("train", "--data", photos, *TINY, "--out", tmp_path / "run")
    assert told.code == 1
    assert told.err.endswith("Error: No space left on device: config.yaml.\n")


# -- the verbs


def test_the_verbs_do_a_run_a_stage_at_a_time(glora: Any, trained: Path, tmp_path: Path) -> None:
    images = trained.parent / "photos"
    assert "The training is done already." in glora("train", "--out", trained).err, "--out alone opens a run"
    refused = glora("search", trained, "--budget", "300", "--population", "0")
    assert_one_error(refused, "search.searcher.population")
    found = glora("search", trained, "--budget", "300", "--population", "6", "--generations", "1")
    assert found.code == 0
    assert found.out == ""
    asks = [line for line in read_jsonl(trained / "search.jsonl") if line["event"] == "ask"]
    assert max(line["parameters"] for line in asks) <= 300
    told = glora("search", trained, "--population", "5")
    assert_one_error(told, "search.searcher.population is 6 there, 5 here", "delete")

    tested = glora("eval", trained, "--json")
    assert tested.code == 0
    result = json.loads(tested.out)
    assert result["method"] == "glora"
    again = glora("eval", trained, "--json")
    assert json.loads(again.out) == result
    assert "read once already" in again.err
    other = glora("eval", trained, "--data", images)
    assert re.search(r"^accuracy \d+\.\d ± \d+\.\d % on the 40 examples of ", other.out)
    assert json.loads(glora("eval", trained, "--data", images, "--json").out)["other_examples"] == 40
    assert_one_error(glora("search", trained, "--control", "retrain"), "holds a run of other settings")

    merged = glora("merge", trained, "--out", tmp_path / "merged.safetensors")
    assert merged.out == f"{tmp_path / 'merged.safetensors'}\n"
    import timm
    from safetensors.torch import load_file

    plain = timm.create_model("test_vit", num_classes=2, img_size=32)
    assert plain.load_state_dict(load_file(tmp_path / "merged.safetensors")).missing_keys == []


@pytest.mark.slow
def test_a_finished_search_is_shown_and_picked_from(glora: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "search.jsonl").unlink(missing_ok=True)
    (run / "result.json").unlink(missing_ok=True)
    (run / "winner.json").unlink(missing_ok=True)
    assert_one_error(glora("search", "--show", run), "has no winner.json yet", f"Run `glora search {run}` first.")
    searched = glora("search", run, "--population", "8", "--generations", "2")
    assert "scored; the best 10 were scored again" in searched.err
    assert "The winner" in searched.err
    shown = glora("search", "--show", run, "--json")
    assert shown.err == ""
    whole = json.loads(shown.out)
    assert sum(site["numbers"] for site in whole["sites"].values()) == whole["parameters"]
    least = f" of at least {whole['min_budget']:,} numbers" if whole["min_budget"] else ""
    assert whole["verdict"][0].startswith("Your model: ")
    assert whole["verdict"][1].startswith(f"{whole['scored']} genotypes{least} scored")
    text = glora("search", run, "--show").out
    assert max(map(len, text.splitlines())) <= 80
    for site, cells in whole["sites"].items():
        line = next(line for line in text.splitlines() if line.startswith(site))
        assert line.split()[1:] == [
            *({None: "·", "none": "–"}.get(cells[tensor], cells[tensor]) for tensor in "ABCDE"), f"{cells['numbers']:,}"
        ]  # fmt: skip
    sizes = [record["parameters"] for record in read_jsonl(run / "search.jsonl") if "parameters" in record]
    budget = sorted(sizes)[len(sizes) // 2]
    picked = glora("search", run, "--budget", budget, "--json")
    assert f"of {whole['scored']} scored genotypes" in picked.err
    assert json.loads(picked.out)["parameters"] <= budget
    refused = glora("search", run, "--budget", min(sizes) - 1)
    assert_one_error(refused, f"has at most {min(sizes) - 1:,} trainable", "Ask for what there is")
    assert f"The smallest has {min(sizes):,}" in refused.err
    glora("search", run)
    assert json.loads(glora("search", "--show", run, "--json").out) == whole, "without a budget its own winner is back"


def test_options_become_settings(glora: Any, photos: Path, tmp_path: Path) -> None:
    words = ["--lr", "2e-3", "--batch-size", "4", "--train-size", "10", "--val-size", "5", "--seed", "3"]
    words += ["--targets", "blocks.0.attn.qkv", "--skip", "proj", "--set", "method.ranks=[2]", "--precision", "no"]
    told = glora("train", "--data", photos, *TINY, *words, "--out", tmp_path / "run")
    assert told.code == 0
    from glora.runs.folder import RunFolder

    found = RunFolder(tmp_path / "run").experiment()
    assert (found.train.lr, found.train.batch_size, found.seed) == (2e-3, 4, 3)
    assert (found.data.train, found.data.val, found.data.source) == (10, 5, str(photos))
    assert (found.method.targets, found.method.skip, found.model.pretrained) == ("blocks.0.attn.qkv", ("proj",), False)
    assert found.method.ranks == (2,)


def test_a_method_of_its_own_is_trained_and_tested_without_a_search(
    glora: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "lora.yaml"
    file.write_text("method: {ranks: [2], targets: attn.qkv}\npreset: paper\n")  # of the default method
    words = ["--method", "lora", "--set", "method.rank=8", "--targets", "blocks.0.attn.qkv", "--out=~/run"]
    told = glora("fit", "--data", photos, *TINY, "--config", file, *words, "--json")
    assert told.code == 0, told.err
    result = json.loads(told.out)
    method = {"name": "lora", "rank": 8, "alpha": None, "dropout": 0.0, "parts": [], "scaling": "standard"}
    assert result["config"]["method"] == {**method, "targets": "blocks.0.attn.qkv", "skip": [], "statistics": False}
    assert told.err.endswith("run: adapter.safetensors, result.json. Next: glora merge " + f"{tmp_path / 'run'}\n")
    assert (tmp_path / "run" / "adapter.safetensors").is_file() and not (tmp_path / "run" / "plots").exists()
    again = glora("train", "--out", tmp_path / "run")
    assert again.err.endswith(f"run: adapter.safetensors. Next: glora eval {tmp_path / 'run'}\n")


def test_the_search_is_changed_by_nested_settings(glora: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "search.jsonl").unlink(missing_ok=True)
    (run / "result.json").unlink(missing_ok=True)
    wrong = glora("search", run, "--set", "search.searcher.poplation=3", "--set", "search.polsh=1")
    assert_one_error(wrong, "2 errors")
    assert "'population'" in wrong.err and "'polish'" in wrong.err
    words = ["--set", "search.searcher.population=3", "--generations", "0", "--set", "search.polish=1"]
    told = glora("search", run, *words, "--set", "search.rescore=2", "--set", "search.controls=2")
    assert told.code == 0, told.err
    from glora.runs.folder import RunFolder

    found: Any = RunFolder(run).experiment().search
    assert (found.searcher.name, found.searcher.population, found.searcher.generations) == ("evolution", 3, 0)
    assert (found.polish, found.rescore) == (1, 2)
    assert [line["event"] for line in read_jsonl(run / "search.jsonl")].count("score") == 3


@pytest.mark.slow
def test_other_processes_end_quietly(
    glora: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the main one of several processes that a launcher started: they tell nothing and write nothing."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name in ("search.jsonl", "result.json"):
        (run / name).unlink(missing_ok=True)

    def others() -> None:
        before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr("accelerate.Accelerator.is_main_process", False)
            patch.setattr("accelerate.PartialState.is_main_process", False)
            patch.setattr("glora.runs.run.serve", lambda *_: None)  # there is no main process to score for
            for words in (["fit", "--out", run], ["search", run], ["search", run, "--budget", "300"], ["eval", run]):
                assert glora(*words) == (0, "", ""), words
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before

    others()
    assert glora("search", run, *SMALL_SEARCH, "--set", "search.controls=0").code == 0
    assert glora("eval", run).code == 0
    others()


# -- new images


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a linear probe, whose images are beside it."""
    root = tmp_path_factory.mktemp("finished")
    photos = image_folder(root / "photos", classes=("class", "light"))
    words = ["fit", "--data", str(photos), *TINY, "--method", "linear", "--out", str(root / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["glora", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return root / "run"


def test_predict_gives_classes_with_probabilities(glora: Any, finished: Path, tmp_path: Path) -> None:
    from glora.runs.loaded import load_run

    folder, single = finished.parent / "photos", finished.parent / "photos" / "light" / "3.png"
    files = [single, *sorted(file for file in folder.rglob("*.png") if file != single)]
    wanted = load_run(finished).predict(files)
    told = glora("predict", finished, single, folder, "--json", "--batch-size", "7")
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    assert [Path(record["file"]) for record in found] == files, "a file is there once, those of a folder are sorted"
    for record, own in zip(found, wanted, strict=True):
        assert record["class"] == own["class"]
        assert record["probabilities"] == pytest.approx(own["probabilities"], abs=1e-5)
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    lines = glora("predict", finished, single, folder).out.splitlines()
    for line, record in zip(lines, found, strict=True):
        assert line == f"{record['file']}  {record['class']}  {100 * record['probability']:.1f} %"

    header, *rows = csv.reader(io.StringIO(glora("predict", finished, single, folder, "--csv").out))
    assert header == ["file", "class", "probability", "class", "light"], "a class may be called `class`"
    for row, record in zip(rows, found, strict=True):
        assert row[:2] == [record["file"], record["class"]]
        assert list(map(float, row[2:])) == pytest.approx(
            [record["probability"], *record["probabilities"].values()], abs=1e-5
        )


def test_predict_of_bad_images(glora: Any, finished: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "new", classes=("some",), per_class=3)
    bad = tmp_path / "new" / "bad.png"
    bad.write_bytes(b"no image")
    assert_one_error(glora("predict", finished, tmp_path / "new"), f"The image '{bad}' cannot be read", "skip")
    told = glora("predict", finished, tmp_path / "new", "--on-bad-image", "skip")
    assert told.code == 0
    assert told.err == f"Skipped 1 unreadable image: {bad}.\n"
    assert [Path(line.split("  ")[0]).stem for line in told.out.splitlines()] == ["0", "1", "2"]
    assert glora("predict", finished, bad, "--on-bad-image", "skip").code == 2
    assert glora("predict", finished, bad, "--on-bad-image", "sikp").code == 2
    assert_told(glora("predict", finished, tmp_path / "nowhere.png"), "There is no file and no folder")
    (tmp_path / "empty").mkdir()
    assert_told(glora("predict", finished, tmp_path / "empty"), "There are no images in")
    assert_told(glora("predict", finished, bad, "--json", "--csv"), "choose one of --json and --csv")


def test_predict_needs_a_finished_run_that_reads_images(glora: Any, trained: Path, tmp_path: Path) -> None:
    import torch

    import glora as library

    image = trained.parent / "photos" / "light" / "0.png"
    assert_told(glora("predict", tmp_path, image), "holds no run")
    data = torch.utils.data.TensorDataset(torch.linspace(-1, 1, 72).reshape(24, 3), torch.arange(24) % 2)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    run = tmp_path / "run"
    library.fit(model, train=data, head="1", method="linear", out=run, epochs=1, progress=False)
    assert_told(glora("predict", run, image), "came from Python", "glora.load(RUN, model=...)")


def test_predict_gives_values_and_labels(glora: Any, finished: Path, tmp_path: Path) -> None:
    photos = sorted((finished.parent / "photos").rglob("*.png"))
    table = tmp_path / "images.csv"
    lines = [f"{file},{k % 3}.5,{k % 2},{(k + 1) % 2}" for k, file in enumerate(photos)]
    table.write_text("\n".join(["image,height,dark,new", *lines]) + "\n")
    words = ["--data", table, *TINY, "--method", "linear"]
    told = glora("fit", *words, "--objective", "regress", "--set", "data.columns=[height]", "--out", tmp_path / "r")
    assert told.code == 0, told.err
    record = json.loads(glora("predict", tmp_path / "r", photos[0], "--json").out)[0]
    assert record.keys() == {"file", "height"}
    assert glora("predict", tmp_path / "r", photos[0]).out == f"{photos[0]}  height {record['height']:.6g}\n"
    assert glora("predict", tmp_path / "r", photos[0], "--csv").out.startswith("file,height\n")

    words += ["--objective", "multilabel", "--set", "data.columns=[dark, new]", "--set", "objective.threshold=0.01"]
    told = glora("fit", *words, "--out", tmp_path / "m")
    assert told.code == 0, told.err
    record = json.loads(glora("predict", tmp_path / "m", photos[0], "--json").out)[0]
    chances = record["probabilities"]
    assert record["labels"] == [label for label in ("dark", "new") if chances[label] >= 0.01]
    labels = ", ".join(f"{label} {100 * chances[label]:.1f} %" for label in record["labels"])
    assert glora("predict", tmp_path / "m", photos[0]).out == f"{photos[0]}  {labels}\n"
    rows = glora("predict", tmp_path / "m", photos[0], "--csv").out.splitlines()
    assert rows[0] == "file,labels,dark,new"
    assert rows[1].startswith(f"{photos[0]},{'|'.join(record['labels'])},")


def assert_told(told: Outcome, cause: str, tip: str = "") -> None:
    """An error with exit code 2 and nothing on stdout."""
    assert (told.code, told.out) == (2, ""), told
    assert cause in " ".join(told.err.split()) and tip in told.err and "Traceback" not in told.err


# -- what there is


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["methods"], "lora  LoRA (arXiv 2106.09685) on every target: "),
        (["objectives", "regr"], "regress"),
        (["data", "digits"], "digits  scikit-learn's 1,797 handwritten digits"),
        (["searchers"], "random     Random genotypes within the budget, none twice."),
        (["models", "test_vit"], "test_vit"),
        (["settings"], "train.epochs = 30  Passes over the training examples; auto:"),
        (["settings", "lora"], "method.rank = 8  Rank of the update."),
        (["settings", "linear"], "linear has no settings."),
        (["layers", "test_vit", "--image-size", "32"], "blocks.0.attn.qkv  linear 192 x 64"),
    ],
)
def test_ls_tells_what_there_is(glora: Any, words: list[str], line: str) -> None:
    told = glora("ls", *words)
    assert told.code == 0
    beginning = " ".join(line.split())  # columns are as wide as the longest name
    assert [told for told in told.out.splitlines() if " ".join(told.split()).startswith(beginning)]


def test_ls_layers_tells_their_kinds() -> None:
    lines = listing("layers", "vit_tiny_patch16_224", image_size=32)
    assert "blocks.0.attn.qkv  linear 576 x 192" in lines
    assert "blocks.0.norm1  norm 192" in lines


def test_ls_of_something_else_is_told(glora: Any) -> None:
    assert_one_error(
        glora("ls", "settings", "lorra"), "no settings of 'lorra'. Did you mean 'lora'", "glora ls settings"
    )
    assert_one_error(glora("ls", "model"), "There is nothing called 'model'", "Did you mean 'models'?")
    assert_one_error(glora("ls", "layers"), "needs a model", "glora ls layers dinov2_vits14")


# -- a person at a terminal


def on_a_terminal(words: list[str], *, columns: int, until: str, timeout: float = 60) -> tuple[int, str]:
    """Exit code and screen of a real `glora` on a terminal, sent Ctrl-C when `until` is on the screen."""
    master, slave = pty.openpty()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from glora.cli import app; app.main()"
    )
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    screen, interrupted, end = b"", False, time.monotonic() + timeout
    while time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                screen += os.read(master, 65536)
            except OSError:  # it has ended
                break
        if not interrupted and re.search(until, ANSI.sub("", screen.decode(errors="replace"))):
            process.send_signal(signal.SIGINT)
            interrupted = True
    process.kill() if process.poll() is None and time.monotonic() >= end else None
    os.close(master)
    return process.wait(timeout=30), screen.decode(errors="replace")


@pytest.mark.parametrize(("name", "code", "line"), [("SIGINT", 130, "Interrupted."), ("SIGTERM", 143, "Terminated.")])
def test_a_signal_that_python_drops_comes_again(name: str, code: int, line: str) -> None:
    text = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from glora.cli import app
class Dropping:
    def __del__(self):  # what is raised in here is lost
        signal.raise_signal(signal.NAME)
def work():
    Dropping()
    time.sleep(20)
    print("it went on")
app.app = work
app.main()
"""
    text = text.replace("NAME", name)
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{line}\n")


def test_what_a_command_has_forked_ends_at_once_when_it_is_terminated() -> None:
    text = """
import os, signal, time
from glora.cli import app
def work():
    child = os.fork()
    if not child:
        time.sleep(20)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.waitpid(child, 0)[1])
app.app = work
app.main()
"""
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "15\n", "")


def test_ctrl_c_on_a_terminal_ends_with_a_line_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, glora: Any
) -> None:
    words = ["fit", "--data", str(photos), *TINY, *SMALL_SEARCH, "--out", str(tmp_path / "run"), "--epochs", "400"]
    code, screen = on_a_terminal(words, columns=60, until=r"train +\d\d/400")
    shown = [line.rstrip() for line in re.split(r"[\r\n]+", ANSI.sub("", screen))]
    assert code == 130, screen[-2000:]
    assert shown[-2:] == ["Interrupted. The same command continues the run.", ""]
    assert "Traceback" not in screen
    assert any(line.endswith("loading") for line in shown), "something moves before torch is loaded"
    assert not [line for line in shown if len(line) > 60]
    assert any("━" in line and "loss" in line and "left" in line for line in shown)
    assert "\x1b[?25l" in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l"), "the cursor is back"
    told = glora(*words[:-1], "400", "--set", "train.batch_size=16")
    assert_one_error(told, "train.batch_size is 32 there, 16 here")
    epochs = len([r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["stage"] == "train"])
    assert 1 <= epochs < 400


def test_check_tells_wrong_names_with_wrong_values(glora: Any, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("{data: {source: digits}, train: {epochs: x}, foo: 1, method: lorra}")
    done = glora("check", file)
    assert done.code == 2
    for word in ("3 errors", "train.epochs", "foo", "Did you mean 'lora'"):
        assert word in done.err, done.err
