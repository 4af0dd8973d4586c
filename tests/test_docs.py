"""The documentation builds, its links lead somewhere, and what it shows works as pasted: code, commands, settings."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from typer.main import get_command

import glora
from glora.cli.app import app
from glora.config import build_experiment, describe, load_experiment
from glora.errors import ConfigError
from glora.report.result import Result
from glora.runs.benchmark.settings import load_benchmark
from glora.runs.reporter import Silent
from glora.runs.run import Run
from glora.settings import is_benchmark, read_settings
from suites import toy

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = {DOCS / "reference" / "settings.md", DOCS / "reference" / "cli.md"}  # made by docs/hooks.py in the build
FENCE = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def relative(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e .[docs]"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in [*PAGES, *GENERATED]:
        name = page.relative_to(DOCS).with_suffix("")
        folder = name.parent if name.name == "index" else name
        assert (tmp_path / "site" / folder / "index.html").is_file(), page
    settings = (tmp_path / "site" / "reference" / "settings" / "index.html").read_text(encoding="utf-8")
    assert "train.epochs" in settings
    commands = (tmp_path / "site" / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    assert "glora fit" in commands
    assert "--budget" in commands
    house = (tmp_path / "site" / "contributing" / "index.html").read_text(encoding="utf-8")
    assert '<svg class="house"' in house
    assert all(f">{name}</text>" in house for name in ("errors", "space", "adapt", "runs", "cli"))


def code_of(page: Path) -> str:
    """The Python blocks of a page that are run, one after the other, each on its own line of the page."""
    text = page.read_text(encoding="utf-8")
    lines: list[str] = []
    for match in FENCE.finditer(text):
        if not match[1]:
            lines += [""] * (text.count("\n", 0, match.start(2)) - len(lines)) + match[2].splitlines()
    return "\n".join(lines)


GUIDE = [page for page in PAGES if page.parent.name == "guide"]


@pytest.mark.parametrize("page", [page for page in GUIDE if code_of(page)], ids=relative)
def test_the_python_code_of_a_guide_page_runs_as_pasted(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        exec(compile(code_of(page), page, "exec"), {"__name__": "__main__"})  # an error names the page's own line


def test_every_python_block_of_the_guide_is_run_or_says_why_not() -> None:
    assert GUIDE
    for page in GUIDE:
        text = page.read_text(encoding="utf-8")
        assert len(FENCE.findall(text)) == text.count("```python"), f"{relative(page)}: a fence is not at the margin"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The words of every glora command of a page, without its comment."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if "glora " in line]
    words = [each[: each.index("|")] if "|" in each else each for each in words]
    return [each[1:] for each in words if each and each[0].endswith("glora")]


def settings() -> set[str]:
    """The dotted name of every setting."""
    return {line.split()[0] for line in describe() if not line.endswith(":")}


def added(page: Path) -> set[str]:
    """The settings that the example of a page brings."""
    example = EXAMPLES.get(page.stem) if page.parent.name == "contributing" else None
    return {f"{example.group}.{name}" for name in example.own} if example else set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_the_commands_of_a_page_have_options_and_settings_that_there_are(page: Path) -> None:
    group = get_command(app)
    for words in commands(page):
        verb = group.commands[words[0]]  # type: ignore[attr-defined]
        context = verb.make_context(words[0], words[1:])  # raises on an unknown option
        for override in () if words[0] == "export" else context.params.get("overrides") or ():
            assert override.partition("=")[0] in settings() | added(page), f"{words}: {override}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_settings_that_a_page_names_are_there(page: Path) -> None:
    known = settings() | {"search.json", "search.jsonl", "search.svg", "model.safetensors", "data.zip"}
    known |= {"model.onnx", "model.safetensors.index.json"}
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:method|model|data|objective|train|search)\.[a-z_.]+)[`:= ]", text)
    assert set(named) <= known | added(page)


def test_experiments_of_the_guide_load(tmp_path: Path) -> None:
    texts = [text for page in GUIDE for text in blocks(page, "yaml")]
    assert texts
    for number, text in enumerate(texts):
        (file := tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
        if is_benchmark(read_settings(file)):
            assert load_benchmark(file).cells
        else:
            assert load_experiment(file).data


def anchors(page: Path) -> set[str]:
    """The ids of the headings of a page, as Markdown viewers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"[`*_]", "", heading)).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file() or found in GENERATED, f"{target} does not exist"
        if anchor and found.suffix == ".md" and found.is_file():
            assert anchor in anchors(found), f"{target}: no such heading"


