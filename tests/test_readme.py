"""The README's commands and code work as pasted, and its table says what the committed results say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from glora.cli.app import app
from glora.report.result import Result
from glora.report.tables import markdown
from glora.runs.demo import verdict

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        with torch.random.fork_rng():
            exec(code, {"__name__": "__main__"})  # each alone, with nothing of the other
    assert (tmp_path / "run" / "result.json").is_file()
    assert (tmp_path / "task.safetensors").is_file()


def test_every_glora_command_parses() -> None:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/glora")]
    assert len(commands) >= 2
    group = get_command(app)
    for words in commands:
        verb = group.commands[words[0]]  # type: ignore[attr-defined]
        verb.make_context(words[0], words[1:])  # raises on an unknown option


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_table_is_made_from_the_committed_results() -> None:
    table = README.split("do not edit -->\n")[1].split("<!-- end -->")[0].strip()
    paths = [ROOT / "results" / "demo" / f"{method}.json" for method in ("linear", "lora", "lora-auto", "glora")]
    results = Result.read_all(paths)
    assert table == f"{markdown(results).strip()}\n\n{verdict(results)}"


@pytest.mark.parametrize("benchmark", ["step", "language_step"])
def test_the_page_on_costs_is_what_the_results_say(benchmark: str) -> None:
    command = [sys.executable, f"benchmarks/{benchmark}.py", "--table"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "background" / "cost.md").read_text(encoding="utf-8")
    assert told.strip()
    assert f"\n\n{told.strip()}\n" in page