def test_no_file_names_a_page_that_is_not_there() -> None:
    """Docstrings and comments point at pages by their path from the root."""
    here = [path for folder in ("src", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in here:
        for named in re.findall(r"\bdocs/[\w./-]+\.(?:md|py)\b", path.read_text(encoding="utf-8")):
            assert (ROOT / named).is_file() or ROOT / named in GENERATED, f"{path.relative_to(ROOT)} names {named}"


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: glora\.(\w+)$", text, re.MULTILINE)) == set(glora.__all__)


# One more of each: the example of a page becomes one new file and one line in a table, and nothing else.


class Example(NamedTuple):
    """What a page of *Contributing* adds.

    Attributes:
        group: Where its settings are in an experiment. table: The table that gets a line, as `module:NAME`.
        own: Settings of its own, with the values that the run is given.
    """

    group: str
    table: str
    own: dict[str, Any]


EXAMPLES = {
    "method": Example("method", "glora.methods:METHODS", {"blocks": 1, "norms": True}),
    "objective": Example("objective", "glora.tasks.objectives:OBJECTIVES", {"most": 100}),
    "data-source": Example("data", "glora.tasks.data:SOURCES", {"number": 60, "noise": 10.0}),
    "searcher": Example(
        "search.searcher", "glora.searchers.table:SEARCHERS", {"candidates": 6, "mutation_probability": 0.5}
    ),
}


def add(example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts the page's first block into a new file of the package, and its line into the table; returns the name."""
    page = DOCS / "contributing" / f"{example}.md"
    code, line = blocks(page, "python")[:2]
    ((name, module, _),) = re.findall(r'^    "(\w+)": "([\w.]+):(\w+)",$', line, re.MULTILINE)
    package, _, file = module.rpartition(".")
    (folder / f"{file}.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(importlib.import_module(package), "__path__", [*sys.modules[package].__path__, str(folder)])
    monkeypatch.delitem(sys.modules, module, raising=False)
    owner, _, table = EXAMPLES[example].table.partition(":")
    place = re.search(rf'"{name}": "([\w.:]+)"', line)
    monkeypatch.setitem(getattr(importlib.import_module(owner), table), name, place[1])  # type: ignore[index]
    return name


class Net(nn.Module):
    """What the examples are tried on."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(16, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def run_with(example: str, name: str, out: Path, photos: Path) -> Result | None:
    """A short run that uses what was added, its settings nested by name."""
    added = {"name" if example != "data-source" else "source": name, **EXAMPLES[example].own}
    tiny: dict[str, Any] = {
        "method": {"name": "glora"},
        "train": {"epochs": 1},
        "search": {"searcher": {"name": "evolution", "population": 4, "generations": 1}, "controls": 2},
    }
    if example == "data-source":
        given = {**tiny, "method": {"name": "glora", "targets": toy.TARGETS}, "model": toy.MODEL, "data": added}
        return Run(build_experiment(given), out, Silent()).fit()
    if example == "searcher":
        tiny["search"]["searcher"] = added
    else:
        tiny[example] = added
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=generator), torch.arange(60) % 3
    data: Any = TensorDataset(x, y)
    method, objective = tiny.pop("method"), tiny.pop("objective", "classify")
    model = Net(1 if example == "objective" else 3)
    fitted = glora.fit(
        model,
        train=data,
        test=data,
        head="head",
        method=method,
        objective=objective,
        out=out,
        settings=tiny,
        progress=False,
    )
    assert len(fitted.predict(x[:2])) == 2
    return fitted.record


@pytest.mark.parametrize("example", EXAMPLES)
def test_one_more_is_one_new_file_and_one_line(
    example: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    name = add(example, tmp_path / "code", monkeypatch)
    group, _, own = EXAMPLES[example]
    assert {f"{group}.{setting}" for setting in own} <= {line.split()[0] for line in describe(name)}
    assert {f"{group}.{setting}" for setting in own} <= settings()

    result = run_with(example, name, tmp_path / "run", photos)
    assert result is not None
    config: Any = result.config
    for part in group.split("."):
        config = config[part]
    assert {setting: config[setting] for setting in own} == own
    assert result.metrics[f"test_{result.metrics_info[0].name}"] is not None

    choice = f"{group}.{'source' if group == 'data' else 'name'}"
    for setting in own:
        values = {"data.source": str(photos), choice: name, f"{group}.{setting}x": 1}
        with pytest.raises(ConfigError, match=rf"{group}\.{setting}x: no such setting.*Did you mean '{setting}'\?"):
            load_experiment(values=values)
